//! The reader's process: the interleaved runs, and the peak memory of a read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rfork_loader::digest::{DigestAlgorithm, of_memory};
use rfork_loader::engine::memory::{Content, WeightMemory};
use rfork_loader::engine::tcp::{TcpEngine, TcpOptions};
use rfork_loader::engine::{ReadRequest, TransferEngine};
use rfork_protocol::manifest::metadata::Metadata;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::beside::{self, Beside};
use crate::fresh::{self, Filling};
use crate::{Result, SeedAddress, Setup};

/// Sizes of a piece that the bare loop runs with; the better counts. Smaller ones are slower.
pub(crate) const BARE_PIECES: [usize; 2] = [1 << 20, 4 << 20];

/// Seconds for the model's bytes, one run each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Runs {
    /// The bare loop, for each of [`BARE_PIECES`].
    pub(crate) bare: [f64; 2],
    pub(crate) without_digests: f64,
    pub(crate) with_digests: f64,
    /// The engine, with digests, into memory whose pages are not made yet, whoever has to find their frames.
    pub(crate) into_fresh_memory: f64,
    /// For each of [`fresh::KINDS`].
    pub(crate) fillings: Vec<Filling>,
    pub(crate) beside: Beside,
}

/// One run of each kind, one after the other.
pub(crate) fn measure(setup: &Setup, address: &SeedAddress) -> Result<Runs> {
    let engines = Engines::new(setup, address)?;
    let memory = WeightMemory::allocate(&setup.tensor_bytes())?;
    memory.prefault()?;
    // Written once, so its pages are there.
    let mut flat = vec![1; usize::try_from(setup.bytes)?];

    // A run of each that does not count. It finds no right byte in its memory, so equality is its work.
    bare(address, BARE_PIECES[0], &mut flat)?;
    engines.read(&memory, false, true)?;
    check(&memory, &engines.content, &flat)?;

    let engine = |verify| {
        memory.forget_all()?;
        engines.read(&memory, verify, true)
    };
    let mut bare = |piece| bare(address, piece, &mut flat);
    let first = bare(BARE_PIECES[0])?;
    let without_digests = engine(false)?;
    let with_digests = engine(true)?;
    let runs = [first, bare(BARE_PIECES[1])?];
    check(&memory, &engines.content, &flat)?;

    let fresh = WeightMemory::allocate(&setup.tensor_bytes())?;
    let into_fresh_memory = engines.read(&fresh, true, true)?;
    check(&fresh, &engines.content, &flat)?;
    drop(fresh);
    let fillings = fresh::measure(setup, &engines)?;
    let beside = beside::measure(setup, &memory, flat)?;
    Ok(Runs { bare: runs, without_digests, with_digests, into_fresh_memory, fillings, beside })
}

/// The peak memory of a process that does nothing but one read with digests, in bytes.
pub(crate) fn peak_memory(setup: &Setup, address: &SeedAddress) -> Result<u64> {
    let engines = Engines::new(setup, address)?;
    let memory = WeightMemory::allocate(&setup.tensor_bytes())?;
    engines.read(&memory, true, true)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
    Ok(peak.map(|kib: u64| kib << 10).ok_or("this system does not tell a process's peak memory")?)
}

/// One run of the bare loop, in seconds.
fn bare(address: &SeedAddress, piece_bytes: usize, to: &mut [u8]) -> Result<f64> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&address.bare)?;
    stream.write_all(&(piece_bytes as u64).to_le_bytes())?;
    let mut at = 0;
    while at < to.len() {
        let end = to.len().min(at + piece_bytes);
        match stream.read(&mut to[at..end])? {
            0 => return Err("the bare loop's seed closed early".into()),
            read => at += read,
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// The engine, with digests and without, and the one with digests also while it makes no pages ahead.
pub(crate) struct Engines {
    runtime: Runtime,
    with_digests: TcpEngine,
    without_digests: TcpEngine,
    without_pages: TcpEngine,
    seed: Metadata,
    content: Content,
}

impl Engines {
    fn new(setup: &Setup, address: &SeedAddress) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let engine = |verify, pages_ahead| {
            let options = TcpOptions { verify, pages_ahead, ..setup.options.clone() };
            runtime.block_on(TcpEngine::bind(options))
        };
        let (with_digests, without_digests) = (engine(true, true)?, engine(false, true)?);
        let without_pages = engine(true, false)?;
        let seed = Metadata { session: address.engine.clone(), manifest: setup.manifest()?, extension: None };
        let content = setup.content(&address.digests)?;
        Ok(Self { runtime, with_digests, without_digests, without_pages, seed, content })
    }

    /// One run of the engine, in seconds. It makes pages ahead, unless it verifies and is told not to.
    pub(crate) fn read(&self, memory: &Arc<WeightMemory>, verify: bool, pages_ahead: bool) -> Result<f64> {
        let engine = match (verify, pages_ahead) {
            (true, true) => &self.with_digests,
            (true, false) => &self.without_pages,
            (false, _) => &self.without_digests,
        };
        let request = ReadRequest {
            seed: &self.seed,
            content: Some(&self.content),
            memory,
            arrived_bytes: &Arc::default(),
            cancel: &CancellationToken::new(),
        };
        let begun = Instant::now();
        let report = self.runtime.block_on(engine.read(request))?;
        let seconds = begun.elapsed().as_secs_f64();
        let whole = report.bytes == memory.plan().total_bytes() && memory.all_held();
        whole.then_some(seconds).ok_or_else(|| "the engine did not bring every chunk".into())
    }

    /// The memory holds the seed's bytes.
    pub(crate) fn check(&self, memory: &Arc<WeightMemory>) -> Result<()> {
        let digests = of_memory(memory, DigestAlgorithm::default());
        let equal = digests.as_ref() == Some(&self.content.chunks);
        equal.then_some(()).ok_or_else(|| "the bytes that came are not the seed's".into())
    }
}

/// Both ways brought the seed's bytes.
fn check(memory: &Arc<WeightMemory>, content: &Content, flat: &[u8]) -> Result<()> {
    let digests = of_memory(memory, DigestAlgorithm::default());
    let (mut at, mut equal) = (0, digests.as_ref() == Some(&content.chunks));
    for chunk in 0..memory.plan().count() {
        let reader = memory.begin_read(chunk).ok_or("a chunk is not held")?;
        let visited = reader.visit(|piece| {
            equal &= flat.get(at..at + piece.len()) == Some(piece);
            at += piece.len();
        });
        equal &= visited.is_ok();
    }
    (equal && at == flat.len()).then_some(()).ok_or_else(|| "the bytes that came are not the seed's".into())
}
