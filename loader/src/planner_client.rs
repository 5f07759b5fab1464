//! The planner, as a worker sees it: five requests, and what each status means for the worker.

use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use reqwest::{Client, Method, Url};
use rfork_protocol::v1::{self, AddSeed, GetSeed, Granted, Labels, LeaseRef, RemoveSeed};
use rfork_protocol::{SeedIdentity, SeedKey};

/// A request to the planner that had no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The base URL is not one.
    #[error(
        "rfork_scheduler_url '{url}' is not a URL of a planner: {reason}; give one like http://planner:1223"
    )]
    BadUrl {
        /// What was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// No HTTP client could be made.
    #[error("cannot set up HTTP: {0}")]
    Client(#[source] reqwest::Error),
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
    /// It answered 200 without the headers that belong there.
    #[error("the planner at {planner} granted a seed in a form this worker does not read: {source}")]
    Malformed {
        /// Its base URL, without credentials.
        planner: String,
        /// The header at fault.
        source: v1::HeaderError,
    },
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
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

/// A seed that the planner granted, and when the question was sent: a lease's time counts from there, since
/// the planner's clock started no earlier.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The seed, the lease and its time to live.
    pub granted: Granted,
    /// When `get_seed` was sent.
    pub asked_at: Instant,
}

/// A planner's client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PlannerClient {
    http: Client,
    base: Url,
    labels: Labels,
}

impl PlannerClient {
    /// A client for the planner at `base_url`; each request ends after `timeout`. `labels` go with every
    /// request that names a key.
    ///
    /// # Errors
    /// [`PlannerError::BadUrl`] or [`PlannerError::Client`].
    pub fn new(base_url: &str, timeout: Duration, labels: Labels) -> Result<Self, PlannerError> {
        let bad = |reason: String| PlannerError::BadUrl { url: base_url.to_owned(), reason };
        let base = Url::parse(base_url).map_err(|error| bad(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad("it must start with http:// or https:// and name a host".into()));
        }
        let http = crate::http::client(timeout).map_err(PlannerError::Client)?;
        Ok(Self { http, base, labels })
    }

    /// The planner's base URL.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// The HTTP client, for requests to seeds.
    pub fn http(&self) -> &Client {
        &self.http
    }

    /// Asks for a seed of `key`; `None` when none is free.
    ///
    /// # Errors
    /// [`PlannerError`]: no answer, another refusal, or an answer without its headers.
    pub async fn get_seed(&self, key: &SeedKey) -> Result<Option<Grant>, PlannerError> {
        let asked_at = Instant::now();
        let request = GetSeed { key: key.clone(), labels: self.labels.clone() };
        let answer = self.send(Method::GET, v1::GET_SEED, request.encode()).await?;
        match answer.status() {
            StatusCode::OK => {
                let granted = Granted::decode(answer.headers())
                    .map_err(|source| PlannerError::Malformed { planner: self.name(), source })?;
                Ok(Some(Grant { granted, asked_at }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(v1::GET_SEED, answer).await),
        }
    }

    /// Extends a lease; `false` when the planner does not know it (any more).
    ///
    /// # Errors
    /// [`PlannerError`].
    pub async fn renew(&self, lease: &LeaseRef) -> Result<bool, PlannerError> {
        self.done_or_unknown(Method::POST, v1::RENEW_SEED_LEASE, lease.encode()).await
    }

    /// Gives a lease back. Harmless when it is gone already.
    ///
    /// # Errors
    /// [`PlannerError`]; see [`PlannerError::is_passing`] for whether to try again.
    pub async fn put_seed(&self, lease: &LeaseRef) -> Result<(), PlannerError> {
        self.done_or_unknown(Method::POST, v1::PUT_SEED, lease.encode()).await.map(drop)
    }

    /// Registers this worker as a seed, or says that it still is one.
    ///
    /// # Errors
    /// [`PlannerError`]; one that is not passing ends the seed service.
    pub async fn add_seed(&self, key: &SeedKey, identity: &SeedIdentity) -> Result<(), PlannerError> {
        let request =
            AddSeed { key: key.clone(), identity: identity.clone(), refcnt: 0, labels: self.labels.clone() };
        let answer = self.send(Method::POST, v1::ADD_SEED, request.encode()).await?;
        if answer.status() == StatusCode::OK { Ok(()) } else { Err(self.refused(v1::ADD_SEED, answer).await) }
    }

    /// Takes this worker's advertisement back. A planner that does not know it, still has leases on it (it is
    /// then handed out no more), or has no such endpoint is as good.
    ///
    /// # Errors
    /// [`PlannerError`].
    pub async fn remove_seed(&self, key: &SeedKey, identity: &SeedIdentity) -> Result<(), PlannerError> {
        let request =
            RemoveSeed { key: key.clone(), identity: identity.clone(), labels: self.labels.clone() };
        let answer = self.send(Method::POST, v1::REMOVE_SEED, request.encode()).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(()),
            _ => Err(self.refused(v1::REMOVE_SEED, answer).await),
        }
    }

    async fn done_or_unknown(
        &self,
        method: Method,
        path: &'static str,
        headers: HeaderMap,
    ) -> Result<bool, PlannerError> {
        let answer = self.send(method, path, headers).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(path, answer).await),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &'static str,
        headers: HeaderMap,
    ) -> Result<reqwest::Response, PlannerError> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        self.http.request(method, url).headers(headers).send().await.map_err(|error| {
            let reason = crate::http::explain(error);
            PlannerError::Unreachable { planner: self.name(), request: path, reason }
        })
    }

    async fn refused(&self, request: &'static str, answer: reqwest::Response) -> PlannerError {
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        let reason = body.lines().next().unwrap_or_default().chars().take(200).collect();
        PlannerError::Refused { planner: self.name(), request, status, reason }
    }

    /// The planner's URL for messages, without credentials.
    fn name(&self) -> String {
        let mut shown = self.base.clone();
        let _ = (shown.set_username(""), shown.set_password(None));
        shown.to_string().trim_end_matches('/').to_owned()
    }
}
