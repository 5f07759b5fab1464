//! Support for the end-to-end tests: real processes, models to load, and peers that misbehave.
//!
//! Everything is on loopback and ends with the test. What a test waits for is a condition with a deadline,
//! never a pause.

// These are parts of tests: what fails here fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub mod balancer;
pub mod by_address;
pub mod cluster;
pub mod fake_clock;
pub mod fakes;
pub mod front;
pub mod fuzz;
pub mod history;
pub mod http;
pub mod load;
pub mod model;
pub mod network;
pub mod peer;
pub mod pooler;
pub mod process;
pub mod proxy;
pub mod root;

/// How long anything may take that a test waits for: what takes longer hangs. A slow machine under load needs a tenth.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// A loopback address that is likely nobody else's: all of 127.0.0.0/8 leads to this machine. A port of it stays free
/// while who listened there is away; one of 127.0.0.1 may be taken by any connection that is made meanwhile.
pub fn loopback() -> Ipv4Addr {
    Ipv4Addr::new(127, fastrand::u8(1..=254), fastrand::u8(..), fastrand::u8(1..=254))
}

/// Says in one line that this test is skipped, and why. It is not kept back as other output of tests is that pass.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or_default());
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`DEADLINE`].
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
