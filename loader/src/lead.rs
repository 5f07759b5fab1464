//! The right to read storage while others wait for it: asked for, and renewed while a worker has it.
//!
//! Nothing gives it back but what the planner hears anyway: that this worker is no loading seed any more, reads from a seed,
//! or has everything.

use std::sync::Arc;
use std::time::Duration;

use rfork_protocol::SeedKey;
use rfork_protocol::v2::{Claimed, LoadingSeed, Role};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::planner_client::{Claim, PlannerClient};
use crate::reporting::{Reporting, origin};
use crate::retry::Backoff;

/// How long a worker asks a planner that does not answer, until it reads storage without the right.
const WITHOUT_PLANNER: Duration = Duration::from_secs(5);
/// Between two such questions: the first pause, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// The right is renewed no sooner than this, and no later, whatever a planner tells.
const RENEW: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// When somebody is to ask again.
pub(crate) fn after(claimed: &Claimed) -> Duration {
    let [soonest, latest] = RENEW;
    Duration::from_millis(claimed.renew_after_ms).clamp(soonest, latest)
}

/// A question for the right.
#[derive(Debug)]
pub(crate) struct Claiming {
    pub(crate) planner: PlannerClient,
    pub(crate) key: SeedKey,
    /// What this worker is as a loading seed, or would be.
    pub(crate) loading: LoadingSeed,
    pub(crate) reporting: Reporting,
    /// For how long without progress it waits for another one.
    pub(crate) patience: Duration,
    /// Whether its loader gives everything at once.
    pub(crate) whole: bool,
    /// Whether nobody is to read here, though everything is held.
    pub(crate) rests: bool,
}

impl Claiming {
    /// As things stand now.
    fn question(&self) -> Claim {
        let progress = self.reporting.progress();
        let loading = LoadingSeed { held: progress.held.filter(|_| !self.rests), ..self.loading.clone() };
        let origin = origin(&self.reporting.memory).filter(|_| !self.rests);
        Claim {
            loading,
            arrived_bytes: progress.arrived_bytes,
            patience: self.patience,
            origin,
            whole: self.whole,
        }
    }

    /// Asks until there is an answer; `None` when there is none for 5 s, or never will be.
    pub(crate) async fn ask(&self) -> Option<Claimed> {
        let [first, longest] = PAUSES;
        let mut backoff = Backoff::new(first, longest);
        let asking = async {
            loop {
                match self.planner.claim(&self.key, &self.question()).await {
                    Ok(claimed) => return Some(claimed),
                    Err(error) if error.is_passing() => {
                        tracing::debug!(%error, "the planner does not say whether storage may be read");
                        tokio::time::sleep(backoff.pause()).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the planner refuses to say whether storage may be read");
                        return None;
                    }
                }
            }
        };
        tokio::time::timeout(WITHOUT_PLANNER, asking).await.ok().flatten()
    }

    /// Takes the right over, which was given just now, and renews it. Must be called within a tokio runtime.
    pub(crate) fn hold(self, claimed: &Claimed) -> Lead {
        let (stop, at_once, first) = (CancellationToken::new(), Arc::new(Notify::new()), after(claimed));
        let renewing = renew(self, first, stop.clone(), at_once.clone());
        Lead { stop, at_once, renewal: AbortOnDropHandle::new(tokio::spawn(renewing)) }
    }
}

/// The right. Dropped, it is renewed no more.
#[derive(Debug)]
pub(crate) struct Lead {
    stop: CancellationToken,
    /// There is something new to be told.
    at_once: Arc<Notify>,
    renewal: AbortOnDropHandle<()>,
}

impl Lead {
    /// Whether the planner has not said that it is another one's.
    pub(crate) fn is_held(&self) -> bool {
        !self.renewal.is_finished()
    }

    /// Renews it now, and not when it is due.
    pub(crate) fn renew_at_once(&self) {
        self.at_once.notify_one();
    }

    /// Renews it no more; returns when no renewal is under way, which deadlines bound.
    ///
    /// Excluded: the planner hears of a renewal after it was told that this worker is gone, and others wait for that.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        // An error means that the task panicked: nothing is renewed.
        let _ = self.renewal.await;
    }
}

/// Renews until it is stopped, or until the right is another one's. A planner that cannot be reached takes nothing away.
async fn renew(claiming: Claiming, mut pause: Duration, stop: CancellationToken, at_once: Arc<Notify>) {
    // A pause that ends early is none that went wrong.
    let due = async |pause| drop(tokio::time::timeout(pause, at_once.notified()).await);
    while stop.run_until_cancelled(due(pause)).await.is_some() {
        match claiming.planner.claim(&claiming.key, &claiming.question()).await {
            Ok(claimed) if claimed.role == Role::Leads => pause = after(&claimed),
            Ok(claimed) => {
                tracing::debug!(
                    ?claimed,
                    "another worker reads storage for those who wait; this one reads on for itself"
                );
                return;
            }
            Err(error) if error.is_borne() => {
                tracing::debug!(%error, "the right to read storage was not renewed");
            }
            Err(error) => {
                tracing::warn!(%error, "the planner refuses to renew the right to read storage; reading goes on");
                return;
            }
        }
    }
}
