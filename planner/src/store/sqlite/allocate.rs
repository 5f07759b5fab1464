//! Leasing points: a snapshot of candidates, one choice for each worker, a guarded claim.
//!
//! A snapshot holds a bounded number of seeds a key, taken by an index in the policy's order, so its cost does
//! not grow with the number of seeds. Only a snapshot that shows no live seed with a free point refuses.

use std::collections::HashMap;

use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::{Row, SqliteConnection};

use super::super::{Command, LeaseHash, Outcome, Rules, StoreError};
use super::seeds::{json, offer_again};
use crate::domain::policy::{self, Candidate, Policy};

/// The most candidates of one snapshot of a key.
const MAX_CANDIDATES: usize = 64;
/// Candidates beyond one for each waiting worker, so that a policy has something to choose from.
const SPARE_CANDIDATES: usize = 8;

pub(super) async fn acquire(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut waiting: HashMap<&SeedKey, Vec<(usize, LeaseHash)>> = HashMap::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Acquire { key, lease } = command {
            waiting.entry(key).or_default().push((at, *lease));
        }
    }
    if waiting.is_empty() {
        return Ok(());
    }
    // Seeds whose first lease has ended have a free point. Each is met here once for each such end.
    sqlx::query("UPDATE seeds SET offer_from_ms = 0 WHERE offer_from_ms > 0 AND offer_from_ms <= ?1")
        .bind(now)
        .execute(&mut *connection)
        .await?;
    for (key, mut waiting) in waiting {
        while !waiting.is_empty() {
            let most = MAX_CANDIDATES.min(waiting.len() + SPARE_CANDIDATES);
            let mut candidates = candidates(connection, now, rules, key, most).await?;
            if candidates.is_empty() {
                for (at, _) in waiting.drain(..) {
                    outcomes[at] = Some(Outcome::Acquired(None));
                }
            }
            let identities: HashMap<i64, SeedIdentity> =
                candidates.iter().map(|c| (c.0.id, c.1.clone())).collect();
            let mut seeds: Vec<Candidate> = candidates.drain(..).map(|(candidate, _)| candidate).collect();
            let ids: Vec<i64> = seeds.iter().map(|seed| seed.id).collect();
            while let Some((at, lease)) = waiting.pop() {
                let Some((seed_id, point)) = policy::take(rules.policy, &mut seeds, now) else {
                    waiting.push((at, lease));
                    break;
                };
                claim(connection, now, rules, seed_id, point, &lease).await?;
                outcomes[at] = Some(Outcome::Acquired(identities.get(&seed_id).cloned()));
            }
            // Seeds that are full now are not in the next snapshot, which is why this ends.
            offer_again(connection, now, &ids).await?;
        }
    }
    Ok(())
}

/// Live seeds of `key` that offer a free point, the policy's first ones.
async fn candidates(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    key: &SeedKey,
    most: usize,
) -> Result<Vec<(Candidate, SeedIdentity)>, StoreError> {
    let query = match rules.policy {
        Policy::Balanced | Policy::Lru => {
            "SELECT s.id, s.host, s.port, s.rank, s.capacity, s.last_used_ms, h.last_ms
             FROM seeds s INDEXED BY seeds_by_offer CROSS JOIN heartbeats h ON h.seed_id = s.id
             WHERE s.seed_key = ?1 AND s.offer_from_ms = 0 AND h.last_ms > ?2
             ORDER BY s.last_used_ms, s.identity LIMIT ?3"
        }
        Policy::Fifo => {
            "SELECT s.id, s.host, s.port, s.rank, s.capacity, s.last_used_ms, h.last_ms
             FROM heartbeats h INDEXED BY heartbeats_by_key CROSS JOIN seeds s ON s.id = h.seed_id
             WHERE h.seed_key = ?1 AND s.offer_from_ms = 0 AND h.last_ms > ?2
             ORDER BY h.last_ms, s.identity LIMIT ?3"
        }
    };
    let rows = sqlx::query(query)
        .bind(key.as_bytes())
        .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let identity = super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?;
        let capacity: u32 = row.try_get("capacity")?;
        let candidate = Candidate {
            id: row.try_get("id")?,
            identity: identity.to_string(),
            capacity,
            free_points: (0..capacity).collect(),
            last_used_ms: row.try_get("last_used_ms")?,
            last_heartbeat_ms: row.try_get("last_ms")?,
        };
        found.push((candidate, identity));
    }
    if found.is_empty() {
        return Ok(found);
    }
    let ids: Vec<i64> = found.iter().map(|(candidate, _)| candidate.id).collect();
    let busy: Vec<(i64, u32)> = sqlx::query_as(
        "SELECT seed_id, n FROM points
         WHERE seed_id IN (SELECT value FROM json_each(?1)) AND busy_until_ms > ?2",
    )
    .bind(json(&ids))
    .bind(now)
    .fetch_all(connection)
    .await?;
    for (seed_id, n) in busy {
        if let Some((candidate, _)) = found.iter_mut().find(|(candidate, _)| candidate.id == seed_id) {
            candidate.free_points.retain(|free| *free != n);
        }
    }
    Ok(found)
}

/// Leases the point, if it is free: its row is written only where the lease in it has ended.
async fn claim(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    seed_id: i64,
    point: u32,
    lease: &LeaseHash,
) -> Result<(), StoreError> {
    let claimed = sqlx::query(
        "INSERT INTO points (seed_id, n, lease_hash, busy_until_ms) VALUES (?2, ?3, ?4, ?1 + ?5)
         ON CONFLICT (seed_id, n) DO UPDATE
         SET lease_hash = excluded.lease_hash, busy_until_ms = excluded.busy_until_ms
         WHERE points.busy_until_ms <= ?1",
    )
    .bind(now)
    .bind(seed_id)
    .bind(point)
    .bind(&lease[..])
    .bind(rules.lease_ttl_ms)
    .execute(&mut *connection)
    .await?;
    if claimed.rows_affected() != 1 {
        // Nobody else writes, so the snapshot cannot have grown old. The transaction is undone.
        return Err(StoreError::Broken(format!("point {point} of seed {seed_id} was free and is not")));
    }
    sqlx::query("UPDATE seeds SET last_used_ms = ?2 WHERE id = ?1")
        .bind(seed_id)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}
