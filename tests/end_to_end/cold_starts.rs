//! Workers that start together when nobody has the weights: one reads storage, the others wait for it.

use rfork_tests::cluster::Cluster;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};

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
