//! What holds of a running planner beyond single requests: concurrency, restarts, outages, stopping.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rfork_planner::config::{DatabaseUrl, Settings};
use rfork_planner::shutdown::Stop;
use rfork_protocol::problem::Problem;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use support::{Answer, FAILS, PATIENCE, Planner, Seed, raw, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SEED: Seed<'_> = Seed { key: "k", ip: "10.0.0.7" };

/// Takes the database's write lock, as a foreign process may, until the connection is closed: the planner can
/// write nothing meanwhile.
#[allow(clippy::unwrap_used)]
async fn lock(database: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
    connection
}

fn is_unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.header("RETRY-AFTER")), (503, Some("1")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_workers_at_once_never_exceed_the_capacity() {
    let home = tempfile::tempdir().unwrap();
    let planner =
        Planner::start(&home.path().join("p.db"), |settings| settings.default_resource_points = 3).await;
    for ip in ["10.0.0.1", "10.0.0.2"] {
        planner.add(&Seed { ip, ..SEED }).await.is(200, "");
    }
    let planner = Arc::new(planner);
    let holders: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let grants = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (planner, holders, grants) = (planner.clone(), holders.clone(), grants.clone());
        workers.spawn(async move {
            // Each wants a seed twice, and asks until it gets one.
            for _ in 0..2 {
                let granted = loop {
                    let answer = planner.get(SEED.key).await;
                    match answer.status {
                        200 => break answer,
                        404 => tokio::task::yield_now().await,
                        _ => panic!("{answer:?}"),
                    }
                };
                grants.fetch_add(1, Ordering::SeqCst);
                let seed = granted.header("SEED_IP").unwrap().to_owned();
                let held = {
                    let mut holders = holders.lock().unwrap();
                    let held = holders.entry(seed.clone()).or_default();
                    *held += 1;
                    *held
                };
                assert!(held <= 3, "{held} leases on {seed}");
                tokio::task::yield_now().await;
                *holders.lock().unwrap().get_mut(&seed).unwrap() -= 1;
                planner.put(&granted).await.is(200, "");
            }
        });
    }
    while let Some(worker) = tokio::time::timeout(PATIENCE, workers.join_next()).await.unwrap() {
        worker.unwrap();
    }
    assert_eq!(grants.load(Ordering::SeqCst), 128);
    assert_eq!(planner.snapshot().await["lease_count"], 0);
    Arc::into_inner(planner).unwrap().stop().await;
}

#[tokio::test]
async fn two_planners_live_in_one_process() {
    let home = tempfile::tempdir().unwrap();
    let first = Planner::start(&home.path().join("a.db"), |_| {}).await;
    let second = Planner::start(&home.path().join("b.db"), |_| {}).await;
    first.add(&SEED).await.is(200, "");
    second.get(SEED.key).await.is(404, "no available seed");
    first.get(SEED.key).await.is(200, "");
    first.stop().await;
    second.add(&SEED).await.is(200, "");
    second.get(SEED.key).await.is(200, "");
    second.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_seeds_leases_and_gathered_heartbeats() {
    let home = tempfile::tempdir().unwrap();
    let database = home.path().join("not/there/yet/p.db");
    let planner = Planner::start(&database, |_| {}).await;
    let heard =
        |snapshot: &serde_json::Value| snapshot["seeds"]["10.0.0.7:8000:3"]["last_heartbeat_ts"].clone();
    planner.add(&SEED).await.is(200, "");
    let granted = planner.get(SEED.key).await;
    let first = heard(&planner.snapshot().await).as_f64().unwrap();
    planner.add(&SEED).await.is(200, "");
    planner.stop().await;

    let planner = Planner::start(&database, |_| {}).await;
    assert!(heard(&planner.snapshot().await).as_f64().unwrap() > first, "written at the stop");
    planner.get(SEED.key).await.is(404, "no available seed");
    planner.ask("POST", "/renew_seed_lease", &granted.lease()).await.is(200, "");
    planner.put(&granted).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    planner.stop().await;
}

#[tokio::test]
async fn gathered_heartbeats_are_written_soon() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    planner.add(&SEED).await.is(200, "");
    let heard = |snapshot: &serde_json::Value| {
        snapshot["seeds"]["10.0.0.7:8000:3"]["last_heartbeat_ts"].as_f64().unwrap()
    };
    let first = heard(&planner.snapshot().await);
    planner.add(&SEED).await.is(200, "");
    planner.until(|snapshot| heard(snapshot) > first).await;
    planner.stop().await;
}

#[tokio::test]
async fn short_times_to_live_are_kept() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |settings| {
        settings.heartbeat_ttl = Duration::from_secs(1);
        settings.heartbeat_sweep = Duration::from_secs(1);
        settings.lease_ttl = Duration::from_secs(1);
    })
    .await;
    planner.add(&SEED).await.is(200, "");
    let granted = planner.get(SEED.key).await;
    assert_eq!(granted.header("LEASE_TTL_SEC"), Some("1"));
    planner.until(|snapshot| snapshot["seed_count"] == 0 && snapshot["lease_count"] == 0).await;
    planner.put(&granted).await.is(404, "lease not found");
    planner.get(SEED.key).await.is(404, "no available seed");
    planner.add(&SEED).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    planner.stop().await;
}

#[tokio::test]
async fn an_outage_of_the_database_is_503_and_passes() {
    let home = tempfile::tempdir().unwrap();
    let database = home.path().join("p.db");
    let planner = Planner::start(&database, |_| {}).await;
    planner.add(&SEED).await.is(200, "");
    let granted = planner.get(SEED.key).await;
    let away = lock(&database).await;
    let (seed, lease, other) = (SEED.headers(), granted.lease(), Seed { ip: "10.0.0.8", ..SEED });
    let (acquire, register) = (json!({"seed_key": "k"}), json!({"seed": "10.0.0.9:8000:3", "seed_key": "k"}));
    let answers = tokio::join!(
        planner.get(SEED.key),
        planner.add(&other),
        planner.ask("POST", "/remove_seed", &seed),
        planner.ask("POST", "/put_seed", &lease),
        planner.ask("POST", "/renew_seed_lease", &lease),
        planner.ask("GET", "/readyz", &[]),
        planner.send("POST", "/v2/leases", &acquire),
        planner.send("POST", "/v2/seeds", &register),
    );
    for answer in [answers.0, answers.1, answers.2, answers.3, answers.4, answers.5] {
        is_unavailable(&answer);
        assert!(FAILS.contains(&answer.body.as_str()), "{answer:?}");
    }
    for answer in [answers.6, answers.7] {
        is_unavailable(&answer);
        let problem = Problem::from_json(answer.body.as_bytes()).unwrap();
        assert!(FAILS.contains(&format!("{}: {}", problem.code, problem.detail).as_str()), "{answer:?}");
    }
    planner.ask("GET", "/healthz", &[]).await.is(200, r#"{"status":"ok"}"#);
    away.close().await.unwrap();
    let back = async { while planner.ask("GET", "/readyz", &[]).await.status != 200 {} };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
    planner.put(&granted).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    planner.stop().await;
}

#[tokio::test]
async fn a_client_that_went_away_holds_no_lease() {
    let home = tempfile::tempdir().unwrap();
    let database = home.path().join("p.db");
    let planner = Planner::start(&database, |_| {}).await;
    planner.add(&SEED).await.is(200, "");
    let away = lock(&database).await;
    // Both wait for the database: one in the writer's hands, the other in the queue.
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(planner.address).await.unwrap();
        stream.write_all(&request("GET", "/get_seed", &[("SEED_KEY", b"k")])).await.unwrap();
        planner.ask("GET", "/healthz", &[]).await;
        drop(stream);
    }
    away.close().await.unwrap();
    let granted = async {
        while planner.get(SEED.key).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Far sooner than a lease's time to live.
    tokio::time::timeout(PATIENCE, granted).await.unwrap();
    planner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_under_load_loses_nothing_that_was_answered() {
    let home = tempfile::tempdir().unwrap();
    let database = home.path().join("p.db");
    let planner = Planner::start(&database, |settings| settings.default_resource_points = 1_000).await;
    planner.add(&SEED).await.is(200, "");
    let address = planner.address;
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        workers.spawn(async move {
            let mut granted = Vec::new();
            // Until the planner is gone. What it began to answer it answers whole.
            while let Ok(answer) = raw(address, &request("GET", "/get_seed", &[("SEED_KEY", b"k")])).await {
                match answer.status {
                    200 => granted.push(answer),
                    404 | 503 => {}
                    _ => panic!("{answer:?}"),
                }
            }
            granted
        });
    }
    planner.until(|snapshot| snapshot["lease_count"].as_u64() > Some(50)).await;
    planner.stop().await;
    let mut granted = Vec::new();
    while let Some(worker) = tokio::time::timeout(PATIENCE, workers.join_next()).await.unwrap() {
        granted.extend(worker.unwrap());
    }
    let planner = Planner::start(&database, |settings| settings.default_resource_points = 1_000).await;
    assert!(granted.len() > 50);
    for lease in &granted {
        planner.put(lease).await.is(200, "");
    }
    planner.stop().await;
}

#[tokio::test]
async fn a_port_of_their_own_serves_probes_alone() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("p.db")));
    // Where no other test listens.
    settings.host = "127.93.41.7".into();
    settings.probe_port = Some(1224);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::default();
    let running = tokio::spawn(rfork_planner::run(settings.clone(), listener, stop.clone()));
    while raw(address, &request("GET", "/v2", &[])).await.unwrap().status == 503 {}
    let ask =
        async |path: &str| raw(([127, 93, 41, 7], 1224).into(), &request("GET", path, &[])).await.unwrap();
    for path in ["/healthz", "/readyz", "/"] {
        ask(path).await.is(200, r#"{"status":"ok"}"#);
    }
    assert!(ask("/metrics").await.body.contains(r#"rfork_planner_shared_places_most{pool="waiting"} 4096"#));
    for path in ["/get_seed", "/v2", "/debug/snapshot"] {
        ask(path).await.is(404, "only /healthz, /readyz and /metrics are served at this port");
    }
    // A second planner is told which port is taken.
    let other = Settings { database: DatabaseUrl::Sqlite(home.path().join("q.db")), ..settings };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = rfork_planner::run(other, listener, Stop::default()).await.unwrap_err().to_string();
    assert!(refused.contains("127.93.41.7 port 1224") && refused.contains("--probe-port"), "{refused}");
    stop.advance();
    stop.advance();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_planner_that_drains_is_not_ready_and_serves_on() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("p.db")));
    settings.bounds.drain = Duration::from_millis(500);
    settings.liveness_probe = false;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::default();
    let running = tokio::spawn(rfork_planner::run(settings, listener, stop.clone()));
    let ask = async |method: &str, path: &str, headers: &[(&str, &[u8])]| {
        raw(address, &request(method, path, headers)).await.unwrap()
    };
    // Held until its database is open.
    ask("GET", "/get_seed", &[("SEED_KEY", b"k")]).await.is(404, "no available seed");
    ask("GET", "/readyz", &[]).await.is(200, r#"{"status":"ok"}"#);

    let mut kept = TcpStream::connect(address).await.unwrap();
    stop.advance();
    ask("GET", "/readyz", &[])
        .await
        .is(503, "stopping: the planner is stopping; ask again, for another may serve by then");
    for (method, path) in [("HEAD", "/readyz"), ("OPTIONS", "/readyz"), ("OPTIONS", "/"), ("OPTIONS", "*")] {
        assert_eq!(ask(method, path, &[]).await.status, 503, "{method} {path}");
    }
    ask("GET", "/healthz", &[]).await.is(200, r#"{"status":"ok"}"#);
    ask("GET", "/get_seed", &[("SEED_KEY", b"k")]).await.is(404, "no available seed");
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: p\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, kept.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.contains("connection: close"), "it would send its next request here, too: {answer}");

    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_listener_of_both_families_shows_ipv4_clients_as_such() {
    let Ok(listener) = TcpListener::bind("[::]:0").await else { return };
    let home = tempfile::tempdir().unwrap();
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("p.db")));
    settings.liveness_probe = false;
    settings.trusted_proxies = vec!["::ffff:127.0.0.0/104".parse().unwrap()];
    let port = listener.local_addr().unwrap().port();
    let stop = Stop::default();
    let running = tokio::spawn(rfork_planner::run(settings, listener, stop.clone()));
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        raw(([127, 0, 0, 1], port).into(), &request(method, path, &headers)).await.unwrap()
    };
    while ask("GET", "/v2", &[]).await.status == 503 {}
    ask("POST", "/add_seed", &[&SEED.headers()[..], &[("SEED_REFCNT", "0")]].concat()).await.is(200, "");
    for (header, told, shown) in [
        ("X-Nothing", "x", "127.0.0.1"),
        ("X-Forwarded-For", "::ffff:10.2.7.7", "10.2.7.7"),
        ("X-Forwarded-For", "6.6.6.6, 10.2.7.7:4711, ::ffff:127.0.0.9", "10.2.7.7"),
        ("Forwarded", "for=\"[2001:DB8::7]:4711\";proto=http", "2001:db8::7"),
    ] {
        let granted = ask("GET", "/get_seed", &[("SEED_KEY", SEED.key), (header, told)]).await;
        ask("POST", "/put_seed", &granted.lease()).await.is(200, "");
        let ended = ask("GET", "/v2/leases/ended?limit=1", &[]).await;
        let ended: serde_json::Value = serde_json::from_str(&ended.body).unwrap();
        assert_eq!(ended["leases"][0]["requester"], shown, "{header}: {told}");
    }
    stop.advance();
    stop.advance();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn checkers_may_ask_in_any_usual_form() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    for path in ["/healthz", "/readyz", "/", "/metrics"] {
        let got = planner.ask("GET", path, &[]).await;
        assert!(got.status == 200 && !got.body.is_empty(), "{path}");
        let head = planner.ask("HEAD", path, &[]).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("CONTENT-TYPE"), got.header("CONTENT-TYPE"), "{path}");
        let options = planner.ask("OPTIONS", path, &[]).await;
        assert_eq!((options.status, options.body.as_str()), (200, ""), "{path}");
        assert_eq!(options.header("ALLOW"), Some("GET, HEAD, OPTIONS"), "{path}");
        assert_eq!(planner.ask("POST", path, &[]).await.status, 405, "{path}");
        // HTTP/1.0 without Host is what haproxy sends, and a whole URL what a proxy may.
        for request in [
            format!("OPTIONS {path} HTTP/1.0\r\n\r\n"),
            format!("GET {path} HTTP/1.0\r\n\r\n"),
            format!("HEAD {path} HTTP/1.0\r\n\r\n"),
            format!("GET {path}?verbose HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            format!(
                "GET http://planner:1223{path} HTTP/1.1\r\nHost: planner:1223\r\nConnection: close\r\n\r\n"
            ),
        ] {
            assert_eq!(planner.raw(request.as_bytes()).await.status, 200, "{request}");
        }
    }
    assert_eq!(planner.ask("OPTIONS", "*", &[]).await.status, 200);
    planner.stop().await;
}

#[tokio::test]
async fn connections_that_are_kept_open_shut_nobody_out() {
    const PLACES: usize = 8;
    let home = tempfile::tempdir().unwrap();
    let planner =
        Planner::start(&home.path().join("p.db"), |settings| settings.bounds.connections = PLACES).await;
    let mut kept = Vec::new();
    for _ in 0..PLACES {
        let mut stream = TcpStream::connect(planner.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: p\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(br#"{"status":"ok"}"#) {
            answer.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        kept.push(stream);
    }
    // Far sooner than idle connections are closed for being so.
    planner.ask("GET", "/healthz", &[]).await.is(200, r#"{"status":"ok"}"#);
    planner.add(&SEED).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    planner.stop().await;
}

/// What is told while the database is not open: not what it says, nor where it is.
const UNOPENED: &str = "the planner is starting and its database is not open yet; ask again in a second";

#[tokio::test]
async fn a_planner_lives_and_is_not_ready_while_its_database_is_opened() {
    // A database that takes connections and says nothing.
    let database = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u@{}/d", database.local_addr().unwrap());
    let mut settings = Settings::of(url.parse().unwrap());
    settings.connect.patience = Duration::from_secs(600);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::default();
    let running = tokio::spawn(rfork_planner::run(settings, listener, stop.clone()));
    let ask = async |method: &str, path: &str| {
        raw(address, &request(method, path, &[("SEED_KEY", b"k")])).await.unwrap()
    };
    ask("GET", "/healthz").await.is(200, r#"{"status":"ok"}"#);
    ask("GET", "/readyz").await.is(503, &format!("store-unavailable: {UNOPENED}"));
    // Held for a moment, all at once.
    let (get, put, add, service, acquire) = tokio::join!(
        ask("GET", "/get_seed"),
        ask("POST", "/put_seed"),
        ask("POST", "//add_seed"),
        ask("GET", "/v2"),
        ask("POST", "/v2/leases"),
    );
    assert_eq!(ask("HEAD", "/get_seed").await.status, 405);
    for answer in [&get, &put, &add, &service, &acquire] {
        is_unavailable(answer);
    }
    let problem = Problem::from_json(acquire.body.as_bytes()).unwrap();
    assert_eq!((problem.code.as_str(), problem.detail.as_str()), ("store-unavailable", UNOPENED));
    // One that is kept open would go on meeting what is served now.
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: p\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, kept.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    stop.advance();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    drop(database);
}
