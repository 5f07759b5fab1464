//! The planner's settings, checked before anything starts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rfork_protocol::settings::{DEFAULTS, SettingError, Values};

use crate::domain::health::BackOff;
use crate::domain::network::Network;
use crate::domain::owner::OwnedBy;
use crate::domain::policy::Policy;
use crate::domain::terms::Overrides;
use crate::identity::{Mode, TokenFile};
use crate::settings::{NETWORKS, SETTINGS};
use crate::settings_file::FileSettings;
use crate::store::history::Keep;
use crate::store::postgres::{ConnectSettings, PostgresUrl};
use crate::store::{Room, Rules};
use crate::telemetry::Endpoint;
use crate::tls::Tls;

/// How long a request may wait for the database. Clients give up after 10 s: an answer must come before.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(8);

/// How long a Postgres that is away is waited for at the start.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where seeds and leases are kept.
///
/// `Display` and `Debug` never show a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A SQLite file, which serves one planner.
    Sqlite(PathBuf),
    /// A Postgres database, which serves any number of planners.
    Postgres(PostgresUrl),
}

/// A database URL that cannot be used. Its text never holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be postgres://user@host/database, or a SQLite file, as sqlite:///absolute/path.db or \
     sqlite:relative/path.db, got {0}"
)]
pub struct BadDatabaseUrl(String);

impl FromStr for DatabaseUrl {
    type Err = BadDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, BadDatabaseUrl> {
        let bad = |why: &str| BadDatabaseUrl(why.to_owned());
        let Some((scheme, rest)) = text.trim().split_once(':') else {
            return Err(bad("a text without a scheme"));
        };
        match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() || path == ":memory:" {
                    return Err(bad("no file"));
                }
                if path.contains('?') {
                    return Err(bad("parameters after '?', which are not taken for a file"));
                }
                Ok(Self::Sqlite(PathBuf::from(path)))
            }
            "postgres" | "postgresql" if rest.starts_with("//") => {
                PostgresUrl::parse(text.trim()).map(Self::Postgres).map_err(BadDatabaseUrl)
            }
            // Only the scheme: the rest may hold a password. What no "//" follows may not be a scheme at all.
            _ if rest.starts_with("//") && scheme.len() <= 20 => {
                Err(bad(&format!("a URL with the scheme '{scheme}'")))
            }
            _ => Err(bad("another scheme")),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
        }
    }
}

impl DatabaseUrl {
    /// The default: `rfork/planner.db` in the platform's data directory.
    ///
    /// # Errors
    /// [`SettingError`], when there is none.
    pub fn default_file() -> Result<Self, SettingError> {
        use etcetera::BaseStrategy;
        let directories = etcetera::choose_base_strategy().map_err(|error| SettingError::Bad {
            place: "--database-url".into(),
            why: format!(
                "must be given, as sqlite:///path/planner.db: this user has no data directory ({error})"
            ),
        })?;
        Ok(Self::Sqlite(directories.data_dir().join("rfork").join("planner.db")))
    }

    /// The URL that stands alone in a file, which keeps it out of the process list. What is wrong is said without the
    /// file's content.
    fn from_file(path: &str) -> Result<Self, String> {
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))?;
        text.trim().parse().map_err(|why| format!("{path}: the URL in it {why}"))
    }

    /// What the settings say.
    fn of(values: &Values) -> Result<Self, SettingError> {
        let (url, file) = ("database_url", "database_url_file");
        // A flag counts before a variable, whichever of the two it is.
        match (values.source(url), values.source(file)) {
            (None, None) => Self::default_file(),
            (Some(one), Some(other)) if one == other => {
                let other = values.place(file).unwrap_or(file);
                Err(values.refused(url, &format!("cannot be used with {other}: give one of them")))
            }
            (Some(one), other) if other.is_none_or(|other| one < other) => values.get(url),
            _ => values.find_with(file, Self::from_file)?.ok_or(SettingError::Absent(file)),
        }
    }
}

/// What a planner takes from its clients at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once; more take the place of idle ones, or wait.
    pub connections: usize,
    /// Requests at once of each kind: those that ask for a seed, and the rest. More are refused.
    pub requests: usize,
    /// Requests at once that wait for a seed.
    pub waiting: usize,
    /// The longest that a connection waits for a request's whole head, and with that without a request; and the
    /// longest that its client takes nothing of an answer. Proxies keep a connection for a minute: it must not end first
    /// here, with a request on its way.
    pub idle: Duration,
    /// The longest from a request's head to its answer.
    pub deadline: Duration,
    /// How long a planner that was told to end serves on.
    pub drain: Duration,
}

/// What a planner needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address or host name to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// A port for probes and metrics alone; 0 takes a free one.
    pub probe_port: Option<u16>,
    /// What it speaks TLS with; it speaks none without.
    pub tls: Option<Tls>,
    /// Where seeds and leases are kept.
    pub database: DatabaseUrl,
    /// How it is connected to. Only Postgres.
    pub connect: ConnectSettings,
    /// How long another planner that has the file is waited for. Only SQLite.
    pub lock_wait: Duration,
    /// How much clients may have it keep.
    pub room: Room,
    /// A seed that was silent this long is not offered.
    pub heartbeat_ttl: Duration,
    /// Pause between two tidyings-up.
    pub heartbeat_sweep: Duration,
    /// A lease that was not renewed this long is gone.
    pub lease_ttl: Duration,
    /// Leases that a seed may have at once.
    pub default_resource_points: u32,
    /// How seeds are compared.
    pub alloc_policy: Policy,
    /// Whether workers that still load may serve others.
    pub fork_while_loading: bool,
    /// Sources at most between a worker and a complete seed, or storage.
    pub max_chain_depth: u32,
    /// What clients may take.
    pub bounds: Bounds,
    /// How long `get_seed` of API v1 may wait for a seed; clients give up after 10 s.
    pub v1_hold: Duration,
    /// How often seeds send heartbeats.
    pub heartbeat_interval: Duration,
    /// How long what has ended is kept for people; zero keeps nothing.
    pub history: Duration,
    /// Whether a seed that was silent for longer is asked for its health before it is granted, and others beside it.
    pub liveness_probe: bool,
    /// At which addresses seeds may be asked.
    pub probe_networks: Vec<Network>,
    /// Networks of proxies that say for whom they speak.
    pub trusted_proxies: Vec<Network>,
    /// Whether it is looked at who asks.
    pub auth_mode: Mode,
    /// Whose seeds are.
    pub seed_owner: OwnedBy,
    /// Who may.
    pub token_file: Option<TokenFile>,
    /// What differs for some seeds, and where addresses are.
    pub file: Arc<FileSettings>,
    /// Where traces are sent to. Whoever sets logging up makes an exporter of it.
    pub otlp_endpoint: Option<Endpoint>,
}

impl Settings {
    /// What the values of [`SETTINGS`] mean.
    ///
    /// # Errors
    /// [`SettingError`], when one of them, or a file that it names, cannot be used.
    pub fn read(values: &Values) -> Result<Self, SettingError> {
        Self::with(DatabaseUrl::of(values)?, values)
    }

    /// The defaults, with this database.
    #[allow(clippy::expect_used, clippy::missing_panics_doc)] // They are this program's own, and all of them are tested.
    pub fn of(database: DatabaseUrl) -> Self {
        let defaults = DEFAULTS.read(SETTINGS).and_then(|values| Self::with(database, &values));
        defaults.expect("defaults can be used")
    }

    fn with(database: DatabaseUrl, values: &Values) -> Result<Self, SettingError> {
        let file = values.find_with("settings_file", |path| FileSettings::read(Path::new(path)))?;
        let token_file = values.find_with("token_file", |path| TokenFile::read(Path::new(path)))?;
        let with_tokens = if token_file.is_some() { Mode::Enforce } else { Mode::Off };
        let auth_mode = values.find("auth_mode")?.unwrap_or(with_tokens);
        if auth_mode == Mode::Enforce && token_file.is_none() {
            return Err(values.refused("auth_mode", &"takes --token-file: nobody could ask for anything"));
        }
        Ok(Self {
            host: values.get("host")?,
            port: values.get("port")?,
            probe_port: values.find("probe_port")?,
            tls: Tls::of(values)?,
            database,
            connect: ConnectSettings {
                pool_size: values.get("database_pool_size")?,
                statement_timeout: Duration::from_millis(values.get("database_statement_timeout_ms")?),
                patience: PATIENCE,
                pooler: values.get("database_pooler")?,
            },
            lock_wait: values.seconds("database_lock_wait_sec")?,
            room: Room {
                seeds: values.get("max_seeds")?,
                requests: values.get("max_remembered_requests")?,
                // One is remembered for a request at most.
                instances: values.get("max_remembered_requests")?,
                bytes: values.get::<usize>("max_memory_mib")?.saturating_mul(1 << 20),
                stored: values.get::<usize>("max_database_mib")?.saturating_mul(1 << 20),
            },
            heartbeat_ttl: values.seconds("heartbeat_ttl_sec")?,
            heartbeat_sweep: values.seconds("heartbeat_sweep_sec")?,
            lease_ttl: values.seconds("lease_ttl_sec")?,
            default_resource_points: values.get("default_resource_points")?,
            alloc_policy: values.get("alloc_policy")?,
            fork_while_loading: values.get::<String>("fork_while_loading")? == "on",
            max_chain_depth: values.get("max_chain_depth")?,
            bounds: Bounds {
                connections: values.get("max_connections")?,
                requests: values.get("max_requests")?,
                waiting: values.get("max_waiting")?,
                idle: values.seconds("idle_timeout_sec")?,
                // What a handler says of its own deadline comes first.
                deadline: REQUEST_DEADLINE + Duration::from_secs(1),
                drain: values.seconds("drain_sec")?,
            },
            v1_hold: values.seconds("v1_hold_sec")?,
            heartbeat_interval: values.seconds("heartbeat_interval_sec")?,
            history: values.seconds("history_sec")?,
            liveness_probe: !values.get::<bool>("no_liveness_probe")?,
            probe_networks: values.find_with("probe_networks", networks)?.unwrap_or_default(),
            trusted_proxies: values.find_with("trusted_proxies", networks)?.unwrap_or_default(),
            auth_mode,
            seed_owner: values.get("seed_owner")?,
            token_file,
            file: file.map(Arc::new).unwrap_or_default(),
            otlp_endpoint: values.find("otlp_endpoint")?,
        })
    }

    /// What a store must know of them.
    pub fn rules(&self) -> Rules {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Rules {
            heartbeat_ttl_ms: millis(self.heartbeat_ttl),
            lease_ttl_ms: millis(self.lease_ttl),
            capacity: self.default_resource_points,
            policy: self.alloc_policy,
            // None is offered when there are to be none.
            max_chain_depth: if self.fork_while_loading { self.max_chain_depth } else { 0 },
            back_off: BackOff::default(),
            overrides: (self.file.overrides != Overrides::default())
                .then(|| Arc::new(self.file.overrides.clone())),
            history: Keep::of(millis(self.history)),
            room: self.room,
        }
    }
}

fn networks(text: &str) -> Result<Vec<Network>, String> {
    let networks = text.split(',').map(str::parse::<Network>);
    networks.collect::<Result<_, _>>().map_err(|_| format!("must be {NETWORKS}, got '{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sqlite_urls_name_a_file() {
        let file = |url: &str| url.parse::<DatabaseUrl>().unwrap();
        assert_eq!(file("sqlite:///var/lib/p.db"), DatabaseUrl::Sqlite("/var/lib/p.db".into()));
        assert_eq!(file("sqlite:p.db"), DatabaseUrl::Sqlite("p.db".into()));
        assert_eq!(file("sqlite://p.db").to_string(), "sqlite:p.db");
        for bad in ["", "p.db", "sqlite:", "sqlite://", "sqlite::memory:", "sqlite:p.db?mode=ro"] {
            assert!(bad.parse::<DatabaseUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn postgres_urls_are_shown_without_what_is_secret() {
        for (url, shown) in [
            (
                "postgres://me:SECRET@db.example:6432/planner?sslmode=require",
                "postgres://me@db.example:6432/planner",
            ),
            (
                "postgresql://me@db/planner?password=SECRET&options=-c%20x=SECRET",
                "postgres://me@db:5432/planner",
            ),
            ("postgres://?host=/run/postgresql&user=me&dbname=p", "postgres://me@/run/postgresql/p"),
        ] {
            let database: DatabaseUrl = url.parse().unwrap();
            assert_eq!(database.to_string(), shown);
            assert!(!format!("{database:?}").contains("SECRET"), "{database:?}");
        }
        for bad in [
            "postgres:x",
            "postgres://h:port/d",
            "postgres://h/d?sslmode=SECRET",
            "postgres://h/d?pasword=SECRET",
        ] {
            let error = bad.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(error.contains("postgres://user@host/database") && !error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn the_default_is_a_file_of_the_user_s() {
        let url = DatabaseUrl::default_file().unwrap();
        assert!(matches!(&url, DatabaseUrl::Sqlite(path) if path.ends_with("rfork/planner.db")), "{url}");
    }

    proptest! {
        #[test]
        fn no_password_is_ever_shown(scheme in "[a-z]{1,9}", rest in "[a-z@/:]{0,12}") {
            for scheme in [scheme.as_str(), "postgres", "postgresql"] {
                // A file is named by all of its URL: it has no password.
                prop_assume!(scheme != "sqlite");
                let shown = match format!("{scheme}://user:SECRET@{rest}").parse::<DatabaseUrl>() {
                    Ok(url) => format!("{url} {url:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!shown.contains("SECRET"), "{shown}");
            }
        }
    }
}
