//! Pinned pieces of host memory, through which bytes go to a device and back.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Device, DeviceError, PinnedBuffer};

/// A fixed number of pinned pieces. Several threads, each with a piece of its own, overlap what fills the pieces
/// (reading files) with what empties them (copying to the device); memory stays bounded however many there are.
///
/// Whoever has a piece gives it back on drop, also when it leaves early.
#[derive(Debug)]
pub struct Staging {
    free: Mutex<Vec<PinnedBuffer>>,
    given_back: Condvar,
    piece_bytes: usize,
}

impl Staging {
    /// Pins `pieces` pieces of `piece_bytes` each; at least one of at least one byte.
    ///
    /// # Errors
    /// [`DeviceError`] when the host or the device allows no such amount.
    pub fn new(device: &Device, pieces: usize, piece_bytes: usize) -> Result<Arc<Self>, DeviceError> {
        let piece_bytes = piece_bytes.max(1);
        let free =
            (0..pieces.max(1)).map(|_| device.allocate_pinned(piece_bytes)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { free: Mutex::new(free), given_back: Condvar::new(), piece_bytes }))
    }

    /// The size of a piece.
    pub fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// Takes a piece; blocks while all are taken. Those who have one need nothing else to give it back, so this ends
    /// as soon as a copy or a read ends. A thread must not take a second one.
    pub fn take(self: &Arc<Self>) -> Staged {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.given_back.wait_while(free, |free| free.is_empty()).unwrap_or_else(PoisonError::into_inner);
        Staged { buffer: free.pop(), staging: self.clone() }
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
        self.staging.free.lock().unwrap_or_else(PoisonError::into_inner).extend(self.buffer.take());
        self.staging.given_back.notify_one();
    }
}
