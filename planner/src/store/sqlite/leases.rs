//! Renewing and releasing. Both act on exactly one live lease of exactly the named seed, or on nothing.

use std::collections::{HashMap, HashSet};

use rfork_protocol::SeedIdentity;
use rfork_protocol::ids::hex;
use sqlx::SqliteConnection;

use super::super::history::Account;
use super::super::{Command, LeaseHash, Outcome, Report, Rules, StoreError};
use super::history::Ending;
use super::{health, history, json, offer, seeds};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// A live lease that a command names.
struct Named {
    /// The command's place in the batch.
    at: usize,
    /// The leased point.
    point: (i64, u32),
    /// How long a lease on its seed lives, in milliseconds.
    lease_ttl_ms: i64,
}

/// Finds the live leases among those that `leases` names, each with its command's place.
async fn find_live(
    connection: &mut SqliteConnection,
    now: i64,
    leases: &[(usize, &SeedIdentity, &LeaseHash)],
) -> Result<Vec<Named>, StoreError> {
    let named: Vec<_> =
        leases.iter().map(|(at, identity, lease)| (at, identity.to_string(), hex(&lease[..]))).collect();
    let rows: Vec<(i64, i64, u32, i64)> = sqlx::query_as(
        "SELECT named.value ->> 0, p.seed_id, p.n, s.lease_ttl_ms
         FROM json_each(?2) named CROSS JOIN points p ON p.lease_hash = unhex(named.value ->> 2)
         CROSS JOIN seeds s ON s.id = p.seed_id
         WHERE p.busy_until_ms > ?1 AND s.identity = named.value ->> 1",
    )
    .bind(now)
    .bind(json(&named)?)
    .fetch_all(connection)
    .await?;
    let named = rows.into_iter().map(|(at, seed_id, n, lease_ttl_ms)| {
        let at = usize::try_from(at).map_err(|_| StoreError::Broken("a place below 0".into()))?;
        Ok(Named { at, point: (seed_id, n), lease_ttl_ms })
    });
    named.collect()
}

pub(super) async fn renew(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut leases = Vec::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Renew { identity, lease } = command {
            outcomes[at] = Some(Outcome::Renewed(None));
            leases.push((at, identity, lease));
        }
    }
    if leases.is_empty() {
        return Ok(());
    }
    let live = find_live(connection, now, &leases).await?;
    for named in &live {
        outcomes[named.at] = Some(Outcome::Renewed(Some(named.lease_ttl_ms)));
    }
    let points: Vec<(i64, u32)> = live.iter().map(|named| named.point).collect();
    let ends: Vec<_> = live.iter().map(|named| (named.point.0, named.point.1, named.lease_ttl_ms)).collect();
    sqlx::query(
        "UPDATE points SET busy_until_ms = ?1 + (t.value ->> 2) FROM json_each(?2) t
         WHERE points.seed_id = t.value ->> 0 AND points.n = t.value ->> 1",
    )
    .bind(now)
    .bind(json(&ends)?)
    .execute(&mut *connection)
    .await?;
    offer::refresh(connection, now, rules, &seeds_of(&points)).await
}

pub(super) async fn release(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut leases = Vec::new();
    let mut reports: HashMap<usize, (Report, Option<&Account>)> = HashMap::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Release { identity, lease, report, account } = command {
            outcomes[at] = Some(Outcome::Released(false));
            leases.push((at, identity, lease));
            reports.insert(at, (*report, account.as_deref()));
        }
    }
    if leases.is_empty() {
        return Ok(());
    }
    // Of two commands that release one lease, the first does.
    let mut released = HashSet::new();
    let (mut told, mut endings) = (Vec::new(), Vec::new());
    for named in find_live(connection, now, &leases).await? {
        let Some((report, account)) = reports.get(&named.at) else { continue };
        if released.insert(named.point) {
            outcomes[named.at] = Some(Outcome::Released(true));
            told.push((named.point.0, *report, account.and_then(|account| account.reason.as_deref())));
            endings.push(Ending::told(named.point, *report, *account));
        }
    }
    health::reported(connection, now, rules, &told).await?;
    if released.is_empty() {
        return Ok(());
    }
    let points: Vec<(i64, u32)> = released.into_iter().collect();
    history::end_leases(connection, now, rules, &endings).await?;
    let seed_ids = seeds_of(&points);
    offer::refresh(connection, now, rules, &seed_ids).await?;
    // A seed that was removed goes with its last lease.
    let over: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM seeds WHERE removed = 1 AND id IN (SELECT value FROM json_each(?2))
           AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = seeds.id AND p.busy_until_ms > ?1)",
    )
    .bind(now)
    .bind(json(&seed_ids)?)
    .fetch_all(&mut *connection)
    .await?;
    for id in over {
        seeds::delete(connection, now, rules, id).await?;
    }
    Ok(())
}

fn seeds_of(points: &[(i64, u32)]) -> Vec<i64> {
    points.iter().map(|(seed_id, _)| *seed_id).collect()
}
