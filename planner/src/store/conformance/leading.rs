//! The right to lead: who reads storage while others wait.

use super::loading::{INCARNATION, RULES, ask, ask_as, complete, held, tell};
use super::*;
use crate::domain::chain::{Held, LEAD_TTL_MS, PERIOD_MS};
use crate::store::Room;
use crate::store::commands::{Claim, Claimed, Role};
use crate::store::history::EventKind;

/// Longer than the right lives without a renewal.
const PATIENCE_MS: i64 = 30_000;
const TOTAL_BYTES: u64 = 1_000;

/// A worker asks for the right, to whom so many bytes have come.
fn claim(seed: u8, arrived_bytes: u64) -> Claim {
    let profile = Profile { incarnation: Some(INCARNATION.into()), ..Profile::default() };
    Claim {
        by: None,
        owner: Owner::default(),
        identity: identity(seed),
        key: key("k"),
        profile: Box::new(profile),
        client: None,
        total_bytes: TOTAL_BYTES,
        arrived_bytes,
        held: None,
        origin: None,
        whole: false,
        patience_ms: PATIENCE_MS,
    }
}

fn waits_for(seed: u8) -> Role {
    Role::Waits(identity(seed))
}

impl<H: Home> Bench<H> {
    async fn roles<const N: usize>(&self, claims: [Claim; N]) -> [Role; N] {
        let commands = claims.map(|claim| Command::Claim(Box::new(claim)));
        let outcomes = self.apply(&commands).await.into_iter().map(|outcome| match outcome {
            Outcome::Claimed(Claimed { role, renew_after_ms, .. }) => {
                assert_eq!(renew_after_ms, PERIOD_MS);
                role
            }
            other => panic!("{other:?}"),
        });
        outcomes.collect::<Vec<_>>().try_into().unwrap()
    }

    async fn role(&self, claim: Claim) -> Role {
        let [role] = self.roles([claim]).await;
        role
    }
}

pub(crate) async fn one_of_those_who_ask_together_leads_and_the_others_wait<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let roles = bench.roles([claim(2, 0), claim(3, 0), claim(4, 0)]).await;
    assert_eq!(roles, [Role::Leads, waits_for(2), waits_for(2)]);
    let other = Claim { key: key("l"), ..claim(5, 0) };
    assert_eq!(bench.role(other).await, Role::Leads, "of another key");
    assert_eq!(bench.role(claim(3, 0)).await, waits_for(2));
    let leader = bench.entry(2).await.unwrap().loading.unwrap();
    assert_eq!((leader.source, leader.loading.depth, leader.loading.total_bytes), (None, 0, TOTAL_BYTES));
    assert!(bench.entry(3).await.is_none(), "who waits is no seed");
    let events = bench.store.list_events(&EventFilter::default(), &Part { limit: 9, after: None }).await;
    let leads = events.unwrap().entries.into_iter().filter(|event| event.kind == Some(EventKind::Leads));
    assert_eq!(leads.count(), 2, "once each, however often it is renewed");
}

pub(crate) async fn who_begins_with_storage_is_no_source_until_its_bytes_have_a_name<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.role(claim(2, 0)).await, Role::Leads);
    let refused = Outcome::Acquired(Err(Refusal::UnknownKey));
    assert_eq!(bench.one(ask(3, 3)).await, refused, "there is no seed to wait for");
    assert_eq!(bench.one(acquire("k", 4)).await, refused);
    let named = Claim { held: held("x", 1), ..claim(2, 1) };
    assert_eq!(bench.role(named).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 4)).await, Some(identity(2)));
    assert_eq!(bench.acquire("k", 5).await, None, "an unmodified client");
}

pub(crate) async fn who_reads_storage_is_a_source_by_its_origin_while_it_leads<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let origin = |name: &str, claim| Claim { origin: Some(format!("origin:{name}")), ..claim };
    assert_eq!(bench.roles([claim(2, 0), origin("3", claim(3, 0))]).await, [Role::Leads, waits_for(2)]);
    assert_eq!(bench.from(ask(4, 4)).await, None, "neither who has no name for its bytes, nor who waits");
    assert_eq!(bench.role(origin("2", claim(2, 0))).await, Role::Leads);
    assert_eq!(bench.from(ask(4, 5)).await, Some(identity(2)));
    assert_eq!(bench.from(ask(5, 6)).await, Some(identity(4)), "a chain forms behind it");
    let root = bench.entry(5).await.unwrap().loading.unwrap().loading.root;
    assert_eq!(root.as_deref(), Some("origin:2"));
    assert_eq!(bench.acquire("k", 7).await, None, "an unmodified client");
    // It tells nothing for too long, and another one leads: nobody new is sent to it, though it comes back.
    bench.step(LEAD_TTL_MS);
    assert_eq!(bench.role(origin("6", claim(6, 0))).await, Role::Leads);
    assert_eq!(
        bench.role(Claim { held: held("origin:2", 9), ..origin("2", claim(2, 9)) }).await,
        waits_for(6)
    );
    assert_eq!(bench.from(ask(7, 8)).await, Some(identity(6)));
}

pub(crate) async fn bytes_of_an_origin_go_on_with_what_they_became<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let of =
        |bytes| Claim { origin: Some("origin:2".into()), held: held("origin:2", bytes), ..claim(2, bytes) };
    assert_eq!(bench.role(of(10)).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)));
    let asker = |root: &str, starts_over| crate::domain::chain::Asker {
        owner: Owner::default(),
        identity: identity(3),
        incarnation: INCARNATION.into(),
        labels: rfork_protocol::v1::Labels::default(),
        total_bytes: TOTAL_BYTES,
        held: held(root, 5),
        starts_over,
        stalled: None,
    };
    assert!(bench.release(2, 3).await);
    let Command::Register { identity: seed, key, profile, age_ms, client, owner } = complete(2, "x") else {
        panic!("not a registration")
    };
    let profile = Box::new(Profile { origin: Some("origin:2".into()), ..*profile });
    bench.apply(&[Command::Register { identity: seed, key, profile, age_ms, client, owner }]).await;
    assert_eq!(bench.from(ask_as(asker("y", false), 4)).await, None, "of another content");
    assert_eq!(bench.from(ask_as(asker("origin:9", false), 5)).await, None, "it may be the same, or not");
    assert_eq!(
        bench.from(ask_as(asker("origin:2", false), 6)).await,
        Some(identity(2)),
        "it has grown there"
    );
    assert!(bench.release(2, 6).await);
    assert_eq!(bench.from(ask_as(asker("origin:9", true), 7)).await, Some(identity(2)), "it starts over");
}

pub(crate) async fn the_right_passes_on_when_its_holder_is_not_heard_of<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.role(claim(2, 0)).await;
    bench.step(LEAD_TTL_MS - 1);
    assert_eq!(bench.role(claim(3, 0)).await, waits_for(2));
    assert_eq!(bench.role(claim(2, 1)).await, Role::Leads);
    bench.step(LEAD_TTL_MS);
    assert_eq!(bench.roles([claim(3, 0), claim(2, 2)]).await, [waits_for(2), Role::Leads], "late, but there");
    bench.step(LEAD_TTL_MS);
    assert_eq!(bench.role(claim(3, 0)).await, Role::Leads);
    assert_eq!(bench.role(claim(2, 3)).await, waits_for(3), "it has lost it");
}

pub(crate) async fn the_right_passes_on_when_its_holder_makes_no_progress<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.role(claim(2, 5)).await;
    for _ in 0..5 {
        bench.step(5_000);
        assert_eq!(bench.role(claim(2, 5)).await, Role::Leads);
    }
    let patience = |patience_ms| Claim { patience_ms, ..claim(3, 0) };
    assert_eq!(bench.role(patience(25_001)).await, waits_for(2));
    assert_eq!(bench.role(claim(2, 6)).await, Role::Leads);
    bench.step(5_000);
    assert_eq!(bench.role(patience(5_001)).await, waits_for(2));
    assert_eq!(bench.role(patience(5_000)).await, Role::Leads);
    assert_eq!(bench.role(claim(2, 7)).await, waits_for(3));
}

pub(crate) async fn what_is_told_without_end_is_no_progress<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.role(claim(2, 0)).await;
    let mut waited_ms = 0;
    for told in 1..10_000 {
        bench.step(LEAD_TTL_MS / 2);
        waited_ms += LEAD_TTL_MS / 2;
        let [leads, waits] = bench.roles([claim(2, 500 * told), claim(3, 0)]).await;
        if waits == Role::Leads {
            break;
        }
        assert_eq!((leads, waits), (Role::Leads, waits_for(2)));
    }
    assert!((30_000..100_000).contains(&waited_ms), "{waited_ms}");
}

pub(crate) async fn who_gets_everything_at_once_need_not_say_how_far_it_is_for_ten_minutes<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    let whole = || Claim { whole: true, ..claim(2, 0) };
    assert_eq!(bench.role(whole()).await, Role::Leads);
    let hasty = || Claim { patience_ms: 5_001, ..claim(3, 0) };
    for _ in 0..119 {
        bench.step(5_000);
        assert_eq!(bench.roles([whole(), hasty()]).await, [Role::Leads, waits_for(2)]);
    }
    bench.restart(RULES).await;
    bench.step(5_000);
    assert_eq!(bench.roles([whole(), hasty()]).await, [Role::Leads, waits_for(2)], "what it said before");
    bench.step(5_000);
    assert_eq!(bench.role(hasty()).await, Role::Leads);
}

pub(crate) async fn who_holds_most_leads<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    bench.apply(&[tell(1, 2, INCARNATION, held("x", 600)), tell(2, 3, INCARNATION, held("x", 400))]).await;
    bench.remove(1, "k").await;
    let orphan = |seed, bytes| Claim { held: held("x", bytes), ..claim(seed, bytes) };
    let roles = bench.roles([claim(4, 0), orphan(3, 400), orphan(2, 600)]).await;
    assert_eq!(roles, [waits_for(2), waits_for(2), Role::Leads]);
    let entry = bench.entry(2).await.unwrap().loading.unwrap();
    assert_eq!((entry.source, entry.loading.held_bytes), (None, 600), "it serves on what it holds");
    let asker = |seed, bytes| crate::domain::chain::Asker {
        owner: Owner::default(),
        identity: identity(seed),
        incarnation: INCARNATION.into(),
        labels: rfork_protocol::v1::Labels::default(),
        total_bytes: TOTAL_BYTES,
        held: Some(Held { root: "x".into(), bytes }),
        starts_over: false,
        stalled: None,
    };
    assert!(bench.release(2, 3).await);
    assert_eq!(bench.from(ask_as(asker(3, 400), 9)).await, Some(identity(2)));
}

pub(crate) async fn the_right_ends_when_its_holder_reads_from_a_seed_leaves_or_has_everything<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.role(claim(2, 0)).await;
    bench.remove(2, "k").await;
    assert_eq!(bench.role(claim(3, 0)).await, Role::Leads, "it left");
    bench.apply(&[complete(3, "x")]).await;
    assert_eq!(bench.role(claim(4, 0)).await, Role::Leads, "it has everything");
    assert_eq!(bench.from(ask(4, 4)).await, Some(identity(3)));
    assert_eq!(bench.role(claim(5, 0)).await, Role::Leads, "it reads from a seed");
    assert_eq!(bench.role(claim(4, 9)).await, waits_for(5));
}

pub(crate) async fn who_is_taken_out_or_has_no_room_loads_for_itself<H: Home>() {
    let bench = Bench::<H>::new(Rules { room: Room { seeds: 1, ..Room::AMPLE }, ..RULES }).await;
    bench.role(claim(2, 0)).await;
    let other = Claim { key: key("l"), ..claim(3, 0) };
    assert_eq!(bench.role(other).await, Role::Alone, "nobody has the right, and there is no room");
    bench.apply(&[Command::Drain { identity: identity(2), key: key("k") }]).await;
    assert_eq!(bench.role(claim(2, 1)).await, Role::Alone);
}

pub(crate) async fn a_holder_that_comes_back_with_other_memory_need_not_wait_for_itself<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.role(claim(2, 9)).await;
    let profile = Profile { incarnation: Some("second".into()), ..Profile::default() };
    let again = Claim { profile: Box::new(profile), ..claim(2, 0) };
    assert_eq!(bench.role(again).await, Role::Leads);
    assert_eq!(bench.role(claim(3, 0)).await, waits_for(2));
}

pub(crate) async fn a_restart_keeps_the_right<H: Home>() {
    let mut bench = Bench::<H>::new(RULES).await;
    bench.role(claim(2, 0)).await;
    bench.restart(RULES).await;
    assert_eq!(bench.roles([claim(3, 0), claim(2, 1)]).await, [waits_for(2), Role::Leads]);
    bench.step(LEAD_TTL_MS - 1);
    bench.restart(RULES).await;
    assert_eq!(bench.role(claim(3, 0)).await, waits_for(2));
    bench.step(1);
    assert_eq!(bench.role(claim(3, 0)).await, Role::Leads);
}
