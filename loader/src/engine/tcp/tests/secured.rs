//! Reading and following over TLS, and whoever is not who was meant.

use rfork_tls::certificate::KeyHash;
use rfork_tls::peer::OwnKey;
use tokio::sync::watch;

use super::*;
use crate::engine::SourceState;

fn with_key() -> (TcpOptions, KeyHash) {
    let key = OwnKey::make().unwrap();
    let hash = key.hash();
    (TcpOptions { key: Some(key), ..options() }, hash)
}

/// Reads from whoever listens at `session` and has this key.
async fn read_by(
    seed: &Seed,
    (session, key): (&str, Option<KeyHash>),
    memory: &Arc<WeightMemory>,
    loading: Option<&Arc<watch::Sender<SourceState>>>,
    options: &TcpOptions,
) -> Result<ReadReport, ReadError> {
    let metadata = Metadata { session: session.to_owned(), ..seed.metadata.clone() };
    let request = ReadRequest {
        seed: &metadata,
        manifest: &metadata.manifest,
        root: Some(&seed.root()),
        memory,
        loading,
        held: None,
        in_a_chain: false,
        key,
        point: None,
        cancel: &CancellationToken::new(),
    };
    tokio::time::timeout(HANGS, client::read(options, request)).await.expect("it ends")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn what_is_read_over_tls_equals_the_seed(
        // Of many small tensors a record is made.
        sizes in prop::collection::vec(prop_oneof![1u64..900_000, 1u64..300], 1..40),
        streams in 1usize..4,
        throttled: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut serving, key) = with_key();
            serving.max_bytes_per_sec = throttled.then_some(1e9);
            let seed = seed(&sizes, 7, serving).await;
            let memory = seed.empty_memory();
            let options = TcpOptions { streams, ..options() };
            let report = read_by(&seed, (&session(&seed.engine), Some(key)), &memory, None, &options).await.unwrap();
            assert_eq!((report.chunks, report.bytes), (memory.plan().count(), sizes.iter().sum()));
            assert!(memory.all_held() && bytes(&memory) == bytes(&seed.memory));
            assert_eq!(served(&seed, report.bytes).await, report.bytes, "no chunk is sent twice");
        });
    }
}

#[tokio::test]
async fn who_has_another_key_or_none_is_not_read_and_who_expects_none_reads_nothing() {
    let (serving, key) = with_key();
    let secured = seed(&[3 * CHUNK], 1, serving).await;
    let plain = seed(&[3 * CHUNK], 1, options()).await;
    let (of_secured, of_plain) = (session(&secured.engine), session(&plain.engine));
    let other = OwnKey::make().unwrap().hash();
    for (session, key, why) in [
        (&of_secured, Some(other), "certificate"),
        // Never back to plain, on either side.
        (&of_secured, None, "closed the connection"),
        (&of_plain, Some(key), ""),
    ] {
        let memory = secured.empty_memory();
        let refused = read_by(&secured, (session, key), &memory, None, &options()).await.unwrap_err();
        let lost = matches!(refused, ReadError::Lost { .. });
        assert!(lost && refused.to_string().contains(why), "{refused}");
        assert_eq!(memory.held_bytes(), 0);
    }
    let memory = secured.empty_memory();
    read_by(&secured, (&of_secured, Some(key)), &memory, None, &options()).await.unwrap();
    // A worker finds itself by its own key, and nobody else.
    secured.engine.greet(&of_secured, secured.content.id).await.unwrap();
    assert!(plain.engine.greet(&of_secured, secured.content.id).await.is_err());
    assert!(secured.engine.greet(&of_plain, secured.content.id).await.is_err());
}

#[tokio::test]
async fn a_byte_that_is_changed_on_its_way_ends_the_connection_and_is_never_held() {
    let (serving, key) = with_key();
    let seed = seed(&[6 * CHUNK], 1, serving).await;
    let session = session(&seed.engine);
    let (proxy, _task) = peer(move |stream, _| {
        relay(stream, session.clone(), move |position, piece| {
            flip(5_000, position, piece);
            true
        })
    })
    .await;
    let memory = seed.empty_memory();
    let error = read_by(&seed, (&proxy, Some(key)), &memory, None, &options()).await.unwrap_err();
    assert!(matches!(error, ReadError::Lost { .. }) && error.to_string().contains("decrypt"), "{error}");
    assert_eq!(memory.held_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_over_tls_is_read_as_it_comes() {
    let (of_root, root_key) = with_key();
    let root = seed(&[20 * CHUNK + 5, 700, 3 * CHUNK], 3, of_root).await;
    let (of_relay, relay_key) = with_key();
    let (relay, last) = (root.empty_memory(), root.empty_memory());
    relay.set_content(root.content.clone());
    let engine = TcpEngine::bind(of_relay).await.unwrap();
    engine.register(relay.clone()).await.unwrap();
    let source = || Arc::new(watch::Sender::new(SourceState::default()));
    let (first, second) = (source(), source());
    let (at_root, at_relay, options) = (session(&root.engine), session(&engine), options());
    // The last one begins first: it waits for what the other one will hold.
    let (of_last, of_relay) = tokio::join!(
        read_by(&root, (&at_relay, Some(relay_key)), &last, Some(&second), &options),
        read_by(&root, (&at_root, Some(root_key)), &relay, Some(&first), &options),
    );
    assert_eq!((of_last.unwrap().bytes, of_relay.unwrap().bytes), (23 * CHUNK + 705, 23 * CHUNK + 705));
    assert!(bytes(&last) == bytes(&root.memory));
}

#[tokio::test]
async fn a_handshake_that_is_not_ended_and_what_is_none_keep_nobody_out() {
    let (serving, key) = with_key();
    let seed = seed(&[3 * CHUNK], 1, serving).await;
    let at = session(&seed.engine);
    let mut kept = Vec::new();
    for said in [&b""[..], b"\x16\x03\x01\x02\x00", b"RFORKTCP", b"GET / HTTP/1.1\r\n\r\n"].repeat(40) {
        let mut stream = TcpStream::connect(&at).await.unwrap();
        // It may be closed already.
        let _ = stream.write_all(said).await;
        kept.push(stream);
    }
    let memory = seed.empty_memory();
    read_by(&seed, (&at, Some(key)), &memory, None, &options()).await.unwrap();
    assert!(memory.all_held());
}
