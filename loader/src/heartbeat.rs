//! Tells the planner, again and again, that this worker is a seed: from when others can reach it.
//!
//! Beats are timed from one start to the next, not from an answer: an answer that took its whole deadline
//! must not push the next beat past the planner's time to live.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::planner_client::{Advert, Heard, PlannerClient, PlannerError};
use crate::reach::{Reach, Unreachable};
use crate::retry::{Backoff, apart};
use crate::seed_service::Readiness;

/// The first pause after a beat that failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Between two checks whether others reach this worker: the first pause, and the longest.
const CHECK_PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_mins(5)];

/// A worker's heartbeat. It ends when stopped, when dropped, or when the planner refuses it for good.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    stop: CancellationToken,
    first: Option<oneshot::Receiver<Unreachable>>,
    /// Gives whether the planner may know of this seed.
    task: AbortOnDropHandle<bool>,
    client: PlannerClient,
    advert: Advert,
}

impl Heartbeat {
    /// Starts to beat about every `interval`, once the check is passed: it is repeated until then, with growing pauses. Once
    /// the planner has taken the seed, the worker is ready.
    pub(crate) fn start(
        client: PlannerClient,
        advert: Advert,
        interval: Duration,
        reach: Reach,
        ready: Readiness,
    ) -> Self {
        let stop = CancellationToken::new();
        let (tell, first) = oneshot::channel();
        let (teller, told, stopped) = (client.clone(), advert.clone(), stop.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let Some(tell) = stopped.run_until_cancelled(reached(reach, tell)).await else { return false };
            beat(teller, told, interval, stopped, (tell, ready)).await;
            true
        }));
        Self { stop, first: Some(first), task, client, advert }
    }

    /// Waits until the first check has failed, or the first beat was answered or has failed, which deadlines bound. A
    /// second time it does not wait.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) async fn first(&mut self) -> Result<(), Unreachable> {
        let Some(first) = self.first.take() else { return Ok(()) };
        // The other end is dropped without a word when all is well.
        first.await.map_or(Ok(()), Err)
    }

    /// Stops beating, then takes the advertisement back, so that nobody is sent here any more. A planner that
    /// cannot be reached forgets this seed by itself when its time to live has passed.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        // The beat that is under way ends first; its request has a deadline.
        // Excluded: the planner takes a dropped beat after the removal, and advertises a worker that is gone.
        // An error means that the task panicked: nothing beats.
        let may_be_known = self.task.await.unwrap_or(true);
        if !may_be_known {
            // Another worker may be known by this address.
            return;
        }
        if let Err(error) = self.client.withdraw(&self.advert).await {
            tracing::warn!(%error, "the advertisement was not removed; it expires by itself");
        }
    }
}

/// Waits until others reach this worker. Tells if the first check fails; else gives back what would have told it.
async fn reached(reach: Reach, tell: oneshot::Sender<Unreachable>) -> Option<oneshot::Sender<Unreachable>> {
    let Err(unreachable) = reach.check().await else { return Some(tell) };
    let mut told = unreachable.clone();
    // Whoever waited for it may have gone.
    let _ = tell.send(unreachable);
    let [first, longest] = CHECK_PAUSES;
    let mut backoff = Backoff::new(first, longest);
    loop {
        let is_longest = backoff.is_longest();
        tokio::time::sleep(backoff.pause()).await;
        let Err(unreachable) = reach.check().await else { break };
        // Again while pauses grow, and then when there is something else to tell.
        if is_longest && unreachable == told {
            tracing::debug!(%unreachable, "others still do not reach this worker");
        } else {
            tracing::warn!(%unreachable, "others still do not reach this worker");
        }
        told = unreachable;
    }
    tracing::info!(identity = %reach.identity, "others reach this worker now: it becomes a seed");
    None
}

async fn beat(
    client: PlannerClient,
    advert: Advert,
    interval: Duration,
    stop: CancellationToken,
    (mut unanswered, ready): (Option<oneshot::Sender<Unreachable>>, Readiness),
) {
    let mut backoff = Backoff::new(FIRST_RETRY, interval);
    let mut failing = false;
    let mut registered = false;
    let identity = &advert.identity;
    loop {
        let started = Instant::now();
        let heard = tell(&client, &advert, registered).await;
        registered = matches!(heard, Ok(Heard::Known)) || (registered && heard.is_err());
        let pause = match heard {
            Ok(heard) => {
                if heard == Heard::Known {
                    ready.say();
                }
                if heard == Heard::Draining {
                    tracing::debug!(%identity, "the planner offers this seed no more");
                }
                if failing {
                    tracing::info!(%identity, "the planner hears this seed again");
                }
                failing = false;
                backoff = Backoff::new(FIRST_RETRY, interval);
                // A tenth of the interval keeps a thousand workers that started together apart.
                apart(interval)
            }
            Err(error) if error.is_borne() => {
                if !failing {
                    tracing::warn!(%error, "a heartbeat failed; it is tried again");
                }
                failing = true;
                backoff.pause()
            }
            Err(error) => {
                tracing::error!(%error, "the planner refuses this seed: it is advertised no more");
                return;
            }
        };
        // Dropped too when the planner refuses, or with the task.
        drop(unanswered.take());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(started + pause) => {}
        }
    }
}

/// Registers, or says that the seed which is registered lives. One that the planner does not know registers at once.
async fn tell(client: &PlannerClient, advert: &Advert, registered: bool) -> Result<Heard, PlannerError> {
    if registered {
        let heard = client.beat(advert).await?;
        if heard != Heard::Unknown {
            return Ok(heard);
        }
        tracing::info!(identity = %advert.identity, "the planner does not know this seed: it registers");
    }
    client.register(advert).await?;
    tracing::debug!(identity = %advert.identity, "the planner has this seed");
    Ok(Heard::Known)
}
