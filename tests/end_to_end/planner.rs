//! The planner as a process.

use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Process, Worker, rfork};
use rfork_tests::until;
use rustix::process::Signal;

const SEED: [(&str, &str); 5] = [
    ("SEED_KEY", "k"),
    ("SEED_IP", "10.0.0.7"),
    ("SEED_PORT", "8000"),
    ("SEED_RANK", "3"),
    ("SEED_REFCNT", "0"),
];

#[test]
fn seeds_and_leases_survive_kill_9() {
    let mut planner = Planner::start(&[]);
    assert_eq!(planner.request("POST", "/add_seed", &SEED).status, 200);
    let granted = planner.request("GET", "/get_seed", &SEED[..1]);
    assert_eq!((granted.status, granted.header("lease_ttl_sec")), (200, "60"));
    let lease = granted.header("user_id").to_owned();
    assert_eq!(lease.len(), 32);
    planner.kill_and_restart();
    let snapshot = planner.snapshot();
    assert_eq!((&snapshot["seed_count"], &snapshot["lease_count"]), (&1.into(), &1.into()));
    assert!(!snapshot.to_string().contains(&lease), "a lease id is shown whole");
    let refused = planner.request("GET", "/get_seed", &SEED[..1]);
    assert_eq!(
        (refused.status, &refused.body[..]),
        (404, &b"no available seed"[..]),
        "its one point is leased"
    );
    let lease = [SEED[1], SEED[2], SEED[3], ("USER_ID", &lease)];
    assert_eq!(planner.request("POST", "/renew_seed_lease", &lease).status, 200);
    assert_eq!(planner.request("POST", "/put_seed", &lease).status, 200);
    assert_eq!(planner.request("POST", "/put_seed", &lease).status, 404);
    assert_eq!(planner.request("GET", "/get_seed", &SEED[..1]).status, 200);
}

#[test]
fn workers_find_a_planner_that_was_restarted() {
    let (model, mut planner) = (Model::new(2, 1), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &planner.url(), &["--rfork-heartbeat-interval-sec=0.2"]);
    let identity = seed.serving().identity;
    planner.kill_and_restart();
    let heard =
        |planner: &Planner| planner.snapshot()["seeds"][&identity]["last_heartbeat_ts"].as_f64().unwrap();
    let before = heard(&planner);
    until("a heartbeat to the new process", || (heard(&planner) > before).then_some(()));
    let fork = Worker::start("fork", &model, &planner.url(), &["--once"]);
    assert_eq!(fork.loaded().source, "seed");
}

#[test]
fn a_seed_that_is_killed_leaves_allocation_after_its_time() {
    let planner = Planner::start(&["--heartbeat-ttl-sec=1", "--heartbeat-sweep-sec=1"]);
    let model = Model::new(2, 1);
    let mut seed = Worker::start("seed", &model, &planner.url(), &["--rfork-heartbeat-interval-sec=0.2"]);
    seed.serving();
    seed.process.kill();
    until("that the sweep forgets it", || (planner.snapshot()["seed_count"] == 0).then_some(()));
    let worker = Worker::start("worker", &model, &planner.url(), &["--once"]);
    assert_eq!(worker.loaded().source, "storage");
}

#[test]
fn signals_end_it_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut planner = Planner::start(&[]);
        planner.process.signal(signal);
        assert_eq!(planner.process.wait().code(), Some(0), "{signal:?}");
        planner.process.wait_for("the planner has stopped");
    }
}

#[test]
fn it_serves_on_while_it_drains_and_a_second_signal_ends_that() {
    let mut planner = Planner::start(&["--drain-sec=3600"]);
    assert_eq!(planner.request("GET", "/readyz", &[]).status, 200);
    planner.process.signal(Signal::TERM);
    until("that it is not ready", || (planner.request("GET", "/readyz", &[]).status == 503).then_some(()));
    assert_eq!(planner.request("GET", "/healthz", &[]).status, 200);
    assert_eq!(planner.request("POST", "/add_seed", &SEED).status, 200);
    assert_eq!(planner.request("GET", "/get_seed", &SEED[..1]).status, 200);
    assert_eq!(planner.process.terminate().code(), Some(0));
}

#[test]
fn metrics_count_what_happened() {
    let planner = Planner::start(&[]);
    assert_eq!(planner.request("POST", "/add_seed", &SEED).status, 200);
    let granted = planner.request("GET", "/get_seed", &SEED[..1]);
    assert_eq!(planner.request("GET", "/get_seed", &SEED[..1]).status, 404);
    let lease = [SEED[1], SEED[2], SEED[3], ("USER_ID", granted.header("user_id"))];
    assert_eq!(planner.request("POST", "/renew_seed_lease", &lease).status, 200);
    assert_eq!(planner.request("GET", "/no/such/route?seed_key=k", &[]).status, 404);
    let metrics = planner.request("GET", "/metrics", &[]);
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let text = String::from_utf8(metrics.body).unwrap();
    for line in [
        r#"requests_total{route="/get_seed",status="200"} 1"#,
        r#"requests_total{route="/get_seed",status="404"} 1"#,
        r#"requests_total{route="other",status="404"} 1"#,
        r#"lease_changes_total{change="granted"} 1"#,
        r#"refusals_total{reason="all_busy"} 1"#,
        r#"lease_changes_total{change="renewed"} 1"#,
        r#"seed_changes_total{change="new"} 1"#,
        r#"leases{state="live"} 1"#,
        r#"capacity_points{state="live"} 1"#,
        r#"pool_connections_max{pool="writer"} 1"#,
        "requests_running 1",
    ] {
        assert!(text.contains(&format!("rfork_planner_{line}\n")), "{line} is not in:\n{text}");
    }
    assert!(
        !text.contains("10.0.0.7") && !text.contains("no/such"),
        "a label names what a client wrote:\n{text}"
    );
}

#[test]
fn a_second_planner_on_the_same_file_is_refused() {
    let directory = tempfile::TempDir::new().unwrap();
    let url = format!("sqlite:{}", directory.path().join("p.db").display());
    let arguments = ["planner", "--port=0", "--database-url", &url];
    let first = Process::start("first", &arguments);
    first.wait_for("the planner listens");
    let mut second = Process::start("second", &arguments);
    assert_eq!(second.wait().code(), Some(1));
    let error =
        second.wait_until("why", |line| line.as_str().is_some_and(|line| line.starts_with("error: ")));
    assert!(error.as_str().unwrap().contains("another planner"), "{error}");
}

#[test]
fn a_bad_setting_is_refused_by_name() {
    let cases = [
        (vec!["--port=70000"], "--port"),
        (vec!["--lease-ttl-sec=0"], "--lease-ttl-sec"),
        (vec!["--heartbeat-ttl-sec=x"], "--heartbeat-ttl-sec"),
        (vec!["--alloc-policy=best"], "balanced, fifo or lru"),
        (vec!["--database-url=mysql://u:SECRET@h/d"], "--database-url"),
        (vec!["--host=nowhere"], "--host"),
        (vec!["--database-url-file=/no/such/file"], "--database-url-file"),
        (vec!["--database-url=sqlite:/proc/no/such.db", "--port=0"], "/proc/no"),
    ];
    for (flags, expected) in cases {
        let output = std::process::Command::new(rfork()).arg("planner").args(&flags).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{flags:?}: {said}");
        assert!(!said.contains("SECRET"), "{flags:?}: {said}");
    }
}
