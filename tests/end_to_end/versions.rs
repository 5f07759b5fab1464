//! The planner of the last release, on the schema of this one.

use std::path::PathBuf;

use rfork_tests::cluster::Cluster;
use rfork_tests::http::Answer;
use rfork_tests::process::{Planner, released_rfork};
use rfork_tests::{skip, until};
use tempfile::TempDir;

/// Seeds of one point each.
const SEEDS: usize = 8;

/// The program of that release; without it nothing is tested, and that is said.
fn released() -> Option<PathBuf> {
    let program = released_rfork();
    if program.is_none() {
        skip("RFORK_TEST_RELEASED is not set; tests/run sets it once there is a release");
    }
    program
}

fn register(planner: &Planner, rank: usize) {
    let rank = rank.to_string();
    let headers = [
        ("SEED_KEY", "k"),
        ("SEED_IP", "10.0.0.7"),
        ("SEED_PORT", "8000"),
        ("SEED_RANK", &rank),
        ("SEED_REFCNT", "0"),
    ];
    assert_eq!(planner.request("POST", "/add_seed", &headers).status, 200);
}

/// The rank of a granted seed and its lease.
fn acquire(planner: &Planner) -> Option<(String, String)> {
    let granted = planner.request("GET", "/get_seed", &[("SEED_KEY", "k")]);
    match granted.status {
        200 => Some((granted.header("seed_rank").to_owned(), granted.header("user_id").to_owned())),
        404 => None,
        status => panic!("{status}: {granted:?}"),
    }
}

fn with_lease(planner: &Planner, method: &str, path: &str, (rank, lease): &(String, String)) -> Answer {
    let headers = [("SEED_IP", "10.0.0.7"), ("SEED_PORT", "8000"), ("SEED_RANK", rank), ("USER_ID", lease)];
    planner.request(method, path, &headers)
}

fn renew(planner: &Planner, lease: &(String, String)) -> u16 {
    with_lease(planner, "POST", "/renew_seed_lease", lease).status
}

fn release(planner: &Planner, lease: &(String, String)) -> u16 {
    with_lease(planner, "POST", "/put_seed", lease).status
}

#[test]
fn the_released_planner_works_beside_this_one_on_postgres() {
    let Some(released) = released() else { return };
    let database = Cluster::shared().database();
    // The schema is this version's when the other one comes, and when it starts again.
    let new = Planner::start_on(&database, &["--v1-hold-sec=8"]);
    let mut old = Planner::start_version(&released, &database, &["--v1-hold-sec=8"]);
    for planner in [&new, &old] {
        assert_eq!(planner.request("GET", "/readyz", &[]).status, 200);
    }
    for rank in 0..SEEDS {
        register(if rank % 2 == 0 { &new } else { &old }, rank);
    }
    // Both lend from one stock, whoever registered the seed.
    let mut leases: Vec<_> = (0..SEEDS)
        .map(|turn| acquire(if turn % 2 == 0 { &old } else { &new }).expect("a seed is free"))
        .collect();
    leases.sort();
    leases.dedup_by(|a, b| a.0 == b.0);
    assert_eq!(leases.len(), SEEDS, "each seed is lent once");
    for (turn, lease) in leases.iter().enumerate() {
        let (one, other) = if turn % 2 == 0 { (&old, &new) } else { (&new, &old) };
        assert_eq!(renew(one, lease), 200);
        assert_eq!(renew(other, lease), 200);
    }
    old.kill_and_restart();
    assert_eq!(old.request("GET", "/readyz", &[]).status, 200);

    // Each has a client that waits; each is served by what the other frees.
    let mut taken = Vec::new();
    std::thread::scope(|scope| {
        for (waits, frees) in [(&new, &old), (&old, &new)] {
            let waiting = scope.spawn(|| acquire(waits));
            until("that a client waits", || {
                let metrics = waits.request("GET", "/metrics", &[]);
                let text = String::from_utf8(metrics.body).unwrap();
                text.lines().any(|line| line == "rfork_planner_requests_waiting 1").then_some(())
            });
            let freed = leases.pop().unwrap();
            assert_eq!(release(frees, &freed), 200);
            let served = waiting.join().unwrap().expect("who waited is served");
            assert_eq!(served.0, freed.0, "by the seed that is free now");
            assert_eq!(release(waits, &freed), 404, "an ended lease ends nothing more");
            taken.push(served);
        }
    });
    leases.append(&mut taken);
    for (turn, lease) in leases.iter().enumerate() {
        assert_eq!(release(if turn % 2 == 0 { &new } else { &old }, lease), 200);
    }
    for planner in [&new, &old] {
        let snapshot = planner.snapshot();
        assert_eq!((&snapshot["seed_count"], &snapshot["lease_count"]), (&SEEDS.into(), &0.into()));
    }
}

#[test]
fn the_released_planner_takes_over_a_file_of_this_one_and_gives_it_back() {
    let Some(released) = released() else { return };
    let directory = TempDir::with_prefix("rfork-test-versions-").unwrap();
    let database = format!("sqlite:{}", directory.path().join("planner.db").display());
    let mut new = Planner::start_on(&database, &[]);
    register(&new, 0);
    let lease = acquire(&new).expect("a seed is free");
    new.process.kill();

    let mut old = Planner::start_version(&released, &database, &[]);
    assert_eq!(old.request("GET", "/readyz", &[]).status, 200);
    assert_eq!(acquire(&old), None, "its one point is leased");
    assert_eq!(renew(&old, &lease), 200);
    register(&old, 1);
    let other = acquire(&old).expect("the other seed is free");
    assert_eq!(release(&old, &lease), 200);
    old.process.kill();

    new.restart();
    assert_eq!(new.request("GET", "/readyz", &[]).status, 200);
    assert_eq!(release(&new, &lease), 404);
    assert_eq!(renew(&new, &other), 200);
    let again = acquire(&new).expect("what the other version released is free");
    assert_eq!((again.0, acquire(&new)), (lease.0, None));
}
