//! Workers that pass on what they hold while they load.

use rfork_protocol::frame::{
    ANNOUNCEMENT_BYTES, ANNOUNCEMENTS, Announcement, Head, Hello, Range, SignOfLife,
};
use rfork_protocol::manifest::content::{Growing, Origin};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::digest::Digest;
use crate::engine::SourceState;

/// A worker whose engine serves what it holds, under the content of `root`.
struct Relay {
    engine: TcpEngine,
    memory: Arc<WeightMemory>,
    source: Arc<watch::Sender<SourceState>>,
}

async fn relay_of(root: &Seed, options: TcpOptions) -> Relay {
    let memory = root.empty_memory();
    memory.set_content(root.content.clone());
    let engine = TcpEngine::bind(options).await.unwrap();
    engine.register(memory.clone()).await.unwrap();
    Relay { engine, memory, source: Arc::new(watch::Sender::new(SourceState::default())) }
}

impl Relay {
    /// Reads from whoever listens at `session`, who may still load.
    fn read_from(
        &self,
        session: String,
        root: &Seed,
        options: TcpOptions,
    ) -> AbortOnDropHandle<Result<ReadReport, ReadError>> {
        let metadata = Metadata { session, ..root.metadata.clone() };
        let (content, memory, source) = (root.root(), self.memory.clone(), self.source.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let request = ReadRequest {
                seed: &metadata,
                manifest: &metadata.manifest,
                root: Some(&content),
                memory: &memory,
                loading: Some(&source),
                held: None,
                in_a_chain: false,
                key: None,
                point: None,
                cancel: &CancellationToken::new(),
            };
            client::read(&options, request).await
        }))
    }

    fn session(&self) -> String {
        session(&self.engine)
    }
}

/// Waits for what has to come.
async fn until<T>(what: &str, reached: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, reached).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// A connection for announcements to whoever listens at `session`.
async fn following(session: &str, root: [u8; 32]) -> TcpStream {
    let mut stream = TcpStream::connect(session).await.unwrap();
    let hello = Hello { version: 1, features: ANNOUNCEMENTS | 8, root, identity: vec![] };
    stream.write_all(&hello.encode().unwrap()).await.unwrap();
    let mut welcome = [0; rfork_protocol::frame::WELCOME_BYTES];
    stream.read_exact(&mut welcome).await.unwrap();
    let welcome = rfork_protocol::frame::Welcome::decode(&welcome).unwrap();
    assert_eq!((welcome.refusal, welcome.features), (None, ANNOUNCEMENTS), "an unknown bit is not set");
    stream
}

/// The next announcement, if the seed does not close.
async fn announcement(stream: &mut TcpStream) -> Option<Result<Vec<u32>, SignOfLife>> {
    let mut head = [0; ANNOUNCEMENT_BYTES];
    stream.read_exact(&mut head).await.ok()?;
    match Announcement::decode_head(&head, DigestAlgorithm::Crc64Nvme).unwrap() {
        Head::Alive(sign) => Some(Err(sign)),
        Head::Held { ranges_bytes } => {
            let mut ranges = vec![0; ranges_bytes];
            stream.read_exact(&mut ranges).await.ok()?;
            let ranges = Announcement::decode_ranges(&ranges, u32::MAX).unwrap();
            Some(Ok(ranges.iter().flat_map(Range::chunks).collect()))
        }
        other => panic!("{other:?} of bytes that have a content id"),
    }
}

/// The next chunks that are announced.
async fn held(stream: &mut TcpStream) -> Vec<u32> {
    loop {
        if let Ok(chunks) = until("an announcement", announcement(stream)).await.expect("the seed has closed")
        {
            return chunks;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_four_is_loaded_and_the_seed_sends_one_copy() {
    let root = seed(&[40 * CHUNK + 5, 700, 3 * CHUNK], 3, options()).await;
    let mut relays = Vec::new();
    for _ in 0..4 {
        relays.push(relay_of(&root, options()).await);
    }
    // The last one begins first: everybody waits for who is before.
    let mut reads = Vec::new();
    for at in (0..4).rev() {
        let source = if at == 0 { session(&root.engine) } else { relays[at - 1].session() };
        reads.push(relays[at].read_from(source, &root, options()));
    }
    for read in reads {
        let report = until("the end", read).await.unwrap().unwrap();
        assert_eq!(report.chunks, root.memory.plan().count());
    }
    let total = root.memory.plan().total_bytes();
    for relay in &relays {
        assert!(bytes(&relay.memory) == bytes(&root.memory));
        assert_eq!(relay.memory.arrivals().bytes(), total, "no byte comes twice");
    }
    assert_eq!(served(&root, total).await, total, "the seed sends one copy");
}

#[tokio::test]
async fn a_source_that_holds_less_is_asked_for_nothing_else() {
    let root = seed(&[8 * CHUNK], 1, options()).await;
    let (relay, reader) = (relay_of(&root, options()).await, relay_of(&root, options()).await);
    fill(&relay.memory, 5, 1);
    fill(&relay.memory, 2, 1);
    let read = reader.read_from(relay.session(), &root, options());
    until("what is held", async {
        while reader.memory.held_bytes() < 2 * CHUNK {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It waits for more, and is told that the relay lives, and owes it nothing.
    let mut source = reader.source.subscribe();
    until("a sign", source.wait_for(|source| source.sign.silent_ms > 0 && !source.owes)).await.unwrap();
    assert!(!source.borrow().sign.has_source);
    assert_eq!(reader.memory.missing().iter().collect::<Vec<_>>(), [0, 1, 3, 4, 6, 7]);
    for chunk in [7, 0, 1, 3, 4, 6] {
        fill(&relay.memory, chunk, 1);
    }
    assert_eq!(until("the end", read).await.unwrap().unwrap().chunks, 8);
    assert!(bytes(&reader.memory) == bytes(&root.memory));
    assert_eq!(relay.engine.served_bytes(), 8 * CHUNK);
}

#[tokio::test]
async fn what_is_held_is_announced_at_once_and_then_as_it_comes() {
    let root = seed(&[6 * CHUNK], 1, options()).await;
    let relay = relay_of(&root, options()).await;
    for chunk in [3, 1, 2] {
        fill(&relay.memory, chunk, 1);
    }
    let mut stream = following(&relay.session(), root.content.id.hash).await;
    assert_eq!(held(&mut stream).await, [1, 2, 3]);
    // While it is being filled it is not held: only its commit announces it.
    let writer = relay.memory.begin_write(5).unwrap();
    fill(&relay.memory, 4, 1);
    assert_eq!(held(&mut stream).await, [4]);
    drop(writer);
    fill(&relay.memory, 0, 1);
    assert_eq!(held(&mut stream).await, [0], "a chunk that was given up is not announced");
    fill(&relay.memory, 5, 1);
    assert_eq!(held(&mut stream).await, [5]);
    // Everything is held: no byte is due.
    let sign = loop {
        if let Err(sign) = until("a sign", announcement(&mut stream)).await.unwrap() {
            break sign;
        }
    };
    assert_eq!(sign, SignOfLife::default());
}

#[tokio::test]
async fn a_source_that_starts_over_closes_before_it_forgets() {
    let root = seed(&[8 * CHUNK], 1, options()).await;
    let (relay, reader) = (relay_of(&root, options()).await, relay_of(&root, options()).await);
    fill(&relay.memory, 0, 1);
    let read = reader.read_from(relay.session(), &root, options());
    until("a chunk", async {
        while reader.memory.held_bytes() < CHUNK {
            tokio::task::yield_now().await;
        }
    })
    .await;
    relay.engine.unregister().await.unwrap();
    relay.memory.forget_all().expect("nobody reads it any more");
    let error = until("the end", read).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Lost { .. }), "{error}");
    // It comes back with other bytes: under their own name only.
    relay.engine.register(relay.memory.clone()).await.unwrap();
    (0..8).for_each(|chunk| fill(&relay.memory, chunk, 9));
    relay
        .memory
        .set_content(Content { id: ContentId { hash: [9; 32], ..root.content.id }, ..root.content.clone() });
    let again = until("the end", reader.read_from(relay.session(), &root, options())).await.unwrap();
    assert!(matches!(again, Err(ReadError::Refused { .. })), "{again:?}");
    assert_eq!(reader.memory.held_bytes(), CHUNK, "what was held stays");
}

#[tokio::test]
async fn announcements_end_when_the_content_does() {
    let root = seed(&[4 * CHUNK], 1, options()).await;
    let relay = relay_of(&root, options()).await;
    fill(&relay.memory, 0, 1);
    let mut stream = following(&relay.session(), root.content.id.hash).await;
    assert_eq!(held(&mut stream).await, [0]);
    relay.memory.forget_all().unwrap();
    relay.memory.set_content(root.content.clone());
    fill(&relay.memory, 3, 1);
    // The same name, but the reader was told of chunk 0, which is there no more.
    let ended = async {
        while let Some(told) = announcement(&mut stream).await {
            assert!(told.is_err(), "{told:?}");
        }
    };
    until("the end", ended).await;
}

#[tokio::test]
async fn a_relay_that_is_killed_costs_nothing_that_is_held() {
    let root = seed(&[24 * CHUNK], 1, options()).await;
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 16.0), ..options() };
    let (relay, reader) = (relay_of(&root, slow).await, relay_of(&root, options()).await);
    let upstream = relay.read_from(session(&root.engine), &root, options());
    let read = reader.read_from(relay.session(), &root, options());
    begun(&reader.memory).await;
    drop(upstream);
    drop(relay.engine);
    relay.memory.forget_all().ok();
    // Its connections end with its tasks; the reader goes on elsewhere.
    let first = until("the end", read).await.unwrap();
    let held = reader.memory.held_bytes();
    if first.is_err() {
        let rest = until("the end", reader.read_from(session(&root.engine), &root, options()))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest.bytes, 24 * CHUNK - held, "nothing that is held is read again");
    }
    assert!(bytes(&reader.memory) == bytes(&root.memory));
}

#[tokio::test]
async fn a_seed_without_announcements_is_read_as_before() {
    let root = seed(&[8 * CHUNK], 1, options()).await;
    let reader = relay_of(&root, options()).await;
    let to = session(&root.engine);
    // What is told to a seed that knows no features: the bit never reaches it.
    let (old, _task) = peer(move |stream, _| {
        let to = to.clone();
        async move { without_features(stream, to).await }
    })
    .await;
    let read = reader.read_from(old, &root, options());
    assert_eq!(until("the end", read).await.unwrap().unwrap().chunks, 8);
    assert!(bytes(&reader.memory) == bytes(&root.memory));
}

/// Passes everything on, and clears the feature bits of the greeting.
async fn without_features(mut from: TcpStream, to: String) {
    let mut hello = [0; rfork_protocol::frame::HELLO_BYTES];
    from.read_exact(&mut hello).await.unwrap();
    hello[12..16].fill(0);
    let mut to = TcpStream::connect(to).await.unwrap();
    to.write_all(&hello).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
}

#[tokio::test]
async fn a_reader_without_the_bit_is_told_not_yet() {
    use rfork_protocol::frame::{ANSWER_BYTES, Answer, Read};
    let root = seed(&[2 * CHUNK], 1, options()).await;
    let relay = relay_of(&root, options()).await;
    let mut stream = TcpStream::connect(relay.session()).await.unwrap();
    let hello = Hello { version: 1, features: 0, root: root.content.id.hash, identity: vec![] };
    stream.write_all(&hello.encode().unwrap()).await.unwrap();
    stream.read_exact(&mut [0; rfork_protocol::frame::WELCOME_BYTES]).await.unwrap();
    stream.write_all(&Read::new(&[1]).unwrap().encode()).await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 3 {
        let mut head = [0; ANSWER_BYTES];
        until("an answer", stream.read_exact(&mut head)).await.unwrap();
        answers.push(Answer::decode(&head).unwrap());
    }
    assert_eq!(answers, [Answer::NotYet { chunk: 1 }; 3]);
    fill(&relay.memory, 1, 1);
    let chunk = loop {
        let mut head = [0; ANSWER_BYTES];
        until("an answer", stream.read_exact(&mut head)).await.unwrap();
        match Answer::decode(&head).unwrap() {
            Answer::NotYet { .. } => {}
            answer => break answer,
        }
    };
    assert_eq!(chunk, Answer::Chunk { chunk: 1, len_bytes: CHUNK });
}

#[tokio::test]
async fn a_wrong_chunk_is_neither_held_nor_announced() {
    let root = seed(&[3 * CHUNK], 1, options()).await;
    let (relay, liar) = (relay_of(&root, options()).await, relay_of(&root, options()).await);
    // It says that its bytes are the root's.
    (0..3).for_each(|chunk| fill(&liar.memory, chunk, if chunk == 1 { 2 } else { 1 }));
    let mut stream = following(&relay.session(), root.content.id.hash).await;
    let read = relay.read_from(liar.session(), &root, options());
    let error = until("the end", read).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { chunk: 1, .. }), "{error}");
    let mut told = held(&mut stream).await;
    while (told.len() as u64) * CHUNK < relay.memory.held_bytes() {
        told.extend(held(&mut stream).await);
    }
    assert!(!told.contains(&1) && relay.memory.begin_read(1).is_none(), "{told:?}");
}

#[tokio::test]
async fn those_who_follow_take_no_place_of_those_who_read() {
    let root = seed(&[CHUNK], 1, TcpOptions { max_readers: 1, ..options() }).await;
    let follow = async |point: Option<LeasedPoint>| {
        let mut stream = TcpStream::connect(root.engine.address()).await.unwrap();
        let hello =
            Hello { version: 1, features: ANNOUNCEMENTS, root: root.content.id.hash, identity: vec![] };
        let hello = point.map_or(hello.clone(), |point| hello.holding(point));
        stream.write_all(&hello.encode().unwrap()).await.unwrap();
        let mut welcome = [0; rfork_protocol::frame::WELCOME_BYTES];
        stream.read_exact(&mut welcome).await.unwrap();
        (stream, rfork_protocol::frame::Welcome::decode(&welcome).unwrap().refusal)
    };
    let (mut nobodys, refusal) = follow(None).await;
    assert_eq!(refusal, None);
    root.read(&root.empty_memory()).await.unwrap();
    // Whoever has no leased point makes room, and who has one stays.
    let (_leased, refusal) = follow(Some(LeasedPoint { number: 0, since_ms: 1 })).await;
    assert_eq!(refusal, None);
    let _ = until("the end", nobodys.read_to_end(&mut Vec::new())).await;
    assert_eq!(follow(None).await.1, Some(rfork_protocol::frame::Refusal::Busy));
}

/// What names the bytes of `root` while they have no content id.
fn growing(root: &Seed) -> Growing {
    let chunks = &root.content.chunks;
    Growing { origin: Origin([5; 32]), algorithm: chunks.algorithm, chunk_bytes: chunks.chunk_bytes }
}

/// Reads what has grown at `root` into this memory.
async fn read_growing(root: &Seed, memory: &Arc<WeightMemory>) -> Result<ReadReport, ReadError> {
    let source = Arc::new(watch::Sender::new(SourceState::default()));
    let request = ReadRequest {
        seed: &root.metadata,
        manifest: &root.metadata.manifest,
        root: Some(&Root::Growing(growing(root))),
        memory,
        loading: Some(&source),
        held: None,
        in_a_chain: false,
        key: None,
        point: None,
        cancel: &CancellationToken::new(),
    };
    until("the end of the read", client::read(&options(), request)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_stays_another_name_of_what_it_became() {
    for algorithm in DigestAlgorithm::ALL {
        stays_another_name(algorithm).await;
    }
}

async fn stays_another_name(algorithm: DigestAlgorithm) {
    let root = seed_by(algorithm, &[5 * CHUNK + 9], 3, options()).await;
    let memory = root.empty_memory();
    let before = read_growing(&root, &memory).await;
    assert!(matches!(before, Err(ReadError::Refused { .. })), "nothing has that name: {before:?}");
    root.memory.set_growing(growing(&root));
    let report = read_growing(&root, &memory).await.unwrap();
    assert_eq!((report.chunks, memory.content()), (6, Some(Arc::new(root.content.clone()))));
    assert!(bytes(&memory) == bytes(&root.memory));
    let again = root.empty_memory();
    root.read(&again).await.unwrap();
    assert!(again.all_held(), "by its content id as well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_that_the_digests_do_not_make_is_none() {
    let root = seed(&[5 * CHUNK + 9], 3, options()).await;
    root.memory.set_growing(growing(&root));
    root.memory
        .set_content(Content { id: ContentId { hash: [9; 32], ..root.content.id }, ..root.content.clone() });
    let memory = root.empty_memory();
    let read = read_growing(&root, &memory).await;
    assert!(matches!(read, Err(ReadError::Protocol { .. })), "{read:?}");
    assert_eq!(memory.content(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sources_of_an_origin_with_different_digests_are_not_mixed() {
    let root = seed(&[5 * CHUNK + 9], 3, options()).await;
    root.memory.set_growing(growing(&root));
    let memory = root.empty_memory();
    memory.set_growing(growing(&root));
    memory.begin_write(2).unwrap().commit_as(Digest::crc64_nvme(7));
    let read = read_growing(&root, &memory).await;
    assert!(matches!(read, Err(ReadError::Unusable { .. })), "nobody is blamed: {read:?}");
    assert_eq!(memory.content(), None);
}
