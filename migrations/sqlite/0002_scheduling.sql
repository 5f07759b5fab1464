-- What seeds are lent by: terms, places, health. Columns have defaults that mean "as before", so that a planner
-- of the version before goes on beside this one.

-- how long a lease lives from grant or renewal, in milliseconds
ALTER TABLE seeds ADD COLUMN lease_ttl_ms     INTEGER NOT NULL DEFAULT 60000;
-- the host whose seeds may have `host_capacity` leases together; both NULL without such a bound
ALTER TABLE seeds ADD COLUMN capped_host      TEXT;
ALTER TABLE seeds ADD COLUMN host_capacity    INTEGER;
-- labels, for people and for rules by model
ALTER TABLE seeds ADD COLUMN model_url        TEXT;
ALTER TABLE seeds ADD COLUMN deploy_strategy  TEXT;
ALTER TABLE seeds ADD COLUMN is_draft         INTEGER;
-- where it stands
ALTER TABLE seeds ADD COLUMN zone             TEXT;
ALTER TABLE seeds ADD COLUMN rack             TEXT;
ALTER TABLE seeds ADD COLUMN node             TEXT;
-- the inference instance that it is a rank of, its process, the digest of its weights
ALTER TABLE seeds ADD COLUMN instance_id      TEXT;
ALTER TABLE seeds ADD COLUMN incarnation      TEXT;
ALTER TABLE seeds ADD COLUMN content_id       TEXT;
-- taken out by an operator: not offered while its memory is the same
ALTER TABLE seeds ADD COLUMN drained          INTEGER NOT NULL DEFAULT 0;
-- failures since it last proved to be well, and until when it is not offered because of them
ALTER TABLE seeds ADD COLUMN failures         INTEGER NOT NULL DEFAULT 0;
ALTER TABLE seeds ADD COLUMN suspect_until_ms INTEGER NOT NULL DEFAULT 0;
-- when it last answered a planner that asked for its health; 0 for never
ALTER TABLE seeds ADD COLUMN answered_ms      INTEGER NOT NULL DEFAULT 0;

-- Seeds of a key that may have a free point, by where they stand and by instance. Seeds of which that is not
-- known are not in them and cost nothing.
CREATE INDEX seeds_by_zone ON seeds (seed_key, zone, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND zone IS NOT NULL;
CREATE INDEX seeds_by_rack ON seeds (seed_key, rack, zone, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND rack IS NOT NULL;
CREATE INDEX seeds_by_node ON seeds (seed_key, node, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND node IS NOT NULL;
CREATE INDEX seeds_by_instance ON seeds (seed_key, instance_id, offer_rank, last_used_ms, identity)
    WHERE offer_rank IS NOT NULL AND instance_id IS NOT NULL;
CREATE INDEX seeds_by_capped_host ON seeds (capped_host) WHERE capped_host IS NOT NULL;

-- when the lease in the row was granted, Unix milliseconds
ALTER TABLE points ADD COLUMN granted_ms INTEGER NOT NULL DEFAULT 0;

-- Which instance serves the ranks of another one, so that its later ranks are sent to the same.
CREATE TABLE instances (
    instance_id     TEXT    PRIMARY KEY,
    source_instance TEXT    NOT NULL,
    -- when it was last used, Unix milliseconds
    used_ms         INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX instances_by_use ON instances (used_ms);
