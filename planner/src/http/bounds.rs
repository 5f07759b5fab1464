//! What one request may take: room among those that run, a length of its URL, a time.
//!
//! Routes are in lanes. The lanes share nothing, so that no kind of request keeps out another: workers that
//! wait for a seed leave room for the heartbeats of seeds, and probes are answered whatever else goes on.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use crate::config::Bounds;

/// Room for a key of 8 KiB that is percent-encoded, and the rest.
const MAX_URL_BYTES: usize = 32 * 1024;

/// The most that is read of a body; a longer one is answered 413.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Why a request was refused, or given up, before its handler had an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 503: as many requests as may run do.
    #[error("too many requests are running; ask again in a second")]
    Overloaded,
    /// 503: the handler had no answer in time. What it had begun may still take effect.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// 414.
    #[error("a URL may have {MAX_URL_BYTES} bytes")]
    UrlTooLong,
}

impl Refusal {
    /// Its status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Overloaded | Self::TimedOut(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::UrlTooLong => StatusCode::URI_TOO_LONG,
        }
    }
}

/// In plain text, as v1 has it.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut answer = (status, self.to_string()).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        answer
    }
}

/// Bounds that some routes share.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Requests that may run at once; without it any number, which is that of connections.
    room: Option<Arc<Semaphore>>,
    /// From the head's arrival to the answer, the body's arrival included.
    deadline: Duration,
    /// How a refusal is told.
    tell: fn(Refusal) -> Response,
}

impl Lane {
    /// This lane with another deadline; both share their room.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// This lane with another way to tell a refusal; both share their room.
    #[must_use]
    pub fn telling(self, tell: fn(Refusal) -> Response) -> Self {
        Self { tell, ..self }
    }

    /// Leads all routes of `routes` through this lane.
    pub fn hold<S: Clone + Send + Sync + 'static>(&self, routes: Router<S>) -> Router<S> {
        routes.layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).layer(from_fn_with_state(self.clone(), pass))
    }
}

/// The lanes of a planner.
#[derive(Debug, Clone)]
pub struct Lanes {
    /// Probes and metrics: always let in.
    pub probes: Lane,
    /// Those that ask for a seed, and may wait for one.
    pub acquire: Lane,
    /// All others.
    pub rest: Lane,
}

impl Lanes {
    /// With the room that `bounds` give to each.
    pub fn new(bounds: &Bounds) -> Self {
        let lane = |room| Lane { room, deadline: bounds.deadline, tell: Refusal::into_response };
        let room = || Some(Arc::new(Semaphore::new(bounds.requests)));
        Self { probes: lane(None), acquire: lane(room()), rest: lane(room()) }
    }
}

/// Lets one request through, or refuses it. Nothing waits for room: a queue here would only hide the load from
/// clients and balancers. To give up at the deadline is to drop the handler, as when its client goes away: what
/// it waits for must bear that.
async fn pass(State(lane): State<Lane>, request: Request, next: Next) -> Response {
    let url = request.uri().path_and_query().map_or(0, |url| url.as_str().len());
    if url > MAX_URL_BYTES {
        return (lane.tell)(Refusal::UrlTooLong);
    }
    let Ok(_permit) = lane.room.map(Semaphore::try_acquire_owned).transpose() else {
        return (lane.tell)(Refusal::Overloaded);
    };
    match tokio::time::timeout(lane.deadline, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => (lane.tell)(Refusal::TimedOut(lane.deadline)),
    }
}
