//! The OpenAPI document of API v2, made from the table of routes and the types on the wire.

use std::sync::LazyLock;

use rfork_protocol::problem::{Code, MEDIA_TYPE, Problem};
use rfork_protocol::v2::{DEFAULT_PAGE, MAX_PAGE};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::route::Route;
use super::routes;
use crate::identity::Access;

/// Where the document keeps schemas that have a name.
const DEFINITIONS: &str = "/components/schemas";

/// What any request may meet.
const ANYWHERE: &[Code] = &[
    Code::InvalidRequest,
    Code::Unauthenticated,
    Code::Forbidden,
    Code::TooManyFailures,
    Code::UriTooLong,
    Code::HeadersTooLarge,
    Code::Internal,
    Code::Overloaded,
    Code::IssuerUnavailable,
    Code::StoreUnavailable,
    Code::Stopping,
    Code::Timeout,
];
/// What a request with a body may meet besides.
const WITH_BODY: &[Code] = &[Code::PayloadTooLarge, Code::UnsupportedMediaType];

static DOCUMENT: LazyLock<Value> = LazyLock::new(make);

/// The document.
pub(super) fn document() -> &'static Value {
    &DOCUMENT
}

/// The document as text, as it is printed and committed.
pub fn text() -> String {
    // Made of maps, lists and texts, which always have a JSON form.
    let mut text = serde_json::to_string_pretty(document()).unwrap_or_default();
    text.push('\n');
    text
}

/// Schemas of requests say what is accepted, those of answers what is sent; their parts are gathered in both.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

fn make() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = DEFINITIONS.into();
        settings.meta_schema = None;
    });
    let mut schemas = Schemas {
        requests: settings.clone().for_deserialize().into_generator(),
        answers: settings.for_serialize().into_generator(),
    };
    let mut paths = Map::new();
    for route in routes() {
        let path = paths.entry(route.about.path).or_insert_with(|| json!({}));
        path[route.method] = operation(&route, &mut schemas);
    }
    let mut definitions = schemas.requests.take_definitions(true);
    definitions.extend(schemas.answers.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "RFork planner",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "API v2 of the RFork planner: which running worker a new worker may read its weights \
                from. Unknown fields of a request are refused; answers may come to have more fields. Times are \
                durations in milliseconds. Whatever fails is answered with an RFC 9457 problem document whose \
                `code` is stable."
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token."},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "A token as the password, with any user name."
                }
            }
        }
    })
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let about = &route.about;
    let mut operation = json!({"operationId": about.id, "summary": about.summary});
    operation["security"] = match about.access {
        Access::Anyone => json!([]),
        // The last: a planner may let everybody in.
        Access::Only(_) => json!([{"bearer": []}, {"basic": []}, {}]),
    };
    if let Access::Only(role) = about.access {
        operation["x-rfork-role"] = role.name().into();
    }
    if !about.description.is_empty() {
        operation["description"] = about.description.into();
    }
    let headers = about.headers.iter().map(|(name, description)| {
        json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}})
    });
    let parameters: Vec<Value> =
        headers.chain(route.parameters.iter().map(|name| parameter(name, &mut schemas.requests))).collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = route.body {
        let schema = body(&mut schemas.requests);
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    let schema = (route.answer)(&mut schemas.answers);
    operation["responses"] =
        json!({"200": {"description": "Done", "content": {"application/json": {"schema": schema}}}});
    let with_body = if route.body.is_some() { WITH_BODY } else { &[] };
    let mut problems: Vec<Code> = [about.problems, with_body, ANYWHERE].concat();
    problems.sort_by_key(|code| code.status());
    for same_status in problems.chunk_by(|a, b| a.status() == b.status()) {
        let codes: Vec<_> = same_status.iter().map(|code| format!("`{}`", code.as_str())).collect();
        operation["responses"][same_status[0].status().to_string()] = json!({
            "description": codes.join(", "),
            "content": {MEDIA_TYPE: {"schema": schemas.answers.subschema_for::<Problem>()}}
        });
    }
    operation
}

/// A parameter of a query: each name means the same everywhere.
fn parameter(name: &str, schemas: &mut SchemaGenerator) -> Value {
    fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
        schemas.subschema_for::<T>().to_value()
    }
    use rfork_protocol::v2::{Cursor, EventKind, Label, Name, SeedState};
    let (description, schema) = match name {
        "seed_key" => {
            ("Those of this key: its bytes, percent-encoded.", json!({"type": "string", "minLength": 1}))
        }
        "seed" => ("Those of this seed.", of::<rfork_protocol::SeedIdentity>(schemas)),
        "model_url" => ("Those of this model.", of::<Label>(schemas)),
        "host" => ("Those at this host, in any form of its address or name.", of::<Name>(schemas)),
        "kind" => ("Those of this kind.", of::<EventKind>(schemas)),
        "since_ms" => (
            "Those of the last so many milliseconds.",
            json!({"type": "integer", "format": "uint64", "minimum": 0}),
        ),
        "state" => ("Those in this state.", of::<SeedState>(schemas)),
        "limit" => (
            "Entries on a page.",
            json!({"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}),
        ),
        "after" => ("Where the page begins: the `next` of the page before.", of::<Cursor>(schemas)),
        _ => ("", json!({})),
    };
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}
