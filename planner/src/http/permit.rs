//! Whether a request may have what it asks for. It is looked at once its route is known, before it takes room and before its
//! body is read; a handler takes a [`Permit`] as proof, which nothing else makes.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rfork_protocol::SeedKey;
use rfork_protocol::problem::Code;
use tracing::Span;

use super::{Api, v2};
use crate::identity::{Access, Denied, Identity, Mode, Principal};
use crate::metrics::Metrics;

/// What a client is told to show, as RFC 9110 has it. Basic is for clients that can send nothing else.
const CHALLENGE: &str = "Bearer realm=\"rfork\", Basic realm=\"rfork\"";

/// That a request may have its route.
#[derive(Debug, Clone)]
pub(super) struct Permit {
    /// Nobody's, when it is not looked at who asks, or when what would be refused is served.
    principal: Option<Arc<Principal>>,
    mode: Mode,
    metrics: Arc<Metrics>,
}

impl Permit {
    /// # Errors
    /// [`Denied::Key`], when its principal may not use this key.
    pub(super) fn key(&self, key: &SeedKey) -> Result<(), Denied> {
        match &self.principal {
            Some(principal) if !principal.may_use(key) => verdict(self.mode, Denied::Key, &self.metrics),
            _ => Ok(()),
        }
    }
}

/// Counts what is denied; it is refused when that is enforced.
fn verdict(mode: Mode, denied: Denied, metrics: &Metrics) -> Result<(), Denied> {
    metrics.denied(denied, mode);
    tracing::debug!(reason = denied.label(), refused = mode == Mode::Enforce, "a request is denied");
    if mode == Mode::Enforce { Err(denied) } else { Ok(()) }
}

/// Who may use which route.
#[derive(Debug)]
pub(super) struct Doors(HashMap<&'static str, Vec<(Option<Method>, Access)>>);

impl Doors {
    /// Of routes, each with its method; without one it is every method.
    pub(super) fn new(routes: impl Iterator<Item = (Option<Method>, &'static str, Access)>) -> Self {
        let mut doors: HashMap<_, Vec<_>> = HashMap::new();
        for (method, path, access) in routes {
            doors.entry(path).or_default().push((method, access));
        }
        Self(doors)
    }

    /// Who may use a route by a method; `None` if nobody said so. What no handler takes is answered 404 or 405, which
    /// everybody may hear.
    fn of(&self, method: &Method, route: Option<&str>) -> Option<Access> {
        let Some(route) = route else { return Some(Access::Anyone) };
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let doors = self.0.get(route)?;
        let door = doors.iter().find(|(of, _)| of.as_ref().is_none_or(|of| of == method));
        Some(door.map_or(Access::Anyone, |(_, access)| *access))
    }
}

/// Lets a request through to its route, or refuses it in the form of its API.
pub(super) async fn check(
    State((api, doors)): State<(Api, Arc<Doors>)>,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let identity = &api.identity;
    let mode = identity.mode();
    let mut principal = None;
    if mode != Mode::Off {
        let Some(access) = doors.of(request.method(), route.as_ref().map(MatchedPath::as_str)) else {
            // Nobody has said who may use it: then nobody may.
            return StatusCode::FORBIDDEN.into_response();
        };
        principal = match admitted(identity, access, &request, &api.metrics) {
            Ok(principal) => principal,
            Err(denied) => return refused(denied, request.uri().path()),
        };
    }
    if let Some(principal) = &principal {
        Span::current().record("principal", principal.name.as_str());
    }
    request.extensions_mut().insert(Permit { principal, mode, metrics: api.metrics.clone() });
    next.run(request).await
}

fn admitted(
    identity: &Identity,
    access: Access,
    request: &Request,
    metrics: &Metrics,
) -> Result<Option<Arc<Principal>>, Denied> {
    match identity.admit(access, request.headers()) {
        Ok(principal) => Ok(principal),
        Err(denied) => verdict(identity.mode(), denied, metrics).map(|()| None),
    }
}

fn refused(denied: Denied, path: &str) -> Response {
    if path.starts_with(rfork_protocol::v2::SERVICE) { v2::denied(denied) } else { denied.into_response() }
}

impl Denied {
    /// Its code.
    pub(super) const fn code(self) -> Code {
        if self.wants_credential() { Code::Unauthenticated } else { Code::Forbidden }
    }

    /// An answer that is to tell of it, with what the client is asked to show.
    pub(super) fn told_by(self, mut answer: Response) -> Response {
        if self.wants_credential() {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        answer
    }
}

/// In plain text, as v1 has it.
impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let code = self.code();
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::FORBIDDEN);
        self.told_by((status, format!("{}: {self}", code.as_str())).into_response())
    }
}
