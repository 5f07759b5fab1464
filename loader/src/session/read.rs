//! Reading the missing chunks from a seed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::content::Root;
use rfork_protocol::v2::SeedPhase;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::LoadError;
use super::load::Load;
use super::progress::{Phase, Source};
use super::stall::{StallRule, UNHEARD};
use super::state::Event;
use crate::engine::memory::WeightMemory;
use crate::engine::{HeldFeed, ReadError, ReadReport, ReadRequest, SourceState};
use crate::fallback::Fills;
use crate::lease::Lease;
use crate::planner_client::TransferReport;
use crate::seed_client::HeldClient;

/// How long a load that its caller ends waits for the read that is under way. One by address cannot be ended.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// How long a worker of a chain waits for another source once it has read from one, if nobody has set it.
const SEED_WAIT_IN_A_CHAIN: Duration = Duration::from_secs(30);
/// How often it is looked whether a source has stalled.
const LOOK: Duration = Duration::from_millis(200);

/// What is read from a seed just now. Dropped, nothing is read any more.
pub(super) struct Reading<'a> {
    pub(super) running: Pin<Box<dyn Future<Output = Result<ReadReport, ReadError>> + Send + 'a>>,
    stop: CancellationToken,
    seed: SeedIdentity,
    /// Where its engine listens.
    peer: String,
    pub(super) watch: Watch,
    begun: Instant,
    held_before: u64,
}

/// When a source is left.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    /// What it says of itself, if it still loads.
    state: Option<Arc<watch::Sender<SourceState>>>,
    /// How long it may bring nothing.
    stall: StallRule,
    /// Whether the planner's advice counts; not while nobody else has what it brings.
    pub(super) heeds_advice: bool,
}

impl<'a> Load<'a> {
    /// Begins to read what is missing. From here on others may be told of this worker's chunks.
    fn begin_reading(&self) -> Option<Reading<'a>> {
        let (lease, source) = (self.lease.as_ref()?, self.source.clone()?);
        if let Some(root) = &source.1 {
            self.memory.set_root(root.clone(), source.0.extension.as_ref().and_then(|told| told.origin));
            if let Some(loading) = self.loading.as_ref() {
                let was = self.memory.growing().map(|growing| growing.origin);
                loading.publish(self.manifest, self.memory, (root.clone(), was));
            }
        }
        let loads = lease.source().is_some_and(|source| source.phase == SeedPhase::Loading);
        let state = loads.then(|| Arc::new(watch::Sender::new(SourceState::default())));
        let stop = self.cancel.child_token();
        let (engine, memory, manifest) = (self.engine, self.memory, self.manifest);
        let peer = source.0.session.clone();
        memory.arrivals().source(true);
        let (cancel, told) = (stop.clone(), state.clone());
        let point = lease.source().map(|source| source.point);
        let held = self.held_client(lease.seed(), source.1.as_ref().filter(|_| loads));
        let running = Box::pin(async move {
            let request = ReadRequest {
                key: None,
                seed: &source.0,
                manifest,
                root: source.1.as_ref(),
                memory,
                loading: told.as_ref(),
                held: held.as_ref().map(|held| held as &dyn HeldFeed),
                in_a_chain: point.is_some(),
                point,
                cancel: &cancel,
            };
            engine.read(request).await
        });
        Some(Reading {
            running,
            stop,
            seed: lease.seed().clone(),
            peer,
            watch: Watch { state, stall: self.stall.jittered(), heeds_advice: true },
            begun: Instant::now(),
            held_before: memory.held_bytes(),
        })
    }

    /// Where a source that loads says what it holds of `root`, if its engine does not.
    fn held_client(&self, seed: &SeedIdentity, root: Option<&Root>) -> Option<HeldClient> {
        let root = root.filter(|_| self.engine.capabilities().by_address)?;
        let chunks = (root.algorithm(), self.memory.plan().count());
        let asked_by = (self.planner.http().clone(), self.planner.timeout());
        Some(HeldClient::new(asked_by, seed, self.worker.key.clone(), chunks))
    }

    /// Reads what is missing. When this returns, nothing of the seed's writes to the memory any more, but for
    /// [`LoadError::Hung`] and [`Event::Stalled`].
    pub(super) async fn read(&mut self) -> Result<Event, LoadError> {
        if self.reading.is_none() {
            self.reading = self.begin_reading();
        }
        let (Some(lease), Some(reading)) = (&self.lease, &mut self.reading) else {
            return Ok(Event::SeedFailed);
        };
        self.reporter.phase(Phase::Loading(Source::Seed(reading.seed.clone())));
        let in_a_chain = lease.source().is_some();
        if in_a_chain && self.seed_wait.is_none() && !self.touched {
            self.patience.extend(SEED_WAIT_IN_A_CHAIN);
        }
        self.touched = true;
        let memory = self.memory;
        let watch = reading.watch.clone();
        let may_read_storage = in_a_chain && self.fallback.fills() == Fills::Chunks && !self.storage_failed;
        let mut running = std::mem::replace(&mut reading.running, Box::pin(std::future::pending()));
        let outcome = tokio::select! {
            result = &mut running => Outcome::Ended(result),
            () = lease.lost().cancelled() => Outcome::LeaseLost,
            () = lease.advised_to_read().cancelled(), if may_read_storage => Outcome::ReadsStorage,
            () = stalled(lease, &watch, memory), if in_a_chain => Outcome::Stalled,
            // Only a read by address cannot be ended: another is waited for, so that nothing writes any more.
            () = long_cancelled(self.cancel), if !self.engine.capabilities().verifies => Outcome::Hangs,
        };
        let result = match outcome {
            Outcome::Ended(result) => result,
            // Who passes on what it reads goes on until it has another source.
            Outcome::Stalled => {
                reading.running = running;
                return Ok(Event::Stalled);
            }
            Outcome::ReadsStorage => {
                reading.running = running;
                let bytes = memory.held_bytes().saturating_sub(reading.held_before);
                self.left_bytes_per_sec = bytes as f64 / reading.begun.elapsed().as_secs_f64().max(1e-3);
                tracing::info!("storage gives more than this source: it is read for what is missing");
                return Ok(Event::MayRead);
            }
            Outcome::LeaseLost if in_a_chain => {
                reading.running = running;
                return Ok(Event::Stalled);
            }
            // Excluded: another seed is asked, or storage read, while this read still writes. It ends first.
            Outcome::LeaseLost => {
                reading.stop.cancel();
                running.as_mut().await
            }
            Outcome::Hangs => return Err(reading.hangs()),
        };
        drop(running);
        self.ended(result).await
    }

    /// Takes in how reading from the seed went.
    pub(super) async fn ended(&mut self, result: Result<ReadReport, ReadError>) -> Result<Event, LoadError> {
        let (Some(reading), Some(lease)) = (self.reading.take(), &self.lease) else {
            return Ok(Event::SeedFailed);
        };
        self.memory.arrivals().source(false);
        let in_a_chain = lease.source().is_some();
        // Whatever became of the connections afterwards: every chunk was compared, and it is known what they are.
        let is_whole = self.memory.all_held() && self.memory.content().is_some();
        let closed = in_a_chain && matches!(result, Err(ReadError::Lost { .. } | ReadError::Refused { .. }));
        if closed && reading.watch.state.is_none() {
            // Maybe another one has its place by now, and that is why.
            lease.confirm().await;
        }
        let (seed, lost) = (reading.seed.clone(), lease.lost().is_cancelled());
        let content = self.memory.content().map(|content| content.id);
        let is_allowed = lease.allows(content);
        // One that loads itself may start over or be gone, and one that is silent may only stall: that is no fault of a
        // seed's.
        let is_silent = in_a_chain && matches!(result, Err(ReadError::Silent { .. }));
        let went = is_silent || closed && (reading.watch.state.is_some() || lost);
        self.share(Source::Seed(seed.clone()), reading.held_before, reading.begun);
        let bytes = self.memory.held_bytes().saturating_sub(reading.held_before);
        let duration = reading.begun.elapsed();
        let failed = |reason| TransferReport::Failed { reason, bytes, duration };
        if is_whole && !is_allowed {
            let content = content.map(|content| content.to_string());
            tracing::warn!(%seed, content, "what came is nothing that the key is pinned to: it is dropped");
            self.report(failed("content"));
            return Ok(Event::NotPinned);
        }
        self.report(match &result {
            Err(ReadError::Hung { .. }) => failed("lost"),
            Ok(_) if self.memory.all_held() => TransferReport::Done { bytes, duration },
            Err(_) if is_whole => TransferReport::Done { bytes, duration },
            Ok(_) => failed("incomplete"),
            Err(_) if went => TransferReport::Aborted,
            Err(ReadError::Lost { .. } | ReadError::Silent { .. }) => failed("lost"),
            Err(ReadError::Protocol { .. }) => failed("protocol"),
            Err(ReadError::Corrupt { .. }) => failed("corrupt"),
            // That says nothing of the seed's health: one that refuses, because it has readers enough, lives.
            Err(_) => TransferReport::Aborted,
        });
        match result {
            Ok(_) if self.memory.all_held() => Ok(Event::AllHeld),
            Ok(_) => Ok(Event::SeedFailed),
            // Nothing else may write where that call still may: not a fallback, nor another seed.
            Err(error @ ReadError::Hung { .. }) => Err(LoadError::Hung(error)),
            Err(_) if self.cancel.is_cancelled() => Err(LoadError::Cancelled),
            Err(_) if is_whole => Ok(Event::AllHeld),
            Err(ReadError::Cancelled) if lost => Ok(Event::LeaseLost),
            Err(error) if went => {
                let held_bytes = self.memory.held_bytes();
                tracing::info!(%seed, %error, held_bytes, "the source went away or is silent; what is held is kept");
                Ok(Event::SourceGone)
            }
            Err(error) => {
                let tensors = self.tensors_of(&error);
                let held_bytes = self.memory.held_bytes();
                tracing::warn!(%seed, %error, tensors, held_bytes, "the seed failed; what is held is kept");
                Ok(Event::SeedFailed)
            }
        }
    }

    /// Ends what is read, if anything is. When this returns, nothing of the seed's writes to the memory any more.
    ///
    /// # Errors
    /// [`LoadError::Hung`], after which something may.
    pub(super) async fn end_reading(&mut self) -> Result<(), LoadError> {
        let Some(mut reading) = self.reading.take() else { return Ok(()) };
        reading.stop.cancel();
        let ended = tokio::select! {
            ended = &mut reading.running => ended,
            () = long_cancelled(self.cancel), if !self.engine.capabilities().verifies => return Err(reading.hangs()),
        };
        self.memory.arrivals().source(false);
        self.share(Source::Seed(reading.seed.clone()), reading.held_before, reading.begun);
        match ended {
            Err(error @ ReadError::Hung { .. }) => Err(LoadError::Hung(error)),
            // How else it ended says nothing: it was ended from here.
            _ => Ok(()),
        }
    }

    /// The names of the tensors in a corrupt chunk, the first few.
    fn tensors_of(&self, error: &ReadError) -> String {
        let ReadError::Corrupt { chunk, .. } = error else { return String::new() };
        let segments = self.memory.plan().segments(*chunk).take(3);
        let names = segments.filter_map(|segment| self.manifest.tensors().get(segment.tensor));
        names.map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl Reading<'_> {
    /// Its caller does not wait for its end any more. What reads owns what it writes.
    fn hangs(&self) -> LoadError {
        let waited_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        LoadError::Hung(ReadError::Hung { peer: self.peer.clone(), waited_ms })
    }
}

/// What came first while a seed was read.
enum Outcome {
    Ended(Result<ReadReport, ReadError>),
    LeaseLost,
    Stalled,
    ReadsStorage,
    Hangs,
}

/// Ends when the source should be left: it has stalled, or the planner advises to move.
async fn stalled(lease: &Lease, watch: &Watch, memory: &WeightMemory) {
    let silence = async {
        while !watch.has_stalled(memory) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = lease.advised_to_move().cancelled(), if watch.heeds_advice => {}
        () = silence => {}
    }
}

impl Watch {
    /// What is known of the source.
    fn state(&self) -> SourceState {
        // Who holds everything owes what is missing.
        let of_a_complete_one = SourceState { owes: true, ..SourceState::default() };
        self.state.as_ref().map_or(of_a_complete_one, |state| *state.borrow())
    }

    /// For how long it has said nothing of itself, once it has said something.
    fn unheard(&self) -> Option<Duration> {
        self.state().signed.map(|signed| signed.elapsed())
    }

    /// Whether no byte comes for longer than the source may take.
    pub(super) fn has_stalled(&self, memory: &WeightMemory) -> bool {
        self.stall.is_over(memory.arrivals().silent(), self.state(), self.unheard())
    }

    /// Whether neither a byte nor a sign of life comes.
    pub(super) fn is_lost(&self, memory: &WeightMemory) -> bool {
        let is_heard = self.unheard().is_some_and(|unheard| unheard < UNHEARD);
        !is_heard && memory.arrivals().silent() >= self.stall.stall
    }
}

/// Returns when a token was cancelled [`CANCEL_GRACE`] ago.
async fn long_cancelled(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
}
