//! What becomes of an acquisition that repeats an earlier one: it has that one's lease, or its place.

use std::collections::HashMap;
use std::sync::Arc;

use super::end;
use super::tables::Tables;
use crate::store::commands::{Acquire, Acquired};
use crate::store::{Idempotency, LeaseHash, Queue, Refusal, Rules};

/// Which acquisitions of a batch repeat others of it.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Those, and for which they stand.
    pub(super) of_first: Vec<(usize, usize)>,
    /// The last attempt of each that others stand for.
    attempts: HashMap<usize, i64>,
}

impl Twins {
    /// The attempt that has the place of a request: the last.
    pub(super) fn attempt(&self, at: usize, queue: &Queue) -> i64 {
        self.attempts.get(&at).copied().unwrap_or(queue.attempt)
    }
}

/// Answers acquisitions that repeat one of an earlier batch; gives which of the others stand for which of this batch.
pub(super) fn resume(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    planner: &Arc<str>,
    commands: &[Acquire],
    answers: &mut [Option<Acquired>],
) -> Twins {
    let mut twins = Twins::default();
    let mut firsts: HashMap<[u8; 32], (usize, &Idempotency)> = HashMap::new();
    for (at, Acquire { lease, queue, .. }) in commands.iter().enumerate() {
        let Some(queue) = queue else { continue };
        if let Some(before) = queue.again {
            answers[at] = take_up_again(tables, now, rules, planner, (lease, before), queue);
        }
        let Some(asked) = &queue.idempotency else { continue };
        match firsts.get(&asked.key) {
            Some((first, known)) if known.request == asked.request => {
                twins.of_first.push((at, *first));
                twins.attempts.insert(*first, queue.attempt);
            }
            Some(_) => answers[at] = Some(Acquired::Refused(Refusal::OtherRequest)),
            None if answers[at].is_none() => drop(firsts.insert(asked.key, (at, asked))),
            None => {}
        }
    }
    for (at, asked) in firsts.into_values() {
        if let Some(queue) = &commands[at].queue {
            let attempt = twins.attempt(at, queue);
            answers[at] = repeat(tables, now, planner, asked, (queue.wait_ms, attempt));
        }
    }
    twins
}

/// What there is already under an idempotency key; `None` if nothing is.
fn repeat(
    tables: &mut Tables,
    now: i64,
    planner: &Arc<str>,
    asked: &Idempotency,
    (wait_ms, attempt): (i64, i64),
) -> Option<Acquired> {
    let row = tables.request_named(&asked.key)?.clone();
    if row.idempotency.as_ref().is_none_or(|known| known.request != asked.request) {
        return Some(Acquired::Refused(Refusal::OtherRequest));
    }
    if row.waits_until_ms.is_some() {
        if wait_ms <= 0 && tables.answers(row.planner.as_ref(), now) {
            // Nothing is free for it. The place stays with whoever waits there.
            return Some(Acquired::Refused(Refusal::AllBusy));
        }
        take_place(tables, now, planner, row.id, (wait_ms, attempt));
        return Some(Acquired::Queued(None));
    }
    // The lease is this attempt's now.
    tables.change_request(row.id, |row| (row.planner, row.attempt) = (None, attempt));
    Some(tables.grant(&row.lease, now).map_or(Acquired::Refused(Refusal::LeaseEnded), Acquired::Granted))
}

/// What becomes of a request whose seed does not answer: it has its place again, as long as it may still wait. `None`:
/// it is to be decided like a new one.
fn take_up_again(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    planner: &Arc<str>,
    (lease, before): (&LeaseHash, i64),
    queue: &Queue,
) -> Option<Acquired> {
    if let Some(grant) = tables.grant(lease, now) {
        return Some(Acquired::Granted(grant));
    }
    // Of a lease that has ended by itself a point may be left, and no two have the same lease.
    end::give_back(tables, now, rules, lease);
    let row = tables.request_for(lease)?.clone();
    if row.attempt != before {
        return Some(Acquired::Refused(Refusal::LeaseEnded));
    }
    if queue.wait_ms <= 0 {
        tables.delete_request(row.id);
        return None;
    }
    take_place(tables, now, planner, row.id, (queue.wait_ms, queue.attempt));
    Some(Acquired::Queued(None))
}

/// An attempt waits at a place in the queue: its answer is this planner's to give.
fn take_place(tables: &mut Tables, now: i64, planner: &Arc<str>, id: i64, (wait_ms, attempt): (i64, i64)) {
    tables.change_request(id, |row| {
        row.planner = Some(planner.clone());
        row.attempt = attempt;
        row.waits_until_ms = Some(now.saturating_add(wait_ms.max(1)));
    });
    tables.lives(planner, now);
}
