//! What a request of API v2 that fails is answered: an RFC 9457 problem document with a stable code.
//!
//! A client decides by [`Code`]; the rest is for people. A code that a client does not know is as good as its
//! status: a planner of a later version may have more of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";
/// What a problem's `type` begins with; its code follows.
pub const TYPE_PREFIX: &str = "urn:rfork:problem:";

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $status:literal, $title:literal;)*) => {
        /// Why a request failed. Codes are never renamed and never get another meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])* $name,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it stands in a document.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status that it is answered with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The same short text each time, for people.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// The body, a parameter or a header is not what the route takes; `field` names it.
    InvalidRequest = "invalid-request", 400, "The request is not valid";
    /// The request has no credential that somebody has; the `WWW-Authenticate` header says which are taken.
    Unauthenticated = "unauthenticated", 401, "The request does not say whose it is";
    /// Whose request it is may not have what it asks for.
    Forbidden = "forbidden", 403, "This principal may not do that";
    /// No live seed has this key.
    UnknownKey = "unknown-key", 404, "No live seed has this key";
    /// There are live seeds of this key, and all their capacity is leased, but for seeds that the request excludes.
    AllBusy = "all-busy", 404, "All seeds of this key are busy";
    /// Every seed of this key that has capacity failed lately and is left alone for a while.
    AllSuspect = "all-suspect", 404, "All free seeds of this key failed lately";
    /// No such seed, or it holds another key.
    SeedNotFound = "seed-not-found", 404, "No such seed";
    /// No such lease: unknown, expired, released before, or of another seed.
    LeaseNotFound = "lease-not-found", 404, "No such lease";
    /// No such route.
    NotFound = "not-found", 404, "No such route";
    /// The route takes other methods; the `Allow` header names them.
    MethodNotAllowed = "method-not-allowed", 405, "The route does not take this method";
    /// The request repeats an acquisition whose lease has ended since.
    LeaseEnded = "lease-ended", 409, "The lease of this idempotency key has ended";
    /// The body is longer than the route takes.
    PayloadTooLarge = "payload-too-large", 413, "The body is too large";
    /// The URL is longer than any request needs.
    UriTooLong = "uri-too-long", 414, "The URL is too long";
    /// The body is not declared as JSON.
    UnsupportedMediaType = "unsupported-media-type", 415, "The body must be application/json";
    /// The idempotency key was used for another request.
    IdempotencyConflict = "idempotency-conflict", 422, "The idempotency key was used for another request";
    /// The planner holds as many seeds or requests as its settings allow.
    PlannerFull = "planner-full", 429, "The planner holds as much as it may";
    /// The request has no credential that somebody has, and many such came from its address; the `Retry-After` header tells when
    /// to come back. A right one is always taken.
    TooManyFailures = "too-many-failures", 429, "Many wrong credentials came from this address";
    /// The headers are longer than any request needs.
    HeadersTooLarge = "headers-too-large", 431, "The headers are too large";
    /// A fault of the planner.
    Internal = "internal", 500, "The planner has a fault";
    /// More requests than the planner takes at once; the `Retry-After` header tells when to come back.
    Overloaded = "overloaded", 503, "The planner is overloaded";
    /// The database cannot be reached or is too busy.
    StoreUnavailable = "store-unavailable", 503, "The planner's database is unavailable";
    /// The request's token names a key of its issuer that the planner does not know, and the issuer does not answer.
    IssuerUnavailable = "issuer-unavailable", 503, "The issuer of the token is unavailable";
    /// A seed of somebody else lives at this address, which is its owner's until it is silent for its time to live. It is no
    /// fault of the request: addresses are used again.
    SeedOwned = "seed-owned", 503, "A seed of somebody else lives at this address";
    /// The seed does not hold what the planner's settings pin its key to. To clients that know no pins it is no fault of theirs:
    /// what they hold may be pinned later.
    NotPinned = "not-pinned", 503, "The key is pinned to other weights";
    /// The planner is being stopped; another replica serves.
    Stopping = "stopping", 503, "The planner is stopping";
    /// No answer within the request's deadline. The request may still take effect.
    Timeout = "timeout", 503, "The planner did not answer in time";
}

impl Code {
    /// The code that is written so.
    pub fn from_code(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:rfork:problem:` and the code.
    #[serde(rename = "type", default = "blank")]
    pub kind: String,
    /// A short text, the same for every problem of this code.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time, for people.
    #[serde(default)]
    pub detail: String,
    /// What a client decides by; stable.
    #[serde(default)]
    pub code: String,
    /// The field, parameter or header at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is used up of that the planner keeps only so much: `seeds`, `seeds-of-client`, `requests`,
    /// `requests-of-client`, `memory`, `memory-of-client`, `database` or `database-of-client`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
    /// When the same request may succeed, in milliseconds from now; a hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The `type` of a document that has none, as the RFC gives it.
fn blank() -> String {
    "about:blank".into()
}

impl Problem {
    /// A problem with this code; `detail` says what went wrong this time.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{}", code.as_str()),
            title: code.title().into(),
            status: code.status(),
            detail: detail.into(),
            code: code.as_str().into(),
            field: None,
            quota: None,
            retry_after_ms: None,
        }
    }

    /// Its code, if this version knows it.
    pub fn code(&self) -> Option<Code> {
        Code::from_code(&self.code)
    }

    /// The document.
    pub fn to_json(&self) -> String {
        // Texts and numbers always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a document; `None` for what is not one.
    pub fn from_json(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_code_has_one_text_a_status_of_failure_and_a_title() {
        let mut seen = HashSet::new();
        for &code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code:?}");
            assert_eq!(Code::from_code(code.as_str()), Some(code));
            assert!((400..600).contains(&code.status()) && !code.title().is_empty(), "{code:?}");
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{code:?}");
        }
        assert_eq!(Code::from_code("Internal"), None);
    }

    #[test]
    fn the_document_is_that_of_the_rfc() {
        let problem =
            Problem { retry_after_ms: Some(250), ..Problem::new(Code::AllBusy, "4 seeds, 4 leases") };
        insta::assert_snapshot!(problem.to_json(), @r#"{"type":"urn:rfork:problem:all-busy","title":"All seeds of this key are busy","status":404,"detail":"4 seeds, 4 leases","code":"all-busy","retry_after_ms":250}"#);
    }

    #[test]
    fn documents_of_others_are_read_and_what_is_none_is_not() {
        let other = Problem::from_json(br#"{"status":418,"code":"teapot","more":[1]}"#).unwrap();
        assert_eq!((other.kind.as_str(), other.status, other.code()), ("about:blank", 418, None));
        for none in [&b""[..], b"{}", b"404 not found", b"[]", br#"{"status":"404"}"#, b"\xff"] {
            assert_eq!(Problem::from_json(none), None);
        }
    }

    proptest! {
        #[test]
        fn a_problem_is_read_as_it_was_written(at in 0..Code::ALL.len(), detail in ".{0,40}", field in prop::option::of(".{1,9}"), retry_after_ms: Option<u64>) {
            let problem = Problem { field, retry_after_ms, ..Problem::new(Code::ALL[at], detail) };
            prop_assert_eq!(problem.code(), Some(Code::ALL[at]));
            prop_assert_eq!(Problem::from_json(problem.to_json().as_bytes()), Some(problem));
        }
    }
}
