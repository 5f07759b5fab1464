//! What a planner says of itself: logs and traces.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rfork_tests::process::Planner;

const SEED: [(&str, &str); 5] = [
    ("SEED_KEY", "k"),
    ("SEED_IP", "10.0.0.7"),
    ("SEED_PORT", "8000"),
    ("SEED_RANK", "3"),
    ("SEED_REFCNT", "0"),
];

/// Registers a seed, and takes, renews and gives back a lease, whose id it gives.
fn cycle(planner: &Planner) -> String {
    assert_eq!(planner.request("POST", "/add_seed", &SEED).status, 200);
    let granted = planner.request("GET", "/get_seed", &SEED[..1]);
    assert_eq!(granted.status, 200);
    let id = granted.header("user_id").to_owned();
    let lease = [SEED[1], SEED[2], SEED[3], ("USER_ID", &id)];
    assert_eq!(planner.request("POST", "/renew_seed_lease", &lease).status, 200);
    assert_eq!(planner.request("POST", "/put_seed", &lease).status, 200);
    assert_eq!(planner.request("POST", "/put_seed", &lease).status, 404);
    id
}

/// A request: its head in lower case, and its body.
type Batch = (String, Vec<u8>);

/// A collector of traces that keeps what it is sent.
struct Collector {
    url: String,
    taken: Arc<Mutex<Vec<Batch>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let taken: Arc<Mutex<Vec<Batch>>> = Arc::default();
        let shelf = taken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shelf = shelf.clone();
                std::thread::spawn(move || {
                    while let Some(batch) = take(stream.as_ref().unwrap()) {
                        shelf.lock().unwrap().push(batch);
                    }
                });
            }
        });
        Self { url, taken }
    }

    fn has(&self, text: &str) -> bool {
        let taken = self.taken.lock().unwrap();
        taken.iter().any(|(_, body)| body.windows(text.len()).any(|window| window == text.as_bytes()))
    }
}

/// One request, answered; `None` at the connection's end.
fn take(stream: &TcpStream) -> Option<Batch> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    Some((head, body))
}

#[test]
fn a_lease_id_appears_only_hashed() {
    let mut planner = Planner::start(&["--log=debug"]);
    let id = cycle(&planner);
    assert_eq!(planner.process.terminate().code(), Some(0));
    planner.process.wait_for("the planner has stopped");
    let log: Vec<String> = planner.process.log().iter().map(ToString::to_string).collect();
    let log = log.join("\n");
    let granted = planner.process.wait_for("granted");
    let shown = granted["lease"].as_str().unwrap();
    assert!(log.contains("\"released\"") && shown.len() >= 12, "{granted}");
    assert!(!log.to_lowercase().contains(&id), "a lease id is logged whole:\n{log}");
}

#[test]
fn a_request_has_a_name_and_its_lines_have_it() {
    let planner = Planner::start(&["--log=debug"]);
    let answer = planner.request("GET", "/get_seed", &[SEED[0], ("X-Request-Id", "trace-me-7")]);
    assert_eq!((answer.status, answer.header("x-request-id")), (404, "trace-me-7"));
    let of_it = |line: &serde_json::Value| line["spans"][0]["id"] == "trace-me-7";
    let line =
        planner.process.wait_until("that it answered", |line| line["message"] == "answered" && of_it(line));
    let span = &line["spans"][0];
    assert_eq!(
        (&span["name"], &span["method"], &span["route"]),
        (&"request".into(), &"GET".into(), &"/get_seed".into())
    );
    assert!(span["status"] == 404 && span["ms"].as_f64().unwrap() > 0.0, "{line}");
    let made = planner.request("GET", "/healthz", &[("X-Request-Id", "two words")]);
    assert_eq!(made.header("x-request-id").len(), 32, "{made:?}");
}

#[test]
fn spans_of_requests_and_of_the_store_reach_a_collector() {
    let collector = Collector::start();
    let mut planner = Planner::start(&["--otlp-endpoint", &collector.url]);
    let id = cycle(&planner);
    planner.request("GET", "/healthz", &[("X-Request-Id", "trace-me-7")]);
    // What waits is sent at the end.
    assert_eq!(planner.process.terminate().code(), Some(0));
    for text in ["rfork-planner", "request", "/get_seed", "trace-me-7", "store", "apply"] {
        assert!(collector.has(text), "no {text} in what was sent");
    }
    assert!(!collector.has(&id), "a lease id was sent whole");
    for (head, _) in collector.taken.lock().unwrap().iter() {
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
    }
}

#[test]
fn a_collector_that_is_away_or_hangs_harms_nothing() {
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [hangs.local_addr().unwrap(), away] {
        let url = format!("http://{address}");
        let mut planner = Planner::start(&["--otlp-endpoint", &url]);
        for _ in 0..50 {
            cycle(&planner);
        }
        assert_eq!(planner.process.terminate().code(), Some(0));
        planner.process.wait_until("that traces are lost", |line| {
            line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("traces"))
        });
    }
}
