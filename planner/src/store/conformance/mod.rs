//! What every store must do: one suite, run on each. The invariants are those of the architecture; each test
//! is named after what it holds.
//!
//! [`conformance_suite!`] makes the tests of one store from its [`Home`]. Generated histories are played by
//! [`super::simulation`]; what it finds is kept in [`found`].

use std::sync::Arc;

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};

use super::history::{EndedLease, Event, EventFilter};
use super::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use super::{
    ApplyList, Beat, Clock, Command, ManualClock, Outcome, Refusal, Registration, Removal, Report, Rules,
    SeedView, Snapshot, Store,
};
use crate::domain::location::Location;
use crate::domain::owner::Owner;
use crate::domain::policy::Wish;
use crate::domain::seed::Profile;
pub(crate) use values::{RULES, identity, key, lease};

pub(crate) mod allocation;
pub(crate) mod beside;
pub(crate) mod clock;
pub(crate) mod found;
pub(crate) mod history;
pub(crate) mod inheriting;
pub(crate) mod leading;
pub(crate) mod leases;
pub(crate) mod lists;
pub(crate) mod loading;
pub(crate) mod overtaking;
pub(crate) mod owners;
pub(crate) mod quotas;
pub(crate) mod scheduling;
pub(crate) mod seeds;
mod values;
pub(crate) mod waiting;

/// A database that a test has for itself.
#[async_trait]
pub(crate) trait Home: Send + Sync + Sized {
    /// Makes an empty one.
    async fn make() -> Self;
    /// Opens it, again after a store on it was closed.
    async fn open(&self, rules: Rules, clock: Clock) -> Arc<dyn Store>;
}

/// A store under test, on a clock that the test steps.
pub(crate) struct Bench<H: Home> {
    home: H,
    pub(crate) store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
}

impl<H: Home> Bench<H> {
    pub(crate) async fn new(rules: Rules) -> Self {
        let home = H::make().await;
        let clock = Arc::new(ManualClock::new(1_000_000));
        let store = home.open(rules, Clock::Manual(clock.clone())).await;
        Self { home, store, clock }
    }

    /// Stops the store and starts another on the same database.
    pub(crate) async fn restart(&mut self, rules: Rules) {
        self.restart_after(rules, 0).await;
    }

    /// The same, while the clock is set by so many milliseconds.
    pub(crate) async fn restart_after(&mut self, rules: Rules, clock_step_ms: i64) {
        self.store.close().await;
        // The old store goes before the new one is opened: some stores allow only one.
        self.store = Arc::new(Closed);
        self.clock.step(clock_step_ms);
        self.store = self.home.open(rules, Clock::Manual(self.clock.clone())).await;
    }

    /// Time passes.
    pub(crate) fn step(&self, ms: i64) {
        self.clock.pass(ms);
    }

    /// The clock is set forward, or back.
    pub(crate) fn set_clock(&self, ms: i64) {
        self.clock.step(ms);
    }

    /// What time it is while nobody has set the clock.
    pub(crate) fn now(&self) -> i64 {
        self.clock.shown_ms()
    }

    pub(crate) async fn apply(&self, commands: &[Command]) -> Vec<Outcome> {
        let outcomes = self.store.apply_list(commands).await.unwrap();
        assert_eq!(outcomes.len(), commands.len());
        outcomes
    }

    async fn one(&self, command: Command) -> Outcome {
        self.apply(&[command]).await.remove(0)
    }

    pub(crate) async fn register(&self, seed: u8, key: &str) -> (Registration, i64) {
        match self.one(register(seed, key)).await {
            Outcome::Registered(registration, id) => (registration, id),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn acquire(&self, key: &str, lease: u32) -> Option<SeedIdentity> {
        match self.one(acquire(key, lease)).await {
            Outcome::Acquired(granted) => granted.ok().map(|grant| grant.identity),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn renew(&self, seed: u8, lease: u32) -> bool {
        matches!(self.one(renew(seed, lease)).await, Outcome::Renewed(Some(_)))
    }

    pub(crate) async fn release(&self, seed: u8, lease: u32) -> bool {
        self.one(release(seed, lease)).await == Outcome::Released(true)
    }

    pub(crate) async fn remove(&self, seed: u8, key: &str) -> Removal {
        match self.one(remove(seed, key)).await {
            Outcome::Removed(removal) => removal,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn snapshot(&self) -> Snapshot {
        self.store.snapshot().await.unwrap()
    }

    pub(crate) async fn view(&self, seed: u8) -> Option<SeedView> {
        let name = identity(seed).to_string();
        self.snapshot().await.seeds.into_iter().find(|view| view.identity == name)
    }
}

pub(crate) fn register(seed: u8, text: &str) -> Command {
    registering(seed, text, Profile::default())
}

/// The registration of a seed that tells this of itself.
pub(crate) fn registering(seed: u8, text: &str, profile: Profile) -> Command {
    Command::Register {
        identity: identity(seed),
        key: key(text),
        profile: Box::new(profile),
        age_ms: 0,
        client: None,
        owner: Owner::default(),
    }
}

/// A heartbeat that tells nothing but that the seed lives.
pub(crate) fn heartbeat(seed: u8, text: &str) -> Command {
    Command::Beat {
        identity: identity(seed),
        key: key(text),
        incarnation: None,
        age_ms: 0,
        owner: Owner::default(),
        progress: None,
    }
}

pub(crate) fn acquire(text: &str, number: u32) -> Command {
    Command::Acquire { key: key(text), wish: Box::default(), lease: lease(number), queue: None }
}

pub(crate) fn renew(seed: u8, number: u32) -> Command {
    Command::Renew { identity: identity(seed), lease: lease(number), progress: None }
}

pub(crate) fn release(seed: u8, number: u32) -> Command {
    Command::Release {
        identity: identity(seed),
        lease: lease(number),
        report: Report::Unknown,
        account: None,
    }
}

pub(crate) fn remove(seed: u8, text: &str) -> Command {
    Command::Remove { identity: identity(seed), key: key(text), owner: Owner::default() }
}

/// What stands in for a store while it is down.
struct Closed;

#[async_trait]
impl Store for Closed {
    async fn apply(&self, _: &super::Commands) -> Result<super::Outcomes, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    fn lease_secret(&self) -> &super::LeaseSecret {
        unreachable!("it is closed")
    }
    fn wakes(&self) -> Arc<tokio::sync::Notify> {
        Arc::default()
    }
    async fn collect(&self, _: &[super::Told]) -> Result<Vec<super::Woken>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn source_instance(&self, _: &str) -> Result<Option<String>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn invalidate(
        &self,
        _: &SeedKey,
        _: Option<&str>,
        _: Option<&Arc<str>>,
    ) -> Result<u64, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn flush(&self, _: &[Beat]) -> Result<std::collections::HashSet<i64>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn sweep(&self) -> Result<super::Swept, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn snapshot(&self) -> Result<Snapshot, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn list_seeds(&self, _: &SeedFilter, _: &Part) -> Result<Page<SeedEntry>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn list_leases(&self, _: &LeaseFilter, _: &Part) -> Result<Page<LeaseEntry>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn list_ended_leases(
        &self,
        _: &LeaseFilter,
        _: &Part,
    ) -> Result<Page<EndedLease>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn list_events(&self, _: &EventFilter, _: &Part) -> Result<Page<Event>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn list_keys(&self, _: &Part) -> Result<Page<KeyEntry>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn counts(&self) -> Result<super::Counts, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn usage(&self) -> Result<Vec<super::Usage>, super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    async fn check(&self) -> Result<(), super::StoreError> {
        Err(super::StoreError::Unavailable("closed".into()))
    }
    fn pools(&self) -> Vec<super::PoolView> {
        Vec::new()
    }
    async fn close(&self) {}
}

/// The seed that was granted, if one was.
pub(crate) fn granted(outcome: &Outcome) -> Option<SeedIdentity> {
    match outcome {
        Outcome::Acquired(Ok(grant)) => Some(grant.identity.clone()),
        Outcome::Acquired(Err(_)) => None,
        other => panic!("{other:?}"),
    }
}

/// Makes the suite's tests for the store whose [`Home`] is given.
macro_rules! conformance_suite {
    ($home:ty) => {
        $crate::store::conformance::conformance_suite!($home:
            allocation: safety_a_point_is_never_leased_twice,
            allocation: no_false_refusal_beyond_a_page_of_candidates,
            allocation: no_false_refusal_of_many_keys_at_once,
            allocation: no_false_refusal_when_a_release_waits_beside_it,
            allocation: no_false_refusal_behind_silent_seeds,
            allocation: each_policy_keeps_its_order,
            allocation: the_order_holds_when_the_batch_takes_the_first_away,
            allocation: capacity_is_what_is_set_now,
            allocation: another_policy_takes_effect_at_a_restart,
            allocation: keys_are_bytes,
            clock: a_lease_has_no_more_left_than_its_time_to_live,
            clock: a_lease_is_its_holder_s_until_its_time_is_over,
            clock: a_silent_seed_is_offered_no_longer,
            clock: a_living_seed_is_offered_on,
            clock: nobody_who_waits_is_forgotten,
            clock: what_was_asked_under_a_key_is_remembered,
            clock: a_suspect_seed_is_left_alone_for_its_while,
            clock: a_drained_seed_stays_out_for_its_day,
            clock: the_next_planner_goes_on_where_the_last_one_was,
            clock: time_that_passed_while_no_planner_worked_has_passed,
            leases: no_leak_a_lease_is_gone_at_its_time_to_live,
            leases: renewal_counts_from_itself,
            leases: fencing_a_late_release_gives_nothing_back,
            leases: fencing_only_the_named_seed_s_lease,
            leases: fencing_of_two_seeds_named_in_one_batch,
            leases: releasing_twice_is_once,
            leases: restart_keeps_leases_and_seeds,
            leases: leases_of_idempotency_keys_are_named_by_a_secret_of_the_database,
            seeds: no_leak_a_silent_seed_is_not_offered,
            seeds: a_silent_seed_drains_and_returns_with_its_leases,
            seeds: what_is_gone_is_gone_for_everybody_who_looks,
            seeds: heartbeats_and_renewals_are_independent,
            seeds: a_heartbeat_that_registers_nothing_keeps_a_known_seed,
            seeds: another_key_is_a_new_holding,
            seeds: a_removed_seed_drains_and_returns_after_its_last_lease,
            seeds: removal_names_the_key,
            seeds: idempotence_of_registering_and_removing,
            seeds: a_flush_updates_and_never_inserts,
            seeds: a_flush_tells_of_seeds_that_are_offered_no_more,
            seeds: a_flush_carries_the_arrival_age,
            seeds: sweeping_twice_is_once,
            seeds: a_large_sweep_ends_everything_in_steps,
            seeds: a_snapshot_shows_what_is_there,
            seeds: counts_are_those_of_each_state,
            scheduling: capacity_rules_take_effect_at_a_restart_and_strand_no_lease,
            scheduling: a_lease_lives_as_long_as_its_seed_s_rule_says,
            scheduling: seeds_of_a_capped_host_lend_no_more_than_it_may,
            scheduling: a_full_host_hides_no_seed_of_another,
            scheduling: nearer_seeds_are_chosen_and_full_ones_passed_over,
            scheduling: near_seeds_are_found_beyond_a_page,
            scheduling: ranks_of_an_instance_are_served_by_one_instance,
            scheduling: excluded_seeds_are_passed_over_beyond_a_page,
            scheduling: excluded_seeds_hide_none_whose_lease_has_just_ended,
            scheduling: a_failed_transfer_makes_a_seed_suspect_for_a_growing_while,
            scheduling: failures_are_forgotten_after_a_while_without_any,
            scheduling: a_suspect_seed_is_well_after_a_success_or_in_a_new_process,
            scheduling: refusals_say_why,
            scheduling: an_answer_is_a_sign_of_life,
            scheduling: an_answer_is_of_one_holding,
            scheduling: other_memory_ends_the_leases_on_what_was,
            scheduling: a_drained_seed_stays_out_while_its_memory_is_the_same,
            scheduling: a_silence_does_not_bring_a_drained_seed_back,
            scheduling: invalidating_a_key_drains_all_but_the_content_that_stays,
            scheduling: what_a_seed_tells_is_kept_until_it_tells_otherwise,
            lists: seeds_are_listed_by_what_they_are,
            lists: free_points_are_those_that_are_offered,
            lists: leases_are_listed_while_they_live,
            lists: keys_are_summed_up,
            lists: pages_hold_everything_once,
            lists: long_keys_make_short_pages,
            found: a_heartbeat_beside_its_seed_s_registration_is_told_the_number,
            found: a_seed_that_was_drained_and_removed_goes_with_its_last_lease,
            found: reports_count_in_the_order_of_a_batch,
            found: a_seed_that_is_drained_as_it_comes_stays_out,
            found: no_false_refusal_when_another_seed_of_a_full_host_holds_something_else,
            found: who_was_given_a_dead_seed_has_another_one_when_its_lease_has_ended,
            found: a_repetition_comes_beside_whoever_wants_its_place_again,
            owners: a_seed_that_lives_is_its_owners_alone,
            owners: the_address_of_a_silent_seed_is_anybodys,
            owners: a_removed_seed_is_its_owners_until_its_last_lease_ends,
            owners: a_seed_of_nobody_is_of_whoever_is_known_first,
            owners: a_worker_that_loads_takes_nobodys_place,
            quotas: what_is_there_goes_on_while_there_is_room_for_no_other_seed,
            quotas: seeds_that_are_drained_or_silent_count_while_they_are_kept,
            quotas: one_client_leaves_room_for_the_seeds_of_others,
            quotas: one_client_leaves_room_for_the_requests_of_others,
            quotas: only_so_many_requests_are_remembered,
            quotas: only_so_many_instances_are_remembered,
            quotas: long_keys_are_kept_up_to_a_bound_in_bytes,
            quotas: one_client_leaves_room_for_the_bytes_of_others,
            history: who_read_is_told_of_a_lease_of_a_loading_seed,
            history: each_end_of_a_lease_leaves_one_row,
            history: what_a_seed_takes_along_is_kept,
            history: ended_leases_are_listed_by_key_and_seed,
            history: events_tell_what_became_of_seeds,
            history: what_is_old_is_forgotten,
            history: no_more_is_kept_than_there_may_be,
            history: nothing_is_kept_when_that_is_the_rule,
            history: pages_go_from_the_newest_to_the_oldest,
            waiting: those_who_wait_are_served_in_their_order_and_once,
            waiting: a_new_seed_serves_those_who_wait,
            waiting: a_lease_that_ends_by_itself_serves_who_waits_when_asked,
            waiting: who_gives_up_leaves_its_place_to_the_next,
            waiting: whose_time_is_over_keeps_what_it_was_given_in_that_moment,
            waiting: a_wait_ends_and_its_row_is_swept,
            waiting: waiters_of_a_planner_that_died_are_passed_over,
            waiting: a_repeated_acquisition_has_the_same_lease,
            waiting: a_repeated_acquisition_keeps_its_place,
            waiting: a_refused_acquisition_may_be_repeated,
            waiting: nobody_overtakes_who_is_put_off_for_its_instance,
            waiting: who_was_given_a_dead_seed_has_its_place_again,
            waiting: an_attempt_ends_no_later_one,
            waiting: a_repetition_beside_one_whose_seed_does_not_answer_is_the_same,
            waiting: a_repetition_has_the_lease_and_what_becomes_of_it,
            waiting: a_repetition_that_does_not_wait_takes_nobody_s_place,
            waiting: who_was_served_is_named_until_it_was_told,
            waiting: many_who_wait_come_before_those_who_are_new,
            waiting: a_silent_seed_that_is_heard_of_serves_who_waits,
            waiting: a_release_serves_who_waits_for_another_key_of_a_full_host,
            waiting: a_request_is_remembered_while_its_lease_is_renewed,
        );
    };
    ($home:ty: $($module:ident: $name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                // Tests run side by side: one thread each is enough.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on($crate::store::conformance::$module::$name::<$home>());
            }
        )*
    };
}
pub(crate) use conformance_suite;
