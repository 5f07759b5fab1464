//! `rfork worker`: one worker that holds a model in host memory, or in an NPU's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rfork_loader::session::{LoadReport, ServeError, Session, Worker};
use rfork_loader::storage::Checkpoint;
use rfork_loader::storage::model_digest::model_digest;
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::agreement::Tolerance;
use tokio_util::sync::CancellationToken;

use crate::flags::Flags;
use crate::show::gib_per_s;
use crate::signals;

mod device;
mod identity;
mod load;
mod progress;
mod settings;

use device::{Device, Engine};
use identity::IdentityArgs;
use load::{ended, load};
use progress::{display, log_loaded, rounded};
use settings::WorkerTable;

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

    /// A JSON file with any of the settings of a worker, as in vLLM's --model-loader-extra-config. A flag counts before the
    /// file, the file before the environment
    #[arg(long, value_name = "FILE.json")]
    config: Option<PathBuf>,

    #[command(flatten)]
    identity: IdentityArgs,

    #[command(flatten)]
    settings: Flags<WorkerTable>,
}

/// Runs a worker until a signal ends it, or, with `--once`, until it is loaded.
pub(crate) async fn run(args: WorkerArgs) -> Result<u8> {
    let config = settings::read(&args.settings, args.config.as_deref())?;
    let key = args.identity.seed_key(&config, args.engine)?;
    let device = Device::of(args.engine, args.npu)?;
    let stop = signals::on_signal().context("signals cannot be received")?;
    let worker = Worker {
        key: key.clone(),
        rank: args.identity.tp_rank,
        global_rank: args.identity.global_rank.unwrap_or(args.identity.tp_rank),
        draft: args.identity.draft,
        tolerance: Tolerance::default(),
    };
    let path = args.model.clone();
    let checkpoint = Arc::new(tokio::task::spawn_blocking(move || Checkpoint::open(&path)).await??);
    let manifest = checkpoint.manifest();
    let memory = device.allocate(manifest)?;
    tracing::info!(
        model = %checkpoint.path().display(),
        tensors = manifest.tensors().len(),
        bytes = manifest.total_bytes(),
        chunks = memory.plan().count(),
        %key,
        "the model's headers are read"
    );
    let mut session = device.session(config, worker).await?;
    if !args.once {
        // Nobody here writes to the weights after the load.
        session.pass_on();
    }
    let display = display(session.progress(), Duration::from_millis(args.progress_interval_ms.max(10)));
    let loaded = load(&mut session, &device, &checkpoint, memory, &stop).await;
    drop(display);
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            session.close().await;
            return ended(error, &stop);
        }
    };
    let digest = if args.digest {
        let (manifest, memory) = (manifest.clone(), loaded.memory);
        let digest = tokio::task::spawn_blocking(move || model_digest(&manifest, &memory)).await??;
        Some(digest.to_string())
    } else {
        None
    };
    log_loaded(&loaded.report, digest.as_deref());
    let served = if args.once {
        Ok(())
    } else if loaded.elsewhere {
        stop.cancelled().await;
        Ok(())
    } else {
        serve(&mut session, &loaded.report, &key, &stop).await
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
    let serving = match session.serve().await {
        Ok(serving) => serving,
        // It may come to be reached: the worker stays.
        Err(error @ ServeError::Unreachable(_)) => {
            tracing::error!(%error, "nobody can fork from this worker");
            stop.cancelled().await;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
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
