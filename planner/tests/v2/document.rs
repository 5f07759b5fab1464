//! The OpenAPI document: committed as it is generated, served, and true.

use std::path::Path;

use boon::{Compiler, Schemas};
use rfork_planner::http::v2::openapi;
use serde_json::{Value, json};

use super::planner;
use super::support::Planner;

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

pub(crate) fn document() -> Value {
    serde_json::from_str(&openapi::text()).unwrap()
}

/// Fails unless `value` is what the document says at `pointer`.
pub(crate) fn conforms(pointer: &str, value: &Value) {
    let mut compiler = Compiler::new();
    compiler.set_default_draft(boon::Draft::V2020_12);
    compiler.add_resource("http://planner/openapi.json", document()).unwrap();
    let mut schemas = Schemas::new();
    let schema = compiler.compile(&format!("http://planner/openapi.json#{pointer}"), &mut schemas);
    let schema = schema.unwrap_or_else(|error| panic!("{pointer}: {error:#}"));
    schemas.validate(value, schema).unwrap_or_else(|error| panic!("{pointer}: {value}: {error:#}"));
}

/// One step of a JSON pointer.
pub(crate) fn step(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[test]
fn the_committed_document_is_the_generated_one() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let text = std::fs::read_to_string(committed).unwrap_or_default();
    let same = serde_json::from_str::<Value>(&text).is_ok_and(|committed| committed == document());
    assert!(same, "docs/openapi.json is old; run: cargo run -- planner openapi > docs/openapi.json");
}

#[tokio::test]
async fn the_document_has_exactly_the_routes_that_there_are() {
    let (_directory, planner) = planner().await;
    let paths = document()["paths"].as_object().unwrap().clone();
    for (path, operations) in &paths {
        let told: Vec<_> =
            METHODS.iter().filter(|method| operations.get(method.to_lowercase()).is_some()).collect();
        assert_eq!(told.len(), operations.as_object().unwrap().len(), "{path} has other methods");
        for method in METHODS {
            let answer = planner.send(method, path, &Value::Null).await;
            assert_ne!(answer.status, 404, "{method} {path} is not served");
            assert_eq!(answer.status != 405, told.contains(&&method), "{method} {path}: {}", answer.status);
        }
    }
    // A route that the document does not know would have to be one of these.
    for path in ["/v2/", "/v2/x", "/v2/seeds/x", "/v2/seeds/", "/v2/leases/x", "/v2/openapi"] {
        assert_eq!(planner.send("GET", path, &Value::Null).await.status, 404, "{path}");
    }
    planner.stop().await;
}

#[tokio::test]
async fn the_document_is_served() {
    let (_directory, planner) = planner().await;
    let answer = planner.send("GET", "/v2/openapi.json", &Value::Null).await;
    assert_eq!(answer.header("CONTENT-TYPE"), Some("application/json"));
    assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap(), document());
    planner.stop().await;
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in &found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(found.contains(&format!("#/components/schemas/{name}")), "{name}");
    }
}

#[test]
fn every_operation_and_parameter_is_explained() {
    let document = document();
    let links = ["[`", "]("].map(|link| document.to_string().contains(link));
    assert_eq!(links, [false; 2], "links mean something to rustdoc only");
    let mut names = std::collections::HashSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path} {method}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let explained = parameter["description"].as_str().is_some_and(|text| !text.is_empty());
                assert!(explained && parameter["schema"] != json!({}), "{path} {method} {parameter}");
            }
        }
    }
}

impl Planner {
    /// Sends a request of which the document speaks, and holds request and answer to what it says.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.send(method, path, body).await;
        let route = path.split('?').next().unwrap();
        let operation = format!("/paths/{}/{}", step(route), method.to_lowercase());
        let json = serde_json::from_str(&answer.body)
            .unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.body));
        let media_type = answer.header("CONTENT-TYPE").unwrap();
        let told = format!("{operation}/responses/{}/content/{}/schema", answer.status, step(media_type));
        conforms(&told, &json);
        if answer.status == 200 && !body.is_null() {
            conforms(&format!("{operation}/requestBody/content/application~1json/schema"), body);
        }
        (answer.status, json)
    }
}
