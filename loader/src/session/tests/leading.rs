//! Workers that begin together with nothing: one reads storage, and the others wait for it.

use std::sync::atomic::Ordering;

use super::planner::Right;
use super::*;

async fn cold(planner: &Planner, storage: &Arc<Pattern>) -> Reader {
    let session = session(planner, 1000.0, PATIENT).await;
    reader_that_waits(session, Some(storage.clone()), None)
}

fn copies(storage: &Pattern) -> u64 {
    storage.read_bytes.load(Ordering::SeqCst) / memory().plan().total_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_is_read_once_and_the_others_fork() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let storage = Pattern::slow(1);
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(cold(&planner, &storage).await);
    }
    // All have asked, the leader again and again.
    planner
        .until(|state| {
            let asked: std::collections::HashSet<_> =
                state.claims.iter().map(|claim| claim.loading.seed.to_string()).collect();
            asked.len() == 4 && state.claims.len() > 8
        })
        .await;
    storage.goes_on.notify_one();
    let mut from_storage = 0;
    let mut sessions = Vec::new();
    for reader in readers {
        let (session, report, memory) = reader.ends().await;
        assert!(bytes(&memory) == bytes(&loaded(&planner, 1, 1000.0).await.1));
        from_storage += report.shares.iter().filter(|share| share.source == Source::Storage).count();
        sessions.push(session);
    }
    assert_eq!((from_storage, copies(&storage)), (1, 1));
    planner.look(|state| {
        assert_eq!(state.leader, None);
        assert!(state.claims.iter().all(|claim| claim.patience_ms == 30_000));
        let mut told = state.claims.iter().map(|claim| claim.arrived_bytes);
        assert_eq!(told.next(), Some(0));
    });
    for session in sessions {
        session.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_who_reads_storage_is_cancelled_the_next_one_reads_it() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let storage = Pattern::slow(1);
    let first = cold(&planner, &storage).await;
    planner.until(|state| state.leader.is_some()).await;
    let gone = planner.look(|state| state.leader.clone());
    let second = cold(&planner, &Pattern::new(1)).await;
    planner.until(|state| state.claims.iter().any(|claim| Some(&claim.loading.seed) != gone.as_ref())).await;
    first.cancel.cancel();
    let (session, ended) = tokio::time::timeout(HANGS, first.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LoadError::Cancelled)), "{ended:?}");
    planner.look(|state| {
        assert!(state.deregistered.contains(gone.as_ref().unwrap()), "it says that it is gone");
        assert_ne!(state.leader, gone, "no renewal comes after that");
    });
    let (_session, report, memory) = second.ends().await;
    assert_eq!(report.shares[0].source, Source::Storage);
    assert!(memory.all_held());
    drop(session);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_storage_is_read_without_the_right() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    planner.look(|state| state.right = Right::Hidden);
    let storage = Pattern::new(1);
    let (_session, _, memory) = cold(&planner, &storage).await.ends().await;
    assert!(memory.all_held() && copies(&storage) == 1);
    planner.look(|state| assert!(state.claims.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_the_right_loads_for_itself() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    planner.look(|state| state.right = Right::TakenAway);
    let storage = Pattern::slow(1);
    let (one, two) = (cold(&planner, &storage).await, cold(&planner, &storage).await);
    planner.until(|state| state.claims.len() > 8).await;
    storage.goes_on.notify_one();
    storage.goes_on.notify_one();
    // Its own permit is used up by whoever is slower to begin.
    let more = tokio::spawn(async move {
        loop {
            storage.goes_on.notify_one();
            tokio::task::yield_now().await;
        }
    });
    for reader in [one, two] {
        let (_session, _, memory) = reader.ends().await;
        assert!(memory.all_held());
    }
    more.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lost_its_source_completes_what_it_has_by_the_right_to_read_storage() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let (seed, weights) = root(&planner, 1, 1.0).await;
    let storage = Pattern::slow(1);
    let reader = reader(&planner, 1000.0, PATIENT, Some(storage.clone())).await;
    reader.holds(2).await;
    seed.close().await;
    planner.until(|state| state.claims.len() > 3).await;
    planner.look(|state| {
        let held = |claim: &rfork_protocol::v2::Claim| claim.loading.held.clone().map(|held| held.bytes);
        assert!(state.claims.iter().all(|claim| held(claim) >= Some(2 * MIN_CHUNK_BYTES)));
    });
    storage.goes_on.notify_one();
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert!(storage.read_bytes.load(Ordering::SeqCst) < report.bytes, "only what it lacks");
}
