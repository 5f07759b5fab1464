//! Libraries that read each other's memory within this process, for tests: what is registered, what a call that lasts or
//! fails does, and who was read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Ranges, Vendor, VendorError, YuanRongEngine, YuanRongOptions};
use crate::engine::memory::Region;
use crate::engine::{EngineError, TransferEngine};

/// The libraries that reach each other. Each is known by its number, in the order in which they were made, from 1 on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    made: u16,
    /// By library: what peers may read, start and bytes.
    registered: BTreeMap<u16, BTreeMap<u64, u64>>,
    /// By library: what peers have read.
    read_bytes: BTreeMap<u16, u64>,
    /// Whose reads do not return, though they have copied everything.
    held_back: BTreeSet<u16>,
    /// Whose reads have done so.
    copied: BTreeSet<u16>,
    /// Who cannot unregister, as peers still read.
    still_read: BTreeSet<u16>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// The next library, driven by an engine.
    pub(crate) async fn engine(
        &self,
        options: YuanRongOptions,
    ) -> Result<Arc<dyn TransferEngine>, EngineError> {
        let number = {
            let mut state = self.0.state();
            state.made += 1;
            state.made
        };
        let library = Library { number, network: self.0.clone() };
        Ok(Arc::new(YuanRongEngine::start(options, move || Ok(library)).await?))
    }

    /// How many bytes of it peers have read.
    pub(crate) fn read_bytes_of(&self, number: u16) -> u64 {
        self.0.state().read_bytes.get(&number).copied().unwrap_or_default()
    }

    /// Keeps its reads from returning, or lets them return.
    pub(crate) fn hold_back(&self, number: u16, holds: bool) {
        let mut state = self.0.state();
        if holds {
            state.held_back.insert(number)
        } else {
            state.held_back.remove(&number)
        };
        self.0.changed.notify_all();
    }

    /// Whether a read of its has copied everything and does not return.
    pub(crate) fn has_copied(&self, number: u16) -> bool {
        self.0.state().copied.contains(&number)
    }

    /// Peers seem to read from it for ever.
    pub(crate) fn is_read_for_ever(&self, number: u16) {
        self.0.state().still_read.insert(number);
    }
}

struct Library {
    number: u16,
    network: Arc<Shared>,
}

fn refused(code: i32) -> VendorError {
    VendorError { code, message: "as it was told".into() }
}

impl Vendor for Library {
    fn version(&self) -> Option<&str> {
        Some("0.1.0")
    }

    fn port(&self) -> u16 {
        self.number
    }

    fn register(&mut self, regions: &[Region]) -> Result<(), VendorError> {
        let mut state = self.network.state();
        let registered = state.registered.entry(self.number).or_default();
        registered.extend(regions.iter().map(|region| (region.start, region.bytes)));
        Ok(())
    }

    fn unregister(&mut self, starts: &[u64]) -> Result<(), VendorError> {
        let mut state = self.network.state();
        if state.still_read.contains(&self.number) {
            return Err(refused(VendorError::NOT_READY));
        }
        let registered = state.registered.entry(self.number).or_default();
        registered.retain(|start, _| !starts.contains(start));
        Ok(())
    }

    fn read(&mut self, peer: &str, ranges: Ranges<'_>) -> Result<(), VendorError> {
        let (_, port) = peer.rsplit_once(':').ok_or(refused(VendorError::INVALID))?;
        let port: u16 = port.parse().map_err(|_| refused(VendorError::INVALID))?;
        let mut state = self.network.state();
        let registered = state.registered.get(&port).ok_or(refused(VendorError::RUNTIME))?;
        for ((to, from), len) in ranges.to.iter().zip(ranges.from).zip(ranges.lens) {
            let region = registered.range(..=from).next_back();
            if region.is_none_or(|(start, bytes)| start + bytes < from + len) {
                return Err(refused(VendorError::NOT_AUTHORIZED));
            }
            // SAFETY: the peer owns what it has registered, and cannot unregister before the state is unlocked; the reader
            // has `to` for itself; nobody writes what is held, which alone is read.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    std::ptr::with_exposed_provenance::<u8>(usize::try_from(*from).unwrap_or(0)),
                    std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(*to).unwrap_or(0)),
                    usize::try_from(*len).unwrap_or(0),
                );
            }
        }
        *state.read_bytes.entry(port).or_default() += ranges.lens.iter().sum::<u64>();
        state.copied.insert(self.number);
        while state.held_back.contains(&self.number) {
            state = self.network.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.copied.remove(&self.number);
        Ok(())
    }

    fn finalize(&mut self) -> Result<(), VendorError> {
        self.network.state().registered.remove(&self.number);
        Ok(())
    }
}
