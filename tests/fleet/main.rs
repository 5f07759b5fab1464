//! Fleets that load together, without bytes: workers are tasks that ask real planners as workers do, and hold a count.
//!
//! A tenth of them dies, stands still or ends on the way, some seeds vanish, and each planner is killed once. Whoever lives is
//! loaded, by a time that what happened explains; no point of a seed is two workers' at once, nobody is offered bytes of
//! another root than it holds, and storage is read once while who reads it lives. Times are ticks of the fleet's own clock.
//!
//! Each test run tries 200 workers of 4 keys. 10,000 of 100 take some minutes, and print a line for the table:
//!
//! ```sh
//! RFORK_FLEET=full cargo test --release --package rfork-tests --test fleet -- --nocapture --test-threads=1
//! ```
//!
//! A run comes from one number, which is printed; `RFORK_FLEET_SEED` repeats its choices, though not its timing.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

mod answers;
mod asks;
mod bytes;
mod counts;
mod fleet;
mod plan;
mod points;
mod replicas;
mod wire;
mod worker;

use rfork_tests::cluster::Cluster;
use rfork_tests::process::Planner;

use fleet::Fleet;
use plan::Scale;

fn run(store: &str, start: impl FnOnce(&[&str]) -> Vec<Planner>) {
    let is_full = std::env::var_os("RFORK_FLEET").is_some_and(|how| how == "full");
    let scale = if is_full { Scale::FULL } else { Scale::SMALL };
    let number = std::env::var("RFORK_FLEET_SEED").ok().map(|text| text.parse().unwrap());
    let number = number.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("RFORK_FLEET_SEED={number}");
    let ttl = format!("--lease-ttl-sec={}", scale.lease_ttl.as_secs());
    // Nobody is at the addresses of these workers.
    let planners = start(&["--no-liveness-probe", &ttl]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Fleet::new(scale, &planners, number).run(store, planners));
}

#[test]
fn a_fleet_is_loaded_whatever_becomes_of_a_tenth_of_it_and_of_its_planner() {
    run("SQLite", |flags| vec![Planner::start(flags)]);
}

#[test]
fn a_fleet_is_loaded_whatever_becomes_of_a_tenth_of_it_and_of_two_planners_on_postgres() {
    let url = Cluster::shared().database();
    run("Postgres, two planners", |flags| (0..2).map(|_| Planner::start_on(&url, flags)).collect());
}
