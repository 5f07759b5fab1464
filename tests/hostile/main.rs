//! One hostile client, and a well-behaved one beside it, which must be served all the same.
//!
//! Each attack is tried at the limits that planners have by themselves and at small ones. In a test run the other client's
//! requests must all succeed. How long they take is a report, for it depends on the machine:
//!
//! ```sh
//! RFORK_HOSTILE=full cargo test --release --package rfork-tests --test hostile -- --nocapture --test-threads=1
//! ```
//!
//! attacks as fast as the machine can, and prints a line for each attack (`docs/security-testing.md`).

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

mod attacks;
mod held;
mod held_liars;
mod honest;
mod liars;
mod limits;
mod loading_liars;
mod planner;
mod readers;
mod seeds;
