//! The HTTP server around the routes: bounded connections, deadlines, an orderly end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::header;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::client::{self, Client};
use super::delivery::{Delivery, Watched};
use super::handshake::shake;
use super::socket::Socket;
use crate::config::Bounds;
use crate::domain::network::Network;
use crate::metrics::{Handshake, Metrics};
use crate::shares::{Part, Pool, Short};
use crate::shutdown::Stop;
use crate::tls::Tls;

/// Connections beyond the bound that wait for a place. Probes are answered there.
pub(super) const HALL: usize = 64;
/// Connections of the port for probes.
const PROBES: usize = 64;
/// Room for a request's head: a key of 8 KiB in both spellings, and the rest. Also the most that is read.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// After this another connection is told to make room, if the one before did not: it was still being answered.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection is left that a client of many wants.
const LONG_IDLE: Duration = Duration::from_secs(1);

/// What is served, and how.
#[derive(Debug, Clone)]
pub struct Served<'a> {
    /// What a connection is served by that is accepted while `opened` is nothing.
    pub opening: Router,
    /// What it is served by else.
    pub opened: watch::Receiver<Option<Router>>,
    /// What it speaks TLS with, if it does, and where handshakes are counted.
    pub tls: Option<(Tls, Arc<Metrics>)>,
    /// The networks of those that speak for others: [`client::address`].
    pub proxies: Arc<[Network]>,
    /// How long what may take.
    pub bounds: &'a Bounds,
    /// Tells when the planner ends.
    pub stop: &'a Stop,
}

/// Serves until `stop`, drains, then accepts no more and lets what runs finish within the request deadline. Dropped
/// before, it drops all connections. They take places of `pool`.
pub async fn serve(listener: TcpListener, pool: Pool, served: Served<'_>) {
    accept(listener, pool, served, false).await;
}

/// The same for a port where nothing but probes is served, without TLS.
pub async fn serve_probes(listener: TcpListener, served: Served<'_>) {
    let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
    tracing::info!(%address, "the planner answers probes");
    accept(listener, Pool::uncounted(PROBES), Served { tls: None, ..served }, true).await;
}

async fn accept(listener: TcpListener, pool: Pool, served: Served<'_>, only_probes: bool) {
    let Served { opening, opened, tls, proxies, bounds, stop } = served;
    let places = Arc::new(Places::new(pool));
    let connections = TaskTracker::new();
    let given_up = CancellationToken::new();
    let _dropped = given_up.clone().drop_guard();
    let closing = stop.close_after(bounds.drain);
    tokio::pin!(closing);
    loop {
        // Accepted first: nobody makes room for somebody who is not there.
        let accepted = async {
            let (stream, address) = listener.accept().await?;
            let peer = Peer::new(address.ip(), proxies.clone());
            let entry = places.enter(peer.share()).await;
            Ok::<_, std::io::Error>((stream, peer, entry))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = closing.as_mut() => break,
        };
        match accepted {
            Ok((stream, peer, Some(entry))) => {
                let router = opened.borrow().clone().unwrap_or_else(|| opening.clone());
                let limits = Limits { idle: bounds.idle, deadline: bounds.deadline, only_probes };
                let visit = Visit { peer, places: places.clone(), limits, tls: tls.clone() };
                let connection = connection(stream, visit, entry, router, stop.clone());
                connections.spawn(given_up.clone().run_until_cancelled_owned(connection));
            }
            Ok((.., None)) => break,
            Err(error) => {
                // Out of file descriptors, say: not a reason to end, nor to spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let deadline = bounds.deadline;
    if tokio::time::timeout(deadline, connections.wait()).await.is_err() {
        tracing::warn!("requests were still running {deadline:?} after the stop; they are dropped");
        given_up.cancel();
        connections.wait().await;
    }
}

/// Places for connections. Whoever comes when there is none for it waits in the hall until one of a connection that has no
/// request is free: the one that was silent or idle for longest goes. A hall that is full makes room in the same way: who
/// has waited there for longest is refused.
struct Places {
    pool: Pool,
    hall: Arc<Semaphore>,
    /// Told when somebody needs a place. Connections without a request wait for it, and the first of them is told.
    needed: Notify,
    /// Told when a client that has more than its share wants another one. Only who had no request for [`LONG_IDLE`] goes
    /// for that: else whoever floods the planner would have others go before their first request is here.
    wanted: Notify,
    /// Told when somebody needs room in the hall, in which all wait for it.
    hall_needed: Notify,
}

/// What lets a connection be there.
enum Entry {
    Placed { _part: Part },
    InHall { _permit: OwnedSemaphorePermit },
}

/// Whether the requests of a connection are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Probes are; others wait.
    InHall,
    Placed,
    /// Probes are; others are refused.
    Refused,
}

impl Places {
    fn new(pool: Pool) -> Self {
        let hall = Arc::new(Semaphore::new(HALL));
        Self { pool, hall, needed: Notify::new(), wanted: Notify::new(), hall_needed: Notify::new() }
    }

    /// Lets somebody in: to a place, or to the hall as soon as that has room. `None` never comes, for the hall is not
    /// closed.
    async fn enter(&self, client: Option<IpAddr>) -> Option<Entry> {
        if let Ok(part) = self.pool.take(client, 1) {
            return Some(Entry::Placed { _part: part });
        }
        loop {
            if let Ok(permit) = self.hall.clone().try_acquire_owned() {
                return Some(Entry::InHall { _permit: permit });
            }
            self.hall_needed.notify_one();
            if let Ok(permit) = tokio::time::timeout(ROOM_PAUSE, self.hall.clone().acquire_owned()).await {
                forget(&self.hall_needed);
                return Some(Entry::InHall { _permit: permit.ok()? });
            }
        }
    }

    /// Waits in the hall for a place.
    async fn place(&self, client: Option<IpAddr>) -> Part {
        loop {
            // From before the look, so that nothing is missed that is given back after it.
            let mut freed = pin!(self.pool.freed());
            freed.as_mut().enable();
            match self.pool.take(client, 1) {
                Ok(part) => {
                    forget(&self.needed);
                    forget(&self.wanted);
                    return part;
                }
                Err(Short::Full) => self.needed.notify_one(),
                Err(Short::Share) => self.wanted.notify_one(),
            }
            let _ = tokio::time::timeout(ROOM_PAUSE, freed).await;
        }
    }

    /// What becomes of a connection that is not ended from outside: it ends when its place is needed by somebody else and
    /// it has no request, or when it is refused one. Gives what it has to keep until it is closed.
    async fn stay(
        &self,
        entry: Entry,
        client: Option<IpAddr>,
        standing: &watch::Sender<Standing>,
        idle: &Idle,
    ) -> Entry {
        let placed = match entry {
            Entry::Placed { .. } => entry,
            Entry::InHall { .. } => {
                tokio::select! {
                    part = self.place(client) => {
                        // Else it would keep its room in the hall for as long as it is connected.
                        drop(entry);
                        Entry::Placed { _part: part }
                    }
                    () = self.hall_needed.notified() => {
                        standing.send_replace(Standing::Refused);
                        return entry;
                    }
                }
            }
        };
        standing.send_replace(Standing::Placed);
        self.needed_of(idle).await;
        placed
    }

    /// Ends when somebody needs the place of a connection, and it is idle. To be polled after whatever changes `idle`.
    async fn needed_of(&self, idle: &Idle) {
        let (mut needed, mut wanted) = (pin!(None), pin!(None));
        poll_fn(|context| {
            if !idle.is() {
                // Another one is told in its stead; it is the last in the row when it is idle again.
                needed.set(None);
                wanted.set(None);
                return Poll::Pending;
            }
            if needed.is_none() {
                needed.set(Some(self.needed.notified()));
                wanted.set(Some(self.wanted.notified()));
            }
            if is_told(needed.as_mut(), context) {
                return Poll::Ready(());
            }
            while is_told(wanted.as_mut(), context) {
                if idle.for_long() {
                    return Poll::Ready(());
                }
                wanted.set(Some(self.wanted.notified()));
            }
            Poll::Pending
        })
        .await;
    }
}

fn is_told(told: Pin<&mut Option<Notified<'_>>>, context: &mut Context<'_>) -> bool {
    told.as_pin_mut().is_some_and(|told| told.poll(context).is_ready())
}

/// Whether a connection has no request: silent from the beginning, or waiting for its next one.
struct Idle {
    is: AtomicBool,
    /// Milliseconds after `begun`.
    since_ms: AtomicU64,
    begun: Instant,
}

impl Idle {
    fn new() -> Self {
        Self { is: AtomicBool::new(true), since_ms: AtomicU64::new(0), begun: Instant::now() }
    }

    fn is(&self) -> bool {
        self.is.load(Ordering::Relaxed)
    }

    fn ends(&self) {
        self.is.store(false, Ordering::Relaxed);
    }

    fn begins(&self) {
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since_ms.store(now_ms, Ordering::Relaxed);
        self.is.store(true, Ordering::Relaxed);
    }

    fn for_long(&self) -> bool {
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(since) >= LONG_IDLE
    }
}

/// What nobody was there to hear is needed no more.
fn forget(needed: &Notify) {
    let _ = needed.notified().now_or_never();
}

/// The other end of a connection.
#[derive(Clone)]
struct Peer {
    address: IpAddr,
    proxies: Arc<[Network]>,
}

impl Peer {
    fn new(address: IpAddr, proxies: Arc<[Network]>) -> Self {
        Self { address: address.to_canonical(), proxies }
    }

    /// Whose share of the connections it takes. A trusted proxy speaks for many, and has no share.
    fn share(&self) -> Option<IpAddr> {
        let is_proxy = self.proxies.iter().any(|network| network.holds(self.address));
        (!is_proxy).then_some(self.address)
    }
}

/// How long what may take, and what is served.
#[derive(Clone, Copy)]
struct Limits {
    idle: Duration,
    deadline: Duration,
    only_probes: bool,
}

impl Limits {
    /// Whether a request is served that is no probe, once that is decided.
    async fn serves(self, stands: &mut watch::Receiver<Standing>) -> bool {
        if self.only_probes {
            return false;
        }
        let decided = stands.wait_for(|standing| *standing != Standing::InHall);
        let decided = tokio::time::timeout(self.deadline, decided).await;
        decided.is_ok_and(|standing| standing.is_ok_and(|standing| *standing == Standing::Placed))
    }
}

/// Who is connected, and where.
struct Visit {
    peer: Peer,
    places: Arc<Places>,
    limits: Limits,
    tls: Option<(Tls, Arc<Metrics>)>,
}

impl Visit {
    /// What is spoken over, once it is known; `None` if nothing can be.
    async fn begun(&self, stream: TcpStream) -> Option<Socket> {
        let Some((tls, metrics)) = &self.tls else { return Some(Socket::Plain(stream)) };
        let shaken = shake(stream, tls, self.limits.idle).await;
        metrics.handshake(shaken.as_ref().err().copied().unwrap_or(Handshake::Done));
        shaken.ok()
    }
}

/// One connection. It owns its place; a stop lets the request that runs finish and closes it then.
async fn connection(stream: TcpStream, visit: Visit, entry: Entry, router: Router, stop: Stop) {
    let Visit { peer, places, limits, .. } = &visit;
    let limits = *limits;
    // Answers are small and awaited: they must not wait for more to send.
    let _ = stream.set_nodelay(true);
    // The system ends a connection whose client takes nothing of what it is sent.
    let _ = set_tcp_user_timeout(&stream, u32::try_from(limits.idle.as_millis()).unwrap_or(u32::MAX));
    let client = peer.share();
    let (standing, stands) = watch::channel(match entry {
        Entry::Placed { .. } => Standing::Placed,
        Entry::InHall { .. } => Standing::InHall,
    });
    let idle = Arc::new(Idle::new());
    let stay = places.stay(entry, client, &standing, &idle);
    tokio::pin!(stay);
    let begun = tokio::select! {
        biased;
        begun = visit.begun(stream) => begun,
        _ = stay.as_mut() => {
            tracing::debug!("a connection that has not begun makes room for another");
            None
        }
    };
    let Some(stream) = begun else { return };
    let delivery = Delivery::default();
    let names: Arc<[String]> = stream.client_names().into();
    let stream = Watched::new(stream, delivery.clone());
    let is_silent = Arc::new(AtomicBool::new(true));
    let (marked, spoke, peer) = (idle.clone(), is_silent.clone(), peer.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        marked.ends();
        spoke.store(false, Ordering::Relaxed);
        let idle = marked.clone();
        let (router, mut stands) = (router.clone(), stands.clone());
        let address = client::address(peer.address, request.headers(), &peer.proxies);
        let client = Client { address, names: names.clone(), delivery: delivery.clone() };
        async move {
            let mut request = super::single_slash(request.map(Body::new));
            let path = request.uri().path();
            let answer = if super::is_probe(path) || limits.serves(&mut stands).await {
                request.extensions_mut().insert(client);
                router.oneshot(request).await.into_response()
            } else {
                let refused = if limits.only_probes { super::no_probe() } else { super::overloaded(path) };
                ([(header::CONNECTION, "close")], refused).into_response()
            };
            idle.begins();
            Ok::<_, Infallible>(answer)
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut _kept = None;
    let told_to_end = async {
        tokio::select! {
            () = stop.closing() => None,
            kept = stay.as_mut() => {
                tracing::debug!("a connection without a request makes room for another");
                Some(kept)
            }
        }
    };
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        kept = told_to_end => {
            if kept.is_some() && is_silent.load(Ordering::Relaxed) {
                // In order, the server would wait for a first request.
                return;
            }
            // What it has of the places is another one's when it is closed.
            _kept = kept;
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
