//! The TCP engine's seed against a hostile stream.
//!
//! An input is what a reader sends, then nothing more; its first byte says in pieces of which size. The engine sends from
//! memory straight to a socket, so there is one, on loopback.

use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::TransferEngine;
use rfork_loader::engine::tcp::{TcpEngine, TcpOptions};
use rfork_protocol::Host;
use rfork_protocol::frame::{
    ANNOUNCEMENT_BYTES, ANNOUNCEMENTS, ANSWER_BYTES, Announcement, Answer, HELLO_BYTES, Head, Hello, POINT,
    WELCOME_BYTES, Welcome,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::tcp::{CONTENT, HANGS, TENSORS, bytes_of, content, memory, options, runtime};
use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target = Target { name: "tcp_server", run, executions: 2_000, most_bytes: |_| 128 << 20 };

/// The longest stream: of more, each range that is asked for is another quarter of a MiB.
const MOST_BYTES: usize = 1_024;
/// Chunks that the seed holds. It waits for the other one.
const HELD: [u32; 2] = [0, 2];

struct Seed {
    runtime: Runtime,
    engine: TcpEngine,
    address: String,
}

impl Seed {
    fn start() -> Self {
        let runtime = runtime();
        let engine = runtime.block_on(async {
            let memory = memory(&HELD);
            memory.set_content(content());
            // Whoever reads well is greeted however slow the machine is.
            let options = TcpOptions {
                connect_timeout: HANGS,
                progress_timeout: HANGS,
                idle_timeout: HANGS,
                ..options()
            };
            let engine = TcpEngine::bind(options).await.unwrap();
            engine.register(memory).await.unwrap();
            engine
        });
        let address = engine.session(&Host::from(engine.address().ip()));
        Self { runtime, engine, address }
    }
}

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    thread_local! {
        static SEED: Seed = Seed::start();
    }
    SEED.with(|seed| {
        let tried = async {
            let said = answered(&seed.address, &data[..data.len().min(MOST_BYTES)]).await;
            check(&said, data.get(1..).unwrap_or_default());
            // Whoever else comes is greeted.
            if let Err(error) = seed.engine.greet(&seed.address, CONTENT).await {
                is_one_line(&error);
                panic!("{error}");
            }
        };
        seed.runtime.block_on(async { timeout(HANGS, tried).await.expect("it hangs") });
    });
}

/// All that the seed sends to who sends this. What was on its way when it closed may be lost.
async fn answered(address: &str, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (size, data) = data.split_first().map_or((1, data), |(size, data)| (usize::from(*size).max(1), data));
    for piece in data.chunks(size) {
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let _ = stream.shutdown().await;
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    said
}

/// What the seed said is made of whole frames, but for the last, and their chunks have the model's bytes.
fn check(said: &[u8], asked: &[u8]) {
    let Some((welcome, mut rest)) = said.split_first_chunk::<WELCOME_BYTES>() else { return };
    let hello: &[u8; HELLO_BYTES] = asked.first_chunk().expect("only a greeting is answered");
    let (hello, _) = Hello::decode(hello).expect("only a greeting is answered");
    let welcome = Welcome::decode(welcome).unwrap();
    if welcome.refusal.is_some() {
        assert!(rest.is_empty(), "nothing follows a refusal");
        return;
    }
    assert_eq!(hello.root, CONTENT.hash);
    assert_eq!((welcome.chunk_size, welcome.chunk_count), (TENSORS[0] / 2, 3));
    assert_eq!(welcome.features, hello.features & (ANNOUNCEMENTS | POINT));
    let next = if welcome.features & ANNOUNCEMENTS == 0 { answer } else { announcement };
    while let Some(after) = next(rest) {
        rest = after;
    }
}

/// What follows an answer; `None` when it is the last one.
fn answer(said: &[u8]) -> Option<&[u8]> {
    let (answer, rest) = said.split_first_chunk::<ANSWER_BYTES>()?;
    match Answer::decode(answer).unwrap() {
        Answer::Chunk { chunk, len_bytes } => {
            let bytes = bytes_of(chunk);
            assert!(HELD.contains(&chunk) && len_bytes == bytes.len() as u64);
            let came = bytes.len().min(rest.len());
            assert!(rest[..came] == bytes[..came], "the bytes of chunk {chunk} are others");
            Some(&rest[came..])
        }
        Answer::NotYet { chunk } => {
            assert_eq!(chunk, 1);
            Some(rest)
        }
        Answer::Failed { chunk, .. } => {
            assert!(!HELD.contains(&chunk) && rest.is_empty(), "nothing follows a failure");
            None
        }
    }
}

/// The same of an announcement.
fn announcement(said: &[u8]) -> Option<&[u8]> {
    let (head, rest) = said.split_first_chunk::<ANNOUNCEMENT_BYTES>()?;
    let Head::Held { ranges_bytes } = Announcement::decode_head(head, DigestAlgorithm::Crc64Nvme).unwrap()
    else {
        return Some(rest);
    };
    let (ranges, rest) = rest.split_at_checked(ranges_bytes)?;
    let ranges = Announcement::decode_ranges(ranges, 3).unwrap();
    assert!(ranges.iter().flat_map(rfork_protocol::frame::Range::chunks).all(|chunk| HELD.contains(&chunk)));
    Some(rest)
}
