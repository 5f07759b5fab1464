//! Filling memory that was never touched, beside memory that was: forks and storage, the loader's memory and a caller's.
//!
//! The machine has the frames of the memory that was never touched: before each run as many are taken and given back.
//! Otherwise the host of a virtual machine may have to find them first. That is no work of the loader's or of this
//! system's, and varies a lot; the row "fresh memory, any frames" shows it.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use rfork_loader::engine::memory::{CallersMemory, WeightMemory};
use rfork_loader::storage::{Checkpoint, FillOptions};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::engines::Engines;
use crate::{Result, Setup, model};

/// What is filled from where, in the order of [`measure`]. The loader asks for huge pages; a caller often does not.
pub(crate) const KINDS: [&str; 4] = ["fork", "fork, caller's", "storage", "storage, caller's"];

/// Seconds for the model's bytes, one run each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Filling {
    /// Into memory that has its pages; none are made.
    pub(crate) touched: f64,
    /// The same, while a thread makes pages ahead; `None` where the loader has none.
    pub(crate) touched_ahead: Option<f64>,
    /// Into memory without pages: whoever touches them makes them.
    pub(crate) fresh: f64,
    /// The same, while a thread makes them ahead.
    pub(crate) fresh_ahead: Option<f64>,
    /// Making all pages, and nothing else, on one thread.
    pub(crate) pages: f64,
}

/// One run of each.
pub(crate) fn measure(setup: &Setup, engines: &Engines) -> Result<Vec<Filling>> {
    let checkpoint = Checkpoint::open(&model::path()?)?;
    let fork = |memory: &Arc<WeightMemory>| engines.read(memory, true, false);
    let fork_ahead = |memory: &Arc<WeightMemory>| engines.read(memory, true, true);
    let storage = |memory: &Arc<WeightMemory>| {
        let options = FillOptions::default();
        let begun = Instant::now();
        let all = memory.missing();
        checkpoint.fill(memory, &all, &options, &CancellationToken::new(), &AtomicU64::new(0))?;
        Ok(begun.elapsed().as_secs_f64())
    };
    Ok(vec![
        one(setup, engines, Room::own, &fork, Some(&fork_ahead))?,
        one(setup, engines, Room::callers, &fork, Some(&fork_ahead))?,
        one(setup, engines, Room::own, &storage, None)?,
        one(setup, engines, Room::callers, &storage, None)?,
    ])
}

/// Fills memory, and gives the seconds.
type Fill<'a> = &'a dyn Fn(&Arc<WeightMemory>) -> Result<f64>;

/// One kind, without a thread that makes pages ahead and, where the loader has one, with it.
fn one(
    setup: &Setup,
    engines: &Engines,
    new: fn(&Setup) -> Result<Room>,
    fill: Fill<'_>,
    ahead: Option<Fill<'_>>,
) -> Result<Filling> {
    // As huge pages, which the loader asks for in a caller's memory, too.
    let take_frames = || Room::own(setup)?.make_pages();
    take_frames()?;
    let fresh_ahead = ahead.map(|fill| fill(&new(setup)?.memory(setup)?)).transpose()?;
    take_frames()?;
    let room = new(setup)?;
    let fresh = fill(&room.memory(setup)?)?;
    let touched_ahead = ahead.map(|fill| fill(&room.memory(setup)?)).transpose()?;
    let memory = room.memory(setup)?;
    let touched = fill(&memory)?;
    engines.check(&memory)?;
    drop((memory, room));
    let room = new(setup)?;
    let begun = Instant::now();
    room.make_pages()?;
    Ok(Filling { touched, touched_ahead, fresh, fresh_ahead, pages: begun.elapsed().as_secs_f64() })
}

/// Memory that is filled several times.
enum Room {
    Own(Arc<WeightMemory>),
    Callers(Arc<SmallPages>),
}

impl Room {
    fn own(setup: &Setup) -> Result<Self> {
        Ok(Self::Own(WeightMemory::allocate(&setup.tensor_bytes())?))
    }

    fn callers(setup: &Setup) -> Result<Self> {
        Ok(Self::Callers(Arc::new(SmallPages::new(usize::try_from(setup.bytes)?)?)))
    }

    /// The memory, empty. Of a caller's the loader does not know whether it was filled before.
    #[allow(unsafe_code)]
    fn memory(&self, setup: &Setup) -> Result<Arc<WeightMemory>> {
        let pages = match self {
            Self::Own(memory) => {
                memory.forget_all()?;
                return Ok(memory.clone());
            }
            Self::Callers(pages) => pages,
        };
        let mut at = pages.start as u64;
        let mut place = |bytes: u64| {
            at += bytes;
            (at - bytes, bytes)
        };
        let tensors: Vec<(u64, u64)> = setup.tensor_bytes().into_iter().map(&mut place).collect();
        // SAFETY: all ranges lie in the mapping, which the owner keeps; it is filled by one run after the other.
        Ok(unsafe { WeightMemory::of_caller(&tensors, CallersMemory::on_host(pages.clone())) }?)
    }

    fn make_pages(&self) -> Result<()> {
        match self {
            Self::Own(memory) => Ok(memory.prefault()?),
            Self::Callers(pages) => pages.make(),
        }
    }
}

/// Memory as most allocators take it: without a word of huge pages.
struct SmallPages {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, which this only maps and unmaps.
#[allow(unsafe_code)]
unsafe impl Send for SmallPages {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for SmallPages {}

#[allow(unsafe_code)]
impl SmallPages {
    fn new(bytes: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Ok(Self { start: start.cast(), bytes })
    }

    fn make(&self) -> Result<()> {
        // SAFETY: the range is the mapping; populating it for writing keeps its content.
        Ok(unsafe { madvise(self.start.cast(), self.bytes, Advice::LinuxPopulateWrite) }?)
    }
}

#[allow(unsafe_code)]
impl Drop for SmallPages {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; nobody uses it when its owner is dropped.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}
