//! Whether other workers can come to where this one tells them to: it goes there itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use rfork_protocol::manifest::content::ContentId;
use rfork_protocol::manifest::metadata::{HEALTH_PATH, SERVICE_HEADER};
use rfork_protocol::{SeedIdentity, SeedKey};

use crate::engine::TransferEngine;
use crate::retry::Backoff;

/// Between two tries of one check: the first pause, and the longest.
const TRY_PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// How long it is asked at home why nobody answers there.
const HOME_DEADLINE: Duration = Duration::from_secs(5);

/// The health check of a worker's metadata service, and a greeting of its transfer engine, at the addresses that others are
/// told.
#[derive(Clone)]
pub(crate) struct Reach {
    /// The service's [`SeedService::id`](crate::seed_service::SeedService::id).
    pub(crate) service: String,
    /// Greets as a reader does.
    pub(crate) engine: Arc<dyn TransferEngine>,
    /// Where others are told to come for bytes, `host:port`.
    pub(crate) session: String,
    /// What they read there; `None` while that is not known, when only the service is asked.
    pub(crate) content: Option<ContentId>,
    /// For the request.
    pub(crate) http: reqwest::Client,
    /// As others are told it.
    pub(crate) identity: SeedIdentity,
    /// What it serves.
    pub(crate) key: SeedKey,
    /// How long one check may take.
    pub(crate) timeout: Duration,
    /// `rfork_seed_bind_host`.
    pub(crate) bind: Option<String>,
    /// Where the service listens.
    pub(crate) listening: SocketAddr,
}

/// Nobody can fork from this worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "others are told to come to {authority}, where this worker's {what} does not answer within {waited:?} ({last}): {advice}"
)]
pub struct Unreachable {
    /// Where others are told to come.
    authority: String,
    /// What they are to find there.
    what: &'static str,
    /// `rfork_seed_timeout_sec`.
    waited: Duration,
    /// What the last try said.
    last: String,
    /// What to do.
    advice: String,
}

impl Reach {
    /// Asks until the answer is right, at most for the timeout.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) async fn check(&self) -> Result<(), Unreachable> {
        let authority = self.identity.authority();
        let Err(last) = self.ask(&authority, self.timeout).await else { return self.greet().await };
        let at_home = self.ask(&home(self.listening).to_string(), self.timeout.min(HOME_DEADLINE)).await;
        let advice = match at_home {
            Ok(()) => advice(self.bind.as_deref(), &self.identity),
            Err(_) => format!(
                "it does not answer on {} either; raise rfork_seed_timeout_sec if this machine is slow",
                self.listening
            ),
        };
        Err(Unreachable { authority, what: "seed service", waited: self.timeout, last, advice })
    }

    /// Greets the transfer engine, at the host that the service was reached at.
    async fn greet(&self) -> Result<(), Unreachable> {
        let Some(content) = self.content else { return Ok(()) };
        let greeting = self.engine.greet(&self.session, content);
        let last = match tokio::time::timeout(self.timeout, greeting).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        let advice = format!(
            "its seed service does; open the way to {}, too, or set rfork_seed_advertise_host to where both are reached",
            self.session
        );
        let (authority, waited) = (self.session.clone(), self.timeout);
        Err(Unreachable { authority, what: "transfer engine", waited, last, advice })
    }

    /// Asks at `host:port`; gives what the last try said.
    async fn ask(&self, authority: &str, timeout: Duration) -> Result<(), String> {
        let url = format!("http://{authority}{HEALTH_PATH}");
        let mut last = "no answer".to_owned();
        let [first, longest] = TRY_PAUSES;
        let mut backoff = Backoff::new(first, longest);
        let asking = async {
            loop {
                let request = self.http.get(&url).query(&[("seed_key", self.key.text())]);
                match request.timeout(timeout).send().await {
                    Ok(answer) if answer.status() != StatusCode::OK => {
                        last = format!("status {}", answer.status());
                    }
                    Ok(answer) if !self.is_of_this_worker(&answer) => {
                        "another worker answers there, which serves the same key".clone_into(&mut last);
                    }
                    Ok(_) => return,
                    Err(error) => last = crate::http::explain(error),
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        };
        tokio::time::timeout(timeout, asking).await.map_err(|_| last)
    }

    fn is_of_this_worker(&self, answer: &reqwest::Response) -> bool {
        answer.headers().get(SERVICE_HEADER).is_some_and(|id| id.as_bytes() == self.service.as_bytes())
    }
}

/// Where this machine itself finds what listens there.
fn home(mut listening: SocketAddr) -> SocketAddr {
    if listening.ip().is_unspecified() {
        listening.set_ip(match listening {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listening
}

/// What to do when the service runs, but not where others are told to come.
fn advice(bind: Option<&str>, identity: &SeedIdentity) -> String {
    let host = identity.host();
    let bound = bind.and_then(|bind| bind.trim_matches(['[', ']']).parse::<IpAddr>().ok());
    let (Some(bind), Some(bound), Some(address)) = (bind, bound, identity.address()) else {
        return elsewhere(host);
    };
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    if !bound.is_unspecified() && bound.to_canonical() != address {
        return format!(
            "rfork_seed_bind_host is {bind}, so it listens there alone: leave that out to listen on every address, or set \
             rfork_seed_advertise_host to {bound}"
        );
    }
    // `::` takes IPv4, too.
    if bound.is_ipv4() && address.is_ipv6() {
        return format!(
            "rfork_seed_bind_host is {bind}, so it listens on {} alone, and {host} is {}: leave that out to listen on \
             both, or set rfork_seed_advertise_host to an {} address of this machine",
            family(bound),
            family(address),
            family(bound)
        );
    }
    elsewhere(host)
}

fn elsewhere(host: &str) -> String {
    format!(
        "set rfork_seed_advertise_host to an address at which others reach this machine, and this machine itself, or open \
         the way to {host} (a firewall; a NAT that does not lead back to where a connection comes from); \
         rfork_seed_bind_host says where it listens"
    )
}

#[cfg(test)]
mod tests {
    use rfork_protocol::manifest::content::ChunkDigests;
    use rfork_protocol::manifest::digest::{Digest, DigestAlgorithm};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::engine::memory::{Content, WeightMemory};
    use crate::engine::tcp::{TcpEngine, TcpOptions};

    /// What the services of these tests name themselves.
    const ID: &str = "1f0e";
    const OURS: &str =
        "HTTP/1.1 200 OK\r\nrfork-service: 1f0e\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

    /// An engine that serves `content`, and where.
    async fn engine(content: &Content) -> (Arc<dyn TransferEngine>, String) {
        let engine = TcpEngine::bind(TcpOptions::new(Some("127.0.0.1"))).await.unwrap();
        let memory = WeightMemory::allocate(&[1]).unwrap();
        memory.set_content(content.clone());
        engine.register(memory).await.unwrap();
        let session = engine.address().to_string();
        (Arc::new(engine), session)
    }

    fn content(of: u8) -> Content {
        let algorithm = DigestAlgorithm::default();
        let chunks = ChunkDigests { algorithm, chunk_bytes: 1, digests: [Digest::crc64_nvme(0)].into() };
        Content { id: ContentId { algorithm, hash: [of; 32] }, chunks }
    }

    async fn reach(listener: &TcpListener, host: &str, bind: Option<&str>) -> Reach {
        let listening = listener.local_addr().unwrap();
        let content = content(1);
        let (engine, session) = engine(&content).await;
        Reach {
            service: ID.into(),
            engine,
            session,
            content: Some(content.id),
            http: crate::http::client(Duration::from_secs(5), false).unwrap(),
            identity: SeedIdentity::new(host, listening.port(), 0).unwrap(),
            key: SeedKey::from_text("k").unwrap(),
            timeout: Duration::from_millis(300),
            bind: bind.map(str::to_owned),
            listening,
        }
    }

    /// For a check that has to succeed, on a machine of any speed.
    fn patient(reach: Reach) -> Reach {
        Reach { timeout: Duration::from_secs(300), ..reach }
    }

    /// A service that says this to whoever comes.
    fn service(address: &str, says: &'static str) -> TcpListener {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let serving = TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = serving.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(says.as_bytes()).await;
            }
        });
        TcpListener::from_std(listener).unwrap()
    }

    #[tokio::test]
    async fn the_address_that_others_are_told_is_asked_and_not_another() {
        let listener = service("127.0.0.1:0", OURS);
        for host in ["127.0.0.1", "::ffff:127.0.0.1"] {
            assert_eq!(patient(reach(&listener, host, None).await).check().await, Ok(()));
        }
        let error = reach(&listener, "127.0.0.2", None).await.check().await.unwrap_err().to_string();
        for said in ["127.0.0.2:", "seed service", "rfork_seed_advertise_host", "rfork_seed_bind_host"] {
            assert!(error.contains(said), "{error}");
        }
    }

    /// What the check says when it is asked at home, which takes a service that answers there in time.
    #[tokio::test]
    async fn where_it_listens_alone_is_named() {
        let listener = service("127.0.0.1:0", OURS);
        let error = until_at_home(&reach(&listener, "127.0.0.2", Some("127.0.0.1")).await).await;
        assert!(error.advice.contains("set rfork_seed_advertise_host to 127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn another_worker_with_the_same_key_is_not_this_one() {
        for says in [
            "HTTP/1.1 200 OK\r\nrfork-service: 2f0e\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            // A worker of another program, or an older one.
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ] {
            let (there, here) = (service("127.0.0.2:0", says), service("127.0.0.1:0", OURS));
            let mut reach = reach(&here, "127.0.0.2", None).await;
            let port = there.local_addr().unwrap().port();
            reach.identity = SeedIdentity::new("127.0.0.2", port, 0).unwrap();
            let error = until_at_home(&reach).await;
            assert!(error.last.contains("another worker"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_transfer_engine_is_greeted_where_others_are_told_to_come() {
        let listener = service("127.0.0.1:0", OURS);
        let reach = patient(reach(&listener, "127.0.0.1", None).await);
        assert_eq!(reach.check().await, Ok(()));
        // Another worker's, one that nobody listens at, and one that says something else.
        let (_other, others) = engine(&content(2)).await;
        let nobodys = std::net::TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
        for session in [others, nobodys.to_string(), listener.local_addr().unwrap().to_string()] {
            let error = Reach { session: session.clone(), ..reach.clone() }.check().await.unwrap_err();
            let told = error.to_string();
            assert!(told.contains("transfer engine does not answer") && told.contains(&session), "{told}");
        }
    }

    #[tokio::test]
    async fn a_service_that_does_not_answer_at_all_is_not_blamed_on_its_address() {
        let listener = service("127.0.0.1:0", "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        let reach = reach(&listener, "127.0.0.1", None).await;
        loop {
            let error = reach.check().await.unwrap_err().to_string();
            assert!(error.contains("rfork_seed_timeout_sec"), "{error}");
            // On a slow machine it may have no answer in time.
            if error.contains("400") {
                break;
            }
        }
    }

    /// The error of a check that was answered at home: a machine under load may be too slow for that.
    async fn until_at_home(reach: &Reach) -> Unreachable {
        loop {
            let error = reach.check().await.unwrap_err();
            if error.what == "seed service" && !error.advice.contains("if this machine is slow") {
                return error;
            }
        }
    }

    #[test]
    fn the_advice_names_what_does_not_fit() {
        for (bind, host, said) in [
            (Some("0.0.0.0"), "fd00::7", "listens on IPv4 alone, and fd00::7 is IPv6"),
            (Some("10.0.0.7"), "10.0.0.8", "set rfork_seed_advertise_host to 10.0.0.7"),
            (Some("10.0.0.7"), "fd00::7", "set rfork_seed_advertise_host to 10.0.0.7"),
            (Some("fd00::7"), "10.0.0.7", "set rfork_seed_advertise_host to fd00::7"),
            (Some("::"), "10.0.0.7", "open the way to 10.0.0.7"),
            (Some("10.0.0.7"), "node-1", "open the way to node-1"),
            (None, "fd00::7", "open the way to fd00::7"),
        ] {
            let advice = advice(bind, &SeedIdentity::new(host, 1, 0).unwrap());
            assert!(advice.contains(said) && advice.contains("rfork_seed_bind_host"), "{advice}");
            assert!(advice.contains("rfork_seed_advertise_host"), "{advice}");
        }
    }
}
