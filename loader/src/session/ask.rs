//! Asking the planner for a seed.

use std::time::Duration;

use super::load::Load;
use super::progress::Phase;
use super::state::Event;
use crate::lease::Lease;
use crate::planner_client::{Acquired, Grant, Wish};

/// How often one question is repeated because the planner handed out a seed that has failed already.
const REPEATED_QUESTIONS: u32 = 4;
impl Load<'_> {
    /// Asks the planner for a seed.
    pub(super) async fn ask(&mut self) -> Event {
        self.reporter.phase(Phase::Asking);
        let (by_right, leads) = (self.needs_the_right().await, self.leads());
        if leads || !by_right {
            self.patience.wait();
        }
        if self.planner.excludes_seeds().await {
            // Seeds that failed are not handed out again, so their leases need not be kept.
            self.condemned.clear();
        }
        let starts_over = self.turn.may_start_over();
        for _ in 0..=REPEATED_QUESTIONS {
            let wait = match (by_right, leads) {
                // Who leads waits for seeds that are busy; there are no others but for itself.
                (true, true) if !self.turn.busy => Duration::ZERO,
                (true, false) => self.turn.wait(),
                _ => self.patience.left(),
            };
            let mut wish = Wish { wait, ..self.wish() };
            if let Some(loading) = &mut wish.loading {
                loading.starts_over = starts_over;
            }
            let acquired = self.planner.acquire(&self.worker.key, &wish).await;
            self.turn.busy = matches!(acquired, Ok(Acquired::Busy));
            match acquired {
                Ok(Acquired::Granted(grant)) => {
                    let lease = self.hold(grant);
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
                Ok(Acquired::Busy | Acquired::Unknown) => break,
                Err(error) => {
                    tracing::warn!(%error, "no seed could be asked for");
                    break;
                }
            }
        }
        self.condemned.clear();
        let may_wait = !self.patience.left().is_zero() && (!by_right || leads && self.turn.busy);
        if !may_wait && (!by_right || leads) {
            tracing::info!("no seed is free: loading from storage");
        }
        Event::NoSeed { may_wait }
    }

    /// What is wished of a seed, but for how long it is waited for.
    pub(super) fn wish(&mut self) -> Wish {
        let loading = self.loading.as_ref().and_then(|loading| loading.wish(self.memory));
        Wish { wait: Duration::ZERO, exclude: self.excluded(), loading, stalled: None }
    }

    /// Takes a grant over.
    fn hold(&mut self, grant: Grant) -> Lease {
        let registered = grant.source.is_some();
        let reporting = self.loading.as_mut().filter(|_| registered).and_then(|loading| {
            loading.registered();
            loading.reporting(self.memory)
        });
        Lease::hold(grant, self.planner.clone(), self.releases.clone(), reporting)
    }

    /// Lets some time pass before the planner is asked again.
    pub(super) async fn pause(&mut self) -> Event {
        tokio::time::sleep(self.patience.pause()).await;
        Event::PauseOver
    }
}
