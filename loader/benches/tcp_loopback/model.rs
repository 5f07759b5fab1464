//! The seed's bytes as a model in storage, in memory (`memfd_create`): what reading costs, without a disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use crate::{Result, Setup};

/// Tells the processes that this one starts where the model is.
const PATH: &str = "RFORK_BENCH_MODEL";

/// The model's bytes, alike in every process.
pub(crate) fn bytes(setup: &Setup) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(setup.bytes)?];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    Ok(bytes)
}

/// A model in one safetensors file, while this lives.
pub(crate) struct ModelFile(File);

impl ModelFile {
    pub(crate) fn write(setup: &Setup) -> Result<Self> {
        let (mut at, mut header) = (0, BTreeMap::new());
        for tensor in setup.manifest()?.tensors() {
            let end = at + tensor.bytes();
            let entry = json!({"dtype": "I8", "shape": [tensor.count], "data_offsets": [at, end]});
            header.insert(tensor.name.clone(), entry);
            at = end;
        }
        let header = serde_json::to_string(&header)?;
        let mut file = File::from(memfd_create("model.safetensors", MemfdFlags::CLOEXEC)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        file.write_all(&bytes(setup)?)?;
        Ok(Self(file))
    }

    /// The variable that tells another process where it is.
    pub(crate) fn variable(&self) -> (&'static str, String) {
        (PATH, format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

/// Where the model is, in a process that was told.
pub(crate) fn path() -> Result<PathBuf> {
    Ok(std::env::var_os(PATH).ok_or("no model was written")?.into())
}
