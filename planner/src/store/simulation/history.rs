//! Histories: what is generated, and shrunk when it shows a difference.

use proptest::prelude::*;

use super::super::{Leaving, PLANNER_TTL_MS, Report};
use super::world::{KEYS, MAX_CAPACITY, NAMES, SEEDS, WORLDS, World};

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
    /// The clock is set forward, or back.
    Clock(i64),
    /// A planner is stopped while milliseconds go by, of which it knows nothing.
    Pause(usize, i64),
    /// All planners end, the clock is set, and they start again.
    Away(i64),
    /// Heartbeats of seeds, a bit each, come to a planner, which gathers those of the seeds that it knows.
    Beat(usize, u8),
    /// A planner writes what it has gathered.
    Flush(usize),
    Sweep(usize),
    /// A planner collects those of its waiters whose turn came, and has told those of the time before, or not.
    Collect(usize, bool),
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
    pub(super) at: Place,
    /// And so many waits since.
    pub(super) waits: u64,
}

/// Where a call is cut off.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// After so many statements.
    Statement(u64),
    /// At its commit, which has been sent: nobody is told what became of it.
    Commit,
}

/// What a client asks. Leases are counted back from the newest that was granted; a seed may be named wrongly.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// A seed, its key, its process if it tells that, who asks if that is known, how long it waited.
    Register(u8, usize, Option<u8>, Option<u8>, i64),
    Hear(u8, usize, Option<u8>, Option<u8>, i64),
    /// A key, and a seed that is not wanted.
    Acquire(usize, Option<u8>),
    /// The same, and how long it may wait.
    Wait(usize, Option<u8>, i64),
    /// One more attempt of the acquisition of an idempotency key, and what is asked for under it.
    Named(u8, u8),
    Serve(usize),
    /// An attempt of an acquisition that waits or may be repeated, counted back from the last, ends.
    Leave(usize, Leaving),
    /// One of those wants its place again, after it has reported its seed or not.
    Again(usize, bool),
    Renew(usize, Option<u8>),
    Release(usize, Option<u8>, Report),
    Answered(u8),
    /// A seed, its key, and who asks.
    Remove(u8, usize, Option<u8>),
    Drain(u8, usize),
}

fn keys() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0usize), 1 => Just(1)]
}

fn acquisitions(excluding: f64) -> impl Strategy<Value = Ask> {
    (keys(), prop::option::weighted(excluding, 0..SEEDS))
        .prop_map(|(key, exclude)| Ask::Acquire(key, exclude))
}

fn asks() -> impl Strategy<Value = Ask> {
    let (seed, key, back) = (0..SEEDS, 0..KEYS.len(), 0usize..6);
    let named = prop::option::weighted(0.15, 0..SEEDS);
    let process = prop_oneof![4 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    let owner = prop_oneof![5 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    let reports = prop_oneof![2 => Just(Report::Unknown), 1 => Just(Report::Ok), 1 => Just(Report::Failed)];
    prop_oneof![
        6 => (seed.clone(), process.clone(), owner.clone(), 0i64..3)
            .prop_map(|(seed, process, owner, age_ms)| Ask::Register(seed, 0, process, owner, age_ms)),
        2 => (seed.clone(), key.clone(), process.clone(), owner.clone(), 0i64..3)
            .prop_map(|(seed, key, process, owner, age_ms)| Ask::Hear(seed, key, process, owner, age_ms)),
        2 => (seed.clone(), key.clone(), process, owner.clone())
            .prop_map(|(seed, key, process, owner)| Ask::Register(seed, key, process, owner, 0)),
        12 => acquisitions(0.1),
        4 => (back.clone(), named.clone()).prop_map(|(back, named)| Ask::Renew(back, named)),
        6 => (back.clone(), named.clone(), reports)
            .prop_map(|(back, named, report)| Ask::Release(back, named, report)),
        1 => seed.clone().prop_map(Ask::Answered),
        2 => (seed.clone(), key.clone(), owner).prop_map(|(seed, key, owner)| Ask::Remove(seed, key, owner)),
        1 => (seed, key).prop_map(|(seed, key)| Ask::Drain(seed, key)),
    ]
}

/// What is asked where some wait.
fn asks_of_waiters() -> impl Strategy<Value = Ask> {
    let exclude = prop::option::weighted(0.15, 0..SEEDS);
    let wait_ms = prop_oneof![1 => Just(1i64), 2 => 2i64..30, 6 => Just(100_000)];
    let why = prop_oneof![Just(Leaving::TimedOut), Just(Leaving::Gone)];
    let request = prop_oneof![8 => Just(0u8), 1 => Just(1)];
    prop_oneof![
        16 => asks(),
        8 => (keys(), exclude, wait_ms).prop_map(|(key, exclude, ms)| Ask::Wait(key, exclude, ms)),
        4 => keys().prop_map(Ask::Serve),
        4 => (0usize..3).prop_map(|back| Ask::Release(back, None, Report::Unknown)),
        7 => (0..NAMES, request).prop_map(|(name, request)| Ask::Named(name, request)),
        5 => (0usize..5, why).prop_map(|(back, why)| Ask::Leave(back, why)),
        3 => (0usize..4, prop::bool::weighted(0.8)).prop_map(|(back, fails)| Ask::Again(back, fails)),
    ]
}

fn cuts() -> impl Strategy<Value = Cut> {
    // Few batches have more statements than the first range.
    let statements = prop_oneof![3 => 1u64..8, 1 => 0u64..14];
    // Mostly at once: the answer to a commit takes one wait, as a rule.
    let waits = prop_oneof![3 => Just(0u64), 1 => Just(1)];
    prop_oneof![
        3 => (statements, 0u64..5).prop_map(|(count, waits)| Cut { at: Place::Statement(count), waits }),
        // However many statements came before it: of the places above few are the last one.
        2 => waits.prop_map(|waits| Cut { at: Place::Commit, waits }),
    ]
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

/// Exactly a time to live, and one millisecond less, must occur often.
fn waits() -> impl Strategy<Value = Step> {
    prop_oneof![Just(1), Just(9), Just(10), Just(29), Just(30), 1i64..40].prop_map(Step::Wait)
}

/// Milliseconds, as they matter here; and seconds, hours, and years.
fn clock_steps() -> impl Strategy<Value = i64> {
    let ms = prop_oneof![
        4 => 1i64..50,
        1 => 1_000i64..20_000,
        1 => Just(3_600_000),
        1 => Just(365 * 24 * 3_600_000),
    ];
    (ms, any::<bool>()).prop_map(|(ms, back)| if back { -ms } else { ms })
}

/// A planner that is alone does not see that time goes by without it.
fn pauses(planners: usize) -> impl Strategy<Value = Step> {
    (0..planners, 1i64..50).prop_map(move |(planner, ms)| match planners {
        1 => Step::Clock(ms),
        _ => Step::Pause(planner, ms),
    })
}

/// `planners` work on the store; with more than one they often work at the same time.
fn steps(planners: usize) -> impl Strategy<Value = Step> {
    let planner = 0..planners;
    let together = if planners > 1 { 12 } else { 1 };
    prop_oneof![
        10 => (planner.clone(), asks()).prop_map(|(planner, ask)| Step::Batch(planner, vec![ask])),
        10 => (planner.clone(), prop::collection::vec(asks(), 2..8))
            .prop_map(|(planner, asks)| Step::Batch(planner, asks)),
        4 => (planner.clone(), prop::collection::vec(asks(), 1..6), cuts())
            .prop_map(|(planner, asks, cut)| Step::Killed(planner, asks, cut)),
        together => (prop::collection::vec(works(), 2..4), any::<u64>())
            .prop_map(|(works, order)| Step::Together(works, order)),
        10 => waits(),
        3 => clock_steps().prop_map(Step::Clock),
        1 => pauses(planners),
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
        2 => clock_steps().prop_map(|ms| Rare::Step(Step::Away(ms))),
        2 => (0..planners, any::<bool>()).prop_map(|(planner, crash)| Rare::Step(Step::Restart(planner, crash))),
        1 => (1..=MAX_CAPACITY).prop_map(|capacity| Rare::Step(Step::Capacity(capacity))),
    ]
}

/// What happens where some wait: one thing after the other.
fn steps_of_waiters(planners: usize) -> impl Strategy<Value = Step> {
    let planner = 0..planners;
    let some = |most| prop::collection::vec(asks_of_waiters(), 1..most);
    let long = prop_oneof![Just(PLANNER_TTL_MS - 1), Just(PLANNER_TTL_MS)];
    prop_oneof![
        20 => (planner.clone(), some(6)).prop_map(|(planner, asks)| Step::Batch(planner, asks)),
        2 => (planner.clone(), some(6), cuts()).prop_map(|(planner, asks, cut)| Step::Killed(planner, asks, cut)),
        7 => waits(),
        3 => clock_steps().prop_map(Step::Clock),
        1 => long.prop_map(Step::Wait),
        12 => (planner.clone(), any::<bool>()).prop_map(|(planner, tells)| Step::Collect(planner, tells)),
        1 => (planner.clone(), 1u8..1 << SEEDS).prop_map(|(planner, seeds)| Step::Beat(planner, seeds)),
        1 => planner.clone().prop_map(Step::Flush),
        2 => planner.clone().prop_map(Step::Sweep),
        1 => (planner, any::<bool>()).prop_map(|(planner, crash)| Step::Restart(planner, crash)),
    ]
}

/// All histories of a store on which so many planners work.
pub(super) fn histories(planners: usize) -> impl Strategy<Value = History> {
    prop_oneof![2 => histories_of_many(planners), 1 => histories_of_waiters(planners)]
}

fn begins(planners: usize, seeds: u8) -> impl Strategy<Value = Step> {
    let register = |seed| Ask::Register(seed, 0, None, None, 0);
    (0..planners, 1..=seeds)
        .prop_map(move |(planner, seeds)| Step::Batch(planner, (0..seeds).map(register).collect()))
}

fn histories_of_many(planners: usize) -> impl Strategy<Value = History> {
    let steps = prop::collection::vec(steps(planners), 1..18);
    let rare = (rare(planners), any::<prop::sample::Index>());
    (0..WORLDS, begins(planners, SEEDS), steps, rare).prop_map(|(world, begin, mut steps, (rare, at))| {
        if let Rare::Step(step) = rare {
            steps.insert(at.index(steps.len() + 1), step);
        }
        steps.insert(0, begin);
        History { world, steps }
    })
}

/// Only where each answer is exactly the model's: who is called up follows from it.
fn histories_of_waiters(planners: usize) -> impl Strategy<Value = History> {
    let worlds: Vec<usize> = (0..WORLDS).filter(|world| !World::new(*world).caps_hosts()).collect();
    let steps = prop::collection::vec(steps_of_waiters(planners), 4..24);
    (prop::sample::select(worlds), begins(planners, 2), steps).prop_map(|(world, begin, mut steps)| {
        steps.insert(0, begin);
        History { world, steps }
    })
}
