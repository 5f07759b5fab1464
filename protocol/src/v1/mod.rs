//! Planner API v1: all parameters and results are HTTP headers, spelt here and nowhere else.
//!
//! Names contain underscores, which some proxies drop. So each is also accepted with hyphens, and requests of
//! ours carry both spellings; the underscore one is looked at first. Of a repeated header the first counts.
//! Values are bytes: a seed key may be Latin-1 or UTF-8 and is never decoded.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ids::{LeaseId, SeedIdentity, SeedKey};

mod headers;
mod parameters;
#[cfg(test)]
mod tests;

use headers::{Request, identity, lease, optional_integer, seconds, seed_key, value};
pub use parameters::*;

/// `POST`: registers a seed, or heartbeats.
pub const ADD_SEED: &str = "/add_seed";
/// `GET`: allocates a seed.
pub const GET_SEED: &str = "/get_seed";
/// `POST`: extends a lease.
pub const RENEW_SEED_LEASE: &str = "/renew_seed_lease";
/// `POST`: ends a lease.
pub const PUT_SEED: &str = "/put_seed";
/// `POST`: ends an advertisement.
pub const REMOVE_SEED: &str = "/remove_seed";

/// The reason of a 404 to [`GET_SEED`]; people grep for it.
pub const NO_AVAILABLE_SEED: &str = "no available seed";
/// The reason of a 404 to [`PUT_SEED`] and [`RENEW_SEED_LEASE`]; people grep for it.
pub const LEASE_NOT_FOUND: &str = "lease not found";

/// The most bytes of a label's value; the rest is cut off.
pub const MAX_LABEL_BYTES: usize = 512;

/// The longest time to live that is believed: 136 years, beyond which no clock counts.
pub const MAX_TTL: Duration = Duration::from_secs(u32::MAX as u64);

/// Optional labels, for people and metrics; they decide nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    /// Which model.
    pub model_url: Option<String>,
    /// Which deployment of it.
    pub deploy_strategy: Option<String>,
    /// Whether it is a draft model.
    pub is_draft: Option<bool>,
}

/// [`ADD_SEED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddSeed {
    /// What the seed holds.
    pub key: SeedKey,
    /// Where it is.
    pub identity: SeedIdentity,
    /// Sent as 0, if at all; capacity is the planner's configuration.
    pub refcnt: Option<u64>,
    /// Labels.
    pub labels: Labels,
}

/// [`GET_SEED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetSeed {
    /// What the worker wants.
    pub key: SeedKey,
    /// Labels.
    pub labels: Labels,
}

/// The answer to [`GET_SEED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The seed.
    pub identity: SeedIdentity,
    /// The right to read from it.
    pub lease: LeaseId,
    /// How long that lasts without a renewal. Planners of generations A and B do not say, and cannot renew.
    pub lease_ttl: Option<Duration>,
}

/// [`RENEW_SEED_LEASE`] and [`PUT_SEED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRef {
    /// The seed that the lease is for.
    pub identity: SeedIdentity,
    /// The lease.
    pub lease: LeaseId,
}

/// [`REMOVE_SEED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveSeed {
    /// What the seed holds.
    pub key: SeedKey,
    /// Where it is.
    pub identity: SeedIdentity,
    /// Labels.
    pub labels: Labels,
}

impl AddSeed {
    /// Reads a request.
    ///
    /// # Errors
    /// [`HeaderError`], as for every `decode` here.
    pub fn decode(headers: &HeaderMap) -> Result<Self, HeaderError> {
        Ok(Self {
            key: seed_key(headers)?,
            identity: identity(headers)?,
            refcnt: optional_integer(headers, SEED_REFCNT, 0, u64::MAX)?,
            labels: Labels::decode(headers),
        })
    }

    /// The request's headers.
    pub fn encode(&self) -> HeaderMap {
        let mut request = Request::default();
        request.bytes(SEED_KEY, self.key.as_bytes());
        request.identity(&self.identity);
        if let Some(refcnt) = self.refcnt {
            request.text(SEED_REFCNT, &refcnt.to_string());
        }
        request.labels(&self.labels);
        request.0
    }
}

impl GetSeed {
    /// Reads a request.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(headers: &HeaderMap) -> Result<Self, HeaderError> {
        Ok(Self { key: seed_key(headers)?, labels: Labels::decode(headers) })
    }

    /// The request's headers.
    pub fn encode(&self) -> HeaderMap {
        let mut request = Request::default();
        request.bytes(SEED_KEY, self.key.as_bytes());
        request.labels(&self.labels);
        request.0
    }
}

impl Granted {
    /// Reads an answer, of any generation of planners.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(headers: &HeaderMap) -> Result<Self, HeaderError> {
        let lease_ttl = value(headers, LEASE_TTL_SEC).map(|ttl| seconds(LEASE_TTL_SEC, ttl)).transpose()?;
        Ok(Self { identity: identity(headers)?, lease: lease(headers)?, lease_ttl })
    }

    /// The answer's headers.
    pub fn encode(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(5);
        let mut insert = |parameter: Parameter, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(HeaderName::from_static(parameter.underscore), value);
            }
        };
        insert(SEED_IP, self.identity.host());
        insert(SEED_PORT, &self.identity.port().to_string());
        insert(SEED_RANK, &self.identity.rank().to_string());
        insert(USER_ID, self.lease.expose());
        if let Some(ttl) = self.lease_ttl {
            insert(LEASE_TTL_SEC, &ttl.as_secs_f64().to_string());
        }
        headers
    }
}

impl LeaseRef {
    /// Reads a request.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(headers: &HeaderMap) -> Result<Self, HeaderError> {
        Ok(Self { identity: identity(headers)?, lease: lease(headers)? })
    }

    /// The request's headers.
    pub fn encode(&self) -> HeaderMap {
        let mut request = Request::default();
        request.identity(&self.identity);
        request.text(USER_ID, self.lease.expose());
        request.0
    }
}

impl RemoveSeed {
    /// Reads a request.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(headers: &HeaderMap) -> Result<Self, HeaderError> {
        Ok(Self { key: seed_key(headers)?, identity: identity(headers)?, labels: Labels::decode(headers) })
    }

    /// The request's headers.
    pub fn encode(&self) -> HeaderMap {
        let mut request = Request::default();
        request.bytes(SEED_KEY, self.key.as_bytes());
        request.identity(&self.identity);
        request.labels(&self.labels);
        request.0
    }
}

impl Labels {
    /// Reads what labels there are. They decide nothing, so an odd one is cut or dropped, never refused.
    fn decode(headers: &HeaderMap) -> Self {
        let text = |parameter| {
            value(headers, parameter).map(|value| {
                let bytes = value.as_bytes();
                let mut text =
                    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LABEL_BYTES)]).into_owned();
                // What is no UTF-8 becomes longer.
                text.truncate(text.floor_char_boundary(MAX_LABEL_BYTES));
                text
            })
        };
        let is_draft = text(IS_DRAFT).and_then(|text| text.to_ascii_lowercase().parse().ok());
        Self { model_url: text(MODEL_URL), deploy_strategy: text(DEPLOY_STRATEGY), is_draft }
    }
}
