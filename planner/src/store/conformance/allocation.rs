//! Invariants 1 and 2: safety, and no false refusal.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::domain::policy::Policy;

fn granted(outcomes: &[Outcome]) -> Vec<String> {
    outcomes.iter().filter_map(super::granted).map(|seed| seed.to_string()).collect()
}

fn acquisitions(text: &str, numbers: std::ops::Range<u32>) -> Vec<Command> {
    numbers.map(|number| acquire(text, number)).collect()
}

pub(crate) async fn safety_a_point_is_never_leased_twice<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 3, ..RULES }).await;
    bench.register(1, "k").await;
    bench.register(2, "k").await;
    let seeds = granted(&bench.apply(&acquisitions("k", 0..64)).await);
    assert_eq!(seeds.len(), 6, "two seeds of three points");
    for seed in 1..3 {
        let name = identity(seed).to_string();
        assert_eq!(seeds.iter().filter(|granted| **granted == name).count(), 3);
        assert_eq!(bench.view(seed).await.unwrap().used, 3);
    }
    assert_eq!(bench.acquire("k", 100).await, None);
}

pub(crate) async fn no_false_refusal_beyond_a_page_of_candidates<H: Home>() {
    for (_, policy) in Policy::NAMES {
        let bench = Bench::<H>::new(Rules { policy, ..RULES }).await;
        let registrations: Vec<Command> = (0..200).map(|seed| register(seed, "k")).collect();
        bench.apply(&registrations).await;
        let first = granted(&bench.apply(&acquisitions("k", 0..150)).await);
        let second = granted(&bench.apply(&acquisitions("k", 150..210)).await);
        assert_eq!((first.len(), second.len()), (150, 50), "{policy}");
        let distinct: HashSet<&String> = first.iter().chain(&second).collect();
        assert_eq!(distinct.len(), 200, "{policy}");
    }
}

pub(crate) async fn no_false_refusal_of_many_keys_at_once<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    let texts: Vec<String> = (0..50).map(|number| format!("key-{number}")).collect();
    let registrations: Vec<Command> =
        texts.iter().zip(0u8..).map(|(text, seed)| register(seed, text)).collect();
    bench.apply(&registrations).await;
    // Each key is asked for once, twice or three times, and has two points.
    let mut asked: HashMap<&str, usize> = HashMap::new();
    let mut commands = Vec::new();
    for number in 0..100 {
        let text = &texts[number as usize * 7 % 50];
        commands.push(acquire(text, number));
        *asked.entry(text).or_default() += 1;
        if number % 10 == 0 {
            commands.push(acquire(text, 1_000 + number));
            *asked.entry(text).or_default() += 1;
        }
    }
    let outcomes = bench.apply(&commands).await;
    let mut got: HashMap<&str, usize> = HashMap::new();
    for (command, outcome) in commands.iter().zip(&outcomes) {
        let Command::Acquire { key, .. } = command else { panic!() };
        let text = texts.iter().position(|text| text.as_bytes() == key.as_bytes()).unwrap();
        if let Some(seed) = super::granted(outcome) {
            assert_eq!(seed, identity(u8::try_from(text).unwrap()), "a seed of another key");
            *got.entry(&texts[text]).or_default() += 1;
        }
    }
    for (text, asked) in asked {
        assert_eq!(got[text], asked.min(2), "{text}");
    }
}

pub(crate) async fn no_false_refusal_when_a_release_waits_beside_it<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    let outcomes =
        bench.apply(&[acquire("k", 2), release(1, 1), acquire("new", 3), register(2, "new")]).await;
    assert_eq!(super::granted(&outcomes[0]), Some(identity(1)));
    assert_eq!(outcomes[1], Outcome::Released(true));
    assert_eq!(super::granted(&outcomes[2]), Some(identity(2)));
}

pub(crate) async fn no_false_refusal_behind_silent_seeds<H: Home>() {
    for (_, policy) in Policy::NAMES {
        let bench = Bench::<H>::new(Rules { policy, ..RULES }).await;
        let silent: Vec<Command> = (0..150).map(|seed| register(seed, "k")).collect();
        bench.apply(&silent).await;
        bench.step(RULES.heartbeat_ttl_ms - 1);
        bench.register(200, "k").await;
        // Last by every policy: used most recently.
        assert!(bench.acquire("k", 1).await.is_some());
        bench.step(1);
        bench.release(200, 1).await;
        assert_eq!(bench.acquire("k", 2).await, Some(identity(200)), "{policy}");
        assert_eq!(bench.acquire("k", 3).await, None, "{policy}: all others are silent");
    }
}

pub(crate) async fn each_policy_keeps_its_order<H: Home>() {
    for (name, policy) in Policy::NAMES {
        let bench = Bench::<H>::new(Rules { policy, capacity: 2, ..RULES }).await;
        for seed in [3, 1, 2] {
            bench.register(seed, "k").await;
            bench.step(1);
        }
        let mut order = Vec::new();
        for number in 0..6 {
            order.push(bench.acquire("k", number).await.unwrap().to_string());
            bench.step(1);
        }
        let expected: [u8; 6] = match policy {
            // Nobody was used: the identity decides; then the least busy, and the least recently used of those.
            Policy::Balanced => [1, 2, 3, 1, 2, 3],
            Policy::Lru => [1, 2, 3, 1, 2, 3],
            // Seed 3 was heard of first, and keeps being preferred until it is full.
            Policy::Fifo => [3, 3, 1, 1, 2, 2],
        };
        let expected = expected.map(|seed| identity(seed).to_string());
        assert_eq!(order, expected, "{name}");
        if policy == Policy::Fifo {
            continue;
        }
        // Seed 2 gets both points back, seed 1 one later allocated.
        bench.release(2, 1).await;
        bench.release(2, 4).await;
        bench.release(1, 0).await;
        let first = bench.acquire("k", 10).await.unwrap();
        let by_policy = if policy == Policy::Balanced { identity(2) } else { identity(1) };
        assert_eq!(first, by_policy, "{name}: the free share counts for balanced only");
    }
}

/// Those whose leases have ended by themselves may be free, and say nothing of who comes before them.
pub(crate) async fn the_order_holds_when_the_batch_takes_the_first_away<H: Home>() {
    for (name, policy) in Policy::NAMES {
        let bench = Bench::<H>::new(Rules { policy, lease_ttl_ms: 10, ..RULES }).await;
        for seed in 1..=4 {
            bench.register(seed, "k").await;
        }
        for (seed, number) in [(1, 1), (2, 2)] {
            assert_eq!(bench.acquire("k", number).await, Some(identity(seed)), "{name}");
        }
        // Nobody sweeps.
        bench.step(10);
        let drain = Command::Drain { identity: identity(3), key: key("k") };
        let outcomes = bench.apply(&[drain, acquire("k", 3)]).await;
        // Seed 4 was never used; all were heard of at the same time.
        let expected = if policy == Policy::Fifo { 1 } else { 4 };
        assert_eq!(super::granted(&outcomes[1]), Some(identity(expected)), "{name}");
    }
}

pub(crate) async fn capacity_is_what_is_set_now<H: Home>() {
    let mut bench = Bench::<H>::new(Rules { capacity: 3, ..RULES }).await;
    bench.register(1, "k").await;
    for number in 0..3 {
        assert!(bench.acquire("k", number).await.is_some());
    }
    bench.restart(Rules { capacity: 1, ..RULES }).await;
    assert!(bench.renew(1, 2).await, "a lease on a point that is offered no more goes on");
    assert!(bench.release(1, 1).await);
    assert_eq!(bench.acquire("k", 10).await, None, "the point that is offered is still leased");
    assert!(bench.release(1, 0).await);
    assert!(bench.acquire("k", 11).await.is_some());
    assert_eq!(bench.acquire("k", 12).await, None);
    bench.restart(Rules { capacity: 4, ..RULES }).await;
    let more = granted(&bench.apply(&acquisitions("k", 20..30)).await);
    assert_eq!(more.len(), 2, "leases 2 and 11 go on beside them");
}

pub(crate) async fn another_policy_takes_effect_at_a_restart<H: Home>() {
    let lru = Rules { policy: Policy::Lru, capacity: 2, ..RULES };
    let mut bench = Bench::<H>::new(lru.clone()).await;
    bench.register(1, "k").await;
    bench.register(2, "k").await;
    assert_eq!(bench.acquire("k", 1).await, Some(identity(1)));
    bench.step(1);
    assert_eq!(bench.acquire("k", 2).await, Some(identity(2)));
    bench.step(1);
    assert!(bench.release(2, 2).await);
    bench.restart(Rules { policy: Policy::Balanced, ..lru.clone() }).await;
    assert_eq!(bench.acquire("k", 3).await, Some(identity(2)), "all its points are free");
    bench.restart(lru).await;
    assert_eq!(bench.acquire("k", 4).await, Some(identity(1)), "it was used longer ago");
}

pub(crate) async fn keys_are_bytes<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let keys: [&[u8]; 6] = [
        b"/m$s$kv_both$0$0",
        b"/M$s$kv_both$0$0",
        b"caf\xe9",
        "caf\u{e9}".as_bytes(),
        b"caf%C3%A9",
        &[b'k'; 8192],
    ];
    for (bytes, seed) in keys.iter().zip(1u8..) {
        let key = SeedKey::new(bytes.to_vec()).unwrap();
        let identity = identity(seed);
        bench
            .apply(&[Command::Register {
                identity,
                key,
                profile: Box::default(),
                age_ms: 0,
                client: None,
                owner: Owner::default(),
            }])
            .await;
    }
    for (bytes, seed) in keys.iter().zip(1u8..) {
        let key = SeedKey::new(bytes.to_vec()).unwrap();
        let acquire = |number| Command::Acquire {
            key: key.clone(),
            wish: Box::default(),
            lease: lease(number),
            queue: None,
        };
        let outcomes = bench.apply(&[acquire(u32::from(seed)), acquire(100 + u32::from(seed))]).await;
        assert_eq!(super::granted(&outcomes[0]), Some(identity(seed)), "{key:?}");
        assert_eq!(super::granted(&outcomes[1]), None, "{key:?}");
    }
}
