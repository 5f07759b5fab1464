//! Who asks, and what they may: principals, how they show who they are, and what is refused.
//!
//! Most of it is decided over plain values; [`Identity`] holds what is in force, [`watch`] reads the file of tokens again when
//! it changes, and the keys of issuers are looked after by a task each.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use rfork_protocol::SeedKey;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

mod credential;
mod cryptography;
mod failures;
mod in_force;
mod issuer;
pub mod jwt;
mod source;
pub mod tokens;
mod told;

use crate::domain::terms::Pattern;
use crate::shares::network;
use crate::toml_file::{self, FileError};
use credential::Credential;
use failures::Failures;
use in_force::{InForce, Unsure};
use issuer::Issuer;
use source::Source;
pub(crate) use source::Tell;
use tokens::Tokens;
use told::Told;

/// Between two looks at the file of tokens.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// What a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Lease seeds, and be one.
    Worker,
    /// See everything, drain seeds, invalidate keys.
    Operator,
    /// Read `/metrics`.
    Metrics,
}

impl Role {
    /// As it stands in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Metrics => "metrics",
        }
    }
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody: probes, and what says how to come in.
    Anyone,
    /// Who has this role.
    Only(Role),
}

/// Whether it is looked at who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// No.
    #[default]
    Off,
    /// It is, and what would be refused is counted and served.
    Permissive,
    /// It is, and what is refused is not served.
    Enforce,
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "permissive" => Ok(Self::Permissive),
            "enforce" => Ok(Self::Enforce),
            _ => Err("must be off, permissive or enforce"),
        }
    }
}

/// Somebody who is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Principal {
    /// As logs and traces name it.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// The keys that it may use as a worker; all, if there are none.
    pub keys: Vec<Pattern>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It has no credential.
    #[error("this takes a token of the role {}: send it as \"Authorization: Bearer TOKEN\"", .0.name())]
    Missing(Role),
    /// It shows more than one credential, or one that is none.
    #[error("one header \"Authorization: Bearer TOKEN\" is taken, or Basic with the token as the password")]
    Unreadable,
    /// Nobody has the credential that it has.
    #[error("nobody has this token: it may be mistyped, or was replaced")]
    Unknown,
    /// The same, and its client has shown many that are wrong.
    #[error("nobody has this token, and many wrong ones came from this address; come back later")]
    TooMany,
    /// It was good, and has ended.
    #[error("this token has ended: its holder has to read its file again, or to ask for another one")]
    Expired,
    /// It is good, and nobody's.
    #[error(
        "this token or certificate is good, and no principal of the planner's file has it: its subject, its claims or its \
         names fit none"
    )]
    Stranger,
    /// It names a key of its issuer that is not known, and the issuer cannot be asked.
    #[error("the issuer of this token cannot be asked for its keys; come back later")]
    Undecided,
    /// Its principal has other roles.
    #[error("the principal of this token has not the role {}", .0.name())]
    Role(Role),
    /// Its principal may use other keys.
    #[error("the principal of this token may not use this seed key")]
    Key,
    /// It speaks of a seed that lives and is somebody else's.
    #[error(
        "a seed of somebody else lives at this address; once that has sent no heartbeat for its time to live, or is taken out by \
         its owner, the address is free"
    )]
    Owner,
    /// It registers what its key is not pinned to.
    #[error(
        "the settings file pins this key to other weights; a content that can be pinned takes rfork_digest=blake3 where storage is \
         read"
    )]
    NotPinned,
}

impl Denied {
    /// The label of its counter.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Unreadable | Self::Unknown => "unknown",
            Self::TooMany => "limited",
            Self::Expired => "expired",
            Self::Stranger => "stranger",
            Self::Undecided => "undecided",
            Self::Role(_) => "role",
            Self::Key => "key",
            Self::Owner => "owner",
            Self::NotPinned => "pin",
        }
    }

    /// Whether another credential is asked for: 401, not 403.
    pub(crate) const fn wants_credential(self) -> bool {
        matches!(self, Self::Missing(_) | Self::Unreadable | Self::Unknown | Self::Expired)
    }
}

/// Who may come in, as it is now.
pub struct Identity {
    mode: Mode,
    now: RwLock<Arc<InForce>>,
    failures: Mutex<Failures>,
    told: Mutex<Told>,
    tell: Tell,
    stop: CancellationToken,
}

/// What is known of whoever asks.
pub(crate) struct Admission {
    /// Whose request it is; nobody's, if it has no credential that somebody has.
    pub(crate) principal: Option<Arc<Principal>>,
    /// Why it is denied, if it is.
    pub(crate) denied: Option<Denied>,
}

/// An issuer whose keys have to be looked for before a request can be admitted or denied.
pub(crate) struct Look(Arc<Source>);

impl Look {
    /// Looks, or waits for who does; whether its keys could be had.
    pub(crate) async fn done(self) -> bool {
        self.0.look().await
    }
}

impl Identity {
    /// With these tokens for now. The keys of their issuers are looked after until `stop`, within a runtime; `tell` hears
    /// whether they can be had.
    pub(crate) fn new(mode: Mode, tokens: Arc<Tokens>, tell: Tell, stop: CancellationToken) -> Self {
        let sources = sources(mode, tokens.issuers(), &[], &tell, &stop);
        let now = RwLock::new(Arc::new(InForce::new(tokens, sources)));
        Self { mode, now, failures: Mutex::default(), told: Mutex::default(), tell, stop }
    }

    /// Whether it is looked at who asks.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a request may have a route. One without a token is of whoever's certificate has these names. Where everybody may
    /// ask, a wrong credential is no reason to deny it. `looked` is what came of the look that the same request was answered
    /// before.
    pub(crate) fn admit(
        &self,
        access: Access,
        (headers, names): (&HeaderMap, &[String]),
        client: Option<IpAddr>,
        looked: Option<bool>,
    ) -> Result<Admission, Look> {
        let known = match credential::read(headers) {
            Credential::Token(token) => match self.current().whose(&token, looked) {
                Ok(principal) => Ok(Some(principal)),
                Err(Unsure::Denied(denied)) => Err(denied),
                Err(Unsure::Look(source)) if access != Access::Anyone => return Err(Look(source)),
                Err(Unsure::Look(_)) => Err(Denied::Undecided),
            },
            Credential::None if names.is_empty() => Ok(None),
            Credential::None => match self.current().tokens.whose_certificate(names) {
                Some(principal) => Ok(Some(principal)),
                None => Err(Denied::Stranger),
            },
            Credential::Unreadable => Err(Denied::Unreadable),
        };
        let (principal, denied) = match (access, known) {
            (Access::Anyone, known) => (known.unwrap_or_default(), None),
            (Access::Only(role), Ok(None)) => (None, Some(Denied::Missing(role))),
            (Access::Only(role), Ok(Some(principal))) => {
                let denied = (!principal.roles.contains(&role)).then_some(Denied::Role(role));
                (Some(principal), denied)
            }
            (Access::Only(_), Err(denied)) => (None, Some(self.counted(denied, client))),
        };
        Ok(Admission { principal, denied })
    }

    /// A credential that nobody has is counted where it is refused.
    fn counted(&self, denied: Denied, client: Option<IpAddr>) -> Denied {
        let is_wrong = matches!(denied, Denied::Unknown | Denied::Unreadable);
        let Some(client) = client.filter(|_| is_wrong && self.mode == Mode::Enforce) else { return denied };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.count(client, Instant::now()) { Denied::TooMany } else { denied }
    }

    /// Whether nobody was told lately that this principal, or else this client, was denied something for this reason.
    pub(crate) fn is_news(&self, denied: Denied, principal: Option<&str>, client: Option<IpAddr>) -> bool {
        let who = principal.map(str::to_owned).or(client.map(|client| network(client).to_string()));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_news((denied.label(), who.unwrap_or_default()), Instant::now())
    }

    fn current(&self) -> Arc<InForce> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Other tokens count from now on. Issuers that are the same keep their keys.
    fn replace(&self, tokens: Tokens) {
        let known = &self.current().sources;
        known.iter().filter(|source| !tokens.issuers().contains(source.issuer())).for_each(|gone| gone.end());
        let sources = sources(self.mode, tokens.issuers(), known, &self.tell, &self.stop);
        let next = Arc::new(InForce::new(Arc::new(tokens), sources));
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

/// The issuers with their keys, of which those that are known go on; none where nobody is asked who asks.
fn sources(
    mode: Mode,
    issuers: &[Issuer],
    known: &[Arc<Source>],
    tell: &Tell,
    stop: &CancellationToken,
) -> Vec<Arc<Source>> {
    let source = |issuer: &Issuer| {
        let same = known.iter().find(|source| source.issuer() == issuer).cloned();
        same.unwrap_or_else(|| Arc::new(Source::start(issuer.clone(), tell, stop)))
    };
    issuers.iter().filter(|_| mode != Mode::Off).map(source).collect()
}

impl Principal {
    /// Whether it may use a key.
    pub fn may_use(&self, key: &SeedKey) -> bool {
        self.keys.is_empty() || self.keys.iter().any(|pattern| pattern.fits(key.as_bytes()))
    }
}

/// Reads the file again and again until `stop`. What it says counts from then on; while it cannot be used, what it said
/// last does, and `tell` has heard so. A text that is the same is not parsed again.
pub(crate) async fn watch(
    identity: Arc<Identity>,
    path: PathBuf,
    tell: impl Fn(bool) + Send,
    stop: CancellationToken,
) {
    let (mut last_text, mut last_error) = (None, None);
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_PAUSE)).await.is_some() {
        let read = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                let text = toml_file::text(&path)?;
                let hash = <[u8; 32]>::from(Sha256::digest(&text));
                let tokens = (last_text != Some(hash)).then(|| tokens::parsed(&path, &text)).transpose()?;
                Ok::<_, FileError>((hash, tokens))
            })
            .await
        };
        match read {
            Ok(Ok((hash, tokens))) => {
                last_text = Some(hash);
                if let Some(tokens) = tokens.filter(|tokens| *identity.current().tokens != *tokens) {
                    let principals = tokens.principals();
                    tracing::info!(file = %path.display(), principals, "the file of tokens was read anew");
                    identity.replace(tokens);
                }
                last_error = None;
                tell(true);
            }
            Ok(Err(error)) => {
                let error = error.to_string();
                tell(false);
                if last_error.as_ref() != Some(&error) {
                    tracing::error!(%error, "the file of tokens cannot be used; what it said before stays in force");
                    last_error = Some(error);
                }
            }
            // It was cancelled, as the planner ends, or it panicked.
            Err(error) if error.is_cancelled() => return,
            Err(_) => tell(false),
        }
    }
}

/// A file of tokens, and what it said at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it said.
    pub tokens: Arc<Tokens>,
}

impl TokenFile {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong, by file and line; never with a token.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Ok(Self { path: path.to_owned(), tokens: Arc::new(tokens::read(path)?) })
    }
}
