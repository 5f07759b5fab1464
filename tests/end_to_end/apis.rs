//! Which API a worker speaks with its planner: v2 where there is one, else v1.

use rfork_tests::front::Front;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::until;

const FAST: &str = "--rfork-heartbeat-interval-sec=0.2";

/// How often the planner answered 200 on this route.
fn answered(planner: &Planner, route: &str) -> u64 {
    let text = String::from_utf8(planner.request("GET", "/metrics", &[]).body).unwrap();
    let name = format!("rfork_planner_requests_total{{route=\"{route}\",status=\"200\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
}

fn fork(model: &Model, url: &str) {
    let mut fork = Worker::start("fork", model, url, &["--once"]);
    let loaded = fork.loaded();
    assert_eq!((loaded.source.as_str(), loaded.digest), ("seed", model.digest()));
    assert_eq!(fork.process.wait().code(), Some(0));
}

#[test]
fn workers_speak_v2_with_a_planner_that_does() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &planner.url(), &[FAST]);
    seed.serving();
    fork(&model, &planner.url());
    until("a heartbeat", || (answered(&planner, "/v2/seeds/heartbeat") > 0).then_some(()));
    for route in ["/v2/seeds", "/v2/leases", "/v2/leases/release"] {
        assert!(answered(&planner, route) > 0, "{route}");
    }
    for route in ["/add_seed", "/get_seed", "/put_seed"] {
        assert_eq!(answered(&planner, route), 0, "{route}");
    }
}

#[test]
fn workers_speak_v1_with_a_planner_that_has_no_other() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let front = Front::before(&planner.address);
    front.hide_v2();
    let seed = Worker::start("seed", &model, &front.url(), &[FAST]);
    seed.serving();
    fork(&model, &front.url());
    for route in ["/add_seed", "/get_seed", "/put_seed"] {
        assert!(answered(&planner, route) > 0, "{route}");
    }
}

#[test]
fn a_seed_goes_on_when_its_planner_is_put_back_to_a_version_without_v2() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let front = Front::before(&planner.address);
    let seed = Worker::start("seed", &model, &front.url(), &[FAST]);
    seed.serving();
    assert_eq!((answered(&planner, "/v2/seeds"), answered(&planner, "/add_seed")), (1, 0));
    front.hide_v2();
    // Its heartbeats do not end, and it is the same seed.
    until("heartbeats over v1", || (answered(&planner, "/add_seed") > 1).then_some(()));
    assert_eq!(planner.snapshot()["seed_count"], 1);
    fork(&model, &front.url());
}
