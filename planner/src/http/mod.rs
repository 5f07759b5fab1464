//! The planner's HTTP side: thin adapters between requests and the store's commands.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use axum::{Json, Router};
use rfork_protocol::v1::{ADD_SEED, GET_SEED, PUT_SEED, REMOVE_SEED, RENEW_SEED_LEASE};
use serde::Serialize;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::acquire::Granter;
use crate::config::Bounds;
use crate::domain::owner::OwnedBy;
use crate::domain::policy::Policy;
use crate::heartbeats::Heartbeats;
use crate::identity::{Access, Identity, Role};
use crate::metrics::Metrics;
use crate::settings_file::FileSettings;
use crate::shares::Pools;
use crate::shutdown::Stop;
use crate::store::Store;
use crate::writer::{Submit, WriteError, Writer};

mod attend;
pub mod bounds;
pub mod client;
pub mod delivery;
mod error;
mod forwarded;
mod handshake;
mod ops;
mod owned;
mod permit;
pub mod server;
mod socket;
#[cfg(test)]
mod tests;
mod v1;
pub mod v2;

use bounds::{Lane, Lanes, Refusal};
use error::{ApiError, Unavailable};
use permit::Doors;

/// The routes of v1, which clients ask for below a base URL that ends in a slash, too.
const V1_PATHS: [&str; 5] = [GET_SEED, ADD_SEED, RENEW_SEED_LEASE, PUT_SEED, REMOVE_SEED];
const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const METRICS: &str = "/metrics";
/// Where balancers ask that were told nothing.
const ROOT: &str = "/";
/// All that there is, in the form of the example planner.
const SNAPSHOT: &str = "/debug/snapshot";
/// In which lane a route is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Probes,
    Acquire,
    Lists,
    Rest,
}

/// The routes that are not of API v2: each with who may use it, by any method, and what serves it.
fn plain_routes() -> [(&'static str, Access, In, MethodRouter<Api>); 10] {
    const ANYONE: Access = Access::Anyone;
    const WORKER: Access = Access::Only(Role::Worker);
    [
        (HEALTHZ, ANYONE, In::Probes, probe(ops::healthz)),
        (READYZ, ANYONE, In::Probes, probe(ops::readyz)),
        (ROOT, ANYONE, In::Probes, probe(ops::readyz)),
        (METRICS, Access::Only(Role::Metrics), In::Probes, probe(ops::metrics)),
        (SNAPSHOT, Access::Only(Role::Operator), In::Lists, get_only(get(ops::snapshot))),
        (GET_SEED, WORKER, In::Acquire, get_only(get(v1::get_seed))),
        (ADD_SEED, WORKER, In::Rest, post(v1::add_seed)),
        (RENEW_SEED_LEASE, WORKER, In::Rest, post(v1::renew_seed_lease)),
        (PUT_SEED, WORKER, In::Rest, post(v1::put_seed)),
        (REMOVE_SEED, WORKER, In::Rest, post(v1::remove_seed)),
    ]
}

/// Who may use which route, by method; without one it is every method.
pub fn doors() -> impl Iterator<Item = (Option<Method>, &'static str, Access)> {
    plain_routes().into_iter().map(|(path, access, ..)| (None, path, access)).chain(v2::doors())
}

/// How long a request is held while the database is not open yet.
const OPENING_HOLD: Duration = Duration::from_secs(2);

/// What every request may use. Cheap to clone: axum does so for each layer that a request goes through.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

/// What an [`Api`] is made of.
pub struct Parts {
    /// Leases seeds.
    pub granter: Granter,
    /// How long a request may take, its wait for a seed aside.
    pub deadline: Duration,
    /// How long `get_seed` may wait for a seed.
    pub v1_hold: Duration,
    /// How seeds are compared.
    pub policy: Policy,
    /// Whether workers that still load may serve others, which the store must keep.
    pub loading_seeds: bool,
    /// Where addresses are.
    pub file: Arc<FileSettings>,
    /// Applies commands.
    pub writer: Writer,
    /// Takes repeated heartbeats.
    pub heartbeats: Arc<Heartbeats>,
    /// Answers questions.
    pub store: Arc<dyn Store>,
    /// How often seeds are to send heartbeats.
    pub heartbeat_interval: Duration,
    /// How long a seed may be silent.
    pub heartbeat_ttl: Duration,
    /// Whose seeds are.
    pub seed_owner: OwnedBy,
    /// Who may come in.
    pub identity: Arc<Identity>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// Tells when the planner ends.
    pub stop: Stop,
}

impl From<Parts> for Api {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Api {
    /// Has a command applied.
    async fn submit<C: Submit>(&self, command: C) -> Result<C::Answer, WriteError> {
        self.writer.submit(command).await
    }
}

/// All routes, within `bounds` and with what `pools` have.
pub fn router(api: Api, bounds: &Bounds, pools: &Pools) -> Router {
    let Lanes { probes, acquire, lists, rest } = Lanes::new(bounds, pools);
    let v2 = v2::router(&acquire, &lists, &rest);
    // A request that is held is still answered before its client gives up.
    let deadline = bounds.deadline.max(api.v1_hold + Duration::from_millis(800));
    let acquire = acquire.with_deadline(deadline);
    let held_by = |lane: &Lane, which: In| {
        let routes = plain_routes().into_iter().filter(|(.., of, _)| *of == which);
        lane.hold(routes.fold(Router::new(), |router, (path, .., serve)| router.route(path, serve)))
    };
    Router::new()
        .merge(held_by(&probes, In::Probes))
        .merge(held_by(&acquire, In::Acquire))
        .merge(held_by(&rest, In::Rest))
        .merge(held_by(&lists, In::Lists))
        .merge(v2)
        .layer(from_fn_with_state((api.clone(), Arc::new(Doors::new(doors()))), permit::check))
        .layer(from_fn_with_state(api.clone(), attend::attend))
        .with_state(api)
}

/// Why the database is not open yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It is being reached, or migrated.
    Database,
    /// Another planner has its file.
    InUse,
}

impl Opening {
    const fn unavailable(self) -> Unavailable {
        match self {
            Self::Database => Unavailable::OPENING,
            Self::InUse => Unavailable::IN_USE,
        }
    }
}

/// What is served while the database is opened, for which a migration may take long: that the process lives, and
/// that all else is to be asked for again. A database is mostly open soon, so a request is held for a moment first, and
/// served by what comes then through `opened`. Each answer ends its connection: the next one is not served from here.
pub fn opening(opened: watch::Receiver<Option<Router>>, why: watch::Receiver<Opening>) -> Router {
    let ready = {
        let (opened, why) = (opened.clone(), why.clone());
        async move |request: Request| {
            // A connection that was there before may ask after it.
            let router = opened.borrow().clone();
            match router {
                Some(router) => served_by(router, request).await,
                None => ApiError::from(why.borrow().unavailable()).into_response(),
            }
        }
    };
    let hold = async move |request: Request| {
        let mut opened = opened.clone();
        let router = tokio::time::timeout(OPENING_HOLD, opened.wait_for(Option::is_some)).await;
        let router = router.ok().and_then(|opened| opened.ok()?.clone());
        match router {
            Some(router) => served_by(router, request).await,
            None if request.uri().path().starts_with(rfork_protocol::v2::SERVICE) => {
                v2::opening(*why.borrow())
            }
            None => ApiError::from(why.borrow().unavailable()).into_response(),
        }
    };
    let close = async |mut answer: Response| {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        answer
    };
    Router::new()
        .route(HEALTHZ, probe(ops::healthz))
        .route(READYZ, probe(ready.clone()))
        .route(ROOT, probe(ready))
        // What is refused later is refused now.
        .route(GET_SEED, get_only(any(hold.clone())))
        .fallback(hold)
        .layer(map_response(close))
}

/// Has another router serve a request, which finds its route anew: the one that it had here would stand before it.
async fn served_by(router: Router, mut request: Request) -> Response {
    request.extensions_mut().remove::<MatchedPath>();
    router.oneshot(request).await.into_response()
}

/// Whether a path is one that is always served.
fn is_probe(path: &str) -> bool {
    [HEALTHZ, READYZ, METRICS, ROOT].contains(&path)
}

/// An answer that may have megabytes, written as JSON by a thread of its own: it would keep this one, and all that waits for
/// it, for as many milliseconds.
async fn written_apart(answer: impl Serialize + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(move || Json(answer).into_response()).await {
        Ok(answer) => answer,
        // It panicked, or the planner ends.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What all else is answered at a port for probes.
fn no_probe() -> Response {
    (StatusCode::NOT_FOUND, "only /healthz, /readyz and /metrics are served at this port").into_response()
}

/// What a request is told for which there is no room, in the form of its API.
fn overloaded(path: &str) -> Response {
    if path.starts_with(rfork_protocol::v2::SERVICE) {
        v2::refused(Refusal::Overloaded)
    } else {
        Refusal::Overloaded.into_response()
    }
}

/// What health checkers of balancers ask: by GET, by HEAD, by OPTIONS, which is haproxy's default, as `/` is its and
/// others' default path. Each has the status of GET; only GET has the body.
fn probe<H, T, S>(handler: H) -> MethodRouter<S>
where
    H: Handler<T, S>,
    T: 'static,
    S: Clone + Send + Sync + 'static,
{
    get(handler.clone()).options(handler).layer(from_fn(async |request: Request, next: Next| {
        let is_options = request.method() == Method::OPTIONS;
        let mut answer = next.run(request).await;
        if is_options {
            *answer.body_mut() = Body::empty();
            let headers = answer.headers_mut();
            headers.remove(header::CONTENT_TYPE);
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
        }
        answer
    }))
}

/// Refuses HEAD, which axum would answer by running the GET: that of `get_seed` allocates.
fn get_only<S: Clone + Send + Sync + 'static>(route: MethodRouter<S>) -> MethodRouter<S> {
    route.head(async || (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")]))
}

/// A base URL that ends in a slash makes clients of v1 ask for `//get_seed`, which is `/get_seed`. Nothing else has a second
/// name: a balancer that keeps clients from `/v2/seeds/drain` by its path would let `//v2/seeds/drain` through.
/// `OPTIONS *`, which asks of the whole server, is `OPTIONS /`.
fn single_slash<B>(mut request: Request<B>) -> Request<B> {
    let path = request.uri().path();
    if path == "*" {
        *request.uri_mut() = Uri::from_static("/");
    } else if let Some(path) = path.strip_prefix('/').filter(|path| V1_PATHS.contains(path)) {
        let with_query = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        if let Ok(uri) = with_query.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request
}
