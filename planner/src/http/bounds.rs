//! What one request may take: room among those that run, a length of its URL, a time.
//!
//! Routes are in lanes. The lanes share nothing, so that no kind of request keeps out another: workers that
//! wait for a seed leave room for the heartbeats of seeds, and probes are answered whatever else goes on.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use rfork_protocol::problem::Code;
use tokio::time::Instant;

use super::client::Client;
use crate::config::Bounds;
use crate::shares::{Entered, Part, Pool, Pools};

/// Room for a key of 8 KiB that is percent-encoded, and the rest.
const MAX_URL_BYTES: usize = 32 * 1024;

/// The most that is read of a body; a longer one is answered 413.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The longest that a body may be on its way; what is slower holds no room that others could use.
const BODY_TIME: Duration = Duration::from_secs(5);
/// An answer that is longer is counted, and sent in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// Why a request was refused, or given up, before its handler had an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 503: as many requests as may run do, or those of the client's own network have their share.
    #[error("too many requests are running; ask again in a second")]
    Overloaded,
    /// 503: the handler had no answer in time. What it had begun may still take effect.
    #[error("no answer within {0:?}; ask again in a second")]
    TimedOut(Duration),
    /// 503: the body was too slow. Not 408, for an older worker takes any 4xx for the end of its service.
    #[error("the body was not complete within {0:?}; ask again in a second")]
    BodyTimedOut(Duration),
    /// 400: the body ended early, or is none.
    #[error("the body ended before it was complete")]
    BodyBroken,
    /// 413.
    #[error("a body may have {MAX_BODY_BYTES} bytes")]
    BodyTooLong,
    /// 414.
    #[error("a URL may have {MAX_URL_BYTES} bytes")]
    UrlTooLong,
}

impl Refusal {
    /// Its code.
    pub fn code(self) -> Code {
        match self {
            Self::Overloaded => Code::Overloaded,
            Self::TimedOut(_) | Self::BodyTimedOut(_) => Code::Timeout,
            Self::BodyBroken => Code::InvalidRequest,
            Self::BodyTooLong => Code::PayloadTooLarge,
            Self::UrlTooLong => Code::UriTooLong,
        }
    }
}

/// In plain text, as v1 has it.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.code();
        match StatusCode::from_u16(code.status()) {
            Ok(status) if status != StatusCode::SERVICE_UNAVAILABLE => {
                (status, self.to_string()).into_response()
            }
            _ => {
                let reason = format!("{}: {self}", code.as_str());
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], reason).into_response()
            }
        }
    }
}

/// What requests of one kind share.
#[derive(Debug, Clone)]
struct Room {
    requests: Pool,
    body_bytes: Pool,
    answer_bytes: Pool,
}

/// Bounds that some routes share.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Whose requests may run at once; without it any number may, which is that of connections, and no body is read.
    room: Option<Room>,
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
    /// Those that list much for people.
    pub lists: Lane,
    /// All others.
    pub rest: Lane,
}

impl Lanes {
    /// With what `bounds` and `pools` give to each.
    pub fn new(bounds: &Bounds, pools: &Pools) -> Self {
        let lane = |room| Lane { room, deadline: bounds.deadline, tell: Refusal::into_response };
        let of = |requests: &Pool| {
            lane(Some(Room {
                requests: requests.clone(),
                body_bytes: pools.body_bytes.clone(),
                answer_bytes: pools.answer_bytes.clone(),
            }))
        };
        Self {
            probes: lane(None),
            acquire: of(&pools.asking),
            lists: of(&pools.listing),
            rest: of(&pools.other),
        }
    }
}

/// Lets one request through, or refuses it. Its body comes first, so that a slow one takes no room. Nothing waits for
/// room: a queue here would only hide the load from clients and balancers. To give up at the deadline is to drop the
/// handler, as when its client goes away: what it waits for must bear that.
async fn pass(State(lane): State<Lane>, request: Request, next: Next) -> Response {
    let ends = Instant::now() + lane.deadline;
    let client = request.extensions().get::<Client>().map(|client| client.address);
    match enter(&lane, client, request).await {
        // Its room is held here, too: a handler that wants nothing of its request drops that at once.
        Ok((request, _entered)) => match tokio::time::timeout_at(ends, next.run(request)).await {
            Ok(answer) => taken_in_pieces(&lane, client, answer).unwrap_or_else(lane.tell),
            Err(_) => (lane.tell)(Refusal::TimedOut(lane.deadline)),
        },
        Err(refusal) => (lane.tell)(refusal),
    }
}

/// The request with its whole body and its room.
async fn enter(
    lane: &Lane,
    client: Option<IpAddr>,
    request: Request,
) -> Result<(Request, Option<Entered>), Refusal> {
    let url = request.uri().path_and_query().map_or(0, |url| url.as_str().len());
    if url > MAX_URL_BYTES {
        return Err(Refusal::UrlTooLong);
    }
    let Some(room) = &lane.room else { return Ok((request, None)) };
    let body_time = BODY_TIME.min(lane.deadline);
    let mut request = with_body(request, room.body_bytes.nothing(client), body_time).await?;
    let part = room.requests.take(client, 1).map_err(|_| Refusal::Overloaded)?;
    let entered = Entered::new(part);
    request.extensions_mut().insert(entered.clone());
    Ok((request, Some(entered)))
}

/// The request with its body in memory, which is counted until the request is dropped.
async fn with_body(request: Request, mut counted: Part, within: Duration) -> Result<Request, Refusal> {
    if request.body().is_end_stream() {
        return Ok(request);
    }
    let (mut head, mut body) = request.into_parts();
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(Refusal::BodyTooLong);
    }
    let mut whole = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            // Trailers are nothing to anybody.
            let Ok(data) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else { continue };
            if whole.len() + data.len() > MAX_BODY_BYTES {
                return Err(Refusal::BodyTooLong);
            }
            if !counted.grow(data.len()) {
                return Err(Refusal::Overloaded);
            }
            whole.extend_from_slice(&data);
        }
        Ok(())
    };
    tokio::time::timeout(within, read).await.map_err(|_| Refusal::BodyTimedOut(within))??;
    head.extensions.insert(Arc::new(counted));
    Ok(Request::from_parts(head, Body::from(whole)))
}

/// The answer, counted while its client takes it if it is long.
fn taken_in_pieces(lane: &Lane, client: Option<IpAddr>, answer: Response) -> Result<Response, Refusal> {
    let bytes = answer.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let (Some(room), Some(bytes)) = (&lane.room, bytes.filter(|bytes| *bytes > PIECE_BYTES)) else {
        return Ok(answer);
    };
    let counted = room.answer_bytes.take(client, bytes).map_err(|_| Refusal::Overloaded)?;
    Ok(answer.map(|body| Body::new(Pieces { body, next: Bytes::new(), _counted: counted })))
}

/// A long body, given a piece at a time: the server asks for the next when the client has taken most of those before. So
/// what is counted is counted until then.
struct Pieces {
    body: Body,
    next: Bytes,
    _counted: Part,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.next.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => self.next = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.next.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.next.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.size_hint();
        rest.exact().map_or(rest, |rest| SizeHint::with_exact(rest + self.next.len() as u64))
    }
}
