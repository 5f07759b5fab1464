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

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::super::{
    Command, Grant, Idempotency, LeaseHash, Leaving, Left, MAX_CALLED, ONCE_MEMORY_MS, Outcome,
    PLANNER_TTL_MS, Queue, REQUEST_MEMORY_MS, Refusal, Rules, Told, Woken, wish,
};
use super::allocate::{Waiting, Who, Worker};
use super::batch::{Chosen, HeldSeeds};
use super::history::freeing;
use super::transaction::{Stopped, Work, is_locked};
use super::{Database, identity, key_hash, lease_hash, offer};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows that one step ends.
const STEP_ROWS: i64 = 500;

/// Where planners are told that their waiters were served; the payload names the planner.
pub(super) const CHANNEL: &str = "rfork_planner";

/// What a transaction has of requests.
#[derive(Default)]
pub(super) struct Locks {
    /// Whether it holds a row, so that it waits for no lock any more.
    pub(super) held: bool,
    /// Whether somebody waits for this planner's answer because of it.
    answers: bool,
}

/// Locks, in their order, all rows that these commands name, and those that an earlier attempt of the transaction found
/// in other hands.
pub(super) async fn lock(
    connection: &mut PgConnection,
    commands: &[Command],
    chosen: &Chosen,
) -> Result<Locks, Stopped> {
    let mut locks = Locks::default();
    let (mut leases, mut keys): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
    for command in commands {
        match command {
            Command::Leave { lease, .. } => leases.push(lease.to_vec()),
            Command::Acquire { lease, queue: Some(queue), .. } => {
                leases.extend(queue.again.map(|_| lease.to_vec()));
                keys.extend(queue.idempotency.as_ref().map(|known| known.key.to_vec()));
            }
            _ => {}
        }
    }
    if leases.is_empty() && keys.is_empty() && chosen.requests.is_empty() {
        return Ok(locks);
    }
    let rows = sqlx::query(
        "SELECT id FROM requests WHERE lease_hash = ANY($1) OR idempotency = ANY($2) OR id = ANY($3)
         ORDER BY id FOR UPDATE",
    )
    .bind(leases)
    .bind(keys)
    .bind(chosen.requests.iter().copied().collect::<Vec<_>>())
    .fetch_all(connection)
    .await;
    locks.took(rows)?;
    Ok(locks)
}

impl Locks {
    /// The statement to lock with: the one that waits, once.
    fn pick(&self, [wait, no_wait]: [&'static str; 2]) -> &'static str {
        if self.held { no_wait } else { wait }
    }

    /// Rows that such a statement has locked.
    fn took(&mut self, rows: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<PgRow>, Stopped> {
        match rows {
            Err(error) if self.held && is_locked(&error) => Err(Stopped::Again),
            rows => {
                let rows = rows?;
                self.held |= !rows.is_empty();
                Ok(rows)
            }
        }
    }

    /// Says that this planner answers, if somebody waits for it. Nothing is locked after that.
    pub(super) async fn finish(
        &self,
        connection: &mut PgConnection,
        now: i64,
        planner: &str,
    ) -> Result<(), Stopped> {
        if self.answers { alive(connection, now, planner).await } else { Ok(()) }
    }
}

/// A statement that locks rows, and one that does not wait for them.
macro_rules! locking {
    ($select:literal) => {
        [concat!($select, " FOR UPDATE"), concat!($select, " FOR UPDATE NOWAIT")]
    };
}

/// Keys of which a point may be free because of these commands, or because a point of the seeds in `freed` was given
/// back.
pub(super) async fn touched(
    connection: &mut PgConnection,
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

/// Who waits for some keys, called up in their order, a bounded number of each at a time.
pub(super) struct Calls<'a> {
    /// By key: the last that was called up.
    after: BTreeMap<&'a SeedKey, i64>,
}

impl<'a> Calls<'a> {
    pub(super) fn new(keys: &'a BTreeSet<SeedKey>) -> Self {
        Self { after: keys.iter().map(|key| (key, 0)).collect() }
    }

    /// Locks the next of each key and puts them into their queues. Those whose planner does not answer any more are
    /// passed over.
    pub(super) async fn call_up(
        &mut self,
        connection: &mut PgConnection,
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
        connection: &mut PgConnection,
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
    pub(super) fn go_on(&mut self, more: impl Fn(&SeedKey) -> bool) {
        self.after.retain(|key, _| more(key));
    }
}

/// Marks rows as served, and tells other planners of theirs; gives whether some were of this one.
pub(super) async fn served(
    connection: &mut PgConnection,
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

/// A row, as a batch finds it and goes on to change it.
struct Found {
    id: i64,
    lease: LeaseHash,
    request: Option<Vec<u8>>,
    waits: bool,
    attempt: i64,
}

/// Answers acquisitions that repeat an earlier one, of an earlier batch or of this one; gives which of the others
/// stand for which of this batch. The last attempt has the place.
pub(super) async fn resume(
    connection: &mut PgConnection,
    now: i64,
    store: &Database,
    commands: &[Command],
    (locks, chosen): (&mut Locks, &mut Chosen),
    outcomes: &mut [Option<Outcome>],
) -> Result<Twins, Stopped> {
    let (planner, mut twins) = (store.planner.as_str(), Twins::default());
    if !commands.iter().filter_map(queue).any(Queue::may_have_a_row) {
        return Ok(twins);
    }
    let queues = || commands.iter().filter_map(|command| Some((lease_of(command)?, queue(command)?)));
    let again = queues().filter(|(_, queue)| queue.again.is_some());
    let rows = sqlx::query(locks.pick(locking!(
        "SELECT id, idempotency, request_hash, lease_hash, waits_until_ms IS NOT NULL AS waits, attempt FROM requests
         WHERE idempotency = ANY($1) OR lease_hash = ANY($2) ORDER BY id"
    )))
    .bind(queues().filter_map(|(_, queue)| Some(queue.idempotency.as_ref()?.key.to_vec())).collect::<Vec<_>>())
    .bind(again.map(|(lease, _)| lease.to_vec()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await;
    let (mut found, mut by_key): (HashMap<LeaseHash, Found>, HashMap<Vec<u8>, LeaseHash>) =
        Default::default();
    for row in locks.took(rows)? {
        let lease = lease_hash(row.try_get("lease_hash")?)?;
        if let Some(key) = row.try_get::<Option<Vec<u8>>, _>("idempotency")? {
            by_key.insert(key, lease);
        }
        let request = row.try_get("request_hash")?;
        let (id, waits) = (row.try_get("id")?, row.try_get("waits")?);
        found.insert(lease, Found { id, lease, request, waits, attempt: row.try_get("attempt")? });
    }
    let mut first: BTreeMap<[u8; 32], (usize, &Idempotency)> = BTreeMap::new();
    for (at, command) in commands.iter().enumerate() {
        let (Some(lease), Some(queue)) = (lease_of(command), queue(command)) else { continue };
        if let Some(before) = queue.again {
            outcomes[at] = if let Some(grant) = grant(connection, now, lease).await? {
                Some(Outcome::Acquired(Ok(grant)))
            } else {
                // Of a lease that has ended by itself a point may be left, and no two have the same lease.
                // Whoever holds its seed waits for no other.
                locks.held |= give_back(connection, now, store, chosen, lease).await?.is_some();
                let place = (lease, before, &mut found);
                take_up_again(connection, now, planner, place, queue, locks).await?
            };
        }
        let Queue { idempotency: Some(asked), attempt, .. } = queue else { continue };
        match first.get(&asked.key) {
            Some((twin, known)) if known.request == asked.request => {
                twins.of_first.push((at, *twin));
                twins.attempts.insert(*twin, *attempt);
            }
            Some(_) => outcomes[at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest))),
            None if outcomes[at].is_none() => drop(first.insert(asked.key, (at, asked))),
            None => {}
        }
    }
    for (at, asked) in first.into_values() {
        let row = by_key.get(&asked.key[..]).and_then(|lease| found.get(lease));
        let (Some(row), Some(queue)) = (row, queue(&commands[at])) else { continue };
        let attempt = twins.attempt(at, queue);
        outcomes[at] = Some(if row.request.as_deref() != Some(&asked.request[..]) {
            Outcome::Acquired(Err(Refusal::OtherRequest))
        } else if row.waits {
            let place = Place { id: row.id, planner, attempt };
            place.take(connection, now, queue.wait_ms, locks).await?
        } else {
            let granted = grant(connection, now, &row.lease).await?;
            // The lease is this attempt's now.
            sqlx::query("UPDATE requests SET planner = NULL, attempt = $2 WHERE id = $1")
                .bind(row.id)
                .bind(attempt)
                .execute(&mut *connection)
                .await?;
            Outcome::Acquired(granted.ok_or(Refusal::LeaseEnded))
        });
    }
    Ok(twins)
}

/// What becomes of a request whose seed does not answer and whose lease is over: it has its place again, as long as
/// it may still wait. `None`: it is to be decided like a new one.
async fn take_up_again(
    connection: &mut PgConnection,
    now: i64,
    planner: &str,
    (lease, before, found): (&LeaseHash, i64, &mut HashMap<LeaseHash, Found>),
    queue: &Queue,
    locks: &mut Locks,
) -> Result<Option<Outcome>, Stopped> {
    Ok(match found.get_mut(lease) {
        None => None,
        Some(row) if row.attempt != before => Some(Outcome::Acquired(Err(Refusal::LeaseEnded))),
        Some(row) if queue.wait_ms <= 0 => {
            delete(connection, row.id).await?;
            found.remove(lease);
            None
        }
        Some(row) => {
            (row.attempt, row.waits) = (queue.attempt, true);
            let place = Place { id: row.id, planner, attempt: queue.attempt };
            Some(place.take(connection, now, queue.wait_ms, locks).await?)
        }
    })
}

/// The lease that an acquisition asks for.
fn lease_of(command: &Command) -> Option<&LeaseHash> {
    match command {
        Command::Acquire { lease, .. } => Some(lease),
        _ => None,
    }
}

fn queue(command: &Command) -> Option<&Queue> {
    match command {
        Command::Acquire { queue, .. } => queue.as_deref(),
        _ => None,
    }
}

/// Acquisitions of one batch that are the same request.
#[derive(Default)]
pub(super) struct Twins {
    /// Those, and for which they stand.
    pub(super) of_first: Vec<(usize, usize)>,
    /// The last attempt of each that others stand for.
    attempts: HashMap<usize, i64>,
}

impl Twins {
    fn attempt(&self, at: usize, queue: &Queue) -> i64 {
        self.attempts.get(&at).copied().unwrap_or(queue.attempt)
    }
}

/// A row in the queue, and who waits there now: its answer is this planner's to give.
struct Place<'a> {
    id: i64,
    planner: &'a str,
    attempt: i64,
}

impl Place<'_> {
    async fn take(
        &self,
        connection: &mut PgConnection,
        now: i64,
        wait_ms: i64,
        locks: &mut Locks,
    ) -> Result<Outcome, Stopped> {
        sqlx::query("UPDATE requests SET planner = $2, attempt = $3, waits_until_ms = $4 WHERE id = $1")
            .bind(self.id)
            .bind(self.planner)
            .bind(self.attempt)
            .bind(now.saturating_add(wait_ms.max(1)))
            .execute(connection)
            .await?;
        locks.answers = true;
        Ok(Outcome::Queued(None))
    }
}

async fn delete(connection: &mut PgConnection, id: i64) -> Result<(), Stopped> {
    sqlx::query("DELETE FROM requests WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}

/// The live lease, as it would be granted now.
async fn grant(connection: &mut PgConnection, now: i64, lease: &[u8]) -> Result<Option<Grant>, Stopped> {
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
    connection: &mut PgConnection,
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
        && sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM requests WHERE idempotency = ANY($1))")
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
    connection: &mut PgConnection,
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
async fn alive(connection: &mut PgConnection, now: i64, planner: &str) -> Result<(), Stopped> {
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

/// What the end of waits gave back.
#[derive(Default)]
pub(super) struct Freed {
    keys: BTreeSet<SeedKey>,
    seeds: Vec<i64>,
}

/// Ends waits, each for the attempt that has the place.
pub(super) async fn leave(
    connection: &mut PgConnection,
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
                freed.keys.insert(super::seed_key(row.try_get("seed_key")?)?);
                freed.seeds.push(seed_id);
            }
        }
    }
    Ok(freed)
}

/// Ends a lease that nobody took, be it over by itself; gives its seed.
async fn give_back(
    connection: &mut PgConnection,
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

/// Says, for those who wait, when the next lease or suspicion of their key ends by itself.
pub(super) async fn next_ends(
    connection: &mut PgConnection,
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

/// The work of [`super::super::Store::collect`].
pub(super) struct Collect<'a> {
    pub(super) store: &'a Database,
    pub(super) told: &'a [Told],
}

#[async_trait]
impl Work for Collect<'_> {
    type Done = Vec<Woken>;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Vec<Woken>, Stopped> {
        let (now, planner) = (self.store.now(connection).await?, &self.store.planner);
        if !self.told.is_empty() {
            sqlx::query(
                "UPDATE requests SET planner = NULL WHERE id IN (
                     SELECT r.id FROM unnest($2::bytea[], $3::bigint[]) AS told (lease_hash, attempt)
                     JOIN requests r ON r.lease_hash = told.lease_hash AND r.attempt = told.attempt
                     WHERE r.planner = $1 AND r.waits_until_ms IS NULL ORDER BY r.id FOR UPDATE OF r)",
            )
            .bind(planner)
            .bind(self.told.iter().map(|(lease, _)| lease.to_vec()).collect::<Vec<_>>())
            .bind(self.told.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT lease_hash, attempt FROM requests WHERE planner = $1 AND waits_until_ms IS NULL ORDER BY id",
        )
        .bind(planner)
        .fetch_all(&mut *connection)
        .await?;
        let mut woken = Vec::with_capacity(rows.len());
        for (lease, attempt) in rows {
            let grant = grant(connection, now, &lease).await?;
            woken.push(Woken { lease: lease_hash(lease)?, attempt, grant });
        }
        alive(connection, now, planner).await?;
        Ok(woken)
    }
}

/// For which of these keys somebody waits, and a seed may have a free point.
pub(super) struct WaitedFor<'a> {
    pub(super) store: &'a Database,
    pub(super) keys: &'a BTreeSet<SeedKey>,
}

#[async_trait]
impl Work for WaitedFor<'_> {
    type Done = Vec<SeedKey>;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Vec<SeedKey>, Stopped> {
        let keys: Vec<&SeedKey> = self.keys.iter().collect();
        // Seeds of a host that shares a bound may have one whatever their place says.
        let places: Vec<i64> = sqlx::query_scalar(
            "SELECT wanted.at FROM unnest($1::bytea[]) WITH ORDINALITY AS wanted (key_hash, at)
             WHERE EXISTS (SELECT 1 FROM requests r
                           WHERE r.key_hash = wanted.key_hash AND r.waits_until_ms IS NOT NULL)
               AND ($2 OR EXISTS (SELECT 1 FROM seeds s WHERE s.key_hash = wanted.key_hash
                                    AND s.offer_rank IS NOT NULL)
                       OR EXISTS (SELECT 1 FROM seeds s WHERE s.key_hash = wanted.key_hash AND s.next_end_ms <=
                              coalesce($3, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)))
             ORDER BY wanted.at",
        )
        .bind(keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
        .bind(self.store.rules.caps_hosts())
        .bind(self.store.clock.fixed_ms())
        .fetch_all(connection)
        .await?;
        // Counted from 1.
        let key =
            |at: i64| usize::try_from(at - 1).ok().and_then(|at| keys.get(at)).map(|key| (*key).clone());
        Ok(places.into_iter().filter_map(key).collect())
    }
}

/// Forgets a bounded number of requests and planners that are long over; gives how many requests.
pub(super) struct Forget<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Forget<'_> {
    type Done = u64;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<u64, Stopped> {
        let now = self.0.now(connection).await?;
        // A repetition finds its lease as long as that is renewed.
        let over = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests r WHERE waits_until_ms IS NULL AND changed_ms <= $1
                   AND NOT EXISTS (SELECT 1 FROM points p WHERE p.lease_hash = r.lease_hash)
                 ORDER BY changed_ms LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(now.saturating_sub(self.0.rules.request_memory_ms()))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        let once = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests WHERE idempotency IS NULL AND changed_ms <= $1 AND waits_until_ms IS NULL
                   AND planner IS NULL
                 ORDER BY changed_ms LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(now.saturating_sub(ONCE_MEMORY_MS))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        // Those that waited in vain, without anybody who would have ended it.
        let stale = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests WHERE waits_until_ms <= $1
                 ORDER BY waits_until_ms LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(now.saturating_sub(PLANNER_TTL_MS))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM planners WHERE alive_until_ms <= $1")
            .bind(now.saturating_sub(REQUEST_MEMORY_MS))
            .execute(connection)
            .await?;
        Ok(over.rows_affected() + once.rows_affected() + stale.rows_affected())
    }
}
