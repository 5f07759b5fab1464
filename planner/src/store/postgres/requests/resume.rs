//! Requests that are repeated, or ask once more.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;

use super::super::super::twins::Twins;
use super::super::super::{Command, Idempotency, LeaseHash, Outcome, Queue, Refusal};
use super::super::batch::Chosen;
use super::super::session::Connection;
use super::super::transaction::Stopped;
use super::super::{Database, lease_hash};
use super::leave::give_back;
use super::{Locks, delete, grant};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// A row, as a batch finds it and goes on to change it.
struct Found {
    id: i64,
    lease: LeaseHash,
    request: Option<Vec<u8>>,
    waits: bool,
    /// Whether a planner that lives answers it.
    attended: bool,
    attempt: i64,
}

/// Answers acquisitions that repeat an earlier one, of an earlier batch or of this one; gives which of the others
/// stand for which of this batch. The last attempt has the place.
pub(in super::super) async fn resume(
    connection: &mut Connection,
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
        "SELECT id, idempotency, request_hash, lease_hash, waits_until_ms IS NOT NULL AS waits, attempt,
                (planner = $3 OR EXISTS (SELECT 1 FROM planners p
                                         WHERE p.id = requests.planner AND p.alive_until_ms > $4)) IS TRUE AS attended
         FROM requests
         WHERE idempotency = ANY($1) OR lease_hash = ANY($2) ORDER BY id"
    )))
    .bind(
        queues().filter_map(|(_, queue)| Some(queue.idempotency.as_ref()?.key.to_vec())).collect::<Vec<_>>(),
    )
    .bind(again.map(|(lease, _)| lease.to_vec()).collect::<Vec<_>>())
    .bind(planner)
    .bind(now)
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
        let (id, waits, attended) = (row.try_get("id")?, row.try_get("waits")?, row.try_get("attended")?);
        let attempt = row.try_get("attempt")?;
        found.insert(lease, Found { id, lease, request, waits, attended, attempt });
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
                twins.add(at, *twin, *attempt);
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
        } else if row.waits && row.attended && queue.wait_ms <= 0 {
            // Nothing is free for it. The place stays with whoever waits there.
            Outcome::Acquired(Err(Refusal::AllBusy))
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
    connection: &mut Connection,
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
            (row.attempt, row.waits, row.attended) = (queue.attempt, true, true);
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

/// A row in the queue, and who waits there now: its answer is this planner's to give.
struct Place<'a> {
    id: i64,
    planner: &'a str,
    attempt: i64,
}

impl Place<'_> {
    async fn take(
        &self,
        connection: &mut Connection,
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
