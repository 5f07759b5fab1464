//! The client that must not notice.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_tests::http::{Answer, request_by_tls, request_from};
use rustls::ClientConfig;

/// Its address; nobody else's here.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 71, 0, 1);
const KEY: (&str, &str) = ("SEED_KEY", "honest");
const SEED: [(&str, &str); 3] = [("SEED_IP", "127.71.0.2"), ("SEED_PORT", "8000"), ("SEED_RANK", "0")];
/// What it does once: a heartbeat, a lease, its release, a probe and a scrape.
const REQUESTS: [(&str, &str); 5] = [
    ("POST", "/add_seed"),
    ("GET", "/get_seed"),
    ("POST", "/put_seed"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
];

/// Registers one more seed.
///
/// # Panics
/// When that does not succeed.
pub(crate) fn registers(planner: &str, number: u64) {
    let rank = (1 + number).to_string();
    let seed = [KEY, SEED[0], SEED[1], ("SEED_RANK", rank.as_str()), ("SEED_REFCNT", "0")];
    let answer = request_from(FROM, planner, "POST", "/add_seed", &seed).unwrap();
    assert_eq!(answer.status, 200, "seed {number}: {}", String::from_utf8_lossy(&answer.body));
}

/// Does all of it so many times, and gives how long 99 of 100 requests took at most.
///
/// # Panics
/// When one does not succeed.
pub(crate) fn rounds(planner: &str, rounds: usize) -> Duration {
    rounds_by(|method, path, headers| request_from(FROM, planner, method, path, headers), rounds)
}

/// The same with a token.
///
/// # Panics
/// When one request does not succeed.
pub(crate) fn rounds_with(token: &str, planner: &str, rounds: usize) -> Duration {
    let shown = format!("Bearer {token}");
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let headers = [headers, &[("Authorization", &shown)]].concat();
        request_from(FROM, planner, method, path, &headers)
    };
    rounds_by(ask, rounds)
}

/// The same at a planner that speaks TLS.
///
/// # Panics
/// When one request does not succeed.
pub(crate) fn rounds_by_tls(tls: &Arc<ClientConfig>, planner: &str, rounds: usize) -> Duration {
    rounds_by(|method, path, headers| request_by_tls(tls, FROM, planner, method, path, headers), rounds)
}

fn rounds_by(
    ask: impl Fn(&str, &str, &[(&str, &str)]) -> std::io::Result<Answer>,
    rounds: usize,
) -> Duration {
    let mut took = Vec::new();
    let mut lease = String::new();
    for round in 0..rounds {
        for (method, path) in REQUESTS {
            let mut headers = vec![KEY, ("SEED_REFCNT", "0"), ("USER_ID", lease.as_str())];
            headers.extend(SEED);
            let begun = Instant::now();
            let answer = ask(method, path, &headers);
            took.push(begun.elapsed());
            let answer = answer.unwrap_or_else(|error| panic!("round {round}, {path}: {error}"));
            assert_eq!(
                answer.status,
                200,
                "round {round}, {path}: {}",
                String::from_utf8_lossy(&answer.body)
            );
            if path == "/get_seed" {
                answer.header("user_id").clone_into(&mut lease);
            }
        }
    }
    took.sort_unstable();
    took[took.len() * 99 / 100]
}
