//! Workers that start together when nobody has the weights: one reads storage, the others read what it has read.

use rfork_tests::cluster::Cluster;
use rfork_tests::fakes::StoppingStorage;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::until;

const PLANNER: [&str; 2] = ["--fork-while-loading=on", "--lease-ttl-sec=3600"];
/// What a worker says that has the right to read storage.
const LEADS: &str = "this worker reads storage, and others wait for what it reads";

fn start(planner: &Planner, model: &Model, workers: usize) -> Vec<Worker> {
    let start = |at| Worker::start(&format!("worker {at}"), model, &planner.url(), &[]);
    (0..workers).map(start).collect()
}

/// Waits until all are loaded; gives how many of them read storage.
fn loaded(workers: &[Worker], model: &Model) -> usize {
    let from_storage = workers.iter().filter(|worker| {
        let loaded = worker.loaded();
        assert_eq!(loaded.digest, model.digest());
        let total: u64 = loaded.shares.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(total, model.bytes, "no byte is read twice: {loaded:?}");
        loaded.shares.iter().any(|(source, _)| source == "storage")
    });
    from_storage.count()
}

fn reads_storage_once(planner: &Planner) {
    let model = Model::new(8, 1);
    let workers = start(planner, &model, 6);
    assert_eq!(loaded(&workers, &model), 1);
    let events = planner.request("GET", "/v2/events?kind=leads", &[]).json();
    assert_eq!(events["events"].as_array().unwrap().len(), 1, "{events}");
    let leaders = workers.iter().filter(|worker| !worker.process.said(LEADS).is_empty());
    assert_eq!(leaders.count(), 1);
}

/// Workers that read through this storage.
fn start_slowly(planner: &Planner, model: &Model, workers: usize, storage: &StoppingStorage) -> Vec<Worker> {
    let start = |at| {
        let (name, flags) = (format!("worker {at}"), ["--rfork-seed-wait-sec=1"]);
        let worker = Worker::start_in(&storage.environment(), &name, model, &planner.url(), &flags);
        // It has loaded the library by then.
        worker.listens();
        worker
    };
    (0..workers).map(start).collect()
}

/// Which of them reads storage, when all the others have bytes that it has read; and from whom they have them.
fn leader(workers: &[Worker]) -> (usize, Vec<String>) {
    let reads_storage = |worker: &Worker| !worker.process.said(LEADS).is_empty();
    let leader = until("one reads storage", || workers.iter().position(reads_storage));
    let others = workers.iter().enumerate().filter(|(at, _)| *at != leader);
    (leader, others.map(|(_, worker)| worker.reading_from_a_seed()).collect())
}

#[test]
fn what_one_has_read_from_storage_the_others_have_soon() {
    let (planner, model) = (Planner::start(&PLANNER), Model::new(8, 1));
    let storage = StoppingStorage::after(model.bytes / 2);
    let workers = start_slowly(&planner, &model, 4, &storage);
    // All have bytes, and storage has not given the rest.
    let (leader, sources) = leader(&workers);
    assert!(sources.contains(&workers[leader].listens()), "{sources:?}");
    assert!(workers.iter().all(|worker| worker.process.said("loaded").is_empty()));
    storage.go_on();
    assert_eq!(loaded(&workers, &model), 1);
}

#[test]
fn when_who_reads_storage_is_killed_on_the_way_what_it_has_read_stays() {
    let (planner, model) = (Planner::start(&PLANNER), Model::new(8, 1));
    let storage = StoppingStorage::after(model.bytes / 2);
    let mut workers = start_slowly(&planner, &model, 4, &storage);
    let (leader, _) = leader(&workers);
    let mut leader = workers.swap_remove(leader);
    leader.process.kill();
    storage.go_on();
    assert_eq!(loaded(&workers, &model), 1, "one reads on");
    let shares = |worker: &Worker| worker.loaded().shares;
    let is_storage = |share: &(String, u64)| share.0 == "storage";
    let next = workers.iter().map(shares).find(|shares| shares.iter().any(is_storage)).unwrap();
    assert!(!next.iter().all(is_storage), "the first part is what the first one has read: {next:?}");
}

#[test]
fn workers_that_start_together_read_storage_once() {
    reads_storage_once(&Planner::start(&PLANNER));
}

#[test]
fn so_it_is_with_a_planner_on_postgres() {
    reads_storage_once(&Planner::start_on(&Cluster::shared().database(), &PLANNER));
}

#[test]
fn when_who_reads_storage_is_killed_the_next_one_reads_it() {
    let (planner, model) = (Planner::start(&PLANNER), Model::new(8, 1));
    let mut first = start(&planner, &model, 1).remove(0);
    first.process.wait_for(LEADS);
    let workers = start(&planner, &model, 3);
    first.process.kill();
    // None, if the first one was loaded by then and they have its bytes.
    assert!(loaded(&workers, &model) <= 1);
}
