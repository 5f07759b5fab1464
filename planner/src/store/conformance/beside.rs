//! Who reads storage beside the worker that reads it for others: whoever is loaded sooner that way.

use rfork_protocol::v2::Advice;

use super::loading::{INCARNATION, RULES, ask, ask_as, held, stalling};
use super::*;
use crate::domain::chain::{PERIOD_MS, Progress};
use crate::store::commands::{Claim, Claimed, Role};
use crate::store::history::EventKind;

/// What storage gives in a second, and what links bring that are slower.
const STORAGE: u64 = 100;
const LINK: u64 = 20;

fn claim(seed: u8, arrived_bytes: u64) -> Claim {
    Claim {
        by: None,
        owner: Owner::default(),
        identity: identity(seed),
        key: key("k"),
        profile: Box::new(Profile { incarnation: Some(INCARNATION.into()), ..Profile::default() }),
        client: None,
        total_bytes: 1_000,
        arrived_bytes,
        held: None,
        origin: None,
        whole: false,
        patience_ms: 30_000,
    }
}

fn of_origin(bytes: u64) -> Claim {
    Claim { origin: Some("origin:2".into()), held: held("origin:2", bytes), ..claim(2, bytes) }
}

impl<H: Home> Bench<H> {
    async fn claimed(&self, claim: Claim) -> Role {
        match self.one(Command::Claim(Box::new(claim))).await {
            Outcome::Claimed(Claimed { role, .. }) => role,
            other => panic!("{other:?}"),
        }
    }

    /// Those who were told that they read storage, the last first, and why.
    async fn readers_of_storage(&self) -> Vec<(SeedIdentity, String)> {
        let part = Part { limit: 100, after: None };
        let events = self.store.list_events(&EventFilter::default(), &part).await.unwrap().entries;
        let leads = events.into_iter().filter(|event| event.kind == Some(EventKind::Leads));
        leads.map(|event| (event.identity.unwrap(), event.detail.unwrap())).collect()
    }

    /// A second passes: worker 2 leads and has read so much, and each of these has so much from its source.
    async fn second(&self, leader: u64, readers: &[(u8, u32, u64)]) -> Vec<Option<Advice>> {
        self.step(PERIOD_MS);
        assert_eq!(self.claimed(of_origin(leader)).await, Role::Leads);
        let tells = readers.iter().map(|(source, number, bytes)| {
            let held = held("origin:2", *bytes);
            let progress = Progress { incarnation: INCARNATION.into(), arrived_bytes: *bytes, held };
            let progress = Some(Box::new(progress));
            Command::Renew { identity: identity(*source), lease: lease(*number), progress }
        });
        let outcomes = self.apply(&tells.collect::<Vec<_>>()).await;
        let advice = outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Renewed(renewed) => renewed.unwrap().loading.and_then(|told| told.advice),
            other => panic!("{other:?}"),
        });
        advice.collect()
    }
}

pub(crate) async fn who_has_much_less_to_read_than_who_leads_reads_beside_it<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.claimed(of_origin(100)).await, Role::Leads);
    let has = |root, bytes| Claim { held: held(root, bytes), ..claim(3, bytes) };
    // 2 has 900 left: half of what it gets is to bring the rest no later.
    assert_eq!(bench.claimed(has("x", 549)).await, Role::Waits(identity(2)));
    assert_eq!(bench.claimed(has("origin:9", 999)).await, Role::Waits(identity(2)), "all would be compared");
    assert_eq!(bench.claimed(has("x", 550)).await, Role::Alone);
    let another = || Claim { identity: identity(5), ..has("x", 990) };
    assert_eq!(bench.claimed(another()).await, Role::Waits(identity(2)), "one a second");
    bench.step(PERIOD_MS);
    assert_eq!(bench.claimed(of_origin(101)).await, Role::Leads, "the right is not passed on");
    assert_eq!(bench.claimed(another()).await, Role::Alone);
    let told = bench.readers_of_storage().await;
    let why = format!("reads storage beside {}, which has more to read", identity(2));
    assert_eq!(told[..2], [(identity(5), why.clone()), (identity(3), why)]);
    assert_eq!(bench.from(ask(4, 4)).await, Some(identity(2)), "and not from who reads for itself");
}

pub(crate) async fn who_gets_less_from_who_leads_than_storage_gives_reads_it_as_well<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.claimed(of_origin(1)).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)));
    for second in 1..=3 {
        let advice = bench.second(second * STORAGE, &[(2, 3, second * LINK)]).await;
        let expected = (second == 3).then_some(Advice::ReadStorage);
        assert_eq!(advice, [expected], "second {second}: three reports say so");
    }
    let why = format!("reads storage beside {}, which gets more from it than it sends", identity(2));
    assert_eq!(bench.readers_of_storage().await[0], (identity(3), why));
    for second in 4..=9 {
        assert_eq!(bench.second(second * STORAGE, &[(2, 3, second * LINK)]).await, [None], "once");
    }
    assert_eq!(bench.readers_of_storage().await.len(), 2, "with who leads");
}

pub(crate) async fn nobody_is_sent_to_storage_beside_who_is_not_heard_of<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.claimed(of_origin(1)).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)));
    bench.second(STORAGE, &[(2, 3, LINK)]).await;
    bench.second(2 * STORAGE, &[(2, 3, 2 * LINK)]).await;
    // It stands still, and its last rate is in the row.
    bench.step(PERIOD_MS);
    for _ in 0..3 {
        bench.step(PERIOD_MS);
        let held = held("origin:2", 2 * LINK);
        let progress = Progress { incarnation: INCARNATION.into(), arrived_bytes: 2 * LINK, held };
        let renew =
            Command::Renew { identity: identity(2), lease: lease(3), progress: Some(Box::new(progress)) };
        let advice = bench.guidance(renew).await.and_then(|told| told.advice);
        assert_eq!(advice, None);
    }
}

pub(crate) async fn who_has_it_rests_until_it_serves_without_being_told_of_twice<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.claimed(of_origin(900)).await, Role::Leads);
    let profile = Profile { incarnation: Some("second".into()), ..Profile::default() };
    let rests = || Claim { profile: Box::new(profile.clone()), ..claim(2, 900) };
    assert_eq!(bench.claimed(rests()).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 3)).await, None, "nobody is sent to it");
    let orphan = Claim { held: held("x", 990), ..claim(4, 990) };
    assert_eq!(bench.claimed(orphan).await, Role::Waits(identity(2)), "it will be a seed in a moment");
    assert_eq!(bench.readers_of_storage().await.len(), 1);
}

pub(crate) async fn who_is_as_fast_as_storage_or_nearly_done_reads_on<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.claimed(of_origin(1)).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)));
    for second in 1..=4 {
        assert_eq!(bench.second(second * STORAGE, &[(2, 3, second * STORAGE / 2)]).await, [None]);
    }
    // All bytes of an origin would be read again, and 300 are left.
    for second in 0..6 {
        assert_eq!(bench.second(850 + 20 * second, &[(2, 3, 700 + 5 * second)]).await, [None]);
    }
}

pub(crate) async fn one_slow_link_is_passed_over_before_storage_is_read_twice<H: Home>() {
    let bench = Bench::<H>::new(RULES).await;
    assert_eq!(bench.claimed(of_origin(1)).await, Role::Leads);
    assert_eq!(bench.from(ask(3, 3)).await, Some(identity(2)));
    assert_eq!(bench.from(ask(4, 4)).await, Some(identity(3)));
    for second in 1..=3 {
        let bytes = second * LINK;
        let advice = bench.second(second * STORAGE, &[(2, 3, bytes), (3, 4, bytes)]).await;
        assert_eq!(advice, [None, (second == 3).then_some(Advice::Move)], "it may be 3's link");
    }
    let asks = ask_as(stalling(4, held("origin:2", 60), (3, 4)), 5);
    assert_eq!(bench.from(asks).await, Some(identity(2)), "the place of 3");
    assert_eq!(bench.from(ask(5, 6)).await, Some(identity(4)));
    for second in 4..=7 {
        let bytes = second * LINK;
        let advice = bench.second(second * STORAGE, &[(2, 5, bytes), (4, 6, bytes)]).await;
        assert_eq!(
            advice,
            [(second == 7).then_some(Advice::ReadStorage), None],
            "second {second}: all are slow"
        );
    }
}
