//! Two engines over loopback, and peers that misbehave between them.

#![allow(clippy::cast_possible_truncation)] // Patterns of bytes, and sizes of a few chunks.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use proptest::prelude::*;
use rfork_protocol::manifest::content::{ContentId, Root, content_id};
use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};
use rfork_protocol::v2::LeasedPoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::chunks::{ChunkPlan, MIN_CHUNK_BYTES};
use crate::digest::DigestAlgorithm;
use crate::engine::memory::Content;

mod chain;
mod reading;
mod secured;
mod serving;

const CHUNK: u64 = MIN_CHUNK_BYTES;

/// What takes longer hangs.
const HANGS: Duration = Duration::from_secs(300);

fn options() -> TcpOptions {
    let mut options = TcpOptions::new(Some("127.0.0.1"));
    options.connect_timeout = Duration::from_secs(2);
    options.progress_timeout = Duration::from_secs(2);
    options.not_yet_interval = Duration::from_millis(20);
    options.sign_interval = Duration::from_millis(20);
    options
}

fn manifest(sizes: &[u64]) -> Manifest {
    let tensor = |(at, count): (usize, &u64)| Tensor {
        name: format!("t{at:04}"),
        address: 0,
        count: *count,
        element_bytes: 1,
        shape: Some(vec![*count]),
        dtype: Some("int8".into()),
        format: Some(FORMAT_ND),
    };
    Manifest::new(sizes.iter().enumerate().map(tensor).collect()).unwrap()
}

/// Bytes that tell their place and `salt`.
fn pattern(chunk: u32, len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8) ^ (chunk as u8) ^ salt ^ ((at >> 8) as u8)).collect()
}

/// Fills chunk `chunk` with [`pattern`].
fn fill(memory: &Arc<WeightMemory>, chunk: u32, salt: u8) {
    let len = memory.begin_write(chunk).unwrap().len();
    fill_with(memory, chunk, &pattern(chunk, len, salt));
}

fn fill_with(memory: &Arc<WeightMemory>, chunk: u32, bytes: &[u8]) {
    let mut writer = memory.begin_write(chunk).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let len = writer.len();
    writer.read_file_at(&file, 0, 0, len).unwrap();
    writer.commit();
}

/// Where this engine is told to be.
fn session(engine: &TcpEngine) -> String {
    engine.session(&engine.address().ip().into())
}

struct Seed {
    engine: TcpEngine,
    memory: Arc<WeightMemory>,
    content: Content,
    metadata: Metadata,
}

/// An engine that serves a model of these sizes.
async fn seed(sizes: &[u64], salt: u8, options: TcpOptions) -> Seed {
    seed_by(DigestAlgorithm::Crc64Nvme, sizes, salt, options).await
}

/// The same, whose chunks are digested so.
async fn seed_by(algorithm: DigestAlgorithm, sizes: &[u64], salt: u8, options: TcpOptions) -> Seed {
    let memory = WeightMemory::allocate(sizes).unwrap();
    for chunk in 0..memory.plan().count() {
        fill(&memory, chunk, salt);
    }
    let manifest = manifest(sizes);
    let chunks = memory.chunk_digests(algorithm).unwrap();
    let content = Content { id: content_id(&manifest, &chunks), chunks };
    memory.set_content(content.clone());
    let engine = TcpEngine::bind(options).await.unwrap();
    engine.register(memory.clone()).await.unwrap();
    let metadata = Metadata { session: session(&engine), manifest, extension: None };
    Seed { engine, memory, content, metadata }
}

impl Seed {
    /// Reads from this seed, or from whoever listens at `session`.
    async fn read_at(
        &self,
        session: &str,
        memory: &Arc<WeightMemory>,
        options: &TcpOptions,
        cancel: &CancellationToken,
    ) -> Result<ReadReport, ReadError> {
        let metadata = Metadata { session: session.to_owned(), ..self.metadata.clone() };
        let request = ReadRequest {
            seed: &metadata,
            manifest: &metadata.manifest,
            root: Some(&self.root()),
            memory,
            loading: None,
            held: None,
            in_a_chain: false,
            key: None,
            point: None,
            cancel,
        };
        client::read(options, request).await
    }

    async fn read(&self, memory: &Arc<WeightMemory>) -> Result<ReadReport, ReadError> {
        self.read_at(&session(&self.engine), memory, &options(), &CancellationToken::new()).await
    }

    /// What names its bytes.
    fn root(&self) -> Root {
        Root::Content(self.content.clone())
    }

    fn empty_memory(&self) -> Arc<WeightMemory> {
        WeightMemory::allocate(&self.metadata.manifest.tensor_bytes()).unwrap()
    }
}

fn bytes(memory: &Arc<WeightMemory>) -> Vec<u8> {
    let mut all = Vec::new();
    for chunk in 0..memory.plan().count() {
        memory.begin_read(chunk).unwrap().visit(|piece| all.extend_from_slice(piece)).unwrap();
    }
    all
}

/// Ends when a chunk is held.
async fn begun(memory: &WeightMemory) {
    while memory.held_bytes() == 0 {
        tokio::task::yield_now().await;
    }
}

/// A listener on loopback that hands each connection to `serve`, and its address.
async fn peer<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream, usize) -> F + Send + 'static,
) -> (String, AbortOnDrop) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            connections.spawn(serve(stream, number));
        }
    });
    (address, AbortOnDrop::new(task))
}

type AbortOnDrop = tokio_util::task::AbortOnDropHandle<()>;

/// Passes bytes between a reader and `to`; `change` may change what the seed sends (its position in the stream
/// comes along) and ends the connection by returning false.
async fn relay(mut from: TcpStream, to: String, mut change: impl FnMut(usize, &mut [u8]) -> bool) {
    let mut to = TcpStream::connect(to).await.unwrap();
    let (mut upstream, mut downstream) = (vec![0; 4096], vec![0; 65536]);
    let mut position = 0;
    loop {
        tokio::select! {
            read = from.read(&mut upstream) => match read {
                Ok(read) if read > 0 => { if to.write_all(&upstream[..read]).await.is_err() { return } }
                _ => return,
            },
            read = to.read(&mut downstream) => match read {
                Ok(read) if read > 0 => {
                    if !change(position, &mut downstream[..read]) { return }
                    position += read;
                    if from.write_all(&downstream[..read]).await.is_err() { return }
                }
                _ => return,
            },
        }
    }
}

/// Flips a bit of the byte at `at` of the stream, if it is in this piece.
fn flip(at: usize, position: usize, piece: &mut [u8]) {
    if let Some(byte) = at.checked_sub(position).and_then(|at| piece.get_mut(at)) {
        *byte ^= 1;
    }
}

/// What the seed has sent, once it has counted as much as is expected: it counts after its reader may have it.
async fn served(seed: &Seed, expected: u64) -> u64 {
    let counted = async {
        while seed.engine.served_bytes() < expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANGS, counted).await.expect("it counts what it sent");
    seed.engine.served_bytes()
}
