//! The vendor's library on the one thread that owns it, and what it serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::plan::LIMITS;
use super::{Vendor, VendorError};
use crate::engine::memory::WeightMemory;

/// Between two attempts while peers still read.
const NOT_READY_PAUSE: Duration = Duration::from_millis(100);

/// The library, on its thread.
pub(super) struct Driver {
    pub(super) vendor: Box<dyn Vendor>,
    /// What peers may read: kept until they may not any more.
    served: Option<(Arc<WeightMemory>, Vec<u64>)>,
    not_ready_timeout: Duration,
    ended: bool,
}

impl Driver {
    /// Peers that still read may keep it from ending something for so long.
    pub(super) fn new(vendor: Box<dyn Vendor>, not_ready_timeout: Duration) -> Self {
        Self { vendor, served: None, not_ready_timeout, ended: false }
    }

    pub(super) fn register(&mut self, memory: Arc<WeightMemory>) -> Result<(), VendorError> {
        self.unregister()?;
        // Excluded: a copy to the device, which the memory's owner began before, arrives after a peer's bytes. It
        // has arrived when this returns.
        memory
            .synchronize()
            .map_err(|error| VendorError { code: VendorError::RUNTIME, message: error.to_string() })?;
        let regions = memory.regions();
        let mut starts = Vec::with_capacity(regions.len());
        let mut result = Ok(());
        for some in regions.chunks(LIMITS.ranges) {
            result = self.vendor.register(some);
            if result.is_err() {
                break;
            }
            starts.extend(some.iter().map(|region| region.start));
        }
        self.served = Some((memory, starts));
        // Excluded: ranges stay readable although the registration failed. Those before the refused one are taken
        // back.
        result.inspect_err(|_| drop(self.unregister()))
    }

    pub(super) fn unregister(&mut self) -> Result<(), VendorError> {
        while let Some((_, starts)) = &mut self.served {
            if starts.is_empty() {
                self.served = None;
                break;
            }
            let some = starts.split_off(starts.len().saturating_sub(LIMITS.ranges));
            if let Err(error) = until_ready(self.not_ready_timeout, || self.vendor.unregister(&some)) {
                starts.extend(some);
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn end_or_fail(&mut self) -> Result<(), VendorError> {
        if self.ended {
            return Ok(());
        }
        let unregistered = self.unregister();
        if self.vendor.is_lent() {
            // It goes on, and so does what it could not be kept from serving.
            unregistered?;
            self.ended = true;
            return Ok(());
        }
        until_ready(self.not_ready_timeout, || self.vendor.finalize())?;
        self.ended = true;
        // A library that has ended reads and serves nothing.
        self.served = None;
        unregistered
    }

    /// Ends the library; if it does not end, what peers may still read is kept for as long as the process lives.
    pub(super) fn end(mut self) {
        if let Err(error) = self.end_or_fail() {
            tracing::warn!(%error, "the transfer engine did not end: what it serves is kept");
        }
        if !self.ended {
            std::mem::forget(self);
        }
    }
}

/// Repeats a call for which it is too early, for so long.
fn until_ready(
    timeout: Duration,
    mut call: impl FnMut() -> Result<(), VendorError>,
) -> Result<(), VendorError> {
    let begun = Instant::now();
    loop {
        match call() {
            Err(error) if error.code == VendorError::NOT_READY && begun.elapsed() < timeout => {
                std::thread::sleep(NOT_READY_PAUSE);
            }
            result => return result,
        }
    }
}
