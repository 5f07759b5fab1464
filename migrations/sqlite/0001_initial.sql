-- All rows but those of history are mirrored in the planner's memory, where it looks for them: so there are few indexes
-- here, and none for the sake of a search.

-- A seed: a worker that holds weights and lets others read them; and what it told of itself.
CREATE TABLE seeds (
    -- The number of one holding: a seed that comes to hold something else gets another. No number is used
    -- twice, so what still speaks of an old one (a gathered heartbeat) meets nothing.
    id               INTEGER PRIMARY KEY,
    -- its identity, host:port:rank, as the seed gave it
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
    -- leases that the seeds of its host may have together; NULL without such a bound
    host_capacity    INTEGER,

    -- labels, for people and for rules by model
    model_url        TEXT,
    deploy_strategy  TEXT,
    is_draft         INTEGER,
    -- where it stands
    zone             TEXT,
    rack             TEXT,
    node             TEXT,
    -- the inference instance that it is a rank of, its process, the digest of its weights, what named them before
    instance_id      TEXT,
    incarnation      TEXT,
    content_id       TEXT,
    origin           TEXT,
    -- the address that registered it, or its network of IPv6: whose share of the seeds it counts to
    client           TEXT,
    -- whose it is, as far as that is known: the principal that registered it, and the address that it came from
    owner            TEXT,
    owner_address    TEXT,

    UNIQUE (host, port, rank)
);

-- What changes often of a seed has a narrow table of its own: one row a seed.
CREATE TABLE seed_states (
    seed_id          INTEGER PRIMARY KEY REFERENCES seeds (id) ON DELETE CASCADE,
    -- when the last heartbeat arrived, Unix milliseconds
    heard_ms         INTEGER NOT NULL,
    -- when a point of it was last allocated, Unix milliseconds; 0 for never
    used_ms          INTEGER NOT NULL,
    -- when it last answered a planner that asked for its health; 0 for never
    answered_ms      INTEGER NOT NULL,
    -- failures since it last proved to be well, and until when it is not offered because of them
    failures         INTEGER NOT NULL,
    suspect_until_ms INTEGER NOT NULL,
    -- removed by its owner: offered no more, gone with its last lease
    removed          INTEGER NOT NULL CHECK (removed IN (0, 1)),
    -- taken out by an operator: not offered while its memory is the same
    drained          INTEGER NOT NULL CHECK (drained IN (0, 1))
);

-- What there is to say of a seed while it loads; a complete seed has no row here.
CREATE TABLE loading_seeds (
    seed_id       INTEGER PRIMARY KEY REFERENCES seeds (id) ON DELETE CASCADE,
    -- the seed that it reads from, or read from last, which may be gone; NULL when it reads from storage
    source_id     INTEGER,
    -- sources between it and a complete seed, or storage
    depth         INTEGER NOT NULL CHECK (depth >= 0),
    -- what names its bytes, as far as that was heard
    root          TEXT,
    -- bytes that it holds; the model's size; bytes that came since the load began
    held_bytes    INTEGER NOT NULL,
    total_bytes   INTEGER NOT NULL,
    arrived_bytes INTEGER NOT NULL,
    -- how often it is to tell how far it is, in milliseconds
    period_ms     INTEGER NOT NULL,
    -- when it last told how many bytes had come, Unix milliseconds, 0 if it has not since it reads from its source; and the
    -- bytes a second between the last two times
    told_ms       INTEGER NOT NULL,
    rate          INTEGER NOT NULL,
    -- its last reports in a row by which it falls behind its source, 3 at most
    lags          INTEGER NOT NULL,
    -- how it sends: 0 well, 1 doubtful, 2 slowly: it is granted to nobody while it loads
    sends         INTEGER NOT NULL,
    -- whether its place was given to a reader of it
    was_moved     INTEGER NOT NULL CHECK (was_moved IN (0, 1)),
    -- the seed that reads from it and is to have its place; when that was decided, or was the last time
    yields_to     INTEGER,
    yielded_ms    INTEGER NOT NULL,
    -- the right to read storage while others wait, if it has that or was the last of its key to have it: until when it
    -- lives, and when its holder last told of more bytes, Unix milliseconds
    lead_until_ms INTEGER,
    lead_moved_ms INTEGER,
    lead_since_ms INTEGER
);

-- A point that is leased or was: a seed's point n is free when it has no row here or the row's time has come.
-- One row a point means that a point is never leased twice.
CREATE TABLE points (
    seed_id       INTEGER NOT NULL REFERENCES seeds (id) ON DELETE CASCADE,
    n             INTEGER NOT NULL CHECK (n >= 0),
    -- SHA-256 of the lease id
    lease_hash    BLOB    NOT NULL,
    -- when the lease was granted, Unix milliseconds
    granted_ms    INTEGER NOT NULL,
    -- it lives while this is in the future, Unix milliseconds
    ends_ms       INTEGER NOT NULL,
    -- who was granted it, as far as it is known
    requester     TEXT,
    -- the seed that holds the lease while it loads, which may be gone
    reader        INTEGER,
    PRIMARY KEY (seed_id, n)
) WITHOUT ROWID;

-- Which instance serves the ranks of another one, so that its later ranks are sent to the same.
CREATE TABLE instances (
    instance_id     TEXT    PRIMARY KEY,
    source_instance TEXT    NOT NULL,
    -- when it was last used, Unix milliseconds
    used_ms         INTEGER NOT NULL
) WITHOUT ROWID;

-- When the place of a loading seed was last promised to a reader of it, because a link is slow: once a second and key.
-- Older rows go.
CREATE TABLE moves (
    seed_key BLOB    PRIMARY KEY,
    -- Unix milliseconds
    moved_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- Acquisitions that wait for a seed, in the order of their numbers; and those that were granted under an
-- idempotency key, so that a repeated request finds its lease.
CREATE TABLE requests (
    id             INTEGER PRIMARY KEY,
    seed_key       BLOB    NOT NULL,
    -- SHA-256 of the lease that is to be, or is
    lease_hash     BLOB    NOT NULL,
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
    -- who read, as far as it is known: principal/instance@address, or some of them
    requester   TEXT,
    -- the reader's identity, host:port:rank, if it loaded as a seed
    reader      TEXT,
    -- when it was granted, and when it ended, Unix milliseconds
    granted_ms  INTEGER NOT NULL,
    ended_ms    INTEGER NOT NULL,
    -- how it ended: 0 released, 1 given back by a planner, 2 expired, 3 its seed holds something else,
    -- 4 passed on to who read from its holder
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
    -- 0 registered, 1 new holding, 2 removed, 3 drained, 4 silent, 5 suspect, 6 recovered, 7 key invalidated,
    -- 8 completed, 9 moved
    kind     INTEGER NOT NULL,
    seed_key BLOB    NOT NULL,
    -- the seed, where it is about one
    host     TEXT,
    port     INTEGER,
    rank     INTEGER,
    -- whose request it was, by its principal's name; NULL when it was nobody's who is known
    done_by  TEXT,
    -- what else there is to say, for people
    detail   TEXT
);

-- What the planner knows that has the file: one row.
CREATE TABLE planner (
    id        INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    -- the number of the last batch that was committed, by which a planner finds out what became of one in doubt
    batch     INTEGER NOT NULL,
    -- the number that the next seed takes
    next_seed INTEGER NOT NULL,
    -- What time it is for planners: the clock's, and an offset that makes up for steps of the clock, in milliseconds.
    offset_ms INTEGER NOT NULL,
    -- no later time than this was worked at, but for a second, Unix milliseconds with the offset
    seen_ms   INTEGER NOT NULL,
    -- names the leases of idempotency keys, so that nobody who knows a key knows its lease
    lease_secret BLOB NOT NULL
);
INSERT INTO planner (id, batch, next_seed, offset_ms, seen_ms, lease_secret)
    VALUES (1, 0, 1, 0, 0, randomblob(32));
