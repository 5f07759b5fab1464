//! Memory of Ascend NPUs, through AscendCL.
//!
//! AscendCL binds a device to a thread: each call here sets the device on the thread that it runs on, which costs
//! next to nothing when it is set already. So callers need not know on which threads they are. The addresses are the
//! device's: no Rust reference to them exists, and bytes move through pinned host memory ([`Staging`]).

use std::ffi::{CStr, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;

use rfork_ascend_sys::ascendcl::{
    ACL_MEM_MALLOC_HUGE_FIRST, ACL_MEMCPY_DEVICE_TO_HOST, ACL_MEMCPY_HOST_TO_DEVICE, AscendCl,
};
use rfork_ascend_sys::{MissingLibrary, open_ascendcl};

mod staging;

pub use staging::{Staged, Staging};

/// `aclInit` was called before, by an inference engine in this process.
const REPEAT_INITIALIZE: i32 = 100_002;

/// A call to the device that did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// AscendCL is not there.
    #[error(transparent)]
    Missing(#[from] MissingLibrary),
    /// AscendCL says no.
    #[error("AscendCL: {call} on NPU {device} failed with {code}: {message}")]
    Call {
        /// Which function.
        call: &'static str,
        /// On which device; -1 when no particular one.
        device: i32,
        /// Its error code.
        code: i32,
        /// What it says of it.
        message: String,
    },
    /// The range is not in the buffer.
    #[error("bytes {offset} to {offset} + {len} are not in a device buffer of {buffer_bytes} bytes")]
    OutOfRange {
        /// From where.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// What there is.
        buffer_bytes: u64,
    },
}

impl From<DeviceError> for std::io::Error {
    fn from(error: DeviceError) -> Self {
        Self::other(error)
    }
}

/// AscendCL, opened and initialised. It stays so until the process ends: others in the process may use it too.
pub struct Runtime {
    acl: AscendCl,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}

impl Runtime {
    /// Opens AscendCL where [`open_ascendcl`] finds it.
    ///
    /// # Errors
    /// [`DeviceError::Missing`], with what to install; [`DeviceError::Call`] when it cannot be initialised.
    pub fn open() -> Result<Arc<Self>, DeviceError> {
        Self::new(open_ascendcl()?)
    }

    /// Initialises AscendCL, unless that is done already.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub fn new(acl: AscendCl) -> Result<Arc<Self>, DeviceError> {
        let runtime = Self { acl };
        // SAFETY: null stands for no settings.
        let code = unsafe { runtime.acl.aclInit(ptr::null()) };
        if code != REPEAT_INITIALIZE {
            runtime.check("aclInit", -1, code)?;
        }
        Ok(Arc::new(runtime))
    }

    /// How many devices this process may use.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub fn device_count(&self) -> Result<u32, DeviceError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        let code = unsafe { self.acl.aclrtGetDeviceCount(&raw mut count) };
        self.check("aclrtGetDeviceCount", -1, code)?;
        Ok(count)
    }

    /// The device of this number, set on this thread.
    ///
    /// # Errors
    /// [`DeviceError::Call`] when there is none.
    pub fn device(self: &Arc<Self>, index: i32) -> Result<Device, DeviceError> {
        let device = Device { runtime: self.clone(), index };
        device.set_on_this_thread()?;
        Ok(device)
    }

    fn check(&self, call: &'static str, device: i32, code: i32) -> Result<(), DeviceError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: AscendCL answers null, or a text that ends in a zero byte and stays until this thread's next call.
        let message = unsafe {
            let text = self.acl.aclGetRecentErrMsg();
            if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().trim().to_owned()) }
        };
        let message = message.unwrap_or_else(|| "it gives no reason".into());
        Err(DeviceError::Call { call, device, code, message })
    }
}

/// One NPU.
#[derive(Debug, Clone)]
pub struct Device {
    runtime: Arc<Runtime>,
    index: i32,
}

impl Device {
    /// Its number.
    pub fn index(&self) -> i32 {
        self.index
    }

    /// Makes it the calling thread's device, as every call to AscendCL needs. Calls of this module do so themselves;
    /// those of others, such as a transfer engine's, need it.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub fn set_on_this_thread(&self) -> Result<(), DeviceError> {
        // SAFETY: a number goes in, nothing else.
        let code = unsafe { self.runtime.acl.aclrtSetDevice(self.index) };
        self.check("aclrtSetDevice", code)
    }

    /// Allocates device memory, at least one byte. Its content is whatever it is.
    ///
    /// # Errors
    /// [`DeviceError::Call`] when the device has no such amount.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceBuffer, DeviceError> {
        self.set_on_this_thread()?;
        let mut start = ptr::null_mut();
        // SAFETY: `start` outlives the call; the device is set on this thread.
        let code =
            unsafe { self.runtime.acl.aclrtMalloc(&raw mut start, bytes.max(1), ACL_MEM_MALLOC_HUGE_FIRST) };
        self.check("aclrtMalloc", code)?;
        Ok(DeviceBuffer { device: self.clone(), start, len: bytes, borrowed: false })
    }

    /// Device memory that somebody else allocated, and will free.
    ///
    /// # Safety
    /// The range must be memory of this device until the buffer is dropped.
    pub(super) unsafe fn borrow(&self, address: u64, len: usize) -> DeviceBuffer {
        let start = std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(0));
        DeviceBuffer { device: self.clone(), start, len, borrowed: true }
    }

    /// Allocates host memory that the device reaches without a copy in between, filled with zeros.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedBuffer, DeviceError> {
        self.set_on_this_thread()?;
        let mut start = ptr::null_mut();
        // SAFETY: `start` outlives the call; the device is set on this thread.
        let code = unsafe { self.runtime.acl.aclrtMallocHost(&raw mut start, bytes.max(1)) };
        self.check("aclrtMallocHost", code)?;
        // SAFETY: the memory was just allocated with this length, and nobody else knows it.
        unsafe { ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
        Ok(PinnedBuffer { device: self.clone(), start: start.cast(), len: bytes })
    }

    /// Waits until the device has done all its work.
    ///
    /// # Errors
    /// [`DeviceError::Call`].
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.set_on_this_thread()?;
        // SAFETY: the device is set on this thread.
        let code = unsafe { self.runtime.acl.aclrtSynchronizeDevice() };
        self.check("aclrtSynchronizeDevice", code)
    }

    fn check(&self, call: &'static str, code: i32) -> Result<(), DeviceError> {
        self.runtime.check(call, self.index, code)
    }
}

/// A range of device memory, freed on drop if it was allocated here. Who copies into it concurrently must keep to
/// ranges that do not overlap, or find a mixture of both.
#[derive(Debug)]
pub struct DeviceBuffer {
    device: Device,
    start: *mut c_void,
    len: usize,
    /// Somebody else frees it.
    borrowed: bool,
}

// SAFETY: the pointer is an address of the device, which no thread dereferences; each call sets the device on the
// thread that it runs on.
unsafe impl Send for DeviceBuffer {}
// SAFETY: as above; copies run side by side in AscendCL, which is made for many threads.
unsafe impl Sync for DeviceBuffer {}

impl DeviceBuffer {
    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies into the bytes from `offset` on; returns when they are there.
    ///
    /// # Errors
    /// [`DeviceError`]; then part of the bytes may have been written.
    pub fn copy_from_host(&self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let Some((to, len)) = self.range(offset, from.len())? else { return Ok(()) };
        self.device.set_on_this_thread()?;
        // SAFETY: `to` and `len` lie in this buffer, which is ours while `self` lives; `from` is a slice of `len`
        // bytes. The call returns when the copy is done.
        let code = unsafe {
            self.device.runtime.acl.aclrtMemcpy(to, len, from.as_ptr().cast(), len, ACL_MEMCPY_HOST_TO_DEVICE)
        };
        self.device.check("aclrtMemcpy to the device", code)
    }

    /// Copies the bytes from `offset` on into `to`; returns when they are there.
    ///
    /// # Errors
    /// [`DeviceError`]; then part of `to` may have been written.
    pub fn copy_to_host(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        let Some((from, len)) = self.range(offset, to.len())? else { return Ok(()) };
        self.device.set_on_this_thread()?;
        // SAFETY: as in `copy_from_host`, the other way round; `to` is borrowed for this call alone.
        let code = unsafe {
            self.device.runtime.acl.aclrtMemcpy(
                to.as_mut_ptr().cast(),
                len,
                from,
                len,
                ACL_MEMCPY_DEVICE_TO_HOST,
            )
        };
        self.device.check("aclrtMemcpy from the device", code)
    }

    /// The address of a range, which has to lie in the buffer; `None` when it is empty.
    fn range(&self, offset: u64, len: usize) -> Result<Option<(*mut c_void, usize)>, DeviceError> {
        let at =
            usize::try_from(offset).ok().filter(|at| at.checked_add(len).is_some_and(|end| end <= self.len));
        let Some(at) = at else {
            return Err(DeviceError::OutOfRange { offset, len, buffer_bytes: self.len as u64 });
        };
        Ok((len > 0).then(|| (self.start.wrapping_byte_add(at), len)))
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.borrowed {
            return;
        }
        // AscendCL frees only on a thread with the device set.
        let freed = self.device.set_on_this_thread().and_then(|()| {
            // SAFETY: allocated by `allocate` and freed once, here; the owner is being dropped, so nobody uses it.
            let code = unsafe { self.device.runtime.acl.aclrtFree(self.start) };
            self.device.check("aclrtFree", code)
        });
        if let Err(error) = freed {
            tracing::warn!(%error, bytes = self.len, "device memory could not be freed");
        }
    }
}

/// Pinned host memory, freed on drop. Initialised from the start.
#[derive(Debug)]
struct PinnedBuffer {
    device: Device,
    start: *mut u8,
    len: usize,
}

// SAFETY: plain host memory with one owner.
unsafe impl Send for PinnedBuffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, ours alone; a mutable borrow excludes this one.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        let freed = self.device.set_on_this_thread().and_then(|()| {
            // SAFETY: allocated by `allocate_pinned` and freed once, here.
            let code = unsafe { self.device.runtime.acl.aclrtFreeHost(self.start.cast()) };
            self.device.check("aclrtFreeHost", code)
        });
        if let Err(error) = freed {
            tracing::warn!(%error, bytes = self.len, "pinned memory could not be freed");
        }
    }
}
