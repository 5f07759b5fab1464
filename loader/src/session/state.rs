//! What a worker does next, as a pure function: `(State, Event) -> (State, Actions)`.
//!
//! ```text
//!        Begin           Granted             Agreed            AllHeld           Serve
//!  Idle ───────▶ Asking ─────────▶ Checking ────────▶ Reading ─────────▶ Loaded ───────▶ Starting
//!                │ ▲ ▲ │                │                │                ▲  ▲               │ │
//!        NoSeed, │ │ │ │                │ SeedFailed or  │                │  └ ServiceFailed ┘ │ Healthy
//!        may     │ │ │ │                │ LeaseLost      │                │                    ▼
//!        wait    ▼ │ │ │                ▼                ▼                │                 Serving
//!          Waiting ┘ └─┼── tries left ──┴────────────────┤                │
//!          PauseOver   │                                 │ no tries left; │ AllHeld
//!                      │ NoSeed, no wait left            ▼ or Disagreed   │
//!                      └──────────────────────────────▶ Filling ──────────┘
//!                                                        │ ▲ │
//!                                  OtherBytes, once only └─┘ └▶ StorageFailed: Failed
//! ```
//!
//! `Adopt` leads from `Idle` to `Filling` at once, with a fallback that finds everything in place. `Stop` is taken in
//! every state. What is held stays held across all of this; only [`Action::StartOver`]
//! drops it: before a source of another content, and before a fallback that can only reload the whole. The driver ([`super`]) performs the actions in order and feeds back one event for the last of
//! them that has an outcome.

use rfork_protocol::manifest::content::ContentId;

use crate::fallback::Fills;

/// Bounds on what a load may try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Seeds that may fail a load before storage is asked, at least 1.
    pub seed_failures: u32,
    /// What the fallback can do.
    pub fallback: Fills,
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Memory is prepared; nothing was asked yet.
    Idle,
    /// A planner is being asked for a seed.
    Asking(Tried),
    /// No seed was free; the planner is asked again after a pause.
    Waiting(Tried),
    /// A lease is held; the seed's metadata is fetched and compared.
    Checking(Tried),
    /// Chunks flow from the seed.
    Reading(Tried),
    /// Chunks come from storage.
    Filling(Filling),
    /// Every chunk is held.
    Loaded,
    /// The metadata service is being started, or runs where nobody reaches it yet.
    Starting,
    /// Other workers may fork from this one.
    Serving,
    /// Everything is taken down; nothing else happens.
    Stopped,
    /// Neither a seed nor storage gave the weights.
    Failed,
}

/// What the chunks that are held came from, and how often seeds have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    /// Seeds that failed so far.
    pub failures: u32,
    /// Whose bytes the held chunks are.
    pub held: Held,
}

/// Whose bytes the held chunks are: only chunks of one content may stand beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Held {
    /// No chunk can be held.
    #[default]
    Nothing,
    /// Those of this content.
    Named(ContentId),
    /// Those of a seed that has no digests, as in unmodified vLLM Ascend: nothing tells whether another source
    /// has the same, so they go with no other source's.
    Unnamed,
}

impl Held {
    /// What a seed's bytes are.
    pub fn of(content: Option<ContentId>) -> Self {
        content.map_or(Self::Unnamed, Self::Named)
    }

    /// Whether bytes of `next` may be added without forgetting these.
    fn takes(self, next: Self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Named(_) => self == next,
            Self::Unnamed => false,
        }
    }
}

/// How storage is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// Only what is missing; each chunk must have the digest that the seed's content names.
    Missing(ContentId),
    /// Everything.
    All,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The caller wants the weights.
    Begin,
    /// The caller has loaded them, and only hands them over.
    Adopt,
    /// The planner granted a seed.
    Granted,
    /// There is no usable seed, or no planner; `may_wait` while the time to wait for one lasts.
    NoSeed {
        /// Whether the time that a worker may wait for a seed lasts.
        may_wait: bool,
    },
    /// The pause is over.
    PauseOver,
    /// The seed holds these tensors, and its bytes are this content; `None` when it has no name for them.
    Agreed(Option<ContentId>),
    /// The seed's tensors are not the worker's.
    Disagreed,
    /// The seed was lost, hung, sent wrong bytes or refused; or its metadata could not be had.
    SeedFailed,
    /// The planner says that the lease is gone.
    LeaseLost,
    /// Every chunk is held and verified.
    AllHeld,
    /// Storage holds other bytes than the seed did.
    OtherBytes,
    /// Storage could not give the weights.
    StorageFailed,
    /// The caller wants to serve others.
    Serve,
    /// The metadata service answers its health check where others are told to come.
    Healthy,
    /// The metadata service did not start; the worker stays loaded.
    ServiceFailed,
    /// The caller, or a signal, wants an end.
    Stop,
}

/// What the driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the planner for a seed that has not failed yet. Leases of failed seeds are kept until it has
    /// answered, so that it cannot hand out the same one again, and are then released.
    Ask,
    /// Pause a moment, longer each time.
    Pause,
    /// Fetch the seed's metadata and compare it.
    Check,
    /// Forget every chunk: what comes next has other bytes.
    StartOver,
    /// Read the missing chunks from the seed, renewing the lease.
    Read,
    /// Remember the seed as failed; its lease is released with the next [`Action::Ask`] or [`Action::Release`].
    Condemn,
    /// Release every lease that is held, in the background.
    Release,
    /// Read from storage.
    Fill(Filling),
    /// Start the metadata service and wait until it is healthy: until then nobody is told of it.
    StartService,
    /// Start to heartbeat: from now on, the planner hands this worker out.
    Advertise,
    /// Stop heartbeats, remove the advertisement, stop the service, unregister the memory, finalize the
    /// engine, in this order.
    TakeDown,
}

/// The next state and what to do.
pub type Step = (State, Vec<Action>);

/// Decides. An event that a state does not expect changes nothing and does nothing.
pub fn step(state: State, event: Event, limits: Limits) -> Step {
    use Action as A;
    use Event as E;
    use State as S;
    match (state, event) {
        (S::Stopped, _) => (state, vec![]),
        (_, E::Stop) => (S::Stopped, vec![A::Release, A::TakeDown]),

        (S::Idle, E::Begin) => (S::Asking(Tried::default()), vec![A::Ask]),
        (S::Idle, E::Adopt) => fill(Tried::default(), vec![], limits),

        (S::Asking(tried), E::Granted) => (S::Checking(tried), vec![A::Check]),
        (S::Asking(tried), E::NoSeed { may_wait: true }) => (S::Waiting(tried), vec![A::Pause]),
        (S::Asking(tried), E::NoSeed { may_wait: false }) => fill(tried, vec![], limits),
        (S::Waiting(tried), E::PauseOver) => (S::Asking(tried), vec![A::Ask]),

        (S::Checking(tried), E::Agreed(content)) => {
            let held = Held::of(content);
            let reading = S::Reading(Tried { held, ..tried });
            if tried.held.takes(held) {
                (reading, vec![A::Read])
            } else {
                (reading, vec![A::StartOver, A::Read])
            }
        }
        // The key promises equal tensors: another seed of this key would disagree as well.
        (S::Checking(tried), E::Disagreed) => fill(tried, vec![A::Release], limits),

        (S::Checking(tried) | S::Reading(tried), E::SeedFailed) => {
            let tried = Tried { failures: tried.failures + 1, ..tried };
            if tried.failures < limits.seed_failures {
                (S::Asking(tried), vec![A::Condemn, A::Ask])
            } else {
                fill(tried, vec![A::Release], limits)
            }
        }
        // The seed did nothing wrong, but a worker that keeps losing leases must end some time.
        (S::Checking(tried) | S::Reading(tried), E::LeaseLost) => {
            let tried = Tried { failures: tried.failures + 1, ..tried };
            if tried.failures < limits.seed_failures {
                (S::Asking(tried), vec![A::Release, A::Ask])
            } else {
                fill(tried, vec![A::Release], limits)
            }
        }
        (S::Reading(_), E::AllHeld) => (S::Loaded, vec![A::Release]),

        (S::Filling(_), E::AllHeld) => (S::Loaded, vec![]),
        (S::Filling(Filling::Missing(_)), E::OtherBytes) => {
            (S::Filling(Filling::All), vec![A::StartOver, A::Fill(Filling::All)])
        }
        (S::Filling(_), E::StorageFailed | E::OtherBytes) => (S::Failed, vec![]),

        (S::Loaded, E::Serve) => (S::Starting, vec![A::StartService]),
        (S::Starting, E::Healthy) => (S::Serving, vec![A::Advertise]),
        (S::Starting, E::ServiceFailed) => (S::Loaded, vec![]),

        _ => (state, vec![]),
    }
}

fn fill(tried: Tried, mut before: Vec<Action>, limits: Limits) -> Step {
    let filling = match (tried.held, limits.fallback) {
        (Held::Named(content), Fills::Chunks) => Filling::Missing(content),
        (Held::Nothing, _) => Filling::All,
        // Nothing tells whether the others are of the same content, or the fallback gives them all anyway.
        (Held::Unnamed, _) | (Held::Named(_), Fills::Whole) => {
            before.push(Action::StartOver);
            Filling::All
        }
    };
    before.push(Action::Fill(filling));
    (State::Filling(filling), before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { seed_failures: 3, fallback: Fills::Chunks };
    const ONE: ContentId = ContentId([1; 32]);
    const TWO: ContentId = ContentId([2; 32]);

    /// Runs events from `Idle`; gives the last state and all actions.
    fn run(events: &[Event]) -> Step {
        events.iter().fold((State::Idle, vec![]), |(state, mut actions), event| {
            let (next, more) = step(state, *event, LIMITS);
            actions.extend(more);
            (next, actions)
        })
    }

    #[test]
    fn a_fork_reads_and_releases() {
        let (state, actions) = run(&[Event::Begin, Event::Granted, Event::Agreed(Some(ONE)), Event::AllHeld]);
        assert_eq!(state, State::Loaded);
        assert_eq!(actions, [Action::Ask, Action::Check, Action::Read, Action::Release]);
    }

    #[test]
    fn no_seed_means_storage_at_once_or_after_a_wait() {
        let (state, actions) = run(&[Event::Begin, Event::NoSeed { may_wait: false }]);
        assert_eq!(state, State::Filling(Filling::All));
        assert_eq!(actions, [Action::Ask, Action::Fill(Filling::All)]);
        let (_, actions) = run(&[
            Event::Begin,
            Event::NoSeed { may_wait: true },
            Event::PauseOver,
            Event::NoSeed { may_wait: false },
        ]);
        assert_eq!(actions, [Action::Ask, Action::Pause, Action::Ask, Action::Fill(Filling::All)]);
    }

    #[test]
    fn a_lost_seed_is_replaced_and_what_is_held_stays() {
        let (state, actions) = run(&[
            Event::Begin,
            Event::Granted,
            Event::Agreed(Some(ONE)),
            Event::SeedFailed,
            Event::Granted,
            Event::Agreed(Some(ONE)),
        ]);
        assert_eq!(state, State::Reading(Tried { failures: 1, held: Held::Named(ONE) }));
        assert!(!actions.contains(&Action::StartOver));
        assert!(actions.windows(2).any(|pair| pair == [Action::Condemn, Action::Ask]));
    }

    #[test]
    fn storage_completes_what_a_seed_began_under_its_content_id() {
        let events = [
            Event::Begin,
            Event::Granted,
            Event::Agreed(Some(ONE)),
            Event::SeedFailed,
            Event::NoSeed { may_wait: false },
        ];
        let (state, actions) = run(&events);
        assert_eq!(state, State::Filling(Filling::Missing(ONE)));
        assert!(!actions.contains(&Action::StartOver));
        let (state, actions) = step(state, Event::OtherBytes, LIMITS);
        assert_eq!(state, State::Filling(Filling::All));
        assert_eq!(actions, [Action::StartOver, Action::Fill(Filling::All)]);
    }

    #[test]
    fn a_fallback_that_reloads_the_whole_begins_with_nothing() {
        let limits = Limits { fallback: Fills::Whole, ..LIMITS };
        let reading = State::Reading(Tried { failures: 0, held: Held::Named(ONE) });
        let (asking, _) = step(reading, Event::SeedFailed, limits);
        let (state, actions) = step(asking, Event::NoSeed { may_wait: false }, limits);
        assert_eq!(state, State::Filling(Filling::All));
        assert_eq!(actions, [Action::StartOver, Action::Fill(Filling::All)]);
    }

    #[test]
    fn what_is_adopted_is_filled_without_a_question() {
        let (state, actions) = run(&[Event::Adopt, Event::AllHeld]);
        assert_eq!((state, actions), (State::Loaded, vec![Action::Fill(Filling::All)]));
    }

    #[test]
    fn another_content_starts_over() {
        let (_, actions) = run(&[
            Event::Begin,
            Event::Granted,
            Event::Agreed(Some(ONE)),
            Event::SeedFailed,
            Event::Granted,
            Event::Agreed(Some(TWO)),
        ]);
        assert!(actions.windows(2).any(|pair| pair == [Action::StartOver, Action::Read]));
    }

    #[test]
    fn bytes_without_a_name_go_with_no_other_source_s() {
        let lost = [Event::Begin, Event::Granted, Event::Agreed(None), Event::SeedFailed];
        for next in [None, Some(ONE)] {
            let events = [&lost[..], &[Event::Granted, Event::Agreed(next)]].concat();
            let (_, actions) = run(&events);
            assert!(actions.ends_with(&[Action::Check, Action::StartOver, Action::Read]), "{actions:?}");
        }
        let (_, actions) = run(&[&lost[..], &[Event::NoSeed { may_wait: false }]].concat());
        assert!(actions.ends_with(&[Action::StartOver, Action::Fill(Filling::All)]), "{actions:?}");
        let (_, actions) = run(&[Event::Begin, Event::Granted, Event::Agreed(None), Event::AllHeld]);
        assert!(!actions.contains(&Action::StartOver), "{actions:?}");
    }

    #[test]
    fn a_manifest_that_disagrees_moves_no_byte() {
        let (state, actions) = run(&[Event::Begin, Event::Granted, Event::Disagreed]);
        assert_eq!(state, State::Filling(Filling::All));
        assert!(!actions.contains(&Action::Read) && actions.contains(&Action::Release));
    }

    #[test]
    fn a_worker_that_cannot_serve_stays_loaded() {
        let loaded = State::Loaded;
        let (starting, actions) = step(loaded, Event::Serve, LIMITS);
        assert_eq!(actions, [Action::StartService]);
        assert_eq!(step(starting, Event::ServiceFailed, LIMITS), (State::Loaded, vec![]));
        assert_eq!(step(starting, Event::Healthy, LIMITS), (State::Serving, vec![Action::Advertise]));
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Begin),
            Just(Event::Adopt),
            Just(Event::Granted),
            any::<bool>().prop_map(|may_wait| Event::NoSeed { may_wait }),
            Just(Event::PauseOver),
            prop_oneof![Just(Some(ONE)), Just(Some(TWO)), Just(None)].prop_map(Event::Agreed),
            Just(Event::Disagreed),
            Just(Event::SeedFailed),
            Just(Event::LeaseLost),
            Just(Event::AllHeld),
            Just(Event::OtherBytes),
            Just(Event::StorageFailed),
            Just(Event::Serve),
            Just(Event::Healthy),
            Just(Event::ServiceFailed),
            Just(Event::Stop),
        ]
    }

    proptest! {
        #[test]
        fn the_rules_hold_over_any_history(events in prop::collection::vec(events(), 0..60), whole_only: bool) {
            let fallback = if whole_only { Fills::Whole } else { Fills::Chunks };
            let limits = Limits { fallback, ..LIMITS };
            let mut state = State::Idle;
            // What the driver's world looks like: is a lease held, whose bytes are held, who is advertised.
            let (mut leased, mut condemned) = (false, false);
            let (mut content, mut advertised, mut whole) = (Held::Nothing, false, false);
            for event in events {
                let (next, actions) = step(state, event, limits);
                if matches!(state, State::Asking(_)) && matches!(event, Event::Granted | Event::NoSeed { .. }) {
                    // The planner has answered: the driver has released what it kept from it.
                    condemned = false;
                    leased |= event == Event::Granted;
                }
                whole |= event == Event::AllHeld && matches!(state, State::Reading(_) | State::Filling(_));
                for action in &actions {
                    match action {
                        Action::Condemn => (leased, condemned) = (false, true),
                        Action::Release => (leased, condemned) = (false, false),
                        Action::StartOver => content = Held::Nothing,
                        Action::Read => {
                            prop_assert!(leased, "bytes move only under a lease");
                            let State::Reading(tried) = next else { panic!("a read outside Reading") };
                            let mixed = content != Held::Nothing && (content != tried.held || content == Held::Unnamed);
                            prop_assert!(!mixed, "two contents mixed");
                            content = tried.held;
                        }
                        Action::Fill(Filling::All) => prop_assert_eq!(content, Held::Nothing, "storage over a seed's chunks"),
                        Action::Fill(Filling::Missing(id)) => {
                            prop_assert_eq!(content, Held::Named(*id));
                            prop_assert!(!whole_only, "asked for less than it gives");
                        }
                        Action::Advertise => { prop_assert!(whole, "a worker without weights is advertised"); advertised = true; }
                        Action::TakeDown => advertised = false,
                        _ => {}
                    }
                }
                if let State::Asking(tried) | State::Reading(tried) | State::Checking(tried) | State::Waiting(tried) = next {
                    prop_assert!(tried.failures < LIMITS.seed_failures);
                }
                if matches!(next, State::Filling(_) | State::Loaded | State::Failed | State::Stopped) {
                    prop_assert!(!leased && !condemned, "a lease outlives its reading");
                }
                if next == State::Stopped { prop_assert!(!advertised); }
                state = next;
            }
        }

        /// Whatever fails, a worker whose storage is readable ends loaded: from every state on the way, the
        /// worst that seeds and planner can do leads to storage in a bounded number of steps.
        #[test]
        fn storage_is_always_reached(history in prop::collection::vec(events(), 0..30)) {
            let mut state = State::Idle;
            for event in history {
                if matches!(event, Event::Stop | Event::StorageFailed | Event::OtherBytes) { continue; }
                state = step(state, event, LIMITS).0;
            }
            for _ in 0..20 {
                let event = match state {
                    State::Idle => Event::Begin,
                    State::Asking(_) => Event::NoSeed { may_wait: false },
                    State::Waiting(_) => Event::PauseOver,
                    State::Checking(_) | State::Reading(_) => Event::SeedFailed,
                    State::Filling(_) => Event::AllHeld,
                    _ => break,
                };
                state = step(state, event, LIMITS).0;
            }
            prop_assert!(matches!(state, State::Loaded | State::Starting | State::Serving), "{state:?}");
        }
    }
}
