//! Who may ask a planner for what: every route by every kind of credential, and tokens that change.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rfork_planner::config::{DatabaseUrl, Settings};
use rfork_planner::identity::{Access, Mode, TokenFile};
use serde_json::{Value, json};
use support::{Answer, PATIENCE, Planner, request};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const WORKER: &str = "worker-0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef";
const METRICS: &str = "metrics-0123456789abcdef";
const TENANT: &str = "tenant-0123456789abcdef";

/// A file with a token of each role, and one that may use some keys alone.
fn tokens(home: &Path) -> PathBuf {
    let path = home.join("tokens.toml");
    let principal = |name: &str, token: &str, more: &str| {
        format!("[[principal]]\nname = '{name}'\nroles = ['{name}']\ntokens = ['{token}']\n{more}")
    };
    let text = [
        principal("worker", WORKER, ""),
        principal("operator", OPERATOR, ""),
        principal("metrics", METRICS, ""),
        principal("worker", TENANT, "keys = ['tenant/*']\n").replacen(
            "name = 'worker'",
            "name = 'tenant'",
            1,
        ),
    ];
    std::fs::write(&path, text.concat()).unwrap();
    path
}

async fn start(home: &Path, mode: Mode) -> Planner {
    let file = TokenFile::read(&tokens(home)).unwrap();
    let change = |settings: &mut Settings| {
        settings.token_file = Some(file);
        settings.auth_mode = mode;
        settings.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    };
    Planner::start(&home.join("p.db"), change).await
}

/// Every route with its method and its role: those of v2 as the document has them.
fn routes() -> Vec<(String, String, Option<String>)> {
    let document: Value = serde_json::from_str(&rfork_planner::http::v2::openapi::text()).unwrap();
    let of_v2 = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(move |(method, operation)| {
            let role = operation["x-rfork-role"].as_str().map(str::to_owned);
            assert_eq!(operation["security"] == json!([]), role.is_none(), "{path}");
            (method.to_uppercase(), path.clone(), role)
        })
    });
    let others = [
        ("GET", "/", None),
        ("GET", "/healthz", None),
        ("OPTIONS", "/readyz", None),
        ("GET", "/metrics", Some("metrics")),
        ("HEAD", "/metrics", Some("metrics")),
        ("OPTIONS", "/metrics", Some("metrics")),
        ("GET", "/debug/snapshot", Some("operator")),
        ("GET", "/get_seed", Some("worker")),
        ("GET", "//get_seed", Some("worker")),
        ("POST", "/add_seed", Some("worker")),
        ("POST", "/renew_seed_lease", Some("worker")),
        ("POST", "/put_seed", Some("worker")),
        ("POST", "/remove_seed", Some("worker")),
    ];
    let others = others.map(|(method, path, role)| (method.into(), path.into(), role.map(str::to_owned)));
    let routes: Vec<_> = of_v2.chain(others).collect();
    for (_, path, access) in rfork_planner::http::doors() {
        let role = match access {
            Access::Anyone => None,
            Access::Only(role) => Some(role.name()),
        };
        let tried = routes.iter().any(|(_, of, its)| of == path && its.as_deref() == role);
        assert!(tried || path.starts_with("/v2/") && role.is_none(), "{path} is for {role:?}, and not tried");
    }
    routes
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Nobody's credentials, none among them.
fn bad() -> Vec<Option<String>> {
    let told = [
        bearer("wrong-0123456789abcdef"),
        bearer(&WORKER[..WORKER.len() - 1]),
        bearer(&format!("{WORKER}x")),
        bearer(&"x".repeat(9_000)),
        bearer(""),
        "Bearer".into(),
        WORKER.into(),
        format!("Digest {WORKER}"),
        // user:wrong, a user without a password, and what is no base64.
        "Basic dXNlcjp3cm9uZw==".into(),
        "Basic d29ya2VyLTAxMjM0NTY3ODlhYmNkZWY=".into(),
        "Basic *".into(),
    ];
    told.map(Some).into_iter().chain([None]).collect()
}

async fn ask(planner: &Planner, method: &str, path: &str, credential: Option<&str>) -> Answer {
    from(planner, "10.0.0.1", method, path, credential).await
}

/// Asks by a trusted proxy that speaks for this address.
async fn from(
    planner: &Planner,
    address: &str,
    method: &str,
    path: &str,
    credential: Option<&str>,
) -> Answer {
    let credential = credential.map(|value| ("Authorization", value.as_bytes()));
    let headers = [("X-Forwarded-For", address.as_bytes())].into_iter().chain(credential);
    planner.raw(&request(method, path, &headers.collect::<Vec<_>>())).await
}

#[tokio::test]
async fn every_route_is_for_its_role_alone() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    for (at, (method, path, role)) in routes().into_iter().enumerate() {
        // Of each route from elsewhere: many wrong ones from one address are another test.
        let client = format!("10.0.0.{at}");
        for credential in bad() {
            let answer = from(&planner, &client, &method, &path, credential.as_deref()).await;
            let what = format!("{method} {path} {credential:?}: {answer:?}");
            if role.is_none() {
                assert!(![401, 403].contains(&answer.status), "{what}");
                continue;
            }
            assert_eq!(answer.status, 401, "{what}");
            assert!(answer.header("WWW-AUTHENTICATE").unwrap().starts_with("Bearer "), "{what}");
            if path.starts_with("/v2") {
                let problem: Value = serde_json::from_str(&answer.body).unwrap();
                assert_eq!(problem["code"], "unauthenticated", "{what}");
            } else if method == "GET" {
                assert!(answer.body.starts_with("unauthenticated: "), "{what}");
            }
            assert!(!answer.body.contains("0123456789abcdef"), "{what}");
        }
        for (token, its) in [(WORKER, "worker"), (OPERATOR, "operator"), (METRICS, "metrics")] {
            let answer = ask(&planner, &method, &path, Some(&bearer(token))).await;
            let may = role.as_ref().is_none_or(|role| role == its);
            assert_eq!(answer.status == 403, !may, "{method} {path} {its}: {answer:?}");
            assert_ne!(answer.status, 401, "{method} {path} {its}: {answer:?}");
        }
    }
    // Nothing of it had any effect.
    let snapshot = ask(&planner, "GET", "/debug/snapshot", Some(&bearer(OPERATOR))).await;
    let snapshot: Value = serde_json::from_str(&snapshot.body).unwrap();
    assert_eq!((&snapshot["seed_count"], &snapshot["lease_count"]), (&json!(0), &json!(0)));
    planner.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_not_read() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    let mut stream = TcpStream::connect(planner.address).await.unwrap();
    // Its body never comes.
    let head = request("POST", "/v2/seeds", &[("Content-Length", b"1000000")]);
    tokio::io::AsyncWriteExt::write_all(&mut stream, &head).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    planner.stop().await;
}

#[tokio::test]
async fn what_is_refused_takes_no_room() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("p.db")));
    let file = TokenFile::read(&tokens(home.path())).unwrap();
    (settings.token_file, settings.auth_mode) = (Some(file), Mode::Enforce);
    // There is none, but for probes.
    settings.bounds.requests = 0;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let running = tokio::spawn(rfork_planner::run(settings, listener, stop.clone()));
    while support::raw(address, &request("GET", "/readyz", &[])).await.unwrap().status == 503 {}
    for (method, path) in [("GET", "/get_seed"), ("POST", "/add_seed"), ("POST", "/v2/seeds")] {
        for (token, status) in [(WORKER, 503), (METRICS, 403), ("wrong-0123456789abcdef", 401)] {
            let authorization = bearer(token);
            let headers = [("Authorization", authorization.as_bytes())];
            let answer = support::raw(address, &request(method, path, &headers)).await.unwrap();
            assert_eq!(answer.status, status, "{path} {token}: {answer:?}");
        }
    }
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn many_wrong_tokens_of_one_address_are_told_to_come_back_and_lock_nobody_out() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    let wrong = |number: u32| format!("Bearer wrong-{number:0>20}");
    let mut number = 0;
    let limited = loop {
        let answer = from(&planner, "10.1.0.7", "GET", "/get_seed", Some(&wrong(number))).await;
        if answer.status != 401 {
            break answer;
        }
        number += 1;
        assert!(number < 1_000);
    };
    assert_eq!(limited.status, 429);
    assert!(limited.body.starts_with("too-many-failures: "), "{limited:?}");
    assert_eq!((limited.header("RETRY-AFTER"), limited.header("CONNECTION")), (Some("60"), Some("close")));
    let v2 = from(&planner, "10.1.0.7", "GET", "/v2/seeds", Some(&wrong(0))).await;
    let problem: Value = serde_json::from_str(&v2.body).unwrap();
    assert_eq!((v2.status, v2.header("RETRY-AFTER")), (429, Some("60")));
    assert_eq!((&problem["code"], &problem["retry_after_ms"]), (&json!("too-many-failures"), &json!(60_000)));
    // Whoever is right is served, whoever is behind the same address; and so is everybody where everybody may ask.
    assert_eq!(from(&planner, "10.1.0.7", "GET", "/v2/seeds", Some(&bearer(OPERATOR))).await.status, 200);
    assert_eq!(from(&planner, "10.1.0.7", "GET", "/v2", Some(&wrong(0))).await.status, 200);
    // None at all is no guess; and elsewhere one wrong token is one.
    assert_eq!(from(&planner, "10.1.0.7", "GET", "/get_seed", None).await.status, 401);
    assert_eq!(from(&planner, "10.1.0.8", "GET", "/get_seed", Some(&wrong(0))).await.status, 401);
    let metrics = ask(&planner, "GET", "/metrics", Some(&bearer(METRICS))).await.body;
    let line = "rfork_planner_requests_denied_total{reason=\"limited\",refused=\"yes\"} 2";
    assert!(metrics.lines().any(|known| known == line), "{metrics}");
    planner.stop().await;
}

#[tokio::test]
async fn who_waits_for_the_database_is_served_by_the_route_that_was_meant() {
    let home = tempfile::tempdir().unwrap();
    let first = Planner::start(&home.path().join("p.db"), |_| {}).await;
    let file = TokenFile::read(&tokens(home.path())).unwrap();
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("p.db")));
    (settings.token_file, settings.auth_mode) = (Some(file), Mode::Enforce);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let running = tokio::spawn(rfork_planner::run(settings, listener, stop.clone()));
    let asks = async |path: &str| {
        let headers = [("Authorization", bearer(WORKER)), ("SEED_KEY", "k".to_owned())];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        support::raw(address, &request("GET", path, &headers)).await.unwrap()
    };
    // It waits for the file, and holds what it is asked meanwhile.
    assert_eq!(asks("/get_seed").await.status, 503);
    let held = async {
        loop {
            let answer = asks("/get_seed").await;
            if answer.status != 503 {
                return answer;
            }
        }
    };
    let (held, ()) = tokio::join!(held, first.stop());
    held.is(404, "no available seed");
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_tenant_has_its_own_keys() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    // The token as the password of any user, as unmodified workers send it: "rfork:" before it.
    let basic = "Basic cmZvcms6dGVuYW50LTAxMjM0NTY3ODlhYmNkZWY=";
    for (key, status) in [("tenant/m", 200), ("tenan/m", 403), ("m", 403)] {
        let seed = [
            ("Authorization", basic),
            ("SEED_KEY", key),
            ("SEED_IP", "127.0.0.1"),
            ("SEED_PORT", "8000"),
            ("SEED_RANK", "3"),
        ];
        let v1 = planner.ask("POST", "/add_seed", &[&seed[..], &[("SEED_REFCNT", "0")]].concat()).await;
        assert_eq!(v1.status, status, "{key}: {v1:?}");
        assert_eq!(planner.ask("POST", "/remove_seed", &seed).await.status, status, "{key}");
        let get = planner.ask("GET", "/get_seed", &seed[..2]).await;
        assert_eq!(get.status, if status == 200 { 404 } else { 403 }, "{key}: {get:?}");
        let named = json!({"seed": "127.0.0.1:8000:3", "seed_key": key});
        let beats = json!({"seeds": [{"seed": "127.0.0.1:8000:3", "seed_key": "tenant/m"}, named]});
        for (path, body, good) in [
            ("/v2/seeds", named.clone(), 200),
            ("/v2/seeds/heartbeat", beats, 200),
            ("/v2/seeds/deregister", named, 200),
            ("/v2/leases", json!({"seed_key": key}), 404),
        ] {
            let body = body.to_string();
            let length = body.len().to_string();
            let headers = [
                ("Authorization", basic.as_bytes()),
                ("Content-Type", b"application/json"),
                ("Content-Length", length.as_bytes()),
            ];
            let answer = planner.raw(&[request("POST", path, &headers), body.into_bytes()].concat()).await;
            assert_eq!(answer.status, if status == 200 { good } else { 403 }, "{path} {key}: {answer:?}");
        }
    }
    planner.stop().await;
}

#[tokio::test]
async fn history_names_who_did_what() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    let tell = async |token: &str, path: &str, body: Value| {
        let (token, body) = (bearer(token), body.to_string());
        let length = body.len().to_string();
        let headers = [
            ("Authorization", token.as_bytes()),
            ("Content-Type", b"application/json"),
            ("Content-Length", length.as_bytes()),
            ("X-Forwarded-For", b"10.1.0.7"),
        ];
        let answer = planner.raw(&[request("POST", path, &headers), body.into_bytes()].concat()).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()
    };
    let list = async |path: &str, of: &str| {
        let answer = ask(&planner, "GET", path, Some(&bearer(OPERATOR))).await;
        serde_json::from_str::<Value>(&answer.body).unwrap()[of].clone()
    };
    let seed = json!({"seed": "127.0.0.1:8000:3", "seed_key": "tenant/m"});
    tell(TENANT, "/v2/seeds", seed.clone()).await;
    let granted = tell(WORKER, "/v2/leases", json!({"seed_key": "tenant/m", "instance_id": "i-9"})).await;
    let lease = json!({"lease_id": granted["lease_id"], "seed": granted["seed"], "outcome": "failed"});
    tell(WORKER, "/v2/leases/release", lease).await;
    tell(OPERATOR, "/v2/seeds/drain", seed.clone()).await;
    tell(TENANT, "/v2/seeds/deregister", seed).await;
    for key in ["tenant/n", "tenant/o"] {
        tell(TENANT, "/v2/seeds", json!({"seed": "127.0.0.1:8000:4", "seed_key": key})).await;
    }
    tell(OPERATOR, "/v2/keys/invalidate", json!({"seed_key": "tenant/o"})).await;
    let events = list("/v2/events", "events").await;
    let told: Vec<_> =
        events.as_array().unwrap().iter().map(|event| (&event["kind"], &event["by"])).collect();
    let expected = [
        (json!("invalidated"), json!("operator")),
        (json!("new_holding"), json!("tenant")),
        (json!("registered"), json!("tenant")),
        (json!("removed"), json!("tenant")),
        (json!("drained"), json!("operator")),
        (json!("suspect"), json!("worker")),
        (json!("registered"), json!("tenant")),
    ];
    assert_eq!(told, expected.each_ref().map(|(kind, by)| (kind, by)));
    let ended = list("/v2/leases/ended", "leases").await;
    assert_eq!(ended[0]["requester"], "worker/i-9@10.1.0.7");
    planner.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_is_its_principal_s() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    let send = async |token: &str, path: &str, body: Value| {
        let (token, body) = (bearer(token), body.to_string());
        let length = body.len().to_string();
        let headers = [
            ("Authorization", token.as_bytes()),
            ("Content-Type", b"application/json"),
            ("Content-Length", length.as_bytes()),
            ("Idempotency-Key", b"the-same-for-both"),
        ];
        let answer = planner.raw(&[request("POST", path, &headers), body.into_bytes()].concat()).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()["lease_id"].clone()
    };
    for rank in [3, 4] {
        let named = json!({"seed": format!("127.0.0.1:8000:{rank}"), "seed_key": "tenant/m"});
        send(TENANT, "/v2/seeds", named).await;
    }
    let asked = json!({"seed_key": "tenant/m"});
    let lease = send(WORKER, "/v2/leases", asked.clone()).await;
    let other = send(TENANT, "/v2/leases", asked.clone()).await;
    assert_ne!(lease, other);
    assert_eq!(send(WORKER, "/v2/leases", asked.clone()).await, lease, "a repetition");
    assert_eq!(send(TENANT, "/v2/leases", asked).await, other, "a repetition");
    planner.stop().await;
}

#[tokio::test]
async fn what_would_be_refused_is_served_and_counted() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Permissive).await;
    planner.get("k").await.is(404, "no available seed");
    let wrong = [("Authorization", "Bearer wrong"), ("SEED_KEY", "k")];
    planner.ask("GET", "/get_seed", &wrong).await.is(404, "no available seed");
    let role = [("Authorization", "Bearer metrics-0123456789abcdef"), ("SEED_KEY", "k")];
    planner.ask("GET", "/get_seed", &role).await.is(404, "no available seed");
    let key = [("Authorization", "Bearer tenant-0123456789abcdef"), ("SEED_KEY", "k")];
    planner.ask("GET", "/get_seed", &key).await.is(404, "no available seed");
    let right = [("Authorization", "Bearer worker-0123456789abcdef"), ("SEED_KEY", "k")];
    planner.ask("GET", "/get_seed", &right).await.is(404, "no available seed");
    let metrics = ask(&planner, "GET", "/metrics", Some(&bearer(METRICS))).await.body;
    for reason in ["missing", "unknown", "role", "key"] {
        let line = format!("rfork_planner_requests_denied_total{{reason=\"{reason}\",refused=\"no\"}} 1");
        assert!(metrics.lines().any(|known| known == line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("refused=\"yes\"} 1"), "{metrics}");
    planner.stop().await;
}

#[tokio::test]
async fn tokens_change_while_it_runs() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), Mode::Enforce).await;
    let (path, before) = (tokens(home.path()), std::fs::read_to_string(tokens(home.path())).unwrap());
    let status = async |token: &str| {
        let headers = [("Authorization", bearer(token)), ("SEED_KEY", "k".into())];
        planner
            .ask("GET", "/get_seed", &headers.each_ref().map(|(name, value)| (*name, value.as_str())))
            .await
            .status
    };
    let until = async |token: &str, wanted: u16| {
        let asking = async {
            while status(token).await != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap();
    };
    let metric = async |wanted: &str| {
        let asking = async {
            while !ask(&planner, "GET", "/metrics", Some(&bearer(METRICS))).await.body.contains(wanted) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap();
    };
    // Both are good while one is replaced by the other.
    let both = before.replacen(&format!("'{WORKER}'"), &format!("'{WORKER}', 'other-0123456789abcdef'"), 1);
    std::fs::write(&path, &both).unwrap();
    until("other-0123456789abcdef", 404).await;
    assert_eq!(status(WORKER).await, 404);
    std::fs::write(&path, both.replacen(&format!("'{WORKER}', "), "", 1)).unwrap();
    until(WORKER, 401).await;
    // What cannot be used leaves what was.
    for bad in ["[[principal]]\nname = 1", ""] {
        std::fs::write(&path, bad).unwrap();
        metric("rfork_planner_token_file_good 0").await;
        assert_eq!(status("other-0123456789abcdef").await, 404);
        std::fs::write(&path, both.replacen(&format!("'{WORKER}', "), "", 1)).unwrap();
        metric("rfork_planner_token_file_good 1").await;
    }
    std::fs::remove_file(&path).unwrap();
    metric("rfork_planner_token_file_good 0").await;
    assert_eq!(status("other-0123456789abcdef").await, 404);
    std::fs::write(&path, before).unwrap();
    until(WORKER, 404).await;
    planner.stop().await;
}
