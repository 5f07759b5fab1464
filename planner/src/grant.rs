//! Leasing a seed that lives: acquire, and ask a seed that was quiet for long whether it is there before its lease
//! is given away. Others are asked, too, until they have answered once, but nobody waits for it: see
//! [`crate::acquaint`].
//!
//! Nothing of this is within a transaction. A lease on a seed that does not answer is ended, and its seed suspect,
//! before another is acquired. On cancel the lease that is being looked at is given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::acquaint::Acquaintance;
use crate::allocate::{WriteError, Writer};
use crate::probe::{Prober, Verdict};
use crate::store::{Command, Grant, Leaving, Outcome, Report, attempt};
use crate::waiting::{AcquireError, Ask, WaitingRoom};

/// The most seeds that are found dead for one request, each in 300 ms: the answer must come in time.
const MAX_DEAD: usize = 16;
/// What a heartbeat may be late by, on its way and until it is written, in milliseconds.
const LATE_MS: i64 = 3_000;
/// Why the lease on a seed that does not answer ends.
const NO_ANSWER: &str = "no-answer";

/// How seeds are asked for their health.
#[derive(Debug)]
pub struct Liveness {
    /// Asks.
    pub prober: Arc<Prober>,
    /// Asks those that are not doubted and have not answered yet.
    pub acquaintance: Arc<Acquaintance>,
    /// How often seeds send heartbeats.
    pub heartbeat_interval: Duration,
}

/// Leases seeds.
#[derive(Debug, Clone)]
pub struct Granter {
    /// Applies commands.
    pub writer: Writer,
    /// Where requests wait.
    pub room: Arc<WaitingRoom>,
    /// How seeds are asked; without it none is.
    pub liveness: Option<Arc<Liveness>>,
}

/// A lease that is given back when it is dropped.
struct Held<'a> {
    writer: &'a Writer,
    release: Option<Command>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            self.writer.tell(release);
        }
    }
}

impl Granter {
    /// Leases a point of a seed that lives, as far as can be told.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(&self, ask: &Ask) -> Result<Grant, AcquireError> {
        let (begun, mut ask) = (Instant::now(), ask.clone());
        let wait_ms = ask.queue.wait_ms;
        for _ in 0..MAX_DEAD {
            let grant = match self.lease(&ask).await {
                Ok(grant) => grant,
                Err(error) => {
                    // If nothing came of asking once more, a repetition is not told of the lease that is over.
                    if let Some(before) = ask.queue.again {
                        self.void(&ask, before);
                    }
                    return Err(error);
                }
            };
            let Some(liveness) = self.liveness.as_ref().filter(|liveness| liveness.doubts(&grant)) else {
                self.acquaint(&ask, &grant);
                return Ok(grant);
            };
            let (identity, lease) = (grant.identity.clone(), ask.lease);
            let release = |report, reason| Command::give_back(identity.clone(), lease, report, reason);
            // One that may be repeated is kept for its repetition.
            let kept = ask.queue.idempotency.is_some();
            let mut held =
                Held { writer: &self.writer, release: (!kept).then(|| release(Report::Unknown, None)) };
            let verdict = liveness.prober.ask(&grant.identity, &ask.key).await;
            if verdict == Verdict::Silent && grant.answers {
                held.release = None;
                tracing::info!(seed = %grant.identity, "a seed does not answer; it is left out for a while");
                // Before what follows, which asks for another one: from its place in the queue, for the rest of its
                // time.
                self.writer.tell(release(Report::Failed, Some(NO_ANSWER)));
                let waited_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
                ask.queue.again = Some(std::mem::replace(&mut ask.queue.attempt, attempt()));
                ask.queue.wait_ms = wait_ms.saturating_sub(waited_ms).max(0);
                continue;
            }
            if verdict == Verdict::Well {
                self.writer.tell(Command::Answered { identity, seed_id: grant.seed_id });
            }
            held.release = None;
            return Ok(grant);
        }
        if let Some(before) = ask.queue.again {
            self.void(&ask, before);
        }
        Err(AcquireError::Write(WriteError::TimedOut(Duration::from_millis(300) * 16)))
    }

    /// Ends what an attempt was granted whose seed did not answer.
    fn void(&self, ask: &Ask, attempt: i64) {
        self.writer.tell(Command::Leave { lease: ask.lease, attempt, why: Leaving::Void });
    }

    /// Has a seed asked that nobody doubts, so that it is known to answer once somebody does.
    fn acquaint(&self, ask: &Ask, grant: &Grant) {
        if let Some(liveness) = self.liveness.as_ref().filter(|_| !grant.answers) {
            liveness.acquaintance.make(&ask.key, grant);
        }
    }

    async fn lease(&self, ask: &Ask) -> Result<Grant, AcquireError> {
        if ask.queue.wait_ms > 0 || ask.queue.idempotency.is_some() || ask.queue.again.is_some() {
            return self.room.acquire(ask).await;
        }
        let Ask { key, wish, lease, .. } = ask.clone();
        match self.writer.submit(Command::Acquire { key, wish, lease, queue: None }).await? {
            Outcome::Acquired(granted) => granted.map_err(AcquireError::Refused),
            _ => Err(AcquireError::Mismatched),
        }
    }
}

impl Liveness {
    /// Whether a seed was quiet for longer than its heartbeats explain.
    fn doubts(&self, grant: &Grant) -> bool {
        let interval = i64::try_from(self.heartbeat_interval.as_millis()).unwrap_or(i64::MAX);
        grant.quiet_ms > interval.saturating_add(LATE_MS)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rfork_protocol::{SeedIdentity, SeedKey};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::{DatabaseUrl, Settings};
    use crate::heartbeats::Heartbeats;
    use crate::metrics::Metrics;
    use crate::shutdown::Stop;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Clock, ManualClock, Queue, Refusal, Store};

    /// A worker's health service, until it is dropped: it answers, or only hangs up.
    struct Worker {
        identity: SeedIdentity,
        asked: Arc<AtomicUsize>,
        _serving: AbortOnDropHandle<()>,
    }

    impl Worker {
        async fn start(answers: bool) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let identity = SeedIdentity::new("127.0.0.1", listener.local_addr().unwrap().port(), 0).unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            let count = asked.clone();
            let serving = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ = stream.read(&mut [0; 4096]).await;
                    if answers {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
            Self { identity, asked, _serving: AbortOnDropHandle::new(serving) }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    struct Bench {
        granter: Granter,
        clock: Arc<ManualClock>,
        leases: u16,
        _writing: AbortOnDropHandle<()>,
        _directory: TempDir,
    }

    impl Bench {
        /// With the usual settings, but for a seed's capacity, on a clock that the test steps.
        async fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("p.db");
            let settings = Settings {
                default_resource_points: 1_000,
                ..Settings::of(DatabaseUrl::Sqlite(path.clone()))
            };
            let clock = Arc::new(ManualClock::new(1_000_000));
            let time = Clock::Manual(clock.clone());
            let store = SqliteStore::open(&path, settings.rules(), time).await.unwrap();
            let store: Arc<dyn Store> = Arc::new(store);
            let heartbeats = Arc::new(Heartbeats::new(settings.heartbeat_ttl));
            let (writer, writing) = Writer::start(store.clone(), heartbeats, Duration::from_secs(60));
            let stop = CancellationToken::new();
            let metrics = Arc::new(Metrics::new().unwrap());
            let room = Arc::new(WaitingRoom::new(writer.clone(), store, metrics, Stop::from(stop.clone())));
            let prober = Arc::new(Prober::new(vec!["127.0.0.0/8".parse().unwrap()]));
            let acquaintance = Acquaintance::new(prober.clone(), writer.clone(), stop.clone());
            let liveness = Liveness {
                prober,
                acquaintance: Arc::new(acquaintance),
                heartbeat_interval: settings.heartbeat_interval,
            };
            let granter = Granter { writer, room, liveness: Some(Arc::new(liveness)) };
            Self { granter, clock, leases: 0, _writing: writing, _directory: directory }
        }

        fn key() -> SeedKey {
            SeedKey::new(*b"k").unwrap()
        }

        /// A heartbeat of the worker, after so long.
        async fn beat(&self, worker: &Worker, after_ms: i64) {
            self.clock.pass(after_ms);
            let command = Command::Register {
                identity: worker.identity.clone(),
                key: Self::key(),
                profile: Box::default(),
                age_ms: 0,
            };
            self.granter.writer.submit(command).await.unwrap();
        }

        async fn acquire(&mut self) -> Result<Grant, Refusal> {
            self.leases += 1;
            let mut lease = [0; 32];
            lease[..2].copy_from_slice(&self.leases.to_be_bytes());
            let ask = Ask { key: Self::key(), wish: Box::default(), lease, queue: Queue::default() };
            match self.granter.acquire(&ask).await {
                Ok(grant) => Ok(grant),
                Err(AcquireError::Refused(refusal)) => Err(refusal),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until it is so.
    async fn until(mut is_so: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it does not happen");
    }

    #[tokio::test]
    async fn a_seed_that_was_always_heard_in_time_and_dies_is_suspect_at_once() {
        let mut bench = Bench::new().await;
        let worker = Worker::start(true).await;
        bench.beat(&worker, 0).await;
        assert!(!bench.acquire().await.unwrap().answers);
        for _ in 0..3 {
            bench.beat(&worker, 30_000).await;
        }
        until(async || worker.asked() == 1).await;
        until(async || bench.acquire().await.unwrap().answers).await;
        bench.beat(&worker, 30_000).await;
        drop(worker);
        // It is quiet for longer than between two heartbeats, and not yet for its time to live.
        bench.clock.pass(34_000);
        assert_eq!(bench.acquire().await.err(), Some(Refusal::AllSuspect));
    }

    #[tokio::test]
    async fn a_seed_that_never_answers_is_asked_seldom_and_not_blamed() {
        let mut bench = Bench::new().await;
        let worker = Worker::start(false).await;
        bench.beat(&worker, 0).await;
        assert!(bench.acquire().await.is_ok());
        until(async || worker.asked() == 1).await;
        for _ in 0..3 {
            bench.beat(&worker, 30_000).await;
            assert!(bench.acquire().await.is_ok());
        }
        assert_eq!(worker.asked(), 1, "what does not answer is left alone");
        bench.clock.pass(34_000);
        assert!(bench.acquire().await.is_ok(), "it is doubted, but may be out of reach");
        until(async || worker.asked() == 2).await;
    }
}
