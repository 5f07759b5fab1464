//! Places of workers that serve while they load: whose they are when such a worker is lost or leaves.

use super::loading::{INCARNATION, RULES, ask, ask_as, complete, held, stalling, tell};
use super::*;
use crate::domain::chain::{Asker, LATE_MS, PERIOD_MS, READER_TTL_MS, Stalled};
use crate::store::Queue;
use crate::store::history::End;
use rfork_protocol::v2::Advice;

const SILENCE_MS: i64 = 3 * PERIOD_MS;

/// A worker that has a lease on a source which it calls lost.
fn bereft(seed: u8, bytes: u64, source: (u8, u32)) -> Asker {
    let asker = stalling(seed, held("x", bytes), source);
    Asker { stalled: asker.stalled.map(|stalled| Stalled { lost: true, ..stalled }), ..asker }
}

fn waits(command: Command) -> Command {
    match command {
        Command::Acquire { key, wish, lease, .. } => {
            let queue = Queue { wait_ms: 60_000, attempt: 1, ..Queue::default() };
            Command::Acquire { key, wish, lease, queue: Some(Box::new(queue)) }
        }
        other => other,
    }
}

impl<H: Home> Bench<H> {
    /// The seed 1 and so many workers, each of which reads from the one before by the lease of its number.
    async fn with_a_chain(last: u8) -> Self {
        let bench = Self::with_a_seed(RULES).await;
        bench.apply(&(2..=last).map(|seed| ask(seed, seed.into())).collect::<Vec<_>>()).await;
        bench
    }

    /// Time passes, and these renew.
    async fn silence_but_for(&self, ms: i64, renewing: &[u8]) {
        self.step(ms);
        let told = renewing.iter().map(|seed| tell(seed - 1, (*seed).into(), INCARNATION, held("x", 100)));
        self.apply(&told.collect::<Vec<_>>()).await;
    }

    /// Who was granted something that waits for it.
    async fn told(&self) -> Vec<(u32, SeedIdentity)> {
        let woken = self.store.collect(&[]).await.unwrap();
        let numbers = woken.into_iter().filter_map(|woken| {
            let number = (0..100).find(|number| lease(*number) == woken.lease)?;
            Some((number, woken.grant?.identity))
        });
        numbers.collect()
    }
}

pub(crate) async fn the_place_of_a_lost_relay_is_its_reader_s<H: Home>() {
    let bench = Bench::<H>::with_a_chain(5).await;
    bench.silence_but_for(SILENCE_MS, &[2, 4, 5]).await;
    assert!(
        matches!(bench.one(waits(acquire("k", 50))).await, Outcome::Queued(_)),
        "somebody waits for the seed"
    );
    let granted = bench.granted(ask_as(bereft(4, 100, (3, 4)), 10)).await.expect("the place of 3");
    let source = granted.source.expect("it is registered");
    assert_eq!((granted.identity, source.depth, source.point), (identity(2), 1, 0));
    assert!(!bench.renew(2, 3).await && !bench.renew(3, 4).await, "what led there has ended");
    assert!(bench.renew(2, 10).await && bench.renew(4, 5).await);
    assert_eq!(bench.told().await, [], "nobody found it free");
    let view = bench.view(2).await.unwrap();
    assert_eq!((view.used, view.failures), (1, 0));
    let ends: Vec<_> = bench.ends().await.into_iter().map(|(_, end)| end).collect();
    assert_eq!(ends, [Some(End::PassedOn); 2]);
    assert_eq!(
        bench.view(3).await.map(|view| view.failures),
        None,
        "a loss is no failure, and it is shown to nobody"
    );
}

pub(crate) async fn who_renews_or_is_not_reported_keeps_its_place<H: Home>() {
    let bench = Bench::<H>::with_a_chain(4).await;
    let lost = || bereft(3, 100, (2, 3));
    bench.silence_but_for(SILENCE_MS - 1, &[3, 4]).await;
    assert_eq!(bench.from(ask_as(lost(), 10)).await, None, "it is not silent for long enough");
    bench.silence_but_for(1, &[2, 3, 4]).await;
    assert_eq!(bench.from(ask_as(lost(), 11)).await, None, "it renews");
    bench.silence_but_for(SILENCE_MS, &[3, 4]).await;
    let connected = stalling(3, held("x", 100), (2, 3));
    assert_eq!(bench.from(ask_as(connected, 12)).await, None, "its reader has a connection");
    for (reader, lease_on) in [(3, (2, 99)), (3, (1, 2)), (4, (2, 4))] {
        let invented = bereft(reader, 100, lease_on);
        assert_eq!(bench.from(ask_as(invented, 13)).await, None, "a lease that is not there is not believed");
    }
    assert!(bench.renew(1, 2).await);
    assert_eq!(bench.from(ask_as(lost(), 14)).await, Some(identity(1)));
}

pub(crate) async fn a_relay_that_was_known_to_answer_and_does_not_is_lost<H: Home>() {
    let bench = Bench::<H>::with_a_chain(2).await;
    let seed_id = bench.granted(ask(3, 3)).await.expect("2").seed_id;
    let unanswered = |number| {
        let mut asks = ask_as(bereft(3, 100, (2, 3)), number);
        if let Command::Acquire { wish, .. } = &mut asks {
            wish.asked_whether_lost(true);
        }
        asks
    };
    assert_eq!(bench.from(unanswered(10)).await, None, "it may be out of the planner's reach");
    bench.one(Command::Answered { identity: identity(2), seed_id }).await;
    assert_eq!(bench.from(unanswered(11)).await, Some(identity(1)));
}

pub(crate) async fn all_that_are_silent_are_passed_over_at_once<H: Home>() {
    let bench = Bench::<H>::with_a_chain(6).await;
    bench.silence_but_for(SILENCE_MS, &[2, 6]).await;
    let granted = bench.granted(ask_as(bereft(6, 100, (5, 6)), 10)).await.unwrap();
    assert_eq!((granted.identity, granted.source.unwrap().depth), (identity(2), 1));
    for number in 3..=6 {
        assert!(!bench.renew(number - 1, number.into()).await, "{number}");
    }
    assert_eq!(bench.ends().await.len(), 4);
}

pub(crate) async fn a_place_waits_for_who_reads_from_a_relay_that_leaves<H: Home>() {
    for asks_in_time in [true, false] {
        let bench = Bench::<H>::with_a_chain(3).await;
        assert_eq!(bench.remove(2, "k").await, Removal::Draining);
        assert!(bench.release(1, 2).await);
        assert!(matches!(bench.one(waits(acquire("k", 50))).await, Outcome::Queued(_)), "it is kept");
        if asks_in_time {
            assert_eq!(bench.from(ask_as(stalling(3, None, (2, 3)), 10)).await, Some(identity(1)));
            assert!(bench.entry(2).await.is_none(), "it has gone with its last lease");
        } else {
            bench.silence_but_for(SILENCE_MS, &[]).await;
            bench.one(Command::Serve { key: key("k") }).await;
            assert_eq!(bench.told().await, [(50, identity(1))], "but not for ever");
        }
    }
    // Who has another source leaves nothing behind.
    let bench = Bench::<H>::with_a_chain(3).await;
    bench.apply(&[complete(9, "x")]).await;
    assert_eq!(bench.from(ask_as(stalling(2, None, (1, 2)), 10)).await, Some(identity(9)));
    assert!(bench.release(1, 2).await);
    assert_eq!(bench.acquire("k", 11).await, Some(identity(1)));
}

pub(crate) async fn who_reads_from_what_an_operator_takes_out_is_told_to_move<H: Home>() {
    let bench = Bench::<H>::with_a_chain(3).await;
    bench.one(Command::Drain { identity: identity(2), key: key("k") }).await;
    let told = bench.guidance(tell(2, 3, INCARNATION, held("x", 10))).await.unwrap();
    assert_eq!(told.advice, Some(Advice::Move));
    assert_eq!(bench.from(ask_as(stalling(3, held("x", 10), (2, 3)), 10)).await, Some(identity(1)));
    let told = bench.guidance(tell(1, 10, INCARNATION, held("x", 20))).await.unwrap();
    assert_eq!(told.advice, None);
    // A complete seed lends on: its readers need nothing but it.
    bench.one(Command::Drain { identity: identity(1), key: key("k") }).await;
    let told = bench.guidance(tell(1, 10, INCARNATION, held("x", 30))).await.unwrap();
    assert_eq!(told.advice, None);
}

pub(crate) async fn whoever_waits_inherits_when_its_source_falls_silent<H: Home>() {
    let bench = Bench::<H>::with_a_chain(3).await;
    assert!(matches!(bench.one(waits(acquire("k", 50))).await, Outcome::Queued(_)));
    let waiting = waits(ask_as(bereft(3, 100, (2, 3)), 10));
    assert!(matches!(bench.one(waiting).await, Outcome::Queued(_)), "2 was heard of just now");
    bench.silence_but_for(SILENCE_MS - 1, &[3]).await;
    assert_eq!(bench.told().await, []);
    bench.silence_but_for(1, &[3]).await;
    assert_eq!(bench.told().await, [(10, identity(1))]);
}

pub(crate) async fn no_place_is_inherited_that_leads_to_other_bytes<H: Home>() {
    let bench = Bench::<H>::with_a_chain(3).await;
    bench.silence_but_for(SILENCE_MS, &[3]).await;
    let mut asker = bereft(3, 100, (2, 3));
    asker.held = held("y", 100);
    assert_eq!(bench.from(ask_as(asker, 10)).await, None);
    // Nor one that is not wanted, nor what is gone itself.
    let wish = Wish {
        loading: Some(Box::new(bereft(3, 100, (2, 3)))),
        exclude: vec![identity(1)],
        ..Wish::default()
    };
    let asks = Command::Acquire { key: key("k"), wish: Box::new(wish), lease: lease(11), queue: None };
    assert_eq!(bench.from(asks).await, None);
    assert!(bench.renew(1, 2).await && bench.renew(2, 3).await, "nothing has ended");
    assert_eq!(bench.from(ask_as(bereft(3, 100, (2, 3)), 12)).await, Some(identity(1)));
}

pub(crate) async fn who_has_lost_its_place_comes_back_behind<H: Home>() {
    let bench = Bench::<H>::with_a_chain(3).await;
    bench.silence_but_for(SILENCE_MS, &[3]).await;
    assert_eq!(bench.from(ask_as(bereft(3, 100, (2, 3)), 10)).await, Some(identity(1)));
    assert_eq!(bench.from(ask(4, 4)).await, Some(identity(3)), "2 is no source until it is heard of");
    assert!(bench.release(3, 4).await);
    // It had only paused, and holds less than 3 by now.
    let returns = Asker { held: held("x", 50), stalled: None, ..bereft(2, 50, (1, 2)) };
    assert_eq!(bench.from(ask_as(returns, 11)).await, Some(identity(3)));
    assert_eq!(bench.view(1).await.unwrap().used, 1);
}

pub(crate) async fn a_worker_that_dies_as_the_last_of_a_chain_gives_its_place_back_soon<H: Home>() {
    let bench = Bench::<H>::with_a_seed(Rules { lease_ttl_ms: 60_000, ..RULES }).await;
    let granted = bench.granted(ask(2, 2)).await.expect("the seed");
    assert_eq!(granted.lease_ttl_ms, READER_TTL_MS, "it is told when its place is anybody's");
    bench.silence_but_for(READER_TTL_MS - 1, &[2]).await;
    assert!(matches!(bench.one(waits(acquire("k", 50))).await, Outcome::Queued(Some(READER_TTL_MS))));
    bench.silence_but_for(READER_TTL_MS - 1, &[]).await;
    bench.one(Command::Serve { key: key("k") }).await;
    assert_eq!(bench.told().await, [], "it may be back");
    bench.step(1);
    bench.one(Command::Serve { key: key("k") }).await;
    assert_eq!(bench.told().await, [(50, identity(1))]);
    assert!(!bench.renew(1, 2).await);
    // Who serves nobody while it loads renews seldom.
    bench.step(59_999);
    assert!(bench.renew(1, 50).await);
}

pub(crate) async fn a_chain_is_there_again_after_planners_were_away<H: Home>() {
    let bench = Bench::<H>::with_a_chain(4).await;
    bench.step(RULES.lease_ttl_ms + 15_000);
    bench.store.sweep().await.unwrap();
    assert!(bench.renew(3, 4).await && bench.renew(1, 2).await);
    assert_eq!(bench.acquire("k", 50).await, None, "its place is the first worker's again");
    assert!(bench.renew(2, 3).await);
    // Whoever asks before a place is renewed has it.
    bench.step(RULES.lease_ttl_ms);
    assert_eq!(bench.acquire("k", 51).await, Some(identity(1)));
    assert!(!bench.renew(1, 2).await && bench.renew(1, 51).await);
    // Not for ever.
    bench.step(RULES.lease_ttl_ms + LATE_MS);
    assert!(!bench.renew(2, 3).await && !bench.renew(3, 4).await);
    bench.store.sweep().await.unwrap();
    assert!(bench.ends().await.into_iter().all(|(_, end)| end == Some(End::Expired)));
}
