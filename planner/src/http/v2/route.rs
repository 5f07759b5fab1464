//! A route of API v2: one entry says what serves it and what the document tells of it, so that both speak of the
//! same types.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use rfork_protocol::problem::Code;
use rfork_protocol::v2::{self, Query};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::client::Client;
use super::super::error::Unavailable;
use super::super::permit::Permit;
use super::super::{Api, written_apart};
use super::refused::Refused;
use crate::identity::Access;
use crate::shares::{Entered, Part};
use crate::store::StoreError;

/// The longest header section of a request, in bytes, as names and values together.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// A request, read and checked.
pub(super) struct Call<T> {
    pub(super) api: Api,
    /// That it may have this route.
    pub(super) permit: Permit,
    pub(super) headers: HeaderMap,
    /// The client, as far as it is known.
    pub(super) client: Option<Client>,
    /// Its room, which it gives up while it waits.
    pub(super) entered: Option<Entered>,
    /// The room of its body, for what is kept of that while it waits.
    pub(super) body: Option<Arc<Part>>,
    pub(super) request: T,
}

/// What the document says of a route besides its types.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    /// Who may use it.
    pub(super) access: Access,
    pub(super) path: &'static str,
    /// Names the operation; programs that are generated from the document use it.
    pub(super) id: &'static str,
    /// One line.
    pub(super) summary: &'static str,
    /// What else a client should know.
    pub(super) description: &'static str,
    /// Request headers, each with what it is for.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// How it may fail, besides what any route may meet.
    pub(super) problems: &'static [Code],
}

impl About {
    /// A route without headers or problems of its own.
    pub(super) const fn new(
        access: Access,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
    ) -> Self {
        Self { access, path, id, summary, description: "", headers: &[], problems: &[] }
    }
}

/// A type's schema, given where the schemas of its parts are gathered.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// With which others a route has its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It asks for a seed, for which it may wait.
    Acquires,
    /// It lists much for people.
    Lists,
    /// Neither.
    Other,
}

pub(super) struct Route {
    pub(super) about: About,
    /// `get` or `post`.
    pub(super) method: &'static str,
    pub(super) parameters: &'static [&'static str],
    pub(super) body: Option<SchemaOf>,
    pub(super) answer: SchemaOf,
    /// With which others it has its room.
    pub(super) kind: Kind,
    pub(super) serve: MethodRouter<Api>,
}

impl Route {
    /// This route, which asks for a seed.
    pub(super) fn acquiring(self) -> Self {
        Self { kind: Kind::Acquires, ..self }
    }

    /// This route, which lists much for people.
    pub(super) fn listing(self) -> Self {
        Self { kind: Kind::Lists, ..self }
    }
}

/// A route that reads a body of at most `most_bytes`.
pub(super) fn post<Req, Res, F>(
    about: About,
    most_bytes: usize,
    handler: impl Fn(Call<Req>) -> F + Clone + Send + Sync + 'static,
) -> Route
where
    Req: DeserializeOwned + JsonSchema + Send + 'static,
    Res: Serialize + JsonSchema + 'static,
    F: Future<Output = Result<Res, Refused>> + Send + 'static,
{
    let serve = routing::post(async move |State(api): State<Api>, request: Request| {
        let call = async {
            let headers = checked_head(&request)?;
            let client = client_of(&request);
            let permit = permit_of(&request)?;
            if !is_json(&headers) {
                let detail = "declare the body with the header Content-Type: application/json";
                return Err(Refused::new(Code::UnsupportedMediaType, detail));
            }
            let entered = request.extensions().get().cloned();
            let room = request.extensions().get().cloned();
            let bytes = Bytes::from_request(request, &()).await?;
            Ok(Call { api, permit, headers, client, entered, body: room, request: v2::decode(&bytes)? })
        };
        match call.await {
            Ok(call) => answer(handler(call).await),
            Err(refused) => refused.into_response(),
        }
    });
    Route {
        about,
        method: "post",
        parameters: &[],
        body: Some(SchemaGenerator::subschema_for::<Req>),
        answer: SchemaGenerator::subschema_for::<Res>,
        kind: Kind::Other,
        serve: serve.layer(DefaultBodyLimit::max(most_bytes)),
    }
}

/// A route that reads the query of its URL and changes nothing.
pub(super) fn get<Req, Res, F>(
    about: About,
    handler: impl Fn(Call<Req>) -> F + Clone + Send + Sync + 'static,
) -> Route
where
    Req: Query + Send + 'static,
    Res: Serialize + JsonSchema + Send + 'static,
    F: Future<Output = Result<Res, Refused>> + Send + 'static,
{
    let serve = routing::get(async move |State(api): State<Api>, request: Request| {
        let client = client_of(&request);
        let call = checked_head(&request).and_then(|headers| {
            let permit = permit_of(&request)?;
            let request = Req::decode(request.uri().query().unwrap_or_default())?;
            Ok(Call { api, permit, headers, client, entered: None, body: None, request })
        });
        match call {
            Ok(call) => long_answer(handler(call).await).await,
            Err(refused) => refused.into_response(),
        }
    });
    Route {
        about,
        method: "get",
        parameters: Req::PARAMETERS,
        body: None,
        answer: SchemaGenerator::subschema_for::<Res>,
        kind: Kind::Other,
        serve,
    }
}

/// An answer that may be long: it is written as JSON where that keeps no other request waiting.
async fn long_answer<Res: Serialize + Send + 'static>(outcome: Result<Res, Refused>) -> Response {
    match outcome {
        Ok(answer) => written_apart(answer).await,
        Err(refused) => refused.into_response(),
    }
}

fn answer<Res: Serialize>(outcome: Result<Res, Refused>) -> Response {
    match outcome {
        Ok(answer) => Json(answer).into_response(),
        Err(refused) => refused.into_response(),
    }
}

fn client_of(request: &Request) -> Option<Client> {
    request.extensions().get().cloned()
}

/// What the check has left, through which every request comes.
fn permit_of(request: &Request) -> Result<Permit, Refused> {
    request.extensions().get().cloned().ok_or_else(|| Unavailable::FAULT.into())
}

fn checked_head(request: &Request) -> Result<HeaderMap, Refused> {
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > MAX_HEADER_BYTES {
        let detail = format!("headers may have {MAX_HEADER_BYTES} bytes, these have {bytes}");
        return Err(Refused::new(Code::HeadersTooLarge, detail));
    }
    Ok(headers.clone())
}

/// Whether the body is declared as JSON, parameters of the media type aside.
fn is_json(headers: &HeaderMap) -> bool {
    let declared =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = declared.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

/// Asks the store, for so long at most.
pub(super) async fn within<T>(
    deadline: Duration,
    asking: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, Refused> {
    match tokio::time::timeout(deadline, asking).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Unavailable::TIMED_OUT.into()),
    }
}
