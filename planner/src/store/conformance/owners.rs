//! Whose a seed is: while it lives, its owner's alone.

use super::Registration::{New, NewHolding, Repeated};
use super::loading::{ask, ask_as, asker};
use super::*;
use crate::domain::chain::Asker;
use crate::store::Heard;
use crate::store::commands::{Claim, Role};
use crate::store::history::EventKind;

fn principal(name: &str) -> Owner {
    Owner { principal: Some(name.into()), address: None }
}

fn at(number: u8) -> Owner {
    Owner { principal: None, address: Some([10, 0, 0, number].into()) }
}

impl<H: Home> Bench<H> {
    /// Registers seed 1 for somebody; `None` if it is somebody else's.
    async fn register_for(&self, by: &Owner, text: &str) -> Option<Registration> {
        let mut command = register(1, text);
        if let Command::Register { owner, .. } = &mut command {
            *owner = by.clone();
        }
        match self.one(command).await {
            Outcome::Registered(registration, _) => Some(registration),
            Outcome::Owned => None,
            other => panic!("{other:?}"),
        }
    }

    async fn hear_of(&self, owner: &Owner) -> Heard {
        let (identity, key, owner) = (identity(1), key("k"), owner.clone());
        match self
            .one(Command::Beat { identity, key, incarnation: None, age_ms: 0, owner, progress: None })
            .await
        {
            Outcome::Heard(heard, _) => heard,
            other => panic!("{other:?}"),
        }
    }

    async fn remove_for(&self, owner: &Owner) -> Removal {
        match self.one(Command::Remove { identity: identity(1), key: key("k"), owner: owner.clone() }).await {
            Outcome::Removed(removal) => removal,
            other => panic!("{other:?}"),
        }
    }

    /// Seed 1 as it is shown, without its last sign of life.
    async fn shown(&self) -> Option<SeedView> {
        self.view(1).await.map(|view| SeedView { last_heartbeat_ms: 0, ..view })
    }
}

pub(crate) async fn a_seed_that_lives_is_its_owners_alone<H: Home>() {
    for (owner, other) in [(principal("a"), principal("b")), (at(1), at(2))] {
        let rules = Rules { lease_ttl_ms: 10 * RULES.heartbeat_ttl_ms, ..RULES };
        let mut bench = Bench::<H>::new(rules.clone()).await;
        assert_eq!(bench.register_for(&owner, "k").await, Some(New));
        assert!(bench.acquire("k", 1).await.is_some());
        let before = bench.shown().await.unwrap();
        assert_eq!(before.owner, owner);
        for restarts in [false, true] {
            if restarts {
                bench.restart(rules.clone()).await;
            }
            bench.step(RULES.heartbeat_ttl_ms / 2);
            assert_eq!(bench.register_for(&other, "k").await, None);
            assert_eq!(bench.register_for(&other, "l").await, None, "not with another key either");
            assert_eq!(bench.hear_of(&other).await, Heard::Owned);
            assert_eq!(bench.remove_for(&other).await, Removal::Owned);
            assert_eq!(bench.shown().await.unwrap(), before);
            assert!(bench.renew(1, 1).await);
            // It was not kept alive by what was refused.
            assert_eq!(bench.register_for(&owner, "k").await, Some(Repeated));
            assert_eq!(bench.hear_of(&owner).await, Heard::Known);
        }
        // Operators take out whose it is not.
        let drain = Command::Drain { identity: identity(1), key: key("k") };
        assert_eq!(bench.one(drain).await, Outcome::Drained(Some(1)));
        assert_eq!(bench.register_for(&other, "l").await, None, "it lives yet");
        assert_eq!(bench.register_for(&owner, "l").await, Some(NewHolding));
        assert_eq!(bench.register_for(&owner, "k").await, Some(NewHolding));
        assert_eq!(bench.remove_for(&owner).await, Removal::Gone);
    }
}

pub(crate) async fn the_address_of_a_silent_seed_is_anybodys<H: Home>() {
    let rules = Rules { lease_ttl_ms: 10 * RULES.heartbeat_ttl_ms, ..RULES };
    let bench = Bench::<H>::new(rules.clone()).await;
    let (former, next) = (principal("a"), principal("b"));
    assert_eq!(bench.register_for(&former, "k").await, Some(New));
    assert!(bench.acquire("k", 1).await.is_some());
    bench.step(rules.heartbeat_ttl_ms - 1);
    assert_eq!(bench.register_for(&next, "k").await, None);
    bench.step(1);
    assert_eq!(bench.hear_of(&next).await, Heard::Unknown, "it has to register");
    assert_eq!(bench.remove_for(&next).await, Removal::Unknown, "what is left is not its own");
    assert_eq!(bench.register_for(&next, "k").await, Some(NewHolding), "it is another worker");
    assert!(!bench.renew(1, 1).await, "who read from the former one reads from nobody");
    let part = Part { limit: 1, after: None };
    let events = bench.store.list_events(&EventFilter::default(), &part).await.unwrap().entries;
    assert_eq!(events[0].kind, Some(EventKind::NewHolding));
    assert_eq!(events[0].detail.as_deref(), Some("another owner"));
    assert_eq!(bench.hear_of(&former).await, Heard::Owned);
    assert_eq!(bench.register_for(&former, "k").await, None);
}

pub(crate) async fn a_removed_seed_is_its_owners_until_its_last_lease_ends<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let (former, next) = (principal("a"), principal("b"));
    assert_eq!(bench.register_for(&former, "k").await, Some(New));
    assert!(bench.acquire("k", 1).await.is_some());
    assert_eq!(bench.remove_for(&former).await, Removal::Draining);
    assert_eq!(bench.register_for(&next, "k").await, None, "somebody reads from it");
    assert!(bench.release(1, 1).await);
    assert_eq!(bench.register_for(&next, "k").await, Some(New));
    // One whose lease ended by itself is there until a sweep comes by.
    assert!(bench.acquire("k", 2).await.is_some());
    assert_eq!(bench.remove_for(&next).await, Removal::Draining);
    bench.step(RULES.lease_ttl_ms);
    assert_eq!(bench.register_for(&former, "k").await, Some(NewHolding));
}

pub(crate) async fn a_seed_of_nobody_is_of_whoever_is_known_first<H: Home>() {
    for by_heartbeat in [false, true] {
        let mut bench = Bench::<H>::new(RULES).await;
        bench.register(1, "k").await;
        let both = Owner { principal: Some("a".into()), ..at(1) };
        for owner in [&principal("a"), &both] {
            if by_heartbeat {
                assert_eq!(bench.hear_of(owner).await, Heard::Known);
            } else {
                assert_eq!(bench.register_for(owner, "k").await, Some(Repeated));
            }
            bench.restart(RULES).await;
            assert_eq!(&bench.view(1).await.unwrap().owner, owner);
        }
        // Who is not known is nobody else: so it is where it is not looked at who asks.
        assert_eq!(bench.register(1, "k").await.0, Repeated);
        assert_eq!(bench.register_for(&principal("b"), "k").await, None);
        assert_eq!(bench.register_for(&Owner { principal: Some("a".into()), ..at(2) }, "k").await, None);
        assert_eq!(bench.view(1).await.unwrap().owner, both);
    }
}

pub(crate) async fn a_worker_that_loads_takes_nobodys_place<H: Home>() {
    let bench = Bench::<H>::with_a_seed(Rules { capacity: 8, ..super::loading::RULES }).await;
    let mut complete = super::loading::complete(2, "x");
    if let Command::Register { owner, .. } = &mut complete {
        *owner = principal("a");
    }
    bench.apply(&[complete]).await;
    let before = bench.entry(2).await;
    // It reads, as anybody does, and is no seed.
    let grant = bench.granted(ask_as(Asker { owner: principal("b"), ..asker(2) }, 1)).await;
    assert_eq!(grant.unwrap().source, None);
    let claim = |by: &str| {
        let Asker { identity, incarnation, total_bytes, .. } = asker(3);
        Claim {
            identity,
            key: key("k"),
            profile: Box::new(Profile { incarnation: Some(incarnation), ..Profile::default() }),
            client: None,
            owner: principal(by),
            by: None,
            total_bytes,
            arrived_bytes: 0,
            held: None,
            origin: None,
            whole: false,
            patience_ms: 1_000,
        }
    };
    assert!(bench.granted(ask_as(Asker { owner: principal("a"), ..asker(3) }, 2)).await.is_some());
    let [loading, other] = ["a", "b"].map(|by| Command::Claim(Box::new(claim(by))));
    let Outcome::Claimed(claimed) = bench.one(other).await else { panic!("no claim") };
    assert_eq!(claimed.role, Role::Alone);
    assert_eq!(bench.entry(3).await.unwrap().owner, principal("a"));
    let Outcome::Claimed(claimed) = bench.one(loading).await else { panic!("no claim") };
    assert_eq!(claimed.role, Role::Leads);
    // And one that was registered by nobody who is known comes to be its owner's.
    assert!(bench.granted(ask(4, 3)).await.is_some());
    assert!(bench.granted(ask_as(Asker { owner: principal("a"), ..asker(4) }, 4)).await.is_some());
    assert_eq!(bench.entry(4).await.unwrap().owner, principal("a"));
    assert_eq!(bench.entry(2).await.map(|entry| entry.owner), before.map(|entry| entry.owner));
}
