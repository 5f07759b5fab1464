//! The settings file: what does not fit on a command line. It is TOML, read once at the start.
//!
//! ```toml
//! # Of the rules of a kind the first that fits counts. A rule fits when all that it names fits:
//! # `key` and `model` are texts in which `*` stands for anything; `seed` is a network, an address or a host name.
//! [[capacity]]
//! key = "/models/dsv4$decode$*"
//! leases = 4
//!
//! [[lease_ttl]]
//! model = "/models/*-old"
//! seconds = 300
//!
//! # All seeds of one host together: they share its network.
//! [[host_capacity]]
//! host = "10.0.0.0/8"
//! leases = 8
//!
//! # Where seeds and workers stand that do not tell it, by address.
//! [[location]]
//! network = "10.1.0.0/16"
//! zone = "a"
//! rack = "a-17"
//!
//! # What the seeds of a key may hold, as `rfork digest --algorithm blake3` names it. Others are offered to nobody.
//! [[pin]]
//! key = "/models/dsv4$*"
//! content = ["blake3:6a0d1c6f9b7e5d8f3a2b4c1d0e9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f"]
//! ```

use std::net::IpAddr;
use std::path::Path;

use rfork_protocol::SeedIdentity;
use rfork_protocol::v2::Name;
use serde::Deserialize;
use toml::Spanned;

use crate::domain::location::Location;
use crate::domain::network::Network;
use crate::domain::pins::{Pinned, Pins};
use crate::domain::terms::{BadHosts, Hosts, Overrides, Pattern, Selector};
use crate::settings::MAX_POINTS;
use crate::toml_file::{self, FileError, Wrong};

/// The most rules of one kind: every registration looks at them.
const MAX_RULES: usize = 1_000;
/// The most contents of one pin: each grant of its keys tells them.
const MAX_PINNED: usize = 16;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileSettings {
    /// Terms that differ for some seeds.
    pub overrides: Overrides,
    /// Where addresses are, the most specific network first.
    pub networks: Networks,
}

/// Where addresses are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(Vec<(Network, Location)>);

impl Networks {
    /// What is known of an address; the most specific network that holds it counts.
    pub fn locate(&self, address: IpAddr) -> Location {
        let found = self.0.iter().find(|(network, _)| network.holds(address));
        found.map(|(_, location)| location.clone()).unwrap_or_default()
    }

    /// What is known of where a seed is, if it is told by an address.
    pub fn locate_seed(&self, seed: &SeedIdentity) -> Location {
        seed.address().map(|address| self.locate(address)).unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    capacity: Vec<CapacityRule>,
    #[serde(default)]
    lease_ttl: Vec<LeaseTtlRule>,
    #[serde(default)]
    host_capacity: Vec<HostRule>,
    #[serde(default)]
    location: Vec<LocationRule>,
    #[serde(default)]
    pin: Vec<PinRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapacityRule {
    key: Option<String>,
    model: Option<String>,
    seed: Option<Spanned<String>>,
    leases: Spanned<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseTtlRule {
    key: Option<String>,
    model: Option<String>,
    seed: Option<Spanned<String>>,
    seconds: Spanned<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostRule {
    host: Spanned<String>,
    leases: Spanned<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PinRule {
    key: String,
    content: Spanned<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocationRule {
    network: Spanned<Network>,
    zone: Option<Name>,
    rack: Option<Name>,
    host: Option<Name>,
}

impl FileSettings {
    /// Reads the file.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        toml_file::read(path, Self::parse)
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let file: File = toml::from_str(text)
            .map_err(|error| Wrong { at: toml_file::place(&error), reason: error.message().to_owned() })?;
        let File { capacity, lease_ttl, host_capacity, location, pin } = &file;
        let counts = [capacity.len(), lease_ttl.len(), host_capacity.len(), location.len(), pin.len()];
        if counts.iter().any(|count| *count > MAX_RULES) {
            return Err(Wrong { at: 0, reason: format!("more than {MAX_RULES} rules of one kind") });
        }
        let capacity = file.capacity.into_iter().enumerate().map(|(at, rule)| {
            let what = format!("capacity rule {}", at + 1);
            let leases = bounded(&what, "leases", &rule.leases, 1..=MAX_POINTS)?;
            Ok((selector(&what, rule.leases.span().start, rule.key, rule.model, rule.seed)?, leases))
        });
        let lease_ttl_ms = file.lease_ttl.into_iter().enumerate().map(|(at, rule)| {
            let what = format!("lease_ttl rule {}", at + 1);
            let seconds = bounded(&what, "seconds", &rule.seconds, 1..=86_400 * 365)?;
            let selector = selector(&what, rule.seconds.span().start, rule.key, rule.model, rule.seed)?;
            Ok((selector, i64::from(seconds) * 1_000))
        });
        let host_capacity = file.host_capacity.into_iter().enumerate().map(|(at, rule)| {
            let what = format!("host_capacity rule {}", at + 1);
            let leases = bounded(&what, "leases", &rule.leases, 1..=100_000)?;
            Ok((hosts(&what, "host", &rule.host)?, leases))
        });
        let pins = file.pin.into_iter().enumerate().map(|(at, rule)| {
            let ids = rule.content.get_ref();
            let pinned = match ids.len() {
                1..=MAX_PINNED => Pinned::new(ids.iter().map(String::as_str)).map_err(|bad| bad.to_string()),
                many => Err(format!("must be 1 to {MAX_PINNED} content ids, got {many}")),
            };
            let wrong = |reason| Wrong {
                at: rule.content.span().start,
                reason: format!("pin rule {}: content {reason}", at + 1),
            };
            Ok((Pattern::new(&rule.key), pinned.map_err(wrong)?))
        });
        let overrides = Overrides {
            capacity: capacity.collect::<Result<_, Wrong>>()?,
            lease_ttl_ms: lease_ttl_ms.collect::<Result<_, Wrong>>()?,
            host_capacity: host_capacity.collect::<Result<_, Wrong>>()?,
            pins: Pins(pins.collect::<Result<_, Wrong>>()?),
        };
        let networks = file.location.into_iter().enumerate().map(|(at, rule)| {
            let location = Location {
                zone: rule.zone.map(String::from),
                rack: rule.rack.map(String::from),
                host: rule.host.map(String::from),
            };
            if location.is_unknown() {
                let reason = format!("location rule {}: tell a zone, a rack or a host", at + 1);
                return Err(Wrong { at: rule.network.span().start, reason });
            }
            Ok((rule.network.into_inner(), location))
        });
        let mut networks = networks.collect::<Result<Vec<_>, Wrong>>()?;
        networks.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_bits()));
        Ok(Self { overrides, networks: Networks(networks) })
    }
}

fn bounded(
    what: &str,
    field: &str,
    value: &Spanned<u32>,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, Wrong> {
    let number = *value.get_ref();
    if range.contains(&number) {
        return Ok(number);
    }
    let reason = format!("{what}: {field} must be {} to {}, got {number}", range.start(), range.end());
    Err(Wrong { at: value.span().start, reason })
}

fn hosts(what: &str, field: &str, value: &Spanned<String>) -> Result<Hosts, Wrong> {
    let reason = |error: BadHosts| format!("{what}: {field} {error}");
    value.get_ref().parse().map_err(|error| Wrong { at: value.span().start, reason: reason(error) })
}

fn selector(
    what: &str,
    at: usize,
    key: Option<String>,
    model: Option<String>,
    seed: Option<Spanned<String>>,
) -> Result<Selector, Wrong> {
    if key.is_none() && model.is_none() && seed.is_none() {
        let reason = format!("{what}: name a key, a model or a seed; the default for all is a flag");
        return Err(Wrong { at, reason });
    }
    Ok(Selector {
        key: key.map(|text| Pattern::new(&text)),
        model: model.map(|text| Pattern::new(&text)),
        seed: seed.map(|seed| hosts(what, "seed", &seed)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::terms::Subject;
    use rfork_protocol::SeedKey;

    /// The example at the head of this file.
    fn example() -> String {
        let head = include_str!("settings_file.rs").lines().take_while(|line| line.starts_with("//!"));
        let lines = head.map(|line| line.trim_start_matches("//!").trim());
        lines
            .skip_while(|line| *line != "```toml")
            .skip(1)
            .take_while(|line| *line != "```")
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_is_read() {
        let settings = FileSettings::parse(&example()).unwrap();
        let key = SeedKey::new("/models/dsv4$decode$kv_both$0$1").unwrap();
        let subject = Subject { key: &key, model_url: Some("/models/x-old"), host: "10.1.2.3" };
        let terms = settings.overrides.terms(1, 60_000, &subject);
        assert_eq!((terms.capacity, terms.lease_ttl_ms, terms.host_capacity), (4, 300_000, Some(8)));
        let near = settings.networks.locate("10.1.9.9".parse().unwrap());
        assert_eq!((near.zone.as_deref(), near.rack.as_deref()), (Some("a"), Some("a-17")));
        assert_eq!(settings.overrides.pins.of(&key).map(|pinned| pinned.ids().len()), Some(1));
        assert!(settings.networks.locate("10.2.9.9".parse().unwrap()).is_unknown());
    }

    #[test]
    fn what_the_documents_show_is_read() {
        let pages = [include_str!("../../docs/settings-file.md"), include_str!("../../docs/security.md")];
        for (page, told) in pages.iter().zip([5, 1]) {
            let blocks = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
            let blocks: Vec<_> = blocks.filter(|block| !block.contains("[[principal]]")).collect();
            assert_eq!(blocks.len(), 1);
            let overrides = FileSettings::parse(blocks[0]).unwrap().overrides;
            let Overrides { capacity, lease_ttl_ms, host_capacity, pins } = overrides;
            let rules = capacity.len() + lease_ttl_ms.len() + host_capacity.len() + pins.0.len();
            assert_eq!(rules, told);
        }
    }

    #[test]
    fn the_most_specific_network_counts() {
        let text = "[[location]]\nnetwork = '10.0.0.0/8'\nzone = 'a'\n[[location]]\nnetwork = '10.1.0.0/16'\nzone = 'b'";
        let networks = FileSettings::parse(text).unwrap().networks;
        assert_eq!(networks.locate("10.1.0.1".parse().unwrap()).zone.as_deref(), Some("b"));
        assert_eq!(networks.locate("::ffff:10.2.0.1".parse().unwrap()).zone.as_deref(), Some("a"));
        let mapped = "[[location]]\nnetwork = '::ffff:10.0.0.0/104'\nzone = 'a'";
        let networks = FileSettings::parse(mapped).unwrap().networks;
        for told in ["10.2.0.1", "[::ffff:10.2.0.1]"] {
            let seed = SeedIdentity::new(told, 1, 0).unwrap();
            assert_eq!(networks.locate_seed(&seed).zone.as_deref(), Some("a"), "{told}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("rules.toml");
        for (text, line, said) in [
            ("[[capacity]]\nleases = 2", 2, "capacity rule 1: name a key"),
            ("[[capacity]]\nkey = 'k'\nleases = 0", 3, "leases must be 1 to 1000, got 0"),
            ("[[capacity]]\nkey = 'k'\nlease = 1", 3, "unknown field `lease`"),
            ("[[capacity]]\nkey = 'k'\nleases =\n", 3, "expected"),
            ("# ü\n\n[[lease_ttl]]\nkey = 'k'\nseconds = 0", 5, "lease_ttl rule 1: seconds must be 1"),
            ("[[location]]\nnetwork = 'x'", 2, "IP address"),
            ("[[location]]\nnetwork = '10.0.0.0/8'", 2, "location rule 1: tell a zone, a rack or a host"),
            ("[[location]]\nnetwork = '10.0.0.0/8'\nzone = ''", 3, "256 bytes"),
            ("[[capacity]]\nseed = '10.0.0.0/33'\nleases = 1", 2, "capacity rule 1: seed must be a network"),
            (
                "[[lease_ttl]]\nseed = '10.0.0.300'\nseconds = 1",
                2,
                "lease_ttl rule 1: seed must be a network",
            ),
            (
                "[[host_capacity]]\nhost = 'a/b'\nleases = 1",
                2,
                "host_capacity rule 1: host must be a network",
            ),
            ("[[pin]]\nkey = 'k'\ncontent = []", 3, "pin rule 1: content must be 1 to 16 content ids, got 0"),
            ("[[pin]]\nkey = 'k'\ncontent = ['blake3:1f']", 3, "pin rule 1: content must be content ids"),
            ("[[pin]]\ncontent = []", 1, "missing field `key`"),
            ("capacities = 1", 1, "unknown field `capacities`"),
            (r#""a\u001b[2J\n" = 1"#, 1, r"unknown field `a\u{1b}[2J\n`"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = FileSettings::read(&path).unwrap_err().to_string();
            let place = format!("{} line {line}: ", path.display());
            assert!(error.starts_with(&place) && error.contains(said), "{text}: {error}");
        }
        let error = FileSettings::read(Path::new("/does/not/exist")).unwrap_err().to_string();
        assert!(error.starts_with("/does/not/exist cannot be read: "), "{error}");
    }
}
