//! Leasing points: a snapshot of candidates, one choice for each worker, a guarded claim.
//!
//! One round serves all keys that are asked for, in a few statements. A snapshot holds as many seeds of a key
//! as workers wait for it, up to a page, and as many more as they exclude, taken by an index in the policy's
//! order; for workers with wishes also a page of those near them and of the instance that serves their own. The
//! choice is then the same as from all seeds, and its cost does not grow with their number. Workers that got
//! nothing look at another snapshot, as long as the last one led to anything for their key.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use rfork_protocol::SeedKey;
use rfork_protocol::ids::hex;
use sqlx::{Row, SqliteConnection};

use super::super::{Command, Grant, LeaseHash, MAX_CALLS, Outcome, Refusal, Rules, StoreError};
use super::{instances, json, offer, requests};
use crate::domain::location::Location;
use crate::domain::policy::{self, Candidate, HostRoom, Obstacle, Policy, Wish};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most seeds of one key that a snapshot holds, beside those that workers exclude.
const PAGE: usize = 64;

/// The most rounds of one batch. Each ends somebody's wait or takes a page of seeds out of the next round, so
/// only places that are wrong again as soon as they are recomputed could need more: better 503 than no end.
const MAX_ROUNDS: usize = 4_096;

/// Whose lease it is to be.
#[derive(Clone, Copy)]
pub(super) enum Who {
    /// That of the command at this place in the batch.
    Command(usize),
    /// That of the waiting request with this number.
    Waiter(i64),
}

/// A worker that waits for a seed.
pub(super) struct Worker {
    pub(super) who: Who,
    pub(super) lease: LeaseHash,
    pub(super) wish: Wish,
}

/// Workers that wait for a seed of each key, those of earlier batches first, then in the order of their commands.
pub(super) type Waiting<'a> = BTreeMap<&'a SeedKey, VecDeque<Worker>>;

/// A point that was chosen.
struct Claim {
    seed_id: i64,
    point: u32,
    lease: LeaseHash,
    lease_ttl_ms: i64,
    requester: Option<String>,
}

/// What the rounds of one batch know.
struct Rounds<'a> {
    now: i64,
    rules: &'a Rules,
    /// Which instance serves which.
    sources: HashMap<String, String>,
    /// Numbers of waiting requests that were served.
    served: Vec<i64>,
    refused: Vec<(usize, &'a SeedKey)>,
}

/// What a key's last round left.
struct Rest {
    /// Whether somebody got nothing.
    somebody: bool,
    /// Whether a seed has a free point, which none of them wants.
    room: bool,
}

/// Serves those who wait for the keys that are `touched`, then the commands that have no outcome yet; gives
/// whether any was served who waited.
pub(super) async fn acquire(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    touched: &BTreeSet<SeedKey>,
    outcomes: &mut [Option<Outcome>],
) -> Result<bool, StoreError> {
    let mut rounds = Rounds { now, rules, sources: HashMap::new(), served: Vec::new(), refused: Vec::new() };
    let mut calls = requests::Calls::new(touched);
    for _ in 0..MAX_CALLS {
        let mut waiting = Waiting::new();
        calls.call_up(connection, now, &mut waiting).await?;
        if waiting.is_empty() {
            break;
        }
        let rest = rounds.serve(connection, waiting, outcomes).await?;
        // Whoever comes next finds nothing where these found nothing, unless it is something that they did not want.
        calls.go_on(|key| rest.get(key).is_none_or(|rest| !rest.somebody || rest.room));
    }
    let mut waiting = Waiting::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Acquire { key, lease, wish, .. } = command
            && outcomes[at].is_none()
        {
            let worker = Worker { who: Who::Command(at), lease: *lease, wish: wish.as_ref().clone() };
            waiting.entry(key).or_default().push_back(worker);
        }
    }
    if !waiting.is_empty() {
        rounds.serve(connection, waiting, outcomes).await?;
    }
    let Rounds { sources, served, refused, .. } = rounds;
    instances::remember(connection, now, &sources).await?;
    requests::served(connection, now, &served).await?;
    refuse(connection, now, rules, &refused, outcomes).await?;
    Ok(!served.is_empty())
}

impl<'a> Rounds<'a> {
    /// Serves these, in as many rounds as it takes.
    async fn serve(
        &mut self,
        connection: &mut SqliteConnection,
        mut waiting: Waiting<'a>,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<HashMap<&'a SeedKey, Rest>, StoreError> {
        let instances = waiting.values().flatten().filter_map(|worker| worker.wish.instance_id.as_deref());
        let unknown = instances.filter(|instance| !self.sources.contains_key(*instance));
        let found = instances::sources(connection, unknown).await?;
        self.sources.extend(found);
        offer::refresh_ended(connection, self.now, self.rules, waiting.keys().copied()).await?;
        let mut rest = HashMap::new();
        for _ in 0..MAX_ROUNDS {
            if waiting.is_empty() {
                return Ok(rest);
            }
            self.round(connection, &mut waiting, &mut rest, outcomes).await?;
        }
        Err(StoreError::Broken("seeds that are full keep being found as free".into()))
    }

    async fn round(
        &mut self,
        connection: &mut SqliteConnection,
        waiting: &mut Waiting<'a>,
        rest: &mut HashMap<&'a SeedKey, Rest>,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), StoreError> {
        let (now, rules) = (self.now, self.rules);
        for worker in waiting.values_mut().flatten() {
            let source = worker.wish.instance_id.as_ref().and_then(|id| self.sources.get(id));
            worker.wish.source_instance = source.cloned();
        }
        let Snapshot { mut seeds, rows, mut hosts } = snapshot(connection, now, rules, waiting).await?;
        let mut claims: Vec<Claim> = Vec::new();
        // Seeds whose place says that they have a free point and that have none.
        let mut misplaced: Vec<i64> = Vec::new();
        // Instances whose source was chosen just now: their other ranks are to know it when they choose.
        let mut settled: HashSet<String> = HashSet::new();
        waiting.retain(|key, queue| {
            let seeds = seeds.get_mut(key).map(Vec::as_mut_slice).unwrap_or_default();
            let nobody = Wish::default();
            let before = (claims.len(), misplaced.len());
            let full = seeds.iter().filter(|seed| {
                let obstacle = policy::obstacle(seed, &nobody, &hosts);
                matches!(obstacle, Some(Obstacle::Full | Obstacle::HostFull))
            });
            misplaced.extend(full.map(|seed| seed.id));
            let mut left = VecDeque::new();
            let mut deferred = false;
            while let Some(worker) = queue.pop_front() {
                deferred |= worker.wish.instance_id.as_ref().is_some_and(|id| settled.contains(id));
                // Nobody overtakes who is put off to the next round.
                if deferred {
                    left.push_back(worker);
                    continue;
                }
                let Some((at, point)) = policy::take(rules.policy, seeds, &worker.wish, &mut hosts, now)
                else {
                    left.push_back(worker);
                    continue;
                };
                let seed = &seeds[at];
                if let (Some(id), Some(source)) = (&worker.wish.instance_id, &seed.instance_id)
                    && worker.wish.source_instance.is_none()
                {
                    settled.insert(id.clone());
                    self.sources.insert(id.clone(), source.clone());
                }
                let row = &rows[&seed.id];
                match worker.who {
                    Who::Waiter(id) => self.served.push(id),
                    Who::Command(at) => {
                        outcomes[at] = Some(Outcome::Acquired(Ok(Grant {
                            identity: seed.identity.clone(),
                            seed_id: seed.id,
                            lease_ttl_ms: row.lease_ttl_ms,
                            quiet_ms: now.saturating_sub(seed.last_heartbeat_ms.max(row.answered_ms)),
                            answers: row.answered_ms > 0,
                        })));
                    }
                }
                claims.push(Claim {
                    seed_id: seed.id,
                    point,
                    lease: worker.lease,
                    lease_ttl_ms: row.lease_ttl_ms,
                    requester: worker.wish.requester,
                });
            }
            let room = seeds.iter().any(|seed| policy::obstacle(seed, &nobody, &hosts).is_none());
            rest.insert(*key, Rest { somebody: !left.is_empty(), room });
            if !deferred && before == (claims.len(), misplaced.len()) {
                self.refused.extend(left.drain(..).filter_map(|worker| match worker.who {
                    Who::Command(at) => Some((at, *key)),
                    // It waits on.
                    Who::Waiter(_) => None,
                }));
            }
            *queue = left;
            !queue.is_empty()
        });
        claim(connection, now, &claims).await?;
        let claimed: BTreeSet<i64> = claims.iter().map(|claim| claim.seed_id).collect();
        offer::refresh_used(connection, now, rules, &claimed.into_iter().collect::<Vec<_>>()).await?;
        offer::refresh(connection, now, rules, &misplaced).await
    }
}

/// What a snapshot knows of a seed that the policy does not ask for.
struct Facts {
    lease_ttl_ms: i64,
    answered_ms: i64,
}

/// The first seeds that may have a free point, by key; no entry for a key that has none.
struct Snapshot<'a> {
    seeds: HashMap<&'a SeedKey, Vec<Candidate>>,
    rows: HashMap<i64, Facts>,
    hosts: HostRoom,
}

/// The part of a snapshot's SQL that is the same for every page: the seeds that `$page` names, for each of the
/// entries in `?3`, which are a key and what the page asks for; with their free points still to be told from the
/// busy ones.
macro_rules! snapshot {
    ($page:literal) => {
        concat!(
            "SELECT wanted.key AS wanted, s.id, s.host, s.port, s.rank, s.capacity, s.last_used_ms, h.last_ms,
                    s.lease_ttl_ms, s.answered_ms, s.capped_host, s.zone, s.rack, s.node, s.instance_id,
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
     WHERE c.seed_key = unhex(wanted.value ->> 0) AND c.offer_rank IS NOT NULL AND b.last_ms > ?2 AND c.suspect_until_ms <= ?1
     ORDER BY c.offer_rank, c.last_used_ms, c.identity LIMIT ?4 + 0"
);

const BY_HEARTBEAT: &str = snapshot!(
    "SELECT c.id FROM heartbeats b INDEXED BY heartbeats_by_key CROSS JOIN seeds c ON c.id = b.seed_id
     WHERE b.seed_key = unhex(wanted.value ->> 0) AND c.offer_rank IS NOT NULL AND b.last_ms > ?2 AND c.suspect_until_ms <= ?1
     ORDER BY b.last_ms, c.identity LIMIT ?4 + 0"
);

const IN_ZONE: &str = snapshot!(
    "SELECT c.id FROM seeds c INDEXED BY seeds_by_zone CROSS JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.seed_key = unhex(wanted.value ->> 0) AND c.zone = wanted.value ->> 1
       AND c.offer_rank IS NOT NULL AND b.last_ms > ?2 AND c.suspect_until_ms <= ?1
     ORDER BY c.offer_rank, c.last_used_ms, c.identity LIMIT ?4 + 0"
);

const IN_RACK: &str = snapshot!(
    "SELECT c.id FROM seeds c INDEXED BY seeds_by_rack CROSS JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.seed_key = unhex(wanted.value ->> 0) AND c.rack = wanted.value ->> 1
       AND c.zone IS wanted.value ->> 2 AND c.offer_rank IS NOT NULL AND b.last_ms > ?2 AND c.suspect_until_ms <= ?1
     ORDER BY c.offer_rank, c.last_used_ms, c.identity LIMIT ?4 + 0"
);

const ON_NODE: &str = snapshot!(
    "SELECT c.id FROM seeds c INDEXED BY seeds_by_node CROSS JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.seed_key = unhex(wanted.value ->> 0) AND c.node = wanted.value ->> 1
       AND c.offer_rank IS NOT NULL AND b.last_ms > ?2 AND c.suspect_until_ms <= ?1
     ORDER BY c.offer_rank, c.last_used_ms, c.identity LIMIT ?4 + 0"
);

const OF_INSTANCE: &str = snapshot!(
    "SELECT c.id FROM seeds c INDEXED BY seeds_by_instance CROSS JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.seed_key = unhex(wanted.value ->> 0) AND c.instance_id = wanted.value ->> 1
       AND c.offer_rank IS NOT NULL AND b.last_ms > ?2 AND c.suspect_until_ms <= ?1
     ORDER BY c.offer_rank, c.last_used_ms, c.identity LIMIT ?4 + 0"
);

/// What a page asks for: a query and a limit; the entries are a key's place and the query's own parameters.
type Pages<'a> = BTreeMap<(&'static str, usize), BTreeSet<(usize, Option<&'a str>, Option<&'a str>)>>;

/// The pages that the workers need. Most keys are asked for once, and most workers wish nothing; a limit is the
/// same for all entries of a statement.
fn pages<'a>(policy: Policy, waiting: &'a Waiting<'_>) -> Pages<'a> {
    let mut pages = Pages::new();
    for (at, queue) in waiting.values().enumerate() {
        let excluded: HashSet<_> = queue.iter().flat_map(|worker| &worker.wish.exclude).collect();
        let limit = queue.len().next_power_of_two().min(PAGE) + excluded.len().next_multiple_of(PAGE);
        let general = if policy == Policy::Fifo { BY_HEARTBEAT } else { BY_PLACE };
        pages.entry((general, limit)).or_default().insert((at, None, None));
        // Only `balanced` looks at places and instances.
        for worker in queue.iter().filter(|_| policy == Policy::Balanced) {
            let Location { zone, rack, host } = &worker.wish.location;
            let mut near = |query, a: Option<&'a str>, b: Option<&'a str>| {
                if a.is_some() {
                    pages.entry((query, limit)).or_default().insert((at, a, b));
                }
            };
            near(OF_INSTANCE, worker.wish.source_instance.as_deref(), None);
            near(ON_NODE, host.as_deref(), None);
            near(IN_RACK, rack.as_deref(), zone.as_deref());
            near(IN_ZONE, zone.as_deref(), None);
        }
    }
    pages
}

async fn snapshot<'a>(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    waiting: &Waiting<'a>,
) -> Result<Snapshot<'a>, StoreError> {
    let keys: Vec<&'a SeedKey> = waiting.keys().copied().collect();
    let mut snapshot = Snapshot { seeds: HashMap::new(), rows: HashMap::new(), hosts: HostRoom::new() };
    for ((query, limit), entries) in pages(rules.policy, waiting) {
        let entries: Vec<_> = entries.into_iter().collect();
        let wanted: Vec<_> = entries.iter().map(|(at, a, b)| (hex(keys[*at].as_bytes()), a, b)).collect();
        let rows = sqlx::query(query)
            .bind(now)
            .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
            .bind(json(&wanted)?)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            let wanted: i64 = row.try_get("wanted")?;
            let entry = usize::try_from(wanted).ok().and_then(|at| entries.get(at));
            let (at, ..) = *entry.ok_or_else(|| StoreError::Broken("a seed that nobody wants".into()))?;
            let id = row.try_get("id")?;
            let facts = Facts {
                lease_ttl_ms: row.try_get("lease_ttl_ms")?,
                answered_ms: row.try_get("answered_ms")?,
            };
            if snapshot.rows.insert(id, facts).is_some() {
                // On an earlier page.
                continue;
            }
            let candidate = candidate(id, &row)?;
            snapshot.hosts.extend(candidate.capped_host.clone().map(|host| (host, 0)));
            snapshot.seeds.entry(keys[at]).or_default().push(candidate);
        }
    }
    host_room(connection, now, &mut snapshot.hosts).await?;
    Ok(snapshot)
}

fn candidate(id: i64, row: &sqlx::sqlite::SqliteRow) -> Result<Candidate, StoreError> {
    let busy: Vec<u32> = serde_json::from_str(row.try_get("busy")?)
        .map_err(|error| StoreError::Broken(format!("points: {error}")))?;
    let capacity: u32 = row.try_get("capacity")?;
    Ok(Candidate {
        id,
        identity: super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?,
        capacity,
        free_points: (0..capacity).filter(|n| !busy.contains(n)).collect(),
        last_used_ms: row.try_get("last_used_ms")?,
        last_heartbeat_ms: row.try_get("last_ms")?,
        location: super::location(row)?,
        instance_id: row.try_get("instance_id")?,
        capped_host: row.try_get("capped_host")?,
    })
}

/// Fills in how many leases seeds of these hosts may still be given together.
async fn host_room(
    connection: &mut SqliteConnection,
    now: i64,
    hosts: &mut HostRoom,
) -> Result<(), StoreError> {
    if hosts.is_empty() {
        return Ok(());
    }
    let names: Vec<&String> = hosts.keys().collect();
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT wanted.value,
                (SELECT min(s.host_capacity) FROM seeds s WHERE s.capped_host = wanted.value)
                - (SELECT count(*) FROM seeds s JOIN points p ON p.seed_id = s.id
                   WHERE s.capped_host = wanted.value AND p.busy_until_ms > ?1)
         FROM json_each(?2) wanted",
    )
    .bind(now)
    .bind(json(&names)?)
    .fetch_all(connection)
    .await?;
    for (host, room) in rows {
        hosts.insert(host, u32::try_from(room).unwrap_or(0));
    }
    Ok(())
}

/// Leases the points, in the order of the primary key. A row is written only where the lease in it has ended.
async fn claim(connection: &mut SqliteConnection, now: i64, claims: &[Claim]) -> Result<(), StoreError> {
    if claims.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = claims
        .iter()
        .map(|claim| {
            (claim.seed_id, claim.point, hex(&claim.lease[..]), claim.lease_ttl_ms, &claim.requester)
        })
        .collect();
    let claimed = sqlx::query(
        "INSERT INTO points (seed_id, n, lease_hash, busy_until_ms, granted_ms, requester)
         SELECT value ->> 0, value ->> 1, unhex(value ->> 2), ?1 + (value ->> 3), ?1, value ->> 4
         FROM json_each(?2)
         WHERE true ORDER BY 1, 2
         ON CONFLICT (seed_id, n) DO UPDATE SET lease_hash = excluded.lease_hash,
             busy_until_ms = excluded.busy_until_ms, granted_ms = excluded.granted_ms,
             requester = excluded.requester
         WHERE points.busy_until_ms <= ?1",
    )
    .bind(now)
    .bind(json(&rows)?)
    .execute(connection)
    .await?;
    if claimed.rows_affected() == claims.len() as u64 {
        return Ok(());
    }
    // Nobody else writes, so the snapshot cannot have grown old. The transaction is undone.
    Err(StoreError::Broken("a point that was free in this transaction is not".into()))
}

/// Says why those who got nothing got nothing.
async fn refuse(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    refused: &[(usize, &SeedKey)],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    if refused.is_empty() {
        return Ok(());
    }
    let keys: BTreeSet<&SeedKey> = refused.iter().map(|(_, key)| *key).collect();
    let keys: Vec<&SeedKey> = keys.into_iter().collect();
    let wanted: Vec<String> = keys.iter().map(|key| hex(key.as_bytes())).collect();
    // One seed of the kind is enough, and the usual reason comes first.
    let rows: Vec<(i64, Option<i64>)> = sqlx::query_as(
        "SELECT wanted.key, CASE
             WHEN EXISTS (SELECT 1 FROM heartbeats h INDEXED BY heartbeats_by_key
                          CROSS JOIN seeds s ON s.id = h.seed_id
                          WHERE h.seed_key = unhex(wanted.value) AND h.last_ms > ?2
                            AND s.removed = 0 AND s.drained = 0 AND s.suspect_until_ms <= ?1) THEN 0
             WHEN EXISTS (SELECT 1 FROM heartbeats h INDEXED BY heartbeats_by_key
                          CROSS JOIN seeds s ON s.id = h.seed_id
                          WHERE h.seed_key = unhex(wanted.value) AND h.last_ms > ?2
                            AND s.removed = 0 AND s.drained = 0) THEN 1
         END
         FROM json_each(?3) wanted",
    )
    .bind(now)
    .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
    .bind(json(&wanted)?)
    .fetch_all(connection)
    .await?;
    let mut reasons: HashMap<&SeedKey, Refusal> = HashMap::new();
    for (at, suspect) in rows {
        let key = usize::try_from(at).ok().and_then(|at| keys.get(at));
        let key = key.ok_or_else(|| StoreError::Broken("a reason that nobody asked for".into()))?;
        let reason = match suspect {
            None => Refusal::UnknownKey,
            Some(0) => Refusal::AllBusy,
            Some(_) => Refusal::AllSuspect,
        };
        reasons.insert(key, reason);
    }
    for (at, key) in refused {
        let reason = reasons.get(key).copied().unwrap_or(Refusal::UnknownKey);
        outcomes[*at] = Some(Outcome::Acquired(Err(reason)));
    }
    Ok(())
}
