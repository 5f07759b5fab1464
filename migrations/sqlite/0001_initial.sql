-- A seed: a worker that holds weights and lets others read them.
CREATE TABLE seeds (
    -- The number of one holding: a seed that comes to hold something else gets another. No number is used
    -- twice, so what still speaks of an old one (a gathered heartbeat) meets nothing.
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    -- host:port:rank, exactly as the seed gave it
    identity         TEXT    NOT NULL UNIQUE,
    host             TEXT    NOT NULL,
    port             INTEGER NOT NULL,
    rank             INTEGER NOT NULL,
    -- opaque bytes
    seed_key         BLOB    NOT NULL,

    -- Its terms.
    -- leases that it may have at once; points 0 to capacity - 1 are offered
    capacity         INTEGER NOT NULL CHECK (capacity > 0),
    -- how long a lease lives from grant or renewal, in milliseconds
    lease_ttl_ms     INTEGER NOT NULL,
    -- the host whose seeds may have `host_capacity` leases together; both NULL without such a bound
    capped_host      TEXT,
    host_capacity    INTEGER,

    -- Whether it is offered.
    -- removed by its owner: offered no more, gone with its last lease
    removed          INTEGER NOT NULL DEFAULT 0 CHECK (removed IN (0, 1)),
    -- taken out by an operator: not offered while its memory is the same
    drained          INTEGER NOT NULL DEFAULT 0 CHECK (drained IN (0, 1)),
    -- failures since it last proved to be well, and until when it is not offered because of them
    failures         INTEGER NOT NULL DEFAULT 0,
    suspect_until_ms INTEGER NOT NULL DEFAULT 0,
    -- when it last answered a planner that asked for its health; 0 for never
    answered_ms      INTEGER NOT NULL DEFAULT 0,
    -- when a point of it was last allocated, Unix milliseconds; 0 for never
    last_used_ms     INTEGER NOT NULL DEFAULT 0,

    -- The next two only say where to look; they are recomputed from `points`, which decide.
    -- Its place among the seeds of its key, least first; NULL when it is full, removed or silent.
    offer_rank       INTEGER DEFAULT 0,
    -- When the first of its leases ends and its place changes; NULL when it has none.
    next_end_ms      INTEGER,

    -- What it told of itself; at the end of the row, behind what every lease changes.
    -- labels, for people and for rules by model
    model_url        TEXT,
    deploy_strategy  TEXT,
    is_draft         INTEGER,
    -- where it stands
    zone             TEXT,
    rack             TEXT,
    node             TEXT,
    -- the inference instance that it is a rank of, its process, the digest of its weights
    instance_id      TEXT,
    incarnation      TEXT,
    content_id       TEXT
);

-- The seeds of a key that may have a free point, best first; and by where they stand and by instance. Seeds of which
-- that is not known are not in the latter and cost nothing.
CREATE INDEX seeds_by_offer ON seeds (seed_key, offer_rank, last_used_ms, identity) WHERE offer_rank IS NOT NULL;
CREATE INDEX seeds_by_zone ON seeds (seed_key, zone, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND zone IS NOT NULL;
CREATE INDEX seeds_by_rack ON seeds (seed_key, rack, zone, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND rack IS NOT NULL;
CREATE INDEX seeds_by_node ON seeds (seed_key, node, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND node IS NOT NULL;
CREATE INDEX seeds_by_instance ON seeds (seed_key, instance_id, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND instance_id IS NOT NULL;
-- Those whose place grows old.
CREATE INDEX seeds_by_next_end ON seeds (seed_key, next_end_ms) WHERE next_end_ms IS NOT NULL;
CREATE INDEX seeds_by_capped_host ON seeds (capped_host) WHERE capped_host IS NOT NULL;
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
    -- when the lease was granted, Unix milliseconds
    granted_ms    INTEGER NOT NULL,
    -- it lives while this is in the future, Unix milliseconds
    busy_until_ms INTEGER NOT NULL,
    -- who was granted it, as far as it is known
    requester     TEXT,
    PRIMARY KEY (seed_id, n)
) WITHOUT ROWID;

CREATE INDEX points_by_end ON points (busy_until_ms);

-- Which instance serves the ranks of another one, so that its later ranks are sent to the same.
CREATE TABLE instances (
    instance_id     TEXT    PRIMARY KEY,
    source_instance TEXT    NOT NULL,
    -- when it was last used, Unix milliseconds
    used_ms         INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX instances_by_use ON instances (used_ms);

-- Acquisitions that wait for a seed, in the order of their numbers; and those that were granted under an
-- idempotency key, so that a repeated request finds its lease.
CREATE TABLE requests (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    seed_key       BLOB    NOT NULL,
    -- SHA-256 of the lease that is to be, or is
    lease_hash     BLOB    NOT NULL UNIQUE,
    -- SHA-256 of an idempotency key, and of what was asked for under it; NULL without one
    idempotency    BLOB    UNIQUE,
    request_hash   BLOB,
    -- which attempt of it has its place, and is answered: one that was repeated must not end the wait of its repetition
    attempt        INTEGER NOT NULL,
    -- what is wished beside the key, as JSON
    wish           TEXT    NOT NULL,
    -- the process that is to answer; NULL when nobody waits for the answer at the moment
    planner        TEXT,
    -- until when it waits, Unix milliseconds; NULL once it was granted
    waits_until_ms INTEGER,
    -- when it came, and when it was granted or the wait ended
    changed_ms     INTEGER NOT NULL
);

CREATE INDEX requests_waiting ON requests (seed_key, id) WHERE waits_until_ms IS NOT NULL;
CREATE INDEX requests_to_answer ON requests (planner) WHERE planner IS NOT NULL AND waits_until_ms IS NULL;
CREATE INDEX requests_by_change ON requests (changed_ms);
-- Those that nobody can repeat are forgotten sooner.
CREATE INDEX requests_once ON requests (changed_ms) WHERE idempotency IS NULL;

-- Processes that answer. One that was not heard of until this time answers no more.
CREATE TABLE planners (
    id             TEXT    PRIMARY KEY,
    alive_until_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- What was: leases that ended, and what became of seeds. For people; nothing is decided by it. Rows are deleted from
-- the beginning, by age and by number: they are in the order of time, nearly, so that it takes no index beside `id`.
CREATE TABLE ended_leases (
    id          INTEGER PRIMARY KEY,
    -- SHA-256 of the lease id
    lease_hash  BLOB    NOT NULL,
    -- what its seed held, and where that was
    seed_key    BLOB    NOT NULL,
    host        TEXT    NOT NULL,
    port        INTEGER NOT NULL,
    rank        INTEGER NOT NULL,
    -- who read, as far as it is known
    requester   TEXT,
    -- when it was granted, and when it ended, Unix milliseconds
    granted_ms  INTEGER NOT NULL,
    ended_ms    INTEGER NOT NULL,
    -- how it ended: 0 released, 1 given back by a planner, 2 expired, 3 its seed holds something else
    end_kind    INTEGER NOT NULL,
    -- how the transfer went: 1 well, 2 it failed, 3 it was given up; 0 when nobody said
    outcome     INTEGER NOT NULL,
    -- why it failed
    reason      TEXT,
    -- what was read and how long it took, in milliseconds
    bytes       INTEGER,
    duration_ms INTEGER
);

CREATE TABLE events (
    id       INTEGER PRIMARY KEY,
    -- when it was, Unix milliseconds
    at_ms    INTEGER NOT NULL,
    -- 0 registered, 1 new holding, 2 removed, 3 drained, 4 silent, 5 suspect, 6 recovered, 7 key invalidated
    kind     INTEGER NOT NULL,
    seed_key BLOB    NOT NULL,
    -- the seed, where it is about one
    host     TEXT,
    port     INTEGER,
    rank     INTEGER,
    -- what else there is to say, for people
    detail   TEXT
);

-- A claim that takes the point of an expired lease writes over its row. Only here are both there at once.
CREATE TRIGGER points_taken_over AFTER UPDATE OF lease_hash ON points WHEN OLD.lease_hash <> NEW.lease_hash
BEGIN
    INSERT INTO ended_leases (lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind, outcome)
    SELECT OLD.lease_hash, s.seed_key, s.host, s.port, s.rank, OLD.requester, OLD.granted_ms, OLD.busy_until_ms, 2, 0
    FROM seeds s WHERE s.id = OLD.seed_id;
END;

-- What time it is for planners: the clock's, and this.
CREATE TABLE clock (
    id        INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    -- makes up for steps of the clock, in milliseconds
    offset_ms INTEGER NOT NULL,
    -- no later time than this was worked at, but for a second, Unix milliseconds with the offset
    seen_ms   INTEGER NOT NULL
);
INSERT INTO clock (offset_ms, seen_ms) VALUES (0, 0);
