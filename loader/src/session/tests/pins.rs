//! A key that is pinned to a content: a reader takes nothing else, whatever seeds there are.

use rfork_protocol::v2::Name;

use super::*;

/// The content of the pattern of `salt`, as its readers digest it.
async fn content(salt: u8) -> String {
    let planner = Planner::start(true).await;
    let (_, memory) = loaded(&planner, salt, 1000.0).await;
    memory.content().unwrap().id.to_string()
}

async fn pin(planner: &Planner, salt: u8) {
    let pinned = Name::cut(&content(salt).await);
    planner.look(|state| state.pinned = Some(pinned.into_iter().collect()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_with_a_pinned_content_is_read() {
    let planner = Planner::start(true).await;
    pin(&planner, 1).await;
    let (_root, _) = root(&planner, 1, 1000.0).await;
    let (_session, report, memory) = reader(&planner, 1000.0, PATIENT, None).await.ends().await;
    assert!(bytes(&memory) == pattern(1));
    assert!(matches!(report.shares[0].source, Source::Seed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_read_of_a_seed_with_another_content() {
    let planner = Planner::start(true).await;
    pin(&planner, 1).await;
    let (_root, _) = root(&planner, 2, 1000.0).await;
    let reader = reader(&planner, 1000.0, PATIENT, Some(Pattern::new(1))).await;
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == pattern(1));
    let sources: Vec<_> = report.shares.iter().map(|share| share.source.clone()).collect();
    assert_eq!(sources, [Source::Storage]);
    planner.look(|state| assert_eq!(state.outcomes.first(), Some(&TransferOutcome::Failed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grew_into_another_content_is_dropped() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    pin(&planner, 1).await;
    let wrong = Pattern::slow(2);
    let leader = reader_that_waits(session(&planner, 1000.0, PATIENT).await, Some(wrong.clone()), None);
    planner.until(|state| state.leader.is_some()).await;
    let reader = session(&planner, 1000.0, PATIENT).await;
    let reader = reader_that_waits(reader, Some(Pattern::new(1)), Some(Duration::ZERO));
    planner.until(|state| state.seeds.len() == 2).await;
    // It reads from the first one, as nobody can tell yet.
    wrong.goes_on.notify_one();
    let (_leader, _, memory) = leader.ends().await;
    assert!(bytes(&memory) == pattern(2), "what storage has is its owner's");
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == pattern(1), "nothing of the other stays");
    assert_eq!(report.shares.len(), 1);
    assert_eq!(report.content.map(|content| content.to_string()), Some(content(1).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_grows_with_digests_that_no_pin_has() {
    let planner = Planner::that_gives_the_right_to_lead().await;
    planner.look(|state| {
        state.pinned = Some(Name::cut(&format!("blake3:{}", "a".repeat(64))).into_iter().collect());
    });
    let other = Pattern::slow(2);
    let leader = reader_that_waits(session(&planner, 1000.0, PATIENT).await, Some(other.clone()), None);
    planner.until(|state| state.leader.is_some()).await;
    let reader = session(&planner, 1000.0, PATIENT).await;
    let reader = reader_that_waits(reader, Some(Pattern::new(1)), None);
    let (_session, report, memory) = reader.ends().await;
    assert!(bytes(&memory) == pattern(1), "it reads storage while the other one still does");
    let sources: Vec<_> = report.shares.iter().map(|share| share.source.clone()).collect();
    assert_eq!(sources, [Source::Storage]);
    other.goes_on.notify_one();
    leader.ends().await;
}
