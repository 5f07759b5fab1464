//! The least that a reader takes, so that nobody holds a place by taking a byte, or asking for a chunk, now and then.
//!
//! Of a reader that is sent something only the time counts for which its socket is full: not while the seed throttles, or
//! has nothing to send ([`Pace`]). One that has been sent all that it asked for has paid for some time by that ([`Paid`]).

use std::time::Duration;

/// How a connection takes what it is sent. Pure.
#[derive(Debug)]
pub(super) struct Pace {
    least_bytes_per_sec: u64,
    /// For how long its socket is full before its rate is looked at.
    window: Duration,
    full: Duration,
    taken_bytes: u64,
}

/// A reader that takes too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it took {taken_bytes} bytes while its socket was full for {full_ms} ms; {least_bytes_per_sec} a second are the least"
)]
pub(super) struct TooSlow {
    taken_bytes: u64,
    full_ms: u64,
    least_bytes_per_sec: u64,
}

impl Pace {
    pub(super) fn new(least_bytes_per_sec: u64, window: Duration) -> Self {
        Self { least_bytes_per_sec, window, full: Duration::ZERO, taken_bytes: 0 }
    }

    /// It took these bytes after its socket was full for so long.
    ///
    /// # Errors
    /// [`TooSlow`] when that is less than the least over a whole window. A faster one begins a new window, so that what it
    /// took before does not count for long.
    pub(super) fn took(&mut self, bytes: usize, full: Duration) -> Result<(), TooSlow> {
        self.taken_bytes = self.taken_bytes.saturating_add(bytes as u64);
        self.full = self.full.saturating_add(full);
        if self.full < self.window {
            return Ok(());
        }
        let least = u128::from(self.least_bytes_per_sec) * self.full.as_millis() / 1_000;
        if u128::from(self.taken_bytes) < least {
            return Err(TooSlow {
                taken_bytes: self.taken_bytes,
                full_ms: u64::try_from(self.full.as_millis()).unwrap_or(u64::MAX),
                least_bytes_per_sec: self.least_bytes_per_sec,
            });
        }
        (self.full, self.taken_bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

/// For how long a reader that asks for nothing keeps its place although others want it: what it took pays, at the least
/// rate, for a window at most. So a place costs the same whether its reader is slow or idle. Pure.
#[derive(Debug)]
pub(super) struct Paid {
    least_bytes_per_sec: u64,
    window: Duration,
    left: Duration,
}

impl Paid {
    pub(super) fn new(least_bytes_per_sec: u64, window: Duration) -> Self {
        Self { least_bytes_per_sec: least_bytes_per_sec.max(1), window, left: Duration::ZERO }
    }

    /// It took these bytes.
    pub(super) fn took(&mut self, bytes: u64) {
        let ms = bytes.saturating_mul(1_000) / self.least_bytes_per_sec;
        self.left = self.left.saturating_add(Duration::from_millis(ms)).min(self.window);
    }

    /// It asked for nothing for so long.
    pub(super) fn idled(&mut self, idle: Duration) {
        self.left = self.left.saturating_sub(idle);
    }

    /// How long it may go on so.
    pub(super) fn left(&self) -> Duration {
        self.left
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)] // Some thousand bytes.

    use proptest::prelude::*;

    use super::*;

    const LEAST: u64 = 1_000;
    const WINDOW: Duration = Duration::from_secs(10);

    proptest! {
        #[test]
        fn who_takes_the_least_stays_whatever_its_pieces(
            pieces in prop::collection::vec((0u64..5_000, 0u64..3_000), 0..200)
        ) {
            let mut pace = Pace::new(LEAST, WINDOW);
            for (full_ms, more) in pieces {
                let bytes = (full_ms * LEAST).div_ceil(1_000) + more;
                prop_assert_eq!(pace.took(bytes as usize, Duration::from_millis(full_ms)), Ok(()));
            }
        }

        #[test]
        fn who_takes_less_goes_within_two_windows(
            burst in 0usize..1_000_000, pieces in prop::collection::vec(1u64..5_000, 20..200)
        ) {
            let mut pace = Pace::new(LEAST, WINDOW);
            // What it took at first, while its socket had room, ends with the first window.
            prop_assert_eq!(pace.took(burst, Duration::ZERO), Ok(()));
            let (mut full, mut gone) = (Duration::ZERO, false);
            for full_ms in pieces {
                full += Duration::from_millis(full_ms);
                // Nine tenths of the least.
                gone = pace.took((full_ms * LEAST * 9 / 10_000) as usize, Duration::from_millis(full_ms)).is_err();
                if gone {
                    break;
                }
            }
            prop_assert!(gone || full < 2 * WINDOW + Duration::from_secs(5), "{full:?}");
        }

        #[test]
        fn who_idles_has_paid_for_no_more_than_a_window_nor_than_it_took(
            steps in prop::collection::vec((0u64..20_000, 0u64..20_000), 0..100)
        ) {
            let mut paid = Paid::new(LEAST, WINDOW);
            let (mut taken, mut idled) = (0, Duration::ZERO);
            for (bytes, idle_ms) in steps {
                paid.took(bytes);
                taken += bytes;
                prop_assert!(paid.left() <= WINDOW);
                // It keeps its place for as long as it has paid, and loses it then.
                let idle = Duration::from_millis(idle_ms).min(paid.left());
                paid.idled(idle);
                idled += idle;
                prop_assert!(idled.as_millis() <= u128::from(taken) * 1_000 / u128::from(LEAST));
            }
        }
    }
}
