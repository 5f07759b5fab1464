//! Workers whose engine reads by address, as processes: ours in all, but for the library, which plays YuanRong's.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rfork_loader::config::Config;
use rfork_loader::engine::TransferEngine;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::engine::yuanrong::{YuanRongEngine, YuanRongOptions};
use rfork_loader::session::{Phase, Progress, Session, Source, Worker as Identity};
use rfork_loader::storage::Checkpoint;
use rfork_loader::storage::model_digest::model_digest;
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::agreement::Tolerance;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod library;

pub use library::Library;

use crate::model::Model;
use crate::process::{Process, Worker};

/// What the workers' weights are called.
pub const KEY: &str = "by-address";

/// Starts one on this model and planner, with this in its environment, and these settings besides.
///
/// # Panics
/// When it does not start.
pub fn start(
    environment: &[(String, String)],
    name: &str,
    model: &Model,
    planner_url: &str,
    settings: &[(&str, Value)],
) -> Worker {
    let mut all = json!({
        "model_url": "m", "model_deploy_strategy_name": "s", "rfork_scheduler_url": planner_url,
        "rfork_seed_bind_host": "127.0.0.1", "rfork_fork_while_loading": true,
    });
    for (name, value) in settings {
        all[*name] = value.clone();
    }
    let mut command = Command::new(program());
    command.arg(model.path()).arg(all.to_string());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    Worker { process: Process::spawn(name, &mut command) }
}

/// Cargo builds it with the tests: theirs are in `deps` beside it.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(|deps| deps.parent()).unwrap().join("worker-by-address")
}

/// Loads the model, passes it on meanwhile, and serves until the process ends. It says what `rfork worker` says.
///
/// # Panics
/// When it is not loaded.
pub async fn run(model: &str, settings: &str) {
    let (config, _) = Config::from_json(&serde_json::from_str(settings).unwrap(), |_| None).unwrap();
    let identity = Identity {
        key: SeedKey::from_text(KEY).unwrap(),
        rank: 0,
        global_rank: 0,
        draft: false,
        tolerance: Tolerance::default(),
    };
    let bind = async |_: &Config, host: &str| {
        let engine = YuanRongEngine::start(YuanRongOptions::new(host), Library::start).await?;
        Ok(Arc::new(engine) as Arc<dyn TransferEngine>)
    };
    let mut session = Session::over(config, identity, bind).await.unwrap();
    session.pass_on();
    let checkpoint = Arc::new(Checkpoint::open(std::path::Path::new(model)).unwrap());
    let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes()).unwrap();
    let telling = tokio::spawn(tell(session.progress()));
    let never = CancellationToken::new();
    let loading = session.load(checkpoint.manifest(), memory.clone(), &checkpoint, &never);
    let report = loading.await.unwrap();
    telling.abort();
    for share in &report.shares {
        tracing::info!(source = %share.source, bytes = share.bytes, "a source gave its share");
    }
    let source = if report.main_source() == &Source::Storage { "storage" } else { "seed" };
    let digest = model_digest(checkpoint.manifest(), &memory).unwrap();
    tracing::info!(source, bytes_from_seeds = report.bytes_from_seeds(), %digest, "loaded");
    let serving = session.serve().await.unwrap();
    tracing::info!(identity = %serving.identity, url = %serving.url, key = KEY, "serving");
    std::future::pending::<()>().await;
}

/// Says how far a load is.
async fn tell(mut progress: watch::Receiver<Progress>) {
    let mut told = None;
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update().clone();
        let before = told.replace((now.phase.clone(), now.held_bytes));
        if let Phase::Loading(source) = &now.phase
            && before != told
        {
            let (held_bytes, total_bytes) = (now.held_bytes, now.total_bytes);
            tracing::info!(phase = format!("loading from {source}"), held_bytes, total_bytes, "progress");
        }
    }
}
