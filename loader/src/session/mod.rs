//! One worker's life: it takes its weights from a seed or from storage, and then serves them on.
//!
//! A [`Session`] is the sole owner of the lease, the registered memory, the metadata service and the
//! heartbeat. What it does next is decided in [`state`]; here the decisions are carried out and their outcomes
//! fed back. Dropping a session releases its lease in the background and ends its service; the memory lives
//! until nobody reads it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rfork_protocol::manifest::agreement::{Tolerance, agree};
use rfork_protocol::manifest::content::{ChunkDigests, content_id};
use rfork_protocol::manifest::metadata::{EntryFields, Extension, Metadata};
use rfork_protocol::manifest::{Manifest, ManifestError, Tensor};
use rfork_protocol::v1::Labels;
use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::advertise::{AdvertiseError, advertised_host};
use crate::config::{Config, ConfigError};
use crate::digest::DigestAlgorithm;
use crate::engine::memory::{ChunkInUse, Content, WeightMemory};
use crate::engine::tcp::{TcpEngine, TcpOptions};
use crate::engine::{EngineError, ReadError, ReadRequest, TransferEngine};
use crate::fallback::{Fallback, FallbackError, FillRequest};
use crate::heartbeat::Heartbeat;
use crate::lease::{Lease, Releases};
use crate::planner_client::{PlannerClient, PlannerError};
use crate::retry::Backoff;
use crate::seed_client;
use crate::seed_service::{SeedService, SeedServiceError};

mod progress;
pub mod state;

use progress::Reporter;
pub use progress::{LoadReport, Phase, Progress, Share, Source};
use state::{Action, Event, Filling, Limits, State, step};

/// Seeds that may fail a load before storage is asked.
const LIMITS: Limits = Limits { seed_failures: 4 };
/// How often one question is repeated because the planner handed out a seed that has failed already.
const REPEATED_QUESTIONS: u32 = 4;
/// Pauses between two questions while a worker waits for a seed: from here to there.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long closing waits for releases that are under way.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// A session that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The planner cannot be spoken to at all.
    #[error(transparent)]
    Planner(#[from] PlannerError),
    /// No address to advertise.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// The transfer engine does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The address to advertise is not one.
    #[error("rfork_seed_advertise_host: {0}")]
    Host(#[from] rfork_protocol::IdError),
}

/// A worker that has no weights.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither a seed nor storage gave them.
    #[error("the weights could not be loaded: {0}")]
    Fallback(#[from] FallbackError),
    /// The caller ended it.
    #[error("loading was cancelled")]
    Cancelled,
    /// The memory does not fit the manifest.
    #[error("the memory was allocated for other tensors: {0}")]
    Memory(String),
    /// The tensors with their addresses make no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The memory cannot be registered.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Somebody else uses the memory.
    #[error("the memory is in use by somebody else: {0}")]
    InUse(#[from] ChunkInUse),
    /// The session was loaded or closed before.
    #[error("this session has loaded already, or was closed")]
    NotIdle,
}

/// A worker that is loaded, but serves nobody.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The metadata service does not start.
    #[error(transparent)]
    Service(#[from] SeedServiceError),
    /// There is nothing to serve, or it is being served already.
    #[error("a session serves once, after it has loaded")]
    NotLoaded,
    /// The address to advertise is not one.
    #[error("rfork_seed_advertise_host: {0}")]
    Host(#[from] rfork_protocol::IdError),
}

/// Who a worker is.
#[derive(Debug, Clone)]
pub struct Worker {
    /// What its weights are.
    pub key: SeedKey,
    /// Its rank within its instance.
    pub rank: u32,
    /// Whether it holds a draft model.
    pub draft: bool,
    /// What it accepts of a seed besides equality.
    pub tolerance: Tolerance,
}

/// What a worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// As the planner knows it.
    pub identity: SeedIdentity,
    /// The metadata service.
    pub url: String,
}

/// One worker's life. See the module.
pub struct Session {
    config: Config,
    worker: Worker,
    advertise_host: String,
    planner: PlannerClient,
    releases: Releases,
    engine: Arc<dyn TransferEngine>,
    state: State,
    progress: watch::Sender<Progress>,
    model: Option<Model>,
    service: Option<SeedService>,
    heartbeat: Option<Heartbeat>,
}

struct Model {
    /// With the addresses of `memory`.
    manifest: Manifest,
    memory: Arc<WeightMemory>,
}

impl Session {
    /// A session over the TCP engine, as `config` wants it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn over_tcp(config: Config, worker: Worker) -> Result<Self, SessionError> {
        let labels = if config.model_identity_headers {
            Labels {
                model_url: Some(config.model_url.clone()),
                deploy_strategy: Some(config.model_deploy_strategy_name.clone()),
                is_draft: Some(worker.draft),
            }
        } else {
            Labels::default()
        };
        let planner = PlannerClient::new(&config.scheduler_url, config.request_timeout, labels)?;
        config.seed_port(worker.rank, worker.draft)?;
        let advertise = config.seed_advertise_host.as_deref();
        let advertise_host = advertised_host(advertise, &config.seed_bind_host, planner.base()).await?;
        SeedIdentity::new(advertise_host.clone(), 1, worker.rank)?;
        let mut options = TcpOptions::new(config.seed_bind_host.clone(), advertise_host.clone());
        options.max_readers = config.seed_max_readers;
        options.max_bytes_per_sec = config.seed_max_gib_per_sec.map(|rate| rate * f64::from(1 << 30));
        let engine = Arc::new(TcpEngine::bind(options).await?);
        let releases = Releases::new(
            planner.clone(),
            config.lease_release_max_attempts,
            config.lease_release_retry_interval,
        );
        Ok(Self {
            config,
            worker,
            advertise_host,
            planner,
            releases,
            engine,
            state: State::Idle,
            progress: watch::Sender::new(Progress::default()),
            model: None,
            service: None,
            heartbeat: None,
        })
    }

    /// Where progress is told. Changes about ten times a second while bytes flow.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Fills `memory` with the tensors of `manifest`: from a seed if there is one, else from `fallback`. Chunks
    /// that are held when a source fails are kept if the next source has the same content.
    ///
    /// # Errors
    /// [`LoadError`]; the memory is then not loaded, whatever it holds. With [`LoadError::Cancelled`] nothing
    /// is written to it any more.
    pub async fn load(
        &mut self,
        manifest: &Manifest,
        memory: Arc<WeightMemory>,
        fallback: &dyn Fallback,
        cancel: &CancellationToken,
    ) -> Result<LoadReport, LoadError> {
        if self.state != State::Idle {
            return Err(LoadError::NotIdle);
        }
        let manifest = with_addresses(manifest, &memory)?;
        self.engine.register(memory.clone()).await?;
        let mut load = Load {
            planner: &self.planner,
            releases: &self.releases,
            engine: self.engine.as_ref(),
            config: &self.config,
            worker: &self.worker,
            manifest: &manifest,
            memory: &memory,
            fallback,
            cancel,
            reporter: Reporter::start(self.progress.clone(), memory.clone()),
            lease: None,
            condemned: Vec::new(),
            failed: HashSet::new(),
            source: None,
            asking_since: None,
            waited: Duration::ZERO,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            shares: Vec::new(),
            storage_error: None,
        };
        let begun = Instant::now();
        if let Err(error) = load.run(&mut self.state).await {
            self.state = State::Failed;
            load.reporter.phase(Phase::Failed);
            return Err(error);
        }
        load.reporter.phase(Phase::Loaded);
        let shares = std::mem::take(&mut load.shares);
        drop(load);
        let content = memory.content().ok_or_else(|| LoadError::Memory("it has no content".into()))?.id;
        let report =
            LoadReport { bytes: memory.plan().total_bytes(), duration: begun.elapsed(), shares, content };
        self.model = Some(Model { manifest, memory });
        Ok(report)
    }

    /// Serves what was loaded: other workers may fork from this one until it is closed. Returns once the planner
    /// knows of it, or could not be told; it is then told again and again.
    ///
    /// # Errors
    /// [`ServeError`]; the worker stays loaded.
    pub async fn serve(&mut self) -> Result<Serving, ServeError> {
        if self.state != State::Loaded {
            return Err(ServeError::NotLoaded);
        }
        self.state = step(self.state, Event::Serve, LIMITS).0;
        match self.start_service().await {
            Ok(serving) => {
                self.state = step(self.state, Event::Healthy, LIMITS).0;
                let (planner, key) = (self.planner.clone(), self.worker.key.clone());
                let interval = self.config.heartbeat_interval;
                let heartbeat = Heartbeat::start(planner, key, serving.identity.clone(), interval);
                // Kept before it is waited for: a caller that gives up here can still close everything.
                self.heartbeat.insert(heartbeat).first().await;
                Ok(serving)
            }
            Err(error) => {
                self.service = None;
                self.state = step(self.state, Event::ServiceFailed, LIMITS).0;
                Err(error)
            }
        }
    }

    async fn start_service(&mut self) -> Result<Serving, ServeError> {
        let model = self.model.as_ref().ok_or(ServeError::NotLoaded)?;
        let content = model.memory.content().ok_or(ServeError::NotLoaded)?;
        let metadata = Metadata {
            session: self.engine.session(),
            manifest: model.manifest.clone(),
            extension: Some(Extension {
                engine: self.engine.name().to_owned(),
                content_id: content.id,
                chunks: content.chunks.clone(),
            }),
        };
        let key = &self.worker.key;
        let fields = self.config.seed_metadata_fields.unwrap_or_else(|| EntryFields::for_key(key));
        let port = self.config.seed_port(self.worker.rank, self.worker.draft)?;
        let service = SeedService::start(&self.config.seed_bind_host, port, key, &metadata, fields).await?;
        let port = service.address().port();
        let service = self.service.insert(service);
        service.wait_healthy(self.planner.http(), key, self.config.seed_timeout).await?;
        let identity = SeedIdentity::new(self.advertise_host.clone(), port, self.worker.rank)?;
        let url = format!("http://{}", identity.authority());
        Ok(Serving { identity, url })
    }

    /// Takes everything down, in this order: heartbeat and advertisement, metadata service, registration,
    /// engine, and the releases that are still under way. Each step is bounded.
    pub async fn close(mut self) {
        let (state, actions) = step(self.state, Event::Stop, LIMITS);
        self.state = state;
        if actions.contains(&Action::TakeDown) {
            if let Some(heartbeat) = self.heartbeat.take() {
                heartbeat.stop().await;
            }
            if let Some(service) = self.service.take() {
                service.stop().await;
            }
            if let Err(error) = self.engine.unregister().await {
                // The engine's tasks own the memory until they end.
                tracing::warn!(%error, "peers still read this worker's memory");
            }
            self.engine.finalize().await;
        }
        self.releases.finish(RELEASE_DEADLINE).await;
    }
}

/// The manifest with the addresses that the tensors have in `memory`.
fn with_addresses(manifest: &Manifest, memory: &WeightMemory) -> Result<Manifest, LoadError> {
    if manifest.total_bytes() != memory.plan().total_bytes() {
        return Err(LoadError::Memory(format!(
            "it has {} bytes, the manifest {}",
            memory.plan().total_bytes(),
            manifest.total_bytes()
        )));
    }
    let placed = manifest.tensors().iter().enumerate().map(|(at, tensor)| {
        let address = memory.tensor_address(at).unwrap_or(tensor.address);
        Tensor { address, ..tensor.clone() }
    });
    Ok(Manifest::new(placed.collect())?)
}

/// A load under way: what the actions act on. Dropped, it releases its leases in the background.
struct Load<'a> {
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
    /// The seed that is read: what it says, and what its bytes are.
    source: Option<(Metadata, Content)>,
    asking_since: Option<Instant>,
    /// Time spent waiting for seeds before `asking_since`.
    waited: Duration,
    backoff: Backoff,
    shares: Vec<Share>,
    storage_error: Option<FallbackError>,
}

impl Load<'_> {
    /// Goes from state to state until the weights are loaded.
    async fn run(&mut self, state: &mut State) -> Result<(), LoadError> {
        let mut event = Event::Begin;
        loop {
            let (next, actions) = step(*state, event, LIMITS);
            *state = next;
            let mut outcome = None;
            for action in actions {
                outcome = self.perform(action).await?;
            }
            match (*state, outcome) {
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
        for _ in 0..=REPEATED_QUESTIONS {
            match self.planner.get_seed(&self.worker.key).await {
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
        let fetching = seed_client::fetch(self.planner.http(), &seed, &self.worker.key);
        let Some(metadata) = lease.lost().run_until_cancelled(fetching).await else {
            return Event::LeaseLost;
        };
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => {
                tracing::warn!(%seed, %error, "the seed is passed over");
                return Event::SeedFailed;
            }
        };
        if let Err(error) = agree(self.manifest, &metadata.manifest, &self.worker.tolerance) {
            tracing::warn!(%seed, %error, "the seed holds another model under this key: no byte is read");
            return Event::Disagreed;
        }
        match self.content_of(&metadata) {
            Ok(content) => {
                let id = content.id;
                self.source = Some((metadata, content));
                Event::Agreed(id)
            }
            Err(reason) => {
                tracing::warn!(%seed, reason, "the seed is passed over");
                Event::SeedFailed
            }
        }
    }

    /// What the seed's bytes are, if this worker can read and verify them.
    fn content_of(&self, metadata: &Metadata) -> Result<Content, String> {
        let Some(extension) = &metadata.extension else {
            return Err("it serves no chunk digests, so it is not of the TCP engine".into());
        };
        if extension.engine != self.engine.name() {
            return Err(format!(
                "its engine is {}, this worker's is {}",
                extension.engine,
                self.engine.name()
            ));
        }
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
        Ok(Content { id, chunks: chunks.clone() })
    }

    async fn read(&mut self) -> Result<Event, LoadError> {
        let (Some(lease), Some((metadata, content))) = (&self.lease, &self.source) else {
            return Ok(Event::SeedFailed);
        };
        let seed = lease.seed().clone();
        self.reporter.phase(Phase::Loading(Source::Seed(seed.clone())));
        self.memory.set_content(content.clone());
        let (begun, held_before) = (Instant::now(), self.memory.held_bytes());
        let stop = self.cancel.child_token();
        let request = ReadRequest {
            seed: metadata,
            content,
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
        };
        drop(reading);
        let lost = lease.lost().is_cancelled();
        self.share(Source::Seed(seed.clone()), held_before, begun);
        match result {
            Ok(_) if self.memory.all_held() => Ok(Event::AllHeld),
            Ok(_) => Ok(Event::SeedFailed),
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
