//! Which acquisitions wait, and which are remembered for their repetitions.

use std::sync::Arc;

use super::resume::Twins;
use super::rows::RequestRow;
use super::tables::Tables;
use crate::store::Refusal;
use crate::store::commands::{Acquire, Acquired};

/// Whether one that found nothing waits instead of being refused.
pub(super) fn waits(command: &Acquire) -> bool {
    command.queue.as_ref().is_some_and(|queue| queue.wait_ms > 0)
}

/// Gives a row to one that was granted and may be repeated, or that found nothing and may wait.
pub(super) fn enqueue(
    tables: &mut Tables,
    now: i64,
    planner: &Arc<str>,
    (at, command): (usize, &Acquire),
    twins: &Twins,
    answer: &mut Acquired,
) {
    let Acquire { key, wish, lease, queue: Some(queue) } = command else { return };
    let waits = match answer {
        // One that was found in its row has one.
        Acquired::Granted(_) if queue.idempotency.is_some() && tables.request_for(lease).is_none() => false,
        Acquired::Refused(Refusal::UnknownKey | Refusal::AllBusy | Refusal::AllSuspect) if waits(command) => {
            true
        }
        _ => return,
    };
    if waits {
        if tables.room.bytes == 0 {
            *answer = Acquired::Refused(Refusal::NoRoom);
            return;
        }
        tables.lives(planner, now);
        *answer = Acquired::Queued(None);
    }
    tables.insert_request(RequestRow {
        id: 0,
        key: Arc::new(key.clone()),
        lease: *lease,
        idempotency: queue.idempotency.clone(),
        attempt: twins.attempt(at, queue),
        wish: Arc::new(wish.as_ref().clone()),
        planner: waits.then(|| planner.clone()),
        waits_until_ms: waits.then(|| now.saturating_add(queue.wait_ms)),
        changed_ms: now,
    });
}
