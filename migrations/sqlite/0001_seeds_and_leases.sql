-- A seed: a worker that holds weights and lets others read them.
CREATE TABLE seeds (
    -- The number of one holding: a seed that comes to hold something else gets another. No number is used
    -- twice, so what still speaks of an old one (a gathered heartbeat) meets nothing.
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    -- host:port:rank, exactly as the seed gave it
    identity     TEXT    NOT NULL UNIQUE,
    host         TEXT    NOT NULL,
    port         INTEGER NOT NULL,
    rank         INTEGER NOT NULL,
    -- opaque bytes
    seed_key     BLOB    NOT NULL,
    -- leases that it may have at once; points 0 to capacity - 1 are offered
    capacity     INTEGER NOT NULL CHECK (capacity > 0),
    -- removed by its owner: offered no more, gone with its last lease
    removed      INTEGER NOT NULL DEFAULT 0 CHECK (removed IN (0, 1)),
    -- when a point of it was last allocated, Unix milliseconds
    last_used_ms INTEGER NOT NULL DEFAULT 0,

    -- The next two only say where to look; they are recomputed from `points`, which decide.
    -- Its place among the seeds of its key, least first; NULL when it is full, removed or silent.
    offer_rank   INTEGER DEFAULT 0,
    -- When the first of its leases ends and its place changes; NULL when it has none.
    next_end_ms  INTEGER
);

CREATE INDEX seeds_by_offer ON seeds (seed_key, offer_rank, last_used_ms, identity) WHERE offer_rank IS NOT NULL;
CREATE INDEX seeds_by_next_end ON seeds (next_end_ms) WHERE next_end_ms IS NOT NULL;
CREATE INDEX seeds_removed ON seeds (id) WHERE removed = 1;

-- The most frequent write has a table of its own.
CREATE TABLE heartbeats (
    seed_id  INTEGER PRIMARY KEY REFERENCES seeds (id) ON DELETE CASCADE,
    -- the seed's key once more, so that the longest silent seed of a key is found by an index
    seed_key BLOB    NOT NULL,
    -- when the last heartbeat arrived, Unix milliseconds
    last_ms  INTEGER NOT NULL
);

CREATE INDEX heartbeats_by_age ON heartbeats (last_ms);
CREATE INDEX heartbeats_by_key ON heartbeats (seed_key, last_ms);

-- A point that is leased or was: a seed's point n is free when it has no row here or the row's time has come.
-- One row a point means that a point is never leased twice.
CREATE TABLE points (
    seed_id       INTEGER NOT NULL REFERENCES seeds (id) ON DELETE CASCADE,
    n             INTEGER NOT NULL CHECK (n >= 0),
    -- SHA-256 of the lease id
    lease_hash    BLOB    NOT NULL UNIQUE,
    -- the lease lives while this is in the future, Unix milliseconds
    busy_until_ms INTEGER NOT NULL,
    PRIMARY KEY (seed_id, n)
) WITHOUT ROWID;

CREATE INDEX points_by_end ON points (busy_until_ms);
