//! Acquisitions that wait, and those that may be repeated.
//!
//! A row that waits is served by any transaction that frees a point of its key, in the order of the rows; the
//! planner whose client waits is told by NOTIFY, and takes it with [`Collect`].
//!
//! Rows are locked after seeds, in their order, in one statement that waits. Whoever holds one waits for nothing
//! more ([`Locks`]): a further row that somebody has makes the transaction begin again, and so does a seed, which then
//! comes first. That a planner answers is written last.
//!
//! A planner that frees a point while another one queues a waiter may not see it, nor be seen. So both look once
//! more after their commit ([`WaitedFor`], then [`Command::Serve`]): whoever commits later sees both.

use std::collections::{BTreeMap, BTreeSet};

use rfork_protocol::SeedKey;
use sqlx::Row;

use super::super::twins::Twins;
use super::super::{Command, Grant, Idempotency, Outcome, PLANNER_TTL_MS, Refusal, Rules, wish};
use super::batch::HeldSeeds;
use super::session::Connection;
use super::transaction::Stopped;
use super::{Database, identity, key_hash};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// A statement that locks rows, and one that does not wait for them.
macro_rules! locking {
    ($select:literal) => {
        [concat!($select, " FOR UPDATE"), concat!($select, " FOR UPDATE NOWAIT")]
    };
}

mod calls;
mod collect;
mod leave;
mod locks;
mod resume;

pub(super) use calls::Calls;
pub(super) use collect::{Collect, Forget, WaitedFor};
pub(super) use leave::{Freed, leave};
pub(super) use locks::{Locks, lock};
pub(super) use resume::resume;

/// Where planners are told that their waiters were served; the payload names the planner.
pub(super) const CHANNEL: &str = "rfork_planner";

/// Keys of which a point may be free because of these commands, or because a point of the seeds in `freed` was given
/// back.
pub(super) async fn touched(
    connection: &mut Connection,
    rules: &Rules,
    commands: &[Command],
    held: &HeldSeeds<'_>,
    freed: Freed,
) -> Result<BTreeSet<SeedKey>, Stopped> {
    let mut keys: BTreeSet<SeedKey> = freed.keys;
    let mut moved: Vec<String> = Vec::new();
    for command in commands {
        match command {
            Command::Acquire { key, .. } | Command::Serve { key } => drop(keys.insert(key.clone())),
            // What a seed held before may have left room on its host.
            Command::Register { identity, key, .. } | Command::Beat { identity, key, .. } => {
                keys.insert(key.clone());
                moved.push(identity.to_string());
            }
            Command::Release { identity, .. } => {
                let name = identity.to_string();
                let seed = held.get(&name).and_then(|held| held.seed.as_ref());
                keys.extend(seed.map(|seed| seed.key.clone()));
                moved.push(name);
            }
            _ => {}
        }
    }
    if rules.caps_hosts() && !(moved.is_empty() && freed.seeds.is_empty()) {
        let beside: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT DISTINCT o.seed_key FROM seeds s JOIN seeds o ON o.capped_host = s.capped_host
             WHERE (s.identity = ANY($1) OR s.id = ANY($2))
               AND EXISTS (SELECT 1 FROM requests r WHERE r.key_hash = o.key_hash AND r.waits_until_ms IS NOT NULL)",
        )
        .bind(moved)
        .bind(freed.seeds)
        .fetch_all(connection)
        .await?;
        for key in beside {
            keys.insert(super::seed_key(key)?);
        }
    }
    Ok(keys)
}

/// Marks rows as served, and tells other planners of theirs; gives whether some were of this one.
pub(super) async fn served(
    connection: &mut Connection,
    store: &Database,
    served: &[(i64, String)],
) -> Result<bool, Stopped> {
    if served.is_empty() {
        return Ok(false);
    }
    // The rows' locks were waited for: by this time they show the order in which they were served.
    let now = store.now(connection).await?;
    let planner = store.planner.as_str();
    sqlx::query("UPDATE requests SET waits_until_ms = NULL, changed_ms = $1 WHERE id = ANY($2)")
        .bind(now)
        .bind(served.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    let planners: BTreeSet<&str> = served.iter().map(|(_, planner)| planner.as_str()).collect();
    let others: Vec<&str> = planners.iter().copied().filter(|known| *known != planner).collect();
    if !others.is_empty() {
        sqlx::query("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS t (payload)")
            .bind(CHANNEL)
            .bind(others)
            .execute(connection)
            .await?;
    }
    Ok(planners.contains(planner))
}

/// The live lease, as it would be granted now.
async fn grant(connection: &mut Connection, now: i64, lease: &[u8]) -> Result<Option<Grant>, Stopped> {
    let row = sqlx::query(
        "SELECT s.id, s.host, s.port, s.rank, p.busy_until_ms, s.answered_ms, h.last_ms
         FROM points p JOIN seeds s ON s.id = p.seed_id JOIN heartbeats h ON h.seed_id = s.id
         WHERE p.lease_hash = $1 AND p.busy_until_ms > $2",
    )
    .bind(lease)
    .bind(now)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (answered_ms, last_ms): (i64, i64) = (row.try_get("answered_ms")?, row.try_get("last_ms")?);
    Ok(Some(Grant {
        identity: identity(&row)?,
        seed_id: row.try_get("id")?,
        lease_ttl_ms: row.try_get::<i64, _>("busy_until_ms")?.saturating_sub(now),
        quiet_ms: now.saturating_sub(last_ms.max(answered_ms)),
        answers: answered_ms > 0,
    }))
}

/// Gives those who were granted under an idempotency key, or refused though they may wait, their rows. In the
/// order of the idempotency keys: of two planners that are asked the same at once one waits for the other here,
/// and begins again.
pub(super) async fn enqueue(
    connection: &mut Connection,
    now: i64,
    planner: &str,
    commands: &[Command],
    twins: &Twins,
    locks: &mut Locks,
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Stopped> {
    let mut ordered: Vec<usize> = (0..commands.len()).collect();
    let order = |at: &usize| match &commands[*at] {
        Command::Acquire { queue: Some(queue), .. } => queue.idempotency.as_ref().map(|known| known.key),
        _ => None,
    };
    // Stable: those without a key stay in the order in which they came.
    ordered.sort_by_key(order);
    let mut refused: Vec<Vec<u8>> = Vec::new();
    for at in ordered {
        let Command::Acquire { key, lease, wish, queue: Some(queue) } = &commands[at] else { continue };
        let waits = match &outcomes[at] {
            Some(Outcome::Acquired(Ok(_))) if queue.idempotency.is_some() => false,
            Some(Outcome::Acquired(Err(Refusal::UnknownKey | Refusal::AllBusy | Refusal::AllSuspect)))
                if queue.wait_ms > 0 =>
            {
                true
            }
            Some(Outcome::Acquired(Err(Refusal::UnknownKey | Refusal::AllBusy | Refusal::AllSuspect))) => {
                refused.extend(queue.idempotency.as_ref().map(|known| known.key.to_vec()));
                continue;
            }
            _ => continue,
        };
        let idempotency = queue.idempotency.as_ref();
        let inserted = sqlx::query(
            "INSERT INTO requests (seed_key, key_hash, lease_hash, idempotency, request_hash, wish, planner,
                                   waits_until_ms, changed_ms, attempt)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
        )
        .bind(key.as_bytes())
        .bind(&key_hash(key)[..])
        .bind(&lease[..])
        .bind(idempotency.map(|known| &known.key[..]))
        .bind(idempotency.map(|known| &known.request[..]))
        .bind(wish::encode(wish))
        .bind(waits.then_some(planner))
        .bind(waits.then(|| now.saturating_add(queue.wait_ms)))
        .bind(now)
        .bind(twins.attempt(at, queue))
        .execute(&mut *connection)
        .await?;
        if waits && inserted.rows_affected() == 1 {
            outcomes[at] = Some(Outcome::Queued(None));
            locks.answers = true;
        } else if inserted.rows_affected() == 0 && !is_of_row(connection, lease, idempotency).await? {
            return Err(Stopped::Again);
        }
    }
    // One that another planner was asked, too, and has granted meanwhile: perhaps the last free point.
    if !refused.is_empty()
        && sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM requests WHERE idempotency = ANY($1) AND waits_until_ms IS NULL)",
        )
        .bind(refused)
        .fetch_one(connection)
        .await?
    {
        return Err(Stopped::Again);
    }
    Ok(())
}

/// Whether a row that was in the way had answered the request in this very transaction.
async fn is_of_row(
    connection: &mut Connection,
    lease: &[u8; 32],
    idempotency: Option<&Idempotency>,
) -> Result<bool, Stopped> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM requests r JOIN points p ON p.lease_hash = r.lease_hash
                        WHERE r.lease_hash = $1 AND r.idempotency = $2 AND r.waits_until_ms IS NULL)",
    )
    .bind(&lease[..])
    .bind(idempotency.map(|known| &known.key[..]))
    .fetch_one(connection)
    .await?)
}

/// Notes that a planner answers.
pub(super) async fn alive(connection: &mut Connection, now: i64, planner: &str) -> Result<(), Stopped> {
    sqlx::query(
        "INSERT INTO planners (id, alive_until_ms) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET alive_until_ms = greatest(planners.alive_until_ms, excluded.alive_until_ms)",
    )
    .bind(planner)
    .bind(now.saturating_add(PLANNER_TTL_MS))
    .execute(connection)
    .await?;
    Ok(())
}

async fn delete(connection: &mut Connection, id: i64) -> Result<(), Stopped> {
    sqlx::query("DELETE FROM requests WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}

/// Says, for those who wait, when the next lease or suspicion of their key ends by itself.
pub(super) async fn next_ends(
    connection: &mut Connection,
    now: i64,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Stopped> {
    let mut asked: BTreeMap<&SeedKey, Vec<usize>> = BTreeMap::new();
    for (at, command) in commands.iter().enumerate() {
        match (command, &outcomes[at]) {
            (Command::Serve { key }, _) | (Command::Acquire { key, .. }, Some(Outcome::Queued(_))) => {
                asked.entry(key).or_default().push(at);
            }
            _ => {}
        }
    }
    for (key, places) in asked {
        let ends_ms: Option<i64> = sqlx::query_scalar(
            // What has ended by now was looked at just now; its place may be older than that.
            "SELECT min(next_end_ms) FROM seeds WHERE key_hash = $1 AND next_end_ms > $2",
        )
        .bind(&key_hash(key)[..])
        .bind(now)
        .fetch_one(&mut *connection)
        .await?;
        let wait_ms = ends_ms.map(|ends_ms| ends_ms.saturating_sub(now).max(0));
        for at in places {
            outcomes[at] = Some(match commands[at] {
                Command::Serve { .. } => Outcome::Served(wait_ms),
                _ => Outcome::Queued(wait_ms),
            });
        }
    }
    Ok(())
}
