//! The TCP engine's reader against a hostile seed.
//!
//! An input is a script of what the seed does: a byte says what, and the next ones how. Its first byte says whether it is
//! read as a seed that still loads, then a connection for announcements has every second step; and whether its bytes have a
//! content id yet. The engine receives from a socket straight into memory, so there is one, on loopback.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rfork_loader::digest::{Digest, DigestAlgorithm};
use rfork_loader::engine::memory::{Content, WeightMemory};
use rfork_loader::engine::tcp::{TcpEngine, TcpOptions};
use rfork_loader::engine::{ReadRequest, SourceState, TransferEngine};
use rfork_protocol::frame::{
    ANNOUNCEMENTS, Announcement, Answer, Failure, HELLO_BYTES, Hello, MAX_CHUNKS_PER_READ, RANGE_BYTES,
    READ_BYTES, Read, SignOfLife, VERSION, Welcome,
};
use rfork_protocol::manifest::content::{ContentId, Growing, Origin, Root, content_id};
use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::manifest::{Manifest, Tensor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::tcp::{HANGS, TENSORS, bytes_of, content, memory, options, runtime};
use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target = Target { name: "tcp_client", run, executions: 400, most_bytes: |_| 128 << 20 };

/// Steps of a script at most.
const MOST_STEPS: usize = 64;

/// What a hostile seed does next.
#[derive(Debug, Clone)]
enum Step {
    /// Sends these bytes.
    Raw(Vec<u8>),
    /// Welcomes the reader, as a right seed does.
    Welcome,
    /// Waits until it is asked for something.
    Asked,
    /// Sends the next chunk that it was asked for, with this bit of it changed.
    Chunk { flip: Option<u8> },
    /// Says that the next chunk has so many bytes more, and sends them.
    Longer(u8),
    /// Sends a chunk that it was not asked for.
    Other(u32),
    /// Says that the next chunk is not there yet.
    NotYet,
    /// Says that the next chunk does not come.
    Failed,
    /// Announces so many chunks from this one on.
    Held(u32, u8),
    /// The same with their digests, of which the first has this bit changed.
    Digested { first: u32, count: u8, flip: Option<u8> },
    /// Says which content it is, or that it is another one.
    Final { is_right: bool },
    /// Says that it lives.
    Alive(u8),
    /// Ends the connection; the next one goes on.
    Close,
}

fn script(data: &[u8]) -> VecDeque<Step> {
    let mut bytes = data.iter().copied();
    let mut steps = VecDeque::new();
    while let (Some(what), true) = (bytes.next(), steps.len() < MOST_STEPS) {
        let mut next = || bytes.next().unwrap_or_default();
        steps.push_back(match what % 11 {
            0 => Step::Welcome,
            1 => Step::Asked,
            2 => Step::Chunk { flip: None },
            3 => Step::Chunk { flip: Some(next()) },
            4 => Step::Longer(next()),
            5 => Step::Other(next().into()),
            6 => Step::NotYet,
            7 => Step::Failed,
            8 => match next() {
                255 => Step::Alive(next()),
                254 => Step::Digested { first: next().into(), count: next(), flip: None },
                253 => Step::Digested { first: next().into(), count: next(), flip: Some(next()) },
                252 => Step::Final { is_right: true },
                251 => Step::Final { is_right: false },
                first => Step::Held(first.into(), next()),
            },
            9 => {
                let length = usize::from(next());
                Step::Raw(bytes.by_ref().take(length).collect())
            }
            _ => Step::Close,
        });
    }
    steps
}

struct Reader {
    engine: TcpEngine,
    listener: TcpListener,
    metadata: Metadata,
    content: Content,
    /// The id that the content has for this reader, who makes it of its own manifest.
    id: ContentId,
}

/// What names the bytes while they have no content id.
const ORIGIN: Origin = Origin([3; 32]);

impl Reader {
    fn new(runtime: &Runtime, options: &TcpOptions) -> Self {
        let (engine, listener) = runtime.block_on(async {
            let engine = TcpEngine::bind(options.clone()).await.unwrap();
            (engine, TcpListener::bind("127.0.0.1:0").await.unwrap())
        });
        let tensor = |(name, bytes): (&str, u64)| Tensor {
            name: name.into(),
            address: 0,
            count: bytes,
            element_bytes: 1,
            shape: None,
            dtype: None,
            format: None,
        };
        let manifest = Manifest::new(["a", "b"].into_iter().zip(TENSORS).map(tensor).collect()).unwrap();
        let session = listener.local_addr().unwrap().to_string();
        let id = content_id(&manifest, &content().chunks);
        let metadata = Metadata { session, manifest, extension: None };
        Self { engine, listener, metadata, content: content(), id }
    }
}

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    loads(data, &options());
}

/// Whether the model is loaded from a seed that does this.
fn loads(data: &[u8], options: &TcpOptions) -> bool {
    let Some((how, data)) = data.split_first() else { return false };
    let runtime = runtime();
    let reader = Reader::new(&runtime, options);
    let tried = tried(&reader, how % 2 == 1, how % 4 == 3, script(data));
    runtime.block_on(async { timeout(HANGS, tried).await.expect("it hangs") })
}

async fn tried(reader: &Reader, loading: bool, grows: bool, steps: VecDeque<Step>) -> bool {
    let (told, asked): (Vec<_>, Vec<_>) =
        steps.into_iter().enumerate().partition(|(at, _)| loading && at % 2 == 1);
    let steps = |steps: Vec<(usize, Step)>| steps.into_iter().map(|(_, step)| step).collect::<VecDeque<_>>();
    let steps = [steps(asked), steps(told)].map(|steps| Arc::new(Mutex::new(steps)));
    let memory = memory(&[]);
    let state = Arc::new(watch::Sender::new(SourceState::default()));
    let cancel = CancellationToken::new();
    let root = if grows {
        let Content { chunks, .. } = &reader.content;
        let (algorithm, chunk_bytes) = (chunks.algorithm, chunks.chunk_bytes);
        Root::Growing(Growing { origin: ORIGIN, algorithm, chunk_bytes })
    } else {
        Root::Content(reader.content.clone())
    };
    let request = ReadRequest {
        key: None,
        seed: &reader.metadata,
        manifest: &reader.metadata.manifest,
        root: Some(&root),
        memory: &memory,
        loading: loading.then_some(&state),
        held: None,
        in_a_chain: false,
        point: None,
        cancel: &cancel,
    };
    let seed = async {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = reader.listener.accept().await.unwrap();
            connections.spawn(connection(stream, steps.clone(), root.name(), reader.id));
        }
    };
    let read = tokio::select! {
        read = reader.engine.read(request) => read,
        () = seed => return false,
    };
    check(&memory);
    match &read {
        Ok(report) => {
            let bytes = TENSORS.iter().sum::<u64>();
            assert!(memory.all_held() && (report.chunks, report.bytes) == (3, bytes));
            if grows {
                let named = memory.content().expect("nothing is complete that has no content id");
                assert_eq!(named.id, content_id(&reader.metadata.manifest, &named.chunks));
                assert_eq!(memory.chunk_digests(DigestAlgorithm::default()).as_ref(), Some(&named.chunks));
            }
        }
        Err(error) => is_one_line(error),
    }
    read.is_ok()
}

/// What is held has the model's bytes, and nobody is left who writes.
fn check(memory: &Arc<WeightMemory>) {
    for chunk in 0..memory.plan().count() {
        let Some(reader) = memory.begin_read(chunk) else {
            assert!(memory.begin_write(chunk).is_some(), "somebody still writes chunk {chunk}");
            continue;
        };
        let mut bytes = bytes_of(chunk);
        reader
            .visit(|piece| {
                bytes = bytes.strip_prefix(piece).expect("a chunk that is held has the model's bytes");
            })
            .unwrap();
        assert!(bytes.is_empty());
    }
}

/// One connection, to the end of the script, or until the reader goes.
async fn connection(
    mut stream: TcpStream,
    steps: [Arc<Mutex<VecDeque<Step>>>; 2],
    root: [u8; 32],
    id: ContentId,
) {
    let mut hello = [0; HELLO_BYTES];
    if stream.read_exact(&mut hello).await.is_err() {
        return;
    }
    let (hello, _) = Hello::decode(&hello).expect("a reader greets");
    assert_eq!((hello.version, hello.root), (VERSION, root));
    let steps = &steps[usize::from(hello.features & ANNOUNCEMENTS != 0)];
    let mut asked = VecDeque::new();
    loop {
        let step = steps.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(step) = step else { return };
        let Some(bytes) = said(&mut stream, step, &mut asked, hello.features, id).await else { return };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What a step has the seed send. `None` at the end of the connection.
async fn said(
    stream: &mut TcpStream,
    step: Step,
    asked: &mut VecDeque<u32>,
    features: u32,
    id: ContentId,
) -> Option<Vec<u8>> {
    let mut next = || asked.pop_front().unwrap_or_default();
    let answer = |answer: Answer, bytes: &[u8]| [&answer.encode(), bytes].concat();
    Some(match step {
        Step::Raw(bytes) => bytes,
        Step::Close => return None,
        Step::Welcome => Welcome {
            refusal: None,
            version: VERSION,
            features,
            chunk_size: TENSORS[0] / 2,
            chunk_count: 3,
            max_chunks_per_read: MAX_CHUNKS_PER_READ,
        }
        .encode()
        .to_vec(),
        Step::Asked => {
            asked.extend(read(stream).await?);
            Vec::new()
        }
        Step::Chunk { flip } => {
            let chunk = next();
            let mut bytes = bytes_of(chunk).to_vec();
            if let Some(flip) = flip {
                let at = usize::from(flip) * bytes.len() / 256;
                bytes[at] ^= 1;
            }
            answer(Answer::Chunk { chunk, len_bytes: bytes.len() as u64 }, &bytes)
        }
        Step::Longer(more) => {
            let chunk = next();
            let bytes = [bytes_of(chunk), &vec![0; more.into()]].concat();
            answer(Answer::Chunk { chunk, len_bytes: bytes.len() as u64 }, &bytes)
        }
        Step::Other(chunk) => {
            answer(Answer::Chunk { chunk, len_bytes: bytes_of(chunk).len() as u64 }, bytes_of(chunk))
        }
        Step::NotYet => answer(Answer::NotYet { chunk: next() }, &[]),
        Step::Failed => answer(Answer::Failed { chunk: next(), failure: Failure::NotHeld }, &[]),
        Step::Held(first, count) => {
            let chunks = first..first.saturating_add(count.into());
            Announcement::held(chunks).iter().flat_map(Announcement::encode).collect()
        }
        Step::Digested { first, count, flip } => {
            let digests = &content().chunks.digests;
            let none = Digest::crc64_nvme(0);
            let digest = |chunk: u32| digests.get(chunk as usize).copied().unwrap_or(none);
            let mut chunks: Vec<(u32, Digest)> = (0..count.into())
                .map(|more| first.saturating_add(more))
                .map(|chunk| (chunk, digest(chunk)))
                .collect();
            if let (Some(flip), Some((_, digest))) = (flip, chunks.first_mut()) {
                let mut bytes = digest.as_bytes().to_vec();
                bytes[usize::from(flip / 8) % 8] ^= 1 << (flip % 8);
                *digest = Digest::from_bytes(digest.algorithm(), &bytes).unwrap_or(none);
            }
            Announcement::digested(&chunks).iter().flat_map(Announcement::encode).collect()
        }
        Step::Final { is_right } => Announcement::Final(if is_right { id.hash } else { [0; 32] }).encode(),
        Step::Alive(silent_ms) => {
            Announcement::Alive(SignOfLife { has_source: silent_ms % 2 == 1, silent_ms: silent_ms.into() })
                .encode()
        }
    })
}

/// The chunks of the next request.
async fn read(stream: &mut TcpStream) -> Option<Vec<u32>> {
    let mut head = [0; READ_BYTES];
    stream.read_exact(&mut head).await.ok()?;
    let ranges = Read::decode_head(&head).expect("a reader asks as it should");
    let mut bytes = vec![0; ranges * RANGE_BYTES];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(Read::decode_ranges(&bytes).expect("a reader asks as it should").chunks().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who answers right is read from, so that the scripts lead as far as they should.
    #[test]
    fn a_seed_that_does_right_is_read_and_one_that_does_not_is_not() {
        let patient = TcpOptions { connect_timeout: HANGS, progress_timeout: HANGS, ..options() };
        let right = [0, 0, 1, 2, 2, 2];
        let corrected = [0, 0, 1, 3, 128, 10, 0, 1, 2, 2, 2];
        for (script, is_read) in [
            (&right[..], true),
            (&corrected, true),
            (&[0, 0, 1, 3, 128, 10, 0, 1, 2, 2, 3, 0], false),
            (&[0, 0, 1, 4, 1, 2], false),
            (&[0, 0, 1, 5, 2], false),
            (&[1, 0, 0, 1, 8, 2, 9], false),
            // Bytes that have no content id: FINAL, none, a wrong one, one too soon, and a wrong digest.
            (&[3, 0, 0, 1, 8, 254, 0, 3, 2, 8, 252, 2, 1, 2], true),
            (&[3, 0, 0, 1, 8, 254, 0, 3, 2, 10, 2, 10, 2], false),
            (&[3, 0, 0, 1, 8, 254, 0, 3, 2, 8, 251, 2, 1, 2], false),
            (&[3, 0, 0, 1, 8, 254, 0, 2, 2, 8, 252, 2, 1, 2], false),
            (&[3, 0, 0, 1, 8, 253, 0, 3, 5, 2, 8, 252, 2, 1, 2], false),
        ] {
            assert_eq!(loads(script, &patient), is_read, "{script:?}");
        }
    }
}
