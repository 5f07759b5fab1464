//! Leasing a seed that lives: acquire, and ask a seed that was quiet for long whether it is there before its lease
//! is given away. Others are asked, too, until they have answered once, but nobody waits for it: see
//! [`crate::acquaint`].
//!
//! Nothing of this is within a transaction. A lease on a seed that does not answer is ended, and its seed suspect,
//! before another is acquired. On cancel the lease that is being looked at is given back, or kept: it is an owned value
//! ([`crate::grant`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::acquaint::Acquaintance;
use crate::domain::chain::Stalled;
use crate::grant::{Acquisition, GrantedLease};
use crate::probe::{PATIENCE, Prober, Verdict};
use crate::store::commands::{Acquire, Answered, Leave};
use crate::store::list::{LeaseFilter, Part};
use crate::store::{Grant, Leaving, Refusal, Store, attempt};
use crate::waiting::{AcquireError, Ask, WaitingRoom};
use crate::writer::{WriteError, Writer};

/// The most seeds that are found dead for one request, each in 300 ms: the answer must come in time.
const MAX_DEAD: u32 = 16;
/// What a heartbeat may be late by, on its way and until it is written, in milliseconds.
const LATE_MS: i64 = 3_000;
/// The most leases of a seed among which one is looked up: more than a seed may have by its settings.
const MAX_LEASES: u32 = 1_024;
/// The most pages in which these are looked through: of keys as long as may be a page has a hundred.
const MAX_PAGES: u32 = 16;
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
#[derive(Clone)]
pub struct Granter {
    /// Applies commands.
    pub writer: Writer,
    /// Where it is looked up who holds which lease.
    pub store: Arc<dyn Store>,
    /// Where requests wait.
    pub room: Arc<WaitingRoom>,
    /// How seeds are asked; without it none is.
    pub liveness: Option<Arc<Liveness>>,
}

impl std::fmt::Debug for Granter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Granter").field("room", &self.room).finish_non_exhaustive()
    }
}

impl Granter {
    /// Leases a point of a seed that lives, as far as can be told.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(&self, ask: &Ask) -> Result<GrantedLease, AcquireError> {
        let (begun, mut ask) = (Instant::now(), ask.clone());
        self.ask_the_lost(&mut ask).await;
        let wait_ms = ask.queue.wait_ms;
        for _ in 0..MAX_DEAD {
            let granted = match self.lease(&ask).await {
                Ok(granted) => granted,
                Err(error) => {
                    // If nothing came of asking once more, a repetition is not told of the lease that is over.
                    self.void(&ask);
                    return Err(error);
                }
            };
            let grant = granted.grant();
            let Some(liveness) = self.liveness.as_ref().filter(|liveness| liveness.doubts(grant)) else {
                self.acquaint(&ask, grant);
                return Ok(granted);
            };
            match liveness.prober.ask(&grant.identity, &ask.key).await {
                Verdict::Silent if grant.answers => {}
                Verdict::Well => {
                    let (identity, seed_id) = (grant.identity.clone(), grant.seed_id);
                    self.writer.tell(Answered { identity, seed_id });
                    return Ok(granted);
                }
                _ => return Ok(granted),
            }
            tracing::info!(seed = %grant.identity, "a seed does not answer; it is left out for a while");
            // Before what follows, which asks for another one: from its place in the queue, for the rest of its time.
            granted.failed(NO_ANSWER);
            let waited_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
            ask.queue.again = Some(std::mem::replace(&mut ask.queue.attempt, attempt()));
            ask.queue.wait_ms = wait_ms.saturating_sub(waited_ms).max(0);
        }
        self.void(&ask);
        Err(AcquireError::Write(WriteError::TimedOut(PATIENCE * MAX_DEAD)))
    }

    /// Asks the source that a worker calls lost: what does not answer, and was known to, is.
    async fn ask_the_lost(&self, ask: &mut Ask) {
        let (Some(liveness), Some(lost)) = (&self.liveness, ask.wish.lost()) else { return };
        if self.is_read(ask, lost).await {
            let verdict = liveness.prober.ask(&lost.identity, &ask.key).await;
            ask.wish.asked_whether_lost(verdict == Verdict::Silent);
        }
    }

    /// Whether the lease that is told lives on that seed: else anybody could have any address asked.
    async fn is_read(&self, ask: &Ask, lost: &Stalled) -> bool {
        let filter = LeaseFilter { key: Some(ask.key.clone()), seed: Some(lost.identity.clone()) };
        let mut part = Part { limit: MAX_LEASES, after: None };
        for _ in 0..MAX_PAGES {
            let Ok(page) = self.store.list_leases(&filter, &part).await else { return false };
            if page.entries.iter().any(|entry| entry.lease == lost.lease) {
                return true;
            }
            // A page has few leases where keys are long.
            let Some(next) = page.next else { return false };
            part.after = Some(next);
        }
        false
    }

    /// Ends what an attempt before was granted, if there was one: its seed did not answer.
    fn void(&self, ask: &Ask) {
        if let Some(attempt) = ask.queue.again {
            self.writer.tell(Leave { lease: ask.lease, attempt, why: Leaving::Void });
        }
    }

    /// Has a seed asked that nobody doubts, so that it is known to answer once somebody does.
    fn acquaint(&self, ask: &Ask, grant: &Grant) {
        if let Some(liveness) = self.liveness.as_ref().filter(|_| !grant.answers) {
            liveness.acquaintance.make(&ask.key, grant);
        }
    }

    async fn lease(&self, ask: &Ask) -> Result<GrantedLease, AcquireError> {
        if ask.queue.wait_ms > 0 || ask.queue.idempotency.is_some() || ask.queue.again.is_some() {
            return self.room.acquire(ask).await;
        }
        let Ask { key, wish, lease, .. } = ask.clone();
        match self.writer.submit(Acquire { key, wish, lease, queue: None }).await? {
            Acquisition::Granted(granted) => Ok(granted),
            Acquisition::Refused(refusal) => Err(AcquireError::Refused(refusal)),
            // It is not to wait: its place goes at once.
            Acquisition::Queued(..) => Err(AcquireError::Refused(Refusal::AllBusy)),
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

    use rfork_protocol::v1::Labels;
    use rfork_protocol::{SeedIdentity, SeedKey};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::{DatabaseUrl, Settings};
    use crate::domain::chain::Asker;
    use crate::domain::owner::Owner;
    use crate::domain::policy::Wish;
    use crate::heartbeats::Heartbeats;
    use crate::metrics::Metrics;
    use crate::shares::Pool;
    use crate::shutdown::Stop;
    use crate::store::commands::Register;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Clock, ManualClock, Queue, Store};

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
            let places = Pool::uncounted(settings.bounds.waiting);
            let stopping = Stop::from(stop.clone());
            let room = Arc::new(WaitingRoom::new(writer.clone(), store.clone(), metrics, places, stopping));
            let prober = Arc::new(Prober::new(vec!["127.0.0.0/8".parse().unwrap()], [127, 0, 0, 1].into()));
            let acquaintance = Acquaintance::new(prober.clone(), writer.clone(), stop.clone());
            let liveness = Liveness {
                prober,
                acquaintance: Arc::new(acquaintance),
                heartbeat_interval: settings.heartbeat_interval,
            };
            let granter = Granter { writer, store, room, liveness: Some(Arc::new(liveness)) };
            Self { granter, clock, leases: 0, _writing: writing, _directory: directory }
        }

        fn key() -> SeedKey {
            SeedKey::new(*b"k").unwrap()
        }

        fn ask(wish: Box<Wish>, lease: [u8; 32]) -> Ask {
            Ask { key: Self::key(), wish, lease, queue: Queue::default(), client: None, entered: None }
        }

        /// A heartbeat of the worker, after so long.
        async fn beat(&self, worker: &Worker, after_ms: i64) {
            self.clock.pass(after_ms);
            let register = Register {
                by: None,
                identity: worker.identity.clone(),
                key: Self::key(),
                profile: Box::default(),
                age_ms: 0,
                client: None,
                owner: Owner::default(),
            };
            self.granter.writer.submit(register).await.unwrap().unwrap();
        }

        async fn acquire(&mut self) -> Result<Grant, Refusal> {
            self.leases += 1;
            let mut lease = [0; 32];
            lease[..2].copy_from_slice(&self.leases.to_be_bytes());
            let ask = Self::ask(Box::default(), lease);
            match self.granter.acquire(&ask).await {
                Ok(granted) => {
                    let grant = granted.grant().clone();
                    granted.delivered();
                    Ok(grant)
                }
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
        tokio::time::timeout(Duration::from_secs(300), waiting).await.expect("it does not happen");
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
    async fn a_source_that_is_called_lost_is_asked_only_for_who_has_a_lease_on_it() {
        let mut bench = Bench::new().await;
        let (source, other) = (Worker::start(true).await, Worker::start(true).await);
        bench.beat(&source, 0).await;
        assert!(bench.acquire().await.is_ok());
        until(async || source.asked() == 1).await;
        let mut asks = Vec::new();
        for (worker, lease) in [(&source, 1), (&source, 7), (&other, 1)] {
            let mut lost = [0; 32];
            lost[1] = lease;
            let stalled =
                Stalled { identity: worker.identity.clone(), lease: lost, lost: true, unanswered: false };
            let asker = Asker {
                owner: Owner::default(),
                identity: SeedIdentity::new("h", 1, 0).unwrap(),
                incarnation: "i".into(),
                labels: Labels::default(),
                total_bytes: 1,
                held: None,
                starts_over: false,
                stalled: Some(stalled),
            };
            let wish = Box::new(Wish { loading: Some(Box::new(asker)), ..Wish::default() });
            let mut ask = Bench::ask(wish, [9; 32]);
            bench.granter.ask_the_lost(&mut ask).await;
            asks.push((source.asked(), other.asked()));
        }
        assert_eq!(asks, [(2, 0), (2, 0), (2, 0)]);
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
