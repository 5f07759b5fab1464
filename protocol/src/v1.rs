//! Planner API v1: all parameters and results are HTTP headers, spelt here and nowhere else.
//!
//! Names contain underscores, which some proxies drop. So each is also accepted with hyphens, and requests of
//! ours carry both spellings; the underscore one is looked at first. Of a repeated header the first counts.
//! Values are bytes: a seed key may be Latin-1 or UTF-8 and is never decoded.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ids::{IdError, LeaseId, SeedIdentity, SeedKey};

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

/// A parameter of the API: its name in both spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// As the protocol spells it.
    name: &'static str,
    underscore: &'static str,
    hyphen: &'static str,
}

macro_rules! parameters {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $underscore:literal, $hyphen:literal;)*) => {
        $($(#[$doc])* pub const $constant: Parameter =
            Parameter { name: $name, underscore: $underscore, hyphen: $hyphen };)*
        #[cfg(test)]
        const PARAMETERS: &[Parameter] = &[$($constant),*];
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
                String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LABEL_BYTES)]).into_owned()
            })
        };
        let is_draft = text(IS_DRAFT).and_then(|text| text.to_ascii_lowercase().parse().ok());
        Self { model_url: text(MODEL_URL), deploy_strategy: text(DEPLOY_STRATEGY), is_draft }
    }
}

/// The value of the first header of that name that is not empty, the underscore spelling first.
fn value(headers: &HeaderMap, parameter: Parameter) -> Option<&HeaderValue> {
    let first = |name: &'static str| headers.get(name).filter(|value| !value.is_empty());
    first(parameter.underscore).or_else(|| first(parameter.hyphen))
}

fn required(headers: &HeaderMap, parameter: Parameter) -> Result<&HeaderValue, HeaderError> {
    value(headers, parameter).ok_or(HeaderError::Missing(parameter))
}

fn seed_key(headers: &HeaderMap) -> Result<SeedKey, HeaderError> {
    SeedKey::new(required(headers, SEED_KEY)?.as_bytes()).map_err(|error| match error {
        IdError::KeyTooLong(_) => HeaderError::KeyTooLong(SEED_KEY, error),
        other => HeaderError::Invalid(SEED_KEY, other),
    })
}

fn lease(headers: &HeaderMap) -> Result<LeaseId, HeaderError> {
    let text = String::from_utf8_lossy(required(headers, USER_ID)?.as_bytes()).into_owned();
    LeaseId::new(text).map_err(|error| HeaderError::Invalid(USER_ID, error))
}

fn identity(headers: &HeaderMap) -> Result<SeedIdentity, HeaderError> {
    let host = String::from_utf8_lossy(required(headers, SEED_IP)?.as_bytes()).into_owned();
    let port = integer(headers, SEED_PORT, 1, u64::from(u16::MAX))?;
    let rank = optional_integer(headers, SEED_RANK, 0, u64::from(u32::MAX))?.unwrap_or(0);
    // Both fit: `integer` has compared them with the greatest value.
    let (port, rank) = (u16::try_from(port).unwrap_or(u16::MAX), u32::try_from(rank).unwrap_or(u32::MAX));
    SeedIdentity::told(&host, port, rank).map_err(|error| HeaderError::Invalid(SEED_IP, error))
}

/// A deprecated parameter: absent (or empty, which is the same), or an integer like any other.
fn optional_integer(
    headers: &HeaderMap,
    parameter: Parameter,
    least: u64,
    most: u64,
) -> Result<Option<u64>, HeaderError> {
    value(headers, parameter).map(|_| integer(headers, parameter, least, most)).transpose()
}

/// A time in seconds, as Python's `float` reads one, above 0 and at most [`MAX_TTL`].
fn seconds(parameter: Parameter, value: &HeaderValue) -> Result<Duration, HeaderError> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let shown = || text.chars().take(64).collect::<String>();
    let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    let number = number.ok_or_else(|| HeaderError::NotSeconds(parameter, shown()))?;
    // Less than a nanosecond is none; it is told like 0.
    match Duration::try_from_secs_f64(number) {
        Ok(Duration::ZERO) => Err(HeaderError::NotSeconds(parameter, shown())),
        Ok(time) if time <= MAX_TTL => Ok(time),
        _ => Err(HeaderError::TooLarge(parameter, MAX_TTL.as_secs(), shown())),
    }
}

/// A decimal integer, as Python's `int` reads one: a sign is allowed, spaces around it too.
fn integer(headers: &HeaderMap, parameter: Parameter, least: u64, most: u64) -> Result<u64, HeaderError> {
    let text = String::from_utf8_lossy(required(headers, parameter)?.as_bytes()).into_owned();
    let shown = || text.chars().take(64).collect::<String>();
    let digits = text.trim();
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, digits.strip_prefix('+').unwrap_or(digits)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HeaderError::NotAnInteger(parameter, shown()));
    }
    // All digits: it can only fail to fit.
    let magnitude = digits.parse::<u64>().unwrap_or(u64::MAX);
    if (negative && magnitude > 0) || magnitude < least {
        return Err(HeaderError::TooSmall(parameter, least, shown()));
    }
    if magnitude > most || digits.trim_start_matches('0').len() > 20 {
        return Err(HeaderError::TooLarge(parameter, most, shown()));
    }
    Ok(magnitude)
}

/// The headers of a request, each in both spellings.
#[derive(Default)]
struct Request(HeaderMap);

impl Request {
    fn bytes(&mut self, parameter: Parameter, bytes: &[u8]) {
        // Bytes that no header can carry (a line break) are left out; the planner names the missing header.
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            self.0.insert(HeaderName::from_static(parameter.underscore), value.clone());
            self.0.insert(HeaderName::from_static(parameter.hyphen), value);
        }
    }

    fn text(&mut self, parameter: Parameter, text: &str) {
        self.bytes(parameter, text.as_bytes());
    }

    fn identity(&mut self, identity: &SeedIdentity) {
        self.text(SEED_IP, identity.host());
        self.text(SEED_PORT, &identity.port().to_string());
        self.text(SEED_RANK, &identity.rank().to_string());
    }

    fn labels(&mut self, labels: &Labels) {
        if let Some(model_url) = &labels.model_url {
            self.text(MODEL_URL, model_url);
        }
        if let Some(deploy_strategy) = &labels.deploy_strategy {
            self.text(DEPLOY_STRATEGY, deploy_strategy);
        }
        if let Some(is_draft) = labels.is_draft {
            self.text(IS_DRAFT, if is_draft { "true" } else { "false" });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    const SEED: [(&str, &str); 5] = [
        ("seed_key", "k"),
        ("seed_ip", "10.0.0.7"),
        ("seed_port", "8000"),
        ("seed_rank", "3"),
        ("seed_refcnt", "0"),
    ];

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut map = headers(&SEED);
        map.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        map
    }

    #[test]
    fn the_two_spellings_are_of_one_name() {
        for parameter in PARAMETERS {
            assert_eq!(parameter.name.to_ascii_lowercase(), parameter.underscore);
            assert_eq!(parameter.underscore.replace('_', "-"), parameter.hyphen);
        }
    }

    #[test]
    fn either_spelling_will_do_and_the_first_value_counts() {
        let hyphens = headers(&[("seed-key", "k")]);
        assert_eq!(GetSeed::decode(&hyphens).unwrap().key.as_bytes(), b"k");
        let repeated = headers(&[("seed_key", "first"), ("seed_key", "second"), ("seed-key", "third")]);
        assert_eq!(GetSeed::decode(&repeated).unwrap().key.as_bytes(), b"first");
    }

    #[test]
    fn refusals_have_the_texts_that_people_grep_for() {
        let refusal = |map: &HeaderMap| AddSeed::decode(map).unwrap_err().to_string();
        assert_eq!(refusal(&HeaderMap::new()), "missing required header: SEED_KEY");
        assert_eq!(refusal(&with("seed_ip", "")), "missing required header: SEED_IP");
        assert_eq!(refusal(&with("seed_port", "x")), "invalid integer header SEED_PORT: x");
        assert_eq!(refusal(&with("seed_port", "0")), "header SEED_PORT must be >= 1, got 0");
        assert_eq!(refusal(&with("seed_port", "65536")), "header SEED_PORT must be <= 65535, got 65536");
        assert_eq!(refusal(&with("seed_rank", "-1")), "header SEED_RANK must be >= 0, got -1");
        assert_eq!(refusal(&with("seed_refcnt", "1.0")), "invalid integer header SEED_REFCNT: 1.0");
        assert!(refusal(&with("seed_ip", "a b")).starts_with("invalid header SEED_IP: "));
        let long = "k".repeat(crate::ids::MAX_SEED_KEY_BYTES + 1);
        assert!(matches!(AddSeed::decode(&with("seed_key", &long)), Err(HeaderError::KeyTooLong(..))));
    }

    #[test]
    fn a_seed_s_host_may_be_told_as_a_url_or_with_its_port_and_is_answered_plain() {
        for told in [
            "http://10.0.0.7",
            "https://10.0.0.7/",
            "http://10.0.0.7:8000",
            "::ffff:10.0.0.7",
            "10.0.0.7:8000",
            // The one in SEED_PORT counts.
            "10.0.0.7:9",
            "http://10.0.0.7:9",
        ] {
            let add = AddSeed::decode(&with("seed_ip", told)).unwrap();
            assert_eq!(add.identity.to_string(), "10.0.0.7:8000:3", "{told}");
            assert_eq!(add.encode()["seed_ip"], "10.0.0.7", "{told}");
        }
        let ipv6 = AddSeed::decode(&with("seed_ip", "[FD00::7]:8000")).unwrap();
        assert_eq!(ipv6.encode()["seed_ip"], "fd00::7");
        for (told, reason) in [
            ("http://u:p@10.0.0.7", "user or a password"),
            ("http://10.0.0.7/path", "only a host"),
            ("10.7", "four decimal numbers"),
            ("fe80::1%eth0", "zone"),
            ("0.0.0.0", "listens"),
        ] {
            let error = AddSeed::decode(&with("seed_ip", told)).unwrap_err().to_string();
            assert!(error.starts_with("invalid header SEED_IP: ") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn integers_are_read_as_python_reads_them() {
        for (text, port) in [("8000", 8000), (" 8000 ", 8000), ("+8000", 8000), ("008000", 8000)] {
            assert_eq!(AddSeed::decode(&with("seed_port", text)).unwrap().identity.port(), port);
        }
        for text in ["٣", "0x10", "1_000", "1e3", "-", "", "99999999999999999999999"] {
            assert!(AddSeed::decode(&with("seed_port", text)).is_err(), "{text}");
        }
    }

    #[test]
    fn an_absent_rank_is_0_and_an_absent_count_is_none() {
        let mut request = headers(&SEED);
        request.insert("user_id", HeaderValue::from_static("0123456789abcdef0123456789abcdef"));
        for absent in [true, false] {
            for name in ["seed_rank", "seed_refcnt"] {
                request.remove(name);
                if !absent {
                    request.insert(name, HeaderValue::from_static(""));
                }
            }
            let add = AddSeed::decode(&request).unwrap();
            assert_eq!((add.identity.rank(), add.refcnt), (0, None));
            assert_eq!(RemoveSeed::decode(&request).unwrap().identity.rank(), 0);
            assert_eq!(LeaseRef::decode(&request).unwrap().identity.rank(), 0);
            assert_eq!(Granted::decode(&request).unwrap().identity.rank(), 0);
        }
    }

    #[test]
    fn a_time_to_live_is_read_as_python_reads_a_float() {
        let mut answer = headers(&SEED);
        answer.insert("user_id", HeaderValue::from_static("0123456789abcdef0123456789abcdef"));
        assert_eq!(Granted::decode(&answer).unwrap().lease_ttl, None);
        let mut told = |text: &str| {
            answer.insert("lease_ttl_sec", HeaderValue::from_str(text).unwrap());
            Granted::decode(&answer).map(|granted| granted.lease_ttl)
        };
        for (text, ms) in [
            ("60", 60_000),
            ("60.0", 60_000),
            (" 0.25 ", 250),
            ("6e1", 60_000),
            ("+1.5", 1_500),
            (".5", 500),
            ("4294967295", 4_294_967_295_000),
        ] {
            assert_eq!(told(text), Ok(Some(Duration::from_millis(ms))), "{text}");
        }
        for bad in ["soon", "0", "-1", "0.0", "nan", "inf", "-inf", "1e-30", "60s", "1,5"] {
            let error = told(bad).unwrap_err();
            assert!(matches!(error, HeaderError::NotSeconds(..)), "{bad}: {error}");
        }
        for large in ["4294967296", "1e300"] {
            assert!(matches!(told(large), Err(HeaderError::TooLarge(..))), "{large}");
        }
    }

    fn keys() -> impl Strategy<Value = SeedKey> {
        // What a header can carry: no control bytes, no space at either end (HTTP trims it).
        prop::collection::vec(prop_oneof![0x21u8..0x7f, 0x80u8..=0xff], 1..40)
            .prop_map(|bytes| SeedKey::new(bytes).unwrap())
    }

    prop_compose! {
        fn identities()(host in "[a-z0-9-]{1,20}\\.[a-z]|::1|\\[fe80::7\\]", port in 1u16.., rank: u32) -> SeedIdentity {
            SeedIdentity::new(host, port, rank).unwrap()
        }
    }

    prop_compose! {
        fn labels()(model_url in prop::option::of("[!-~]{1,20}"), deploy_strategy in prop::option::of("[!-~]{1,9}"),
            is_draft: Option<bool>) -> Labels {
            Labels { model_url, deploy_strategy, is_draft }
        }
    }

    /// What is left when a proxy has dropped every name with an underscore.
    fn without_underscores(headers: HeaderMap) -> HeaderMap {
        headers
            .into_iter()
            .filter_map(|(name, value)| Some((name?, value)))
            .filter(|(name, _)| !name.as_str().contains('_'))
            .collect()
    }

    proptest! {
        #[test]
        fn requests_are_read_as_they_were_made(key in keys(), identity in identities(), labels in labels(), refcnt: Option<u64>, lease in "[!-~]{1,40}") {
            let add = AddSeed { key: key.clone(), identity: identity.clone(), refcnt, labels: labels.clone() };
            prop_assert_eq!(AddSeed::decode(&add.encode()), Ok(add.clone()));
            prop_assert_eq!(AddSeed::decode(&without_underscores(add.encode())), Ok(add));
            let get = GetSeed { key: key.clone(), labels: labels.clone() };
            prop_assert_eq!(GetSeed::decode(&get.encode()), Ok(get.clone()));
            prop_assert_eq!(GetSeed::decode(&without_underscores(get.encode())), Ok(get));
            let remove = RemoveSeed { key, identity: identity.clone(), labels };
            prop_assert_eq!(RemoveSeed::decode(&remove.encode()), Ok(remove));
            let lease = LeaseRef { identity, lease: LeaseId::new(lease).unwrap() };
            prop_assert_eq!(LeaseRef::decode(&lease.encode()), Ok(lease));
        }

        #[test]
        fn answers_are_read_as_they_were_made(identity in identities(), lease in "[0-9a-f]{32}", ttl_ms in prop::option::of(1u64..100_000_000)) {
            let lease_ttl = ttl_ms.map(Duration::from_millis);
            let granted = Granted { identity, lease: LeaseId::new(lease).unwrap(), lease_ttl };
            prop_assert_eq!(Granted::decode(&granted.encode()), Ok(granted.clone()));
            prop_assert!(granted.encode().keys().all(|name| !name.as_str().contains('-')));
        }

        #[test]
        fn any_headers_are_read_or_refused(values in prop::collection::vec(prop::collection::vec(0x20u8..0x7f, 0..12), 8)) {
            let mut map = HeaderMap::new();
            for (parameter, value) in PARAMETERS.iter().zip(values) {
                map.insert(HeaderName::from_static(parameter.underscore), HeaderValue::from_bytes(&value).unwrap());
            }
            let _ = (AddSeed::decode(&map), GetSeed::decode(&map), Granted::decode(&map), LeaseRef::decode(&map), RemoveSeed::decode(&map));
        }
    }
}
