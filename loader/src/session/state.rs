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
//!    PauseOver  │                               │ no tries left   │ AllHeld
//!               │ NoSeed, no wait left          ▼                 │
//!               └─────────────────────────▶ Claiming ─────────────│──▶ Asking: Led, another one reads storage; Claimed,
//!                                               │                 │    for the first time: there may be a seed by now
//!                                  Disagreed    │ MayRead, Claimed│
//!                                  or adopt ──▶ Filling ──────────┘
//!                                                  to Claiming: OtherBytes
//!
//!  A worker of a chain, whose source may still load as well:
//!
//!           Stalled                Granted
//!  Reading ─────────▶ Seeking ────────────────▶ Checking      SourceGone: to Seeking from wherever it was read or
//!    │ ▲                │   │ NoSeed, no wait left            checked. No try of the four is spent; moves are bounded.
//!    │ └── BytesFlow ───┘   └─────────────────▶ Claiming      AllHeld, SeedFailed and LeaseLost: as in Reading.
//!    └── MayRead ──▶ Filling: storage gives more than the source. StorageFailed: back to Asking.
//! ```
//!
//! Each state but `Loaded` is something to do, and what comes of it is the next [`Event`]. An [`Effect`] is done on the
//! way from one state to the next. [`super::drive`] does both, and nothing else does. The machine ends at `Loaded`; a load
//! that is cancelled, or that storage fails too, ends with an error wherever it is. Serving comes after it, and has no
//! part in it.
//!
//! What is held stays held across all of this; only [`Effect::StartOver`] drops it: before a source of another root,
//! and before a fallback that can only reload the whole. [`Effect::TakeAway`] comes before it: by then nobody reads here
//! what is about to be dropped.

use crate::fallback::Fills;

/// Bounds on what a load may try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Seeds that may fail a load before storage is asked, at least 1.
    pub(super) seed_failures: u32,
    /// How often a load may change its source without a failure before storage is asked.
    pub(super) moves: u32,
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
    /// The seed brings no byte, or is gone: read on as far as there is something to read from, keep the lease, which says
    /// whose place may be had, and ask for another one meanwhile.
    Seeking(Tried),
    /// Ask whether storage may be read, if the planner says who reads it while others wait.
    Claiming(Tried),
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
    /// Sources that were left so far, though they did not fail.
    pub(super) moves: u32,
    /// Whether it had the right to read storage, and asked for a seed once more.
    pub(super) claimed: bool,
    /// Whose bytes the held chunks are.
    pub(super) held: Held,
}

/// Whose bytes the held chunks are: only chunks of one root may stand beside each other. Which one it is the memory knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Held {
    /// No chunk can be held.
    #[default]
    Nothing,
    /// Those of one root, each with a digest.
    Rooted,
    /// Those of a seed that has no digests, as in unmodified vLLM Ascend: nothing tells whether another source
    /// has the same, so they go with no other source's.
    Unnamed,
}

/// What the bytes of a seed are to those that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// They are of the same root, or nothing has a root yet.
    SameRoot,
    /// They are of another one.
    OtherRoot,
    /// It has no name for them.
    Unnamed,
}

impl Offered {
    /// Whether these bytes may be added without forgetting what is held.
    fn goes_with(self, held: Held) -> bool {
        held == Held::Nothing || (held == Held::Rooted && self == Self::SameRoot)
    }

    /// What is held then.
    fn held(self) -> Held {
        if self == Self::Unnamed { Held::Unnamed } else { Held::Rooted }
    }
}

/// How storage is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filling {
    /// Only what is missing. If the content is known, each chunk must have the digest that it names; if not, those that are
    /// held must be the same in storage.
    Missing,
    /// The same, though there is a seed: storage gives more.
    Beside(Tried),
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
    /// The seed holds these tensors.
    Agreed(Offered),
    /// The seed's tensors are not the worker's.
    Disagreed,
    /// The seed was lost, hung, sent wrong bytes or refused; or its metadata could not be had.
    SeedFailed,
    /// The planner says that the lease is gone.
    LeaseLost,
    /// No byte comes for longer than a source may take, or the planner advises to move, or the lease of a worker of a
    /// chain is gone.
    Stalled,
    /// While another seed was asked for, bytes came again.
    BytesFlow,
    /// A source of a chain went away, though it did not fail: it started over, fell silent, gave its place to another, or does
    /// not know yet what it loads.
    SourceGone,
    /// Storage may be read: nobody is asked for a right, or the planner advises to.
    MayRead,
    /// This worker has the right to read storage.
    Claimed,
    /// Another worker has it, and makes progress.
    Led,
    /// Every chunk is held and verified.
    AllHeld,
    /// Storage holds other bytes than the seed did.
    OtherBytes,
    /// Everything came, and is none of what the key is pinned to.
    NotPinned,
    /// Storage cannot be read, and there is a seed.
    StorageFailed,
}

/// What is done on the way to the next state. It has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Remember the seed as failed. Its lease is kept until the planner has answered the next question, so that it
    /// cannot hand out the same seed again, or until [`Effect::Release`].
    Condemn,
    /// End what is read, and release every lease that is held, in the background.
    Release,
    /// End what is read, release its lease, go on under the other one if there is one, and do not ask for that source again
    /// for a moment.
    Replace,
    /// Let nobody read here any more, and tell the planner so. Nothing is left of it for who was no loading seed.
    TakeAway,
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
        (S::Asking(tried), E::NoSeed { may_wait: false }) => claim(tried, vec![], limits),
        (S::Waiting(tried), E::PauseOver) => (S::Asking(tried), vec![]),

        (S::Checking(tried), E::Agreed(offered)) => {
            let effects = if offered.goes_with(tried.held) { vec![] } else { START_OVER.to_vec() };
            (S::Reading(Tried { held: offered.held(), ..tried }), effects)
        }
        // The key promises equal tensors: another seed of this key would disagree as well, and who reads storage for others
        // would be one.
        (S::Checking(tried), E::Disagreed) => {
            let (tried, effects) = keep(tried, vec![Effect::Release], limits);
            (fill(tried), effects)
        }

        (S::Checking(tried) | S::Reading(tried) | S::Seeking(tried), E::SeedFailed) => {
            another_seed(tried, Effect::Condemn, limits)
        }
        // The seed did nothing wrong, but a worker that keeps losing leases must end some time.
        (S::Checking(tried) | S::Reading(tried) | S::Seeking(tried), E::LeaseLost) => {
            another_seed(tried, Effect::Release, limits)
        }
        (S::Checking(tried) | S::Reading(tried) | S::Seeking(tried), E::SourceGone) => {
            (S::Seeking(tried), vec![])
        }

        // What it read from while that grew, nobody could name before.
        (S::Reading(tried) | S::Seeking(tried), E::NotPinned) => {
            let tried = Tried { held: Held::Nothing, ..tried };
            let (next, effects) = another_seed(tried, Effect::Condemn, limits);
            (next, START_OVER.into_iter().chain(effects).collect())
        }

        (S::Reading(tried), E::Stalled) => (S::Seeking(tried), vec![]),
        (S::Reading(tried), E::MayRead) if (tried.held, limits.fallback) == (Held::Rooted, Fills::Chunks) => {
            (S::Filling(Filling::Beside(tried)), vec![Effect::Release])
        }
        (S::Filling(Filling::Beside(tried)), E::StorageFailed) => (S::Asking(tried), vec![]),
        (S::Seeking(tried), E::BytesFlow) => (S::Reading(tried), vec![]),
        (S::Seeking(tried), E::Granted) if tried.moves < limits.moves => {
            (S::Checking(Tried { moves: tried.moves + 1, ..tried }), vec![Effect::Replace])
        }
        // Excluded: it has the right to read storage, asks for a seed once more, and waits for the same source again.
        (S::Seeking(tried), E::Granted | E::NoSeed { may_wait: false }) => {
            claim(tried, vec![Effect::Replace, Effect::Release], limits)
        }

        // A seed may have come just before: who had the right then has everything now.
        (S::Claiming(tried), E::Claimed) if !tried.claimed => {
            (S::Asking(Tried { claimed: true, ..tried }), vec![])
        }
        (S::Claiming(tried), E::MayRead | E::Claimed) => (fill(tried), vec![]),
        // Excluded: whoever reads storage has what this worker may not read, and after it the next one, and so on.
        (S::Claiming(tried), E::Led) if tried.failures >= limits.seed_failures => (fill(tried), vec![]),
        (S::Claiming(tried), E::Led) => (S::Asking(tried), vec![]),

        (S::Reading(_) | S::Seeking(_), E::AllHeld) => (S::Loaded, vec![Effect::Release]),
        (S::Filling(_), E::AllHeld) => (S::Loaded, vec![]),
        // Who took itself away has no right any more.
        (S::Filling(Filling::Missing | Filling::Beside(_)), E::OtherBytes) => {
            (S::Claiming(Tried { claimed: true, ..Tried::default() }), START_OVER.to_vec())
        }
        _ => (state, vec![]),
    }
}

/// Before chunks are dropped, nobody reads them.
const START_OVER: [Effect; 2] = [Effect::TakeAway, Effect::StartOver];

/// Asks for another seed while tries are left.
fn another_seed(tried: Tried, before: Effect, limits: Limits) -> Step {
    let tried = Tried { failures: tried.failures + 1, ..tried };
    if tried.failures < limits.seed_failures {
        (State::Asking(tried), vec![before])
    } else {
        claim(tried, vec![Effect::Release], limits)
    }
}

/// On the way to storage.
fn claim(tried: Tried, before: Vec<Effect>, limits: Limits) -> Step {
    let (tried, effects) = keep(tried, before, limits);
    (State::Claiming(tried), effects)
}

/// Forgets what storage cannot complete.
fn keep(tried: Tried, mut before: Vec<Effect>, limits: Limits) -> (Tried, Vec<Effect>) {
    match (tried.held, limits.fallback) {
        (Held::Nothing, _) | (Held::Rooted, Fills::Chunks | Fills::Nothing) => (tried, before),
        // Nothing tells whether the others are of the same content, or the fallback gives them all anyway.
        (Held::Unnamed, _) | (Held::Rooted, Fills::Whole) => {
            before.extend(START_OVER);
            (Tried { held: Held::Nothing, ..tried }, before)
        }
    }
}

fn fill(tried: Tried) -> State {
    State::Filling(match tried.held {
        Held::Rooted => Filling::Missing,
        Held::Nothing | Held::Unnamed => Filling::All,
    })
}

#[cfg(test)]
mod tests;
