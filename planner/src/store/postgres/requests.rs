//! Acquisitions that wait, and those that may be repeated.
//!
//! A row that waits is served by any transaction that frees a point of its key, in the order of the rows; the
//! planner whose client waits is told by NOTIFY, and takes it with [`Collect`].
//!
//! Rows are locked after seeds. Whoever holds one waits for nothing but further rows, in their order: a seed that
//! somebody has makes the transaction begin again, with that seed first.
//!
//! A planner that frees a point while another one queues a waiter may not see it, nor be seen. So both look once
//! more after their commit ([`Waiting`], then [`Command::Serve`]): whoever commits later sees both.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use sqlx::{PgConnection, Row};

use super::super::{
    Command, Grant, Idempotency, Leaving, MAX_SERVED, Outcome, PLANNER_TTL_MS, Queue, REQUEST_MEMORY_MS,
    Refusal, Woken, wish,
};
use super::allocate::{Waiting, Who, Worker};
use super::batch::{Chosen, HeldSeeds};
use super::history::freeing;
use super::transaction::{Stopped, Work, is_locked};
use super::{PostgresStore, identity, key_hash, lease_hash, offer};

/// The most rows that one step ends.
const STEP_ROWS: i64 = 500;

/// Where planners are told that their waiters were served; the payload names the planner.
pub(super) const CHANNEL: &str = "rfork_planner";

/// Keys of which a point may be free because of these commands.
pub(super) fn touched(commands: &[Command], held: &HeldSeeds<'_>) -> BTreeSet<SeedKey> {
    let mut keys: BTreeSet<SeedKey> = BTreeSet::new();
    for command in commands {
        match command {
            Command::Register { key, .. } | Command::Acquire { key, .. } | Command::Serve { key } => {
                keys.insert(key.clone());
            }
            Command::Release { identity, .. } => {
                let seed = held.get(&identity.to_string()).and_then(|held| held.seed.as_ref());
                keys.extend(seed.map(|seed| seed.key.clone()));
            }
            _ => {}
        }
    }
    keys
}

/// Locks those who wait for these keys and puts them into their queues, first come first, a bounded number of
/// each. Those whose planner does not answer any more are passed over. Gives whether there were any.
pub(super) async fn call_up<'a>(
    connection: &mut PgConnection,
    now: i64,
    keys: &'a BTreeSet<SeedKey>,
    waiting: &mut Waiting<'a>,
) -> Result<bool, Stopped> {
    if keys.is_empty() {
        return Ok(false);
    }
    let keys: Vec<&SeedKey> = keys.iter().collect();
    let rows = sqlx::query(
        "WITH called AS (
             SELECT wanted.at, page.id FROM unnest($1::bytea[]) WITH ORDINALITY AS wanted (key_hash, at)
             CROSS JOIN LATERAL (
                 SELECT r.id FROM requests r JOIN planners p ON p.id = r.planner
                 WHERE r.key_hash = wanted.key_hash AND r.waits_until_ms IS NOT NULL AND r.waits_until_ms > $2
                   AND p.alive_until_ms > $2
                 ORDER BY r.id LIMIT $3) AS page)
         SELECT called.at, r.id, r.lease_hash, r.wish, r.planner FROM requests r JOIN called ON called.id = r.id
         WHERE r.waits_until_ms IS NOT NULL AND r.planner IS NOT NULL
         ORDER BY r.id FOR UPDATE OF r",
    )
    .bind(keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
    .bind(now)
    .bind(MAX_SERVED)
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let at = usize::try_from(row.try_get::<i64, _>("at")? - 1).unwrap_or(usize::MAX);
        let key = *keys.get(at).ok_or_else(|| Stopped::Broken("a key that nobody wants".into()))?;
        let who = Who::Waiter { id: row.try_get("id")?, planner: row.try_get("planner")? };
        let wish = wish::decode(row.try_get("wish")?).map_err(Stopped::Broken)?;
        let worker = Worker { who, lease: lease_hash(row.try_get("lease_hash")?)?, wish };
        waiting.entry(key).or_default().push_back(worker);
    }
    Ok(!rows.is_empty())
}

/// Marks rows as served, and tells other planners of theirs; gives whether some were of this one.
pub(super) async fn served(
    connection: &mut PgConnection,
    store: &PostgresStore,
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

/// Answers acquisitions that repeat an earlier one, of an earlier batch or of this one; gives which of the others
/// stand for which of this batch.
pub(super) async fn resume(
    connection: &mut PgConnection,
    now: i64,
    planner: &str,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<Vec<(usize, usize)>, Stopped> {
    let mut first: BTreeMap<[u8; 32], (usize, &Idempotency, i64)> = BTreeMap::new();
    let mut twins = Vec::new();
    for (at, command) in commands.iter().enumerate() {
        let Command::Acquire { queue: Some(queue), .. } = command else { continue };
        let Queue { wait_ms, idempotency: Some(asked) } = queue.as_ref() else { continue };
        match first.get(&asked.key) {
            Some((twin, known, _)) if known.request == asked.request => twins.push((at, *twin)),
            Some(_) => outcomes[at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest))),
            None => drop(first.insert(asked.key, (at, asked, *wait_ms))),
        }
    }
    if first.is_empty() {
        return Ok(twins);
    }
    let rows = sqlx::query(
        "SELECT id, idempotency, request_hash, lease_hash, waits_until_ms FROM requests
         WHERE idempotency = ANY($1) ORDER BY id FOR UPDATE",
    )
    .bind(first.keys().map(|key| key.to_vec()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let key = lease_hash(row.try_get("idempotency")?)?;
        let Some((at, asked, wait_ms)) = first.get(&key) else { continue };
        if row.try_get::<&[u8], _>("request_hash")? != asked.request {
            outcomes[*at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest)));
        } else if row.try_get::<Option<i64>, _>("waits_until_ms")?.is_some() {
            // Its place in the queue; its answer is now this planner's to give.
            sqlx::query("UPDATE requests SET planner = $2, waits_until_ms = $3 WHERE id = $1")
                .bind(row.try_get::<i64, _>("id")?)
                .bind(planner)
                .bind(now.saturating_add((*wait_ms).max(1)))
                .execute(&mut *connection)
                .await?;
            alive(connection, now, planner).await?;
            outcomes[*at] = Some(Outcome::Queued(None));
        } else {
            let grant = grant(connection, now, row.try_get("lease_hash")?).await?;
            outcomes[*at] = Some(Outcome::Acquired(grant.ok_or(Refusal::LeaseEnded)));
        }
    }
    Ok(twins)
}

/// The live lease, as it would be granted now.
async fn grant(connection: &mut PgConnection, now: i64, lease: &[u8]) -> Result<Option<Grant>, Stopped> {
    let row = sqlx::query(
        "SELECT s.host, s.port, s.rank, p.busy_until_ms, s.answered_ms, h.last_ms
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
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Stopped> {
    let mut ordered: Vec<usize> = (0..commands.len()).collect();
    let order = |at: &usize| match &commands[*at] {
        Command::Acquire { queue: Some(queue), .. } => queue.idempotency.as_ref().map(|known| known.key),
        _ => None,
    };
    // Stable: those without a key stay in the order in which they came.
    ordered.sort_by_key(order);
    let mut queued = false;
    for at in ordered {
        let Command::Acquire { key, lease, wish, queue: Some(queue) } = &commands[at] else { continue };
        let waits =
            match &outcomes[at] {
                Some(Outcome::Acquired(Ok(_))) if queue.idempotency.is_some() => false,
                Some(Outcome::Acquired(Err(
                    Refusal::UnknownKey | Refusal::AllBusy | Refusal::AllSuspect,
                ))) if queue.wait_ms > 0 => true,
                _ => continue,
            };
        let idempotency = queue.idempotency.as_ref();
        let inserted = sqlx::query(
            "INSERT INTO requests (seed_key, key_hash, lease_hash, idempotency, request_hash, wish, planner,
                                   waits_until_ms, changed_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
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
        .execute(&mut *connection)
        .await?;
        if waits && inserted.rows_affected() == 1 {
            outcomes[at] = Some(Outcome::Queued(None));
            queued = true;
        } else if inserted.rows_affected() == 0 && !is_of_row(connection, lease, idempotency).await? {
            return Err(Stopped::Again);
        }
    }
    if queued { alive(connection, now, planner).await } else { Ok(()) }
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

/// Ends waits; gives the keys of which a point was given back.
pub(super) async fn leave(
    connection: &mut PgConnection,
    now: i64,
    store: &PostgresStore,
    commands: &[Command],
    chosen: &mut Chosen,
    outcomes: &mut [Option<Outcome>],
) -> Result<BTreeSet<SeedKey>, Stopped> {
    let mut leaving: HashMap<[u8; 32], (usize, Leaving)> = HashMap::new();
    for (at, command) in commands.iter().enumerate() {
        if let Command::Leave { lease, why } = command {
            outcomes[at] = Some(Outcome::Left(None));
            leaving.insert(*lease, (at, *why));
        }
    }
    let mut freed = BTreeSet::new();
    if leaving.is_empty() {
        return Ok(freed);
    }
    let rows = sqlx::query(
        "SELECT id, seed_key, lease_hash, idempotency IS NOT NULL AS repeatable, waits_until_ms IS NOT NULL AS waits
         FROM requests WHERE lease_hash = ANY($1) ORDER BY id FOR UPDATE",
    )
    .bind(leaving.keys().map(|lease| lease.to_vec()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let id: i64 = row.try_get("id")?;
        let lease = lease_hash(row.try_get("lease_hash")?)?;
        let Some((at, why)) = leaving.get(&lease).copied() else { continue };
        let (repeatable, waits): (bool, bool) = (row.try_get("repeatable")?, row.try_get("waits")?);
        if !waits {
            outcomes[at] = Some(Outcome::Left(grant(connection, now, &lease).await?));
        }
        let keeps = repeatable && why != Leaving::Void && !(waits && why == Leaving::TimedOut);
        if keeps {
            // A lease that may be asked for again, or is taken now; or a place for a client that comes back.
            sqlx::query("UPDATE requests SET planner = NULL WHERE id = $1")
                .bind(id)
                .execute(&mut *connection)
                .await?;
            continue;
        }
        sqlx::query("DELETE FROM requests WHERE id = $1").bind(id).execute(&mut *connection).await?;
        if why == Leaving::Gone
            && !waits
            && let Some(seed_id) = give_back(connection, now, store, chosen, &lease).await?
        {
            offer::refresh(connection, now, &store.rules, &[seed_id]).await?;
            freed.insert(super::seed_key(row.try_get("seed_key")?)?);
        }
    }
    Ok(freed)
}

/// Ends a lease that nobody took; gives its seed.
async fn give_back(
    connection: &mut PgConnection,
    now: i64,
    store: &PostgresStore,
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
            "SELECT min(next_end_ms) FROM seeds WHERE key_hash = $1 AND next_end_ms IS NOT NULL",
        )
        .bind(&key_hash(key)[..])
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
pub(super) struct Collect<'a>(pub(super) &'a PostgresStore);

#[async_trait]
impl Work for Collect<'_> {
    type Done = Vec<Woken>;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Vec<Woken>, Stopped> {
        let now = self.0.now(connection).await?;
        alive(connection, now, &self.0.planner).await?;
        let leases: Vec<Vec<u8>> = sqlx::query_scalar(
            "UPDATE requests SET planner = NULL WHERE id IN (
                 SELECT id FROM requests WHERE planner = $1 AND waits_until_ms IS NULL ORDER BY id FOR UPDATE)
             RETURNING lease_hash",
        )
        .bind(&self.0.planner)
        .fetch_all(&mut *connection)
        .await?;
        let mut woken = Vec::with_capacity(leases.len());
        for lease in leases {
            let grant = grant(connection, now, &lease).await?;
            woken.push(Woken { lease: lease_hash(lease)?, grant });
        }
        Ok(woken)
    }
}

/// Which of these keys somebody waits for.
pub(super) struct WaitedFor<'a> {
    pub(super) keys: &'a BTreeSet<SeedKey>,
}

#[async_trait]
impl Work for WaitedFor<'_> {
    type Done = Vec<SeedKey>;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Vec<SeedKey>, Stopped> {
        let keys: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT DISTINCT seed_key FROM requests WHERE key_hash = ANY($1) AND waits_until_ms IS NOT NULL",
        )
        .bind(self.keys.iter().map(|key| key_hash(key).to_vec()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        keys.into_iter().map(super::seed_key).collect()
    }
}

/// Forgets a bounded number of requests and planners that are long over; gives how many requests.
pub(super) struct Forget<'a>(pub(super) &'a PostgresStore);

#[async_trait]
impl Work for Forget<'_> {
    type Done = u64;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<u64, Stopped> {
        let now = self.0.now(connection).await?;
        // Also those that waited in vain, without anybody who would have ended it.
        let forgotten = sqlx::query(
            "DELETE FROM requests WHERE id IN (
                 SELECT id FROM requests
                 WHERE (waits_until_ms IS NULL AND changed_ms <= $1) OR waits_until_ms <= $2
                 ORDER BY id LIMIT $3 FOR UPDATE)",
        )
        .bind(now.saturating_sub(self.0.rules.request_memory_ms()))
        .bind(now.saturating_sub(PLANNER_TTL_MS))
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM planners WHERE alive_until_ms <= $1")
            .bind(now.saturating_sub(REQUEST_MEMORY_MS))
            .execute(connection)
            .await?;
        Ok(forgotten.rows_affected())
    }
}
