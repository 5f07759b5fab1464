//! Histories: what is generated, and shrunk when it shows a difference.

use proptest::prelude::*;

use super::super::Report;
use super::world::{KEYS, MAX_CAPACITY, SEEDS, WORLDS};

#[derive(Debug, Clone)]
pub(crate) struct History {
    /// Of what rules.
    pub(super) world: usize,
    pub(super) steps: Vec<Step>,
}

/// Planners are numbered; a store that allows only one counts them all as that one.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// One planner applies a batch.
    Batch(usize, Vec<Ask>),
    /// A planner's batch is cut off, as when it is killed.
    Killed(usize, Vec<Ask>, Cut),
    /// Several planners work at the same time, in turns as the number says.
    Together(Vec<Work>, u64),
    /// Milliseconds go by.
    Wait(i64),
    /// The clock is put back.
    Back(i64),
    /// Heartbeats of seeds, a bit each, come to a planner, which gathers those of the seeds that it knows.
    Beat(usize, u8),
    /// A planner writes what it has gathered.
    Flush(usize),
    Sweep(usize),
    /// All seeds of a key are drained.
    Invalidate(usize, usize),
    /// A planner ends and starts again; gathered heartbeats are lost if it is a crash.
    Restart(usize, bool),
    /// All planners start again with another capacity.
    Capacity(u32),
}

/// What one of several planners does.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Batch(Vec<Ask>),
    Killed(Vec<Ask>, Cut),
    Flush,
    Sweep,
}

/// When a call is cut off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// After so many statements.
    pub(super) statements: u64,
    /// And so many waits since.
    pub(super) waits: u64,
}

/// What a client asks. Leases are counted back from the newest that was granted; a seed may be named wrongly.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// A seed, its key, its process if it tells that, how long it waited.
    Register(u8, usize, Option<u8>, i64),
    Hear(u8, usize, Option<u8>, i64),
    /// A key, and a seed that is not wanted.
    Acquire(usize, Option<u8>),
    Renew(usize, Option<u8>),
    Release(usize, Option<u8>, Report),
    Answered(u8),
    Remove(u8, usize),
    Drain(u8, usize),
}

fn acquisitions(excluding: f64) -> impl Strategy<Value = Ask> {
    let key = prop_oneof![4 => Just(0usize), 1 => Just(1)];
    (key, prop::option::weighted(excluding, 0..SEEDS)).prop_map(|(key, exclude)| Ask::Acquire(key, exclude))
}

fn asks() -> impl Strategy<Value = Ask> {
    let (seed, key, back) = (0..SEEDS, 0..KEYS.len(), 0usize..6);
    let named = prop::option::weighted(0.15, 0..SEEDS);
    let process = prop_oneof![4 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    let reports = prop_oneof![2 => Just(Report::Unknown), 1 => Just(Report::Ok), 1 => Just(Report::Failed)];
    prop_oneof![
        6 => (seed.clone(), process.clone(), 0i64..3)
            .prop_map(|(seed, process, age_ms)| Ask::Register(seed, 0, process, age_ms)),
        2 => (seed.clone(), key.clone(), process.clone(), 0i64..3)
            .prop_map(|(seed, key, process, age_ms)| Ask::Hear(seed, key, process, age_ms)),
        2 => (seed.clone(), key.clone(), process)
            .prop_map(|(seed, key, process)| Ask::Register(seed, key, process, 0)),
        12 => acquisitions(0.1),
        4 => (back.clone(), named.clone()).prop_map(|(back, named)| Ask::Renew(back, named)),
        6 => (back.clone(), named.clone(), reports)
            .prop_map(|(back, named, report)| Ask::Release(back, named, report)),
        1 => seed.clone().prop_map(Ask::Answered),
        2 => (seed.clone(), key.clone()).prop_map(|(seed, key)| Ask::Remove(seed, key)),
        1 => (seed, key).prop_map(|(seed, key)| Ask::Drain(seed, key)),
    ]
}

fn cuts() -> impl Strategy<Value = Cut> {
    (0u64..12, 0u64..5).prop_map(|(statements, waits)| Cut { statements, waits })
}

fn works() -> impl Strategy<Value = Work> {
    let some = || prop::collection::vec(asks(), 1..4);
    prop_oneof![
        4 => some().prop_map(Work::Batch),
        4 => prop::collection::vec(acquisitions(0.3), 1..4).prop_map(Work::Batch),
        1 => (some(), cuts()).prop_map(|(asks, cut)| Work::Killed(asks, cut)),
        1 => Just(Work::Flush),
        2 => Just(Work::Sweep),
    ]
}

/// `planners` work on the store; with more than one they often work at the same time.
fn steps(planners: usize) -> impl Strategy<Value = Step> {
    let planner = 0..planners;
    let together = if planners > 1 { 12 } else { 1 };
    prop_oneof![
        10 => (planner.clone(), asks()).prop_map(|(planner, ask)| Step::Batch(planner, vec![ask])),
        10 => (planner.clone(), prop::collection::vec(asks(), 2..8))
            .prop_map(|(planner, asks)| Step::Batch(planner, asks)),
        2 => (planner.clone(), prop::collection::vec(asks(), 1..6), cuts())
            .prop_map(|(planner, asks, cut)| Step::Killed(planner, asks, cut)),
        together => (prop::collection::vec(works(), 2..4), any::<u64>())
            .prop_map(|(works, order)| Step::Together(works, order)),
        // Exactly a time to live, and one millisecond less, must occur often.
        10 => prop_oneof![Just(1), Just(9), Just(10), Just(29), Just(30), 1i64..40].prop_map(Step::Wait),
        3 => (planner.clone(), 1u8..1 << SEEDS).prop_map(|(planner, seeds)| Step::Beat(planner, seeds)),
        3 => planner.clone().prop_map(Step::Flush),
        3 => planner.clone().prop_map(Step::Sweep),
        1 => (planner, 0..KEYS.len()).prop_map(|(planner, key)| Step::Invalidate(planner, key)),
    ]
}

/// What happens now and then in a history only, because it takes long, or leaves less to be compared.
#[derive(Debug, Clone)]
enum Rare {
    Nothing,
    Step(Step),
}

fn rare(planners: usize) -> impl Strategy<Value = Rare> {
    prop_oneof![
        30 => Just(Rare::Nothing),
        3 => (1i64..15).prop_map(|ms| Rare::Step(Step::Back(ms))),
        2 => (0..planners, any::<bool>()).prop_map(|(planner, crash)| Rare::Step(Step::Restart(planner, crash))),
        1 => (1..=MAX_CAPACITY).prop_map(|capacity| Rare::Step(Step::Capacity(capacity))),
    ]
}

/// All histories of a store on which so many planners work.
pub(super) fn histories(planners: usize) -> impl Strategy<Value = History> {
    let register = |seed| Ask::Register(seed, 0, None, 0);
    let begin = (0..planners, 1..=SEEDS)
        .prop_map(move |(planner, seeds)| Step::Batch(planner, (0..seeds).map(register).collect()));
    let steps = prop::collection::vec(steps(planners), 1..18);
    let rare = (rare(planners), any::<prop::sample::Index>());
    (0..WORLDS, begin, steps, rare).prop_map(|(world, begin, mut steps, (rare, at))| {
        if let Rare::Step(step) = rare {
            steps.insert(at.index(steps.len() + 1), step);
        }
        steps.insert(0, begin);
        History { world, steps }
    })
}
