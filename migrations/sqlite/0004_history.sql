-- What was: leases that ended, and what became of seeds. For people; nothing is decided by it. Rows are deleted from
-- the beginning, by age and by number: they are in the order of time, nearly, so that it takes no index beside `id`.

-- who was granted the lease in the row, as far as it is known
ALTER TABLE points ADD COLUMN requester TEXT;

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
    -- when it was granted, Unix milliseconds; 0 when that is not known
    granted_ms  INTEGER NOT NULL,
    -- when it ended, Unix milliseconds
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
