//! Tidying up, in bounded steps, so that the writer is never held for long.

use sqlx::SqliteConnection;

use super::super::history::{End, EventKind, Forgotten};
use super::super::{DRAIN_MEMORY_MS, INSTANCE_MEMORY_MS, Rules, StoreError, Swept};
use super::history::{self, Ending};
use super::{instances, offer};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows of a kind that one step ends.
const STEP_ROWS: u32 = 1_000;

pub(super) struct Step {
    pub(super) swept: Swept,
    /// Whether another step has something to do.
    pub(super) more: bool,
}

pub(super) async fn step(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
) -> Result<Step, StoreError> {
    let ended: Vec<(i64, u32)> =
        sqlx::query_as("SELECT seed_id, n FROM points WHERE busy_until_ms <= ?1 LIMIT ?2 + 0")
            .bind(now)
            .bind(STEP_ROWS)
            .fetch_all(&mut *connection)
            .await?;
    let endings: Vec<_> = ended.iter().map(|point| Ending::by(*point, End::Expired)).collect();
    history::end_leases(connection, now, rules, &endings).await?;
    let freed: Vec<i64> = ended.into_iter().map(|(seed_id, _)| seed_id).collect();
    offer::refresh(connection, now, rules, &freed).await?;
    // Only seeds without a row of points: what goes with a seed would not be bounded.
    let removed = sqlx::query(
        "DELETE FROM seeds WHERE id IN
             (SELECT s.id FROM seeds s WHERE s.removed = 1
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = s.id)
              LIMIT ?1 + 0)",
    )
    .bind(STEP_ROWS)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let silent_since = now.saturating_sub(rules.heartbeat_ttl_ms);
    let forgotten = sqlx::query(
        "DELETE FROM seeds WHERE id IN
             (SELECT h.seed_id FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
              WHERE h.last_ms <= ?1 AND (s.drained = 0 OR h.last_ms <= ?3)
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = h.seed_id)
              LIMIT ?2 + 0)
         RETURNING host, port, rank, seed_key",
    )
    .bind(silent_since)
    .bind(STEP_ROWS)
    .bind(silent_since.min(now.saturating_sub(DRAIN_MEMORY_MS)))
    .fetch_all(&mut *connection)
    .await?;
    let silent = forgotten.iter().map(|row| history::happened(row, EventKind::Silent));
    let silent: Vec<_> = silent.collect::<Result<_, _>>()?;
    history::write(connection, now, rules, &silent).await?;
    let forgotten = silent.len() as u64;
    // Out of the way of allocations, which would skip them one by one.
    let silenced = sqlx::query(
        "UPDATE seeds SET offer_rank = NULL WHERE id IN
             (SELECT h.seed_id FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
              WHERE h.last_ms <= ?1 AND s.offer_rank IS NOT NULL LIMIT ?2 + 0)",
    )
    .bind(silent_since)
    .bind(STEP_ROWS)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let unused_since = now.saturating_sub(INSTANCE_MEMORY_MS);
    let instances = instances::forget(&mut *connection, unused_since, STEP_ROWS).await?;
    let full = u64::from(STEP_ROWS);
    let leases = freed.len() as u64;
    Ok(Step {
        swept: Swept { leases, seeds: removed + forgotten, silenced, forgotten: Forgotten::default() },
        more: [leases, removed, forgotten, silenced, instances].contains(&full),
    })
}
