//! What a request of API v2 that fails is answered: always a problem document.

use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rfork_protocol::problem::{Code, MEDIA_TYPE, Problem};
use rfork_protocol::v2::{BodyError, QueryError};

use super::super::bounds::Refusal;
use super::super::error::{Unavailable, full};
use super::super::owned::Undone;
use crate::identity::Denied;
use crate::store::StoreError;
use crate::store::commands::NoRoom;
use crate::writer::WriteError;

/// When a client may come back that met an overloaded planner or a database that is away, in milliseconds.
const COME_BACK_MS: u64 = 1_000;

/// A request that was refused or could not be served.
#[derive(Debug)]
pub(super) struct Refused {
    /// Boxed: it is large beside what it is returned instead of.
    problem: Box<Problem>,
    header: Option<(HeaderName, String)>,
}

impl Refused {
    /// With this code; `detail` says what went wrong this time.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut problem = Box::new(Problem::new(code, detail));
        let mut header = None;
        if matches!(code.status(), 429 | 503) {
            problem.retry_after_ms = Some(COME_BACK_MS);
            header = Some((header::RETRY_AFTER, COME_BACK_MS.div_ceil(1_000).to_string()));
        }
        Self { problem, header }
    }

    /// The field, parameter or header `field` is wrong.
    pub(super) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let mut refused = Self::new(Code::InvalidRequest, detail);
        refused.problem.field = Some(field.into());
        refused
    }

    /// There is no room for one more.
    pub(super) fn full(no_room: NoRoom) -> Self {
        let mut refused = Self::new(Code::PlannerFull, full(no_room));
        refused.problem.quota = Some(no_room.0.name().into());
        refused
    }

    /// The route takes only the methods of `allow`.
    pub(super) fn method(allow: &str) -> Self {
        let refused = Self::new(Code::MethodNotAllowed, format!("this route takes {allow}"));
        Self { header: Some((header::ALLOW, allow.to_owned())), ..refused }
    }
}

impl From<BodyError> for Refused {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Invalid { field, reason } => Self::invalid(field, reason),
            error @ BodyError::NotJson { .. } => Self::new(Code::InvalidRequest, error.to_string()),
        }
    }
}

impl From<QueryError> for Refused {
    fn from(error: QueryError) -> Self {
        Self::invalid(error.parameter(), error.to_string())
    }
}

impl From<BytesRejection> for Refused {
    fn from(rejection: BytesRejection) -> Self {
        match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                Self::new(Code::PayloadTooLarge, "the body is longer than this route takes")
            }
            _ => Self::new(Code::InvalidRequest, "the body ended before it was complete"),
        }
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        let mut refused = Self::new(denied.code(), denied.to_string());
        refused.problem.retry_after_ms = denied.come_back_ms();
        refused
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

impl From<Unavailable> for Refused {
    fn from(Unavailable { code, detail }: Unavailable) -> Self {
        Self::new(code, detail)
    }
}

impl From<WriteError> for Refused {
    fn from(error: WriteError) -> Self {
        Unavailable::from(&error).into()
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Unavailable::from(&error).into()
    }
}

impl From<Undone> for Refused {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Write(error) => error.into(),
            Undone::NoRoom(no_room) => Self::full(no_room),
            Undone::Denied(denied) => denied.into(),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ([(header::CONTENT_TYPE, MEDIA_TYPE)], self.problem.to_json());
        let mut response = (status, body).into_response();
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::try_from(value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
