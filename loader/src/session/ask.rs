//! Asking the planner for a seed, and how long a load goes on with that.

use std::time::{Duration, Instant};

use super::load::Load;
use super::progress::Phase;
use super::state::Event;
use crate::lease::Lease;
use crate::planner_client::Wish;
use crate::retry::Backoff;

/// How often one question is repeated because the planner handed out a seed that has failed already.
const REPEATED_QUESTIONS: u32 = 4;
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
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { limit, waited: Duration::ZERO, since: None, backoff }
    }

    /// A wait begins, or lasts.
    fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// There is a seed: no time counts, and the next wait begins with short pauses.
    fn rest(&mut self) {
        *self = Self { waited: self.waited(), ..Self::new(self.limit) };
    }

    fn waited(&self) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }

    /// The next pause, within what is left.
    fn pause(&mut self) -> Duration {
        self.backoff.pause().min(self.left())
    }
}

impl Load<'_> {
    /// Asks the planner for a seed.
    pub(super) async fn ask(&mut self) -> Event {
        self.reporter.phase(Phase::Asking);
        self.patience.wait();
        if self.planner.excludes_seeds().await {
            // Seeds that failed are not handed out again, so their leases need not be kept.
            self.condemned.clear();
        }
        for _ in 0..=REPEATED_QUESTIONS {
            let wish = Wish { wait: self.patience.left(), exclude: self.failed.iter().cloned().collect() };
            match self.planner.acquire(&self.worker.key, &wish).await {
                Ok(Some(grant)) => {
                    let lease = Lease::hold(grant, self.planner.clone(), self.releases.clone());
                    if self.failed.contains(lease.seed()) {
                        // Kept for now, so that the next answer is another seed.
                        self.condemned.push(lease);
                        continue;
                    }
                    tracing::info!(seed = %lease.seed(), "the planner granted a seed");
                    self.lease = Some(lease);
                    self.patience.rest();
                    self.condemned.clear();
                    return Event::Granted;
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "no seed could be asked for");
                    break;
                }
            }
        }
        self.condemned.clear();
        let may_wait = !self.patience.left().is_zero();
        if !may_wait {
            tracing::info!("no seed is free: loading from storage");
        }
        Event::NoSeed { may_wait }
    }

    /// Lets some time pass before the planner is asked again.
    pub(super) async fn pause(&mut self) -> Event {
        tokio::time::sleep(self.patience.pause()).await;
        Event::PauseOver
    }
}
