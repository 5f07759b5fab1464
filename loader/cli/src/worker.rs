//! `rfork worker`: one worker that holds a model in host memory, or in an NPU's.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rfork_loader::config::Config;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::engine::{tcp, yuanrong};
use rfork_loader::identity::Identity;
use rfork_loader::session::{LoadError, LoadReport, Phase, Progress, Session, Source, Worker};
use rfork_loader::storage::Checkpoint;
use rfork_loader::storage::model_digest::model_digest;
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::agreement::Tolerance;
use rfork_protocol::seed_key::KvRole;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::show::{self, gib_per_s};
use crate::{INTERRUPTED, signals};

/// Flags of `rfork worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The model: a safetensors file, or a directory with model.safetensors.index.json or one such file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,

    /// What moves the bytes: tcp for host memory, yuanrong for an NPU's
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,

    /// The number of the NPU that holds the weights, with --engine yuanrong
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    npu: i32,

    /// Load, report and end, instead of serving
    #[arg(long)]
    once: bool,

    /// Also compute SHA-256 over all loaded tensors, and log it
    #[arg(long)]
    digest: bool,

    /// Milliseconds between two progress lines where there is no terminal
    #[arg(long, default_value_t = 2_000, hide = true)]
    progress_interval_ms: u64,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    identity: IdentityArgs,
}

/// The loader's settings, as vLLM Ascend's users know them.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Shown on a terminal, where backticks only disturb.
#[command(next_help_heading = "Settings (in a file, as a flag, or in the environment, the flag first)")]
struct SettingsArgs {
    /// A JSON file with any of the settings below, as in vLLM's --model-loader-extra-config
    #[arg(long, value_name = "FILE.json")]
    config: Option<PathBuf>,

    /// Which model; part of the seed key [env: MODEL_URL]
    #[arg(long, value_name = "URL")]
    model_url: Option<String>,

    /// Which deployment of it; part of the seed key [env: MODEL_DEPLOY_STRATEGY_NAME]
    #[arg(long, value_name = "NAME")]
    model_deploy_strategy_name: Option<String>,

    /// The planner's URL [env: RFORK_SCHEDULER_URL]
    #[arg(long, value_name = "URL")]
    rfork_scheduler_url: Option<String>,

    /// Seconds that the own seed service may take to become healthy [env: RFORK_SEED_TIMEOUT_SEC] [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    rfork_seed_timeout_sec: Option<f64>,

    /// Seconds that a request to planner or seed may take [env: RFORK_REQUEST_TIMEOUT_SEC] [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    rfork_request_timeout_sec: Option<f64>,

    /// Between the parts of a readable seed key [env: RFORK_SEED_KEY_SEPARATOR] [default: $]
    #[arg(long, value_name = "TEXT")]
    rfork_seed_key_separator: Option<String>,

    /// Address on which to serve [env: RFORK_SEED_BIND_HOST] [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS")]
    rfork_seed_bind_host: Option<String>,

    /// Host that others are told [env: RFORK_SEED_ADVERTISE_HOST] [default: the address towards the planner]
    #[arg(long, value_name = "HOST")]
    rfork_seed_advertise_host: Option<String>,

    /// Serve metadata on this port + 2 x rank, a draft on the next [default: a free port]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    rfork_seed_port_base: Option<u16>,

    /// Send the label headers MODEL_URL, DEPLOY_STRATEGY and IS_DRAFT
    #[arg(long)]
    rfork_model_identity_headers: bool,

    /// Seconds between two heartbeats [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    rfork_heartbeat_interval_sec: Option<f64>,

    /// How often the release of a lease is tried [default: 3]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rfork_lease_release_max_attempts: Option<u32>,

    /// Seconds between two tries [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    rfork_lease_release_retry_interval_sec: Option<f64>,

    /// Seconds to wait for a seed before going to storage; 0 asks once [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = seconds_or_zero)]
    rfork_seed_wait_sec: Option<f64>,

    /// Connections that are served at once; a reader uses two [default: 16]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rfork_seed_max_readers: Option<u32>,

    /// What is sent to readers at most, in GiB/s [default: unlimited]
    #[arg(long, value_name = "GIB", value_parser = positive)]
    rfork_seed_max_gib_per_sec: Option<f64>,

    /// Seconds that a call of YuanRong may last, besides its bytes' time, until it is given up [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    rfork_transfer_timeout_sec: Option<f64>,

    /// Fields a tensor in the served metadata: 3 or 5 [default: 3 for a readable key, 5 for a digest]
    #[arg(long, value_name = "3|5", value_parser = clap::value_parser!(u8).range(3..=5))]
    rfork_seed_metadata_fields: Option<u8>,
}

/// What else makes up the seed key.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity (which seeds hold the same weights)")]
struct IdentityArgs {
    /// Tensor-parallel rank, also the rank under which it serves
    #[arg(long, default_value_t = 0)]
    tp_rank: u32,

    /// Pipeline rank, only with pipeline parallelism
    #[arg(long)]
    pp_rank: Option<u32>,

    /// Expert rank, only with expert parallelism
    #[arg(long)]
    ep_rank: Option<u32>,

    /// The node's rank
    #[arg(long, default_value_t = 0)]
    node_rank: u32,

    /// The worker's KV role
    #[arg(long, value_enum, default_value_t)]
    kv_role: Role,

    /// This is a draft model
    #[arg(long)]
    draft: bool,

    /// Build a digest key (clients from 2026-08 on) from this fingerprint of the inference engine
    #[arg(long, value_name = "TEXT")]
    compatibility_fingerprint: Option<String>,

    /// Build the digest key of clients from 2026-09 on
    #[arg(long, value_name = "TEXT", requires = "compatibility_fingerprint")]
    structural_digest: Option<String>,

    /// The data-parallel rank, where weights are sharded over it
    #[arg(long, requires = "structural_digest")]
    sharded_dp_rank: Option<u32>,

    /// A ready seed key, instead of all of the above
    #[arg(long, value_name = "KEY", conflicts_with_all = ["compatibility_fingerprint", "pp_rank", "ep_rank"])]
    seed_key: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Engine {
    #[default]
    Tcp,
    Yuanrong,
}

impl Engine {
    /// As seed keys and metadata have it.
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => tcp::NAME,
            Self::Yuanrong => yuanrong::NAME,
        }
    }
}

/// Where the weights are.
enum Place {
    Host,
    #[cfg(feature = "yuanrong-native")]
    Npu(rfork_loader::engine::device::Device),
}

impl Place {
    fn of(args: &WorkerArgs) -> Result<Self> {
        match args.engine {
            Engine::Tcp => Ok(Self::Host),
            #[cfg(feature = "yuanrong-native")]
            Engine::Yuanrong => {
                let runtime = rfork_loader::engine::device::Runtime::open()?;
                Ok(Self::Npu(runtime.device(args.npu)?))
            }
            #[cfg(not(feature = "yuanrong-native"))]
            Engine::Yuanrong => bail!(
                "--engine yuanrong is not part of this build: build rfork with --features yuanrong-native, which needs \
                 a C++ compiler, or use rfork.Session of the Python package, which has it always"
            ),
        }
    }

    fn allocate(&self, manifest: &Manifest) -> Result<Arc<WeightMemory>> {
        Ok(match self {
            Self::Host => WeightMemory::allocate(&manifest.tensor_bytes())?,
            #[cfg(feature = "yuanrong-native")]
            Self::Npu(device) => WeightMemory::allocate_on(device, &manifest.tensor_bytes())?,
        })
    }

    async fn session(&self, config: Config, worker: Worker) -> Result<Session> {
        Ok(match self {
            Self::Host => Session::over_tcp(config, worker).await?,
            #[cfg(feature = "yuanrong-native")]
            Self::Npu(device) => {
                let engine = async |config: &Config, advertise_host: &str| {
                    let options = yuanrong::YuanRongOptions::of(config, advertise_host);
                    let engine = yuanrong::native::start(options, device.clone()).await?;
                    Ok(Arc::new(engine) as Arc<dyn rfork_loader::engine::TransferEngine>)
                };
                Session::over(config, worker, engine).await?
            }
        })
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Role {
    #[value(name = "kv_producer")]
    Producer,
    #[value(name = "kv_consumer")]
    Consumer,
    #[default]
    #[value(name = "kv_both")]
    Both,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("must be a finite number greater than 0".into()),
    }
}

/// As [`positive`], and not longer than a year.
fn seconds(text: &str) -> Result<f64, String> {
    positive(text).and_then(|number| {
        if number <= 365.0 * 86_400.0 { Ok(number) } else { Err("must be at most a year".into()) }
    })
}

fn seconds_or_zero(text: &str) -> Result<f64, String> {
    if text.parse::<f64>() == Ok(0.0) { Ok(0.0) } else { seconds(text) }
}

impl SettingsArgs {
    /// The configuration: the file's, with the flags over it, with the environment behind both.
    fn config(&self) -> Result<Config> {
        let mut object = match &self.config {
            None => Map::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("--config {} cannot be read", path.display()))?;
                match serde_json::from_str(&text) {
                    Ok(Value::Object(object)) => object,
                    Ok(_) => bail!("--config {} must hold a JSON object", path.display()),
                    Err(error) => bail!("--config {} is not JSON: {error}", path.display()),
                }
            }
        };
        let flags = [
            ("model_url", json!(self.model_url)),
            ("model_deploy_strategy_name", json!(self.model_deploy_strategy_name)),
            ("rfork_scheduler_url", json!(self.rfork_scheduler_url)),
            ("rfork_seed_timeout_sec", json!(self.rfork_seed_timeout_sec)),
            ("rfork_request_timeout_sec", json!(self.rfork_request_timeout_sec)),
            ("rfork_seed_key_separator", json!(self.rfork_seed_key_separator)),
            ("rfork_seed_bind_host", json!(self.rfork_seed_bind_host)),
            ("rfork_seed_advertise_host", json!(self.rfork_seed_advertise_host)),
            ("rfork_seed_port_base", json!(self.rfork_seed_port_base)),
            ("rfork_model_identity_headers", json!(self.rfork_model_identity_headers.then_some(true))),
            ("rfork_heartbeat_interval_sec", json!(self.rfork_heartbeat_interval_sec)),
            ("rfork_lease_release_max_attempts", json!(self.rfork_lease_release_max_attempts)),
            ("rfork_lease_release_retry_interval_sec", json!(self.rfork_lease_release_retry_interval_sec)),
            ("rfork_seed_wait_sec", json!(self.rfork_seed_wait_sec)),
            ("rfork_seed_max_readers", json!(self.rfork_seed_max_readers)),
            ("rfork_seed_max_gib_per_sec", json!(self.rfork_seed_max_gib_per_sec)),
            ("rfork_transfer_timeout_sec", json!(self.rfork_transfer_timeout_sec)),
            ("rfork_seed_metadata_fields", json!(self.rfork_seed_metadata_fields)),
        ];
        object.extend(
            flags
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.to_owned(), value)),
        );
        let (config, warnings) = Config::from_json(&Value::Object(object), |name| std::env::var(name).ok())?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }
}

impl IdentityArgs {
    fn seed_key(&self, config: &Config, engine: Engine) -> Result<SeedKey> {
        if let Some(text) = &self.seed_key {
            return Ok(SeedKey::from_text(text)?);
        }
        let identity = Identity {
            tp_rank: self.tp_rank,
            pp_rank: self.pp_rank,
            ep_rank: self.ep_rank,
            node_rank: self.node_rank,
            kv_role: match self.kv_role {
                Role::Producer => KvRole::Producer,
                Role::Consumer => KvRole::Consumer,
                Role::Both => KvRole::Both,
            },
            draft: self.draft,
            compatibility_fingerprint: self.compatibility_fingerprint.clone(),
            structural_digest: self.structural_digest.clone(),
            sharded_dp_rank: self.sharded_dp_rank,
        };
        Ok(identity.seed_key(config, engine.name())?)
    }
}

/// Runs a worker until a signal ends it, or, with `--once`, until it is loaded.
pub(crate) async fn run(args: WorkerArgs) -> Result<u8> {
    let config = args.settings.config()?;
    let key = args.identity.seed_key(&config, args.engine)?;
    let place = Place::of(&args)?;
    let stop = signals::on_signal().context("signals cannot be received")?;
    let worker = Worker {
        key: key.clone(),
        rank: args.identity.tp_rank,
        draft: args.identity.draft,
        tolerance: Tolerance::default(),
    };
    let path = args.model.clone();
    let checkpoint = Arc::new(tokio::task::spawn_blocking(move || Checkpoint::open(&path)).await??);
    let manifest = checkpoint.manifest();
    let mut memory = place.allocate(manifest)?;
    tracing::info!(
        model = %checkpoint.path().display(),
        tensors = manifest.tensors().len(),
        bytes = manifest.total_bytes(),
        chunks = memory.plan().count(),
        %key,
        "the model's headers are read"
    );
    let mut session = place.session(config, worker).await?;
    let display = display(session.progress(), Duration::from_millis(args.progress_interval_ms.max(10)));
    let mut loaded = session.load(manifest, memory.clone(), &checkpoint, &stop).await;
    let mut hung = false;
    if let Err(error @ LoadError::Hung(_)) = &loaded
        && !stop.is_cancelled()
    {
        tracing::warn!(%error, "loading from storage into other memory; this worker will not be a seed");
        hung = true;
        memory = place.allocate(manifest)?;
        loaded = session.load_elsewhere(manifest, memory.clone(), &checkpoint, &stop).await;
    }
    drop(display);
    let report = match loaded {
        Ok(report) => report,
        Err(error) => {
            session.close().await;
            return match error {
                LoadError::Cancelled => Ok(INTERRUPTED),
                // The process ends, and with it whatever hangs.
                LoadError::Hung(_) if stop.is_cancelled() => Ok(INTERRUPTED),
                error => Err(error.into()),
            };
        }
    };
    let digest = if args.digest {
        let (manifest, memory) = (manifest.clone(), memory.clone());
        let digest = tokio::task::spawn_blocking(move || model_digest(&manifest, &memory)).await??;
        Some(digest.to_string())
    } else {
        None
    };
    log_loaded(&report, digest.as_deref());
    let served = if args.once {
        Ok(())
    } else if hung {
        stop.cancelled().await;
        Ok(())
    } else {
        serve(&mut session, &report, &key, &stop).await
    };
    session.close().await;
    served.map(|()| 0)
}

async fn serve(
    session: &mut Session,
    report: &LoadReport,
    key: &SeedKey,
    stop: &CancellationToken,
) -> Result<()> {
    let serving = session.serve().await?;
    tracing::info!(
        url = %serving.url,
        identity = %serving.identity,
        %key,
        source = %report.main_source(),
        bytes = report.bytes,
        seconds = rounded(report.transfer_duration().as_secs_f64()),
        gib_per_s = rounded(gib_per_s(report.bytes, report.transfer_duration())),
        "serving"
    );
    stop.cancelled().await;
    Ok(())
}

/// Three digits after the point are enough for people and for scripts.
fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

fn log_loaded(report: &LoadReport, digest: Option<&str>) {
    for share in &report.shares {
        tracing::info!(
            source = %share.source,
            bytes = share.bytes,
            seconds = rounded(share.duration.as_secs_f64()),
            "a source gave its share"
        );
    }
    let (source, seed) = match report.main_source() {
        Source::Seed(identity) => ("seed", Some(identity.to_string())),
        Source::Storage => ("storage", None),
    };
    tracing::info!(
        source,
        seed,
        bytes = report.bytes,
        bytes_from_seeds = report.bytes_from_seeds(),
        seconds = rounded(report.transfer_duration().as_secs_f64()),
        gib_per_s = rounded(gib_per_s(report.bytes, report.transfer_duration())),
        waited_seconds = rounded(report.duration.saturating_sub(report.transfer_duration()).as_secs_f64()),
        content_id = report.content.map(|content| content.to_string()),
        digest,
        "loaded"
    );
}

/// Shows progress until dropped: a bar on a terminal, log lines elsewhere.
fn display(progress: watch::Receiver<Progress>, interval: Duration) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(if std::io::stderr().is_terminal() {
        tokio::spawn(bar(progress))
    } else {
        tokio::spawn(lines(progress, interval))
    })
}

/// Clears the bar when the display is dropped, so that no half line is left.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn bar(mut progress: watch::Receiver<Progress>) {
    let bar = Bar(ProgressBar::new(0));
    if let Ok(style) =
        ProgressStyle::with_template("{msg:<28} {wide_bar} {binary_bytes}/{binary_total_bytes}")
    {
        bar.0.set_style(style);
    }
    loop {
        let now = progress.borrow_and_update().clone();
        bar.0.set_length(now.total_bytes);
        bar.0.set_position(now.held_bytes);
        bar.0.set_message(match &now.phase {
            Phase::Loading(_) => {
                format!("{} {}/s", describe(&now.phase), show::bytes(whole(now.bytes_per_sec)))
            }
            other => describe(other),
        });
        if progress.changed().await.is_err() {
            return;
        }
    }
}

async fn lines(mut progress: watch::Receiver<Progress>, interval: Duration) {
    let mut last_phase = Phase::Idle;
    let mut ticks = tokio::time::interval(interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = progress.changed() => {
                // Between two ticks only a new phase is worth a line.
                if changed.is_err() { return }
                if progress.borrow_and_update().phase == last_phase { continue }
            }
        }
        let now = progress.borrow_and_update().clone();
        let worth_a_line = now.phase != last_phase || matches!(now.phase, Phase::Loading(_));
        last_phase = now.phase.clone();
        if worth_a_line {
            tracing::info!(
                phase = describe(&now.phase),
                held_bytes = now.held_bytes,
                total_bytes = now.total_bytes,
                held_chunks = now.held_chunks,
                total_chunks = now.total_chunks,
                gib_per_s = rounded(now.bytes_per_sec / f64::from(1 << 30)),
                "progress"
            );
        }
    }
}

/// A rate as whole bytes; it is never negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(rate: f64) -> u64 {
    rate as u64
}

fn describe(phase: &Phase) -> String {
    match phase {
        Phase::Idle => "starting".into(),
        Phase::Asking => "waiting for a seed".into(),
        Phase::Checking(seed) => format!("checking seed {seed}"),
        Phase::Loading(source) => format!("loading from {source}"),
        Phase::Loaded => "loaded".into(),
        Phase::Failed => "failed".into(),
    }
}
