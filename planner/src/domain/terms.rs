//! The terms on which a seed is lent: how many leases at once, how long one lives. A default, and rules for
//! some seeds, of which the first that fits counts.

use std::net::IpAddr;
use std::str::FromStr;

use rfork_protocol::shown::Shown;
use rfork_protocol::{Host, SeedKey};

use super::network::Network;
use super::pins::Pins;

/// The terms of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Leases that it may have at once.
    pub capacity: u32,
    /// How long a lease lives from grant or renewal, in milliseconds.
    pub lease_ttl_ms: i64,
    /// Leases that all seeds of its host may have together.
    pub host_capacity: Option<u32>,
}

/// What the rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// What the seed holds.
    pub key: &'a SeedKey,
    /// The label that names its model.
    pub model_url: Option<&'a str>,
    /// The host of its address, canonical.
    pub host: &'a str,
}

/// Which seeds a rule is for: all that is told must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// The seed's key.
    pub key: Option<Pattern>,
    /// Its model.
    pub model: Option<Pattern>,
    /// The host of its address.
    pub seed: Option<Hosts>,
}

impl Selector {
    /// Whether the rule is for this seed.
    pub fn fits(&self, subject: &Subject<'_>) -> bool {
        self.key.as_ref().is_none_or(|pattern| pattern.fits(subject.key.as_bytes()))
            && self
                .model
                .as_ref()
                .is_none_or(|pattern| subject.model_url.is_some_and(|model| pattern.fits(model.as_bytes())))
            && self.seed.as_ref().is_none_or(|hosts| hosts.contain(subject.host))
    }
}

/// Hosts, by network or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// Addresses of a network.
    Network(Network),
    /// Names and addresses that a pattern fits, in their canonical form.
    Named(Pattern),
}

/// A text that fits no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a network, an address or a host name, got '{0}'")]
pub struct BadHosts(String);

impl Hosts {
    fn contain(&self, host: &str) -> bool {
        match self {
            Self::Network(network) => host.parse::<IpAddr>().is_ok_and(|address| network.holds(address)),
            Self::Named(pattern) => pattern.fits(host.as_bytes()),
        }
    }
}

/// Reads `10.0.0.0/8`, an address, or a name in which `*` stands for anything. A slip in a network (`10.0.0.0/33`)
/// is refused: it would be a name that no seed has.
impl FromStr for Hosts {
    type Err = BadHosts;

    fn from_str(text: &str) -> Result<Self, BadHosts> {
        let bad = || BadHosts(Shown::within(text, 80).to_string());
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        if !text.contains('*') {
            let name = text.parse::<Host>().map_err(|_| bad())?;
            return Ok(Self::Named(Pattern::new(name.as_str())));
        }
        let stands_in_hosts = |sign: char| sign.is_ascii_alphanumeric() || "*.-_:".contains(sign);
        if !text.chars().all(stands_in_hosts) {
            return Err(bad());
        }
        let canonical = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        Ok(Self::Named(Pattern::new(&canonical)))
    }
}

/// A text in which `*` stands for any bytes, none included. Keys may hold every other byte, so there is no
/// other sign with a meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// A pattern.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// Whether it stands for the whole of `bytes`. Each part between two stars is looked for from the left; the
    /// last must end the text. That is enough, because an earlier place leaves more to what follows.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        let mut parts = self.0.split(|byte| *byte == b'*');
        let Some(mut rest) = parts.next().and_then(|first| bytes.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts.filter(|part| !part.is_empty()) {
            let Some(at) = rest.windows(part.len()).position(|window| window == part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// What differs from the defaults, for some seeds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Leases at once.
    pub capacity: Vec<(Selector, u32)>,
    /// Times to live, in milliseconds.
    pub lease_ttl_ms: Vec<(Selector, i64)>,
    /// Leases of all seeds of a host together.
    pub host_capacity: Vec<(Hosts, u32)>,
    /// What seeds may hold.
    pub pins: Pins,
}

impl Overrides {
    /// The terms of one seed.
    pub fn terms(&self, capacity: u32, lease_ttl_ms: i64, subject: &Subject<'_>) -> Terms {
        fn first<T: Copy>(rules: &[(Selector, T)], subject: &Subject<'_>) -> Option<T> {
            rules.iter().find(|(selector, _)| selector.fits(subject)).map(|(_, value)| *value)
        }
        let host = self.host_capacity.iter().find(|(hosts, _)| hosts.contain(subject.host));
        Terms {
            capacity: first(&self.capacity, subject).unwrap_or(capacity),
            lease_ttl_ms: first(&self.lease_ttl_ms, subject).unwrap_or(lease_ttl_ms),
            host_capacity: host.map(|(_, capacity)| *capacity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> SeedKey {
        SeedKey::new(text).unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let by_key = Selector { key: Some(Pattern::new("/m/*$decode$*")), ..Selector::default() };
        let by_seed = Selector { seed: "10.1.0.0/16".parse().ok(), ..Selector::default() };
        let by_model = Selector { model: Some(Pattern::new("/m/big")), ..Selector::default() };
        let rules = Overrides {
            capacity: vec![(by_key.clone(), 4), (by_seed, 2)],
            lease_ttl_ms: vec![(by_model, 300_000)],
            host_capacity: vec![("10.1.*".parse().unwrap(), 9)],
            pins: Pins::default(),
        };
        let terms = |text: &str, model_url: Option<&str>, host: &str| {
            rules.terms(1, 60_000, &Subject { key: &key(text), model_url, host })
        };
        let both = terms("/m/a$decode$0", Some("/m/big"), "10.1.2.3");
        assert_eq!(both, Terms { capacity: 4, lease_ttl_ms: 300_000, host_capacity: Some(9) });
        assert_eq!(terms("/m/a$prefill$0", None, "10.1.2.3").capacity, 2);
        let none = terms("/m/a$prefill$0", Some("/m/bigger"), "h");
        assert_eq!(none, Terms { capacity: 1, lease_ttl_ms: 60_000, host_capacity: None });
    }

    #[test]
    fn hosts_are_networks_addresses_or_names() {
        for (hosts, host, fits) in [
            ("10.0.0.0/8", "10.9.9.9", true),
            ("10.0.0.0/8", "11.9.9.9", false),
            ("10.0.0.0/8", "a-name", false),
            ("::ffff:10.0.0.0/104", "10.9.9.9", true),
            ("fd00::/8", "fd00::1", true),
            ("[FD00:0::1]", "fd00::1", true),
            ("10.0.0.1", "10.0.0.1", true),
            ("node-*.pod", "node-17.pod", true),
            ("Node-*.pod.", "node-17.pod", true),
            ("node-*.pod", "node-17.pods", false),
            ("Node-17.Pod.", "node-17.pod", true),
            ("fd00::*", "fd00::1", true),
            ("*", "anything", true),
        ] {
            assert_eq!(hosts.parse::<Hosts>().unwrap().contain(host), fits, "{hosts} {host}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.300", "10.3", "a/b", "a b", "a@*", "0.0.0.0/0/0"] {
            assert!(bad.parse::<Hosts>().is_err(), "{bad}");
        }
    }

    /// The meaning, spelt out: try every length for each star.
    fn means(pattern: &[u8], bytes: &[u8]) -> bool {
        match pattern.split_first() {
            None => bytes.is_empty(),
            Some((b'*', rest)) => (0..=bytes.len()).any(|from| means(rest, &bytes[from..])),
            Some((byte, rest)) => bytes.first() == Some(byte) && means(rest, &bytes[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_means_what_it_says(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            let expected = means(pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(Pattern::new(&pattern).fits(text.as_bytes()), expected);
        }
    }
}
