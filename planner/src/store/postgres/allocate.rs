//! Leasing points: a snapshot of candidates, one choice for each worker, a guarded claim.
//!
//! One round serves all keys that are asked for, in three statements. A snapshot holds, of each key, the best
//! seeds by an index in the policy's order, as many as workers wait, up to a page, and beside them a page of
//! seeds of which a lease has ended by itself, whose places are older than that. The choice is then the same as
//! from all seeds, and its cost does not grow with their number.
//!
//! A snapshot locks nothing, so a claim may find its point taken by another planner, or its seed removed, moved
//! to another key, or gone: it then takes nothing, and its worker looks at a new snapshot. Only a snapshot that
//! shows no free point refuses. It is one statement and so one moment: a heartbeat or claim that is under way
//! elsewhere hides no seed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::{PgConnection, Row};

use super::super::{Command, LeaseHash, Outcome, Rules};
use super::transaction::{Stopped, is_locked};
use super::{key_hash, offer, small};
use crate::domain::policy::{self, Candidate, Policy};

/// The most seeds of one key that a snapshot holds in the policy's order.
const PAGE: usize = 64;

/// The most rounds of one batch. Each ends somebody's wait, loses a race, or takes seeds out of the next round.
const MAX_ROUNDS: usize = 4_096;

/// A worker that waits for a seed.
#[derive(Clone, Copy)]
struct Worker {
    /// Its command's place in the batch.
    at: usize,
    lease: LeaseHash,
}

/// Workers that wait for a seed of each key, in the order of their commands.
type Waiting<'a> = BTreeMap<&'a SeedKey, VecDeque<Worker>>;

/// A point that was chosen.
struct Claim<'a> {
    worker: Worker,
    key: &'a SeedKey,
    seed_id: i64,
    n: u32,
}

/// Answers the acquisitions. `may_wait`: the transaction holds no lock yet. Seeds that others held are added to
/// `chosen_before`, and the transaction is to begin again.
pub(super) async fn acquire(
    connection: &mut PgConnection,
    now: i64,
    rules: Rules,
    commands: &[Command],
    mut may_wait: bool,
    chosen_before: &mut BTreeSet<i64>,
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Stopped> {
    let mut waiting = Waiting::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Acquire { key, lease } = command {
            waiting.entry(key).or_default().push_back(Worker { at, lease: *lease });
        }
    }
    // Seeds whose place says that they have a free point and that have none.
    let mut misplaced: Vec<i64> = Vec::new();
    for _ in 0..MAX_ROUNDS {
        if waiting.is_empty() {
            return Ok(());
        }
        let Snapshot { mut seeds, identities } =
            snapshot(connection, now, rules, &waiting, &misplaced).await?;
        let mut claims: Vec<Claim<'_>> = Vec::new();
        waiting.retain(|key, queue| {
            let Some(seeds) = seeds.get_mut(*key) else {
                for worker in queue.drain(..) {
                    outcomes[worker.at] = Some(Outcome::Acquired(None));
                }
                return false;
            };
            misplaced.extend(seeds.iter().filter(|seed| seed.free_points.is_empty()).map(|seed| seed.id));
            while let Some(worker) = queue.front().copied() {
                let Some((seed_id, n)) = policy::take(rules.policy, seeds, now) else { break };
                queue.pop_front();
                claims.push(Claim { worker, key, seed_id, n });
            }
            !queue.is_empty()
        });
        if claims.is_empty() {
            continue;
        }
        let seed_ids: BTreeSet<i64> = claims.iter().map(|claim| claim.seed_id).collect();
        let claimed = match claim(connection, now, rules, may_wait, &claims).await {
            Err(Stopped::Database(error)) if !may_wait && is_locked(&error) => {
                chosen_before.extend(seed_ids);
                return Err(Stopped::Again);
            }
            claimed => claimed?,
        };
        may_wait = false;
        // From behind, so that those who lost are first in their queues again, in their order.
        for claim in claims.into_iter().rev() {
            if claimed.contains(&(claim.seed_id, claim.n)) {
                let identity = identities.get(&claim.seed_id).cloned();
                outcomes[claim.worker.at] = Some(Outcome::Acquired(identity));
            } else {
                waiting.entry(claim.key).or_default().push_front(claim.worker);
            }
        }
        let used: BTreeSet<i64> = claimed.iter().map(|(seed_id, _)| *seed_id).collect();
        offer::refresh_used(connection, now, &used.into_iter().collect::<Vec<_>>()).await?;
    }
    Err(Stopped::Broken("seeds that are full keep being found as free".into()))
}

/// The first seeds that may have a free point, by key; no entry for a key that has none.
struct Snapshot<'a> {
    seeds: HashMap<&'a SeedKey, Vec<Candidate>>,
    identities: HashMap<i64, SeedIdentity>,
}

/// The part of a snapshot's SQL that is the same for every policy: the seeds that `$page` names, and those of
/// which a lease has ended, for each of the keys in `$3`, with the points that are busy.
macro_rules! snapshot {
    ($page:literal) => {
        concat!(
            "SELECT wanted.at, s.id, s.host, s.port, s.rank, s.capacity, s.last_used_ms, h.last_ms,
                    ARRAY(SELECT p.n FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > $1) AS busy
             FROM unnest($3::bytea[]) WITH ORDINALITY AS wanted (key_hash, at)
             CROSS JOIN LATERAL ((",
            $page,
            " LIMIT $4) UNION (
                 SELECT c.id FROM seeds c JOIN heartbeats b ON b.seed_id = c.id
                 WHERE c.key_hash = wanted.key_hash AND c.next_end_ms <= $1 AND b.last_ms > $2
                   AND c.id <> ALL($5::bigint[])
                 ORDER BY c.next_end_ms LIMIT 64)) AS page
             JOIN seeds s ON s.id = page.id
             JOIN heartbeats h ON h.seed_id = s.id"
        )
    };
}

const BY_SHARE: &str = snapshot!(
    "SELECT c.id FROM seeds c JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.key_hash = wanted.key_hash AND c.offer_rank IS NOT NULL AND b.last_ms > $2
       AND c.id <> ALL($5::bigint[])
     ORDER BY c.offer_rank, c.last_used_ms, c.identity"
);

const BY_USE: &str = snapshot!(
    "SELECT c.id FROM seeds c JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.key_hash = wanted.key_hash AND c.offer_rank IS NOT NULL AND b.last_ms > $2
       AND c.id <> ALL($5::bigint[])
     ORDER BY c.last_used_ms, c.identity"
);

const BY_HEARTBEAT: &str = snapshot!(
    "SELECT c.id FROM heartbeats b JOIN seeds c ON c.id = b.seed_id
     WHERE b.key_hash = wanted.key_hash AND c.offer_rank IS NOT NULL AND b.last_ms > $2
       AND c.id <> ALL($5::bigint[])
     ORDER BY b.last_ms, c.identity"
);

async fn snapshot<'a>(
    connection: &mut PgConnection,
    now: i64,
    rules: Rules,
    waiting: &Waiting<'a>,
    misplaced: &[i64],
) -> Result<Snapshot<'a>, Stopped> {
    let query = match rules.policy {
        Policy::Balanced => BY_SHARE,
        Policy::Lru => BY_USE,
        Policy::Fifo => BY_HEARTBEAT,
    };
    // A limit is the same for all keys of a statement, and most keys are asked for once.
    let mut by_limit: BTreeMap<usize, Vec<&'a SeedKey>> = BTreeMap::new();
    for (key, queue) in waiting {
        by_limit.entry(queue.len().next_power_of_two().min(PAGE)).or_default().push(key);
    }
    let mut snapshot = Snapshot { seeds: HashMap::new(), identities: HashMap::new() };
    for (limit, keys) in by_limit {
        let rows = sqlx::query(query)
            .bind(now)
            .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
            .bind(keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(misplaced)
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            // Counted from 1.
            let at: usize = small(row.try_get::<i64, _>("at")? - 1)?;
            let key = *keys.get(at).ok_or_else(|| Stopped::Broken("a key that nobody wants".into()))?;
            let port = small(row.try_get::<i32, _>("port")?.into())?;
            let identity =
                SeedIdentity::new(row.try_get::<String, _>("host")?, port, small(row.try_get("rank")?)?)
                    .map_err(|error| Stopped::Broken(error.to_string()))?;
            let busy: HashSet<i32> = row.try_get::<Vec<i32>, _>("busy")?.into_iter().collect();
            let capacity: i32 = row.try_get("capacity")?;
            let free = (0..capacity).filter(|n| !busy.contains(n)).map(|n| small(n.into()));
            let candidate = Candidate {
                id: row.try_get("id")?,
                identity: identity.to_string(),
                capacity: small(capacity.into())?,
                free_points: free.collect::<Result<_, _>>()?,
                last_used_ms: row.try_get("last_used_ms")?,
                last_heartbeat_ms: row.try_get("last_ms")?,
            };
            snapshot.identities.insert(candidate.id, identity);
            snapshot.seeds.entry(key).or_default().push(candidate);
        }
    }
    Ok(snapshot)
}

/// Locks the chosen seeds in the order of their numbers, and leases their points. A point is taken only if its
/// seed, as it is after the wait for the lock, still offers it, and the lease in its row has ended. What is
/// written of each seed afterwards is under this lock.
macro_rules! claim {
    ($wait:literal) => {
        concat!(
            "WITH locked AS MATERIALIZED (
                 SELECT s.id, s.capacity, s.removed FROM seeds s WHERE s.id = ANY($3) ORDER BY s.id FOR UPDATE ",
            $wait,
            ")
             INSERT INTO points (seed_id, n, lease_hash, busy_until_ms)
             SELECT t.seed_id, t.n, t.lease_hash, $1 + $2
             FROM unnest($3::bigint[], $4::int[], $5::bytea[]) AS t (seed_id, n, lease_hash)
             JOIN locked ON locked.id = t.seed_id
             WHERE NOT locked.removed AND t.n < locked.capacity
             ORDER BY 1, 2
             ON CONFLICT (seed_id, n) DO UPDATE
             SET lease_hash = excluded.lease_hash, busy_until_ms = excluded.busy_until_ms
             WHERE points.busy_until_ms <= $1
             RETURNING seed_id, n"
        )
    };
}

/// Gives the points that were taken.
async fn claim(
    connection: &mut PgConnection,
    now: i64,
    rules: Rules,
    may_wait: bool,
    claims: &[Claim<'_>],
) -> Result<HashSet<(i64, u32)>, Stopped> {
    let query = if may_wait { claim!("") } else { claim!("NOWAIT") };
    let number = |claim: &Claim<'_>| i32::try_from(claim.n).unwrap_or(i32::MAX);
    let rows: Vec<(i64, i32)> = sqlx::query_as(query)
        .bind(now)
        .bind(rules.lease_ttl_ms)
        .bind(claims.iter().map(|claim| claim.seed_id).collect::<Vec<_>>())
        .bind(claims.iter().map(number).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| &claim.worker.lease[..]).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(|(seed_id, n)| Ok((seed_id, small(n.into())?))).collect()
}
