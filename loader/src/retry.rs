//! Pauses between tries: they double up to a bound, and no two workers pause alike.

use std::time::Duration;

/// Exponential back-off with jitter.
///
/// A thousand workers that met the same fault at the same time must not come back at the same time, so each
/// pause is drawn evenly from the upper half of its nominal length.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Starts at about `first` and doubles up to about `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first.min(longest), longest }
    }

    /// Whether the pauses grow no more.
    pub(crate) fn is_longest(&self) -> bool {
        self.next == self.longest
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let nominal = self.next;
        self.next = nominal.saturating_mul(2).min(self.longest);
        jittered(nominal)
    }
}

/// A length drawn evenly from the upper half of `nominal`.
pub(crate) fn jittered(nominal: Duration) -> Duration {
    nominal.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The same, but of its last tenth: for what is to come in time.
pub(crate) fn apart(nominal: Duration) -> Duration {
    nominal.mul_f64(0.9) + jittered(nominal.mul_f64(0.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_grow_and_stay_within_their_bounds(first in 1u64..10_000, longest in 1u64..100_000) {
            let (first, longest) = (Duration::from_millis(first), Duration::from_millis(longest));
            let mut backoff = Backoff::new(first, longest);
            let mut nominal = first.min(longest);
            for _ in 0..40 {
                let pause = backoff.pause();
                prop_assert!(pause >= nominal.mul_f64(0.499) && pause <= nominal, "{pause:?} of {nominal:?}");
                nominal = (nominal * 2).min(longest);
            }
        }
    }
}
