//! Loading, into other memory if the first cannot be had back.

use std::sync::Arc;

use anyhow::Result;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::session::{LoadError, LoadReport, Session};
use rfork_loader::storage::Checkpoint;
use tokio_util::sync::CancellationToken;

use super::device::Device;
use crate::INTERRUPTED;

/// What a load ended with.
pub(super) struct Loaded {
    pub(super) report: LoadReport,
    pub(super) memory: Arc<WeightMemory>,
    /// Whether that is other memory than the engine has: the worker will not be a seed.
    pub(super) elsewhere: bool,
}

/// Loads into `memory`; from storage into other memory when a call of the engine's hangs that may write there, or when peers
/// may still read what was to be overwritten.
pub(super) async fn load(
    session: &mut Session,
    device: &Device,
    checkpoint: &Arc<Checkpoint>,
    memory: Arc<WeightMemory>,
    stop: &CancellationToken,
) -> Result<Loaded> {
    let manifest = checkpoint.manifest();
    match session.load(manifest, memory.clone(), checkpoint, stop).await {
        Ok(report) => Ok(Loaded { report, memory, elsewhere: false }),
        Err(error) if error.keeps_memory() && !stop.is_cancelled() => {
            tracing::warn!(%error, "loading from storage into other memory; this worker will not be a seed");
            let memory = device.allocate(manifest)?;
            let report = session.load_elsewhere(manifest, memory.clone(), checkpoint, stop).await?;
            Ok(Loaded { report, memory, elsewhere: true })
        }
        Err(error) => Err(error.into()),
    }
}

/// The exit code of a worker whose load failed, if its user ended it.
pub(super) fn ended(error: anyhow::Error, stop: &CancellationToken) -> Result<u8> {
    match error.downcast_ref() {
        Some(LoadError::Cancelled) => Ok(INTERRUPTED),
        // The process ends, and with it whatever hangs.
        Some(error) if error.keeps_memory() && stop.is_cancelled() => Ok(INTERRUPTED),
        _ => Err(error),
    }
}
