//! The memory that a model's weights live in: which bytes are there, who may write and who may read them.
//!
//! Every chunk is empty, being written by one, or held and being read by some. Those states are kept here, and
//! bytes are touched only through [`ChunkWriter`] and [`ChunkReader`], which exist only in the right state. So
//! that only held chunks are read, and nothing is written that somebody reads, is true in one place, and the
//! rest of the loader needs no `unsafe`.
//!
//! The bytes are addressed by raw pointers: a network card, or a peer that reads by address, knows no Rust
//! references. Slices over them exist only inside a guard, for a digest or a copy. Memory of a device is never
//! sliced at all: it is copied piece by piece through pinned host memory.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::watch;

use super::device::{Device, DeviceError};
use crate::chunks::{ChunkPlan, ChunkSet, PlanError};
use crate::digest::Digest;
use crate::held::{HeldCursor, HeldLog};

mod ahead;
mod arrivals;
mod backing;
mod chunk;
mod content;
mod huge;
mod regions;

pub use ahead::PagesAhead;
pub use arrivals::Arrivals;
pub use backing::CallersMemory;
use backing::{Backing, Mapping};
use chunk::ChunkBytes;
pub use chunk::{ChunkReader, ChunkWriter};
pub use content::Content;
use content::Names;
pub use regions::Region;

/// Each tensor starts at a multiple of this, which suits every vector unit and copy engine in the field.
const TENSOR_ALIGNMENT: u64 = 256;

/// A chunk that nobody has filled.
const EMPTY: u32 = 0;
/// A chunk that one writer fills.
const WRITING: u32 = 1;
/// A chunk that was held and is about to be forgotten.
const FORGETTING: u32 = 2;
/// A held chunk without a reader; each reader adds one.
const HELD: u32 = 3;

/// Memory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The sizes make no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The system has no such amount.
    #[error(
        "cannot allocate {bytes} bytes for the weights: {source}; free memory, or raise the limit of this process or container"
    )]
    Allocate {
        /// How much was asked for.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A range of the caller's that cannot be.
    #[error("tensor {tensor} cannot be at address {address:#x} with {bytes} bytes: that is no memory")]
    Range {
        /// Its place in the manifest.
        tensor: usize,
        /// Where it was said to start.
        address: u64,
        /// Its size.
        bytes: u64,
    },
    /// Two tensors of the caller's share bytes, so filling one would change the other.
    #[error("tensors {first} and {second} overlap in memory: give each memory of its own")]
    Overlap {
        /// The place of one in the manifest.
        first: usize,
        /// That of the other.
        second: usize,
    },
    /// The device has no such amount, or cannot be used.
    #[error("cannot allocate {bytes} bytes for the weights on the device: {source}")]
    Device {
        /// How much was asked for.
        bytes: u64,
        /// What AscendCL said.
        source: DeviceError,
    },
}

/// A chunk is being written or read, so it cannot be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk {0} is in use")]
pub struct ChunkInUse(pub u32);

/// Memory for the tensors of one model.
///
/// Freed when the last `Arc` is dropped: every reader and writer holds one, so memory that somebody uses is
/// never freed.
#[derive(Debug)]
pub struct WeightMemory {
    backing: Backing,
    /// Where each tensor starts; in manifest order.
    addresses: Vec<u64>,
    plan: ChunkPlan,
    states: Box<[AtomicU32]>,
    held_bytes: AtomicU64,
    /// In which order chunks came to be held. No guard is held across an await.
    held: Mutex<HeldLog>,
    arrivals: Arrivals,
    /// Counts commits, for those who wait for a chunk.
    commits: watch::Sender<u64>,
    names: RwLock<Names>,
    /// The digests with which chunks came, from before they are held. No guard is held across an await.
    digests: Mutex<Box<[Option<Digest>]>>,
}

impl WeightMemory {
    /// Allocates memory for tensors of these sizes, in manifest order. Its pages are made when first touched.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn allocate(tensor_bytes: &[u64]) -> Result<Arc<Self>, MemoryError> {
        Self::with_backing(tensor_bytes, |len| {
            let allocated = Mapping::new(len).map(Backing::host);
            allocated.map_err(|source| MemoryError::Allocate { bytes: len as u64, source })
        })
    }

    /// Allocates memory of `device` for tensors of these sizes, in manifest order, and a bounded amount of pinned
    /// host memory, through which files are read into it and digests are made of it.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn allocate_on(device: &Device, tensor_bytes: &[u64]) -> Result<Arc<Self>, MemoryError> {
        Self::with_backing(tensor_bytes, |len| {
            let allocated = Backing::on_device(device, len);
            allocated.map_err(|source| MemoryError::Device { bytes: len as u64, source })
        })
    }

    /// Takes memory that somebody else allocated: for each tensor, in manifest order, the address of its first byte
    /// and its size in bytes. `callers.owner` is dropped when nobody uses the memory any more.
    ///
    /// # Errors
    /// [`MemoryError::Range`], [`MemoryError::Overlap`], [`MemoryError::Plan`].
    ///
    /// # Safety
    /// Until the owner is dropped each range must be initialised memory of this process, or of the device, at the same
    /// address, that may be written to; and while it is, nobody else may write there but a fallback that loads the
    /// whole, in its time, nor read what is not held.
    pub unsafe fn of_caller(
        tensors: &[(u64, u64)],
        callers: CallersMemory,
    ) -> Result<Arc<Self>, MemoryError> {
        let plan = ChunkPlan::new(&tensors.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>())?;
        let mut ranges = Vec::with_capacity(tensors.len());
        for (tensor, &(address, bytes)) in tensors.iter().enumerate() {
            match address.checked_add(bytes) {
                // Rust's pointers do not count further, either.
                Some(end) if address > 0 && isize::try_from(end).is_ok() => {
                    ranges.push((address, end, tensor));
                }
                _ => return Err(MemoryError::Range { tensor, address, bytes }),
            }
        }
        ranges.retain(|(start, end, _)| start < end);
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(MemoryError::Overlap { first: pair[0].2, second: pair[1].2 });
        }
        let addresses = tensors.iter().map(|(address, _)| *address).collect();
        let start = ranges.first().map_or(0, |(start, ..)| *start);
        let end = ranges.last().map_or(0, |(_, end, _)| *end);
        if callers.device.is_none() {
            // SAFETY: as the caller promises.
            unsafe { huge::ask(ranges.iter().map(|(start, end, _)| (*start, *end))) };
        }
        // SAFETY: as the caller promises.
        let backing = unsafe { Backing::of_caller(callers, start, end) };
        Ok(Arc::new(Self::new(backing, addresses, plan)))
    }

    fn with_backing(
        tensor_bytes: &[u64],
        allocate: impl FnOnce(usize) -> Result<(Backing, u64), MemoryError>,
    ) -> Result<Arc<Self>, MemoryError> {
        let plan = ChunkPlan::new(tensor_bytes)?;
        let mut addresses = Vec::with_capacity(tensor_bytes.len());
        let mut end = 0u64;
        for bytes in tensor_bytes {
            let start = end.checked_next_multiple_of(TENSOR_ALIGNMENT).ok_or(PlanError::TooLarge)?;
            addresses.push(start);
            end = start.checked_add(*bytes).ok_or(PlanError::TooLarge)?;
        }
        let len = usize::try_from(end).map_err(|_| PlanError::TooLarge)?;
        let (backing, start) = allocate(len)?;
        // Until here they were counted from the backing's start.
        for address in &mut addresses {
            *address += start;
        }
        Ok(Arc::new(Self::new(backing, addresses, plan)))
    }

    fn new(backing: Backing, addresses: Vec<u64>, plan: ChunkPlan) -> Self {
        let digests = Mutex::new((0..plan.count()).map(|_| None).collect());
        Self {
            backing,
            addresses,
            states: (0..plan.count()).map(|_| AtomicU32::new(EMPTY)).collect(),
            plan,
            held_bytes: AtomicU64::new(0),
            held: Mutex::default(),
            arrivals: Arrivals::begin(),
            commits: watch::Sender::new(0),
            names: RwLock::default(),
            digests,
        }
    }

    /// How the model is cut.
    pub fn plan(&self) -> &ChunkPlan {
        &self.plan
    }

    /// Where a tensor starts; `None` when there is no such tensor.
    pub fn tensor_address(&self, tensor: usize) -> Option<u64> {
        self.addresses.get(tensor).copied()
    }

    /// What of the memory has tensors, in order of addresses: one region for memory that was allocated here, and for a
    /// caller's as few as its tensors and allocations make.
    pub fn regions(&self) -> Vec<Region> {
        let mut tensors: Vec<(u64, u64)> =
            self.addresses.iter().copied().zip(self.plan.tensor_bytes()).collect();
        tensors.retain(|(_, bytes)| *bytes > 0);
        match &self.backing {
            Backing::Caller { owner, .. } => regions::of_caller(tensors, &owner.allocations),
            Backing::Host(_) | Backing::Device(_) => regions::of_one_allocation(&tensors),
        }
    }

    /// Makes all pages now, so that whoever fills the memory does not wait for them. Device memory has its own
    /// already, and the caller's is left as it is.
    ///
    /// # Errors
    /// When the system has no memory left, or no such call (Linux before 5.14).
    pub fn prefault(&self) -> io::Result<()> {
        self.backing.prefault()
    }

    /// Makes the pages of these chunks a bounded way ahead of whoever fills them in this order, tells what it has
    /// [`reached`](PagesAhead::reached), and keeps what this gives until it is done. A device's memory has its pages.
    pub fn pages_ahead(self: &Arc<Self>, order: Vec<u32>) -> PagesAhead {
        match self.backing.device() {
            None => PagesAhead::start(self, order),
            Some(_) => PagesAhead::none(),
        }
    }

    /// Waits until a device has done what it was told to do with its memory: what an inference engine's loader wrote
    /// there may be under way when it returns. Host memory needs nothing.
    ///
    /// # Errors
    /// When the device says no.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.backing.device().map_or(Ok(()), |memory| memory.buffer.device().synchronize())
    }

    /// Takes an empty chunk to fill it. `None` when it is held, or somebody else fills it.
    pub fn begin_write(self: &Arc<Self>, chunk: u32) -> Option<ChunkWriter> {
        let state = self.states.get(chunk as usize)?;
        state.compare_exchange(EMPTY, WRITING, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(ChunkWriter::new(ChunkBytes::new(self, chunk)))
    }

    /// Takes all chunks, for somebody who fills the memory without regard to chunks. `None` unless all are empty.
    pub fn begin_write_all(self: &Arc<Self>) -> Option<Vec<ChunkWriter>> {
        // Those that were taken are empty again when one cannot be.
        (0..self.plan.count()).map(|chunk| self.begin_write(chunk)).collect()
    }

    /// Takes a held chunk to read it. `None` when it is not held (yet).
    pub fn begin_read(self: &Arc<Self>, chunk: u32) -> Option<ChunkReader> {
        let state = self.states.get(chunk as usize)?;
        state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
                (HELD..u32::MAX).contains(&state).then(|| state + 1)
            })
            .ok()?;
        Some(ChunkReader(ChunkBytes::new(self, chunk)))
    }

    /// Waits until a chunk is held and takes it to read it. Never returns for a chunk that nobody fills.
    pub async fn wait_held(self: &Arc<Self>, chunk: u32) -> ChunkReader {
        // Excluded: a commit between the look and the wait is missed. The subscription begins before the look, so
        // such a commit ends the wait.
        let mut commits = self.commits.subscribe();
        loop {
            if let Some(reader) = self.begin_read(chunk) {
                return reader;
            }
            // The sender lives in `self`, which lives while this future does.
            let _ = commits.changed().await;
        }
    }

    /// The chunks that are not held.
    pub fn missing(&self) -> ChunkSet {
        let mut missing = ChunkSet::none(self.plan.count());
        for (chunk, state) in (0..).zip(self.states.iter()) {
            if state.load(Ordering::Acquire) < HELD {
                missing.insert(chunk);
            }
        }
        missing
    }

    /// Whether every chunk is held.
    pub fn all_held(&self) -> bool {
        self.states.iter().all(|state| state.load(Ordering::Acquire) >= HELD)
    }

    /// The bytes in held chunks.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Before everything that is held, for [`WeightMemory::held_since`].
    pub(crate) fn held_cursor(&self) -> HeldCursor {
        self.log().begin()
    }

    /// The next chunks that came to be held since the cursor was here last, in that order and so many at most; `None` once all
    /// was forgotten.
    pub(crate) fn held_since(&self, cursor: &mut HeldCursor, at_most: usize) -> Option<Vec<u32>> {
        self.log().next(cursor, at_most)
    }

    /// Changes whenever a chunk comes to be held.
    pub(crate) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    fn log(&self) -> std::sync::MutexGuard<'_, HeldLog> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets every chunk and the content, to start over with other bytes.
    ///
    /// # Errors
    /// [`ChunkInUse`], and nothing is forgotten, while anybody reads or writes, or forgets.
    pub fn forget_all(&self) -> Result<(), ChunkInUse> {
        // Every chunk is taken before any is forgotten, the empty ones too.
        // Excluded: a writer begins while others are being forgotten, and commits bytes of the old content under the
        // new one. It finds its chunk taken.
        // Excluded: two of these undo each other's work. The one that takes chunk 0 goes on alone; the other stops
        // there, and undoes only what it took.
        let in_use = self.states.iter().position(|state| {
            let take = |from, to| state.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed);
            take(EMPTY, WRITING).is_err() && take(HELD, FORGETTING).is_err()
        });
        if in_use.is_none() {
            self.forget_names();
            self.held_bytes.store(0, Ordering::Relaxed);
            self.log().forget();
        }
        for state in &self.states[..in_use.unwrap_or(self.states.len())] {
            let was_held = state.load(Ordering::Relaxed) == FORGETTING;
            let next = if was_held && in_use.is_some() { HELD } else { EMPTY };
            state.store(next, Ordering::Release);
        }
        match in_use {
            None => Ok(()),
            Some(at) => {
                // Excluded: a reader saw a held chunk while it was taken, and waits for ever. This wakes it.
                self.commits.send_modify(|commits| *commits += 1);
                Err(ChunkInUse(u32::try_from(at).unwrap_or(u32::MAX)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
