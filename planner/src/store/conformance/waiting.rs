//! Waiting in the database: in order, once each, and told apart from repetitions.

use super::*;
use crate::store::{Idempotency, Leaving, Left, PLANNER_TTL_MS, Queue, Told};

pub(crate) fn queue(text: &str, number: u32, wait_ms: i64) -> Command {
    let queue = Some(Box::new(Queue { wait_ms, ..Queue::default() }));
    Command::Acquire { key: key(text), wish: Box::default(), lease: lease(number), queue }
}

/// Under an idempotency key, whose repetitions have the same lease.
fn repeatable(number: u8, request: u8, wait_ms: i64) -> Command {
    attempt(number, request, wait_ms, 0)
}

/// One of several attempts of such a request.
pub(crate) fn attempt(number: u8, request: u8, wait_ms: i64, attempt: i64) -> Command {
    let idempotency = Some(Idempotency { key: [number; 32], request: [request; 32] });
    let queue = Some(Box::new(Queue { wait_ms, idempotency, attempt, again: None }));
    Command::Acquire { key: key("k"), wish: Box::default(), lease: lease(number.into()), queue }
}

/// The same acquisition, for one whose seed did not answer: another attempt.
pub(crate) fn again(mut acquire: Command) -> Command {
    if let Command::Acquire { queue: Some(queue), .. } = &mut acquire {
        queue.again = Some(queue.attempt);
        queue.attempt += 100;
    }
    acquire
}

/// As [`queue`], of one that does not want these seeds.
fn queue_without(text: &str, number: u32, wait_ms: i64, seeds: &[u8]) -> Command {
    let mut acquire = queue(text, number, wait_ms);
    if let Command::Acquire { wish, .. } = &mut acquire {
        wish.exclude = seeds.iter().copied().map(identity).collect();
    }
    acquire
}

fn leave(number: u32, why: Leaving) -> Command {
    leave_attempt(number, 0, why)
}

pub(crate) fn leave_attempt(number: u32, attempt: i64, why: Leaving) -> Command {
    Command::Leave { lease: lease(number), attempt, why }
}

async fn one<H: Home>(bench: &Bench<H>, command: Command) -> Outcome {
    bench.apply(&[command]).await.remove(0)
}

async fn queued<H: Home>(bench: &Bench<H>, command: Command) -> Option<i64> {
    match one(bench, command).await {
        Outcome::Queued(next_end_ms) => next_end_ms,
        other => panic!("{other:?}"),
    }
}

async fn left<H: Home>(bench: &Bench<H>, number: u32, why: Leaving) -> bool {
    match one(bench, leave(number, why)).await {
        Outcome::Left(left) => matches!(left, Left::Granted { .. }),
        other => panic!("{other:?}"),
    }
}

/// Numbers of those whose turn came, each with its seed.
async fn collect<H: Home>(bench: &Bench<H>) -> Vec<(u32, Option<SeedIdentity>)> {
    let woken = bench.store.collect(&[]).await.unwrap();
    let mut collected: Vec<_> = woken
        .iter()
        .map(|woken| {
            let number = u32::from_be_bytes(woken.lease[..4].try_into().unwrap());
            (number, woken.grant.as_ref().map(|grant| grant.identity.clone()))
        })
        .collect();
    collected.sort();
    // They are told.
    let told: Vec<Told> = woken.into_iter().map(|woken| (woken.lease, woken.attempt)).collect();
    assert_eq!(bench.store.collect(&told).await.unwrap(), []);
    collected
}

pub(crate) async fn those_who_wait_are_served_in_their_order_and_once<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 0).await.is_some());
    assert_eq!(
        queued(&bench, queue("k", 1, 100_000)).await,
        Some(RULES.lease_ttl_ms),
        "when that lease ends"
    );
    for number in 2..100 {
        queued(&bench, queue("k", number, 100_000)).await;
    }
    let mut held = 0;
    for number in 1..100 {
        assert_eq!(collect(&bench).await, [], "nothing is free");
        assert!(bench.release(1, held).await);
        // One who came later, and does not wait, finds nothing.
        assert_eq!(bench.acquire("k", 1_000 + number).await, None);
        assert_eq!(collect(&bench).await, [(number, Some(identity(1)))]);
        assert!(bench.renew(1, number).await);
        held = number;
    }
    assert!(bench.release(1, held).await);
    assert_eq!(collect(&bench).await, []);
    assert!(bench.acquire("k", 2_000).await.is_some(), "nobody waits any more");
}

pub(crate) async fn a_new_seed_serves_those_who_wait<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    assert_eq!(queued(&bench, queue("k", 1, 100_000)).await, None, "nothing ends by itself");
    for number in 2..=5 {
        queued(&bench, queue("k", number, 100_000)).await;
    }
    bench.register(1, "k").await;
    assert_eq!(collect(&bench).await.len(), 2);
    bench.register(9, "other").await;
    assert_eq!(collect(&bench).await, []);
    bench.apply(&[register(2, "k"), register(3, "k")]).await;
    let woken: Vec<u32> = collect(&bench).await.into_iter().map(|(number, _)| number).collect();
    assert_eq!(woken, [3, 4, 5]);
}

pub(crate) async fn a_lease_that_ends_by_itself_serves_who_waits_when_asked<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    let next = queued(&bench, queue("k", 2, 100_000)).await.unwrap();
    bench.step(next - 1);
    let serve = || Command::Serve { key: key("k") };
    collect(&bench).await;
    assert_eq!(one(&bench, serve()).await, Outcome::Served(Some(1)));
    assert_eq!(collect(&bench).await, []);
    bench.step(1);
    assert_eq!(one(&bench, serve()).await, Outcome::Served(Some(RULES.lease_ttl_ms)));
    assert_eq!(collect(&bench).await, [(2, Some(identity(1)))]);
    assert_eq!(one(&bench, serve()).await, Outcome::Served(Some(RULES.lease_ttl_ms)), "once");
    assert_eq!(collect(&bench).await, []);
}

pub(crate) async fn who_gives_up_leaves_its_place_to_the_next<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    for number in 2..=5 {
        queued(&bench, queue("k", number, 100_000)).await;
    }
    assert!(!left(&bench, 2, Leaving::TimedOut).await);
    assert!(!left(&bench, 3, Leaving::Gone).await);
    assert!(bench.release(1, 1).await);
    // Number 4 was served, and its client is gone in that moment: 5 has the point at once.
    assert!(left(&bench, 4, Leaving::Gone).await);
    assert_eq!(collect(&bench).await, [(5, Some(identity(1)))]);
    assert!(!bench.renew(1, 4).await);
    assert!(bench.renew(1, 5).await);
    assert!(!left(&bench, 77, Leaving::Gone).await, "nobody");
}

pub(crate) async fn whose_time_is_over_keeps_what_it_was_given_in_that_moment<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    queued(&bench, queue("k", 1, 1_000)).await;
    bench.register(1, "k").await;
    assert!(left(&bench, 1, Leaving::TimedOut).await);
    assert!(bench.renew(1, 1).await);
    assert_eq!(collect(&bench).await, [], "it has been told");
}

pub(crate) async fn a_wait_ends_and_its_row_is_swept<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    queued(&bench, queue("k", 1, 1_000)).await;
    bench.step(1_000);
    bench.register(1, "k").await;
    assert_eq!(collect(&bench).await, [], "its time is over");
    assert!(bench.acquire("k", 2).await.is_some());
    bench.step(PLANNER_TTL_MS);
    bench.store.sweep().await.unwrap();
    assert!(!left(&bench, 1, Leaving::TimedOut).await);
}

pub(crate) async fn waiters_of_a_planner_that_died_are_passed_over<H: Home>() {
    let mut bench = Bench::<H>::new(Rules { heartbeat_ttl_ms: 1_000_000, ..RULES }).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    queued(&bench, queue("k", 2, 1_000_000)).await;
    // kill -9, and another process on the same database.
    bench.restart(Rules { heartbeat_ttl_ms: 1_000_000, ..RULES }).await;
    bench.step(PLANNER_TTL_MS - 1);
    assert!(bench.renew(1, 1).await);
    queued(&bench, queue("k", 3, 1_000_000)).await;
    bench.step(1);
    assert!(bench.release(1, 1).await);
    assert_eq!(collect(&bench).await, [(3, Some(identity(1)))], "its own waiter");
    assert!(!left(&bench, 2, Leaving::Gone).await);
}

pub(crate) async fn a_repeated_acquisition_has_the_same_lease<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    bench.apply(&[register(1, "k"), register(2, "k")]).await;
    let first = granted(&one(&bench, repeatable(1, 1, 0)).await).unwrap();
    bench.restart(RULES).await;
    assert_eq!(granted(&one(&bench, repeatable(1, 1, 0)).await), Some(first.clone()));
    let outcomes = bench.apply(&[repeatable(1, 1, 0), repeatable(2, 2, 0), repeatable(2, 2, 0)]).await;
    assert_eq!(granted(&outcomes[0]), Some(first));
    assert_eq!(granted(&outcomes[1]), granted(&outcomes[2]), "at the same time, too");
    assert_eq!(bench.snapshot().await.lease_count, 2);
    assert_eq!(one(&bench, repeatable(1, 9, 0)).await, Outcome::Acquired(Err(Refusal::OtherRequest)));
    let other = bench.apply(&[repeatable(3, 1, 0), repeatable(3, 2, 0)]).await;
    assert_eq!(other[1], Outcome::Acquired(Err(Refusal::OtherRequest)));
    for seed in 1..=2 {
        bench.release(seed, 1).await;
    }
    assert_eq!(one(&bench, repeatable(1, 1, 0)).await, Outcome::Acquired(Err(Refusal::LeaseEnded)));
    bench.step(RULES.lease_ttl_ms);
    assert_eq!(one(&bench, repeatable(2, 2, 0)).await, Outcome::Acquired(Err(Refusal::LeaseEnded)));
}

pub(crate) async fn a_repeated_acquisition_keeps_its_place<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 90).await.is_some());
    queued(&bench, repeatable(1, 1, 50_000)).await;
    queued(&bench, queue("k", 2, 50_000)).await;
    // Its client lost the connection: it is passed over until it comes back, here to another planner.
    assert!(!left(&bench, 1, Leaving::Gone).await);
    bench.restart(RULES).await;
    bench.step(PLANNER_TTL_MS);
    assert!(bench.renew(1, 90).await);
    queued(&bench, queue("k", 3, 50_000)).await;
    queued(&bench, repeatable(1, 1, 50_000)).await;
    assert!(bench.release(1, 90).await);
    assert_eq!(collect(&bench).await, [(1, Some(identity(1)))], "before those who came after it");
    assert_eq!(granted(&one(&bench, repeatable(1, 1, 50_000)).await), Some(identity(1)));
    // Its answer is lost: the lease is kept for a repetition.
    assert!(left(&bench, 1, Leaving::Gone).await);
    assert_eq!(granted(&one(&bench, repeatable(1, 1, 50_000)).await), Some(identity(1)));
}

pub(crate) async fn who_was_given_a_dead_seed_has_its_place_again<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    let report = |number, report| Command::Release {
        identity: identity(1),
        lease: lease(number),
        report,
        account: None,
    };
    // One that may be repeated, and one that may not.
    for (number, first) in [(1, attempt(1, 1, 50_000, 7)), (11, queue("k", 11, 50_000))] {
        assert!(bench.acquire("k", 90).await.is_some());
        queued(&bench, first.clone()).await;
        queued(&bench, queue("k", number + 1, 50_000)).await;
        assert!(bench.release(1, 90).await);
        assert_eq!(bench.store.collect(&[]).await.unwrap().len(), 1);
        // The planner asked the seed, which did not answer.
        let told: Vec<Told> = vec![(lease(number), if number == 1 { 7 } else { 0 })];
        let outcomes = bench.apply(&[report(number, Report::Failed), again(first)]).await;
        assert!(matches!(outcomes[1], Outcome::Queued(_)), "{outcomes:?}");
        bench.step(RULES.back_off.first_ms);
        one(&bench, Command::Serve { key: key("k") }).await;
        // That it was told the first time says nothing of this one.
        assert_eq!(bench.store.collect(&told).await.unwrap().len(), 1);
        assert_eq!(collect(&bench).await, [(number, Some(identity(1)))], "before those who came after it");
        bench.apply(&[report(number, Report::Ok)]).await;
        assert_eq!(collect(&bench).await, [(number + 1, Some(identity(1)))]);
        assert!(bench.release(1, number + 1).await);
    }
    // Whose time is over is decided at once.
    assert!(bench.acquire("k", 91).await.is_some());
    queued(&bench, queue("k", 30, 50_000)).await;
    assert!(bench.release(1, 91).await);
    assert_eq!(collect(&bench).await, [(30, Some(identity(1)))]);
    let outcomes = bench.apply(&[report(30, Report::Failed), again(queue("k", 30, 0))]).await;
    assert_eq!(outcomes[1], Outcome::Acquired(Err(Refusal::AllSuspect)));
}

pub(crate) async fn an_attempt_ends_no_later_one<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 90).await.is_some());
    for why in [Leaving::Gone, Leaving::TimedOut] {
        queued(&bench, attempt(1, 1, 50_000, 1)).await;
        queued(&bench, queue("k", 2, 50_000)).await;
        // The end of the first and the repetition, in either order, and in one batch.
        queued(&bench, attempt(1, 1, 50_000, 2)).await;
        assert_eq!(one(&bench, leave_attempt(1, 1, why)).await, Outcome::Left(Left::Superseded));
        let outcomes = bench.apply(&[attempt(1, 1, 50_000, 3), leave_attempt(1, 2, Leaving::Gone)]).await;
        assert!(matches!(outcomes[0], Outcome::Queued(_)), "{outcomes:?}");
        // Two at once: the later one has the place.
        bench.apply(&[attempt(1, 1, 50_000, 4), attempt(1, 1, 50_000, 5)]).await;
        assert_eq!(one(&bench, leave_attempt(1, 4, why)).await, Outcome::Left(Left::Superseded));
        assert!(bench.release(1, 90).await);
        assert_eq!(collect(&bench).await, [(1, Some(identity(1)))]);
        assert_eq!(one(&bench, leave_attempt(1, 4, Leaving::Gone)).await, Outcome::Left(Left::Superseded));
        assert!(bench.release(1, 1).await);
        assert_eq!(collect(&bench).await, [(2, Some(identity(1)))]);
        // For the next turn: the first request is forgotten, and the point is held as it was.
        assert!(bench.release(1, 2).await);
        bench.step(RULES.history.ms);
        bench.restart(Rules { heartbeat_ttl_ms: 10_000_000, ..RULES }).await;
        bench.store.sweep().await.unwrap();
        bench.register(1, "k").await;
        assert!(bench.acquire("k", 90).await.is_some());
    }
}

pub(crate) async fn who_was_served_is_named_until_it_was_told<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    queued(&bench, queue("k", 1, 50_000)).await;
    queued(&bench, repeatable(2, 1, 50_000)).await;
    bench.register(1, "k").await;
    let named = async || {
        let mut woken: Vec<_> =
            bench.store.collect(&[]).await.unwrap().into_iter().map(|woken| woken.lease).collect();
        woken.sort_unstable();
        woken
    };
    // The answer to the first was lost on its way.
    assert_eq!(named().await, [lease(1), lease(2)]);
    assert_eq!(named().await, [lease(1), lease(2)]);
    assert_eq!(bench.store.collect(&[(lease(1), 0)]).await.unwrap().len(), 1);
    assert_eq!(bench.store.collect(&[(lease(2), 1)]).await.unwrap().len(), 1, "of another attempt");
    assert_eq!(bench.store.collect(&[(lease(1), 0), (lease(2), 0)]).await.unwrap(), []);
    assert!(bench.renew(1, 1).await);
    assert_eq!(granted(&one(&bench, repeatable(2, 1, 0)).await), Some(identity(1)), "a repetition");
}

pub(crate) async fn many_who_wait_come_before_those_who_are_new<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 200, ..RULES }).await;
    for number in 1..=150 {
        queued(&bench, queue("k", number, 50_000)).await;
    }
    let outcomes = bench.apply(&[register(1, "k"), acquire("k", 1_000)]).await;
    assert!(granted(&outcomes[1]).is_some());
    let woken: Vec<u32> = collect(&bench).await.into_iter().map(|(number, _)| number).collect();
    assert_eq!(woken, (1..=150).collect::<Vec<_>>(), "all, in one transaction");
    // One that is wanted by none of the first hundred.
    for number in 200..300 {
        queued(&bench, queue_without("l", number, 50_000, &[2])).await;
    }
    queued(&bench, queue("l", 300, 50_000)).await;
    bench.register(2, "l").await;
    assert_eq!(collect(&bench).await, [(300, Some(identity(2)))]);
}

pub(crate) async fn a_silent_seed_that_is_heard_of_serves_who_waits<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    bench.step(RULES.heartbeat_ttl_ms);
    queued(&bench, queue("k", 1, 50_000)).await;
    bench.apply(&[heartbeat(1, "k")]).await;
    assert_eq!(collect(&bench).await, [(1, Some(identity(1)))]);
}

pub(crate) async fn a_release_serves_who_waits_for_another_key_of_a_full_host<H: Home>() {
    let overrides = crate::domain::terms::Overrides {
        host_capacity: vec![("10.0.0.1".parse().unwrap(), 1)],
        ..Default::default()
    };
    let bench = Bench::<H>::new(Rules { overrides: Some(Arc::new(overrides)), ..RULES }).await;
    let on_host = |port, text| Command::Register {
        identity: SeedIdentity::new("10.0.0.1", port, 0).unwrap(),
        key: key(text),
        profile: Box::default(),
        age_ms: 0,
        client: None,
        owner: Owner::default(),
    };
    bench.apply(&[on_host(8_000, "k"), on_host(8_001, "l")]).await;
    assert!(bench.acquire("k", 1).await.is_some());
    queued(&bench, queue("l", 2, 50_000)).await;
    assert!(bench.release(1, 1).await);
    let woken: Vec<u32> = collect(&bench).await.into_iter().map(|(number, _)| number).collect();
    assert_eq!(woken, [2]);
}

pub(crate) async fn a_request_is_remembered_while_its_lease_is_renewed<H: Home>() {
    let bench = Bench::<H>::new(Rules { heartbeat_ttl_ms: 100_000_000, ..RULES }).await;
    bench.apply(&[register(1, "k"), register(2, "k")]).await;
    let seed = granted(&one(&bench, repeatable(1, 1, 0)).await).unwrap();
    let number = if seed == identity(1) { 1 } else { 2 };
    let begun = bench.now();
    while bench.now() <= begun + RULES.history.ms {
        bench.step(RULES.lease_ttl_ms - 1);
        assert!(bench.renew(number, 1).await);
    }
    bench.store.sweep().await.unwrap();
    assert_eq!(granted(&one(&bench, repeatable(1, 1, 0)).await), Some(seed), "one lease, not two");
    assert!(bench.release(number, 1).await);
    bench.store.sweep().await.unwrap();
    assert!(granted(&one(&bench, repeatable(1, 1, 0)).await).is_some(), "forgotten: a new one");
}

pub(crate) async fn a_refused_acquisition_may_be_repeated<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(one(&bench, repeatable(1, 1, 0)).await, Outcome::Acquired(Err(Refusal::UnknownKey)));
    queued(&bench, repeatable(1, 1, 1_000)).await;
    assert!(!left(&bench, 1, Leaving::TimedOut).await);
    bench.register(1, "k").await;
    assert!(granted(&one(&bench, repeatable(1, 1, 0)).await).is_some());
}

pub(crate) async fn nobody_overtakes_who_is_put_off_for_its_instance<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    for number in 1..=3 {
        let mut waiting = queue("k", number, 100_000);
        if let Command::Acquire { wish, .. } = &mut waiting {
            // The third belongs to no instance.
            wish.instance_id = (number < 3).then(|| "i".into());
        }
        queued(&bench, waiting).await;
    }
    let mut seed = register(1, "k");
    if let Command::Register { profile, .. } = &mut seed {
        profile.instance_id = Some("source".into());
    }
    bench.apply(&[seed]).await;
    let woken: Vec<u32> = collect(&bench).await.into_iter().map(|(number, _)| number).collect();
    assert_eq!(woken, [1, 2]);
}

pub(crate) async fn a_repetition_beside_one_whose_seed_does_not_answer_is_the_same<H: Home>() {
    for repetition_first in [true, false] {
        let bench = Bench::<H>::new(RULES).await;
        bench.apply(&[register(1, "k"), register(2, "k")]).await;
        let seed = granted(&one(&bench, attempt(1, 1, 0, 1)).await).unwrap();
        let report = Report::Failed;
        let failed = Command::Release { identity: seed.clone(), lease: lease(1), report, account: None };
        let [repetition, again] = [attempt(1, 1, 1_000, 2), again(attempt(1, 1, 1_000, 1))];
        let batch = if repetition_first { [failed, repetition, again] } else { [failed, again, repetition] };
        let outcomes = bench.apply(&batch).await;
        assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Outcome::Queued(_))), "{outcomes:?}");
        let [woken] = &bench.store.collect(&[]).await.unwrap()[..] else { panic!("one lease") };
        assert_ne!(woken.grant.as_ref().unwrap().identity, seed);
        assert_eq!(woken.attempt, if repetition_first { 101 } else { 2 }, "the last has the place");
        assert_eq!(bench.snapshot().await.lease_count, 1);
    }
}

pub(crate) async fn a_repetition_has_the_lease_and_what_becomes_of_it<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.apply(&[register(1, "k"), register(2, "k")]).await;
    let seed = granted(&one(&bench, attempt(1, 1, 0, 1)).await).unwrap();
    // Its answer was lost, and so the second attempt finds the seed dead.
    assert_eq!(granted(&one(&bench, attempt(1, 1, 0, 2)).await), Some(seed.clone()));
    let report = Report::Failed;
    let failed = Command::Release { identity: seed.clone(), lease: lease(1), report, account: None };
    let outcomes = bench.apply(&[failed, again(attempt(1, 1, 0, 2))]).await;
    let other = granted(&outcomes[1]).unwrap();
    assert_ne!(other, seed);
    // One that is alive is no other's, and is kept when nothing came of asking once more.
    assert_eq!(granted(&one(&bench, again(attempt(1, 1, 0, 102))).await), Some(other.clone()));
    let left = one(&bench, leave_attempt(1, 102, Leaving::Void)).await;
    assert!(matches!(left, Outcome::Left(Left::Granted { .. })), "{left:?}");
    // One that is over, and that nobody was given another one for, is forgotten: a repetition begins anew.
    let release = Command::Release { identity: other, lease: lease(1), report, account: None };
    bench.apply(&[release]).await;
    assert_eq!(one(&bench, leave_attempt(1, 102, Leaving::Void)).await, Outcome::Left(Left::Over));
    bench.step(RULES.back_off.most_ms);
    assert!(granted(&one(&bench, attempt(1, 1, 0, 3)).await).is_some());
}

pub(crate) async fn a_repetition_that_does_not_wait_takes_nobody_s_place<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    queued(&bench, attempt(1, 1, 50_000, 1)).await;
    assert_eq!(one(&bench, attempt(1, 1, 0, 2)).await, Outcome::Acquired(Err(Refusal::AllBusy)));
    bench.register(1, "k").await;
    let [woken] = &bench.store.collect(&[]).await.unwrap()[..] else { panic!("one lease") };
    assert_eq!(woken.attempt, 1);
    // Where nobody waits any more it is served like any other.
    queued(&bench, attempt(2, 1, 50_000, 1)).await;
    one(&bench, leave_attempt(2, 1, Leaving::Gone)).await;
    bench.register(2, "k").await;
    one(&bench, attempt(2, 1, 0, 2)).await;
    let left = one(&bench, leave_attempt(2, 2, Leaving::TimedOut)).await;
    assert!(matches!(left, Outcome::Left(Left::Granted { .. })), "{left:?}");
    // Nor is one refused for a planner that died.
    queued(&bench, attempt(3, 1, 500_000, 1)).await;
    bench.restart(RULES).await;
    bench.step(PLANNER_TTL_MS);
    bench.register(3, "k").await;
    one(&bench, attempt(3, 1, 0, 2)).await;
    let left = one(&bench, leave_attempt(3, 2, Leaving::TimedOut)).await;
    assert!(matches!(left, Outcome::Left(Left::Granted { .. })), "{left:?}");
}
