//! Two engines over loopback, and peers that misbehave between them.

#![allow(clippy::cast_possible_truncation)] // Patterns of bytes, and sizes of a few chunks.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use proptest::prelude::*;
use rfork_protocol::frame::{
    ANSWER_BYTES, Answer, Failure, HELLO_BYTES, Hello, RANGE_BYTES, READ_BYTES, Read, Refusal, WELCOME_BYTES,
    Welcome,
};
use rfork_protocol::manifest::content::{ContentId, content_id};
use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::chunks::MIN_CHUNK_BYTES;
use crate::digest::DigestAlgorithm;
use crate::engine::memory::Content;

const CHUNK: u64 = MIN_CHUNK_BYTES;

/// What takes longer hangs.
const HANGS: Duration = Duration::from_secs(300);

fn options() -> TcpOptions {
    let mut options = TcpOptions::new(Some("127.0.0.1"));
    options.connect_timeout = Duration::from_secs(2);
    options.progress_timeout = Duration::from_secs(2);
    options.not_yet_interval = Duration::from_millis(20);
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

/// Fills chunk `chunk` with bytes that tell their place and `salt`.
fn fill(memory: &Arc<WeightMemory>, chunk: u32, salt: u8) {
    let mut writer = memory.begin_write(chunk).unwrap();
    let bytes: Vec<u8> =
        (0..writer.len()).map(|at| (at as u8) ^ (chunk as u8) ^ salt ^ ((at >> 8) as u8)).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
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
    let memory = WeightMemory::allocate(sizes).unwrap();
    for chunk in 0..memory.plan().count() {
        fill(&memory, chunk, salt);
    }
    let manifest = manifest(sizes);
    let chunks = memory.chunk_digests(DigestAlgorithm::Crc64Nvme).unwrap();
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
            content: Some(&self.content),
            memory,
            arrived_bytes: &Arc::default(),
            cancel,
        };
        client::read(options, request).await
    }

    async fn read(&self, memory: &Arc<WeightMemory>) -> Result<ReadReport, ReadError> {
        self.read_at(&session(&self.engine), memory, &options(), &CancellationToken::new()).await
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

/// A byte in the first chunk of a connection.
const IN_FIRST_CHUNK: usize = WELCOME_BYTES + ANSWER_BYTES + 1_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn what_is_read_equals_the_seed(sizes in prop::collection::vec(1u64..900_000, 1..12), streams in 1usize..4) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let seed = seed(&sizes, 7, options()).await;
            let memory = seed.empty_memory();
            let options = TcpOptions { streams, ..options() };
            let report = seed.read_at(&session(&seed.engine), &memory, &options, &CancellationToken::new()).await.unwrap();
            assert_eq!((report.chunks, report.bytes), (memory.plan().count(), sizes.iter().sum()));
            assert!(memory.all_held() && bytes(&memory) == bytes(&seed.memory));
            assert_eq!(served(&seed, report.bytes).await, report.bytes, "no chunk is sent twice");
        });
    }
}

#[tokio::test]
async fn a_chunk_that_is_corrupt_in_flight_is_read_again() {
    let seed = seed(&[6 * CHUNK], 1, options()).await;
    let session = session(&seed.engine);
    let flipped = Arc::new(AtomicBool::new(false));
    let (proxy, _task) = peer(move |stream, _| {
        let flipped = flipped.clone();
        relay(stream, session.clone(), move |position, piece| {
            let end = position + piece.len();
            if end > IN_FIRST_CHUNK && !flipped.swap(true, std::sync::atomic::Ordering::SeqCst) {
                flip(IN_FIRST_CHUNK.max(position), position, piece);
            }
            true
        })
    })
    .await;
    let memory = seed.empty_memory();
    let report = seed.read_at(&proxy, &memory, &options(), &CancellationToken::new()).await.unwrap();
    assert_eq!((report.corrected, report.chunks), (1, 6));
    assert!(bytes(&memory) == bytes(&seed.memory));
}

#[tokio::test]
async fn a_chunk_that_is_always_corrupt_fails_and_is_never_held() {
    let seed = seed(&[6 * CHUNK], 1, options()).await;
    let session = session(&seed.engine);
    let (proxy, _task) = peer(move |stream, _| {
        relay(stream, session.clone(), |position, piece| {
            flip(IN_FIRST_CHUNK, position, piece);
            true
        })
    })
    .await;
    let memory = seed.empty_memory();
    let options = TcpOptions { streams: 1, ..options() };
    let error = seed.read_at(&proxy, &memory, &options, &CancellationToken::new()).await.unwrap_err();
    let ReadError::Corrupt { chunk, got, expected, .. } = error else { panic!("{error}") };
    assert_ne!(got, expected);
    assert!(memory.missing().contains(chunk) && memory.begin_read(chunk).is_none());
    // The seed itself is sound: only what is missing is read from it.
    let before = (memory.held_bytes(), seed.engine.served_bytes());
    seed.read(&memory).await.unwrap();
    let expected = before.1 + 6 * CHUNK - before.0;
    assert_eq!(served(&seed, expected).await, expected);
    assert!(bytes(&memory) == bytes(&seed.memory));
}

#[tokio::test]
async fn what_came_before_a_loss_is_kept_and_not_read_again() {
    let (one, two) = (seed(&[40 * CHUNK], 1, options()).await, seed(&[40 * CHUNK], 1, options()).await);
    let session = session(&one.engine);
    let (proxy, _task) = peer(move |stream, _| {
        // Dies in the middle of a chunk.
        relay(stream, session.clone(), |position, _| position < 5 * CHUNK as usize + 777)
    })
    .await;
    let memory = one.empty_memory();
    let error = one.read_at(&proxy, &memory, &options(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ReadError::Lost { .. }), "{error}");
    let held = memory.held_bytes();
    assert!(held > 0 && held < 40 * CHUNK, "{held}");
    two.read(&memory).await.unwrap();
    assert_eq!(two.engine.served_bytes(), 40 * CHUNK - held);
    assert!(bytes(&memory) == bytes(&one.memory));
}

#[tokio::test]
async fn a_seed_that_holds_other_weights_moves_no_byte() {
    let (one, other) = (seed(&[2 * CHUNK], 1, options()).await, seed(&[2 * CHUNK], 2, options()).await);
    let memory = one.empty_memory();
    let asked = one.read_at(&session(&other.engine), &memory, &options(), &CancellationToken::new()).await;
    assert!(matches!(asked, Err(ReadError::Refused { .. })), "{asked:?}");
    assert_eq!((memory.held_bytes(), other.engine.served_bytes()), (0, 0));
}

#[tokio::test]
async fn a_chunk_that_is_not_held_yet_is_waited_for() {
    let seed = seed(&[3 * CHUNK], 1, options()).await;
    let late = WeightMemory::allocate(&[3 * CHUNK]).unwrap();
    late.set_content(seed.content.clone());
    fill(&late, 0, 1);
    let relaying = TcpEngine::bind(options()).await.unwrap();
    relaying.register(late.clone()).await.unwrap();
    let memory = seed.empty_memory();
    // Silence would end the read after this; "not yet" must count as a sign of life.
    let reader = TcpOptions { progress_timeout: Duration::from_millis(200), ..options() };
    let cancel = CancellationToken::new();
    let session = session(&relaying);
    let reading = seed.read_at(&session, &memory, &reader, &cancel);
    let filling = async {
        while memory.held_bytes() < CHUNK {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        fill(&late, 2, 1);
        fill(&late, 1, 1);
    };
    let (report, ()) = tokio::join!(reading, filling);
    assert_eq!(report.unwrap().chunks, 3);
    assert!(bytes(&memory) == bytes(&seed.memory));
}

#[tokio::test]
async fn waiting_for_a_chunk_has_an_end_on_both_sides() {
    let seed = seed(&[3 * CHUNK], 1, options()).await;
    let never = WeightMemory::allocate(&[3 * CHUNK]).unwrap();
    never.set_content(seed.content.clone());
    for (held_ms, not_yet_ms, expected) in [(100, 60_000, "in vain"), (60_000, 100, "did not come")] {
        let server = TcpOptions { held_timeout: Duration::from_millis(held_ms), ..options() };
        let engine = TcpEngine::bind(server).await.unwrap();
        engine.register(never.clone()).await.unwrap();
        let reader = TcpOptions { not_yet_timeout: Duration::from_millis(not_yet_ms), ..options() };
        let memory = seed.empty_memory();
        let error =
            seed.read_at(&session(&engine), &memory, &reader, &CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_silent_seed_costs_one_time_out() {
    let seed = seed(&[2 * CHUNK], 1, options()).await;
    let (silent, _task) = peer(|stream, _| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    // Only this limit can end it.
    let reader =
        TcpOptions { connect_timeout: Duration::from_millis(300), progress_timeout: HANGS, ..options() };
    let error =
        seed.read_at(&silent, &seed.empty_memory(), &reader, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ReadError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn a_seed_that_lies_is_caught_and_memory_stays_empty() {
    let seed = seed(&[2 * CHUNK], 1, options()).await;
    let lies: [(&str, Vec<u8>); 4] = [
        ("announced", Answer::Chunk { chunk: 0, len_bytes: u64::MAX }.encode().to_vec()),
        ("answered for chunk 1", Answer::Chunk { chunk: 1, len_bytes: CHUNK }.encode().to_vec()),
        ("answered for chunk 99", Answer::NotYet { chunk: 99 }.encode().to_vec()),
        ("unknown answer", vec![77; ANSWER_BYTES]),
    ];
    for (expected, lie) in lies {
        let plan = seed.memory.plan();
        let (chunk_size, chunk_count) = (plan.chunk_size(), plan.count());
        let (liar, _task) = peer(move |mut stream, _| {
            let lie = lie.clone();
            async move {
                let mut hello = [0; HELLO_BYTES];
                stream.read_exact(&mut hello).await.unwrap();
                let welcome = Welcome {
                    refusal: None,
                    version: 1,
                    features: 0,
                    chunk_size,
                    chunk_count,
                    max_chunks_per_read: 1,
                };
                stream.write_all(&welcome.encode()).await.unwrap();
                let _ = stream.write_all(&lie).await;
                // Held open until the reader closes.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
        let memory = seed.empty_memory();
        let error = seed.read_at(&liar, &memory, &options(), &CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, ReadError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(memory.held_bytes(), 0);
        assert!(memory.begin_write(0).is_some(), "nothing writes any more");
    }
}

/// Connects, sends `bytes` and reads until the seed closes.
async fn shout(seed: &Seed, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(seed.engine.address()).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer))
        .await
        .expect("the seed closes at once");
    answer
}

/// A reader's connection to a seed, greeted, and what the seed said.
async fn greeted(seed: &Seed) -> (TcpStream, Welcome) {
    let mut stream = TcpStream::connect(seed.engine.address()).await.unwrap();
    let hello = Hello { version: 1, features: 0, content: seed.content.id, identity: vec![] };
    stream.write_all(&hello.encode().unwrap()).await.unwrap();
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome).await.unwrap();
    (stream, Welcome::decode(&welcome).unwrap())
}

/// Asks for a chunk and gives the answer's head.
async fn ask(stream: &mut TcpStream, chunk: u32) -> Answer {
    stream.write_all(&Read::new(&[chunk]).unwrap().encode()).await.unwrap();
    let mut head = [0; ANSWER_BYTES];
    stream.read_exact(&mut head).await.unwrap();
    Answer::decode(&head).unwrap()
}

#[tokio::test]
async fn a_foreign_or_lying_reader_costs_only_its_connection() {
    let seed =
        seed(&[2 * CHUNK], 1, TcpOptions { connect_timeout: Duration::from_secs(30), ..options() }).await;
    assert_eq!(shout(&seed, b"GET / HTTP/1.1\r\n\r\n").await, b"");
    assert_eq!(shout(&seed, b"X").await, b"", "one wrong byte is enough");
    let hello = Hello { version: 1, features: 0, content: seed.content.id, identity: vec![1; 100] };
    let greeting = hello.encode().unwrap();
    for lie in
        [vec![9; 8], vec![1, 0, 255, 255, 0, 0, 0, 0], [vec![1, 0, 1, 0, 0, 0, 0, 0], vec![255; 8]].concat()]
    {
        assert_eq!(shout(&seed, &[greeting.clone(), lie].concat()).await.len(), WELCOME_BYTES);
    }
    let no_such_chunk = [greeting, Read::new(&[2]).unwrap().encode()].concat();
    assert_eq!(shout(&seed, &no_such_chunk).await.len(), WELCOME_BYTES + ANSWER_BYTES);
    seed.read(&seed.empty_memory()).await.unwrap();
}

#[tokio::test]
async fn another_version_is_told_which_one_is_spoken() {
    let seed = seed(&[CHUNK], 1, options()).await;
    let hello = Hello { version: 9, features: 1, content: seed.content.id, identity: vec![] };
    let answer = shout(&seed, &hello.encode().unwrap()).await;
    let welcome = Welcome::decode(answer[..].try_into().unwrap()).unwrap();
    assert_eq!((welcome.refusal, welcome.version), (Some(Refusal::Version), 1));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_dropped_and_others_are_served() {
    let seed =
        seed(&[64 * CHUNK], 1, TcpOptions { progress_timeout: Duration::from_millis(300), ..options() })
            .await;
    let mut stalled = TcpStream::connect(seed.engine.address()).await.unwrap();
    let hello = Hello { version: 1, features: 0, content: seed.content.id, identity: vec![] };
    stalled.write_all(&hello.encode().unwrap()).await.unwrap();
    let all: Vec<u32> = (0..64).collect();
    stalled.write_all(&Read::new(&all).unwrap().encode()).await.unwrap();
    seed.read(&seed.empty_memory()).await.unwrap();
    // What was sent before the seed gave up can still be read; then the connection ends.
    let mut sink = vec![0; 1 << 20];
    let drained = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        let mut total = 0;
        while let Ok(read) = stalled.read(&mut sink).await {
            if read == 0 {
                break;
            }
            total += read;
        }
        total
    };
    let total = tokio::time::timeout(HANGS, drained).await.expect("the seed closed it");
    assert!((total as u64) < 64 * CHUNK, "{total}");
}

#[tokio::test]
async fn readers_are_bounded_and_the_rest_is_told_so() {
    let seed = seed(&[8 * CHUNK], 1, TcpOptions { max_readers: 1, ..options() }).await;
    let (holder, _) = greeted(&seed).await;
    let memory = seed.empty_memory();
    let error = seed.read(&memory).await.unwrap_err().to_string();
    assert!(error.contains("rfork_seed_max_readers"), "{error}");
    drop(holder);
    // One connection of two is refused while the other reads: one is enough.
    let served = async {
        while seed.read(&memory).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HANGS, served).await.unwrap();
    assert!(bytes(&memory) == bytes(&seed.memory));
}

#[tokio::test]
async fn peers_that_say_nothing_take_no_readers_place() {
    let seed = seed(
        &[CHUNK],
        1,
        TcpOptions { max_readers: 1, connect_timeout: Duration::from_secs(30), ..options() },
    )
    .await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(seed.engine.address()).await.unwrap());
    }
    seed.read(&seed.empty_memory()).await.unwrap();
}

#[tokio::test]
async fn weights_that_changed_since_the_greeting_are_not_served() {
    let seed = seed(&[2 * CHUNK], 1, options()).await;
    let (mut stream, welcome) = greeted(&seed).await;
    assert_eq!(welcome.refusal, None);
    assert_eq!(ask(&mut stream, 0).await, Answer::Chunk { chunk: 0, len_bytes: CHUNK });
    stream.read_exact(&mut vec![0; CHUNK as usize]).await.unwrap();
    // The seed lets go of a chunk after its last byte was taken.
    while seed.memory.forget_all().is_err() {
        tokio::task::yield_now().await;
    }
    (0..2).for_each(|chunk| fill(&seed.memory, chunk, 2));
    let other = Content { id: ContentId([9; 32]), ..seed.content.clone() };
    seed.memory.set_content(other);
    assert_eq!(ask(&mut stream, 0).await, Answer::Failed { chunk: 0, failure: Failure::NotHeld });
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "and closed");
}

#[tokio::test]
async fn a_throttled_seed_keeps_showing_signs_of_life() {
    // A chunk takes 500 ms, longer than the reader puts up with silence.
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 2.0), ..options() };
    let seed = seed(&[2 * CHUNK], 1, slow).await;
    let reader = TcpOptions { progress_timeout: Duration::from_millis(350), streams: 1, ..options() };
    let memory = seed.empty_memory();
    seed.read_at(&session(&seed.engine), &memory, &reader, &CancellationToken::new()).await.unwrap();
    assert!(bytes(&memory) == bytes(&seed.memory));
}

#[tokio::test]
async fn two_chunks_are_asked_for_ahead_however_large_they_are() {
    let seed = seed(&[4 * CHUNK], 1, options()).await;
    let plan = seed.memory.plan();
    let (chunk_size, chunk_count) = (plan.chunk_size(), plan.count());
    let (asked, mut chunks) = tokio::sync::mpsc::unbounded_channel();
    let (slow, _task) = peer(move |mut stream, _| {
        let asked = asked.clone();
        async move {
            stream.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
            let welcome = Welcome {
                refusal: None,
                version: 1,
                features: 0,
                chunk_size,
                chunk_count,
                max_chunks_per_read: 9,
            };
            stream.write_all(&welcome.encode()).await.unwrap();
            let mut head = [0; READ_BYTES];
            stream.read_exact(&mut head).await.unwrap();
            let mut ranges = vec![0; Read::decode_head(&head).unwrap() * RANGE_BYTES];
            stream.read_exact(&mut ranges).await.unwrap();
            asked.send(Read::decode_ranges(&ranges).unwrap().chunks().collect::<Vec<_>>()).unwrap();
        }
    })
    .await;
    let reader = TcpOptions { window_bytes: 1, streams: 1, ..options() };
    let memory = seed.empty_memory();
    let read = seed.read_at(&slow, &memory, &reader, &CancellationToken::new()).await;
    assert!(matches!(read, Err(ReadError::Lost { .. })), "{read:?}");
    assert_eq!(chunks.recv().await.unwrap(), [0, 1]);
}

#[tokio::test]
async fn unregistering_ends_readers_and_gives_the_memory_up() {
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 4.0), ..options() };
    let seed = seed(&[64 * CHUNK], 1, slow).await;
    let memory = seed.empty_memory();
    let cancel = CancellationToken::new();
    let session = session(&seed.engine);
    let reader = options();
    let reading = seed.read_at(&session, &memory, &reader, &cancel);
    let ending = async {
        while memory.held_bytes() == 0 {
            tokio::task::yield_now().await;
        }
        seed.engine.unregister().await.unwrap();
    };
    let (read, ()) = tokio::join!(reading, ending);
    assert!(matches!(read, Err(ReadError::Lost { .. })), "{read:?}");
    seed.memory.forget_all().expect("nobody reads any more");
    assert_eq!(Arc::strong_count(&seed.memory), 1, "the engine has let go of it");
    assert!(matches!(seed.read(&seed.empty_memory()).await, Err(ReadError::Refused { .. })));
}

#[tokio::test]
async fn a_cancelled_read_leaves_no_writer() {
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 4.0), ..options() };
    let seed = seed(&[64 * CHUNK], 1, slow).await;
    let memory = seed.empty_memory();
    let cancel = CancellationToken::new();
    let session = session(&seed.engine);
    let reader = options();
    let reading = seed.read_at(&session, &memory, &reader, &cancel);
    let ending = async {
        while memory.held_bytes() == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (read, ()) = tokio::join!(reading, ending);
    assert!(matches!(read, Err(ReadError::Cancelled)), "{read:?}");
    memory.forget_all().expect("nobody writes any more");
}

#[tokio::test]
async fn a_seed_sends_no_faster_than_it_may() {
    let rate = 32.0 * CHUNK as f64;
    let seed = seed(&[16 * CHUNK], 1, TcpOptions { max_bytes_per_sec: Some(rate), ..options() }).await;
    let begun = Instant::now();
    let both = [seed.empty_memory(), seed.empty_memory()];
    let (one, two) = tokio::join!(seed.read(&both[0]), seed.read(&both[1]));
    assert_eq!((one.unwrap().chunks, two.unwrap().chunks), (16, 16));
    // 32 chunks at 32 a second; the first goes at once.
    assert!(begun.elapsed() >= Duration::from_millis(960), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn ipv6_peers_are_reached() {
    let Ok(engine) = TcpEngine::bind(TcpOptions::new(Some("::1"))).await else {
        // A machine without IPv6 has nothing to be tested.
        return;
    };
    assert_eq!(session(&engine), format!("[::1]:{}", engine.address().port()));
    let seed = seed(&[CHUNK], 1, TcpOptions::new(Some("::1"))).await;
    seed.read(&seed.empty_memory()).await.unwrap();
}

#[tokio::test]
async fn progress_counts_every_byte_that_arrives() {
    let seed = seed(&[5 * CHUNK], 1, options()).await;
    let (memory, arrived) = (seed.empty_memory(), Arc::default());
    let request = ReadRequest {
        seed: &seed.metadata,
        content: Some(&seed.content),
        memory: &memory,
        arrived_bytes: &arrived,
        cancel: &CancellationToken::new(),
    };
    seed.engine.read(request).await.unwrap();
    assert_eq!(arrived.load(std::sync::atomic::Ordering::Relaxed), 5 * CHUNK);
}
