//! Leasing points: a snapshot of candidates, one choice for each worker, a guarded claim.
//!
//! One round serves all keys that are asked for, in a few statements; [`super::candidates`] says what a snapshot
//! holds. It locks nothing, so a claim may find its point taken by another planner, or its seed removed, moved to
//! another key, or gone: it then takes nothing, and its worker looks at a new snapshot. Only a snapshot that shows
//! no free point refuses. It is one statement and so one moment: a heartbeat or claim that is under way elsewhere
//! hides no seed.
//!
//! Where the seeds of a host share a bound, whoever claims holds the host's lock, and has looked after taking it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use rfork_protocol::{SeedIdentity, SeedKey};

use super::super::{Command, Grant, LeaseHash, MAX_CALLS, Outcome, Refusal, Rules};
use super::batch::Chosen;
use super::candidates::{Facts, Snapshot, snapshot};
use super::instances::Sources;
use super::requests::Locks;
use super::session::Connection;
use super::transaction::{Stopped, is_locked};
use super::{Database, key_hash, offer, requests, small};
use crate::domain::policy::{self, Obstacle, Wish};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rounds of one batch. Each ends somebody's wait, loses a race, or takes seeds out of the next round.
const MAX_ROUNDS: usize = 4_096;

/// Whose lease it is to be.
pub(super) enum Who {
    /// That of the command at this place in the batch.
    Command(usize),
    /// That of a waiting request, and the planner that answers it.
    Waiter {
        /// The request's number.
        id: i64,
        planner: String,
    },
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
struct Claim<'a> {
    worker: Worker,
    key: &'a SeedKey,
    seed_id: i64,
    n: u32,
    identity: SeedIdentity,
    last_heartbeat_ms: i64,
    facts: Facts,
    instance_id: Option<String>,
    capped_host: Option<String>,
}

/// What the rounds of one batch know.
struct Rounds<'a> {
    now: i64,
    rules: &'a Rules,
    /// Whether no lock of a seed is held yet, so that one may be waited for.
    may_wait: bool,
    /// Hosts whose lock is held.
    hosts: BTreeSet<String>,
    /// Seeds whose place says that they have a free point and that have none.
    misplaced: Vec<i64>,
    /// Keys for which seeds of capped hosts are looked for whatever their place says.
    thorough: HashSet<&'a SeedKey>,
    refused: Vec<(usize, &'a SeedKey)>,
    /// Waiters that were served, and the planners that answer them.
    served: Vec<(i64, String)>,
    sources: Sources,
}

/// What is asked of a batch's acquisitions.
pub(super) struct Asked<'a> {
    pub(super) commands: &'a [Command],
    /// Keys whose waiters come first.
    pub(super) touched: &'a BTreeSet<SeedKey>,
    /// Whether the transaction holds no lock of a seed yet.
    pub(super) may_wait: bool,
}

/// Serves those who wait for the keys that are touched, then the commands that have no outcome yet; gives whether
/// any of this planner's was served who waited. What others held is added to `chosen`, and the transaction is to
/// begin again.
pub(super) async fn acquire(
    connection: &mut Connection,
    now: i64,
    store: &Database,
    asked: Asked<'_>,
    chosen: &mut Chosen,
    locks: &mut Locks,
    outcomes: &mut [Option<Outcome>],
) -> Result<bool, Stopped> {
    let mut rounds = Rounds {
        now,
        rules: &store.rules,
        may_wait: asked.may_wait,
        hosts: chosen.hosts.clone(),
        misplaced: Vec::new(),
        thorough: HashSet::new(),
        refused: Vec::new(),
        served: Vec::new(),
        sources: Sources::default(),
    };
    let mut calls = requests::Calls::new(asked.touched);
    for _ in 0..MAX_CALLS {
        let mut waiting = Waiting::new();
        calls.call_up(connection, now, &store.planner, (locks, chosen), &mut waiting).await?;
        if waiting.is_empty() {
            break;
        }
        let rest = rounds.serve(connection, waiting, chosen, locks, outcomes).await?;
        // Whoever comes next finds nothing where these found nothing, unless it is something that they did not want.
        calls.go_on(|key| rest.get(key).is_none_or(|rest| !rest.somebody || rest.room));
    }
    let mut waiting = Waiting::new();
    for (at, command) in asked.commands.iter().enumerate() {
        if let Command::Acquire { key, lease, wish, .. } = command
            && outcomes[at].is_none()
        {
            let worker = Worker { who: Who::Command(at), lease: *lease, wish: wish.as_ref().clone() };
            waiting.entry(key).or_default().push_back(worker);
        }
    }
    if !waiting.is_empty() {
        rounds.serve(connection, waiting, chosen, locks, outcomes).await?;
    }
    refuse(connection, &rounds, outcomes).await?;
    rounds.sources.write(connection, now).await?;
    requests::served(connection, store, &rounds.served).await
}

/// What a key's last round left.
struct Rest {
    /// Whether somebody got nothing.
    somebody: bool,
    /// Whether a seed has a free point, which none of them wants.
    room: bool,
}

impl<'a> Rounds<'a> {
    /// Serves these, in as many rounds as it takes.
    async fn serve(
        &mut self,
        connection: &mut Connection,
        mut waiting: Waiting<'a>,
        chosen: &mut Chosen,
        locks: &Locks,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<HashMap<&'a SeedKey, Rest>, Stopped> {
        // Whoever holds a request waits for no seed.
        self.may_wait &= !locks.held;
        let instances = waiting.values().flatten().filter_map(|worker| worker.wish.instance_id.as_deref());
        self.sources.load(connection, self.now, instances).await?;
        // Seeds may have come to fit since others were looked for.
        self.misplaced.clear();
        self.thorough.clear();
        let mut rest = HashMap::new();
        for _ in 0..MAX_ROUNDS {
            if waiting.is_empty() {
                return Ok(rest);
            }
            self.round(connection, &mut waiting, &mut rest, chosen, outcomes).await?;
        }
        Err(Stopped::Broken("seeds that are full keep being found as free".into()))
    }

    async fn round(
        &mut self,
        connection: &mut Connection,
        waiting: &mut Waiting<'a>,
        rest: &mut HashMap<&'a SeedKey, Rest>,
        chosen: &mut Chosen,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Stopped> {
        for worker in waiting.values_mut().flatten() {
            let source = worker.wish.instance_id.as_ref().and_then(|id| self.sources.get(id));
            worker.wish.source_instance = source.cloned();
        }
        let shown =
            snapshot(connection, self.now, self.rules, waiting, &self.misplaced, &self.thorough).await?;
        let claims = self.choose(waiting, shown, rest);
        if claims.is_empty() {
            return Ok(());
        }
        let hosts: BTreeSet<String> = claims.iter().filter_map(|claim| claim.capped_host.clone()).collect();
        if !hosts.is_subset(&self.hosts) {
            if self.may_wait && self.hosts.is_empty() {
                lock_hosts(connection, &hosts).await?;
                self.hosts = hosts;
                give_back(claims, waiting);
                return Ok(());
            }
            chosen.hosts.extend(hosts);
            return Err(Stopped::Again);
        }
        let seed_ids: BTreeSet<i64> = claims.iter().map(|claim| claim.seed_id).collect();
        let claimed = match claim(connection, self.now, self.may_wait, &claims).await {
            Err(Stopped::Database(error)) if !self.may_wait && is_locked(&error) => {
                chosen.seeds.extend(seed_ids);
                return Err(Stopped::Again);
            }
            claimed => claimed?,
        };
        self.may_wait = false;
        let (won, lost): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claimed.contains_key(&(claim.seed_id, claim.n)));
        if !lost.is_empty() {
            // Time has passed for others: one that was full may have been given back before the point was lost, so
            // that together they were never all taken.
            self.misplaced.clear();
        }
        give_back(lost, waiting);
        for claim in won {
            if let (Some(instance), Some(source)) = (&claim.worker.wish.instance_id, &claim.instance_id)
                && claim.worker.wish.source_instance.is_none()
            {
                self.sources.settle(instance, source);
            }
            let last_ms = claim.last_heartbeat_ms.max(claim.facts.answered_ms);
            match claim.worker.who {
                Who::Waiter { id, planner } => self.served.push((id, planner)),
                Who::Command(at) => {
                    outcomes[at] = Some(Outcome::Acquired(Ok(Grant {
                        lease_ttl_ms: claimed.get(&(claim.seed_id, claim.n)).copied().unwrap_or_default(),
                        quiet_ms: self.now.saturating_sub(last_ms),
                        answers: claim.facts.answered_ms > 0,
                        identity: claim.identity,
                        seed_id: claim.seed_id,
                    })));
                }
            }
        }
        let used: BTreeSet<i64> = claimed.keys().map(|(seed_id, _)| *seed_id).collect();
        offer::refresh_used(connection, self.now, self.rules, &used.into_iter().collect::<Vec<_>>()).await
    }

    /// One choice for each worker. Those that get none stay in their queues, unless nothing was there for their
    /// key.
    fn choose(
        &mut self,
        waiting: &mut Waiting<'a>,
        shown: Snapshot<'a>,
        rest: &mut HashMap<&'a SeedKey, Rest>,
    ) -> Vec<Claim<'a>> {
        let Snapshot { mut seeds, facts, mut hosts } = shown;
        let mut claims: Vec<Claim<'a>> = Vec::new();
        // Instances whose source is chosen just now: their other ranks are to know it when they choose.
        let mut settled: HashSet<String> = HashSet::new();
        // Before any choice: a host that gets full by these choices has room again where their claims are lost.
        let mut misplaced: HashSet<&SeedKey> = HashSet::new();
        for (key, seeds) in &seeds {
            for seed in seeds {
                let obstacle = policy::obstacle(seed, &Wish::default(), &hosts);
                if matches!(obstacle, Some(Obstacle::Full | Obstacle::HostFull)) {
                    self.misplaced.push(seed.id);
                    misplaced.insert(key);
                }
            }
        }
        waiting.retain(|key, queue| {
            let seeds = seeds.get_mut(*key).map(Vec::as_mut_slice).unwrap_or_default();
            let before = claims.len();
            let mut left = VecDeque::new();
            let mut deferred = false;
            while let Some(worker) = queue.pop_front() {
                deferred |= worker.wish.instance_id.as_ref().is_some_and(|id| settled.contains(id));
                // Nobody overtakes who is put off to the next round.
                if deferred {
                    left.push_back(worker);
                    continue;
                }
                let taken = policy::take(self.rules.policy, seeds, &worker.wish, &mut hosts, self.now);
                let Some((at, n)) = taken else {
                    left.push_back(worker);
                    continue;
                };
                let seed = &seeds[at];
                if let (Some(id), Some(_)) = (&worker.wish.instance_id, &seed.instance_id)
                    && worker.wish.source_instance.is_none()
                {
                    settled.insert(id.clone());
                }
                claims.push(Claim {
                    worker,
                    key,
                    seed_id: seed.id,
                    n,
                    identity: seed.identity.clone(),
                    last_heartbeat_ms: seed.last_heartbeat_ms,
                    facts: facts.get(&seed.id).copied().unwrap_or_default(),
                    instance_id: seed.instance_id.clone(),
                    capped_host: seed.capped_host.clone(),
                });
            }
            let nobody = Wish::default();
            let room = seeds.iter().any(|seed| policy::obstacle(seed, &nobody, &hosts).is_none());
            rest.insert(*key, Rest { somebody: !left.is_empty(), room });
            let nothing = !deferred && before == claims.len() && !misplaced.contains(*key);
            // A place may be older than what another planner did on its host.
            let look_closer = nothing && self.rules.caps_hosts() && self.thorough.insert(key);
            if nothing && !look_closer {
                self.refused.extend(left.drain(..).filter_map(|worker| match worker.who {
                    Who::Command(at) => Some((at, *key)),
                    // It waits on.
                    Who::Waiter { .. } => None,
                }));
            }
            *queue = left;
            !queue.is_empty()
        });
        claims
    }
}

/// From behind, so that those who lost are first in their queues again, in their order.
fn give_back<'a>(claims: Vec<Claim<'a>>, waiting: &mut Waiting<'a>) {
    for claim in claims.into_iter().rev() {
        waiting.entry(claim.key).or_default().push_front(claim.worker);
    }
}

/// Locks hosts whose seeds share a bound, in order, before any seed. The locks are advisory: two names that hash
/// alike wait for each other, which costs time and nothing else.
pub(super) async fn lock_hosts(connection: &mut Connection, hosts: &BTreeSet<String>) -> Result<(), Stopped> {
    if hosts.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "SELECT pg_advisory_xact_lock(t.number) FROM (
             SELECT DISTINCT hashtextextended('rfork host ' || host, 0) AS number FROM unnest($1::text[]) AS u (host)
             ORDER BY 1) AS t",
    )
    .bind(hosts.iter().collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the chosen seeds in the order of their numbers, and leases their points. A point is taken only if its
/// seed, as it is after the wait for the lock, still offers it, and the lease in its row has ended. What is
/// written of each seed afterwards is under this lock.
macro_rules! claim {
    ($wait:literal) => {
        concat!(
            "WITH locked AS MATERIALIZED (
                 SELECT s.id, s.capacity, s.lease_ttl_ms,
                        s.removed OR s.drained OR s.suspect_until_ms > $1 AS out
                 FROM seeds s WHERE s.id = ANY($2) ORDER BY s.id FOR UPDATE ",
            $wait,
            ")
             INSERT INTO points (seed_id, n, lease_hash, busy_until_ms, granted_ms, requester)
             SELECT t.seed_id, t.n, t.lease_hash, $1 + locked.lease_ttl_ms, $1, t.requester
             FROM unnest($2::bigint[], $3::int[], $4::bytea[], $5::text[]) AS t (seed_id, n, lease_hash, requester)
             JOIN locked ON locked.id = t.seed_id
             WHERE NOT locked.out AND t.n < locked.capacity
             ORDER BY 1, 2
             ON CONFLICT (seed_id, n) DO UPDATE SET lease_hash = excluded.lease_hash,
                 busy_until_ms = excluded.busy_until_ms, granted_ms = excluded.granted_ms,
                 requester = excluded.requester
             WHERE points.busy_until_ms <= $1
             RETURNING seed_id, n, busy_until_ms - $1"
        )
    };
}

/// Gives the points that were taken, and how long their leases live.
async fn claim(
    connection: &mut Connection,
    now: i64,
    may_wait: bool,
    claims: &[Claim<'_>],
) -> Result<HashMap<(i64, u32), i64>, Stopped> {
    let query = if may_wait { claim!("") } else { claim!("NOWAIT") };
    let number = |claim: &Claim<'_>| i32::try_from(claim.n).unwrap_or(i32::MAX);
    let rows: Vec<(i64, i32, i64)> = sqlx::query_as(query)
        .bind(now)
        .bind(claims.iter().map(|claim| claim.seed_id).collect::<Vec<_>>())
        .bind(claims.iter().map(number).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| &claim.worker.lease[..]).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.worker.wish.requester.as_deref()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(|(seed_id, n, ttl)| Ok(((seed_id, small(n.into())?), ttl))).collect()
}

/// Says why those who got nothing got nothing.
async fn refuse(
    connection: &mut Connection,
    rounds: &Rounds<'_>,
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Stopped> {
    if rounds.refused.is_empty() {
        return Ok(());
    }
    let keys: BTreeSet<&SeedKey> = rounds.refused.iter().map(|(_, key)| *key).collect();
    let keys: Vec<&SeedKey> = keys.into_iter().collect();
    // One seed of the kind is enough, and the usual reason comes first.
    let suspect: Vec<Option<bool>> = sqlx::query_scalar(
        "SELECT CASE
             WHEN EXISTS (SELECT 1 FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
                          WHERE h.key_hash = wanted.key_hash AND h.last_ms > $2
                            AND NOT s.removed AND NOT s.drained AND s.suspect_until_ms <= $1) THEN FALSE
             WHEN EXISTS (SELECT 1 FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
                          WHERE h.key_hash = wanted.key_hash AND h.last_ms > $2
                            AND NOT s.removed AND NOT s.drained) THEN TRUE
         END
         FROM unnest($3::bytea[]) WITH ORDINALITY AS wanted (key_hash, at) ORDER BY wanted.at",
    )
    .bind(rounds.now)
    .bind(rounds.now.saturating_sub(rounds.rules.heartbeat_ttl_ms))
    .bind(keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let reasons: HashMap<&SeedKey, Refusal> = keys
        .into_iter()
        .zip(suspect)
        .map(|(key, suspect)| match suspect {
            None => (key, Refusal::UnknownKey),
            Some(false) => (key, Refusal::AllBusy),
            Some(true) => (key, Refusal::AllSuspect),
        })
        .collect();
    for (at, key) in &rounds.refused {
        let reason = reasons.get(*key).copied().unwrap_or(Refusal::UnknownKey);
        outcomes[*at] = Some(Outcome::Acquired(Err(reason)));
    }
    Ok(())
}
