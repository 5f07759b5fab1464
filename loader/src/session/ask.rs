//! Asking the planner for a seed.

use super::load::Load;
use super::progress::Phase;
use super::state::Event;
use crate::lease::Lease;
use crate::planner_client::Wish;

/// How often one question is repeated because the planner handed out a seed that has failed already.
const REPEATED_QUESTIONS: u32 = 4;
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
