//! The rights to touch one chunk's bytes: [`ChunkWriter`] and [`ChunkReader`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::backing::DeviceMemory;
use super::{EMPTY, HELD, WRITING, WeightMemory};
use crate::digest::{ChunkDigest, Digest};
use crate::engine::device::Staged;

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
        let mut len = 0;
        // Addresses and lengths lie within the backing, which is in this process or as wide: nothing is cut off here.
        let pieces = memory.plan.segments(chunk).map(|segment| {
            let piece_len = usize::try_from(segment.len_bytes).unwrap_or(0);
            let address = memory.addresses[segment.tensor] + segment.offset_bytes;
            len += piece_len;
            (usize::try_from(address).unwrap_or(0), piece_len)
        });
        let pieces = pieces.collect();
        Self { memory: memory.clone(), chunk, pieces, len }
    }

    /// Address and length of each piece, in order.
    pub(super) fn pieces(&self) -> &[(usize, usize)] {
        &self.pieces
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

    /// The device memory that the chunk is in; `None` when it is the host's.
    fn device(&self) -> Option<&DeviceMemory> {
        self.memory.backing.device()
    }

    /// Refuses memory of a device, to which a socket has no way.
    fn host_only(&self) -> io::Result<()> {
        if self.device().is_none() {
            return Ok(());
        }
        let reason = "sockets do not reach device memory; use an engine that does";
        Err(io::Error::new(io::ErrorKind::Unsupported, reason))
    }

    /// Shows the bytes `from..from + len`, piece by piece. Those of a device are copied into `staged` first.
    fn visit(
        &self,
        from: usize,
        len: usize,
        staged: &mut Option<Staged>,
        visit: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        if let Some(device) = self.device() {
            let staged = taken(staged, device)?;
            for (address, len) in self.pieces_from(from, len) {
                let start = address as u64 - device.buffer.address();
                for at in (0..len).step_by(device.staging.piece_bytes()) {
                    let piece = &mut staged.bytes_mut()[..device.staging.piece_bytes().min(len - at)];
                    device.buffer.copy_to_host(start + at as u64, piece)?;
                    visit(piece);
                }
            }
            return Ok(());
        }
        for (address, len) in self.pieces_from(from, len) {
            for at in (0..len).step_by(PIECE_BYTES) {
                let piece_len = PIECE_BYTES.min(len - at);
                // SAFETY: the piece lies in the backing, which the `Arc` keeps. While this guard lives, the
                // chunk's state keeps everybody else from writing it: a writer is alone, and beside a reader
                // there is no writer. The slice does not outlive the call.
                visit(unsafe { std::slice::from_raw_parts((address + at) as *const u8, piece_len) });
            }
        }
        Ok(())
    }
}

/// The right to fill one chunk. Dropped without [`ChunkWriter::commit`], the chunk is empty again.
#[derive(Debug)]
pub struct ChunkWriter {
    bytes: ChunkBytes,
    /// For a chunk on a device: pinned memory, once it was needed.
    staged: Option<Staged>,
    /// Which of the chunk's bytes `staged` holds from its start on.
    staged_range: Range<usize>,
}

impl ChunkWriter {
    pub(super) fn new(bytes: ChunkBytes) -> Self {
        Self { bytes, staged: None, staged_range: 0..0 }
    }

    /// Which chunk.
    pub fn chunk(&self) -> u32 {
        self.bytes.chunk
    }

    /// The chunk's size.
    #[allow(clippy::len_without_is_empty)] // No chunk is empty.
    pub fn len(&self) -> usize {
        self.bytes.len
    }

    /// Receives from a non-blocking socket into the bytes from `at` on, with one system call. Returns how many
    /// came; 0 means that the peer has closed.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there yet; `Unsupported` for device memory; else what the system says.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, at: usize) -> io::Result<usize> {
        self.bytes.host_only()?;
        let mut pieces = self.bytes.io_vectors(at, usize::MAX);
        let mut message = message(&mut pieces);
        // SAFETY: `message` points to `pieces`, which outlives the call; each piece lies in the backing, and
        // this guard has it for itself.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Copies these bytes into the chunk's from `at` on; they have to fit.
    ///
    /// # Errors
    /// `Unsupported` for device memory.
    pub fn fill(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.bytes.host_only()?;
        let mut copied = 0;
        for (address, len) in self.bytes.pieces_from(at, bytes.len()) {
            // SAFETY: the piece lies in the backing, and this guard has it for itself while the call lasts.
            let piece = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) };
            piece.copy_from_slice(&bytes[copied..copied + len]);
            copied += len;
        }
        Ok(())
    }

    /// Reads from a file at `file_offset` into the bytes `at..at + len`, all of them.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; else what the system says.
    pub fn read_file_at(&mut self, file: &File, file_offset: u64, at: usize, len: usize) -> io::Result<()> {
        self.bytes.memory.arrivals().arrived(len as u64);
        if self.bytes.device().is_some() {
            return self.read_file_to_device(file, file_offset, at, len);
        }
        let mut offset = file_offset;
        for (address, len) in self.bytes.pieces_from(at, len) {
            // SAFETY: the piece lies in the backing, is initialised (anonymous memory is zero, a caller's as it
            // promised), and this guard has it for itself while the call lasts.
            let piece = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) };
            file.read_exact_at(piece, offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Reads into pinned memory, and copies from there to the device.
    fn read_file_to_device(&mut self, file: &File, offset: u64, at: usize, len: usize) -> io::Result<()> {
        let Some(device) = self.bytes.device() else { return Ok(()) };
        let piece_bytes = device.staging.piece_bytes();
        let staged = taken(&mut self.staged, device)?;
        for done in (0..len).step_by(piece_bytes) {
            let piece = &mut staged.bytes_mut()[..piece_bytes.min(len - done)];
            // Until it is filled again, it holds nothing of the chunk.
            self.staged_range = 0..0;
            file.read_exact_at(piece, offset + done as u64)?;
            let mut copied = 0;
            for (address, len) in self.bytes.pieces_from(at + done, piece.len()) {
                let to = address as u64 - device.buffer.address();
                device.buffer.copy_from_host(to, &piece[copied..copied + len])?;
                copied += len;
            }
            self.staged_range = at + done..at + done + piece.len();
        }
        Ok(())
    }

    /// Feeds the bytes `at..at + len` to a digest. Those that were just read to a device are taken from the pinned
    /// memory that they came through.
    ///
    /// # Errors
    /// When a device does not give its bytes; then the digest is worthless.
    pub fn digest(&mut self, at: usize, len: usize, digest: &mut ChunkDigest) -> io::Result<()> {
        if let Some(staged) = &self.staged
            && self.staged_range == (at..at + len)
        {
            digest.update(&staged.bytes()[..len]);
            return Ok(());
        }
        self.staged_range = 0..0;
        self.bytes.visit(at, len, &mut self.staged, &mut |bytes| digest.update(bytes))
    }

    /// The chunk is complete, verified, and has this digest: from now on it is held.
    pub fn commit_as(self, digest: Digest) {
        // Excluded: somebody reads the chunk, or hears of it, and finds no digest.
        if let Some(known) = self.bytes.memory.digests().get_mut(self.bytes.chunk as usize) {
            *known = Some(digest);
        }
        self.commit();
    }

    /// The chunk is complete and verified: from now on it is held. Its digest is known otherwise, or not at all.
    pub fn commit(self) {
        self.bytes.memory.held_bytes.fetch_add(self.bytes.len as u64, Ordering::Relaxed);
        {
            // Excluded: a chunk is announced before it can be read, or it is forgotten before it is in the log, which then
            // has a chunk that is not held. Who reads or forgets the log does so before both, or after both.
            let mut log = self.bytes.memory.log();
            self.bytes.state().store(HELD, Ordering::Release);
            log.push(self.bytes.chunk);
        }
        self.bytes.memory.commits.send_modify(|commits| *commits += 1);
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        // After a commit the chunk is no longer `WRITING`, and stays as it is.
        let _ = self.bytes.state().compare_exchange(WRITING, EMPTY, Ordering::Release, Ordering::Relaxed);
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
    /// `WouldBlock` when the socket takes nothing now; `Unsupported` for device memory; else what the system says.
    pub fn send(&self, socket: BorrowedFd<'_>, head: &[u8], at: usize, max: usize) -> io::Result<usize> {
        self.0.host_only()?;
        let head_left = &head[at.min(head.len())..];
        let mut pieces = self.0.io_vectors(at.saturating_sub(head.len()), max);
        if !head_left.is_empty() {
            let iov_base = head_left.as_ptr().cast_mut().cast();
            pieces.insert(0, libc::iovec { iov_base, iov_len: head_left.len() });
            pieces.truncate(MAX_PIECES);
        }
        let message = message(&mut pieces);
        // SAFETY: `message` points to `pieces`, which outlives the call; each piece is `head` or lies in the
        // backing, where nobody writes while this guard lives. The system only reads them.
        let sent = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Shows the bytes from `at` on, `max` at the most, in order, in pieces of bounded size.
    ///
    /// # Errors
    /// `Unsupported` for device memory.
    pub(crate) fn visit_part(&self, at: usize, max: usize, visit: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.0.host_only()?;
        self.0.visit(at, max, &mut None, visit)
    }

    /// Shows all bytes, in order, in pieces of bounded size.
    ///
    /// # Errors
    /// When a device does not give its bytes.
    pub fn visit(&self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        self.0.visit(0, self.0.len, &mut None, &mut visit)
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        self.0.state().fetch_sub(1, Ordering::Release);
    }
}

/// The pinned piece that is there, or one that is taken now.
fn taken<'a>(staged: &'a mut Option<Staged>, device: &DeviceMemory) -> io::Result<&'a mut Staged> {
    match staged {
        Some(staged) => Ok(staged),
        None => Ok(staged.insert(device.staging.take()?)),
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
