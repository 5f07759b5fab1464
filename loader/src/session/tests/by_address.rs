//! Chains of workers whose engine reads by address and sees no bytes, over libraries that read each other's memory.

use std::sync::atomic::Ordering;

use super::*;
use crate::engine::yuanrong::YuanRongOptions;
use crate::engine::yuanrong::network::Network;

fn options(host: &str) -> YuanRongOptions {
    // A call is given up only where a test wants it.
    YuanRongOptions {
        read_timeout: 8 * HANGS,
        not_ready_timeout: Duration::from_millis(50),
        ..YuanRongOptions::new(host)
    }
}

async fn session_with(
    planner: &Planner,
    network: &Network,
    rule: StallRule,
    options: YuanRongOptions,
) -> Session {
    let config = config(planner).fork_while_loading(true).build().unwrap();
    session_of(config, rule, async |_: &Config, _: &str| network.engine(options).await).await
}

async fn session(planner: &Planner, network: &Network, rule: StallRule) -> Session {
    session_with(planner, network, rule, options("127.0.0.1")).await
}

/// A seed that holds the pattern of `salt`.
async fn root(planner: &Planner, network: &Network, salt: u8) -> (Session, Arc<WeightMemory>) {
    let (mut session, memory) = (session(planner, network, PATIENT).await, memory());
    fill(&memory, salt);
    memory.forget_all().unwrap();
    session.adopt(&manifest(), memory.clone()).await.unwrap();
    session.serve().await.unwrap();
    (session, memory)
}

/// A worker that reads storage, which stops after 20 chunks, and one that may read from it.
async fn leader_and_reader(
    planner: &Planner,
    network: &Network,
    storage: &Arc<Pattern>,
    (of_reader, rule): (&Arc<Pattern>, StallRule),
) -> (Reader, Reader) {
    let leader = reader_that_waits(session(planner, network, PATIENT).await, Some(storage.clone()), None);
    planner.until(|state| state.claims.iter().any(|claim| claim.origin.is_some())).await;
    let reader = session(planner, network, rule).await;
    (leader, reader_that_waits(reader, Some(of_reader.clone()), Some(Duration::from_secs(1))))
}

async fn has_copied(network: &Network, number: u16) {
    let copied = async {
        while !network.has_copied(number) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANGS, copied).await.expect("a call copies");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_form_a_chain_and_storage_is_read_once() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    let (leader, second) = leader_and_reader(&planner, &network, &storage, (&Pattern::new(9), PATIENT)).await;
    planner.until(|state| state.seeds.len() == 2).await;
    let third = session(&planner, &network, PATIENT).await;
    let third = reader_that_waits(third, Some(Pattern::new(9)), Some(HANGS));
    third.holds(20).await;
    assert!(!leader.memory.all_held() && third.memory.content().is_none());
    storage.goes_on.notify_one();
    let content = memory();
    fill(&content, 1);
    let content = content.content_by_digests(&manifest()).unwrap().id;
    let mut sessions = Vec::new();
    for worker in [leader, second, third] {
        let (session, report, memory) = worker.ends().await;
        assert!(bytes(&memory) == pattern(1));
        assert_eq!((report.shares.len(), report.content), (1, Some(content)), "{report:?}");
        sessions.push(session);
    }
    let whole = memory().plan().total_bytes();
    assert_eq!(storage.read_bytes.load(Ordering::SeqCst), whole);
    let read = [1, 2, 3].map(|number| network.read_bytes_of(number));
    assert_eq!(read, [whole, whole, 0], "each gives one copy");
    planner.look(|state| {
        assert!(state.outcomes.iter().all(|outcome| *outcome == TransferOutcome::Ok), "{:?}", state.outcomes);
    });
    for session in sessions {
        session.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_complete_before_it_is_known_which_content_that_is() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(memory().plan().count(), 1);
    let (leader, reader) = leader_and_reader(&planner, &network, &storage, (&Pattern::new(9), PATIENT)).await;
    let whole = memory().plan().total_bytes();
    planner
        .until(|state| {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_held_of_a_source_that_started_over_while_a_call_lasted() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let (storage, of_reader) = (Pattern::that_waits_after(20, 1), Pattern::new(2));
    network.hold_back(2, true);
    let (leader, reader) = leader_and_reader(&planner, &network, &storage, (&of_reader, PATIENT)).await;
    has_copied(&network, 2).await;
    // The call has brought everything that it was told of, and the source has other bytes there before it returns.
    leader.cancel.cancel();
    let (_leader, ended) = tokio::time::timeout(HANGS, leader.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LoadError::Cancelled)), "{ended:?}");
    leader.memory.forget_all().expect("nobody reads it");
    network.hold_back(2, false);
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == pattern(2));
    assert_eq!(report.shares.len(), 1, "{report:?}");
    assert_eq!(of_reader.checked_bytes.load(Ordering::SeqCst), 0, "nothing was held to be compared");
    planner.look(|state| {
        assert!(
            state
                .acquisitions
                .iter()
                .filter_map(|asked| asked.loading.as_ref())
                .all(|told| told.held.is_none())
        );
        assert!(!state.outcomes.contains(&TransferOutcome::Failed), "{:?}", state.outcomes);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_call_lasts_is_left_when_the_call_ends() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    network.hold_back(2, true);
    let (leader, reader) = leader_and_reader(&planner, &network, &storage, (&Pattern::new(9), HASTY)).await;
    has_copied(&network, 2).await;
    let (_root, _) = root(&planner, &network, 1).await;
    planner.until(|state| state.acquisitions.iter().any(|asked| asked.stalled.is_some())).await;
    assert!(!reader.task.is_finished() && reader.memory.held_bytes() == 0);
    network.hold_back(2, false);
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == pattern(1));
    storage.goes_on.notify_one();
    leader.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_cancelled_while_another_source_is_asked_for_does_not_wait_for_the_call() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    network.hold_back(2, true);
    let (leader, reader) = leader_and_reader(&planner, &network, &storage, (&Pattern::new(9), HASTY)).await;
    planner.until(|state| state.acquisitions.iter().any(|asked| asked.stalled.is_some())).await;
    reader.cancel.cancel();
    let (_session, ended) = tokio::time::timeout(HANGS, reader.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LoadError::Hung(_))), "{ended:?}");
    assert!(reader.memory.forget_all().is_err(), "the call may still write there");
    network.hold_back(2, false);
    storage.goes_on.notify_one();
    leader.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_call_that_hangs_other_memory_is_loaded() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    let leader = reader_that_waits(session(&planner, &network, PATIENT).await, Some(storage.clone()), None);
    planner.until(|state| state.claims.iter().any(|claim| claim.origin.is_some())).await;
    network.hold_back(2, true);
    let hasty =
        YuanRongOptions { read_timeout: Duration::ZERO, min_bytes_per_sec: u64::MAX, ..options("127.0.0.1") };
    let reader = reader_with(session_with(&planner, &network, PATIENT, hasty).await, None);
    let (mut session, ended) = tokio::time::timeout(HANGS, reader.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LoadError::Hung(_))), "{ended:?}");
    assert!(reader.memory.forget_all().is_err(), "the call may still write there");
    planner.look(|state| assert_eq!(state.deregistered.len(), 1, "nobody is sent to it"));
    let (elsewhere, fallback) = (memory(), Pattern::new(1));
    let never = CancellationToken::new();
    session.load_elsewhere(&manifest(), elsewhere.clone(), &fallback, &never).await.unwrap();
    assert!(bytes(&elsewhere) == pattern(1));
    network.hold_back(2, false);
    storage.goes_on.notify_one();
    leader.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_peers_may_still_read_is_not_overwritten() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    let (leader, reader) = leader_and_reader(&planner, &network, &storage, (&Pattern::new(2), HASTY)).await;
    reader.holds(20).await;
    let held = reader.memory.held_bytes();
    network.is_read_for_ever(2);
    let (_root, _) = root(&planner, &network, 2).await;
    leader.cancel.cancel();
    let (mut session, ended) = tokio::time::timeout(HANGS, reader.task).await.unwrap().unwrap();
    let error = ended.unwrap_err();
    assert!(matches!(error, LoadError::StillRead(_)) && error.keeps_memory(), "{error:?}");
    assert_eq!(reader.memory.held_bytes(), held, "nothing was dropped, and nothing written");
    planner.look(|state| assert_eq!(state.deregistered.len(), 2, "it is offered to nobody"));
    let (elsewhere, fallback) = (memory(), Pattern::new(2));
    let never = CancellationToken::new();
    session.load_elsewhere(&manifest(), elsewhere.clone(), &fallback, &never).await.unwrap();
    assert!(bytes(&elsewhere) == pattern(2));
    session.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_change_its_weights_then_waits_until_its_readers_hold_everything() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    let leader = reader_that_waits(session(&planner, &network, PATIENT).await, Some(storage.clone()), None);
    planner.until(|state| state.claims.iter().any(|claim| claim.origin.is_some())).await;
    let mut relay = session(&planner, &network, PATIENT).await;
    relay.pass_on_until_loaded();
    let (of_relay, never) = (memory(), CancellationToken::new());
    let filled = of_relay.clone();
    let relay = tokio::spawn(async move {
        relay.load(&manifest(), filled, &NoFallback, &never).await.unwrap();
        relay
    });
    planner.until(|state| state.seeds.len() == 2).await;
    network.hold_back(3, true);
    let last = reader_with(session(&planner, &network, PATIENT).await, None);
    // It has a part, and asks for the rest.
    has_copied(&network, 3).await;
    storage.goes_on.notify_one();
    planner.until(|state| state.beats.len() >= 2).await;
    assert!(of_relay.all_held() && !last.memory.all_held() && !relay.is_finished());
    network.hold_back(3, false);
    let mut relay = tokio::time::timeout(HANGS, relay).await.expect("it ends").unwrap();
    let (_last, report, memory) = last.ends().await;
    assert!(bytes(&memory) == pattern(1));
    assert_eq!(report.shares.len(), 1, "{report:?}");
    relay.serve().await.unwrap();
    relay.close().await;
    leader.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_read_from_each_other_end_by_themselves_and_mix_nothing() {
    // Storage gives them what the one before has read from it, or else other bytes.
    for salt in [1, 2] {
        let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
        planner.look(|state| state.makes_circles = true);
        let (gone, storage) = (Pattern::that_waits_after(20, 1), Pattern::new(salt));
        let (leader, one) = leader_and_reader(&planner, &network, &gone, (&storage, HASTY)).await;
        planner.until(|state| state.seeds.len() == 2).await;
        let two = session(&planner, &network, HASTY).await;
        let two = reader_that_waits(two, Some(storage.clone()), Some(Duration::from_secs(1)));
        two.holds(20).await;
        let [first, second] = planner.look(|state| [1, 2].map(|at| state.seeds[at].identity.clone()));
        leader.cancel.cancel();
        planner.until(|state| state.reads_from(&first, &second) && state.reads_from(&second, &first)).await;
        let mut sessions = Vec::new();
        for reader in [one, two] {
            let (session, report, memory) = reader.ends().await;
            assert!(bytes(&memory) == pattern(salt), "{report:?}");
            sessions.push(session);
        }
        let (compared, read) = (&storage.checked_bytes, storage.read_bytes.load(Ordering::SeqCst));
        assert!(compared.load(Ordering::SeqCst) > 0, "what was held counts only once storage has it, too");
        let missing = memory().plan().total_bytes() - gone.read_bytes.load(Ordering::SeqCst);
        assert!(salt != 1 || read <= 2 * missing, "nobody reads again what it holds: {read}");
        for session in sessions {
            session.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_come_to_an_end_are_left_and_hold_nothing_of_what_came_last() {
    let (planner, network) = (Planner::that_gives_the_right_to_lead().await, Network::default());
    let storage = Pattern::that_waits_after(20, 1);
    let leader = reader_that_waits(session(&planner, &network, PATIENT).await, Some(storage.clone()), None);
    planner.until(|state| state.claims.iter().any(|claim| claim.origin.is_some())).await;
    let mut relay = session(&planner, &network, PATIENT).await;
    relay.pass_on_until_loaded();
    relay.readers_deadline = Duration::from_millis(300);
    let (of_relay, never) = (memory(), CancellationToken::new());
    let filled = of_relay.clone();
    let relay = tokio::spawn(async move {
        relay.load(&manifest(), filled, &NoFallback, &never).await.unwrap();
        relay
    });
    planner.until(|state| state.seeds.len() == 2).await;
    let address = planner.look(|state| state.seeds[1].identity.clone());
    network.hold_back(3, true);
    let last = reader_with(session(&planner, &network, PATIENT).await, None);
    has_copied(&network, 3).await;
    storage.goes_on.notify_one();
    let _relay = tokio::time::timeout(HANGS, relay).await.expect("it does not wait for ever").unwrap();
    assert_eq!(last.memory.held_bytes(), 0);
    // Its owner may change every byte now.
    of_relay.forget_all().expect("nobody uses it");
    fill(&of_relay, 7);
    network.hold_back(3, false);
    let (_last, report, memory) = last.ends().await;
    assert!(bytes(&memory) == pattern(1));
    let of_it = |share: &&Share| share.source == Source::Seed(address.clone()) && share.bytes > 0;
    assert_eq!(report.shares.iter().filter(of_it).count(), 0, "{report:?}");
    leader.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unless_it_is_wished_for_a_worker_on_an_npu_does_not_serve_while_it_loads() {
    let (planner, network) = (Planner::start(true).await, Network::default());
    let (_root, weights) = root(&planner, &network, 1).await;
    let unset = config(&planner).build().unwrap();
    let bind = async |_: &Config, _: &str| network.engine(options("127.0.0.1")).await;
    let reader = reader_with(session_of(unset, PATIENT, bind).await, None);
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    planner.look(|state| assert!(state.acquisitions.iter().all(|asked| asked.loading.is_none())));
}
