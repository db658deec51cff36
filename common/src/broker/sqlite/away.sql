-- The second step of the embedded broker's tables: it may be the ledger of another broker, where jobs wait as messages.
-- A job that does so is *away*: job.state is -1 while it waits there, else as for any other job.
--
-- job.away is NULL for a job of our own, else a sum: 1 registered, and nobody has said yet that its message is durable;
-- 2 raised, and nobody has said that of its new message; 4 put back in line after its batch was cancelled, in the same
-- epoch; 8 its end has been announced; 16 it ended without having run. While such a job waits, `since` is when it began
-- to and `ready_at` when it is due.

ALTER TABLE job ADD COLUMN away INTEGER;
CREATE INDEX job_away ON job (lane) WHERE state = -1;

-- When it was last said that messages are expected in a queue.
ALTER TABLE queue ADD COLUMN used INTEGER;

-- What messages meet of which no job is known yet: cancelled before they were seen, which is remembered until a time …
CREATE TABLE stop (
  id    BLOB NOT NULL,
  queue TEXT NOT NULL,
  until INTEGER NOT NULL,
  PRIMARY KEY (id, queue)
) WITHOUT ROWID;
CREATE INDEX stop_until ON stop (until);

-- … and when their queue was last purged.
CREATE TABLE purge (queue TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
