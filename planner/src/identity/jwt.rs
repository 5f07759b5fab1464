//! Whether a JWT is what it says. PURE but for the clock that its times are compared with.

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cryptography;
use super::issuer::{Claims, Issuer};

/// What clocks may differ by, in seconds.
const LEEWAY_SEC: u64 = 30;
/// The most keys of one issuer.
const MAX_KEYS: usize = 64;

/// Why a JWT is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It names a key that its issuer did not have when it was asked last.
    UnknownKey,
    /// It was good, and has ended.
    Expired,
    /// It is none, or somebody else's, or for somebody else, or not good yet.
    Bad,
}

/// The keys of an issuer, as it told of them.
#[derive(Debug)]
pub struct KeySet {
    /// Of the text, by which two sets are compared.
    hash: [u8; 32],
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    public: DecodingKey,
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl KeySet {
    /// Of a JSON document as RFC 7517 has it. Keys that cannot verify anything are passed over.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &[u8]) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Told {
            keys: Vec<Value>,
        }
        cryptography::install();
        let told: Told =
            serde_json::from_slice(text).map_err(|_| "it is no JSON object with a list of keys")?;
        if told.keys.len() > MAX_KEYS {
            return Err("it has more than 64 keys");
        }
        let keys: Vec<Key> = told.keys.into_iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err("it has no key of RSA, P-256, P-384 or Ed25519");
        }
        Ok(Self { hash: Sha256::digest(text).into(), keys })
    }

    /// The key of this name, or the only one, for an algorithm.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&DecodingKey, Why> {
        let named: Vec<&Key> = match id {
            Some(id) => self.keys.iter().filter(|key| key.id.as_deref() == Some(id)).collect(),
            None if self.keys.len() == 1 => self.keys.iter().collect(),
            None => return Err(Why::Bad),
        };
        if named.is_empty() {
            return Err(Why::UnknownKey);
        }
        let fits = |key: &&&Key| {
            key.public.family() == algorithm.family() && key.algorithm.is_none_or(|told| told == algorithm)
        };
        named.iter().find(fits).map(|key| &key.public).ok_or(Why::Bad)
    }
}

fn key(told: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(told).ok()?;
    let is_symmetric = matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    let is_for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    if is_symmetric || !is_for_signatures {
        return None;
    }
    let algorithm = match jwk.common.key_algorithm {
        Some(told) => Some(Algorithm::try_from(told).ok()?),
        None => None,
    };
    let public = DecodingKey::from_jwk(&jwk).ok()?;
    (public.family() != AlgorithmFamily::Hmac).then_some(Key { id: jwk.common.key_id, algorithm, public })
}

/// Whether a credential looks like a JWT: three parts, the first of them a JSON object.
pub(super) fn is_one(token: &[u8]) -> bool {
    token.starts_with(b"eyJ") && token.split(|byte| *byte == b'.').count() == 3
}

/// The place of the issuer that a JWT says it is of. That is not verified.
pub(super) fn issuer_of(token: &[u8], issuers: impl Iterator<Item = impl AsRef<str>>) -> Option<usize> {
    #[derive(Deserialize)]
    struct Told {
        iss: String,
    }
    let told: Told = insecure_decode_claims(token).ok()?;
    issuers.into_iter().position(|issuer| issuer.as_ref() == told.iss)
}

/// What a JWT says, if its issuer signed it for planners, and it is good now.
///
/// # Errors
/// [`Why`].
pub(super) fn verify(token: &[u8], issuer: &Issuer, keys: &KeySet) -> Result<Claims, Why> {
    let header = decode_header(token).map_err(|_| Why::Bad)?;
    if !issuer.algorithms.contains(&header.alg) {
        return Err(Why::Bad);
    }
    let key = keys.find(header.kid.as_deref(), header.alg)?;
    let mut wanted = Validation::new(header.alg);
    wanted.leeway = LEEWAY_SEC;
    wanted.validate_nbf = true;
    wanted.set_audience(&[&issuer.audience]);
    wanted.set_issuer(&[&issuer.name]);
    wanted.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let decoded = decode::<Claims>(token, key, &wanted);
    decoded.map(|token| token.claims).map_err(|error| match error.kind() {
        ErrorKind::ExpiredSignature => Why::Expired,
        _ => Why::Bad,
    })
}
