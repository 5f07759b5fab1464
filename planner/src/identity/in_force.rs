//! What is in force until the file of tokens says something else: its principals, the keys of its issuers, and which JWTs were
//! verified with them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::jwt::{self, KeySet, Why};
use super::source::Source;
use super::tokens::Tokens;
use super::{Denied, Principal};

/// JWTs that are remembered at once.
const MOST_VERIFIED: usize = 10_000;

/// What is in force.
pub(super) struct InForce {
    pub(super) tokens: Arc<Tokens>,
    /// As the file has its issuers.
    pub(super) sources: Vec<Arc<Source>>,
    verified: Mutex<Verified>,
}

/// Why nobody is known by a credential.
pub(super) enum Unsure {
    /// Nobody has it.
    Denied(Denied),
    /// It names a key of this issuer that is not known, which may be new.
    Look(Arc<Source>),
}

impl From<Denied> for Unsure {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl InForce {
    pub(super) fn new(tokens: Arc<Tokens>, sources: Vec<Arc<Source>>) -> Self {
        Self { tokens, sources, verified: Mutex::default() }
    }

    /// Whose token it is. `looked` says whether an issuer's keys could be had by a look for them that the token's key
    /// was the reason for.
    pub(super) fn whose(&self, token: &[u8], looked: Option<bool>) -> Result<Arc<Principal>, Unsure> {
        if let Some(principal) = self.tokens.find(token) {
            return Ok(principal);
        }
        if !jwt::is_one(token) {
            return Err(Denied::Unknown.into());
        }
        let (hash, now) = (Sha256::digest(token).into(), now_sec());
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(principal) = verified().find(&hash, now, |at| self.sources.get(at)?.keys()) {
            return Ok(principal);
        }
        let names = self.sources.iter().map(|source| &source.issuer().name);
        let at = jwt::issuer_of(token, names).ok_or(Denied::Unknown)?;
        let source = &self.sources[at];
        let unknown_key = || match looked {
            None => Unsure::Look(source.clone()),
            Some(true) => Denied::Unknown.into(),
            Some(false) => Denied::Undecided.into(),
        };
        let Some(keys) = source.keys() else { return Err(unknown_key()) };
        let claims = jwt::verify(token, source.issuer(), &keys).map_err(|why| match why {
            Why::UnknownKey => unknown_key(),
            Why::Expired => Denied::Expired.into(),
            Why::Bad => Denied::Unknown.into(),
        })?;
        let principal = self.tokens.whose(at, &claims).ok_or(Denied::Stranger)?;
        let known = Known { principal: principal.clone(), at, keys, ends_sec: claims.ends_sec() };
        verified().keep(hash, known, now);
        Ok(principal)
    }
}

fn now_sec() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// JWTs by their hashes.
#[derive(Default)]
struct Verified(HashMap<[u8; 32], Known>);

struct Known {
    principal: Arc<Principal>,
    /// The place of its issuer, and by which keys of that it was verified: others verify it anew.
    at: usize,
    keys: Arc<KeySet>,
    ends_sec: f64,
}

impl Verified {
    fn find(
        &self,
        hash: &[u8; 32],
        now: f64,
        keys: impl Fn(usize) -> Option<Arc<KeySet>>,
    ) -> Option<Arc<Principal>> {
        let known = self.0.get(hash).filter(|known| now < known.ends_sec)?;
        keys(known.at).filter(|keys| Arc::ptr_eq(keys, &known.keys))?;
        Some(known.principal.clone())
    }

    fn keep(&mut self, hash: [u8; 32], known: Known, now: f64) {
        if self.0.len() >= MOST_VERIFIED {
            self.0.retain(|_, known| now < known.ends_sec);
        }
        if self.0.len() >= MOST_VERIFIED {
            self.0.clear();
        }
        self.0.insert(hash, known);
    }
}
