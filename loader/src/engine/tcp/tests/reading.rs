//! Reading from a seed that is well, slow, corrupt or lies.

use super::*;
use rfork_protocol::frame::{
    ANSWER_BYTES, Answer, HELLO_BYTES, RANGE_BYTES, READ_BYTES, Read, WELCOME_BYTES, Welcome,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How a seed answers a greeting.
fn welcome(plan: &ChunkPlan, max_chunks_per_read: u32) -> [u8; WELCOME_BYTES] {
    let (chunk_size, chunk_count) = (plan.chunk_size(), plan.count());
    let (refusal, version, features) = (None, 1, 0);
    Welcome { refusal, version, features, chunk_size, chunk_count, max_chunks_per_read }.encode()
}

/// A byte in the first chunk of a connection.
const IN_FIRST_CHUNK: usize = WELCOME_BYTES + ANSWER_BYTES + 1_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn what_is_read_equals_the_seed(
        sizes in prop::collection::vec(1u64..900_000, 1..12), streams in 1usize..4,
        algorithm in prop::sample::select(&DigestAlgorithm::ALL[..]),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let seed = seed_by(algorithm, &sizes, 7, options()).await;
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

/// What a false seed can do: it names the content of others, has all their digests, and sends bytes of its choice.
#[tokio::test]
async fn chunks_with_the_crcs_of_others_are_taken_and_by_blake3_they_are_refused() {
    for algorithm in DigestAlgorithm::ALL {
        let (honest, liar) =
            (seed_by(algorithm, &[3 * CHUNK], 1, options()), seed(&[3 * CHUNK], 1, options()));
        let (honest, liar) = (honest.await, liar.await);
        liar.memory.forget_all().unwrap();
        for chunk in 0..3 {
            let [ours, theirs] = [1, 2].map(|salt| pattern(chunk, usize::try_from(CHUNK).unwrap(), salt));
            let forged = crate::digest::tests::with_crc_of(&ours, theirs);
            fill_with(&liar.memory, chunk, if chunk == 1 { &forged } else { &ours });
        }
        liar.memory.set_content(honest.content.clone());
        let memory = honest.empty_memory();
        let read =
            honest.read_at(&session(&liar.engine), &memory, &options(), &CancellationToken::new()).await;
        if algorithm.is_cryptographic() {
            assert!(matches!(read, Err(ReadError::Corrupt { chunk: 1, .. })), "{read:?}");
            assert!(memory.begin_read(1).is_none());
        } else {
            assert_eq!(read.unwrap().corrected, 0);
            assert!(bytes(&memory) == bytes(&liar.memory) && bytes(&memory) != bytes(&honest.memory));
        }
    }
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
    // A machine that stands still for as long as the reader bears it is no fault: then it bears more.
    for patience_ms in [200, 1_000, 5_000, 25_000] {
        let patience = Duration::from_millis(patience_ms);
        let seed = seed(&[3 * CHUNK], 1, options()).await;
        let late = WeightMemory::allocate(&[3 * CHUNK]).unwrap();
        late.set_content(seed.content.clone());
        fill(&late, 0, 1);
        let relaying = TcpEngine::bind(options()).await.unwrap();
        relaying.register(late.clone()).await.unwrap();
        let memory = seed.empty_memory();
        // Silence would end the read after this; "not yet" must count as a sign of life.
        let reader = TcpOptions { progress_timeout: patience, ..options() };
        let (cancel, session) = (CancellationToken::new(), session(&relaying));
        let mut reading = std::pin::pin!(seed.read_at(&session, &memory, &reader, &cancel));
        let filling = async {
            while memory.held_bytes() < CHUNK {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(patience.mul_f64(2.5)).await;
            fill(&late, 2, 1);
            fill(&late, 1, 1);
        };
        let read = tokio::select! {
            read = reading.as_mut() => read,
            () = filling => reading.await,
        };
        match read {
            Ok(report) => {
                assert_eq!(report.chunks, 3);
                assert!(bytes(&memory) == bytes(&seed.memory));
                return;
            }
            Err(error) => assert!(error.to_string().contains("nothing moved"), "{error}"),
        }
    }
    panic!("it gave up a source that said \"not yet\"");
}

#[tokio::test]
async fn waiting_for_a_chunk_has_an_end_on_both_sides() {
    let seed = seed(&[3 * CHUNK], 1, options()).await;
    let never = WeightMemory::allocate(&[3 * CHUNK]).unwrap();
    never.set_content(seed.content.clone());
    let hangs = (60_000, 60_000);
    for (held_ms, (not_yet_ms, complete_ms), expected) in [
        (100, hangs, "in vain"),
        (60_000, (100, 60_000), "did not come"),
        // A seed that is said to hold everything has no reason to wait.
        (60_000, (60_000, 100), "did not come"),
    ] {
        let server = TcpOptions { held_timeout: Duration::from_millis(held_ms), ..options() };
        let engine = TcpEngine::bind(server).await.unwrap();
        engine.register(never.clone()).await.unwrap();
        let reader = TcpOptions {
            not_yet_timeout: Duration::from_millis(not_yet_ms),
            complete_timeout: Duration::from_millis(complete_ms),
            ..options()
        };
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
    assert!(matches!(error, ReadError::Silent { .. }), "{error}");
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
        let welcome = welcome(plan, 1);
        let (liar, _task) = peer(move |mut stream, _| {
            let lie = lie.clone();
            async move {
                let mut hello = [0; HELLO_BYTES];
                stream.read_exact(&mut hello).await.unwrap();
                stream.write_all(&welcome).await.unwrap();
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

#[tokio::test]
async fn two_chunks_are_asked_for_ahead_however_large_they_are() {
    let seed = seed(&[4 * CHUNK], 1, options()).await;
    let plan = seed.memory.plan();
    let welcome = welcome(plan, 9);
    let (asked, mut chunks) = tokio::sync::mpsc::unbounded_channel();
    let (slow, _task) = peer(move |mut stream, _| {
        let asked = asked.clone();
        async move {
            stream.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
            stream.write_all(&welcome).await.unwrap();
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
async fn a_cancelled_read_leaves_no_writer() {
    let slow = TcpOptions { max_bytes_per_sec: Some(CHUNK as f64 * 4.0), ..options() };
    let seed = seed(&[64 * CHUNK], 1, slow).await;
    let memory = seed.empty_memory();
    let cancel = CancellationToken::new();
    let session = session(&seed.engine);
    let reader = options();
    let reading = seed.read_at(&session, &memory, &reader, &cancel);
    let ending = async {
        begun(&memory).await;
        cancel.cancel();
    };
    let (read, ()) = tokio::join!(reading, ending);
    assert!(matches!(read, Err(ReadError::Cancelled)), "{read:?}");
    memory.forget_all().expect("nobody writes any more");
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
    let memory = seed.empty_memory();
    let request = ReadRequest {
        seed: &seed.metadata,
        manifest: &seed.metadata.manifest,
        root: Some(&seed.root()),
        memory: &memory,
        loading: None,
        held: None,
        in_a_chain: false,
        key: None,
        point: None,
        cancel: &CancellationToken::new(),
    };
    seed.engine.read(request).await.unwrap();
    assert_eq!(memory.arrivals().bytes(), 5 * CHUNK);
}
