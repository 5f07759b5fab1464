//! Requests that wait for a seed, and seeds that are asked whether they live.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

#[path = "../../tests/src/cluster.rs"]
mod cluster;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cluster::Cluster;
use rfork_planner::config::{DatabaseUrl, Settings};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use support::{PATIENCE, Planner, Seed, raw, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SEED: Seed<'_> = Seed { key: "k", ip: "10.0.0.7" };
const SEEDS: usize = 64;
const WORKERS: usize = 1_024;

/// Nothing but what is under test may serve who waits.
fn without_sweeps(settings: &mut Settings) {
    settings.heartbeat_sweep = Duration::from_secs(3_600);
    settings.liveness_probe = false;
}

async fn acquire(planner: &Planner, wait_ms: u64, idempotency_key: Option<&str>) -> (u16, Value) {
    let body = json!({"seed_key": "k", "wait_ms": wait_ms}).to_string();
    let length = body.len().to_string();
    let mut headers: Vec<(&str, &[u8])> =
        vec![("Content-Type", b"application/json"), ("Content-Length", length.as_bytes())];
    headers.extend(idempotency_key.map(|key| ("Idempotency-Key", key.as_bytes())));
    let request = [request("POST", "/v2/leases", &headers), body.into_bytes()].concat();
    let answer = raw(planner.address, &request).await.unwrap();
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

async fn ask(planner: &Planner, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let answer = planner.send(method, path, body).await;
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

async fn release(planner: &Planner, granted: &Value) {
    let body = json!({"lease_id": granted["lease_id"], "seed": granted["seed"], "outcome": "ok"});
    assert_eq!(ask(planner, "POST", "/v2/leases/release", &body).await.0, 200, "{granted}");
}

/// Requests of a SQLite database that were served, in the order in which they came: when, and which.
async fn served(database: &DatabaseUrl) -> Vec<(i64, i64)> {
    const SERVED: &str = "SELECT changed_ms, id FROM requests WHERE waits_until_ms IS NULL ORDER BY id";
    match database {
        DatabaseUrl::Sqlite(path) => {
            let options = SqliteConnectOptions::new().filename(path).read_only(true);
            let mut connection = options.connect().await.unwrap();
            sqlx::query_as(SERVED).fetch_all(&mut connection).await.unwrap()
        }
        DatabaseUrl::Postgres(_) => panic!("by URL"),
    }
}

/// Counts who is served in a Postgres database, in the order of the writes. When it was would not tell: a planner that
/// serves the second because another has just served the first may have looked at the time before that one did.
async fn count_the_served(url: &str) -> sqlx::PgConnection {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let counting = "CREATE TABLE served (turn BIGSERIAL, id BIGINT);
        CREATE FUNCTION count_served() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO served (id) VALUES (NEW.id); RETURN NULL; END';
        CREATE TRIGGER served AFTER UPDATE ON requests FOR EACH ROW
            WHEN (OLD.waits_until_ms IS NOT NULL AND NEW.waits_until_ms IS NULL) EXECUTE FUNCTION count_served()";
    sqlx::raw_sql(counting).execute(&mut connection).await.unwrap();
    connection
}

async fn waiting(planner: &Planner) -> u64 {
    let (_, keys) = ask(planner, "GET", "/v2/keys", &Value::Null).await;
    keys["keys"][0]["waiting"].as_u64().unwrap_or_default()
}

/// All ask at once; each holds its seed alone, for a moment, and the next has it.
async fn a_thousand_workers(planners: Vec<Arc<Planner>>) {
    let seeds: Vec<Value> = (0..SEEDS).map(|n| json!(format!("10.0.{n}.1:8000:0"))).collect();
    for seed in &seeds {
        let (status, _) =
            ask(&planners[0], "POST", "/v2/seeds", &json!({"seed": seed, "seed_key": "k"})).await;
        assert_eq!(status, 200);
    }
    // All seeds are busy until all workers wait, so that what is served shows the order of the queue.
    let mut first = Vec::new();
    for _ in 0..SEEDS {
        let (status, granted) = acquire(&planners[0], 0, None).await;
        assert_eq!(status, 200, "{granted}");
        first.push(granted);
    }
    let holders: Arc<Mutex<HashSet<String>>> = Arc::default();
    let leases: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let mut workers = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for number in 0..WORKERS {
        let planner = planners[number % planners.len()].clone();
        let (holders, leases) = (holders.clone(), leases.clone());
        workers.spawn(async move {
            let (status, granted) = tokio::time::timeout(4 * PATIENCE, acquire_long(&planner)).await.unwrap();
            assert_eq!(status, 200, "worker {number}: {granted}");
            let seed = granted["seed"].as_str().unwrap().to_owned();
            *leases.lock().unwrap().entry(granted["lease_id"].as_str().unwrap().to_owned()).or_default() += 1;
            assert!(holders.lock().unwrap().insert(seed.clone()), "{seed} is read by two");
            tokio::task::yield_now().await;
            assert!(holders.lock().unwrap().remove(&seed));
            release(&planner, &granted).await;
        });
    }
    tokio::time::timeout(PATIENCE, async {
        while waiting(&planners[0]).await < WORKERS as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let queued = begun.elapsed();
    for granted in &first {
        release(&planners[0], granted).await;
    }
    while let Some(worker) = tokio::time::timeout(4 * PATIENCE, workers.join_next()).await.unwrap() {
        worker.unwrap();
    }
    println!("{WORKERS} workers queued in {queued:?} and were all served within {:?}", begun.elapsed());
    let leases = Arc::into_inner(leases).unwrap().into_inner().unwrap();
    assert_eq!(
        (leases.len(), leases.values().sum::<usize>()),
        (WORKERS, WORKERS),
        "each one lease, none twice"
    );
    let snapshot = planners[0].snapshot().await;
    assert_eq!((&snapshot["lease_count"], waiting(&planners[0]).await), (&json!(0), 0));
}

/// [`acquire`] without its own patience, which is that of a single request.
async fn acquire_long(planner: &Planner) -> (u16, Value) {
    // As long as may be: the first must still wait when the last begins to, however slow the machine is.
    let body = json!({"seed_key": "k", "wait_ms": 300_000}).to_string();
    let length = body.len().to_string();
    let headers: [(&str, &[u8]); 2] =
        [("Content-Type", b"application/json"), ("Content-Length", length.as_bytes())];
    let mut stream = TcpStream::connect(planner.address).await.unwrap();
    let request = [request("POST", "/v2/leases", &headers), body.into_bytes()].concat();
    stream.write_all(&request).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn in_order(served: &[(i64, i64)]) {
    assert_eq!(served.len(), WORKERS);
    let early = served.windows(2).find(|pair| pair[1].0 < pair[0].0);
    assert_eq!(early, None, "first come, first served; these (when, who) were not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workers_wait_for_sixty_four_seeds_and_each_has_its_turn() {
    let home = tempfile::tempdir().unwrap();
    let database = DatabaseUrl::Sqlite(home.path().join("p.db"));
    let planner = Arc::new(Planner::start_on(database.clone(), without_sweeps).await);
    a_thousand_workers(vec![planner.clone()]).await;
    in_order(&served(&database).await);
    Arc::into_inner(planner).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workers_wait_at_three_planners_and_each_has_its_turn() {
    let url = Cluster::shared().database();
    let mut planners = Vec::new();
    for _ in 0..3 {
        planners.push(Arc::new(Planner::start_on(url.parse().unwrap(), without_sweeps).await));
    }
    let mut counted = count_the_served(&url).await;
    a_thousand_workers(planners.clone()).await;
    let served = sqlx::query_as("SELECT turn, id FROM served ORDER BY id").fetch_all(&mut counted).await;
    in_order(&served.unwrap());
    for planner in planners {
        Arc::into_inner(planner).unwrap().stop().await;
    }
}

/// One planner over a new file.
async fn planner(change: impl FnOnce(&mut Settings)) -> (tempfile::TempDir, Planner) {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), change).await;
    (home, planner)
}

#[tokio::test]
async fn a_lease_that_ends_by_itself_is_waited_for_without_polling() {
    let (_home, planner) = planner(|settings| {
        without_sweeps(settings);
        settings.lease_ttl = Duration::from_secs(1);
    })
    .await;
    planner.add(&SEED).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    let (status, granted) = acquire(&planner, 600_000, None).await;
    assert_eq!(status, 200, "{granted}");
    // It is due when the lease ends, and not when its own time does.
    let waited_ms = granted["waited_ms"].as_u64().unwrap();
    assert!(waited_ms > 500 && waited_ms < 300_000, "{granted}");
    planner.stop().await;
}

#[tokio::test]
async fn those_who_wait_leave_the_room_of_those_who_ask_and_have_a_bound_of_their_own() {
    let (_home, planner) = planner(|settings| {
        without_sweeps(settings);
        settings.bounds.requests = 1;
        settings.bounds.waiting = 2;
    })
    .await;
    planner.add(&SEED).await.is(200, "");
    let first = planner.get(SEED.key).await;
    let until_waiting = async |count: u64| {
        while waiting(&planner).await != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let refused = async {
        tokio::time::timeout(PATIENCE, until_waiting(2)).await.unwrap();
        let refused = acquire(&planner, 60_000, None).await;
        assert_eq!((refused.0, &refused.1["code"]), (503, &json!("overloaded")));
        tokio::time::timeout(PATIENCE, until_waiting(2)).await.unwrap();
        planner.get(SEED.key).await.is(404, "no available seed");
        planner.put(&first).await.is(200, "");
    };
    let waits = async || {
        let (status, granted) = acquire(&planner, 60_000, None).await;
        assert_eq!(status, 200, "{granted}");
        release(&planner, &granted).await;
    };
    let second = async {
        tokio::time::timeout(PATIENCE, until_waiting(1)).await.unwrap();
        waits().await;
    };
    tokio::join!(waits(), second, refused);
    assert_eq!(planner.snapshot().await["lease_count"], 0);
    planner.stop().await;
}

#[tokio::test]
async fn a_wait_in_vain_ends_with_its_reason() {
    let (_home, planner) = planner(without_sweeps).await;
    let (status, problem) = acquire(&planner, 50, None).await;
    assert_eq!((status, &problem["code"]), (404, &json!("unknown-key")));
    planner.add(&SEED).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    let (status, problem) = acquire(&planner, 50, None).await;
    assert_eq!((status, &problem["code"]), (404, &json!("all-busy")));
    assert_eq!(waiting(&planner).await, 0);
    planner.stop().await;
}

#[tokio::test]
async fn a_worker_of_api_v1_is_held_until_a_seed_is_free() {
    let (_home, planner) = planner(|settings| {
        without_sweeps(settings);
        settings.v1_hold = Duration::from_secs(8);
    })
    .await;
    planner.add(&SEED).await.is(200, "");
    let first = planner.get(SEED.key).await;
    first.is(200, "");
    let (second, ()) = tokio::join!(planner.get(SEED.key), async {
        while waiting(&planner).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        planner.put(&first).await.is(200, "");
    });
    second.is(200, "");
    planner.stop().await;
}

#[tokio::test]
async fn a_held_request_is_refused_in_the_words_that_clients_know() {
    let (_home, planner) = planner(|settings| {
        without_sweeps(settings);
        settings.v1_hold = Duration::from_millis(100);
    })
    .await;
    planner.get(SEED.key).await.is(404, "no available seed");
    planner.stop().await;
}

#[tokio::test]
async fn who_goes_away_leaves_its_turn_to_the_next() {
    let (_home, planner) = planner(without_sweeps).await;
    planner.add(&SEED).await.is(200, "");
    let first = planner.get(SEED.key).await;
    let body = json!({"seed_key": "k", "wait_ms": 60_000}).to_string();
    let length = body.len().to_string();
    let headers: [(&str, &[u8]); 2] =
        [("Content-Type", b"application/json"), ("Content-Length", length.as_bytes())];
    let mut gone = TcpStream::connect(planner.address).await.unwrap();
    gone.write_all(&[request("POST", "/v2/leases", &headers), body.into_bytes()].concat()).await.unwrap();
    let until_waiting = async |count: u64| {
        while waiting(&planner).await != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until_waiting(1)).await.unwrap();
    let ((status, granted), ()) = tokio::join!(acquire(&planner, 20_000, None), async {
        tokio::time::timeout(PATIENCE, until_waiting(2)).await.unwrap();
        drop(gone);
        tokio::time::timeout(PATIENCE, until_waiting(1)).await.unwrap();
        planner.put(&first).await.is(200, "");
    });
    assert_eq!(status, 200, "{granted}");
    assert_eq!(planner.snapshot().await["lease_count"], 1);
    planner.stop().await;
}

#[tokio::test]
async fn a_repeated_request_has_the_same_lease_while_that_lives() {
    let (_home, planner) = planner(without_sweeps).await;
    planner.add(&SEED).await.is(200, "");
    let key = Some("7f1c9a52-secret-of-one-request");
    let (_, first) = acquire(&planner, 0, key).await;
    let (status, again) = acquire(&planner, 5_000, key).await;
    assert_eq!((status, &again["lease_id"], &again["seed"]), (200, &first["lease_id"], &first["seed"]));
    assert_eq!(planner.snapshot().await["lease_count"], 1);
    let other = json!({"seed_key": "another"}).to_string();
    let length = other.len().to_string();
    let headers: [(&str, &[u8]); 3] = [
        ("Content-Type", b"application/json"),
        ("Content-Length", length.as_bytes()),
        ("Idempotency-Key", b"7f1c9a52-secret-of-one-request"),
    ];
    let answer = planner.raw(&[request("POST", "/v2/leases", &headers), other.into_bytes()].concat()).await;
    assert_eq!(answer.status, 422, "{answer:?}");
    release(&planner, &first).await;
    let (status, problem) = acquire(&planner, 0, key).await;
    assert_eq!((status, &problem["code"]), (409, &json!("lease-ended")));
    planner.stop().await;
}

#[tokio::test]
async fn a_planner_that_stops_sends_those_who_wait_to_another() {
    let (_home, planner) = planner(without_sweeps).await;
    let address = planner.address;
    let body = json!({"seed_key": "k", "wait_ms": 60_000}).to_string();
    let length = body.len().to_string();
    let ask = |key: Option<&'static str>| {
        let mut headers: Vec<(&str, &[u8])> =
            vec![("Content-Type", b"application/json"), ("Content-Length", length.as_bytes())];
        headers.extend(key.map(|key| ("Idempotency-Key", key.as_bytes())));
        let bytes = [request("POST", "/v2/leases", &headers), body.clone().into_bytes()].concat();
        tokio::spawn(async move { raw(address, &bytes).await.unwrap() })
    };
    let asking = [ask(None), ask(Some("one-that-is-repeated"))];
    // A key that nobody has is in no list: its waiters are seen by the planner's own count alone.
    tokio::time::timeout(PATIENCE, async {
        while !planner.ask("GET", "/metrics", &[]).await.body.contains("change=\"queued\"} 2") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    planner.stop().await;
    for asking in asking {
        let answer = asking.await.unwrap();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains("\"stopping\""), "{answer:?}");
    }
}

#[tokio::test]
async fn a_planner_that_listens_elsewhere_asks_nobody_on_loopback() {
    for (listens, asks) in [("127.0.0.1:0", true), ("0.0.0.0:0", false)] {
        let home = tempfile::tempdir().unwrap();
        let database = DatabaseUrl::Sqlite(home.path().join("p.db"));
        let planner = Planner::start_at(listens, database, |settings| {
            settings.heartbeat_interval = Duration::ZERO;
        })
        .await;
        // Asked of the system at once, whether or not the runtime has heard of a connection.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let seed = format!("127.0.0.1:{}:0", listener.local_addr().unwrap().port());
        let (status, _) = ask(&planner, "POST", "/v2/seeds", &json!({"seed": seed, "seed_key": "k"})).await;
        assert_eq!(status, 200);
        // Until it is doubted.
        tokio::time::timeout(PATIENCE, async {
            loop {
                let shown = ask(&planner, "GET", "/v2/seeds", &Value::Null).await.1;
                if shown["seeds"][0]["heartbeat_age_ms"].as_i64().unwrap() > 3_000 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        // It is asked before the answer, or not at all.
        planner.get("k").await.is(200, "");
        assert_eq!(listener.accept().is_ok(), asks, "{listens}");
        planner.stop().await;
    }
}

#[tokio::test]
async fn a_quiet_seed_is_asked_whether_it_lives_before_it_is_granted() {
    let (_home, planner) = planner(|settings| {
        settings.heartbeat_interval = Duration::ZERO;
        settings.lease_ttl = Duration::from_secs(30);
    })
    .await;
    // One that answers, one that nobody ever heard of.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let answering = tokio::spawn({
        let asked = asked.clone();
        async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                asked.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    for (seed, key) in [(format!("127.0.0.1:{port}:0"), "k"), ("127.0.0.1:9:0".to_owned(), "mute")] {
        let (status, _) = ask(&planner, "POST", "/v2/seeds", &json!({"seed": seed, "seed_key": key})).await;
        assert_eq!(status, 200);
    }
    let cycle = async || {
        let granted = planner.get("k").await;
        if granted.status == 200 {
            planner.put(&granted).await.is(200, "");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        granted.status
    };
    tokio::time::timeout(PATIENCE, async {
        while asked.load(Ordering::SeqCst) == 0 {
            assert_eq!(cycle().await, 200);
        }
    })
    .await
    .unwrap();
    assert_eq!(cycle().await, 200, "it lives");
    answering.abort();
    let _ = answering.await;
    tokio::time::timeout(PATIENCE, async { while cycle().await == 200 {} }).await.unwrap();
    let (status, problem) = acquire(&planner, 0, None).await;
    assert_eq!((status, &problem["code"]), (404, &json!("all-suspect")));
    assert_eq!(planner.snapshot().await["lease_count"], 0, "no lease on the dead seed is left");
    let ended = ask(&planner, "GET", "/v2/leases/ended?limit=1", &Value::Null).await.1;
    let how = ["ended", "outcome", "reason"].map(|name| ended["leases"][0][name].clone());
    assert_eq!(how, ["given_back", "failed", "no-answer"].map(Value::from), "{ended}");
    let events = ask(&planner, "GET", "/v2/events?kind=suspect", &Value::Null).await.1;
    let detail = events["events"][0]["detail"].as_str().unwrap_or_default();
    assert!(detail.starts_with("failure 1,") && detail.ends_with(": no-answer"), "{events}");
    planner.get("mute").await.is(200, "");
    planner.stop().await;
}
