//! Tidying up, in bounded steps. Planners that sweep at the same time wait for each other's locks, and the later
//! one finds less to do.

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::Row;

use super::super::history::{EventKind, Happened};
use super::super::{DRAIN_MEMORY_MS, Swept};
use super::history::{Log, freeing};
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::{Database, identity, offer, seed_key, seeds};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows of a kind that one step ends: claims of the same seeds wait for it.
const STEP_ROWS: i64 = 500;

/// What a step did.
pub(super) struct Ended {
    pub(super) swept: Swept,
    /// Whether another step may have something to do.
    pub(super) more: bool,
}

/// One step: what has ended is looked for, locked in the usual order, and judged once more.
pub(super) struct Step<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Step<'_> {
    type Done = Ended;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Ended, Stopped> {
        let now = self.0.now(connection).await?;
        let silent_since = now.saturating_sub(self.0.rules.heartbeat_ttl_ms);
        let drained_since = silent_since.min(now.saturating_sub(DRAIN_MEMORY_MS));
        let ended: Vec<(i64, i32)> = sqlx::query_as(
            "SELECT seed_id, n FROM points WHERE busy_until_ms <= $1 ORDER BY busy_until_ms LIMIT $2",
        )
        .bind(now)
        .bind(STEP_ROWS)
        .fetch_all(&mut *connection)
        .await?;
        // Only seeds without a row of points: what goes with a seed is bounded.
        let over: Vec<i64> = sqlx::query_scalar(
            "(SELECT s.id FROM seeds s WHERE s.removed
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = s.id) LIMIT $2)
             UNION
             (SELECT h.seed_id FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
              WHERE h.last_ms <= $1 AND (NOT s.drained OR h.last_ms <= $3)
                AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = h.seed_id) LIMIT $2)",
        )
        .bind(silent_since)
        .bind(STEP_ROWS)
        .bind(drained_since)
        .fetch_all(&mut *connection)
        .await?;
        let limit = usize::try_from(STEP_ROWS).unwrap_or(usize::MAX);
        let more = ended.len() >= limit || over.len() >= limit;
        let mut swept = Swept::default();
        let ids: BTreeSet<i64> = ended.iter().map(|(seed_id, _)| *seed_id).chain(over).collect();
        if ids.is_empty() {
            return Ok(Ended { swept, more });
        }
        let locked: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM seeds WHERE id = ANY($1) ORDER BY id FOR UPDATE")
                .bind(ids.into_iter().collect::<Vec<_>>())
                .fetch_all(&mut *connection)
                .await?;
        // A lease that was renewed meanwhile, or a point that was leased anew, is not freed.
        let freed: Vec<i64> = sqlx::query_scalar(freeing!(
            "DELETE FROM points p USING unnest($1::bigint[], $2::int[]) AS t (seed_id, n)
             WHERE p.seed_id = t.seed_id AND p.n = t.n AND p.busy_until_ms <= $3",
            "$3",
            "$4"
        ))
        .bind(ended.iter().map(|(seed_id, _)| *seed_id).collect::<Vec<_>>())
        .bind(ended.iter().map(|(_, n)| *n).collect::<Vec<_>>())
        .bind(now)
        .bind(self.0.rules.keeps_history())
        .fetch_all(&mut *connection)
        .await?;
        swept.leases = freed.len() as u64;
        let freed: BTreeSet<i64> = freed.into_iter().collect();
        offer::refresh(connection, now, &self.0.rules, &freed.into_iter().collect::<Vec<_>>()).await?;
        // A seed that was heard of meanwhile, or leased, stays.
        seeds::lock_heartbeats(connection, &locked).await?;
        let rows = sqlx::query(
            "SELECT s.id, s.removed, s.host, s.port, s.rank, s.seed_key FROM seeds s JOIN heartbeats h ON h.seed_id = s.id
             WHERE s.id = ANY($1) AND (s.removed OR h.last_ms <= CASE WHEN s.drained THEN $3 ELSE $2 END)
               AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = s.id)",
        )
        .bind(&locked)
        .bind(silent_since)
        .bind(drained_since)
        .fetch_all(&mut *connection)
        .await?;
        let mut log = Log::new(&self.0.rules);
        let mut gone: Vec<i64> = Vec::with_capacity(rows.len());
        for row in &rows {
            gone.push(row.try_get("id")?);
            // That it was removed is told already.
            if !row.try_get::<bool, _>("removed")? {
                let key = seed_key(row.try_get("seed_key")?)?;
                log.note(Happened::to(&identity(row)?, &key, EventKind::Silent));
            }
        }
        seeds::delete(connection, &gone).await?;
        log.write(connection, now).await?;
        swept.seeds = gone.len() as u64;
        Ok(Ended { swept, more })
    }
}
