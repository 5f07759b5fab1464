//! Which address other workers are told to come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rfork_protocol::Host;
use rfork_protocol::host::BadHost;

use crate::planner_client::PlannerClient;

/// How long the planner's name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Stand for "anywhere else" when the way to the planner is not known: addresses of the documentation's, to which nothing
/// is ever sent.
const ELSEWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The host that other workers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advertised {
    /// The host.
    pub(crate) host: Host,
    /// Whether no connection to the planner has shown yet that it is the right one.
    pub(crate) is_guess: bool,
}

/// A setting that names no host for others to come to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct BadSetting {
    setting: &'static str,
    reason: String,
}

/// The host to advertise: `advertise` when it is set, else `bind` when it is one certain address or name, else the address
/// from which this machine reaches the planner, since workers are in the planner's network. That is known by a
/// connection that worked: a name may have addresses of both families, and the planner listen on one.
///
/// A planner that cannot be reached fails nothing, because a worker must load whatever its planner is: the address is
/// guessed then, with a warning. It is that of the route to the planner, without one of the default route, and
/// without that loopback.
///
/// # Errors
/// [`BadSetting`].
pub(crate) async fn advertised_host(
    advertise: Option<&str>,
    bind: Option<&str>,
    planner: &PlannerClient,
) -> Result<Advertised, BadSetting> {
    let certain = |host| Advertised { host, is_guess: false };
    let bad = |setting, error: BadHost| BadSetting { setting, reason: error.to_string() };
    if let Some(text) = advertise {
        const SETTING: &str = "rfork_seed_advertise_host";
        // In the forms in which planners are told it.
        return match Host::told(text).map_err(|error| bad(SETTING, error))? {
            (host, None) => Ok(certain(host)),
            (host, Some(_)) => {
                let reason = format!("give the host alone, {host}; its port is the seed service's");
                Err(BadSetting { setting: SETTING, reason })
            }
        };
    }
    let is_certain = |bind: &str| {
        let address = bind.trim_matches(['[', ']']).parse::<IpAddr>();
        !address.is_ok_and(|address| address.is_unspecified())
    };
    if let Some(bind) = bind.filter(|bind| is_certain(bind)) {
        return bind.parse().map(certain).map_err(|error| bad("rfork_seed_bind_host", error));
    }
    if let Some(address) = planner.local_address().await {
        return Ok(certain(address.into()));
    }
    let address = guess(planner.base()).await;
    tracing::warn!(
        planner = crate::http::shown(planner.base().as_str()),
        %address,
        "the planner was not reached, so it is a guess at which address others reach this worker; if it is wrong, set rfork_seed_advertise_host"
    );
    Ok(Advertised { host: address.into(), is_guess: true })
}

/// No packet is sent but for the planner's name: connecting a UDP socket only asks the system for a route.
async fn guess(planner: &reqwest::Url) -> IpAddr {
    let towards_planner = targets(planner).await;
    let mut routes =
        towards_planner.into_iter().chain(ELSEWHERE).filter_map(|target| source_address(target).ok());
    routes.next().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

async fn targets(planner: &reqwest::Url) -> Vec<SocketAddr> {
    let host = planner.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = planner.port_or_known_default().unwrap_or(80);
    let resolving = tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((host, port)));
    match resolving.await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
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
    use rfork_protocol::v1::Labels;

    use crate::planner_client::Topology;

    /// Nobody listens there.
    const NO_PLANNER: &str = "http://127.0.0.1:1";

    async fn told(
        advertise: Option<&str>,
        bind: Option<&str>,
        planner: &str,
    ) -> Result<Advertised, BadSetting> {
        let timeout = Duration::from_secs(5);
        let planner = PlannerClient::new(planner, timeout, Labels::default(), Topology::default()).unwrap();
        advertised_host(advertise, bind, &planner).await
    }

    #[tokio::test]
    async fn what_is_set_wins_then_a_certain_bind_address_then_the_route() {
        for (advertise, bind, host, is_guess) in [
            (Some("Node-1."), None, "node-1", false),
            (Some("http://[FD00::7]/"), Some("0.0.0.0"), "fd00::7", false),
            (None, Some("127.0.0.2"), "127.0.0.2", false),
            (None, Some("[::1]"), "::1", false),
            (None, Some("node-1"), "node-1", false),
            (None, Some("0.0.0.0"), "127.0.0.1", true),
            (None, Some("::"), "127.0.0.1", true),
            (None, None, "127.0.0.1", true),
        ] {
            let expected = Advertised { host: host.parse().unwrap(), is_guess };
            assert_eq!(told(advertise, bind, NO_PLANNER).await, Ok(expected), "{advertise:?} {bind:?}");
        }
    }

    #[tokio::test]
    async fn what_leads_nobody_anywhere_is_refused_by_name() {
        for (advertise, bind, said) in [
            (Some("0.0.0.0"), None, "rfork_seed_advertise_host: '0.0.0.0'"),
            (Some("10.0.0.7:80"), None, "rfork_seed_advertise_host: give the host alone, 10.0.0.7"),
            (Some("fe80::1%eth0"), None, "rfork_seed_advertise_host: "),
            (None, Some("10.3"), "rfork_seed_bind_host: '10.3'"),
        ] {
            let error = told(advertise, bind, NO_PLANNER).await.unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[tokio::test]
    async fn without_a_way_to_the_planner_there_is_an_address_all_the_same() {
        let found = told(None, None, "http://no-such-host.invalid:1223").await.unwrap();
        assert!(found.is_guess && found.host.address().is_some(), "{found:?}");
    }
}
