//! The rule of time: whatever the clock does, a lease never has more left than its time to live, and a heartbeat is
//! never from the future; and who is alive, or holds something, or waits, goes on.

use super::waiting::{attempt, queue};
use super::*;
use crate::store::{DRAIN_MEMORY_MS, Heard};

/// By how much clocks are set, in milliseconds: seconds, an hour, a year, either way.
const STEPS_MS: [i64; 8] =
    [2_000, -2_000, 15_000, -15_000, 3_600_000, -3_600_000, 365 * 24 * 3_600_000, -365 * 24 * 3_600_000];

/// With one seed, and one lease on it if `lease` names one.
async fn bench_with<H: Home>(lease: Option<u32>) -> Bench<H> {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    if let Some(lease) = lease {
        assert!(bench.acquire("k", lease).await.is_some());
    }
    bench
}

pub(crate) async fn a_lease_has_no_more_left_than_its_time_to_live<H: Home>() {
    for step in STEPS_MS {
        let bench = bench_with::<H>(Some(1)).await;
        bench.step(1_000);
        bench.set_clock(step);
        let leases = bench.store.list_leases(&LeaseFilter::default(), &Part { limit: 9, after: None }).await;
        let left: Vec<i64> = leases.unwrap().entries.iter().map(|lease| lease.ttl_ms).collect();
        assert_eq!(left, [RULES.lease_ttl_ms - 1_000], "after a step of {step} ms");
        bench.step(RULES.lease_ttl_ms - 1_001);
        assert_eq!(bench.acquire("k", 2).await, None, "one millisecond is left, after a step of {step} ms");
        bench.step(1);
        assert!(!bench.renew(1, 1).await);
        assert!(bench.acquire("k", 3).await.is_some(), "after a step of {step} ms");
    }
}

pub(crate) async fn a_lease_is_its_holder_s_until_its_time_is_over<H: Home>() {
    for step in STEPS_MS {
        let bench = bench_with::<H>(Some(1)).await;
        // Before anybody could see it.
        bench.set_clock(step);
        assert_eq!(bench.acquire("k", 2).await, None, "two would read, after a step of {step} ms");
        assert!(bench.renew(1, 1).await, "after a step of {step} ms");
        bench.set_clock(-step);
        bench.step(RULES.lease_ttl_ms - 1);
        bench.store.sweep().await.unwrap();
        assert!(bench.renew(1, 1).await, "and one back");
        bench.set_clock(step);
        assert!(bench.release(1, 1).await);
        assert!(!bench.release(1, 1).await);
    }
}

pub(crate) async fn a_silent_seed_is_offered_no_longer<H: Home>() {
    for step in STEPS_MS {
        let bench = bench_with::<H>(None).await;
        bench.step(RULES.heartbeat_ttl_ms - 1);
        bench.set_clock(step);
        assert!(bench.acquire("k", 1).await.is_some(), "after a step of {step} ms");
        assert!(bench.release(1, 1).await);
        bench.step(1);
        assert_eq!(bench.acquire("k", 2).await, None, "after a step of {step} ms");
        // What arrived before the step, and is written after it, counts from then.
        let (_, id) = bench.register(1, "k").await;
        bench.step(20_000);
        bench.set_clock(step);
        bench.store.flush(&[Beat { seed_id: id, age_ms: 20_000 }]).await.unwrap();
        bench.step(RULES.heartbeat_ttl_ms - 20_000);
        assert_eq!(bench.acquire("k", 3).await, None, "after a step of {step} ms");
    }
}

pub(crate) async fn a_living_seed_is_offered_on<H: Home>() {
    for step in STEPS_MS {
        let bench = Bench::<H>::new(RULES).await;
        let (_, id) = bench.register(1, "k").await;
        for _ in 0..3 {
            bench.step(RULES.heartbeat_ttl_ms / 2);
            bench.set_clock(step);
            assert_eq!(bench.store.sweep().await.unwrap().seeds, 0, "after a step of {step} ms");
            assert!(bench.acquire("k", 1).await.is_some(), "before its next heartbeat");
            assert!(bench.release(1, 1).await);
            let gone = bench.store.flush(&[Beat { seed_id: id, age_ms: 0 }]).await.unwrap();
            assert!(gone.is_empty(), "it is the seed that it was");
        }
        let view = bench.view(1).await.unwrap();
        let ahead_ms = bench.snapshot().await.ahead_ms;
        assert_eq!(view.last_heartbeat_ms - ahead_ms, bench.now(), "shown by the clock that people see");
    }
}

pub(crate) async fn nobody_who_waits_is_forgotten<H: Home>() {
    for step in STEPS_MS {
        let bench = bench_with::<H>(Some(1)).await;
        let wait_ms = 100_000;
        let outcomes = bench.apply(&[queue("k", 2, wait_ms), queue("k", 3, wait_ms)]).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Queued(_))), "{outcomes:?}");
        bench.set_clock(step);
        bench.store.sweep().await.unwrap();
        let outcomes = bench.apply(&[release(1, 1), acquire("k", 4)]).await;
        assert!(super::granted(&outcomes[1]).is_none(), "who is new comes after who waits");
        bench.set_clock(-step);
        assert!(bench.renew(1, 2).await, "the first who waits has it, after a step of {step} ms");
        let woken = bench.store.collect(&[]).await.unwrap();
        assert_eq!(woken.iter().map(|woken| woken.lease).collect::<Vec<_>>(), [lease(2)]);
        // A lease that ends by itself is waited for by what is left of it, not by the clock.
        bench.set_clock(step);
        match bench.apply(&[Command::Serve { key: key("k") }]).await.remove(0) {
            Outcome::Served(next_end_ms) => assert_eq!(next_end_ms, Some(RULES.lease_ttl_ms)),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn what_was_asked_under_a_key_is_remembered<H: Home>() {
    for step in STEPS_MS {
        let bench = bench_with::<H>(None).await;
        let ask = |number| attempt(1, 1, 0, number);
        let first = bench.apply(&[ask(0)]).await.remove(0);
        bench.set_clock(step);
        bench.store.sweep().await.unwrap();
        let again = bench.apply(&[ask(1)]).await.remove(0);
        assert_eq!(super::granted(&again), super::granted(&first), "after a step of {step} ms");
        assert!(super::granted(&first).is_some());
        assert_eq!(bench.snapshot().await.lease_count, 1);
    }
}

pub(crate) async fn a_suspect_seed_is_left_alone_for_its_while<H: Home>() {
    for step in STEPS_MS {
        let bench = bench_with::<H>(Some(1)).await;
        let report = Report::Failed;
        let failed = Command::Release { identity: identity(1), lease: lease(1), report, account: None };
        bench.apply(&[failed]).await;
        bench.set_clock(step);
        bench.step(RULES.back_off.first_ms - 1);
        let outcome = bench.one(acquire("k", 2)).await;
        assert_eq!(outcome, Outcome::Acquired(Err(Refusal::AllSuspect)), "after a step of {step} ms");
        bench.set_clock(-step);
        bench.step(1);
        assert!(bench.acquire("k", 3).await.is_some(), "after a step of {step} ms");
    }
}

pub(crate) async fn a_drained_seed_stays_out_for_its_day<H: Home>() {
    for step in STEPS_MS {
        let mut bench = bench_with::<H>(None).await;
        bench.apply(&[Command::Drain { identity: identity(1), key: key("k") }]).await;
        bench.set_clock(step);
        bench.store.sweep().await.unwrap();
        bench.set_clock(step);
        bench.apply(&[]).await;
        bench.restart(RULES).await;
        bench.step(DRAIN_MEMORY_MS - 1);
        bench.store.sweep().await.unwrap();
        let beat = heartbeat(1, "k");
        assert_eq!(bench.one(beat).await, Outcome::Heard(Heard::Draining, None), "after steps of {step} ms");
        bench.set_clock(-step);
        bench.step(DRAIN_MEMORY_MS);
        bench.store.sweep().await.unwrap();
        assert_eq!(bench.register(1, "k").await.0, Registration::New, "nobody remembers it");
    }
}

pub(crate) async fn the_next_planner_goes_on_where_the_last_one_was<H: Home>() {
    for step in STEPS_MS {
        let mut bench = bench_with::<H>(Some(1)).await;
        bench.set_clock(step);
        bench.step(3_000);
        assert!(bench.renew(1, 1).await);
        bench.restart(RULES).await;
        bench.step(RULES.lease_ttl_ms - 1);
        assert_eq!(bench.acquire("k", 2).await, None, "after a step of {step} ms");
        bench.restart(RULES).await;
        bench.step(1);
        assert!(bench.acquire("k", 3).await.is_some(), "after a step of {step} ms");
    }
}

pub(crate) async fn time_that_passed_while_no_planner_worked_has_passed<H: Home>() {
    for step in STEPS_MS {
        let mut bench = bench_with::<H>(Some(1)).await;
        bench.restart_after(RULES, step).await;
        // A clock that was set forward, and one that went on, look the same.
        let left_ms = RULES.lease_ttl_ms - step.max(0);
        assert_eq!(bench.renew(1, 1).await, left_ms > 0, "after a step of {step} ms");
        let is_there = bench.view(1).await.is_some();
        assert_eq!(is_there, step < RULES.heartbeat_ttl_ms, "it is silent, after a step of {step} ms");
        bench.store.sweep().await.unwrap();
        bench.register(1, "k").await;
        bench.step(RULES.lease_ttl_ms);
        assert!(bench.acquire("k", 2).await.is_some(), "a heartbeat brings it back, and nothing is held");
    }
}
