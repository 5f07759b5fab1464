//! What every request has around it: an id, a span, its counting, and the end of its connection while the planner
//! drains.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::field::Empty;

use super::Api;

/// Names a request, in both directions: a proxy or a client may choose the name.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest name that is taken.
const MAX_REQUEST_ID_BYTES: usize = 64;

/// Serves one request within its span. It is counted under its route; what no route takes is counted under one
/// name. A span whose client went away ends without a status.
pub(super) async fn attend(
    State(api): State<Api>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let _running = api.metrics.running();
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    let id = request_id(request.headers());
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = method(request.method()),
        route,
        principal = Empty,
        status = Empty,
        ms = Empty,
    );
    let mut answer = next.run(request).instrument(span.clone()).await;
    let (status, took) = (answer.status().as_u16(), begun.elapsed());
    // Each of these is written anew into the span's text, for which nobody should pay who does not read it.
    if tracing::enabled!(tracing::Level::DEBUG) {
        span.record("status", status);
        span.record("ms", took.as_secs_f64() * 1_000.0);
        span.in_scope(|| tracing::debug!("answered"));
    }
    api.metrics.request(route, status, took);
    let headers = answer.headers_mut();
    headers.insert(REQUEST_ID, id);
    if api.stop.is_draining() {
        // The client's next request finds another planner.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// The name that the client gave, if it can stand in a line of a log; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let made = uuid::Uuid::new_v4().simple().to_string();
        // Hexadecimal digits are always a header's value.
        HeaderValue::from_str(&made).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// A method by its name, or one word for all that nobody knows: a client may write anything.
fn method(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known,
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(given: &[u8]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
        request_id(&headers)
    }

    #[test]
    fn a_request_keeps_its_name_or_gets_one() {
        let longest = [b'r'; MAX_REQUEST_ID_BYTES];
        for id in [&b"r"[..], b"5d41-{402a}:\"7\"", &longest] {
            assert_eq!(taken(id), HeaderValue::from_bytes(id).unwrap());
        }
        let made = request_id(&HeaderMap::new());
        assert_ne!(made, request_id(&HeaderMap::new()), "no two have one name");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_name_is_short_and_visible(given in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assume!(HeaderValue::from_bytes(&given).is_ok());
            let id = taken(&given);
            prop_assert!((1..=MAX_REQUEST_ID_BYTES).contains(&id.len()));
            prop_assert!(id.as_bytes().iter().all(u8::is_ascii_graphic));
        }
    }
}
