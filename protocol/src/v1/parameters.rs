//! The parameters: names, and what can be wrong with a value.

use std::fmt;

use crate::ids::IdError;

/// A parameter of the API: its name in both spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// As the protocol spells it.
    pub(super) name: &'static str,
    pub(super) underscore: &'static str,
    pub(super) hyphen: &'static str,
}

macro_rules! parameters {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $underscore:literal, $hyphen:literal;)*) => {
        $($(#[$doc])* pub const $constant: Parameter =
            Parameter { name: $name, underscore: $underscore, hyphen: $hyphen };)*
        #[cfg(test)]
        pub(super) const PARAMETERS: &[Parameter] = &[$($constant),*];
    };
}

parameters! {
    /// What the weights are.
    SEED_KEY = "SEED_KEY", "seed_key", "seed-key";
    /// Host of the seed's metadata service. Seeds may tell it as a URL, or with its port ([`crate::Host::told`]); it is answered
    /// without either.
    SEED_IP = "SEED_IP", "seed_ip", "seed-ip";
    /// Its port.
    SEED_PORT = "SEED_PORT", "seed_port", "seed-port";
    /// The seed's rank. Deprecated in the field, so it may be absent, which is 0.
    SEED_RANK = "SEED_RANK", "seed_rank", "seed-rank";
    /// Always `0`, and without a meaning. Deprecated, too, and may be absent.
    SEED_REFCNT = "SEED_REFCNT", "seed_refcnt", "seed-refcnt";
    /// The lease.
    USER_ID = "USER_ID", "user_id", "user-id";
    /// How long a lease lives from grant or renewal, in seconds; clients read a float.
    LEASE_TTL_SEC = "LEASE_TTL_SEC", "lease_ttl_sec", "lease-ttl-sec";
    /// Label: which model.
    MODEL_URL = "MODEL_URL", "model_url", "model-url";
    /// Label: which deployment.
    DEPLOY_STRATEGY = "DEPLOY_STRATEGY", "deploy_strategy", "deploy-strategy";
    /// Label: whether it is a draft model.
    IS_DRAFT = "IS_DRAFT", "is_draft", "is-draft";
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A header that is missing or unusable. The first three texts are those that users grep for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not there, or empty.
    #[error("missing required header: {0}")]
    Missing(Parameter),
    /// Not a decimal integer.
    #[error("invalid integer header {0}: {1}")]
    NotAnInteger(Parameter, String),
    /// Not a time in seconds: not a number, not finite, or not above 0.
    #[error("header {0} must be a positive number of seconds, got {1}")]
    NotSeconds(Parameter, String),
    /// Below the least value.
    #[error("header {0} must be >= {1}, got {2}")]
    TooSmall(Parameter, u64, String),
    /// Above the greatest value.
    #[error("header {0} must be <= {1}, got {2}")]
    TooLarge(Parameter, u64, String),
    /// A seed key that is longer than is accepted.
    #[error("header {0} is too long: {1}")]
    KeyTooLong(Parameter, IdError),
    /// Not what the parameter is for.
    #[error("invalid header {0}: {1}")]
    Invalid(Parameter, IdError),
}
