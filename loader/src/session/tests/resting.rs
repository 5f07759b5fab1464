//! Workers whose weights may change once they are loaded: they serve until their readers hold everything, and then when they
//! are told to serve.

use std::sync::atomic::Ordering;

use super::*;
use crate::fallback::{Fills, InPlace, Whole};

/// A worker that passes on what it loads until it is loaded, and does not serve then.
async fn transforms(planner: &Planner, mib_per_sec: f64, storage: Option<Arc<Pattern>>) -> Reader {
    let mut session = session(planner, mib_per_sec, PATIENT).await;
    session.pass_on_until_loaded();
    let (memory, cancel) = (memory(), CancellationToken::new());
    let (filled, ended) = (memory.clone(), cancel.clone());
    let task = tokio::spawn(async move {
        let report = match storage {
            Some(storage) => session.load(&manifest(), filled, &storage, &ended).await,
            None => session.load(&manifest(), filled, &NoFallback, &ended).await,
        };
        (session, report)
    });
    Reader { memory, cancel, task }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_load_ends_when_whoever_reads_from_it_holds_everything() {
    let planner = Planner::start(true).await;
    let (_root, weights) = root(&planner, 1, 24.0).await;
    // It sends more slowly than it gets.
    let relay = transforms(&planner, 8.0, None).await;
    planner.until(|state| state.seeds.len() == 2).await;
    let address = planner.look(|state| state.seeds[1].identity.clone());
    let last = reader(&planner, 1000.0, PATIENT, None).await;
    last.holds(1).await;
    let of_last = last.memory.clone();
    let (mut session, _, memory) = relay.ends().await;
    assert!(of_last.all_held(), "it left no reader behind");
    planner.look(|state| assert!(state.deregistered.contains(&address) && state.beats.len() < 20));
    let (_last, report, of_last) = last.ends().await;
    assert_eq!((report.shares.len(), bytes(&of_last) == bytes(&weights)), (1, true));
    // Nobody reads here now: its owner may change every byte.
    memory.forget_all().expect("nobody reads it");
    planner.look(|state| assert!(state.seeds.iter().all(|seed| seed.identity != address)));
    assert!(session.serve().await.is_err(), "it has nothing any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_afterwards_what_has_not_changed() {
    let planner = Planner::start(true).await;
    let (seed, weights) = root(&planner, 1, 1000.0).await;
    let (mut session, _, _) = transforms(&planner, 1000.0, None).await.ends().await;
    session.verify().await.unwrap();
    session.serve().await.unwrap();
    seed.close().await;
    let (_session, _, memory) = reader(&planner, 1000.0, PATIENT, None).await.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_come_to_an_end_are_left() {
    let planner = Planner::start(true).await;
    let (_root, weights) = root(&planner, 1, 1000.0).await;
    let relay = transforms(&planner, 0.5, None).await;
    planner.until(|state| state.seeds.len() == 2).await;
    let last = reader(&planner, 1000.0, PATIENT, None).await;
    last.holds(1).await;
    while !relay.memory.all_held() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    relay.cancel.cancel();
    let (_session, ended) = tokio::time::timeout(HANGS, relay.task).await.unwrap().unwrap();
    assert!(ended.is_ok() && !last.memory.all_held(), "who ends the load waits for no reader: {ended:?}");
    let (_last, _, memory) = last.ends().await;
    assert!(bytes(&memory) == bytes(&weights), "it goes on elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_read_storage_keeps_the_others_waiting_until_it_serves() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let storage = Pattern::new(1);
    let (mut session, _, _) = transforms(&planner, 1000.0, Some(storage.clone())).await.ends().await;
    let leader = planner.look(|state| state.leader.clone()).expect("it still has the right");
    let (claims, last) = planner.look(|state| (state.claims.len(), state.claims.last().cloned().unwrap()));
    assert_eq!(
        last.patience_ms,
        rfork_protocol::v2::MAX_WAIT_MS,
        "it takes the right from nobody who has it then"
    );
    assert!(last.loading.held.is_none() && last.origin.is_none() && last.arrived_bytes > 0);
    let other = session_that_waits(&planner, &storage).await;
    planner.until(|state| state.claims.len() > claims + 4).await;
    planner.look(|state| {
        assert_eq!(state.leader.as_ref(), Some(&leader));
        assert!(state.seeds.is_empty(), "and nobody is sent to it: {:?}", state.seeds);
    });
    session.serve().await.unwrap();
    let (_other, report, memory) = other.ends().await;
    assert!(bytes(&memory) == pattern(1));
    assert_eq!(report.shares.iter().filter(|share| share.source == Source::Storage).count(), 0);
    assert_eq!(storage.read_bytes.load(Ordering::SeqCst), report.bytes, "storage is read once");
}

async fn session_that_waits(planner: &Planner, storage: &Arc<Pattern>) -> Reader {
    reader_that_waits(session(planner, 1000.0, PATIENT).await, Some(storage.clone()), None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loaders_of_the_whole_do_not_load_one_after_the_other() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let leads = |port: u16| Some(rfork_protocol::SeedIdentity::new("127.0.0.1", port, 0).unwrap());
    planner.look(|state| state.leader = leads(1));
    let mut session = session(&planner, 1000.0, PATIENT).await;
    session.pass_on_until_loaded();
    let loading = tokio::spawn(async move {
        session.load(&manifest(), memory(), &Whole(InPlace), &CancellationToken::new()).await
    });
    planner.until(|state| state.claims.len() > 2).await;
    assert!(!loading.is_finished(), "it waits for the first");
    planner.look(|state| state.leader = leads(2));
    tokio::time::timeout(HANGS, loading).await.expect("it waits for no second one").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gets_everything_at_once_says_so() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let mut session = session(&planner, 1000.0, PATIENT).await;
    session.pass_on_until_loaded();
    let engine = Whole(InPlace);
    assert_eq!(engine.fills(), Fills::Whole);
    session.load(&manifest(), memory(), &engine, &CancellationToken::new()).await.unwrap();
    planner.look(|state| {
        assert!(state.claims.iter().any(|claim| claim.whole));
        assert!(state.claims.iter().all(|claim| claim.origin.is_none()), "nothing can be read meanwhile");
    });
    session.close().await;
    planner.look(|state| assert_eq!(state.leader, None));
}
