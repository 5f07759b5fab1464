//! The reader's side: a few connections that share one queue of missing chunks.
//!
//! Each connection takes chunks from the queue as it has room in its window, so a slow one holds up no other.
//! All of them are one task's children: [`read`] returns only when none is left, and dropping it stops them
//! between two system calls, so nothing writes to the memory afterwards. The thread that makes pages ahead of them
//! is ended by the last of them.
//!
//! A seed that still loads is asked only for what it announces. It does that on a connection of its own, which is
//! [followed](super::follow) beside the others and ends with them. Bytes that have no content id yet are all there when the
//! seed has said which content they are.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rfork_protocol::frame::{
    ANSWER_BYTES, Answer, Failure, FrameError, Hello, MAX_CHUNKS_PER_READ, MAX_RANGES, Read, Refusal,
    VERSION, WELCOME_BYTES, Welcome,
};
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::content::{ContentId, Root};
use rfork_protocol::v2::LeasedPoint;
use rfork_tls::certificate::KeyHash;
use rfork_tls::peer::OwnKey;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::TcpOptions;
use super::follow::{Following, follow, followed};
use super::link::Link;
use super::socket::{prepare, read_exact, receive_chunk, within, write_all};
use crate::digest::{Digest, DigestAlgorithm};
use crate::engine::memory::{ChunkWriter, PagesAhead, WeightMemory};
use crate::engine::{ReadError, ReadReport, ReadRequest, SourceState};
use crate::held::Offers;

/// Chunks that a connection asks for ahead at least.
const MIN_AHEAD: usize = 2;

/// What the connections of one read share.
pub(super) struct Shared {
    pub(super) options: TcpOptions,
    pub(super) peer: String,
    pub(super) memory: Arc<WeightMemory>,
    /// This worker's own, which makes a content id together with the digests.
    pub(super) manifest: Manifest,
    /// What is read.
    pub(super) root: Root,
    /// The digest of each chunk, as far as it is known. No guard is held across an await.
    pub(super) digests: Mutex<Box<[Option<Digest>]>>,
    algorithm: Option<DigestAlgorithm>,
    /// Chunks that nobody has asked for yet. No guard is held across an await.
    offers: Mutex<Offers>,
    /// Counts announcements, for those who wait for one.
    announced: watch::Sender<u64>,
    /// The hash of the seed's key, if it speaks TLS.
    key: Option<KeyHash>,
    /// The point of the seed that is leased to this reader.
    point: Option<LeasedPoint>,
    /// What is known of a seed that still loads.
    source: Option<Arc<watch::Sender<SourceState>>>,
    /// How many chunks there were in it.
    wanted: usize,
    /// Makes the pages of what is next in it.
    pages: PagesAhead,
    /// Chunks that came corrupt once.
    suspect: Mutex<HashSet<u32>>,
    chunks: AtomicU32,
    bytes: AtomicU64,
    corrected: AtomicU32,
}

/// Reads every chunk that the memory misses.
pub(super) async fn read(options: &TcpOptions, request: ReadRequest<'_>) -> Result<ReadReport, ReadError> {
    let peer = request.seed.session.clone();
    let unusable = |reason: String| ReadError::Unusable { peer: peer.clone(), reason };
    let root = request.root.ok_or_else(|| unusable("it does not say what its bytes are".into()))?.clone();
    let plan = request.memory.plan();
    let count = plan.count() as usize;
    let (chunk_bytes, chunks) = match &root {
        Root::Content(content) => (content.chunks.chunk_bytes, content.chunks.digests.len()),
        Root::Growing(growing) => (growing.chunk_bytes, count),
    };
    if (chunk_bytes, chunks) != (plan.chunk_size(), count) {
        return Err(unusable("the seed cuts the model into other chunks: use workers of one release".into()));
    }
    if matches!(root, Root::Growing(_)) && request.loading.is_none() {
        return Err(unusable("its bytes have no content id, and it announces nothing".into()));
    }
    let digests = match &root {
        Root::Content(content) => content.chunks.digests.iter().copied().map(Some).collect(),
        Root::Growing(_) => (0..plan.count()).map(|chunk| request.memory.digest(chunk)).collect(),
    };
    let missing = request.memory.missing();
    let wanted = missing.len() as usize;
    let pages = if options.pages_ahead {
        request.memory.pages_ahead(missing.iter().collect())
    } else {
        PagesAhead::none()
    };
    // A connection for less than a window of work is not worth its greeting.
    let missing_bytes = u64::from(missing.len()) * plan.chunk_size();
    let useful = usize::try_from(missing_bytes.div_ceil(options.window_bytes.max(1))).unwrap_or(usize::MAX);
    let streams = options.streams.min(useful).max(1);
    // What a seed that still loads gets in is soon sent on over one.
    let streams = if request.loading.is_some() { 1 } else { streams };
    let offers = if request.loading.is_some() { Offers::awaiting(missing) } else { Offers::of_all(missing) };
    let shared = Arc::new(Shared {
        options: options.clone(),
        peer,
        memory: request.memory.clone(),
        manifest: request.manifest.clone(),
        algorithm: options.verify.then_some(root.algorithm()),
        root,
        digests: Mutex::new(digests),
        wanted,
        pages,
        offers: Mutex::new(offers),
        announced: watch::Sender::new(0),
        key: request.key,
        point: request.point,
        source: request.loading.cloned(),
        suspect: Mutex::new(HashSet::new()),
        chunks: AtomicU32::new(0),
        bytes: AtomicU64::new(0),
        corrected: AtomicU32::new(0),
    });
    let mut connections = JoinSet::new();
    for _ in 0..streams {
        connections.spawn(run(shared.clone(), request.cancel.clone()));
    }
    let mut following: Option<Following> =
        request.loading.map(|_| Box::pin(follow(shared.clone())) as Following);
    let (mut first_error, mut refusal) = (None, None);
    loop {
        let (ended, may_be_spared) = tokio::select! {
            ended = connections.join_next() => match ended {
                Some(ended) => (ended, !connections.is_empty()),
                None => break,
            },
            // Without announcements nothing more is asked for.
            ended = followed(&mut following) => (Ok(ended), false),
        };
        let error = match ended {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(join) if join.is_cancelled() => continue,
            Err(join) => ReadError::Unusable { peer: shared.peer.clone(), reason: join.to_string() },
        };
        if may_be_spared && matches!(error, ReadError::Refused { .. }) {
            // A seed with room for one connection only is read over one.
            refusal = Some(error);
            continue;
        }
        // The first failure tells why; the others only follow from it.
        first_error.get_or_insert(error);
        connections.abort_all();
    }
    // Chunks that are left over were nobody's fault but the refused connections'.
    let left_over = refusal.filter(|_| !shared.is_done());
    match first_error.or(left_over) {
        Some(error) => Err(error),
        None => Ok(ReadReport {
            chunks: shared.chunks.load(Ordering::Relaxed),
            bytes: shared.bytes.load(Ordering::Relaxed),
            corrected: shared.corrected.load(Ordering::Relaxed),
        }),
    }
}

async fn run(shared: Arc<Shared>, cancel: CancellationToken) -> Result<(), ReadError> {
    let reading = async {
        // A corrupt chunk costs its connection; it is bounded by the chunks, as each may be corrupt once.
        loop {
            shared.ready().await;
            if shared.is_done() {
                break;
            }
            match connection(&shared).await? {
                After::Done => break,
                After::Corrupt | After::Idle => {}
            }
        }
        Ok(())
    };
    cancel.run_until_cancelled(reading).await.unwrap_or(Err(ReadError::Cancelled))
}

/// Why a connection ended well.
enum After {
    /// Nothing is left to ask for.
    Done,
    /// A chunk was corrupt for the first time: what else is in flight is asked for again, elsewhere.
    Corrupt,
    /// Nothing was offered for so long that the seed is about to close it.
    Idle,
}

/// One connection, from greeting to end.
async fn connection(shared: &Shared) -> Result<After, ReadError> {
    let options = &shared.options;
    let mut stream = greeted(shared).await?;
    let mut window = Window { shared, asked: VecDeque::new(), bytes: 0 };
    let mut last_chunk = Instant::now();
    loop {
        let owed = !window.asked.is_empty();
        let wanted = window.fill();
        if !wanted.is_empty() {
            if !owed {
                // No byte was due until now.
                shared.memory.arrivals().source(true);
                shared.know(|source| source.owes = true);
            }
            let read = Read::new(&wanted).map_err(|error| shared.protocol(&error))?;
            write_all(&mut stream, options.progress_timeout, &read.encode())
                .await
                .map_err(|e| shared.lost(&e))?;
        }
        let Some(expected) = window.asked.front().map(ChunkWriter::chunk) else {
            if shared.is_done() {
                return Ok(After::Done);
            }
            shared.know(|source| source.owes = false);
            match tokio::time::timeout(options.idle_timeout / 2, shared.ready()).await {
                Ok(()) => continue,
                Err(_) => return Ok(After::Idle),
            }
        };
        let head = read_exact::<ANSWER_BYTES>(&mut stream, options.progress_timeout).await;
        let answer =
            Answer::decode(&head.map_err(|error| shared.lost(&error))?).map_err(|e| shared.protocol(&e))?;
        if answer.chunk() != expected {
            return Err(shared.breaks(format!("it answered for chunk {} and not {expected}", answer.chunk())));
        }
        match answer {
            Answer::Chunk { len_bytes, .. } => {
                let Some(mut writer) = window.take() else { return Ok(After::Done) };
                if len_bytes != writer.len() as u64 {
                    return Err(shared.breaks(format!(
                        "it announced {len_bytes} bytes for chunk {expected}, which has {}",
                        writer.len()
                    )));
                }
                let arrived = |bytes: usize| {
                    shared.memory.arrivals().arrived(bytes as u64);
                };
                let stall = options.progress_timeout;
                let digest = receive_chunk(&mut stream, &mut writer, shared.algorithm, stall, arrived);
                let digest = digest.await.map_err(|error| shared.lost(&error))?;
                if !shared.accept(writer, digest)? {
                    return Ok(After::Corrupt);
                }
                last_chunk = Instant::now();
            }
            Answer::NotYet { .. } if last_chunk.elapsed() < shared.not_yet_timeout() => {}
            Answer::NotYet { .. } => {
                let reason = format!("chunk {expected} did not come within {:?}", shared.not_yet_timeout());
                return Err(ReadError::Lost { peer: shared.peer.clone(), reason });
            }
            Answer::Failed { failure, .. } => {
                let reason = match failure {
                    Failure::NoSuchChunk => "it knows no such chunk",
                    Failure::NotHeld => "it waited for the chunk in vain",
                    Failure::Stopping => "it is going away",
                };
                return Err(ReadError::Lost { peer: shared.peer.clone(), reason: reason.into() });
            }
        }
    }
}

/// Connects, and is welcome to read the chunks that are missing.
async fn greeted(shared: &Shared) -> Result<Link, ReadError> {
    let (stream, _) = welcomed(shared, 0).await?;
    Ok(stream)
}

/// Connects with these features, and is welcome. Gives those that the seed has, too.
pub(super) async fn welcomed(shared: &Shared, features: u32) -> Result<(Link, u32), ReadError> {
    let (stream, welcome) =
        greet(&shared.options, (&shared.peer, shared.key), shared.hello(features)).await?;
    if let Some(reason) = refused(&welcome) {
        return Err(ReadError::Refused { peer: shared.peer.clone(), reason });
    }
    let plan = shared.memory.plan();
    if (welcome.chunk_size, welcome.chunk_count) != (plan.chunk_size(), plan.count()) {
        return Err(shared.breaks("it serves other chunks than its metadata says".into()));
    }
    Ok((stream, welcome.features))
}

/// Whether somebody with this content is there. One that has no room for a reader just now is.
pub(super) async fn look_in(options: &TcpOptions, peer: &str, content: ContentId) -> Result<(), ReadError> {
    let hello = Hello { version: VERSION, features: 0, root: content.hash, identity: Vec::new() };
    let (_, welcome) = greet(options, (peer, options.key.as_ref().map(OwnKey::hash)), hello).await?;
    match refused(&welcome) {
        Some(reason) if welcome.refusal != Some(Refusal::Busy) => {
            Err(ReadError::Refused { peer: peer.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// Connects, says what is wanted, and hears what the seed says to that.
async fn greet(
    options: &TcpOptions,
    (peer, key): (&str, Option<KeyHash>),
    hello: Hello,
) -> Result<(Link, Welcome), ReadError> {
    let (lost, protocol) =
        (|error: io::Error| lost(peer, &error), |error: FrameError| breaks(peer, error.to_string()));
    let deadline = options.connect_timeout;
    let stream = within(deadline, TcpStream::connect(peer)).await.map_err(lost)?;
    prepare(&stream).map_err(lost)?;
    let mut stream = within(deadline, Link::connect(stream, key)).await.map_err(lost)?;
    write_all(&mut stream, deadline, &hello.encode().map_err(protocol)?).await.map_err(lost)?;
    let welcome = read_exact::<WELCOME_BYTES>(&mut stream, deadline).await.map_err(lost)?;
    Ok((stream, Welcome::decode(&welcome).map_err(protocol)?))
}

/// Why a seed lets nobody read, if it does not.
fn refused(welcome: &Welcome) -> Option<String> {
    Some(match welcome.refusal? {
        Refusal::Version => format!("it speaks version {} and not {VERSION}", welcome.version),
        Refusal::OtherContent => "it holds other weights by now".into(),
        Refusal::Busy => "it serves as many readers as it may (rfork_seed_max_readers)".into(),
        Refusal::NotAllowed => "this worker may not read from it: another one has its place".into(),
        Refusal::Stopping => "it is going away".into(),
    })
}

fn lost(peer: &str, error: &io::Error) -> ReadError {
    let peer = peer.to_owned();
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Lost { peer, reason: "it closed the connection".into() },
        io::ErrorKind::TimedOut => ReadError::Silent { peer, reason: error.to_string() },
        _ => ReadError::Lost { peer, reason: error.to_string() },
    }
}

fn breaks(peer: &str, reason: String) -> ReadError {
    ReadError::Protocol { peer: peer.to_owned(), reason }
}

/// The chunks that a connection has asked for and not received. Dropped, it puts them back.
struct Window<'a> {
    shared: &'a Shared,
    asked: VecDeque<ChunkWriter>,
    bytes: u64,
}

impl Window<'_> {
    /// Takes chunks while there is room, and not more than one READ may ask for. Two at least, whatever their
    /// size: with one, the seed would have nothing to send from a chunk's end until the next request is there.
    fn fill(&mut self) -> Vec<u32> {
        let options = &self.shared.options;
        let mut wanted = Vec::new();
        // Asking again only when half the window is free makes fewer, larger requests.
        if self.asked.len() >= MIN_AHEAD && self.bytes > options.window_bytes / 2 {
            return wanted;
        }
        while (self.asked.len() < MIN_AHEAD || self.bytes < options.window_bytes)
            && wanted.len() < MAX_RANGES.min(MAX_CHUNKS_PER_READ as usize)
        {
            let Some(chunk) = self.shared.offers().take() else { break };
            // Somebody else may have filled it; then it is not missing any more.
            let Some(writer) = self.shared.memory.begin_write(chunk) else { continue };
            self.bytes += writer.len() as u64;
            self.asked.push_back(writer);
            wanted.push(chunk);
        }
        let left = self.shared.offers().left();
        self.shared.pages.reached(self.shared.wanted.saturating_sub(left));
        wanted
    }

    fn take(&mut self) -> Option<ChunkWriter> {
        let writer = self.asked.pop_front()?;
        self.bytes -= writer.len() as u64;
        Some(writer)
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        while let Some(writer) = self.asked.pop_back() {
            let chunk = writer.chunk();
            // First it must be free again, or the next who takes it from the queue would pass it over.
            drop(writer);
            self.shared.offers().put_back(chunk);
        }
    }
}

impl Shared {
    /// A greeting of this reader's.
    fn hello(&self, features: u32) -> Hello {
        let hello = Hello { version: VERSION, features, root: self.root.name(), identity: Vec::new() };
        match self.point {
            Some(point) => hello.holding(point),
            None => hello,
        }
    }

    /// How long it puts up with "not yet".
    fn not_yet_timeout(&self) -> Duration {
        let TcpOptions { not_yet_timeout, complete_timeout, .. } = self.options;
        if self.source.is_some() { not_yet_timeout } else { not_yet_timeout.min(complete_timeout) }
    }

    fn offers(&self) -> std::sync::MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the seed holds, and tells those who wait for it.
    pub(super) fn offer(&self, note: impl FnOnce(&mut Offers)) {
        note(&mut self.offers());
        self.announced.send_modify(|announced| *announced += 1);
    }

    /// Notes what is known of a seed that still loads.
    pub(super) fn know(&self, note: impl FnOnce(&mut SourceState)) {
        if let Some(source) = &self.source {
            source.send_modify(note);
        }
    }

    /// Waits until a chunk can be asked for, or all is done.
    async fn ready(&self) {
        // Excluded: an announcement between the look and the wait is missed. The subscription begins before the look.
        let mut announced = self.announced.subscribe();
        while !self.offers().is_ready() && !self.is_done() {
            // The sender lives in `self`, which lives while this future does.
            let _ = announced.changed().await;
        }
    }

    /// Whether nothing is left to ask for, and it is known which content that is.
    fn is_done(&self) -> bool {
        self.offers().is_done() && (matches!(self.root, Root::Content(_)) || self.memory.content().is_some())
    }

    /// The digests that are known. The guard is never held across an await.
    pub(super) fn digests(&self) -> std::sync::MutexGuard<'_, Box<[Option<Digest>]>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a chunk whose digest is right. `false`: it is corrupt for the first time and asked for again.
    fn accept(&self, writer: ChunkWriter, got: Option<Digest>) -> Result<bool, ReadError> {
        let (chunk, bytes) = (writer.chunk(), writer.len() as u64);
        let expected = self.digests().get(chunk as usize).copied().flatten();
        let mut suspect = self.suspect.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(got), Some(expected)) = (got, expected)
            && got != expected
        {
            tracing::warn!(peer = %self.peer, chunk, "a chunk is corrupt");
            drop(writer);
            if !suspect.insert(chunk) {
                return Err(ReadError::Corrupt { peer: self.peer.clone(), chunk, got, expected });
            }
            self.offers().put_back(chunk);
            return Ok(false);
        }
        if suspect.contains(&chunk) {
            self.corrected.fetch_add(1, Ordering::Relaxed);
        }
        // Whoever does not verify takes the seed's word for it.
        match got.or(expected) {
            Some(digest) => writer.commit_as(digest),
            None => writer.commit(),
        }
        self.chunks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(true)
    }

    pub(super) fn lost(&self, error: &io::Error) -> ReadError {
        lost(&self.peer, error)
    }

    pub(super) fn protocol(&self, error: &FrameError) -> ReadError {
        self.breaks(error.to_string())
    }

    pub(super) fn breaks(&self, reason: String) -> ReadError {
        breaks(&self.peer, reason)
    }
}
