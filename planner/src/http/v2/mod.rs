//! API v2: JSON in, JSON out. The table of routes is here; each is served by a thin adapter over the store's
//! commands and told of in the OpenAPI document.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::MatchedPath;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use rfork_protocol::problem::Code;
use rfork_protocol::v2;

use super::bounds::{Lane, Refusal};
use super::client::Client;
use super::{Api, Opening};
use crate::domain::location::Location;
use crate::identity::{Access, Denied, Role};
use crate::waiting::MAX_WAIT;

mod explain;
mod history;
mod keys;
mod leads;
mod leases;
mod lists;
mod loading;
pub mod openapi;
pub(super) mod refused;
mod route;
mod seeds;
mod service;

use refused::Refused;
use route::{About, Kind, Route, get, post};

/// What is under the prefix of this API and no route of it.
const ELSEWHERE: [&str; 2] = ["/v2/", "/v2/{*rest}"];

const ANYONE: Access = Access::Anyone;
const WORKER: Access = Access::Only(Role::Worker);
const OPERATOR: Access = Access::Only(Role::Operator);

/// All routes of this API: a table, read from top to bottom.
#[allow(clippy::too_many_lines)]
fn routes() -> Vec<Route> {
    let body = v2::MAX_BODY_BYTES;
    let lease_is_gone = &[Code::LeaseNotFound];
    vec![
        get(
            About {
                description: "A client that is answered anything but 200 uses API v1.",
                ..About::new(ANYONE, v2::SERVICE, "service", "What the planner is and speaks")
            },
            service::service,
        ),
        get(About::new(ANYONE, v2::OPENAPI, "openapi", "This document"), service::openapi),
        post(
            About {
                description: "Repeating it is harmless. A seed that is not heard of within `heartbeat_ttl_ms` is offered \
                    no more.",
                problems: &[Code::PlannerFull],
                ..About::new(WORKER, v2::SEEDS, "register_seed", "Register a seed")
            },
            body,
            seeds::register,
        ),
        get(About::new(OPERATOR, v2::SEEDS, "list_seeds", "List seeds, by identity"), lists::seeds).listing(),
        post(
            About {
                description: "One request for all ranks of a host. A seed whose status is `unknown` must register.",
                ..About::new(WORKER, v2::HEARTBEAT, "heartbeat", "Say that seeds live")
            },
            v2::MAX_BATCH_BODY_BYTES,
            seeds::heartbeat,
        ),
        post(
            About {
                description: "It is offered no more while its memory is the same; its leases live on. A seed comes back \
                    with another key, content or incarnation, or once it was deregistered; one that tells neither \
                    content nor incarnation is taken for the same, unless it was silent for a day.",
                problems: &[Code::SeedNotFound],
                ..About::new(OPERATOR, v2::DRAIN, "drain_seed", "Offer a seed no more")
            },
            body,
            seeds::drain,
        ),
        post(
            About {
                description: "With leases on it the seed is offered no more and goes when the last one ends.",
                problems: &[Code::SeedNotFound],
                ..About::new(WORKER, v2::DEREGISTER, "deregister_seed", "Take a seed out for good")
            },
            body,
            seeds::deregister,
        ),
        post(
            About {
                description: "The lease lives for `ttl_ms` from the grant or its last renewal.",
                headers: &[(v2::IDEMPOTENCY_KEY, IDEMPOTENCY)],
                problems: &[
                    Code::UnknownKey,
                    Code::AllBusy,
                    Code::AllSuspect,
                    Code::LeaseEnded,
                    Code::IdempotencyConflict,
                    Code::PlannerFull,
                ],
                ..About::new(WORKER, v2::LEASES, "acquire_lease", "Lease a seed")
            },
            body,
            leases::acquire,
        )
        .acquiring(),
        get(About::new(OPERATOR, v2::LEASES, "list_leases", "List leases that live, by seed"), lists::leases).listing(),
        get(
            About {
                description: "They are remembered for a set time, and of very many only the last.",
                ..About::new(
                    OPERATOR,
                    v2::ENDED_LEASES,
                    "list_ended_leases",
                    "List leases that ended, the last one first",
                )
            },
            history::leases,
        )
        .listing(),
        post(
            About {
                description: "A worker that reads for longer than a third of the lease's time renews it.",
                problems: lease_is_gone,
                ..About::new(WORKER, v2::RENEW, "renew_lease", "Extend a lease")
            },
            body,
            leases::renew,
        ),
        post(
            About {
                description: "A failure makes the seed suspect: others are spared it for a while. Repeating a release is \
                    harmless.",
                problems: lease_is_gone,
                ..About::new(WORKER, v2::RELEASE, "release_lease", "End a lease and tell how it went")
            },
            body,
            leases::release,
        ),
        post(
            About {
                description: "For workers that find no seed and would read storage. Only with the feature `right_to_lead`.",
                ..About::new(
                    WORKER,
                    v2::LEADS,
                    "lead",
                    "Ask for the right to read weights from storage while others wait, or renew it",
                )
            },
            body,
            leads::lead,
        ),
        get(About::new(OPERATOR, v2::KEYS, "list_keys", "List keys, and what there is of each"), lists::keys).listing(),
        post(
            About {
                description: "For weights that were replaced under the same name: every seed of the key whose content id is \
                    not `keep_content_id` drains, and so do those that do not tell theirs.",
                ..About::new(OPERATOR, v2::INVALIDATE, "invalidate_key", "Drain the seeds of old weights")
            },
            body,
            keys::invalidate,
        ),
        get(
            About {
                description: "What became of seeds and keys, without heartbeats and leases. Events are remembered for a \
                    set time, and of very many only the last.",
                ..About::new(OPERATOR, v2::EVENTS, "list_events", "List events, the last one first")
            },
            history::events,
        )
        .listing(),
        post(
            About {
                description: "Nothing is leased, and no seed is asked whether it lives.",
                ..About::new(
                    OPERATOR,
                    v2::EXPLAIN,
                    "explain",
                    "Say of each seed of a key why it would be granted now or not",
                )
            },
            body,
            explain::explain,
        )
        .listing(),
    ]
}

const IDEMPOTENCY: &str = "Makes the request repeatable after a lost answer: the same key with the same body gets the \
    same lease. 8 to 200 visible ASCII characters, unguessable: it is a credential.";

/// Serves all routes in the lanes of their kind, and everything else under their prefix with a problem document.
pub(super) fn router(acquire: &Lane, lists: &Lane, rest: &Lane) -> Router<Api> {
    let mut methods: BTreeMap<&'static str, String> = BTreeMap::new();
    let (mut acquiring, mut listing, mut others) = (Router::new(), Router::new(), Router::new());
    for Route { about, method, serve, kind, .. } in routes() {
        // A GET route answers HEAD as well.
        let more = if method == "get" { "GET, HEAD".into() } else { method.to_ascii_uppercase() };
        methods.entry(about.path).and_modify(|known| *known = format!("{known}, {more}")).or_insert(more);
        let routes = match kind {
            Kind::Acquires => &mut acquiring,
            Kind::Lists => &mut listing,
            Kind::Other => &mut others,
        };
        *routes = std::mem::take(routes).route(about.path, serve);
    }
    let told = |lane: &Lane| lane.clone().telling(refused);
    let waiting = told(acquire).with_deadline(MAX_WAIT + Duration::from_secs(10));
    let router = waiting.hold(acquiring).merge(told(lists).hold(listing)).merge(told(rest).hold(others));
    let methods = Arc::new(methods);
    let router = router.method_not_allowed_fallback(async move |path: MatchedPath| {
        Refused::method(methods.get(path.as_str()).map_or("", String::as_str))
    });
    let not_found =
        async || Refused::new(Code::NotFound, "see /v2/openapi.json for the routes that there are");
    ELSEWHERE.iter().fold(router, |router, path| router.route(path, any(not_found)))
}

/// What a request is answered that its lane refuses.
pub(super) fn refused(refusal: Refusal) -> Response {
    Refused::from(refusal).into_response()
}

/// What a request is answered that its client may not make.
pub(super) fn denied(denied: Denied) -> Response {
    denied.told_by(Refused::from(denied).into_response())
}

/// Who may use the routes of this API, by method and path.
pub(super) fn doors() -> impl Iterator<Item = (Option<Method>, &'static str, Access)> {
    let under_it = ELSEWHERE.map(|path| (None, path, Access::Anyone));
    let routes = routes().into_iter().map(|Route { about, method, .. }| {
        let method = if method == "get" { Method::GET } else { Method::POST };
        (Some(method), about.path, about.access)
    });
    routes.chain(under_it)
}

/// The answer to any request before the database is open.
pub(super) fn opening(why: Opening) -> Response {
    Refused::from(why.unavailable()).into_response()
}

/// A place, as the planner keeps it.
fn location(told: Option<v2::Location>) -> Location {
    let v2::Location { zone, rack, host } = told.unwrap_or_default();
    Location { zone: zone.map(String::from), rack: rack.map(String::from), host: host.map(String::from) }
}

/// Where a worker is: what it tells, and for the rest what is known of its address.
fn whereabouts(api: &Api, told: Option<v2::Location>, client: Option<&Client>) -> Location {
    let located = client.map(|client| api.file.networks.locate(client.address)).unwrap_or_default();
    location(told).or(&located)
}

/// Whole milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
