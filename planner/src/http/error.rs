//! What a request that fails is answered: a status that clients understand, and a short reason in plain text.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rfork_protocol::v1::HeaderError;

use crate::store::StoreError;
use crate::writer::WriteError;

/// Why a planner that is full takes no more.
const FULL: &str = "the planner holds as many seeds or requests as it may";

/// A request that was refused or could not be served.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The client's fault.
    Header(HeaderError),
    /// 404 with this reason.
    NotFound(&'static str),
    /// 409 with this reason.
    Conflict(&'static str),
    /// The planner holds as much as its settings allow: 429.
    Full,
    /// Nobody's fault, and passing: 503, never 400 or 404, which clients would take for an answer.
    Unavailable(String),
}

impl From<HeaderError> for ApiError {
    fn from(error: HeaderError) -> Self {
        Self::Header(error)
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Header(error @ HeaderError::KeyTooLong(..)) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error.to_string()).into_response()
            }
            Self::Header(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
            Self::NotFound(reason) => (StatusCode::NOT_FOUND, reason).into_response(),
            Self::Conflict(reason) => (StatusCode::CONFLICT, reason).into_response(),
            Self::Full => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], FULL).into_response(),
            Self::Unavailable(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], reason).into_response()
            }
        }
    }
}
