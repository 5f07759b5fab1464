//! How much a call reads of a worker in a chain. Pure.
//!
//! Others read what it has, and bytes are heard of, only when a call ends: long calls cost each link of the chain their time, and
//! a source that brings nothing for seconds is left. Short ones cost a question to the source each.

use std::time::Duration;

use super::plan::LIMITS;

/// How long a call should last, in milliseconds.
const WANTED_MS: u64 = 250;
/// The first call, and the least of all.
const LEAST_BYTES: u64 = 16 << 20;

/// What the next call reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    bytes: u64,
}

impl Pace {
    pub(super) fn begin() -> Self {
        Self { bytes: LEAST_BYTES }
    }

    /// As many bytes, or what a chunk has more.
    pub(super) fn bytes(self) -> u64 {
        self.bytes
    }

    /// A call of so many bytes has lasted so long. The next is half as large at least, and twice at most:
    /// one that was odd counts for little.
    pub(super) fn lasted(&mut self, bytes: u64, elapsed: Duration) {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let wanted = bytes.saturating_mul(WANTED_MS) / millis;
        let next = wanted.clamp(self.bytes / 2, self.bytes.saturating_mul(2));
        // A call that read little, since there was no more, says nothing against longer ones.
        if next > self.bytes || bytes >= self.bytes / 2 {
            self.bytes = next.clamp(LEAST_BYTES, LIMITS.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How long a link of so many MiB a second takes for the next calls, when there is always enough to read.
    fn calls(pace: &mut Pace, mib_per_sec: u64) -> Vec<u64> {
        let mut lasted = Vec::new();
        for _ in 0..12 {
            let millis = pace.bytes() * 1_000 / (mib_per_sec << 20);
            pace.lasted(pace.bytes(), Duration::from_millis(millis));
            lasted.push(millis);
        }
        lasted
    }

    #[test]
    fn calls_last_about_a_quarter_of_a_second_on_any_link() {
        let mut pace = Pace::begin();
        assert_eq!(calls(&mut pace, 400).last(), Some(&250));
        // Twenty times as fast, then as slow.
        assert_eq!(calls(&mut pace, 8_000).last(), Some(&128), "as much as a call may read");
        assert_eq!(calls(&mut pace, 100).last(), Some(&250));
        assert_eq!(calls(&mut pace, 10).last(), Some(&1_600), "as little as it does");
    }

    #[test]
    fn a_call_for_which_there_was_little_to_read_shortens_no_other() {
        let mut pace = Pace::begin();
        calls(&mut pace, 400);
        let before = pace;
        pace.lasted(1 << 20, Duration::from_millis(100));
        assert_eq!(pace, before);
    }

    proptest! {
        #[test]
        fn whatever_calls_last_the_next_is_within_bounds(calls in prop::collection::vec((any::<u64>(), any::<u64>()), 0..50)) {
            let mut pace = Pace::begin();
            for (bytes, millis) in calls {
                pace.lasted(bytes, Duration::from_millis(millis));
                prop_assert!((LEAST_BYTES..=LIMITS.bytes).contains(&pace.bytes()));
            }
        }
    }
}
