//! The reader's process: the interleaved runs, and the peak memory of a read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::memory::{Content, WeightMemory};
use serde::{Deserialize, Serialize};

use crate::beside::{self, Beside};
use crate::engines::Engines;
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
    /// The same over TLS.
    pub(crate) with_tls: f64,
    pub(crate) by_blake3: f64,
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
    check(&memory, engines.content(), &flat)?;

    let engine = |verify| {
        memory.forget_all()?;
        engines.read(&memory, verify, true)
    };
    let mut bare = |piece| bare(address, piece, &mut flat);
    let first = bare(BARE_PIECES[0])?;
    let without_digests = engine(false)?;
    let with_digests = engine(true)?;
    memory.forget_all()?;
    let with_tls = engines.read_secured(&memory)?;
    memory.forget_all()?;
    let by_blake3 = engines.read_by_blake3(&memory)?;
    let runs = [first, bare(BARE_PIECES[1])?];
    check(&memory, engines.content(), &flat)?;

    let fresh = WeightMemory::allocate(&setup.tensor_bytes())?;
    let into_fresh_memory = engines.read(&fresh, true, true)?;
    check(&fresh, engines.content(), &flat)?;
    drop(fresh);
    let fillings = fresh::measure(setup, &engines)?;
    let beside = beside::measure(setup, &memory, flat)?;
    Ok(Runs {
        bare: runs,
        without_digests,
        with_digests,
        with_tls,
        by_blake3,
        into_fresh_memory,
        fillings,
        beside,
    })
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

/// Both ways brought the seed's bytes.
fn check(memory: &Arc<WeightMemory>, content: &Content, flat: &[u8]) -> Result<()> {
    let digests = memory.chunk_digests(DigestAlgorithm::default());
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
