//! What comes to a memory, and since when nothing has.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rfork_protocol::frame::SignOfLife;

use super::WeightMemory;

/// For how long a source is believed that it makes progress while no byte comes: so long at least, or so many times as long as
/// the load took until then. It compares what it holds with storage, which it reads once for that.
///
/// Excluded: a source says so for ever, and whoever holds everything never learns what that is.
const COMPARES: Duration = Duration::from_mins(10);
const TIMES: u32 = 4;

/// Whether word of progress counts, so long after the load began, when the last byte came so long after that.
fn is_believed(now: Duration, came: Duration) -> bool {
    now.saturating_sub(came) < COMPARES.max(came.saturating_mul(TIMES))
}

/// Counts bytes as they come, within chunks as well, and those that are thrown away.
#[derive(Debug)]
pub struct Arrivals {
    begun: Instant,
    first: OnceLock<Instant>,
    bytes: AtomicU64,
    /// When the last byte came, in milliseconds since `begun`.
    came_ms: AtomicU64,
    /// The same, or when there was other progress.
    last_ms: AtomicU64,
    has_source: AtomicBool,
}

impl Arrivals {
    pub(super) fn begin() -> Self {
        Self {
            begun: Instant::now(),
            first: OnceLock::new(),
            bytes: AtomicU64::new(0),
            came_ms: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
            has_source: AtomicBool::new(false),
        }
    }

    /// Some bytes came.
    pub fn arrived(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.first.get_or_init(Instant::now);
        self.came_ms.fetch_max(self.touch(), Ordering::Relaxed);
    }

    /// When the first came.
    pub fn first(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    /// How many have come.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// There is a source from now on, from which no byte was due before; or there is none any more.
    pub fn source(&self, has_source: bool) {
        if has_source {
            self.touch();
        }
        self.has_source.store(has_source, Ordering::Relaxed);
    }

    /// No byte is due, but it is known that there is progress: who reads storage for this memory compares what it holds.
    /// That counts for a while.
    pub fn progressed(&self) {
        if is_believed(self.begun.elapsed(), Duration::from_millis(self.came_ms.load(Ordering::Relaxed))) {
            self.touch();
        }
    }

    /// For how long no byte has come, nor progress otherwise.
    pub fn silent(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }

    /// Gives the time.
    fn touch(&self) -> u64 {
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.fetch_max(now_ms, Ordering::Relaxed);
        now_ms
    }
}

impl WeightMemory {
    /// What comes here.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// What readers are told of how the load fares: once everything is held, and it is known what that is, no byte is due.
    pub fn sign_of_life(&self) -> SignOfLife {
        if self.all_held() && (self.content().is_some() || self.growing().is_none()) {
            return SignOfLife::default();
        }
        let silent_ms = u32::try_from(self.arrivals.silent().as_millis()).unwrap_or(u32::MAX);
        SignOfLife { has_source: self.arrivals.has_source.load(Ordering::Relaxed), silent_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_of_progress_is_believed_for_a_while_only() {
        let minutes = Duration::from_mins;
        for (came, believed) in
            [(minutes(0), minutes(10)), (minutes(1), minutes(10)), (minutes(20), minutes(80))]
        {
            let last = came + believed;
            assert!(is_believed(last.saturating_sub(Duration::from_secs(1)), came), "{came:?}");
            assert!(!is_believed(last, came), "{came:?}");
        }
    }
}
