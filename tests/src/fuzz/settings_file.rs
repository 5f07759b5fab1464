//! The planner's settings file.

use std::fs;
use std::net::IpAddr;

use rfork_planner::domain::terms::Subject;
use rfork_planner::settings_file::FileSettings;
use rfork_protocol::SeedKey;

use super::{Target, in_directory, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "settings_file", run, executions: 4_000, most_bytes: |input| 256 * input + (64 << 10) };

/// What a planner lends without any rule.
const TERMS: (u32, i64) = (1, 60_000);
/// Where seeds are that rules are tried on.
const HOSTS: [&str; 4] = ["10.1.2.3", "fd00::7", "::ffff:10.0.0.1", "node-1"];

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    let settings = in_directory(|home| {
        let path = home.join("rules.toml");
        fs::write(&path, data).unwrap();
        FileSettings::read(&path)
    });
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            is_one_line(&error);
            return;
        }
    };
    for host in HOSTS {
        for (key, model_url) in [("k", None), ("/models/dsv4$decode$1", Some("/models/x-old"))] {
            let key = SeedKey::from_text(key).unwrap();
            let terms = settings.overrides.terms(TERMS.0, TERMS.1, &Subject { key: &key, model_url, host });
            let lends = &settings.overrides;
            assert!(
                terms.capacity == TERMS.0
                    || lends.capacity.iter().any(|(_, leases)| *leases == terms.capacity)
            );
            assert!(terms.capacity >= 1 && terms.lease_ttl_ms >= 1_000 && terms.host_capacity != Some(0));
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            let place = settings.networks.locate(address);
            assert_eq!(place, settings.networks.locate(address.to_canonical()), "one address in two forms");
        }
    }
}
