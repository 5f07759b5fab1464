//! The time of all planners of a database: its clock, and an offset that is in a row of it. See [`super::super::clock`].
//!
//! Whoever is about to decide something looks at the time, and finds it even by its own count or stops: the offset is put
//! right in a transaction of its own, and everything begins again. Of several who find it uneven at the same moment one
//! changes the row, and for the others it is even then. So nothing is decided at a time that is uneven, but by a planner
//! that has just started, and cannot know.
//!
//! Nobody waits for the row while holding another: what time it is is noted in it by whoever finds it unlocked.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::super::clock::{Clock, LOOKS, Look, correction};
use super::session::Connection;
use super::transaction::{Stopped, Work};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// What the clock shows, Unix milliseconds, unless a test has set it to `$set`.
macro_rules! clock_ms {
    ($set:literal) => {
        concat!("coalesce(", $set, "::bigint, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)")
    };
}
pub(super) use clock_ms;

/// What a planner knows of the time.
#[derive(Debug)]
pub(super) struct Time {
    pub(super) clock: Clock,
    /// The last look that found it even. Not locked across an await.
    last: Mutex<Option<Look>>,
}

/// A time that is not even, and what makes it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "each tells its unit")]
pub(super) struct Uneven {
    /// The offset with which it was looked at, in milliseconds.
    offset_ms: i64,
    /// What is to be added to that.
    by_ms: i64,
    /// What time it is, then.
    right_ms: i64,
}

impl Time {
    /// Nothing is known of it yet.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, last: Mutex::default() }
    }

    /// What time it is, and how far ahead of the clock that is, for somebody who only reads.
    pub(super) async fn look(&self, connection: &mut Connection) -> Result<(i64, i64), Stopped> {
        let asked = self.ask(&mut *connection).await?;
        let (now_ms, offset_ms, _) = self.even(connection, asked).await?;
        Ok((now_ms, offset_ms))
    }

    /// What time it is, for somebody who writes.
    pub(super) async fn now(&self, connection: &mut Connection) -> Result<i64, Stopped> {
        let asked = self.ask(&mut *connection).await?;
        self.now_of(connection, asked).await
    }

    /// The same, by a look that was taken already.
    pub(super) async fn now_of(
        &self,
        connection: &mut Connection,
        asked: (Look, i64, i64),
    ) -> Result<i64, Stopped> {
        let (now_ms, _, seen_ms) = self.even(&mut *connection, asked).await?;
        if self.clock.is_news(now_ms, seen_ms) {
            // Somebody who has it locked notes nearly the same.
            sqlx::query(
                "/* note time */
                 UPDATE clock SET seen_ms = $1 WHERE id IN (
                     SELECT id FROM clock WHERE seen_ms < $1 FOR UPDATE SKIP LOCKED)",
            )
            .bind(now_ms)
            .execute(connection)
            .await?;
        }
        Ok(now_ms)
    }

    /// The time, the offset, and a time that was.
    async fn even(
        &self,
        connection: &mut Connection,
        (mut look, mut offset_ms, mut seen_ms): (Look, i64, i64),
    ) -> Result<(i64, i64, i64), Stopped> {
        for _ in 1..LOOKS {
            if look.is_close(&self.clock) {
                break;
            }
            (look, offset_ms, seen_ms) = self.ask(&mut *connection).await?;
        }
        let now_ms = look.now_ms;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(by_ms) = correction(&self.clock, *last, look, seen_ms) {
            return Err(Stopped::Uneven(Uneven { offset_ms, by_ms, right_ms: now_ms.saturating_add(by_ms) }));
        }
        // Calls overlap: the latest look is compared with.
        if last.is_none_or(|before| before.until_ms <= look.until_ms) {
            *last = Some(look);
        }
        Ok((now_ms, offset_ms, seen_ms))
    }

    /// A look at the time, with the offset and a time that was.
    async fn ask(&self, connection: &mut Connection) -> Result<(Look, i64, i64), Stopped> {
        let from_ms = self.clock.passed_ms();
        let (now_ms, offset_ms, seen_ms): (i64, i64, i64) = sqlx::query_as(concat!(
            "/* load time */ SELECT ",
            clock_ms!("$1"),
            " + offset_ms, offset_ms, seen_ms FROM clock"
        ))
        .bind(self.clock.set_ms())
        .fetch_one(connection)
        .await?;
        Ok((Look { now_ms, from_ms, until_ms: self.clock.passed_ms() }, offset_ms, seen_ms))
    }
}

/// Puts the offset right, unless somebody has done so, or has worked at a later time.
#[async_trait]
impl Work for Uneven {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        let Self { offset_ms, by_ms, right_ms } = *self;
        let done = sqlx::query(
            "UPDATE clock SET offset_ms = offset_ms + $2, seen_ms = $3 WHERE offset_ms = $1 AND seen_ms <= $3",
        )
        .bind(offset_ms)
        .bind(by_ms)
        .bind(right_ms)
        .execute(connection)
        .await?;
        if done.rows_affected() > 0 {
            let (forward, back) = (by_ms.min(0).unsigned_abs(), by_ms.max(0).unsigned_abs());
            tracing::warn!(
                forward_ms = forward,
                back_ms = back,
                "the database's clock was set; leases and heartbeats are counted on as if it had not been"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::Store;
    use super::super::PostgresStore;
    use super::super::tests::{Database, few};
    use super::*;
    use crate::store::conformance::{Home, RULES, acquire, register, renew};
    use crate::store::{ApplyList, ManualClock};

    const HOUR_MS: i64 = 3_600_000;

    /// Planners of one database, each with a count of its own.
    struct Planners {
        clocks: Vec<Arc<ManualClock>>,
        stores: Vec<PostgresStore>,
        database: Database,
    }

    impl Planners {
        async fn new(planners: usize) -> Self {
            let clock = ManualClock::new(1_000_000);
            let clocks = (0..planners).map(|_| Arc::new(clock.shared())).collect();
            let mut all = Self { clocks, stores: Vec::new(), database: Database::make().await };
            for planner in 0..planners {
                all.stores.push(all.start(planner).await);
            }
            all
        }

        async fn start(&self, planner: usize) -> PostgresStore {
            let clock = Clock::Manual(self.clocks[planner].clone());
            PostgresStore::open(&self.database.0, few(), RULES, clock).await.unwrap()
        }

        /// How far time is ahead of the clock, as a planner finds it.
        async fn ahead(&self, planner: usize) -> i64 {
            self.stores[planner].snapshot().await.unwrap().ahead_ms
        }
    }

    #[tokio::test]
    async fn planners_that_see_a_step_at_once_make_up_for_it_once() {
        for step in [-HOUR_MS, HOUR_MS, -7, 7] {
            let planners = Planners::new(3).await;
            planners.clocks[0].step(step);
            let commands: Vec<_> = (0..3).map(|seed| [register(seed, "k")]).collect();
            let [one, two, three] = &planners.stores[..] else { unreachable!() };
            let (one, two, three) = tokio::join!(
                one.apply_list(&commands[0]),
                two.apply_list(&commands[1]),
                three.apply_list(&commands[2])
            );
            assert!([one, two, three].iter().all(Result::is_ok));
            for planner in 0..3 {
                assert_eq!(planners.ahead(planner).await, -step);
            }
        }
    }

    #[tokio::test]
    async fn a_step_within_a_look_that_took_long_is_found() {
        let planners = Planners::new(1).await;
        planners.stores[0].apply_list(&[register(1, "k")]).await.unwrap();
        // The question was under way for 5 s, after which the clock was put back by 2: that could be 3 s and no step.
        planners.clocks[0].delay_next_look(5_000, -2_000);
        planners.stores[0].apply_list(&[acquire("k", 1)]).await.unwrap();
        assert_eq!(planners.ahead(0).await, 2_000);
    }

    #[tokio::test]
    async fn a_planner_that_was_stopped_puts_time_back_for_nobody() {
        let planners = Planners::new(2).await;
        planners.clocks[1].pass(HOUR_MS);
        planners.stores[1].apply_list(&[register(1, "k"), acquire("k", 1)]).await.unwrap();
        for planner in [0, 1, 0] {
            planners.stores[planner].apply_list(&[renew(1, 1)]).await.unwrap();
            assert_eq!(planners.ahead(planner).await, 0);
        }
    }

    #[tokio::test]
    async fn a_planner_that_comes_goes_on_from_what_others_have_seen() {
        let mut planners = Planners::new(2).await;
        planners.stores[0].apply_list(&[register(1, "k")]).await.unwrap();
        planners.clocks[0].step(-HOUR_MS);
        // The first one has not seen it.
        planners.stores[1] = planners.start(1).await;
        for planner in [1, 0] {
            assert_eq!(planners.ahead(planner).await, HOUR_MS);
        }
    }
}
