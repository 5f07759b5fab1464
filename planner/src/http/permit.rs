//! Whether a request may have what it asks for. It is looked at once its route is known, before it takes room and before its
//! body is read; a handler takes a [`Permit`] as proof, which nothing else makes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rfork_protocol::SeedKey;
use rfork_protocol::problem::Code;
use tracing::Span;

use super::client::Client;
use super::{Api, v2};
use crate::domain::owner::{OwnedBy, Owner};
use crate::identity::{Access, Admission, Denied, Mode, Principal};

/// What a client is told to show, as RFC 9110 has it. Basic is for clients that can send nothing else.
const CHALLENGE: &str = "Bearer realm=\"rfork\", Basic realm=\"rfork\"";

/// When a client may come back that has shown many wrong credentials, in seconds.
const COME_BACK_SEC: u64 = 60;

/// That a request may have its route.
#[derive(Clone)]
pub(super) struct Permit {
    /// Nobody's, when it is not looked at who asks, or when nobody has its credential and it is served all the same.
    principal: Option<Arc<Principal>>,
    /// Where it was asked from, as far as that is known.
    client: Option<IpAddr>,
    api: Api,
}

impl Permit {
    /// # Errors
    /// [`Denied::Key`], when its principal may not use this key.
    pub(super) fn key(&self, key: &SeedKey) -> Result<(), Denied> {
        match &self.principal {
            Some(principal) if !principal.may_use(key) => self.deny(Denied::Key),
            _ => Ok(()),
        }
    }

    /// Whose request it is, as history names it.
    pub(super) fn by(&self) -> Option<Arc<str>> {
        self.principal.as_ref().map(|principal| principal.name.as_str().into())
    }

    /// Whose a seed is of which this request speaks.
    pub(super) fn owner(&self) -> Owner {
        Owner {
            principal: self.by(),
            address: self.client.filter(|_| self.api.seed_owner == OwnedBy::Address),
        }
    }

    /// The same, as far as another one is refused.
    pub(super) fn enforced_owner(&self) -> Owner {
        let is_enforced = self.api.identity.mode() == Mode::Enforce;
        let Owner { principal, address } = self.owner();
        Owner { principal: principal.filter(|_| is_enforced), address }
    }

    /// This request speaks of a seed of somebody else, which lives. While principals are only counted for that, there is what
    /// it may do all the same, and that is given back.
    ///
    /// # Errors
    /// [`Denied::Owner`].
    pub(super) fn of_another<T>(&self, all_the_same: Option<T>) -> Result<T, Denied> {
        self.tell(Denied::Owner, all_the_same.is_none());
        all_the_same.ok_or(Denied::Owner)
    }

    /// This request registers what its key is not pinned to. Whoever asks is refused.
    pub(super) fn not_pinned(&self) -> Denied {
        self.tell(Denied::NotPinned, true);
        Denied::NotPinned
    }

    /// It is refused when that is enforced.
    fn deny(&self, denied: Denied) -> Result<(), Denied> {
        let is_refused = self.api.identity.mode() == Mode::Enforce;
        self.tell(denied, is_refused);
        if is_refused { Err(denied) } else { Ok(()) }
    }

    /// Counts what is denied, and says of whom, as often as that is worth a line.
    fn tell(&self, denied: Denied, is_refused: bool) {
        let Self { principal, client, api } = self;
        api.metrics.denied(denied, is_refused);
        let principal = principal.as_ref().map(|principal| principal.name.as_str());
        if api.identity.is_news(denied, principal, *client) {
            let (reason, client) = (denied.label(), client.map(tracing::field::display));
            if is_refused {
                tracing::info!(principal, client, reason, "a request was refused");
            } else {
                tracing::warn!(
                    principal,
                    client,
                    reason,
                    "a request would be refused with --auth-mode enforce"
                );
            }
        }
    }
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
    let (client, names) = match request.extensions().get::<Client>() {
        Some(client) => (Some(client.address), client.names.clone()),
        None => (None, Arc::default()),
    };
    let mut permit = Permit { principal: None, client, api: api.clone() };
    if identity.mode() != Mode::Off {
        let Some(access) = doors.of(request.method(), route.as_ref().map(MatchedPath::as_str)) else {
            // Nobody has said who may use it: then nobody may.
            return StatusCode::FORBIDDEN.into_response();
        };
        let admitted = match identity.admit(access, (request.headers(), &names), client, None) {
            Ok(admission) => Ok(admission),
            Err(look) => {
                let looked = look.done().await;
                identity.admit(access, (request.headers(), &names), client, Some(looked))
            }
        };
        let undecided = |_| Admission { principal: None, denied: Some(Denied::Undecided) };
        let Admission { principal, denied } = admitted.unwrap_or_else(undecided);
        if let Some(principal) = &principal {
            Span::current().record("principal", principal.name.as_str());
        }
        permit.principal = principal;
        if let Some(denied) = denied
            && let Err(denied) = permit.deny(denied)
        {
            return refused(denied, request.uri().path());
        }
    }
    request.extensions_mut().insert(permit);
    next.run(request).await
}

fn refused(denied: Denied, path: &str) -> Response {
    if path.starts_with(rfork_protocol::v2::SERVICE) { v2::denied(denied) } else { denied.into_response() }
}

impl Denied {
    /// Its code.
    pub(super) const fn code(self) -> Code {
        match self {
            Self::TooMany => Code::TooManyFailures,
            Self::Undecided => Code::IssuerUnavailable,
            Self::Owner => Code::SeedOwned,
            Self::NotPinned => Code::NotPinned,
            _ if self.wants_credential() => Code::Unauthenticated,
            _ => Code::Forbidden,
        }
    }

    /// When the same request may be made again, in milliseconds, if that depends on the time.
    pub(super) fn come_back_ms(self) -> Option<u64> {
        match self {
            Self::TooMany => Some(COME_BACK_SEC * 1_000),
            Self::Undecided | Self::Owner | Self::NotPinned => Some(1_000),
            _ => None,
        }
    }

    /// An answer that is to tell of it, with what the client is asked to show.
    pub(super) fn told_by(self, mut answer: Response) -> Response {
        let headers = answer.headers_mut();
        if self.wants_credential() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        if let Some(come_back_ms) = self.come_back_ms() {
            headers.insert(header::RETRY_AFTER, (come_back_ms / 1_000).into());
        }
        if self == Self::TooMany {
            // The next one takes a connection first.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
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
