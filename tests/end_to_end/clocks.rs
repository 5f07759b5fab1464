//! Clocks that are set while planners work under load: the machine's of one on SQLite, the server's of three on Postgres.
//! Whatever they show, every answer is as if they had not been set.

use fastrand::Rng;
use rfork_tests::balancer::{Balancer, Kind};
use rfork_tests::cluster::Cluster;
use rfork_tests::fake_clock::FakeClock;
use rfork_tests::history::{Answer, Asked, Exchange, History, Span, Terms, each_point_once};
use rfork_tests::load::Recorder;
use rfork_tests::process::Planner;
use rfork_tests::until;

use crate::replicas::{LEASE_TTL, TERMS, check, flags, pause, seeds, three_on, under_load};

/// What the clock is ahead by, in seconds, one after the other: seconds, an hour, a year, either way.
const AHEAD_SEC: [i64; 12] =
    [2, -1, 3_600, 0, -3_600, 0, 365 * 24 * 3_600, -365 * 24 * 3_600, 5, 3_600, 3_600 - 365 * 24 * 3_600, 0];

/// Planners, the clock by which they judge, and when it was set.
struct Victims<'a> {
    clock: &'a FakeClock,
    planners: Vec<Planner>,
    recorder: &'a Recorder,
    faults: Vec<Span>,
}

impl Victims<'_> {
    fn suffer(&mut self, random: &mut Rng) {
        for (number, ahead_sec) in AHEAD_SEC.into_iter().enumerate() {
            let from_us = self.recorder.now_us();
            self.clock.set(ahead_sec);
            // Somebody has seen it, before any planner starts again.
            let held = until("a clear answer", || match self.recorder.acquire("one") {
                (Answer::Unclear(_), _) => None,
                (_, held) => Some(held),
            });
            if let Some(held) = held {
                self.recorder.release(&held);
            }
            if number % 4 == 3 {
                let planner = random.usize(..self.planners.len());
                self.planners[planner].kill_and_restart();
            }
            self.faults.push(Span { from_us, until_us: self.recorder.now_us() });
            pause(random, 300..800);
        }
    }
}

/// How far from even time may be when it has been put right, in microseconds, on a machine of any speed. How long an answer
/// of the database was under way is not known then: hardly longer than most requests took that need one, because a look that
/// took longer is taken again.
fn slack_us(exchanges: &[Exchange]) -> u64 {
    let asks_the_database = |exchange: &&Exchange| {
        matches!((&exchange.asked, &exchange.answer), (Asked::Renew(_) | Asked::Release(_), Answer::Done))
    };
    let took = exchanges.iter().filter(asks_the_database).map(|one| one.span.until_us - one.span.from_us);
    let mut took: Vec<u64> = took.collect();
    took.sort_unstable();
    let most_us = took.get(took.len() * 19 / 20).copied().unwrap_or_default();
    // A step is found by two looks, and is that much and a tenth of a second off; two either way may add up.
    (2 * (2 * most_us + 100_000)).max(600_000)
}

/// Gives the planners as they are after it.
fn nothing_is_lost_while_the_clock_is_set(
    clock: &FakeClock,
    planners: Vec<Planner>,
    address: &str,
) -> Vec<Planner> {
    let (mut random, seeds) = (Rng::new(), seeds());
    let recorder = Recorder::new(address, seeds.clone(), LEASE_TTL);
    for seed in &seeds {
        assert_eq!(recorder.heartbeat(seed), Answer::Done);
    }
    let mut victims = Victims { clock, planners, recorder: &recorder, faults: Vec::new() };
    let every_point = under_load(&recorder, &seeds, &mut random, &mut victims, Victims::suffer, |victims| {
        &victims.planners
    });
    let faults = std::mem::take(&mut victims.faults);
    let exchanges = recorder.exchanges();
    let terms = Terms { slack_us: slack_us(&exchanges), ..TERMS };
    let terms = terms.where_threads_are_late(recorder.late_us());
    let history = History { terms, seeds: seeds.clone(), exchanges, faults };
    let summary = history.summary();
    println!(
        "{} requests: {summary:?}; waits: {:?}; slack: {} us",
        history.exchanges.len(),
        recorder.waits(),
        terms.slack_us
    );
    check(&history);
    assert_eq!(each_point_once(&seeds, &every_point), Ok(()));
    assert!(
        [summary.granted, summary.renewed, summary.released].iter().all(|count| *count > 0),
        "{summary:?}"
    );
    victims.planners
}

fn borrowed(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[test]
fn nothing_is_lost_while_the_machine_s_clock_is_set() {
    let (clock, (flags, _rules)) = (FakeClock::new(), flags());
    let planner = Planner::start_in(clock.environment(), &borrowed(&flags));
    let address = planner.address.clone();
    nothing_is_lost_while_the_clock_is_set(&clock, vec![planner], &address);
}

#[test]
fn nothing_is_lost_while_the_clock_of_postgres_is_set() {
    let (clock, (flags, _rules)) = (FakeClock::new(), flags());
    let cluster = Cluster::private_in("clock", clock.environment());
    let planners = three_on(&cluster.database(), &flags);
    let [one, two, three] = &planners[..] else { unreachable!() };
    let balancer = Balancer::start(Kind::Nginx, [&one.address, &two.address, &three.address]);
    let planners = nothing_is_lost_while_the_clock_is_set(&clock, planners, &balancer.address);
    // Those who saw it before may have been killed since.
    clock.set(3_600);
    let told = |planner: &Planner| {
        let lines = planner.process.log();
        lines.iter().any(|line| line["message"].as_str().is_some_and(|text| text.contains("clock was set")))
    };
    until("that somebody says that it was set", || planners.iter().any(told).then_some(()));
}
