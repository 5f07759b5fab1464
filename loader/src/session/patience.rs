//! How long a load goes on asking for a seed.

use std::time::{Duration, Instant};

use crate::retry::Backoff;

/// Pauses between two questions while a worker waits for a seed: from here to there.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long a load may wait for seeds in all. Only the time without one counts.
pub(super) struct Patience {
    limit: Duration,
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
        Self { limit, waited: Duration::ZERO, since: None, backoff, asked: false }
    }

    /// The limit is `limit` from now on, whatever was waited before.
    pub(super) fn extend(&mut self, limit: Duration) {
        self.limit = self.waited() + limit;
    }

    /// A wait begins, or lasts.
    pub(super) fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// There is a seed: no time counts, and the next wait begins with short pauses.
    pub(super) fn rest(&mut self) {
        *self = Self { waited: self.waited(), ..Self::new(self.limit) };
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
