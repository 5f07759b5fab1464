//! Workers that start together when nobody has the weights: one reads storage, the others read what it has read.

use rfork_tests::cluster::Cluster;
use rfork_tests::fakes::SlowStorage;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::until;

const PLANNER: [&str; 2] = ["--fork-while-loading=on", "--lease-ttl-sec=3600"];
/// What a worker says that has the right to read storage.
const LEADS: &str = "this worker reads storage; others wait for it";

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

/// Workers whose storage gives a MiB in two seconds.
fn start_slowly(planner: &Planner, model: &Model, workers: usize) -> Vec<Worker> {
    let storage = SlowStorage::of(512 << 10);
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
    let workers = start_slowly(&planner, &model, 4);
    let (leader, sources) = leader(&workers);
    assert!(sources.contains(&workers[leader].listens()), "{sources:?}");
    assert_eq!(loaded(&workers, &model), 1);
    // By the clock that all of them have.
    let at = |line: &serde_json::Value| line["timestamp"].as_str().unwrap().to_owned();
    let is_read = at(&workers[leader].process.wait_for("loaded"));
    for (_, worker) in workers.iter().enumerate().filter(|(at, _)| *at != leader) {
        let first =
            worker.process.said("progress").into_iter().find(|line| line["held_bytes"].as_u64() > Some(0));
        assert!(at(&first.unwrap()) < is_read, "it had to wait for the last byte from storage");
    }
}

#[test]
fn when_who_reads_storage_is_killed_on_the_way_what_it_has_read_stays() {
    let (planner, model) = (Planner::start(&PLANNER), Model::new(8, 1));
    let mut workers = start_slowly(&planner, &model, 4);
    let (leader, _) = leader(&workers);
    let mut leader = workers.swap_remove(leader);
    leader.process.kill();
    assert_eq!(loaded(&workers, &model), 1, "one reads on");
    let shares = |worker: &Worker| worker.loaded().shares;
    let next =
        workers.iter().find(|worker| shares(worker).iter().any(|(source, _)| source == "storage")).unwrap();
    assert_eq!(shares(next).len(), 2, "the first part is what the first one has read: {:?}", shares(next));
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
