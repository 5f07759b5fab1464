//! Asking a seed whether it lives.
//!
//! A seed that was silent for longer than a heartbeat interval is asked before it is granted. The address comes
//! from whoever registered the seed, so only addresses of allowed networks are asked, and those of this machine itself only
//! where workers reach the planner there, too: else clients could reach by it what listens on loopback to be reached by
//! nobody. It is asked at the address that was looked up and checked, without following redirects, and nothing of the
//! answer is used but its status.
//!
//! A seed is blamed only for what it does itself: time that passes before it is asked, because many others are or
//! because a name cannot be looked up, is none of its silence.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::domain::network::Network;

/// How long a seed may take to answer, in all: looking up its name, connecting, and the answer.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);
/// How much of that may pass before the seed is asked; it is left at least the rest.
const PREPARATION: Duration = Duration::from_millis(100);
/// Seeds that are asked at once; more wait, and are not asked if it takes too long.
const MAX_AT_ONCE: usize = 128;
/// Names that are looked up at once: each has a thread, which cannot be told to end. Of more none is.
const MAX_LOOK_UPS: usize = 32;
/// Addresses of one name that are looked at. Of each family the first that may be asked is, both at once: a name may
/// have an address of a family on which its seed does not listen.
const MAX_ADDRESSES: usize = 8;
/// The largest answer head that is read, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What a seed said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// That it lives and holds the key.
    Well,
    /// Nothing in time, or something else.
    Silent,
    /// It was not asked: none of its addresses is known and in an allowed network, or too many others are asked.
    NotAsked,
}

/// Asks seeds.
#[derive(Debug)]
pub struct Prober {
    networks: Vec<Network>,
    loopback: bool,
    at_once: Semaphore,
    look_ups: Arc<Semaphore>,
}

impl Prober {
    /// One that asks only at addresses of these networks, for a planner that listens on `listens`.
    pub fn new(networks: Vec<Network>, listens: IpAddr) -> Self {
        let look_ups = Arc::new(Semaphore::new(MAX_LOOK_UPS));
        let loopback = listens.to_canonical().is_loopback();
        Self { networks, loopback, at_once: Semaphore::new(MAX_AT_ONCE), look_ups }
    }

    /// Whether somebody may be asked there.
    fn may_ask(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // Who connects to the unspecified address comes to loopback.
        let is_loopback = address.is_loopback() || address.is_unspecified();
        (self.loopback || !is_loopback) && self.networks.iter().any(|network| network.holds(address))
    }

    /// Asks one, for at most 300 ms.
    pub async fn ask(&self, seed: &SeedIdentity, key: &SeedKey) -> Verdict {
        let begun = Instant::now();
        let Ok(Some((addresses, _permit))) = timeout_at(begun + PREPARATION, self.prepare(seed)).await else {
            return Verdict::NotAsked;
        };
        let asking = addresses.into_iter().map(|address| Box::pin(Self::is_well(address, seed, key)));
        match timeout_at(begun + PATIENCE, select_ok(asking)).await {
            Ok(Ok(_)) => Verdict::Well,
            Ok(Err(_)) | Err(_) => Verdict::Silent,
        }
    }

    /// Where to ask the seed, at one or two addresses, and the room for it.
    async fn prepare(&self, seed: &SeedIdentity) -> Option<(Vec<SocketAddr>, SemaphorePermit<'_>)> {
        let found = match seed.address() {
            Some(address) => vec![SocketAddr::new(address, seed.port())],
            None => self.look_up(resolve(seed.host().to_owned(), seed.port())).await?,
        };
        let allowed = found.into_iter().filter(|address| self.may_ask(address.ip()));
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = allowed.partition(SocketAddr::is_ipv4);
        let addresses: Vec<_> = ipv4.into_iter().take(1).chain(ipv6.into_iter().take(1)).collect();
        if addresses.is_empty() {
            return None;
        }
        Some((addresses, self.at_once.acquire().await.ok()?))
    }

    /// Runs a look-up, which goes on when nobody waits for it any more, and counts until it ends.
    async fn look_up(
        &self,
        looking: impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    ) -> Option<Vec<SocketAddr>> {
        let permit = self.look_ups.clone().try_acquire_owned().ok()?;
        let looking = tokio::spawn(async move {
            let _permit = permit;
            looking.await
        });
        looking.await.ok()?.ok()
    }

    /// Whether the seed says at this address that it lives and holds the key.
    async fn is_well(address: SocketAddr, seed: &SeedIdentity, key: &SeedKey) -> Result<(), AskError> {
        match Self::status(address, seed, key).await? {
            StatusCode::OK => Ok(()),
            status => Err(AskError::Status(status)),
        }
    }

    async fn status(address: SocketAddr, seed: &SeedIdentity, key: &SeedKey) -> Result<StatusCode, AskError> {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await?;
        // It ends with this call, whatever the seed goes on to send.
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let path =
            format!("/health_check_with_key?seed_key={}", percent_encode(key.as_bytes(), NON_ALPHANUMERIC));
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(HOST, seed.authority())
            .header(CONNECTION, "close")
            .body(Empty::new())?;
        Ok(sender.send_request(request).await?.status())
    }
}

async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), port);
    Ok(lookup_host((host.as_str(), port)).await?.take(MAX_ADDRESSES).map(canonical).collect())
}

/// Why it is not said to be well; nobody is told more than that.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
    #[error("status {0}")]
    Status(StatusCode),
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with `answer`, or never with `None`; gives what was asked.
    async fn seed(answer: Option<&'static str>) -> (SeedIdentity, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = SeedIdentity::new("127.0.0.1", listener.local_addr().unwrap().port(), 0).unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                // Until it is hung up on.
                None => drop(stream.read(&mut [0]).await),
            }
            String::from_utf8_lossy(&bytes[..read]).into_owned()
        });
        (identity, asked)
    }

    fn prober(network: &str) -> Prober {
        Prober::new(vec![network.parse().unwrap()], [127, 0, 0, 1].into())
    }

    #[test]
    fn loopback_is_asked_only_by_a_planner_that_listens_there() {
        let here = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "::ffff:0.0.0.0"];
        let away = ["10.0.0.7", "fd00::7", "::ffff:10.0.0.7"];
        let all = || ["0.0.0.0/0", "::/0"].map(|network| network.parse().unwrap()).into();
        for (listens, loopback) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
        ] {
            let prober = Prober::new(all(), listens.parse().unwrap());
            for address in here {
                assert_eq!(prober.may_ask(address.parse().unwrap()), loopback, "{listens} {address}");
            }
            for address in away {
                assert!(prober.may_ask(address.parse().unwrap()), "{listens} {address}");
            }
        }
    }

    #[tokio::test]
    async fn a_seed_is_asked_for_the_health_of_its_key() {
        let key = SeedKey::new(*b"/m$\xe9 1").unwrap();
        for (answer, verdict) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Verdict::Well),
            ("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", Verdict::Silent),
            // Not followed.
            (
                "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
                Verdict::Silent,
            ),
            ("nonsense\r\n\r\n", Verdict::Silent),
        ] {
            let (identity, asked) = seed(Some(answer)).await;
            assert_eq!(prober("127.0.0.0/8").ask(&identity, &key).await, verdict, "{answer}");
            let asked = asked.await.unwrap();
            assert!(
                asked.starts_with("GET /health_check_with_key?seed_key=%2Fm%24%E9%201 HTTP/1.1\r\n"),
                "{asked}"
            );
        }
    }

    #[tokio::test]
    async fn a_name_with_addresses_of_both_families_is_asked_at_both() {
        let key = SeedKey::new(*b"k").unwrap();
        let (listening, asked) = seed(Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
        let port = listening.port();
        // Nobody answers at the first: its port is open and silent.
        let silent = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let silent = silent.local_addr().unwrap();
        let named = SeedIdentity::new("a-name", port, 0).unwrap();
        let both = [silent, SocketAddr::new([127, 0, 0, 1].into(), port)];
        let asking = both.map(|address| Box::pin(Prober::is_well(address, &named, &key)));
        assert!(select_ok(asking).await.is_ok());
        asked.await.unwrap();
    }

    #[tokio::test]
    async fn one_that_does_not_answer_costs_little() {
        let key = SeedKey::new(*b"k").unwrap();
        let (identity, asked) = seed(None).await;
        let begun = Instant::now();
        assert_eq!(prober("127.0.0.0/8").ask(&identity, &key).await, Verdict::Silent);
        assert!(begun.elapsed() >= PATIENCE);
        asked.await.unwrap();
        assert_eq!(prober("127.0.0.0/8").ask(&identity, &key).await, Verdict::Silent, "nobody listens");
    }

    #[tokio::test]
    async fn addresses_of_other_networks_are_not_asked() {
        let key = SeedKey::new(*b"k").unwrap();
        let (identity, asked) = seed(None).await;
        assert_eq!(prober("10.0.0.0/8").ask(&identity, &key).await, Verdict::NotAsked);
        let mapped = SeedIdentity::new("::ffff:127.0.0.1", identity.port(), 0).unwrap();
        assert_eq!(prober("10.0.0.0/8").ask(&mapped, &key).await, Verdict::NotAsked);
        assert!(!asked.is_finished());
    }

    #[tokio::test]
    async fn a_seed_is_not_blamed_when_too_many_others_are_asked() {
        let key = SeedKey::new(*b"k").unwrap();
        let (identity, asked) = seed(Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
        let prober = prober("127.0.0.0/8");
        let others = prober.at_once.acquire_many(u32::try_from(MAX_AT_ONCE).unwrap()).await.unwrap();
        assert_eq!(prober.ask(&identity, &key).await, Verdict::NotAsked);
        drop(others);
        assert_eq!(prober.ask(&identity, &key).await, Verdict::Well);
        asked.await.unwrap();
    }

    #[tokio::test]
    async fn a_seed_is_not_blamed_for_a_name_that_cannot_be_looked_up() {
        let key = SeedKey::new(*b"k").unwrap();
        // No server is asked for it: no part of a name may be so long.
        let identity = SeedIdentity::new("x".repeat(64), 1, 0).unwrap();
        assert_eq!(prober("0.0.0.0/0").ask(&identity, &key).await, Verdict::NotAsked);
    }

    #[tokio::test]
    async fn look_ups_that_nobody_waits_for_any_more_are_bounded() {
        let key = SeedKey::new(*b"k").unwrap();
        let prober = prober("127.0.0.0/8");
        let (end, ended) = tokio::sync::watch::channel(false);
        for _ in 0..MAX_LOOK_UPS {
            let mut ended = ended.clone();
            let slow = async move {
                ended.changed().await.map_err(io::Error::other)?;
                Ok(Vec::new())
            };
            assert!(timeout_at(Instant::now(), prober.look_up(slow)).await.is_err(), "it is slow");
        }
        assert_eq!(prober.look_up(async { Ok(Vec::new()) }).await, None, "there are too many");
        let (identity, asked) = seed(Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(prober.ask(&identity, &key).await, Verdict::Well, "an address need not be looked up");
        asked.await.unwrap();
        end.send(true).unwrap();
        let all = u32::try_from(MAX_LOOK_UPS).unwrap();
        let all = tokio::time::timeout(Duration::from_secs(300), prober.look_ups.acquire_many(all)).await;
        assert!(all.is_ok(), "they have ended");
    }
}
