//! Calling up those who wait.

use std::collections::{BTreeMap, BTreeSet};

use rfork_protocol::SeedKey;
use sqlx::Row;

use super::super::super::{MAX_CALLED, wish};
use super::super::allocate::{Waiting, Who, Worker};
use super::super::batch::Chosen;
use super::super::session::Connection;
use super::super::transaction::Stopped;
use super::super::{key_hash, lease_hash};
use super::Locks;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Who waits for some keys, called up in their order, a bounded number of each at a time.
pub(in super::super) struct Calls<'a> {
    /// By key: the last that was called up.
    after: BTreeMap<&'a SeedKey, i64>,
}

impl<'a> Calls<'a> {
    pub(in super::super) fn new(keys: &'a BTreeSet<SeedKey>) -> Self {
        Self { after: keys.iter().map(|key| (key, 0)).collect() }
    }

    /// Locks the next of each key and puts them into their queues. Those whose planner does not answer any more are
    /// passed over.
    pub(in super::super) async fn call_up(
        &mut self,
        connection: &mut Connection,
        now: i64,
        planner: &str,
        (locks, chosen): (&mut Locks, &mut Chosen),
        waiting: &mut Waiting<'a>,
    ) -> Result<(), Stopped> {
        // Others may serve some of them before these are locked here: there are more then, and no less.
        while waiting.is_empty() && !self.after.is_empty() {
            let called = self.next(connection, now, planner).await?;
            let rows = sqlx::query(locks.pick(locking!(
                "SELECT id, lease_hash, wish, planner FROM requests
                 WHERE id = ANY($1) AND waits_until_ms IS NOT NULL AND planner IS NOT NULL ORDER BY id"
            )))
            .bind(called.keys().copied().collect::<Vec<_>>());
            if called.is_empty() {
                return Ok(());
            }
            let rows = locks.took(rows.fetch_all(&mut *connection).await);
            if matches!(rows, Err(Stopped::Again)) {
                // Next time they are waited for, before anything else.
                chosen.requests.extend(called.keys());
            }
            for row in rows? {
                let id = row.try_get("id")?;
                let Some(key) = called.get(&id) else { continue };
                let who = Who::Waiter { id, planner: row.try_get("planner")? };
                let wish = wish::decode(row.try_get("wish")?).map_err(Stopped::Broken)?;
                let worker = Worker { who, lease: lease_hash(row.try_get("lease_hash")?)?, wish };
                waiting.entry(*key).or_default().push_back(worker);
            }
        }
        Ok(())
    }

    /// The next of each key, by their numbers.
    async fn next(
        &mut self,
        connection: &mut Connection,
        now: i64,
        planner: &str,
    ) -> Result<BTreeMap<i64, &'a SeedKey>, Stopped> {
        let (keys, after): (Vec<&SeedKey>, Vec<i64>) = std::mem::take(&mut self.after).into_iter().unzip();
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT wanted.at, page.id
             FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS wanted (key_hash, after, at)
             CROSS JOIN LATERAL (
                 SELECT r.id FROM requests r LEFT JOIN planners p ON p.id = r.planner
                 WHERE r.key_hash = wanted.key_hash AND r.id > wanted.after AND r.waits_until_ms IS NOT NULL
                   AND r.waits_until_ms > $3 AND (r.planner = $4 OR p.alive_until_ms > $3)
                 ORDER BY r.id LIMIT $5) AS page
             ORDER BY page.id",
        )
        .bind(keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
        .bind(after)
        .bind(now)
        .bind(planner)
        .bind(i64::try_from(MAX_CALLED).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
        let mut called = BTreeMap::new();
        let mut pages: BTreeMap<&'a SeedKey, (usize, i64)> = BTreeMap::new();
        for (at, id) in rows {
            // Counted from 1.
            let key = usize::try_from(at - 1).ok().and_then(|at| keys.get(at));
            let key = *key.ok_or_else(|| Stopped::Broken("a key that nobody wants".into()))?;
            let (count, last) = pages.entry(key).or_default();
            (*count, *last) = (*count + 1, id);
            called.insert(id, key);
        }
        pages.retain(|_, (count, _)| *count == MAX_CALLED);
        self.after = pages.into_iter().map(|(key, (_, last))| (key, last)).collect();
        Ok(called)
    }

    /// Keeps the keys of which more are to be called up.
    pub(in super::super) fn go_on(&mut self, more: impl Fn(&SeedKey) -> bool) {
        self.after.retain(|key, _| more(key));
    }
}
