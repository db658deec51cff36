-- The third step of the embedded broker's tables: fewer writes for each job.

-- `turned`: how often something has happened to running jobs that their workers have to hear of before they begin
-- (turned.rs). `swept`: no record up to this one is a success's (retention.rs).
INSERT INTO total VALUES ('turned', 0), ('swept', 0);

-- Nearly every record is a success. Those are met in the order in which they were written, which is that of their ends.
DROP INDEX record_age;
CREATE INDEX record_age ON record (end, ended_at) WHERE end <> 3;

-- A queue's results are read in the order of all, and a success never outlives its job, which keeps the queue.
DROP INDEX record_queue;
CREATE INDEX record_queue ON record (queue) WHERE end <> 3;
