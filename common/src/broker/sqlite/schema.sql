-- The embedded broker's tables, first step; the second is away.sql. What keeps them true: tx.rs (counters), lease.rs,
-- settle.rs.
-- Times are milliseconds since the epoch. job.state and record.end: 0 ready, 1 delayed, 2 running, 3 succeeded,
-- 4 dead, 5 cancelled, 6 expired.

CREATE TABLE queue (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  name   TEXT NOT NULL UNIQUE,
  paused TEXT
);

-- Where jobs wait. `jobs` counts every row of `job` that names the lane; the others count its jobs by state.
CREATE TABLE lane (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  queue   INTEGER NOT NULL,
  model   TEXT,
  band    INTEGER NOT NULL,
  ready   INTEGER NOT NULL DEFAULT 0,
  delayed INTEGER NOT NULL DEFAULT 0,
  running INTEGER NOT NULL DEFAULT 0,
  dead    INTEGER NOT NULL DEFAULT 0,
  jobs    INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX lane_name ON lane (queue, band, ifnull(model, x''));

CREATE TABLE batch (
  id               INTEGER PRIMARY KEY AUTOINCREMENT,
  name             TEXT NOT NULL UNIQUE,
  queue            INTEGER NOT NULL,
  created_at       INTEGER NOT NULL,
  sealed           INTEGER NOT NULL DEFAULT 0,
  cancelled        INTEGER NOT NULL DEFAULT 0,
  total            INTEGER NOT NULL DEFAULT 0,
  queued           INTEGER NOT NULL DEFAULT 0,
  delayed          INTEGER NOT NULL DEFAULT 0,
  running          INTEGER NOT NULL DEFAULT 0,
  succeeded        INTEGER NOT NULL DEFAULT 0,
  dead             INTEGER NOT NULL DEFAULT 0,
  stopped          INTEGER NOT NULL DEFAULT 0,
  expired          INTEGER NOT NULL DEFAULT 0,
  jobs             INTEGER NOT NULL DEFAULT 0,
  input_tokens     INTEGER NOT NULL DEFAULT 0,
  output_tokens    INTEGER NOT NULL DEFAULT 0,
  cached_tokens    INTEGER NOT NULL DEFAULT 0,
  reasoning_tokens INTEGER NOT NULL DEFAULT 0,
  cost             INTEGER NOT NULL DEFAULT 0,
  cost_known       INTEGER NOT NULL DEFAULT 0,
  cost_unknown     INTEGER NOT NULL DEFAULT 0,
  last             INTEGER NOT NULL DEFAULT 0
);

-- A job, until retention. `ready_at` orders a lane and survives a lease, so that a job given back is ahead of its lane;
-- of a delayed job it is the due time, and `since` keeps the place of one that was released. `hold` is NULL, or '' for released without a key. `settled` is the last lease
-- whose verdict was applied. `record` is its success, else the end of its current epoch.
CREATE TABLE job (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  id          BLOB NOT NULL UNIQUE,
  lane        INTEGER NOT NULL,
  state       INTEGER NOT NULL,
  ready_at    INTEGER NOT NULL,
  deadline    INTEGER NOT NULL,
  created_at  INTEGER NOT NULL,
  fingerprint BLOB NOT NULL,
  priority    INTEGER NOT NULL,
  keyed       INTEGER NOT NULL,
  batch       INTEGER,
  row         INTEGER,
  epoch       INTEGER NOT NULL DEFAULT 0,
  attempts    INTEGER NOT NULL DEFAULT 0,
  deaths      INTEGER NOT NULL DEFAULT 0,
  cancel      INTEGER NOT NULL DEFAULT 0,
  dropped     INTEGER NOT NULL DEFAULT 0,
  lease       BLOB,
  leased_at   INTEGER,
  expires_at  INTEGER,
  worker      TEXT,
  settled     BLOB,
  record      INTEGER,
  not_before  INTEGER,
  since       INTEGER,
  hold        TEXT,
  custom_id   TEXT,
  tenant      TEXT,
  code        TEXT,
  class       TEXT,
  tags        TEXT,
  history     BLOB
);
CREATE INDEX job_ready    ON job (lane, ready_at) WHERE state = 0;
CREATE INDEX job_delayed  ON job (lane, ready_at) WHERE state = 1;
CREATE INDEX job_running  ON job (expires_at)     WHERE state = 2;
CREATE INDEX job_ended    ON job (state)          WHERE state > 3;
CREATE INDEX job_deadline ON job (deadline)       WHERE state < 2;
CREATE INDEX job_hold     ON job (hold)           WHERE state = 1 AND hold <> '';
CREATE INDEX job_batch    ON job (batch)          WHERE batch IS NOT NULL;

-- Apart from its job, so that a change of state does not write the prompt again.
CREATE TABLE payload (
  seq   INTEGER PRIMARY KEY,
  bytes BLOB NOT NULL
);

-- The account of every end, in the order they became durable: the ledger and the results queue in one.
CREATE TABLE record (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,
  job      INTEGER NOT NULL,
  end      INTEGER NOT NULL,
  queue    INTEGER NOT NULL,
  batch    INTEGER,
  ended_at INTEGER NOT NULL,
  bytes    INTEGER NOT NULL,
  body     BLOB NOT NULL
);
CREATE INDEX record_queue ON record (queue);
CREATE INDEX record_batch ON record (batch)    WHERE batch IS NOT NULL;
CREATE INDEX record_age   ON record (end, ended_at);

-- The mark that an id has been used, once its job is past retention.
CREATE TABLE past (
  id          BLOB PRIMARY KEY,
  fingerprint BLOB NOT NULL,
  state       INTEGER NOT NULL,
  ended_at    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX past_age ON past (ended_at);

CREATE TABLE worker (id TEXT PRIMARY KEY, seen_at INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE lock   (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until INTEGER NOT NULL);
CREATE TABLE note   (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE total  (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO total VALUES ('record_bytes', 0);
