//! The headers of API v1's five requests, and of the one answer that has some.
//!
//! An input is lines `name: value`, of any bytes.

use std::fmt::Debug;

use http::{HeaderMap, HeaderName, HeaderValue};
use rfork_protocol::v1::{
    AddSeed, GetSeed, Granted, HeaderError, Labels, LeaseRef, MAX_LABEL_BYTES, MAX_TTL, RemoveSeed,
};

use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "v1_headers", run, executions: 20_000, most_bytes: |input| 64 * input + (64 << 10) };

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    if let Some(request) = read(&headers, AddSeed::decode, AddSeed::encode) {
        are_bounded(&request.labels);
    }
    if let Some(request) = read(&headers, GetSeed::decode, GetSeed::encode) {
        are_bounded(&request.labels);
    }
    if let Some(request) = read(&headers, RemoveSeed::decode, RemoveSeed::encode) {
        are_bounded(&request.labels);
    }
    read(&headers, LeaseRef::decode, LeaseRef::encode);
    if let Some(granted) = read(&headers, Granted::decode, Granted::encode) {
        assert!(granted.lease_ttl.is_none_or(|ttl| !ttl.is_zero() && ttl <= MAX_TTL));
    }
}

fn read<T: PartialEq + Debug>(
    headers: &HeaderMap,
    decode: fn(&HeaderMap) -> Result<T, HeaderError>,
    encode: fn(&T) -> HeaderMap,
) -> Option<T> {
    match decode(headers) {
        Ok(request) => {
            assert_eq!(decode(&encode(&request)).as_ref(), Ok(&request));
            Some(request)
        }
        Err(error) => {
            is_one_line(&error);
            None
        }
    }
}

fn are_bounded(labels: &Labels) {
    for text in [&labels.model_url, &labels.deploy_strategy].into_iter().flatten() {
        assert!(text.len() <= MAX_LABEL_BYTES, "a label of {} bytes", text.len());
    }
}
