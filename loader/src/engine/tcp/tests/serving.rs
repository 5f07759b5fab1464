//! A seed and readers that are greedy, silent or foreign.

use super::*;
use rfork_protocol::frame::{ANSWER_BYTES, Answer, Failure, Hello, Read, Refusal, WELCOME_BYTES, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Connects, sends `bytes` and reads until the seed closes.
async fn shout(seed: &Seed, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(seed.engine.address()).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(HANGS, stream.read_to_end(&mut answer)).await.expect("the seed closes");
    answer
}

/// A reader's connection to a seed, greeted, and what the seed said.
async fn greeted(seed: &Seed) -> (TcpStream, Welcome) {
    let mut stream = TcpStream::connect(seed.engine.address()).await.unwrap();
    let hello = Hello { version: 1, features: 0, root: seed.content.id.hash, identity: vec![] };
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
    let seed = seed(&[2 * CHUNK], 1, TcpOptions { connect_timeout: 2 * HANGS, ..options() }).await;
    assert_eq!(shout(&seed, b"GET / HTTP/1.1\r\n\r\n").await, b"");
    assert_eq!(shout(&seed, b"X").await, b"", "one wrong byte is enough");
    let hello = Hello { version: 1, features: 0, root: seed.content.id.hash, identity: vec![1; 100] };
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
    let hello = Hello { version: 9, features: 1, root: seed.content.id.hash, identity: vec![] };
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
    let hello = Hello { version: 1, features: 0, root: seed.content.id.hash, identity: vec![] };
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
async fn a_reader_that_takes_a_little_now_and_then_is_dropped() {
    // More than it takes, whatever machine this is.
    let options =
        TcpOptions { progress_timeout: Duration::from_secs(1), least_bytes_per_sec: 1 << 40, ..options() };
    let seed = seed(&[64 * CHUNK], 1, options).await;
    let reader = TcpSocket::new_v4().unwrap();
    reader.set_recv_buffer_size(64 << 10).unwrap();
    let mut reader = reader.connect(seed.engine.address()).await.unwrap();
    let hello = Hello { version: 1, features: 0, root: seed.content.id.hash, identity: vec![] };
    reader.write_all(&hello.encode().unwrap()).await.unwrap();
    let all: Vec<u32> = (0..64).collect();
    reader.write_all(&Read::new(&all).unwrap().encode()).await.unwrap();
    let mut piece = vec![0; 64 << 10];
    let taking = async {
        let mut total = 0;
        // Often enough that the seed's socket has room again within the deadline.
        loop {
            match reader.read(&mut piece).await {
                Ok(0) | Err(_) => return total,
                Ok(read) => total += read as u64,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let total = tokio::time::timeout(HANGS, taking).await.expect("the seed closed it");
    assert!(total < 64 * CHUNK, "{total}");
}

#[tokio::test]
async fn readers_are_bounded_and_the_rest_is_told_so() {
    let seed = seed(&[8 * CHUNK], 1, TcpOptions { max_readers: 1, ..paid_by_a_chunk() }).await;
    let (mut holder, _) = greeted(&seed).await;
    assert_eq!(ask(&mut holder, 0).await, Answer::Chunk { chunk: 0, len_bytes: CHUNK });
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
    let seed =
        seed(&[CHUNK], 1, TcpOptions { max_readers: 1, connect_timeout: 2 * HANGS, ..options() }).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(seed.engine.address()).await.unwrap());
    }
    seed.read(&seed.empty_memory()).await.unwrap();
}

/// Whoever has taken a chunk may idle for longer than any test lasts.
fn paid_by_a_chunk() -> TcpOptions {
    TcpOptions { progress_timeout: HANGS, least_bytes_per_sec: 1, ..options() }
}

/// Whether the seed closes the connection, on which it sends nothing more.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(HANGS, stream.read(&mut [0])).await.expect("it is closed");
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test]
async fn however_many_peers_say_nothing_readers_are_greeted() {
    // Nobody is closed for being slow.
    let seed = seed(&[CHUNK], 1, TcpOptions { connect_timeout: HANGS, ..options() }).await;
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(seed.engine.address()).await.unwrap();
        if number % 2 == 0 {
            // The beginning of a greeting says nothing yet.
            stream.write_all(&rfork_protocol::frame::MAGIC[..4]).await.unwrap();
        }
        silent.push(stream);
    }
    seed.read(&seed.empty_memory()).await.unwrap();
    assert!(is_closed(&mut silent[0]).await, "the oldest has made room");
    // The youngest are there yet.
    let last = silent.last().unwrap().try_read(&mut [0]);
    assert!(last.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn readers_that_ask_for_nothing_make_room_and_those_that_do_stay() {
    let seed = seed(
        &[4 * CHUNK],
        1,
        TcpOptions { max_readers: 4, idle_timeout: HANGS, connect_timeout: HANGS, ..paid_by_a_chunk() },
    )
    .await;
    let (mut reader, _) = greeted(&seed).await;
    assert_eq!(ask(&mut reader, 0).await, Answer::Chunk { chunk: 0, len_bytes: CHUNK });
    reader.read_exact(&mut vec![0; CHUNK as usize]).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..7 {
        let (stream, welcome) = greeted(&seed).await;
        assert_eq!(welcome.refusal, None);
        idle.push(stream);
    }
    let memory = seed.empty_memory();
    seed.read(&memory).await.unwrap();
    assert!(bytes(&memory) == bytes(&seed.memory));
    assert!(is_closed(&mut idle[0]).await, "the first that asked for nothing");
    assert_eq!(ask(&mut reader, 1).await, Answer::Chunk { chunk: 1, len_bytes: CHUNK }, "who reads stays");
}

#[tokio::test]
async fn who_idles_for_longer_than_a_chunk_pays_for_makes_room_unless_its_point_is_leased() {
    // A chunk pays for nothing.
    let options =
        TcpOptions { max_readers: 1, idle_timeout: HANGS, least_bytes_per_sec: u64::MAX, ..options() };
    let seed = seed(&[2 * CHUNK], 1, options).await;
    let point = LeasedPoint { number: 0, since_ms: 1 };
    for leased in [None, Some(point)] {
        let mut idle = TcpStream::connect(seed.engine.address()).await.unwrap();
        let hello = Hello { version: 1, features: 0, root: seed.content.id.hash, identity: vec![] };
        let hello = match leased {
            Some(point) => hello.holding(point),
            None => hello,
        };
        idle.write_all(&hello.encode().unwrap()).await.unwrap();
        idle.read_exact(&mut [0; WELCOME_BYTES]).await.unwrap();
        assert_eq!(ask(&mut idle, 0).await, Answer::Chunk { chunk: 0, len_bytes: CHUNK });
        idle.read_exact(&mut vec![0; CHUNK as usize]).await.unwrap();
        let room = async {
            // It falls silent a moment after its chunk was counted.
            while leased.is_none() && greeted(&seed).await.1.refusal.is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(HANGS, room).await.expect("it makes room");
        if leased.is_none() {
            assert!(is_closed(&mut idle).await);
        } else {
            assert_eq!(greeted(&seed).await.1.refusal, Some(Refusal::Busy));
        }
    }
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
    let other = Content { id: ContentId { hash: [9; 32], ..seed.content.id }, ..seed.content.clone() };
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
async fn unregistering_ends_readers_and_gives_the_memory_up() {
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 4.0), ..options() };
    let seed = seed(&[64 * CHUNK], 1, slow).await;
    let memory = seed.empty_memory();
    let cancel = CancellationToken::new();
    let session = session(&seed.engine);
    let reader = options();
    let reading = seed.read_at(&session, &memory, &reader, &cancel);
    let ending = async {
        begun(&memory).await;
        seed.engine.unregister().await.unwrap();
    };
    let (read, ()) = tokio::join!(reading, ending);
    assert!(matches!(read, Err(ReadError::Lost { .. })), "{read:?}");
    seed.memory.forget_all().expect("nobody reads any more");
    assert_eq!(Arc::strong_count(&seed.memory), 1, "the engine has let go of it");
    assert!(matches!(seed.read(&seed.empty_memory()).await, Err(ReadError::Refused { .. })));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_point_later_ends_the_connections_of_who_had_it_before() {
    // Of one reader, so that the next one finds room only when the first has gone.
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 64.0), max_readers: 1, ..options() };
    let seed = seed(&[64 * CHUNK], 1, slow).await;
    let one = TcpOptions { streams: 1, ..options() };
    let cancel = CancellationToken::new();
    let read = async |memory: &Arc<WeightMemory>, since_ms| {
        let request = ReadRequest {
            seed: &seed.metadata,
            manifest: &seed.metadata.manifest,
            root: Some(&seed.root()),
            memory,
            loading: None,
            held: None,
            in_a_chain: false,
            key: None,
            point: Some(LeasedPoint { number: 0, since_ms }),
            cancel: &cancel,
        };
        client::read(&one, request).await
    };
    let (first, second) = (seed.empty_memory(), seed.empty_memory());
    let next = async {
        begun(&first).await;
        read(&second, 6).await
    };
    let (lost, whole) = tokio::join!(read(&first, 5), next);
    assert!(matches!(lost, Err(ReadError::Lost { .. })), "{lost:?}");
    assert_eq!(whole.unwrap().chunks, 64);
    assert!(bytes(&second) == bytes(&seed.memory));
    // Nobody has the point now.
    assert!(read(&first, 5).await.is_ok(), "what was held is kept, and the rest comes");
}
