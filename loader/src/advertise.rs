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
    /// How it is known.
    pub(crate) by: By,
}

/// How the host that other workers are told is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// A setting names it.
    Setting,
    /// The planner was reached from there.
    Connection,
    /// No connection to the planner has shown yet that it is the right one.
    Guess,
}

impl Advertised {
    /// A warning when the host leads only workers of this machine here, as far as that can be seen: the planner is
    /// somewhere else, or nobody has said that all workers are on this machine.
    pub(crate) fn only_here(&self, planner_sees: Option<IpAddr>) -> Option<String> {
        let is_elsewhere = planner_sees.is_some_and(|address| !address.is_loopback());
        let is_loopback = self.host.address().is_some_and(|address| address.is_loopback());
        if !is_loopback || (self.by == By::Setting && !is_elsewhere) {
            return None;
        }
        let why = if is_elsewhere { "" } else { " because the planner was reached on this machine itself," };
        Some(format!(
            "others are told to come to {},{why} which leads only workers of this machine here; for those of others set \
             rfork_seed_advertise_host",
            self.host
        ))
    }
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
    let certain = |host| Advertised { host, by: By::Setting };
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
        return Ok(Advertised { host: address.into(), by: By::Connection });
    }
    let address = guess(planner.base()).await;
    tracing::warn!(
        planner = crate::http::shown(planner.base().as_str()),
        %address,
        "the planner was not reached, so it is a guess at which address others reach this worker; if it is wrong, set rfork_seed_advertise_host"
    );
    Ok(Advertised { host: address.into(), by: By::Guess })
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
        for (advertise, bind, host, by) in [
            (Some("Node-1."), None, "node-1", By::Setting),
            (Some("http://[FD00::7]/"), Some("0.0.0.0"), "fd00::7", By::Setting),
            (None, Some("127.0.0.2"), "127.0.0.2", By::Setting),
            (None, Some("[::1]"), "::1", By::Setting),
            (None, Some("node-1"), "node-1", By::Setting),
            (None, Some("0.0.0.0"), "127.0.0.1", By::Guess),
            (None, Some("::"), "127.0.0.1", By::Guess),
            (None, None, "127.0.0.1", By::Guess),
        ] {
            let expected = Advertised { host: host.parse().unwrap(), by };
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
        assert!(found.by == By::Guess && found.host.address().is_some(), "{found:?}");
    }

    #[test]
    fn a_loopback_address_that_nobody_set_is_warned_of() {
        let (here, away) = (Some(Ipv4Addr::LOCALHOST.into()), Some([10, 0, 0, 7].into()));
        for (host, by, planner_sees, warned) in [
            ("127.0.0.1", By::Connection, here, true),
            ("::1", By::Connection, Some(Ipv6Addr::LOCALHOST.into()), true),
            ("127.0.0.1", By::Guess, None, true),
            ("127.0.0.1", By::Setting, here, false),
            ("127.0.0.1", By::Setting, None, false),
            ("127.0.0.1", By::Setting, away, true),
            ("10.0.0.7", By::Connection, away, false),
            ("node-1", By::Setting, away, false),
        ] {
            let warning = Advertised { host: host.parse().unwrap(), by }.only_here(planner_sees);
            assert_eq!(warning.is_some(), warned, "{host} {by:?} {planner_sees:?}");
            assert!(warning.is_none_or(|warning| warning.contains("set rfork_seed_advertise_host")));
        }
    }
}
