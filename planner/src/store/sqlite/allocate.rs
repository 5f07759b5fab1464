//! Leasing points: a snapshot of candidates, one choice for each worker, a guarded claim.
//!
//! One round serves all keys that are asked for, in three statements. A snapshot holds as many seeds of a key
//! as workers wait for it, up to a page, taken by an index in the policy's order: the choice is then the same
//! as from all seeds, and its cost does not grow with their number. Workers that got nothing from a page that
//! was not empty look at another; only a snapshot that shows no seed at all refuses.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rfork_protocol::ids::hex;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::{Row, SqliteConnection};

use super::super::{Command, LeaseHash, Outcome, Rules, StoreError};
use super::{json, offer};
use crate::domain::policy::{self, Candidate, Policy};

/// The most seeds of one key that a snapshot holds.
const PAGE: usize = 64;

/// The most rounds of one batch. Each ends somebody's wait or takes a page of seeds out of the next round, so
/// only places that are wrong again as soon as they are recomputed could need more: better 503 than no end.
const MAX_ROUNDS: usize = 4_096;

/// Workers that wait for a seed of each key, in the order of their commands.
type Waiting<'a> = BTreeMap<&'a SeedKey, VecDeque<(usize, LeaseHash)>>;

/// A point that was chosen: seed, point, lease.
type Claim = (i64, u32, LeaseHash);

pub(super) async fn acquire(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut waiting = Waiting::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Acquire { key, lease } = command {
            waiting.entry(key).or_default().push_back((at, *lease));
        }
    }
    if waiting.is_empty() {
        return Ok(());
    }
    offer::refresh_ended(connection, now, rules).await?;
    for _ in 0..MAX_ROUNDS {
        if waiting.is_empty() {
            return Ok(());
        }
        let Snapshot { mut seeds, identities } = snapshot(connection, now, rules, &waiting).await?;
        let mut claims: Vec<Claim> = Vec::new();
        // Seeds whose place says that they have a free point and that have none.
        let mut misplaced: Vec<i64> = Vec::new();
        waiting.retain(|key, queue| {
            let Some(seeds) = seeds.get_mut(key) else {
                for (at, _) in queue.drain(..) {
                    outcomes[at] = Some(Outcome::Acquired(None));
                }
                return false;
            };
            misplaced.extend(seeds.iter().filter(|seed| seed.free_points.is_empty()).map(|seed| seed.id));
            while let Some((at, lease)) = queue.front().copied() {
                let Some((seed_id, point)) = policy::take(rules.policy, seeds, now) else { return true };
                queue.pop_front();
                claims.push((seed_id, point, lease));
                outcomes[at] = Some(Outcome::Acquired(identities.get(&seed_id).cloned()));
            }
            false
        });
        claim(connection, now, rules, &claims).await?;
        let claimed: Vec<i64> = claims.iter().map(|(seed_id, ..)| *seed_id).collect();
        offer::refresh_used(connection, now, rules, &claimed).await?;
        offer::refresh(connection, now, rules, &misplaced).await?;
    }
    Err(StoreError::Broken("seeds that are full keep being found as free".into()))
}

/// The first seeds that may have a free point, by key; no entry for a key that has none.
struct Snapshot<'a> {
    seeds: HashMap<&'a SeedKey, Vec<Candidate>>,
    identities: HashMap<i64, SeedIdentity>,
}

/// The part of a snapshot's SQL that is the same for every policy: seeds that `$page` names, for each of the
/// keys in `?3`, with their free points still to be told from the busy ones.
macro_rules! snapshot {
    ($page:literal) => {
        concat!(
            "SELECT wanted.key AS wanted, s.id, s.host, s.port, s.rank, s.capacity, s.last_used_ms, h.last_ms,
                    (SELECT json_group_array(p.n) FROM points p
                     WHERE p.seed_id = s.id AND p.busy_until_ms > ?1) AS busy
             FROM json_each(?3) wanted
             CROSS JOIN seeds s ON s.id IN (",
            $page,
            ") CROSS JOIN heartbeats h ON h.seed_id = s.id"
        )
    };
}

const BY_PLACE: &str = snapshot!(
    "SELECT c.id FROM seeds c INDEXED BY seeds_by_offer CROSS JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.seed_key = unhex(wanted.value) AND c.offer_rank IS NOT NULL AND b.last_ms > ?2
     ORDER BY c.offer_rank, c.last_used_ms, c.identity LIMIT ?4"
);

const BY_HEARTBEAT: &str = snapshot!(
    "SELECT c.id FROM heartbeats b INDEXED BY heartbeats_by_key CROSS JOIN seeds c ON c.id = b.seed_id
     WHERE b.seed_key = unhex(wanted.value) AND c.offer_rank IS NOT NULL AND b.last_ms > ?2
     ORDER BY b.last_ms, c.identity LIMIT ?4"
);

async fn snapshot<'a>(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    waiting: &Waiting<'a>,
) -> Result<Snapshot<'a>, StoreError> {
    let query = match rules.policy {
        Policy::Balanced | Policy::Lru => BY_PLACE,
        Policy::Fifo => BY_HEARTBEAT,
    };
    // A limit is the same for all keys of a statement, and most keys are asked for once.
    let mut by_limit: BTreeMap<usize, Vec<&'a SeedKey>> = BTreeMap::new();
    for (key, queue) in waiting {
        by_limit.entry(queue.len().next_power_of_two().min(PAGE)).or_default().push(key);
    }
    let mut snapshot = Snapshot { seeds: HashMap::new(), identities: HashMap::new() };
    for (limit, keys) in by_limit {
        let wanted: Vec<String> = keys.iter().map(|key| hex(key.as_bytes())).collect();
        let rows = sqlx::query(query)
            .bind(now)
            .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
            .bind(json(&wanted)?)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            let wanted: i64 = row.try_get("wanted")?;
            let key = usize::try_from(wanted).ok().and_then(|at| keys.get(at));
            let key = *key.ok_or_else(|| StoreError::Broken("a seed of a key that nobody wants".into()))?;
            let identity = super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?;
            let busy: Vec<u32> = serde_json::from_str(row.try_get("busy")?)
                .map_err(|error| StoreError::Broken(format!("points: {error}")))?;
            let capacity: u32 = row.try_get("capacity")?;
            let candidate = Candidate {
                id: row.try_get("id")?,
                identity: identity.to_string(),
                capacity,
                free_points: (0..capacity).filter(|n| !busy.contains(n)).collect(),
                last_used_ms: row.try_get("last_used_ms")?,
                last_heartbeat_ms: row.try_get("last_ms")?,
            };
            snapshot.identities.insert(candidate.id, identity);
            snapshot.seeds.entry(key).or_default().push(candidate);
        }
    }
    Ok(snapshot)
}

/// Leases the points, in the order of the primary key. A row is written only where the lease in it has ended.
async fn claim(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    claims: &[Claim],
) -> Result<(), StoreError> {
    if claims.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = claims.iter().map(|(seed_id, n, lease)| (seed_id, n, hex(&lease[..]))).collect();
    let claimed = sqlx::query(
        "INSERT INTO points (seed_id, n, lease_hash, busy_until_ms)
         SELECT value ->> 0, value ->> 1, unhex(value ->> 2), ?1 + ?2 FROM json_each(?3) WHERE true ORDER BY 1, 2
         ON CONFLICT (seed_id, n) DO UPDATE
         SET lease_hash = excluded.lease_hash, busy_until_ms = excluded.busy_until_ms
         WHERE points.busy_until_ms <= ?1",
    )
    .bind(now)
    .bind(rules.lease_ttl_ms)
    .bind(json(&rows)?)
    .execute(connection)
    .await?;
    if claimed.rows_affected() == claims.len() as u64 {
        return Ok(());
    }
    // Nobody else writes, so the snapshot cannot have grown old. The transaction is undone.
    Err(StoreError::Broken("a point that was free in this transaction is not".into()))
}
