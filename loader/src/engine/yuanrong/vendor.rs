//! What is used of the vendor's library, whichever way it is entered.

use std::net::TcpListener;

use super::plan::Batch;
use crate::engine::memory::Region;

/// How often another port is tried, because somebody took the one that was free.
const PORT_ATTEMPTS: u32 = 8;

/// A call that the library refused, or that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("YuanRong: {message} (code {code})")]
pub struct VendorError {
    /// The library's code; below 0 are the shim's.
    pub code: i32,
    /// What the library says.
    pub message: String,
}

impl VendorError {
    /// Peers still read, so it is too early for this.
    pub const NOT_READY: i32 = 8;
    /// The peer does not let this range be read.
    pub const NOT_AUTHORIZED: i32 = 9;
    /// An argument is wrong; also a range that is registered already.
    pub const INVALID: i32 = 2;
    /// Something failed: a peer is gone, a port is taken, no device is set.
    pub const RUNTIME: i32 = 5;
}

/// What one call reads: `lens[i]` bytes from the peer's address `from[i]` to `to[i]`; the three are equally long.
#[derive(Debug, Clone, Copy)]
pub struct Ranges<'a> {
    /// Where the bytes go.
    pub to: &'a [u64],
    /// Where they are at the peer.
    pub from: &'a [u64],
    /// How many, for each range.
    pub lens: &'a [u64],
}

impl<'a> From<&'a Batch> for Ranges<'a> {
    fn from(batch: &'a Batch) -> Self {
        Self { to: &batch.to, from: &batch.from, lens: &batch.lens }
    }
}

/// The library, initialised for one device. One thread makes all calls, each of which may block; the first is made on
/// the thread that made the library ready.
pub trait Vendor {
    /// Its version: peers need the same. `None` when nothing tells it.
    fn version(&self) -> Option<&str>;

    /// The port at which peers reach it.
    fn port(&self) -> u16;

    /// Lets peers read these regions; all or none.
    ///
    /// # Errors
    /// [`VendorError`].
    fn register(&mut self, regions: &[Region]) -> Result<(), VendorError>;

    /// Lets nobody read regions that start there any more.
    ///
    /// # Errors
    /// [`VendorError`].
    fn unregister(&mut self, starts: &[u64]) -> Result<(), VendorError>;

    /// Reads from the engine that listens at `peer`, `ip:port`. Has no deadline: with a silent peer it may last for
    /// ever.
    ///
    /// # Errors
    /// [`VendorError`]; some of the bytes may have been written then.
    fn read(&mut self, peer: &str, ranges: Ranges<'_>) -> Result<(), VendorError>;

    /// Whether somebody else made it: it is never finalised then, and goes on.
    fn is_lent(&self) -> bool {
        false
    }

    /// Ends it. [`VendorError::NOT_READY`] while peers read.
    ///
    /// # Errors
    /// [`VendorError`].
    fn finalize(&mut self) -> Result<(), VendorError>;
}

/// Has `initialize` make the library listen at `host:port`, for a port that is free: the library takes no 0 for any, and
/// what was free may be taken meanwhile.
///
/// # Errors
/// What `initialize` said last.
pub fn initialize_on_free_port(
    host: &str,
    mut initialize: impl FnMut(&str) -> Result<(), VendorError>,
) -> Result<(), VendorError> {
    let failed = |error: std::io::Error| VendorError {
        code: VendorError::RUNTIME,
        message: format!("{host} is not an address of this machine to listen on: {error}"),
    };
    let mut last = None;
    for _ in 0..PORT_ATTEMPTS {
        let free = TcpListener::bind((host.trim_matches(['[', ']']), 0)).and_then(|one| one.local_addr());
        let port = free.map_err(failed)?.port();
        match initialize(&format!("{host}:{port}")) {
            // Also the code for a port that is taken.
            Err(error) if error.code == VendorError::RUNTIME => last = Some(error),
            result => return result,
        }
    }
    Err(last.unwrap_or_else(|| VendorError { code: VendorError::RUNTIME, message: "no port is free".into() }))
}
