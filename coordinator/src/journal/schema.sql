-- The journal of one run. Read it while the run goes on: sqlite3 -readonly journal.sqlite
-- Times are milliseconds since 1970. Digests and run ids are lower-case hexadecimal.
-- A number that is not finite (a loss of NaN) is NULL.

-- The run; one row.
CREATE TABLE runs (
  id            TEXT PRIMARY KEY,      -- 16 digits, drawn when this journal was made
  name          TEXT NOT NULL,
  spec_hash     TEXT NOT NULL,         -- SHA-256 of spec_json
  spec_json     TEXT NOT NULL,         -- the checked run spec with every default
  made_at       INTEGER NOT NULL,
  starts        INTEGER NOT NULL,      -- how often a coordinator has served it
  phase         TEXT NOT NULL,         -- gathering, running, stopping, stopped, finished
  total_steps   INTEGER,               -- from the first view on
  fingerprint   TEXT                   -- SHA-256 of the training data, from the first view on
) STRICT;

-- The sets of members, each from a step on.
CREATE TABLE views (
  view          INTEGER PRIMARY KEY,   -- 1, 2, ...
  begins_at     INTEGER NOT NULL,      -- the first step for which it holds
  made_at       INTEGER NOT NULL
) STRICT;

-- Who is in a view.
CREATE TABLE members (
  view          INTEGER NOT NULL REFERENCES views(view),
  idx           INTEGER NOT NULL,      -- position in run.toml
  peer          TEXT NOT NULL,
  arch          TEXT NOT NULL,
  address       TEXT NOT NULL,         -- where its contribution log is served
  says          TEXT NOT NULL,         -- the tensors of its contributions
  PRIMARY KEY (view, idx)
) STRICT, WITHOUT ROWID;

-- Every grant: steps below `until` may be taken.
CREATE TABLE leases (
  view          INTEGER NOT NULL,
  until         INTEGER NOT NULL,
  granted_at    INTEGER NOT NULL,
  PRIMARY KEY (view, until)
) STRICT, WITHOUT ROWID;

-- Checkpoints that peers said are on their disks.
CREATE TABLE checkpoints (
  peer          TEXT NOT NULL,
  step          INTEGER NOT NULL,      -- completed steps
  saved_at      INTEGER NOT NULL,
  PRIMARY KEY (peer, step)
) STRICT, WITHOUT ROWID;

-- Every step that a peer completed. One that it takes again in a replay keeps its row; those that all take again after
-- falling back to an older checkpoint are removed when the new view begins.
CREATE TABLE steps (
  peer          TEXT NOT NULL,
  step          INTEGER NOT NULL,      -- from 0
  view          INTEGER NOT NULL,
  epoch         INTEGER NOT NULL,
  lr            REAL,
  digest        TEXT NOT NULL,         -- SHA-256 of what it said, all rounds
  said          TEXT NOT NULL,         -- the tensors of round 0, as JSON: name to the first 8 bytes of the SHA-256
  images        INTEGER NOT NULL,      -- samples in its batch
  log_bytes     INTEGER NOT NULL,      -- its contribution log in memory
  reported_at   INTEGER NOT NULL,
  PRIMARY KEY (peer, step)
) STRICT, WITHOUT ROWID;

-- The loss terms of a step, before their weights.
CREATE TABLE terms (
  peer          TEXT NOT NULL,
  step          INTEGER NOT NULL,
  name          TEXT NOT NULL,
  value         REAL,
  PRIMARY KEY (peer, step, name)
) STRICT, WITHOUT ROWID;

-- How long the acts of a step took.
CREATE TABLE timings (
  peer          TEXT NOT NULL,
  step          INTEGER NOT NULL,
  act           TEXT NOT NULL,
  ms            REAL,
  PRIMARY KEY (peer, step, act)
) STRICT, WITHOUT ROWID;

-- What people were told.
CREATE TABLE events (
  at            INTEGER NOT NULL,
  warn          INTEGER NOT NULL,      -- 1 if something was wrong
  sentence      TEXT NOT NULL
) STRICT;
