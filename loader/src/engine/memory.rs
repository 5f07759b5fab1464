//! The memory that a model's weights live in: which bytes are there, who may write and who may read them.
//!
//! Every chunk is empty, being written by one, or held and being read by some. Those states are kept here, and
//! bytes are touched only through [`ChunkWriter`] and [`ChunkReader`], which exist only in the right state. So
//! that only held chunks are read, and nothing is written that somebody reads, is true in one place, and the
//! rest of the loader needs no `unsafe`.
//!
//! The bytes are addressed by raw pointers: a network card, or a peer that reads by address, knows no Rust
//! references. Slices over them exist only inside a guard, for a digest or a copy.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rfork_protocol::manifest::content::{ChunkDigests, ContentId};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use tokio::sync::watch;

use crate::chunks::{ChunkPlan, ChunkSet, PlanError};
use crate::digest::ChunkDigest;

/// Each tensor starts at a multiple of this, which suits every vector unit and copy engine in the field.
const TENSOR_ALIGNMENT: u64 = 256;
/// The most pieces of memory that one system call takes (`IOV_MAX` of Linux).
const MAX_PIECES: usize = 1_024;
/// Bytes that a digest takes at a time, so that they are still in the cache.
const PIECE_BYTES: usize = 256 << 10;

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
}

/// A chunk is being written or read, so it cannot be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk {0} is in use")]
pub struct ChunkInUse(pub u32);

/// What the bytes are: set once it is known, and what the chunks are then verified against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub id: ContentId,
    /// The digest of each chunk.
    pub chunks: ChunkDigests,
}

/// Memory for the tensors of one model.
///
/// Freed when the last `Arc` is dropped: every reader and writer holds one, so memory that somebody uses is
/// never freed.
#[derive(Debug)]
pub struct WeightMemory {
    mapping: Mapping,
    /// Where each tensor starts, from the mapping's start; in manifest order.
    offsets: Vec<u64>,
    plan: ChunkPlan,
    states: Box<[AtomicU32]>,
    held_bytes: AtomicU64,
    /// Counts commits, for those who wait for a chunk.
    commits: watch::Sender<u64>,
    content: RwLock<Option<Arc<Content>>>,
}

/// An anonymous, private mapping.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory with no tie to a thread. Access to its bytes is governed by the chunk
// states of the `WeightMemory` that owns it.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives only the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        // Fewer faults and cheaper look-ups. A kernel without huge pages refuses, which costs only speed.
        // SAFETY: the range is the mapping just made, and this advice changes no content.
        let _ = unsafe { madvise(start, len, Advice::LinuxHugepage) };
        Ok(Self { start: start.cast(), len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped; the owner is being dropped, so no guard, and with
        // it no pointer into the range, is left.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

impl WeightMemory {
    /// Allocates memory for tensors of these sizes, in manifest order. Its pages are made when first touched.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn allocate(tensor_bytes: &[u64]) -> Result<Arc<Self>, MemoryError> {
        let plan = ChunkPlan::new(tensor_bytes)?;
        let mut offsets = Vec::with_capacity(tensor_bytes.len());
        let mut end = 0u64;
        for bytes in tensor_bytes {
            let start = end.checked_next_multiple_of(TENSOR_ALIGNMENT).ok_or(PlanError::TooLarge)?;
            offsets.push(start);
            end = start.checked_add(*bytes).ok_or(PlanError::TooLarge)?;
        }
        let len = usize::try_from(end).map_err(|_| PlanError::TooLarge)?;
        let mapping = Mapping::new(len).map_err(|source| MemoryError::Allocate { bytes: end, source })?;
        Ok(Arc::new(Self {
            mapping,
            offsets,
            states: (0..plan.count()).map(|_| AtomicU32::new(EMPTY)).collect(),
            plan,
            held_bytes: AtomicU64::new(0),
            commits: watch::Sender::new(0),
            content: RwLock::new(None),
        }))
    }

    /// How the model is cut.
    pub fn plan(&self) -> &ChunkPlan {
        &self.plan
    }

    /// Where a tensor starts; `None` when there is no such tensor.
    pub fn tensor_address(&self, tensor: usize) -> Option<u64> {
        self.offsets.get(tensor).map(|offset| self.mapping.start as u64 + offset)
    }

    /// Makes all pages now, so that whoever fills the memory does not wait for them.
    ///
    /// # Errors
    /// When the system has no memory left, or no such call (Linux before 5.14).
    pub fn prefault(&self) -> io::Result<()> {
        // SAFETY: the range is our mapping; populating for writing keeps its content.
        unsafe { madvise(self.mapping.start.cast(), self.mapping.len, Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    /// Takes an empty chunk to fill it. `None` when it is held, or somebody else fills it.
    pub fn begin_write(self: &Arc<Self>, chunk: u32) -> Option<ChunkWriter> {
        let state = self.states.get(chunk as usize)?;
        state.compare_exchange(EMPTY, WRITING, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(ChunkWriter(ChunkBytes::new(self, chunk)))
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
        // Subscribed before the first look, so a commit in between is seen.
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

    /// Forgets every chunk and the content, to start over with other bytes.
    ///
    /// # Errors
    /// [`ChunkInUse`], and nothing is forgotten, while anybody reads or writes.
    pub fn forget_all(&self) -> Result<(), ChunkInUse> {
        // First every held chunk is closed to readers; only if that succeeds for all, they are forgotten.
        let end = self.states.iter().position(|state| {
            state
                .compare_exchange(HELD, FORGETTING, Ordering::Acquire, Ordering::Acquire)
                .is_err_and(|other| other != EMPTY)
        });
        let next = if end.is_some() { HELD } else { EMPTY };
        if end.is_none() {
            *self.content.write().unwrap_or_else(PoisonError::into_inner) = None;
            self.held_bytes.store(0, Ordering::Relaxed);
        }
        for state in &self.states {
            let _ = state.compare_exchange(FORGETTING, next, Ordering::Release, Ordering::Relaxed);
        }
        match end {
            None => Ok(()),
            Some(at) => Err(ChunkInUse(u32::try_from(at).unwrap_or(u32::MAX))),
        }
    }

    /// What the bytes are, once it is known.
    pub fn content(&self) -> Option<Arc<Content>> {
        self.content.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what the bytes are.
    pub fn set_content(&self, content: Content) {
        *self.content.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(content));
    }
}

/// The bytes of one chunk, as pieces of memory.
#[derive(Debug)]
struct ChunkBytes {
    memory: Arc<WeightMemory>,
    chunk: u32,
    /// Address and length of each piece, in order.
    pieces: Vec<(usize, usize)>,
    len: usize,
}

impl ChunkBytes {
    fn new(memory: &Arc<WeightMemory>, chunk: u32) -> Self {
        let start = memory.mapping.start as usize;
        let mut len = 0;
        // Offsets and lengths lie within the mapping, whose length is a `usize`: nothing is cut off here.
        let pieces = memory.plan.segments(chunk).map(|segment| {
            let piece_len = usize::try_from(segment.len_bytes).unwrap_or(0);
            let offset = memory.offsets[segment.tensor] + segment.offset_bytes;
            len += piece_len;
            (start + usize::try_from(offset).unwrap_or(0), piece_len)
        });
        let pieces = pieces.collect();
        Self { memory: memory.clone(), chunk, pieces, len }
    }

    fn state(&self) -> &AtomicU32 {
        &self.memory.states[self.chunk as usize]
    }

    /// The pieces from byte `from` on, `max` bytes at the most.
    fn pieces_from(&self, from: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
        let (mut skip, mut left) = (from, max);
        self.pieces.iter().filter_map(move |(address, len)| {
            let skipped = skip.min(*len);
            skip -= skipped;
            let taken = (len - skipped).min(left);
            left -= taken;
            (taken > 0).then_some((address + skipped, taken))
        })
    }

    /// The pieces from byte `from` on as the system takes them: as many as one call may have.
    fn io_vectors(&self, from: usize) -> Vec<libc::iovec> {
        let pieces = self.pieces_from(from, usize::MAX).take(MAX_PIECES);
        pieces
            .map(|(address, len)| libc::iovec { iov_base: address as *mut libc::c_void, iov_len: len })
            .collect()
    }

    /// Shows the bytes `from..from + len`, piece by piece.
    fn visit(&self, from: usize, len: usize, visit: &mut dyn FnMut(&[u8])) {
        for (address, len) in self.pieces_from(from, len) {
            for at in (0..len).step_by(PIECE_BYTES) {
                let piece_len = PIECE_BYTES.min(len - at);
                // SAFETY: the piece lies in the mapping, which the `Arc` keeps. While this guard lives, the
                // chunk's state keeps everybody else from writing it: a writer is alone, and beside a reader
                // there is no writer. The slice does not outlive the call.
                visit(unsafe { std::slice::from_raw_parts((address + at) as *const u8, piece_len) });
            }
        }
    }
}

/// The right to fill one chunk. Dropped without [`ChunkWriter::commit`], the chunk is empty again.
#[derive(Debug)]
pub struct ChunkWriter(ChunkBytes);

impl ChunkWriter {
    /// Which chunk.
    pub fn chunk(&self) -> u32 {
        self.0.chunk
    }

    /// The chunk's size.
    #[allow(clippy::len_without_is_empty)] // No chunk is empty.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Receives from a non-blocking socket into the bytes from `at` on, with one system call. Returns how many
    /// came; 0 means that the peer has closed.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there yet; else what the system says.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, at: usize) -> io::Result<usize> {
        let mut pieces = self.0.io_vectors(at);
        let mut message = message(&mut pieces);
        // SAFETY: `message` points to `pieces`, which outlives the call; each piece lies in the mapping, and
        // this guard has it for itself.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Reads from a file at `file_offset` into the bytes `at..at + len`, all of them.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; else what the system says.
    pub fn read_file_at(&mut self, file: &File, file_offset: u64, at: usize, len: usize) -> io::Result<()> {
        let mut offset = file_offset;
        for (address, len) in self.0.pieces_from(at, len) {
            // SAFETY: the piece lies in the mapping, is initialised (anonymous memory is zero), and this guard
            // has it for itself while the call lasts.
            let piece = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) };
            file.read_exact_at(piece, offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Feeds the bytes `at..at + len` to a digest.
    pub fn digest(&self, at: usize, len: usize, digest: &mut ChunkDigest) {
        self.0.visit(at, len, &mut |bytes| digest.update(bytes));
    }

    /// The chunk is complete and verified: from now on it is held.
    pub fn commit(self) {
        self.0.memory.held_bytes.fetch_add(self.0.len as u64, Ordering::Relaxed);
        self.0.state().store(HELD, Ordering::Release);
        self.0.memory.commits.send_modify(|commits| *commits += 1);
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        // After a commit the chunk is no longer `WRITING`, and stays as it is.
        let _ = self.0.state().compare_exchange(WRITING, EMPTY, Ordering::Release, Ordering::Relaxed);
    }
}

/// The right to read one held chunk.
#[derive(Debug)]
pub struct ChunkReader(ChunkBytes);

impl ChunkReader {
    /// The chunk's size.
    #[allow(clippy::len_without_is_empty)] // No chunk is empty.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Sends `head` from `at` on, followed by the chunk's bytes, to a non-blocking socket, with one system
    /// call. `at` counts over both. Returns how many bytes went.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; else what the system says.
    pub fn send(&self, socket: BorrowedFd<'_>, head: &[u8], at: usize) -> io::Result<usize> {
        let head_left = &head[at.min(head.len())..];
        let mut pieces = self.0.io_vectors(at.saturating_sub(head.len()));
        if !head_left.is_empty() {
            let iov_base = head_left.as_ptr().cast_mut().cast();
            pieces.insert(0, libc::iovec { iov_base, iov_len: head_left.len() });
            pieces.truncate(MAX_PIECES);
        }
        let message = message(&mut pieces);
        // SAFETY: `message` points to `pieces`, which outlives the call; each piece is `head` or lies in the
        // mapping, where nobody writes while this guard lives. The system only reads them.
        let sent = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Shows all bytes, in order, in pieces of bounded size.
    pub fn visit(&self, mut visit: impl FnMut(&[u8])) {
        self.0.visit(0, self.0.len, &mut visit);
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        self.0.state().fetch_sub(1, Ordering::Release);
    }
}

/// A message of these pieces, without address or control data.
fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    // The type differs between C libraries; there are at most `MAX_PIECES`.
    message.msg_iovlen = pieces.len() as _;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks::MIN_CHUNK_BYTES;
    use crate::digest::DigestAlgorithm;
    use proptest::prelude::*;
    use std::io::Write;

    fn file_with(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn memory(tensors: &[u64]) -> Arc<WeightMemory> {
        WeightMemory::allocate(tensors).unwrap()
    }

    #[test]
    fn a_chunk_has_one_writer_and_no_reader_before_it_is_held() {
        let memory = memory(&[1_000]);
        let writer = memory.begin_write(0).unwrap();
        assert!(memory.begin_write(0).is_none() && memory.begin_read(0).is_none());
        drop(writer);
        let writer = memory.begin_write(0).expect("a dropped writer leaves the chunk empty");
        assert_eq!((memory.held_bytes(), memory.all_held(), memory.missing().len()), (0, false, 1));
        writer.commit();
        assert!(memory.begin_write(0).is_none(), "a held chunk is not written");
        let (one, two) = (memory.begin_read(0).unwrap(), memory.begin_read(0).unwrap());
        assert_eq!((memory.held_bytes(), memory.all_held(), memory.missing().len()), (1_000, true, 0));
        assert_eq!(memory.forget_all(), Err(ChunkInUse(0)));
        drop((one, two));
        assert_eq!(memory.forget_all(), Ok(()));
        assert_eq!((memory.held_bytes(), memory.all_held()), (0, false));
        assert!(memory.begin_write(1).is_none() && memory.begin_read(1).is_none(), "no such chunk");
    }

    #[test]
    fn nothing_is_forgotten_while_one_chunk_is_in_use() {
        let memory = memory(&[3 * MIN_CHUNK_BYTES]);
        for chunk in 0..2 {
            memory.begin_write(chunk).unwrap().commit();
        }
        let writer = memory.begin_write(2).unwrap();
        assert_eq!(memory.forget_all(), Err(ChunkInUse(2)));
        assert!(memory.begin_read(0).is_some() && memory.begin_read(1).is_some());
        drop(writer);
        assert_eq!(memory.forget_all(), Ok(()));
        assert_eq!(memory.missing().len(), 3);
    }

    #[test]
    fn too_much_memory_is_an_error() {
        let error = WeightMemory::allocate(&[1 << 52]).unwrap_err().to_string();
        assert!(error.contains("cannot allocate 4503599627370496 bytes"), "{error}");
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let memory = memory(&[1_000]);
        let mut writer = memory.begin_write(0).unwrap();
        let error = writer.read_file_at(&file_with(&[7; 999]), 0, 0, 1_000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn who_waits_for_a_chunk_gets_it_when_it_comes() {
        let memory = memory(&[2 * MIN_CHUNK_BYTES]);
        let waiting = tokio::spawn({
            let memory = memory.clone();
            async move { memory.wait_held(1).await.len() }
        });
        memory.begin_write(0).unwrap().commit();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        memory.begin_write(1).unwrap().commit();
        assert_eq!(waiting.await.unwrap() as u64, MIN_CHUNK_BYTES);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_written_is_read_back(sizes in prop::collection::vec(1u64..400_000, 1..8), cut in 1usize..300_000) {
            let total: u64 = sizes.iter().sum();
            let bytes: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
            let file = file_with(&bytes);
            let memory = memory(&sizes);
            let mut offset = 0;
            let mut read_back = Vec::new();
            for chunk in 0..memory.plan().count() {
                let mut writer = memory.begin_write(chunk).unwrap();
                let first = cut.min(writer.len());
                writer.read_file_at(&file, offset, 0, first).unwrap();
                let rest = writer.len() - first;
                writer.read_file_at(&file, offset + first as u64, first, rest).unwrap();
                offset += writer.len() as u64;
                let mut written = DigestAlgorithm::default().start();
                let len = writer.len();
                writer.digest(0, first, &mut written);
                writer.digest(first, len - first, &mut written);
                writer.commit();
                let mut read = DigestAlgorithm::default().start();
                memory.begin_read(chunk).unwrap().visit(|piece| { read.update(piece); read_back.extend_from_slice(piece); });
                prop_assert_eq!(written.finish(), read.finish());
            }
            prop_assert!(read_back == bytes);
            for (tensor, _) in sizes.iter().enumerate() {
                prop_assert_eq!(memory.tensor_address(tensor).unwrap() % TENSOR_ALIGNMENT, 0);
            }
        }
    }
}
