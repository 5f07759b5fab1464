//! Planners and what becomes of their database: a file that another planner has.

use rfork_tests::process::{Planner, Process};
use rfork_tests::until;

fn add(planner: &Planner, seed: usize) -> u16 {
    let ip = format!("10.0.0.{seed}");
    let headers = [("SEED_IP", ip.as_str()), ("SEED_PORT", "9"), ("SEED_RANK", "0")];
    let headers = [&headers[..], &[("SEED_KEY", "k"), ("SEED_REFCNT", "0")]].concat();
    planner.request("POST", "/add_seed", &headers).status
}

fn readyz(planner: &Planner) -> u16 {
    planner.request("GET", "/readyz", &[]).status
}

#[test]
fn a_second_planner_on_a_file_takes_over_when_the_first_ends() {
    let directory = tempfile::TempDir::new().unwrap();
    let url = format!("sqlite:{}", directory.path().join("planner.db").display());
    let mut first = Planner::start_on(&url, &["--drain-sec=0"]);
    assert_eq!(add(&first, 0), 200);
    let address = format!("{}:1223", rfork_tests::loopback());
    let host = format!("--host={}", address.trim_end_matches(":1223"));
    let second = Process::start("second", &["planner", &host, "--database-url", &url]);
    let ask = |path: &str| rfork_tests::http::request(&address, "GET", path, &[]);
    let told = until("what it waits for", || {
        let answer = ask("/readyz").ok()?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        text.contains("in use by another planner process").then_some((answer.status, text))
    });
    assert!(told.0 == 503 && told.1.contains("30s"), "{told:?}");
    assert_eq!(ask("/healthz").unwrap().status, 200);
    assert_eq!(readyz(&first), 200, "the first serves on");
    assert_eq!(first.process.terminate().code(), Some(0));
    second.wait_for("the planner listens");
    until("that it is ready", || (ask("/readyz").is_ok_and(|answer| answer.status == 200)).then_some(()));
    let known = ask("/debug/snapshot").unwrap().json();
    assert_eq!(known["seed_count"], 1);
}

#[test]
fn a_second_planner_on_a_file_ends_when_the_first_does_not() {
    let first = Planner::start(&[]);
    let url = first.database_url();
    let wait = ["planner", "--port=0", "--database-url", url, "--database-lock-wait-sec=1"];
    let mut second = Process::start("second", &wait);
    assert_eq!(second.wait().code(), Some(1));
    let log = second.log();
    let message = "is in use by another planner process; a SQLite file serves one planner";
    assert!(log.iter().any(|line| line.to_string().contains(message)), "{log:?}");
    assert_eq!(readyz(&first), 200);
}
