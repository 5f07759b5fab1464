//! The threads that loads and services run on: started at the first use, once in a process.
//!
//! After a fork only the thread that forked is there. A child therefore starts threads of its own when it uses rfork,
//! and leaves its parent's runtime alone: dropping it would wait for threads that do not exist.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::errors::{RForkError, config};

/// As many as serve: readers of a seed are few, and the system does most of the work.
const THREADS: usize = 4;
/// Names what is logged, as the command's `--log` does.
const LOG: &str = "RFORK_LOG";

/// The runtime, and the process that started it. Locked only with the GIL and never while it is given up, so that no
/// other thread can hold the lock when a thread forks.
static RUNTIME: Mutex<Option<(u32, Arc<Runtime>)>> = Mutex::new(None);

/// This process's runtime.
///
/// # Errors
/// `RForkError` when the system gives no threads; `ConfigError` when `RFORK_LOG` is no filter.
pub(crate) fn get(_py: Python<'_>) -> PyResult<Arc<Runtime>> {
    let mut known = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((of, runtime)) = known.as_ref()
        && *of == process
    {
        return Ok(runtime.clone());
    }
    log()?;
    let runtime =
        Builder::new_multi_thread().worker_threads(THREADS).thread_name("rfork").enable_all().build();
    let runtime =
        Arc::new(runtime.map_err(|error| RForkError::new_err(format!("rfork has no threads: {error}")))?);
    if let Some(parents) = known.replace((process, runtime.clone())) {
        std::mem::forget(parents);
    }
    Ok(runtime)
}

/// What happens is told on standard error, warnings alone unless `RFORK_LOG` says otherwise. A program that has
/// arranged for it already is left to itself.
///
/// # Errors
/// `ConfigError` when `RFORK_LOG` is no filter.
fn log() -> PyResult<()> {
    let filter = match std::env::var_os(LOG).filter(|filter| !filter.is_empty()) {
        None => Targets::new().with_default(LevelFilter::WARN),
        Some(filter) => {
            // What is no text is no filter.
            let filter = filter.to_string_lossy();
            filter.parse().map_err(|why| {
                config(format!("{LOG} in the environment must be a level or a filter, got '{filter}': {why}"))
            })?
        }
    };
    let lines = rfork_cli::logging::lines::text(true);
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(())
}
