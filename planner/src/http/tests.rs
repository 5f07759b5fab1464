//! The bounds, around routes made to strain them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::bounds::Lanes;
use super::server::{self, Served};
use crate::config::{Bounds, DatabaseUrl, Settings};
use crate::metrics::Metrics;
use crate::shares::Pools;
use crate::shutdown::Stop;

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Short for a test, and long enough for what should not be cut off.
const SHORT: Duration = Duration::from_millis(300);

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(bounds: Bounds, routes: impl FnOnce(Lanes) -> Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pools = Pools::new(&bounds, &Metrics::new().unwrap());
        let (_, opened) = watch::channel(Some(routes(Lanes::new(&bounds, &pools))));
        let stop = CancellationToken::new();
        let stopping = Stop::from(stop.clone());
        let running = tokio::spawn(async move {
            let (opening, proxies) = (Router::new(), Arc::default());
            let served = Served { opening, opened, tls: None, proxies, bounds: &bounds, stop: &stopping };
            server::serve(listener, pools.connections.clone(), served).await;
        });
        Self { address, stop, running }
    }

    async fn stop(self) {
        self.stop.cancel();
        soon(self.running).await.unwrap();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends the bytes, and reads until the connection ends.
    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        // A server that refuses early may close before it has read all.
        let _ = stream.write_all(request.as_bytes()).await;
        rest(&mut stream).await
    }
}

fn bounds() -> Bounds {
    Settings::of(DatabaseUrl::Sqlite("nowhere".into())).bounds
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// What comes until the connection ends, in whatever way.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n{more}\r\n")
}

fn is_busy(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n")
}

#[tokio::test]
async fn a_connection_that_is_silent_slow_with_its_head_or_idle_is_closed() {
    let bounds = Bounds { idle: SHORT, ..bounds() };
    let server =
        Server::start(bounds, |lanes| lanes.rest.hold(Router::new().route("/", get(async || "hello")))).await;
    let (silent, slow, idle) = tokio::join!(
        async { rest(&mut server.connect().await).await },
        async {
            let mut stream = server.connect().await;
            // A byte now and then does not keep it open.
            let mut byte = "GET / HTTP/1.1\r\nX: ".bytes().chain(std::iter::repeat(b'x'));
            soon(async {
                while stream.write_all(&[byte.next().unwrap()]).await.is_ok() {
                    tokio::time::sleep(SHORT / 10).await;
                }
            })
            .await;
            rest(&mut stream).await
        },
        async {
            let mut stream = server.connect().await;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: p\r\n\r\n").await.unwrap();
            rest(&mut stream).await
        },
    );
    assert_eq!(silent, "");
    assert!(!slow.contains("200 OK"), "{slow}");
    assert!(idle.starts_with("HTTP/1.1 200 OK") && idle.ends_with("hello"), "{idle}");
    server.stop().await;
}

#[tokio::test]
async fn a_handler_that_hangs_and_a_body_that_does_not_come_are_given_up() {
    let dropped = Arc::new(Semaphore::new(0));
    let bounds = Bounds { deadline: SHORT, ..bounds() };
    let hanging = dropped.clone();
    let server = Server::start(bounds, |lanes| {
        let routes = Router::new()
            .route(
                "/hang",
                get(async move || {
                    struct Dropped(Arc<Semaphore>);
                    impl Drop for Dropped {
                        fn drop(&mut self) {
                            self.0.add_permits(1);
                        }
                    }
                    let _dropped = Dropped(hanging);
                    std::future::pending::<()>().await;
                }),
            )
            .route("/body", post(async |body: Bytes| body.len().to_string()));
        lanes.rest.clone().hold(routes).merge(
            // A route that waits on purpose has a time of its own.
            lanes.rest.with_deadline(4 * SHORT).hold(Router::new().route(
                "/wait",
                get(async || {
                    tokio::time::sleep(2 * SHORT).await;
                    "waited"
                }),
            )),
        )
    })
    .await;
    let hangs = server.ask(&head("GET", "/hang", "")).await;
    assert!(is_busy(&hangs) && hangs.contains("no answer within 300ms"), "{hangs}");
    soon(dropped.acquire()).await.unwrap().forget();

    let body = server.ask(&(head("POST", "/body", "Content-Length: 5\r\n") + "hel")).await;
    assert!(is_busy(&body), "{body}");
    let body = server.ask(&(head("POST", "/body", "Content-Length: 5\r\n") + "hello")).await;
    assert!(body.ends_with("\r\n\r\n5"), "{body}");
    let waited = server.ask(&head("GET", "/wait", "")).await;
    assert!(waited.ends_with("waited"), "{waited}");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_left() {
    // More than the sockets' buffers take.
    const ANSWER_BYTES: usize = 64 << 20;
    let bounds = Bounds { idle: SHORT, connections: 1, ..bounds() };
    let server = Server::start(bounds, |lanes| {
        let routes = Router::new().route("/much", get(async || vec![b'x'; ANSWER_BYTES]));
        lanes.rest.hold(routes.route("/", get(async || "hello")))
    })
    .await;
    let mut greedy = server.connect().await;
    greedy.write_all(head("GET", "/much", "").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    soon(greedy.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    // The one place is free again while the client is still there.
    let answer = server.ask(&head("GET", "/", "")).await;
    assert!(answer.ends_with("hello"), "{answer}");
    drop(greedy);
    server.stop().await;
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_in_bytes() {
    const ANSWER_BYTES: usize = 48 << 20;
    let server = Server::start(Bounds { idle: 2 * PATIENCE, ..bounds() }, |lanes| {
        let routes = Router::new().route("/much", get(async || vec![b'x'; ANSWER_BYTES]));
        lanes.rest.hold(routes.route("/", get(async || "hello")))
    })
    .await;
    let mut first = [0; 12];
    let mut greedy = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(head("GET", "/much", "").as_bytes()).await.unwrap();
        soon(stream.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        greedy.push(stream);
    }
    assert!(is_busy(&server.ask(&head("GET", "/much", "")).await), "a client has three quarters");
    assert!(server.ask(&head("GET", "/", "")).await.ends_with("hello"));
    // Who takes its answer makes room.
    assert!(rest(&mut greedy[0]).await.len() > ANSWER_BYTES);
    let again = server.ask(&head("GET", "/much", "")).await;
    assert!(again.len() > ANSWER_BYTES && again.ends_with('x'), "{} bytes", again.len());
    server.stop().await;
}

#[tokio::test]
async fn more_requests_than_may_run_are_refused_at_once_and_no_lane_fills_another() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let bounds = Bounds { requests: 2, ..bounds() };
    let (arrive, leave) = (entered.clone(), go.clone());
    let server = Server::start(bounds, |lanes| {
        let held = async move || {
            arrive.add_permits(1);
            leave.notified().await;
            "done"
        };
        lanes
            .acquire
            .hold(Router::new().route("/get", get(held)))
            .merge(lanes.rest.hold(Router::new().route("/other", get(async || "other"))))
            .merge(lanes.probes.hold(Router::new().route("/probe", get(async || "probe"))))
    })
    .await;
    let get = head("GET", "/get", "");
    let mut gone = server.connect().await;
    gone.write_all(get.as_bytes()).await.unwrap();
    let finish = async {
        soon(entered.acquire_many(2)).await.unwrap().forget();
        // Those that run do not end before it is answered.
        let refused = server.ask(&get).await;
        assert!(is_busy(&refused) && refused.contains("too many requests"), "{refused}");
        for path in ["/other", "/probe"] {
            let answer = server.ask(&head("GET", path, "")).await;
            assert!(answer.ends_with(&path[1..]), "{answer}");
        }
        // A client that goes away leaves its place.
        drop(gone);
        let mut again = server.connect().await;
        again.write_all(get.as_bytes()).await.unwrap();
        while tokio::time::timeout(SHORT, entered.acquire()).await.is_err() {
            assert!(is_busy(&rest(&mut again).await));
            again = server.connect().await;
            again.write_all(get.as_bytes()).await.unwrap();
        }
        go.notify_waiters();
        rest(&mut again).await
    };
    let (first, again) = tokio::join!(server.ask(&get), soon(finish));
    assert!(first.ends_with("done") && again.ends_with("done"), "{first} {again}");
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_most_take_the_place_of_the_longest_idle_or_wait_for_one() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let bounds = Bounds { connections: 2, ..bounds() };
    let (arrive, leave) = (entered.clone(), go.clone());
    let server = Server::start(bounds, |lanes| {
        let held = async move || {
            arrive.add_permits(1);
            leave.notified().await;
            "done"
        };
        lanes.rest.hold(Router::new().route("/held", get(held)).route("/hello", get(async || "hello")))
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: p\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            answer.push(soon(stream.read_u8()).await.unwrap());
        }
        idle.push(stream);
    }
    let mut runs = server.connect().await;
    runs.write_all(head("GET", "/held", "").as_bytes()).await.unwrap();
    soon(entered.acquire()).await.unwrap().forget();
    assert_eq!(rest(&mut idle[0]).await, "", "it was idle for longest");
    let mut also_runs = server.connect().await;
    also_runs.write_all(head("GET", "/held", "").as_bytes()).await.unwrap();
    soon(entered.acquire()).await.unwrap().forget();
    assert_eq!(rest(&mut idle[1]).await, "");

    // Of two that are not idle none makes room.
    let mut waits = server.connect().await;
    waits.write_all(head("GET", "/hello", "").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let waiting = tokio::time::timeout(SHORT, waits.read_exact(&mut answer)).await;
    assert!(waiting.is_err(), "it is served beside the others");
    go.notify_waiters();
    for done in [&mut runs, &mut also_runs] {
        assert!(rest(done).await.ends_with("done"));
    }
    assert!(rest(&mut waits).await.ends_with("hello"));
    server.stop().await;
}

/// Routes of which one answers when it is let go, beside one that answers at once.
fn held_and_others(entered: &Arc<Semaphore>, go: &Arc<Notify>) -> Router {
    let (arrive, leave) = (entered.clone(), go.clone());
    let held = async move || {
        arrive.add_permits(1);
        leave.notified().await;
        "done"
    };
    Router::new().route("/held", get(held)).route("/hello", get(async || "hello"))
}

#[tokio::test]
async fn connections_that_say_nothing_make_room() {
    let bounds = Bounds { connections: 4, idle: 2 * PATIENCE, ..bounds() };
    let server = Server::start(bounds, |lanes| {
        let routes = Router::new().route("/hello", get(async || "hello"));
        lanes
            .rest
            .hold(routes)
            .merge(lanes.probes.hold(Router::new().route("/healthz", get(async || "lives"))))
    })
    .await;
    let mut silent = Vec::new();
    // More than have a place, or are let wait for one.
    for _ in 0..200 {
        let mut stream = server.connect().await;
        if silent.len() % 2 == 0 {
            stream.write_all(b"GET / HT").await.unwrap();
        }
        silent.push(stream);
    }
    for (path, body) in [("/hello", "hello"), ("/healthz", "lives")] {
        let answer = soon(server.ask(&head("GET", path, ""))).await;
        assert!(answer.ends_with(body), "{answer}");
    }
    assert_eq!(rest(&mut silent[0]).await, "", "the first goes first");
    server.stop().await;
}

#[tokio::test]
async fn probes_are_answered_while_requests_have_all_connections_and_others_wait() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let bounds = Bounds { connections: 1, deadline: PATIENCE, ..bounds() };
    let server = Server::start(bounds, |lanes| {
        let probes = lanes.probes.hold(Router::new().route("/readyz", get(async || "ready")));
        lanes.rest.hold(held_and_others(&entered, &go)).merge(probes)
    })
    .await;
    let mut held = server.connect().await;
    held.write_all(head("GET", "/held", "").as_bytes()).await.unwrap();
    soon(entered.acquire()).await.unwrap().forget();
    let mut waiting = Vec::new();
    for _ in 0..server::HALL {
        let mut stream = server.connect().await;
        stream.write_all(head("GET", "/hello", "").as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let answer = soon(server.ask(&head("GET", "/readyz", ""))).await;
    assert!(answer.ends_with("ready"), "{answer}");
    assert!(is_busy(&rest(&mut waiting[0]).await), "who waited for longest makes room for the probe");
    go.notify_waiters();
    assert!(rest(&mut held).await.ends_with("done"));
    for waiting in &mut waiting[1..] {
        assert!(rest(waiting).await.ends_with("hello"));
    }
    server.stop().await;
}

#[tokio::test]
async fn whoever_had_to_wait_for_a_place_leaves_the_hall_with_it() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let bounds = Bounds { connections: 2 * server::HALL, deadline: PATIENCE, ..bounds() };
    // One address has three quarters of them.
    let places = 2 * server::HALL - server::HALL / 2;
    let server = Server::start(bounds, |lanes| {
        let probes = lanes.probes.hold(Router::new().route("/readyz", get(async || "ready")));
        lanes.rest.hold(held_and_others(&entered, &go)).merge(probes)
    })
    .await;
    let come = async |number: usize| {
        let mut streams = Vec::new();
        for _ in 0..number {
            let mut stream = server.connect().await;
            stream.write_all(head("GET", "/held", "").as_bytes()).await.unwrap();
            streams.push(stream);
        }
        streams
    };
    let run = async |number: usize| {
        soon(entered.acquire_many(u32::try_from(number).unwrap())).await.unwrap().forget();
    };
    let first = come(places).await;
    run(places).await;
    let mut waited = come(server::HALL).await;
    go.notify_waiters();
    for mut stream in first {
        assert!(rest(&mut stream).await.ends_with("done"));
    }
    // All of these came through the hall, and have requests.
    run(server::HALL).await;
    waited.extend(come(places - server::HALL).await);
    run(places - server::HALL).await;
    let answer = soon(server.ask(&head("GET", "/readyz", ""))).await;
    assert!(answer.ends_with("ready"), "{answer}");
    go.notify_waiters();
    for stream in &mut waited {
        assert!(rest(stream).await.ends_with("done"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_on_its_way_takes_no_room_of_requests() {
    let bounds = Bounds { requests: 1, ..bounds() };
    let server = Server::start(bounds, |lanes| {
        lanes.rest.hold(Router::new().route("/", post(async |body: Bytes| body.len().to_string())))
    })
    .await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = server.connect().await;
        stream.write_all((head("POST", "/", "Content-Length: 5\r\n") + "hel").as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let answer = server.ask(&(head("POST", "/", "Content-Length: 5\r\n") + "hello")).await;
    assert!(answer.ends_with("\r\n\r\n5"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn urls_heads_and_bodies_have_a_length() {
    let server = Server::start(bounds(), |lanes| {
        let routes = Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
        lanes.rest.hold(routes)
    })
    .await;
    let post = |path: &str, body: usize| {
        head("POST", path, &format!("Content-Length: {body}\r\n")) + &"b".repeat(body)
    };
    for (request, status) in [
        (post(&format!("/?{}", "q".repeat(32 * 1024 - 2)), 0), "200"),
        (post(&format!("/?{}", "q".repeat(32 * 1024 - 1)), 0), "414"),
        (post("/", 1 << 20), "200"),
        (post("/", (1 << 20) + 1), "413"),
        (head("POST", "/", &format!("Filler: {}\r\n", "f".repeat(64 * 1024))), "431"),
        (head("POST", "/", &"Filler: f\r\n".repeat(101)), "431"),
    ] {
        let answer = server.ask(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stop_lets_what_runs_finish_and_gives_up_what_does_not() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let bounds = Bounds { deadline: 3 * SHORT, ..bounds() };
    let (arrive, leave) = (entered.clone(), go.clone());
    let server = Server::start(bounds, |lanes| {
        let held = async move || {
            arrive.add_permits(1);
            leave.notified().await;
            "done"
        };
        lanes.rest.hold(Router::new().route("/", get(held))).merge(
            lanes
                .acquire
                .with_deadline(PATIENCE)
                .hold(Router::new().route("/hang", get(std::future::pending::<()>))),
        )
    })
    .await;
    let mut hangs = server.connect().await;
    hangs.write_all(head("GET", "/hang", "").as_bytes()).await.unwrap();
    let mut runs = server.connect().await;
    runs.write_all(head("GET", "/", "").as_bytes()).await.unwrap();
    soon(entered.acquire()).await.unwrap().forget();
    server.stop.cancel();
    soon(async { while TcpStream::connect(server.address).await.is_ok() {} }).await;
    go.notify_waiters();
    assert!(rest(&mut runs).await.ends_with("done"));
    server.stop().await;
    assert_eq!(rest(&mut hangs).await, "");
}
