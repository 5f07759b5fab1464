//! How much a seed sends: it runs inference, and its network is also that of its requests.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest time that one piece takes, whatever the rate: a rate of next to nothing is as good as none.
const MAX_PIECE_TIME: Duration = Duration::from_hours(1);

/// Spreads bytes over time so that their rate stays below a limit, over all connections together.
///
/// Each taking moves the time at which the next may begin, so the largest burst is one piece of each connection.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_sec: Option<f64>,
    next: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(super) fn new(bytes_per_sec: Option<f64>) -> Self {
        Self { bytes_per_sec, next: Mutex::new(None) }
    }

    /// Whether nothing is ever waited for.
    pub(super) fn is_unlimited(&self) -> bool {
        self.bytes_per_sec.is_none()
    }

    /// Waits until `bytes` may be sent.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_sec else { return };
        let wait = self.reserve(bytes, rate, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Reserves the time for `bytes` and says how far off it is. A taker that is cancelled while it waits has
    /// reserved in vain, which only slows the others by its one piece.
    fn reserve(&self, bytes: u64, rate: f64, now: Instant) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next.map_or(now, |next| next.max(now));
        // No rate, however small or absurd, panics here.
        let taken = Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(MAX_PIECE_TIME);
        *next = Some(start + taken.min(MAX_PIECE_TIME));
        start - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_rate_is_never_passed_by_more_than_one_piece(
            pieces in prop::collection::vec((1u64..1_000_000, 0u64..50), 1..50), rate in 1_000.0f64..1e9
        ) {
            let throttle = Throttle::new(Some(rate));
            let start = Instant::now();
            let (mut now, mut sent) = (start, 0u64);
            for (bytes, pause_ms) in pieces {
                now += Duration::from_millis(pause_ms);
                let begin = now + throttle.reserve(bytes, rate, now);
                // What was sent before this piece fits in the time before it.
                let allowed = (begin - start).as_secs_f64() * rate;
                prop_assert!(sent as f64 <= allowed * 1.000_001 + 1.0, "{sent} bytes, {allowed} allowed");
                sent += bytes;
                now = begin;
            }
        }
    }
    #[test]
    fn a_rate_that_makes_no_sense_waits_and_does_not_panic() {
        for rate in [f64::MIN_POSITIVE, 0.0, -1.0, f64::NAN] {
            let (throttle, now) = (Throttle::new(Some(rate)), Instant::now());
            assert_eq!(throttle.reserve(1 << 20, rate, now), Duration::ZERO, "the first goes at once");
            assert_eq!(throttle.reserve(1, rate, now), MAX_PIECE_TIME, "{rate}");
        }
    }
}
