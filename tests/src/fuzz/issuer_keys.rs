//! The keys that an issuer of JWTs tells: a JWKS document.

use rfork_planner::identity::jwt::KeySet;
use serde_json::Value;

use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "issuer_keys", run, executions: 4_000, most_bytes: |input| 128 * input + (64 << 10) };

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    let read = KeySet::read(data);
    if let Err(error) = &read {
        is_one_line(error);
        return;
    }
    let told: Value = serde_json::from_slice(data).unwrap();
    let keys = told["keys"].as_array().unwrap();
    assert!(keys.len() <= 64, "{} keys are taken", keys.len());
    // What anybody knows who knows the document signs nothing.
    assert!(keys.iter().any(|key| key["kty"] != "oct"), "it has symmetric keys alone");
}
