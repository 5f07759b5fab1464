//! One load: performs what [`super::state`] decides, from the first question to the last chunk.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::agreement::agree;
use rfork_protocol::manifest::content::{ChunkDigests, content_id};
use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::seed_key::UNNAMED_ENGINE;
use tokio_util::sync::CancellationToken;

use super::error::LoadError;
use super::progress::{Phase, Reporter, Share, Source};
use super::state::{Action, Event, Filling, Limits, State, step};
use super::{LIMITS, Session, Worker};
use crate::config::Config;
use crate::digest::DigestAlgorithm;
use crate::engine::memory::{Content, WeightMemory};
use crate::engine::{ReadError, ReadRequest, TransferEngine};
use crate::fallback::{Fallback, FallbackError, FillRequest};
use crate::lease::{Lease, Releases};
use crate::planner_client::{PlannerClient, TransferReport, Wish};
use crate::retry::Backoff;
use crate::seed_client;

/// How often one question is repeated because the planner handed out a seed that has failed already.
const REPEATED_QUESTIONS: u32 = 4;
/// Pauses between two questions while a worker waits for a seed: from here to there.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a load that its caller ends waits for the read that is under way. One by address cannot be ended.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// What is logged at most of a version that a seed tells.
const MAX_VERSION_CHARS: usize = 64;

/// A load under way: what the actions act on. Dropped, it releases its leases in the background.
pub(super) struct Load<'a> {
    planner: &'a PlannerClient,
    releases: &'a Releases,
    engine: &'a dyn TransferEngine,
    config: &'a Config,
    worker: &'a Worker,
    manifest: &'a Manifest,
    memory: &'a Arc<WeightMemory>,
    fallback: &'a dyn Fallback,
    cancel: &'a CancellationToken,
    reporter: Reporter,
    /// The lease on the seed that is read.
    lease: Option<Lease>,
    /// Leases on seeds that failed, kept until the planner has handed out another seed.
    condemned: Vec<Lease>,
    failed: HashSet<SeedIdentity>,
    /// The seed that is read: what it says, and what its bytes are, if it has digests.
    source: Option<(Metadata, Option<Content>)>,
    asking_since: Option<Instant>,
    /// Time spent waiting for seeds before `asking_since`.
    waited: Duration,
    backoff: Backoff,
    shares: Vec<Share>,
    storage_error: Option<FallbackError>,
    /// Whether a seed's bytes may have been written.
    touched: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(
        session: &'a Session,
        manifest: &'a Manifest,
        memory: &'a Arc<WeightMemory>,
        fallback: &'a dyn Fallback,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self {
            planner: &session.planner,
            releases: &session.releases,
            engine: session.engine.as_ref(),
            config: &session.config,
            worker: &session.worker,
            manifest,
            memory,
            fallback,
            cancel,
            reporter: Reporter::start(session.progress.clone(), memory.clone()),
            lease: None,
            condemned: Vec::new(),
            failed: HashSet::new(),
            source: None,
            asking_since: None,
            waited: Duration::ZERO,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            shares: Vec::new(),
            storage_error: None,
            touched: false,
        }
    }

    /// Goes from state to state until the weights are loaded, beginning with `event`; gives what each source gave.
    pub(super) async fn run(mut self, event: Event) -> Result<Vec<Share>, LoadError> {
        let result = self.go(event).await;
        self.reporter.phase(if result.is_ok() { Phase::Loaded } else { Phase::Failed });
        result.map(|()| self.shares)
    }

    async fn go(&mut self, mut event: Event) -> Result<(), LoadError> {
        let limits = Limits { fallback: self.fallback.fills(), ..LIMITS };
        let mut state = State::Idle;
        loop {
            let (next, actions) = step(state, event, limits);
            state = next;
            let mut outcome = None;
            for action in actions {
                outcome = self.perform(action).await?;
            }
            match (state, outcome) {
                (State::Loaded, _) => return Ok(()),
                (_, Some(outcome)) => event = outcome,
                // Only `Failed` has no action with an outcome, and it follows from storage's error.
                (_, None) => {
                    return Err(self.storage_error.take().map_or(LoadError::Cancelled, LoadError::Fallback));
                }
            }
        }
    }

    /// Performs one action; gives its outcome if it has one.
    async fn perform(&mut self, action: Action) -> Result<Option<Event>, LoadError> {
        if self.cancel.is_cancelled() {
            return Err(LoadError::Cancelled);
        }
        let cancel = self.cancel;
        let cancelled = || LoadError::Cancelled;
        match action {
            Action::Ask => {
                self.reporter.phase(Phase::Asking);
                cancel.run_until_cancelled(self.ask()).await.map(Some).ok_or_else(cancelled)
            }
            Action::Pause => {
                let left = self.config.seed_wait.saturating_sub(self.waited_so_far());
                let pause = self.backoff.pause().min(left);
                let slept = cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
                slept.map(|()| Some(Event::PauseOver)).ok_or_else(cancelled)
            }
            Action::Check => cancel.run_until_cancelled(self.check()).await.map(Some).ok_or_else(cancelled),
            Action::StartOver => {
                tracing::warn!("what comes next has other bytes: the load starts over");
                self.memory.forget_all()?;
                self.shares.clear();
                Ok(None)
            }
            Action::Read => self.read().await.map(Some),
            Action::Condemn => {
                if let Some(lease) = self.lease.take() {
                    self.failed.insert(lease.seed().clone());
                    self.condemned.push(lease);
                }
                Ok(None)
            }
            Action::Release => {
                self.lease = None;
                self.condemned.clear();
                Ok(None)
            }
            Action::Fill(filling) => self.fill(filling).await.map(Some),
            // These come after loading.
            Action::StartService | Action::Advertise | Action::TakeDown => Ok(None),
        }
    }

    fn waited_so_far(&self) -> Duration {
        self.waited + self.asking_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    async fn ask(&mut self) -> Event {
        self.asking_since.get_or_insert_with(Instant::now);
        if self.planner.excludes_seeds().await {
            // Seeds that failed are not handed out again, so their leases need not be kept.
            self.condemned.clear();
        }
        for _ in 0..=REPEATED_QUESTIONS {
            let wish = Wish {
                wait: self.config.seed_wait.saturating_sub(self.waited_so_far()),
                exclude: self.failed.iter().cloned().collect(),
            };
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
                    self.waited = self.waited_so_far();
                    self.asking_since = None;
                    self.backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
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
        let may_wait = self.waited_so_far() < self.config.seed_wait;
        if !may_wait {
            tracing::info!("no seed is free: loading from storage");
        }
        Event::NoSeed { may_wait }
    }

    async fn check(&mut self) -> Event {
        let Some(lease) = &self.lease else { return Event::SeedFailed };
        let seed = lease.seed().clone();
        self.reporter.phase(Phase::Checking(seed.clone()));
        let begun = Instant::now();
        let fetching = seed_client::fetch(self.planner.http(), &seed, &self.worker.key);
        let Some(metadata) = lease.lost().run_until_cancelled(fetching).await else {
            return Event::LeaseLost;
        };
        let mut metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => {
                tracing::warn!(%seed, %error, "the seed is passed over");
                self.report(TransferReport::Failed {
                    reason: "metadata",
                    bytes: 0,
                    duration: begun.elapsed(),
                });
                return Event::SeedFailed;
            }
        };
        if let Err(error) = agree(self.manifest, &metadata.manifest, &self.worker.tolerance) {
            tracing::warn!(%seed, %error, "the seed holds another model under this key: no byte is read");
            return Event::Disagreed;
        }
        match self.content_of(&metadata) {
            Ok(content) => {
                let id = content.as_ref().map(|content| content.id);
                if !self.worker.tolerance.shared.is_empty() {
                    metadata.manifest = metadata.manifest.restricted_to(self.manifest);
                }
                self.source = Some((metadata, content));
                Event::Agreed(id)
            }
            Err(reason) => {
                tracing::warn!(%seed, reason, "the seed is passed over");
                Event::SeedFailed
            }
        }
    }

    /// Notes how the seed did, for the planner.
    fn report(&mut self, report: TransferReport) {
        if let Some(lease) = &mut self.lease {
            lease.report(report);
        }
    }

    /// What the seed's bytes are, if this worker's engine can read them; `None` when the seed has no digests, as
    /// unmodified vLLM Ascend has none.
    fn content_of(&self, metadata: &Metadata) -> Result<Option<Content>, String> {
        let extension = metadata.extension.as_ref();
        // Who names no engine has the one that was there before engines had names.
        let (theirs, ours) = (extension.map_or(UNNAMED_ENGINE, |e| e.engine.as_str()), self.engine.name());
        if theirs != ours {
            return Err(format!("its engine is {theirs}, this worker's is {ours}"));
        }
        let their_version = extension.and_then(|extension| extension.engine_version.as_deref());
        match (their_version, self.engine.version()) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                let theirs: String = theirs.chars().take(MAX_VERSION_CHARS).collect();
                return Err(format!(
                    "its engine is version {theirs}, this worker's is {ours}: use one version"
                ));
            }
            (None, Some(ours)) => {
                let session = &metadata.session;
                tracing::warn!(
                    session,
                    ours,
                    "the seed does not tell its engine's version; it is taken for ours"
                );
            }
            _ => {}
        }
        let Some(extension) = extension else { return Ok(None) };
        let chunks = &extension.chunks;
        let plan = self.memory.plan();
        if chunks.chunk_bytes != plan.chunk_size() || chunks.digests.len() != plan.count() as usize {
            return Err("it cuts the model into other chunks: use workers of one release".into());
        }
        // Our own manifest agrees with the seed's and says everything, so it gives the id that the seed must
        // have given.
        let id = content_id(self.manifest, chunks);
        if id != extension.content_id {
            return Err("its content id does not fit its manifest and digests".into());
        }
        Ok(Some(Content { id, chunks: chunks.clone() }))
    }

    async fn read(&mut self) -> Result<Event, LoadError> {
        let (Some(lease), Some((metadata, content))) = (&self.lease, &self.source) else {
            return Ok(Event::SeedFailed);
        };
        let seed = lease.seed().clone();
        self.reporter.phase(Phase::Loading(Source::Seed(seed.clone())));
        if let Some(content) = content {
            self.memory.set_content(content.clone());
        }
        self.touched = true;
        let (begun, held_before) = (Instant::now(), self.memory.held_bytes());
        let stop = self.cancel.child_token();
        let request = ReadRequest {
            seed: metadata,
            content: content.as_ref(),
            memory: self.memory,
            arrived_bytes: &Arc::new(AtomicU64::new(0)),
            cancel: &stop,
        };
        let mut reading = self.engine.read(request);
        let result = tokio::select! {
            result = &mut reading => result,
            // The read itself must end, so that nothing writes any more, before anything else is done.
            () = lease.lost().cancelled() => {
                stop.cancel();
                reading.as_mut().await
            }
            // Only a read by address cannot be ended: another is waited for, so that nothing writes any more.
            () = long_cancelled(self.cancel), if !self.engine.capabilities().verifies => {
                // What reads still owns what it writes.
                let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(LoadError::Hung(ReadError::Hung { peer: metadata.session.clone(), waited_ms }));
            }
        };
        drop(reading);
        let lost = lease.lost().is_cancelled();
        self.share(Source::Seed(seed.clone()), held_before, begun);
        let (bytes, duration) = (self.memory.held_bytes().saturating_sub(held_before), begun.elapsed());
        let failed = |reason| TransferReport::Failed { reason, bytes, duration };
        self.report(match &result {
            Ok(_) if self.memory.all_held() => TransferReport::Done { bytes, duration },
            Ok(_) => failed("incomplete"),
            Err(ReadError::Lost { .. } | ReadError::Hung { .. }) => failed("lost"),
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
            Err(ReadError::Cancelled) if lost => Ok(Event::LeaseLost),
            Err(error) => {
                let tensors = self.tensors_of(&error);
                let held_bytes = self.memory.held_bytes();
                tracing::warn!(%seed, %error, tensors, held_bytes, "the seed failed; what is held is kept");
                Ok(Event::SeedFailed)
            }
        }
    }

    /// The names of the tensors in a corrupt chunk, the first few.
    fn tensors_of(&self, error: &ReadError) -> String {
        let ReadError::Corrupt { chunk, .. } = error else { return String::new() };
        let segments = self.memory.plan().segments(*chunk).take(3);
        let names = segments.filter_map(|segment| self.manifest.tensors().get(segment.tensor));
        names.map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    async fn fill(&mut self, filling: Filling) -> Result<Event, LoadError> {
        self.reporter.phase(Phase::Loading(Source::Storage));
        let (begun, held_before) = (Instant::now(), self.memory.held_bytes());
        let expected = match filling {
            Filling::Missing(_) => self.memory.content().map(|content| content.chunks.clone()),
            Filling::All => None,
        };
        let request = FillRequest {
            memory: self.memory.clone(),
            chunks: self.memory.missing(),
            expected,
            touched: self.touched,
            filled_bytes: Arc::default(),
            cancel: self.cancel.clone(),
        };
        let result = self.fallback.fill(request).await;
        self.share(Source::Storage, held_before, begun);
        match result {
            Ok(digests) => {
                if filling == Filling::All {
                    self.name_content(&digests);
                }
                if self.memory.all_held() && self.memory.content().is_some() {
                    return Ok(Event::AllHeld);
                }
                let missing = self.memory.missing().len();
                let reason = format!("the fallback left {missing} chunk(s) empty");
                self.storage_error = Some(FallbackError::Crashed(reason));
                Ok(Event::StorageFailed)
            }
            Err(FallbackError::Cancelled) => Err(LoadError::Cancelled),
            Err(error @ FallbackError::OtherBytes(_)) => {
                tracing::warn!(%error, "storage holds other weights than the seed did");
                self.storage_error = Some(error);
                Ok(Event::OtherBytes)
            }
            Err(error) => {
                self.storage_error = Some(error);
                Ok(Event::StorageFailed)
            }
        }
    }

    /// All chunks came from storage: their digests are made here, and travel on from here.
    fn name_content(&self, digests: &[(u32, u64)]) {
        let plan = self.memory.plan();
        if digests.len() == plan.count() as usize {
            let chunks = ChunkDigests {
                algorithm: DigestAlgorithm::default().to_string(),
                chunk_bytes: plan.chunk_size(),
                digests: digests.iter().map(|(_, digest)| *digest).collect(),
            };
            self.memory.set_content(Content { id: content_id(self.manifest, &chunks), chunks });
        }
    }

    fn share(&mut self, source: Source, held_before: u64, begun: Instant) {
        let bytes = self.memory.held_bytes() - held_before;
        if bytes > 0 {
            self.shares.push(Share { source, bytes, duration: begun.elapsed() });
        }
    }
}

/// Returns when a token was cancelled [`CANCEL_GRACE`] ago.
async fn long_cancelled(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
}
