//! Invariants 3 and 5, of seeds: no leak, idempotence; and what registering and removing mean.

use super::Registration::{New, NewHolding, Repeated};
use super::*;
use crate::store::history::EventKind;
use crate::store::{Counts, Heard, Swept, Tally};

pub(crate) async fn no_leak_a_silent_seed_is_not_offered<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    bench.step(RULES.heartbeat_ttl_ms - 1);
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(bench.release(1, 1).await);
    bench.step(1);
    assert_eq!(bench.acquire("k", 2).await, None, "without a sweep");
    assert_eq!(bench.view(1).await, None, "nor is it there for anybody who looks");
    bench.store.sweep().await.unwrap();
    assert_eq!(bench.view(1).await, None);
    assert_eq!(bench.register(1, "k").await.0, New);
    assert!(bench.acquire("k", 3).await.is_some());
}

pub(crate) async fn a_silent_seed_drains_and_returns_with_its_leases<H: Home>() {
    let rules = Rules { capacity: 2, lease_ttl_ms: 100_000, ..RULES };
    for sweep in [false, true] {
        let bench = Bench::<H>::new(rules.clone()).await;
        let (_, id) = bench.register(1, "k").await;
        assert!(bench.acquire("k", 1).await.is_some());
        bench.step(rules.heartbeat_ttl_ms);
        if sweep {
            bench.store.sweep().await.unwrap();
        }
        let view = bench.view(1).await.unwrap();
        assert!(view.draining && view.used == 1);
        assert_eq!(bench.acquire("k", 2).await, None);
        assert!(bench.renew(1, 1).await);
        assert_eq!(bench.register(1, "k").await, (Repeated, id));
        assert!(!bench.view(1).await.unwrap().draining);
        assert!(bench.acquire("k", 3).await.is_some());
        assert_eq!(bench.acquire("k", 4).await, None, "the first lease is still there");
        // The same by a gathered heartbeat.
        bench.step(rules.heartbeat_ttl_ms);
        assert!(bench.release(1, 3).await);
        bench.store.sweep().await.unwrap();
        assert_eq!(bench.store.flush(&[Beat { seed_id: id, age_ms: 0 }]).await.unwrap().len(), 0);
        assert!(bench.acquire("k", 5).await.is_some());
    }
}

pub(crate) async fn what_is_gone_is_gone_for_everybody_who_looks<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let (_, silent) = bench.register(1, "silent").await;
    let looked_at = async || {
        let page = Part { limit: 10, after: None };
        let seeds = bench.store.list_seeds(&SeedFilter::default(), &page).await.unwrap().entries;
        let keys = bench.store.list_keys(&page).await.unwrap().entries;
        let Counts { live, suspect, draining, silent } = bench.store.counts().await.unwrap();
        let counted = [live, suspect, draining, silent].map(|tally| tally.seeds).iter().sum::<u64>();
        let Snapshot { seed_count, seeds: shown, .. } = bench.snapshot().await;
        assert_eq!([seed_count, shown.len() as u64, counted, keys.len() as u64], [seeds.len() as u64; 4]);
        seeds.into_iter().map(|seed| seed.identity).collect::<Vec<_>>()
    };
    bench.step(RULES.heartbeat_ttl_ms - 1);
    bench.register(2, "leased").await;
    bench.register(3, "drained").await;
    bench.apply(&[Command::Drain { identity: identity(3), key: key("drained") }]).await;
    assert_eq!(looked_at().await, [1, 2, 3].map(identity));
    bench.step(1);
    assert_eq!(looked_at().await, [2, 3].map(identity), "silent, and without a lease");
    assert_eq!(bench.remove(1, "another").await, Removal::Unknown);
    assert_eq!(bench.remove(1, "silent").await, Removal::GoneBefore);
    assert_eq!(bench.remove(1, "silent").await, Removal::Unknown);
    // A heartbeat that was on its way when it was removed.
    assert!(bench.store.flush(&[Beat { seed_id: silent, age_ms: 0 }]).await.unwrap().contains(&silent));
    assert_eq!(bench.acquire("silent", 1).await, None);

    assert!(bench.acquire("leased", 2).await.is_some());
    assert_eq!(bench.remove(2, "leased").await, Removal::Draining);
    assert_eq!(looked_at().await, [2, 3].map(identity), "removed, and leased");
    bench.step(RULES.lease_ttl_ms);
    assert_eq!(looked_at().await, [identity(3)], "its lease has ended");
    assert_eq!(bench.remove(2, "leased").await, Removal::GoneBefore);

    bench.step(RULES.heartbeat_ttl_ms);
    assert_eq!(looked_at().await, [identity(3)], "that it was drained is remembered, and shown");
    assert_eq!(bench.remove(3, "drained").await, Removal::Gone);
    assert!(looked_at().await.is_empty());
    let page = Part { limit: 10, after: None };
    let events = bench.store.list_events(&EventFilter::default(), &page).await.unwrap().entries;
    let of_silent = events.iter().filter(|event| event.identity == Some(identity(1))).map(|event| event.kind);
    assert!(of_silent.eq([EventKind::Silent, EventKind::Registered].map(Some)), "it is told as by a sweep");
}

pub(crate) async fn heartbeats_and_renewals_are_independent<H: Home>() {
    let rules = Rules { heartbeat_ttl_ms: 10_000, lease_ttl_ms: 10_000, ..RULES };
    let bench = Bench::<H>::new(rules.clone()).await;
    let (_, id) = bench.register(1, "k").await;
    bench.register(2, "l").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(bench.acquire("l", 2).await.is_some());
    bench.step(6_000);
    bench.register(1, "k").await;
    bench.store.flush(&[Beat { seed_id: id, age_ms: 0 }]).await.unwrap();
    assert!(bench.renew(2, 2).await);
    bench.step(4_000);
    assert!(!bench.renew(1, 1).await, "a heartbeat renews no lease");
    assert!(bench.view(2).await.unwrap().draining, "a renewal is no heartbeat");
    assert!(bench.renew(2, 2).await);
}

pub(crate) async fn a_heartbeat_that_registers_nothing_keeps_a_known_seed<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let told = |text: &str, incarnation: &str, age_ms| {
        let incarnation = Some(incarnation.to_owned());
        Command::Beat {
            identity: identity(1),
            key: key(text),
            incarnation,
            age_ms,
            owner: Owner::default(),
            progress: None,
        }
    };
    let beat = async |text: &str, incarnation: &str, age_ms: i64| match &bench
        .apply(&[told(text, incarnation, age_ms)])
        .await[..]
    {
        [Outcome::Heard(heard, id)] => (*heard, *id),
        other => panic!("{other:?}"),
    };
    assert_eq!(beat("k", "1", 0).await, (Heard::Unknown, None));
    assert_eq!(bench.view(1).await, None, "it was not registered");
    let profile = Profile { incarnation: Some("1".into()), ..Profile::default() };
    let registered = registering(1, "k", profile);
    // In one batch, and again later.
    let outcomes = bench.apply(&[registered, told("k", "1", 0)]).await;
    let Outcome::Registered(New, id) = outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(outcomes[1], Outcome::Heard(Heard::Known, Some(id)));
    bench.step(RULES.heartbeat_ttl_ms);
    assert_eq!(bench.acquire("k", 1).await, None, "it is silent");
    assert_eq!(beat("l", "1", 0).await, (Heard::Unknown, None));
    assert_eq!(beat("k", "2", 0).await, (Heard::Unknown, None));
    assert_eq!(bench.acquire("k", 2).await, None, "what is not known of it is no sign of its life");
    assert_eq!(beat("k", "1", 7).await, (Heard::Known, Some(id)));
    assert_eq!(bench.view(1).await.unwrap().last_heartbeat_ms, bench.now() - 7);
    assert!(bench.acquire("k", 3).await.is_some());
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
    assert_eq!(beat("k", "1", 0).await, (Heard::Draining, None));
    assert!(bench.release(1, 3).await);
    assert_eq!(
        beat("k", "1", 0).await,
        (Heard::Unknown, None),
        "removed, its last lease ended: it registers anew"
    );
}

pub(crate) async fn another_key_is_a_new_holding<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    let (_, old) = bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(bench.acquire("k", 2).await.is_some());
    let (registration, new) = bench.register(1, "l").await;
    assert_eq!(registration, NewHolding);
    assert_ne!(old, new, "what speaks of the old holding must meet nothing");
    assert!(!bench.renew(1, 1).await);
    assert!(!bench.release(1, 2).await);
    assert_eq!(bench.acquire("k", 3).await, None);
    assert!(bench.acquire("l", 4).await.is_some());
    assert!(bench.acquire("l", 5).await.is_some());
    assert_eq!(bench.acquire("l", 6).await, None);
    // Also one that was draining.
    assert_eq!(bench.remove(1, "l").await, Removal::Draining);
    assert_eq!(bench.register(1, "k").await.0, NewHolding);
    assert!(bench.acquire("k", 7).await.is_some());
}

pub(crate) async fn a_removed_seed_drains_and_returns_after_its_last_lease<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
    assert_eq!(bench.acquire("k", 2).await, None, "at once");
    assert_eq!(bench.register(1, "k").await.0, Registration::Draining);
    bench.store.sweep().await.unwrap();
    assert_eq!(bench.acquire("k", 3).await, None);
    assert!(bench.renew(1, 1).await, "its lease goes on");
    assert!(bench.release(1, 1).await);
    assert_eq!(bench.view(1).await, None, "it went with its last lease");
    assert_eq!(bench.register(1, "k").await.0, New);
    assert!(bench.acquire("k", 4).await.is_some());
    // The same when the lease ends by itself, with and without a sweep.
    for sweep in [true, false] {
        assert_eq!(bench.remove(1, "k").await, Removal::Draining);
        bench.step(RULES.lease_ttl_ms);
        if sweep {
            bench.store.sweep().await.unwrap();
            assert_eq!(bench.view(1).await, None);
        }
        assert_eq!(bench.acquire("k", 5).await, None);
        bench.register(1, "k").await;
        assert!(bench.acquire("k", 10 + u32::from(sweep)).await.is_some());
    }
}

pub(crate) async fn removal_names_the_key<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert_eq!(bench.remove(1, "l").await, Removal::Unknown);
    assert_eq!(bench.remove(2, "k").await, Removal::Unknown);
    assert!(bench.acquire("k", 1).await.is_some());
}

pub(crate) async fn idempotence_of_registering_and_removing<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let (first, id) = bench.register(1, "k").await;
    assert_eq!(first, New);
    assert!(bench.acquire("k", 1).await.is_some());
    for _ in 0..3 {
        assert_eq!(bench.register(1, "k").await, (Repeated, id));
        assert_eq!(bench.acquire("k", 2).await, None, "registering again frees nothing");
    }
    let twice = bench.apply(&[register(5, "k"), register(5, "k"), register(5, "l"), register(5, "k")]).await;
    let kinds = twice.iter().map(|outcome| match outcome {
        Outcome::Registered(registration, _) => *registration,
        other => panic!("{other:?}"),
    });
    assert!(kinds.eq([New, Repeated, NewHolding, NewHolding]));
    assert_eq!(bench.remove(5, "k").await, Removal::Gone);
    assert_eq!(bench.remove(5, "k").await, Removal::Unknown);
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
}

pub(crate) async fn a_flush_updates_and_never_inserts<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let (_, removed) = bench.register(1, "k").await;
    let (_, moved) = bench.register(2, "k").await;
    let (_, kept) = bench.register(3, "k").await;
    assert_eq!(bench.remove(1, "k").await, Removal::Gone);
    let (_, other) = bench.register(4, "m").await;
    assert_ne!(other, removed, "no number is used again");
    bench.register(2, "l").await;
    bench.step(50_000);
    let beats = [removed, moved, kept, 987_654].map(|seed_id| Beat { seed_id, age_ms: 0 });
    let gone = bench.store.flush(&beats).await.unwrap();
    assert_eq!(gone, [removed, moved, 987_654].into());
    bench.step(10_000);
    assert!(!bench.view(3).await.unwrap().draining);
    assert_eq!(bench.view(2).await, None, "the beat was of what it held before");
    assert_eq!(bench.view(4).await, None);
    assert_eq!(bench.view(1).await, None);
    assert_eq!(bench.store.flush(&[]).await.unwrap().len(), 0);
}

pub(crate) async fn a_flush_tells_of_seeds_that_are_offered_no_more<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let mut numbers = Vec::new();
    for (seed, text) in [(1, "removed"), (2, "drained"), (3, "invalidated"), (4, "k"), (5, "suspect")] {
        numbers.push(bench.register(seed, text).await.1);
        assert!(bench.acquire(text, seed.into()).await.is_some());
    }
    assert_eq!(bench.remove(1, "removed").await, Removal::Draining);
    let failed =
        Command::Release { identity: identity(5), lease: lease(5), report: Report::Failed, account: None };
    bench.apply(&[Command::Drain { identity: identity(2), key: key("drained") }, failed]).await;
    assert_eq!(bench.store.invalidate(&key("invalidated"), None, None).await.unwrap(), 1);
    bench.step(5_000);
    let beats: Vec<Beat> = numbers.iter().map(|seed_id| Beat { seed_id: *seed_id, age_ms: 0 }).collect();
    let gone = bench.store.flush(&beats).await.unwrap();
    assert_eq!(gone, numbers[..3].iter().copied().collect());
    for seed in 1..=5 {
        assert_eq!(
            bench.view(seed).await.unwrap().last_heartbeat_ms,
            bench.now(),
            "it is heard of all the same"
        );
    }
}

pub(crate) async fn a_flush_carries_the_arrival_age<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let (_, id) = bench.register(1, "k").await;
    bench.step(10_000);
    let beat = |age_ms| [Beat { seed_id: id, age_ms }];
    bench.store.flush(&beat(900)).await.unwrap();
    assert_eq!(bench.view(1).await.unwrap().last_heartbeat_ms, bench.now() - 900);
    bench.store.flush(&beat(5_000)).await.unwrap();
    assert_eq!(
        bench.view(1).await.unwrap().last_heartbeat_ms,
        bench.now() - 900,
        "an older one changes nothing"
    );
}

pub(crate) async fn sweeping_twice_is_once<H: Home>() {
    let rules = Rules { capacity: 2, ..RULES };
    let bench = Bench::<H>::new(rules.clone()).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(bench.acquire("k", 2).await.is_some());
    bench.step(5_000);
    assert!(bench.renew(1, 2).await);
    bench.step(5_000);
    assert_eq!(bench.store.sweep().await.unwrap().leases, 1);
    assert_eq!(bench.store.sweep().await.unwrap(), Swept::default());
    assert!(bench.acquire("k", 3).await.is_some(), "exactly one point came back");
    assert_eq!(bench.acquire("k", 4).await, None);
    assert!(bench.renew(1, 2).await, "a live lease is not swept");
}

pub(crate) async fn a_large_sweep_ends_everything_in_steps<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 50, ..RULES }).await;
    let registrations: Vec<Command> = (0..50).map(|seed| register(seed, "k")).collect();
    bench.apply(&registrations).await;
    for some in 0..5 {
        let acquisitions: Vec<Command> = (0..500).map(|number| acquire("k", some * 500 + number)).collect();
        bench.apply(&acquisitions).await;
    }
    assert_eq!(bench.snapshot().await.lease_count, 2_500);
    bench.step(RULES.heartbeat_ttl_ms);
    let swept = bench.store.sweep().await.unwrap();
    assert_eq!((swept.leases, swept.seeds), (2_500, 50));
    assert_eq!(bench.snapshot().await, Snapshot::default());
}

pub(crate) async fn a_snapshot_shows_what_is_there<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    bench.register(1, "k").await;
    let registered = bench.now();
    bench.step(5);
    assert!(bench.acquire("k", 1).await.is_some());
    let Snapshot { seed_count, lease_count, seeds, leases, .. } = bench.snapshot().await;
    assert_eq!((seed_count, lease_count), (1, 1));
    let expected = SeedView {
        identity: identity(1).to_string(),
        key: key("k"),
        capacity: 2,
        used: 1,
        last_heartbeat_ms: registered,
        last_used_ms: bench.now(),
        draining: false,
        suspect_until_ms: 0,
        failures: 0,
        profile: Profile::default(),
        owner: Owner::default(),
    };
    assert_eq!(seeds, [expected]);
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].lease, lease(1));
    assert_eq!(leases[0].seed_identity, identity(1).to_string());
    assert_eq!(leases[0].seed_key, key("k"));
}

pub(crate) async fn counts_are_those_of_each_state<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 3, lease_ttl_ms: 100_000, ..RULES }).await;
    let counts = async || bench.store.counts().await.unwrap();
    assert_eq!(counts().await, Counts::default());
    bench.register(3, "drains").await;
    assert!(bench.acquire("drains", 1).await.is_some());
    assert!(bench.acquire("drains", 2).await.is_some());
    assert_eq!(bench.remove(3, "drains").await, Removal::Draining);
    bench.register(4, "silent").await;
    assert!(bench.acquire("silent", 3).await.is_some());
    bench.step(60_000);
    assert!(bench.renew(3, 1).await && bench.renew(4, 3).await);
    // The second lease has ended then, and no sweep has come.
    bench.step(40_000);
    bench.register(2, "suspect").await;
    assert!(bench.acquire("suspect", 4).await.is_some());
    assert!(bench.acquire("suspect", 5).await.is_some());
    let failed =
        Command::Release { identity: identity(2), lease: lease(5), report: Report::Failed, account: None };
    assert_eq!(bench.apply(&[failed]).await, [Outcome::Released(true)]);
    bench.register(1, "live").await;
    bench.register(5, "live").await;
    assert!(bench.acquire("live", 6).await.is_some());
    assert!(bench.acquire("live", 7).await.is_some());
    let one = Tally { seeds: 1, capacity: 3, leases: 1 };
    let live = Tally { seeds: 2, capacity: 6, leases: 2 };
    assert_eq!(counts().await, Counts { draining: one, silent: one, suspect: one, live });
    bench.store.sweep().await.unwrap();
    assert_eq!(counts().await, Counts { draining: one, silent: one, suspect: one, live });
    bench.step(RULES.back_off.first_ms);
    let live = Tally { seeds: 3, capacity: 9, leases: 3 };
    assert_eq!(counts().await, Counts { draining: one, silent: one, suspect: Tally::default(), live });
}
