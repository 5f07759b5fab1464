//! Whose request it is: the address at the other end of its connection, or the one for which a trusted proxy speaks.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::delivery::Delivery;

/// Where proxies write for whom they speak, each behind what was there before.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The most proxies in a row that are believed.
const MAX_PROXIES: usize = 16;

/// The client of a request.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its address, as far as it is known.
    pub address: IpAddr,
    /// How it is told of a lease.
    pub delivery: Delivery,
}

/// The client's address: that of the connection's `peer`, or, when this is a trusted proxy, the last address in
/// `X-Forwarded-For` that is no trusted proxy. What stands before that one anybody may have written. A proxy that
/// tells nothing, or something else than an address, speaks for itself.
pub(super) fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted =
        |address: IpAddr| trusted.iter().any(|network| network.contains(&address.to_canonical()));
    let mut client = peer;
    if !is_trusted(client) {
        return client;
    }
    // Several headers are one list.
    let lines: Vec<&str> =
        headers.get_all(X_FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok()).collect();
    for named in lines.iter().rev().flat_map(|line| line.rsplit(',')).take(MAX_PROXIES) {
        let named = named.trim().trim_start_matches('[').trim_end_matches(']');
        let Ok(named) = named.parse::<IpAddr>() else { break };
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

    fn of(peer: &str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        let trusted: [IpNet; 2] = ["10.9.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
        address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_trusted_proxy_speaks_for_its_client_and_nobody_else_does() {
        assert_eq!(of("10.9.0.1", &[b"10.1.0.7"]), "10.1.0.7");
        assert_eq!(
            of("10.9.0.1", &[b"6.6.6.6, 10.1.0.7,10.9.0.2"]),
            "10.1.0.7",
            "what a client wrote is not believed"
        );
        assert_eq!(of("10.9.0.1", &[b"6.6.6.6", b"10.1.0.7"]), "10.1.0.7");
        assert_eq!(of("10.9.0.1", &[b"[fd00::1], 2001:db8::7"]), "2001:db8::7");
        assert_eq!(of("::ffff:10.9.0.1", &[b"10.1.0.7"]), "10.1.0.7", "a listener on [::] sees IPv4 so");
        assert_eq!(of("10.1.0.7", &[b"10.2.0.7"]), "10.1.0.7", "it is no proxy");
        for said in [&b"unknown"[..], b"", b"10.1.0.7:4711", b"\xe9"] {
            assert_eq!(of("10.9.0.1", &[said]), "10.9.0.1");
        }
        assert_eq!(
            of("10.9.0.1", &[b"10.1.0.7, unknown, 10.9.0.2"]),
            "10.9.0.2",
            "no further than it is understood"
        );
        assert_eq!(of("10.9.0.1", &[]), "10.9.0.1");
        assert_eq!(of("10.9.0.1", &[b"10.9.0.3, 10.9.0.2"]), "10.9.0.3", "who asks from a proxy's own host");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_a_client_writes_before_never_counts(forged in "[0-9a-f:., ]{0,60}") {
            prop_assert_eq!(of("10.9.0.1", &[format!("{forged},10.1.0.7").as_bytes()]), "10.1.0.7");
            prop_assert_eq!(of("10.1.0.7", &[forged.as_bytes()]), "10.1.0.7");
        }
    }
}
