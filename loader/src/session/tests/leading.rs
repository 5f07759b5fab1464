//! Workers that begin together with nothing: one reads storage, and the others wait for it.

use std::sync::atomic::Ordering;

use rfork_protocol::v2::Advice;

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
    // They form a chain before a byte was read; the leader asks again and again.
    planner.until(|state| state.seeds.len() == 4 && state.claims.len() > 8).await;
    storage.goes_on.notify_one();
    let mut from_storage = 0;
    let mut sessions = Vec::new();
    for reader in readers {
        let (session, report, memory) = reader.ends().await;
        assert!(bytes(&memory) == pattern(1));
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
async fn chunks_are_digested_as_who_reads_storage_has_it() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let storage = Pattern::slow(1);
    let mut leader = session(&planner, 1000.0, PATIENT).await;
    leader.config.digest = DigestAlgorithm::Blake3;
    let leader = reader_that_waits(leader, Some(storage.clone()), None);
    planner.until(|state| state.leader.is_some()).await;
    let reader = cold(&planner, &storage).await;
    planner.until(|state| state.seeds.len() == 2).await;
    storage.goes_on.notify_one();
    let (mut leader, _, first) = leader.ends().await;
    let (reader, _, second) = reader.ends().await;
    let content = first.content().unwrap();
    assert!(content.id.to_string().starts_with("blake3:"), "{}", content.id);
    assert_eq!(second.content(), Some(content.clone()));
    assert_eq!(second.chunk_digests(DigestAlgorithm::Blake3), Some(content.chunks.clone()));
    assert_eq!(copies(&storage), 1);
    // They serve under that id, and know whether anybody has written there.
    leader.verify().await.unwrap();
    leader.close().await;
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_who_reads_storage_is_cancelled_the_next_one_reads_it() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let storage = Pattern::slow(1);
    let first = cold(&planner, &storage).await;
    planner.until(|state| state.leader.is_some()).await;
    let gone = planner.look(|state| state.leader.clone());
    let second = session(&planner, 1000.0, PATIENT).await;
    let second = reader_that_waits(second, Some(Pattern::new(1)), Some(Duration::from_secs(1)));
    // It reads from the first one.
    planner.until(|state| state.seeds.len() == 2).await;
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

/// A worker that has read so many chunks from storage and waits, and one that reads from it.
async fn leader_and_reader(
    planner: &Planner,
    storage: &Arc<Pattern>,
    of_reader: &Arc<Pattern>,
    rule: StallRule,
) -> (Reader, Reader) {
    let leader = cold(planner, storage).await;
    planner.until(|state| state.claims.iter().any(|claim| claim.origin.is_some())).await;
    let reader = session(planner, 1000.0, rule).await;
    let reader = reader_that_waits(reader, Some(of_reader.clone()), Some(Duration::from_secs(1)));
    (leader, reader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_from_storage_is_passed_on_as_it_comes() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let storage = Pattern::that_waits_after(20, 1);
    let (leader, reader) = leader_and_reader(&planner, &storage, &Pattern::new(9), PATIENT).await;
    reader.holds(20).await;
    assert!(reader.memory.content().is_none() && !leader.memory.all_held());
    planner
        .until(|state| {
            let origin = state.claims.iter().find_map(|claim| claim.origin.clone());
            state
                .renewals
                .iter()
                .filter_map(|told| told.held.as_ref())
                .any(|held| Some(&held.root) == origin.as_ref())
        })
        .await;
    storage.goes_on.notify_one();
    for one in [leader, reader] {
        let (_session, report, memory) = one.ends().await;
        assert!(bytes(&memory) == pattern(1));
        assert_eq!(report.content, loaded(&planner, 1, 1000.0).await.1.content().map(|content| content.id));
        assert_eq!(report.shares.len(), 1, "all from one source");
    }
    assert_eq!(copies(&storage), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_complete_before_it_is_known_which_content_that_is() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let chunks = memory().plan().count();
    let storage = Pattern::that_waits_after(chunks, 1);
    let (leader, reader) = leader_and_reader(&planner, &storage, &Pattern::new(9), PATIENT).await;
    while !reader.memory.all_held() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It has told that it holds all, and more than once.
    planner
        .until(|state| {
            let whole = memory().plan().total_bytes();
            let told = state.renewals.iter().filter_map(|told| told.held.as_ref());
            told.filter(|held| held.bytes == whole).count() > 2
        })
        .await;
    assert!(!reader.task.is_finished() && planner.look(|state| state.completed.is_empty()));
    storage.goes_on.notify_one();
    for one in [leader, reader] {
        assert!(one.ends().await.2.content().is_some());
    }
}

/// The leader ends when its reader holds what it has read; the reader then has to do with `storage`.
async fn orphan(storage: &Arc<Pattern>) -> (Arc<Planner>, LoadReport, Arc<WeightMemory>) {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let first = Pattern::that_waits_after(20, 1);
    let (leader, reader) = leader_and_reader(&planner, &first, storage, HASTY).await;
    reader.holds(20).await;
    leader.cancel.cancel();
    let (_session, report, memory) = reader.ends().await;
    (planner, report, memory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_on_for_a_leader_that_is_gone_compares_what_it_has() {
    let storage = Pattern::new(1);
    let (planner, report, memory) = orphan(&storage).await;
    assert!(bytes(&memory) == pattern(1));
    let [read, checked] =
        [&storage.read_bytes, &storage.checked_bytes].map(|bytes| bytes.load(Ordering::SeqCst));
    assert_eq!(read + checked, report.bytes, "each once");
    assert!(checked >= 20 * MIN_CHUNK_BYTES);
    planner.look(|state| {
        let origins: std::collections::HashSet<_> =
            state.claims.iter().filter_map(|claim| claim.origin.clone()).map(String::from).collect();
        assert_eq!(origins.len(), 1, "the root stays");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_storage_has_changed_meanwhile_nothing_of_before_stays() {
    let storage = Pattern::new(2);
    let (planner, report, memory) = orphan(&storage).await;
    assert!(bytes(&memory) == pattern(2));
    assert_eq!(report.shares.len(), 1, "{report:?}");
    planner.look(|state| {
        let origins: std::collections::HashSet<_> =
            state.claims.iter().filter_map(|claim| claim.origin.clone()).map(String::from).collect();
        assert_eq!(origins.len(), 2, "what is read then has another root");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_an_origin_go_on_with_a_seed_that_has_the_same_and_with_no_other() {
    for salt in [1, 2] {
        let planner = Planner::that_gives_the_right_to_lead().await;
        let storage = Pattern::that_waits_after(20, 1);
        let (leader, reader) = leader_and_reader(&planner, &storage, &Pattern::new(9), HASTY).await;
        reader.holds(20).await;
        let (_root, weights) = root(&planner, salt, 1000.0).await;
        leader.cancel.cancel();
        let (_session, report, memory) = reader.ends().await;
        assert!(bytes(&memory) == bytes(&weights));
        assert_eq!(report.content, weights.content().map(|content| content.id));
        assert_eq!(memory.growing(), None, "nobody says that the origin became this");
        let arrived = memory.arrivals().bytes();
        assert_eq!(arrived == report.bytes, salt == 1, "no byte twice, but where nothing of it can stay");
        planner.look(|state| assert_eq!(state.deregistered.len(), if salt == 1 { 1 } else { 2 }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_advised_to_reads_what_is_missing_from_storage_beside_its_source() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let (_slow, weights) = root(&planner, 1, 4.0).await;
    let storage = Pattern::new(1);
    let reader = reader(&planner, 1000.0, PATIENT, Some(storage.clone())).await;
    reader.holds(1).await;
    planner.look(|state| state.advice = Some(Advice::ReadStorage));
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    let sources: Vec<bool> = report.shares.iter().map(|share| share.source == Source::Storage).collect();
    assert_eq!(sources, [false, true]);
    assert_eq!(storage.read_bytes.load(Ordering::SeqCst), report.shares[1].bytes, "nothing is read twice");
    planner.look(|state| {
        assert!(state.claims.is_empty(), "it asks nobody for the right");
        assert!(!state.outcomes.contains(&TransferOutcome::Failed), "{:?}", state.outcomes);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_brings_nothing_is_left_for_a_seed_again() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let (_slow, weights) = root(&planner, 1, 4.0).await;
    let storage = Pattern::slow(1);
    let reader = reader(&planner, 1000.0, PATIENT, Some(storage.clone())).await;
    reader.holds(1).await;
    planner.look(|state| state.advice = Some(Advice::ReadStorage));
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert!(report.shares.iter().all(|share| share.source != Source::Storage), "{report:?}");
    assert_eq!(storage.read_bytes.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cannot_read_storage_goes_on_with_seeds_whatever_is_advised() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let (_slow, weights) = root(&planner, 1, 20.0).await;
    planner.look(|state| state.advice = Some(Advice::ReadStorage));
    let reader = reader(&planner, 1000.0, PATIENT, None).await;
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert!(report.shares.iter().all(|share| share.source != Source::Storage));
    planner.look(|state| {
        let asked = state.acquisitions.iter().filter(|asked| asked.loading.is_some());
        assert_eq!(asked.count(), 1, "it is not even tried");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_storage_waits_for_a_seed_and_asks_for_no_right() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let session = session(&planner, 1000.0, PATIENT).await;
    let reader = reader_that_waits(session, None, Some(HANGS));
    planner.until(|state| state.most_waiting == 1).await;
    let (_seed, weights) = root(&planner, 1, 1000.0).await;
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    planner.look(|state| assert!(state.claims.is_empty(), "{:?}", state.claims));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_storage_has_other_bytes_than_the_source_the_load_starts_over() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    let (_slow, _) = root(&planner, 1, 4.0).await;
    let reader = reader(&planner, 1000.0, PATIENT, Some(Pattern::new(2))).await;
    reader.holds(1).await;
    planner.look(|state| {
        state.advice = Some(Advice::ReadStorage);
        // Nobody has what it has any more.
        state.seeds.clear();
    });
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == pattern(2), "nothing of before stays");
}
