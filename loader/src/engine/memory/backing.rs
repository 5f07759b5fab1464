//! Where the bytes of a [`WeightMemory`](super::WeightMemory) are: on the host, or on a device.

use std::any::Any;
use std::io;
use std::ptr;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::engine::device::{Device, DeviceBuffer, DeviceError, Staging};

/// Pinned pieces of one memory: as many as storage is read by at once.
const STAGING_PIECES: usize = 8;
/// Their size: what storage reads at a time.
const STAGING_PIECE_BYTES: usize = 512 << 10;

/// Memory with one owner, at one address until it is dropped.
#[derive(Debug)]
pub(super) enum Backing {
    Host(Mapping),
    Device(DeviceMemory),
    /// Memory that somebody else allocated, and that is theirs again when this is dropped.
    Caller {
        /// How bytes get there, if it is a device's.
        device: Option<DeviceMemory>,
        owner: CallersMemory,
    },
}

/// Whose memory it is that a caller allocated, and where.
#[derive(Debug)]
pub struct CallersMemory {
    /// Dropped when nobody uses the memory any more.
    pub owner: Arc<dyn Any + Send + Sync>,
    /// The device that it is on; `None` for the host.
    pub device: Option<Device>,
    /// The allocations that the tensors lie in, `(address, bytes)`, as far as they are known: engines that register
    /// memory do so by allocation.
    pub allocations: Vec<(u64, u64)>,
}

impl CallersMemory {
    /// Host memory that this keeps.
    pub fn on_host(owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { owner, device: None, allocations: Vec::new() }
    }
}

/// Device memory, and how bytes get there.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    pub(super) buffer: DeviceBuffer,
    pub(super) staging: Arc<Staging>,
}

impl Backing {
    /// A mapping as a backing, with the address of its first byte.
    pub(super) fn host(mapping: Mapping) -> (Self, u64) {
        let start = mapping.start as u64;
        (Self::Host(mapping), start)
    }

    /// Memory of a device, with the address of its first byte there.
    pub(super) fn on_device(device: &Device, len: usize) -> Result<(Self, u64), DeviceError> {
        let buffer = device.allocate(len)?;
        let start = buffer.address();
        Ok((Self::Device(DeviceMemory::new(buffer)), start))
    }

    /// A caller's memory from address `start` to `end`.
    ///
    /// # Safety
    /// What of that range the memory's tensors take must be the caller's memory until its owner is dropped.
    pub(super) unsafe fn of_caller(owner: CallersMemory, start: u64, end: u64) -> Self {
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        let device = owner.device.as_ref().map(|device| {
            // SAFETY: as promised for what the tensors take; nothing else of it is touched.
            DeviceMemory::new(unsafe { device.borrow(start, len) })
        });
        Self::Caller { device, owner }
    }

    /// How bytes get to a device; `None` for host memory.
    pub(super) fn device(&self) -> Option<&DeviceMemory> {
        match self {
            Self::Host(_) => None,
            Self::Device(memory) => Some(memory),
            Self::Caller { device, .. } => device.as_ref(),
        }
    }

    /// Makes all pages of host memory that was allocated here.
    pub(super) fn prefault(&self) -> io::Result<()> {
        let Self::Host(mapping) = self else { return Ok(()) };
        // SAFETY: the range is our mapping; populating for writing keeps its content.
        unsafe { madvise(mapping.start.cast(), mapping.len, Advice::LinuxPopulateWrite) }?;
        Ok(())
    }
}

impl DeviceMemory {
    fn new(buffer: DeviceBuffer) -> Self {
        let staging = Staging::new(buffer.device(), STAGING_PIECES, STAGING_PIECE_BYTES);
        Self { buffer, staging }
    }
}

/// An anonymous, private mapping.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory with no tie to a thread. Access to its bytes is governed by the chunk
// states of the `WeightMemory` that owns it.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives only the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(len: usize) -> io::Result<Self> {
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
