//! One worker's life: it takes its weights from a seed or from storage, and then serves them on.
//!
//! A [`Session`] is the sole owner of its engine, the registered memory, the metadata service and the heartbeat. A load
//! (`load`, which `drive` goes on with as `state` decides) owns its lease; serving (`serve`) is apart from it. Dropping a session, or
//! the future of a load, releases the lease in the background; a dropped session's service ends, and the memory lives
//! until nobody reads it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::SeedKey;
use rfork_protocol::manifest::agreement::Tolerance;
use rfork_protocol::manifest::{Manifest, Tensor};
use rfork_protocol::seed_key::SeedKeyError;
use rfork_protocol::v1::Labels;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::advertise::{Advertised, advertised_host};
use crate::config::Config;
use crate::engine::memory::WeightMemory;
use crate::engine::tcp::{self, TcpEngine, TcpOptions};
use crate::engine::{EngineError, TransferEngine};
use crate::fallback::{Fallback, InPlace, Whole};
use crate::identity::Identity;
use crate::lease::Releases;
use crate::planner_client::PlannerClient;

mod ask;
mod check;
mod claim;
mod drive;
mod error;
mod fill;
mod load;
mod loading;
mod patience;
mod progress;
mod read;
mod seek;
mod serve;
mod stall;
mod state;

pub use crate::advertise::BadSetting;
pub use crate::reach::Unreachable;
pub use error::{LoadError, ServeError, SessionError};
use load::Load;
use loading::Loading;
pub use progress::{LoadReport, Phase, Progress, Share, Source};
use serve::Seed;
pub use serve::Serving;
use stall::StallRule;
use state::State;

#[cfg(test)]
mod tests;

/// How long closing waits for releases that are under way.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// How long whoever reads from a worker may take to hold everything, when its weights may change once they are loaded.
const READERS_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether they do.
const READERS_LOOK: Duration = Duration::from_millis(20);

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

impl Worker {
    /// A worker over the TCP engine whose ranks are `identity`'s, the only one of its instance and its tensor-parallel
    /// rank.
    ///
    /// # Errors
    /// [`SeedKeyError`].
    pub fn of_tcp(config: &Config, identity: &Identity) -> Result<Self, SeedKeyError> {
        Ok(Self {
            key: identity.seed_key(config, tcp::NAME)?,
            rank: identity.tp_rank,
            global_rank: identity.tp_rank,
            draft: identity.draft,
            tolerance: Tolerance::default(),
        })
    }
}

/// One worker's life. See the module.
pub struct Session {
    config: Config,
    worker: Worker,
    advertised: Advertised,
    planner: PlannerClient,
    releases: Releases,
    engine: Arc<dyn TransferEngine>,
    progress: watch::Sender<Progress>,
    stage: Stage,
    /// For how long the caller leaves the memory alone, so that others may read it while it loads.
    passes_on: PassesOn,
    stall: StallRule,
    /// How long whoever reads here may take then.
    readers_deadline: Duration,
    /// This worker as a loading seed: from when it has loaded until it serves.
    loading: Option<Loading>,
    /// What makes this worker a seed, once it serves.
    seed: Option<Seed>,
}

/// For how long a caller leaves the memory alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PassesOn {
    /// Others read it once it serves.
    Never,
    /// Until it is loaded, and then from when it serves.
    UntilLoaded,
    /// Until the session is closed.
    ForGood,
}

/// Whether there are weights.
enum Stage {
    /// No load was begun.
    Idle,
    /// A load was begun, and no other is: it runs, its future was dropped, it has failed, or what it loaded is not this
    /// session's to serve.
    Spent,
    /// The same, and a call of the engine's may last for ever: whatever else is asked of it waits for that.
    Hung,
    /// They are in memory.
    Loaded(Arc<Model>),
}

/// Weights that are loaded.
struct Model {
    /// With the addresses of `memory`.
    manifest: Manifest,
    memory: Arc<WeightMemory>,
    /// Why peers cannot read the memory, if the engine did not take it.
    unregistered: Option<Arc<EngineError>>,
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
        let planner = PlannerClient::new(
            &config.scheduler_url,
            config.request_timeout,
            labels,
            config.topology.clone(),
        )?
        .showing(config.token_file.clone())
        .trusting(config.planner_ca.clone())?;
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
            progress: watch::Sender::new(Progress::default()),
            stage: Stage::Idle,
            passes_on: PassesOn::Never,
            stall: StallRule::default(),
            readers_deadline: READERS_DEADLINE,
            loading: None,
            seed: None,
        })
    }

    /// Lets others read what is held while the rest still loads, if settings, engine and planner have it. The caller
    /// promises to leave the bytes alone from then until the session is closed: whoever transforms them in place after the
    /// load must not say this.
    pub fn pass_on(&mut self) {
        self.passes_on = PassesOn::ForGood;
    }

    /// As [`Session::pass_on`], for a caller who may transform the bytes in place once they are loaded: it leaves them alone
    /// until [`Session::load`] returns, which waits for up to 10 s until whoever reads here holds everything. After that
    /// nobody reads here before [`Session::serve`].
    pub fn pass_on_until_loaded(&mut self) {
        self.passes_on = PassesOn::UntilLoaded;
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
        self.begin(State::begin(), manifest, memory, fallback, cancel).await
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
        self.begin(State::adopt(), manifest, memory, &Whole(InPlace), &CancellationToken::new()).await
    }

    /// After [`LoadError::Hung`] or [`LoadError::StillRead`]: fills other memory from `fallback` alone. The session serves nobody: its engine is
    /// not used any more, and keeps the first memory for as long as a hung call may write there, or peers read it.
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
        if !matches!(self.stage, Stage::Spent | Stage::Hung) {
            return Err(LoadError::NotIdle);
        }
        let manifest = with_addresses(manifest, &memory)?;
        let begun = Instant::now();
        let shares =
            Load::new(self, &manifest, &memory, fallback, cancel, &mut None).run(State::adopt()).await?;
        Ok(report(&memory, begun, shares))
    }

    async fn begin(
        &mut self,
        mut first: State,
        manifest: &Manifest,
        memory: Arc<WeightMemory>,
        fallback: &dyn Fallback,
        cancel: &CancellationToken,
    ) -> Result<LoadReport, LoadError> {
        if !matches!(self.stage, Stage::Idle) {
            return Err(LoadError::NotIdle);
        }
        let manifest = with_addresses(manifest, &memory)?;
        memory.digest_by(self.config.digest);
        let unregistered = match self.engine.register(memory.clone()).await {
            Ok(()) => None,
            Err(error) if first == State::adopt() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "no seed is read: loading from storage; this worker will not be a seed");
                first = State::adopt();
                Some(Arc::new(error))
            }
        };
        self.stage = Stage::Spent;
        let mut loading = if first == State::begin() {
            // What was begun of it ends with its future, and the load ends at its first step.
            cancel.run_until_cancelled(self.open_loading()).await.flatten()
        } else {
            None
        };
        let begun = Instant::now();
        let load = Load::new(self, &manifest, &memory, fallback, cancel, &mut loading);
        let shares = match load.run(first).await {
            Ok(shares) => shares,
            Err(error) => {
                match &error {
                    LoadError::Hung(_) => self.stage = Stage::Hung,
                    // It was tried just now.
                    LoadError::StillRead(_) => {}
                    // The memory is its owner's again.
                    _ => self.unregister().await,
                }
                if let Some(loading) = loading {
                    loading.close().await;
                }
                return Err(error);
            }
        };
        let report = report(&memory, begun, shares);
        if let Some(loading) = loading.as_mut().filter(|_| self.passes_on == PassesOn::UntilLoaded) {
            let finish = self.readers_finish(loading, &memory);
            let _ = cancel.run_until_cancelled(tokio::time::timeout(self.readers_deadline, finish)).await;
            loading.rest(&self.worker.key, &memory).await;
        }
        self.loading = loading;
        self.stage = Stage::Loaded(Arc::new(Model { manifest, memory, unregistered }));
        Ok(report)
    }

    /// Returns when nobody reads from a worker that holds everything and still counts as one that loads.
    async fn readers_finish(&self, loading: &Loading, memory: &Arc<WeightMemory>) {
        let _beating = loading.beat(memory);
        while self.engine.readers() + loading.readers() > 0 {
            tokio::time::sleep(READERS_LOOK).await;
        }
    }

    /// Takes everything down, in this order: heartbeat and advertisement, metadata service, registration,
    /// engine, and the releases that are still under way. Each step is bounded.
    pub async fn close(mut self) {
        if let Some(seed) = self.seed.take() {
            seed.stop().await;
        }
        if let Some(loading) = self.loading.take() {
            loading.close().await;
        }
        if !matches!(self.stage, Stage::Hung) {
            self.unregister().await;
            self.engine.finalize().await;
        }
        self.releases.finish(RELEASE_DEADLINE).await;
    }

    async fn unregister(&self) {
        if let Err(error) = self.engine.unregister().await {
            // The engine's tasks own the memory until they end.
            tracing::warn!(%error, "peers still read this worker's memory");
        }
    }
}

/// A load that has ended well.
fn report(memory: &WeightMemory, begun: Instant, shares: Vec<Share>) -> LoadReport {
    let content = memory.content().map(|content| content.id);
    let first_byte = memory.arrivals().first().map(|first| first.saturating_duration_since(begun));
    LoadReport { bytes: memory.plan().total_bytes(), duration: begun.elapsed(), first_byte, shares, content }
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
