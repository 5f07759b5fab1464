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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rows::{RequestRow, SeedRow};
    use super::super::testing::{NOW, held, key, lease, rules, seed, tables};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::store::PLANNER_TTL_MS;

    fn asked(name: u8, request: u8) -> Idempotency {
        Idempotency { key: [name; 32], request: [request; 32] }
    }

    fn ask(number: u32, queue: Queue) -> Acquire {
        Acquire { key: key("k"), wish: Box::default(), lease: lease(number), queue: Some(Box::new(queue)) }
    }

    /// A request of the lease 1 that was asked for under the name 1.
    fn request(waits: bool, planner: Option<&str>) -> RequestRow {
        RequestRow {
            id: 7,
            key: Arc::new(key("k")),
            lease: lease(1),
            idempotency: Some(asked(1, 1)),
            attempt: 5,
            wish: Arc::default(),
            planner: planner.map(Into::into),
            waits_until_ms: waits.then_some(NOW + 9),
            changed_ms: NOW,
        }
    }

    fn scene(row: &RequestRow, ends_ms: i64, planner_lives: bool) -> Tables {
        let mut tables = tables(&[SeedRow { leases: vec![held(0, 1, ends_ms)], ..seed(1, 1) }]);
        tables.put_request(Arc::new(row.clone()));
        tables.put_planner(&"other".into(), NOW + if planner_lives { PLANNER_TTL_MS } else { 0 });
        tables
    }

    fn resumed(tables: &mut Tables, commands: &[Acquire]) -> (Vec<Option<Acquired>>, Twins) {
        let mut answers = vec![None; commands.len()];
        let rules = rules(Policy::Balanced);
        let twins = resume(tables, NOW, &rules, &"mine".into(), commands, &mut answers);
        (answers, twins)
    }

    proptest! {
        #[test]
        fn a_repetition_has_what_the_first_has_and_no_lease_that_is_over(
            waits in any::<bool>(), left_ms in -2i64..3, planner_lives in any::<bool>(), wait_ms in 0i64..2,
            request_is_same in any::<bool>(), attempt in 6i64..8,
        ) {
            let before = request(waits, Some("other"));
            let mut tables = scene(&before, NOW + left_ms, planner_lives);
            let idempotency = Some(asked(1, if request_is_same { 1 } else { 2 }));
            let queue = Queue { wait_ms, idempotency, attempt, again: None };
            let (answers, _) = resumed(&mut tables, &[ask(1, queue)]);
            let after = tables.request(7).unwrap().as_ref().clone();
            let place = RequestRow { attempt, planner: Some("mine".into()), waits_until_ms: Some(NOW + wait_ms.max(1)), ..before.clone() };
            match answers[0].clone().unwrap() {
                Acquired::Refused(Refusal::OtherRequest) => prop_assert!(!request_is_same && after == before),
                // Whoever does not wait leaves the place to whom does, as long as that is answered.
                Acquired::Refused(Refusal::AllBusy) => {
                    prop_assert!(waits && wait_ms == 0 && planner_lives && after == before);
                }
                Acquired::Queued(_) => prop_assert!(waits && after == place && (wait_ms > 0 || !planner_lives)),
                answer => {
                    prop_assert!(request_is_same && !waits);
                    prop_assert_eq!(&after, &RequestRow { attempt, planner: None, ..before });
                    match answer {
                        Acquired::Granted(grant) => prop_assert_eq!((grant.seed_id, grant.lease_ttl_ms), (2, left_ms)),
                        other => prop_assert_eq!(other, Acquired::Refused(Refusal::LeaseEnded)),
                    }
                    prop_assert_eq!(left_ms > 0, matches!(answers[0], Some(Acquired::Granted(_))));
                }
            }
        }

        #[test]
        fn who_has_a_silent_seed_has_its_place_again_while_it_may_wait(
            attempt in 4i64..6, left_ms in -2i64..3, wait_ms in 0i64..2,
        ) {
            let before = request(false, None);
            let mut tables = scene(&before, NOW + left_ms, true);
            let queue = Queue { wait_ms, idempotency: None, attempt: 8, again: Some(attempt) };
            let (answers, _) = resumed(&mut tables, &[ask(1, queue)]);
            let leased = tables.seed_with(&lease(1)).is_some();
            let after = tables.request(7).map(|row| row.as_ref().clone());
            match &answers[0] {
                // It was granted another one meanwhile.
                Some(Acquired::Granted(_)) => prop_assert!(left_ms > 0 && leased && after == Some(before)),
                Some(Acquired::Refused(refusal)) => {
                    prop_assert_eq!(*refusal, Refusal::LeaseEnded, "a later attempt has its place");
                    prop_assert!(attempt != 5 && !leased && after == Some(before));
                }
                Some(Acquired::Queued(_)) => {
                    let planner = Some("mine".into());
                    let place = RequestRow { attempt: 8, planner, waits_until_ms: Some(NOW + 1), ..before };
                    prop_assert!(attempt == 5 && wait_ms == 1 && !leased && after == Some(place));
                }
                None => prop_assert!(attempt == 5 && wait_ms == 0 && !leased && after.is_none(), "it is decided anew"),
            }
            prop_assert_eq!(left_ms > 0, leased);
        }

        #[test]
        fn of_the_same_request_in_one_batch_one_is_decided_and_the_last_attempt_has_its_place(
            asks in prop::collection::vec((0u8..3, 0u8..2), 0..8),
        ) {
            let commands: Vec<Acquire> = (0i64..).zip(&asks).map(|(at, (name, request))| {
                let idempotency = Some(asked(*name, *request));
                ask(u32::from(*name), Queue { idempotency, attempt: at, ..Queue::default() })
            }).collect();
            let (answers, twins) = resumed(&mut tables(&[]), &commands);
            for (at, (name, request)) in asks.iter().enumerate() {
                let first = asks.iter().position(|(other, _)| other == name).unwrap();
                let same = asks[first].1 == *request;
                let stands_for = twins.of_first.iter().find(|(twin, _)| *twin == at).map(|(_, first)| *first);
                prop_assert_eq!(stands_for, (same && first != at).then_some(first));
                prop_assert_eq!(&answers[at], &(!same).then_some(Acquired::Refused(Refusal::OtherRequest)));
                if first == at {
                    let last = asks.iter().rposition(|other| other == &asks[first]).unwrap();
                    let queue = commands[at].queue.as_ref().unwrap();
                    prop_assert_eq!(twins.attempt(at, queue), i64::try_from(last).unwrap());
                }
            }
        }
    }
}
