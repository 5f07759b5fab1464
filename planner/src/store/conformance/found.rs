//! What the simulation found, each case as short as it was made.

use super::waiting::{again, attempt, queue};
use super::*;
use crate::domain::location::Location;
use crate::domain::seed::Profile;
use crate::domain::terms::Overrides;

pub(crate) async fn reports_count_in_the_order_of_a_batch<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    bench.register(1, "k").await;
    let finish = |number, report| Command::Release {
        identity: identity(1),
        lease: lease(number),
        report,
        account: None,
    };
    for (first, reports) in [(0, [Report::Failed, Report::Ok]), (2, [Report::Ok, Report::Failed])] {
        assert!(bench.acquire("k", first).await.is_some());
        assert!(bench.acquire("k", first + 1).await.is_some());
        let outcomes = bench.apply(&[finish(first, reports[0]), finish(first + 1, reports[1])]).await;
        assert_eq!(outcomes, [Outcome::Released(true), Outcome::Released(true)]);
        let failures = u32::from(reports[1] == Report::Failed);
        assert_eq!(bench.view(1).await.unwrap().failures, failures, "{reports:?}: the last one counts");
    }
}

pub(crate) async fn a_seed_that_is_drained_as_it_comes_stays_out<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let drain = Command::Drain { identity: identity(1), key: key("k") };
    let outcomes = bench.apply(&[register(1, "k"), drain]).await;
    assert_eq!(outcomes[1], Outcome::Drained(Some(0)));
    assert!(bench.view(1).await.unwrap().draining);
    assert_eq!(bench.acquire("k", 1).await, None);
    assert_eq!(bench.register(1, "k").await.0, Registration::Draining);
}

pub(crate) async fn no_false_refusal_when_another_seed_of_a_full_host_holds_something_else<H: Home>() {
    let host_capacity = vec![("10.0.0.*".parse().unwrap(), 1)];
    let overrides = Some(Arc::new(Overrides { host_capacity, ..Overrides::default() }));
    let bench = Bench::<H>::new(Rules { overrides, ..RULES }).await;
    let on_host = |seed: u8, text: &str| {
        let location = Location { host: Some("h".into()), ..Location::default() };
        let profile = Profile { location, ..Profile::default() };
        registering(seed, text, profile)
    };
    bench.apply(&[on_host(1, "k"), on_host(2, "k")]).await;
    assert_eq!(bench.acquire("k", 1).await, Some(identity(1)));
    assert_eq!(bench.acquire("k", 2).await, None);
    // Its lease ends, so the host may lend again.
    bench.apply(&[on_host(1, "l")]).await;
    assert_eq!(bench.acquire("k", 3).await, Some(identity(2)));
}

pub(crate) async fn a_heartbeat_beside_its_seed_s_registration_is_told_the_number<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let beat = heartbeat(1, "k");
    let outcomes = bench.apply(&[register(1, "k"), beat]).await;
    let Outcome::Registered(Registration::New, number) = outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(outcomes[1], Outcome::Heard(super::super::Heard::Known, Some(number)));
}

pub(crate) async fn a_seed_that_was_drained_and_removed_goes_with_its_last_lease<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    bench.apply(&[Command::Drain { identity: identity(1), key: key("k") }]).await;
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
    bench.step(RULES.lease_ttl_ms);
    assert_eq!(bench.store.sweep().await.unwrap().seeds, 1);
    assert_eq!(bench.view(1).await, None);
}

pub(crate) async fn who_was_given_a_dead_seed_has_another_one_when_its_lease_has_ended<H: Home>() {
    for (number, first) in [(1, queue("k", 1, 50_000)), (2, attempt(2, 1, 50_000, 0))] {
        let bench = Bench::<H>::new(RULES).await;
        bench.register(1, "k").await;
        bench.apply(std::slice::from_ref(&first)).await;
        assert!(bench.renew(1, number).await);
        bench.step(RULES.lease_ttl_ms);
        // Its point is free, and nobody has leased it anew.
        bench.register(2, "k").await;
        bench.apply(&[again(first)]).await;
        assert!(bench.renew(2, number).await);
    }
}

pub(crate) async fn a_repetition_comes_beside_whoever_wants_its_place_again<H: Home>() {
    for last in [101, 2] {
        let bench = Bench::<H>::new(RULES).await;
        bench.register(1, "k").await;
        bench.apply(&[attempt(1, 1, 50_000, 1)]).await;
        let report = Report::Failed;
        let failed = Command::Release { identity: identity(1), lease: lease(1), report, account: None };
        let mut commands = [failed, attempt(1, 1, 50_000, 2), again(attempt(1, 1, 50_000, 1))];
        if last == 2 {
            commands.swap(1, 2);
        }
        let outcomes = bench.apply(&commands).await;
        assert!(matches!(outcomes[1..], [Outcome::Queued(_), Outcome::Queued(_)]), "{outcomes:?}");
        bench.step(RULES.back_off.first_ms);
        bench.apply(&[Command::Serve { key: key("k") }]).await;
        let woken = bench.store.collect(&[]).await.unwrap();
        let attempts: Vec<_> = woken.iter().map(|woken| (woken.lease, woken.attempt)).collect();
        assert_eq!(attempts, [(lease(1), last)], "the last one has the place");
    }
}
