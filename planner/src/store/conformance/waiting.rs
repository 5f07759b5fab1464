//! Waiting in the database: in order, once each, and told apart from repetitions.

use super::*;
use crate::store::{Idempotency, Leaving, PLANNER_TTL_MS, Queue};

fn queue(text: &str, number: u32, wait_ms: i64) -> Command {
    let queue = Some(Box::new(Queue { wait_ms, idempotency: None }));
    Command::Acquire { key: key(text), wish: Box::default(), lease: lease(number), queue }
}

/// Under an idempotency key, whose repetitions have the same lease.
fn repeatable(number: u8, request: u8, wait_ms: i64) -> Command {
    let idempotency = Some(Idempotency { key: [number; 32], request: [request; 32] });
    let queue = Some(Box::new(Queue { wait_ms, idempotency }));
    Command::Acquire { key: key("k"), wish: Box::default(), lease: lease(number.into()), queue }
}

fn leave(number: u32, why: Leaving) -> Command {
    Command::Leave { lease: lease(number), why }
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
        Outcome::Left(grant) => grant.is_some(),
        other => panic!("{other:?}"),
    }
}

/// Numbers of those whose turn came, each with its seed.
async fn collect<H: Home>(bench: &Bench<H>) -> Vec<(u32, Option<SeedIdentity>)> {
    let woken = bench.store.collect().await.unwrap();
    let mut woken: Vec<_> = woken
        .into_iter()
        .map(|woken| {
            let number = u32::from_be_bytes(woken.lease[..4].try_into().unwrap());
            (number, woken.grant.map(|grant| grant.identity))
        })
        .collect();
    woken.sort();
    woken
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
    bench.store.collect().await.unwrap();
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
    // The planner found the seed dead: a repetition begins anew.
    bench.release(1, 1).await;
    one(&bench, leave(1, Leaving::Void)).await;
    let next: Vec<u32> = collect(&bench).await.into_iter().map(|(number, _)| number).collect();
    assert_eq!(next, [3]);
    queued(&bench, repeatable(1, 1, 50_000)).await;
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
