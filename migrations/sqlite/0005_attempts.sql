-- Which attempt of a request has its place, and is answered: one that was repeated must not end the wait of its
-- repetition. 0 for one that a planner of the version before wrote, which makes no difference between them.
ALTER TABLE requests ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;

-- Those that nobody can repeat are forgotten sooner.
CREATE INDEX requests_once ON requests (changed_ms) WHERE idempotency IS NULL;
