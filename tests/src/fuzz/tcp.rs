//! What both sides of the TCP engine are tried with: a model of three chunks, and a runtime that lives as long as its
//! thread.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rfork_loader::chunks::MIN_CHUNK_BYTES;
use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::memory::{Content, WeightMemory};
use rfork_loader::engine::tcp::TcpOptions;
use rfork_protocol::manifest::content::ContentId;
use tokio::runtime::{Builder, Runtime};

/// Two whole chunks, and a short one.
pub(super) const TENSORS: [u64; 2] = [2 * MIN_CHUNK_BYTES, 100];
/// What the bytes are called here.
pub(super) const CONTENT: ContentId =
    ContentId { algorithm: DigestAlgorithm::Crc64Nvme, hash: *b"what is served in the fuzzer's.." };
/// What takes longer hangs.
pub(super) const HANGS: Duration = Duration::from_secs(300);

/// The model's bytes.
pub(super) static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; usize::try_from(TENSORS[0] + TENSORS[1]).unwrap()];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
});

/// The bytes of a chunk.
pub(super) fn bytes_of(chunk: u32) -> &'static [u8] {
    let size = usize::try_from(MIN_CHUNK_BYTES).unwrap();
    BYTES.chunks(size).nth(chunk as usize).unwrap_or_default()
}

/// A runtime on this thread alone.
pub(super) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Memory that holds these chunks of the model.
pub(super) fn memory(held: &[u32]) -> Arc<WeightMemory> {
    let memory = WeightMemory::allocate(&TENSORS).unwrap();
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(&BYTES).unwrap();
    for chunk in held {
        let mut writer = memory.begin_write(*chunk).unwrap();
        let len = writer.len();
        writer.read_file_at(&file, u64::from(*chunk) * MIN_CHUNK_BYTES, 0, len).unwrap();
        writer.commit();
    }
    memory
}

/// What the model's bytes are.
pub(super) fn content() -> Content {
    static OF_ALL: LazyLock<Content> = LazyLock::new(|| {
        let whole = memory(&[0, 1, 2]);
        Content { id: CONTENT, chunks: whole.chunk_digests(DigestAlgorithm::Crc64Nvme).unwrap() }
    });
    OF_ALL.clone()
}

/// Deadlines so short that a peer which says nothing costs no time. What is tried does not depend on them.
pub(super) fn options() -> TcpOptions {
    TcpOptions {
        connect_timeout: Duration::from_millis(50),
        progress_timeout: Duration::from_millis(15),
        not_yet_timeout: Duration::from_millis(10),
        not_yet_interval: Duration::from_millis(5),
        sign_interval: Duration::from_millis(5),
        held_timeout: Duration::from_millis(10),
        idle_timeout: Duration::from_millis(15),
        ..TcpOptions::new(Some("127.0.0.1"))
    }
}
