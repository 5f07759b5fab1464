//! Rules, places, instances, health: what is preferred, and what is left out.

use super::*;
use crate::domain::terms::{Overrides, Pattern, Selector};
use crate::store::{DRAIN_MEMORY_MS, Heard, Renewed};

fn seed_on(host: &str, port: u16) -> SeedIdentity {
    SeedIdentity::new(host, port, 0).unwrap()
}

fn tell(identity: SeedIdentity, text: &str, profile: Profile) -> Command {
    Command::Register {
        identity,
        key: key(text),
        profile: Box::new(profile),
        age_ms: 0,
        client: None,
        owner: Owner::default(),
    }
}

fn wish(text: &str, number: u32, wish: Wish) -> Command {
    Command::Acquire { key: key(text), wish: Box::new(wish), lease: lease(number), queue: None }
}

fn finish(seed: SeedIdentity, number: u32, report: Report) -> Command {
    Command::Release { identity: seed, lease: lease(number), report, account: None }
}

fn at(zone: &str, rack: &str, host: &str) -> Location {
    let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Location { zone: name(zone), rack: name(rack), host: name(host) }
}

fn standing(location: Location) -> Profile {
    Profile { location, ..Profile::default() }
}

fn rank_of(instance: &str) -> Profile {
    Profile { instance_id: Some(instance.into()), ..Profile::default() }
}

fn incarnation(name: &str) -> Profile {
    Profile { incarnation: Some(name.into()), ..Profile::default() }
}

fn content(name: &str) -> Profile {
    Profile { content_id: Some(name.into()), ..Profile::default() }
}

fn by_key(pattern: &str) -> Selector {
    Selector { key: Some(Pattern::new(pattern)), ..Selector::default() }
}

fn ruled(overrides: Overrides) -> Rules {
    Rules { overrides: Some(Arc::new(overrides)), ..RULES }
}

async fn one<H: Home>(bench: &Bench<H>, command: Command) -> Outcome {
    bench.apply(&[command]).await.remove(0)
}

async fn refusal<H: Home>(bench: &Bench<H>, text: &str, number: u32) -> Refusal {
    match one(bench, acquire(text, number)).await {
        Outcome::Acquired(Err(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn capacity_rules_take_effect_at_a_restart_and_strand_no_lease<H: Home>() {
    let rules =
        |capacity| ruled(Overrides { capacity: vec![(by_key("big*"), capacity)], ..Overrides::default() });
    let mut bench = Bench::<H>::new(rules(3)).await;
    bench.register(1, "big-model").await;
    bench.register(2, "small").await;
    for number in 0..3 {
        assert!(bench.acquire("big-model", number).await.is_some());
    }
    assert_eq!(bench.acquire("big-model", 3).await, None);
    assert!(bench.acquire("small", 4).await.is_some());
    assert_eq!(bench.acquire("small", 5).await, None, "the default is for the others");
    bench.restart(rules(1)).await;
    for number in 0..3 {
        assert!(bench.renew(1, number).await, "its lease goes on");
        assert!(bench.release(1, number).await);
    }
    assert!(bench.acquire("big-model", 6).await.is_some());
    assert_eq!(bench.acquire("big-model", 7).await, None);
    bench.restart(rules(2)).await;
    assert!(bench.acquire("big-model", 8).await.is_some());
}

pub(crate) async fn a_lease_lives_as_long_as_its_seed_s_rule_says<H: Home>() {
    let long = Overrides { lease_ttl_ms: vec![(by_key("slow"), 50_000)], ..Overrides::default() };
    let bench = Bench::<H>::new(ruled(long)).await;
    bench.register(1, "slow").await;
    match one(&bench, acquire("slow", 1)).await {
        Outcome::Acquired(Ok(grant)) => assert_eq!(grant.lease_ttl_ms, 50_000),
        other => panic!("{other:?}"),
    }
    bench.step(49_999);
    assert_eq!(
        one(&bench, renew(1, 1)).await,
        Outcome::Renewed(Some(Renewed { ttl_ms: 50_000, loading: None }))
    );
    bench.step(49_999);
    bench.register(1, "slow").await;
    assert_eq!(bench.acquire("slow", 2).await, None);
    bench.step(1);
    assert!(bench.acquire("slow", 3).await.is_some());
}

fn capped(host: &str, capacity: u32) -> Rules {
    let host_capacity = vec![(host.parse().unwrap(), capacity)];
    Rules { capacity: 4, ..ruled(Overrides { host_capacity, ..Overrides::default() }) }
}

pub(crate) async fn seeds_of_a_capped_host_lend_no_more_than_it_may<H: Home>() {
    let mut bench = Bench::<H>::new(capped("10.1.0.1", 3)).await;
    // Two seeds of two keys on the host.
    for (port, text) in [(1, "k"), (2, "l")] {
        bench.apply(&[tell(seed_on("10.1.0.1", port), text, Profile::default())]).await;
    }
    // Together, and of both keys, in one transaction.
    let outcomes =
        bench.apply(&(0..8).map(|n| acquire(["k", "l"][n as usize % 2], n)).collect::<Vec<_>>()).await;
    let granted: Vec<SeedIdentity> = outcomes.iter().filter_map(granted).collect();
    assert_eq!(granted.len(), 3, "{outcomes:?}");
    assert_eq!(refusal(&bench, "k", 10).await, Refusal::AllBusy);
    assert_eq!(refusal(&bench, "l", 11).await, Refusal::AllBusy);
    // One comes back, whichever key it was of: the other key may have it.
    let first = outcomes.iter().position(|outcome| self::granted(outcome).is_some()).unwrap();
    let number = u32::try_from(first).unwrap();
    let seed = self::granted(&outcomes[first]).unwrap();
    let other = if seed.port() == 1 { "l" } else { "k" };
    assert_eq!(one(&bench, finish(seed, number, Report::Unknown)).await, Outcome::Released(true));
    assert!(bench.acquire(other, 12).await.is_some());
    assert_eq!(bench.acquire("k", 13).await, None);
    // A lease that ends by itself gives its room back as well, without a sweep.
    bench.step(RULES.lease_ttl_ms);
    let outcomes = bench.apply(&(20..28).map(|n| acquire("k", n)).collect::<Vec<_>>()).await;
    assert_eq!(outcomes.iter().filter_map(self::granted).count(), 3);
    bench.restart(capped("10.1.0.1", 4)).await;
    assert!(bench.acquire("l", 30).await.is_some(), "what is set now counts");
    assert_eq!(bench.acquire("l", 31).await, None);
}

pub(crate) async fn a_full_host_hides_no_seed_of_another<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 1, ..capped("10.1.0.0/16", 1) }).await;
    // More seeds on one host than a page of candidates holds, all better than the one elsewhere.
    let mut commands: Vec<Command> =
        (1..=150).map(|port| tell(seed_on("10.1.0.1", port), "k", Profile::default())).collect();
    commands.push(tell(seed_on("10.9.0.1", 1), "k", Profile::default()));
    bench.apply(&commands).await;
    assert_eq!(bench.acquire("k", 1).await.unwrap().host(), "10.1.0.1");
    assert_eq!(bench.acquire("k", 2).await.unwrap().host(), "10.9.0.1");
    assert_eq!(bench.acquire("k", 3).await, None);
}

pub(crate) async fn nearer_seeds_are_chosen_and_full_ones_passed_over<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let places = [
        at("z2", "r1", "h5"),
        at("z1", "r2", "h4"),
        at("z1", "r1", "h3"),
        at("z1", "r1", "h1"),
        at("", "", ""),
    ];
    for (place, seed) in places.into_iter().zip(1..) {
        bench.apply(&[tell(identity(seed), "k", standing(place))]).await;
    }
    let near = Wish { location: at("z1", "r1", "h1"), ..Wish::default() };
    let mut order = Vec::new();
    for number in 0..6 {
        order.push(granted(&one(&bench, wish("k", number, near.clone())).await));
    }
    let expected = [Some(4), Some(3), Some(2), Some(1), Some(5), None];
    assert_eq!(order, expected.map(|seed| seed.map(identity)), "host, rack, zone, then the others");
}

pub(crate) async fn near_seeds_are_found_beyond_a_page<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let mut commands: Vec<Command> =
        (1..=200).map(|seed| tell(identity(seed), "k", standing(at("far", "", "")))).collect();
    commands.push(tell(identity(250), "k", standing(at("near", "", ""))));
    bench.apply(&commands).await;
    let near = Wish { location: at("near", "", ""), ..Wish::default() };
    let outcomes = bench.apply(&[wish("k", 1, near.clone()), wish("k", 2, near)]).await;
    assert_eq!(granted(&outcomes[0]), Some(identity(250)));
    assert!(granted(&outcomes[1]).is_some(), "one that is far is better than none");
}

pub(crate) async fn ranks_of_an_instance_are_served_by_one_instance<H: Home>() {
    for together in [true, false] {
        let bench = Bench::<H>::new(RULES).await;
        let keys = ["rank-0", "rank-1", "rank-2", "rank-3"];
        // Three instances; the seeds of the keys were used in different orders.
        for (instance, base) in [("a", 10), ("b", 20), ("c", 30)] {
            for (text, seed) in keys.iter().zip(base..) {
                bench.apply(&[tell(identity(seed), text, rank_of(instance))]).await;
            }
        }
        for (text, number) in keys.iter().zip(0u8..) {
            for seed in 0..number.min(2) {
                let spent = u32::from(number * 10 + seed) + 1_000;
                let used = bench.acquire(text, spent).await.unwrap();
                bench.step(1);
                bench.apply(&[finish(used, spent, Report::Ok)]).await;
            }
        }
        let mine = |number: u32| Wish { instance_id: Some(format!("new-{number}")), ..Wish::default() };
        for new in 0..2 {
            let commands: Vec<Command> =
                keys.iter().zip(0..).map(|(text, rank)| wish(text, new * 10 + rank, mine(new))).collect();
            let outcomes = if together {
                bench.apply(&commands).await
            } else {
                let mut outcomes = Vec::new();
                for command in commands {
                    outcomes.push(one(&bench, command).await);
                }
                outcomes
            };
            let seeds: Vec<String> =
                outcomes.iter().map(|outcome| granted(outcome).unwrap().host().to_owned()).collect();
            let instances: std::collections::BTreeSet<char> =
                seeds.iter().map(|host| host.chars().nth(7).unwrap()).collect();
            assert_eq!(instances.len(), 1, "one source for all ranks: {seeds:?}");
            let source = bench.store.source_instance(&format!("new-{new}")).await.unwrap();
            let base = instances.first().and_then(|base| base.to_digit(10)).unwrap();
            assert_eq!(source, ["a", "b", "c"].get(base as usize - 1).map(ToString::to_string));
        }
    }
}

pub(crate) async fn excluded_seeds_are_passed_over_beyond_a_page<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.apply(&(1..=66).map(|seed| register(seed, "k")).collect::<Vec<_>>()).await;
    // Identities are compared as texts: those not wanted are the first that would be chosen.
    let mut names: Vec<SeedIdentity> = (1..=66).map(identity).collect();
    names.sort_by_key(ToString::to_string);
    let left = names.split_off(64);
    let picky = Wish { exclude: names, ..Wish::default() };
    for number in 0..2 {
        let seed = granted(&one(&bench, wish("k", number, picky.clone())).await);
        assert!(left.contains(&seed.unwrap()));
    }
    let none = one(&bench, wish("k", 3, picky)).await;
    assert_eq!(none, Outcome::Acquired(Err(Refusal::AllBusy)));
    assert!(bench.acquire("k", 4).await.is_some(), "others take what it does not want");
}

pub(crate) async fn excluded_seeds_hide_none_whose_lease_has_just_ended<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    for seed in 1..=65 {
        bench.register(seed, "k").await;
        assert_eq!(bench.acquire("k", seed.into()).await, Some(identity(seed)));
        bench.step(1);
    }
    // All end by themselves, and nobody has swept; the worker does not want those that ended first.
    bench.step(RULES.lease_ttl_ms);
    let exclude = (1..=64).map(identity).collect();
    let granted = granted(&one(&bench, wish("k", 100, Wish { exclude, ..Wish::default() })).await);
    assert_eq!(granted, Some(identity(65)));
}

pub(crate) async fn a_failed_transfer_makes_a_seed_suspect_for_a_growing_while<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, heartbeat_ttl_ms: 1_000_000, ..RULES }).await;
    bench.register(1, "k").await;
    let mut number = 0;
    for pause in [1_000, 2_000, 4_000, 4_000] {
        number += 2;
        assert!(bench.acquire("k", number).await.is_some());
        assert!(bench.acquire("k", number + 1).await.is_some());
        // Both readers see the same trouble: it counts once.
        for lease in [number, number + 1] {
            let told = one(&bench, finish(identity(1), lease, Report::Failed)).await;
            assert_eq!(told, Outcome::Released(true));
        }
        assert_eq!(refusal(&bench, "k", 900 + number).await, Refusal::AllSuspect);
        // A sweep and a heartbeat change nothing of it.
        bench.store.sweep().await.unwrap();
        bench.register(1, "k").await;
        bench.step(pause - 1);
        assert_eq!(bench.acquire("k", 950 + number).await, None, "one millisecond is left of {pause}");
        bench.step(1);
    }
    assert!(bench.acquire("k", 100).await.is_some(), "back by itself");
}

pub(crate) async fn failures_are_forgotten_after_a_while_without_any<H: Home>() {
    let bench = Bench::<H>::new(Rules { heartbeat_ttl_ms: 1_000_000, ..RULES }).await;
    bench.register(1, "k").await;
    let mut number = 0;
    for (after, failures) in [(0, 1), (0, 2), (RULES.back_off.most_ms - 1, 3), (RULES.back_off.most_ms, 1)] {
        bench.step(after);
        number += 1;
        assert!(bench.acquire("k", number).await.is_some());
        one(&bench, finish(identity(1), number, Report::Failed)).await;
        let view = bench.view(1).await.unwrap();
        assert_eq!(view.failures, failures);
        bench.step(view.suspect_until_ms - bench.now());
    }
}

pub(crate) async fn a_suspect_seed_is_well_after_a_success_or_in_a_new_process<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    bench.apply(&[tell(identity(1), "k", incarnation("first"))]).await;
    for number in [1, 2] {
        assert!(bench.acquire("k", number).await.is_some());
    }
    one(&bench, finish(identity(1), 1, Report::Failed)).await;
    assert_eq!(bench.view(1).await.unwrap().failures, 1);
    assert_eq!(bench.acquire("k", 3).await, None);
    one(&bench, finish(identity(1), 2, Report::Ok)).await;
    assert_eq!(bench.view(1).await.unwrap().failures, 0);
    assert!(bench.acquire("k", 4).await.is_some(), "the other reader has its weights");
    one(&bench, finish(identity(1), 4, Report::Failed)).await;
    assert_eq!(bench.acquire("k", 5).await, None);
    bench.apply(&[tell(identity(1), "k", incarnation("first"))]).await;
    assert_eq!(bench.acquire("k", 6).await, None, "the same process");
    bench.apply(&[tell(identity(1), "k", incarnation("second"))]).await;
    assert!(bench.acquire("k", 7).await.is_some());
}

pub(crate) async fn refusals_say_why<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(refusal(&bench, "k", 0).await, Refusal::UnknownKey);
    bench.register(1, "k").await;
    bench.register(2, "other").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert_eq!(refusal(&bench, "k", 2).await, Refusal::AllBusy);
    one(&bench, finish(identity(1), 1, Report::Failed)).await;
    assert_eq!(refusal(&bench, "k", 3).await, Refusal::AllSuspect);
    bench.register(3, "k").await;
    assert!(bench.acquire("k", 4).await.is_some());
    assert_eq!(refusal(&bench, "k", 5).await, Refusal::AllBusy, "one is not suspect");
    bench.step(RULES.heartbeat_ttl_ms);
    assert_eq!(refusal(&bench, "k", 6).await, Refusal::UnknownKey, "both are silent");
}

pub(crate) async fn an_answer_is_a_sign_of_life<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 9, ..RULES }).await;
    let (_, id) = bench.register(1, "k").await;
    bench.step(7_000);
    let grant = async |number| match one(&bench, acquire("k", number)).await {
        Outcome::Acquired(Ok(grant)) => (grant.quiet_ms, grant.answers),
        other => panic!("{other:?}"),
    };
    assert_eq!(grant(1).await, (7_000, false));
    let answered = |seed| Command::Answered { identity: identity(seed), seed_id: id };
    assert_eq!(one(&bench, answered(1)).await, Outcome::Noted(true));
    bench.step(10);
    assert_eq!(grant(2).await, (10, true));
    assert_eq!(one(&bench, answered(2)).await, Outcome::Noted(false), "another seed's number");
    bench.step(90);
    bench.register(1, "k").await;
    assert_eq!(grant(3).await, (0, true));
    // It is no heartbeat: that is the seed's own.
    bench.step(RULES.heartbeat_ttl_ms - 1);
    assert!(bench.acquire("k", 4).await.is_some());
    assert_eq!(one(&bench, answered(1)).await, Outcome::Noted(true));
    bench.step(1);
    assert_eq!(bench.acquire("k", 5).await, None);
}

pub(crate) async fn an_answer_is_of_one_holding<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 9, ..RULES }).await;
    let answered = |seed_id| Command::Answered { identity: identity(1), seed_id };
    let grant = async |text: &str, number| match one(&bench, acquire(text, number)).await {
        Outcome::Acquired(Ok(grant)) => (grant.seed_id, grant.answers),
        other => panic!("{other:?}"),
    };
    bench.apply(&[tell(identity(1), "k", incarnation("first"))]).await;
    let (first, answers) = grant("k", 1).await;
    assert!(!answers);
    assert!(bench.release(1, 1).await);
    assert_eq!(one(&bench, answered(first)).await, Outcome::Noted(true), "whether it is leased or not");
    assert_eq!(grant("k", 2).await, (first, true));
    bench.apply(&[tell(identity(1), "k", incarnation("second"))]).await;
    assert_eq!(one(&bench, answered(first)).await, Outcome::Noted(false), "the process before was asked");
    let (second, answers) = grant("k", 3).await;
    assert!(!answers);
    let outcomes = bench.apply(&[answered(second), register(1, "l")]).await;
    assert_eq!(outcomes[0], Outcome::Noted(false), "registrations come first");
    assert!(!grant("l", 4).await.1, "it holds another key");
}

pub(crate) async fn other_memory_ends_the_leases_on_what_was<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let (_, first) = match one(&bench, tell(identity(1), "k", incarnation("first"))).await {
        Outcome::Registered(registration, id) => (registration, id),
        other => panic!("{other:?}"),
    };
    assert!(bench.acquire("k", 1).await.is_some());
    match one(&bench, tell(identity(1), "k", incarnation("second"))).await {
        Outcome::Registered(Registration::NewHolding, id) => assert_ne!(id, first),
        other => panic!("{other:?}"),
    }
    assert!(!bench.renew(1, 1).await, "it was on the memory of the process before");
    assert!(bench.acquire("k", 2).await.is_some());
    // One that does not tell, as v1 seeds do not, is taken at its key's word.
    assert_eq!(bench.register(1, "k").await.0, Registration::Repeated);
    assert!(bench.renew(1, 2).await);
}

pub(crate) async fn a_drained_seed_stays_out_while_its_memory_is_the_same<H: Home>() {
    let mut bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    bench.apply(&[tell(identity(1), "k", incarnation("first"))]).await;
    assert!(bench.acquire("k", 1).await.is_some());
    let drain = |seed, text: &str| Command::Drain { identity: identity(seed), key: key(text) };
    assert_eq!(one(&bench, drain(1, "other")).await, Outcome::Drained(None));
    assert_eq!(one(&bench, drain(2, "k")).await, Outcome::Drained(None));
    assert_eq!(one(&bench, drain(1, "k")).await, Outcome::Drained(Some(1)));
    assert_eq!(one(&bench, drain(1, "k")).await, Outcome::Drained(Some(1)), "twice is once");
    assert_eq!(refusal(&bench, "k", 2).await, Refusal::UnknownKey);
    assert!(bench.renew(1, 1).await, "its lease lives on");
    assert!(bench.release(1, 1).await);
    for _ in 0..2 {
        assert_eq!(bench.register(1, "k").await.0, Registration::Draining);
        assert_eq!(bench.acquire("k", 3).await, None, "a heartbeat does not bring it back");
        bench.store.sweep().await.unwrap();
        bench.restart(Rules { capacity: 2, ..RULES }).await;
    }
    bench.apply(&[tell(identity(1), "k", incarnation("second"))]).await;
    assert!(bench.acquire("k", 4).await.is_some());
}

pub(crate) async fn a_silence_does_not_bring_a_drained_seed_back<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let told = Profile { content_id: Some("old".into()), ..incarnation("first") };
    bench.apply(&[tell(identity(1), "k", told.clone())]).await;
    bench.register(2, "k").await;
    one(&bench, Command::Drain { identity: identity(1), key: key("k") }).await;
    assert_eq!(bench.store.invalidate(&key("k"), Some("new"), None).await.unwrap(), 1, "the second, too");
    let silent_and_swept = async |ms| {
        bench.step(ms);
        bench.store.sweep().await.unwrap();
    };
    for silence in [RULES.heartbeat_ttl_ms, DRAIN_MEMORY_MS - 1] {
        silent_and_swept(silence).await;
        let beat = heartbeat(1, "k");
        assert_eq!(one(&bench, beat).await, Outcome::Heard(Heard::Draining, None));
        for (seed, profile) in [(1, told.clone()), (2, Profile::default())] {
            let registered = one(&bench, tell(identity(seed), "k", profile)).await;
            assert!(matches!(registered, Outcome::Registered(Registration::Draining, _)), "{registered:?}");
        }
        assert_eq!(refusal(&bench, "k", 1).await, Refusal::UnknownKey);
    }
    // With other memory it comes back, however long it was silent.
    silent_and_swept(RULES.heartbeat_ttl_ms).await;
    bench
        .apply(&[tell(identity(1), "k", Profile { content_id: Some("new".into()), ..incarnation("second") })])
        .await;
    assert_eq!(bench.acquire("k", 2).await, Some(identity(1)));
    // In the end nobody remembers it.
    silent_and_swept(DRAIN_MEMORY_MS).await;
    assert_eq!(bench.view(2).await, None);
    assert_eq!(bench.register(2, "k").await.0, Registration::New);
}

pub(crate) async fn invalidating_a_key_drains_all_but_the_content_that_stays<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let profiles = [content("old"), content("new"), Profile::default()];
    for (profile, seed) in profiles.into_iter().zip(1..) {
        bench.apply(&[tell(identity(seed), "k", profile)]).await;
    }
    bench.register(4, "other").await;
    assert_eq!(bench.store.invalidate(&key("k"), Some("new"), None).await.unwrap(), 2);
    assert_eq!(bench.store.invalidate(&key("k"), Some("new"), None).await.unwrap(), 0);
    assert_eq!(bench.acquire("k", 1).await, Some(identity(2)));
    assert_eq!(bench.acquire("k", 2).await, None);
    assert!(bench.acquire("other", 3).await.is_some());
    // The worker of the first has loaded the new weights.
    bench.apply(&[tell(identity(1), "k", content("new"))]).await;
    assert_eq!(bench.acquire("k", 4).await, Some(identity(1)));
    assert_eq!(bench.store.invalidate(&key("k"), None, None).await.unwrap(), 2, "without a content, all");
    assert_eq!(bench.acquire("k", 5).await, None);
}

pub(crate) async fn what_a_seed_tells_is_kept_until_it_tells_otherwise<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    let mut told = Profile {
        location: at("z", "r", "h"),
        instance_id: Some("i".into()),
        incarnation: Some("n".into()),
        content_id: Some("c".into()),
        ..Profile::default()
    };
    told.labels.model_url = Some("/models/m".into());
    told.labels.is_draft = Some(true);
    bench.apply(&[tell(identity(1), "k", told.clone())]).await;
    bench.register(1, "k").await;
    assert_eq!(bench.view(1).await.unwrap().profile, told);
    told.location.rack = Some("r2".into());
    bench.apply(&[tell(identity(1), "k", standing(at("", "r2", "")))]).await;
    bench.restart(RULES).await;
    assert_eq!(bench.view(1).await.unwrap().profile, told);
}
