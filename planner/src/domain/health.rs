//! When a seed that failed is offered again.

/// What is known of a seed's failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Failures since it last proved to be well, or went without any for long.
    pub failures: u32,
    /// It is suspect, and not offered, before this time, Unix milliseconds; 0 for never.
    pub suspect_until_ms: i64,
}

/// How long a suspect seed is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// After the first failure, in milliseconds; each further one doubles it.
    pub first_ms: i64,
    /// At most, in milliseconds.
    pub most_ms: i64,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { first_ms: 10_000, most_ms: 300_000 }
    }
}

impl BackOff {
    /// The pause after so many failures, in milliseconds.
    pub fn pause_ms(self, failures: u32) -> i64 {
        let doublings = failures.saturating_sub(1).min(62);
        self.first_ms.saturating_mul(1_i64 << doublings).min(self.most_ms)
    }
}

impl Health {
    /// Whether it is not offered at `now_ms`.
    pub fn is_suspect(self, now_ms: i64) -> bool {
        self.suspect_until_ms > now_ms
    }

    /// After a failure. Further ones while it is suspect already are those of the same trouble, seen by several
    /// readers, and change nothing. Those before a time without any, as long as the longest pause, are forgotten: a seed
    /// of which nobody ever tells that it is well is not to pay for all that ever was.
    #[must_use]
    pub fn failed(self, now_ms: i64, back_off: BackOff) -> Self {
        if self.is_suspect(now_ms) {
            return self;
        }
        let since_ms = now_ms.saturating_sub(self.suspect_until_ms);
        let failures = if since_ms >= back_off.most_ms { 1 } else { self.failures.saturating_add(1) };
        Self { failures, suspect_until_ms: now_ms.saturating_add(back_off.pause_ms(failures)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let back_off = BackOff { first_ms: 10, most_ms: 65 };
        let mut health = Health::default();
        let mut now = 1_000;
        for pause in [10, 20, 40, 65, 65] {
            health = health.failed(now, back_off);
            assert_eq!(health.suspect_until_ms, now + pause);
            assert_eq!(health.failed(now + pause - 1, back_off), health, "the same trouble");
            now += pause;
            assert!(!health.is_suspect(now));
        }
    }

    #[test]
    fn what_is_long_past_does_not_count() {
        let back_off = BackOff { first_ms: 10, most_ms: 65 };
        let twice = Health { failures: 2, suspect_until_ms: 1_000 };
        assert_eq!(twice.failed(1_064, back_off), Health { failures: 3, suspect_until_ms: 1_064 + 40 });
        assert_eq!(twice.failed(1_065, back_off), Health { failures: 1, suspect_until_ms: 1_065 + 10 });
        assert_eq!(Health::default().failed(1, back_off).failures, 1, "whatever the clock says");
    }

    proptest! {
        #[test]
        fn a_pause_is_bounded(failures in any::<u32>(), first_ms in 1i64..i64::MAX, most_ms in 1i64..i64::MAX) {
            let pause = BackOff { first_ms, most_ms }.pause_ms(failures);
            prop_assert!(pause >= 1 && pause <= most_ms);
        }
    }
}
