//! Rows that are found by an index because something is to be done with them: ended by a sweep, told, taken out, or given
//! other terms. What is done is decided ([`crate::decide`]); here is only where to look.

use async_trait::async_trait;
use rfork_protocol::SeedKey;

use super::super::{
    Beat, DRAIN_MEMORY_MS, INSTANCE_MEMORY_MS, ONCE_MEMORY_MS, PLANNER_TTL_MS, REQUEST_MEMORY_MS,
};
use super::Database;
use super::batch::Find;
use super::places::key_hash;
use super::session::Connection;
use super::transaction::{Stopped, Work};
use crate::decide::heartbeat::is_gathered;
use crate::domain::chain::LATE_MS;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows of a kind that one step finds: claims of the same seeds wait for it.
const STEP_ROWS: i64 = 500;

/// Seeds of which a lease has ended by itself, and those without leases that may be over.
pub(super) struct Ended;

#[async_trait]
impl Find for Ended {
    async fn find(
        &self,
        connection: &mut Connection,
        store: &Database,
        now: i64,
    ) -> Result<(Vec<i64>, Vec<i64>), Stopped> {
        let silent_since = now.saturating_sub(store.rules.heartbeat_ttl_ms);
        // `OFFSET 0` keeps a look-up one by the index: a plan that was made while there were no leases would else read them
        // all for each seed.
        let seeds = sqlx::query_scalar(
            "/* find ended */
             (SELECT seed_id FROM points WHERE ends_ms <= $1 AND (reader IS NULL OR ends_ms <= $1 - $5)
              ORDER BY ends_ms LIMIT $4)
             UNION
             (SELECT s.id FROM seeds s WHERE s.removed
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = s.id OFFSET 0) LIMIT $4)
             UNION
             (SELECT h.seed_id FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
              WHERE h.last_ms <= $2 AND (NOT s.drained OR h.last_ms <= $3)
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = h.seed_id OFFSET 0)
                AND NOT EXISTS (SELECT 1 FROM loading_seeds g WHERE g.seed_id = h.seed_id OFFSET 0)
              ORDER BY h.last_ms LIMIT $4)
             UNION
             (SELECT h.seed_id FROM loading_seeds g JOIN seeds s ON s.id = g.seed_id JOIN heartbeats h ON h.seed_id = s.id
              WHERE h.last_ms <= $1 - s.lease_ttl_ms AND (NOT s.drained OR h.last_ms <= $3)
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = s.id OFFSET 0) LIMIT $4)",
        )
        .bind(now)
        .bind(silent_since)
        .bind(silent_since.min(now.saturating_sub(DRAIN_MEMORY_MS)))
        .bind(STEP_ROWS)
        .bind(LATE_MS)
        .fetch_all(connection)
        .await?;
        Ok((seeds, Vec::new()))
    }
}

/// Requests that may be forgotten.
pub(super) struct Forgettable;

#[async_trait]
impl Find for Forgettable {
    async fn find(
        &self,
        connection: &mut Connection,
        store: &Database,
        now: i64,
    ) -> Result<(Vec<i64>, Vec<i64>), Stopped> {
        let requests = sqlx::query_scalar(
            "/* find forgettable requests */
             (SELECT r.id FROM requests r WHERE r.waits_until_ms IS NULL AND r.changed_ms <= $1
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.lease_hash = r.lease_hash OFFSET 0)
              ORDER BY r.changed_ms LIMIT $4)
             UNION
             (SELECT r.id FROM requests r WHERE r.idempotency IS NULL AND r.changed_ms <= $2 AND r.planner IS NULL
                AND r.waits_until_ms IS NULL ORDER BY r.changed_ms LIMIT $4)
             UNION
             (SELECT r.id FROM requests r WHERE r.waits_until_ms <= $3 ORDER BY r.waits_until_ms LIMIT $4)",
        )
        .bind(now.saturating_sub(store.rules.request_memory_ms()))
        .bind(now.saturating_sub(ONCE_MEMORY_MS))
        .bind(now.saturating_sub(PLANNER_TTL_MS))
        .bind(STEP_ROWS)
        .fetch_all(connection)
        .await?;
        Ok((Vec::new(), requests))
    }
}

/// Requests of this planner's that were granted and are to be told.
pub(super) struct Served;

#[async_trait]
impl Find for Served {
    async fn find(
        &self,
        connection: &mut Connection,
        store: &Database,
        _: i64,
    ) -> Result<(Vec<i64>, Vec<i64>), Stopped> {
        let requests = sqlx::query_scalar(
            "/* find served */ SELECT id FROM requests WHERE planner = $1 AND waits_until_ms IS NULL ORDER BY id",
        )
        .bind(store.planner.as_ref())
        .fetch_all(connection)
        .await?;
        Ok((Vec::new(), requests))
    }
}

/// Seeds of a key that an operator has not taken out and that do not hold this.
pub(super) struct Outdated<'a> {
    pub(super) key: &'a SeedKey,
    pub(super) keep: Option<&'a str>,
}

#[async_trait]
impl Find for Outdated<'_> {
    async fn find(
        &self,
        connection: &mut Connection,
        _: &Database,
        _: i64,
    ) -> Result<(Vec<i64>, Vec<i64>), Stopped> {
        let seeds = sqlx::query_scalar(
            "/* find outdated */
             SELECT s.id FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
             LEFT JOIN loading_seeds g ON g.seed_id = s.id
             WHERE h.key_hash = $1 AND NOT s.drained
               AND ($2::text IS NULL
                    OR CASE WHEN g.seed_id IS NULL THEN s.content_id ELSE g.root END IS DISTINCT FROM $2) LIMIT $3",
        )
        .bind(key_hash(self.key))
        .bind(self.keep)
        .bind(STEP_ROWS)
        .fetch_all(connection)
        .await?;
        Ok((seeds, Vec::new()))
    }
}

/// Seeds after a number.
pub(super) struct After(pub(super) i64);

#[async_trait]
impl Find for After {
    async fn find(
        &self,
        connection: &mut Connection,
        _: &Database,
        _: i64,
    ) -> Result<(Vec<i64>, Vec<i64>), Stopped> {
        let seeds =
            sqlx::query_scalar("/* find seeds */ SELECT id FROM seeds WHERE id > $1 ORDER BY id LIMIT $2")
                .bind(self.0)
                .bind(STEP_ROWS)
                .fetch_all(connection)
                .await?;
        Ok((seeds, Vec::new()))
    }
}

/// Writes heartbeats, of which the last counts; gives the seeds of which no more are to be gathered. It changes nothing
/// that a claim locks.
pub(super) struct Flush<'a> {
    pub(super) store: &'a Database,
    /// In the order of their seeds' numbers.
    pub(super) beats: &'a [Beat],
}

#[async_trait]
impl Work for Flush<'_> {
    type Done = std::collections::HashSet<i64>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Self::Done, Stopped> {
        let now = self.store.time.now(connection).await?;
        let found: Vec<(i64, bool, bool)> = sqlx::query_as(
            "/* flush heartbeats */
             WITH beat AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS t (seed_id, last_ms)),
                  locked AS MATERIALIZED (
                      SELECT h.seed_id FROM heartbeats h WHERE h.seed_id = ANY($1) ORDER BY h.seed_id FOR UPDATE),
                  written AS (
                      UPDATE heartbeats h SET last_ms = beat.last_ms
                      FROM beat JOIN locked ON locked.seed_id = beat.seed_id
                      WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms)
             SELECT s.id, s.removed, s.drained FROM locked JOIN seeds s ON s.id = locked.seed_id",
        )
        .bind(self.beats.iter().map(|beat| beat.seed_id).collect::<Vec<_>>())
        .bind(self.beats.iter().map(|beat| now.saturating_sub(beat.age_ms)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        let mut gone: Self::Done = self.beats.iter().map(|beat| beat.seed_id).collect();
        for (id, removed, drained) in found {
            if is_gathered(removed, drained) {
                gone.remove(&id);
            }
        }
        Ok(gone)
    }
}

/// Forgets sources, moves and planners that were not used for long, a bounded number of the former.
pub(super) struct ForgetUnused<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for ForgetUnused<'_> {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        let now = self.0.time.now(connection).await?;
        sqlx::query(
            "/* forget sources */
             DELETE FROM instances WHERE instance_id IN (
                 SELECT instance_id FROM instances WHERE used_ms <= $1
                 ORDER BY instance_id COLLATE \"C\" LIMIT $2 FOR UPDATE)",
        )
        .bind(now.saturating_sub(INSTANCE_MEMORY_MS))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        sqlx::query("/* forget moves */ DELETE FROM moves WHERE moved_ms <= $1")
            .bind(now.saturating_sub(PLANNER_TTL_MS))
            .execute(&mut *connection)
            .await?;
        sqlx::query("/* forget planners */ DELETE FROM planners WHERE alive_until_ms <= $1")
            .bind(now.saturating_sub(REQUEST_MEMORY_MS))
            .execute(connection)
            .await?;
        Ok(())
    }
}
