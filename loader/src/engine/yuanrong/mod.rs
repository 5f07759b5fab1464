//! YuanRong's `TransferEngine`: reads the memory of peers by address, as unmodified vLLM Ascend does.
//!
//! The vendor's library ([`Vendor`]) is driven by one thread, which owns it: a call blocks, needs the device set on
//! its thread, and cannot be ended from outside. A call under way owns what it may still write or what peers may
//! still read. So whoever waits for it may give up at any time: when a call hangs ([`EngineError::Hung`],
//! [`ReadError::Hung`]), the engine does nothing any more, and that memory is kept until the call returns, if ever.
//! Within a Python interpreter, which such a call keeps from doing anything else, the process ends ([`OnHang`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rfork_protocol::Host;
use rfork_protocol::seed_key::UNNAMED_ENGINE;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::memory::WeightMemory;
use super::{Capabilities, EngineError, ReadError, ReadReport, ReadRequest, TransferEngine};
use crate::config::Config;

mod driver;
mod follow;
#[cfg(feature = "yuanrong-native")]
pub mod native;
mod pace;
mod plan;
mod port;
mod read;
mod timeouts;
mod vendor;
mod watchdog;

#[cfg(test)]
pub(crate) mod network;
#[cfg(test)]
mod tests;

use driver::Driver;
use port::authority;
pub use port::initialize_on_free_port;
pub use timeouts::Timeouts;
pub use vendor::{Ranges, Vendor, VendorError, check_backing};
use watchdog::Watchdog;

/// The name of this engine in seed keys and metadata: peers that name none have it.
pub const NAME: &str = UNNAMED_ENGINE;

/// Calls that wait for the one under way. A session makes one at a time.
const WAITING_CALLS: usize = 8;
/// How long a process that ends waits for somebody to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The code with which a process ends because a call hangs: "internal software error" of `sysexits.h`.
pub const HUNG_EXIT_CODE: i32 = 70;

/// What happens when a call does not return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnHang {
    /// The engine is given up; what the call may still write is kept.
    GiveUp,
    /// The process ends with [`HUNG_EXIT_CODE`], after a line on standard error: the call holds what everything else
    /// in the process needs.
    EndProcess,
}

/// How long calls may last. The defaults suit a data-centre network.
#[derive(Debug, Clone)]
pub struct YuanRongOptions {
    /// The host that peers are told; an IP address, which the library needs.
    pub advertise_host: String,
    /// A call that moves no weights.
    pub call_timeout: Duration,
    /// A read, besides the time for its bytes.
    pub read_timeout: Duration,
    /// The slowest rate that a read is given time for.
    pub min_bytes_per_sec: u64,
    /// How long peers that still read may keep registrations or the library from ending.
    pub not_ready_timeout: Duration,
    /// What happens when a call lasts longer.
    pub on_hang: OnHang,
}

impl YuanRongOptions {
    /// Peers are told `advertise_host`.
    pub fn new(advertise_host: impl Into<String>) -> Self {
        Self {
            advertise_host: advertise_host.into(),
            call_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            min_bytes_per_sec: 64 << 20,
            not_ready_timeout: Duration::from_secs(5),
            on_hang: OnHang::GiveUp,
        }
    }

    /// As a worker's settings have it.
    pub fn of(config: &Config, advertise_host: &str) -> Self {
        let timeout = config.transfer_timeout;
        Self { call_timeout: timeout, read_timeout: timeout, ..Self::new(advertise_host) }
    }

    /// No shorter than the library's own: a call that it would still end itself does not hang.
    fn no_shorter_than(self, library: Option<Timeouts>) -> Self {
        let Some(library) = library else { return self };
        Self {
            call_timeout: self.call_timeout.max(timeouts::CALL),
            read_timeout: self.read_timeout.max(library.read()),
            not_ready_timeout: self.not_ready_timeout.max(library.not_ready()),
            ..self
        }
    }

    /// How long ports are tried, one after the other, in the call that makes the library ready: the last one may take the
    /// rest of that call's time.
    pub fn trying_ports(&self) -> Duration {
        self.call_timeout / 2
    }

    /// What a call may take that moves no weights.
    fn management_deadline(&self) -> Duration {
        self.call_timeout.saturating_add(self.not_ready_timeout)
    }

    /// What a call may take that moves so many bytes.
    fn deadline(&self, bytes: u64) -> Duration {
        let moving = bytes.saturating_mul(1_000) / self.min_bytes_per_sec.max(1);
        self.read_timeout.saturating_add(Duration::from_millis(moving))
    }
}

/// A call, made on the library's thread, and how long it may last.
struct Call {
    at_most: Duration,
    make: Box<dyn FnOnce(&mut Driver) + Send>,
}

/// A call without an answer.
enum Unanswered {
    /// It lasts longer than it may, or one before it does.
    Hung,
    /// The thread has ended.
    Gone,
}

/// Whether a call hangs, and for how long it was waited for.
#[derive(Debug, Clone, Default)]
struct Hung {
    token: CancellationToken,
    waited_ms: Arc<AtomicU64>,
}

impl Hung {
    /// What the watchdog does.
    fn noted(self, on_hang: OnHang, waited: Duration) {
        // Nobody waits for longer than 64 bits of milliseconds.
        let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        if on_hang == OnHang::EndProcess {
            end_process(waited_ms);
        }
        self.waited_ms.store(waited_ms, Ordering::Relaxed);
        self.token.cancel();
    }

    fn error(&self) -> EngineError {
        EngineError::Hung { waited_ms: self.waited_ms.load(Ordering::Relaxed) }
    }
}

/// Ends the process at once: whatever would run at its end may need what the hung call holds.
#[allow(unsafe_code)]
fn end_process(waited_ms: u64) -> ! {
    let line = format!(
        "rfork: a call of YuanRong's TransferEngine has not returned for {waited_ms} ms, and keeps the Python \
         interpreter from running: ending this process with code {HUNG_EXIT_CODE}. Its peer is silent or unreachable; \
         start the worker again.\n"
    );
    // Neither a closed standard error nor one that nobody reads is a reason to stay.
    let (told, is_told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        let _ = told.send(());
    });
    let _ = is_told.recv_timeout(LAST_WORDS);
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(HUNG_EXIT_CODE) }
}

/// The engine of one worker. See the module.
#[derive(Debug)]
pub struct YuanRongEngine {
    options: YuanRongOptions,
    version: Option<String>,
    port: u16,
    calls: mpsc::Sender<Call>,
    hung: Hung,
}

impl YuanRongEngine {
    /// Starts the library's thread, which `make`s it ready. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`EngineError::Vendor`], [`EngineError::Hung`].
    pub async fn start<V: Vendor + 'static>(
        options: YuanRongOptions,
        make: impl FnOnce() -> Result<V, VendorError> + Send + 'static,
    ) -> Result<Self, EngineError> {
        let no_thread = |error: std::io::Error| EngineError::Vendor {
            doing: "starting a thread",
            source: VendorError { code: error.raw_os_error().unwrap_or(0), message: error.to_string() },
        };
        let (hung, on_hang) = (Hung::default(), options.on_hang);
        let note = hung.clone();
        let watchdog = Watchdog::start(move |waited| note.noted(on_hang, waited)).map_err(no_thread)?;
        let (calls, mut waiting) = mpsc::channel::<Call>(WAITING_CALLS);
        let (ready, is_ready) = oneshot::channel();
        let driving = move || {
            let vendor = match watchdog.watch(options.call_timeout, make) {
                Ok(vendor) => vendor,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let options = options.no_shorter_than(vendor.timeouts());
            let (end_timeout, not_ready_timeout) = (options.management_deadline(), options.not_ready_timeout);
            let _ = ready.send(Ok((options, vendor.version().map(str::to_owned), vendor.port())));
            let mut driver = Driver::new(Box::new(vendor), not_ready_timeout);
            while let Some(call) = waiting.blocking_recv() {
                watchdog.watch(call.at_most, || (call.make)(&mut driver));
            }
            // The engine was dropped.
            watchdog.watch(end_timeout, || driver.end());
        };
        std::thread::Builder::new().name("rfork-yuanrong".into()).spawn(driving).map_err(no_thread)?;
        let (options, version, port) = match hung.token.run_until_cancelled(is_ready).await {
            Some(Ok(Ok(told))) => told,
            Some(Ok(Err(source))) => return Err(EngineError::Vendor { doing: "initialising", source }),
            Some(Err(_)) => return Err(EngineError::Gone),
            None => return Err(hung.error()),
        };
        Ok(Self { options, version, port, calls, hung })
    }

    /// Has the library's thread do something, which may last that long, and waits for it. Dropped meanwhile, the call
    /// is made all the same; `f` owns what it needs.
    async fn call<T: Send + 'static>(
        &self,
        at_most: Duration,
        f: impl FnOnce(&mut Driver) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = oneshot::channel();
        let make = Box::new(move |driver: &mut Driver| {
            // Nobody waits any more: what the call owned is dropped here.
            let _ = answer.send(f(driver));
        });
        let making = async {
            self.calls.send(Call { at_most, make }).await.map_err(|_| Unanswered::Gone)?;
            answered.await.map_err(|_| Unanswered::Gone)
        };
        // Each call before this one is watched, too: the wait ends.
        self.hung.token.run_until_cancelled(making).await.unwrap_or(Err(Unanswered::Hung))
    }

    /// As [`Self::call`], for a call that moves no weights.
    async fn manage(
        &self,
        doing: &'static str,
        f: impl FnOnce(&mut Driver) -> Result<(), VendorError> + Send + 'static,
    ) -> Result<(), EngineError> {
        match self.call(self.options.management_deadline(), f).await {
            Ok(done) => done.map_err(|source| EngineError::Vendor { doing, source }),
            Err(Unanswered::Hung) => Err(self.hung.error()),
            Err(Unanswered::Gone) => Err(EngineError::Gone),
        }
    }
}

#[async_trait]
impl TransferEngine for YuanRongEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The library listens at the one address that it was made with.
    fn session(&self, _host: &Host) -> String {
        authority(&self.options.advertise_host, self.port)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { verifies: false, serves_while_loading: true, by_address: true }
    }

    async fn register(&self, memory: Arc<WeightMemory>) -> Result<(), EngineError> {
        self.manage("registering memory", move |driver| driver.register(memory)).await
    }

    async fn unregister(&self) -> Result<(), EngineError> {
        self.manage("unregistering memory", Driver::unregister).await
    }

    async fn read(&self, request: ReadRequest<'_>) -> Result<ReadReport, ReadError> {
        read::read(self, &request).await
    }

    async fn finalize(&self) {
        if let Err(error) = self.manage("finalising", Driver::end_or_fail).await {
            tracing::warn!(%error, "the transfer engine did not end");
        }
    }
}
