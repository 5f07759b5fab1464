//! Workers with slow links that serve while they load: whose place goes to a reader, and who stands behind.

use super::loading::{INCARNATION, RULES, ask, ask_as, asker, complete, held, stalling};
use super::*;
use crate::domain::chain::{Asker, PERIOD_MS, Progress};
use crate::store::history::EventKind;
use rfork_protocol::v2::Advice;

/// So many bytes come to each worker in each second: 2, 3, and so on, which read one from the other.
type Rates<'a> = &'a [u64];

/// What comes to a worker whose link is not slow, and to one whose is.
const FULL: u64 = 100;
const SLOW: u64 = 20;

fn number_of(granted: &SeedIdentity) -> u8 {
    (0..100).find(|seed| identity(*seed) == *granted).expect("a seed of this test")
}

fn is_advised(outcome: &Outcome) -> bool {
    let Outcome::Renewed(Some(renewed)) = outcome else { panic!("{outcome:?}") };
    renewed.loading.and_then(|told| told.advice) == Some(Advice::Move)
}

/// A chain as its workers know it.
struct Chain<H: Home> {
    bench: Bench<H>,
    /// Of each worker, by its number less 2: who it reads from, by which lease, and what it holds.
    workers: Vec<(u8, u32, u64)>,
}

impl<H: Home> Chain<H> {
    async fn new(last: u8) -> Self {
        let bench = Bench::<H>::with_a_seed(RULES).await;
        bench.apply(&(2..=last).map(|seed| ask(seed, seed.into())).collect::<Vec<_>>()).await;
        Self { bench, workers: (2..=last).map(|seed| (seed - 1, seed.into(), 0)).collect() }
    }

    /// What these workers tell when this has come to them.
    fn tells(&mut self, workers: &[u8], rates: Rates<'_>) -> Vec<Command> {
        let each =
            (2..).zip(&mut self.workers).zip(rates).filter(|((worker, _), _)| workers.contains(worker));
        let tells = each.map(|((_, (source, number, bytes)), rate)| {
            *bytes += rate;
            let progress =
                Progress { incarnation: INCARNATION.into(), arrived_bytes: *bytes, held: held("x", *bytes) };
            let progress = Some(Box::new(progress));
            Command::Renew { identity: identity(*source), lease: lease(*number), progress }
        });
        tells.collect()
    }

    /// A second passes, in which this comes to each; gives who is advised to move.
    async fn second(&mut self, rates: Rates<'_>) -> Vec<u8> {
        self.bench.step(PERIOD_MS);
        let all: Vec<u8> = (2..).take(self.workers.len()).collect();
        let tells = self.tells(&all, rates);
        let outcomes = self.bench.apply(&tells).await;
        all.into_iter().zip(&outcomes).filter(|(_, outcome)| is_advised(outcome)).map(|(at, _)| at).collect()
    }

    async fn seconds(&mut self, seconds: usize, rates: Rates<'_>) {
        for _ in 0..seconds {
            assert_eq!(self.second(rates).await, [] as [u8; 0]);
        }
    }

    /// A worker asks for another source than the one that it reads from, which it names; gives which it gets.
    async fn moves(&mut self, worker: u8) -> Option<SeedIdentity> {
        let (source, number, bytes) = self.workers[usize::from(worker) - 2];
        let asks = ask_as(stalling(worker, held("x", bytes), (source, number)), number + 100);
        let granted = self.bench.from(asks).await?;
        self.workers[usize::from(worker) - 2] = (number_of(&granted), number + 100, bytes);
        Some(granted)
    }

    /// A worker that has lost its place asks for a source.
    async fn comes_back(&mut self, worker: u8) -> Option<SeedIdentity> {
        let (_, number, bytes) = self.workers[usize::from(worker) - 2];
        let asker = Asker { held: held("x", bytes), ..asker(worker) };
        let granted = self.bench.from(ask_as(asker, number + 100)).await?;
        self.workers[usize::from(worker) - 2] = (number_of(&granted), number + 100, bytes);
        Some(granted)
    }

    /// Why sources were changed, the last first, and whose.
    async fn told(&self) -> Vec<(SeedIdentity, String)> {
        let part = Part { limit: 100, after: None };
        let events = self.bench.store.list_events(&EventFilter::default(), &part).await.unwrap().entries;
        let moved = events.into_iter().filter(|event| event.kind == Some(EventKind::Moved));
        moved.map(|event| (event.identity.unwrap(), event.detail.unwrap())).collect()
    }
}

pub(crate) async fn a_reader_overtakes_who_falls_behind<H: Home>() {
    let mut chain = Chain::<H>::new(5).await;
    let slow = [FULL, SLOW, SLOW, SLOW];
    chain.seconds(2, &slow).await;
    assert_eq!(chain.second(&slow).await, [4], "three reports say so");
    let waits = acquire("k", 50);
    assert_eq!(chain.moves(4).await, Some(identity(2)), "the place of 3");
    assert!(!chain.bench.renew(2, 3).await, "it has ended");
    assert_eq!(chain.bench.view(2).await.unwrap().used, 1);
    assert_eq!(
        chain.bench.view(3).await.map(|view| view.failures),
        None,
        "no failure, and nobody is sent to it"
    );
    assert!(matches!(chain.bench.one(waits).await, Outcome::Acquired(Err(_))));
    assert_eq!(chain.comes_back(3).await, None, "nobody has overtaken it yet");
    chain.bench.step(PERIOD_MS);
    let tell = |source, number, bytes| super::loading::tell(source, number, INCARNATION, held("x", bytes));
    chain.bench.apply(&[tell(2, 104, 150), tell(4, 5, 150)]).await;
    assert_eq!(chain.comes_back(3).await, Some(identity(5)), "the last of the chain");
    let told = chain.told().await;
    assert_eq!(
        told[0],
        (identity(3), format!("loads from {}, depth 3: behind those who have overtaken it", identity(5)))
    );
    assert_eq!(
        told[1],
        (
            identity(4),
            format!("loads from {}, depth 1: in the place of its source, which falls behind", identity(2))
        )
    );
}

pub(crate) async fn a_source_that_sends_slowly_is_a_leaf<H: Home>() {
    let mut chain = Chain::<H>::new(6).await;
    // 3 gets what 2 gets, and passes a part of it on.
    let slow = [FULL, FULL, SLOW, SLOW, SLOW];
    chain.seconds(2, &slow).await;
    assert_eq!(chain.second(&slow).await, [5], "it may be 4's link");
    assert_eq!(chain.moves(5).await, Some(identity(3)));
    // 4 has lost its place.
    chain.workers[2] = (99, 99, chain.workers[2].2);
    chain.workers.remove(2);
    let is_left = [FULL, FULL, SLOW, SLOW];
    let advised = |told: Vec<u8>| told.into_iter().map(|worker| if worker > 3 { worker + 1 } else { worker });
    for _ in 0..3 {
        assert_eq!(chain.second(&is_left).await, [] as [u8; 0]);
    }
    assert_eq!(advised(chain.second(&is_left).await).collect::<Vec<_>>(), [5], "it is 3's");
    let (_, number, bytes) = chain.workers[2];
    let asks = ask_as(stalling(5, held("x", bytes), (3, number)), 200);
    assert_eq!(chain.bench.from(asks).await, Some(identity(2)), "the place of 3");
    let told = chain.told().await;
    assert_eq!(
        told[0].1,
        format!("loads from {}, depth 1: in the place of its source, which sends slowly", identity(2))
    );
    // It is heard of again, nobody reads from it, and it is granted to nobody.
    let stands_behind = Asker { held: held("x", 600), ..asker(3) };
    let (_, of_last, _) = chain.workers[3];
    chain.bench.apply(&[super::loading::tell(5, of_last, INCARNATION, held("x", 700))]).await;
    assert_eq!(chain.bench.from(ask_as(stands_behind, 201)).await, Some(identity(6)));
    chain.bench.apply(&[super::loading::tell(6, 201, INCARNATION, held("x", 650))]).await;
    assert_eq!(chain.bench.from(ask(7, 202)).await, None);
    chain.bench.apply(&[complete(3, "x")]).await;
    assert_eq!(chain.bench.from(ask(7, 203)).await, Some(identity(3)), "until it has everything");
}

pub(crate) async fn who_starves_for_its_source_is_not_moved<H: Home>() {
    let mut chain = Chain::<H>::new(5).await;
    // Everybody gets what the first gets, be it little, or nothing any more.
    chain.seconds(4, &[SLOW; 4]).await;
    chain.seconds(4, &[0; 4]).await;
    // The last is slow, and nobody reads from it.
    chain.seconds(4, &[FULL, FULL, FULL, SLOW]).await;
    assert_eq!(chain.told().await, []);
}

pub(crate) async fn a_reader_that_does_not_starve_overtakes_nobody<H: Home>() {
    let mut chain = Chain::<H>::new(4).await;
    // 4 has a slower link than 3.
    chain.seconds(5, &[FULL, SLOW, SLOW / 4]).await;
    assert_eq!(chain.told().await, []);
}

pub(crate) async fn one_place_of_a_key_is_promised_a_second<H: Home>() {
    let mut chain = Chain::<H>::new(7).await;
    // 3 and 5 fall behind, each for itself.
    let slow = [400, 120, 120, 40, 40, 40];
    chain.seconds(2, &slow).await;
    let first = chain.second(&slow).await;
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(chain.second(&slow).await.len(), 2, "the first is told again, and now the other one as well");
}

pub(crate) async fn reports_and_moves_outlive_a_restart<H: Home>() {
    let mut chain = Chain::<H>::new(7).await;
    let slow = [400, 120, 120, 40, 40, 40];
    chain.seconds(2, &slow).await;
    chain.bench.restart(RULES).await;
    let first = chain.second(&slow).await;
    assert_eq!(first.len(), 1);
    chain.bench.restart(RULES).await;
    let tell = chain.workers.iter().map(|(source, number, bytes)| {
        super::loading::tell(*source, *number, INCARNATION, held("x", *bytes))
    });
    let outcomes = chain.bench.apply(&tell.collect::<Vec<_>>()).await;
    let advised = outcomes.iter().filter(|outcome| is_advised(outcome));
    assert_eq!(advised.count(), 1, "no other one within the second");
}

/// For stores that several planners have at once. Whether they meet is chance, so they are given several.
pub(crate) async fn planners_promise_one_place_of_a_key_a_second<H: Home>() {
    for _ in 0..5 {
        let mut chain = Chain::<H>::new(8).await;
        let other = chain.bench.home.open(RULES, Clock::Manual(chain.bench.clock.clone())).await;
        // 3 and 6 fall behind.
        let slow = [400, 100, 100, 100, 25, 25, 25];
        chain.seconds(2, &slow).await;
        chain.bench.step(PERIOD_MS);
        let tells = chain.tells(&[2, 3, 5, 6, 8], &slow);
        other.apply_list(&tells).await.unwrap();
        let [one, another] = [4, 7].map(|worker| chain.tells(&[worker], &slow));
        let (one, another) = tokio::join!(chain.bench.store.apply_list(&one), other.apply_list(&another));
        let advised = [one, another].map(|outcomes| is_advised(&outcomes.unwrap()[0]));
        assert_eq!(advised.into_iter().filter(|is_advised| *is_advised).count(), 1, "{advised:?}");
    }
}
