//! What a load does next, as a pure function: `(State, Event) -> (State, Effects)`.
//!
//! ```text
//!  begin          Granted            Agreed           AllHeld
//! ──────▶ Asking ────────▶ Checking ───────▶ Reading ────────▶ Loaded
//!         │ ▲ ▲ │             │                 │                 ▲
//!  NoSeed,│ │ │ │             │ SeedFailed or   │                 │
//!    may  │ │ │ │             │ LeaseLost       │                 │
//!   wait  ▼ │ │ │             ▼                 ▼                 │
//!    Waiting┘ └─┼─tries left──┴─────────────────┤                 │
//!    PauseOver  │                               │ no tries left,  │ AllHeld
//!               │ NoSeed, no wait left          ▼ or Disagreed    │
//!               └───────────────────────────▶ Filling ────────────┘
//!                                      adopt ──▲ │ ▲
//!                                                └─┘ OtherBytes, once only
//! ```
//!
//! Each state but `Loaded` is something to do, and what comes of it is the next [`Event`]. An [`Effect`] is done on the
//! way from one state to the next. [`super::drive`] does both, and nothing else does. The machine ends at `Loaded`; a load
//! that is cancelled, or that storage fails too, ends with an error wherever it is. Serving comes after it, and has no
//! part in it.
//!
//! What is held stays held across all of this; only [`Effect::StartOver`] drops it: before a source of another content,
//! and before a fallback that can only reload the whole.

use rfork_protocol::manifest::content::ContentId;

use crate::fallback::Fills;

/// Bounds on what a load may try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Seeds that may fail a load before storage is asked, at least 1.
    pub(super) seed_failures: u32,
    /// What the fallback can do.
    pub(super) fallback: Fills,
}

/// Where a load stands: what its driver does, until that has an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Ask the planner for a seed that has not failed yet.
    Asking(Tried),
    /// No seed was free: pause a moment, longer each time.
    Waiting(Tried),
    /// A lease is held: fetch the seed's metadata and compare it.
    Checking(Tried),
    /// Read the missing chunks from the seed, renewing the lease.
    Reading(Tried),
    /// Read chunks from storage.
    Filling(Filling),
    /// Every chunk is held: the load has ended.
    Loaded,
}

impl State {
    /// A load from whatever source there is.
    pub(super) fn begin() -> Self {
        Self::Asking(Tried::default())
    }

    /// A load from the fallback alone, which no planner is asked about.
    pub(super) fn adopt() -> Self {
        Self::Filling(Filling::All)
    }
}

/// What the chunks that are held came from, and how often seeds have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tried {
    /// Seeds that failed so far.
    pub(super) failures: u32,
    /// Whose bytes the held chunks are.
    pub(super) held: Held,
}

/// Whose bytes the held chunks are: only chunks of one content may stand beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Held {
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
    pub(super) fn of(content: Option<ContentId>) -> Self {
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
pub(super) enum Filling {
    /// Only what is missing; each chunk must have the digest that the seed's content names.
    Missing(ContentId),
    /// Everything.
    All,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
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
}

/// What is done on the way to the next state. It has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Remember the seed as failed. Its lease is kept until the planner has answered the next question, so that it
    /// cannot hand out the same seed again, or until [`Effect::Release`].
    Condemn,
    /// Release every lease that is held, in the background.
    Release,
    /// Forget every chunk: what comes next has other bytes.
    StartOver,
}

/// The next state, and what is done before it.
pub(super) type Step = (State, Vec<Effect>);

/// Decides. An event that a state does not expect changes nothing.
pub(super) fn step(state: State, event: Event, limits: Limits) -> Step {
    use Event as E;
    use State as S;
    match (state, event) {
        (S::Asking(tried), E::Granted) => (S::Checking(tried), vec![]),
        (S::Asking(tried), E::NoSeed { may_wait: true }) => (S::Waiting(tried), vec![]),
        (S::Asking(tried), E::NoSeed { may_wait: false }) => fill(tried, vec![], limits),
        (S::Waiting(tried), E::PauseOver) => (S::Asking(tried), vec![]),

        (S::Checking(tried), E::Agreed(content)) => {
            let held = Held::of(content);
            let effects = if tried.held.takes(held) { vec![] } else { vec![Effect::StartOver] };
            (S::Reading(Tried { held, ..tried }), effects)
        }
        // The key promises equal tensors: another seed of this key would disagree as well.
        (S::Checking(tried), E::Disagreed) => fill(tried, vec![Effect::Release], limits),

        (S::Checking(tried) | S::Reading(tried), E::SeedFailed) => {
            another_seed(tried, Effect::Condemn, limits)
        }
        // The seed did nothing wrong, but a worker that keeps losing leases must end some time.
        (S::Checking(tried) | S::Reading(tried), E::LeaseLost) => {
            another_seed(tried, Effect::Release, limits)
        }

        (S::Reading(_), E::AllHeld) => (S::Loaded, vec![Effect::Release]),
        (S::Filling(_), E::AllHeld) => (S::Loaded, vec![]),
        (S::Filling(Filling::Missing(_)), E::OtherBytes) => {
            (S::Filling(Filling::All), vec![Effect::StartOver])
        }
        _ => (state, vec![]),
    }
}

/// Asks for another seed while tries are left.
fn another_seed(tried: Tried, before: Effect, limits: Limits) -> Step {
    let tried = Tried { failures: tried.failures + 1, ..tried };
    if tried.failures < limits.seed_failures {
        (State::Asking(tried), vec![before])
    } else {
        fill(tried, vec![Effect::Release], limits)
    }
}

fn fill(tried: Tried, mut before: Vec<Effect>, limits: Limits) -> Step {
    let filling = match (tried.held, limits.fallback) {
        (Held::Named(content), Fills::Chunks) => Filling::Missing(content),
        (Held::Nothing, _) => Filling::All,
        // Nothing tells whether the others are of the same content, or the fallback gives them all anyway.
        (Held::Unnamed, _) | (Held::Named(_), Fills::Whole) => {
            before.push(Effect::StartOver);
            Filling::All
        }
    };
    (State::Filling(filling), before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { seed_failures: 3, fallback: Fills::Chunks };
    const ONE: ContentId = ContentId([1; 32]);
    const TWO: ContentId = ContentId([2; 32]);

    /// A history from the beginning: the states, the first included, and the effects.
    fn run(events: &[Event]) -> (Vec<State>, Vec<Effect>) {
        let (mut states, mut effects) = (vec![State::begin()], vec![]);
        for event in events {
            let (next, more) = step(*states.last().unwrap(), *event, LIMITS);
            states.push(next);
            effects.extend(more);
        }
        (states, effects)
    }

    fn last(events: &[Event]) -> (State, Vec<Effect>) {
        let (states, effects) = run(events);
        (*states.last().unwrap(), effects)
    }

    fn nothing_held(failures: u32) -> Tried {
        Tried { failures, held: Held::Nothing }
    }

    #[test]
    fn a_fork_reads_and_releases() {
        let (states, effects) = run(&[Event::Granted, Event::Agreed(Some(ONE)), Event::AllHeld]);
        let reading = State::Reading(Tried { failures: 0, held: Held::Named(ONE) });
        let none = nothing_held(0);
        assert_eq!(states, [State::Asking(none), State::Checking(none), reading, State::Loaded]);
        assert_eq!(effects, [Effect::Release]);
    }

    #[test]
    fn no_seed_means_storage_at_once_or_after_a_wait() {
        let (asking, filling) = (State::Asking(nothing_held(0)), State::Filling(Filling::All));
        let (states, effects) = run(&[Event::NoSeed { may_wait: false }]);
        assert_eq!((states, effects), (vec![asking, filling], vec![]));
        let (states, effects) =
            run(&[Event::NoSeed { may_wait: true }, Event::PauseOver, Event::NoSeed { may_wait: false }]);
        assert_eq!(states, [asking, State::Waiting(nothing_held(0)), asking, filling]);
        assert_eq!(effects, []);
    }

    #[test]
    fn a_lost_seed_is_replaced_and_what_is_held_stays() {
        let (states, effects) = run(&[
            Event::Granted,
            Event::Agreed(Some(ONE)),
            Event::SeedFailed,
            Event::Granted,
            Event::Agreed(Some(ONE)),
        ]);
        let tried = Tried { failures: 1, held: Held::Named(ONE) };
        assert!(states.ends_with(&[State::Asking(tried), State::Checking(tried), State::Reading(tried)]));
        assert_eq!(effects, [Effect::Condemn], "nothing starts over");
    }

    #[test]
    fn storage_completes_what_a_seed_began_under_its_content_id() {
        let (state, effects) = last(&[
            Event::Granted,
            Event::Agreed(Some(ONE)),
            Event::SeedFailed,
            Event::NoSeed { may_wait: false },
        ]);
        assert_eq!(state, State::Filling(Filling::Missing(ONE)));
        assert!(!effects.contains(&Effect::StartOver));
        let (state, effects) = step(state, Event::OtherBytes, LIMITS);
        assert_eq!(state, State::Filling(Filling::All));
        assert_eq!(effects, [Effect::StartOver]);
    }

    #[test]
    fn a_fallback_that_reloads_the_whole_begins_with_nothing() {
        let limits = Limits { fallback: Fills::Whole, ..LIMITS };
        let reading = State::Reading(Tried { failures: 0, held: Held::Named(ONE) });
        let (asking, _) = step(reading, Event::SeedFailed, limits);
        let (state, effects) = step(asking, Event::NoSeed { may_wait: false }, limits);
        assert_eq!(state, State::Filling(Filling::All));
        assert_eq!(effects, [Effect::StartOver]);
    }

    #[test]
    fn what_is_adopted_is_filled_without_a_question() {
        assert_eq!(State::adopt(), State::Filling(Filling::All));
        assert_eq!(step(State::adopt(), Event::AllHeld, LIMITS), (State::Loaded, vec![]));
    }

    #[test]
    fn another_content_starts_over() {
        let (state, effects) = last(&[
            Event::Granted,
            Event::Agreed(Some(ONE)),
            Event::SeedFailed,
            Event::Granted,
            Event::Agreed(Some(TWO)),
        ]);
        assert_eq!(state, State::Reading(Tried { failures: 1, held: Held::Named(TWO) }));
        assert!(effects.ends_with(&[Effect::StartOver]));
    }

    #[test]
    fn bytes_without_a_name_go_with_no_other_source_s() {
        let lost = [Event::Granted, Event::Agreed(None), Event::SeedFailed];
        for next in [None, Some(ONE)] {
            let (state, effects) = last(&[&lost[..], &[Event::Granted, Event::Agreed(next)]].concat());
            assert_eq!(state, State::Reading(Tried { failures: 1, held: Held::of(next) }));
            assert!(effects.ends_with(&[Effect::StartOver]), "{effects:?}");
        }
        let (state, effects) = last(&[&lost[..], &[Event::NoSeed { may_wait: false }]].concat());
        assert_eq!(state, State::Filling(Filling::All));
        assert!(effects.ends_with(&[Effect::StartOver]), "{effects:?}");
        let (_, effects) = last(&[Event::Granted, Event::Agreed(None), Event::AllHeld]);
        assert!(!effects.contains(&Effect::StartOver), "{effects:?}");
    }

    #[test]
    fn a_manifest_that_disagrees_moves_no_byte() {
        let (states, effects) = run(&[Event::Granted, Event::Disagreed]);
        let none = nothing_held(0);
        assert_eq!(states, [State::Asking(none), State::Checking(none), State::Filling(Filling::All)]);
        assert_eq!(effects, [Effect::Release]);
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Granted),
            any::<bool>().prop_map(|may_wait| Event::NoSeed { may_wait }),
            Just(Event::PauseOver),
            prop_oneof![Just(Some(ONE)), Just(Some(TWO)), Just(None)].prop_map(Event::Agreed),
            Just(Event::Disagreed),
            Just(Event::SeedFailed),
            Just(Event::LeaseLost),
            Just(Event::AllHeld),
            Just(Event::OtherBytes),
        ]
    }

    proptest! {
        #[test]
        fn the_rules_hold_over_any_history(
            adopts: bool, events in prop::collection::vec(events(), 0..60), whole_only: bool
        ) {
            let fallback = if whole_only { Fills::Whole } else { Fills::Chunks };
            let limits = Limits { fallback, ..LIMITS };
            let mut state = if adopts { State::adopt() } else { State::begin() };
            // What the driver's world looks like: is a lease held, whose bytes are held.
            let (mut leased, mut condemned, mut content) = (false, false, Held::Nothing);
            for event in events {
                let (next, effects) = step(state, event, limits);
                if matches!(state, State::Asking(_)) && matches!(event, Event::Granted | Event::NoSeed { .. }) {
                    // The planner has answered: the driver has released what it kept from it.
                    condemned = false;
                    leased |= event == Event::Granted;
                }
                for effect in &effects {
                    match effect {
                        Effect::Condemn => (leased, condemned) = (false, true),
                        Effect::Release => (leased, condemned) = (false, false),
                        Effect::StartOver => content = Held::Nothing,
                    }
                }
                if next == state {
                    prop_assert_eq!(effects, vec![], "an event that is not expected does something");
                    continue;
                }
                match next {
                    State::Reading(tried) => {
                        prop_assert!(leased, "bytes move only under a lease");
                        let mixed = content != Held::Nothing && (content != tried.held || content == Held::Unnamed);
                        prop_assert!(!mixed, "two contents mixed");
                        content = tried.held;
                    }
                    State::Filling(Filling::All) => {
                        prop_assert_eq!(content, Held::Nothing, "storage over a seed's chunks");
                    }
                    State::Filling(Filling::Missing(id)) => {
                        prop_assert_eq!(content, Held::Named(id));
                        prop_assert!(!whole_only, "asked for less than it gives");
                    }
                    State::Asking(_) | State::Waiting(_) | State::Checking(_) => {}
                    State::Loaded => prop_assert_eq!(event, Event::AllHeld, "loaded without all chunks"),
                }
                match next {
                    State::Asking(tried) | State::Reading(tried) | State::Checking(tried) | State::Waiting(tried) => {
                        prop_assert!(tried.failures < LIMITS.seed_failures);
                    }
                    State::Filling(_) | State::Loaded => {
                        prop_assert!(!leased && !condemned, "a lease outlives its reading");
                    }
                }
                state = next;
            }
        }

        /// Whatever fails, a worker whose storage is readable ends loaded: from every state on the way, the
        /// worst that seeds and planner can do leads to storage in a bounded number of steps.
        #[test]
        fn storage_is_always_reached(history in prop::collection::vec(events(), 0..30)) {
            let mut state = State::begin();
            for event in history {
                state = step(state, event, LIMITS).0;
            }
            for _ in 0..20 {
                let event = match state {
                    State::Asking(_) => Event::NoSeed { may_wait: false },
                    State::Waiting(_) => Event::PauseOver,
                    State::Checking(_) | State::Reading(_) => Event::SeedFailed,
                    State::Filling(_) => Event::AllHeld,
                    State::Loaded => break,
                };
                state = step(state, event, LIMITS).0;
            }
            prop_assert_eq!(state, State::Loaded);
        }
    }
}
