//! Which address other workers are told to come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// No address to advertise could be found.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot find the address under which other workers reach this one (route to the planner {planner}: {reason}); set rfork_seed_advertise_host"
)]
pub struct AdvertiseError {
    /// The planner that a route was looked for.
    planner: String,
    /// What the system said.
    reason: String,
}

/// The host to advertise: `advertise` when it is set, else `bind` when it is one certain address, else the
/// address from which this machine would reach the planner, since workers are in the planner's network.
///
/// No packet is sent: connecting a UDP socket only asks the system for a route.
///
/// # Errors
/// [`AdvertiseError`] when the planner's name does not resolve or no route leads to it.
pub async fn advertised_host(
    advertise: Option<&str>,
    bind: &str,
    planner: &reqwest::Url,
) -> Result<String, AdvertiseError> {
    if let Some(host) = advertise {
        return Ok(host.to_owned());
    }
    match bind.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => {}
        _ => return Ok(bind.to_owned()),
    }
    let failed = |reason: String| AdvertiseError { planner: planner.authority().to_owned(), reason };
    let host = planner.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = planner.port_or_known_default().unwrap_or(80);
    let targets = tokio::net::lookup_host((host, port)).await.map_err(|error| failed(error.to_string()))?;
    let mut reason = "its name has no address".to_owned();
    for target in targets {
        match source_address(target) {
            Ok(address) => return Ok(address.to_string()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(failed(reason))
}

fn source_address(target: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn host(advertise: Option<&str>, bind: &str, planner: &str) -> Result<String, AdvertiseError> {
        advertised_host(advertise, bind, &planner.parse().unwrap()).await
    }

    #[tokio::test]
    async fn what_is_set_wins_then_a_certain_bind_address_then_the_route() {
        assert_eq!(host(Some("node-1"), "0.0.0.0", "http://127.0.0.1:1").await.unwrap(), "node-1");
        assert_eq!(host(None, "127.0.0.2", "http://127.0.0.1:1").await.unwrap(), "127.0.0.2");
        assert_eq!(host(None, "0.0.0.0", "http://127.0.0.1:1").await.unwrap(), "127.0.0.1");
        assert_eq!(host(None, "::", "http://127.0.0.1:1").await.unwrap(), "127.0.0.1");
    }

    #[tokio::test]
    async fn a_planner_without_an_address_is_named() {
        let error = host(None, "0.0.0.0", "http://no-such-host.invalid:1223").await.unwrap_err().to_string();
        assert!(error.contains("no-such-host.invalid:1223"), "{error}");
        assert!(error.contains("rfork_seed_advertise_host"), "{error}");
    }
}
