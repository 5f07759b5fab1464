//! The library in a process without Python: through the C++ shim (feature `yuanrong-native`).
//!
//! Versions 0.1.0 to 0.8.1 export the class that the shim drives; later ones hide it, and can only be embedded.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::time::Duration;

use rfork_ascend_sys::transfer_engine as shim;
use rfork_ascend_sys::yuanrong::{LIBPYTHON_PATH, Package, find_package};

use super::{Ranges, Vendor, VendorError, YuanRongEngine, YuanRongOptions, initialize_on_free_port};
use crate::engine::EngineError;
use crate::engine::device::{Device, DeviceError};
use crate::engine::memory::Region;

/// The most that is heard of what the library says.
const MESSAGE_BYTES: usize = 1_024;

// Addresses go through the shim as they are.
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// YuanRong's engine in a process without Python, for memory of `device`. The package is looked for as
/// [`find_package`] says. Must be called within a tokio runtime.
///
/// # Errors
/// [`EngineError`], which says what is missing and what to install.
pub async fn start(options: YuanRongOptions, device: Device) -> Result<YuanRongEngine, EngineError> {
    let package = find_package()?;
    let (host, trying) = (options.advertise_host.clone(), options.trying_ports());
    YuanRongEngine::start(options, move || Native::open(&package, &host, trying, &device)).await
}

/// The library, initialised.
struct Native {
    engine: Engine,
    version: Option<String>,
    port: u16,
}

impl Native {
    /// Opens the package on this thread, which gets `device`, and listens on a free port of `host`.
    fn open(package: &Package, host: &str, trying: Duration, device: &Device) -> Result<Self, VendorError> {
        // The library needs it for each read, on the thread that reads.
        device.set_on_this_thread().map_err(no_device)?;
        let engine = Engine::open(package)?;
        let number = text(&format!("npu:{}", device.index()))?;
        initialize_on_free_port(host, trying, |address| {
            let address = text(address)?;
            // SAFETY: the engine is open; both texts end in a zero byte and outlive the call.
            call(|message, room| unsafe {
                shim::rfork_te_initialize(engine.pointer(), address.as_ptr(), number.as_ptr(), message, room)
            })
        })?;
        // SAFETY: the engine is open.
        let port = unsafe { shim::rfork_te_rpc_port(engine.pointer()) };
        let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| VendorError {
            code: VendorError::RUNTIME,
            message: format!("it is initialised, but its port is {port}"),
        })?;
        Ok(Self { engine, version: package.version.clone(), port })
    }
}

/// An engine of the shim's. Dropped, it is freed; whoever makes calls owns it, so no call is under way then.
struct Engine(NonNull<shim::rfork_te>);

impl Engine {
    fn open(package: &Package) -> Result<Self, VendorError> {
        let (library, python) = (path_text(&package.library)?, path_text(&package.python)?);
        let mut engine = ptr::null_mut();
        // SAFETY: both texts end in a zero byte and, as `engine` does, outlive the call. Opening the libraries runs
        // their initialisers, which is what whoever named them wants.
        let opened = call(|message, room| unsafe {
            shim::rfork_te_open(library.as_ptr(), python.as_ptr(), &raw mut engine, message, room)
        });
        opened.map_err(|error| match error.code {
            shim::RFORK_TE_NOT_LOADED => VendorError {
                message: format!(
                    "{}, which needs {}, cannot be opened: {}. Install what is missing; {LIBPYTHON_PATH} names \
                     Python's library where the system does not find it. Versions after 0.8.1 work only within Python",
                    package.library.display(),
                    package.python.display(),
                    error.message
                ),
                ..error
            },
            _ => error,
        })?;
        NonNull::new(engine).map(Self).ok_or_else(|| VendorError {
            code: shim::RFORK_TE_NOT_LOADED,
            message: "the shim opened no engine".into(),
        })
    }

    fn pointer(&self) -> *mut shim::rfork_te {
        self.0.as_ptr()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, freed once, and in no call.
        unsafe { shim::rfork_te_close(self.pointer()) };
    }
}

impl Vendor for Native {
    fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn register(&mut self, regions: &[Region]) -> Result<(), VendorError> {
        let starts: Vec<usize> = regions.iter().map(|region| word(region.start)).collect();
        let lens: Vec<usize> = regions.iter().map(|region| word(region.bytes)).collect();
        let engine = self.engine.pointer();
        // SAFETY: the engine is open; both arrays have as many entries as is said, and outlive the call.
        call(|message, room| unsafe {
            shim::rfork_te_register(engine, starts.as_ptr(), lens.as_ptr(), starts.len(), message, room)
        })
    }

    fn unregister(&mut self, starts: &[u64]) -> Result<(), VendorError> {
        let starts: Vec<usize> = starts.iter().copied().map(word).collect();
        let engine = self.engine.pointer();
        // SAFETY: as above.
        call(|message, room| unsafe {
            shim::rfork_te_unregister(engine, starts.as_ptr(), starts.len(), message, room)
        })
    }

    fn read(&mut self, peer: &str, ranges: Ranges<'_>) -> Result<(), VendorError> {
        let peer = text(peer)?;
        let [to, from, lens] = [ranges.to, ranges.from, ranges.lens]
            .map(|numbers| numbers.iter().copied().map(word).collect::<Vec<usize>>());
        if to.len() != from.len() || to.len() != lens.len() {
            return Err(VendorError { code: VendorError::INVALID, message: "ranges do not pair".into() });
        }
        let engine = self.engine.pointer();
        // SAFETY: as above. What is written is memory that the caller has for itself until this returns.
        call(|message, room| unsafe {
            shim::rfork_te_read(
                engine,
                peer.as_ptr(),
                to.as_ptr(),
                from.as_ptr(),
                lens.as_ptr(),
                to.len(),
                message,
                room,
            )
        })
    }

    fn finalize(&mut self) -> Result<(), VendorError> {
        let engine = self.engine.pointer();
        // SAFETY: the engine is open.
        call(|message, room| unsafe { shim::rfork_te_finalize(engine, message, room) })
    }
}

/// Makes a call of the shim's; what is not 0 is an error, with the message that it left.
fn call(f: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), VendorError> {
    let mut message = [0u8; MESSAGE_BYTES];
    let code = f(message.as_mut_ptr().cast(), message.len());
    if code == 0 {
        return Ok(());
    }
    let said = CStr::from_bytes_until_nul(&message).map(|text| text.to_string_lossy().into_owned());
    Err(VendorError { code, message: said.unwrap_or_default() })
}

/// The same number: see the assertion above.
#[allow(clippy::cast_possible_truncation)]
fn word(number: u64) -> usize {
    number as usize
}

fn text(text: &str) -> Result<CString, VendorError> {
    CString::new(text).map_err(|_| VendorError {
        code: VendorError::INVALID,
        message: format!("{text:?} has a zero byte in it"),
    })
}

fn path_text(path: &Path) -> Result<CString, VendorError> {
    text(&path.to_string_lossy())
}

#[allow(clippy::needless_pass_by_value)] // It is what `map_err` gives.
fn no_device(error: DeviceError) -> VendorError {
    VendorError { code: VendorError::RUNTIME, message: error.to_string() }
}
