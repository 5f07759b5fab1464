//! What was: every end of a lease is told once, as is what became of seeds, and not for ever.

use super::*;
use crate::domain::seed::Profile;
use crate::store::history::{Account, End, EventKind, Forgotten, Keep};
use crate::store::{Idempotency, LeaseHash, Leaving, Queue};

const ALL: Part = Part { limit: 1_000, after: None };

impl<H: Home> Bench<H> {
    async fn ended(&self) -> Vec<EndedLease> {
        self.store.list_ended_leases(&LeaseFilter::default(), &ALL).await.unwrap().entries
    }

    /// How leases ended, the first one first.
    pub(super) async fn ends(&self) -> Vec<(LeaseHash, Option<End>)> {
        self.ended().await.into_iter().rev().map(|ended| (ended.lease, ended.end)).collect()
    }

    async fn events(&self, filter: EventFilter) -> Vec<(EventKind, Option<SeedIdentity>, String)> {
        let page = self.store.list_events(&filter, &ALL).await.unwrap();
        let event = |event: Event| (event.kind.unwrap(), event.identity, event.detail.unwrap_or_default());
        page.entries.into_iter().rev().map(event).collect()
    }
}

fn tell(seed: u8, text: &str, incarnation: &str) -> Command {
    let profile = Profile { incarnation: Some(incarnation.into()), ..Profile::default() };
    registering(seed, text, profile)
}

fn finish(seed: u8, number: u32, report: Report, account: Account) -> Command {
    let account = Some(Box::new(account));
    Command::Release { identity: identity(seed), lease: lease(number), report, account }
}

pub(crate) async fn who_read_is_told_of_a_lease_of_a_loading_seed<H: Home>() {
    let bench = Bench::<H>::with_a_seed(loading::RULES).await;
    assert_eq!(bench.from(loading::ask(2, 2)).await, Some(identity(1)));
    bench.apply(&[finish(1, 2, Report::Ok, Account::default())]).await;
    let [told] = &bench.ended().await[..] else { panic!("one lease ended") };
    assert_eq!((&told.identity, told.reader.as_ref()), (&identity(1), Some(&identity(2))));
}

pub(crate) async fn each_end_of_a_lease_leaves_one_row<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    bench.register(1, "k").await;
    let wish = Box::new(Wish { requester: Some("10.1.2.3".into()), ..Wish::default() });
    let asked = Command::Acquire { key: key("k"), wish, lease: lease(1), queue: None };
    bench.apply(&[asked]).await;
    bench.step(70);
    let account =
        Account { reason: Some("reset".into()), bytes: Some(5), duration_ms: Some(60), ..Account::default() };
    assert_eq!(
        bench.apply(&[finish(1, 1, Report::Aborted, account), release(1, 1)]).await,
        [Outcome::Released(true), Outcome::Released(false)]
    );
    bench.step(5);
    let [told] = &bench.ended().await[..] else { panic!("one lease ended") };
    let expected = EndedLease {
        number: told.number,
        lease: lease(1),
        identity: identity(1),
        key: key("k"),
        requester: Some("10.1.2.3".into()),
        reader: None,
        granted_age_ms: 75,
        ended_age_ms: 5,
        end: Some(End::Released),
        report: Report::Aborted,
        reason: Some("reset".into()),
        bytes: Some(5),
        duration_ms: Some(60),
    };
    assert_eq!(*told, expected);

    // One that a claim finds expired, and one that a sweep does, a while after.
    assert!(bench.acquire("k", 2).await.is_some());
    bench.step(RULES.lease_ttl_ms + 3);
    assert!(bench.acquire("k", 3).await.is_some());
    bench.step(RULES.lease_ttl_ms + 4);
    bench.store.sweep().await.unwrap();
    bench.store.sweep().await.unwrap();
    // One whose client was gone when it was granted, and one that never was.
    let queue = Some(Box::new(Queue { wait_ms: 1_000, ..Queue::default() }));
    assert!(bench.acquire("k", 4).await.is_some());
    let waits = Command::Acquire { key: key("k"), wish: Box::default(), lease: lease(5), queue };
    bench.apply(&[waits]).await;
    bench.apply(&[release(1, 4)]).await;
    bench.apply(&[Command::Leave { lease: lease(5), attempt: 0, why: Leaving::Gone }]).await;
    let given_back = Account { end: End::GivenBack, ..Account::default() };
    assert!(bench.acquire("k", 6).await.is_some());
    bench.apply(&[finish(1, 6, Report::Unknown, given_back)]).await;
    bench.apply(&[release(1, 7), Command::Leave { lease: lease(8), attempt: 0, why: Leaving::Gone }]).await;

    let expected = [
        (1, End::Released),
        (2, End::Expired),
        (3, End::Expired),
        (4, End::Released),
        (5, End::GivenBack),
        (6, End::GivenBack),
    ];
    assert_eq!(bench.ends().await, expected.map(|(number, end)| (lease(number), Some(end))));
    let ages: Vec<_> = bench.ended().await.iter().rev().map(|ended| ended.ended_age_ms).collect();
    assert_eq!(ages[1..3], [RULES.lease_ttl_ms + 7, 4], "they ended when their time was over");
    let of_v1 = bench.ended().await.into_iter().find(|ended| ended.lease == lease(4)).unwrap();
    assert_eq!((of_v1.report, of_v1.requester, of_v1.bytes), (Report::Unknown, None, None));
}

pub(crate) async fn what_a_seed_takes_along_is_kept<H: Home>() {
    let bench = Bench::<H>::new(Rules { capacity: 3, ..RULES }).await;
    bench.apply(&[tell(1, "k", "a")]).await;
    assert!(bench.acquire("k", 1).await.is_some());
    bench.step(RULES.lease_ttl_ms);
    // It takes another point than that of the one that has ended.
    bench.register(2, "l").await;
    assert!(bench.acquire("l", 2).await.is_some());
    assert!(bench.acquire("l", 3).await.is_some());
    bench.step(1);
    bench.apply(&[tell(1, "k", "b"), register(2, "m")]).await;
    let ends = bench.ends().await;
    for expected in [(1, End::Expired), (2, End::Revoked), (3, End::Revoked)] {
        let one = (lease(expected.0), Some(expected.1));
        assert_eq!(ends.iter().filter(|end| **end == one).count(), 1, "{expected:?} in {ends:?}");
    }
    assert_eq!(ends.len(), 3);
    let revoked = bench.ended().await.into_iter().find(|ended| ended.lease == lease(3)).unwrap();
    assert_eq!((revoked.key, revoked.identity, revoked.ended_age_ms), (key("l"), identity(2), 0));

    // A seed that was removed goes with its last lease, and the row of another that has ended before.
    assert!(bench.acquire("m", 4).await.is_some());
    bench.step(RULES.lease_ttl_ms - 1);
    assert!(bench.acquire("m", 5).await.is_some());
    assert_eq!(bench.remove(2, "m").await, Removal::Draining);
    bench.step(1);
    assert!(bench.release(2, 5).await);
    assert_eq!(bench.view(2).await, None);
    let mut last = bench.ends().await.split_off(3);
    last.sort_unstable_by_key(|(lease, _)| *lease);
    assert_eq!(last, [(lease(4), Some(End::Expired)), (lease(5), Some(End::Released))]);
}

pub(crate) async fn ended_leases_are_listed_by_key_and_seed<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    for (seed, text) in [(1, "k"), (2, "k"), (3, "l")] {
        bench.register(seed, text).await;
        assert!(bench.acquire(text, seed.into()).await.is_some());
        assert!(bench.release(seed, seed.into()).await);
    }
    let listed = async |filter: LeaseFilter| {
        let page = bench.store.list_ended_leases(&filter, &ALL).await.unwrap();
        page.entries.into_iter().map(|ended| ended.lease).collect::<Vec<_>>()
    };
    let (k, second) = (Some(key("k")), Some(identity(2)));
    assert_eq!(listed(LeaseFilter::default()).await, [lease(3), lease(2), lease(1)]);
    assert_eq!(listed(LeaseFilter { key: k.clone(), seed: None }).await, [lease(2), lease(1)]);
    assert_eq!(listed(LeaseFilter { key: None, seed: second.clone() }).await, [lease(2)]);
    assert_eq!(listed(LeaseFilter { key: Some(key("l")), seed: second }).await, [[0; 32]; 0]);
}

pub(crate) async fn events_tell_what_became_of_seeds<H: Home>() {
    use EventKind::{Drained, Invalidated, NewHolding, Recovered, Registered, Removed, Silent, Suspect};
    let bench = Bench::<H>::new(Rules { capacity: 2, ..RULES }).await;
    let one = Some(identity(1));
    bench.apply(&[tell(1, "k", "a"), register(1, "k")]).await;
    bench.apply(&[tell(1, "k", "b")]).await;
    for number in [1, 2] {
        assert!(bench.acquire("k", number).await.is_some());
    }
    let failed = |number| {
        finish(
            1,
            number,
            Report::Failed,
            Account { reason: Some("connection-reset".into()), ..Account::default() },
        )
    };
    // The second failure is of the same trouble.
    bench.apply(&[failed(1), failed(2)]).await;
    bench.step(RULES.back_off.first_ms);
    assert!(bench.acquire("k", 3).await.is_some());
    bench.apply(&[finish(1, 3, Report::Ok, Account::default())]).await;
    let drain = Command::Drain { identity: identity(1), key: key("k") };
    bench.apply(&[drain.clone(), drain]).await;
    bench.apply(&[tell(1, "k", "c")]).await;
    assert!(bench.acquire("k", 4).await.is_some());
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
    assert_eq!(bench.remove(1, "k").await, Removal::Draining);
    assert!(bench.release(1, 4).await);
    let events = [
        (Registered, ""),
        (NewHolding, "another process"),
        (Suspect, "failure 1, left alone for 1000 ms: connection-reset"),
        (Recovered, ""),
        (Drained, ""),
        (NewHolding, "another process"),
        (Removed, "leases that live on: 1"),
    ]
    .map(|(kind, detail)| (kind, one.clone(), detail.to_owned()));
    assert_eq!(bench.events(EventFilter::default()).await, events);

    bench.step(10);
    bench.register(2, "l").await;
    bench.register(2, "k").await;
    bench.register(2, "k").await;
    bench.register(3, "m").await;
    let by = Some("on-call".into());
    assert_eq!(bench.store.invalidate(&key("k"), None, by.as_ref()).await.unwrap(), 1);
    assert_eq!(bench.store.invalidate(&key("k"), None, None).await.unwrap(), 0);
    bench.step(RULES.heartbeat_ttl_ms);
    bench.store.sweep().await.unwrap();
    bench.store.sweep().await.unwrap();
    // The drained one is remembered for longer.
    let (two, three) = (Some(identity(2)), Some(identity(3)));
    let later = [
        (Registered, two.clone(), String::new()),
        (NewHolding, two, "another key".into()),
        (Registered, three.clone(), String::new()),
        (Invalidated, None, "seeds drained: 1".into()),
        (Silent, three, String::new()),
    ];
    let within_ms = Some(RULES.heartbeat_ttl_ms);
    assert_eq!(bench.events(EventFilter { within_ms, ..EventFilter::default() }).await, later);
    let all = bench.store.list_events(&EventFilter::default(), &ALL).await.unwrap().entries;
    let known = all.iter().filter_map(|event| Some((event.kind?, event.by.as_deref()?)));
    assert_eq!(known.collect::<Vec<_>>(), [(Invalidated, "on-call")], "whose request it was");
    let of_key = EventFilter { key: Some(key("l")), ..EventFilter::default() };
    assert_eq!(bench.events(of_key).await, later[..1]);
    let of_kind = EventFilter { kind: Some(Recovered), ..EventFilter::default() };
    assert_eq!(bench.events(of_kind).await, [(Recovered, one, String::new())]);
    let none = EventFilter { kind: Some(Silent), key: Some(key("l")), within_ms };
    assert_eq!(bench.events(none).await, []);
}

pub(crate) async fn what_is_old_is_forgotten<H: Home>() {
    let history = Keep { ms: 1_000, ..RULES.history };
    let bench = Bench::<H>::new(Rules { history, ..RULES }).await;
    let idempotency = Some(Idempotency { key: [7; 32], request: [8; 32] });
    let asked = Command::Acquire {
        key: key("k"),
        wish: Box::default(),
        lease: lease(1),
        queue: Some(Box::new(Queue { idempotency, ..Queue::default() })),
    };
    bench.register(1, "k").await;
    bench.apply(std::slice::from_ref(&asked)).await;
    assert!(bench.release(1, 1).await);
    bench.step(999);
    assert!(bench.acquire("k", 2).await.is_some());
    assert!(bench.release(1, 2).await);
    assert_eq!(bench.store.sweep().await.unwrap().forgotten, Forgotten::default());
    bench.step(1);
    let forgotten = bench.store.sweep().await.unwrap().forgotten;
    assert_eq!((forgotten.leases, forgotten.events, forgotten.requests), (1, 1, 0));
    assert_eq!(bench.ends().await, [(lease(2), Some(End::Released))]);
    assert_eq!(bench.store.sweep().await.unwrap().forgotten, Forgotten::default());
    // A request is remembered for its repetitions, whatever else is.
    assert_eq!(
        bench.apply(std::slice::from_ref(&asked)).await,
        [Outcome::Acquired(Err(Refusal::LeaseEnded))]
    );
    bench.step(3_600_000);
    assert_eq!(bench.store.sweep().await.unwrap().forgotten.requests, 1);
    assert_eq!(bench.ended().await, []);
}

pub(crate) async fn no_more_is_kept_than_there_may_be<H: Home>() {
    let history = Keep { leases: 10, events: 5, ..RULES.history };
    let bench = Bench::<H>::new(Rules { history, capacity: 30, ..RULES }).await;
    let seeds = 1..=50;
    let registered: Vec<_> = seeds.clone().map(|seed| register(seed, &format!("{seed}"))).collect();
    bench.apply(&registered).await;
    // More than one step deletes.
    for round in 0..24 {
        let number = |seed: u8| round * 100 + u32::from(seed);
        let asked: Vec<_> = seeds.clone().map(|seed| acquire(&format!("{seed}"), number(seed))).collect();
        bench.apply(&asked).await;
        let released: Vec<_> = seeds.clone().map(|seed| release(seed, number(seed))).collect();
        bench.apply(&released).await;
    }
    let all = 24 * 50;
    let page = Part { limit: 10_000, after: None };
    let before = bench.store.list_ended_leases(&LeaseFilter::default(), &page).await.unwrap().entries;
    assert_eq!(before.len(), all);
    let forgotten = bench.store.sweep().await.unwrap().forgotten;
    assert_eq!((forgotten.leases, forgotten.events), (all as u64 - 10, 45));
    assert_eq!(bench.ended().await, before[..10], "the last ones are kept");
    assert_eq!(bench.events(EventFilter::default()).await.len(), 5);
    assert!(bench.acquire("1", 9_999).await.is_some() && bench.release(1, 9_999).await);
    assert_eq!(bench.store.sweep().await.unwrap().forgotten.leases, 1);
}

pub(crate) async fn nothing_is_kept_when_that_is_the_rule<H: Home>() {
    let bench = Bench::<H>::new(Rules { history: Keep::of(0), ..RULES }).await;
    bench.register(1, "k").await;
    assert!(bench.acquire("k", 1).await.is_some());
    assert!(bench.release(1, 1).await);
    assert!(bench.acquire("k", 2).await.is_some());
    bench.register(1, "l").await;
    assert!(bench.acquire("l", 3).await.is_some());
    bench.step(RULES.lease_ttl_ms);
    // The database itself writes of the lease whose point is taken over; it stays until the next sweep.
    assert!(bench.acquire("l", 4).await.is_some());
    bench.step(RULES.lease_ttl_ms);
    bench.store.sweep().await.unwrap();
    assert_eq!(bench.ended().await, []);
    assert_eq!(bench.events(EventFilter::default()).await, []);
}

pub(crate) async fn pages_go_from_the_newest_to_the_oldest<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    for number in 0..7 {
        bench.register(1, &format!("key {number}")).await;
        assert!(bench.acquire(&format!("key {number}"), number).await.is_some());
        assert!(bench.release(1, number).await);
    }
    let all_leases = bench.ended().await;
    let all_events = bench.store.list_events(&EventFilter::default(), &ALL).await.unwrap().entries;
    assert_eq!(
        all_leases.iter().map(|ended| ended.lease).collect::<Vec<_>>(),
        [6, 5, 4, 3, 2, 1, 0].map(lease)
    );
    assert_eq!(all_events.len(), 7);
    for limit in 1..=8 {
        let (mut leases, mut events) = (Vec::new(), Vec::new());
        let mut part = Part { limit, after: None };
        loop {
            let page = bench.store.list_ended_leases(&LeaseFilter::default(), &part).await.unwrap();
            leases.extend(page.entries);
            part.after = page.next;
            if part.after.is_none() {
                break;
            }
        }
        loop {
            let page = bench.store.list_events(&EventFilter::default(), &part).await.unwrap();
            events.extend(page.entries);
            part.after = page.next;
            if part.after.is_none() {
                break;
            }
        }
        assert_eq!((&leases, &events), (&all_leases, &all_events), "pages of {limit}");
    }
    let elsewhere = Part { limit: 5, after: Some(b"\xff none of ours".to_vec()) };
    assert!(bench.store.list_ended_leases(&LeaseFilter::default(), &elsewhere).await.is_ok());
}
