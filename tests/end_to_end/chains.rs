//! Workers that serve while they load, as a chain, and what becomes of it when one of them is lost.

use rfork_tests::cluster::Cluster;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::until;
use rustix::process::Signal;

/// Slow enough for a test to step in: 8 MiB take 16 seconds, in pieces of 64 KiB.
const SLOW: &str = "--rfork-seed-max-gib-per-sec=0.0005";
/// Nobody goes to storage within a test.
const PATIENT: &str = "--rfork-seed-wait-sec=3600";
/// And no lease ends by itself: who waited for that would hang.
const PLANNER: [&str; 2] = ["--fork-while-loading=on", "--lease-ttl-sec=3600"];

/// A seed, and workers that load: each reads from the one before.
struct Chain {
    model: Model,
    planner: Planner,
    seed: Worker,
    identity: String,
    workers: Vec<Worker>,
    sources: Vec<String>,
}

impl Chain {
    fn start(workers: usize) -> Self {
        Self::start_with(Planner::start(&PLANNER), workers)
    }

    fn start_with(planner: Planner, workers: usize) -> Self {
        let model = Model::new(8, 1);
        let seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
        let identity = seed.serving().identity;
        let start = |at| Worker::start(&format!("worker {at}"), &model, &planner.url(), &[SLOW, PATIENT]);
        let mut workers: Vec<(String, Worker)> =
            (0..workers).map(start).map(|worker| (String::new(), worker)).collect();
        for (source, worker) in &mut workers {
            *source = worker.reading_from_a_seed();
        }
        // In the order of the chain.
        let (mut ordered, mut sources) = (Vec::new(), vec![identity.clone()]);
        while let Some(last) = sources.last().filter(|_| !workers.is_empty()) {
            // Each is read by one.
            let next = workers.iter().position(|(source, _)| source == last);
            let (_, worker) = workers.swap_remove(next.unwrap());
            sources.push(worker.listens());
            ordered.push(worker);
        }
        Self { model, planner, seed, identity, workers: ordered, sources }
    }

    /// Waits until a worker has everything; gives from whom.
    fn loaded(&self, worker: &Worker) -> Vec<String> {
        let loaded = worker.loaded();
        assert_eq!(loaded.digest, self.model.digest());
        let total: u64 = loaded.shares.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(total, self.model.bytes, "no byte is read twice: {loaded:?}");
        loaded.shares.into_iter().map(|(source, _)| source.replace("seed ", "")).collect()
    }

    /// How leases ended, the last one first.
    fn ends(&self) -> Vec<String> {
        let list = self.planner.request("GET", "/v2/leases/ended", &[]).json();
        let ended = list["leases"].as_array().unwrap().iter();
        ended.map(|lease| lease["ended"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn workers_that_ask_together_are_a_chain_and_the_seed_sends_one_copy() {
    let mut chain = Chain::start(8);
    for (at, worker) in chain.workers.iter().enumerate() {
        assert_eq!(chain.loaded(worker), [chain.sources[at].clone()]);
    }
    let metrics = String::from_utf8(chain.planner.request("GET", "/metrics", &[]).body).unwrap();
    let depths: u32 = (0..8).sum();
    assert!(metrics.contains(&format!("rfork_planner_grant_depth_sum {depths}\n")), "{metrics}");
    drop(chain.workers);
    chain.seed.process.terminate();
    assert_eq!(chain.seed.served_bytes(), chain.model.bytes);
}

#[test]
fn the_reader_of_a_relay_that_is_killed_has_its_place() {
    let mut chain = Chain::start(5);
    chain.workers[1].process.kill();
    heals(&chain, 1);
}

#[test]
fn so_it_is_with_a_planner_on_postgres() {
    let planner = Planner::start_on(&Cluster::shared().database(), &PLANNER);
    let mut chain = Chain::start_with(planner, 4);
    chain.workers[1].process.kill();
    heals(&chain, 1);
}

#[test]
fn the_reader_of_a_relay_that_leaves_has_its_place() {
    let mut chain = Chain::start(4);
    chain.workers[0].process.terminate();
    heals(&chain, 0);
}

#[test]
fn the_reader_of_a_relay_that_is_stopped_has_its_place_and_the_relay_comes_back() {
    let chain = Chain::start(5);
    chain.workers[1].process.signal(Signal::STOP);
    heals(&chain, 1);
    chain.workers[1].process.signal(Signal::CONT);
    let sources = chain.loaded(&chain.workers[1]);
    assert_eq!(sources[0], chain.sources[1]);
}

#[test]
fn relays_that_are_killed_together_are_passed_over_at_once() {
    let mut chain = Chain::start(5);
    for relay in [1, 2] {
        chain.workers[relay].process.kill();
    }
    for (at, worker) in chain.workers.iter().enumerate().filter(|(at, _)| ![1, 2].contains(at)) {
        let expected: &[usize] = if at == 3 { &[3, 1] } else { &[at] };
        let expected: Vec<_> = expected.iter().map(|source| chain.sources[*source].clone()).collect();
        assert_eq!(chain.loaded(worker), expected, "{at}");
    }
    // At once, or one after the other, as soon as the planner knows of both.
    assert!(chain.ends().iter().filter(|end| *end == "passed_on").count() >= 3, "{:?}", chain.ends());
}

#[test]
fn whoever_reads_through_a_slow_link_has_the_place_before_it() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&PLANNER));
    let seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    seed.serving();
    // An eighth of what comes to it.
    let slow =
        Worker::start("slow", &model, &planner.url(), &["--rfork-seed-max-gib-per-sec=0.00006", PATIENT]);
    slow.reading_from_a_seed();
    let start = |at| Worker::start(&format!("worker {at}"), &model, &planner.url(), &[SLOW, PATIENT]);
    let others: Vec<Worker> = (0..3).map(start).collect();
    let why = |end: &str| {
        let list = planner.request("GET", "/v2/events", &[]).json();
        let mut events = list["events"].as_array().unwrap().iter();
        events.any(|event| event["detail"].as_str().is_some_and(|detail| detail.ends_with(end))).then_some(())
    };
    until("that the reader of the first one is overtaken", || why("which falls behind"));
    until("that the slow one is", || why("which sends slowly"));
    for worker in others.iter().chain([&slow]) {
        let loaded = worker.loaded();
        assert_eq!((loaded.digest, loaded.bytes_from_seeds), (model.digest(), model.bytes));
    }
    let metrics = String::from_utf8(planner.request("GET", "/metrics", &[]).body).unwrap();
    for reason in ["source_falls_behind", "source_sends_slowly"] {
        let series = format!("rfork_planner_moves_total{{reason=\"{reason}\"}} ");
        let counted = metrics.lines().find_map(|line| line.strip_prefix(&series));
        assert!(counted.is_some_and(|counted| counted != "0"), "{counted:?}");
    }
    let snapshot = planner.snapshot();
    for (name, seed) in snapshot["seeds"].as_object().unwrap() {
        assert_eq!(seed["failures"].as_u64().unwrap_or_default(), 0, "{name}: moves are no failures");
    }
}

/// Everybody but the relay of this number is loaded; its reader went on with the relay's own source.
fn heals(chain: &Chain, relay: usize) {
    for (at, worker) in chain.workers.iter().enumerate().filter(|(at, _)| *at != relay) {
        let own = chain.sources[at].clone();
        let expected = if at == relay + 1 { vec![own, chain.sources[relay].clone()] } else { vec![own] };
        assert_eq!(chain.loaded(worker), expected, "{at}");
    }
    let ends = chain.ends();
    assert_eq!(ends.iter().filter(|end| *end == "passed_on").count(), 2, "{ends:?}");
    let snapshot = chain.planner.snapshot();
    assert_eq!(snapshot["seeds"][&chain.identity]["failures"].as_u64().unwrap_or_default(), 0, "{snapshot}");
}
