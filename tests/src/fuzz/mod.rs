//! Hostile input for what parses: entry points that take any bytes, and promises that they hold their code to.
//!
//! A fuzzer drives them (`tests/fuzz/run`), which takes a compiler that instruments; and the test `fuzz` does, on any, with
//! a committed corpus and what [`mutate`] makes of it. Both call the same functions. An entry point panics when a promise
//! is broken, and so does the code itself where it is: both are findings.
//!
//! What all of them promise: nothing panics, hangs, or takes more memory than the input's size allows; what is read and
//! written again is read as the same; an error is one line of a bounded length, however hostile the text that it quotes.

use std::fmt::Display;
use std::path::Path;

use rfork_protocol::shown::hidden;
use tempfile::TempDir;

pub mod checkpoint;
pub mod credentials;
pub mod issuer_keys;
pub mod key_files;
pub mod metadata;
pub mod mutate;
mod planner;
pub mod planner_calls;
pub mod settings_file;
mod tcp;
pub mod tcp_client;
pub mod tcp_server;
pub mod token_file;
pub mod v1_headers;
pub mod v2_bodies;
pub mod v2_queries;

/// An entry point.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Tries one input.
    pub run: fn(&[u8]),
    /// Inputs that a test run makes, beside the corpus.
    pub executions: usize,
    /// Bytes of memory that it may take at most for an input of so many.
    pub most_bytes: fn(usize) -> usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    metadata::TARGET,
    v1_headers::TARGET,
    v2_bodies::TARGET,
    v2_queries::TARGET,
    checkpoint::TARGET,
    settings_file::TARGET,
    tcp_server::TARGET,
    tcp_client::TARGET,
    planner_calls::TARGET,
    token_file::TARGET,
    key_files::TARGET,
    issuer_keys::TARGET,
    credentials::TARGET,
];

/// Runs something with a directory that is the thread's own: to make one for each input takes longer than all else.
fn in_directory<T>(run: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static HOME: TempDir = TempDir::with_prefix("rfork-fuzz-").unwrap();
    }
    HOME.with(|home| run(home.path()))
}

/// The longest text of an error that says what is wrong with some input, in bytes.
const MOST_ERROR_BYTES: usize = 8 << 10;

/// An error is a line that can be logged and shown, whatever its input was.
///
/// # Panics
/// When it is not.
fn is_one_line(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.chars().any(hidden), "an error passes on what moves a cursor or ends a line: {text:?}");
    assert!(text.len() <= MOST_ERROR_BYTES, "an error of {} bytes: {text:?}", text.len());
}
