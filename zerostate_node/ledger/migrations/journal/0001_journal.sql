-- A node's own memory: what it owes, what it was told about what it owed, what it heard.

CREATE TABLE commit_mark (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  mark INTEGER NOT NULL
) STRICT;
INSERT INTO commit_mark (one, mark) VALUES (1, 0);

CREATE TABLE owed (
  task_id TEXT NOT NULL,
  fence INTEGER NOT NULL,
  owner TEXT NOT NULL,
  envelope BLOB NOT NULL,
  output_inline BLOB,
  finished_ms INTEGER NOT NULL,
  PRIMARY KEY (task_id, fence)
) STRICT;
CREATE INDEX owed_by_age ON owed (finished_ms, task_id, fence);

CREATE TABLE acks (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  task_id TEXT NOT NULL,
  fence INTEGER NOT NULL,
  owner TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('settled', 'stale', 'rejected')),
  finished_ms INTEGER NOT NULL
) STRICT;

-- Vouchers are cumulative, so the last one of an owner is all that proves what it owes us.
CREATE TABLE vouchers (
  owner TEXT NOT NULL PRIMARY KEY,
  task_id TEXT NOT NULL,
  fence INTEGER NOT NULL,
  voucher BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE heard (
  kind TEXT NOT NULL CHECK (kind IN ('nodes', 'manifests')),
  key TEXT NOT NULL,
  item BLOB NOT NULL,
  expires_ms INTEGER NOT NULL,
  PRIMARY KEY (kind, key)
) STRICT;
CREATE INDEX heard_by_expiry ON heard (kind, expires_ms);
