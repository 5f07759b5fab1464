//! What is done about requests in transactions of their own.

use std::collections::BTreeSet;

use async_trait::async_trait;
use rfork_protocol::SeedKey;

use super::super::super::{ONCE_MEMORY_MS, PLANNER_TTL_MS, REQUEST_MEMORY_MS, Told, Woken};
use super::super::session::Connection;
use super::super::time::clock_ms;
use super::super::transaction::{Stopped, Work};
use super::super::{Database, key_hash, lease_hash};
use super::{alive, grant};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows that one step ends.
const STEP_ROWS: i64 = 500;

/// The work of [`Store::collect`](super::super::super::Store::collect).
pub(in super::super) struct Collect<'a> {
    pub(in super::super) store: &'a Database,
    pub(in super::super) told: &'a [Told],
}

#[async_trait]
impl Work for Collect<'_> {
    type Done = Vec<Woken>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Vec<Woken>, Stopped> {
        let (now, planner) = (self.store.now(connection).await?, &self.store.planner);
        if !self.told.is_empty() {
            sqlx::query(
                "UPDATE requests SET planner = NULL WHERE id IN (
                     SELECT r.id FROM unnest($2::bytea[], $3::bigint[]) AS told (lease_hash, attempt)
                     JOIN requests r ON r.lease_hash = told.lease_hash AND r.attempt = told.attempt
                     WHERE r.planner = $1 AND r.waits_until_ms IS NULL ORDER BY r.id FOR UPDATE OF r)",
            )
            .bind(planner)
            .bind(self.told.iter().map(|(lease, _)| lease.to_vec()).collect::<Vec<_>>())
            .bind(self.told.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT lease_hash, attempt FROM requests WHERE planner = $1 AND waits_until_ms IS NULL ORDER BY id",
        )
        .bind(planner)
        .fetch_all(&mut *connection)
        .await?;
        let mut woken = Vec::with_capacity(rows.len());
        for (lease, attempt) in rows {
            let grant = grant(connection, now, &lease).await?;
            woken.push(Woken { lease: lease_hash(lease)?, attempt, grant });
        }
        alive(connection, now, planner).await?;
        Ok(woken)
    }
}

/// For which of these keys somebody waits, and a seed may have a free point.
pub(in super::super) struct WaitedFor<'a> {
    pub(in super::super) store: &'a Database,
    pub(in super::super) keys: &'a BTreeSet<SeedKey>,
}

#[async_trait]
impl Work for WaitedFor<'_> {
    type Done = Vec<SeedKey>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Vec<SeedKey>, Stopped> {
        let keys: Vec<&SeedKey> = self.keys.iter().collect();
        // Seeds of a host that shares a bound may have one whatever their place says.
        let places: Vec<i64> = sqlx::query_scalar(concat!(
            "SELECT wanted.at FROM unnest($1::bytea[]) WITH ORDINALITY AS wanted (key_hash, at)
             WHERE EXISTS (SELECT 1 FROM requests r
                           WHERE r.key_hash = wanted.key_hash AND r.waits_until_ms IS NOT NULL)
               AND ($2 OR EXISTS (SELECT 1 FROM seeds s WHERE s.key_hash = wanted.key_hash
                                    AND s.offer_rank IS NOT NULL)
                       OR EXISTS (SELECT 1 FROM seeds s WHERE s.key_hash = wanted.key_hash AND s.next_end_ms <=
                              (SELECT ",
            clock_ms!("$3"),
            " + offset_ms FROM clock)))
             ORDER BY wanted.at",
        ))
        .bind(keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
        .bind(self.store.rules.caps_hosts())
        .bind(self.store.time.clock.set_ms())
        .fetch_all(connection)
        .await?;
        // Counted from 1.
        let key =
            |at: i64| usize::try_from(at - 1).ok().and_then(|at| keys.get(at)).map(|key| (*key).clone());
        Ok(places.into_iter().filter_map(key).collect())
    }
}

/// Forgets a bounded number of requests and planners that are long over; gives how many requests.
pub(in super::super) struct Forget<'a>(pub(in super::super) &'a Database);

#[async_trait]
impl Work for Forget<'_> {
    type Done = u64;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<u64, Stopped> {
        let now = self.0.now(connection).await?;
        // A repetition finds its lease as long as that is renewed.
        let over = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests r WHERE waits_until_ms IS NULL AND changed_ms <= $1
                   AND NOT EXISTS (SELECT 1 FROM points p WHERE p.lease_hash = r.lease_hash)
                 ORDER BY changed_ms LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(now.saturating_sub(self.0.rules.request_memory_ms()))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        let once = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests WHERE idempotency IS NULL AND changed_ms <= $1 AND waits_until_ms IS NULL
                   AND planner IS NULL
                 ORDER BY changed_ms LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(now.saturating_sub(ONCE_MEMORY_MS))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        // Those that waited in vain, without anybody who would have ended it.
        let stale = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests WHERE waits_until_ms <= $1
                 ORDER BY waits_until_ms LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(now.saturating_sub(PLANNER_TTL_MS))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM planners WHERE alive_until_ms <= $1")
            .bind(now.saturating_sub(REQUEST_MEMORY_MS))
            .execute(connection)
            .await?;
        Ok(over.rows_affected() + once.rows_affected() + stale.rows_affected())
    }
}
