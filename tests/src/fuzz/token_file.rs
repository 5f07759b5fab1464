//! The planner's file of tokens and issuers.

use std::fs;

use rfork_planner::identity::TokenFile;

use super::{Target, in_directory, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "token_file", run, executions: 4_000, most_bytes: |input| 512 * input + (64 << 10) };

/// How tokens of the corpus begin.
const SECRET: &str = "SECRET-";

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    let read = in_directory(|home| {
        let path = home.join("tokens.toml");
        fs::write(&path, data).unwrap();
        TokenFile::read(&path)
    });
    match read {
        Ok(file) => {
            assert!(file.tokens.find(b"nobody-0123456789abcdef").is_none());
            assert!(file.tokens.find(b"").is_none(), "nobody has nothing");
            assert!(!format!("{file:?}").contains(SECRET), "a token is kept");
        }
        Err(error) => {
            is_one_line(&error);
            assert!(!error.to_string().contains(SECRET), "an error tells a token: {error}");
        }
    }
}
