//! What a sweep ends: leases whose time has passed, seeds that are gone, requests that are long over. Whatever it ends
//! has ended for every decision already.

use super::end;
use super::remember;
use super::rows::{RequestRow, SeedRow};
use super::tables::Tables;
use crate::store::history::{End, EventKind, Happened};
use crate::store::{DRAIN_MEMORY_MS, INSTANCE_MEMORY_MS, ONCE_MEMORY_MS, PLANNER_TTL_MS, Rules};

/// Leases and seeds that were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// Leases whose time had passed.
    pub leases: u64,
    /// Seeds that were gone.
    pub seeds: u64,
}

/// Whether there is something to end of a seed.
pub fn is_due(row: &SeedRow, now: i64, rules: &Rules) -> bool {
    row.leases.iter().any(|lease| lease.is_over(now)) || (row.leases.is_empty() && is_over(row, now, rules))
}

/// Whether a seed without leases is to be forgotten. One that an operator took out is remembered for long: a pause of
/// its heartbeats is not to bring it back.
fn is_over(row: &SeedRow, now: i64, rules: &Rules) -> bool {
    let memory_ms = match &row.loading {
        _ if row.drained => DRAIN_MEMORY_MS,
        // As long as it may have a lease, which whoever pauses renews when it goes on.
        Some(_) => row.terms.lease_ttl_ms,
        None => 0,
    };
    row.removed || (row.is_silent(now, rules) && row.heard_ms <= now.saturating_sub(memory_ms))
}

/// Ends what is over of all seeds that were put.
pub fn sweep(tables: &mut Tables, now: i64, rules: &Rules) -> Ended {
    let mut ended = Ended::default();
    let due: Vec<i64> = tables.seeds().filter(|row| is_due(row, now, rules)).map(|row| row.id).collect();
    for id in due {
        ended.leases += end::leases(tables, now, rules, id, |lease| lease.is_over(now), &End::Expired.into());
        let Some(row) =
            tables.seed(id).filter(|row| row.leases.is_empty() && is_over(row, now, rules)).cloned()
        else {
            continue;
        };
        if !row.removed {
            remember::event(tables, now, rules, Happened::to(&row.identity, &row.key, EventKind::Silent));
        }
        tables.delete_seed(id);
        ended.seeds += 1;
    }
    ended
}

/// Whether a request is to be forgotten; `is_leased`: some point has its lease.
pub fn is_forgotten(row: &RequestRow, now: i64, rules: &Rules, is_leased: bool) -> bool {
    let since = |memory_ms: i64| now.saturating_sub(memory_ms);
    match row.waits_until_ms {
        // It waited in vain, without anybody who would have ended it.
        Some(until_ms) => until_ms <= since(PLANNER_TTL_MS),
        // Nobody can repeat it, and it is known by now whether its seed answers.
        None if row.idempotency.is_none()
            && row.planner.is_none()
            && row.changed_ms <= since(ONCE_MEMORY_MS) =>
        {
            true
        }
        // A repetition finds its lease as long as that is renewed.
        None => row.changed_ms <= since(rules.request_memory_ms()) && !is_leased,
    }
}

/// Forgets the requests that were put and are long over; gives how many.
pub fn forget(tables: &mut Tables, now: i64, rules: &Rules) -> u64 {
    let is_over = |row: &&std::sync::Arc<RequestRow>| {
        is_forgotten(row, now, rules, tables.seed_with(&row.lease).is_some())
    };
    let over: Vec<i64> = tables.requests().filter(is_over).map(|row| row.id).collect();
    for id in &over {
        tables.delete_request(*id);
    }
    over.len() as u64
}

/// Whether it is to be forgotten which instance served another one, if that was last used then.
pub fn is_unused(used_ms: i64, now: i64) -> bool {
    used_ms <= now.saturating_sub(INSTANCE_MEMORY_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seeds, lease, rules, seed, tables};
    use super::*;
    use crate::domain::policy::Policy;

    #[test]
    fn a_seed_that_was_taken_out_is_remembered_while_it_is_silent() {
        let rules = rules(Policy::Balanced);
        let silent = SeedRow { heard_ms: NOW - rules.heartbeat_ttl_ms, ..seed(1, 1) };
        assert!(is_due(&silent, NOW, &rules));
        let drained = SeedRow { drained: true, ..silent };
        assert!(!is_due(&drained, NOW, &rules));
        assert!(is_due(&drained, drained.heard_ms + DRAIN_MEMORY_MS, &rules));
    }

    #[test]
    fn requests_are_forgotten_when_nobody_can_ask_for_them() {
        let rules = rules(Policy::Balanced);
        let asked = crate::store::Idempotency { key: [1; 32], request: [1; 32] };
        let row = RequestRow {
            id: 1,
            key: std::sync::Arc::new(super::super::testing::key("k")),
            lease: lease(1),
            idempotency: Some(asked),
            attempt: 1,
            wish: std::sync::Arc::default(),
            planner: None,
            waits_until_ms: None,
            changed_ms: NOW,
        };
        let memory_ms = rules.request_memory_ms();
        assert!(!is_forgotten(&row, NOW + memory_ms - 1, &rules, false));
        assert!(is_forgotten(&row, NOW + memory_ms, &rules, false));
        assert!(!is_forgotten(&row, NOW + memory_ms, &rules, true), "its lease is renewed");
        let once = RequestRow { idempotency: None, ..row.clone() };
        assert!(!is_forgotten(&once, NOW + ONCE_MEMORY_MS - 1, &rules, true));
        assert!(is_forgotten(&once, NOW + ONCE_MEMORY_MS, &rules, true));
        let untold = RequestRow { planner: Some("planner".into()), ..once };
        assert!(!is_forgotten(&untold, NOW + ONCE_MEMORY_MS, &rules, true), "it is to be told");
        let waits = RequestRow { waits_until_ms: Some(NOW), ..row };
        assert!(!is_forgotten(&waits, NOW + PLANNER_TTL_MS - 1, &rules, false));
        assert!(is_forgotten(&waits, NOW + PLANNER_TTL_MS, &rules, false));
    }

    #[test]
    fn which_instance_served_another_is_forgotten_after_its_time() {
        assert!(!is_unused(NOW, NOW + INSTANCE_MEMORY_MS - 1));
        assert!(is_unused(NOW, NOW + INSTANCE_MEMORY_MS));
    }

    proptest! {
        #[test]
        fn what_lives_is_left_and_twice_is_once(seeds in any_seeds()) {
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&seeds);
            let ended = sweep(&mut tables, NOW, &rules);
            let mut expected = Ended::default();
            for before in &seeds {
                let live: Vec<_> = before.leases.iter().filter(|lease| lease.lives(NOW)).cloned().collect();
                expected.leases += (before.leases.len() - live.len()) as u64;
                if let Some(row) = tables.seed(before.id) {
                    prop_assert_eq!(&row.leases, &live);
                    prop_assert!(!is_due(row, NOW, &rules));
                } else {
                    expected.seeds += 1;
                    prop_assert!(live.is_empty() && !before.is_shown(NOW, &rules));
                }
            }
            prop_assert_eq!(ended, expected);
            prop_assert_eq!(sweep(&mut tables, NOW, &rules), Ended::default());
        }
    }
}
