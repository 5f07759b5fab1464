//! Which acquisitions wait, and which are remembered for their repetitions.

use std::sync::Arc;

use super::resume::Twins;
use super::rows::RequestRow;
use super::tables::Tables;
use crate::store::commands::{Acquire, Acquired};
use crate::store::{Refusal, Rules};

/// Whether one that found nothing waits instead of being refused.
pub(super) fn waits(command: &Acquire) -> bool {
    command.queue.as_ref().is_some_and(|queue| queue.wait_ms > 0)
}

/// Gives a row to one that was granted and may be repeated, or that found nothing and may wait.
pub(super) fn enqueue(
    tables: &mut Tables,
    (now, rules): (i64, &Rules),
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
        if let Err(no_room) = tables.room_for_request(key, wish, rules) {
            *answer = Acquired::Refused(Refusal::NoRoom(no_room));
            return;
        }
        tables.lives(planner, now);
        *answer = Acquired::Queued(None);
    }
    let mut wish = wish.as_ref().clone();
    wish.asked_whether_lost(false);
    tables.insert_request(RequestRow {
        id: 0,
        key: Arc::new(key.clone()),
        lease: *lease,
        idempotency: queue.idempotency.clone(),
        attempt: twins.attempt(at, queue),
        wish: Arc::new(wish),
        planner: waits.then(|| planner.clone()),
        waits_until_ms: waits.then(|| now.saturating_add(queue.wait_ms)),
        changed_ms: now,
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_requests, key, lease, rules, tables};
    use super::*;
    use crate::decide::quota::Quota;
    use crate::domain::policy::Policy;
    use crate::store::commands::NoRoom;
    use crate::store::{Grant, Idempotency, Queue};

    fn any_answer() -> impl Strategy<Value = Acquired> {
        let identity = super::super::testing::identity(0);
        let grant =
            Grant { identity, seed_id: 1, lease_ttl_ms: 1, quiet_ms: 0, answers: false, source: None };
        prop_oneof![
            Just(Acquired::Granted(grant)),
            Just(Acquired::Queued(None)),
            prop::sample::select(vec![
                Refusal::UnknownKey,
                Refusal::AllBusy,
                Refusal::AllSuspect,
                Refusal::LeaseEnded,
                Refusal::OtherRequest,
            ])
            .prop_map(Acquired::Refused),
        ]
    }

    proptest! {
        #[test]
        fn who_may_wait_waits_and_who_may_be_repeated_is_remembered(
            requests in any_requests(), number in 0u32..6, wait_ms in 0i64..2, name in prop::option::of(0u8..2),
            has_room in prop::bool::weighted(0.8), decided in any_answer(),
        ) {
            let mut tables = tables(&[]);
            for row in &requests {
                tables.put_request(Arc::new(row.clone()));
            }
            tables.room.requests = usize::from(has_room);
            let idempotency = name.map(|name| Idempotency { key: [name + 100; 32], request: [1; 32] });
            let queue = Queue { wait_ms, idempotency: idempotency.clone(), attempt: 9, again: None };
            let command = Acquire { key: key("k"), wish: Box::default(), lease: lease(number), queue: Some(Box::new(queue)) };
            let mut answer = decided.clone();
            enqueue(&mut tables, (NOW, &rules(Policy::Balanced)), &"mine".into(), (0, &command), &Twins::default(), &mut answer);
            let has_row = requests.iter().any(|row| row.lease == lease(number));
            let new: Vec<_> = tables.requests().filter(|row| row.id >= 1_000).cloned().collect();
            let nothing_there = matches!(
                decided,
                Acquired::Refused(Refusal::UnknownKey | Refusal::AllBusy | Refusal::AllSuspect)
            );
            if nothing_there && wait_ms > 0 && !has_room {
                prop_assert_eq!((answer, new.len()), (Acquired::Refused(Refusal::NoRoom(NoRoom(Quota::Requests))), 0));
            } else if nothing_there && wait_ms > 0 {
                prop_assert_eq!(answer, Acquired::Queued(None));
                prop_assert_eq!(new.len(), 1);
                prop_assert_eq!((new[0].waits_until_ms, new[0].planner.as_deref()), (Some(NOW + wait_ms), Some("mine")));
                prop_assert!(tables.answers(new[0].planner.as_ref(), NOW), "its planner answers");
            } else {
                let is_granted = matches!(decided, Acquired::Granted(_));
                prop_assert_eq!(&answer, &decided);
                prop_assert_eq!(new.len(), usize::from(is_granted && name.is_some() && !has_row));
                prop_assert!(new.iter().all(|row| (&row.waits_until_ms, &row.planner) == (&None, &None)));
            }
            for row in &new {
                let told = (row.lease, row.attempt, row.changed_ms, &row.idempotency);
                prop_assert_eq!(told, (lease(number), 9, NOW, &idempotency));
            }
            prop_assert_eq!(tables.requests().count(), requests.len() + new.len());
        }
    }
}
