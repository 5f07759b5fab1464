use rfork_protocol::SeedKey;
use rfork_protocol::manifest::content::{Content, ContentId, Growing, Origin, Root};
use rfork_protocol::manifest::digest::{Digest, DigestAlgorithm};
use rfork_protocol::manifest::metadata::{HEALTH_PATH, HELD_PATH, INFO_PATH};
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};

use super::super::SeedService;
use super::*;
use crate::chunks::MIN_CHUNK_BYTES;

const CHUNKS: u32 = 5;
const ROOT: [u8; 32] = [7; 32];
/// What takes longer hangs; a wait is never over by itself.
const HANGS: Duration = Duration::from_secs(300);

/// A memory whose bytes have an origin.
fn memory() -> Arc<WeightMemory> {
    let memory = WeightMemory::allocate(&[MIN_CHUNK_BYTES * u64::from(CHUNKS)]).unwrap();
    let growing =
        Growing { origin: Origin(ROOT), algorithm: DigestAlgorithm::default(), chunk_bytes: MIN_CHUNK_BYTES };
    memory.set_root(Root::Growing(growing), None);
    memory
}

fn hold(memory: &Arc<WeightMemory>, chunk: u32) {
    memory.begin_write(chunk).unwrap().commit_as(Digest::crc64_nvme(chunk.into()));
}

fn content(memory: &WeightMemory) -> Content {
    let tensor = Tensor {
        name: "w".into(),
        address: 16,
        count: memory.plan().total_bytes(),
        element_bytes: 1,
        shape: None,
        dtype: None,
        format: Some(FORMAT_ND),
    };
    let content = memory.content_by_digests(&Manifest::new(vec![tensor]).unwrap()).unwrap();
    Content { id: ContentId { hash: [9; 32], ..content.id }, ..content }
}

struct Service {
    service: SeedService,
    http: reqwest::Client,
}

impl Service {
    async fn start() -> Self {
        let key = SeedKey::from_text("k").unwrap();
        let service = SeedService::start(Some("127.0.0.1"), 0, &key).await.unwrap();
        Self { service, http: crate::http::client(HANGS, false).unwrap() }
    }

    fn get(&self, path: &str, key: &str, parameters: &[(&str, String)]) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.service.address());
        self.http.get(url).query(&[("seed_key", key)]).query(parameters)
    }

    async fn ask(&self, question: HeldQuestion) -> Option<HeldChunks> {
        let answer = self.get(HELD_PATH, "k", &question.parameters()).send().await.unwrap();
        if answer.status() == StatusCode::NOT_FOUND {
            return None;
        }
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.bytes().await.unwrap();
        Some(HeldChunks::decode(&body, DigestAlgorithm::default(), CHUNKS).unwrap())
    }
}

fn first() -> HeldQuestion {
    HeldQuestion { root: ROOT, reader: 1, epoch: None, after: 0, lacks: CHUNKS, wait_ms: 0 }
}

#[tokio::test]
async fn chunks_are_told_in_their_order_and_the_content_when_it_is_known() {
    let (service, memory) = (Service::start().await, memory());
    assert_eq!(service.ask(first()).await, None, "nothing is offered");
    hold(&memory, 3);
    hold(&memory, 1);
    service.service.offer(&memory);
    let told = service.ask(first()).await.unwrap();
    assert_eq!((&told.chunks[..], told.is_whole, told.content), (&[3, 1][..], false, None));
    assert_eq!(told.digests, [3, 1].map(Digest::crc64_nvme));
    assert!(!told.sign.has_source);
    memory.arrivals().source(true);
    // What is offered already goes on under its epoch.
    service.service.offer(&memory);
    let next = HeldQuestion { epoch: Some(told.epoch), after: 2, wait_ms: 10_000, ..first() };
    let (waited, ()) = tokio::join!(service.ask(next), async {
        while service.service.readers() == 0 {
            tokio::task::yield_now().await;
        }
        hold(&memory, 0);
    });
    let waited = waited.unwrap();
    assert_eq!((&waited.chunks[..], waited.epoch, waited.sign.has_source), (&[0][..], told.epoch, true));
    hold(&memory, 2);
    hold(&memory, 4);
    let last = HeldQuestion { after: 3, ..next };
    assert_eq!(service.ask(last).await.unwrap().chunks, [2, 4]);
    // All is told, and it is not known what it is.
    let end = HeldQuestion { after: 5, lacks: 0, ..next };
    let (named, ()) = tokio::join!(service.ask(end), async {
        memory.set_content(content(&memory));
    });
    let named = named.unwrap();
    assert_eq!((named.content.unwrap().hash, named.is_whole), ([9; 32], true));
    // Whoever reads by the content's name knows the digests, and what it is.
    let by_content = HeldQuestion { root: [9; 32], epoch: None, ..first() };
    let told = service.ask(by_content).await.unwrap();
    assert_eq!((told.chunks.len(), told.digests.len(), told.content), (5, 0, None));
}

#[tokio::test]
async fn what_is_withdrawn_is_told_to_nobody_and_comes_back_under_another_epoch() {
    let (service, memory) = (Service::start().await, memory());
    hold(&memory, 0);
    service.service.offer(&memory);
    let told = service.ask(first()).await.unwrap();
    let next = HeldQuestion { epoch: Some(told.epoch), after: 1, wait_ms: 10_000, ..first() };
    let (waited, ()) = tokio::join!(service.ask(next), async {
        while service.service.shared.held.waiting.taken() == 0 {
            tokio::task::yield_now().await;
        }
        service.service.withdraw();
    });
    assert_eq!((waited, service.service.readers()), (None, 0));
    memory.forget_all().unwrap();
    let growing =
        Growing { origin: Origin(ROOT), algorithm: DigestAlgorithm::default(), chunk_bytes: MIN_CHUNK_BYTES };
    memory.set_root(Root::Growing(growing), None);
    hold(&memory, 2);
    service.service.offer(&memory);
    // It is answered from the beginning, and sees that it is another one.
    let again = service.ask(next).await.unwrap();
    assert_eq!((again.epoch == told.epoch, &again.chunks[..]), (false, &[2][..]));
    assert_eq!(service.ask(HeldQuestion { root: [1; 32], ..first() }).await, None, "bytes of another name");
    // What nobody has withdrawn, and was forgotten all the same, is told to nobody.
    memory.forget_all().unwrap();
    assert_eq!(service.ask(first()).await, None);
}

#[tokio::test]
async fn a_question_that_is_none_is_refused() {
    let (service, memory) = (Service::start().await, memory());
    service.service.offer(&memory);
    let status = async |key: &str, parameters: &[(&str, String)]| {
        service.get(HELD_PATH, key, parameters).send().await.unwrap().status()
    };
    assert_eq!(status("k", &first().parameters()).await, StatusCode::OK);
    assert_eq!(status("other", &first().parameters()).await, StatusCode::NOT_FOUND);
    assert_eq!(status("k", &[]).await, StatusCode::BAD_REQUEST);
    let malformed = HeldQuestion { epoch: Some(Epoch(1)), ..first() }.parameters();
    for at in 0..malformed.len() {
        let mut malformed = malformed.clone();
        malformed[at].1 = "-".into();
        assert_eq!(status("k", &malformed).await, StatusCode::BAD_REQUEST, "{malformed:?}");
    }
}

#[tokio::test]
async fn those_who_wait_are_bounded_and_keep_nobody_from_metadata_and_health() {
    let (service, memory) = (Service::start().await, memory());
    hold(&memory, 0);
    service.service.offer(&memory);
    let epoch = Some(service.ask(first()).await.unwrap().epoch);
    let waits = |reader: usize| {
        let question = HeldQuestion { reader: reader as u64, epoch, after: 1, wait_ms: 10_000, ..first() };
        service.get(HELD_PATH, "k", &question.parameters()).send()
    };
    let mut waiting = tokio::task::JoinSet::new();
    // As many as one address may.
    let most = MAX_WAITING * 3 / 4;
    (0..most).for_each(|reader| drop(waiting.spawn(waits(reader))));
    while service.service.shared.held.waiting.taken() < most {
        tokio::task::yield_now().await;
    }
    // The next is answered at once, that there is nothing new.
    let told = waits(most).await.unwrap().bytes().await.unwrap();
    assert!(HeldChunks::decode(&told, DigestAlgorithm::default(), CHUNKS).unwrap().chunks.is_empty());
    assert_eq!(service.get(HEALTH_PATH, "k", &[]).send().await.unwrap().status(), StatusCode::OK);
    let info = service.get(INFO_PATH, "k", &[]).send().await.unwrap();
    assert_eq!(info.status(), StatusCode::SERVICE_UNAVAILABLE, "there is none yet");
    assert!(service.service.readers() > most);
    hold(&memory, 1);
    while let Some(answer) = waiting.join_next().await {
        let told = answer.unwrap().unwrap().bytes().await.unwrap();
        assert_eq!(HeldChunks::decode(&told, DigestAlgorithm::default(), CHUNKS).unwrap().chunks, [1]);
    }
}

#[test]
fn readers_count_while_they_are_heard_and_lack_something() {
    let begun = Instant::now();
    let mut readers = Readers::default();
    readers.hear(begun, 1, false);
    readers.hear(begun, 2, false);
    readers.hear(begun, 1, false);
    assert_eq!(readers.count(begun), 2);
    readers.hear(begun + HEARD / 2, 2, false);
    assert_eq!(readers.count(begun + HEARD), 1, "one is silent");
    readers.hear(begun + HEARD, 2, true);
    readers.hear(begun + HEARD, 3, true);
    assert_eq!(readers.count(begun + HEARD), 0, "and the other has everything");
    let number = |at: usize| begun + Duration::from_millis(at as u64);
    for at in 0..3 * MAX_READERS {
        readers.hear(number(at), 100 + at as u64, false);
        assert!(readers.heard.len() <= MAX_READERS);
    }
    assert!(readers.heard.contains_key(&(99 + 3 * MAX_READERS as u64)), "the one that came last");
    let known = readers.heard.len();
    readers.hear(number(3 * MAX_READERS), 99 + 3 * MAX_READERS as u64, false);
    assert_eq!(readers.heard.len(), known, "who is known takes nobody's place");
}
