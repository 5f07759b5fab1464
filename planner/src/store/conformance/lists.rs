//! Lists for people: what is in them, and that pages leave nothing out.

use super::*;
use crate::domain::seed::State;
use crate::store::list::{KeyEntry, MAX_PAGE_BYTES};

const ALL: Part = Part { limit: 1_000, after: None };

impl<H: Home> Bench<H> {
    async fn listed(&self, filter: SeedFilter) -> Vec<SeedEntry> {
        self.store.list_seeds(&filter, &ALL).await.unwrap().entries
    }

    async fn seeds_in(&self, state: State) -> Vec<SeedIdentity> {
        let filter = SeedFilter { state: Some(state), ..SeedFilter::default() };
        self.listed(filter).await.into_iter().map(|seed| seed.identity).collect()
    }
}

fn release_failed(seed: u8, number: u32) -> Command {
    Command::Release { identity: identity(seed), lease: lease(number), report: Report::Failed, account: None }
}

pub(crate) async fn seeds_are_listed_by_what_they_are<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, lease_ttl_ms: 100_000, ..RULES }).await;
    bench.register(1, "silent").await;
    assert!(bench.acquire("silent", 4).await.is_some());
    bench.step(RULES.heartbeat_ttl_ms);
    let model_url = Some("/m".to_owned());
    let labels = rfork_protocol::v1::Labels { model_url: model_url.clone(), ..Default::default() };
    let profile = Profile { labels, instance_id: Some("i".into()), ..Profile::default() };
    bench.apply(&[registering(2, "k", profile)]).await;
    assert!(bench.acquire("k", 1).await.is_some());
    bench.register(3, "failed").await;
    assert!(bench.acquire("failed", 2).await.is_some());
    bench.apply(&[release_failed(3, 2)]).await;
    bench.register(4, "removed").await;
    assert!(bench.acquire("removed", 3).await.is_some());
    assert_eq!(bench.remove(4, "removed").await, Removal::Draining);
    bench.step(7);

    for (seed, state) in [(1, State::Silent), (2, State::Live), (3, State::Suspect), (4, State::Draining)] {
        assert_eq!(bench.seeds_in(state).await, [identity(seed)], "{state:?}");
    }
    let [seed] = &bench.listed(SeedFilter { key: Some(key("k")), ..SeedFilter::default() }).await[..] else {
        panic!("one seed holds k")
    };
    assert_eq!((seed.capacity, seed.used, seed.quiet_ms, seed.unused_ms), (2, 1, 7, Some(7)));
    assert_eq!((seed.suspect_ms, seed.failures, seed.profile.instance_id.as_deref()), (None, 0, Some("i")));
    let [failed] = &bench.listed(SeedFilter { key: Some(key("failed")), ..SeedFilter::default() }).await[..]
    else {
        panic!("one seed failed")
    };
    assert_eq!((failed.suspect_ms, failed.failures), (Some(RULES.back_off.first_ms - 7), 1));
    let by_model = bench.listed(SeedFilter { model_url, ..SeedFilter::default() }).await;
    assert_eq!(by_model.len(), 1);
    let host = Some(identity(4).host().to_owned());
    let by_host = bench.listed(SeedFilter { host: host.clone(), ..SeedFilter::default() }).await;
    assert!(by_host.iter().any(|seed| seed.identity == identity(4)));
    assert!(by_host.iter().all(|seed| Some(seed.identity.host()) == host.as_deref()));
    let none = SeedFilter { key: Some(key("k")), state: Some(State::Silent), ..SeedFilter::default() };
    assert_eq!(bench.listed(none).await, []);
}

pub(crate) async fn long_keys_make_short_pages<H: Home>() {
    const SEEDS: u8 = 200;
    let bench = Bench::<H>::new(Rules { capacity: 1, ..RULES }).await;
    let long = "k".repeat(8 * 1024);
    for seed in 0..SEEDS {
        bench.register(seed, &long).await;
    }
    for number in 0..SEEDS {
        assert!(bench.acquire(&long, number.into()).await.is_some());
    }
    let mut part = ALL;
    let (mut seeds, mut pages) = (Vec::new(), 0);
    loop {
        let page = bench.store.list_seeds(&SeedFilter::default(), &part).await.unwrap();
        assert!(page.entries.len() * long.len() <= MAX_PAGE_BYTES);
        seeds.extend(page.entries.into_iter().map(|seed| seed.identity.to_string()));
        pages += 1;
        let Some(next) = page.next else { break };
        part.after = Some(next);
    }
    assert!(pages > 1 && seeds.is_sorted() && seeds.len() == usize::from(SEEDS), "{pages}: {seeds:?}");
    let page = bench.store.list_leases(&LeaseFilter::default(), &ALL).await.unwrap();
    assert!(page.next.is_some() && page.entries.len() * long.len() <= MAX_PAGE_BYTES);
}

pub(crate) async fn free_points_are_those_that_are_offered<H: Home>() {
    let mut bench = Bench::<H>::new(Rules { capacity: 4, ..RULES }).await;
    bench.register(1, "k").await;
    for number in 0..4 {
        assert!(bench.acquire("k", number).await.is_some());
    }
    for lease in bench.store.list_leases(&LeaseFilter::default(), &ALL).await.unwrap().entries {
        if lease.point < 2 {
            let report = Report::Unknown;
            let (identity, lease) = (lease.identity, lease.lease);
            bench.apply(&[Command::Release { identity, lease, report, account: None }]).await;
        }
    }
    bench.restart(Rules { capacity: 2, ..RULES }).await;
    let seeds = bench.listed(SeedFilter::default()).await;
    assert_eq!((seeds[0].capacity, seeds[0].used, seeds[0].free), (2, 2, 2));
    assert!(bench.acquire("k", 4).await.is_some());
    let seeds = bench.listed(SeedFilter::default()).await;
    assert_eq!((seeds[0].used, seeds[0].free), (3, 1));
}

pub(crate) async fn leases_are_listed_while_they_live<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    bench.register(2, "l").await;
    assert!(bench.acquire("k", 1).await.is_some());
    bench.step(10);
    assert!(bench.acquire("l", 2).await.is_some());
    let leases = async |filter: LeaseFilter| {
        let page = bench.store.list_leases(&filter, &ALL).await.unwrap();
        page.entries.into_iter().map(|lease| (lease.lease, lease.ttl_ms, lease.age_ms)).collect::<Vec<_>>()
    };
    let (first, second) = ((lease(1), 9_990, 10), (lease(2), 10_000, 0));
    assert_eq!(leases(LeaseFilter::default()).await, [first, second]);
    assert_eq!(leases(LeaseFilter { key: Some(key("l")), seed: None }).await, [second]);
    assert_eq!(leases(LeaseFilter { key: None, seed: Some(identity(1)) }).await, [first]);
    assert_eq!(leases(LeaseFilter { key: Some(key("l")), seed: Some(identity(1)) }).await, []);
    bench.step(9_990);
    assert_eq!(
        leases(LeaseFilter::default()).await,
        [(lease(2), 10, 9_990)],
        "at its time to live it is gone"
    );
}

pub(crate) async fn keys_are_summed_up<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 3, lease_ttl_ms: 100_000, ..RULES }).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 6).await.is_some());
    bench.step(RULES.heartbeat_ttl_ms);
    for seed in 2..=4 {
        bench.register(seed, "k").await;
    }
    bench.register(5, "l").await;
    for number in 1..=5 {
        assert!(bench.acquire("k", number).await.is_some());
    }
    bench.apply(&[Command::Drain { identity: identity(4), key: key("k") }]).await;
    let keys = bench.store.list_keys(&ALL).await.unwrap();
    assert_eq!(keys.next, None);
    let of = |text| keys.entries.iter().find(|entry| entry.key == key(text)).cloned().unwrap();
    let k = KeyEntry {
        key: key("k"),
        live: 2,
        suspect: 0,
        draining: 1,
        silent: 1,
        capacity: 6,
        used: 6,
        waiting: 0,
    };
    assert_eq!(of("k"), k);
    assert_eq!((of("l").live, of("l").capacity, of("l").used, keys.entries.len()), (1, 3, 0, 2));
}

pub(crate) async fn pages_hold_everything_once<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    for seed in 1..=7 {
        bench.register(seed, &format!("key {}", seed % 3)).await;
    }
    for number in 0..14 {
        assert!(bench.acquire(&format!("key {}", number % 7 % 3), number).await.is_some() || number > 6);
    }
    let all_seeds = bench.listed(SeedFilter::default()).await;
    let all_leases = bench.store.list_leases(&LeaseFilter::default(), &ALL).await.unwrap().entries;
    let all_keys = bench.store.list_keys(&ALL).await.unwrap().entries;
    assert!(all_seeds.len() == 7 && all_leases.len() > 6 && all_keys.len() == 3);
    for limit in 1..=8 {
        let (mut seeds, mut leases, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut part = Part { limit, after: None };
        loop {
            let page = bench.store.list_seeds(&SeedFilter::default(), &part).await.unwrap();
            seeds.extend(page.entries);
            part.after = page.next;
            if part.after.is_none() {
                break;
            }
        }
        loop {
            let page = bench.store.list_leases(&LeaseFilter::default(), &part).await.unwrap();
            leases.extend(page.entries);
            part.after = page.next;
            if part.after.is_none() {
                break;
            }
        }
        loop {
            let page = bench.store.list_keys(&part).await.unwrap();
            keys.extend(page.entries);
            part.after = page.next;
            if part.after.is_none() {
                break;
            }
        }
        assert_eq!((&seeds, &leases, &keys), (&all_seeds, &all_leases, &all_keys), "pages of {limit}");
    }
    let elsewhere = Part { limit: 5, after: Some(b"\xff none of ours".to_vec()) };
    assert!(bench.store.list_leases(&LeaseFilter::default(), &elsewhere).await.is_ok());
}
