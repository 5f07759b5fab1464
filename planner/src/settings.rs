//! The planner's settings, each described once: flags, help, environment and documents come from this table. What they
//! mean together is [`crate::config::Settings`].
//!
//! Variables are `RFORK_CFG_<FLAG>`; not `RFORK_PLANNER_<FLAG>`, because Kubernetes itself sets `RFORK_PLANNER_PORT`, to
//! a URL, for a Service named `rfork-planner`.

use rfork_protocol::settings::{Section, Setting, Takes};

/// Ten years. A longer time is a slip, and would overflow timers.
const SECONDS: Takes = Takes::Whole(1, 10 * 365 * 86_400);
const HOUR_SEC: u64 = 3_600;
const MONTH_SEC: u64 = 30 * 86_400;
/// Leases that a seed may have at once, at most; each is a row of the database.
pub(crate) const MAX_POINTS: u32 = 1_000;

/// The most that a chain's depth may be bounded by: what an index of seeds tells apart.
const MAX_CHAIN_DEPTH: u64 = u16::MAX as u64;
/// Connections or requests at once.
const AT_ONCE: Takes = Takes::Whole(1, 1_000_000);
pub(crate) const NETWORKS: Takes = Takes::Form("networks separated by commas, as 10.0.0.0/8,fd00::/8");

/// The table.
pub const SETTINGS: &[Section] = &[
    Section {
        title: "Listening",
        settings: &[
            Setting::new("host", Takes::Text, "Address or host name to listen on")
                .value("ADDRESS")
                .env("RFORK_CFG_HOST")
                .default("127.0.0.1")
                .more("0.0.0.0 stands for every IPv4 address of this machine, :: for every one of both families"),
            Setting::new("port", Takes::Whole(0, 65_535), "Port to listen on; 0 takes a free one and logs it")
                .value("PORT")
                .env("RFORK_CFG_PORT")
                .default("1223"),
            Setting::new(
                "probe_port",
                Takes::Whole(0, 65_535),
                "A second port, for /healthz, /readyz and /metrics alone; 0 takes a free one and logs it",
            )
            .value("PORT")
            .env("RFORK_CFG_PROBE_PORT")
            .otherwise("none")
            .more("They are answered on the first port, too. The second one never speaks TLS"),
            Setting::new(
                "tls_cert_file",
                Takes::Text,
                "A PEM file with the planner's certificate, and those between it and a CA: the planner speaks TLS, and \
                 nothing else",
            )
            .value("FILE")
            .env("RFORK_CFG_TLS_CERT_FILE")
            .otherwise("none")
            .more("It is read again when it changes; while it cannot be used, what it said before counts"),
            Setting::new("tls_key_file", Takes::Text, "A PEM file with the certificate's private key, not encrypted")
                .value("FILE")
                .env("RFORK_CFG_TLS_KEY_FILE")
                .otherwise("none"),
            Setting::new(
                "tls_client_ca_file",
                Takes::Text,
                "A PEM file with the CAs whose clients' certificates say who asks, by names that --token-file has",
            )
            .value("FILE")
            .env("RFORK_CFG_TLS_CLIENT_CA_FILE")
            .otherwise("none: clients are asked for no certificate"),
            Setting::new("max_connections", AT_ONCE, "Connections at once")
                .value("CONNECTIONS")
                .env("RFORK_CFG_MAX_CONNECTIONS")
                .default("8192")
                .more("More take the place of those without a request, or wait until one ends. Of the last quarter an address \
                 has a sixteenth of all at most; so it is with requests"),
            Setting::new(
                "max_requests",
                AT_ONCE,
                "Requests at once of each kind: those that ask for a seed, and all others",
            )
            .value("REQUESTS")
            .env("RFORK_CFG_MAX_REQUESTS")
            .default("4096")
            .more("More are answered 503 at once. Probes and metrics are not counted"),
            Setting::new("max_waiting", AT_ONCE, "Requests at once that wait for a seed")
                .value("REQUESTS")
                .env("RFORK_CFG_MAX_WAITING")
                .default("4096")
                .more("More are answered 503 at once. Each keeps its connection"),
            Setting::new(
                "idle_timeout_sec",
                Takes::Whole(1, HOUR_SEC),
                "Seconds that a connection may wait for a whole request head, and a client let an answer wait",
            )
            .value("SECONDS")
            .env("RFORK_CFG_IDLE_TIMEOUT_SEC")
            .default("65")
            .more("Longer than a proxy before the planner keeps its connections"),
            Setting::new(
                "drain_sec",
                Takes::Whole(0, HOUR_SEC),
                "Seconds that the planner serves on after SIGTERM or Ctrl-C, while /readyz says 503",
            )
            .value("SECONDS")
            .env("RFORK_CFG_DRAIN_SEC")
            .default("5")
            .more("A second signal ends them"),
            Setting::new(
                "trusted_proxies",
                NETWORKS,
                "Networks of load balancers whose X-Forwarded-For or Forwarded is believed",
            )
            .value("NETWORKS")
            .env("RFORK_CFG_TRUSTED_PROXIES")
            .otherwise("none")
            .more("They say for whom they speak; of both headers, as far as they agree. That address decides where a worker \
                 is that does not tell it itself, by the rules of the settings file"),
        ],
    },
    Section {
        title: "Who may ask",
        settings: &[
            Setting::new("token_file", Takes::Text, "A TOML file of principals: their roles and their tokens")
                .value("FILE")
                .env("RFORK_CFG_TOKEN_FILE")
                .otherwise("none")
                .more("It is read again when it changes"),
            Setting::new(
                "auth_mode",
                Takes::OneOf(&["off", "permissive", "enforce"]),
                "Whether it is looked at who asks",
            )
            .value("off|permissive|enforce")
            .env("RFORK_CFG_AUTH_MODE")
            .otherwise("enforce with --token-file, else off")
            .more("permissive counts what would be refused, and serves it"),
            Setting::new(
                "seed_owner",
                Takes::OneOf(&["principal", "address"]),
                "Who alone may send heartbeats of a seed that lives, register its address or take it out",
            )
            .value("principal|address")
            .env("RFORK_CFG_SEED_OWNER")
            .default("principal")
            .more("The principal that registered it, if that is known; with address only from where it did, which also tells \
                 apart workers that share a token or have none"),
        ],
    },
    Section {
        title: "Database",
        settings: &[
            Setting::new(
                "database_url",
                Takes::Form("the URL of a database"),
                "Where seeds and leases are kept: sqlite:///path/to/file.db for one planner, or \
                 postgres://user@host/database for any number of them",
            )
            .value("URL")
            .env("RFORK_CFG_DATABASE_URL")
            .otherwise("rfork/planner.db in the user's data directory")
            .more("Postgres takes TLS by ?sslmode=require, or verify-full with &sslrootcert=FILE")
            .secret(),
            Setting::new("database_url_file", Takes::Text, "A file that holds the URL instead")
                .value("FILE")
                .env("RFORK_CFG_DATABASE_URL_FILE")
                .otherwise("none")
                .more("It keeps a password out of the process list"),
            Setting::new(
                "database_pool_size",
                // One for the writer, and others for heartbeats, the sweep and questions.
                Takes::Whole(2, 100),
                "Connections to Postgres that this planner has at most",
            )
            .value("CONNECTIONS")
            .env("RFORK_CFG_DATABASE_POOL_SIZE")
            .default("8"),
            Setting::new(
                "database_statement_timeout_ms",
                // A statement that takes longer could not be answered within a request's deadline.
                Takes::Whole(100, 3_500),
                "Milliseconds that a statement may take in Postgres, its wait for locks included",
            )
            .value("MILLISECONDS")
            .env("RFORK_CFG_DATABASE_STATEMENT_TIMEOUT_MS")
            .default("2000")
            .more("Beyond them requests are answered 503"),
            Setting::new(
                "database_pooler",
                Takes::OneOf(&["auto", "yes", "no"]),
                "Whether a pooler, such as pgbouncer in transaction mode, stands before Postgres",
            )
            .value("auto|yes|no")
            .env("RFORK_CFG_DATABASE_POOLER")
            .default("auto")
            .more("auto finds out at the start; yes is right everywhere, and slower"),
            Setting::new(
                "database_lock_wait_sec",
                Takes::Whole(0, HOUR_SEC),
                "Seconds that a planner waits at the start for another one that has its SQLite file",
            )
            .value("SECONDS")
            .env("RFORK_CFG_DATABASE_LOCK_WAIT_SEC")
            .default("30"),
            Setting::new(
                "max_seeds",
                Takes::Whole(1, 100_000_000),
                "Seeds that planners of one database keep, drained and silent ones among them",
            )
            .value("SEEDS")
            .env("RFORK_CFG_MAX_SEEDS")
            .default("1000000")
            .more("More are answered 429, and those that are known go on"),
            Setting::new(
                "max_remembered_requests",
                Takes::Whole(1, 100_000_000),
                "Requests that planners of one database keep: those that wait for a seed, and those under an idempotency \
                 key, which are remembered for an hour or --history-sec",
            )
            .value("REQUESTS")
            .env("RFORK_CFG_MAX_REMEMBERED_REQUESTS")
            .default("1000000")
            .more("More are answered 429"),
            Setting::new(
                "max_memory_mib",
                Takes::Whole(1, 1 << 20),
                "MiB of memory that seeds, leases and requests of a planner with a SQLite file take",
            )
            .value("MIB")
            .env("RFORK_CFG_MAX_MEMORY_MIB")
            .default("1024")
            .more("Beyond them new seeds, and requests that would wait, are answered 429"),
            Setting::new(
                "max_database_mib",
                Takes::Whole(1, 1 << 24),
                "MiB of seeds and requests that planners of one database keep there: each with its key, and 1 KiB",
            )
            .value("MIB")
            .env("RFORK_CFG_MAX_DATABASE_MIB")
            .default("4096")
            .more("Beyond them new ones are answered 429, and those that are known go on"),
        ],
    },
    Section {
        title: "Seeds and leases",
        settings: &[
            Setting::new(
                "heartbeat_ttl_sec",
                SECONDS,
                "Seconds without a heartbeat after which a seed is not handed out any more",
            )
            .value("SECONDS")
            .env("RFORK_CFG_HEARTBEAT_TTL_SEC")
            .default("60"),
            Setting::new(
                "heartbeat_sweep_sec",
                SECONDS,
                "Seconds between two tidyings-up of what has expired",
            )
            .value("SECONDS")
            .env("RFORK_CFG_HEARTBEAT_SWEEP_SEC")
            .default("5"),
            Setting::new(
                "lease_ttl_sec",
                SECONDS,
                "Seconds after which a lease that was not renewed is gone",
            )
            .value("SECONDS")
            .env("RFORK_CFG_LEASE_TTL_SEC")
            .default("60")
            .more("Older vLLM Ascend workers never renew: a whole transfer must fit. 300 is sound for them"),
            Setting::new(
                "default_resource_points",
                Takes::Whole(1, MAX_POINTS as u64),
                "Workers that may read from one seed at once",
            )
            .value("POINTS")
            .env("RFORK_CFG_DEFAULT_RESOURCE_POINTS")
            .default("1"),
            Setting::new(
                "alloc_policy",
                Takes::OneOf(&["balanced", "fifo", "lru"]),
                "How a seed is chosen: balanced, fifo or lru",
            )
            .value("POLICY")
            .env("RFORK_CFG_ALLOC_POLICY")
            .default("balanced")
            .more("balanced takes a near and little used one, fifo the one without a heartbeat for longest, lru the one \
                 that was not handed out for longest"),
            Setting::new(
                "fork_while_loading",
                Takes::OnOff,
                "Whether workers that still load may serve what they hold to others that can read from them",
            )
            .value("on|off")
            .env("RFORK_CFG_FORK_WHILE_LOADING")
            .default("on")
            .more("Workers that ask together are then loaded in about the time of one"),
            Setting::new(
                "max_chain_depth",
                Takes::Whole(1, MAX_CHAIN_DEPTH),
                "Workers that still load, at most, between one and a seed that holds everything",
            )
            .value("WORKERS")
            .env("RFORK_CFG_MAX_CHAIN_DEPTH")
            .default("256"),
            Setting::new(
                "v1_hold_sec",
                Takes::Whole(0, 9),
                "Seconds that a get_seed (API v1) may wait for a seed while none is free, or none is there",
            )
            .value("SECONDS")
            .env("RFORK_CFG_V1_HOLD_SEC")
            .default("0")
            .more("0 refuses at once. Clients give up after 10"),
            Setting::new(
                "settings_file",
                Takes::Text,
                "A TOML file of rules for some seeds, bounds for hosts, and where addresses are",
            )
            .value("FILE")
            .env("RFORK_CFG_SETTINGS_FILE")
            .otherwise("none")
            .more("docs/settings-file.md says what may stand in it"),
        ],
    },
    Section {
        title: "Liveness of seeds",
        settings: &[
            Setting::new(
                "heartbeat_interval_sec",
                Takes::Whole(1, HOUR_SEC),
                "Seconds between two heartbeats of a seed, as its worker is set",
            )
            .value("SECONDS")
            .env("RFORK_CFG_HEARTBEAT_INTERVAL_SEC")
            .default("30")
            .more("A seed that was silent for longer is asked whether it lives before it is handed out"),
            Setting::new("no_liveness_probe", Takes::Switch, "Never ask a seed whether it lives")
                .env("RFORK_CFG_NO_LIVENESS_PROBE")
                .default("false")
                .more("Seeds are asked while they are well, too, beside a grant: only one that has answered before is \
                     suspect when it does not"),
            Setting::new("probe_networks", NETWORKS, "Networks at whose addresses seeds may be asked")
                .value("NETWORKS")
                .env("RFORK_CFG_PROBE_NETWORKS")
                // Private networks, and this machine.
                .default("10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7,127.0.0.0/8,::1/128")
                .more(
                    "Those of this machine itself (127.0.0.0/8, ::1) are asked only by a planner that listens on such a one. \
                     Name 100.64.0.0/10, which providers share with others, if your seeds are there",
                ),
        ],
    },
    Section {
        title: "What operators see",
        settings: &[
            Setting::new(
                "history_sec",
                Takes::Whole(0, MONTH_SEC),
                "Seconds for which ended leases and events are kept for people; 0 keeps nothing",
            )
            .value("SECONDS")
            .env("RFORK_CFG_HISTORY_SEC")
            .default("3600")
            .more("Of a busy planner's only the last are kept: 200,000 leases and 100,000 events"),
            Setting::new(
                "otlp_endpoint",
                Takes::Form("the URL of an OTLP collector"),
                "Collector that traces are sent to, by OTLP over HTTP, as http://collector:4318",
            )
            .value("URL")
            .env("RFORK_CFG_OTLP_ENDPOINT")
            .otherwise("none")
            .secret(),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use rfork_protocol::settings::{SettingError, Sources};

    use super::*;
    use crate::config::{DatabaseUrl, Settings};

    fn all() -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().flat_map(|section| section.settings)
    }

    fn read(flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<Settings, SettingError> {
        let flags: Vec<_> = flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, text)| OsString::from(text));
        Sources { flags: &flags, object: None, env: &env }
            .read(SETTINGS)
            .and_then(|values| Settings::read(&values))
    }

    /// What a setting does not take, where there is something.
    fn bad(setting: &Setting) -> Option<&'static str> {
        match (setting.name, setting.takes) {
            ("host", _) => None,
            ("database_url", _) => Some("mysql://u:SECRET@h/d"),
            ("otlp_endpoint", _) => Some("u:SECRET@collector:4318"),
            ("database_url_file" | "settings_file" | "token_file", _) => Some("/no/such/file"),
            (_, Takes::Whole(..)) => Some("1.5"),
            (_, Takes::Switch) => Some("perhaps"),
            _ => Some("10.0.0.1/33"),
        }
    }

    #[test]
    fn variables_are_called_like_their_flags() {
        for setting in all() {
            let name = format!("RFORK_CFG_{}", setting.name.to_uppercase());
            assert_eq!(setting.env, Some(name.as_str()));
        }
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let defaults = read(&[], &[]).unwrap();
        for setting in all() {
            assert_eq!(read(&[], &[(setting.env.unwrap(), "")]).unwrap(), defaults, "{}", setting.name);
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_source() {
        for setting in all() {
            let Some(bad) = bad(setting) else { continue };
            let flag = format!("--{}", setting.flag());
            let error = read(&[(setting.name, bad)], &[]).unwrap_err().to_string();
            assert!(error.starts_with(&flag) && !error.contains("SECRET"), "{error}");
            let variable = setting.env.unwrap();
            let error = read(&[], &[(variable, bad)]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{variable} in the environment ({flag}) "))
                    && !error.contains("SECRET"),
                "{error}"
            );
        }
    }

    #[test]
    fn each_setting_is_used() {
        let home = tempfile::tempdir().unwrap();
        let (url, rules) = (home.path().join("url"), home.path().join("rules.toml"));
        std::fs::write(&url, "sqlite:/there.db\n").unwrap();
        let tokens = home.path().join("tokens.toml");
        std::fs::write(
            &tokens,
            "[[principal]]\nname = 'a'\nroles = ['worker']\ntokens = ['0123456789abcdef']",
        )
        .unwrap();
        std::fs::write(&rules, "[[host_capacity]]\nhost = 'h'\nleases = 1").unwrap();
        let defaults = Settings::of(DatabaseUrl::default_file().unwrap());
        assert_eq!(read(&[], &[]).unwrap(), defaults);
        // Those of TLS come together: the next test.
        for setting in all().filter(|setting| !setting.name.starts_with("tls_")) {
            let other = match (setting.name, setting.takes) {
                ("database_url", _) => "sqlite:/other.db",
                ("database_url_file", _) => url.to_str().unwrap(),
                ("settings_file", _) => rules.to_str().unwrap(),
                ("token_file", _) => tokens.to_str().unwrap(),
                ("auth_mode", _) => "permissive",
                ("seed_owner", _) => "address",
                ("alloc_policy", _) => "lru",
                ("database_pooler", _) => "no",
                ("fork_while_loading", _) => "off",
                ("default_resource_points", _) => "7",
                ("host", _) => "0.0.0.0",
                ("otlp_endpoint", _) => "http://collector:4318",
                (_, Takes::Switch) => "yes",
                (_, Takes::Whole(_, most)) => &most.to_string(),
                _ => "10.1.0.0/16",
            };
            assert_ne!(read(&[(setting.name, other)], &[]).unwrap(), defaults, "{}", setting.name);
            assert_ne!(read(&[], &[(setting.env.unwrap(), other)]).unwrap(), defaults, "{}", setting.name);
        }
    }

    #[test]
    fn a_certificate_and_its_key_come_together() {
        let home = tempfile::tempdir().unwrap();
        let (cert, key) = (home.path().join("tls.crt"), home.path().join("tls.key"));
        rfork_test_authority::Authority::new().issue(&["p"]).write(&cert, &key);
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let (as_cert, as_key) = (("tls_cert_file", cert), ("tls_key_file", key));
        let as_variable = [("RFORK_CFG_TLS_KEY_FILE", key)];
        assert!(read(&[as_cert, as_key], &[]).unwrap().tls.is_some());
        assert_eq!(read(&[as_cert], &as_variable).unwrap(), read(&[as_cert, as_key], &[]).unwrap());
        for (flags, env, said) in [
            (&[as_cert][..], &[][..], "--tls-cert-file takes --tls-key-file, too"),
            (
                &[("tls_client_ca_file", cert)],
                &[],
                "--tls-client-ca-file takes --tls-cert-file and --tls-key-file, too",
            ),
            (
                &[as_cert, as_key, ("tls_client_ca_file", "/no/such")],
                &[],
                "--tls-client-ca-file /no/such cannot be used: No such file",
            ),
            (&[as_key], &[], "--tls-key-file takes --tls-cert-file, too"),
            (
                &[],
                &as_variable,
                "RFORK_CFG_TLS_KEY_FILE in the environment (--tls-key-file) takes --tls-cert-file",
            ),
            (
                &[("tls_cert_file", "/no/such"), as_key],
                &[],
                "--tls-cert-file /no/such cannot be used: No such file",
            ),
            (
                &[as_cert, ("tls_key_file", "/no/such")],
                &[],
                "--tls-key-file /no/such cannot be used: No such file",
            ),
        ] {
            let refusal = read(flags, env).unwrap_err().to_string();
            assert!(refusal.starts_with(said), "{refusal}");
        }
    }

    #[test]
    fn a_switch_is_written_in_several_ways() {
        for (text, probes) in [
            ("1", false),
            ("true", false),
            ("YES", false),
            (" True ", false),
            ("0", true),
            ("false", true),
            ("no", true),
            ("FALSE", true),
        ] {
            assert_eq!(read(&[], &[("RFORK_CFG_NO_LIVENESS_PROBE", text)]).unwrap().liveness_probe, probes);
            assert_eq!(read(&[("no_liveness_probe", text)], &[]).unwrap().liveness_probe, probes);
        }
    }

    #[test]
    fn what_is_accepted_is_said() {
        for (name, value, accepted) in [
            ("port", "tcp://10.0.0.1:1223", "0 to 65535"),
            ("port", "65536", "0 to 65535"),
            ("heartbeat_ttl_sec", "0", "1 to 315360000"),
            ("heartbeat_sweep_sec", "-1", "1 to 315360000"),
            ("history_sec", "2592001", "0 to 2592000"),
            ("lease_ttl_sec", "1.5", "1 to 315360000, got \"1.5\""),
            ("default_resource_points", "0", "1 to 1000"),
            ("alloc_policy", "random", "balanced, fifo or lru"),
            ("database_url", "/var/lib/planner.db", "sqlite:///"),
            ("database_url", "mysql://h/d", "postgres://"),
            ("database_url", "postgres://h/d?sslmode=perhaps", "postgres://"),
            ("database_pool_size", "1", "2 to 100"),
            ("database_statement_timeout_ms", "9000", "100 to 3500"),
            ("max_connections", "0", "1 to 1000000"),
            ("max_requests", "-1", "1 to 1000000"),
            ("idle_timeout_sec", "0", "1 to 3600"),
            ("drain_sec", "3601", "0 to 3600"),
            ("trusted_proxies", "10.0.0.0/8,10.0.0.1/33", "networks separated by commas"),
            ("database_url_file", "/no/such/file", "cannot be read"),
        ] {
            let refusal = read(&[(name, value)], &[]).unwrap_err().to_string();
            assert!(refusal.contains(accepted), "{name}={value}: {refusal}");
        }
        let other = read(&[], &[("RFORK_CFG_DATABASE_URL_FILE", "/proc/version")]);
        assert!(other.unwrap_err().to_string().contains("/proc/version: the URL in it"));
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let from_file = || read(&[("database_url_file", file.path().to_str().unwrap())], &[]);
        std::fs::write(file.path(), "postgres://user:SECRET@host/db\n").unwrap();
        let settings = from_file().unwrap();
        assert_eq!(settings.database.to_string(), "postgres://user@host:5432/db");
        assert!(!format!("{settings:?}").contains("SECRET"), "{settings:?}");
        std::fs::write(file.path(), "mysql://user:SECRET@host/db\n").unwrap();
        let refusal = from_file().unwrap_err().to_string();
        assert!(refusal.contains("'mysql'") && !refusal.contains("SECRET"), "{refusal}");
        std::fs::write(file.path(), "sqlite:///tmp/p.db\n").unwrap();
        assert_eq!(from_file().unwrap().database, DatabaseUrl::Sqlite("/tmp/p.db".into()));
        let both = [("database_url", "sqlite:a.db"), ("database_url_file", file.path().to_str().unwrap())];
        let refusal = read(&both, &[]).unwrap_err().to_string();
        assert!(refusal.contains("--database-url cannot be used with --database-url-file"), "{refusal}");
    }

    #[test]
    fn a_database_in_a_flag_counts_before_one_in_the_environment() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "sqlite:of-file.db\n").unwrap();
        let file = file.path().to_str().unwrap();
        let (url, of_file) = ("sqlite:of-url.db", DatabaseUrl::Sqlite("of-file.db".into()));
        let of_url = || url.parse::<DatabaseUrl>().unwrap();
        let env = |name, value| [(name, value)];
        for (flag, env, database) in [
            (("database_url", url), env("RFORK_CFG_DATABASE_URL_FILE", file), of_url()),
            (("database_url", url), env("RFORK_CFG_DATABASE_URL_FILE", "/no/such/file"), of_url()),
            (("database_url_file", file), env("RFORK_CFG_DATABASE_URL", url), of_file),
        ] {
            assert_eq!(read(&[flag], &env).unwrap().database, database, "{flag:?} {env:?}");
        }
        let both = [("RFORK_CFG_DATABASE_URL", url), ("RFORK_CFG_DATABASE_URL_FILE", file)];
        let refusal = read(&[], &both).unwrap_err().to_string();
        assert!(refusal.contains("cannot be used with RFORK_CFG_DATABASE_URL_FILE"), "{refusal}");
    }
}
