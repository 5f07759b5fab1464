//! Sources that are lost, leave, or give their place to another, as their readers see it.

use rfork_protocol::v2::Advice;

use super::*;

fn none_failed(planner: &Planner) {
    planner.look(|state| {
        assert!(!state.outcomes.contains(&TransferOutcome::Failed), "{:?}", state.outcomes);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_source_that_is_silent_is_called_lost_and_costs_no_try() {
    let planner = Planner::start(true).await;
    let (mut other, weights) = loaded(&planner, 1, 1000.0).await;
    // It promises chunks, and sends next to nothing.
    let (silent, _) = root(&planner, 1, 0.0001).await;
    let options =
        TcpOptions { progress_timeout: Duration::from_millis(600), ..TcpOptions::new(Some("127.0.0.1")) };
    let reader = reader_with(session_over(&planner, options, 1000.0, HASTY).await, None);
    let asked =
        |state: &planner::State| state.acquisitions.iter().filter(|asked| asked.stalled.is_some()).count();
    // One is asked while the source is read, and the connection is given up after that. Then comes another, if only when
    // the first one was answered.
    planner.until(|state| asked(state) >= 2).await;
    planner.look(|state| assert_eq!(state.most_waiting, 1, "the question goes on: {:?}", state.acquisitions));
    other.serve().await.unwrap();
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    planner.look(|state| {
        let last = state.acquisitions.iter().rev().find_map(|asked| asked.stalled.as_ref()).unwrap();
        assert!(last.lost && last.seed == state.seeds[0].identity, "its lease says whose place may be had");
    });
    none_failed(&planner);
    silent.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_advised_to_move_reads_on_until_it_is_granted_another_source() {
    let planner = Planner::start(true).await;
    let (mut other, weights) = loaded(&planner, 1, 1000.0).await;
    let (_slow, _) = root(&planner, 1, 4.0).await;
    let reader = reader(&planner, 1000.0, PATIENT, None).await;
    reader.holds(1).await;
    planner.look(|state| state.advice = Some(Advice::Move));
    planner.until(|state| state.acquisitions.iter().any(|asked| asked.stalled.is_some())).await;
    planner.look(|state| {
        let stalled = state.acquisitions.iter().find_map(|asked| asked.stalled.as_ref()).unwrap();
        assert!(!stalled.lost, "bytes come");
        state.advice = None;
    });
    let held = reader.memory.held_bytes() / MIN_CHUNK_BYTES;
    reader.holds(held + 1).await;
    other.serve().await.unwrap();
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert_eq!((report.shares.len(), memory.arrivals().bytes() / report.bytes), (2, 1), "{report:?}");
    none_failed(&planner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_its_place_at_a_complete_seed_says_nothing_against_it() {
    let planner = Planner::start(true).await;
    let (root, weights) = root(&planner, 1, 4.0).await;
    let seed = planner.look(|state| state.seeds[0].identity.clone());
    let first = reader(&planner, 1000.0, PATIENT, None).await;
    first.holds(1).await;
    // Another one has its point from now on.
    planner.look(|state| state.end_leases_on(&seed));
    let second = reader(&planner, 1000.0, PATIENT, None).await;
    for reader in [second, first] {
        let (_session, _, memory) = reader.ends().await;
        assert!(bytes(&memory) == bytes(&weights));
    }
    none_failed(&planner);
    drop(root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_lease_is_gone_may_have_its_own_source_again() {
    let planner = Planner::start(true).await;
    let (_root, weights) = root(&planner, 1, 4.0).await;
    let seed = planner.look(|state| state.seeds[0].identity.clone());
    let reader = reader(&planner, 1000.0, PATIENT, None).await;
    reader.holds(1).await;
    // There is no other.
    let before = planner.look(|state| {
        state.end_leases_on(&seed);
        state.acquisitions.len()
    });
    planner.until(|state| state.acquisitions.len() > before).await;
    planner.look(|state| {
        let asked = &state.acquisitions[before];
        assert!(asked.stalled.is_none() && asked.exclude.is_empty(), "{asked:?}");
    });
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    none_failed(&planner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_wait_asks_before_it_leaves_a_source_for_storage() {
    let planner = Planner::start(true).await;
    let (_slow, weights) = root(&planner, 1, 4.0).await;
    let storage = Pattern::new(1);
    let session = session(&planner, 1000.0, PATIENT).await;
    let reader = reader_that_waits(session, Some(storage.clone()), Some(Duration::ZERO));
    reader.holds(1).await;
    // There is no other source, and this one brings bytes.
    planner.look(|state| state.advice = Some(Advice::Move));
    planner.until(|state| state.acquisitions.iter().any(|asked| asked.stalled.is_some())).await;
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert_eq!(report.shares.len(), 1, "{report:?}");
    assert_eq!(storage.read_bytes.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loading_seed_that_reads_storage_is_heard_of_by_heartbeats() {
    let planner = Planner::start(true).await;
    let (seed, weights) = root(&planner, 1, 1.0).await;
    let storage = Pattern::slow(1);
    let reader = reader(&planner, 1000.0, PATIENT, Some(storage.clone())).await;
    reader.holds(2).await;
    seed.close().await;
    planner.until(|state| state.beats.len() >= 2).await;
    planner.look(|state| {
        let beats = &state.beats;
        assert!(
            beats.iter().all(|beat| beat.held.as_ref().is_some_and(|held| held.bytes >= 2 * MIN_CHUNK_BYTES))
        );
        assert!(beats.windows(2).all(|pair| pair[0].arrived_bytes <= pair[1].arrived_bytes));
    });
    storage.goes_on.notify_one();
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
}
