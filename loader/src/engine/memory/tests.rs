//! States of chunks, and bytes in and out.

use super::*;
use crate::chunks::MIN_CHUNK_BYTES;
use crate::digest::{ChunkDigest, DigestAlgorithm};
use proptest::prelude::*;
use std::fs::File;
use std::io::Write;

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn memory(tensors: &[u64]) -> Arc<WeightMemory> {
    WeightMemory::allocate(tensors).unwrap()
}

/// Memory of a caller's that has room for tensors of these sizes, from the last to the first, each after a gap; and
/// where they are.
fn callers(sizes: &[u64], gap: u64) -> (Arc<Backing>, Vec<(u64, u64)>) {
    let len = sizes.iter().map(|bytes| bytes + gap).sum::<u64>();
    let (backing, mut at) = Backing::host(Mapping::new(usize::try_from(len).unwrap()).unwrap());
    let mut place = |bytes: &u64| {
        at += gap + bytes;
        (at - bytes, *bytes)
    };
    let mut ranges: Vec<(u64, u64)> = sizes.iter().rev().map(&mut place).collect();
    ranges.reverse();
    (Arc::new(backing), ranges)
}

fn of_caller(sizes: &[u64], gap: u64) -> (Arc<WeightMemory>, std::sync::Weak<Backing>) {
    let (owner, ranges) = callers(sizes, gap);
    let weak = Arc::downgrade(&owner);
    // SAFETY: the ranges are in a mapping that the owner keeps, and nobody else knows of it.
    (unsafe { WeightMemory::of_caller(&ranges, CallersMemory::on_host(owner)) }.unwrap(), weak)
}

#[test]
fn memory_of_a_caller_is_kept_while_anybody_uses_it_and_then_given_back() {
    let (memory, owner) = of_caller(&[1_000], 1);
    memory.begin_write(0).unwrap().commit();
    let reader = memory.begin_read(0).unwrap();
    drop(memory);
    assert!(owner.upgrade().is_some());
    drop(reader);
    assert!(owner.upgrade().is_none());
}

#[test]
fn a_chunk_is_held_and_in_the_log_at_once() {
    let memory = memory(&[MIN_CHUNK_BYTES]);
    let writer = memory.begin_write(0).unwrap();
    // While somebody reads the log, or forgets it, nothing comes to be held.
    let log = memory.log();
    let committing = std::thread::spawn(move || writer.commit());
    while memory.held_bytes() == 0 {
        std::thread::yield_now();
    }
    // It has begun, and comes as far as it can.
    for _ in 0..1_000 {
        std::thread::yield_now();
        assert!(memory.begin_read(0).is_none(), "whoever forgets now leaves it in the log");
    }
    drop(log);
    committing.join().unwrap();
    assert!(memory.begin_read(0).is_some());
    assert_eq!(memory.held_since(&mut memory.held_cursor(), usize::MAX), Some(vec![0]));
}

#[test]
fn ranges_of_a_caller_that_cannot_be_are_refused() {
    let (owner, ranges) = callers(&[100, 200, 300], 0);
    let refused = |ranges: &[(u64, u64)]| {
        // SAFETY: nothing is made of them.
        unsafe { WeightMemory::of_caller(ranges, CallersMemory::on_host(owner.clone())) }
            .unwrap_err()
            .to_string()
    };
    let (first, last) = (ranges[0], ranges[2]);
    let overlapping = [first, last, (first.0 - 1, 2)];
    assert_eq!(refused(&overlapping), "tensors 2 and 0 overlap in memory: give each memory of its own");
    assert!(refused(&[first, first]).contains("tensors 0 and 1 overlap"));
    for wrong in [(0, 8), (u64::MAX - 1, 8), (1 << 63, 8)] {
        assert!(refused(&[first, wrong]).starts_with("tensor 1 cannot be at address"), "{wrong:?}");
    }
    assert!(refused(&[]).contains("nothing to cut"));
    // One without bytes may be anywhere.
    let owner = CallersMemory::on_host(owner.clone());
    // SAFETY: as above.
    unsafe { WeightMemory::of_caller(&[first, (first.0 + 1, 0)], owner) }.unwrap();
}

#[test]
fn a_chunk_has_one_writer_and_no_reader_before_it_is_held() {
    let memory = memory(&[1_000]);
    let writer = memory.begin_write(0).unwrap();
    assert!(memory.begin_write(0).is_none() && memory.begin_read(0).is_none());
    drop(writer);
    let writer = memory.begin_write(0).expect("a dropped writer leaves the chunk empty");
    assert_eq!((memory.held_bytes(), memory.all_held(), memory.missing().len()), (0, false, 1));
    writer.commit();
    assert!(memory.begin_write(0).is_none(), "a held chunk is not written");
    let (one, two) = (memory.begin_read(0).unwrap(), memory.begin_read(0).unwrap());
    assert_eq!((memory.held_bytes(), memory.all_held(), memory.missing().len()), (1_000, true, 0));
    assert_eq!(memory.forget_all(), Err(ChunkInUse(0)));
    drop((one, two));
    assert_eq!(memory.forget_all(), Ok(()));
    assert_eq!((memory.held_bytes(), memory.all_held()), (0, false));
    assert!(memory.begin_write(1).is_none() && memory.begin_read(1).is_none(), "no such chunk");
}

#[test]
fn nothing_is_forgotten_while_one_chunk_is_in_use() {
    let memory = memory(&[3 * MIN_CHUNK_BYTES]);
    for chunk in 0..2 {
        memory.begin_write(chunk).unwrap().commit();
    }
    let writer = memory.begin_write(2).unwrap();
    assert_eq!(memory.forget_all(), Err(ChunkInUse(2)));
    assert!(memory.begin_read(0).is_some() && memory.begin_read(1).is_some());
    drop(writer);
    assert_eq!(memory.forget_all(), Ok(()));
    assert_eq!(memory.missing().len(), 3);
}

#[test]
fn who_forgets_is_alone() {
    const CHUNKS: u64 = 16;
    let memory = memory(&[CHUNKS * MIN_CHUNK_BYTES]);
    let forget_and_fill = || {
        for _ in 0..2_000 {
            let _ = memory.forget_all();
            for chunk in 0..memory.plan().count() {
                memory.begin_write(chunk).into_iter().for_each(ChunkWriter::commit);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(forget_and_fill);
        scope.spawn(forget_and_fill);
    });
    let held = CHUNKS - u64::from(memory.missing().len());
    assert_eq!(memory.held_bytes(), held * MIN_CHUNK_BYTES, "bytes and chunks agree");
    assert_eq!(memory.forget_all(), Ok(()), "no chunk is left taken");
    assert_eq!((memory.held_bytes(), u64::from(memory.missing().len())), (0, CHUNKS));
}

#[test]
fn too_much_memory_is_an_error() {
    let error = WeightMemory::allocate(&[1 << 52]).unwrap_err().to_string();
    assert!(error.contains("cannot allocate 4503599627370496 bytes"), "{error}");
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    let memory = memory(&[1_000]);
    let mut writer = memory.begin_write(0).unwrap();
    let error = writer.read_file_at(&file_with(&[7; 999]), 0, 0, 1_000).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn who_waits_for_a_chunk_gets_it_when_it_comes() {
    let memory = memory(&[2 * MIN_CHUNK_BYTES]);
    let waiting = tokio::spawn({
        let memory = memory.clone();
        async move { memory.wait_held(1).await.len() }
    });
    memory.begin_write(0).unwrap().commit();
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    memory.begin_write(1).unwrap().commit();
    assert_eq!(waiting.await.unwrap() as u64, MIN_CHUNK_BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_written_is_read_back(
        sizes in prop::collection::vec(1u64..400_000, 1..8), cut in 1usize..300_000, gap in prop::option::of(0u64..100)
    ) {
        let total: u64 = sizes.iter().sum();
        let bytes: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
        let file = file_with(&bytes);
        let memory = gap.map_or_else(|| memory(&sizes), |gap| of_caller(&sizes, gap).0);
        let mut offset = 0;
        let mut read_back = Vec::new();
        for chunk in 0..memory.plan().count() {
            let mut writer = memory.begin_write(chunk).unwrap();
            let first = cut.min(writer.len());
            writer.read_file_at(&file, offset, 0, first).unwrap();
            let rest = writer.len() - first;
            writer.read_file_at(&file, offset + first as u64, first, rest).unwrap();
            offset += writer.len() as u64;
            let mut written = ChunkDigest::start(DigestAlgorithm::default());
            let len = writer.len();
            writer.digest(0, first, &mut written).unwrap();
            writer.digest(first, len - first, &mut written).unwrap();
            writer.commit();
            let mut read = ChunkDigest::start(DigestAlgorithm::default());
            memory.begin_read(chunk).unwrap().visit(|piece| { read.update(piece); read_back.extend_from_slice(piece); }).unwrap();
            prop_assert_eq!(written.finish(), read.finish());
        }
        prop_assert!(read_back == bytes);
        for (tensor, _) in sizes.iter().enumerate() {
            let address = memory.tensor_address(tensor).unwrap();
            prop_assert!(gap.is_some() || address % TENSOR_ALIGNMENT == 0);
        }
    }
}
