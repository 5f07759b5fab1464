//! The planner, as a worker sees it: five requests, and what each answer means for the worker.
//!
//! A planner that speaks API v2 is spoken to in it, any other in v1; what it speaks is asked once. The two see
//! the same seeds and leases, so that a planner may be replaced by one of another version at any time.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::AUTHORIZATION;
use hyper_util::client::legacy::connect::HttpInfo;
use reqwest::{Client, RequestBuilder, Response, Url};
use rfork_protocol::manifest::content::ContentId;
use rfork_protocol::shown::Shown;
use rfork_protocol::v1::{Labels, LeaseRef};
use rfork_protocol::v2::{
    Advice, Claimed, DEREGISTER, HEARTBEAT, LEADS, LEASES, LoadProgress, LoadingSeed, Location, Name,
    RELEASE, RENEW, Role, SEEDS, Source, Stalled,
};
use rfork_protocol::{SeedIdentity, SeedKey};

mod v1;
mod v2;

#[cfg(test)]
mod tests;

use crate::http::{BodyError, TlsError};
use crate::planner_ca::PlannerCa;
use crate::token::TokenFile;
use v2::{Failed, Known};

/// The longest answer that is read: all of them name one seed, or one fault.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// A request to the planner that had no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The base URL is not one.
    #[error("rfork_scheduler_url {0}")]
    BadUrl(String),
    /// No HTTP client could be made.
    #[error("cannot set up HTTP: {0}")]
    Client(#[source] TlsError),
    /// Nothing came back in time.
    #[error("the planner at {planner} did not answer {request}: {reason}")]
    Unreachable {
        /// Its base URL, without credentials.
        planner: String,
        /// The endpoint asked.
        request: &'static str,
        /// What failed.
        reason: String,
    },
    /// It answered with a refusal that has no meaning of its own here.
    #[error("the planner at {planner} answered {request} with {status}: {reason}")]
    Refused {
        /// Its base URL, without credentials.
        planner: String,
        /// The endpoint asked.
        request: &'static str,
        /// The status.
        status: StatusCode,
        /// The first line of its reason.
        reason: String,
    },
    /// It answered 200 without what belongs there.
    #[error("the planner at {planner} answered {request} in a form this worker does not read: {reason}")]
    Malformed {
        /// Its base URL, without credentials.
        planner: String,
        /// The endpoint asked.
        request: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A planner's base URL; or what it must be, and what it is without credentials.
///
/// # Errors
/// A text that reads after the setting's name.
pub fn base_url_of(text: &str) -> Result<Url, String> {
    let bad = |reason: &str| {
        format!(
            "must be the URL of a planner, as http://planner:1223, got '{}': {reason}",
            crate::http::shown(text)
        )
    };
    let base = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(bad("it has to start with http:// or https:// and name a host"));
    }
    Ok(base)
}

impl PlannerError {
    /// Whether the same request may succeed later: no answer, 408, 429 or any 5xx.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => is_passing(*status),
            _ => false,
        }
    }

    /// Whether what goes on while this worker lives may go on: its error is passing, or the planner does not take its token,
    /// which is replaced while it runs, here and there at other times.
    pub fn is_borne(&self) -> bool {
        let denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        self.is_passing() || matches!(self, Self::Refused { status, .. } if denied.contains(status))
    }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

/// A seed that the planner granted.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The seed and the lease.
    pub reference: LeaseRef,
    /// How long the lease lives without a renewal. Planners of the first generations do not say, and cannot renew.
    pub ttl: Option<Duration>,
    /// From when that counts: the planner granted it no earlier.
    pub since: Instant,
    /// What the seed is as a source, if this worker is registered as a loading seed now.
    pub source: Option<Source>,
    /// The contents that the key is pinned to; none of them, if the planner names what this version does not know. `None`: any.
    pub pinned: Option<Vec<ContentId>>,
}

/// What a planner says to a question for a seed.
#[derive(Debug, Clone)]
pub enum Acquired {
    /// This one.
    Granted(Grant),
    /// None is free, or wanted, now.
    Busy,
    /// None that lives holds the key.
    Unknown,
}

impl Acquired {
    /// The seed that was granted, if any was.
    pub fn grant(self) -> Option<Grant> {
        match self {
            Self::Granted(grant) => Some(grant),
            Self::Busy | Self::Unknown => None,
        }
    }
}

/// A worker's question for the right to read storage.
#[derive(Debug, Clone)]
pub struct Claim {
    /// What it is as a loading seed, or would be.
    pub loading: LoadingSeed,
    /// Bytes that came since the load began.
    pub arrived_bytes: u64,
    /// For how long without progress it waits for another one.
    pub patience: Duration,
    /// What names the bytes that it reads while they have no content id. Others may read them by this name.
    pub origin: Option<Name>,
    /// Whether its loader gives everything at once.
    pub whole: bool,
}

/// What a planner says to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives on.
    Lives {
        /// For so long from now without another renewal. v1 has no words for it.
        ttl: Option<Duration>,
        /// When the next renewal is due, if the planner says so.
        next: Option<Duration>,
        /// What a loading seed should do.
        advice: Option<Advice>,
    },
    /// The planner does not know it (any more).
    Gone,
}

/// Where a worker stands, and of which instance it is a rank. Told to planners that speak v2.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Where it stands.
    pub location: Option<Location>,
    /// The instance.
    pub instance_id: Option<Name>,
}

/// What a worker wishes beside a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// How long it waits for a seed. Only v2 waits, at most for as long as the planner lets it.
    pub wait: Duration,
    /// Seeds that it does not want. v1 has no words for it.
    pub exclude: Vec<SeedIdentity>,
    /// What it would be as a loading seed. Told only to planners that know of them.
    pub loading: Option<LoadingSeed>,
    /// The source that brings no byte. Told with `loading` alone.
    pub stalled: Option<Stalled>,
}

/// What a seed says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// What it holds.
    pub key: SeedKey,
    /// Where it is.
    pub identity: SeedIdentity,
    /// Its process: another one at the same address has other memory.
    pub incarnation: Option<Name>,
    /// What its bytes are.
    pub content_id: Option<Name>,
    /// What named its bytes while they had no content id, if others may have read them then.
    pub origin: Option<Name>,
}

/// What a planner says to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It has the seed.
    Known,
    /// It does not: the seed must register.
    Unknown,
    /// It has the seed and offers it no more.
    Draining,
}

/// How the transfer of a lease went. v1 has no words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransferReport {
    /// The seed did well.
    Done {
        /// Bytes that were read.
        bytes: u64,
        /// How long that took.
        duration: Duration,
    },
    /// The seed failed: others should be spared it for a while.
    Failed {
        /// Why, in a word of a-z, 0-9 and `-`.
        reason: &'static str,
        /// Bytes that were read before.
        bytes: u64,
        /// How long that took.
        duration: Duration,
    },
    /// The worker stopped for reasons that say nothing of the seed.
    #[default]
    Aborted,
}

/// A planner's client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PlannerClient {
    http: Client,
    base: Url,
    timeout: Duration,
    labels: Labels,
    topology: Topology,
    token: Option<TokenFile>,
    ca: Option<PlannerCa>,
    known: Arc<Known>,
    /// From where it was reached last. Shared by all clones; no guard is held across an await.
    local: Arc<Mutex<Option<IpAddr>>>,
}

/// Asks over v2 if the planner speaks it, else over v1.
macro_rules! over_either {
    ($self:ident, $path:expr, $v2:expr, $v1:expr) => {{
        if $self.v2_max_wait().await.is_none() {
            return $v1.await;
        }
        match $v2.await {
            Ok(answer) => Ok(answer),
            Err(Failed::NotSpoken) => {
                $self.v2_not_spoken();
                $v1.await
            }
            Err(Failed::Problem(status, problem)) => Err($self.v2_error($path, status, &problem)),
            Err(Failed::Other(error)) => Err(error),
        }
    }};
}

impl PlannerClient {
    /// A client for the planner at `base_url`; each request ends after `timeout`, and one that waits for a seed
    /// that much later. `labels` go with every request that names a key.
    ///
    /// # Errors
    /// [`PlannerError::BadUrl`] or [`PlannerError::Client`].
    pub fn new(
        base_url: &str,
        timeout: Duration,
        labels: Labels,
        topology: Topology,
    ) -> Result<Self, PlannerError> {
        let base = base_url_of(base_url).map_err(PlannerError::BadUrl)?;
        let http = crate::http::client(timeout, base.scheme() == "https");
        let http = http.map_err(|error| PlannerError::Client(error.into()))?;
        let (token, ca, known, local) = (None, None, Arc::default(), Arc::default());
        Ok(Self { http, base, timeout, labels, topology, token, ca, known, local })
    }

    /// This client, which shows the planner the token in a file.
    #[must_use]
    pub fn showing(self, token: Option<TokenFile>) -> Self {
        Self { token, ..self }
    }

    /// This client, which believes that it is the planner whom these CAs vouch for, and nobody else. Without them it is whom
    /// the system's vouch for.
    ///
    /// # Errors
    /// [`PlannerError::Client`].
    pub fn trusting(self, ca: Option<PlannerCa>) -> Result<Self, PlannerError> {
        let Some(ca) = ca else { return Ok(self) };
        let http = crate::http::trusting(self.timeout, &ca).map_err(PlannerError::Client)?;
        Ok(Self { http, ca: Some(ca), ..self })
    }

    /// The planner's base URL.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// The HTTP client, for requests to seeds.
    pub fn http(&self) -> &Client {
        &self.http
    }

    /// How long a request may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the planner leaves out the seeds that a [`Wish`] excludes.
    pub async fn excludes_seeds(&self) -> bool {
        self.v2_max_wait().await.is_some()
    }

    /// Whether the planner knows workers that serve while they load.
    pub async fn knows_loading_seeds(&self) -> bool {
        self.v2_max_wait().await.is_some() && self.v2_knows_loading_seeds()
    }

    /// Whether the planner says which worker reads storage while others wait for it.
    pub async fn gives_right_to_lead(&self) -> bool {
        self.v2_max_wait().await.is_some() && self.v2_gives_right_to_lead()
    }

    /// Asks for the right to read storage, or renews it. Without a planner that gives it everybody loads for itself.
    ///
    /// # Errors
    /// [`PlannerError`]; see [`PlannerError::is_passing`] for whether to try again.
    pub async fn claim(&self, key: &SeedKey, claim: &Claim) -> Result<Claimed, PlannerError> {
        let alone = async || Ok(Claimed { role: Role::Alone, renew_after_ms: 0, leader: None, root: None });
        over_either!(self, LEADS, self.v2_claim(key, claim), alone())
    }

    /// Asks for a seed of `key`.
    ///
    /// # Errors
    /// [`PlannerError`]: no answer, another refusal, or an answer that cannot be read.
    pub async fn acquire(&self, key: &SeedKey, wish: &Wish) -> Result<Acquired, PlannerError> {
        let max_wait = self.v2_max_wait().await.unwrap_or_default();
        over_either!(self, LEASES, self.v2_acquire(key, wish, max_wait), async {
            Ok(self.v1_acquire(key).await?.map_or(Acquired::Busy, Acquired::Granted))
        })
    }

    /// Extends a lease, and tells how far its reader is, if that is a loading seed.
    ///
    /// # Errors
    /// [`PlannerError`].
    pub async fn renew(
        &self,
        lease: &LeaseRef,
        progress: Option<LoadProgress>,
    ) -> Result<Renewal, PlannerError> {
        over_either!(self, RENEW, self.v2_renew(lease, progress), self.v1_renew(lease))
    }

    /// Gives a lease back and tells how it went. Harmless when it is gone already.
    ///
    /// # Errors
    /// [`PlannerError`]; see [`PlannerError::is_passing`] for whether to try again.
    pub async fn release(&self, lease: &LeaseRef, report: &TransferReport) -> Result<(), PlannerError> {
        over_either!(self, RELEASE, self.v2_release(lease, report), self.v1_release(lease))
    }

    /// Registers this worker as a seed.
    ///
    /// # Errors
    /// [`PlannerError`]; one that is not [borne](PlannerError::is_borne) ends the seed service.
    pub async fn register(&self, advert: &Advert) -> Result<(), PlannerError> {
        over_either!(self, SEEDS, self.v2_register(advert), self.v1_announce(advert))
    }

    /// Says that this worker still is a seed. Over v1 that registers it as well.
    ///
    /// # Errors
    /// As [`PlannerClient::register`].
    pub async fn beat(&self, advert: &Advert) -> Result<Heard, PlannerError> {
        let v1 = async || self.v1_announce(advert).await.map(|()| Heard::Known);
        over_either!(self, HEARTBEAT, self.v2_beat(advert, None), v1())
    }

    /// Says that this worker still is a loading seed, and how far it is. v1 knows none.
    ///
    /// # Errors
    /// As [`PlannerClient::register`].
    pub async fn beat_loading(&self, advert: &Advert, progress: LoadProgress) -> Result<Heard, PlannerError> {
        let v1 = async || Ok(Heard::Unknown);
        over_either!(self, HEARTBEAT, self.v2_beat(advert, Some(progress.clone())), v1())
    }

    /// Takes this worker's advertisement back. A planner that does not know it, still has leases on it (it is
    /// then handed out no more), or has no such endpoint is as good.
    ///
    /// # Errors
    /// [`PlannerError`].
    pub async fn withdraw(&self, advert: &Advert) -> Result<(), PlannerError> {
        over_either!(self, DEREGISTER, self.v2_withdraw(advert), self.v1_withdraw(advert))
    }

    /// The address of this machine from which the planner was reached last; it is asked what it speaks if it never was.
    /// `None` if that has no answer.
    pub async fn local_address(&self) -> Option<IpAddr> {
        let known = || *self.local.lock().unwrap_or_else(PoisonError::into_inner);
        if known().is_none() {
            self.v2_max_wait().await;
        }
        known()
    }

    /// Sends a request. Of the addresses of the planner's name it may be any that is answered.
    async fn send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        if let Some(ca) = &self.ca {
            ca.look().await;
        }
        let request = match &self.token {
            Some(token) => match token.header().await {
                Ok(token) => request.header(AUTHORIZATION, token),
                Err(error) => {
                    // The planner says what it makes of that.
                    tracing::warn!(%error, "the planner is asked without a token");
                    request
                }
            },
            None => request,
        };
        let answer = request.send().await?;
        if let Some(connection) = answer.extensions().get::<HttpInfo>() {
            let address = connection.local_addr().ip().to_canonical();
            *self.local.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        }
        Ok(answer)
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    fn unreachable(&self, request: &'static str, error: reqwest::Error) -> PlannerError {
        PlannerError::Unreachable { planner: self.name(), request, reason: crate::http::explain(error) }
    }

    async fn refused(&self, request: &'static str, answer: reqwest::Response) -> PlannerError {
        let status = answer.status();
        let body = crate::http::body(answer, MAX_ANSWER_BYTES).await.unwrap_or_default();
        self.refused_with(request, status, &String::from_utf8_lossy(&body))
    }

    fn refused_with(&self, request: &'static str, status: StatusCode, body: &str) -> PlannerError {
        let reason = Shown::within(body.lines().next().unwrap_or_default(), 200).to_string();
        PlannerError::Refused { planner: self.name(), request, status, reason }
    }

    fn unread(&self, request: &'static str, error: BodyError) -> PlannerError {
        match error {
            BodyError::Broken(reason) => PlannerError::Unreachable { planner: self.name(), request, reason },
            BodyError::TooLong(_) => self.malformed(request, &error),
        }
    }

    fn malformed(&self, request: &'static str, error: &dyn std::error::Error) -> PlannerError {
        PlannerError::Malformed {
            planner: self.name(),
            request,
            reason: Shown::within(error, 200).to_string(),
        }
    }

    /// The planner's URL for messages, without credentials.
    fn name(&self) -> String {
        crate::http::shown(self.base.as_str())
    }
}
