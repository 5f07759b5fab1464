//! Asking for another source while the one that is read brings no byte. It keeps its connections and its lease meanwhile.

use std::time::Duration;

use rfork_protocol::v2::Stalled;
use tokio::task::JoinHandle;

use super::error::LoadError;
use super::load::Load;
use super::state::Event;
use crate::engine::memory::WeightMemory;
use crate::lease::Lease;
use crate::planner_client::Wish;

/// How long one question may wait for a source: after it the next one tells how things are by then.
const QUESTION: Duration = Duration::from_secs(5);
/// How often it is looked whether bytes come again.
const LOOK: Duration = Duration::from_millis(100);

/// A question that is under way, on a task of its own. Nobody may want the answer any more when it comes: dropped, the
/// task goes on, and the lease that it was given is released with its result.
pub(super) struct Asking {
    task: JoinHandle<Option<Lease>>,
    /// Whether it says of a source that it is lost, or of none: there is nothing more to say when the connection ends.
    says_all: bool,
}

impl Load<'_> {
    /// Reads on, if there is something to read from, and asks for another source. The answer is in `replacement` after
    /// [`Event::Granted`].
    pub(super) async fn seek(&mut self) -> Result<Event, LoadError> {
        self.patience.progress(self.memory.held_bytes());
        self.patience.wait();
        let arrived = self.memory.arrivals().bytes();
        let mut asking = self.asking.take().unwrap_or_else(|| self.ask_meanwhile());
        let lease = self.lease.as_ref().filter(|lease| !lease.lost().is_cancelled());
        let (has_lease, is_advised) =
            (lease.is_some(), lease.is_some_and(|lease| lease.advised_to_move().is_cancelled()));
        let left = self.patience.left();
        let (memory, cancel) = (self.memory, self.cancel);
        let reading = self.reading.as_mut();
        let (is_read, heeds) =
            (reading.is_some(), reading.as_ref().is_some_and(|reading| reading.watch.heeds_advice));
        let may_resume = has_lease && is_read && !(is_advised && heeds);
        let ended = async move {
            match reading {
                Some(reading) => (&mut reading.running).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            result = ended => {
                let event = self.ended(result).await?;
                if event == Event::SourceGone && asking.says_all {
                    // Excluded: it loses its place among those who wait, or it waits twice.
                    self.asking = Some(asking);
                }
                return Ok(event);
            }
            granted = &mut asking.task => {
                // A task that has died gave nothing.
                self.replacement = granted.unwrap_or_default();
                Some(if self.replacement.is_some() { Event::Granted } else { self.nobody_else(is_advised) })
            }
            () = bytes_flow(memory, arrived), if may_resume => Some(Event::BytesFlow),
            () = cancel.cancelled() => None,
            // Who may not wait asks all the same: the answer comes at once then.
            () = tokio::time::sleep(left), if !left.is_zero() => Some(self.nobody_else(is_advised)),
        };
        let Some(event) = event else {
            self.end_reading().await?;
            return Err(LoadError::Cancelled);
        };
        if matches!(event, Event::NoSeed { .. }) {
            return Ok(event);
        }
        self.patience.rest();
        if let (Event::Granted, Some(lease)) = (event, &self.replacement) {
            tracing::info!(seed = %lease.seed(), "the planner granted another source");
            if let (Some(loading), Some(_)) = (self.loading.as_mut(), lease.source()) {
                loading.registered();
            }
        }
        Ok(event)
    }

    /// There is no other source. Whoever was only advised to move reads on, as long as its own has not stalled.
    fn nobody_else(&mut self, is_advised: bool) -> Event {
        let memory = self.memory;
        match self.reading.as_mut().filter(|reading| is_advised && !reading.watch.has_stalled(memory)) {
            Some(reading) => {
                reading.watch.heeds_advice = false;
                Event::BytesFlow
            }
            None => Event::NoSeed { may_wait: !self.patience.left().is_zero() },
        }
    }

    /// Asks, at once and then after pauses that grow, for a source that is not the one that stalls.
    fn ask_meanwhile(&mut self) -> Asking {
        let (pause, mut says_all) = (self.patience.before_the_next(), true);
        let mut wish = Wish { wait: QUESTION.min(self.patience.left()), ..self.wish() };
        // Whose lease is gone has left no source: it may have the same one again, and has nothing that it could pass on.
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.lost().is_cancelled()) {
            let reference = lease.reference();
            let lost = self.reading.as_ref().is_none_or(|reading| reading.watch.is_lost(self.memory));
            tracing::warn!(seed = %reference.identity, lost, "another source is asked for, and what is held is kept");
            let silent_ms = u64::try_from(self.memory.arrivals().silent().as_millis()).unwrap_or(u64::MAX);
            says_all = lost;
            wish.exclude.push(reference.identity.clone());
            wish.stalled = Some(Stalled {
                seed: reference.identity.clone(),
                lease_id: reference.lease.clone(),
                silent_ms,
                lost,
            });
        }
        let reporting = self.loading.as_ref().and_then(|loading| loading.reporting(self.memory));
        let (planner, releases, key) = (self.planner.clone(), self.releases.clone(), self.worker.key.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            match planner.acquire(&key, &wish).await {
                Ok(acquired) => {
                    acquired.grant().map(|grant| Lease::hold(grant, planner, releases, reporting))
                }
                Err(error) => {
                    tracing::warn!(%error, "no other source could be asked for");
                    None
                }
            }
        });
        Asking { task, says_all }
    }
}

/// Ends when more than so many bytes have arrived.
async fn bytes_flow(memory: &WeightMemory, arrived: u64) {
    while memory.arrivals().bytes() == arrived {
        tokio::time::sleep(LOOK).await;
    }
}
