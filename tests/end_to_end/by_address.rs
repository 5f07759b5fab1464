//! Seeds of the field say no digests and are read by address, as YuanRong does. Here an engine reads so from the
//! memory of peers' processes, through our own session.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use rfork_loader::config::Config;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::engine::{Capabilities, EngineError, ReadError, ReadReport, ReadRequest, TransferEngine};
use rfork_loader::fallback::Fallback;
use rfork_loader::session::{LoadReport, Session, Share, Source, Worker as Identity};
use rfork_loader::storage::Checkpoint;
use rfork_loader::storage::model_digest::model_digest;
use rfork_protocol::seed_key::UNNAMED_ENGINE;
use rfork_protocol::{Host, SeedKey};
use rfork_tests::by_address::start;
use rfork_tests::fakes::StoppingStorage;
use rfork_tests::http::request;
use rfork_tests::model::Model;
use rfork_tests::peer::Generation;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Reads chunks from another process's memory, at the addresses that its metadata gives.
struct ByAddress {
    memory: File,
    version: &'static str,
    /// Chunks that it reads before the seed is lost to it.
    chunks_left: AtomicU32,
    /// Whether it takes memory.
    registers: bool,
}

impl ByAddress {
    /// An engine that can read the memory of `peer`: its own child.
    fn of(peer: &Worker, chunks: u32) -> Arc<dyn TransferEngine> {
        let memory = File::open(format!("/proc/{}/mem", peer.process.pid())).unwrap();
        Arc::new(Self { memory, version: "1.0", chunks_left: AtomicU32::new(chunks), registers: true })
    }

    /// An engine of that version that can read the memory of workers in this process.
    fn of_version(version: &'static str) -> Arc<dyn TransferEngine> {
        let memory = File::open("/proc/self/mem").unwrap();
        Arc::new(Self { memory, version, chunks_left: AtomicU32::new(u32::MAX), registers: true })
    }

    /// An engine that takes no memory.
    fn refusing() -> Arc<dyn TransferEngine> {
        let memory = File::open("/dev/null").unwrap();
        Arc::new(Self { memory, version: "1.0", chunks_left: AtomicU32::new(0), registers: false })
    }
}

#[async_trait]
impl TransferEngine for ByAddress {
    fn name(&self) -> &'static str {
        UNNAMED_ENGINE
    }

    fn version(&self) -> Option<&str> {
        Some(self.version)
    }

    fn session(&self, _host: &Host) -> String {
        "127.0.0.1:1".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { verifies: false, serves_while_loading: false, by_address: true }
    }

    async fn register(&self, _memory: Arc<WeightMemory>) -> Result<(), EngineError> {
        if self.registers { Ok(()) } else { Err(EngineError::Gone) }
    }

    async fn unregister(&self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn read(&self, request: ReadRequest<'_>) -> Result<ReadReport, ReadError> {
        let mut report = ReadReport::default();
        for chunk in request.memory.missing().iter() {
            let left =
                self.chunks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            if left.is_err() {
                let peer = request.seed.session.clone();
                return Err(ReadError::Lost { peer, reason: "it is gone".into() });
            }
            let mut writer = request.memory.begin_write(chunk).unwrap();
            let mut at = 0;
            for segment in request.memory.plan().segments(chunk) {
                let from = request.seed.manifest.tensors()[segment.tensor].address + segment.offset_bytes;
                let len = usize::try_from(segment.len_bytes).unwrap();
                writer.read_file_at(&self.memory, from, at, len).unwrap();
                at += len;
            }
            writer.commit();
            report.chunks += 1;
            report.bytes += at as u64;
        }
        Ok(report)
    }

    async fn finalize(&self) {}
}

/// A worker of ours in this process.
struct Ours {
    session: Session,
    memory: Arc<WeightMemory>,
    report: LoadReport,
    digest: String,
}

impl Ours {
    /// Loads the model with this engine, under the key of `seed`.
    async fn load(engine: Arc<dyn TransferEngine>, key: &str, planner: &Planner, model: &Model) -> Self {
        let settings = json!({
            "model_url": "m", "model_deploy_strategy_name": "s", "rfork_scheduler_url": planner.url(),
            "rfork_seed_bind_host": "127.0.0.1",
        });
        let (config, _) = Config::from_json(&settings, |_| None).unwrap();
        let identity = Identity {
            key: SeedKey::from_text(key).unwrap(),
            rank: 0,
            global_rank: 0,
            draft: false,
            tolerance: rfork_protocol::manifest::agreement::Tolerance::default(),
        };
        let mut session = Session::over(config, identity, async |_, _| Ok(engine)).await.unwrap();
        let checkpoint = Arc::new(Checkpoint::open(model.path()).unwrap());
        let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes()).unwrap();
        let fallback: &dyn Fallback = &checkpoint;
        let never = CancellationToken::new();
        let loading = session.load(checkpoint.manifest(), memory.clone(), fallback, &never);
        let report = loading.await.unwrap();
        let digest = model_digest(checkpoint.manifest(), &memory).unwrap().to_string();
        Self { session, memory, report, digest }
    }

    fn sources(&self) -> Vec<(String, u64)> {
        let share = |share: &Share| match &share.source {
            Source::Seed(seed) => (format!("seed {seed}"), share.bytes),
            Source::Storage => ("storage".to_owned(), share.bytes),
        };
        self.report.shares.iter().map(share).collect()
    }
}

// The blocking request must not stand in the way of the service that answers it.
#[tokio::test(flavor = "multi_thread")]
async fn a_seed_without_digests_is_read_and_its_reader_gives_them_to_the_next() {
    for generation in Generation::ALL {
        let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
        let peer = generation.start(&model, &planner.url(), &["--engine=yuanrong"]);
        let seed = peer.serving();
        let mut ours = Ours::load(ByAddress::of(&peer, u32::MAX), &seed.key, &planner, &model).await;
        assert_eq!(ours.sources(), [(format!("seed {}", seed.identity), model.bytes)]);
        assert_eq!(ours.digest, model.digest());
        assert!((ours.report.content, ours.memory.content()) == (None, None), "nothing was digested yet");

        let serving = ours.session.serve().await.unwrap();
        let address = serving.url.replace("http://", "");
        let metadata = request(&address, "GET", &info_path(&seed.key), &[]).unwrap().json();
        let named = peer.process.wait_for("loaded")["content_id"].clone();
        assert_eq!(metadata["rfork_rs"]["content_id"], named, "the same as from storage");
        assert_eq!(metadata["rfork_rs"]["engine"], "yuanrong");
        let entries = metadata["rfork_transfer_engine_info"][1].as_object().unwrap();
        let told: BTreeSet<_> = entries.values().filter_map(|entry| entry[0].as_u64()).collect();
        let has: BTreeSet<_> = (0..entries.len()).filter_map(|at| ours.memory.tensor_address(at)).collect();
        assert_eq!(told, has, "who reads by address is told them");
        ours.session.close().await;
    }
}

#[tokio::test]
async fn what_a_seed_without_digests_began_goes_with_nothing_else() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let (theirs, generation) = (Model::new(2, 2), Generation::C);
    // The reader's storage holds other weights of the same form, so a mixture would show.
    let peer = generation.start(&theirs, &planner.url(), &["--engine=yuanrong"]);
    let seed = peer.serving();
    let ours = Ours::load(ByAddress::of(&peer, 3), &seed.key, &planner, &model).await;
    assert_eq!(ours.sources(), [("storage".to_owned(), model.bytes)]);
    assert_eq!(ours.digest, model.digest());
    assert!(ours.report.content.is_some());
    ours.session.close().await;
}

// What one version sends, another may not understand: nothing on the wire says so.
#[tokio::test(flavor = "multi_thread")]
async fn workers_with_two_versions_of_an_engine_do_not_read_from_each_other() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&["--default-resource-points", "2"]));
    let mut seed = Ours::load(ByAddress::of_version("0.1.0"), "key", &planner, &model).await;
    let identity = seed.session.serve().await.unwrap().identity;
    for (version, source) in [("0.8.1", "storage".to_owned()), ("0.1.0", format!("seed {identity}"))] {
        let ours = Ours::load(ByAddress::of_version(version), "key", &planner, &model).await;
        assert_eq!(ours.sources(), [(source, model.bytes)], "{version}");
        assert_eq!(ours.digest, model.digest());
        ours.session.close().await;
    }
    seed.session.close().await;
}

#[tokio::test]
async fn a_worker_whose_engine_takes_no_memory_loads_from_storage_and_is_no_seed() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let mut ours = Ours::load(ByAddress::refusing(), "key", &planner, &model).await;
    assert_eq!(ours.sources(), [("storage".to_owned(), model.bytes)]);
    assert_eq!(ours.digest, model.digest());
    let error = ours.session.serve().await.unwrap_err().to_string();
    assert_eq!(error, "peers cannot read this worker's memory: the transfer engine has ended");
    ours.session.close().await;
}

/// A worker as a process that may read what storage gives before it stops, and pass it on.
fn starts(planner: &Planner, model: &Model, storage: &StoppingStorage, name: &str) -> Worker {
    let wait = [("rfork_seed_wait_sec", json!(60))];
    start(&storage.environment(), name, model, &planner.url(), &wait)
}

/// What a worker has from storage, when it is loaded; no byte came twice, and all are right.
fn from_storage(worker: &Worker, model: &Model) -> u64 {
    let loaded = worker.loaded();
    assert_eq!(loaded.digest, model.digest());
    let total: u64 = loaded.shares.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(total, model.bytes, "no byte is read twice: {loaded:?}");
    loaded.shares.iter().filter(|(source, _)| source == "storage").map(|(_, bytes)| bytes).sum()
}

/// Three workers, each of which reads from the one before; the first reads storage, which stops half way.
#[test]
fn when_the_middle_of_a_chain_is_killed_its_reader_goes_on_and_storage_is_read_once() {
    let (planner, model) = (Planner::start(&["--lease-ttl-sec=3600"]), Model::new(8, 1));
    let storage = StoppingStorage::after(model.bytes / 2);
    let first = starts(&planner, &model, &storage, "first");
    first.process.wait_for("this worker reads storage, and others wait for what it reads");
    let mut middle = starts(&planner, &model, &storage, "middle");
    assert_eq!(middle.reading_from_a_seed(), first.listens());
    let last = starts(&planner, &model, &storage, "last");
    assert_eq!(last.reading_from_a_seed(), middle.listens());
    assert!([&first, &middle, &last].iter().all(|worker| worker.process.said("loaded").is_empty()));
    middle.process.kill();
    // It has the place of the one that is gone before the rest is there.
    let from_the_first = format!("loading from seed {}", first.listens());
    last.process.wait_until("that it reads from the first", |line| line["phase"] == from_the_first.as_str());
    let again = starts(&planner, &model, &storage, "started over");
    again.reading_from_a_seed();
    storage.go_on();
    assert_eq!(from_storage(&first, &model), model.bytes);
    for worker in [&last, &again] {
        assert_eq!(from_storage(worker, &model), 0, "storage is read once");
    }
    let kept = last.loaded().shares;
    assert!(kept.len() == 2 && kept.iter().all(|(_, bytes)| *bytes > 0), "what it had it kept: {kept:?}");
    let leads = planner.request("GET", "/v2/events?kind=leads", &[]).json();
    assert_eq!(leads["events"].as_array().unwrap().len(), 1, "{leads}");
}
