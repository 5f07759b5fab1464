//! One worker's life: it takes its weights from a seed or from storage, and then serves them on.
//!
//! A [`Session`] is the sole owner of the lease, the registered memory, the metadata service and the
//! heartbeat. What it does next is decided in [`state`]; here the decisions are carried out and their outcomes
//! fed back. Dropping a session releases its lease in the background and ends its service; the memory lives
//! until nobody reads it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::manifest::agreement::Tolerance;
use rfork_protocol::manifest::content::content_id;
use rfork_protocol::manifest::metadata::{EntryFields, Extension, Metadata};
use rfork_protocol::manifest::{Manifest, Tensor};
use rfork_protocol::v1::Labels;
use rfork_protocol::v2::Name;
use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::advertise::{Advertised, advertised_host};
use crate::config::Config;
use crate::digest::{DigestAlgorithm, of_memory};
use crate::engine::memory::{Content, WeightMemory};
use crate::engine::tcp::{TcpEngine, TcpOptions};
use crate::engine::{EngineError, TransferEngine};
use crate::fallback::{Fallback, Fills, InPlace, Whole};
use crate::heartbeat::Heartbeat;
use crate::lease::Releases;
use crate::planner_client::{Advert, PlannerClient};
use crate::reach::Reach;
use crate::seed_service::SeedService;

mod error;
mod load;
mod progress;
pub mod state;

pub use error::{LoadError, ServeError, SessionError};
use load::Load;
pub use progress::{LoadReport, Phase, Progress, Share, Source};
use state::{Action, Event, Limits, State, step};

/// Seeds that may fail a load before storage is asked.
const LIMITS: Limits = Limits { seed_failures: 4, fallback: Fills::Chunks };
/// How long closing waits for releases that are under way.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// Who a worker is.
#[derive(Debug, Clone)]
pub struct Worker {
    /// What its weights are.
    pub key: SeedKey,
    /// Its tensor-parallel rank, under which the planner knows it.
    pub rank: u32,
    /// Its rank among all workers of its instance, by which fixed ports are counted.
    pub global_rank: u32,
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
    advertised: Advertised,
    planner: PlannerClient,
    releases: Releases,
    engine: Arc<dyn TransferEngine>,
    state: State,
    progress: watch::Sender<Progress>,
    /// Why peers cannot read the memory.
    unregistered: Option<EngineError>,
    /// A call of the engine's may last for ever, and whatever else is asked of it waits for that.
    engine_hangs: bool,
    model: Option<Model>,
    service: Option<SeedService>,
    heartbeat: Option<Heartbeat>,
}

struct Model {
    /// With the addresses of `memory`.
    manifest: Manifest,
    memory: Arc<WeightMemory>,
}

impl Model {
    /// What the bytes are. Weights that came without digests get them here, at the first time that anybody needs them:
    /// when their worker becomes a seed. `None` if a chunk is not held.
    ///
    /// The digests are made on a thread of their own, which holds the memory until it ends.
    async fn content(&self) -> Option<Arc<Content>> {
        if let Some(content) = self.memory.content() {
            return Some(content);
        }
        let memory = self.memory.clone();
        let digesting = tokio::task::spawn_blocking(move || of_memory(&memory, DigestAlgorithm::default()));
        let chunks = digesting.await.ok()??;
        let id = content_id(&self.manifest, &chunks);
        tracing::info!(content_id = %id, "weights that came without digests have them now");
        self.memory.set_content(Content { id, chunks });
        self.memory.content()
    }
}

impl Session {
    /// A session over the TCP engine, as `config` wants it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn over_tcp(config: Config, worker: Worker) -> Result<Self, SessionError> {
        let bind = async |config: &Config, _host: &str| {
            let mut options = TcpOptions::new(config.seed_bind_host.as_deref());
            options.max_readers = config.seed_max_readers;
            options.max_bytes_per_sec = config.seed_max_gib_per_sec.map(|rate| rate * f64::from(1 << 30));
            Ok(Arc::new(TcpEngine::bind(options).await?) as Arc<dyn TransferEngine>)
        };
        Self::over(config, worker, bind).await
    }

    /// A session over the engine that `engine` makes from the settings and the host that peers are told. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn over(
        config: Config,
        worker: Worker,
        engine: impl AsyncFnOnce(&Config, &str) -> Result<Arc<dyn TransferEngine>, EngineError>,
    ) -> Result<Self, SessionError> {
        let labels = if config.model_identity_headers {
            Labels {
                model_url: Some(config.model_url.clone()),
                deploy_strategy: Some(config.model_deploy_strategy_name.clone()),
                is_draft: Some(worker.draft),
            }
        } else {
            Labels::default()
        };
        let planner =
            PlannerClient::new(&config.scheduler_url, config.request_timeout, labels, config.place.clone())?;
        let (advertise, bind) = (config.seed_advertise_host.as_deref(), config.seed_bind_host.as_deref());
        let advertised = advertised_host(advertise, bind, &planner).await?;
        let engine = engine(&config, advertised.host.as_str()).await?;
        let releases = Releases::new(
            planner.clone(),
            config.lease_release_max_attempts,
            config.lease_release_retry_interval,
        );
        Ok(Self {
            config,
            worker,
            advertised,
            planner,
            releases,
            engine,
            state: State::Idle,
            progress: watch::Sender::new(Progress::default()),
            unregistered: None,
            engine_hangs: false,
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
    /// that are held when a source fails are kept if the next source has the same content. If the engine does not take
    /// the memory, `fallback` fills it, and the session cannot serve.
    ///
    /// # Errors
    /// [`LoadError`]; the memory is then not loaded, whatever it holds, and nobody writes to it, or reads it, any
    /// more.
    pub async fn load(
        &mut self,
        manifest: &Manifest,
        memory: Arc<WeightMemory>,
        fallback: &dyn Fallback,
        cancel: &CancellationToken,
    ) -> Result<LoadReport, LoadError> {
        self.begin(Event::Begin, manifest, memory, fallback, cancel).await
    }

    /// Takes over weights that the caller has loaded into `memory`, to serve them; no planner is asked.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn adopt(
        &mut self,
        manifest: &Manifest,
        memory: Arc<WeightMemory>,
    ) -> Result<LoadReport, LoadError> {
        self.begin(Event::Adopt, manifest, memory, &Whole(InPlace), &CancellationToken::new()).await
    }

    /// After [`LoadError::Hung`]: fills other memory from `fallback` alone. The session serves nobody: its engine is
    /// not used any more, and keeps the first memory for as long as the hung call may write there.
    ///
    /// # Errors
    /// [`LoadError`]; [`LoadError::NotIdle`] unless a load has failed before.
    pub async fn load_elsewhere(
        &mut self,
        manifest: &Manifest,
        memory: Arc<WeightMemory>,
        fallback: &dyn Fallback,
        cancel: &CancellationToken,
    ) -> Result<LoadReport, LoadError> {
        if self.state != State::Failed {
            return Err(LoadError::NotIdle);
        }
        let manifest = with_addresses(manifest, &memory)?;
        let begun = Instant::now();
        let shares = Load::new(self, &manifest, &memory, fallback, cancel).run(Event::Adopt).await?;
        Ok(report(&memory, begun, shares))
    }

    async fn begin(
        &mut self,
        event: Event,
        manifest: &Manifest,
        memory: Arc<WeightMemory>,
        fallback: &dyn Fallback,
        cancel: &CancellationToken,
    ) -> Result<LoadReport, LoadError> {
        if self.state != State::Idle {
            return Err(LoadError::NotIdle);
        }
        let manifest = with_addresses(manifest, &memory)?;
        let event = match self.engine.register(memory.clone()).await {
            Ok(()) => event,
            Err(error) if event == Event::Adopt => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "no seed is read: loading from storage; this worker will not be a seed");
                self.unregistered = Some(error);
                Event::Adopt
            }
        };
        // Until it is loaded: a load that fails, or whose future is dropped, is not repeated.
        self.state = State::Failed;
        let begun = Instant::now();
        let shares = match Load::new(self, &manifest, &memory, fallback, cancel).run(event).await {
            Ok(shares) => shares,
            Err(error @ LoadError::Hung(_)) => {
                self.engine_hangs = true;
                return Err(error);
            }
            Err(error) => {
                // The memory is its owner's again.
                if let Err(error) = self.engine.unregister().await {
                    tracing::warn!(%error, "peers still read this worker's memory");
                }
                return Err(error);
            }
        };
        self.state = State::Loaded;
        let report = report(&memory, begun, shares);
        self.model = Some(Model { manifest, memory });
        Ok(report)
    }

    /// Makes sure that nobody has written to the weights since they were loaded. An inference engine that transforms
    /// them in place must not serve what it made of them under the name of what it loaded.
    ///
    /// # Errors
    /// [`ServeError::Changed`], and [`ServeError::NotLoaded`].
    pub async fn verify(&self) -> Result<(), ServeError> {
        let model = self.model.as_ref().ok_or(ServeError::NotLoaded)?;
        let Some(known) = model.memory.content() else { return Ok(()) };
        let memory = model.memory.clone();
        let digesting = tokio::task::spawn_blocking(move || of_memory(&memory, DigestAlgorithm::default()));
        match digesting.await {
            Ok(Some(now)) if now == known.chunks => Ok(()),
            _ => Err(ServeError::Changed),
        }
    }

    /// Serves what was loaded: other workers may fork from this one until it is closed. Returns once the planner
    /// knows of it, or could not be told; it is then told again and again.
    ///
    /// # Errors
    /// [`ServeError`]; the worker stays loaded. After [`ServeError::Unreachable`] it still becomes a seed when others come
    /// to reach it.
    pub async fn serve(&mut self) -> Result<Serving, ServeError> {
        if self.state != State::Loaded {
            return Err(ServeError::NotLoaded);
        }
        if let Some(error) = self.unregistered.take() {
            return Err(ServeError::Unregistered(error));
        }
        self.state = step(self.state, Event::Serve, LIMITS).0;
        match self.start_service().await {
            Ok(reach) => {
                let identity = reach.identity.clone();
                let (advert, interval) = (self.advert(identity.clone()), self.config.heartbeat_interval);
                let heartbeat = Heartbeat::start(self.planner.clone(), advert, interval, reach);
                // Kept before it is waited for: a caller that gives up here can still close everything.
                self.heartbeat.insert(heartbeat).first().await?;
                self.state = step(self.state, Event::Healthy, LIMITS).0;
                let url = format!("http://{}", identity.authority());
                Ok(Serving { identity, url })
            }
            Err(error) => {
                self.service = None;
                self.state = step(self.state, Event::ServiceFailed, LIMITS).0;
                Err(error)
            }
        }
    }

    /// What the planner is told of this worker.
    fn advert(&self, identity: SeedIdentity) -> Advert {
        let content = self.model.as_ref().and_then(|model| model.memory.content());
        Advert {
            key: self.worker.key.clone(),
            identity,
            // This memory, served from now on: a worker that serves again, in whatever process, has another.
            incarnation: Name::cut(&uuid::Uuid::new_v4().simple().to_string()),
            content_id: content.and_then(|content| Name::cut(&content.id.to_string())),
        }
    }

    /// Starts the metadata service; gives the check that others reach it.
    async fn start_service(&mut self) -> Result<Reach, ServeError> {
        if self.advertised.is_guess
            && let Some(address) = self.planner.local_address().await
        {
            // The planner was not there when the session began.
            self.advertised = Advertised { host: address.into(), is_guess: false };
        }
        let host = &self.advertised.host;
        if host.address().is_some_and(|address| address.is_loopback())
            && self.planner.local_address().await.is_some_and(|address| !address.is_loopback())
        {
            tracing::warn!(
                %host,
                "others are told to come to this address, which leads only workers of this machine here; for those of \
                 others set rfork_seed_advertise_host"
            );
        }
        let model = self.model.as_ref().ok_or(ServeError::NotLoaded)?;
        let content = model.content().await.ok_or(ServeError::NotLoaded)?;
        let metadata = Metadata {
            session: self.engine.session(host),
            manifest: model.manifest.clone(),
            extension: Some(Extension {
                engine: self.engine.name().to_owned(),
                engine_version: self.engine.version().map(str::to_owned),
                content_id: content.id,
                chunks: content.chunks.clone(),
            }),
        };
        let key = &self.worker.key;
        let fields = self.config.seed_metadata_fields.unwrap_or_else(|| EntryFields::for_key(key));
        let port = self.config.seed_port(self.worker.global_rank, self.worker.draft).unwrap_or_else(|| {
            tracing::warn!(
                base = self.config.seed_port_base,
                global_rank = self.worker.global_rank,
                "rfork_seed_port_base leads beyond the last port: a free one is taken"
            );
            0
        });
        let bind = self.config.seed_bind_host.as_deref();
        let start = async |port| SeedService::start(bind, port, key, &metadata, fields).await;
        let service = match start(port).await {
            Err(error) if port != 0 => {
                tracing::warn!(%error, "a free port is taken instead of the one of rfork_seed_port_base");
                start(0).await?
            }
            started => started?,
        };
        let listening = self.service.insert(service).address();
        Ok(Reach {
            http: self.planner.http().clone(),
            identity: SeedIdentity::at(host.clone(), listening.port(), self.worker.rank)?,
            key: key.clone(),
            timeout: self.config.seed_timeout,
            bind: self.config.seed_bind_host.clone(),
            listening,
        })
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
            if !self.engine_hangs {
                if let Err(error) = self.engine.unregister().await {
                    // The engine's tasks own the memory until they end.
                    tracing::warn!(%error, "peers still read this worker's memory");
                }
                self.engine.finalize().await;
            }
        }
        self.releases.finish(RELEASE_DEADLINE).await;
    }
}

/// A load that has ended well.
fn report(memory: &WeightMemory, begun: Instant, shares: Vec<Share>) -> LoadReport {
    let content = memory.content().map(|content| content.id);
    LoadReport { bytes: memory.plan().total_bytes(), duration: begun.elapsed(), shares, content }
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
