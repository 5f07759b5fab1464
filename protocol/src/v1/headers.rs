//! Reading a parameter's value from headers, and writing it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    DEPLOY_STRATEGY, HeaderError, IS_DRAFT, Labels, MAX_TTL, MODEL_URL, Parameter, SEED_IP, SEED_KEY,
    SEED_PORT, SEED_RANK, USER_ID,
};
use crate::ids::{IdError, LeaseId, SeedIdentity, SeedKey};
use crate::shown::Shown;

/// The value of the first header of that name that is not empty, the underscore spelling first.
pub(super) fn value(headers: &HeaderMap, parameter: Parameter) -> Option<&HeaderValue> {
    let first = |name: &'static str| headers.get(name).filter(|value| !value.is_empty());
    first(parameter.underscore).or_else(|| first(parameter.hyphen))
}

pub(super) fn required(headers: &HeaderMap, parameter: Parameter) -> Result<&HeaderValue, HeaderError> {
    value(headers, parameter).ok_or(HeaderError::Missing(parameter))
}

pub(super) fn seed_key(headers: &HeaderMap) -> Result<SeedKey, HeaderError> {
    SeedKey::new(required(headers, SEED_KEY)?.as_bytes()).map_err(|error| match error {
        IdError::KeyTooLong(_) => HeaderError::KeyTooLong(SEED_KEY, error),
        other => HeaderError::Invalid(SEED_KEY, other),
    })
}

pub(super) fn lease(headers: &HeaderMap) -> Result<LeaseId, HeaderError> {
    let text = String::from_utf8_lossy(required(headers, USER_ID)?.as_bytes()).into_owned();
    LeaseId::new(text).map_err(|error| HeaderError::Invalid(USER_ID, error))
}

pub(super) fn identity(headers: &HeaderMap) -> Result<SeedIdentity, HeaderError> {
    let host = String::from_utf8_lossy(required(headers, SEED_IP)?.as_bytes()).into_owned();
    let port = integer(headers, SEED_PORT, 1, u64::from(u16::MAX))?;
    let rank = optional_integer(headers, SEED_RANK, 0, u64::from(u32::MAX))?.unwrap_or(0);
    // Both fit: `integer` has compared them with the greatest value.
    let (port, rank) = (u16::try_from(port).unwrap_or(u16::MAX), u32::try_from(rank).unwrap_or(u32::MAX));
    SeedIdentity::told(&host, port, rank).map_err(|error| HeaderError::Invalid(SEED_IP, error))
}

/// A deprecated parameter: absent (or empty, which is the same), or an integer like any other.
pub(super) fn optional_integer(
    headers: &HeaderMap,
    parameter: Parameter,
    least: u64,
    most: u64,
) -> Result<Option<u64>, HeaderError> {
    value(headers, parameter).map(|_| integer(headers, parameter, least, most)).transpose()
}

/// A time in seconds, as Python's `float` reads one, above 0 and at most [`MAX_TTL`].
pub(super) fn seconds(parameter: Parameter, value: &HeaderValue) -> Result<Duration, HeaderError> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let shown = || Shown::within(&text, 64).to_string();
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
pub(super) fn integer(
    headers: &HeaderMap,
    parameter: Parameter,
    least: u64,
    most: u64,
) -> Result<u64, HeaderError> {
    let text = String::from_utf8_lossy(required(headers, parameter)?.as_bytes()).into_owned();
    let shown = || Shown::within(&text, 64).to_string();
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
pub(super) struct Request(pub(super) HeaderMap);

impl Request {
    pub(super) fn bytes(&mut self, parameter: Parameter, bytes: &[u8]) {
        // Bytes that no header can carry (a line break) are left out; the planner names the missing header.
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            self.0.insert(HeaderName::from_static(parameter.underscore), value.clone());
            self.0.insert(HeaderName::from_static(parameter.hyphen), value);
        }
    }

    pub(super) fn text(&mut self, parameter: Parameter, text: &str) {
        self.bytes(parameter, text.as_bytes());
    }

    pub(super) fn identity(&mut self, identity: &SeedIdentity) {
        self.text(SEED_IP, identity.host());
        self.text(SEED_PORT, &identity.port().to_string());
        self.text(SEED_RANK, &identity.rank().to_string());
    }

    pub(super) fn labels(&mut self, labels: &Labels) {
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
