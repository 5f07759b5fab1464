//! A host, in the one form in which it is shown, compared, stored and told on.
//!
//! One machine has one text: an address as RFC 5952 writes it, without brackets, an IPv4-mapped one as IPv4; a name
//! in lower case and without the dot at its end. What resolvers read in different ways is refused instead:
//! `10.3`, `010.0.0.3` and `0xa000003` are addresses to some of them and names to others.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::shown::Shown;

/// The longest host name or address that is accepted, in bytes (DNS allows 253).
pub const MAX_HOST_BYTES: usize = 255;

/// A text that is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' cannot be the host of a URL: {reason}")]
pub struct BadHost {
    text: String,
    reason: &'static str,
}

impl BadHost {
    /// What stands before an `@` may be a password: it is not shown.
    fn new(text: &str, reason: &'static str) -> Self {
        let after = text.rsplit('@').next().unwrap_or_default();
        Self { text: Shown::within(after, 80).to_string(), reason }
    }
}

const NO_HOST: &str = "give an IPv4 or IPv6 address or a host name";
const NUMERIC: &str = "write an IPv4 address as four decimal numbers";
const ZONE: &str = "an address with a zone means nothing on another machine";
const UNSPECIFIED: &str = "it is where one listens, and leads nobody anywhere";
const CREDENTIALS: &str = "it must not have a user or a password";
const PATH: &str = "only a host, and at most its port, may stand there";
const PORT: &str = "what follows the colon is no port";

/// A host. Two of them are equal exactly when their texts are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    text: String,
    address: Option<IpAddr>,
}

impl Host {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address, if it is one and no name; never an IPv4-mapped one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// `host:port` as it stands in a URL: an IPv6 address gets its brackets.
    pub fn authority(&self, port: u16) -> String {
        match self.address {
            Some(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            _ => format!("{}:{port}", self.text),
        }
    }

    /// Reads a host as seeds tell it over API v1: also as `http://host` or `https://host`, and with a port behind it.
    /// Gives the port apart.
    ///
    /// # Errors
    /// [`BadHost`]; for a URL with a user or a path, too, which nobody would be told of.
    pub fn told(text: &str) -> Result<(Self, Option<u16>), BadHost> {
        let bad = |reason| BadHost::new(text, reason);
        let trimmed = text.trim();
        let scheme = ["http://", "https://"].into_iter().find(|scheme| {
            trimmed.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        });
        let Some(scheme) = scheme else {
            let (host, port) = with_port(trimmed).ok_or_else(|| bad(PORT))?;
            return Ok((host.parse()?, port));
        };
        let authority = trimmed[scheme.len()..].trim_end_matches('/');
        if authority.contains('@') {
            return Err(bad(CREDENTIALS));
        }
        if authority.contains(['/', '?', '#']) {
            return Err(bad(PATH));
        }
        let (host, port) = with_port(authority).ok_or_else(|| bad(PORT))?;
        Ok((host.parse()?, port))
    }
}

/// Parts `host:port`, where an IPv6 host with a port has to stand in brackets; `None` when that is no port.
fn with_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rfind(']') {
        Some(end) if text.starts_with('[') => match &text[end + 1..] {
            "" => return Some((text, None)),
            rest => (&text[..=end], rest.strip_prefix(':')?),
        },
        _ => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, port),
            _ => return Some((text, None)),
        },
    };
    if port.is_empty() {
        return Some((host, None));
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    port.parse().ok().filter(|port| digits && *port > 0).map(|port| (host, Some(port)))
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { text: address.to_string(), address: Some(address) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads an address, an IPv6 one with or without brackets, or a name.
impl FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let bad = |reason| BadHost::new(text, reason);
        if text.is_empty() || text.len() > MAX_HOST_BYTES {
            return Err(bad(NO_HOST));
        }
        if text.contains([':', '[', ']']) {
            let bare = match text.strip_prefix('[') {
                Some(rest) => rest.strip_suffix(']').ok_or_else(|| bad(NO_HOST))?,
                None => text,
            };
            let address = bare.parse::<Ipv6Addr>();
            let reason = if bare.contains('%') { ZONE } else { NO_HOST };
            return reachable(address.map_err(|_| bad(reason))?.into()).ok_or_else(|| bad(UNSPECIFIED));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if let Ok(address) = name.parse::<IpAddr>() {
            return reachable(address).ok_or_else(|| bad(UNSPECIFIED));
        }
        let fits = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !name.split('.').all(fits) {
            return Err(bad(NO_HOST));
        }
        if name.rsplit('.').next().is_some_and(is_number) {
            return Err(bad(NUMERIC));
        }
        Ok(Self { text: name, address: None })
    }
}

fn reachable(address: IpAddr) -> Option<Host> {
    let host = Host::from(address);
    host.address.is_some_and(|address| !address.is_unspecified()).then_some(host)
}

/// Whether a last label makes of a name an address: as the URL standard's "ends in a number" has it.
fn is_number(label: &str) -> bool {
    label.bytes().all(|b| b.is_ascii_digit())
        || label.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whose share an address counts to: a host has any number of IPv6 addresses of its network.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_machine_has_one_text() {
        for (text, canonical) in [
            ("10.0.0.7", "10.0.0.7"),
            ("10.0.0.7.", "10.0.0.7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("[::ffff:10.0.0.7]", "10.0.0.7"),
            ("::FFFF:0a00:0007", "10.0.0.7"),
            ("fd00::1", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("FD00:0::0001", "fd00::1"),
            ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
            ("fe80::1", "fe80::1"),
            ("::1", "::1"),
            ("h", "h"),
            ("Node-3.Rack_1.Example.", "node-3.rack_1.example"),
            ("3com.example", "3com.example"),
            ("10.0.0.7.example", "10.0.0.7.example"),
            ("0xg", "0xg"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.as_str(), canonical, "{text}");
            assert_eq!(host.address(), canonical.parse().ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_or_read_in_different_ways_is_refused() {
        for (bad, why) in [
            ("", NO_HOST),
            ("a b", NO_HOST),
            ("a/b", NO_HOST),
            ("a@b", NO_HOST),
            ("a#b", NO_HOST),
            ("a\tb", NO_HOST),
            ("a?b", NO_HOST),
            ("%41", NO_HOST),
            ("é", NO_HOST),
            ("[::1", NO_HOST),
            ("::1]", NO_HOST),
            ("1:2", NO_HOST),
            ("h:80", NO_HOST),
            ("[10.0.0.1]", NO_HOST),
            (".", NO_HOST),
            ("h..", NO_HOST),
            (".h", NO_HOST),
            ("a..b", NO_HOST),
            ("10.3", NUMERIC),
            ("10.0.0.03", NUMERIC),
            ("010.0.0.3", NUMERIC),
            ("10.0.0.256", NUMERIC),
            ("167772163", NUMERIC),
            ("0xa000003", NUMERIC),
            ("10.0.0.0X3", NUMERIC),
            ("h.0x", NUMERIC),
            ("node.7", NUMERIC),
            ("fe80::1%eth0", ZONE),
            ("[fe80::1%25eth0]", ZONE),
            ("0.0.0.0", UNSPECIFIED),
            ("::", UNSPECIFIED),
            ("[::]", UNSPECIFIED),
            ("::ffff:0.0.0.0", UNSPECIFIED),
        ] {
            let error = bad.parse::<Host>().unwrap_err();
            assert_eq!(error.reason, why, "{bad}");
        }
        assert!("h".repeat(MAX_HOST_BYTES + 1).parse::<Host>().is_err());
    }

    #[test]
    fn seeds_may_tell_a_url_or_a_port() {
        for (told, host, port) in [
            ("10.0.0.7", "10.0.0.7", None),
            ("http://10.0.0.7", "10.0.0.7", None),
            ("HTTPS://Node-1.example./", "node-1.example", None),
            ("http://node-1:8000", "node-1", Some(8000)),
            ("http://[fd00:0::7]:8000/", "fd00::7", Some(8000)),
            ("https://[fd00::7]", "fd00::7", None),
            ("[fd00::7]:8000", "fd00::7", Some(8000)),
            ("[fd00::7]", "fd00::7", None),
            ("fd00::7", "fd00::7", None),
            ("[::ffff:10.0.0.7]:8000", "10.0.0.7", Some(8000)),
            ("10.0.0.7:8000", "10.0.0.7", Some(8000)),
            ("http://10.0.0.7:", "10.0.0.7", None),
            (" node-1 ", "node-1", None),
        ] {
            assert_eq!(Host::told(told).unwrap(), (host.parse().unwrap(), port), "{told}");
        }
        for bad in [
            "",
            "http://",
            "http:///",
            "http://a/b",
            "http://a?b",
            "http://a#b",
            "http://user:secret@a",
            "ftp://a",
            "a:b",
            "a:0",
            "a:65536",
            "a:+1",
            "[fd00::7]8000",
            "[fd00::7]:x",
            "[fd00::7]:8000:9",
            "http://http://a",
            "http://[::]",
            "http://10.3",
            "http://[fe80::1%25eth0]",
        ] {
            assert!(Host::told(bad).is_err(), "{bad}");
        }
        for told in ["http://user:secret@a", "user:secret@a"] {
            let error = Host::told(told).unwrap_err().to_string();
            assert!(error.starts_with("'a' ") && !error.contains("secret"), "{error}");
        }
    }

    fn hosts() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|bytes| IpAddr::from(bytes).to_string()),
            any::<[u16; 8]>().prop_map(|parts| IpAddr::from(parts).to_string()),
            any::<[u8; 4]>().prop_map(|[a, b, c, d]| format!("::ffff:{a}.{b}.{c}.{d}")),
            "[a-zA-Z0-9._-]{1,20}",
            "[ -~]{1,20}",
        ]
    }

    proptest! {
        #[test]
        fn the_canonical_text_is_of_itself(text in hosts()) {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.as_str().parse(), Ok(host.clone()));
                prop_assert_eq!(Host::told(&text), Ok((host.clone(), None)));
                // As written in other ways.
                prop_assert_eq!(text.to_ascii_uppercase().parse(), Ok(host.clone()));
                if host.address().is_none_or(|address| address.is_ipv4()) && !text.contains(':') {
                    prop_assert_eq!(format!("{}.", text.trim_end_matches('.')).parse(), Ok(host.clone()));
                }
                if text.contains(':') {
                    prop_assert_eq!(format!("[{}]", text.trim_matches(['[', ']'])).parse(), Ok(host));
                }
            }
        }

        #[test]
        fn every_way_to_write_an_address_is_that_address(parts: [u16; 8]) {
            let address = IpAddr::from(parts);
            prop_assume!(!address.to_canonical().is_unspecified());
            let long = parts.map(|part| format!("{part:04X}")).join(":");
            for text in [long.clone(), format!("[{long}]"), address.to_string()] {
                prop_assert_eq!(text.parse(), Ok(Host::from(address)), "{}", text);
            }
        }

        #[test]
        fn a_host_that_is_accepted_stays_whole_in_a_url(text in hosts(), port in 1u16..) {
            if let Ok(host) = text.parse::<Host>() {
                let authority = host.authority(port);
                prop_assert!(!authority.contains(['/', '@', '#', '?', ' ', '%']));
                prop_assert_eq!(Host::told(&format!("http://{authority}/")), Ok((host, Some(port))));
            }
        }

        #[test]
        fn any_text_is_told_or_refused(text in "(https?://)?[\\[\\]a-z0-9:.@/%é]{0,24}") {
            let _ = Host::told(&text);
        }
    }
}
