//! Reading a source that still loads.
//!
//! All of its memory is registered, whether it is held yet or not, and the library shows nothing but bytes. So only chunks are
//! read that the source has told of; and a chunk is held only if, after the call, the source still names the epoch in which it
//! told of it. Else the source may have changed the bytes meanwhile.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use rfork_protocol::manifest::content::{ContentId, Root};
use rfork_protocol::manifest::metadata::{HeldChunks, HeldQuestion};

use super::read::Reading;
use crate::digest::Digest;
use crate::engine::{FeedError, HeldFeed, ReadError, ReadRequest, SourceState};
use crate::held::Offers;

/// How long a source may take until it has something new, and how often it is asked while a call lasts: so it is heard of each
/// second.
const SIGNS: Duration = Duration::from_secs(1);
/// Between two questions of which the first brought nothing, if it was answered sooner.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes that came so lately to a source are progress, though none comes from it.
const PROGRESSES: Duration = Duration::from_secs(3);

/// Reads what the source tells of, as it comes, until the memory misses nothing and it is known what that is.
pub(super) async fn follow(reading: &mut Reading<'_>) -> Result<(), ReadError> {
    let request = reading.request;
    let (Some(feed), Some(root)) = (request.held, request.root) else {
        return Err(reading.unusable("it still loads, and nothing tells what it holds".into()));
    };
    let mut source = Source::of(request, feed, root);
    loop {
        let batches = reading.next(|| source.offers.take());
        if batches.is_empty() {
            if source.is_done()? {
                return Ok(());
            }
            until_cancelled(request, source.wait()).await?;
            continue;
        }
        source.is_due();
        for batch in batches {
            let completed = tokio::select! {
                // Only the call's own end ends this: until then it writes.
                completed = reading.call(batch) => completed?,
                never = source.hear() => match never {},
            };
            // Excluded: the source starts over while the call lasts, and bytes of its next memory are held. It takes the epoch
            // away before it changes a byte, and this question is asked after the last one was read.
            until_cancelled(request, source.confirm(completed.len())).await?;
            for writer in completed {
                let digest = source.digest(writer.chunk());
                reading.hold(writer, digest);
            }
        }
    }
}

/// What comes of a question, unless the read is cancelled before.
async fn until_cancelled(
    request: &ReadRequest<'_>,
    asking: impl Future<Output = Result<(), ReadError>>,
) -> Result<(), ReadError> {
    request.cancel.run_until_cancelled(asking).await.unwrap_or(Err(ReadError::Cancelled))
}

/// What is known of the source.
struct Source<'a> {
    request: &'a ReadRequest<'a>,
    feed: &'a dyn HeldFeed,
    root: &'a Root,
    /// The next one.
    question: HeldQuestion,
    /// Chunks that it has told of, and that nobody has read yet.
    offers: Offers,
    /// The digest of each chunk of bytes that have no content id, as far as it is known.
    digests: Box<[Option<Digest>]>,
    /// Which content they are, once it says so.
    content: Option<ContentId>,
}

impl<'a> Source<'a> {
    fn of(request: &'a ReadRequest<'a>, feed: &'a dyn HeldFeed, root: &'a Root) -> Self {
        let (memory, missing) = (request.memory, request.memory.missing());
        let question = HeldQuestion {
            root: root.name(),
            reader: fastrand::u64(..),
            epoch: None,
            after: 0,
            lacks: missing.len(),
            wait_ms: 0,
        };
        Self {
            request,
            feed,
            root,
            question,
            offers: Offers::awaiting(missing),
            digests: (0..memory.plan().count()).map(|chunk| memory.digest(chunk)).collect(),
            content: None,
        }
    }

    /// A chunk's digest, if nothing but the source tells it.
    fn digest(&self, chunk: u32) -> Option<Digest> {
        self.digests.get(chunk as usize).copied().flatten().filter(|_| self.grows())
    }

    fn grows(&self) -> bool {
        matches!(self.root, Root::Growing(_))
    }

    /// Bytes are due from now on.
    fn is_due(&self) {
        self.request.memory.arrivals().source(true);
        self.know(|source| source.owes = true);
    }

    /// Waits until it tells of something, for a second at most.
    async fn wait(&mut self) -> Result<(), ReadError> {
        self.know(|source| source.owes = false);
        let asked = Instant::now();
        self.question.lacks = self.request.memory.missing().len();
        if !self.ask(SIGNS).await? {
            tokio::time::sleep_until((asked + PAUSE).into()).await;
        }
        Ok(())
    }

    /// Takes in what it tells while a call lasts. What is wrong with it shows afterwards.
    async fn hear(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(SIGNS).await;
            if let Err(error) = self.ask(Duration::ZERO).await {
                tracing::debug!(%error, "the source is not heard");
            }
        }
    }

    /// Makes sure that what it has told of was so until now. So many chunks will be held then.
    async fn confirm(&mut self, chunks: usize) -> Result<(), ReadError> {
        let held = u32::try_from(chunks).unwrap_or(u32::MAX);
        self.question.lacks = self.request.memory.missing().len().saturating_sub(held);
        self.ask(Duration::ZERO).await.map(drop)
    }

    /// Asks; whether there is something to do then. Dropped, nothing of it is known.
    async fn ask(&mut self, wait: Duration) -> Result<bool, ReadError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let told = self.feed.ask(&HeldQuestion { wait_ms, ..self.question }).await;
        let told = told.map_err(|error| match error {
            FeedError::Gone(_) => self.gone(error.to_string()),
            FeedError::Malformed(_) => self.breaks(error.to_string()),
        })?;
        self.take_in(&told)?;
        Ok(self.offers.is_ready() || self.content.is_some())
    }

    fn take_in(&mut self, told: &HeldChunks) -> Result<(), ReadError> {
        let (memory, count) = (self.request.memory, self.request.memory.plan().count());
        if *self.question.epoch.get_or_insert(told.epoch) != told.epoch {
            return Err(self.gone("it has started over".into()));
        }
        self.know(|source| (source.sign, source.signed) = (told.sign, Some(Instant::now())));
        // Only the content's name is missing, which who reads storage says when it has compared everything.
        if Duration::from_millis(told.sign.silent_ms.into()) < PROGRESSES && memory.all_held() {
            memory.arrivals().progressed();
        }
        let after =
            u32::try_from(told.chunks.len()).ok().and_then(|more| self.question.after.checked_add(more));
        let Some(after) = after.filter(|after| *after <= count) else {
            return Err(self.breaks(format!("it tells of more chunks than {count}")));
        };
        if told.is_whole && told.chunks.is_empty() && after < count {
            return Err(self.breaks("it says that it holds everything, and does not tell of it".into()));
        }
        if self.grows() {
            self.learn(told)?;
        }
        // Excluded: what was refused is passed over afterwards. It is asked for again.
        self.question.after = after;
        self.offers.offer(told.chunks.iter().copied());
        Ok(())
    }

    /// Takes in digests, before their chunks are read. Those that are known already, from another source, must be the same: it
    /// is one root. If they are not, nobody knows who is right, and this seed is not blamed.
    fn learn(&mut self, told: &HeldChunks) -> Result<(), ReadError> {
        if told.digests.len() != told.chunks.len() {
            return Err(self.breaks("it tells of chunks without their digests".into()));
        }
        for (chunk, digest) in told.chunks.iter().zip(&told.digests) {
            if let Some(known) = self.digests.get_mut(*chunk as usize)
                && *known.get_or_insert(*digest) != *digest
            {
                let reason =
                    format!("its chunk {chunk} has another digest than that of another source of its origin");
                return Err(ReadError::Unusable { peer: self.peer(), reason });
            }
        }
        self.content = told.content.or(self.content);
        Ok(())
    }

    /// Whether everything is held, and it is known which content that is.
    fn is_done(&self) -> Result<bool, ReadError> {
        let memory = self.request.memory;
        if !self.offers.is_done() || !self.grows() {
            return Ok(self.offers.is_done());
        }
        let Some(told) = self.content else { return Ok(memory.content().is_some()) };
        // The digests have to make that same one.
        let ours = memory.content_by_digests(self.request.manifest);
        match ours {
            Some(ours) if ours.id == told => {
                if memory.content().is_some_and(|known| known.id != told) {
                    return Err(
                        self.breaks(format!("it names content {told}, and another source another one"))
                    );
                }
                memory.set_content(ours);
                Ok(true)
            }
            Some(ours) => {
                Err(self.breaks(format!("it names content {told}, but its digests make {}", ours.id)))
            }
            None => Err(self.breaks(format!("it names content {told}, and not every chunk has a digest"))),
        }
    }

    /// Notes what is known of it, for whoever decides whether it is left.
    fn know(&self, note: impl FnOnce(&mut SourceState)) {
        if let Some(source) = self.request.loading {
            source.send_modify(note);
        }
    }

    fn peer(&self) -> String {
        self.request.seed.session.clone()
    }

    fn gone(&self, reason: String) -> ReadError {
        ReadError::Lost { peer: self.peer(), reason }
    }

    fn breaks(&self, reason: String) -> ReadError {
        ReadError::Protocol { peer: self.peer(), reason }
    }
}
