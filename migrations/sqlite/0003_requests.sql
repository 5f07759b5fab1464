-- Acquisitions that wait for a seed, in the order of their numbers; and those that were granted under an
-- idempotency key, so that a repeated request finds its lease.
CREATE TABLE requests (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    seed_key      BLOB    NOT NULL,
    -- SHA-256 of the lease that is to be, or is
    lease_hash    BLOB    NOT NULL UNIQUE,
    -- SHA-256 of an idempotency key, and of what was asked for under it; NULL without one
    idempotency   BLOB    UNIQUE,
    request_hash  BLOB,
    -- what is wished beside the key, as JSON
    wish          TEXT    NOT NULL,
    -- the process that is to answer; NULL when nobody waits for the answer at the moment
    planner       TEXT,
    -- until when it waits, Unix milliseconds; NULL once it was granted
    waits_until_ms INTEGER,
    -- when it came, and when it was granted or the wait ended
    changed_ms    INTEGER NOT NULL
);

CREATE INDEX requests_waiting ON requests (seed_key, id) WHERE waits_until_ms IS NOT NULL;
CREATE INDEX requests_to_answer ON requests (planner) WHERE planner IS NOT NULL AND waits_until_ms IS NULL;
CREATE INDEX requests_by_change ON requests (changed_ms);

-- Processes that answer. One that was not heard of until this time answers no more.
CREATE TABLE planners (
    id             TEXT    PRIMARY KEY,
    alive_until_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- Ends of leases and suspicions are looked for by key, as all else.
DROP INDEX seeds_by_next_end;
CREATE INDEX seeds_by_key_end ON seeds (seed_key, next_end_ms) WHERE next_end_ms IS NOT NULL;
