//! A planner on a free port, and a client that writes requests byte by byte, as clients in the field may.

// Each test file uses a part of this. Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rfork_planner::RunError;
use rfork_planner::config::{DatabaseUrl, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The longest that anything here may take: what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// What is told of a database that fails, or does not answer in time: nothing of what it says, which may name files, hosts
/// and statements.
pub(crate) const FAILS: [&str; 2] = [
    "store-unavailable: the planner's database does not serve; ask again in a second; the planner's log says why",
    "timeout: the planner's database did not answer in time; ask again in a second",
];

pub(crate) struct Planner {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

impl Planner {
    pub(crate) async fn start(database: &Path, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_on(DatabaseUrl::Sqlite(database.to_owned()), change).await
    }

    pub(crate) async fn start_on(database: DatabaseUrl, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_at("127.0.0.1:0", database, change).await
    }

    /// The same, listening on this address.
    pub(crate) async fn start_at(
        listens: &str,
        database: DatabaseUrl,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut settings = Settings::of(database);
        // Seeds of tests stand at addresses where somebody may be.
        settings.probe_networks = vec!["127.0.0.0/8".parse().unwrap()];
        change(&mut settings);
        let speaks_tls = settings.tls.is_some();
        let listener = TcpListener::bind(listens).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stop = CancellationToken::new();
        let running = tokio::spawn(rfork_planner::run(settings, listener, stop.clone()));
        // Held until its database is open, or not for as long as that takes. Who speaks TLS is asked by its own test.
        while !speaks_tls && raw(address, &request("GET", "/v2", &[])).await.unwrap().status == 503 {}
        Self { address, stop, running }
    }

    /// Why a planner does not start on this database.
    pub(crate) async fn refused_on(database: DatabaseUrl) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let running = rfork_planner::run(Settings::of(database), listener, CancellationToken::new());
        tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap_err().to_string()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
    }

    /// Sends the bytes and reads the answer up to the end of the connection.
    pub(crate) async fn raw(&self, request: &[u8]) -> Answer {
        raw(self.address, request).await.unwrap()
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        self.raw(&request(method, path, &headers)).await
    }

    /// Sends a JSON body, or none when it is null.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &serde_json::Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len().to_string();
        let headers = [("Content-Type", &b"application/json"[..]), ("Content-Length", length.as_bytes())];
        let mut bytes = request(method, path, &headers);
        bytes.extend_from_slice(body.as_bytes());
        self.raw(&bytes).await
    }

    pub(crate) async fn add(&self, seed: &Seed<'_>) -> Answer {
        self.ask("POST", "/add_seed", &[&seed.headers()[..], &[("SEED_REFCNT", "0")]].concat()).await
    }

    pub(crate) async fn get(&self, key: &str) -> Answer {
        self.ask("GET", "/get_seed", &[("SEED_KEY", key)]).await
    }

    pub(crate) async fn put(&self, granted: &Answer) -> Answer {
        self.ask("POST", "/put_seed", &granted.lease()).await
    }

    pub(crate) async fn snapshot(&self) -> serde_json::Value {
        serde_json::from_str(&self.ask("GET", "/debug/snapshot", &[]).await.body).unwrap()
    }

    /// Waits until the snapshot shows what is wanted.
    pub(crate) async fn until(&self, shows: impl Fn(&serde_json::Value) -> bool) {
        let waiting = async {
            while !shows(&self.snapshot().await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }
}

pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> std::io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // A server that refuses early may close before it has read all.
        let _ = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        Answer::read(&bytes).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes =
        format!("{method} {path} HTTP/1.1\r\nHost: planner\r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[derive(Clone, Copy)]
pub(crate) struct Seed<'a> {
    pub(crate) key: &'a str,
    pub(crate) ip: &'a str,
}

impl<'a> Seed<'a> {
    pub(crate) fn headers(&self) -> [(&'static str, &'a str); 4] {
        [("SEED_KEY", self.key), ("SEED_IP", self.ip), ("SEED_PORT", "8000"), ("SEED_RANK", "3")]
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_uppercase(), value.to_owned())).collect();
        Some(Self { status, headers, body: body.to_owned() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The headers that name the lease of a granted answer.
    pub(crate) fn lease(&self) -> [(&'static str, &str); 4] {
        ["SEED_IP", "SEED_PORT", "SEED_RANK", "USER_ID"].map(|name| (name, self.header(name).unwrap()))
    }

    pub(crate) fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, body));
    }
}
