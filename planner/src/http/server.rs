//! The HTTP server around the routes: bounded connections, deadlines, an orderly end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::client::{self, Client};
use super::delivery::{Delivery, Watched};
use crate::config::Bounds;
use crate::shutdown::Stop;

/// Open files that are left for the database, whose pool may have 100, and the rest of the process.
const OTHER_FILES: u64 = 256;
/// Room for a request's head: a key of 8 KiB in both spellings, and the rest. Also the most that is read.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Serves until `stop`, drains, then accepts no more and lets what runs finish within the request deadline.
///
/// `proxies` are the networks of those that speak for others: [`client::address`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: &Bounds,
    proxies: &Arc<[IpNet]>,
    stop: &Stop,
) {
    let permits = Arc::new(Semaphore::new(connection_limit(bounds.connections)));
    let connections = TaskTracker::new();
    let given_up = CancellationToken::new();
    let closing = stop.close_after(bounds.drain);
    tokio::pin!(closing);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = closing.as_mut() => break,
        };
        match accepted {
            Some((permit, Ok((stream, address)))) => {
                let peer = Peer { address: address.ip(), proxies: proxies.clone() };
                let connection = connection(stream, peer, permit, router.clone(), bounds.idle, stop.clone());
                connections.spawn(given_up.clone().run_until_cancelled_owned(connection));
            }
            Some((_, Err(error))) => {
                // Out of file descriptors, say: not a reason to end, nor to spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            None => break,
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

/// The other end of a connection.
struct Peer {
    address: IpAddr,
    proxies: Arc<[IpNet]>,
}

/// One connection. It owns its permit; a stop lets the request that runs finish and closes it then.
async fn connection(
    stream: TcpStream,
    peer: Peer,
    permit: OwnedSemaphorePermit,
    router: Router,
    idle: Duration,
    stop: Stop,
) {
    let _permit = permit;
    // Answers are small and awaited: they must not wait for more to send.
    let _ = stream.set_nodelay(true);
    // The system ends a connection whose client takes nothing of what it is sent.
    let _ = set_tcp_user_timeout(&stream, u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
    let delivery = Delivery::default();
    let stream = Watched::new(stream, delivery.clone());
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        let address = client::address(peer.address, request.headers(), &peer.proxies);
        request.extensions_mut().insert(Client { address, delivery: delivery.clone() });
        super::single_slash(request.map(axum::body::Body::new))
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.closing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
