//! Reading into memory: all bytes, only the missing chunks, and nothing that is wrong.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rfork_protocol::manifest::content::ChunkDigests;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::chunks::ChunkSet;
use crate::digest::{ChunkDigest, Digest, DigestAlgorithm};
use crate::engine::memory::WeightMemory;
use crate::storage::model_digest::{NotHeld, model_digest};
use crate::storage::{Checkpoint, FillOptions, StorageError};

/// A model in files, opened, and memory for it.
struct Loading {
    directory: TempDir,
    checkpoint: Checkpoint,
    memory: Arc<WeightMemory>,
    cancel: CancellationToken,
    progress: AtomicU64,
}

impl Loading {
    fn of(model: &Model) -> Self {
        let directory = TempDir::new().unwrap();
        write_sharded(directory.path(), model);
        Self::opened(directory)
    }

    fn opened(directory: TempDir) -> Self {
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes()).unwrap();
        Self { directory, checkpoint, memory, cancel: CancellationToken::new(), progress: AtomicU64::new(0) }
    }

    fn fill(&self, chunks: &ChunkSet, options: &FillOptions) -> Result<Vec<(u32, Digest)>, StorageError> {
        self.checkpoint.fill(&self.memory, chunks, options, &self.cancel, &self.progress)
    }

    fn fill_all(&self) -> Result<Vec<(u32, Digest)>, StorageError> {
        self.fill(&self.memory.missing(), &FillOptions::default())
    }

    /// The bytes of a held chunk.
    fn chunk(&self, chunk: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.memory.begin_read(chunk)?.visit(|part| bytes.extend_from_slice(part)).unwrap();
        Some(bytes)
    }

    /// No chunk is taken by a writer that is gone.
    fn assert_no_writer(&self) {
        for chunk in self.memory.missing().iter() {
            assert!(self.memory.begin_write(chunk).is_some(), "chunk {chunk}");
        }
    }

    fn expected(&self, digests: &[(u32, Digest)]) -> FillOptions {
        let digests: Vec<Digest> = digests.iter().map(|(_, digest)| *digest).collect();
        let chunks = ChunkDigests {
            algorithm: DigestAlgorithm::default(),
            chunk_bytes: self.memory.plan().chunk_size(),
            digests: digests.into(),
        };
        FillOptions { expected: Some(chunks), ..FillOptions::default() }
    }
}

/// A model of several chunks in two files.
fn large_model() -> Model {
    let tensor = |seed| Sample::new(Dtype::BF16, &[350, 700], seed);
    ["a", "b", "c", "d"]
        .into_iter()
        .zip(0..)
        .map(|(n, i)| (n.to_owned(), (tensor(i), usize::from(i > 1))))
        .collect()
}

/// All bytes of a model in manifest order, which is that of a `BTreeMap` of strings.
fn bytes_of(model: &Model) -> Vec<u8> {
    model.values().flat_map(|(sample, _)| sample.bytes.clone()).collect()
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut digest = ChunkDigest::start(DigestAlgorithm::default());
    digest.update(bytes);
    digest.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn memory_holds_the_bytes_of_the_files(model in models(), threads in 1usize..5) {
        let loading = Loading::of(&model);
        let options = FillOptions { threads: NonZeroUsize::new(threads).unwrap(), ..FillOptions::default() };
        let digests = loading.fill(&loading.memory.missing(), &options).unwrap();
        prop_assert!(loading.memory.all_held());
        prop_assert_eq!(loading.progress.load(Ordering::Relaxed), loading.memory.plan().total_bytes());
        let mut all = Vec::new();
        for (chunk, (number, digest)) in (0..loading.memory.plan().count()).zip(digests) {
            let bytes = loading.chunk(chunk).unwrap();
            prop_assert_eq!((number, digest), (chunk, digest_of(&bytes)));
            all.extend(bytes);
        }
        prop_assert!(all == bytes_of(&model));
        let manifest = loading.checkpoint.manifest();
        prop_assert_eq!(
            model_digest(manifest, &loading.memory).unwrap(),
            loading.checkpoint.model_digest().unwrap()
        );
    }
}

#[test]
fn a_single_file_is_loaded_too() {
    let directory = TempDir::new().unwrap();
    let model = large_model();
    write_file(
        &directory.path().join("model.safetensors"),
        model.iter().map(|(name, (sample, _))| (name, sample)),
    );
    let loading = Loading::opened(directory);
    loading.fill_all().unwrap();
    let all: Vec<u8> =
        (0..loading.memory.plan().count()).flat_map(|chunk| loading.chunk(chunk).unwrap()).collect();
    assert!(all == bytes_of(&model));
}

#[test]
fn only_missing_chunks_are_read() {
    let loading = Loading::of(&large_model());
    let count = loading.memory.plan().count();
    assert!(count >= 6, "{count}");
    let mut some = ChunkSet::none(count);
    some.insert(1);
    some.insert(4);
    let first = loading.fill(&some, &FillOptions::default()).unwrap();
    assert_eq!(first.iter().map(|(chunk, _)| *chunk).collect::<Vec<_>>(), [1, 4]);
    let held = loading.memory.held_bytes();
    assert_eq!(held, loading.progress.load(Ordering::Relaxed));
    // Asked for all, it reads the others alone: those that are held may be read meanwhile.
    let reader = loading.memory.begin_read(1).unwrap();
    let rest = loading.fill(&ChunkSet::all(count), &FillOptions::default()).unwrap();
    drop(reader);
    assert_eq!(rest.len() + 2, count as usize);
    assert!(rest.iter().all(|(chunk, _)| ![1, 4].contains(chunk)));
    assert_eq!(loading.progress.load(Ordering::Relaxed), loading.memory.plan().total_bytes());
    assert!(loading.memory.all_held());
}

#[test]
fn a_chunk_that_another_writes_is_an_error() {
    let loading = Loading::of(&large_model());
    let writer = loading.memory.begin_write(2).unwrap();
    let error = loading.fill_all().unwrap_err();
    assert!(matches!(error, StorageError::Busy { chunk: 2 }), "{error}");
    drop(writer);
    loading.assert_no_writer();
}

#[test]
fn a_cancelled_fill_leaves_no_writer() {
    let loading = Loading::of(&large_model());
    loading.cancel.cancel();
    let error = loading.fill_all().unwrap_err();
    assert!(matches!(error, StorageError::Cancelled { .. }), "{error}");
    assert_eq!(loading.memory.held_bytes(), 0);
    loading.assert_no_writer();
}

#[test]
fn a_fill_that_is_cancelled_on_the_way_stops_and_can_go_on() {
    let loading = Loading::of(&large_model());
    let options = FillOptions { threads: NonZeroUsize::MIN, ..FillOptions::default() };
    std::thread::scope(|scope| {
        let fill = scope.spawn(|| loading.fill(&loading.memory.missing(), &options));
        while loading.progress.load(Ordering::Relaxed) == 0 && !fill.is_finished() {
            std::thread::yield_now();
        }
        loading.cancel.cancel();
        // It may have been done just then.
        match fill.join().unwrap() {
            Ok(_) => assert!(loading.memory.all_held()),
            Err(error) => assert!(matches!(error, StorageError::Cancelled { .. }), "{error}"),
        }
    });
    loading.assert_no_writer();
    let fresh = Loading { cancel: CancellationToken::new(), ..loading };
    fresh.fill_all().unwrap();
    assert!(fresh.memory.all_held());
    assert_eq!(
        model_digest(fresh.checkpoint.manifest(), &fresh.memory).unwrap(),
        fresh.checkpoint.model_digest().unwrap()
    );
}

#[test]
fn a_chunk_with_other_bytes_than_expected_is_not_committed() {
    let loading = Loading::of(&large_model());
    let good = loading.fill_all().unwrap();
    loading.memory.forget_all().unwrap();
    let mut wrong = good.clone();
    wrong[3].1 = Digest::crc64_nvme(1);
    let error = loading.fill(&loading.memory.missing(), &loading.expected(&wrong)).unwrap_err();
    let StorageError::Mismatch { chunk: 3, tensor, path } = &error else { panic!("{error}") };
    let first = loading.memory.plan().segments(3).next().unwrap().tensor;
    assert_eq!(*tensor, loading.checkpoint.manifest().tensors()[first].name);
    assert!(path.starts_with(loading.directory.path()));
    assert!(loading.memory.missing().contains(3));
    loading.assert_no_writer();
    let rest = loading.memory.missing();
    let read = loading.fill(&rest, &loading.expected(&good)).unwrap();
    assert_eq!(read, good.into_iter().filter(|(chunk, _)| rest.contains(*chunk)).collect::<Vec<_>>());
    assert!(loading.memory.all_held());
}

#[test]
fn digests_of_another_plan_are_refused() {
    let loading = Loading::of(&large_model());
    let good = loading.fill_all().unwrap();
    loading.memory.forget_all().unwrap();
    let options = loading.expected(&good[1..]);
    let error = loading.fill(&loading.memory.missing(), &options).unwrap_err();
    assert!(matches!(error, StorageError::OtherLayout { .. }), "{error}");
    let mut options = loading.expected(&good);
    options.expected.as_mut().unwrap().algorithm = DigestAlgorithm::Blake3;
    let error = loading.fill(&loading.memory.missing(), &options).unwrap_err().to_string();
    assert!(error.contains("blake3"), "{error}");
    assert_eq!(loading.memory.held_bytes(), 0);
}

#[test]
fn memory_for_other_tensors_is_refused() {
    let loading = Loading::of(&small_model());
    // The same size, cut differently.
    for sizes in [vec![1], vec![64, 64, 128]] {
        let memory = WeightMemory::allocate(&sizes).unwrap();
        let loading = Loading { memory, ..Loading::of(&small_model()) };
        let error = loading.fill_all().unwrap_err();
        assert!(matches!(error, StorageError::OtherLayout { .. }), "{error}");
        let error = loading.checkpoint.manifest_in(&loading.memory).unwrap_err();
        assert!(matches!(error, StorageError::OtherLayout { .. }), "{error}");
    }
    let other = WeightMemory::allocate(&[1]).unwrap();
    assert_eq!(
        model_digest(loading.checkpoint.manifest(), &other),
        Err(NotHeld::OtherSize { here: 1, manifest: 256 })
    );
    assert_eq!(model_digest(loading.checkpoint.manifest(), &loading.memory), Err(NotHeld::Chunk(0)));
}

#[test]
fn a_seed_s_manifest_gives_each_tensor_its_place() {
    let loading = Loading::of(&large_model());
    let manifest = loading.checkpoint.manifest_in(&loading.memory).unwrap();
    for (index, tensor) in manifest.tensors().iter().enumerate() {
        assert_eq!(Some(tensor.address), loading.memory.tensor_address(index));
        let on_disk = loading.checkpoint.manifest().get(&tensor.name).unwrap();
        assert_eq!(*tensor, rfork_protocol::manifest::Tensor { address: tensor.address, ..on_disk.clone() });
    }
}

#[test]
fn a_file_that_shrinks_before_it_is_read_is_named() {
    let loading = Loading::of(&large_model());
    resize(&shard(&loading.directory, 1), -1000);
    let error = loading.fill_all().unwrap_err();
    let StorageError::Changed { path, tensor, .. } = &error else { panic!("{error}") };
    assert_eq!((path, tensor.as_str()), (&shard(&loading.directory, 1), "c"));
    assert!(!loading.memory.all_held());
    loading.assert_no_writer();
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_named() {
    // As `fill` does it, with the cut between its look at the file and its read.
    let loading = Loading::of(&large_model());
    let plan = loading.memory.plan();
    let mut reader = crate::storage::reader::Reader::new(&loading.checkpoint);
    let last = plan.segments(plan.count() - 1).last().unwrap();
    let (file, start) = reader.seek(last.tensor).unwrap();
    resize(&shard(&loading.directory, 1), -10);
    let mut writer = loading.memory.begin_write(plan.count() - 1).unwrap();
    let at = writer.len() - usize::try_from(last.len_bytes).unwrap();
    let len = usize::try_from(last.len_bytes).unwrap();
    let eof = writer.read_file_at(file, start + last.offset_bytes, at, len).unwrap_err();
    let error = crate::storage::reader::Reader::error(&loading.checkpoint, last.tensor, eof).to_string();
    assert!(error.contains("tensor 'd'") && error.contains("ends too early"), "{error}");
    let error = reader.finish().unwrap_err().to_string();
    assert!(error.contains("model-00001.safetensors") && error.contains("it had"), "{error}");
}

#[test]
fn a_file_that_vanishes_is_named_with_the_tensor() {
    let loading = Loading::of(&large_model());
    fs::remove_file(shard(&loading.directory, 1)).unwrap();
    let error = loading.fill_all().unwrap_err().to_string();
    assert!(error.contains("model-00001.safetensors") && error.contains("tensor 'c'"), "{error}");
    assert!(!loading.memory.all_held());
}

#[test]
fn what_is_held_is_compared_with_the_files_when_that_is_wanted() {
    let all = Loading::of(&large_model());
    let digests = all.fill_all().unwrap();
    let compared = FillOptions { checks_held: true, ..FillOptions::default() };
    for is_same in [true, false] {
        let part = Loading::of(&large_model());
        let mut first = ChunkSet::none(part.memory.plan().count());
        first.insert(1);
        part.fill(&first, &FillOptions::default()).unwrap();
        if !is_same {
            // It came with other bytes than are in the files now.
            let directory = TempDir::new().unwrap();
            let other = large_model()
                .into_iter()
                .map(|(name, (sample, file))| (name, (Sample::new(Dtype::BF16, &sample.shape, 99), file)));
            write_sharded(directory.path(), &other.collect());
            let other = Checkpoint::open(directory.path()).unwrap();
            let filled =
                other.fill(&part.memory, &part.memory.missing(), &compared, &part.cancel, &part.progress);
            assert!(matches!(filled, Err(StorageError::Mismatch { chunk: 1, .. })), "{filled:?}");
            continue;
        }
        let arrived = part.memory.arrivals().bytes();
        part.fill(&part.memory.missing(), &compared).unwrap();
        let total = part.memory.plan().total_bytes();
        assert_eq!(
            part.memory.arrivals().bytes() - arrived,
            total,
            "everything is read, to be held or compared"
        );
        assert!(part.memory.all_held());
        let known = (0..).map(|chunk| part.memory.digest(chunk)).take(digests.len());
        assert!(known.eq(digests.iter().map(|(_, digest)| Some(*digest))));
    }
}
