//! The rights to touch one chunk's bytes: [`ChunkWriter`] and [`ChunkReader`].

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{EMPTY, HELD, WRITING, WeightMemory};
use crate::digest::ChunkDigest;

/// The most pieces of memory that one system call takes (`IOV_MAX` of Linux).
const MAX_PIECES: usize = 1_024;
/// Bytes that a digest takes at a time, so that they are still in the cache.
const PIECE_BYTES: usize = 256 << 10;

/// The bytes of one chunk, as pieces of memory.
#[derive(Debug)]
pub(super) struct ChunkBytes {
    memory: Arc<WeightMemory>,
    chunk: u32,
    /// Address and length of each piece, in order.
    pieces: Vec<(usize, usize)>,
    len: usize,
}

impl ChunkBytes {
    pub(super) fn new(memory: &Arc<WeightMemory>, chunk: u32) -> Self {
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

    /// The pieces from byte `from` on as the system takes them: as many as one call may have, and `max` bytes.
    fn io_vectors(&self, from: usize, max: usize) -> Vec<libc::iovec> {
        let pieces = self.pieces_from(from, max).take(MAX_PIECES);
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
pub struct ChunkWriter(pub(super) ChunkBytes);

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
        let mut pieces = self.0.io_vectors(at, usize::MAX);
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
pub struct ChunkReader(pub(super) ChunkBytes);

impl ChunkReader {
    /// The chunk's size.
    #[allow(clippy::len_without_is_empty)] // No chunk is empty.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Sends `head` from `at` on, followed by the chunk's bytes, to a non-blocking socket, with one system
    /// call: what is left of `head`, and `max` of the chunk's bytes at the most. `at` counts over both. Returns
    /// how many bytes went.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; else what the system says.
    pub fn send(&self, socket: BorrowedFd<'_>, head: &[u8], at: usize, max: usize) -> io::Result<usize> {
        let head_left = &head[at.min(head.len())..];
        let mut pieces = self.0.io_vectors(at.saturating_sub(head.len()), max);
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
