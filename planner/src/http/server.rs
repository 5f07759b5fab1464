//! The HTTP server around the routes: bounded connections, deadlines, an orderly end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::config::REQUEST_DEADLINE;

/// Connections at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 8_192;
/// Open files that are left for the database and the rest of the process.
const OTHER_FILES: u64 = 64;
/// How long a client may take to send a request's head, and how long a connection may idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Room for a request's head: a key of 8 KiB in both spellings, and the rest. Also the most that is read.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Serves until `stop`, then accepts no more and lets what runs finish within the request deadline.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(connection_limit()));
    let connections = TaskTracker::new();
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        match stop.run_until_cancelled(accepted).await {
            Some(Some((permit, Ok((stream, _))))) => {
                connections.spawn(connection(stream, permit, router.clone(), stop.clone()));
            }
            Some(Some((_, Err(error)))) => {
                // Out of file descriptors, say: not a reason to end, nor to spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Some(None) | None => break,
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(REQUEST_DEADLINE, connections.wait()).await.is_err() {
        tracing::warn!("requests were still running {REQUEST_DEADLINE:?} after the stop; they are dropped");
    }
}

/// [`MAX_CONNECTIONS`], or fewer where the system lets the process have fewer open files: what can be accepted
/// can then be served.
fn connection_limit() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let room = files
        .map_or(usize::MAX, |files| usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX));
    room.clamp(1, MAX_CONNECTIONS)
}

/// One connection. It owns its permit; a stop lets the request that runs finish and closes it then.
async fn connection(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    router: Router,
    stop: CancellationToken,
) {
    let _permit = permit;
    // Answers are small and awaited: they must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let service = router.map_request(|request: hyper::Request<Incoming>| {
        super::single_slash(request.map(axum::body::Body::new))
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD_BYTES);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
