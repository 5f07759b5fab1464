//! The HTTP server around the routes: bounded connections, deadlines, an orderly end.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::client::{self, Client};
use super::delivery::{Delivery, Watched};
use crate::config::Bounds;
use crate::domain::network::Network;
use crate::shutdown::Stop;

/// Open files that are left for the database, whose pool may have 100, and the rest of the process.
const OTHER_FILES: u64 = 256;
/// Room for a request's head: a key of 8 KiB in both spellings, and the rest. Also the most that is read.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// After this another idle connection makes room, if the one before did not: it was still being answered.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, drains, then accepts no more and lets what runs finish within the request deadline. Dropped
/// before, it drops all connections.
///
/// A connection is served by what `opened` is when it is accepted, or by `opening` while that is nothing.
/// `proxies` are the networks of those that speak for others: [`client::address`].
pub async fn serve(
    listener: TcpListener,
    opening: Router,
    opened: watch::Receiver<Option<Router>>,
    bounds: &Bounds,
    proxies: &Arc<[Network]>,
    stop: &Stop,
) {
    let places = Arc::new(Places::new(connection_limit(bounds.connections)));
    let connections = TaskTracker::new();
    let given_up = CancellationToken::new();
    let _dropped = given_up.clone().drop_guard();
    let closing = stop.close_after(bounds.drain);
    tokio::pin!(closing);
    loop {
        // Accepted first: an idle connection makes room only for somebody who is there.
        let accepted = async {
            let (stream, address) = listener.accept().await?;
            Ok::<_, std::io::Error>((stream, address, places.take().await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = closing.as_mut() => break,
        };
        match accepted {
            Ok((stream, address, Some(place))) => {
                let peer = Peer { address: address.ip(), proxies: proxies.clone() };
                let router = opened.borrow().clone().unwrap_or_else(|| opening.clone());
                let connection = connection(stream, peer, place, router, bounds.idle, stop.clone());
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

/// `wanted`, or fewer where the system lets the process have fewer open files: what can be accepted
/// can then be served.
fn connection_limit(wanted: usize) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let room = files
        .map_or(usize::MAX, |files| usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX));
    room.min(wanted).max(1)
}

/// Places for connections. Whoever comes when all are taken gets that of the connection that was idle for longest,
/// or waits for the first that ends or becomes idle.
struct Places {
    free: Arc<Semaphore>,
    /// Told when somebody needs a place. Idle connections wait for it, and the first of them is told.
    needed: Notify,
}

impl Places {
    fn new(places: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(places)), needed: Notify::new() }
    }

    /// Waits for a place; `None` never comes, for places are not closed.
    async fn take(self: &Arc<Self>) -> Option<Place> {
        let place = |free| Place { _free: free, places: self.clone() };
        if let Ok(free) = self.free.clone().try_acquire_owned() {
            return Some(place(free));
        }
        loop {
            self.needed.notify_one();
            if let Ok(free) = tokio::time::timeout(ROOM_PAUSE, self.free.clone().acquire_owned()).await {
                // What nobody was idle to hear is needed no more.
                let _ = self.needed.notified().now_or_never();
                return free.ok().map(place);
            }
        }
    }
}

/// What a connection has while it lives.
struct Place {
    _free: OwnedSemaphorePermit,
    places: Arc<Places>,
}

impl Place {
    /// Ends when somebody needs the place and the connection is idle. To be polled after whatever sets `is_idle`.
    async fn needed(&self, is_idle: &AtomicBool) {
        let mut told = pin!(None);
        poll_fn(|context| {
            if !is_idle.load(Ordering::Relaxed) {
                // Another one is told in its stead; it is the last in the row when it is idle again.
                told.set(None);
            } else if told.is_none() {
                told.set(Some(self.places.needed.notified()));
            }
            told.as_mut().as_pin_mut().map_or(Poll::Pending, |told| told.poll(context))
        })
        .await;
    }
}

/// The other end of a connection.
struct Peer {
    address: IpAddr,
    proxies: Arc<[Network]>,
}

/// One connection. It owns its place; a stop lets the request that runs finish and closes it then.
async fn connection(stream: TcpStream, peer: Peer, place: Place, router: Router, idle: Duration, stop: Stop) {
    // Answers are small and awaited: they must not wait for more to send.
    let _ = stream.set_nodelay(true);
    // The system ends a connection whose client takes nothing of what it is sent.
    let _ = set_tcp_user_timeout(&stream, u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
    let delivery = Delivery::default();
    let stream = Watched::new(stream, delivery.clone());
    // Whether it waits for its next request. One whose first is on its way is not idle.
    let is_idle = Arc::new(AtomicBool::new(false));
    let marked = is_idle.clone();
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        let address = client::address(peer.address, request.headers(), &peer.proxies);
        request.extensions_mut().insert(Client { address, delivery: delivery.clone() });
        super::single_slash(request.map(axum::body::Body::new))
    });
    let service = service.map_future(move |answer| {
        let is_idle = marked.clone();
        is_idle.store(false, Ordering::Relaxed);
        async move {
            let answer = answer.await;
            is_idle.store(true, Ordering::Relaxed);
            answer
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let told_to_end = async {
        tokio::select! {
            () = stop.closing() => {}
            () = place.needed(&is_idle) => tracing::debug!("an idle connection makes room for another"),
        }
    };
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = told_to_end => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
