//! The seed's side: connections, each served by one task, within bounds.
//!
//! A task owns its connection and a permit. Whatever goes wrong on a connection (a foreign preamble, a frame
//! that lies, a reader that takes nothing, a reader that vanishes) ends that task and frees its permit;
//! nothing else notices. The weights are only reached through [`ChunkReader`]s, so memory is given up only
//! when no task reads it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rfork_protocol::frame::{
    ANNOUNCEMENTS, Announcement, Answer, Failure, FrameError, HELLO_BYTES, Hello, MAGIC, MAX_CHUNKS_PER_READ,
    POINT, RANGE_BYTES, READ_BYTES, Read, Refusal, VERSION, Welcome, check_magic,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::TcpOptions;
use super::link::Link;
use super::pace::{Pace, Paid};
use super::points::Points;
use super::socket::{prepare, read_exact, send_chunk, within, write_all};
use super::throttle::Throttle;
use crate::engine::EngineError;
use crate::engine::memory::{ChunkReader, WeightMemory};
use crate::listen::listen;
use crate::places::{Place, Places};

/// How long ending may take: a system call that runs is the longest that a task does not notice a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that are being greeted at once. They are counted apart from the readers, so that peers that connect and say
/// nothing take no reader's place. When there are more, the one goes that has been silent for longest; if all have said whom
/// they want to read, the next is closed without a word.
const MAX_GREETINGS: usize = 64;
/// How long a peer that has just come is left to say something, even if others wait.
const GRACE: Duration = Duration::from_millis(10);
/// How long a reader that was just let in is left to ask for chunks, even if others wait: longer, for to lose a reader that
/// is only slow costs its load a source.
const READER_GRACE: Duration = Duration::from_millis(250);

/// What is served, and the connections that are served it.
#[derive(Debug)]
struct Service {
    memory: Arc<WeightMemory>,
    stop: CancellationToken,
    /// Until when its end may last, once that has begun.
    deadline: OnceLock<Instant>,
    connections: TaskTracker,
}

impl Service {
    fn of(memory: Arc<WeightMemory>) -> Self {
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        Self { memory, stop, deadline: OnceLock::new(), connections }
    }

    /// Ends its connections. Whoever calls it again waits no longer than the first one does: a connection that hangs hangs
    /// for all of them.
    async fn end(&self, patience: Duration) -> Result<(), EngineError> {
        self.stop.cancel();
        self.connections.close();
        let deadline = *self.deadline.get_or_init(|| Instant::now() + patience);
        if tokio::time::timeout_at(deadline, self.connections.wait()).await.is_err() {
            let waited_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            return Err(EngineError::StillRead { readers: self.connections.len(), waited_ms });
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Shared {
    options: TcpOptions,
    throttle: Throttle,
    greetings: Places,
    /// Connections for chunks. Who has asked for none yet is silent.
    readers: Places,
    /// Readers that are told what is held, apart from their connections for chunks. Of these nothing is heard; those with a
    /// leased point stay, and the others count as silent.
    followers: Places,
    /// Whose connections those of leased points are.
    points: Points,
    served_bytes: AtomicU64,
    /// `None` while nothing is registered.
    service: Mutex<Option<Arc<Service>>>,
}

/// The listening side of an engine.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortOnDropHandle<()>,
}

impl Server {
    pub(super) async fn bind(options: &TcpOptions) -> Result<Self, EngineError> {
        let host = options.bind_host.as_deref();
        let failed = |source| EngineError::Bind {
            address: format!("{} port {}", host.unwrap_or("every address"), options.bind_port),
            source,
        };
        let listener = listen(host, options.bind_port).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            throttle: Throttle::new(options.max_bytes_per_sec),
            greetings: Places::new(MAX_GREETINGS, GRACE),
            readers: Places::new(options.max_readers as usize, READER_GRACE),
            followers: Places::new(options.max_readers as usize, READER_GRACE),
            points: Points::default(),
            served_bytes: AtomicU64::new(0),
            service: Mutex::new(None),
            options: options.clone(),
        });
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, shared.clone())));
        Ok(Self { address, shared, accepting })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn readers(&self) -> usize {
        self.shared.service().as_ref().map_or(0, |service| service.connections.len())
    }

    pub(super) fn served_bytes(&self) -> u64 {
        self.shared.served_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn register(&self, memory: Arc<WeightMemory>) {
        let before = self.shared.service().replace(Arc::new(Service::of(memory)));
        if let Some(before) = before {
            before.stop.cancel();
        }
    }

    pub(super) async fn unregister(&self) -> Result<(), EngineError> {
        let Some(service) = self.shared.service().clone() else { return Ok(()) };
        service.end(STOP_DEADLINE).await?;
        let mut registered = self.shared.service();
        if registered.as_ref().is_some_and(|registered| Arc::ptr_eq(registered, &service)) {
            *registered = None;
        }
        Ok(())
    }

    pub(super) async fn stop(&self) {
        self.accepting.abort();
        if let Err(error) = self.unregister().await {
            tracing::warn!(%error, "the transfer engine ends all the same");
        }
    }
}

impl Shared {
    /// What is registered. The guard is never held across an await.
    fn service(&self) -> std::sync::MutexGuard<'_, Option<Arc<Service>>> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                // Out of file descriptors, say: not a reason to end, nor to spin.
                tracing::warn!(%error, "the transfer engine could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(greeting) = shared.greetings.enter(address).await else { continue };
        let (service, shared) = (shared.service().clone(), shared.clone());
        match service {
            Some(service) => {
                service.connections.clone().spawn(async move {
                    let stop = service.stop.clone();
                    // Cancelled between two system calls: no pointer into the memory is left.
                    let mut sent_bytes = 0;
                    let serving = serve(stream, (greeting, address), &shared, &service, &mut sent_bytes);
                    if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
                        tracing::debug!(%error, "a reader's connection ended");
                    }
                    // One that only looks whether somebody is here takes nothing.
                    if sent_bytes > 0 {
                        tracing::debug!(bytes = sent_bytes, "a reader was served");
                    }
                });
            }
            None => {
                tokio::spawn(async move {
                    if let Err(error) = refuse(stream, greeting, &shared.options).await {
                        tracing::debug!(%error, "a reader that is refused went away");
                    }
                });
            }
        }
    }
}

/// Tells a reader that nothing is served, within twice the deadline.
async fn refuse(stream: TcpStream, greeting: Place, options: &TcpOptions) -> Result<(), Ended> {
    let (mut stream, _) = greeted(stream, &greeting, options).await?;
    write_all(&mut stream, options.connect_timeout, &Welcome::refuse(Refusal::OtherContent).encode()).await?;
    Ok(())
}

/// A connection that ended early, with why.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it was silent, and made room for another")]
    MadeRoom,
}

/// Reads a reader's first frame, after its handshake where TLS is spoken. From then on its place among those that greet is its
/// own.
async fn greeted(stream: TcpStream, greeting: &Place, options: &TcpOptions) -> Result<(Link, Hello), Ended> {
    let deadline = options.connect_timeout;
    let greeted = async {
        let mut stream = within(deadline, Link::accept(stream, options.key.as_ref())).await?;
        let hello = hello(&mut stream, deadline).await?;
        Ok::<_, Ended>((stream, hello))
    };
    let greeted = tokio::select! {
        // What has come meanwhile counts: who speaks in time is not silent because this process was busy.
        biased;
        greeted = greeted => greeted?,
        () = greeting.ended.cancelled() => return Err(Ended::MadeRoom),
    };
    greeting.speaks();
    Ok(greeted)
}

/// Reads a reader's first frame. The magic comes first, so that a foreign preamble is closed at once and not
/// after a deadline for bytes that never come.
async fn hello(stream: &mut Link, deadline: Duration) -> Result<Hello, Ended> {
    let reading = async {
        let mut fixed = [0; HELLO_BYTES];
        let mut filled = 0;
        while filled < HELLO_BYTES {
            let read = within(deadline, stream.read(&mut fixed[filled..])).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            filled += read;
            let seen = filled.min(MAGIC.len());
            if fixed[..seen] != MAGIC[..seen] {
                check_magic(&fixed)?;
            }
        }
        let (mut hello, identity_len) = Hello::decode(&fixed)?;
        hello.identity = vec![0; identity_len];
        stream.read_exact(&mut hello.identity).await?;
        Ok(hello)
    };
    match tokio::time::timeout(deadline, reading).await {
        Ok(hello) => hello,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

/// Serves one reader until it goes away, counting the chunk bytes that it is sent.
async fn serve(
    stream: TcpStream,
    (greeting, address): (Place, IpAddr),
    shared: &Shared,
    service: &Service,
    sent_bytes: &mut u64,
) -> Result<(), Ended> {
    prepare(&stream)?;
    let options = &shared.options;
    let (mut stream, hello) = greeted(stream, &greeting, options).await?;
    let greeting = if greeting.ended.is_cancelled() {
        // It spoke as it made room.
        let again = shared.greetings.enter(address).await.ok_or(Ended::MadeRoom)?;
        again.speaks();
        again
    } else {
        greeting
    };
    let announces = hello.features & ANNOUNCEMENTS != 0;
    let held = match hello.point()? {
        Some(point) => shared.points.enter(point, options.connect_timeout).await.map(Some),
        None => Some(None),
    };
    let place = if hello.version != VERSION {
        Err(Refusal::Version)
    } else if !service.memory.is_named(&hello.root) {
        Err(Refusal::OtherContent)
    } else if held.is_none() {
        Err(Refusal::NotAllowed)
    } else {
        let places = if announces { &shared.followers } else { &shared.readers };
        places.enter(address).await.ok_or(Refusal::Busy)
    };
    let plan = service.memory.plan();
    let welcome = match &place {
        Err(refusal) => Welcome::refuse(*refusal),
        Ok(_) => Welcome {
            refusal: None,
            version: VERSION,
            features: hello.features & (ANNOUNCEMENTS | POINT),
            chunk_size: plan.chunk_size(),
            chunk_count: plan.count(),
            max_chunks_per_read: MAX_CHUNKS_PER_READ,
        },
    };
    write_all(&mut stream, options.connect_timeout, &welcome.encode()).await?;
    drop(greeting);
    let Ok(place) = place else { return Ok(()) };
    let held = held.flatten();
    let serving = async {
        if announces {
            if held.is_some() {
                place.speaks();
            }
            announce(stream, options, &service.memory, &hello.root).await
        } else {
            // Whoever has a leased point may wait for long for what a seed that loads will hold.
            let makes_room = held.is_none();
            send(stream, shared, service, &hello.root, (&place, makes_room), sent_bytes).await
        }
    };
    let lost_its_point = async {
        match &held {
            Some(held) => held.ended.cancelled().await,
            None => std::future::pending().await,
        }
    };
    // Ended between two system calls, as by the end of the service.
    let ended = tokio::select! {
        biased;
        () = lost_its_point => Ok(()),
        () = place.ended.cancelled() => Err(Ended::MadeRoom),
        ended = serving => ended,
    };
    // Before the point is: who has that next needs the place.
    drop(place);
    ended
}

/// Sends the chunks that a reader asks for, until it goes away. One that makes room counts as silent when it has asked for
/// nothing for longer than it has paid for.
async fn send(
    mut stream: Link,
    shared: &Shared,
    service: &Service,
    root: &[u8; 32],
    (place, makes_room): (&Place, bool),
    sent_bytes: &mut u64,
) -> Result<(), Ended> {
    let (options, plan) = (&shared.options, service.memory.plan());
    let window = 2 * options.progress_timeout;
    let mut taking = Pace::new(options.least_bytes_per_sec, window);
    let mut paid = Paid::new(options.least_bytes_per_sec, window);
    loop {
        let idle_since = Instant::now();
        let asked = {
            let asking = read_exact::<READ_BYTES>(&mut stream, options.idle_timeout);
            tokio::pin!(asking);
            if let Ok(asked) = tokio::time::timeout(paid.left(), &mut asking).await {
                asked
            } else {
                if makes_room {
                    place.falls_silent();
                }
                asking.await
            }
        };
        paid.idled(idle_since.elapsed());
        let head = match asked {
            Ok(head) => head,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut ranges = vec![0; Read::decode_head(&head)? * RANGE_BYTES];
        within(options.connect_timeout, stream.read_exact(&mut ranges)).await?;
        let read = Read::decode_ranges(&ranges)?;
        place.speaks();
        for chunk in read.chunks() {
            let reader = if chunk < plan.count() {
                let reader = held(&mut stream, options, &service.memory, chunk).await?;
                // While this chunk is being read the content cannot change, but it may have since the greeting.
                reader.filter(|_| service.memory.is_named(root)).ok_or(Failure::NotHeld)
            } else {
                Err(Failure::NoSuchChunk)
            };
            let reader = match reader {
                Ok(reader) => reader,
                Err(failure) => {
                    let answer = Answer::Failed { chunk, failure };
                    write_all(&mut stream, options.connect_timeout, &answer.encode()).await?;
                    return Ok(());
                }
            };
            let len_bytes = reader.len() as u64;
            let head = Answer::Chunk { chunk, len_bytes }.encode();
            let stall = options.progress_timeout;
            let sent = send_chunk(&mut stream, &head, &reader, &shared.throttle, stall, &mut taking).await?;
            paid.took(sent as u64);
            *sent_bytes += sent as u64;
            shared.served_bytes.fetch_add(sent as u64, Ordering::Relaxed);
        }
    }
}

/// Tells a reader what is held, as it comes, and that this seed lives, until the reader goes away.
async fn announce(
    mut stream: Link,
    options: &TcpOptions,
    memory: &WeightMemory,
    root: &[u8; 32],
) -> Result<(), Ended> {
    // Excluded: a chunk comes between the look and the wait, and is announced only with the next. The subscription begins
    // before the first look.
    let (mut commits, mut cursor) = (memory.commits(), memory.held_cursor());
    let mut signs = tokio::time::interval(options.sign_interval);
    let write = async |stream: &mut Link, frame: &Announcement| {
        within(options.progress_timeout, stream.write_all(&frame.encode())).await
    };
    let grows = memory.growing().is_some_and(|growing| growing.origin.0 == *root);
    let (mut announced, mut is_final, mut byte) = (0, false, [0]);
    loop {
        // Excluded: a chunk of other bytes is announced. When everything was forgotten since, the log says so.
        let Some(mut chunks) = memory.held_since(&mut cursor, usize::MAX).filter(|_| memory.is_named(root))
        else {
            return Ok(());
        };
        if announced == 0 {
            chunks.sort_unstable();
        }
        announced += chunks.len();
        for frame in if grows { digested(memory, &chunks) } else { Announcement::held(chunks) } {
            write(&mut stream, &frame).await?;
        }
        let is_whole = announced == memory.plan().count() as usize;
        if let Some(content) = memory.content().filter(|_| grows && is_whole && !is_final) {
            write(&mut stream, &Announcement::Final(content.id.hash)).await?;
            is_final = true;
        }
        tokio::select! {
            // The sender lives in the memory.
            _ = commits.changed() => {}
            _ = signs.tick() => write(&mut stream, &Announcement::Alive(memory.sign_of_life())).await?,
            // It has nothing to say: it has gone, or speaks something else.
            _ = stream.read(&mut byte) => return Ok(()),
        }
    }
}

/// Announces chunks with their digests, which are known from before they are held.
fn digested(memory: &WeightMemory, chunks: &[u32]) -> Vec<Announcement> {
    let with_digest = |chunk: &u32| Some((*chunk, memory.digest(*chunk)?));
    Announcement::digested(&chunks.iter().filter_map(with_digest).collect::<Vec<_>>())
}

/// Waits for a chunk, telling the reader now and then that it is not there yet; `None` when that took too long.
async fn held(
    stream: &mut Link,
    options: &TcpOptions,
    memory: &Arc<WeightMemory>,
    chunk: u32,
) -> io::Result<Option<ChunkReader>> {
    if let Some(reader) = memory.begin_read(chunk) {
        return Ok(Some(reader));
    }
    let give_up = tokio::time::Instant::now() + options.held_timeout;
    let mut not_yet = tokio::time::interval(options.not_yet_interval);
    let arriving = memory.wait_held(chunk);
    tokio::pin!(arriving);
    loop {
        tokio::select! {
            reader = &mut arriving => return Ok(Some(reader)),
            () = tokio::time::sleep_until(give_up) => return Ok(None),
            _ = not_yet.tick() => {
                write_all(stream, options.progress_timeout, &Answer::NotYet { chunk }.encode()).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_hangs_is_waited_for_once() {
        let service = Service::of(WeightMemory::allocate(&[1]).unwrap());
        let hangs = service.connections.token();
        assert!(service.end(Duration::from_millis(10)).await.is_err());
        let again = tokio::select! {
            biased;
            again = service.end(Duration::from_secs(3_600)) => Some(again),
            () = std::future::ready(()) => None,
        };
        assert!(matches!(again, Some(Err(EngineError::StillRead { readers: 1, .. }))), "{again:?}");
        drop(hangs);
        service.end(Duration::from_secs(3_600)).await.unwrap();
    }
}
