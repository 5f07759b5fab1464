//! What is used of the vendor's library, whichever way it is entered.

use super::plan::Batch;
use super::timeouts::Timeouts;
use crate::engine::memory::Region;

/// Where an allocation has to begin that peers read over HCCS, or over whatever the library chooses: at a multiple of
/// this.
const BACKING_ALIGNMENT: u64 = 2 << 20;
/// The only route that does without it, as the library's `get_route_policy` names it.
const ANY_BACKING: &str = "roce";
/// The library's variable for it.
const ROUTE: &str = "YR_TE_HIXL_ROUTE";

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

    /// How long it waits itself; `None` for versions that wait for ever.
    fn timeouts(&self) -> Option<Timeouts> {
        None
    }

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

/// Makes sure that every region's allocation begins where the library's `route` needs it: it would refuse all of them
/// in words that name neither the route nor what to do.
///
/// # Errors
/// [`VendorError::INVALID`].
pub fn check_backing(route: &str, regions: &[Region]) -> Result<(), VendorError> {
    let unaligned = |region: &&Region| !region.allocation.0.is_multiple_of(BACKING_ALIGNMENT);
    match regions.iter().find(unaligned) {
        Some(region) if route != ANY_BACKING => Err(VendorError {
            code: VendorError::INVALID,
            message: format!(
                "the allocation at {:#x} does not begin at a multiple of 2 MiB, which the route '{route}' needs; set \
                 {ROUTE}={ANY_BACKING} on all workers, or allocate weights so",
                region.allocation.0
            ),
        }),
        _ => Ok(()),
    }
}
