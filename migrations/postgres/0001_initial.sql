-- Numbers of seeds and requests. A batch takes a block of them at once, for 512 commands and 1,024 workers that waited and
-- load now, so that it can decide over rows that are not there yet. None is used twice, so what still speaks of an old seed
-- (a gathered heartbeat) meets nothing.
CREATE SEQUENCE numbers INCREMENT BY 2048;

-- A seed: a worker that holds weights and lets others read them.
--
-- Whoever changes a seed, its points or its places takes the row's lock, in the order of `id`, and gives it the next
-- `version`: nothing of it has changed while that is the same.
CREATE TABLE seeds (
    -- The number of one holding: a seed that comes to hold something else gets another.
    id               BIGINT  PRIMARY KEY,
    version          BIGINT  NOT NULL DEFAULT 0,
    -- host:port:rank, exactly as the seed gave it; compared byte by byte
    identity         TEXT    COLLATE "C" NOT NULL UNIQUE,
    host             TEXT    NOT NULL,
    port             INTEGER NOT NULL,
    rank             BIGINT  NOT NULL,
    -- opaque bytes
    seed_key         BYTEA   NOT NULL,
    -- SHA-256 of them: an index cannot hold long ones
    key_hash         BYTEA   NOT NULL,

    -- Its terms.
    -- leases that it may have at once; points 0 to capacity - 1 are offered
    capacity         INTEGER NOT NULL CHECK (capacity > 0),
    -- how long a lease lives from grant or renewal, in milliseconds
    lease_ttl_ms     BIGINT  NOT NULL,
    -- the host whose seeds may have `host_capacity` leases together; both NULL without such a bound
    capped_host      TEXT,
    host_capacity    INTEGER,

    -- Whether it is offered.
    -- removed by its owner: offered no more, gone with its last lease
    removed          BOOLEAN NOT NULL DEFAULT FALSE,
    -- taken out by an operator: not offered while its memory is the same
    drained          BOOLEAN NOT NULL DEFAULT FALSE,
    -- failures since it last proved to be well, and until when it is not offered because of them
    failures         INTEGER NOT NULL DEFAULT 0,
    suspect_until_ms BIGINT  NOT NULL DEFAULT 0,
    -- when it last answered a planner that asked for its health; 0 for never
    answered_ms      BIGINT  NOT NULL DEFAULT 0,
    -- when a point of it was last allocated, Unix milliseconds; 0 for never
    used_ms          BIGINT  NOT NULL DEFAULT 0,

    -- What it told of itself; at the end of the row, behind what every lease changes.
    -- labels, for people and for rules by model
    model_url        TEXT,
    deploy_strategy  TEXT,
    is_draft         BOOLEAN,
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
    owner_address    TEXT
)
-- Room for the next version of a row on its page: no index has a column that a lease changes.
WITH (fillfactor = 70);

CREATE INDEX seeds_by_capped_host ON seeds (capped_host) WHERE capped_host IS NOT NULL;
CREATE INDEX seeds_removed ON seeds (id) WHERE removed;

-- Where a seed stands among those that are offered together: on the page of its key, and on those of its key's seeds of
-- the same instance, node, rack and zone, as far as that is known. Seeds that still load have pages of their own. It only
-- says where to look; leases decide.
CREATE TABLE places (
    seed_id    BIGINT NOT NULL REFERENCES seeds (id) ON DELETE CASCADE,
    -- what the seeds of the page have in common: 0 the key alone; with it, 1 the instance, 2 the node, 3 the rack, 4 the
    -- zone; 5 that nobody reads from them; 6 that they load, and lend only to who stalls; 7 to 12 that they load, and
    -- what stands at that number less 7
    kind       SMALLINT NOT NULL,
    -- the hash of the key; with that of what else they have in common
    page       BYTEA  NOT NULL,
    -- the busy share of its points, in parts of 2^40; of a seed that loads its rank; NULL when it is not offered here
    busy_share BIGINT,
    -- as its seed has it
    used_ms    BIGINT NOT NULL,
    -- when it may have another place by itself, because a lease or a suspicion ends; on the page of the key alone
    due_ms     BIGINT,
    -- as its seed has it, the last part of every order
    identity   TEXT   COLLATE "C" NOT NULL,
    PRIMARY KEY (seed_id, kind)
)
WITH (fillfactor = 70);

CREATE INDEX places_by_share ON places (page, busy_share, used_ms, identity) WHERE busy_share IS NOT NULL;
CREATE INDEX places_by_use ON places (page, used_ms, identity) WHERE busy_share IS NOT NULL;
CREATE INDEX places_by_due ON places (page, due_ms) WHERE due_ms IS NOT NULL;

-- What there is to say of a seed while it loads; a complete seed has no row here. It is part of its seed's row: who changes
-- it has that one's lock, and gives that one its next version.
CREATE TABLE loading_seeds (
    seed_id       BIGINT  PRIMARY KEY REFERENCES seeds (id) ON DELETE CASCADE,
    -- the seed that it reads from, or read from last, which may be gone; NULL when it reads from storage
    source_id     BIGINT,
    -- sources between it and a complete seed, or storage
    depth         INTEGER NOT NULL CHECK (depth >= 0),
    -- what names its bytes, as far as that was heard
    root          TEXT,
    -- bytes that it holds; the model's size; bytes that came since the load began
    held_bytes    BIGINT  NOT NULL,
    total_bytes   BIGINT  NOT NULL,
    arrived_bytes BIGINT  NOT NULL,
    -- how often it is to tell how far it is, in milliseconds
    period_ms     BIGINT  NOT NULL,
    -- when it last told how many bytes had come, Unix milliseconds, 0 if it has not since it reads from its source; and the
    -- bytes a second between the last two times
    told_ms       BIGINT  NOT NULL,
    rate          BIGINT  NOT NULL,
    -- its last reports in a row by which it falls behind its source, 3 at most
    lags          SMALLINT NOT NULL,
    -- how it sends: 0 well, 1 doubtful, 2 slowly: it is granted to nobody while it loads
    sends         SMALLINT NOT NULL,
    -- whether its place was given to a reader of it
    was_moved     BOOLEAN NOT NULL,
    -- the seed that reads from it and is to have its place; when that was decided, or was the last time
    yields_to     BIGINT,
    yielded_ms    BIGINT  NOT NULL,
    -- the right to read storage while others wait, if it has that or was the last of its key to have it: the hash of the
    -- key, of which there is one such seed; until when the right lives, and when its holder last told of more bytes, Unix
    -- milliseconds. A batch may move the right from one seed to another.
    lead_key      BYTEA   UNIQUE DEFERRABLE,
    lead_until_ms BIGINT,
    lead_moved_ms BIGINT,
    lead_since_ms BIGINT
)
WITH (fillfactor = 70);

-- The most frequent write has a table of its own, which claims only read.
CREATE TABLE heartbeats (
    seed_id  BIGINT PRIMARY KEY REFERENCES seeds (id) ON DELETE CASCADE,
    -- the seed's key once more, so that the longest silent seed of a key is found by an index
    key_hash BYTEA  NOT NULL,
    -- when the last heartbeat arrived, Unix milliseconds
    last_ms  BIGINT NOT NULL
)
WITH (fillfactor = 70);

CREATE INDEX heartbeats_by_age ON heartbeats (last_ms);
CREATE INDEX heartbeats_by_key ON heartbeats (key_hash, last_ms);

-- A point that is leased or was: a seed's point n is free when it has no row here or the row's time has come.
-- One row a point means that a point is never leased twice.
CREATE TABLE points (
    seed_id    BIGINT  NOT NULL REFERENCES seeds (id) ON DELETE CASCADE,
    n          INTEGER NOT NULL CHECK (n >= 0),
    -- SHA-256 of the lease id; a batch may move a lease from one point to another
    lease_hash BYTEA   NOT NULL UNIQUE DEFERRABLE,
    -- when the lease was granted, Unix milliseconds
    granted_ms BIGINT  NOT NULL,
    -- it lives while this is in the future, Unix milliseconds
    ends_ms    BIGINT  NOT NULL,
    -- who was granted it, as far as it is known
    requester  TEXT,
    -- the seed that has the lease, and loads
    reader     BIGINT,
    PRIMARY KEY (seed_id, n)
);

CREATE INDEX points_by_end ON points (ends_ms);

-- Which instance serves the ranks of another one, so that its later ranks are sent to the same.
CREATE TABLE instances (
    instance_id     TEXT    PRIMARY KEY,
    source_instance TEXT    NOT NULL,
    -- when it was last used, Unix milliseconds
    used_ms         BIGINT  NOT NULL
);

CREATE INDEX instances_by_use ON instances (used_ms);

-- When the place of a loading seed was last promised to a reader of it, because a link is slow: once a second and key.
-- Older rows go.
CREATE TABLE moves (
    -- SHA-256 of the key
    key_hash BYTEA  PRIMARY KEY,
    -- Unix milliseconds
    moved_ms BIGINT NOT NULL
);

-- Acquisitions that wait for a seed, in the order of their numbers; and those that were granted under an
-- idempotency key, so that a repeated request finds its lease.
CREATE TABLE requests (
    id             BIGINT  PRIMARY KEY,
    seed_key       BYTEA   NOT NULL,
    -- SHA-256 of it
    key_hash       BYTEA   NOT NULL,
    -- SHA-256 of the lease that is to be, or is
    lease_hash     BYTEA   NOT NULL UNIQUE,
    -- SHA-256 of an idempotency key, and of what was asked for under it; NULL without one
    idempotency    BYTEA   UNIQUE,
    request_hash   BYTEA,
    -- which attempt of it has its place, and is answered: one that was repeated must not end the wait of its repetition
    attempt        BIGINT  NOT NULL,
    -- what is wished beside the key, as JSON
    wish           TEXT    NOT NULL,
    -- the address that asked, or its network of IPv6, as the wish has it: whose share of the requests it counts to
    client         TEXT,
    -- the process that is to answer; NULL when nobody waits for the answer at the moment
    planner        TEXT,
    -- until when it waits, Unix milliseconds; NULL once it was granted
    waits_until_ms BIGINT,
    -- when it came, and when it was granted or the wait ended
    changed_ms     BIGINT  NOT NULL
);

CREATE INDEX requests_waiting ON requests (key_hash, id) WHERE waits_until_ms IS NOT NULL;
CREATE INDEX requests_to_answer ON requests (planner) WHERE planner IS NOT NULL AND waits_until_ms IS NULL;
CREATE INDEX requests_by_change ON requests (changed_ms);
-- Waits that are over are found without reading those that were granted and are remembered.
CREATE INDEX requests_by_wait ON requests (waits_until_ms) WHERE waits_until_ms IS NOT NULL;
-- Those that nobody can repeat are forgotten sooner.
CREATE INDEX requests_once ON requests (changed_ms) WHERE idempotency IS NULL;

-- Processes that answer. One that was not heard of until this time answers no more.
CREATE TABLE planners (
    id             TEXT    PRIMARY KEY,
    alive_until_ms BIGINT  NOT NULL
);

-- What was: leases that ended, and what became of seeds. For people; nothing is decided by it. Rows are deleted from
-- the beginning, by age and by number: they are in the order of time, nearly, so that it takes no index beside `id`.
CREATE TABLE ended_leases (
    id          BIGINT   PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
    -- SHA-256 of the lease id
    lease_hash  BYTEA    NOT NULL,
    -- what its seed held, and where that was
    seed_key    BYTEA    NOT NULL,
    host        TEXT     NOT NULL,
    port        INTEGER  NOT NULL,
    rank        BIGINT   NOT NULL,
    -- who read, as far as it is known: principal/instance@address, or some of them
    requester   TEXT,
    -- the reader's identity, host:port:rank, if it loaded as a seed
    reader      TEXT,
    -- when it was granted, and when it ended, Unix milliseconds
    granted_ms  BIGINT   NOT NULL,
    ended_ms    BIGINT   NOT NULL,
    -- how it ended: 0 released, 1 given back by a planner, 2 expired, 3 its seed holds something else,
    -- 4 passed on to who read from its holder
    end_kind    SMALLINT NOT NULL,
    -- how the transfer went: 1 well, 2 it failed, 3 it was given up; 0 when nobody said
    outcome     SMALLINT NOT NULL,
    -- why it failed
    reason      TEXT,
    -- what was read and how long it took, in milliseconds
    bytes       BIGINT,
    duration_ms BIGINT
);

CREATE TABLE events (
    id       BIGINT   PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
    -- when it was, Unix milliseconds
    at_ms    BIGINT   NOT NULL,
    -- 0 registered, 1 new holding, 2 removed, 3 drained, 4 silent, 5 suspect, 6 recovered, 7 key invalidated
    kind     SMALLINT NOT NULL,
    seed_key BYTEA    NOT NULL,
    -- the seed, where it is about one
    host     TEXT,
    port     INTEGER,
    rank     BIGINT,
    -- whose request it was, by its principal's name; NULL when it was nobody's who is known
    done_by  TEXT,
    -- what else there is to say, for people
    detail   TEXT
);

-- How many rows there are of what clients have planners keep, and how long their texts are, which do not change: triggers
-- count what comes and goes, so that nobody need read a table for it. Each count is the sum of its slots, of which a session has one, so that planners do not wait for each
-- other.
CREATE TABLE row_counts (
    table_name TEXT    NOT NULL,
    slot       INTEGER NOT NULL,
    -- rows that came by this slot, less those that went by it: it may be negative
    n          BIGINT  NOT NULL,
    -- their keys and other long texts, in bytes, counted alike
    bytes      BIGINT  NOT NULL,
    PRIMARY KEY (table_name, slot)
)
WITH (fillfactor = 20);

CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changes BIGINT;
    length  BIGINT;
    sign    BIGINT := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        UPDATE row_counts SET n = 0, bytes = 0 WHERE table_name = TG_TABLE_NAME;
        RETURN NULL;
    END IF;
    -- Whatever table it is, only its own statement is ever planned.
    CASE TG_TABLE_NAME
        WHEN 'seeds' THEN
            SELECT count(*), sum(octet_length(seed_key)) INTO changes, length FROM changed;
        WHEN 'requests' THEN
            SELECT count(*), sum(octet_length(seed_key) + octet_length(wish)) INTO changes, length FROM changed;
        WHEN 'instances' THEN
            SELECT count(*), sum(octet_length(instance_id) + octet_length(source_instance)) INTO changes, length FROM changed;
    END CASE;
    IF changes > 0 THEN
        INSERT INTO row_counts AS c (table_name, slot, n, bytes)
        VALUES (TG_TABLE_NAME, pg_backend_pid() % 16, sign * changes, sign * length)
        ON CONFLICT (table_name, slot) DO UPDATE SET n = c.n + excluded.n, bytes = c.bytes + excluded.bytes;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER seeds_come AFTER INSERT ON seeds REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER seeds_go AFTER DELETE ON seeds REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER seeds_emptied AFTER TRUNCATE ON seeds FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER requests_come AFTER INSERT ON requests REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER requests_go AFTER DELETE ON requests REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER requests_emptied AFTER TRUNCATE ON requests FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER instances_come AFTER INSERT ON instances REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER instances_go AFTER DELETE ON instances REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER instances_emptied AFTER TRUNCATE ON instances FOR EACH STATEMENT EXECUTE FUNCTION count_rows();

-- What only planners know, the same for all of them.
CREATE TABLE secrets (
    -- what it is for: `leases` names the leases of idempotency keys, so that nobody who knows a key knows its lease
    name  TEXT  PRIMARY KEY,
    value BYTEA NOT NULL
);
-- A version 4 UUID has 122 random bits of the server's strong generator.
INSERT INTO secrets (name, value)
    VALUES ('leases', decode(replace(concat(gen_random_uuid(), gen_random_uuid(), gen_random_uuid()), '-', ''), 'hex'));

-- What time it is for planners: the clock's, and this.
CREATE TABLE clock (
    id        BOOLEAN NOT NULL PRIMARY KEY DEFAULT TRUE CHECK (id),
    -- makes up for steps of the clock, in milliseconds
    offset_ms BIGINT NOT NULL,
    -- no later time than this was worked at, but for a second, Unix milliseconds with the offset
    seen_ms   BIGINT NOT NULL
);
INSERT INTO clock (offset_ms, seen_ms) VALUES (0, 0);
