//! Device memory over a fake AscendCL, whose device memory is host memory: what is proved is how AscendCL is called,
//! and nothing of an NPU.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::device::{DeviceError, Runtime, Staging};
use rfork_loader::engine::memory::{MemoryError, WeightMemory};
use rfork_loader::storage::model_digest::model_digest;
use rfork_loader::storage::{Checkpoint, FillOptions};
use rfork_tests::fakes::Fakes;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tokio_util::sync::CancellationToken;

/// One for each process, as AscendCL is. Under nextest each test is a process; elsewhere they share it.
fn runtime(fakes: &Fakes) -> Arc<Runtime> {
    Runtime::new(rfork_ascend_sys::open_first(&[fakes.ascendcl()]).unwrap()).unwrap()
}

/// A model file with a large tensor, small ones and an odd one, so that chunks and pieces end in the middle.
fn model(directory: &std::path::Path) -> Checkpoint {
    let bytes: Vec<u8> =
        (0..3_000_001u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    let view = |len: usize| TensorView::new(Dtype::U8, vec![len], &bytes[..len]).unwrap();
    let tensors =
        [("large", view(3_000_001)), ("one", view(1)), ("small", view(4_097)), ("odd", view(524_289))];
    let path = directory.join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    Checkpoint::open(&path).unwrap()
}

#[test]
fn storage_fills_device_memory_with_the_digests_that_host_memory_gets() {
    let (fakes, directory) = (Fakes::build(), tempfile::tempdir().unwrap());
    let device = runtime(&fakes).device(1).unwrap();
    let checkpoint = model(directory.path());
    let sizes = checkpoint.manifest().tensor_bytes();
    // More threads than pinned pieces: those without one wait.
    let options = FillOptions { threads: NonZeroUsize::new(12).unwrap(), ..FillOptions::default() };
    let fill = |memory: &Arc<WeightMemory>| {
        let (cancel, progress) = (CancellationToken::new(), AtomicU64::new(0));
        checkpoint.fill(memory, &memory.missing(), &options, &cancel, &progress).unwrap()
    };
    let host = WeightMemory::allocate(&sizes).unwrap();
    let npu = WeightMemory::allocate_on(&device, &sizes).unwrap();
    assert_eq!(fill(&npu), fill(&host));
    assert!(npu.all_held());
    // And again from what is on the device, by another way: the pieces that were staged are long gone.
    let algorithm = DigestAlgorithm::default();
    assert_eq!(npu.chunk_digests(algorithm).unwrap(), host.chunk_digests(algorithm).unwrap());
    let manifest = checkpoint.manifest();
    assert_eq!(model_digest(manifest, &npu).unwrap(), checkpoint.model_digest().unwrap());
}

#[test]
fn bytes_come_back_from_the_device_as_they_went_there_on_any_thread() {
    let fakes = Fakes::build();
    let device = runtime(&fakes).device(0).unwrap();
    let buffer = device.allocate(10_000).unwrap();
    // A new thread has no device, and need not know.
    std::thread::scope(|scope| {
        scope.spawn(|| buffer.copy_from_host(17, b"weights").unwrap()).join().unwrap();
    });
    let mut back = [0; 7];
    buffer.copy_to_host(17, &mut back).unwrap();
    assert_eq!(&back, b"weights");
    device.synchronize().unwrap();
    // Freed on a thread without a device, too.
    std::thread::spawn(move || drop(buffer)).join().unwrap();
}

#[test]
fn nothing_is_copied_from_or_to_where_the_buffer_is_not() {
    let fakes = Fakes::build();
    let buffer = runtime(&fakes).device(0).unwrap().allocate(100).unwrap();
    for (offset, len) in [(100, 1), (0, 101), (99, 2), (u64::MAX, 1), (u64::MAX, 0)] {
        let refused = DeviceError::OutOfRange { offset, len, buffer_bytes: 100 };
        assert_eq!(buffer.copy_from_host(offset, &vec![0; len]), Err(refused.clone()));
        assert_eq!(buffer.copy_to_host(offset, &mut vec![0; len]), Err(refused));
    }
    buffer.copy_from_host(100, &[]).unwrap();
}

#[test]
fn what_ascendcl_says_reaches_the_user() {
    let fakes = Fakes::build();
    let runtime = runtime(&fakes);
    assert_eq!(runtime.device_count().unwrap(), 8);
    let error = runtime.device(8).unwrap_err().to_string();
    assert!(error.contains("aclrtSetDevice on NPU 8 failed with 107001: EE107001"), "{error}");
    // More than any machine has.
    let device = runtime.device(0).unwrap();
    let error = WeightMemory::allocate_on(&device, &[1 << 50]).unwrap_err();
    assert!(matches!(error, MemoryError::Device { bytes, .. } if bytes == 1 << 50), "{error}");
    assert!(error.to_string().contains("aclrtMalloc on NPU 0 failed with 207001"), "{error}");
}

#[test]
fn staging_is_bounded_and_a_piece_that_is_given_back_is_taken_again() {
    let fakes = Fakes::build();
    let device = runtime(&fakes).device(0).unwrap();
    let staging = Staging::new(&device, 2, 4_096);
    let (first, second) = (staging.take().unwrap(), staging.take().unwrap());
    let addresses = [first.bytes().as_ptr() as usize, second.bytes().as_ptr() as usize];
    let waiting = {
        let staging = staging.clone();
        std::thread::spawn(move || staging.take().unwrap().bytes().as_ptr() as usize)
    };
    drop(second);
    let third = waiting.join().unwrap();
    assert_eq!(third, addresses[1], "a third piece was made");
}
