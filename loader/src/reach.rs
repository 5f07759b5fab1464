//! Whether other workers can come to where this one tells them to: it goes there itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::StatusCode;
use rfork_protocol::manifest::metadata::HEALTH_PATH;
use rfork_protocol::{SeedIdentity, SeedKey};

/// Between two tries of one check.
const TRY_PAUSE: Duration = Duration::from_millis(20);
/// How long it is asked at home why nobody answers there.
const HOME_DEADLINE: Duration = Duration::from_secs(1);

/// The health check of a worker's metadata service, at the address that others are told.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
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
    "others are told to come to {authority}, where this worker's seed service does not answer its health check within {waited:?} ({last}): {advice}"
)]
pub struct Unreachable {
    /// Where others are told to come.
    authority: String,
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
        let Err(last) = self.ask(&authority, self.timeout).await else { return Ok(()) };
        let at_home = self.ask(&home(self.listening).to_string(), self.timeout.min(HOME_DEADLINE)).await;
        let advice = match at_home {
            Ok(()) => advice(self.bind.as_deref(), &self.identity),
            Err(_) => format!(
                "it does not answer on {} either; raise rfork_seed_timeout_sec if this machine is slow",
                self.listening
            ),
        };
        Err(Unreachable { authority, waited: self.timeout, last, advice })
    }

    /// Asks at `host:port`; gives what the last try said.
    async fn ask(&self, authority: &str, timeout: Duration) -> Result<(), String> {
        let url = format!("http://{authority}{HEALTH_PATH}");
        let mut last = "no answer".to_owned();
        let asking = async {
            loop {
                let request = self.http.get(&url).query(&[("seed_key", self.key.to_string())]);
                match request.timeout(timeout).send().await {
                    Ok(answer) if answer.status() == StatusCode::OK => return,
                    Ok(answer) => last = format!("status {}", answer.status()),
                    Err(error) => last = crate::http::explain(error),
                }
                tokio::time::sleep(TRY_PAUSE).await;
            }
        };
        tokio::time::timeout(timeout, asking).await.map_err(|_| last)
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
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn reach(listener: &TcpListener, host: &str, bind: Option<&str>) -> Reach {
        let listening = listener.local_addr().unwrap();
        Reach {
            http: crate::http::client(Duration::from_secs(5), false).unwrap(),
            identity: SeedIdentity::new(host, listening.port(), 0).unwrap(),
            key: SeedKey::from_text("k").unwrap(),
            timeout: Duration::from_millis(300),
            bind: bind.map(str::to_owned),
            listening,
        }
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
        const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let listener = service("127.0.0.1:0", OK);
        assert_eq!(reach(&listener, "127.0.0.1", None).check().await, Ok(()));
        assert_eq!(reach(&listener, "::ffff:127.0.0.1", None).check().await, Ok(()));
        let error = reach(&listener, "127.0.0.2", None).check().await.unwrap_err().to_string();
        for said in ["127.0.0.2:", "rfork_seed_advertise_host", "rfork_seed_bind_host"] {
            assert!(error.contains(said), "{error}");
        }
        let error = reach(&listener, "127.0.0.2", Some("127.0.0.1")).check().await.unwrap_err();
        assert!(error.advice.contains("set rfork_seed_advertise_host to 127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn a_service_that_does_not_answer_at_all_is_not_blamed_on_its_address() {
        let listener = service("127.0.0.1:0", "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        let error = reach(&listener, "127.0.0.1", None).check().await.unwrap_err().to_string();
        assert!(error.contains("rfork_seed_timeout_sec") && error.contains("400"), "{error}");
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
