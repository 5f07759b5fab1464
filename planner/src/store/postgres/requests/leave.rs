//! The end of waits.

use std::collections::{BTreeSet, HashMap};

use rfork_protocol::SeedKey;
use sqlx::Row;

use super::super::super::{Command, LeaseHash, Leaving, Left, Outcome};
use super::super::batch::Chosen;
use super::super::history::freeing;
use super::super::session::Connection;
use super::super::transaction::{Stopped, is_locked};
use super::super::{Database, lease_hash, offer, seed_key};
use super::{Locks, delete, grant};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// What the end of waits gave back.
#[derive(Default)]
pub(in super::super) struct Freed {
    pub(super) keys: BTreeSet<SeedKey>,
    pub(super) seeds: Vec<i64>,
}

/// Ends waits, each for the attempt that has the place.
pub(in super::super) async fn leave(
    connection: &mut Connection,
    now: i64,
    store: &Database,
    commands: &[Command],
    chosen: &mut Chosen,
    locks: &mut Locks,
    outcomes: &mut [Option<Outcome>],
) -> Result<Freed, Stopped> {
    let mut leaving: HashMap<LeaseHash, Vec<(usize, i64, Leaving)>> = HashMap::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Leave { lease, attempt, why } = command {
            outcomes[at] = Some(Outcome::Left(Left::Nothing));
            leaving.entry(*lease).or_default().push((at, *attempt, *why));
        }
    }
    let mut freed = Freed::default();
    if leaving.is_empty() {
        return Ok(freed);
    }
    let rows = sqlx::query(locks.pick(locking!(
        "SELECT id, seed_key, lease_hash, attempt, planner, idempotency IS NOT NULL AS repeatable,
                waits_until_ms IS NOT NULL AS waits
         FROM requests WHERE lease_hash = ANY($1) ORDER BY id"
    )))
    .bind(leaving.keys().map(|lease| lease.to_vec()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await;
    for row in locks.took(rows)? {
        let (id, attempt): (i64, i64) = (row.try_get("id")?, row.try_get("attempt")?);
        let lease = lease_hash(row.try_get("lease_hash")?)?;
        let (kept, waits): (bool, bool) = (row.try_get("repeatable")?, row.try_get("waits")?);
        let planner: Option<String> = row.try_get("planner")?;
        let mine = planner.is_none_or(|planner| planner == store.planner);
        for (at, of, why) in leaving.remove(&lease).unwrap_or_default() {
            if !mine || of != attempt {
                outcomes[at] = Some(Outcome::Left(Left::Superseded));
                continue;
            }
            let mut over = false;
            if !waits {
                let grant = grant(connection, now, &lease).await?;
                over = grant.is_none() && why == Leaving::Void;
                let left = grant.map_or(Left::Over, |grant| Left::Granted { grant, kept });
                outcomes[at] = Some(Outcome::Left(left));
            }
            if kept && !over && !(waits && why == Leaving::TimedOut) {
                // A lease that may be asked for again, or is taken now; or a place for a client that comes back.
                sqlx::query("UPDATE requests SET planner = NULL WHERE id = $1")
                    .bind(id)
                    .execute(&mut *connection)
                    .await?;
                continue;
            }
            delete(connection, id).await?;
            if why == Leaving::Gone
                && !waits
                && let Some(seed_id) = give_back(connection, now, store, chosen, &lease).await?
            {
                offer::refresh(connection, now, &store.rules, &[seed_id]).await?;
                freed.keys.insert(seed_key(row.try_get("seed_key")?)?);
                freed.seeds.push(seed_id);
            }
        }
    }
    Ok(freed)
}

/// Ends a lease that nobody took, be it over by itself; gives its seed.
pub(super) async fn give_back(
    connection: &mut Connection,
    now: i64,
    store: &Database,
    chosen: &mut Chosen,
    lease: &[u8],
) -> Result<Option<i64>, Stopped> {
    let seed_id: Option<i64> = sqlx::query_scalar("SELECT seed_id FROM points WHERE lease_hash = $1")
        .bind(lease)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(seed_id) = seed_id else { return Ok(None) };
    let locked = sqlx::query("SELECT 1 FROM seeds WHERE id = $1 FOR UPDATE NOWAIT")
        .bind(seed_id)
        .execute(&mut *connection)
        .await;
    match locked {
        Err(error) if is_locked(&error) => {
            chosen.seeds.insert(seed_id);
            return Err(Stopped::Again);
        }
        locked => locked?,
    };
    sqlx::query(freeing!("DELETE FROM points p WHERE p.lease_hash = $1", "$2", "$3"))
        .bind(lease)
        .bind(now)
        .bind(store.rules.keeps_history())
        .execute(connection)
        .await?;
    Ok(Some(seed_id))
}
