//! Workers that serve while they load: who is granted whom, what registers them and what ends that.

use rfork_protocol::v1::Labels;
use rfork_protocol::v2::Advice;

use super::*;
use crate::domain::chain::{Asker, Held, PERIOD_MS, Progress, Source, Stalled};
use crate::domain::health::BackOff;
use crate::domain::policy::Policy;
use crate::store::Room;
use crate::store::commands::Guidance;
use crate::store::history::{EventKind, Keep};
use crate::store::{Grant, Heard, Queue};

/// The rules of these tests.
pub(crate) const RULES: Rules = Rules {
    heartbeat_ttl_ms: 60_000,
    lease_ttl_ms: 10_000,
    capacity: 1,
    policy: Policy::Balanced,
    max_chain_depth: 256,
    back_off: BackOff { first_ms: 1_000, most_ms: 4_000 },
    overrides: None,
    history: Keep::of(3_600_000),
    room: Room::AMPLE,
};

/// The model's size in these tests.
const TOTAL_BYTES: u64 = 1_000;

/// The memory of a worker in these tests.
pub(super) const INCARNATION: &str = "first";

#[expect(clippy::unnecessary_wraps, reason = "as it stands where it is told")]
pub(super) fn held(root: &str, bytes: u64) -> Option<Held> {
    Some(Held { root: root.into(), bytes })
}

pub(super) fn asker(seed: u8) -> Asker {
    Asker {
        owner: Owner::default(),
        identity: identity(seed),
        incarnation: INCARNATION.into(),
        labels: Labels::default(),
        total_bytes: TOTAL_BYTES,
        held: None,
        starts_over: false,
        stalled: None,
    }
}

/// The same, which has a lease on a source that brings no byte.
pub(super) fn stalling(seed: u8, held: Option<Held>, (source, number): (u8, u32)) -> Asker {
    let stalled =
        Stalled { identity: identity(source), lease: lease(number), lost: false, unanswered: false };
    Asker { held, stalled: Some(stalled), ..asker(seed) }
}

pub(super) fn ask_as(asker: Asker, number: u32) -> Command {
    let wish = Wish { loading: Some(Box::new(asker)), ..Wish::default() };
    Command::Acquire { key: key("k"), wish: Box::new(wish), lease: lease(number), queue: None }
}

pub(super) fn ask(seed: u8, number: u32) -> Command {
    ask_as(asker(seed), number)
}

pub(super) fn tell(source: u8, number: u32, incarnation: &str, held: Option<Held>) -> Command {
    let progress = Progress { incarnation: incarnation.into(), arrived_bytes: 1, held };
    Command::Renew { identity: identity(source), lease: lease(number), progress: Some(Box::new(progress)) }
}

pub(crate) fn complete(seed: u8, content: &str) -> Command {
    let profile = Profile {
        incarnation: Some(INCARNATION.into()),
        content_id: Some(content.into()),
        ..Profile::default()
    };
    registering(seed, "k", profile)
}

pub(super) fn grant(outcome: &Outcome) -> Option<Grant> {
    match outcome {
        Outcome::Acquired(granted) => granted.clone().ok(),
        other => panic!("{other:?}"),
    }
}

impl<H: Home> Bench<H> {
    /// A complete seed, 1, that holds the content "x".
    pub(super) async fn with_a_seed(rules: Rules) -> Self {
        let bench = Self::new(rules).await;
        bench.apply(&[complete(1, "x")]).await;
        bench
    }

    pub(super) async fn granted(&self, command: Command) -> Option<Grant> {
        grant(&self.one(command).await)
    }

    pub(super) async fn from(&self, command: Command) -> Option<SeedIdentity> {
        self.granted(command).await.map(|grant| grant.identity)
    }

    pub(super) async fn guidance(&self, command: Command) -> Option<Guidance> {
        match self.one(command).await {
            Outcome::Renewed(Some(renewed)) => renewed.loading,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn entry(&self, seed: u8) -> Option<SeedEntry> {
        let part = Part { limit: 1_000, after: None };
        let page = self.store.list_seeds(&SeedFilter::default(), &part).await.unwrap();
        page.entries.into_iter().find(|entry| entry.identity == identity(seed))
    }
}

pub(crate) async fn one_batch_builds_a_chain<H: Home>() {
    for capacity in [1, 8] {
        let bench = Bench::<H>::with_a_seed(Rules { capacity, ..RULES }).await;
        let asks: Vec<Command> = (2..18).map(|seed| ask(seed, seed.into())).collect();
        let outcomes = bench.apply(&asks).await;
        for (outcome, (source, depth)) in outcomes.iter().zip((1..17).zip(0..)) {
            let grant = grant(outcome).expect("a source");
            assert_eq!(
                grant.identity,
                identity(source),
                "capacity {capacity}: each reads from the one before"
            );
            let expected = Source {
                loads: source > 1,
                depth,
                root: Some("x".into()),
                renew_after_ms: PERIOD_MS,
                point: 0,
                since_ms: bench.now(),
            };
            assert_eq!(grant.source.as_deref(), Some(&expected));
        }
    }
}

pub(crate) async fn a_chain_grows_at_its_end_and_no_deeper_than_it_may<H: Home>() {
    let bench = Bench::<H>::with_a_seed(Rules { max_chain_depth: 2, ..RULES }).await;
    for (seed, source) in [(2, Some(1)), (3, Some(2)), (4, Some(3)), (5, None)] {
        assert_eq!(bench.from(ask(seed, seed.into())).await, source.map(identity), "{seed}");
    }
    assert!(bench.entry(5).await.is_none(), "a refusal registers nobody");
    let shown = bench.entry(4).await.unwrap().loading.unwrap();
    assert_eq!((shown.loading.depth, shown.source), (2, Some(identity(3))));
}

pub(crate) async fn a_chain_enters_a_zone_once<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    let zones = ["b", "a", "b", "a", "b", "a"];
    let asks = zones.into_iter().zip(2..).map(|(zone, seed)| {
        let location = Location { zone: Some(zone.into()), ..Location::default() };
        let wish = Wish { location, loading: Some(Box::new(asker(seed))), ..Wish::default() };
        Command::Acquire { key: key("k"), wish: Box::new(wish), lease: lease(seed.into()), queue: None }
    });
    let outcomes = bench.apply(&asks.collect::<Vec<_>>()).await;
    let zone_of = |source: &SeedIdentity| {
        (2..8).find(|seed| identity(*seed) == *source).map(|seed| zones[seed as usize - 2])
    };
    let crossings = outcomes
        .iter()
        .zip(zones)
        .filter(|(outcome, zone)| zone_of(&grant(outcome).expect("a source").identity) != Some(*zone));
    assert_eq!(crossings.count(), 2, "{outcomes:?}");
}

pub(crate) async fn an_unmodified_client_is_never_given_a_loading_seed<H: Home>() {
    for (_, policy) in Policy::NAMES {
        let bench = Bench::<H>::with_a_seed(Rules { policy, ..RULES }).await;
        assert_eq!(bench.from(ask(2, 2)).await, Some(identity(1)));
        assert_eq!(bench.acquire("k", 3).await, None, "{policy}: one that loads has a free point");
        bench.apply(&[complete(2, "x")]).await;
        assert_eq!(bench.acquire("k", 4).await, Some(identity(2)), "{policy}");
    }
}

pub(crate) async fn seeds_that_nobody_reads_from_come_first<H: Home>() {
    for (_, policy) in Policy::NAMES {
        let bench = Bench::<H>::with_a_seed(Rules { policy, capacity: 8, ..RULES }).await;
        assert_eq!(bench.from(ask(2, 2)).await, Some(identity(1)));
        bench.step(1);
        assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)), "{policy}");
        assert_eq!(bench.acquire("k", 4).await, Some(identity(1)), "{policy}: others share the complete one");
    }
}

pub(crate) async fn no_more_than_the_capacity_and_one_reserve_point_is_lent<H: Home>() {
    let bench = Bench::<H>::with_a_seed(Rules { max_chain_depth: 1, ..RULES }).await;
    // 1 <- 2 <- 3, and nothing is free.
    for (seed, source) in [(2, 1), (3, 2)] {
        assert_eq!(bench.from(ask(seed, seed.into())).await, Some(identity(source)));
    }
    assert_eq!(bench.from(ask(4, 4)).await, None, "the reserve is for who stalls");
    let invented = stalling(4, None, (2, 99));
    assert_eq!(bench.from(ask_as(invented, 5)).await, None, "a lease that is not there is not believed");
    bench.guidance(tell(1, 2, INCARNATION, held("x", 100))).await;
    assert!(bench.release(1, 2).await);
    assert_eq!(bench.from(ask(4, 6)).await, Some(identity(1)));
    // 1 <- 4; 2, which has lost its source, <- 3.
    assert_eq!(bench.from(ask_as(stalling(4, None, (1, 6)), 7)).await, Some(identity(2)), "its reserve");
    let asker = Some(Box::new(stalling(5, None, (1, 6))));
    let wish = Wish { loading: asker, exclude: vec![identity(4)], ..Wish::default() };
    let asks = Command::Acquire { key: key("k"), wish: Box::new(wish), lease: lease(8), queue: None };
    assert_eq!(bench.from(asks).await, None, "which is one point");
    let view = bench.view(2).await.unwrap();
    assert_eq!((view.capacity, view.used), (1, 2));
    assert!(bench.renew(1, 6).await, "the first lease stays until it is given back");
    assert_eq!(bench.view(1).await.unwrap().failures, 0, "who stalls tells of no failure");
}

pub(crate) async fn bytes_of_two_roots_are_not_offered_to_one_worker<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    let of_y = Asker { held: held("y", 10), ..asker(2) };
    assert_eq!(bench.from(ask_as(of_y.clone(), 2)).await, None);
    bench.apply(&[complete(3, "y")]).await;
    assert_eq!(bench.from(ask_as(of_y, 3)).await, Some(identity(3)));
    // 2 loads "y"; 1 is busy with another reader.
    assert!(bench.acquire("k", 4).await.is_some());
    let of_x = Asker { held: held("x", 1), ..asker(4) };
    assert_eq!(bench.from(ask_as(of_x, 5)).await, None);
    assert_eq!(bench.from(ask(5, 6)).await, Some(identity(2)), "who has nothing takes any");
}

pub(crate) async fn who_has_bytes_is_given_who_has_more_or_stands_nearer<H: Home>() {
    let bench = Bench::<H>::with_a_seed(Rules { capacity: 2, ..RULES }).await;
    for (seed, source) in [(2, 1), (3, 2), (4, 3)] {
        assert_eq!(bench.from(ask(seed, seed.into())).await, Some(identity(source)));
    }
    bench.apply(&[tell(1, 2, INCARNATION, held("x", 500)), tell(2, 3, INCARNATION, held("x", 400))]).await;
    bench.apply(&[tell(3, 4, INCARNATION, held("x", 300))]).await;
    // 3 may read from neither its reader nor, since that stalls, from 2.
    let asks = stalling(3, held("x", 400), (2, 3));
    assert_eq!(bench.from(ask_as(asks, 9)).await, Some(identity(1)));
    let shown = bench.entry(3).await.unwrap().loading.unwrap();
    assert_eq!((shown.loading.depth, shown.source), (0, Some(identity(1))));
    // 2 holds most; nobody is given it who holds as much and stands as near.
    let exclude = vec![identity(1)];
    let asker = Asker { held: held("x", 500), ..asker(3) };
    let wish = Wish { loading: Some(Box::new(asker)), exclude, ..Wish::default() };
    let asks = Command::Acquire { key: key("k"), wish: Box::new(wish), lease: lease(10), queue: None };
    assert_eq!(bench.from(asks).await, None);
}

pub(crate) async fn a_renewal_tells_how_far_a_loading_seed_is<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    let told = Guidance { renew_after_ms: PERIOD_MS, advice: None };
    assert_eq!(bench.guidance(tell(1, 2, INCARNATION, held("x", 250))).await, Some(told));
    let shown = bench.entry(2).await.unwrap().loading.unwrap().loading;
    assert_eq!((shown.held_bytes, shown.total_bytes, shown.root.as_deref()), (250, TOTAL_BYTES, Some("x")));
    assert_eq!(bench.guidance(renew(1, 2)).await, None, "who tells nothing is told nothing");
    let ended = Guidance { advice: Some(Advice::RegistrationEnded), ..told };
    assert_eq!(bench.guidance(tell(1, 2, "second", held("x", 999))).await, Some(ended));
    assert_eq!(bench.entry(2).await.unwrap().loading.unwrap().loading.held_bytes, 250, "of other memory");
    bench.one(Command::Drain { identity: identity(2), key: key("k") }).await;
    assert_eq!(bench.guidance(tell(1, 2, INCARNATION, held("x", 300))).await, Some(ended));
}

pub(crate) async fn a_loading_seed_that_is_not_heard_of_for_three_periods_is_no_source<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    assert!(bench.from(ask(2, 2)).await.is_some());
    bench.step(3 * PERIOD_MS - 1);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)));
    assert!(bench.release(2, 3).await);
    assert_eq!(bench.remove(3, "k").await, Removal::Gone);
    bench.step(1);
    assert_eq!(bench.from(ask(4, 4)).await, None);
    bench.store.sweep().await.unwrap();
    // Its lease lives: it has paused, and goes on.
    let guidance = bench.guidance(tell(1, 2, INCARNATION, None)).await.unwrap();
    assert_eq!(guidance.advice, None);
    assert_eq!(bench.from(ask(4, 5)).await, Some(identity(2)));
}

pub(crate) async fn a_lease_that_is_not_used_ends_the_registration<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    assert!(bench.from(ask(2, 2)).await.is_some());
    assert!(bench.release(1, 2).await);
    bench.step(3 * PERIOD_MS);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(1)), "2 is silent");
    assert!(bench.entry(2).await.is_none(), "and shown to nobody");
    bench.step(RULES.lease_ttl_ms);
    assert!(bench.store.sweep().await.unwrap().seeds >= 1);
    let heard = bench.one(Command::Beat {
        identity: identity(2),
        key: key("k"),
        incarnation: Some(INCARNATION.into()),
        age_ms: 0,
        owner: Owner::default(),
        progress: None,
    });
    assert_eq!(heard.await, Outcome::Heard(Heard::Unknown, None));
}

pub(crate) async fn a_heartbeat_keeps_a_loading_seed_that_has_no_lease<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    assert!(bench.release(2, 3).await);
    let beat = |bytes| {
        let progress =
            Progress { incarnation: INCARNATION.into(), arrived_bytes: bytes, held: held("x", bytes) };
        Command::Beat {
            identity: identity(3),
            key: key("k"),
            incarnation: Some(INCARNATION.into()),
            age_ms: 0,
            owner: Owner::default(),
            progress: Some(Box::new(progress)),
        }
    };
    for second in 1..9 {
        bench.step(PERIOD_MS);
        assert!(matches!(bench.one(beat(second)).await, Outcome::Heard(Heard::Known, Some(_))));
    }
    let shown = bench.entry(3).await.unwrap().loading.unwrap();
    assert_eq!((shown.source, shown.loading.depth, shown.loading.held_bytes), (None, 0, 8), "from storage");
}

pub(crate) async fn who_has_everything_is_a_seed_as_any_and_keeps_its_leases<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    let outcome = bench.one(complete(2, "x")).await;
    assert!(matches!(outcome, Outcome::Registered(Registration::Completed, _)), "{outcome:?}");
    assert!(bench.entry(2).await.unwrap().loading.is_none());
    assert!(bench.renew(2, 3).await, "the lease of its reader");
    assert!(bench.renew(1, 2).await, "and its own, until it gives that back");
    bench.guidance(tell(2, 3, INCARNATION, held("x", 10))).await;
    assert_eq!(bench.entry(3).await.unwrap().loading.unwrap().loading.depth, 0, "its source has everything");
    bench.step(4 * PERIOD_MS);
    assert!(!bench.view(2).await.unwrap().draining, "it is heard of by heartbeats again");
    let events =
        bench.store.list_events(&EventFilter::default(), &Part { limit: 9, after: None }).await.unwrap();
    assert!(events.entries.iter().any(|event| event.kind == Some(EventKind::Completed)));
}

pub(crate) async fn a_source_that_starts_over_keeps_no_readers<H: Home>() {
    let other = |seed: u8, number| {
        let incarnation = "second".into();
        ask_as(Asker { incarnation, ..asker(seed) }, number)
    };
    // It comes back with other memory, be it that it was taken away before, or is complete at once.
    for taken_away in [false, true] {
        let bench = Bench::<H>::with_a_seed(RULES).await;
        bench.apply(&[ask(2, 2), ask(3, 3)]).await;
        if taken_away {
            assert_eq!(bench.remove(2, "k").await, Removal::Draining);
            assert_eq!(bench.from(ask(4, 4)).await, Some(identity(3)), "it is no source");
            assert!(bench.release(3, 4).await);
        }
        assert!(bench.release(1, 2).await);
        // The place of what was taken away is kept for its reader.
        let source = if taken_away { 3 } else { 1 };
        assert_eq!(bench.from(other(2, 5)).await, Some(identity(source)));
        assert!(!bench.renew(2, 3).await, "who read from what it was must ask anew");
        assert_eq!(bench.entry(2).await.unwrap().used, 0);
    }
    let bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    assert_eq!(
        bench.register(2, "k").await.0,
        Registration::NewHolding,
        "it does not say that it is the same"
    );
    assert!(!bench.renew(2, 3).await);
}

pub(crate) async fn the_same_memory_keeps_its_row_and_gets_another_source<H: Home>() {
    let bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    let before = bench.one(complete(9, "x")).await;
    assert!(matches!(before, Outcome::Registered(Registration::New, _)));
    assert_eq!(bench.from(ask_as(stalling(2, None, (1, 2)), 7)).await, Some(identity(9)));
    assert!(bench.renew(2, 3).await, "its reader reads on");
    assert_eq!(bench.entry(2).await.unwrap().loading.unwrap().source, Some(identity(9)));
    let part = Part { limit: 1, after: None };
    let last = bench.store.list_events(&EventFilter::default(), &part).await.unwrap().entries.remove(0);
    assert_eq!((last.kind, last.identity), (Some(EventKind::Moved), Some(identity(2))));
    // The grant is not taken: the renewal of the lease that lives tells which source counts.
    bench.guidance(tell(1, 2, INCARNATION, None)).await;
    assert_eq!(bench.entry(2).await.unwrap().loading.unwrap().source, Some(identity(1)));
}

pub(crate) async fn those_who_wait_become_a_chain_when_a_seed_comes<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    let queue = |number: u32| {
        let queue = Queue { wait_ms: 60_000, attempt: number.into(), ..Queue::default() };
        Some(Box::new(queue))
    };
    let asks = (2..6).map(|seed| match ask(seed, seed.into()) {
        Command::Acquire { key, wish, lease, .. } => {
            Command::Acquire { key, wish, lease, queue: queue(seed.into()) }
        }
        other => other,
    });
    let mut asks: Vec<Command> = asks.collect();
    if let Command::Acquire { key, lease: unmodified, .. } = acquire("k", 9) {
        let wish = Box::default();
        asks.push(Command::Acquire { key, wish, lease: unmodified, queue: queue(9) });
    }
    for outcome in bench.apply(&asks).await {
        assert!(matches!(outcome, Outcome::Queued(_)), "{outcome:?}");
    }
    bench.apply(&[complete(1, "x")]).await;
    let woken = bench.store.collect(&[]).await.unwrap();
    let told: Vec<_> = woken.iter().map(|woken| woken.lease).collect();
    assert_eq!(told, [lease(9)], "an unmodified client comes before new ones that can wait for each other");
    bench.apply(&[complete(7, "x")]).await;
    let woken = bench.store.collect(&[(lease(9), 9)]).await.unwrap();
    let sources: Vec<_> = woken.into_iter().map(|woken| woken.grant.unwrap().identity).collect();
    assert_eq!(sources, [7, 2, 3, 4].map(identity));
}

pub(crate) async fn a_restart_keeps_a_chain<H: Home>() {
    let mut bench = Bench::<H>::with_a_seed(RULES).await;
    bench.apply(&[ask(2, 2), ask(3, 3)]).await;
    bench.apply(&[tell(1, 2, INCARNATION, held("x", 250))]).await;
    let before = (bench.entry(2).await, bench.entry(3).await);
    bench.restart(RULES).await;
    assert_eq!((bench.entry(2).await, bench.entry(3).await), before);
    bench.guidance(tell(2, 3, INCARNATION, held("x", 200))).await.expect("its lease knows its reader");
    bench.apply(&[complete(2, "x")]).await;
    bench.restart(RULES).await;
    assert!(bench.entry(2).await.unwrap().loading.is_none());
}

/// Makes the tests of these for the store whose [`Home`] is given.
macro_rules! loading_suite {
    ($home:ty) => {
        $crate::store::conformance::conformance_suite!($home:
            loading: one_batch_builds_a_chain,
            loading: a_chain_grows_at_its_end_and_no_deeper_than_it_may,
            loading: a_chain_enters_a_zone_once,
            loading: an_unmodified_client_is_never_given_a_loading_seed,
            loading: seeds_that_nobody_reads_from_come_first,
            loading: no_more_than_the_capacity_and_one_reserve_point_is_lent,
            loading: bytes_of_two_roots_are_not_offered_to_one_worker,
            loading: who_has_bytes_is_given_who_has_more_or_stands_nearer,
            loading: a_renewal_tells_how_far_a_loading_seed_is,
            loading: a_loading_seed_that_is_not_heard_of_for_three_periods_is_no_source,
            loading: a_lease_that_is_not_used_ends_the_registration,
            loading: a_heartbeat_keeps_a_loading_seed_that_has_no_lease,
            loading: who_has_everything_is_a_seed_as_any_and_keeps_its_leases,
            loading: a_source_that_starts_over_keeps_no_readers,
            loading: the_same_memory_keeps_its_row_and_gets_another_source,
            loading: those_who_wait_become_a_chain_when_a_seed_comes,
            loading: a_restart_keeps_a_chain,
            leading: one_of_those_who_ask_together_leads_and_the_others_wait,
            leading: who_begins_with_storage_is_no_source_until_its_bytes_have_a_name,
            beside: who_has_much_less_to_read_than_who_leads_reads_beside_it,
            beside: who_gets_less_from_who_leads_than_storage_gives_reads_it_as_well,
            beside: nobody_is_sent_to_storage_beside_who_is_not_heard_of,
            beside: who_has_it_rests_until_it_serves_without_being_told_of_twice,
            beside: who_is_as_fast_as_storage_or_nearly_done_reads_on,
            beside: one_slow_link_is_passed_over_before_storage_is_read_twice,
            leading: who_reads_storage_is_a_source_by_its_origin_while_it_leads,
            leading: bytes_of_an_origin_go_on_with_what_they_became,
            leading: the_right_passes_on_when_its_holder_is_not_heard_of,
            leading: the_right_passes_on_when_its_holder_makes_no_progress,
            leading: what_is_told_without_end_is_no_progress,
            leading: who_gets_everything_at_once_need_not_say_how_far_it_is_for_ten_minutes,
            leading: who_holds_most_leads,
            leading: the_right_ends_when_its_holder_reads_from_a_seed_leaves_or_has_everything,
            leading: who_is_taken_out_or_has_no_room_loads_for_itself,
            leading: a_holder_that_comes_back_with_other_memory_need_not_wait_for_itself,
            leading: a_restart_keeps_the_right,
            inheriting: the_place_of_a_lost_relay_is_its_reader_s,
            inheriting: who_renews_or_is_not_reported_keeps_its_place,
            inheriting: a_relay_that_was_known_to_answer_and_does_not_is_lost,
            inheriting: all_that_are_silent_are_passed_over_at_once,
            inheriting: a_place_waits_for_who_reads_from_a_relay_that_leaves,
            inheriting: who_reads_from_what_an_operator_takes_out_is_told_to_move,
            inheriting: whoever_waits_inherits_when_its_source_falls_silent,
            inheriting: no_place_is_inherited_that_leads_to_other_bytes,
            inheriting: who_has_lost_its_place_comes_back_behind,
            inheriting: a_chain_is_there_again_after_planners_were_away,
            inheriting: a_worker_that_dies_as_the_last_of_a_chain_gives_its_place_back_soon,
            overtaking: a_reader_overtakes_who_falls_behind,
            overtaking: a_source_that_sends_slowly_is_a_leaf,
            overtaking: who_starves_for_its_source_is_not_moved,
            overtaking: a_reader_that_does_not_starve_overtakes_nobody,
            overtaking: one_place_of_a_key_is_promised_a_second,
            overtaking: reports_and_moves_outlive_a_restart,
        );
    };
}
pub(crate) use loading_suite;
