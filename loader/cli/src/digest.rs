//! `rfork digest`: the content id of a model, from its files.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::storage::Checkpoint;
use serde_json::json;

/// Which model, and how.
#[derive(Debug, Args)]
pub(crate) struct DigestArgs {
    /// A model in safetensors form: a directory, an index or a file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// How chunks are digested, as `--rfork-digest` of the workers that read the model
    #[arg(long, default_value = "crc64nvme", value_name = "crc64nvme|blake3")]
    algorithm: DigestAlgorithm,
    /// How many threads read at once
    #[arg(long, default_value = "8", value_name = "COUNT")]
    threads: NonZeroUsize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads the files once, and prints what a worker that reads them names its weights by.
pub(crate) async fn run(args: DigestArgs) -> Result<()> {
    let DigestArgs { model, algorithm, threads, json } = args;
    let reading = tokio::task::spawn_blocking(move || {
        let checkpoint = Checkpoint::open(&model)?;
        let content = checkpoint.content(algorithm, threads)?;
        Ok::<_, rfork_loader::storage::StorageError>((checkpoint, content))
    });
    let (checkpoint, content) = reading.await??;
    if !json {
        println!("{}", content.id);
        return Ok(());
    }
    let shown = json!({
        "content_id": content.id.to_string(),
        "algorithm": content.chunks.algorithm.name(),
        "bytes": checkpoint.manifest().total_bytes(),
        "tensors": checkpoint.manifest().tensors().len(),
        "chunks": content.chunks.digests.len(),
        "chunk_bytes": content.chunks.chunk_bytes,
    });
    println!("{shown}");
    Ok(())
}
