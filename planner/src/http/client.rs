//! Whose request it is: the address at the other end of its connection, or the one for which a trusted proxy speaks.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderMap;

use super::delivery::Delivery;
use super::forwarded::spoken_for;
use crate::domain::network::Network;
use crate::grant::GrantedLease;

/// The most proxies in a row that are believed.
const MAX_PROXIES: usize = 16;

/// The client of a request.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its address, as far as it is known; never an IPv4-mapped one.
    pub address: IpAddr,
    /// What the certificate is for that it has shown, and that a CA vouches for: names and URIs. Behind a proxy it is the
    /// proxy's.
    pub names: Arc<[String]>,
    /// How it is told of a lease.
    pub delivery: Delivery,
}

/// Leaves a lease with the connection that tells of it. Who asks without one, from this process, has it with the answer.
pub(super) fn tell_of(client: Option<Client>, granted: GrantedLease) {
    match client {
        Some(client) => client.delivery.of_next_answer(granted),
        None => granted.delivered(),
    }
}

/// Who asks, for people, as far as it is known: `principal/instance@address`.
pub(super) fn requester(
    principal: Option<&str>,
    instance: Option<&str>,
    address: Option<IpAddr>,
) -> Option<String> {
    let worker = match (instance, address) {
        (Some(instance), Some(address)) => Some(format!("{instance}@{address}")),
        (Some(instance), None) => Some(instance.to_owned()),
        (None, address) => address.map(|address| address.to_string()),
    };
    match (principal, worker) {
        (Some(principal), Some(worker)) => Some(format!("{principal}/{worker}")),
        (principal, worker) => worker.or_else(|| principal.map(str::to_owned)),
    }
}

/// The client's address: that of the connection's `peer`, or, when this is a trusted proxy, the last address for which
/// proxies speak that is no trusted proxy. What stands before that one anybody may have written. A proxy that tells
/// nothing, or something else than an address, speaks for itself.
pub(super) fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.holds(address));
    // A listener on `::` sees IPv4 clients at IPv4-mapped addresses.
    let mut client = peer.to_canonical();
    if !is_trusted(client) {
        return client;
    }
    for named in spoken_for(headers, MAX_PROXIES) {
        let Some(named) = named else { break };
        client = named;
        if !is_trusted(client) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(peer: &str, header: &'static str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header, HeaderValue::from_bytes(line).unwrap());
        }
        let trusted = ["10.9.0.0/16", "fd00::/8"].map(|network| network.parse().unwrap());
        address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    fn xff(peer: &str, lines: &[&[u8]]) -> String {
        of(peer, "x-forwarded-for", lines)
    }

    #[test]
    fn who_asks_is_named_as_far_as_it_is_known() {
        let address = Some([10, 0, 0, 1].into());
        for (principal, instance, address, told) in [
            (Some("a"), Some("i"), address, Some("a/i@10.0.0.1")),
            (Some("a"), None, address, Some("a/10.0.0.1")),
            (Some("a"), None, None, Some("a")),
            (None, Some("i"), address, Some("i@10.0.0.1")),
            (None, Some("i"), None, Some("i")),
            (None, None, None, None),
        ] {
            assert_eq!(requester(principal, instance, address).as_deref(), told);
        }
    }

    #[test]
    fn a_trusted_proxy_speaks_for_its_client_and_nobody_else_does() {
        assert_eq!(xff("10.9.0.1", &[b"10.1.0.7"]), "10.1.0.7");
        assert_eq!(
            xff("10.9.0.1", &[b"6.6.6.6, 10.1.0.7,10.9.0.2"]),
            "10.1.0.7",
            "what a client wrote is not believed"
        );
        assert_eq!(xff("10.9.0.1", &[b"6.6.6.6", b"10.1.0.7"]), "10.1.0.7");
        assert_eq!(xff("10.9.0.1", &[b"[fd00::1], 2001:db8::7"]), "2001:db8::7");
        assert_eq!(xff("::ffff:10.9.0.1", &[b"10.1.0.7"]), "10.1.0.7", "a listener on [::] sees IPv4 so");
        assert_eq!(xff("10.9.0.1", &[b"::ffff:10.1.0.7, ::ffff:10.9.0.2"]), "10.1.0.7");
        assert_eq!(xff("::ffff:10.1.0.7", &[b"10.2.0.7"]), "10.1.0.7", "it is no proxy");
        for said in [&b"unknown"[..], b"", b"\xe9"] {
            assert_eq!(xff("::ffff:10.9.0.1", &[said]), "10.9.0.1");
        }
        assert_eq!(
            xff("10.9.0.1", &[b"10.1.0.7, unknown, 10.9.0.2"]),
            "10.9.0.2",
            "no further than it is understood"
        );
        assert_eq!(xff("10.9.0.1", &[]), "10.9.0.1");
        assert_eq!(xff("10.9.0.1", &[b"10.9.0.3, 10.9.0.2"]), "10.9.0.3", "who asks from a proxy's own host");
        let chain = br#"for=6.6.6.6, for="[::ffff:10.1.0.7]:4711";proto=http, for=10.9.0.2"#;
        assert_eq!(of("10.9.0.1", "forwarded", &[chain]), "10.1.0.7");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]
        #[test]
        fn what_a_client_writes_before_never_counts(forged in "[0-9a-f:., \"\\[\\]]{0,60}") {
            prop_assert_eq!(xff("10.9.0.1", &[format!("{forged},10.1.0.7").as_bytes()]), "10.1.0.7");
            prop_assert_eq!(xff("10.1.0.7", &[forged.as_bytes()]), "10.1.0.7");
        }

        #[test]
        fn nor_in_the_other_header(forged in "(for=6\\.6\\.6\\.6|x=|for=|[\",;\\\\ =\\[\\]])*", by in "(|;by=\"\\[fd00::2\\]\"|;host=\"h\")") {
            // A quote that is left open costs the client its own place, and gives it nobody else's.
            for proxy in ["10.1.0.7", "\"[2001:db8::7]:4711\""] {
                let seen = of("10.9.0.1", "forwarded", &[format!("{forged}, for={proxy}{by}").as_bytes()]);
                prop_assert!(["10.1.0.7", "2001:db8::7", "10.9.0.1"].contains(&seen.as_str()), "{} as {}", forged, seen);
            }
        }
    }
}
