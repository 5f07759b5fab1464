//! Who issues JWTs that are believed, and whose a JWT is: as the file of tokens says it.

use std::path::PathBuf;
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Principal;
use crate::domain::terms::Pattern;

/// The longest text of one field, in bytes.
const MAX_TEXT_BYTES: usize = 2_048;
/// The most claims that one rule may name.
const MAX_CLAIMS: usize = 16;
/// Those that are taken unless the file says so; all of them are asymmetric.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url {
        /// By TLS, or on this machine.
        url: Url,
        /// Certificates of those who may answer there, as PEM; without it those of the system.
        ca: Option<PathBuf>,
        /// What is shown there.
        token: Option<PathBuf>,
    },
}

/// Somebody whose JWTs are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issuer {
    /// Its `iss`.
    pub(super) name: String,
    /// The `aud` that names planners.
    pub(super) audience: String,
    /// How its JWTs may be signed.
    pub(super) algorithms: Vec<Algorithm>,
    /// Where its keys are.
    pub(super) at: At,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToldIssuer {
    issuer: String,
    audience: String,
    jwks_url: Option<String>,
    jwks_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    algorithms: Option<Vec<String>>,
}

impl ToldIssuer {
    /// What it means.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(self) -> Result<Issuer, String> {
        for (what, text) in [("issuer", &self.issuer), ("audience", &self.audience)] {
            if text.is_empty() || text.len() > MAX_TEXT_BYTES {
                return Err(format!("{what} must have 1 to {MAX_TEXT_BYTES} bytes"));
            }
        }
        let algorithms = self.algorithms.map_or_else(|| Ok(ALGORITHMS.to_vec()), |told| algorithms(&told))?;
        let at = match (self.jwks_url, self.jwks_file) {
            (Some(url), None) => {
                let url = Url::parse(&url).map_err(|_| "jwks_url is no URL")?;
                if !is_private(&url) {
                    return Err("jwks_url must begin with https://, or be on this machine: who may change keys on their way \
                                may be anybody"
                        .into());
                }
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(
                        "jwks_url must have no user nor password; token_file says what is shown there".into(),
                    );
                }
                At::Url { url, ca: self.ca_file, token: self.token_file }
            }
            (None, Some(path)) if self.ca_file.is_none() && self.token_file.is_none() => At::File(path),
            (None, Some(_)) => return Err("ca_file and token_file are for jwks_url".into()),
            _ => return Err("jwks_url or jwks_file must say where its keys are".into()),
        };
        Ok(Issuer { name: self.issuer, audience: self.audience, algorithms, at })
    }
}

fn algorithms(told: &[String]) -> Result<Vec<Algorithm>, String> {
    let known = told.iter().map(|name| {
        name.parse().ok().filter(|algorithm| ALGORITHMS.contains(algorithm)).ok_or_else(|| {
            "algorithms must be of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA"
                .to_owned()
        })
    });
    let known: Vec<Algorithm> = known.collect::<Result<_, _>>()?;
    if known.is_empty() { Err("algorithms must name one at least".into()) } else { Ok(known) }
}

/// Whether nobody between sees or changes what comes from there.
fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    url.scheme() == "https" || url.scheme() == "http" && is_here
}

/// As it stands in the file: which JWTs are a principal's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToldRule {
    issuer: String,
    subject: Option<String>,
    #[serde(default)]
    claims: std::collections::BTreeMap<String, String>,
}

/// Which JWTs are a principal's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The place of its issuer among those of the file.
    issuer: usize,
    subject: Option<Pattern>,
    claims: Vec<(String, Pattern)>,
    principal: Arc<Principal>,
}

impl ToldRule {
    /// What it means, with issuers as the file has them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(self, issuers: &[Issuer], principal: &Arc<Principal>) -> Result<Rule, String> {
        let issuer = issuers.iter().position(|known| known.name == self.issuer);
        let issuer = issuer.ok_or("the issuer of jwts must be one of a table [[issuer]]")?;
        if self.subject.is_none() && self.claims.is_empty() {
            return Err(
                "jwts take a subject or claims: else whoever has a JWT of that issuer were this principal"
                    .into(),
            );
        }
        for name in ["sub", "exp"] {
            if self.claims.contains_key(name) {
                return Err(format!("jwts.claims.{name} is no claim for rules: subject is for sub"));
            }
        }
        if self.claims.len() > MAX_CLAIMS {
            return Err(format!("jwts may name {MAX_CLAIMS} claims"));
        }
        let claims = self.claims.into_iter().map(|(name, text)| (name, Pattern::new(&text))).collect();
        let subject = self.subject.map(|text| Pattern::new(&text));
        Ok(Rule { issuer, subject, claims, principal: principal.clone() })
    }
}

/// What a JWT says, once its signature was verified.
#[derive(Deserialize)]
pub(super) struct Claims {
    sub: String,
    exp: f64,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Claims {
    /// When it ends, in Unix seconds.
    pub(super) fn ends_sec(&self) -> f64 {
        self.exp
    }
}

/// Whose a JWT of this issuer is: the first principal that it fits.
pub(super) fn whose(rules: &[Rule], issuer: usize, claims: &Claims) -> Option<Arc<Principal>> {
    let fits = |rule: &&Rule| {
        rule.issuer == issuer
            && rule.subject.as_ref().is_none_or(|subject| subject.fits(claims.sub.as_bytes()))
            && rule
                .claims
                .iter()
                .all(|(name, pattern)| claims.more.get(name).is_some_and(|told| holds(told, pattern)))
    };
    rules.iter().find(fits).map(|rule| rule.principal.clone())
}

/// Whether a claim is a text that fits, or a list with one.
fn holds(told: &Value, pattern: &Pattern) -> bool {
    let text = |value: &Value| value.as_str().is_some_and(|text| pattern.fits(text.as_bytes()));
    text(told) || told.as_array().is_some_and(|list| list.iter().any(text))
}
