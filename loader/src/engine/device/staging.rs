//! Pinned pieces of host memory, through which bytes go to a device and back.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Device, DeviceError, PinnedBuffer};

/// A bounded number of pinned pieces, pinned when they are needed. Several threads, each with a piece of its own,
/// overlap what fills the pieces (reading files) with what empties them (copying to the device); memory stays bounded
/// however many there are.
///
/// Whoever has a piece gives it back on drop, also when it leaves early.
#[derive(Debug)]
pub struct Staging {
    device: Device,
    pool: Mutex<Pool>,
    given_back: Condvar,
    pieces: usize,
    piece_bytes: usize,
}

#[derive(Debug, Default)]
struct Pool {
    free: Vec<PinnedBuffer>,
    /// How many were pinned, free or taken.
    pinned: usize,
}

impl Staging {
    /// Up to `pieces` pieces of `piece_bytes` each; at least one of at least one byte.
    pub fn new(device: &Device, pieces: usize, piece_bytes: usize) -> Arc<Self> {
        let (pieces, piece_bytes) = (pieces.max(1), piece_bytes.max(1));
        Arc::new(Self {
            device: device.clone(),
            pool: Mutex::default(),
            given_back: Condvar::new(),
            pieces,
            piece_bytes,
        })
    }

    /// The size of a piece.
    pub fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// Takes a piece; blocks while all are taken. Those who have one need nothing else to give it back, so this ends
    /// as soon as a copy or a read ends. A thread must not take a second one.
    ///
    /// # Errors
    /// [`DeviceError`] when the host or the device lets no more be pinned.
    pub fn take(self: &Arc<Self>) -> Result<Staged, DeviceError> {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let all_taken = |pool: &mut Pool| pool.free.is_empty() && pool.pinned == self.pieces;
        let mut pool = self.given_back.wait_while(pool, all_taken).unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = pool.free.pop() {
            return Ok(Staged { buffer: Some(buffer), staging: self.clone() });
        }
        // Others wait for this one, as they would for a piece.
        let buffer = self.device.allocate_pinned(self.piece_bytes)?;
        pool.pinned += 1;
        Ok(Staged { buffer: Some(buffer), staging: self.clone() })
    }
}

/// A piece that somebody has.
#[derive(Debug)]
pub struct Staged {
    /// `None` only while it is dropped.
    buffer: Option<PinnedBuffer>,
    staging: Arc<Staging>,
}

impl Staged {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], PinnedBuffer::bytes)
    }

    /// Its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], PinnedBuffer::bytes_mut)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let mut pool = self.staging.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.free.extend(self.buffer.take());
        drop(pool);
        self.staging.given_back.notify_one();
    }
}
