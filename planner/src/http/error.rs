//! What a request that fails is answered: a status that clients understand, and a short reason in plain text.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rfork_protocol::problem::Code;
use rfork_protocol::v1::HeaderError;

use super::owned::Undone;
use crate::decide::quota::Quota;
use crate::identity::Denied;
use crate::store::StoreError;
use crate::store::commands::NoRoom;
use crate::writer::WriteError;

/// What a planner that is full says: what is used up, and what bounds it.
pub(super) fn full(NoRoom(quota): NoRoom) -> String {
    let what = match quota {
        Quota::Seeds => "as many seeds",
        Quota::SeedsOfClient => "as many seeds of one client while few more may come",
        Quota::Requests => "as many requests that wait or are remembered",
        Quota::RequestsOfClient => "as many requests of one client while few more may come",
        Quota::Memory => "as much in memory",
        Quota::MemoryOfClient => "as much of one client in memory while little more may come",
        Quota::Database => "as many bytes in its database",
        Quota::DatabaseOfClient => "as many bytes of one client in its database while few more may come",
    };
    let (name, flag) = (quota.name(), quota.flag());
    format!(
        "quota {name}: the planner keeps {what} as it may ({flag}); what is there goes on, come back later"
    )
}

/// Why a request is not served for now: a stable code, and what to do. Anybody may read it, so it has no text of the
/// database's, which may name hosts, files, roles and statements: that is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unavailable {
    pub(super) code: Code,
    pub(super) detail: &'static str,
}

impl Unavailable {
    /// The database is not open yet.
    pub(super) const OPENING: Self = Self {
        code: Code::StoreUnavailable,
        detail: "the planner is starting and its database is not open yet; ask again in a second",
    };
    /// Another planner has the database's file.
    pub(super) const IN_USE: Self = Self {
        code: Code::StoreUnavailable,
        detail: "the planner waits for another one, which has its SQLite file, to end; the log says for how long. Ask again \
                 in a second, or stop the other one",
    };
    /// The planner is stopping.
    pub(super) const STOPPING: Self = Self {
        code: Code::Stopping,
        detail: "the planner is stopping; ask again, for another may serve by then",
    };
    /// The database did not answer in time.
    pub(super) const TIMED_OUT: Self = Self {
        code: Code::Timeout,
        detail: "the planner's database did not answer in time; ask again in a second",
    };
    /// The database failed.
    const STORE: Self = Self {
        code: Code::StoreUnavailable,
        detail: "the planner's database does not serve; ask again in a second; the planner's log says why",
    };
    /// As many commands wait for the database as may.
    const OVERLOADED: Self = Self {
        code: Code::Overloaded,
        detail: "too many requests are waiting for the database; ask again in a second",
    };
    /// A fault of the planner's.
    pub(super) const FAULT: Self =
        Self { code: Code::Internal, detail: "a fault of the planner; its log says which" };
    /// The request was repeated, and the repetition is answered.
    pub(super) const SUPERSEDED: Self =
        Self { code: Code::LeaseEnded, detail: "the request was repeated, and its repetition is answered" };
}

impl From<&StoreError> for Unavailable {
    fn from(_: &StoreError) -> Self {
        Self::STORE
    }
}

impl From<&WriteError> for Unavailable {
    fn from(error: &WriteError) -> Self {
        match error {
            WriteError::Overloaded => Self::OVERLOADED,
            WriteError::TimedOut(_) => Self::TIMED_OUT,
            WriteError::Stopping => Self::STOPPING,
            WriteError::Store(error) => error.into(),
        }
    }
}

/// A request that was refused or could not be served.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The client's fault.
    Header(HeaderError),
    /// The client may not have what it asks for.
    Denied(Denied),
    /// 404 with this reason.
    NotFound(&'static str),
    /// 409 with this reason.
    Conflict(&'static str),
    /// The planner holds as much as its settings allow: 429.
    Full(NoRoom),
    /// Nobody's fault, and passing: 503, never 400 or 404, which clients would take for an answer.
    Unavailable(Unavailable),
}

impl From<HeaderError> for ApiError {
    fn from(error: HeaderError) -> Self {
        Self::Header(error)
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<Unavailable> for ApiError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        Unavailable::from(&error).into()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Unavailable::from(&error).into()
    }
}

impl From<Undone> for ApiError {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Write(error) => error.into(),
            Undone::NoRoom(no_room) => Self::Full(no_room),
            Undone::Denied(denied) => denied.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Header(error @ HeaderError::KeyTooLong(..)) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error.to_string()).into_response()
            }
            Self::Header(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
            Self::Denied(denied) => denied.into_response(),
            Self::NotFound(reason) => (StatusCode::NOT_FOUND, reason).into_response(),
            Self::Conflict(reason) => (StatusCode::CONFLICT, reason).into_response(),
            Self::Full(no_room) => {
                let reason = format!("{}: {}", Code::PlannerFull.as_str(), full(no_room));
                (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], reason).into_response()
            }
            Self::Unavailable(Unavailable { code, detail }) => {
                let reason = format!("{}: {detail}", code.as_str());
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], reason).into_response()
            }
        }
    }
}
