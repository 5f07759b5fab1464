//! Networks in settings, and which addresses they hold.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use rfork_protocol::shown::Shown;
use serde::Deserialize;

/// The bits before the IPv4 address in an IPv4-mapped one.
const MAPPED_BITS: u8 = 96;

/// A network. IPv4-mapped addresses count as IPv4, in the network and in what is asked of it: `::ffff:10.0.0.0/104` is
/// `10.0.0.0/8`. Other IPv6 networks hold no IPv4 address, `::/0` neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

/// A text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither a network, as 10.0.0.0/8 or fd00::/8, nor an IP address")]
pub struct BadNetwork(String);

impl Network {
    /// Whether it holds the address.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// The bits in which its addresses are equal.
    pub fn prefix_bits(&self) -> u8 {
        self.0.prefix_len()
    }
}

impl From<IpNet> for Network {
    fn from(network: IpNet) -> Self {
        let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
        match network {
            IpNet::V6(net) if net.prefix_len() >= MAPPED_BITS => match mapped(net.network()) {
                // It fits: an IPv6 prefix has at most 128 bits.
                Some(address) => {
                    Self(Ipv4Net::new(address, net.prefix_len() - MAPPED_BITS).map_or(network, IpNet::V4))
                }
                None => Self(network),
            },
            _ => Self(network),
        }
    }
}

/// Reads a network, or an address for that address alone; an IPv6 one may stand in brackets.
impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork(Shown::within(text, 80).to_string());
        let (address, bits) = match text.trim().split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text.trim(), None),
        };
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = bare.parse().map_err(|_| bad())?;
        let Some(bits) = bits else { return Ok(IpNet::from(address).into()) };
        let bits = bits.parse().ok().filter(|_| bits.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad)?;
        Ok(IpNet::new(address, bits).map_err(|_| bad())?.into())
    }
}

impl TryFrom<String> for Network {
    type Error = BadNetwork;

    fn try_from(text: String) -> Result<Self, BadNetwork> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ipv4_mapped_network_is_the_ipv4_network() {
        for (text, address, holds) in [
            ("10.0.0.0/8", "10.9.9.9", true),
            ("10.0.0.0/8", "::ffff:10.9.9.9", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("::ffff:10.0.0.0/104", "10.9.9.9", true),
            ("::ffff:10.0.0.0/104", "11.0.0.1", false),
            ("::ffff:0:0/96", "10.9.9.9", true),
            ("::ffff:0:0/96", "fd00::1", false),
            ("::ffff:10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.8", false),
            ("[fd00::7]", "fd00::7", true),
            ("fd00::/8", "fd00::1", true),
            ("::/0", "fd00::1", true),
            ("::/0", "10.0.0.1", false),
            ("0.0.0.0/0", "10.0.0.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            (" 10.0.0.0/8 ", "10.0.0.1", true),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.holds(address.parse().unwrap()), holds, "{text} {address}");
        }
        assert_eq!("::ffff:10.0.0.0/104".parse(), "10.0.0.0/8".parse::<Network>());
        for bad in
            ["", "x", "10.0.0.0/33", "10/8", "10.0.0.0/8/8", "fd00::/129", "010.0.0.0/8", "10.0.0.0/+8"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_mapped_network_holds_what_the_ipv4_one_holds(net: [u8; 4], bits in 0u8..=32, address: [u8; 4]) {
            let (net, address) = (std::net::Ipv4Addr::from(net), std::net::Ipv4Addr::from(address));
            let plain: Network = format!("{net}/{bits}").parse().unwrap();
            let mapped: Network = format!("{}/{}", net.to_ipv6_mapped(), bits + MAPPED_BITS).parse().unwrap();
            for address in [IpAddr::from(address), IpAddr::from(address.to_ipv6_mapped()), IpAddr::from(net)] {
                prop_assert_eq!(plain.holds(address), mapped.holds(address));
            }
            prop_assert!(mapped.holds(net.into()));
        }
    }
}
