-- Which attempt of a request has its place, and is answered: one that was repeated must not end the wait of its
-- repetition. 0 for one that a planner of the version before wrote, which makes no difference between them.
ALTER TABLE requests ADD COLUMN attempt BIGINT NOT NULL DEFAULT 0;

-- Waits that are over are found without reading those that were granted and are remembered.
CREATE INDEX requests_by_wait ON requests (waits_until_ms) WHERE waits_until_ms IS NOT NULL;

-- Those that nobody can repeat are forgotten sooner.
CREATE INDEX requests_once ON requests (changed_ms) WHERE idempotency IS NULL;
