//! Acquisitions that wait, and those that may be repeated.
//!
//! A row that waits is served by any transaction that frees a point of its key, in the order of the rows. A row
//! that was served tells the planner whose client waits; [`collect`] takes it from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rfork_protocol::SeedKey;
use rfork_protocol::ids::hex;
use sqlx::{Row, SqliteConnection};

use super::super::history::End;
use super::super::twins::Twins;
use super::super::{
    Command, Grant, Idempotency, LeaseHash, Leaving, Left, MAX_CALLED, ONCE_MEMORY_MS, Outcome,
    PLANNER_TTL_MS, Queue, REQUEST_MEMORY_MS, Refusal, Rules, StoreError, Told, Woken, wish,
};
use super::allocate::{Waiting, Who, Worker};
use super::history::{self, Ending};
use super::json;
use crate::domain::policy::Wish;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows that one step ends.
const STEP_ROWS: u32 = 1_000;

/// Keys for which somebody may wait and of which a point may be free, because of these commands or because a point
/// of the seeds in `freed` was given back. Empty when nobody waits for anything.
pub(super) async fn touched(
    connection: &mut SqliteConnection,
    rules: &Rules,
    commands: &[Command],
    freed: &[i64],
) -> Result<BTreeSet<SeedKey>, StoreError> {
    let waits: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM requests WHERE waits_until_ms IS NOT NULL)")
            .fetch_one(&mut *connection)
            .await?;
    if !waits {
        return Ok(BTreeSet::new());
    }
    let mut keys: BTreeSet<SeedKey> = BTreeSet::new();
    let mut moved: Vec<String> = Vec::new();
    for command in commands {
        match command {
            Command::Acquire { key, .. } | Command::Serve { key } => drop(keys.insert(key.clone())),
            Command::Register { identity, key, .. } | Command::Beat { identity, key, .. } => {
                keys.insert(key.clone());
                // What it held before may have left room on its host.
                if rules.caps_hosts() {
                    moved.push(identity.to_string());
                }
            }
            Command::Release { identity, .. } => moved.push(identity.to_string()),
            _ => {}
        }
    }
    let of_seeds = if rules.caps_hosts() {
        "SELECT DISTINCT o.seed_key FROM seeds s
         JOIN seeds o ON o.id = s.id OR o.capped_host = s.capped_host
         WHERE s.identity IN (SELECT value FROM json_each(?1)) OR s.id IN (SELECT value FROM json_each(?2))"
    } else {
        "SELECT DISTINCT s.seed_key FROM seeds s
         WHERE s.identity IN (SELECT value FROM json_each(?1)) OR s.id IN (SELECT value FROM json_each(?2))"
    };
    let rows: Vec<Vec<u8>> =
        sqlx::query_scalar(of_seeds).bind(json(&moved)?).bind(json(freed)?).fetch_all(connection).await?;
    for row in rows {
        keys.insert(super::seed_key(row)?);
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

    /// Puts the next of each key into their queues. Those whose planner does not answer any more are passed over.
    pub(super) async fn call_up(
        &mut self,
        connection: &mut SqliteConnection,
        now: i64,
        waiting: &mut Waiting<'a>,
    ) -> Result<(), StoreError> {
        let mut rest = BTreeMap::new();
        for (key, after) in std::mem::take(&mut self.after) {
            let rows: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
                "SELECT r.id, r.lease_hash, r.wish FROM requests r INDEXED BY requests_waiting
                 CROSS JOIN planners p ON p.id = r.planner
                 WHERE r.seed_key = ?1 AND r.id > ?4 AND r.waits_until_ms IS NOT NULL AND r.waits_until_ms > ?2
                   AND p.alive_until_ms > ?2
                 ORDER BY r.id LIMIT ?3 + 0",
            )
            .bind(key.as_bytes())
            .bind(now)
            .bind(i64::try_from(MAX_CALLED).unwrap_or(i64::MAX))
            .bind(after)
            .fetch_all(&mut *connection)
            .await?;
            if let Some((last, ..)) = rows.last()
                && rows.len() == MAX_CALLED
            {
                rest.insert(key, *last);
            }
            for (id, lease, wish) in rows {
                let lease = super::lease_hash(lease)?;
                let wish = wish::decode(&wish).map_err(StoreError::Broken)?;
                waiting.entry(key).or_default().push_back(Worker { who: Who::Waiter(id), lease, wish });
            }
        }
        self.after = rest;
        Ok(())
    }

    /// Keeps the keys of which more are to be called up.
    pub(super) fn go_on(&mut self, more: impl Fn(&SeedKey) -> bool) {
        self.after.retain(|key, _| more(key));
    }
}

/// Marks rows as served.
pub(super) async fn served(
    connection: &mut SqliteConnection,
    now: i64,
    ids: &[i64],
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE requests SET waits_until_ms = NULL, changed_ms = ?1
         WHERE id IN (SELECT value FROM json_each(?2))",
    )
    .bind(now)
    .bind(json(ids)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Answers acquisitions that repeat an earlier one, of an earlier batch or of this one; gives which of the others
/// stand for which of this batch. The last attempt has the place.
pub(super) async fn resume(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    planner: &str,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<Twins, StoreError> {
    let mut twins = Twins::default();
    let mut first: HashMap<[u8; 32], (usize, &Idempotency)> = HashMap::new();
    for (at, command) in commands.iter().enumerate() {
        let Command::Acquire { lease, queue: Some(queue), .. } = command else { continue };
        if let Some(before) = queue.again {
            if let Some(grant) = grant(connection, now, lease).await? {
                outcomes[at] = Some(Outcome::Acquired(Ok(grant)));
            } else {
                // Of a lease that has ended by itself a point may be left, and no two have the same lease.
                give_back(connection, now, rules, lease).await?;
                outcomes[at] = take_up_again(connection, now, planner, (lease, before), queue).await?;
            }
        }
        let Queue { idempotency: Some(asked), attempt, .. } = queue.as_ref() else { continue };
        if let Some((twin, known)) = first.get(&asked.key) {
            if known.request == asked.request {
                twins.add(at, *twin, *attempt);
            } else {
                outcomes[at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest)));
            }
        } else if outcomes[at].is_none() {
            first.insert(asked.key, (at, asked));
        }
    }
    for (at, asked) in first.into_values() {
        let Command::Acquire { queue: Some(queue), .. } = &commands[at] else { continue };
        let row = sqlx::query(
            "SELECT id, request_hash, lease_hash, waits_until_ms IS NOT NULL AS waits,
                    EXISTS (SELECT 1 FROM planners p WHERE p.id = planner AND p.alive_until_ms > ?2) AS attended
             FROM requests WHERE idempotency = ?1",
        )
        .bind(&asked.key[..])
        .bind(now)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { continue };
        if row.try_get::<&[u8], _>("request_hash")? != asked.request {
            outcomes[at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest)));
        } else if row.try_get("waits")? && row.try_get("attended")? && queue.wait_ms <= 0 {
            // Nothing is free for it. The place stays with whoever waits there.
            outcomes[at] = Some(Outcome::Acquired(Err(Refusal::AllBusy)));
        } else if row.try_get("waits")? {
            let place = Place { id: row.try_get("id")?, planner, attempt: twins.attempt(at, queue) };
            place.take(connection, now, queue.wait_ms).await?;
            outcomes[at] = Some(Outcome::Queued(None));
        } else {
            let (id, lease): (i64, Vec<u8>) = (row.try_get("id")?, row.try_get("lease_hash")?);
            let granted = grant(connection, now, &lease).await?;
            // The lease is this attempt's now.
            sqlx::query("UPDATE requests SET planner = NULL, attempt = ?2 WHERE id = ?1")
                .bind(id)
                .bind(twins.attempt(at, queue))
                .execute(&mut *connection)
                .await?;
            outcomes[at] = Some(Outcome::Acquired(granted.ok_or(Refusal::LeaseEnded)));
        }
    }
    Ok(twins)
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
        connection: &mut SqliteConnection,
        now: i64,
        wait_ms: i64,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE requests SET planner = ?2, attempt = ?3, waits_until_ms = ?4 WHERE id = ?1")
            .bind(self.id)
            .bind(self.planner)
            .bind(self.attempt)
            .bind(now.saturating_add(wait_ms.max(1)))
            .execute(&mut *connection)
            .await?;
        alive(connection, now, self.planner).await
    }
}

/// What becomes of a request whose seed does not answer and whose lease is over: it has its place again, as long as
/// it may still wait. `None`: it is to be decided like a new one.
async fn take_up_again(
    connection: &mut SqliteConnection,
    now: i64,
    planner: &str,
    (lease, before): (&LeaseHash, i64),
    queue: &Queue,
) -> Result<Option<Outcome>, StoreError> {
    let row: Option<(i64, i64)> = sqlx::query_as("SELECT id, attempt FROM requests WHERE lease_hash = ?1")
        .bind(&lease[..])
        .fetch_optional(&mut *connection)
        .await?;
    Ok(match row {
        None => None,
        Some((_, attempt)) if attempt != before => Some(Outcome::Acquired(Err(Refusal::LeaseEnded))),
        Some((id, _)) if queue.wait_ms <= 0 => {
            delete(connection, id).await?;
            None
        }
        Some((id, _)) => {
            let place = Place { id, planner, attempt: queue.attempt };
            place.take(connection, now, queue.wait_ms).await?;
            Some(Outcome::Queued(None))
        }
    })
}

/// The live lease, as it would be granted now.
async fn grant(
    connection: &mut SqliteConnection,
    now: i64,
    lease: &[u8],
) -> Result<Option<Grant>, StoreError> {
    let row = sqlx::query(
        "SELECT s.id, s.host, s.port, s.rank, p.busy_until_ms, s.answered_ms, h.last_ms
         FROM points p JOIN seeds s ON s.id = p.seed_id JOIN heartbeats h ON h.seed_id = s.id
         WHERE p.lease_hash = ?1 AND p.busy_until_ms > ?2",
    )
    .bind(lease)
    .bind(now)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (answered_ms, last_ms): (i64, i64) = (row.try_get("answered_ms")?, row.try_get("last_ms")?);
    Ok(Some(Grant {
        identity: super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?,
        seed_id: row.try_get("id")?,
        lease_ttl_ms: row.try_get::<i64, _>("busy_until_ms")?.saturating_sub(now),
        quiet_ms: now.saturating_sub(last_ms.max(answered_ms)),
        answers: answered_ms > 0,
    }))
}

/// A request that becomes a row.
pub(super) struct NewRequest<'a> {
    pub(super) key: &'a SeedKey,
    pub(super) lease: &'a LeaseHash,
    pub(super) wish: &'a Wish,
    pub(super) queue: &'a Queue,
    pub(super) attempt: i64,
}

/// Writes a request that was granted at once and may be repeated, or, with `waits_for`, one that waits and is
/// answered by that planner.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    now: i64,
    request: &NewRequest<'_>,
    waits_for: Option<&str>,
) -> Result<(), StoreError> {
    let idempotency = request.queue.idempotency.as_ref();
    sqlx::query(
        "INSERT INTO requests (seed_key, lease_hash, idempotency, request_hash, wish, planner, waits_until_ms,
                               changed_ms, attempt)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .bind(request.key.as_bytes())
    .bind(&request.lease[..])
    .bind(idempotency.map(|known| &known.key[..]))
    .bind(idempotency.map(|known| &known.request[..]))
    .bind(wish::encode(request.wish))
    .bind(waits_for)
    .bind(waits_for.map(|_| now.saturating_add(request.queue.wait_ms)))
    .bind(now)
    .bind(request.attempt)
    .execute(&mut *connection)
    .await?;
    match waits_for {
        Some(planner) => alive(connection, now, planner).await,
        None => Ok(()),
    }
}

/// Gives those who were granted under an idempotency key, or refused though they may wait, their rows.
pub(super) async fn enqueue(
    connection: &mut SqliteConnection,
    now: i64,
    planner: &str,
    commands: &[Command],
    twins: &Twins,
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    for (at, (command, outcome)) in commands.iter().zip(outcomes).enumerate() {
        let Command::Acquire { key, lease, wish, queue: Some(queue) } = command else { continue };
        let request = NewRequest { key, lease, wish, queue, attempt: twins.attempt(at, queue) };
        match outcome {
            // Not one that was found in its row.
            Some(Outcome::Acquired(Ok(_)))
                if queue.idempotency.is_some() && !exists(connection, lease).await? =>
            {
                insert(connection, now, &request, None).await?;
            }
            Some(Outcome::Acquired(Err(Refusal::UnknownKey | Refusal::AllBusy | Refusal::AllSuspect)))
                if queue.wait_ms > 0 =>
            {
                insert(connection, now, &request, Some(planner)).await?;
                *outcome = Some(Outcome::Queued(None));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn exists(connection: &mut SqliteConnection, lease: &LeaseHash) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM requests WHERE lease_hash = ?1)")
        .bind(&lease[..])
        .fetch_one(connection)
        .await?)
}

/// Notes that a planner answers.
async fn alive(connection: &mut SqliteConnection, now: i64, planner: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO planners (id, alive_until_ms) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET alive_until_ms = max(alive_until_ms, excluded.alive_until_ms)",
    )
    .bind(planner)
    .bind(now.saturating_add(PLANNER_TTL_MS))
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends waits, each for the attempt that has the place; gives the seeds of which a point was given back.
pub(super) async fn leave(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    planner: &str,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<Vec<i64>, StoreError> {
    let mut freed = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Leave { lease, attempt, why } = command else { continue };
        let row = sqlx::query(
            "SELECT id, idempotency IS NOT NULL AS repeatable, waits_until_ms IS NOT NULL AS waits,
                    attempt = ?2 AND (planner IS NULL OR planner = ?3) AS mine
             FROM requests WHERE lease_hash = ?1",
        )
        .bind(&lease[..])
        .bind(attempt)
        .bind(planner)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else {
            *outcome = Some(Outcome::Left(Left::Nothing));
            continue;
        };
        if !row.try_get::<bool, _>("mine")? {
            *outcome = Some(Outcome::Left(Left::Superseded));
            continue;
        }
        let id: i64 = row.try_get("id")?;
        let (kept, waits): (bool, bool) = (row.try_get("repeatable")?, row.try_get("waits")?);
        let left = if waits {
            Left::Nothing
        } else {
            grant(connection, now, lease).await?.map_or(Left::Over, |grant| Left::Granted { grant, kept })
        };
        let over = matches!(left, Left::Over) && *why == Leaving::Void;
        *outcome = Some(Outcome::Left(left));
        if kept && !over && !(waits && *why == Leaving::TimedOut) {
            // A lease that may be asked for again, or is taken now; or a place for a client that comes back.
            sqlx::query("UPDATE requests SET planner = NULL WHERE id = ?1")
                .bind(id)
                .execute(&mut *connection)
                .await?;
            continue;
        }
        delete(connection, id).await?;
        if *why == Leaving::Gone && !waits {
            freed.extend(give_back(connection, now, rules, lease).await?);
        }
    }
    Ok(freed)
}

/// Ends a lease that nobody took, be it over by itself; gives its seed.
async fn give_back(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    lease: &[u8],
) -> Result<Option<i64>, StoreError> {
    let point: Option<(i64, u32)> = sqlx::query_as("SELECT seed_id, n FROM points WHERE lease_hash = ?1")
        .bind(lease)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(point) = point else { return Ok(None) };
    history::end_leases(connection, now, rules, &[Ending::by(point, End::GivenBack)]).await?;
    Ok(Some(point.0))
}

/// Ends the waits of the process that had the file before: nobody answers them. What may be repeated keeps its
/// place, or its lease; a lease that nobody may have heard of lives for its time.
pub(super) async fn abandon(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM requests WHERE idempotency IS NULL").execute(&mut *connection).await?;
    sqlx::query("UPDATE requests SET planner = NULL").execute(&mut *connection).await?;
    sqlx::query("DELETE FROM planners").execute(connection).await?;
    Ok(())
}

async fn delete(connection: &mut SqliteConnection, id: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM requests WHERE id = ?1").bind(id).execute(connection).await?;
    Ok(())
}

/// Gives the waiters of this planner that were served, but for those that were `told`: they are nobody's any more.
pub(super) async fn collect(
    connection: &mut SqliteConnection,
    now: i64,
    planner: &str,
    told: &[Told],
) -> Result<Vec<Woken>, StoreError> {
    if !told.is_empty() {
        let told: Vec<_> = told.iter().map(|(lease, attempt)| (hex(&lease[..]), attempt)).collect();
        sqlx::query(
            "UPDATE requests SET planner = NULL WHERE planner = ?1 AND waits_until_ms IS NULL
               AND (lease_hash, attempt) IN (SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?2))",
        )
        .bind(planner)
        .bind(json(&told)?)
        .execute(&mut *connection)
        .await?;
    }
    alive(connection, now, planner).await?;
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
        "SELECT lease_hash, attempt FROM requests INDEXED BY requests_to_answer
         WHERE planner = ?1 AND waits_until_ms IS NULL",
    )
    .bind(planner)
    .fetch_all(&mut *connection)
    .await?;
    let mut woken = Vec::with_capacity(rows.len());
    for (lease, attempt) in rows {
        let lease = super::lease_hash(lease)?;
        woken.push(Woken { lease, attempt, grant: grant(connection, now, &lease).await? });
    }
    Ok(woken)
}

/// Says, for those who wait, when the next lease or suspicion of their key ends by itself.
pub(super) async fn next_ends(
    connection: &mut SqliteConnection,
    now: i64,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut known: BTreeMap<&SeedKey, Option<i64>> = BTreeMap::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let ((Command::Serve { key }, _) | (Command::Acquire { key, .. }, Some(Outcome::Queued(_)))) =
            (command, &outcome)
        else {
            continue;
        };
        let ends_ms = if let Some(ends_ms) = known.get(key) {
            *ends_ms
        } else {
            let ends_ms: Option<i64> = sqlx::query_scalar(
                "SELECT min(next_end_ms) FROM seeds INDEXED BY seeds_by_next_end
                     WHERE seed_key = ?1 AND next_end_ms > ?2",
            )
            .bind(key.as_bytes())
            .bind(now)
            .fetch_one(&mut *connection)
            .await?;
            known.insert(key, ends_ms);
            ends_ms
        };
        let wait_ms = ends_ms.map(|ends_ms| ends_ms.saturating_sub(now).max(0));
        *outcome = Some(match command {
            Command::Serve { .. } => Outcome::Served(wait_ms),
            _ => Outcome::Queued(wait_ms),
        });
    }
    Ok(())
}

/// Forgets a bounded number of requests and planners that are long over; gives how many.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
) -> Result<u64, StoreError> {
    let over = sqlx::query(
        "DELETE FROM requests WHERE id IN (
             SELECT id FROM requests r WHERE changed_ms <= ?1 AND (waits_until_ms IS NULL OR waits_until_ms <= ?2)
               -- A repetition finds its lease as long as that is renewed.
               AND NOT EXISTS (SELECT 1 FROM points p WHERE p.lease_hash = r.lease_hash)
             LIMIT ?3 + 0)",
    )
    .bind(now.saturating_sub(rules.request_memory_ms()))
    .bind(now)
    .bind(STEP_ROWS)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let once = sqlx::query(
        "DELETE FROM requests WHERE id IN (
             SELECT id FROM requests INDEXED BY requests_once
             WHERE idempotency IS NULL AND changed_ms <= ?1 AND waits_until_ms IS NULL AND planner IS NULL
             LIMIT ?2 + 0)",
    )
    .bind(now.saturating_sub(ONCE_MEMORY_MS))
    .bind(STEP_ROWS)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    // One that waited in vain, without anybody who would have ended it.
    let stale = sqlx::query(
        "DELETE FROM requests WHERE id IN (
             SELECT id FROM requests WHERE waits_until_ms IS NOT NULL AND waits_until_ms <= ?1 LIMIT ?2 + 0)",
    )
    .bind(now.saturating_sub(PLANNER_TTL_MS))
    .bind(STEP_ROWS)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    sqlx::query("DELETE FROM planners WHERE alive_until_ms <= ?1")
        .bind(now.saturating_sub(REQUEST_MEMORY_MS))
        .execute(connection)
        .await?;
    Ok(over + once + stale)
}
