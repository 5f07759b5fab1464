//! Three planners over one Postgres, behind a balancer and under load, while they and the database are killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rfork_tests::balancer::{Balancer, Kind};
use rfork_tests::cluster::Cluster;
use rfork_tests::history::{Answer, History, Seed, Span, Terms, each_point_once};
use rfork_tests::load::{Held, Recorder};
use rfork_tests::process::Planner;
use rfork_tests::{loopback, until};

pub(crate) const LEASE_TTL: Duration = Duration::from_secs(3);
const HEARTBEAT_TTL: Duration = Duration::from_secs(6);
const SWEEP: Duration = Duration::from_secs(1);
/// Load before the first fault, with faults, and after the last one.
const PHASES: [Duration; 3] = [Duration::from_millis(1_500), Duration::from_secs(7), Duration::from_secs(7)];
/// Workers that ask at the same time.
const WORKERS: usize = 8;

/// On a machine on which no thread is ever late.
pub(crate) const TERMS: Terms = Terms {
    lease_ttl_us: micros(LEASE_TTL),
    heartbeat_ttl_us: micros(HEARTBEAT_TTL),
    // Written every second.
    flush_us: 1_500_000,
    settle_us: 1_000_000,
    slack_us: 20_000,
    // nginx leaves a planner out for 5 s after a failure; were it alone, there would be nobody to ask.
    recovery_us: 6_000_000,
    // The shortest time-out: that of a lock.
    gives_up_us: 1_500_000,
    late_us: 0,
};

const fn micros(time: Duration) -> u64 {
    // A few seconds.
    time.as_secs() * 1_000_000 + time.subsec_micros() as u64
}

/// Seeds of four keys; those of `two*` have two points.
pub(crate) fn seeds() -> Vec<Seed> {
    let keys = [("one", 1, 10), ("one-more", 1, 3), ("two", 2, 8), ("two-more", 2, 3)];
    let of_key = |(number, (key, capacity, count)): (usize, (&str, usize, usize))| {
        let seed = |rank| Seed { identity: format!("127.0.{number}.1:9:{rank}"), key: key.into(), capacity };
        (0..count).map(seed).collect::<Vec<_>>()
    };
    keys.into_iter().enumerate().flat_map(of_key).collect()
}

/// What is killed and started again, and when that was.
struct Victims<'a> {
    cluster: &'a Cluster,
    planners: Vec<Planner>,
    recorder: &'a Recorder,
    faults: Vec<Span>,
    kills: usize,
}

impl Victims<'_> {
    /// Does something harmful and notes when.
    fn harm(&mut self, harm: impl FnOnce(&mut Self)) {
        let from_us = self.recorder.now_us();
        harm(self);
        self.faults.push(Span { from_us, until_us: self.recorder.now_us() });
    }

    fn kill(&mut self, planner: usize) {
        self.kills += 1;
        self.planners[planner].process.kill();
    }

    /// Faults of all kinds until the time is over; Postgres restarts twice, once while planners are dead.
    fn suffer(&mut self, random: &mut Rng) {
        let begun = Instant::now();
        let mut restarts = [PHASES[1] / 4, PHASES[1] * 3 / 5].into_iter().peekable();
        // On a slow machine they come late, but come.
        while begun.elapsed() < PHASES[1] || restarts.peek().is_some() {
            pause(random, 200..700);
            let (one, other) = (random.usize(..3), random.usize(..3));
            let (both, first) = (random.u8(..3) == 0, random.bool());
            let restart = restarts.next_if(|at| begun.elapsed() >= *at).is_some();
            self.harm(|victims| {
                victims.kill(one);
                if restart && first {
                    victims.cluster.restart();
                }
                if both && other != one {
                    victims.kill(other);
                }
                pause(random, 0..400);
                victims.planners[one].restart();
                if both && other != one {
                    victims.planners[other].restart();
                }
                if restart && !first {
                    victims.cluster.restart();
                }
            });
        }
    }
}

/// The pace of load and faults.
pub(crate) fn pause(random: &mut Rng, milliseconds: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(random.u64(milliseconds)));
}

/// Is set when dropped, so that a test that fails ends its threads.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Leases every point there is, and gives it back; gives the seed of each lease. `None` when it took so long that
/// a lease may have ended meanwhile, or a planner did not wait for its database any longer.
fn lease_everything(recorder: &Recorder, seeds: &[Seed]) -> Option<Vec<String>> {
    let begun = Instant::now();
    let mut keys: Vec<&str> = seeds.iter().map(|seed| seed.key.as_str()).collect();
    keys.dedup();
    let (mut held, mut clear) = (Vec::<Held>::new(), true);
    for key in keys {
        let refusal = loop {
            match recorder.acquire(key) {
                (_, Some(granted)) => held.push(granted),
                (answer, None) => break answer,
            }
        };
        match refusal {
            Answer::NoSeed => {}
            // Whether it may be so, the history tells.
            Answer::Unclear(_) => clear = false,
            wrong => panic!("{wrong:?}"),
        }
    }
    let in_time = clear && begun.elapsed() < LEASE_TTL;
    for lease in &held {
        recorder.release(lease);
    }
    in_time.then(|| held.into_iter().map(|lease| lease.seed).collect())
}

/// Has workers and seeds at work while `harm` is done to planners, and for a while after that; then every lease ends in
/// time, every seed is offered, and every point is leased once more: gives the seed of each.
pub(crate) fn under_load<V>(
    recorder: &Recorder,
    seeds: &[Seed],
    random: &mut Rng,
    victims: &mut V,
    harm: impl FnOnce(&mut V, &mut Rng),
    planners: impl Fn(&V) -> &[Planner],
) -> Vec<String> {
    let [no_more_work, calm, no_more_heartbeats] = [const { AtomicBool::new(false) }; 3];
    std::thread::scope(|scope| {
        let _stop = [&no_more_work, &calm, &no_more_heartbeats].map(Stop);
        scope.spawn(|| recorder.watch(&no_more_heartbeats));
        let working: Vec<_> = (0..WORKERS)
            .map(|_| {
                let (random, no_more_work) = (random.fork(), &no_more_work);
                scope.spawn(move || recorder.work(random, no_more_work))
            })
            .collect();
        for seeds in seeds.chunks(seeds.len().div_ceil(2)) {
            let (random, silence) = (random.fork(), HEARTBEAT_TTL + Duration::from_secs(1));
            let (calm, stop) = (&calm, &no_more_heartbeats);
            scope.spawn(move || recorder.beat(seeds, silence, random, calm, stop));
        }
        std::thread::sleep(PHASES[0]);
        harm(victims, random);
        std::thread::sleep(PHASES[2]);
        drop(Stop(&no_more_work));
        drop(Stop(&calm));
        for worker in working {
            worker.join().unwrap();
        }

        let planners = planners(victims);
        let planner = |number: usize| &planners[number % planners.len()];
        // One that leaks lives on for ever.
        until("the end of every lease", || (planner(0).snapshot()["lease_count"] == 0).then_some(()));
        until("that every seed is offered", || {
            let snapshot = planner(1).snapshot();
            let known = snapshot["seeds"].as_object().unwrap();
            let offered = known.values().filter(|seed| seed["draining"] == false).count();
            (offered == seeds.len()).then_some(())
        });
        until("a round in time", || {
            // What the round before left, if it was not told everything, ends by its time to live.
            (planner(0).snapshot()["lease_count"] == 0).then_some(())?;
            lease_everything(recorder, seeds)
        })
    })
}

/// What planners with these seeds are started with, beside where they listen; and the file of rules that it names.
pub(crate) fn flags() -> (Vec<String>, tempfile::NamedTempFile) {
    let rules = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(rules.path(), "[[capacity]]\nkey = \"two*\"\nleases = 2\n").unwrap();
    let flags = vec![
        format!("--lease-ttl-sec={}", LEASE_TTL.as_secs()),
        format!("--heartbeat-ttl-sec={}", HEARTBEAT_TTL.as_secs()),
        format!("--heartbeat-sweep-sec={}", SWEEP.as_secs()),
        format!("--settings-file={}", rules.path().display()),
    ];
    (flags, rules)
}

/// Three planners on one database.
pub(crate) fn three_on(url: &str, flags: &[String]) -> Vec<Planner> {
    std::thread::scope(|scope| {
        let start = |_| {
            let host = format!("--host={}", loopback());
            let flags: Vec<String> = flags.iter().cloned().chain([host]).collect();
            scope.spawn(move || Planner::start_on(url, &flags.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        (0..3).map(start).collect::<Vec<_>>().into_iter().map(|starting| starting.join().unwrap()).collect()
    })
}

/// No answer was one that a right planner does not give.
pub(crate) fn check(history: &History) {
    let violations = history.violations();
    let first = &violations[..violations.len().min(3)];
    assert!(violations.is_empty(), "{} violations, first {first:#?}", violations.len());
}

fn nothing_is_lost_while_replicas_and_postgres_are_killed(kind: Kind) {
    let random_seed = std::env::var("RFORK_CHAOS_SEED")
        .ok()
        .map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("RFORK_CHAOS_SEED={random_seed} repeats the choices of this run, though not its timing");
    let mut random = Rng::with_seed(random_seed);

    let cluster = Cluster::private("chaos");
    let (url, seeds) = (cluster.database(), seeds());
    let (flags, _rules) = flags();
    let planners = three_on(&url, &flags);
    let [one, two, three] = &planners[..] else { unreachable!() };
    let balancer = Balancer::start(kind, [&one.address, &two.address, &three.address]);
    let recorder = Recorder::new(&balancer.address, seeds.clone(), LEASE_TTL);
    for seed in &seeds {
        assert_eq!(recorder.heartbeat(seed), Answer::Done);
    }

    let mut victims =
        Victims { cluster: &cluster, planners, recorder: &recorder, faults: Vec::new(), kills: 0 };
    let every_point = under_load(&recorder, &seeds, &mut random, &mut victims, Victims::suffer, |victims| {
        &victims.planners
    });

    let faults = std::mem::take(&mut victims.faults);
    let terms = TERMS.where_threads_are_late(recorder.late_us());
    let history = History { terms, seeds: seeds.clone(), exchanges: recorder.exchanges(), faults };
    let summary = history.summary();
    let [repeated, waited] = recorder.waits();
    println!("slack: {} us", terms.slack_us);
    println!("{} requests: {summary:?}; {} planners were killed", history.exchanges.len(), victims.kills);
    println!(
        "{waited} leases were waited for; {repeated} requests were repeated under their idempotency key"
    );
    check(&history);
    assert_eq!(each_point_once(&seeds, &every_point), Ok(()));
    // Something of everything happened.
    let happened = [
        summary.granted,
        summary.renewed,
        summary.released,
        summary.late,
        summary.refused_clearly,
        summary.removed,
        victims.kills,
        repeated,
        waited,
    ];
    assert!(happened.iter().all(|count| *count > 0), "{summary:?}");
}

#[test]
fn nothing_is_lost_while_replicas_and_postgres_are_killed_behind_nginx() {
    nothing_is_lost_while_replicas_and_postgres_are_killed(Kind::Nginx);
}

#[test]
fn nothing_is_lost_while_replicas_and_postgres_are_killed_behind_haproxy() {
    nothing_is_lost_while_replicas_and_postgres_are_killed(Kind::Haproxy);
}
