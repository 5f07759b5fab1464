//! The metadata service of a worker that serves its weights: what it holds, and where to read it.
//!
//! It answers from documents that were made once, so a request costs a copy to a socket. Slow or silent
//! clients are closed and connections are bounded, because the process around it runs inference. When there are as many as
//! may be, the one makes room that has asked for nothing, or taken nothing of its answer, for longest.
//!
//! A worker that still loads listens before it has documents. A request may wait for them, for a bounded time. It is
//! healthy from then on, as peers may read there, and ready once it holds everything.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::metadata::{
    EntryFields, FETCH_SEED_PATH, HEALTH_PATH, HELD_PATH, INFO_PATH, MAX_WAIT_MS, Metadata, READY_PATH,
    SERVICE_HEADER, SHAPE_INFO_PATH, WAIT_PARAMETER, encode_other_key, encode_other_key_shapes,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::memory::WeightMemory;
use crate::listen::listen;
use crate::places::{Place, Places};

mod held;

use held::{Held, held};

/// Connections served at once. More take the place of silent ones, or wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client that has just come is left to send its request, even if others wait.
const GRACE: Duration = Duration::from_millis(10);
/// Requests that wait for documents at once: the other connections are for health checks, and for those who ask for what
/// there is.
const MAX_WAITING: usize = MAX_CONNECTIONS / 2;
/// How long a client may take to send a request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long one connection may live; a manifest of 100,000 tensors is sent in a fraction of it.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(120);
/// How long the service waits for requests in flight when it is stopped.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// The metadata service could not start.
#[derive(Debug, thiserror::Error)]
pub enum SeedServiceError {
    /// The address could not be listened on.
    #[error("the seed service cannot listen on {address}: {source}; set rfork_seed_bind_host")]
    Bind {
        /// Host and port that were tried.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What is served under the key.
#[derive(Debug)]
struct Documents {
    info: Bytes,
    shapes: Bytes,
}

/// What the service and its connections share.
#[derive(Debug)]
struct Shared {
    key: SeedKey,
    /// The service's [`SeedService::id`].
    id: String,
    /// `None` while there is nothing to be told.
    documents: watch::Sender<Option<Arc<Documents>>>,
    /// Whether it holds everything, and the planner has it.
    complete: AtomicBool,
    waiting: Places,
    /// What is told to those who read by address while this worker loads.
    held: Held,
    stop: CancellationToken,
}

/// Says at [`READY_PATH`] that a worker holds everything, and that the planner has taken it as a seed. It is not taken back: a
/// planner that is away for a while makes no worker less ready.
#[derive(Debug)]
pub struct Readiness(Arc<Shared>);

impl Readiness {
    /// Says so.
    pub fn say(&self) {
        self.0.complete.store(true, Ordering::Release);
    }
}

/// A running metadata service. It stops when dropped; [`SeedService::stop`] also waits for it.
#[derive(Debug)]
pub struct SeedService {
    address: SocketAddr,
    shared: Arc<Shared>,
    connections: TaskTracker,
}

impl SeedService {
    /// Listens on `port` (0 takes a free one) of `host`, or of every address of this machine. Those who name `key` are
    /// told nothing until there is something [to tell](SeedService::publish).
    ///
    /// # Errors
    /// [`SeedServiceError::Bind`].
    pub async fn start(host: Option<&str>, port: u16, key: &SeedKey) -> Result<Self, SeedServiceError> {
        Self::start_with(host, port, key, HEAD_DEADLINE).await
    }

    async fn start_with(
        host: Option<&str>,
        port: u16,
        key: &SeedKey,
        head_deadline: Duration,
    ) -> Result<Self, SeedServiceError> {
        let failed = |source| {
            let address = format!("{} port {port}", host.unwrap_or("every address"));
            SeedServiceError::Bind { address, source }
        };
        let listener = listen(host, port).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let shared = Arc::new(Shared {
            key: key.clone(),
            id,
            documents: watch::Sender::new(None),
            complete: AtomicBool::new(false),
            waiting: Places::new(MAX_WAITING, GRACE),
            held: Held::new(),
            stop: CancellationToken::new(),
        });
        let router = Router::new()
            .route(INFO_PATH, get(info))
            .route(SHAPE_INFO_PATH, get(shape_info))
            .route(HELD_PATH, get(held))
            .route(FETCH_SEED_PATH, get(|| async { Json(serde_json::json!({"status": "ok"})) }))
            .route(HEALTH_PATH, get(health))
            .route(READY_PATH, get(ready))
            .with_state(shared.clone());
        let connections = TaskTracker::new();
        let serving = Serving { router, head_deadline, stop: shared.stop.clone() };
        connections.spawn(accept(listener, serving, connections.clone()));
        Ok(Self { address, shared, connections })
    }

    /// Tells this from now on to those who name the key, and to those who wait for it.
    pub fn publish(&self, metadata: &Metadata, fields: EntryFields) {
        let (info, shapes) = (metadata.encode(fields).into(), metadata.encode_shapes().into());
        self.shared.documents.send_replace(Some(Arc::new(Documents { info, shapes })));
    }

    /// By which it is said that the worker is a seed.
    pub fn readiness(&self) -> Readiness {
        Readiness(self.shared.clone())
    }

    /// Tells those who read by address what `memory` holds, as it comes, until this is [withdrawn](SeedService::withdraw): until
    /// then nobody may change what it holds.
    pub fn offer(&self, memory: &Arc<WeightMemory>) {
        self.shared.held.offer(memory);
    }

    /// How many are told that, and lack something.
    pub fn readers(&self) -> usize {
        self.shared.held.readers_now()
    }

    /// Tells nothing any more, until there is something again. Those who read by address learn that what they read from now
    /// on does not count.
    pub fn withdraw(&self) {
        self.shared.documents.send_replace(None);
        self.shared.held.withdraw();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its health checks name it, and no other service.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Stops accepting, lets requests in flight finish for a bounded time, and returns.
    pub async fn stop(self) {
        self.shared.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(STOP_DEADLINE, self.connections.wait()).await.is_err() {
            tracing::warn!("requests to the seed service were still running after {STOP_DEADLINE:?}");
        }
    }
}

impl Drop for SeedService {
    fn drop(&mut self) {
        // Excluded: a request that is answered after this names the epoch, although the memory may be its owner's again.
        self.withdraw();
        self.shared.stop.cancel();
    }
}

/// What each connection is served.
#[derive(Clone)]
struct Serving {
    router: Router,
    head_deadline: Duration,
    stop: CancellationToken,
}

/// Accepts until stopped. It owns the listener; each connection owns its place and ends with `stop`.
async fn accept(listener: TcpListener, serving: Serving, connections: TaskTracker) {
    let places = Places::new(MAX_CONNECTIONS, GRACE);
    loop {
        // Accepted first: a silent one makes room only for somebody who is there.
        let accepted = async {
            let (stream, peer) = listener.accept().await?;
            let place = places.enter(peer.ip()).await;
            Ok::<_, std::io::Error>((stream, peer.ip(), place))
        };
        let (stream, address, place) = tokio::select! {
            () = serving.stop.cancelled() => return,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, say: not a reason to end, nor to spin.
                    tracing::warn!(%error, "the seed service could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (serving, places) = (serving.clone(), places.clone());
        connections.spawn(async move {
            // Not before the next is accepted: an address that has its share keeps no others waiting.
            let place = match place {
                Some(place) => Some(place),
                None => serving.stop.run_until_cancelled(places.wait(address, HEAD_DEADLINE)).await.flatten(),
            };
            let Some(place) = place else { return };
            let ended = place.ended.clone();
            tokio::select! {
                // What has come of it meanwhile is answered, if that can be done at once: who asks in time is not silent because
                // this process was busy.
                biased;
                () = connection(stream, (place, address), serving) => {}
                () = ended.cancelled() => {
                    tracing::debug!("a silent connection to the seed service made room for another");
                }
            }
        });
    }
}

/// One connection. Its client says something when a request of it is whole; from then until the answer is ready it stays.
async fn connection(stream: TcpStream, (place, address): (Place, IpAddr), serving: Serving) {
    let Serving { router, head_deadline, stop } = serving;
    let place = Arc::new(place);
    let stream = Noted { stream, place: place.clone() };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(Peer(address));
        let place = place.clone();
        place.speaks();
        let answering = router.call(request);
        async move {
            let answer = answering.await;
            place.falls_silent();
            answer
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head_deadline);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::time::timeout(CONNECTION_DEADLINE, async {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    });
    if let Ok(Err(error)) = ended.await {
        tracing::debug!(%error, "a connection to the seed service ended early");
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// A connection whose client is not silent while it takes what it is sent.
struct Noted {
    stream: TcpStream,
    place: Arc<Place>,
}

impl Noted {
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.place.moves();
        }
        written
    }
}

impl AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Noted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn info(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Response {
    let right = |documents: &Documents| documents.info.clone();
    answer(&shared, (query.as_deref(), peer), right, encode_other_key).await
}

async fn shape_info(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Response {
    let right = |documents: &Documents| documents.shapes.clone();
    answer(&shared, (query.as_deref(), peer), right, encode_other_key_shapes).await
}

async fn answer(
    shared: &Shared,
    (query, peer): (Option<&str>, Peer),
    right: impl FnOnce(&Documents) -> Bytes,
    wrong: impl FnOnce() -> String,
) -> Response {
    let Some(asked) = query.and_then(seed_key_of) else {
        return (StatusCode::BAD_REQUEST, "missing query parameter: seed_key").into_response();
    };
    let body = if is_key(&shared.key, &asked) {
        let Some(documents) = shared.documents(query.map_or(Duration::ZERO, wait_of), peer).await else {
            return (StatusCode::SERVICE_UNAVAILABLE, "this worker does not know its weights yet")
                .into_response();
        };
        right(&documents)
    } else {
        wrong().into()
    };
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl Shared {
    /// What there is to tell, once there is, if that is within `wait` and nobody stops the service.
    async fn documents(&self, wait: Duration, Peer(address): Peer) -> Option<Arc<Documents>> {
        let mut told = self.documents.subscribe();
        let now = told.borrow_and_update().clone();
        if now.is_some() || wait.is_zero() {
            return now;
        }
        let place = self.waiting.enter(address).await?;
        place.speaks();
        let coming = self.stop.run_until_cancelled(told.wait_for(Option::is_some));
        tokio::time::timeout(wait, coming).await.ok()??.ok()?.clone()
    }
}

async fn health(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let status = match query.as_deref().and_then(seed_key_of) {
        Some(asked) if is_key(&shared.key, &asked) => StatusCode::OK,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, [(SERVICE_HEADER, shared.id.clone())]).into_response()
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.complete.load(Ordering::Acquire) {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "this worker still loads, or the planner has not taken it as a seed yet",
        )
    }
}

/// The bytes of the query's `seed_key`. Decoded here because a key need not be UTF-8.
fn seed_key_of(query: &str) -> Option<Vec<u8>> {
    let value = parameter(query, "seed_key")?;
    Some(percent_encoding::percent_decode_str(&value.replace('+', " ")).collect())
}

/// How long the query lets the answer take; no time if it says nothing that can be read.
fn wait_of(query: &str) -> Duration {
    let wait_ms = parameter(query, WAIT_PARAMETER).and_then(|value| value.parse().ok()).unwrap_or(0);
    Duration::from_millis(MAX_WAIT_MS.min(wait_ms))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn is_key(key: &SeedKey, asked: &[u8]) -> bool {
    key.as_bytes() == asked || std::str::from_utf8(asked).is_ok_and(|text| key.is_text(text))
}

#[cfg(test)]
mod tests;
