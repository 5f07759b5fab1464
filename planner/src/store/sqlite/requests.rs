//! Acquisitions that wait, and those that may be repeated.
//!
//! A row that waits is served by any transaction that frees a point of its key, in the order of the rows. A row
//! that was served tells the planner whose client waits; [`collect`] takes it from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rfork_protocol::SeedKey;
use sqlx::{Row, SqliteConnection};

use super::super::history::End;
use super::super::{
    Command, Grant, Idempotency, LeaseHash, Leaving, MAX_SERVED, Outcome, PLANNER_TTL_MS, Queue,
    REQUEST_MEMORY_MS, Refusal, Rules, StoreError, Woken, wish,
};
use super::allocate::{Waiting, Who, Worker};
use super::history::{self, Ending};
use super::json;
use crate::domain::policy::Wish;

/// The most rows that one step ends.
const STEP_ROWS: u32 = 1_000;

/// Keys for which somebody may wait and of which a point may be free, because of these commands. Empty when
/// nobody waits for anything.
pub(super) async fn touched(
    connection: &mut SqliteConnection,
    commands: &[Command],
) -> Result<BTreeSet<SeedKey>, StoreError> {
    let waits: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM requests WHERE waits_until_ms IS NOT NULL)")
            .fetch_one(&mut *connection)
            .await?;
    if !waits {
        return Ok(BTreeSet::new());
    }
    let mut keys: BTreeSet<SeedKey> = BTreeSet::new();
    let mut released: Vec<String> = Vec::new();
    for command in commands {
        match command {
            Command::Register { key, .. } | Command::Acquire { key, .. } | Command::Serve { key } => {
                keys.insert(key.clone());
            }
            Command::Release { identity, .. } => released.push(identity.to_string()),
            _ => {}
        }
    }
    let rows: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT DISTINCT seed_key FROM seeds WHERE identity IN (SELECT value FROM json_each(?1))",
    )
    .bind(json(&released)?)
    .fetch_all(connection)
    .await?;
    for row in rows {
        keys.insert(super::seed_key(row)?);
    }
    Ok(keys)
}

/// Puts those who wait for these keys into their queues, first come first, a bounded number of each. Those whose
/// planner does not answer any more are passed over.
pub(super) async fn call_up<'a>(
    connection: &mut SqliteConnection,
    now: i64,
    keys: &'a BTreeSet<SeedKey>,
    waiting: &mut Waiting<'a>,
) -> Result<(), StoreError> {
    for key in keys {
        let rows: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
            "SELECT r.id, r.lease_hash, r.wish FROM requests r INDEXED BY requests_waiting
             CROSS JOIN planners p ON p.id = r.planner
             WHERE r.seed_key = ?1 AND r.waits_until_ms IS NOT NULL AND r.waits_until_ms > ?2
               AND p.alive_until_ms > ?2
             ORDER BY r.id LIMIT ?3 + 0",
        )
        .bind(key.as_bytes())
        .bind(now)
        .bind(MAX_SERVED)
        .fetch_all(&mut *connection)
        .await?;
        for (id, lease, wish) in rows {
            let lease =
                lease.try_into().map_err(|_| StoreError::Broken("a lease hash is not 32 bytes".into()))?;
            let wish = wish::decode(&wish).map_err(StoreError::Broken)?;
            waiting.entry(key).or_default().push_back(Worker { who: Who::Waiter(id), lease, wish });
        }
    }
    Ok(())
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
/// stand for which of this batch.
pub(super) async fn resume(
    connection: &mut SqliteConnection,
    now: i64,
    planner: &str,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<Vec<(usize, usize)>, StoreError> {
    let mut first: HashMap<[u8; 32], (usize, &Idempotency)> = HashMap::new();
    let mut twins = Vec::new();
    for (at, command) in commands.iter().enumerate() {
        let Command::Acquire { queue: Some(queue), .. } = command else { continue };
        let Queue { wait_ms, idempotency: Some(asked) } = queue.as_ref() else { continue };
        if let Some((twin, known)) = first.get(&asked.key) {
            if known.request == asked.request {
                twins.push((at, *twin));
            } else {
                outcomes[at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest)));
            }
            continue;
        }
        first.insert(asked.key, (at, asked));
        let row = sqlx::query(
            "SELECT id, request_hash, lease_hash, waits_until_ms FROM requests WHERE idempotency = ?1",
        )
        .bind(&asked.key[..])
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { continue };
        if row.try_get::<&[u8], _>("request_hash")? != asked.request {
            outcomes[at] = Some(Outcome::Acquired(Err(Refusal::OtherRequest)));
            continue;
        }
        let id: i64 = row.try_get("id")?;
        if row.try_get::<Option<i64>, _>("waits_until_ms")?.is_some() {
            // Its place in the queue; its answer is now this planner's to give.
            sqlx::query("UPDATE requests SET planner = ?2, waits_until_ms = ?3 WHERE id = ?1")
                .bind(id)
                .bind(planner)
                .bind(now.saturating_add((*wait_ms).max(1)))
                .execute(&mut *connection)
                .await?;
            alive(connection, now, planner).await?;
            outcomes[at] = Some(Outcome::Queued(None));
            continue;
        }
        let lease: Vec<u8> = row.try_get("lease_hash")?;
        outcomes[at] =
            Some(Outcome::Acquired(grant(connection, now, &lease).await?.ok_or(Refusal::LeaseEnded)));
    }
    Ok(twins)
}

/// The live lease, as it would be granted now.
async fn grant(
    connection: &mut SqliteConnection,
    now: i64,
    lease: &[u8],
) -> Result<Option<Grant>, StoreError> {
    let row = sqlx::query(
        "SELECT s.host, s.port, s.rank, p.busy_until_ms, s.answered_ms, h.last_ms
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
                               changed_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )
    .bind(request.key.as_bytes())
    .bind(&request.lease[..])
    .bind(idempotency.map(|known| &known.key[..]))
    .bind(idempotency.map(|known| &known.request[..]))
    .bind(wish::encode(request.wish))
    .bind(waits_for)
    .bind(waits_for.map(|_| now.saturating_add(request.queue.wait_ms)))
    .bind(now)
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
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Acquire { key, lease, wish, queue: Some(queue) } = command else { continue };
        let request = NewRequest { key, lease, wish, queue };
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

/// The keys of seeds.
pub(super) async fn keys_of(
    connection: &mut SqliteConnection,
    seed_ids: &[i64],
) -> Result<BTreeSet<SeedKey>, StoreError> {
    let rows: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT DISTINCT seed_key FROM seeds WHERE id IN (SELECT value FROM json_each(?1))",
    )
    .bind(json(seed_ids)?)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(super::seed_key).collect()
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

/// Ends waits.
pub(super) async fn leave(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<Vec<i64>, StoreError> {
    let mut freed = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Leave { lease, why } = command else { continue };
        let row = sqlx::query("SELECT id, idempotency, waits_until_ms FROM requests WHERE lease_hash = ?1")
            .bind(&lease[..])
            .fetch_optional(&mut *connection)
            .await?;
        *outcome = Some(Outcome::Left(None));
        let Some(row) = row else { continue };
        let id: i64 = row.try_get("id")?;
        let repeatable = row.try_get::<Option<&[u8]>, _>("idempotency")?.is_some();
        let waits = row.try_get::<Option<i64>, _>("waits_until_ms")?.is_some();
        if !waits {
            *outcome = Some(Outcome::Left(grant(connection, now, &lease[..]).await?));
        }
        match why {
            Leaving::Void => delete(connection, id).await?,
            Leaving::TimedOut if waits => delete(connection, id).await?,
            Leaving::Gone if !repeatable => {
                delete(connection, id).await?;
                let points: Vec<(i64, u32)> =
                    sqlx::query_as("SELECT seed_id, n FROM points WHERE lease_hash = ?1")
                        .bind(&lease[..])
                        .fetch_all(&mut *connection)
                        .await?;
                let given_back = |point: &(i64, u32)| Ending::by(*point, End::GivenBack);
                let endings: Vec<_> = points.iter().map(given_back).collect();
                history::end_leases(connection, now, rules, &endings).await?;
                freed.extend(points.into_iter().map(|(seed_id, _)| seed_id));
            }
            // A lease that may be asked for again, or is taken now.
            Leaving::TimedOut | Leaving::Gone if repeatable => {
                sqlx::query("UPDATE requests SET planner = NULL WHERE id = ?1")
                    .bind(id)
                    .execute(&mut *connection)
                    .await?;
            }
            Leaving::TimedOut | Leaving::Gone => delete(connection, id).await?,
        }
    }
    Ok(freed)
}

async fn delete(connection: &mut SqliteConnection, id: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM requests WHERE id = ?1").bind(id).execute(connection).await?;
    Ok(())
}

/// Takes the waiters of this planner that were served.
pub(super) async fn collect(
    connection: &mut SqliteConnection,
    now: i64,
    planner: &str,
) -> Result<Vec<Woken>, StoreError> {
    alive(connection, now, planner).await?;
    let leases: Vec<Vec<u8>> = sqlx::query_scalar(
        "UPDATE requests SET planner = NULL WHERE planner = ?1 AND waits_until_ms IS NULL RETURNING lease_hash",
    )
    .bind(planner)
    .fetch_all(&mut *connection)
    .await?;
    let mut woken = Vec::with_capacity(leases.len());
    for lease in leases {
        let grant = grant(connection, now, &lease).await?;
        let lease =
            lease.try_into().map_err(|_| StoreError::Broken("a lease hash is not 32 bytes".into()))?;
        woken.push(Woken { lease, grant });
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
                "SELECT min(next_end_ms) FROM seeds INDEXED BY seeds_by_key_end
                     WHERE seed_key = ?1 AND next_end_ms IS NOT NULL",
            )
            .bind(key.as_bytes())
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
             SELECT id FROM requests WHERE changed_ms <= ?1 AND (waits_until_ms IS NULL OR waits_until_ms <= ?2)
             LIMIT ?3 + 0)",
    )
    .bind(now.saturating_sub(rules.request_memory_ms()))
    .bind(now)
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
    Ok(over + stale)
}
