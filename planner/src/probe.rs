//! Asking a seed whether it lives.
//!
//! A seed that was silent for longer than a heartbeat interval is asked before it is granted. The address comes
//! from whoever registered the seed, so only addresses of allowed networks are asked, at the address that was
//! looked up and checked, without following redirects, and nothing of the answer is used but its status.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// How long a seed may take to answer, in all: looking up its name, connecting, and the answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// Seeds that are asked at once; more wait, within their time.
const MAX_AT_ONCE: usize = 128;
/// Addresses of one name that are looked at.
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
    /// It was not asked: none of its addresses is in an allowed network.
    NotAsked,
}

/// Asks seeds.
#[derive(Debug)]
pub struct Prober {
    networks: Vec<IpNet>,
    at_once: Semaphore,
}

impl Prober {
    /// One that asks only at addresses of these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks, at_once: Semaphore::new(MAX_AT_ONCE) }
    }

    /// Asks one, for at most 300 ms.
    pub async fn ask(&self, seed: &SeedIdentity, key: &SeedKey) -> Verdict {
        tokio::time::timeout(PATIENCE, self.converse(seed, key)).await.unwrap_or(Verdict::Silent)
    }

    async fn converse(&self, seed: &SeedIdentity, key: &SeedKey) -> Verdict {
        let Ok(_permit) = self.at_once.acquire().await else { return Verdict::NotAsked };
        let host = seed.host().trim_start_matches('[').trim_end_matches(']');
        let Ok(found) = lookup_host((host, seed.port())).await else { return Verdict::Silent };
        let allowed = |address: &SocketAddr| self.allows(address.ip());
        let Some(address) = found.take(MAX_ADDRESSES).find(allowed) else { return Verdict::NotAsked };
        match Self::status(address, seed, key).await {
            Ok(StatusCode::OK) => Verdict::Well,
            Ok(_) | Err(_) => Verdict::Silent,
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
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

/// Why there is no status; nobody is told more than that.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
        Prober::new(vec![network.parse().unwrap()])
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
}
