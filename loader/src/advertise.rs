//! Which address other workers are told to come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long the planner's name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Stands for "anywhere else" when the way to the planner is not known: an address of the documentation's, to
/// which nothing is ever sent.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The host to advertise: `advertise` when it is set, else `bind` when it is one certain address, else the
/// address from which this machine would reach the planner, since workers are in the planner's network.
///
/// Never fails, because a worker must load whatever its planner is: without a way to the planner, it is the
/// address of the default route, and without that loopback, each with a warning.
///
/// No packet is sent but for the planner's name: connecting a UDP socket only asks the system for a route.
pub async fn advertised_host(advertise: Option<&str>, bind: &str, planner: &reqwest::Url) -> String {
    if let Some(host) = advertise {
        return host.to_owned();
    }
    match bind.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => {}
        _ => return bind.to_owned(),
    }
    let reason = match towards(planner).await {
        Ok(address) => return address.to_string(),
        Err(reason) => reason,
    };
    let address = source_address(ELSEWHERE).unwrap_or(Ipv4Addr::LOCALHOST.into());
    tracing::warn!(
        planner = planner.authority(),
        reason,
        %address,
        "no way to the planner is known, so this address is advertised; set rfork_seed_advertise_host if others do not reach it"
    );
    address.to_string()
}

async fn towards(planner: &reqwest::Url) -> Result<IpAddr, String> {
    let host = planner.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = planner.port_or_known_default().unwrap_or(80);
    let resolving = tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((host, port)));
    let targets =
        resolving.await.map_err(|_| format!("its name did not resolve within {RESOLVE_DEADLINE:?}"))?;
    let mut reason = "its name has no address".to_owned();
    for target in targets.map_err(|error| error.to_string())? {
        match source_address(target) {
            Ok(address) => return Ok(address),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
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

    async fn host(advertise: Option<&str>, bind: &str, planner: &str) -> String {
        advertised_host(advertise, bind, &planner.parse().unwrap()).await
    }

    #[tokio::test]
    async fn what_is_set_wins_then_a_certain_bind_address_then_the_route() {
        assert_eq!(host(Some("node-1"), "0.0.0.0", "http://127.0.0.1:1").await, "node-1");
        assert_eq!(host(None, "127.0.0.2", "http://127.0.0.1:1").await, "127.0.0.2");
        assert_eq!(host(None, "0.0.0.0", "http://127.0.0.1:1").await, "127.0.0.1");
        assert_eq!(host(None, "::", "http://127.0.0.1:1").await, "127.0.0.1");
    }

    #[tokio::test]
    async fn without_a_way_to_the_planner_there_is_an_address_all_the_same() {
        let found = host(None, "0.0.0.0", "http://no-such-host.invalid:1223").await;
        assert!(found.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()), "{found}");
    }
}
