//! What is wrong is refused with a problem document that says what, and changes nothing.

use std::time::{Duration, Instant};

use rfork_protocol::problem::{Code, Problem};
use serde_json::{Value, json};

use super::planner;
use super::support::{Answer, Planner, request};

/// The problem that an answer tells of; its parts agree.
fn problem(answer: &Answer) -> Problem {
    assert_eq!(answer.header("CONTENT-TYPE"), Some("application/problem+json"), "{answer:?}");
    let problem = Problem::from_json(answer.body.as_bytes()).unwrap_or_else(|| panic!("{answer:?}"));
    let code = problem.code().unwrap_or_else(|| panic!("{answer:?}"));
    assert_eq!((answer.status, problem.status), (code.status(), code.status()), "{answer:?}");
    problem
}

fn code(answer: &Answer) -> Code {
    problem(answer).code().unwrap()
}

/// A POST whose body is declared as `media_type` and sent as it is.
async fn post(planner: &Planner, path: &str, media_type: Option<&str>, body: &[u8]) -> Answer {
    let length = body.len().to_string();
    let mut headers = vec![("Content-Length", length.as_bytes())];
    headers.extend(media_type.map(|media_type| ("Content-Type", media_type.as_bytes())));
    let mut bytes = request("POST", path, &headers);
    bytes.extend_from_slice(body);
    planner.raw(&bytes).await
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let (_directory, planner) = planner().await;
    let seed = "10.0.0.7:8000:3";
    for (path, body, field, because) in [
        ("/v2/seeds", json!({"seed": seed}), ".", "missing field `seed_key`"),
        ("/v2/seeds", json!({"seed": seed, "seed_key": "k", "capacity": 3}), "capacity", "unknown field"),
        ("/v2/seeds", json!({"seed": "10.0.0.7:8000", "seed_key": "k"}), "seed", "host:port:rank"),
        ("/v2/seeds", json!({"seed": "a/b:1:0", "seed_key": "k"}), "seed", "host of a URL"),
        ("/v2/seeds", json!({"seed": seed, "seed_key": {"hex": "zz"}}), "seed_key", "0-9 and a-f"),
        ("/v2/seeds", json!({"seed": seed, "seed_key": "k".repeat(8_193)}), "seed_key", "too long"),
        ("/v2/seeds", json!([seed, "k"]), ".", "an object"),
        ("/v2/seeds/heartbeat", json!({"seeds": []}), "seeds", "1 to 1024"),
        (
            "/v2/seeds/heartbeat",
            json!({"seeds": [{"seed": seed, "seed_key": ""}]}),
            "seeds[0].seed_key",
            "empty",
        ),
        ("/v2/seeds/deregister", json!({"seed": null, "seed_key": "k"}), "seed", "null"),
        ("/v2/leases", json!({"seed_key": "k", "wait_ms": "5"}), "wait_ms", "string"),
        ("/v2/leases", json!({"seed_key": "k", "wait_ms": 3_600_001}), "wait_ms", "at most"),
        ("/v2/leases", json!({"seed_key": "k", "location": {"zone": ""}}), "location.zone", "1 to 256"),
        ("/v2/leases/renew", json!({"seed": seed, "lease_id": ""}), "lease_id", "printable"),
        ("/v2/leases/release", json!({"seed": seed, "lease_id": "l"}), ".", "missing field `outcome`"),
        (
            "/v2/leases/release",
            json!({"seed": seed, "lease_id": "l", "outcome": "failed", "reason": "It broke"}),
            "reason",
            "a-z",
        ),
    ] {
        let problem = problem(&planner.send("POST", path, &body).await);
        assert_eq!(
            (problem.code(), problem.field.as_deref()),
            (Some(Code::InvalidRequest), Some(field)),
            "{body}"
        );
        assert!(problem.detail.contains(because), "{body}: {}", problem.detail);
    }
    assert_eq!(planner.snapshot().await["seed_count"], 0);
    planner.stop().await;
}

#[tokio::test]
async fn a_body_is_declared_sent_whole_and_json() {
    let (_directory, planner) = planner().await;
    let good = br#"{"seed_key":"k"}"#;
    for media_type in
        [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")]
    {
        let answer = post(&planner, "/v2/leases", media_type, good).await;
        assert_eq!(code(&answer), Code::UnsupportedMediaType, "{media_type:?}");
    }
    for media_type in ["application/json", "Application/JSON; charset=utf-8"] {
        let answer = post(&planner, "/v2/leases", Some(media_type), good).await;
        assert_eq!(answer.status, 404, "{answer:?}: it was read");
    }
    for body in [&b""[..], b"{", b"seed_key=k", b"{}{}", b"\xff\xfe", b"{\"seed_key\":\"\xff\"}"] {
        let answer = post(&planner, "/v2/leases", Some("application/json"), body).await;
        assert_eq!(code(&answer), Code::InvalidRequest, "{body:?}");
    }
    planner.stop().await;
}

#[tokio::test]
async fn what_is_too_large_is_told_so() {
    let (_directory, planner) = planner().await;
    let padded = |bytes: usize| format!("{{\"seed_key\":\"k\"{}}}", " ".repeat(bytes));
    let fits = post(&planner, "/v2/leases", Some("application/json"), padded(100_000).as_bytes()).await;
    assert_eq!(fits.status, 404, "{fits:?}: it was read");
    let large = post(&planner, "/v2/leases", Some("application/json"), padded(200_000).as_bytes()).await;
    assert_eq!(code(&large), Code::PayloadTooLarge);
    let batch =
        padded(200_000).replace("\"seed_key\":\"k\"", "\"seeds\":[{\"seed\":\"h:1:0\",\"seed_key\":\"k\"}]");
    let batch = post(&planner, "/v2/seeds/heartbeat", Some("application/json"), batch.as_bytes()).await;
    assert_eq!(batch.status, 200, "{batch:?}: a batch may be longer");
    let headers = [("X-Long", "x".repeat(20_000))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    assert_eq!(code(&planner.raw(&request("GET", "/v2", &headers)).await), Code::HeadersTooLarge);
    let url = format!("/v2?{}", "x".repeat(40_000));
    assert_eq!(code(&planner.raw(&request("GET", &url, &[])).await), Code::UriTooLong);
    planner.stop().await;
}

#[tokio::test]
async fn a_wrong_path_or_method_is_told_so() {
    let (_directory, planner) = planner().await;
    for path in ["/v2/", "/v2/nothing", "/v2/seeds/nothing", "/v2/leases/renew/"] {
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(
                code(&planner.send(method, path, &Value::Null).await),
                Code::NotFound,
                "{method} {path}"
            );
        }
    }
    let answer = planner.send("DELETE", "/v2/leases/renew", &Value::Null).await;
    assert_eq!((code(&answer), answer.header("ALLOW")), (Code::MethodNotAllowed, Some("POST")));
    let answer = planner.send("POST", "/v2", &Value::Null).await;
    assert_eq!((code(&answer), answer.header("ALLOW")), (Code::MethodNotAllowed, Some("GET, HEAD")));
    assert_eq!(planner.send("HEAD", "/v2", &Value::Null).await.status, 200);
    // v1 is as it was.
    planner.ask("DELETE", "/add_seed", &[]).await.is(405, "");
    planner.stop().await;
}

#[tokio::test]
async fn a_wrong_query_is_named() {
    let (_directory, planner) = planner().await;
    let problem = problem(&planner.send("GET", "/v2?verbose=1", &Value::Null).await);
    assert_eq!((problem.code(), problem.field.as_deref()), (Some(Code::InvalidRequest), Some("verbose")));
    planner.stop().await;
}

#[tokio::test]
async fn a_wrong_idempotency_key_is_refused_and_not_shown() {
    let (_directory, planner) = planner().await;
    let body = br#"{"seed_key":"k"}"#;
    let length = body.len().to_string();
    let headers: [(&str, &[u8]); 3] = [
        ("Content-Type", b"application/json"),
        ("Content-Length", length.as_bytes()),
        ("Idempotency-Key", b"SECRET"),
    ];
    let mut bytes = request("POST", "/v2/leases", &headers);
    bytes.extend_from_slice(body);
    let problem = problem(&planner.raw(&bytes).await);
    assert_eq!(problem.field.as_deref(), Some("Idempotency-Key"));
    assert!(!problem.to_json().contains("SECRET"), "{problem:?}");
    planner.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_no_wait_for_a_seed() {
    let directory = tempfile::tempdir().unwrap();
    let planner = Planner::start(&directory.path().join("p.db"), |settings| {
        settings.bounds.deadline = Duration::from_millis(300);
    })
    .await;
    let headers = [("Content-Type", &b"application/json"[..]), ("Content-Length", b"100")];
    let mut part = request("POST", "/v2/leases", &headers);
    part.extend_from_slice(br#"{"seed_key":"k","wait_ms":60000,"#);
    assert_eq!(code(&planner.raw(&part).await), Code::Timeout);
    // A request that is there may wait for longer than that.
    let waited = Instant::now();
    let wait = json!({"seed_key": "k", "wait_ms": 600});
    assert_eq!(code(&planner.send("POST", "/v2/leases", &wait).await), Code::UnknownKey);
    assert!(waited.elapsed() >= Duration::from_millis(600), "{:?}", waited.elapsed());
    planner.stop().await;
}
