//! The engine over a library that pretends: what is tested is who owns what while calls wait, fail or hang.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Instant;

use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::manifest::{Manifest, Tensor};
use tokio_util::sync::CancellationToken;

use super::plan::LIMITS;
use super::*;
use crate::chunks::MIN_CHUNK_BYTES;
use crate::engine::memory::Region;

mod follow;

const TENSOR_BYTES: u64 = 3 * MIN_CHUNK_BYTES + 5;

/// What the pretending library does and has seen.
#[derive(Default)]
struct Seen {
    registered: BTreeMap<u64, u64>,
    batches: Vec<Vec<u64>>,
    /// What the next calls answer; 0 when nothing is said.
    unregister_codes: Vec<i32>,
    finalize_codes: Vec<i32>,
    read_codes: Vec<i32>,
    finalized: bool,
}

#[derive(Clone, Default)]
struct Pretending {
    lent: bool,
    timeouts: Option<Timeouts>,
    seen: Arc<Mutex<Seen>>,
    /// A read waits for a word of it, or its end.
    hang: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
}

impl Pretending {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(codes: &mut Vec<i32>) -> Result<(), VendorError> {
    match codes.pop().unwrap_or(0) {
        0 => Ok(()),
        code => Err(VendorError { code, message: "as it was told".into() }),
    }
}

impl Vendor for Pretending {
    fn version(&self) -> Option<&str> {
        Some("0.1.0")
    }

    fn port(&self) -> u16 {
        4_711
    }

    fn timeouts(&self) -> Option<Timeouts> {
        self.timeouts
    }

    fn register(&mut self, regions: &[Region]) -> Result<(), VendorError> {
        let mut seen = self.seen();
        for Region { start, bytes, .. } in regions {
            if seen.registered.insert(*start, *bytes).is_some() {
                return Err(VendorError { code: VendorError::INVALID, message: "registered already".into() });
            }
        }
        Ok(())
    }

    fn unregister(&mut self, starts: &[u64]) -> Result<(), VendorError> {
        let mut seen = self.seen();
        answer(&mut seen.unregister_codes)?;
        for start in starts {
            seen.registered.remove(start).unwrap();
        }
        Ok(())
    }

    fn read(&mut self, peer: &str, ranges: Ranges<'_>) -> Result<(), VendorError> {
        assert_eq!(peer, "127.0.0.1:9");
        if let Some(hang) = &self.hang {
            let _ = hang.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
        let mut seen = self.seen();
        answer(&mut seen.read_codes)?;
        seen.batches.push(ranges.lens.to_vec());
        Ok(())
    }

    fn is_lent(&self) -> bool {
        self.lent
    }

    fn finalize(&mut self) -> Result<(), VendorError> {
        let mut seen = self.seen();
        answer(&mut seen.finalize_codes)?;
        seen.finalized = true;
        Ok(())
    }
}

/// A seed with these many tensors, and memory for them.
fn model(tensors: usize) -> (Metadata, Arc<WeightMemory>) {
    let memory = WeightMemory::allocate(&vec![TENSOR_BYTES; tensors]).unwrap();
    let tensor = |at: usize| Tensor {
        name: format!("t{at:04}"),
        // Far apart, so that nothing can be read in one range.
        address: (1 << 40) + (at as u64) * (1 << 30),
        count: TENSOR_BYTES,
        element_bytes: 1,
        shape: None,
        dtype: None,
        format: None,
    };
    let manifest = Manifest::new((0..tensors).map(tensor).collect()).unwrap();
    (Metadata { session: "127.0.0.1:9".into(), manifest, extension: None }, memory)
}

fn options() -> YuanRongOptions {
    YuanRongOptions { not_ready_timeout: Duration::from_millis(300), ..YuanRongOptions::new("127.0.0.1") }
}

async fn engine(vendor: &Pretending, options: YuanRongOptions) -> YuanRongEngine {
    let vendor = vendor.clone();
    YuanRongEngine::start(options, move || Ok(vendor)).await.unwrap()
}

async fn read(
    engine: &YuanRongEngine,
    seed: &Metadata,
    memory: &Arc<WeightMemory>,
) -> Result<ReadReport, ReadError> {
    let cancel = CancellationToken::new();
    let request = ReadRequest {
        seed,
        manifest: &seed.manifest,
        root: None,
        memory,
        loading: None,
        held: None,
        in_a_chain: false,
        key: None,
        point: None,
        cancel: &cancel,
    };
    engine.read(request).await
}

#[tokio::test]
async fn a_read_holds_every_chunk_in_batches_of_so_many_ranges() {
    let vendor = Pretending::default();
    let engine = engine(&vendor, options()).await;
    assert_eq!(
        (engine.session(&"10.0.0.9".parse().unwrap()), engine.version()),
        ("127.0.0.1:4711".into(), Some("0.1.0"))
    );
    let tensors = 600;
    let (seed, memory) = model(tensors);
    let report = read(&engine, &seed, &memory).await.unwrap();
    assert!(memory.all_held());
    assert_eq!(report.bytes, TENSOR_BYTES * tensors as u64);
    assert_eq!(report.chunks, memory.plan().count());
    let batches: Vec<usize> = vendor.seen().batches.iter().map(Vec::len).collect();
    assert_eq!(batches, [LIMITS.ranges, tensors - LIMITS.ranges]);
}

#[tokio::test]
async fn a_read_that_fails_holds_what_came_before_and_says_what_the_seed_did() {
    let (seed, memory) = model(600);
    let vendor = Pretending::default();
    let engine = engine(&vendor, options()).await;
    // The last of these is the first answer.
    vendor.seen().read_codes = vec![5, 0];
    let error = read(&engine, &seed, &memory).await.unwrap_err();
    assert!(matches!(error, ReadError::Lost { .. }), "{error}");
    let held = memory.held_bytes();
    assert!(held > 0 && held < memory.plan().total_bytes(), "{held}");
    for (code, expected) in [(VendorError::NOT_AUTHORIZED, "refused"), (VendorError::INVALID, "cannot read")]
    {
        vendor.seen().read_codes = vec![code];
        let error = read(&engine, &seed, &memory).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("as it was told"), "{error}");
    }
    // The rest comes from whoever is next.
    read(&engine, &seed, &memory).await.unwrap();
    assert!(memory.all_held());
}

#[tokio::test]
async fn a_seed_with_fewer_tensors_is_not_read() {
    let engine = engine(&Pretending::default(), options()).await;
    let ((seed, _), (_, memory)) = (model(2), model(3));
    let error = read(&engine, &seed, &memory).await.unwrap_err();
    assert!(matches!(error, ReadError::Unusable { .. }), "{error}");
    assert_eq!(memory.held_bytes(), 0);
}

#[tokio::test]
async fn a_seed_that_does_not_tell_where_its_tensors_are_is_not_read() {
    let vendor = Pretending::default();
    let engine = engine(&vendor, options()).await;
    let (mut seed, memory) = model(3);
    seed.manifest = seed.manifest.without_addresses();
    let error = read(&engine, &seed, &memory).await.unwrap_err();
    assert!(matches!(error, ReadError::Protocol { .. }) && error.to_string().contains("'t0000'"), "{error}");
    assert_eq!(
        (memory.held_bytes(), vendor.seen().batches.len()),
        (0, 0),
        "nothing was asked of the library"
    );
}

#[tokio::test]
async fn a_hung_call_keeps_its_memory_until_it_returns_and_nothing_else_is_asked_of_the_library() {
    let (release, hang) = mpsc::channel();
    let vendor = Pretending { hang: Some(Arc::new(Mutex::new(hang))), ..Pretending::default() };
    let engine = engine(&vendor, YuanRongOptions { read_timeout: Duration::ZERO, ..options() }).await;
    let (seed, memory) = model(1);
    engine.register(memory.clone()).await.unwrap();
    let error = read(&engine, &seed, &memory).await.unwrap_err();
    assert!(matches!(error, ReadError::Hung { .. }), "{error}");
    assert!(memory.begin_write(0).is_none(), "the call may still write there");
    assert!(memory.forget_all().is_err());
    let error = engine.unregister().await.unwrap_err();
    assert!(matches!(error, EngineError::Hung { .. }), "{error}");
    // Whoever else held it is gone; the call's own hold is not.
    let watched = Arc::downgrade(&memory);
    drop((memory, engine));
    assert!(watched.upgrade().is_some());
    drop(release);
    // It returns, and the thread ends: what it held goes with it.
    tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while watched.upgrade().is_some() {
            assert!(Instant::now() < deadline, "the memory is never freed");
            std::thread::yield_now();
        }
    })
    .await
    .unwrap();
    assert!(vendor.seen().finalized && vendor.seen().registered.is_empty());
}

#[tokio::test]
async fn registering_replaces_and_peers_that_still_read_are_waited_for_within_a_bound() {
    let vendor = Pretending::default();
    let engine = engine(&vendor, options()).await;
    let ((_, first), (_, second)) = (model(1), model(3));
    engine.register(first.clone()).await.unwrap();
    vendor.seen().unregister_codes = vec![VendorError::NOT_READY];
    engine.register(second.clone()).await.unwrap();
    let registered: Vec<(u64, u64)> = vendor.seen().registered.clone().into_iter().collect();
    let regions: Vec<(u64, u64)> = second.regions().iter().map(|one| (one.start, one.bytes)).collect();
    assert_eq!(registered, regions);
    assert_eq!(registered.len(), 1, "one region for memory of ours");
    assert_eq!(Arc::strong_count(&first), 1, "nobody reads it any more");

    // Longer than the bound: the memory stays registered, and owned.
    vendor.seen().unregister_codes = vec![VendorError::NOT_READY; 100];
    let error = engine.unregister().await.unwrap_err();
    assert!(matches!(&error, EngineError::Vendor { source, .. } if source.code == VendorError::NOT_READY));
    assert_eq!(vendor.seen().registered.len(), 1);
    assert_eq!(Arc::strong_count(&second), 2);
    vendor.seen().unregister_codes.clear();

    vendor.seen().finalize_codes = vec![VendorError::NOT_READY];
    engine.finalize().await;
    assert!(vendor.seen().finalized && vendor.seen().registered.is_empty());
    assert_eq!(Arc::strong_count(&second), 1);
}

#[tokio::test]
async fn a_lent_library_goes_on_and_what_it_still_serves_is_kept() {
    let vendor = Pretending { lent: true, ..Pretending::default() };
    let engine = engine(&vendor, options()).await;
    let (_, memory) = model(2);
    engine.register(memory.clone()).await.unwrap();
    // Peers read for longer than is waited for.
    vendor.seen().unregister_codes = vec![VendorError::NOT_READY; 1_000];
    engine.finalize().await;
    assert_eq!((vendor.seen().registered.is_empty(), Arc::strong_count(&memory)), (false, 2));
    vendor.seen().unregister_codes.clear();
    engine.finalize().await;
    assert_eq!((vendor.seen().registered.is_empty(), Arc::strong_count(&memory)), (true, 1));
    assert!(!vendor.seen().finalized);
}

#[tokio::test]
async fn a_library_that_is_not_there_says_so() {
    let missing = || Err::<Pretending, _>(VendorError { code: -1, message: "no such file".into() });
    let error = YuanRongEngine::start(options(), missing).await.unwrap_err().to_string();
    assert_eq!(error, "the transfer engine failed in initialising: YuanRong: no such file (code -1)");
}

#[tokio::test]
async fn a_library_that_does_not_become_ready_is_given_up() {
    let (release, hang) = mpsc::channel::<()>();
    let making = move || {
        let _ = hang.recv();
        Ok(Pretending::default())
    };
    let options = YuanRongOptions { call_timeout: Duration::from_millis(1), ..options() };
    let error = YuanRongEngine::start(options, making).await.unwrap_err();
    assert!(matches!(error, EngineError::Hung { waited_ms: 1.. }), "{error}");
    drop(release);
}

#[tokio::test]
async fn a_call_that_the_library_ends_itself_is_waited_for() {
    // The first is sooner than the worker's own patience would end; both are what the library tells, or longer.
    let timeouts = Timeouts {
        connect: Duration::from_secs(10),
        transfer: Duration::from_secs(10),
        read_lease: Duration::from_secs(30),
    };
    let impatient = YuanRongOptions {
        call_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        ..options()
    };
    let waits = impatient.clone().no_shorter_than(Some(timeouts));
    assert!(waits.read_timeout > 2 * (timeouts.connect + timeouts.transfer));
    assert!(waits.not_ready_timeout > timeouts.read_lease);
    // One call of its `finalize` waits for 30 s, says that it is too early, and is made once more.
    assert!(waits.management_deadline() > Duration::from_secs(60));
    let without = impatient.clone().no_shorter_than(None);
    assert_eq!(
        (without.read_timeout, without.call_timeout),
        (impatient.read_timeout, impatient.call_timeout)
    );

    let vendor = Pretending { timeouts: Some(timeouts), ..Pretending::default() };
    let engine = engine(&vendor, impatient).await;
    assert_eq!(engine.options.read_timeout, waits.read_timeout);
}

#[test]
fn an_allocation_that_a_route_cannot_read_is_named_with_what_to_do() {
    let region = |start| Region { start: start + 512, bytes: 1, allocation: (start, 4_096) };
    let aligned = [region(2 << 20), region(6 << 20)];
    let unaligned = [region(2 << 20), region((6 << 20) + 512)];
    for route in ["auto", "hccs", "roce"] {
        assert_eq!(check_backing(route, &aligned), Ok(()), "{route}");
    }
    assert_eq!(check_backing("roce", &unaligned), Ok(()));
    for route in ["auto", "hccs"] {
        let error = check_backing(route, &unaligned).unwrap_err();
        assert_eq!(error.code, VendorError::INVALID);
        for word in ["0x600200", route, "2 MiB", "YR_TE_HIXL_ROUTE=roce"] {
            assert!(error.message.contains(word), "{error}");
        }
    }
}
