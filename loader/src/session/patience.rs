//! How long a load goes on asking for a seed.

use std::time::{Duration, Instant};

use crate::retry::Backoff;

/// Pauses between two questions while a worker waits for a seed: from here to there.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long a load may wait for seeds. Only the time without one counts, and, in a chain, since a chunk came last: there are
/// only so many of those.
pub(super) struct Patience {
    limit: Duration,
    /// What was held when time was counted anew.
    held_bytes: u64,
    /// Time spent waiting before `since`.
    waited: Duration,
    /// When the wait began that lasts.
    since: Option<Instant>,
    backoff: Backoff,
    /// Whether something was asked for since the wait began.
    asked: bool,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { limit, held_bytes: 0, waited: Duration::ZERO, since: None, backoff, asked: false }
    }

    /// The limit is `limit` from now on, whatever was waited before.
    pub(super) fn extend(&mut self, limit: Duration) {
        *self = Self { held_bytes: self.held_bytes, ..Self::new(limit) };
    }

    /// So much is held. If that is more than ever, what was waited before does not count any more.
    pub(super) fn progress(&mut self, held_bytes: u64) {
        if held_bytes > self.held_bytes {
            *self = Self { held_bytes, ..Self::new(self.limit) };
        }
    }

    /// A wait begins, or lasts.
    pub(super) fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// There is a seed: no time counts, and the next wait begins with short pauses.
    pub(super) fn rest(&mut self) {
        *self = Self { waited: self.waited(), held_bytes: self.held_bytes, ..Self::new(self.limit) };
    }

    pub(super) fn waited(&self) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }

    /// How long to wait before the next question: the first one is asked at once.
    pub(super) fn before_the_next(&mut self) -> Duration {
        if std::mem::replace(&mut self.asked, true) { self.pause() } else { Duration::ZERO }
    }

    /// The next pause, within what is left.
    pub(super) fn pause(&mut self) -> Duration {
        self.backoff.pause().min(self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn waits(patience: &mut Patience) {
        let before = patience.waited();
        patience.wait();
        while patience.waited() == before {
            std::thread::yield_now();
        }
    }

    #[test]
    fn waits_add_up_until_more_is_held_than_ever() {
        let mut patience = Patience::new(HOUR);
        patience.progress(5);
        waits(&mut patience);
        patience.rest();
        let once = patience.waited();
        waits(&mut patience);
        patience.progress(5);
        patience.progress(3);
        assert!(!once.is_zero() && patience.waited() > once && patience.left() < HOUR);
        patience.progress(6);
        assert_eq!((patience.waited(), patience.left()), (Duration::ZERO, HOUR));
        waits(&mut patience);
        patience.extend(2 * HOUR);
        assert_eq!(patience.left(), 2 * HOUR);
    }

    #[test]
    fn who_may_not_wait_may_not_whatever_comes() {
        let mut patience = Patience::new(Duration::ZERO);
        patience.progress(5);
        assert!(patience.left().is_zero());
    }
}
