//! When the database is asked again for what it holds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time from one answer to the next question.
const PAUSE: Duration = Duration::from_secs(1);
/// Counting takes at most one part in so many of the time, however often somebody scrapes.
const SHARE: u32 = 20;
/// After this a question whose asker went away is asked again.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// Lets one asker through at a time, and none while the last answer is fresh.
#[derive(Debug, Default)]
pub(super) struct Due(Mutex<Option<Instant>>);

impl Due {
    /// Whether it is time to ask; who is told so asks, and then says so.
    pub(super) fn claim(&self, now: Instant) -> bool {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = next.is_none_or(|next| now >= next);
        if due {
            *next = now.checked_add(FORGOTTEN);
        }
        due
    }

    /// The question of `begun` has its answer.
    pub(super) fn done(&self, begun: Instant, now: Instant) {
        let pause = PAUSE.max((now - begun) * SHARE);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now.checked_add(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asks_at_a_time_and_rests_long_after_a_long_question() {
        let (due, start) = (Due::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(due.claim(at(0)));
        assert!(!due.claim(at(1)), "somebody asks");
        due.done(at(0), at(10));
        assert!(!due.claim(at(1_009)));
        assert!(due.claim(at(1_010)));
        due.done(at(1_010), at(1_510));
        assert!(!due.claim(at(11_509)), "half a second is a twentieth of ten");
        assert!(due.claim(at(11_510)));
        assert!(!due.claim(at(21_509)), "its asker may still be there");
        assert!(due.claim(at(21_510)));
    }
}
