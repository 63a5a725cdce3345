-- The ledger of an owner: tasks, their attempts and receipts, agents, idempotency keys.
-- What never changes of a task (spec, input) is apart from its state, so that a change of state
-- rewrites a short row. Every key of a task begins with task_id: on Postgres these tables are hash
-- partitions by it.

CREATE TABLE commit_mark (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  mark INTEGER NOT NULL -- grows with each commit; compared after a disk error
) STRICT;
INSERT INTO commit_mark (one, mark) VALUES (1, 0);

CREATE TABLE tasks (
  task_id TEXT NOT NULL PRIMARY KEY CHECK (length(task_id) = 26),
  actor TEXT NOT NULL,
  agent_id TEXT NOT NULL,
  phase TEXT NOT NULL CHECK (phase IN ('open', 'leased', 'settled')),
  attempt INTEGER NOT NULL CHECK (attempt >= 0),
  fence INTEGER NOT NULL CHECK (fence >= 0),
  worker TEXT NOT NULL,
  lease_until_ms INTEGER NOT NULL,
  not_before_ms INTEGER NOT NULL,
  excluded TEXT NOT NULL, -- JSON array of peer ids
  cancel_reason TEXT NOT NULL,
  outcome TEXT,
  detail TEXT NOT NULL,
  output_digest TEXT,
  output_bytes INTEGER,
  fuel_used INTEGER NOT NULL CHECK (fuel_used >= 0),
  price_ucr INTEGER NOT NULL CHECK (price_ucr >= 0),
  receipted INTEGER NOT NULL DEFAULT 0 CHECK (receipted IN (0, 1)), -- settled by a signed receipt
  created_ms INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL,
  CHECK ((phase = 'settled') = (outcome IS NOT NULL)),
  CHECK ((output_digest IS NULL) = (output_bytes IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_live ON tasks (task_id) WHERE phase <> 'settled';
CREATE INDEX tasks_by_actor ON tasks (actor, task_id);

CREATE TABLE specs (
  task_id TEXT NOT NULL PRIMARY KEY REFERENCES tasks (task_id),
  spec BLOB NOT NULL, -- msgpack of wire.messages.TaskSpec
  input_inline BLOB,
  input_key INTEGER -- the first 64 bits of the input's digest, where the input is in this row
) STRICT;
CREATE INDEX specs_by_input ON specs (input_key) WHERE input_key IS NOT NULL;

CREATE TABLE outputs (
  task_id TEXT NOT NULL PRIMARY KEY REFERENCES tasks (task_id),
  output_inline BLOB NOT NULL
) STRICT;

CREATE TABLE attempts (
  task_id TEXT NOT NULL REFERENCES tasks (task_id),
  fence INTEGER NOT NULL CHECK (fence >= 1),
  attempt INTEGER NOT NULL,
  worker TEXT NOT NULL,
  leased_ms INTEGER NOT NULL,
  ended_ms INTEGER NOT NULL DEFAULT 0,
  outcome TEXT,
  detail TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (task_id, fence)
) STRICT, WITHOUT ROWID;

CREATE TABLE receipts (
  task_id TEXT NOT NULL,
  fence INTEGER NOT NULL,
  envelope BLOB NOT NULL, -- as the worker signed it
  PRIMARY KEY (task_id, fence),
  FOREIGN KEY (task_id) REFERENCES tasks (task_id)
) STRICT;

CREATE TABLE idempotency (
  actor TEXT NOT NULL,
  key TEXT NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
  request_digest TEXT NOT NULL,
  task_id TEXT NOT NULL REFERENCES tasks (task_id),
  created_ms INTEGER NOT NULL,
  PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
  agent_id TEXT NOT NULL,
  version TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  name TEXT NOT NULL,
  publisher TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('active', 'deprecated', 'revoked')),
  card BLOB NOT NULL,
  published_ms INTEGER NOT NULL,
  PRIMARY KEY (agent_id, version)
) STRICT;
CREATE UNIQUE INDEX agents_by_sequence ON agents (agent_id, sequence);

-- How many tasks there are by phase ('open', 'leased') and outcome, kept by the writer per group.
CREATE TABLE tallies (
  name TEXT NOT NULL PRIMARY KEY,
  n INTEGER NOT NULL CHECK (n >= 0)
) STRICT, WITHOUT ROWID;
