//! Those who wait: told of their turn, and looked for once more.
//!
//! A planner that frees a point while another one queues a waiter may not see it, nor be seen. So both look once more
//! after their commit ([`WaitedFor`], then [`crate::store::commands::Serve`]): whoever commits later sees both.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use rfork_protocol::SeedKey;

use super::Database;
use super::places::key_hash;
use super::session::Connection;
use super::time::clock_ms;
use super::transaction::{Stopped, Work};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Where planners are told that their waiters were served; the payload names the planner.
pub(super) const CHANNEL: &str = "rfork_planner";

/// Tells planners that waiters of theirs were served, once this is committed.
pub(super) async fn tell(connection: &mut Connection, planners: &BTreeSet<Arc<str>>) -> Result<(), Stopped> {
    if planners.is_empty() {
        return Ok(());
    }
    sqlx::query("/* tell planners */ SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS t (payload)")
        .bind(CHANNEL)
        .bind(planners.iter().map(ToString::to_string).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

/// In how many milliseconds the next lease or suspicion of each key ends by itself, if any does.
pub(super) async fn next_ends<'a>(
    connection: &mut Connection,
    now: i64,
    keys: BTreeSet<&'a SeedKey>,
) -> Result<HashMap<&'a SeedKey, i64>, Stopped> {
    let rows: Vec<Option<i64>> = sqlx::query_scalar(
        "/* load next ends */
         SELECT (SELECT min(p.due_ms) FROM places p WHERE p.page = w.page AND p.due_ms > $2)
         FROM unnest($1::bytea[]) WITH ORDINALITY AS w (page, at) ORDER BY w.at",
    )
    .bind(keys.iter().map(|key| key_hash(key)).collect::<Vec<_>>())
    .bind(now)
    .fetch_all(connection)
    .await?;
    let ends = keys.into_iter().zip(rows);
    Ok(ends.filter_map(|(key, due_ms)| Some((key, due_ms?.saturating_sub(now)))).collect())
}

/// For which of these keys somebody waits, and a seed may have a free point.
pub(super) struct WaitedFor<'a> {
    pub(super) store: &'a Database,
    pub(super) keys: &'a BTreeSet<SeedKey>,
}

#[async_trait]
impl Work for WaitedFor<'_> {
    type Done = Vec<SeedKey>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Vec<SeedKey>, Stopped> {
        let waited_for: Vec<bool> = sqlx::query_scalar(concat!(
            "/* load keys that are waited for */
             SELECT EXISTS (SELECT 1 FROM requests r WHERE r.key_hash = w.page AND r.waits_until_ms IS NOT NULL)
                AND (EXISTS (SELECT 1 FROM places p WHERE p.page = w.page AND p.busy_share IS NOT NULL)
                     OR (EXISTS (SELECT 1 FROM loading_seeds)
                         AND EXISTS (SELECT 1 FROM heartbeats h JOIN loading_seeds g ON g.seed_id = h.seed_id
                                     WHERE h.key_hash = w.page))
                     OR EXISTS (SELECT 1 FROM places p WHERE p.page = w.page AND p.due_ms <=
                                    (SELECT ",
            clock_ms!("$2"),
            " + offset_ms FROM clock)))
             FROM unnest($1::bytea[]) WITH ORDINALITY AS w (page, at) ORDER BY w.at",
        ))
        .bind(self.keys.iter().map(key_hash).collect::<Vec<_>>())
        .bind(self.store.time.clock.set_ms())
        .fetch_all(connection)
        .await?;
        let keys = self.keys.iter().zip(waited_for);
        Ok(keys.filter(|(_, waited_for)| *waited_for).map(|(key, _)| key.clone()).collect())
    }
}
