//! Simulation: generated histories of what clients ask, of clocks, crashes and several planners at work, played on
//! the real stores and on a small model. Every answer and all that is shown must be the model's.
//!
//! - A history comes from one number. A run prints its first number, and a failure its own, with which
//!   `RFORK_SIMULATION_SEED=… RFORK_SIMULATION_HISTORIES=1` plays it again; it is then made as short as it goes.
//! - One planner after the other: each answer is exactly the model's. Planners that work at the same time take
//!   turns statement by statement, and there must be an order of what they did in which every answer was right.
//! - In a part of the histories some wait: these happen one after the other, so that it is known who is served.
//! - A planner is killed by dropping its call after some statement, or at its commit: what it did is there as a whole or not
//!   at all.
//! - [`faults`] puts deliberate faults into the stores; a fault that no history finds is a failure.
//!
//! [`simulation_suite!`] makes the tests of one store. Each has a budget of histories, never of time.

mod commands;
pub(crate) mod faults;
mod history;
mod interleave;
pub(crate) mod loading;
mod model;
mod play;
mod search;
mod statements;
mod world;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};

use super::Store;
use super::conformance::Home;
use history::{History, histories};
use play::{Stage, Tally};
pub(crate) use statements::{commit, sqlx, statement};
use world::World;

/// How long a history that shows a difference is made shorter.
const SHRINKING: Duration = Duration::from_secs(20);

/// A database on which histories are played.
#[async_trait]
pub(crate) trait Ground: Home + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Planners that work on it.
    const PLANNERS: usize;
    /// Histories that a test run plays.
    const HISTORIES: u64;

    /// Makes it empty, under the planners.
    async fn empty(&self);
    /// Waits until nothing is under way of calls that were dropped.
    async fn settle(&self, store: &Arc<dyn Store>);
}

/// Which histories are played.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    histories: u64,
}

impl Run {
    /// What the environment says, and else these.
    fn of<G: Ground>(what: &str, first: impl FnOnce() -> u64, histories: u64) -> Self {
        let setting = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
        let run = Self {
            first: setting("RFORK_SIMULATION_SEED").unwrap_or_else(first),
            histories: setting("RFORK_SIMULATION_HISTORIES").unwrap_or(histories),
        };
        println!(
            "{what} on {}: {} histories from RFORK_SIMULATION_SEED={}",
            G::NAME,
            run.histories,
            run.first
        );
        run
    }
}

/// Stages by what histories need, so that a database is opened once for many.
struct Stages<G>(HashMap<usize, Stage<G>>);

impl<G: Ground> Stages<G> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    async fn play(&mut self, history: &History) -> Result<Tally, String> {
        let stage = match self.0.entry(history.world) {
            Entry::Occupied(stage) => stage.into_mut(),
            Entry::Vacant(none) => none.insert(Stage::new(World::new(history.world)).await),
        };
        stage.play(history).await
    }
}

/// The history of a number, with what it takes to make it shorter.
fn history<G: Ground>(number: u64) -> impl ValueTree<Value = History> {
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, interleave::random(number));
    histories(G::PLANNERS).new_tree(&mut runner).unwrap()
}

/// A history that showed a difference.
#[derive(Debug)]
struct Found {
    number: u64,
    difference: String,
    shortest: History,
}

/// Plays histories until all are played or one shows a difference.
async fn play<G: Ground>(stages: &mut Stages<G>, next: &dyn Fn() -> Option<u64>) -> Result<Tally, Found> {
    let mut tally = Tally::default();
    while let Some(number) = next() {
        let mut tree = history::<G>(number);
        match stages.play(&tree.current()).await {
            Ok(one) => tally.add(&one),
            Err(difference) => return Err(shorten(stages, number, &mut tree, difference).await),
        }
    }
    Ok(tally)
}

async fn shorten<G: Ground>(
    stages: &mut Stages<G>,
    number: u64,
    tree: &mut impl ValueTree<Value = History>,
    difference: String,
) -> Found {
    let since = Instant::now();
    let mut found = Found { number, difference, shortest: tree.current() };
    let mut simpler = tree.simplify();
    while simpler && since.elapsed() < SHRINKING {
        simpler = match stages.play(&tree.current()).await {
            Err(difference) => {
                found = Found { number, difference, shortest: tree.current() };
                tree.simplify()
            }
            Ok(_) => tree.complicate(),
        };
    }
    found
}

fn runtime() -> tokio::runtime::Runtime {
    // Faults and the count of statements belong to a thread: all of a store's work is on its own.
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn histories_agree_with_the_model<G: Ground>() {
    // Others in each run, and short enough to be typed.
    let random = || RandomState::new().hash_one(0) >> 32;
    let run = Run::of::<G>("simulation", random, G::HISTORIES);
    let since = Instant::now();
    let played = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let tally = Mutex::new(Tally::default());
    let found = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4)) {
            scope.spawn(|| {
                let next = || {
                    let at = played.fetch_add(1, Ordering::Relaxed);
                    (at < run.histories && !stop.load(Ordering::Relaxed)).then(|| run.first.wrapping_add(at))
                };
                match runtime().block_on(async { play(&mut Stages::<G>::new(), &next).await }) {
                    Ok(one) => tally.lock().unwrap().add(&one),
                    Err(difference) => {
                        stop.store(true, Ordering::Relaxed);
                        *found.lock().unwrap() = Some(difference);
                    }
                }
            });
        }
    });
    if let Some(Found { number, difference, shortest }) = found.into_inner().unwrap() {
        panic!(
            "RFORK_SIMULATION_SEED={number} RFORK_SIMULATION_HISTORIES=1 on {}: {difference}\nin {shortest:#?}",
            G::NAME
        );
    }
    let tally = tally.into_inner().unwrap();
    println!("{} histories in {:.1?}: {tally:?}", run.histories, since.elapsed());
    // A single history that is played again need not hold everything.
    if run.histories >= 450 {
        assert_eq!(tally.missing(), [""; 0], "never happened");
    }
}

/// Makes the simulation's tests of the store whose [`Ground`] is given; one for each deliberate fault, which is made by
/// replacing texts in the store's statements.
macro_rules! simulation_suite {
    ($ground:ident, $($fault:ident { $($from:literal => $to:literal,)+ })+) => {
        #[test]
        fn simulated_histories_agree_with_the_model() {
            $crate::store::simulation::histories_agree_with_the_model::<$ground>();
        }

        mod simulation_finds {
            $(
                #[test]
                fn $fault() {
                    let edits = [$(($from, $to)),+];
                    $crate::store::simulation::faults::is_found::<super::$ground>(stringify!($fault), &edits);
                }
            )+
        }
    };
}
pub(crate) use simulation_suite;
