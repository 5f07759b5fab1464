//! Workers that form a chain: real sessions over loopback, and a planner that is none.

#![allow(clippy::cast_possible_truncation)] // Patterns of bytes.

use std::io::Write;

use async_trait::async_trait;
use rfork_protocol::manifest::content::ChunkDigests;
use rfork_protocol::manifest::{FORMAT_ND, NO_ADDRESS};
use rfork_protocol::v2::{SeedPhase, TransferOutcome};
use tokio::task::JoinHandle;

use super::stall::StallRule;
use super::*;
use crate::chunks::MIN_CHUNK_BYTES;
use crate::config::ConfigBuilder;
use crate::digest::{ChunkDigest, DigestAlgorithm};
use crate::engine::memory::ChunkWriter;
use crate::fallback::{FallbackError, FillRequest, Fills, NoFallback};

mod by_address;
mod healing;
mod leading;
mod pins;
mod planner;
mod resting;

use planner::Planner;

/// What takes longer hangs.
const HANGS: Duration = Duration::from_secs(300);
const CHUNKS: u64 = 48;
/// For workers whose sources do not stall, on a machine of any speed.
const PATIENT: StallRule = StallRule { stall: HANGS, limit: HANGS, longest: HANGS };
/// For those whose sources do.
const HASTY: StallRule = StallRule {
    stall: Duration::from_millis(400),
    limit: Duration::from_millis(800),
    longest: Duration::from_secs(20),
};

fn manifest() -> Manifest {
    let tensor = |(at, count): (usize, u64)| Tensor {
        name: format!("t{at:04}"),
        address: 0,
        count,
        element_bytes: 1,
        shape: Some(vec![count]),
        dtype: Some("int8".into()),
        format: Some(FORMAT_ND),
    };
    let sizes = [MIN_CHUNK_BYTES * (CHUNKS - 1), 700, MIN_CHUNK_BYTES];
    Manifest::new(sizes.into_iter().enumerate().map(tensor).collect()).unwrap()
}

fn memory() -> Arc<WeightMemory> {
    WeightMemory::allocate(&manifest().tensor_bytes()).unwrap()
}

/// Storage, of bytes that tell their place and a salt. It counts what is read from it.
struct Pattern {
    salt: u8,
    read_bytes: std::sync::atomic::AtomicU64,
    /// Bytes that were read to be compared.
    checked_bytes: std::sync::atomic::AtomicU64,
    /// Of how many chunks it waits before it reads the next, until it is told to go on.
    waits_after: Option<u32>,
    goes_on: tokio::sync::Notify,
}

impl Pattern {
    fn new(salt: u8) -> Arc<Self> {
        Self::with(salt, None)
    }

    /// One that waits.
    fn slow(salt: u8) -> Arc<Self> {
        Self::with(salt, Some(0))
    }

    /// One that waits when it has read so many chunks.
    fn that_waits_after(chunks: u32, salt: u8) -> Arc<Self> {
        Self::with(salt, Some(chunks))
    }

    fn with(salt: u8, waits_after: Option<u32>) -> Arc<Self> {
        let (read_bytes, checked_bytes) = (0.into(), 0.into());
        Arc::new(Self { salt, read_bytes, checked_bytes, waits_after, goes_on: tokio::sync::Notify::new() })
    }

    /// What there is of a chunk.
    fn bytes_of(&self, chunk: u32, len: usize) -> Vec<u8> {
        (0..len).map(|at| (at as u8) ^ (chunk as u8) ^ self.salt ^ ((at >> 8) as u8)).collect()
    }

    async fn may_go_on(&self, read: u32, cancel: &CancellationToken) -> Result<(), FallbackError> {
        if self.waits_after != Some(read) {
            return Ok(());
        }
        tokio::select! {
            () = self.goes_on.notified() => Ok(()),
            () = cancel.cancelled() => Err(FallbackError::Cancelled),
        }
    }

    /// Fills a chunk, and holds it if it is what is expected.
    fn read(
        &self,
        mut writer: ChunkWriter,
        chunk: u32,
        memory: &WeightMemory,
        expected: Option<&ChunkDigests>,
    ) -> Result<(), FallbackError> {
        let len = writer.len();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.bytes_of(chunk, len)).unwrap();
        writer.read_file_at(&file, 0, 0, len).unwrap();
        let mut digest = ChunkDigest::start(memory.algorithm());
        writer.digest(0, len, &mut digest).unwrap();
        let digest = digest.finish();
        if expected.is_some_and(|expected| expected.digests[chunk as usize] != digest) {
            return Err(other_bytes(chunk));
        }
        writer.commit_as(digest);
        self.read_bytes.fetch_add(len as u64, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    /// Compares what is held.
    fn check(&self, memory: &Arc<WeightMemory>, chunk: u32) -> Result<(), FallbackError> {
        let bytes = self.bytes_of(chunk, memory.begin_read(chunk).unwrap().len());
        let mut digest = ChunkDigest::start(memory.algorithm());
        digest.update(&bytes);
        self.checked_bytes.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::SeqCst);
        if memory.digest(chunk) == Some(digest.finish()) {
            return Ok(());
        }
        Err(other_bytes(chunk))
    }
}

fn other_bytes(chunk: u32) -> FallbackError {
    let (tensor, path) = ("t0000".into(), "pattern".into());
    FallbackError::OtherBytes(crate::storage::StorageError::Mismatch { chunk, tensor, path })
}

#[async_trait]
impl Fallback for Arc<Pattern> {
    fn fills(&self) -> Fills {
        Fills::Chunks
    }

    async fn fill(&self, request: FillRequest) -> Result<(), FallbackError> {
        let mut held = crate::chunks::ChunkSet::all(request.memory.plan().count());
        for (read, chunk) in (0..).zip(request.chunks.iter()) {
            held.remove(chunk);
            self.may_go_on(read, &request.cancel).await?;
            let Some(writer) = request.memory.begin_write(chunk) else { continue };
            self.read(writer, chunk, &request.memory, request.expected.as_ref())?;
        }
        self.may_go_on(request.chunks.len(), &request.cancel).await?;
        if request.checks_held {
            held.iter().try_for_each(|chunk| self.check(&request.memory, chunk))?;
        }
        Ok(())
    }
}

/// The pattern of `salt`.
fn pattern(salt: u8) -> Vec<u8> {
    let (memory, pattern) = (memory(), Pattern::new(salt));
    let len = |chunk| memory.begin_write(chunk).unwrap().len();
    (0..memory.plan().count()).flat_map(|chunk| pattern.bytes_of(chunk, len(chunk))).collect()
}

fn bytes(memory: &Arc<WeightMemory>) -> Vec<u8> {
    let mut all = Vec::new();
    for chunk in 0..memory.plan().count() {
        memory.begin_read(chunk).unwrap().visit(|piece| all.extend_from_slice(piece)).unwrap();
    }
    all
}

/// A session of a worker that sends so many MiB a second at most.
async fn session(planner: &Planner, mib_per_sec: f64, rule: StallRule) -> Session {
    session_over(planner, TcpOptions::new(Some("127.0.0.1")), mib_per_sec, rule).await
}

async fn session_over(planner: &Planner, options: TcpOptions, mib_per_sec: f64, rule: StallRule) -> Session {
    let options = TcpOptions { max_bytes_per_sec: Some(mib_per_sec * f64::from(1 << 20)), ..options };
    let bind =
        async |_: &Config, _: &str| Ok(Arc::new(TcpEngine::bind(options).await?) as Arc<dyn TransferEngine>);
    session_of(config(planner).build().unwrap(), rule, bind).await
}

fn config(planner: &Planner) -> ConfigBuilder {
    Config::builder(&planner.url, "model", "test")
        .seed_bind_host("127.0.0.1")
        .seed_advertise_host("127.0.0.1")
        // A planner that does not answer is left only by who is cancelled: what it speaks is asked for a part of this.
        .request_timeout(8 * HANGS)
}

async fn session_of(
    config: Config,
    rule: StallRule,
    engine: impl AsyncFnOnce(&Config, &str) -> Result<Arc<dyn TransferEngine>, EngineError>,
) -> Session {
    let worker = Worker {
        key: SeedKey::from_text("k").unwrap(),
        rank: 0,
        global_rank: 0,
        draft: false,
        tolerance: Tolerance::default(),
    };
    let mut session = Session::over(config, worker, engine).await.unwrap();
    session.stall = rule;
    session
}

/// Fills an empty memory with the pattern of `salt`.
fn fill(memory: &Arc<WeightMemory>, salt: u8) {
    let storage = Pattern::new(salt);
    for chunk in 0..memory.plan().count() {
        storage.read(memory.begin_write(chunk).unwrap(), chunk, memory, None).unwrap();
    }
}

/// A worker that holds the pattern of `salt`, whatever seeds there are, and serves when it is told to.
async fn loaded(planner: &Planner, salt: u8, mib_per_sec: f64) -> (Session, Arc<WeightMemory>) {
    let (mut session, memory) = (session(planner, mib_per_sec, PATIENT).await, memory());
    fill(&memory, salt);
    memory.forget_all().unwrap();
    session.adopt(&manifest(), memory.clone()).await.unwrap();
    (session, memory)
}

/// A seed that holds the pattern of `salt`.
async fn root(planner: &Planner, salt: u8, mib_per_sec: f64) -> (Session, Arc<WeightMemory>) {
    let (mut session, memory) = loaded(planner, salt, mib_per_sec).await;
    session.serve().await.unwrap();
    (session, memory)
}

/// A worker that passes on what it loads, and then serves.
struct Reader {
    memory: Arc<WeightMemory>,
    cancel: CancellationToken,
    task: JoinHandle<(Session, Result<LoadReport, LoadError>)>,
}

async fn reader(
    planner: &Planner,
    mib_per_sec: f64,
    rule: StallRule,
    fallback: Option<Arc<Pattern>>,
) -> Reader {
    reader_with(session(planner, mib_per_sec, rule).await, fallback)
}

fn reader_with(session: Session, fallback: Option<Arc<Pattern>>) -> Reader {
    // Whoever has storage goes there soon.
    let wait = fallback.is_some().then_some(Duration::from_secs(2));
    reader_that_waits(session, fallback, wait)
}

fn reader_that_waits(
    mut session: Session,
    fallback: Option<Arc<Pattern>>,
    seed_wait: Option<Duration>,
) -> Reader {
    let memory = memory();
    session.pass_on();
    session.config.seed_wait = seed_wait;
    let cancel = CancellationToken::new();
    let (filled, ended) = (memory.clone(), cancel.clone());
    let task = tokio::spawn(async move {
        let report = match fallback {
            Some(fallback) => session.load(&manifest(), filled, &fallback, &ended).await,
            None => session.load(&manifest(), filled, &NoFallback, &ended).await,
        };
        if report.is_ok() {
            session.serve().await.unwrap();
        }
        (session, report)
    });
    Reader { memory, cancel, task }
}

impl Reader {
    async fn ends(self) -> (Session, LoadReport, Arc<WeightMemory>) {
        let (session, report) = tokio::time::timeout(HANGS, self.task).await.expect("it ends").unwrap();
        (session, report.unwrap(), self.memory)
    }

    async fn holds(&self, chunks: u64) {
        let held = async {
            while self.memory.held_bytes() < chunks * MIN_CHUNK_BYTES {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANGS, held).await.expect("bytes come");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_workers_form_a_chain_and_the_seed_sends_one_copy() {
    let planner = Planner::start(true).await;
    let (_root, weights) = root(&planner, 1, 24.0).await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(reader(&planner, 24.0, PATIENT, None).await);
    }
    let mut sessions = Vec::new();
    for reader in readers {
        let (session, report, memory) = reader.ends().await;
        assert!(bytes(&memory) == bytes(&weights));
        assert_eq!(memory.arrivals().bytes(), report.bytes, "no byte comes twice");
        sessions.push(session);
    }
    planner.until(|state| state.completed.len() == 4).await;
    planner.look(|state| {
        let chain: Vec<_> = state.acquisitions.iter().filter_map(|asked| asked.loading.as_ref()).collect();
        assert_eq!(chain.len(), 4, "each asks once: nobody had to wait for another's end");
        assert!(chain.iter().all(|loading| loading.held.is_none()));
        assert!(state.seeds.iter().all(|seed| seed.phase == SeedPhase::Complete));
        assert!(state.outcomes.iter().all(|outcome| *outcome == TransferOutcome::Ok), "{:?}", state.outcomes);
        let grew = state.renewals.windows(2).any(|pair| pair[0].arrived_bytes < pair[1].arrived_bytes);
        assert!(grew && state.renewals.iter().any(|told| told.held.is_some()), "renewals tell how far it is");
    });
    for session in sessions {
        session.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_its_memory_is_a_seed_over_tcp_tells_nobody() {
    let planner = Planner::start(true).await;
    let (_root, memory) = root(&planner, 1, 1000.0).await;
    assert!(memory.tensor_address(0).is_some_and(|address| address != NO_ADDRESS));
    let seed = planner.look(|state| state.seeds[0].identity.clone());
    let (http, key) = (crate::http::client(HANGS, false).unwrap(), SeedKey::from_text("k").unwrap());
    let told = crate::seed_client::fetch(&http, &seed, &key, Duration::ZERO).await.unwrap();
    assert_eq!(told.manifest, manifest().without_addresses());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_planner_that_knows_nothing_of_it_nothing_of_it_is_said() {
    let planner = Planner::start(false).await;
    let (_root, weights) = root(&planner, 1, 1000.0).await;
    let (_session, report, memory) = reader(&planner, 1000.0, PATIENT, None).await.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert_eq!(report.shares.len(), 1);
    planner.look(|state| {
        assert!(state.acquisitions.iter().all(|asked| asked.loading.is_none() && asked.wait_ms == 0));
        assert_eq!((state.renewals.len(), state.completed.len()), (0, 0));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_cancelled_takes_itself_away_and_its_reader_goes_on() {
    let planner = Planner::start(true).await;
    let (_root, weights) = root(&planner, 1, 2.0).await;
    let relay = reader(&planner, 2.0, PATIENT, None).await;
    planner.until(|state| state.seeds.len() == 2).await;
    let last = reader(&planner, 2.0, PATIENT, None).await;
    last.holds(2).await;
    relay.cancel.cancel();
    let (session, ended) = tokio::time::timeout(HANGS, relay.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LoadError::Cancelled)), "{ended:?}");
    relay.memory.forget_all().expect("nobody reads what was cancelled");
    let (_session, report, memory) = last.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    assert_eq!(report.shares.len(), 2, "{report:?}");
    assert_eq!(memory.arrivals().bytes() / report.bytes, 1, "what was held was not read again");
    planner.look(|state| {
        assert_eq!(state.deregistered.len(), 1);
        let again = state.acquisitions.last().unwrap();
        assert!(again.loading.as_ref().unwrap().held.is_some(), "it says what it holds");
        assert!(
            state.outcomes.iter().all(|outcome| *outcome != TransferOutcome::Failed),
            "{:?}",
            state.outcomes
        );
    });
    session.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_can_be_cancelled_before_its_planner_has_answered() {
    let planner = Planner::start(true).await;
    let session = session(&planner, 1.0, PATIENT).await;
    planner.look(|state| state.is_silent = true);
    let reader = reader_with(session, None);
    planner.until(|state| state.unanswered > 0).await;
    reader.cancel.cancel();
    let (_, ended) = tokio::time::timeout(HANGS, reader.task).await.expect("it ends").unwrap();
    assert!(matches!(ended, Err(LoadError::Cancelled)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_brings_nothing_is_left_for_another_and_keeps_no_byte_from_it() {
    let planner = Planner::start(true).await;
    // It promises chunks, and sends next to nothing.
    let (slow, _) = root(&planner, 1, 0.0001).await;
    let (mut other, weights) = loaded(&planner, 1, 1000.0).await;
    let reader = reader(&planner, 1000.0, HASTY, None).await;
    planner.until(|state| state.acquisitions.iter().any(|asked| asked.stalled.is_some())).await;
    other.serve().await.unwrap();
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights));
    planner.look(|state| {
        let stalled = state.acquisitions.iter().find_map(|asked| asked.stalled.clone()).unwrap();
        assert!(stalled.silent_ms >= 400 && stalled.seed == state.seeds[0].identity, "{stalled:?}");
    });
    slow.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_wait_for_each_other_end_by_themselves() {
    let planner = Planner::start(true).await;
    planner.look(|state| state.makes_circles = true);
    let (seed, weights) = root(&planner, 1, 1.0).await;
    let storage = Pattern::new(1);
    let one = reader(&planner, 1.0, HASTY, Some(storage.clone())).await;
    planner.until(|state| state.seeds.len() == 2).await;
    let two = reader(&planner, 1.0, HASTY, Some(storage.clone())).await;
    two.holds(1).await;
    // The seed goes: the first one asks for another source, and there is only who reads from it.
    seed.close().await;
    for reader in [one, two] {
        let (session, _, memory) = reader.ends().await;
        assert!(bytes(&memory) == bytes(&weights));
        session.close().await;
    }
    planner.look(|state| {
        assert!(state.acquisitions.iter().any(|asked| asked.stalled.is_some()), "the circle was seen");
    });
    assert!(storage.read_bytes.load(std::sync::atomic::Ordering::SeqCst) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_are_never_mixed_with_those_that_are_held() {
    let planner = Planner::start(true).await;
    let (mut other, weights) = loaded(&planner, 2, 1000.0).await;
    let (seed, _) = root(&planner, 1, 1.0).await;
    let gone = planner.look(|state| state.seeds[0].identity.clone());
    // It serves before the first seed ends: otherwise it could be given that one's port, and be taken for it.
    other.serve().await.unwrap();
    let reader = reader(&planner, 1000.0, PATIENT, None).await;
    reader.holds(1).await;
    seed.close().await;
    let (_session, _, memory) = reader.ends().await;
    assert!(bytes(&memory) == bytes(&weights), "all is of the second seed");
    planner.look(|state| {
        // Before it forgot what it held it took its loading seed away: once as that, and the first seed itself.
        assert!(state.deregistered.iter().any(|seed| *seed != gone), "{:?}", state.deregistered);
        let incarnations: Vec<_> = state
            .acquisitions
            .iter()
            .filter_map(|asked| Some(asked.loading.as_ref()?.incarnation.clone()))
            .collect();
        assert!(incarnations.len() >= 2);
    });
}
