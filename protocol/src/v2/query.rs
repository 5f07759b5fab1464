//! The query of a URL: parameters in percent-encoding, each at most once, unknown ones refused.
//!
//! A value is bytes, so a seed key needs no other form here: `seed_key=caf%E9`.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::ValueError;
use crate::host::Host;
use crate::ids::{SeedIdentity, SeedKey};
use crate::shown::Shown;

/// Entries on a page when the query does not say.
pub const DEFAULT_PAGE: u32 = 100;
/// Entries on a page at most.
pub const MAX_PAGE: u32 = 1_000;

/// A request that is all in the query of its URL.
pub trait Query: Sized {
    /// Its parameters.
    const PARAMETERS: &'static [&'static str];

    /// Reads the query of a URL.
    ///
    /// # Errors
    /// [`QueryError`], which names the parameter.
    fn decode(query: &str) -> Result<Self, QueryError>;

    /// The query of a URL.
    fn encode(&self) -> String;
}

/// The query of a route that has no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoQuery;

impl Query for NoQuery {
    const PARAMETERS: &'static [&'static str] = &[];

    fn decode(query: &str) -> Result<Self, QueryError> {
        Fields::read(query, Self::PARAMETERS).map(|_| Self)
    }

    fn encode(&self) -> String {
        String::new()
    }
}

/// What needs no encoding.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A query that the route does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A parameter that the route does not have.
    #[error("there is no parameter '{name}'{}", if known.is_empty() { String::new() } else { format!("; there are: {}", known.join(", ")) })]
    Unknown {
        /// Its name, cut.
        name: String,
        /// Those that there are.
        known: &'static [&'static str],
    },
    /// A parameter that is there twice.
    #[error("the parameter '{0}' is there twice")]
    Repeated(&'static str),
    /// A value that the parameter does not take.
    #[error("the parameter '{name}' {reason}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// What it takes.
        reason: String,
    },
}

impl QueryError {
    /// The parameter at fault.
    pub fn parameter(&self) -> &str {
        match self {
            Self::Unknown { name, .. } => name,
            Self::Repeated(name) | Self::Invalid { name, .. } => name,
        }
    }
}

/// The parameters of a query, not yet read.
pub(super) struct Fields(BTreeMap<&'static str, Vec<u8>>);

impl Fields {
    /// Takes a query apart. An empty value counts as none.
    pub(super) fn read(query: &str, known: &'static [&'static str]) -> Result<Self, QueryError> {
        let mut fields = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = known.iter().copied().find(|known| *known == name) else {
                return Err(QueryError::Unknown { name: Shown::within(name, 64).to_string(), known });
            };
            // Forms write a space as a plus sign.
            let value: Vec<u8> = percent_decode_str(&value.replace('+', " ")).collect();
            if fields.insert(name, value).is_some() {
                return Err(QueryError::Repeated(name));
            }
        }
        fields.retain(|_, value: &mut Vec<u8>| !value.is_empty());
        Ok(Self(fields))
    }

    fn text(&mut self, name: &'static str) -> Result<Option<String>, QueryError> {
        let Some(bytes) = self.0.remove(name) else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|_| invalid(name, "must be UTF-8"))
    }

    /// A checked text.
    pub(super) fn value<T>(&mut self, name: &'static str) -> Result<Option<T>, QueryError>
    where
        T: TryFrom<String, Error = ValueError>,
    {
        let text = self.text(name)?;
        text.map(|text| T::try_from(text).map_err(|error| invalid(name, error))).transpose()
    }

    /// `seed_key`, any bytes.
    pub(super) fn seed_key(&mut self) -> Result<Option<SeedKey>, QueryError> {
        let bytes = self.0.remove("seed_key");
        bytes.map(|bytes| SeedKey::new(bytes).map_err(|error| is_wrong("seed_key", error))).transpose()
    }

    /// `seed`, `host:port:rank`.
    pub(super) fn seed(&mut self) -> Result<Option<SeedIdentity>, QueryError> {
        let text = self.text("seed")?;
        text.map(|text| text.parse().map_err(|error| is_wrong("seed", error))).transpose()
    }

    /// `host`, of a seed.
    pub(super) fn host(&mut self) -> Result<Option<Host>, QueryError> {
        let text = self.text("host")?;
        text.map(|text| text.parse().map_err(|error| is_wrong("host", error))).transpose()
    }

    /// One of some words.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, QueryError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| Some(*value)).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            invalid(name, format_args!("must be one of: {}", words.join(", ")))
        })
    }

    /// A whole number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<u64>, QueryError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.map(Some).ok_or_else(|| invalid(name, "must be a whole number"))
    }

    /// `limit`, 1 to [`MAX_PAGE`].
    pub(super) fn limit(&mut self) -> Result<u32, QueryError> {
        let wrong = || invalid("limit", format_args!("must be a whole number from 1 to {MAX_PAGE}"));
        match self.number("limit").map_err(|_| wrong())? {
            None => Ok(DEFAULT_PAGE),
            Some(limit) => {
                let limit = u32::try_from(limit).ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                limit.ok_or_else(wrong)
            }
        }
    }
}

fn invalid(name: &'static str, reason: impl std::fmt::Display) -> QueryError {
    QueryError::Invalid { name, reason: reason.to_string() }
}

fn is_wrong(name: &'static str, reason: impl std::fmt::Display) -> QueryError {
    invalid(name, format_args!("is wrong: {reason}"))
}

/// A query that is being written.
#[derive(Default)]
pub(super) struct Written(String);

impl Written {
    /// Adds a parameter, if there is a value.
    pub(super) fn bytes(mut self, name: &str, value: Option<&[u8]>) -> Self {
        if let Some(value) = value {
            if !self.0.is_empty() {
                self.0.push('&');
            }
            self.0.push_str(name);
            self.0.push('=');
            self.0.extend(percent_encode(value, ENCODED));
        }
        self
    }

    /// Adds a parameter, if there is a value.
    pub(super) fn text(self, name: &str, value: Option<&str>) -> Self {
        self.bytes(name, value.map(str::as_bytes))
    }

    /// The query.
    pub(super) fn finish(self) -> String {
        self.0
    }
}
