//! YuanRong's `TransferEngine`: reads the memory of peers by address, as unmodified vLLM Ascend does.
//!
//! The vendor's library ([`Vendor`]) is driven by one thread, which owns it: a call blocks, needs the device set on
//! its thread, and cannot be ended from outside. A call under way owns what it may still write or what peers may
//! still read. So whoever waits for it may give up at any time: when a call hangs ([`EngineError::Hung`],
//! [`ReadError::Hung`]), the engine does nothing any more, and that memory is kept until the call returns, if ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rfork_protocol::seed_key::UNNAMED_ENGINE;
use tokio::sync::{mpsc, oneshot};

use super::memory::{ChunkWriter, WeightMemory};
use super::{Capabilities, EngineError, ReadError, ReadReport, ReadRequest, TransferEngine};

mod plan;
mod vendor;

#[cfg(test)]
mod tests;

use plan::{LIMITS, batches};
pub use vendor::{Ranges, Vendor, VendorError};

/// The name of this engine in seed keys and metadata: peers that name none have it.
pub const NAME: &str = UNNAMED_ENGINE;

/// Calls that wait for the one under way. A session makes one at a time.
const WAITING_CALLS: usize = 8;
/// Between two attempts while peers still read.
const NOT_READY_PAUSE: Duration = Duration::from_millis(100);

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
        }
    }

    /// What a call may take that moves so many bytes.
    fn deadline(&self, bytes: u64) -> Duration {
        let moving = bytes.saturating_mul(1_000) / self.min_bytes_per_sec.max(1);
        self.read_timeout.saturating_add(Duration::from_millis(moving))
    }
}

/// A call, made on the library's thread.
type Call = Box<dyn FnOnce(&mut Driver) + Send>;

/// A call without an answer.
enum Unanswered {
    /// It lasts longer than it may.
    Hung(Duration),
    /// The thread has ended.
    Gone,
}

/// The engine of one worker. See the module.
#[derive(Debug)]
pub struct YuanRongEngine {
    options: YuanRongOptions,
    version: String,
    port: u16,
    calls: mpsc::Sender<Call>,
    hung: AtomicBool,
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
        let (calls, mut waiting) = mpsc::channel::<Call>(WAITING_CALLS);
        let (ready, is_ready) = oneshot::channel();
        let not_ready_timeout = options.not_ready_timeout;
        let driving = move || {
            let vendor = match make() {
                Ok(vendor) => vendor,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok((vendor.version().to_owned(), vendor.port())));
            let mut driver =
                Driver { vendor: Box::new(vendor), served: None, not_ready_timeout, ended: false };
            while let Some(call) = waiting.blocking_recv() {
                call(&mut driver);
            }
            // The engine was dropped.
            driver.end();
        };
        let spawned = std::thread::Builder::new().name("rfork-yuanrong".into()).spawn(driving);
        spawned.map_err(|error| EngineError::Vendor {
            doing: "starting a thread",
            source: VendorError { code: error.raw_os_error().unwrap_or(0), message: error.to_string() },
        })?;
        let waited = options.call_timeout;
        let (version, port) = match tokio::time::timeout(waited, is_ready).await {
            Ok(Ok(Ok(told))) => told,
            Ok(Ok(Err(source))) => return Err(EngineError::Vendor { doing: "initialising", source }),
            Ok(Err(_)) => return Err(EngineError::Gone),
            Err(_) => return Err(hung(waited)),
        };
        Ok(Self { options, version, port, calls, hung: AtomicBool::new(false) })
    }

    /// Has the library's thread do something, and waits that long for it. Dropped meanwhile, the call is made all the
    /// same; `f` owns what it needs.
    async fn call<T: Send + 'static>(
        &self,
        deadline: Duration,
        f: impl FnOnce(&mut Driver) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        if self.hung.load(Ordering::Relaxed) {
            return Err(Unanswered::Hung(Duration::ZERO));
        }
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |driver| {
            // Nobody waits any more: what the call owned is dropped here.
            let _ = answer.send(f(driver));
        });
        let making = async {
            self.calls.send(call).await.map_err(|_| Unanswered::Gone)?;
            answered.await.map_err(|_| Unanswered::Gone)
        };
        tokio::time::timeout(deadline, making).await.unwrap_or_else(|_| {
            self.hung.store(true, Ordering::Relaxed);
            Err(Unanswered::Hung(deadline))
        })
    }

    /// As [`Self::call`], for a call that moves no weights.
    async fn manage(
        &self,
        doing: &'static str,
        f: impl FnOnce(&mut Driver) -> Result<(), VendorError> + Send + 'static,
    ) -> Result<(), EngineError> {
        match self.call(self.options.call_timeout + self.options.not_ready_timeout, f).await {
            Ok(done) => done.map_err(|source| EngineError::Vendor { doing, source }),
            Err(Unanswered::Hung(waited)) => Err(hung(waited)),
            Err(Unanswered::Gone) => Err(EngineError::Gone),
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // Nobody waits for longer than 64 bits of milliseconds.
fn hung(waited: Duration) -> EngineError {
    EngineError::Hung { waited_ms: waited.as_millis() as u64 }
}

#[async_trait]
impl TransferEngine for YuanRongEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> Option<&str> {
        Some(&self.version)
    }

    fn session(&self) -> String {
        format!("{}:{}", self.options.advertise_host, self.port)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { verifies: false }
    }

    async fn register(&self, memory: Arc<WeightMemory>) -> Result<(), EngineError> {
        self.manage("registering memory", move |driver| driver.register(memory)).await
    }

    async fn unregister(&self) -> Result<(), EngineError> {
        self.manage("unregistering memory", Driver::unregister).await
    }

    async fn read(&self, request: ReadRequest<'_>) -> Result<ReadReport, ReadError> {
        let peer = &request.seed.session;
        let (memory, theirs) = (request.memory, request.seed.manifest.tensors());
        let from: Vec<u64> = theirs.iter().map(|tensor| tensor.address).collect();
        let to: Vec<u64> = (0..).map_while(|tensor| memory.tensor_address(tensor)).collect();
        if to.len() != from.len() {
            // Draft models may lack what they share with their target; then the two are not cut alike.
            let reason = format!("it has {} tensors, this worker {}", from.len(), to.len());
            return Err(ReadError::Unusable { peer: peer.clone(), reason });
        }
        let mut report = ReadReport::default();
        // Chunks of which only a part is there yet.
        let mut open: Vec<ChunkWriter> = Vec::new();
        for batch in batches(memory.plan(), memory.missing().iter(), &to, &from, LIMITS) {
            if request.cancel.is_cancelled() {
                return Err(ReadError::Cancelled);
            }
            for chunk in &batch.begins {
                let writer = memory.begin_write(*chunk).ok_or_else(|| ReadError::Unusable {
                    peer: peer.clone(),
                    reason: format!("chunk {chunk} is being written by somebody else"),
                })?;
                open.push(writer);
            }
            let (bytes, completed) = (batch.bytes(), batch.completes.len());
            let (begun, target) = (Instant::now(), peer.clone());
            let writers = std::mem::take(&mut open);
            // The call owns what it writes until it returns, whoever waits for it.
            let reading = self.call(self.options.deadline(bytes), move |driver| {
                driver.vendor.read(&target, Ranges::from(&batch)).map(|()| writers)
            });
            open = match reading.await {
                Ok(Ok(writers)) => writers,
                Ok(Err(error)) => return Err(read_error(peer, &error)),
                Err(Unanswered::Gone) => {
                    let reason = EngineError::Gone.to_string();
                    return Err(ReadError::Unusable { peer: peer.clone(), reason });
                }
                Err(Unanswered::Hung(_)) => {
                    let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    return Err(ReadError::Hung { peer: peer.clone(), waited_ms });
                }
            };
            request.arrived_bytes.fetch_add(bytes, Ordering::Relaxed);
            // Chunks are completed in the order in which they were begun.
            for writer in open.drain(..completed) {
                report.chunks += 1;
                report.bytes += writer.len() as u64;
                writer.commit();
            }
        }
        Ok(report)
    }

    async fn finalize(&self) {
        if let Err(error) = self.manage("finalising", Driver::end_or_fail).await {
            tracing::warn!(%error, "the transfer engine did not end");
        }
    }
}

/// What a failed read says of the seed.
fn read_error(peer: &str, error: &VendorError) -> ReadError {
    let (peer, reason) = (peer.to_owned(), error.to_string());
    match error.code {
        VendorError::NOT_AUTHORIZED => ReadError::Refused { peer, reason },
        VendorError::INVALID => ReadError::Unusable { peer, reason },
        _ => ReadError::Lost { peer, reason },
    }
}

/// The library, on its thread.
struct Driver {
    vendor: Box<dyn Vendor>,
    /// What peers may read: kept until they may not any more.
    served: Option<(Arc<WeightMemory>, Vec<u64>)>,
    not_ready_timeout: Duration,
    ended: bool,
}

impl Driver {
    fn register(&mut self, memory: Arc<WeightMemory>) -> Result<(), VendorError> {
        self.unregister()?;
        let ranges = memory.ranges();
        let mut starts = Vec::with_capacity(ranges.len());
        let mut result = Ok(());
        for some in ranges.chunks(LIMITS.ranges) {
            result = self.vendor.register(some);
            if result.is_err() {
                break;
            }
            starts.extend(some.iter().map(|(start, _)| *start));
        }
        self.served = Some((memory, starts));
        // What was registered before one was refused may be read already.
        result.inspect_err(|_| drop(self.unregister()))
    }

    fn unregister(&mut self) -> Result<(), VendorError> {
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

    fn end_or_fail(&mut self) -> Result<(), VendorError> {
        if self.ended {
            return Ok(());
        }
        let unregistered = self.unregister();
        until_ready(self.not_ready_timeout, || self.vendor.finalize())?;
        self.ended = true;
        // A library that has ended reads and serves nothing.
        self.served = None;
        unregistered
    }

    /// Ends the library; if it does not end, what peers may still read is kept for as long as the process lives.
    fn end(mut self) {
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
