//! What the largest manifests cost a worker beside the bytes: `cargo bench -p rfork-loader --bench manifest`.
//!
//! A seed's metadata of 100,000 tensors is fetched over loopback, checked and planned, by a process of its own, whose
//! peak memory is measured from just before to just after; and 2,000 tensors are registered: in memory of ours with the
//! TCP engine, and each in an allocation of its own with YuanRong's, over a library that does nothing.

use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_loader::chunks::ChunkPlan;
use rfork_loader::digest::{Digest, DigestAlgorithm};
use rfork_loader::engine::TransferEngine;
use rfork_loader::engine::memory::{CallersMemory, Region, WeightMemory};
use rfork_loader::engine::tcp::{TcpEngine, TcpOptions};
use rfork_loader::engine::yuanrong::{Ranges, Vendor, VendorError, YuanRongEngine, YuanRongOptions};
use rfork_loader::seed_client;
use rfork_loader::seed_service::SeedService;
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::agreement::{Tolerance, agree};
use rfork_protocol::manifest::content::{ChunkDigests, Content, Root, content_id};
use rfork_protocol::manifest::metadata::{EntryFields, Extension, Metadata};
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Set for the reader's process: where the seed serves.
const SEED: &str = "RFORK_BENCH_SEED";
const KEY: &str = "benchmark";
const ROUNDS: usize = 7;
/// What is wanted.
const FETCH_BAR: (Duration, f64) = (Duration::from_millis(250), 64.0);
const REGISTER_BAR: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --benches` runs this without `--bench`: then it only has to be seen to work.
    let in_earnest = std::env::args().any(|arg| arg == "--bench");
    let tensors = if in_earnest { 100_000 } else { 1_000 };
    if let Ok(seed) = std::env::var(SEED) {
        return fetch(&seed, tensors).await;
    }
    let key = SeedKey::from_text(KEY)?;
    let metadata = metadata(tensors)?;
    let service = SeedService::start(Some("127.0.0.1"), 0, &key).await?;
    service.publish(&metadata, EntryFields::Five);
    println!("manifest of {tensors} tensors, {} bytes of JSON", metadata.encode(EntryFields::Five).len());
    for _ in 0..if in_earnest { ROUNDS } else { 1 } {
        let mut reader = Command::new(std::env::current_exe()?);
        reader.args(std::env::args().skip(1)).env(SEED, service.address().to_string());
        if !tokio::task::spawn_blocking(move || reader.status()).await??.success() {
            return Err("the reader failed; its error is above".into());
        }
    }
    service.stop().await;
    let sizes = manifest(2_000)?.tensor_bytes();
    let tcp = TcpEngine::bind(TcpOptions::new(Some("127.0.0.1"))).await?;
    register("allocated and registered by the TCP engine", &tcp, || Ok(WeightMemory::allocate(&sizes)?))
        .await?;
    let yuanrong = YuanRongEngine::start(YuanRongOptions::new("127.0.0.1"), || Ok(Nothing)).await?;
    register("of a caller's registered by YuanRong's engine", &yuanrong, || apart(&sizes)).await
}

/// A library that does nothing, so that what is left is our time.
struct Nothing;

impl Vendor for Nothing {
    fn version(&self) -> Option<&str> {
        None
    }

    fn port(&self) -> u16 {
        1
    }

    fn register(&mut self, _regions: &[Region]) -> std::result::Result<(), VendorError> {
        Ok(())
    }

    fn unregister(&mut self, _starts: &[u64]) -> std::result::Result<(), VendorError> {
        Ok(())
    }

    fn read(&mut self, _peer: &str, _ranges: Ranges<'_>) -> std::result::Result<(), VendorError> {
        Ok(())
    }

    fn finalize(&mut self) -> std::result::Result<(), VendorError> {
        Ok(())
    }
}

/// Tensors of a caller's that are nowhere side by side.
#[allow(unsafe_code)]
fn apart(sizes: &[u64]) -> Result<Arc<WeightMemory>> {
    const GAP: u64 = 4_096;
    let len: u64 = sizes.iter().map(|bytes| bytes + GAP).sum();
    let memory = vec![0u8; usize::try_from(len)?];
    let mut at = memory.as_ptr() as u64;
    let mut place = |bytes: &u64| {
        at += bytes + GAP;
        (at - bytes - GAP, *bytes)
    };
    let tensors: Vec<(u64, u64)> = sizes.iter().map(&mut place).collect();
    // SAFETY: all ranges lie in `memory`, which is initialised and which the owner keeps; nobody else knows of it.
    Ok(unsafe { WeightMemory::of_caller(&tensors, CallersMemory::on_host(Arc::new(memory))) }?)
}

/// One reader, alone in its process.
async fn fetch(seed: &str, tensors: u64) -> Result<()> {
    let (key, here) = (SeedKey::from_text(KEY)?, manifest(tensors)?);
    let http = rfork_loader::http::client(Duration::from_secs(10), false)?;
    // Makes `VmHWM` start from what is in use now.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let (before, begun) = (memory_mib("VmRSS:")?, Instant::now());
    let theirs = seed_client::fetch_at(&http, seed, &key).await?;
    let fetched = begun.elapsed();
    agree(&here, &theirs.manifest, &Tolerance::default())?;
    let content = theirs.extension.as_ref().and_then(|extension| extension.root.content());
    let content = content.ok_or("no digests")?;
    if content_id(&here, &content.chunks) != content.id {
        return Err("another content".into());
    }
    let plan = ChunkPlan::new(&here.tensor_bytes())?;
    let took = begun.elapsed();
    let (peak, chunks) = (memory_mib("VmHWM:")?, plan.count());
    println!(
        "fetched in {:.0} ms, checked and planned ({chunks} chunks) in {:.0} ms, {} at most; {:.1} MiB more at the peak, {} at \
         most (the process with its own manifest: {peak:.1})",
        fetched.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e3,
        verdict(took <= FETCH_BAR.0, "250 ms"),
        peak - before,
        verdict(peak - before <= FETCH_BAR.1, "64 MiB"),
    );
    Ok(())
}

/// How long it takes from the tensors to peers that may read them.
async fn register(
    what: &str,
    engine: &dyn TransferEngine,
    memory: impl Fn() -> Result<Arc<WeightMemory>>,
) -> Result<()> {
    let mut times = Vec::new();
    let mut tensors = 0;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let memory = memory()?;
        tensors = memory.plan().tensor_bytes().count();
        engine.register(memory).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    let median = times[ROUNDS / 2];
    let within = verdict(median <= REGISTER_BAR, "5 ms");
    println!("{tensors} tensors {what} in {:.3} ms, {within} at most", median.as_secs_f64() * 1e3);
    engine.finalize().await;
    Ok(())
}

fn verdict(met: bool, bar: &str) -> String {
    format!("{bar}{}", if met { "" } else { " MISSED" })
}

/// Tensors with names as long as those of large mixtures of experts.
fn manifest(tensors: u64) -> Result<Manifest> {
    let tensor = |at: u64| Tensor {
        name: format!("model.layers.{}.mlp.experts.{}.gate_up_proj.weight", at / 512, at % 512),
        address: 0x1_0000_0000 + at * 8_192,
        count: 4_096,
        element_bytes: 2,
        shape: Some(vec![64, 64]),
        dtype: Some("bfloat16".into()),
        format: Some(FORMAT_ND),
    };
    Ok(Manifest::new((0..tensors).map(tensor).collect())?)
}

fn metadata(tensors: u64) -> Result<Metadata> {
    let manifest = manifest(tensors)?;
    let plan = ChunkPlan::new(&manifest.tensor_bytes())?;
    let chunks = ChunkDigests {
        algorithm: DigestAlgorithm::Crc64Nvme,
        chunk_bytes: plan.chunk_size(),
        digests: (0..u64::from(plan.count())).map(Digest::crc64_nvme).collect(),
    };
    let root = Root::Content(Content { id: content_id(&manifest, &chunks), chunks });
    let extension = Extension { engine: "tcp".into(), engine_version: None, root, origin: None };
    Ok(Metadata { session: "127.0.0.1:1".into(), manifest, extension: Some(extension) })
}

/// A line of `/proc/self/status` that is in kB, in MiB.
fn memory_mib(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: f64| kib / 1024.0).ok_or_else(|| format!("no {name} in /proc/self/status").into())
}
