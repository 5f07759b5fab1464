//! Tells the planner, again and again, that this worker is a seed.
//!
//! Beats are timed from one start to the next, not from an answer: an answer that took its whole deadline
//! must not push the next beat past the planner's time to live.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::planner_client::{Advert, Heard, PlannerClient, PlannerError};
use crate::retry::{Backoff, jittered};

/// The first pause after a beat that failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// A worker's heartbeat. It ends when stopped, when dropped, or when the planner refuses it for good.
#[derive(Debug)]
pub struct Heartbeat {
    stop: CancellationToken,
    answered: CancellationToken,
    task: AbortOnDropHandle<()>,
    client: PlannerClient,
    advert: Advert,
}

impl Heartbeat {
    /// Starts to beat about every `interval`.
    pub fn start(client: PlannerClient, advert: Advert, interval: Duration) -> Self {
        let (stop, answered) = (CancellationToken::new(), CancellationToken::new());
        let beating = beat(client.clone(), advert.clone(), interval, stop.clone(), answered.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(beating));
        Self { stop, answered, task, client, advert }
    }

    /// Waits until the first beat was answered or has failed, which the request's deadline bounds.
    pub async fn first(&self) {
        self.answered.cancelled().await;
    }

    /// Stops beating, then takes the advertisement back, so that nobody is sent here any more. A planner that
    /// cannot be reached forgets this seed by itself when its time to live has passed.
    pub async fn stop(self) {
        self.stop.cancel();
        // A beat that is under way ends first (its request has a deadline): were it dropped, the planner
        // might still take it, after the removal. An error means that the task panicked: nothing beats.
        let _ = self.task.await;
        if let Err(error) = self.client.withdraw(&self.advert).await {
            tracing::warn!(%error, "the advertisement was not removed; it expires by itself");
        }
    }
}

async fn beat(
    client: PlannerClient,
    advert: Advert,
    interval: Duration,
    stop: CancellationToken,
    answered: CancellationToken,
) {
    // Also when the planner refuses, or the task is dropped.
    let _answered = answered.clone().drop_guard();
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
                if heard == Heard::Draining {
                    tracing::debug!(%identity, "the planner offers this seed no more");
                }
                if failing {
                    tracing::info!(%identity, "the planner hears this seed again");
                }
                failing = false;
                backoff = Backoff::new(FIRST_RETRY, interval);
                // A tenth of the interval keeps a thousand workers that started together apart.
                interval.mul_f64(0.9) + jittered(interval.mul_f64(0.1))
            }
            Err(error) if error.is_passing() => {
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
        answered.cancel();
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
    client.register(advert).await.map(|()| Heard::Known)
}
