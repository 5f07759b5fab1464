//! The suite and the simulation on a mirror, without a database: what fails here is not a file's fault.

use std::sync::Arc;

use async_trait::async_trait;

use super::paper::{Failure, Paper};
use super::{MirrorStore, Own};
use crate::decide::quota::Quota;
use crate::domain::policy::Wish;
use crate::domain::seed::Profile;
use crate::store::commands::NoRoom;
use crate::store::conformance::{self, Home, RULES, acquire, register, registering, release, remove};
use crate::store::simulation::{self, Ground};
use crate::store::{
    ApplyList, Clock, Command, LeaseSecret, Outcome, Registration, Room, Rules, Store, StoreError,
};

#[async_trait]
impl Home for Paper {
    async fn make() -> Self {
        let paper = Self::default();
        fastrand::fill(&mut paper.0.lock().await.secret);
        paper
    }

    async fn open(&self, rules: Rules, clock: Clock) -> Arc<dyn Store> {
        let ((offset_ms, seen_ms), secret) = {
            let sheet = self.0.lock().await;
            (sheet.clock, LeaseSecret::new(&sheet.secret).unwrap())
        };
        let time = Own::resume(clock, offset_ms, seen_ms);
        Arc::new(MirrorStore::over(self.clone(), rules, time, secret).await.unwrap())
    }
}

#[async_trait]
impl Ground for Paper {
    const NAME: &'static str = "memory";
    const PLANNERS: usize = 1;
    const HISTORIES: u64 = 10_000;

    async fn empty(&self) {
        self.0.lock().await.clear();
    }

    async fn settle(&self, store: &Arc<dyn Store>) {
        store.check().await.unwrap();
    }
}

conformance::conformance_suite!(Paper);
conformance::loading::loading_suite!(Paper);

#[test]
fn simulated_histories_agree_with_the_model() {
    simulation::histories_agree_with_the_model::<Paper>();
}

#[test]
fn workers_that_serve_while_they_load_are_granted_by_the_rules() {
    simulation::loading::histories_keep_the_rules::<Paper>(2_000);
}

#[test]
fn what_breaks_the_rules_of_loading_seeds_is_found() {
    simulation::loading::faults_are_found::<Paper>(2_000);
}

#[test]
fn places_behind_slow_links_are_given_by_the_rules() {
    simulation::loading::overtaking::slow_links_are_passed_over_by_the_rules::<Paper>(100);
}

#[test]
fn deliberate_faults_of_moves_are_found() {
    simulation::loading::overtaking::faults_of_moves_are_found::<Paper>(500);
}

/// A commit that fails may have been done: whoever comes next finds out, and goes on from there.
#[tokio::test]
async fn what_became_of_a_commit_that_failed_is_found_out() {
    for (fails, is_there) in [(Failure::Done, true), (Failure::Undone, false)] {
        let paper = Paper::default();
        let store = paper.open(RULES, Clock::System).await;
        store.apply_list(&[register(1, "k")]).await.unwrap();
        paper.0.lock().await.fails = Some(fails);
        let error = store.apply_list(&[acquire("k", 1), register(2, "k")]).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert_eq!(store.snapshot().await.unwrap().seed_count, 1, "nobody hears of it before it is known");
        let outcomes = store.apply_list(&[release(1, 1), register(2, "k")]).await.unwrap();
        assert_eq!(outcomes[0], Outcome::Released(is_there), "{fails:?}");
        let expected = if is_there { Registration::Repeated } else { Registration::New };
        assert!(matches!(outcomes[1], Outcome::Registered(found, _) if found == expected), "{outcomes:?}");
    }
}

#[tokio::test]
async fn what_somebody_else_has_written_is_noticed() {
    let paper = Paper::default();
    let store = paper.open(RULES, Clock::System).await;
    store.apply_list(&[register(1, "k")]).await.unwrap();
    paper.0.lock().await.clear();
    let outcomes = store.apply_list(&[acquire("k", 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Acquired(Err(_))), "{outcomes:?}");
    assert_eq!(store.snapshot().await.unwrap().seed_count, 0);
}

#[tokio::test]
async fn a_planner_that_is_full_takes_nobody_new_and_serves_who_is_there() {
    let room = Room { seeds: 1, ..Room::AMPLE };
    let store = Paper::default().open(Rules { room, ..RULES }, Clock::System).await;
    let outcomes = store.apply_list(&[register(1, "k"), register(2, "k"), acquire("k", 1)]).await.unwrap();
    assert_eq!(outcomes[1], Outcome::NoRoom(NoRoom(Quota::Seeds)));
    assert!(matches!(outcomes[2], Outcome::Acquired(Ok(_))), "{outcomes:?}");
    let outcomes = store.apply_list(&[register(1, "k"), release(1, 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Registered(Registration::Repeated, _)), "{outcomes:?}");
    assert_eq!(outcomes[1], Outcome::Released(true));
}

#[tokio::test]
async fn a_key_takes_memory_once_and_as_long_as_it_has_seeds() {
    let store = Paper::default().open(RULES, Clock::System).await;
    let used = async || {
        let usage = store.usage().await.unwrap();
        usage.into_iter().find(|usage| usage.quota == Quota::Memory).unwrap().used
    };
    let key = "k".repeat(8_000);
    store.apply_list(&[register(1, &key)]).await.unwrap();
    let with_one = used().await;
    assert!(with_one > 8_000, "{with_one}");
    store.apply_list(&[register(2, &key)]).await.unwrap();
    assert!(used().await < with_one + 8_000);
    store.apply_list(&[remove(1, &key), remove(2, &key)]).await.unwrap();
    assert_eq!(used().await, 0);
}

#[tokio::test]
async fn a_planner_that_is_full_remembers_no_more_instances() {
    let of = |instance: &str| Some(instance.to_owned());
    let paper = Paper::default();
    let store = paper.open(RULES, Clock::System).await;
    let profile = Profile { instance_id: of("old"), ..Profile::default() };
    store.apply_list(&[registering(1, "k", profile)]).await.unwrap();
    for (bytes, number, expected) in [(1 << 20, 1, of("old")), (0, 2, None)] {
        let room = Room { seeds: 1, bytes, ..Room::AMPLE };
        let store = paper.open(Rules { room, ..RULES }, Clock::System).await;
        let new = format!("new-{number}");
        let wish = Box::new(Wish { instance_id: of(&new), ..Wish::default() });
        let Command::Acquire { key, lease, queue, .. } = acquire("k", number) else { unreachable!() };
        let outcomes = store.apply_list(&[Command::Acquire { key, wish, lease, queue }]).await.unwrap();
        assert!(matches!(outcomes[0], Outcome::Acquired(Ok(_))), "{outcomes:?}");
        store.apply_list(&[release(1, number)]).await.unwrap();
        assert_eq!(store.source_instance(&new).await.unwrap(), expected);
    }
}
