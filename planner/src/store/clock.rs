//! The time by which a store judges. It runs evenly, whatever the clock does that it comes from.
//!
//! *The rule.* A lease never has more left than its time to live, a heartbeat is never from the future, and nothing
//! else that was done or is waited for is either. It holds because time never goes back and never jumps while a
//! planner works: it is the clock with an offset that makes up for the clock's steps, be they seconds or years, either
//! way. So a step ends no lease and prolongs none, brings no silent seed back, and passes over nobody who waits.
//!
//! The offset is in the database, and beside it a time that is no earlier than what was last written, but for a second.
//! A planner that starts goes on from there: if the clock has been put back while none worked, time begins where it
//! ended. If it has been put forward, that is time that has passed: nothing can tell the two apart.
//!
//! - *`SQLite`*: the file is one process's, so the clock is the machine's as it was at the start ([`Own`]); after that
//!   the process counts what passes, and the next one takes its offset over.
//! - *Postgres*: the clock is the database's, which may be another server's after a failover. Each planner compares it
//!   with what passed by its own count, before it decides anything ([`correction`]), and puts the offset right.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// How far from even time may seem without being put right, in milliseconds. Beside it, clocks that are adjusted run a
/// little faster or slower: one part in [`DRIFT`] of what has passed.
const SLACK_MS: i64 = 100;
const DRIFT: i64 = 1_000;
/// How often the time is looked at before a look is taken as it is, though it took long.
pub(super) const LOOKS: u32 = 3;
/// How often the database is told what time it is while something is written, in milliseconds.
const NOTE_MS: i64 = 1_000;

/// Where a store's time comes from.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's clock, or the database server's.
    #[default]
    System,
    /// One that a test sets.
    Manual(Arc<ManualClock>),
}

impl Clock {
    /// What a test has set the clock to, Unix milliseconds; `None` where a real one is to be asked.
    pub(super) fn set_ms(&self) -> Option<i64> {
        match self {
            Self::System => None,
            Self::Manual(clock) => Some(clock.shown_ms()),
        }
    }

    /// What the machine's clock shows, Unix milliseconds.
    pub(super) fn shown_ms(&self) -> i64 {
        self.set_ms().unwrap_or_else(|| {
            // One that is before 1970 has never been set.
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
    }

    /// What has passed since some moment, in milliseconds. Nobody can set it, and it goes on while the machine sleeps.
    pub(super) fn passed_ms(&self) -> i64 {
        match self {
            Self::System => {
                let passed = clock_gettime(ClockId::Boottime);
                passed.tv_sec.saturating_mul(1_000).saturating_add(passed.tv_nsec / 1_000_000)
            }
            Self::Manual(clock) => clock.counted_ms(),
        }
    }

    /// How far from even time may seem, in milliseconds, before so much has passed.
    pub(super) fn slack_ms(&self, passed_ms: i64) -> i64 {
        match self {
            Self::System => SLACK_MS.saturating_add(passed_ms.max(0) / DRIFT),
            Self::Manual(_) => 0,
        }
    }

    /// Whether it is time to tell the database that it is `now_ms`, of which it knows `seen_ms`.
    pub(super) fn is_news(&self, now_ms: i64, seen_ms: i64) -> bool {
        let after_ms = match self {
            Self::System => NOTE_MS,
            Self::Manual(_) => 1,
        };
        now_ms.saturating_sub(seen_ms) >= after_ms
    }
}

/// A clock that a test sets, and what passes by the count of one planner.
#[derive(Debug)]
pub struct ManualClock {
    /// What the clock shows, which planners of one database share, Unix milliseconds.
    shown_ms: Arc<AtomicI64>,
    passed_ms: AtomicI64,
    /// What passes by the next question, and how far the clock is put meanwhile, in milliseconds. Once.
    next_look: Mutex<(i64, i64)>,
}

impl ManualClock {
    /// One that shows this, Unix milliseconds.
    pub fn new(shown_ms: i64) -> Self {
        Self::of(Arc::new(AtomicI64::new(shown_ms)))
    }

    fn of(shown_ms: Arc<AtomicI64>) -> Self {
        Self { shown_ms, passed_ms: AtomicI64::new(0), next_look: Mutex::default() }
    }

    /// The same clock, by which another planner counts.
    #[must_use]
    pub fn shared(&self) -> Self {
        Self::of(self.shown_ms.clone())
    }

    /// What it shows, Unix milliseconds.
    pub fn shown_ms(&self) -> i64 {
        self.shown_ms.load(Ordering::SeqCst)
    }

    /// Time passes, in milliseconds.
    pub fn pass(&self, ms: i64) {
        self.count(ms);
        self.step(ms);
    }

    /// It passes by the count of this planner, in milliseconds.
    pub fn count(&self, ms: i64) {
        self.passed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// The clock is put forward, or back, in milliseconds.
    pub fn step(&self, ms: i64) {
        self.shown_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// The next question of this planner is `passed_ms` under way before it is answered, and the clock is put by
    /// `step_ms` meanwhile.
    pub fn delay_next_look(&self, passed_ms: i64, step_ms: i64) {
        *self.next_look.lock().unwrap_or_else(PoisonError::into_inner) = (passed_ms, step_ms);
    }

    fn counted_ms(&self) -> i64 {
        let counted_ms = self.passed_ms.load(Ordering::SeqCst);
        let (passed_ms, step_ms) =
            std::mem::take(&mut *self.next_look.lock().unwrap_or_else(PoisonError::into_inner));
        self.pass(passed_ms);
        self.step(step_ms);
        counted_ms
    }
}

/// The time of a store that one process has for itself.
#[derive(Debug)]
pub(crate) struct Own {
    clock: Clock,
    /// Time less what has passed, in milliseconds.
    began_ms: i64,
    /// The offset and the time that the database was told last.
    noted: Mutex<(i64, i64)>,
}

impl Own {
    /// Goes on from what the database knows: the offset, and a time that was.
    pub(super) fn resume(clock: Clock, offset_ms: i64, seen_ms: i64) -> Self {
        let now_ms = clock.shown_ms().saturating_add(offset_ms).max(seen_ms);
        let began_ms = now_ms.saturating_sub(clock.passed_ms());
        Self { clock, began_ms, noted: Mutex::new((offset_ms, seen_ms)) }
    }

    /// Unix milliseconds, but for the offset.
    pub(super) fn now_ms(&self) -> i64 {
        self.began_ms.saturating_add(self.clock.passed_ms())
    }

    /// How far it is ahead of the clock that people see, in milliseconds.
    pub(super) fn offset_ms(&self) -> i64 {
        self.now_ms().saturating_sub(self.clock.shown_ms())
    }

    /// The offset and the time, if the database is to be told: at once when the clock was set, so that the next process
    /// does not take that for time that has passed.
    pub(super) fn news(&self) -> Option<(i64, i64)> {
        let (offset_ms, now_ms) = (self.offset_ms(), self.now_ms());
        let (known_ms, seen_ms) = *self.noted();
        let was_set = offset_ms.abs_diff(known_ms) > self.clock.slack_ms(0).unsigned_abs();
        (was_set || self.clock.is_news(now_ms, seen_ms)).then_some((offset_ms, now_ms))
    }

    /// The database has been told this.
    pub(super) fn note(&self, news: (i64, i64)) {
        *self.noted() = news;
    }

    fn noted(&self) -> MutexGuard<'_, (i64, i64)> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look at the time of planners that share a database, which was taken between two moments of the planner's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "each tells its unit")]
pub(super) struct Look {
    /// What it was, Unix milliseconds but for the offset.
    pub(super) now_ms: i64,
    /// When the planner asked, by [`Clock::passed_ms`].
    pub(super) from_ms: i64,
    /// When it had the answer.
    pub(super) until_ms: i64,
}

impl Look {
    /// Whether it says what time it is about as closely as time is kept: a step that was made while the look was under way
    /// cannot be told from the time that it took.
    pub(super) fn is_close(&self, clock: &Clock) -> bool {
        self.until_ms.saturating_sub(self.from_ms) <= clock.slack_ms(0)
    }
}

/// What makes time even from `before` to `look`, in milliseconds: to be added to the offset. `None` when it is even.
///
/// Somebody has worked at `seen_ms`, so it is at least that. If that is later than time can be by this planner's count,
/// it is the count that is wrong, as after the machine was stopped for a while, and a clock that seems to be ahead is
/// believed. How long an answer was under way is not known; what is called uneven is so wherever it was. So a look that
/// took long is taken again, [`LOOKS`] times at most.
pub(super) fn correction(clock: &Clock, before: Option<Look>, look: Look, seen_ms: i64) -> Option<i64> {
    // Without a look before, what others have seen is all that is known.
    let (mut least_ms, mut latest_ms, mut slack_ms) = (seen_ms, i64::MAX, clock.slack_ms(0));
    if let Some(before) = before {
        let passed_ms = look.from_ms.saturating_sub(before.until_ms);
        least_ms = before.now_ms.saturating_add(passed_ms).max(seen_ms);
        latest_ms = before.now_ms.saturating_add(look.until_ms.saturating_sub(before.from_ms));
        slack_ms = clock.slack_ms(passed_ms);
    }
    if look.now_ms < least_ms.saturating_sub(slack_ms) {
        return Some(least_ms.saturating_sub(look.now_ms));
    }
    let is_ahead = |ms: i64| ms > latest_ms.saturating_add(slack_ms);
    let is_wrong = is_ahead(look.now_ms) && !is_ahead(seen_ms);
    is_wrong.then(|| latest_ms.max(seen_ms).saturating_sub(look.now_ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR_MS: i64 = 365 * 24 * 3_600_000;

    fn manual(shown_ms: i64) -> (Arc<ManualClock>, Clock) {
        let manual = Arc::new(ManualClock::new(shown_ms));
        (manual.clone(), Clock::Manual(manual))
    }

    #[test]
    fn a_process_counts_on_whatever_the_clock_shows() {
        let (manual, clock) = manual(5_000);
        let own = Own::resume(clock, 0, 0);
        for step in [-3_600_000, YEAR_MS, 2_000, -YEAR_MS] {
            let before = own.now_ms();
            manual.step(step);
            manual.pass(7);
            assert_eq!(own.now_ms(), before + 7);
            assert_eq!(own.now_ms() - own.offset_ms(), manual.shown_ms());
        }
    }

    #[test]
    fn the_next_process_goes_on_where_the_last_one_was() {
        let (manual, clock) = manual(5_000);
        let own = Own::resume(clock.clone(), 0, 0);
        manual.step(YEAR_MS);
        let (offset_ms, seen_ms) = own.news().unwrap();
        assert_eq!(Own::resume(clock.clone(), offset_ms, seen_ms).now_ms(), 5_000);
        manual.step(-3_600_000);
        assert_eq!(Own::resume(clock.clone(), offset_ms, seen_ms).now_ms(), 5_000, "never back");
        manual.step(3_600_000 + 9);
        assert_eq!(Own::resume(clock, offset_ms, seen_ms).now_ms(), 5_009, "that is time that has passed");
    }

    #[test]
    fn what_nobody_can_set_goes_on() {
        let before = Clock::System.passed_ms();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(Clock::System.passed_ms() > before);
    }

    proptest! {
        /// Whenever within its exchange each look was taken.
        #[test]
        fn what_is_even_is_left_alone(
            now_ms in 0i64..1_000_000, asked in 0i64..100_000, took in 0i64..5_000, at in 0i64..=1_000,
            pause in -3_000i64..100_000, took_then in 0i64..5_000, at_then in 0i64..=1_000,
        ) {
            let moment = |from: i64, took: i64, at: i64| from + took * at / 1_000;
            let asked_then = asked + took + pause;
            let between = moment(asked_then, took_then, at_then) - moment(asked, took, at);
            let before = Look { now_ms, from_ms: asked, until_ms: asked + took };
            let look = Look { now_ms: now_ms + between, from_ms: asked_then, until_ms: asked_then + took_then };
            prop_assert_eq!(correction(&manual(0).1, Some(before), look, now_ms.min(look.now_ms)), None);
            prop_assert_eq!(correction(&manual(0).1, None, look, look.now_ms), None);
        }

        /// A step is made up for, but for what the answers were under way, and time is not put before what was done.
        #[test]
        fn what_is_uneven_is_put_right(
            step in -2 * YEAR_MS..2 * YEAR_MS, pause in 0i64..100_000, took in 0i64..500, done in 0i64..200_000,
        ) {
            let before = Look { now_ms: 0, from_ms: 0, until_ms: took };
            let look = Look { now_ms: took + pause + step, from_ms: took + pause, until_ms: 2 * took + pause };
            let slack = SLACK_MS + pause / DRIFT;
            if let Some(by_ms) = correction(&Clock::System, Some(before), look, done) {
                let now_ms = look.now_ms + by_ms;
                prop_assert!(now_ms >= done, "{now_ms}");
                prop_assert!(now_ms == done || (pause..=pause + 2 * took).contains(&now_ms), "{now_ms}");
                prop_assert_eq!(correction(&Clock::System, Some(before), Look { now_ms, ..look }, done), None);
            } else {
                prop_assert!(look.now_ms >= done.max(pause) - slack);
                prop_assert!(look.now_ms <= pause + 2 * took + slack || done > pause + 2 * took + slack);
            }
        }

        #[test]
        fn who_has_just_started_goes_on_from_what_was_seen(now_ms in 0..2 * YEAR_MS, seen_ms in 0..2 * YEAR_MS) {
            let look = Look { now_ms, from_ms: 7, until_ms: 9 };
            let by_ms = correction(&manual(0).1, None, look, seen_ms).unwrap_or(0);
            prop_assert_eq!(now_ms + by_ms, now_ms.max(seen_ms));
        }
    }
}
