//! Invariants 3, 4 and 6, of leases: no leak, fencing, restart.

use super::*;
use crate::store::Renewed;

pub(crate) async fn no_leak_a_lease_is_gone_at_its_time_to_live<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    bench.step(RULES.lease_ttl_ms - 1);
    assert_eq!(bench.acquire("k", 2).await, None, "one millisecond is left");
    assert_eq!(bench.snapshot().await.lease_count, 1);
    bench.step(1);
    assert_eq!(bench.snapshot().await.lease_count, 0);
    assert!(!bench.renew(1, 1).await);
    assert!(!bench.release(1, 1).await);
    assert!(bench.acquire("k", 3).await.is_some(), "without a sweep");
}

pub(crate) async fn renewal_counts_from_itself<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    for _ in 0..5 {
        bench.step(RULES.lease_ttl_ms - 1);
        assert!(bench.renew(1, 1).await);
        assert_eq!(bench.acquire("k", 2).await, None);
    }
    bench.step(RULES.lease_ttl_ms);
    assert!(!bench.renew(1, 1).await, "at exactly its time to live");
    assert!(bench.acquire("k", 3).await.is_some());
}

pub(crate) async fn fencing_a_late_release_gives_nothing_back<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    bench.step(RULES.lease_ttl_ms);
    assert!(bench.acquire("k", 2).await.is_some());
    assert!(!bench.release(1, 1).await, "the point belongs to the second lease");
    assert!(!bench.renew(1, 1).await);
    assert_eq!(bench.acquire("k", 3).await, None);
    bench.store.sweep().await.unwrap();
    assert_eq!(bench.acquire("k", 4).await, None);
    assert!(bench.release(1, 2).await);
}

pub(crate) async fn fencing_only_the_named_seed_s_lease<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    bench.register(2, "other").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(!bench.renew(2, 1).await);
    assert!(!bench.release(2, 1).await);
    assert!(!bench.release(1, 7).await, "never granted");
    assert_eq!(bench.acquire("k", 2).await, None);
    assert!(bench.release(1, 1).await);
}

pub(crate) async fn fencing_of_two_seeds_named_in_one_batch<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    bench.register(2, "other").await;
    assert!(bench.acquire("k", 1).await.is_some());
    let outcomes = bench.apply(&[renew(2, 1), renew(1, 1), renew(1, 9)]).await;
    let renewed = Some(Renewed { ttl_ms: RULES.lease_ttl_ms, loading: None });
    assert_eq!(outcomes, [None, renewed, None].map(Outcome::Renewed));
    let outcomes = bench.apply(&[release(2, 1), release(1, 1), release(1, 1)]).await;
    assert_eq!(outcomes, [false, true, false].map(Outcome::Released));
}

pub(crate) async fn releasing_twice_is_once<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(bench.acquire("k", 2).await.is_some());
    assert!(bench.release(1, 1).await);
    assert!(!bench.release(1, 1).await);
    assert!(bench.acquire("k", 3).await.is_some());
    assert_eq!(bench.acquire("k", 4).await, None);
}

pub(crate) async fn restart_keeps_leases_and_seeds<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    bench.register(2, "k").await;
    bench.register(3, "k").await;
    for number in 1..=3 {
        assert!(bench.acquire("k", number).await.is_some());
    }
    assert_eq!(bench.remove(2, "k").await, Removal::Draining);
    assert!(bench.release(3, 3).await);
    let before = bench.snapshot().await;
    bench.restart(RULES).await;
    assert_eq!(bench.snapshot().await, before);
    assert!(bench.renew(1, 1).await);
    assert!(bench.release(2, 2).await);
    assert_eq!(bench.view(2).await, None, "it had been removed");
    assert_eq!(bench.acquire("k", 4).await, Some(identity(3)));
    assert_eq!(bench.acquire("k", 5).await, None);
    bench.step(RULES.lease_ttl_ms);
    bench.restart(RULES).await;
    assert!(!bench.release(1, 1).await, "its time passed while the planner was down");
    assert!(bench.acquire("k", 6).await.is_some());
}

pub(crate) async fn leases_of_idempotency_keys_are_named_by_a_secret_of_the_database<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    let named = |bench: &Bench<H>| bench.store.lease_secret().lease_of("the-same", Some("a"));
    let lease = named(&bench);
    bench.restart(RULES).await;
    assert_eq!(named(&bench), lease, "another planner of the same database names it alike");
    assert_ne!(named(&Bench::<H>::new(RULES).await), lease, "who knows the key does not know the lease");
}
