//! When a source that brings no byte is given up: PURE.
//!
//! A worker that waits for its source may wait for the whole chain before it. If everybody took the first silence for the
//! source's fault, everybody would ask for another one at once. So what counts depends on who could have sent something.

use std::time::Duration;

use crate::engine::SourceState;

/// A source that says nothing of itself for so long, two signs of life, is not heard.
pub(super) const UNHEARD: Duration = Duration::from_secs(2);

/// How long is waited for a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StallRule {
    /// How long a source may owe bytes without one that comes.
    pub(super) stall: Duration,
    /// For how much longer a source is waited for that waits as well. It bounds a circle of workers that wait for each
    /// other.
    pub(super) limit: Duration,
    /// How long a source that has nothing new is waited for, whatever it says of itself.
    pub(super) longest: Duration,
}

impl Default for StallRule {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(3),
            limit: Duration::from_secs(10),
            longest: Duration::from_mins(1),
        }
    }
}

impl StallRule {
    /// The same, with up to a quarter more of patience by chance: readers that met the same fault do not act at once.
    pub(super) fn jittered(self) -> Self {
        Self { stall: self.stall.mul_f64(1.0 + fastrand::f64() / 4.0), ..self }
    }

    /// Whether a source has stalled: no byte has come for `silent`.
    ///
    /// - A source that owes something that it announced holds it: only the way to it, or the source itself, can be the
    ///   reason. It gets `stall`, and its own wait on top, up to `limit`: a machine that gets nothing may send nothing.
    /// - One that owes nothing has passed everything on. While bytes come to it, it fares well, though a large chunk may
    ///   take longer than `stall`. It is given up when it has waited itself for longer than whoever is nearer to the fault
    ///   takes to leave.
    /// - One that says nothing of itself any more, for `unheard`, hangs or is cut off, whether or not it owes something when
    ///   that happens. It gets `stall` from its last sign, and [`UNHEARD`] at least.
    pub(super) fn is_over(self, silent: Duration, source: SourceState, unheard: Option<Duration>) -> bool {
        if silent >= self.stall && unheard.is_some_and(|unheard| unheard >= self.stall.max(UNHEARD)) {
            return true;
        }
        let own = Duration::from_millis(source.sign.silent_ms.into());
        if source.owes {
            silent >= self.stall + own.min(self.limit)
        } else {
            silent >= self.longest || (silent >= self.stall && own >= self.stall + self.limit)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rfork_protocol::frame::SignOfLife;

    use super::*;

    fn source(owes: bool, silent_ms: u64) -> SourceState {
        let silent_ms = u32::try_from(silent_ms).unwrap();
        SourceState { sign: SignOfLife { has_source: true, silent_ms }, signed: None, owes }
    }

    const RULE: StallRule = StallRule {
        stall: Duration::from_secs(3),
        limit: Duration::from_secs(10),
        longest: Duration::from_mins(1),
    };
    const STALL: Duration = RULE.stall;
    const SECOND: Duration = Duration::from_secs(1);
    /// It has just given a sign.
    const HEARD: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_source_that_hangs_is_left_first_by_who_is_next_to_it() {
        // It says nothing of itself any more; its reader waits for what was announced.
        assert!(!RULE.is_over(STALL.saturating_sub(SECOND), source(true, 0), HEARD));
        assert!(RULE.is_over(STALL, source(true, 0), HEARD));
        // Whoever reads from that reader is told that it waits, and waits as well.
        assert!(!RULE.is_over(STALL, source(false, 3_000), HEARD));
        assert!(!RULE.is_over(STALL + 9 * SECOND, source(false, 12_000), HEARD));
    }

    #[test]
    fn a_source_that_hangs_is_left_even_if_it_had_passed_everything_on() {
        let (nothing_owed, said_last) = (source(false, 20), STALL.saturating_sub(SECOND));
        assert!(!RULE.is_over(STALL, nothing_owed, Some(said_last)));
        assert!(!RULE.is_over(said_last, nothing_owed, Some(STALL)), "bytes come");
        assert!(RULE.is_over(STALL, nothing_owed, Some(STALL)));
        // Signs come once a second: less patience than for two of them would be for none.
        let hasty = StallRule { stall: SECOND / 2, ..RULE };
        assert!(!hasty.is_over(SECOND, nothing_owed, Some(SECOND)));
        assert!(hasty.is_over(SECOND, nothing_owed, Some(UNHEARD)));
    }

    #[test]
    fn a_large_chunk_on_its_way_to_the_source_is_no_stall() {
        assert!(!RULE.is_over(13 * SECOND, source(false, 20), HEARD));
    }

    #[test]
    fn a_circle_of_two_ends() {
        // Each says to the other for how long it got nothing, which is as long as the other did.
        let ends = (0..60_000).step_by(100).find(|silent_ms| {
            RULE.is_over(Duration::from_millis(*silent_ms), source(false, *silent_ms), HEARD)
        });
        assert_eq!(ends.map(Duration::from_millis), Some(STALL + RULE.limit));
    }

    proptest! {
        /// Whatever a source says, nobody waits without a limit; and nobody leaves before `STALL`.
        #[test]
        fn every_silence_ends(
            silent_ms in 0u64..200_000, own_ms in 0u64..200_000, owes: bool, unheard_ms in prop::option::of(0u64..200_000)
        ) {
            let silent = Duration::from_millis(silent_ms);
            let unheard = unheard_ms.map(Duration::from_millis);
            let stalled = RULE.is_over(silent, source(owes, own_ms), unheard);
            prop_assert!(silent < RULE.longest || stalled);
            prop_assert!(silent >= STALL || !stalled);
            // Longer silence never makes a source look better.
            prop_assert!(!stalled || RULE.is_over(silent + SECOND, source(owes, own_ms), unheard));
        }
    }
}
