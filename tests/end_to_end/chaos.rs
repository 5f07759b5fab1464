//! Chains of workers of which some are killed, stopped or end, over wires that damage what they carry, by chance; and what
//! the planner's history and the workers' reports say of it.
//!
//! A run comes from one number, which is printed. `RFORK_CHAOS_RUNS` makes more of them, `RFORK_CHAOS_SEED` one again.

use std::collections::{BTreeMap, HashMap};

use rfork_tests::fakes::DamagedWire;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::until;
use rustix::process::Signal;
use serde_json::Value;

const WORKERS: usize = 6;
/// 4 MiB take a second or so.
const RATE: &str = "--rfork-seed-max-gib-per-sec=0.004";
/// Leases that a seed has at once, and the one that a loading seed lends to those who stall.
const CAPACITY: usize = 1;
const RESERVE: usize = 1;

/// What becomes of a worker on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    Killed,
    /// It is told to end.
    Ends,
    /// It stands still for so many milliseconds.
    Stops(u64),
}

#[derive(Debug)]
struct Plan {
    /// Whether nobody has the weights at first.
    cold: bool,
    /// When the seed is killed, if there is one and it is: once somebody has this part of the weights, of 100.
    seed_dies_at: Option<u64>,
    /// The fate of each, and at which part of its weights, of 100, it comes.
    fates: Vec<(Fate, u64)>,
    /// For each: of how many pieces that come to it one is damaged.
    damage: Vec<Option<u64>>,
}

impl Plan {
    fn of(random: &mut fastrand::Rng) -> Self {
        let fate = |random: &mut fastrand::Rng| {
            let fate = match random.u8(0..10) {
                0 | 1 => Fate::Killed,
                2 => Fate::Ends,
                3 | 4 => Fate::Stops(random.u64(500..6_000)),
                _ => Fate::Lives,
            };
            (fate, random.u64(1..95))
        };
        Self {
            cold: random.bool(),
            seed_dies_at: (random.u8(0..5) == 0).then(|| random.u64(1..90)),
            fates: (0..WORKERS).map(|_| fate(random)).collect(),
            damage: (0..WORKERS).map(|_| random.bool().then(|| random.u64(40..400))).collect(),
        }
    }
}

/// How far a worker is, in parts of 100.
fn held(worker: &Worker) -> u64 {
    let number = |line: &Value, field: &str| line[field].as_u64().unwrap();
    let progress = worker.process.said_last("progress");
    progress.map_or(0, |line| number(&line, "held_bytes") * 100 / number(&line, "total_bytes").max(1))
}

fn is_loaded(worker: &Worker) -> bool {
    worker.process.said_last("loaded").is_some()
}

/// What a run came to.
#[derive(Debug, Default)]
struct Run {
    grants: usize,
    loading_sources: usize,
    circles: usize,
    damaged: usize,
    moved: usize,
}

fn run(number: u64, wire: &DamagedWire) -> Run {
    let mut random = fastrand::Rng::with_seed(number);
    let plan = Plan::of(&mut random);
    eprintln!("run {number}: {plan:?}");
    let model = Model::new(8, number);
    let planner = Planner::start(&["--lease-ttl-sec=5", "--heartbeat-ttl-sec=10"]);
    let mut seed = (!plan.cold).then(|| {
        let seed = Worker::start("seed", &model, &planner.url(), &[RATE]);
        (seed.serving().identity, seed)
    });
    let complete = seed.as_ref().map(|(identity, _)| identity.clone());
    let start = |at: usize| {
        let environment =
            plan.damage[at].map(|one_of| wire.environment(one_of, number + at as u64)).unwrap_or_default();
        Worker::start_in(&environment, &format!("worker {at}"), &model, &planner.url(), &[RATE])
    };
    let mut workers: Vec<Worker> = (0..WORKERS).map(start).collect();
    let mut pending: Vec<(usize, Fate, u64)> =
        plan.fates.iter().enumerate().map(|(at, (fate, part))| (at, *fate, *part)).collect();
    pending.retain(|(_, fate, _)| *fate != Fate::Lives);
    let mut gone = vec![false; WORKERS];
    let mut stands: Vec<(usize, std::time::Instant)> = Vec::new();
    until(&format!("the end of run {number}"), || {
        let most = workers.iter().map(held).max().unwrap_or_default();
        if plan.seed_dies_at.is_some_and(|part| most >= part) {
            seed.take().into_iter().for_each(|(_, mut seed)| seed.process.kill());
        }
        pending.retain(|(at, fate, part)| {
            let worker = &mut workers[*at];
            if held(worker) < *part && !is_loaded(worker) {
                return true;
            }
            match fate {
                Fate::Killed => worker.process.kill(),
                Fate::Ends => drop(worker.process.terminate()),
                Fate::Stops(ms) => {
                    worker.process.signal(Signal::STOP);
                    stands.push((*at, std::time::Instant::now() + std::time::Duration::from_millis(*ms)));
                }
                Fate::Lives => {}
            }
            gone[*at] = matches!(fate, Fate::Killed | Fate::Ends);
            false
        });
        stands.retain(|(at, until)| {
            let stays = std::time::Instant::now() < *until;
            if !stays {
                workers[*at].process.signal(Signal::CONT);
            }
            stays
        });
        let all = workers.iter().zip(&gone).all(|(worker, gone)| *gone || is_loaded(worker));
        (all && stands.is_empty()).then_some(())
    });
    for (worker, _) in workers.iter().zip(&gone).filter(|(_, gone)| !**gone) {
        assert_eq!(
            worker.loaded().digest,
            model.digest(),
            "run {number}: {} holds other bytes",
            worker.process.name()
        );
    }
    let mut told = check(number, &planner, complete.as_deref());
    told.damaged = workers.iter().map(|worker| worker.process.said("a chunk is corrupt").len()).sum();
    told
}

/// What the planner's history says of each grant: who read from whom, from when to when, in milliseconds.
#[derive(Debug, Clone)]
struct Lease {
    source: String,
    reader: Option<String>,
    from: i64,
    to: i64,
}

/// Looks whether the history breaks a rule: nobody is its own source, and no seed lends more than it may at once: the
/// one that was `complete` all along has no point for those who stall. Circles may form for a while; they are counted.
fn check(number: u64, planner: &Planner, complete: Option<&str>) -> Run {
    let list = |path: &str, of: &str| -> Vec<Value> {
        planner.request("GET", path, &[]).json()[of].as_array().unwrap().clone()
    };
    until("the end of all leases", || list("/v2/leases", "leases").is_empty().then_some(()));
    let ago = |row: &Value, field: &str| -i64::try_from(row[field].as_u64().unwrap()).unwrap();
    let text = |row: &Value, field: &str| row[field].as_str().map(str::to_owned);
    let leases: Vec<Lease> = list("/v2/leases/ended?limit=1000", "leases")
        .iter()
        .map(|row| Lease {
            source: text(row, "seed").unwrap(),
            reader: text(row, "reader"),
            from: ago(row, "granted_age_ms"),
            to: ago(row, "ended_age_ms"),
        })
        .collect();
    let mut told = Run { grants: leases.len(), ..Run::default() };
    let mut by_source: BTreeMap<&str, Vec<&Lease>> = BTreeMap::new();
    for lease in &leases {
        assert_ne!(lease.reader.as_deref(), Some(&*lease.source), "run {number}: somebody reads from itself");
        by_source.entry(&lease.source).or_default().push(lease);
    }
    for (source, leases) in by_source {
        // The moment at which most of them live is one at which one of them begins. Ends are told by the millisecond.
        let at =
            |moment: i64| leases.iter().filter(|lease| lease.from <= moment && moment < lease.to - 1).count();
        let most = leases.iter().map(|lease| at(lease.from)).max().unwrap_or_default();
        let reserve = if complete == Some(source) { 0 } else { RESERVE };
        assert!(most <= CAPACITY + reserve, "run {number}: {source} lends {most} at once: {leases:?}");
    }
    for lease in &leases {
        let live: HashMap<&str, &str> = leases
            .iter()
            .filter(|other| other.from <= lease.from && lease.from < other.to)
            .filter_map(|other| Some((other.reader.as_deref()?, other.source.as_str())))
            .collect();
        let mut at = lease.reader.as_deref();
        for _ in 0..=leases.len() {
            at = at.and_then(|reader| live.get(reader).copied());
        }
        told.circles += usize::from(at.is_some());
    }
    let events = list("/v2/events?limit=1000", "events");
    told.moved = events.iter().filter(|event| event["kind"] == "moved").count();
    // When each worker had everything. One that never had is left out.
    let completed: HashMap<String, i64> = events
        .iter()
        .filter(|event| event["kind"] == "completed")
        .filter_map(|event| Some((text(event, "seed")?, ago(event, "age_ms"))))
        .collect();
    let still_loads = |lease: &&Lease| completed.get(&lease.source).is_some_and(|at| lease.from < at - 100);
    told.loading_sources = leases.iter().filter(still_loads).count();
    told
}

#[test]
fn whoever_lives_is_loaded_with_the_same_bytes_whatever_becomes_of_the_others() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let runs = variable("RFORK_CHAOS_RUNS").unwrap_or(3);
    let first = variable("RFORK_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let wire = DamagedWire::build();
    let mut all = Run::default();
    for number in first..first + runs {
        let told = run(number, &wire);
        all.grants += told.grants;
        all.loading_sources += told.loading_sources;
        all.circles += told.circles;
        all.damaged += told.damaged;
        all.moved += told.moved;
    }
    println!("{runs} runs from {first} on: {all:?}");
    assert!(all.grants > 0 && all.loading_sources > 0, "chains form: {all:?}");
    assert!(runs < 20 || all.damaged > 0, "wires damage what they carry: {all:?}");
}
