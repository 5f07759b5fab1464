//! Quotas: what is beyond them is refused by its name, and what is there goes on.

use super::waiting::{attempt, queue};
use super::*;
use crate::decide::quota::Quota;
use crate::decide::rows::SeedRow;
use crate::store::commands::NoRoom;
use crate::store::{Heard, Room, Usage};

const NO_ROOM: Outcome = Outcome::NoRoom(NoRoom(Quota::Seeds));

fn rules(room: Room) -> Rules {
    Rules { room, ..RULES }
}

/// Why an acquisition was refused.
fn refused(outcome: &Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Acquired(Err(refusal)) => Some(*refusal),
        _ => None,
    }
}

pub(crate) async fn what_is_there_goes_on_while_there_is_room_for_no_other_seed<H: Home>() {
    let rules = rules(Room { seeds: 2, ..Room::AMPLE });
    let mut bench = Bench::<H>::new(rules.clone()).await;
    let outcomes = bench.apply(&[register(1, "k"), register(2, "k"), register(3, "k")]).await;
    assert!(matches!(outcomes[..2], [Outcome::Registered(..), Outcome::Registered(..)]), "{outcomes:?}");
    assert_eq!(outcomes[2], NO_ROOM, "the third of a batch");
    let used = Usage { quota: Quota::Seeds, used: 2, most: 2 };
    assert!(bench.store.usage().await.unwrap().contains(&used));
    for restarts in [false, true] {
        if restarts {
            bench.restart(rules.clone()).await;
        }
        assert_eq!(bench.one(register(3, "k")).await, NO_ROOM);
        let (registration, id) = bench.register(1, "k").await;
        assert_eq!(registration, Registration::Repeated);
        assert_eq!(bench.store.flush(&[Beat { seed_id: id, age_ms: 0 }]).await.unwrap().len(), 0);
        let beat = heartbeat(1, "k");
        assert!(matches!(bench.one(beat).await, Outcome::Heard(Heard::Known, _)));
        let lease = 1 + u32::from(restarts);
        let seed = bench.acquire("k", lease).await.unwrap();
        let seed = (1..=2).find(|number| identity(*number) == seed).unwrap();
        assert!(bench.renew(seed, lease).await);
        assert!(bench.release(seed, lease).await);
    }
    // In its own place, and in that of one that goes.
    assert_eq!(bench.register(1, "l").await.0, Registration::NewHolding);
    assert_eq!(bench.one(register(3, "k")).await, NO_ROOM);
    assert_eq!(bench.remove(2, "k").await, Removal::Gone);
    assert_eq!(bench.register(3, "k").await.0, Registration::New);
    assert_eq!(bench.one(register(2, "k")).await, NO_ROOM);
}

pub(crate) async fn seeds_that_are_drained_or_silent_count_while_they_are_kept<H: Home>() {
    let bench = Bench::<H>::new(rules(Room { seeds: 2, ..Room::AMPLE })).await;
    bench.apply(&[register(1, "k"), register(2, "k")]).await;
    let drain = Command::Drain { identity: identity(1), key: key("k") };
    assert_eq!(bench.one(drain).await, Outcome::Drained(Some(0)));
    bench.step(RULES.heartbeat_ttl_ms);
    assert_eq!(bench.one(register(3, "k")).await, NO_ROOM, "nobody has tidied up");
    bench.store.sweep().await.unwrap();
    assert_eq!(bench.register(3, "k").await.0, Registration::New, "in the place of the silent one");
    assert_eq!(bench.one(register(4, "k")).await, NO_ROOM, "it is remembered who was drained");
}

pub(crate) async fn one_client_leaves_room_for_the_seeds_of_others<H: Home>() {
    let rules = rules(Room { seeds: 16, ..Room::AMPLE });
    let mut bench = Bench::<H>::new(rules.clone()).await;
    let of_client = |seed: u8, number: u8| Command::Register {
        identity: identity(seed),
        key: key("k"),
        profile: Box::default(),
        age_ms: 0,
        client: Some([10, 1, 0, number].into()),
        owner: Owner::default(),
    };
    let is_refused = |outcome: &Outcome| *outcome == Outcome::NoRoom(NoRoom(Quota::SeedsOfClient));
    let greedy: Vec<Command> = (0..16).map(|seed| of_client(seed, 1)).collect();
    let outcomes = bench.apply(&greedy).await;
    assert_eq!(outcomes.iter().filter(|outcome| is_refused(outcome)).count(), 4, "{outcomes:?}");
    bench.restart(rules).await;
    bench.store.sweep().await.unwrap();
    assert!(is_refused(&bench.one(of_client(12, 1)).await), "it is known after a restart, too");
    assert!(matches!(bench.one(of_client(0, 1)).await, Outcome::Registered(Registration::Repeated, _)));
    assert!(matches!(bench.one(of_client(0, 2)).await, Outcome::Registered(Registration::Repeated, _)));
    for number in 2..6 {
        let outcome = bench.one(of_client(10 + number, number)).await;
        assert!(matches!(outcome, Outcome::Registered(Registration::New, _)), "{outcome:?}");
    }
    assert_eq!(bench.one(of_client(16, 6)).await, NO_ROOM);
    // Who gives something back may take it again up to its share, or where it is anybody's.
    assert_eq!(bench.remove(1, "k").await, Removal::Gone);
    assert!(is_refused(&bench.one(of_client(1, 1)).await));
    assert!(matches!(bench.one(of_client(1, 6)).await, Outcome::Registered(Registration::New, _)));
}

pub(crate) async fn one_client_leaves_room_for_the_requests_of_others<H: Home>() {
    let rules = Rules { capacity: 40, ..rules(Room { requests: 16, ..Room::AMPLE }) };
    let mut bench = Bench::<H>::new(rules.clone()).await;
    bench.register(1, "k").await;
    let of_client = |name: u8, number: u8| {
        let mut acquire = attempt(name, 1, 0, 1);
        if let Command::Acquire { wish, .. } = &mut acquire {
            wish.client = Some([10, 1, 0, number].into());
        }
        acquire
    };
    let greed = Some(Refusal::NoRoom(NoRoom(Quota::RequestsOfClient)));
    let greedy: Vec<Command> = (0..16).map(|name| of_client(name, 1)).collect();
    let outcomes = bench.apply(&greedy).await;
    assert_eq!(outcomes.iter().filter(|outcome| refused(outcome) == greed).count(), 4, "{outcomes:?}");
    bench.restart(rules).await;
    bench.store.sweep().await.unwrap();
    assert_eq!(refused(&bench.one(of_client(20, 1)).await), greed, "it is known after a restart, too");
    assert!(granted(&bench.one(of_client(0, 1)).await).is_some(), "a repetition");
    assert!(bench.acquire("k", 99).await.is_some(), "who is not remembered");
    for number in 2..6 {
        assert!(granted(&bench.one(of_client(20 + number, number)).await).is_some(), "others find room");
    }
    let full = Some(Refusal::NoRoom(NoRoom(Quota::Requests)));
    assert_eq!(refused(&bench.one(of_client(30, 6)).await), full);
}

pub(crate) async fn only_so_many_requests_are_remembered<H: Home>() {
    let no_room = Some(Refusal::NoRoom(NoRoom(Quota::Requests)));
    let room = Room { requests: 2, ..Room::AMPLE };
    let mut bench = Bench::<H>::new(Rules { capacity: 3, ..rules(room) }).await;
    bench.register(1, "k").await;
    let outcomes = bench.apply(&[attempt(1, 1, 0, 1), attempt(2, 1, 0, 1), attempt(3, 1, 0, 1)]).await;
    assert_eq!(outcomes.iter().map(refused).collect::<Vec<_>>(), [None, None, no_room], "{outcomes:?}");
    let used = Usage { quota: Quota::Requests, used: 2, most: 2 };
    assert!(bench.store.usage().await.unwrap().contains(&used));
    bench.restart(Rules { capacity: 3, ..rules(room) }).await;
    assert_eq!(refused(&bench.one(attempt(3, 1, 0, 1)).await), no_room);
    assert_eq!(refused(&bench.one(attempt(3, 1, 50, 1)).await), no_room);
    // What was asked has its lease, and who is not remembered has one as well.
    assert!(granted(&bench.one(attempt(1, 1, 0, 2)).await).is_some());
    assert!(bench.acquire("k", 9).await.is_some());
    assert_eq!(refused(&bench.one(queue("k", 10, 50)).await), no_room, "it would have to wait");
    assert!(bench.renew(1, 1).await && bench.release(1, 2).await && bench.release(1, 9).await);
    // What is over makes room, and what has its lease stays.
    for _ in 0..=RULES.request_memory_ms() / (RULES.lease_ttl_ms - 1) {
        bench.step(RULES.lease_ttl_ms - 1);
        assert!(bench.renew(1, 1).await);
    }
    bench.register(1, "k").await;
    bench.store.sweep().await.unwrap();
    assert!(granted(&bench.one(attempt(3, 1, 0, 1)).await).is_some());
    assert_eq!(refused(&bench.one(attempt(4, 1, 0, 1)).await), no_room);
}

pub(crate) async fn only_so_many_instances_are_remembered<H: Home>() {
    let room = Room { instances: 1, ..Room::AMPLE };
    let bench = Bench::<H>::new(Rules { capacity: 9, ..rules(room) }).await;
    let profile = Profile { instance_id: Some("old".into()), ..Profile::default() };
    bench.apply(&[registering(1, "k", profile)]).await;
    for (number, expected) in [(1, Some("old".to_owned())), (2, None), (1, Some("old".to_owned()))] {
        let instance = format!("new-{number}");
        let wish = Box::new(Wish { instance_id: Some(instance.clone()), ..Wish::default() });
        let acquire = Command::Acquire { key: key("k"), wish, lease: lease(number), queue: None };
        assert!(granted(&bench.one(acquire).await).is_some(), "nobody is refused for it");
        assert!(bench.release(1, number).await);
        assert_eq!(bench.store.source_instance(&instance).await.unwrap(), expected);
    }
}

/// A key of 8,000 bytes.
fn long(number: u8) -> String {
    format!("{number:08000}")
}

pub(crate) async fn long_keys_are_kept_up_to_a_bound_in_bytes<H: Home>() {
    let each = SeedRow::stored(&key(&long(0)));
    let rules = rules(Room { stored: 3 * each, ..Room::AMPLE });
    let mut bench = Bench::<H>::new(rules.clone()).await;
    let full = Outcome::NoRoom(NoRoom(Quota::Database));
    let outcomes = bench.apply(&[1, 2, 3, 4].map(|seed| register(seed, &long(seed)))).await;
    assert!(matches!(
        outcomes[..3],
        [Outcome::Registered(..), Outcome::Registered(..), Outcome::Registered(..)]
    ));
    assert_eq!(outcomes[3], full, "the fourth of a batch");
    for restarts in [false, true] {
        if restarts {
            bench.restart(rules.clone()).await;
        }
        let used = Usage { quota: Quota::Database, used: 3 * each, most: 3 * each };
        assert!(bench.store.usage().await.unwrap().contains(&used));
        assert_eq!(bench.one(register(4, "k")).await, full, "nor a short one");
        assert_eq!(
            refused(&bench.one(attempt(1, 1, 0, 1)).await),
            Some(Refusal::NoRoom(NoRoom(Quota::Database)))
        );
        // What is there goes on.
        assert_eq!(bench.register(1, &long(1)).await.0, Registration::Repeated);
        assert!(bench.acquire(&long(2), 7).await.is_some());
        assert!(bench.release(2, 7).await);
    }
    // In its own place a seed may hold something else that is no longer, and later something that is, if there is room.
    assert_eq!(bench.register(1, &long(9)).await.0, Registration::NewHolding);
    assert_eq!(bench.register(2, "k").await.0, Registration::NewHolding);
    assert_eq!(bench.register(4, "k").await.0, Registration::New);
    assert_eq!(bench.one(register(2, &long(2))).await, full);
    assert_eq!(bench.remove(4, "k").await, Removal::Gone);
    assert_eq!(bench.register(2, &long(2)).await.0, Registration::NewHolding);
    assert_eq!(bench.one(register(4, "k")).await, full);
}

pub(crate) async fn one_client_leaves_room_for_the_bytes_of_others<H: Home>() {
    let each = SeedRow::stored(&key(&long(0)));
    let rules = rules(Room { stored: 16 * each, ..Room::AMPLE });
    let mut bench = Bench::<H>::new(rules.clone()).await;
    let of_client = |seed: u8, number: u8| {
        let mut register = register(seed, &long(seed));
        if let Command::Register { client, .. } = &mut register {
            *client = Some([10, 1, 0, number].into());
        }
        register
    };
    let is_refused = |outcome: &Outcome| *outcome == Outcome::NoRoom(NoRoom(Quota::DatabaseOfClient));
    let greedy: Vec<Command> = (0..16).map(|seed| of_client(seed, 1)).collect();
    let outcomes = bench.apply(&greedy).await;
    assert_eq!(outcomes.iter().filter(|outcome| is_refused(outcome)).count(), 4, "{outcomes:?}");
    bench.restart(rules).await;
    bench.store.sweep().await.unwrap();
    assert!(is_refused(&bench.one(of_client(12, 1)).await), "it is known after a restart, too");
    for number in 2..6 {
        let outcome = bench.one(of_client(10 + number, number)).await;
        assert!(matches!(outcome, Outcome::Registered(Registration::New, _)), "{outcome:?}");
    }
    assert_eq!(bench.one(of_client(16, 6)).await, Outcome::NoRoom(NoRoom(Quota::Database)));
}
