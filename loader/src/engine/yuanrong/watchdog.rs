//! Notices calls that do not return.
//!
//! A call of the vendor's library blocks its thread and cannot be ended, and whoever waits for it may be gone. So the
//! call itself is watched, on a thread that does nothing else, and needs neither the runtime nor an interpreter.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread that watches one call at a time. It ends when this is dropped.
pub(super) struct Watchdog(Arc<Shared>);

struct Shared {
    watch: Mutex<Watch>,
    changed: Condvar,
}

#[derive(Default)]
struct Watch {
    /// Since when, and for how long, the call that is under way may last.
    call: Option<(Instant, Duration)>,
    ended: bool,
}

impl Shared {
    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, call: Option<(Instant, Duration)>) {
        self.watch().call = call;
        self.changed.notify_one();
    }
}

impl Watchdog {
    /// Starts it. `late` is called once at the most, with the time that was waited, and nothing is watched after that.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(late: impl FnOnce(Duration) + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { watch: Mutex::default(), changed: Condvar::new() });
        let watched = shared.clone();
        std::thread::Builder::new().name("rfork-watchdog".into()).spawn(move || {
            if let Some(waited) = until_late(&watched) {
                late(waited);
            }
        })?;
        Ok(Self(shared))
    }

    /// Makes a call, which may last that long.
    pub(super) fn watch<T>(&self, at_most: Duration, call: impl FnOnce() -> T) -> T {
        self.0.set(Some((Instant::now(), at_most)));
        let result = call();
        self.0.set(None);
        result
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.watch().ended = true;
        self.0.changed.notify_one();
    }
}

/// Blocks until a call lasts longer than it may; `None` when nothing is watched any more.
fn until_late(shared: &Shared) -> Option<Duration> {
    let mut watch = shared.watch();
    loop {
        if watch.ended {
            return None;
        }
        watch = match watch.call {
            None => shared.changed.wait(watch).unwrap_or_else(PoisonError::into_inner),
            Some((since, at_most)) => {
                let waited = since.elapsed();
                let Some(left) = at_most.checked_sub(waited).filter(|left| !left.is_zero()) else {
                    return Some(waited);
                };
                shared.changed.wait_timeout(watch, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}
