//! Reading a source that loads: what is read, and what of it is held.

use std::collections::VecDeque;

use rfork_protocol::frame::SignOfLife;
use rfork_protocol::manifest::content::{
    ChunkDigests, Content, ContentId, Growing, Origin, Root, content_id,
};
use rfork_protocol::manifest::digest::{Digest, DigestAlgorithm};
use rfork_protocol::manifest::metadata::{Epoch, HeldChunks, HeldQuestion};
use tokio::sync::watch;

use super::*;
use crate::engine::{FeedError, HeldFeed, SourceState};

const NOW: Epoch = Epoch(1);
const LATER: Epoch = Epoch(2);

/// Answers as it was told to, one after the other; then it says nothing new for ever.
#[derive(Debug, Default)]
struct Told {
    answers: Mutex<VecDeque<Result<HeldChunks, FeedError>>>,
    asked: Mutex<Vec<HeldQuestion>>,
    /// Whether it does not answer when there is nothing left to say.
    hangs: bool,
}

impl Told {
    fn of(answers: impl IntoIterator<Item = Result<HeldChunks, FeedError>>) -> Self {
        Self { answers: Mutex::new(answers.into_iter().collect()), ..Self::default() }
    }

    fn asked(&self) -> Vec<HeldQuestion> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl HeldFeed for Told {
    async fn ask(&self, question: &HeldQuestion) -> Result<HeldChunks, FeedError> {
        self.asked.lock().unwrap().push(*question);
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer,
            None if self.hangs => std::future::pending().await,
            None => Ok(nothing_new()),
        }
    }
}

fn told(chunks: impl IntoIterator<Item = u32>) -> HeldChunks {
    HeldChunks { chunks: chunks.into_iter().collect(), ..nothing_new() }
}

fn nothing_new() -> HeldChunks {
    HeldChunks {
        epoch: NOW,
        chunks: Vec::new(),
        digests: Vec::new(),
        content: None,
        is_whole: false,
        sign: SignOfLife { has_source: true, silent_ms: 7 },
    }
}

/// The same with digests, which tell the chunk.
fn digested(told: HeldChunks) -> HeldChunks {
    let digest = |chunk: &u32| Digest::crc64_nvme((*chunk).into());
    HeldChunks { digests: told.chunks.iter().map(digest).collect(), ..told }
}

fn content_of(memory: &WeightMemory, manifest: &Manifest) -> Content {
    let algorithm = DigestAlgorithm::default();
    let digests = (0..memory.plan().count()).map(|chunk| Digest::crc64_nvme(chunk.into())).collect();
    let chunks = ChunkDigests { algorithm, chunk_bytes: memory.plan().chunk_size(), digests };
    Content { id: content_id(manifest, &chunks), chunks }
}

/// A model whose content is known, and one whose is not.
fn roots(seed: &Metadata, memory: &WeightMemory) -> [Root; 2] {
    let content = content_of(memory, &seed.manifest);
    let chunk_bytes = content.chunks.chunk_bytes;
    let growing = Growing { origin: Origin([3; 32]), algorithm: DigestAlgorithm::default(), chunk_bytes };
    [Root::Content(content), Root::Growing(growing)]
}

struct Follower {
    vendor: Pretending,
    engine: YuanRongEngine,
    seed: Metadata,
    memory: Arc<WeightMemory>,
    roots: [Root; 2],
    state: Arc<watch::Sender<SourceState>>,
    cancel: CancellationToken,
}

impl Follower {
    async fn new() -> Self {
        Self::over(Pretending::default()).await
    }

    async fn over(vendor: Pretending) -> Self {
        let (seed, memory) = model(2);
        let roots = roots(&seed, &memory);
        let engine = engine(&vendor, options()).await;
        let state = Arc::new(watch::Sender::new(SourceState::default()));
        Self { vendor, engine, seed, memory, roots, state, cancel: CancellationToken::new() }
    }

    fn growing(self) -> (Self, Root) {
        let root = self.roots[1].clone();
        self.memory.set_root(root.clone(), None);
        (self, root)
    }

    async fn read(&self, root: &Root, feed: &Told) -> Result<ReadReport, ReadError> {
        let request = ReadRequest {
            seed: &self.seed,
            manifest: &self.seed.manifest,
            root: Some(root),
            memory: &self.memory,
            loading: Some(&self.state),
            held: Some(feed),
            in_a_chain: true,
            key: None,
            point: None,
            cancel: &self.cancel,
        };
        tokio::time::timeout(Duration::from_secs(300), self.engine.read(request)).await.expect("it ends")
    }

    fn count(&self) -> u32 {
        self.memory.plan().count()
    }

    fn read_bytes(&self) -> u64 {
        self.vendor.seen().batches.iter().flatten().sum()
    }
}

#[tokio::test]
async fn only_what_is_told_is_read_and_held_when_the_source_says_that_it_still_is_so() {
    let follower = Follower::new().await;
    let count = follower.count();
    let feed = Told::of([
        Ok(told([4, 1, 2])),
        Ok(nothing_new()),
        Ok(HeldChunks { is_whole: true, ..told((0..count).filter(|chunk| ![4, 1, 2].contains(chunk))) }),
    ]);
    let report = follower.read(&follower.roots[0], &feed).await.unwrap();
    assert!(follower.memory.all_held());
    assert_eq!((report.chunks, report.bytes), (count, follower.memory.plan().total_bytes()));
    assert_eq!(follower.read_bytes(), report.bytes, "each byte once");
    let asked = feed.asked();
    let told: Vec<_> = asked.iter().map(|asked| (asked.epoch, asked.after, asked.lacks)).collect();
    assert_eq!(
        told,
        [
            (None, 0, count),
            // It will hold three then.
            (Some(NOW), 3, count - 3),
            (Some(NOW), 3, count - 3),
            (Some(NOW), count, 0),
        ]
    );
    assert!(asked.iter().all(|one| one.reader == asked[0].reader));
    let state = *follower.state.borrow();
    assert!(state.sign.silent_ms == 7 && state.signed.is_some() && state.owes);
}

#[tokio::test]
async fn nothing_is_held_of_a_call_after_which_the_source_is_another_one_or_gone() {
    let started_over = HeldChunks { epoch: LATER, ..told([0]) };
    for after in [Ok(started_over), Err(FeedError::Gone("status 404".into()))] {
        let follower = Follower::new().await;
        let feed = Told::of([Ok(told([0, 1])), Ok(told([2])), after]);
        let error = follower.read(&follower.roots[0], &feed).await.unwrap_err();
        assert!(matches!(error, ReadError::Lost { .. }), "{error}");
        let missing = follower.memory.missing();
        assert!(follower.read_bytes() > follower.memory.held_bytes(), "more was read than is held");
        assert!(!missing.contains(0) && !missing.contains(1) && missing.contains(2));
        // Nobody else writes there.
        assert!(follower.memory.begin_write(2).is_some());
    }
}

#[tokio::test]
async fn bytes_without_a_content_id_come_with_digests_and_end_when_they_have_one() {
    let (follower, root) = Follower::new().await.growing();
    let content = content_of(&follower.memory, &follower.seed.manifest);
    let count = follower.count();
    let feed = Told::of([
        Ok(digested(told(0..count))),
        Ok(nothing_new()),
        Ok(nothing_new()),
        Ok(HeldChunks { content: Some(content.id), is_whole: true, ..nothing_new() }),
    ]);
    follower.read(&root, &feed).await.unwrap();
    assert_eq!(follower.memory.content().as_deref(), Some(&content));
    assert_eq!(follower.memory.digest(3), Some(Digest::crc64_nvme(3)));
    assert_eq!(feed.asked().len(), 4, "not before that");
}

#[tokio::test]
async fn a_source_that_cannot_be_right_is_found_out() {
    let count = model(2).1.plan().count();
    let id = ContentId { algorithm: DigestAlgorithm::default(), hash: [1; 32] };
    let with_one = |digest| {
        let mut all = digested(told(0..count));
        all.digests[2] = Digest::crc64_nvme(digest);
        all
    };
    for (grows, answers, said) in [
        (false, vec![told(0..count - 1), told([0, 0])], "more chunks than"),
        (false, vec![HeldChunks { is_whole: true, ..nothing_new() }], "does not tell of it"),
        (true, vec![told([0])], "without their digests"),
        (true, vec![digested(told([2])), with_one(99)], "more chunks than"),
        (
            true,
            vec![digested(told([2])), HeldChunks { digests: vec![Digest::crc64_nvme(9)], ..told([2]) }],
            "another digest",
        ),
        (
            true,
            vec![digested(told(0..count)), HeldChunks { content: Some(id), ..nothing_new() }],
            "but its digests make",
        ),
    ] {
        let (follower, growing) = Follower::new().await.growing();
        let root = if grows { growing } else { follower.roots[0].clone() };
        let feed = Told::of(answers.into_iter().map(Ok));
        let error = follower.read(&root, &feed).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        let is_blamed = matches!(error, ReadError::Protocol { .. });
        assert_eq!(is_blamed, said != "another digest", "{error}");
        assert_eq!(follower.memory.content(), None);
    }
}

#[tokio::test]
async fn a_source_that_nobody_can_follow_is_not_read() {
    let (follower, growing) = Follower::new().await.growing();
    for (root, loading) in [(&growing, None), (&follower.roots[0], Some(&follower.state))] {
        let request = ReadRequest {
            seed: &follower.seed,
            manifest: &follower.seed.manifest,
            root: Some(root),
            memory: &follower.memory,
            loading,
            held: None,
            in_a_chain: true,
            key: None,
            point: None,
            cancel: &follower.cancel,
        };
        let error = follower.engine.read(request).await.unwrap_err();
        assert!(matches!(error, ReadError::Unusable { .. }), "{error}");
    }
    assert_eq!(follower.read_bytes(), 0);
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_left_when_the_read_is_ended() {
    // Before it was read, and when it is to say whether what it told is still so.
    for answers in [vec![], vec![told([0])]] {
        let follower = Follower::new().await;
        let feed = Told { hangs: true, ..Told::of(answers.into_iter().map(Ok)) };
        let (ended, ()) = tokio::join!(follower.read(&follower.roots[0], &feed), async {
            while feed.asked().is_empty() || !feed.answers.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            follower.cancel.cancel();
        });
        assert!(matches!(ended, Err(ReadError::Cancelled)), "{ended:?}");
        assert_eq!(follower.memory.held_bytes(), 0);
    }
}

#[tokio::test]
async fn while_a_call_lasts_the_source_is_heard_and_its_end_is_waited_for() {
    let (release, hang) = mpsc::channel();
    let follower =
        Follower::over(Pretending { hang: Some(Arc::new(Mutex::new(hang))), ..Pretending::default() }).await;
    let feed = Told::of([Ok(told(0..follower.count()))]);
    let (ended, ()) = tokio::join!(follower.read(&follower.roots[0], &feed), async {
        // Two signs beside the first answer.
        while feed.asked().len() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(follower.memory.held_bytes(), 0);
        follower.cancel.cancel();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(follower.memory.begin_write(0).is_none(), "the call still writes");
        release.send(()).unwrap();
    });
    assert!(matches!(ended, Err(ReadError::Cancelled)), "{ended:?}");
    assert!(follower.memory.begin_write(0).is_some());
}

#[tokio::test]
async fn in_a_chain_calls_are_short() {
    let vendor = Pretending::default();
    let engine = engine(&vendor, options()).await;
    let (seed, memory) = model(100);
    let [root, _] = roots(&seed, &memory);
    for in_a_chain in [false, true] {
        let request = ReadRequest {
            seed: &seed,
            manifest: &seed.manifest,
            root: Some(&root),
            memory: &memory,
            loading: None,
            held: None,
            in_a_chain,
            key: None,
            point: None,
            cancel: &CancellationToken::new(),
        };
        engine.read(request).await.unwrap();
        let calls: Vec<u64> = vendor.seen().batches.drain(..).map(|lens| lens.iter().sum()).collect();
        assert_eq!(calls.len() > 1, in_a_chain, "{calls:?}");
        assert!(!in_a_chain || calls[0] < 17 << 20, "{calls:?}");
        memory.forget_all().unwrap();
    }
}
