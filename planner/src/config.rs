//! The planner's settings, checked before anything starts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::domain::health::BackOff;
use crate::domain::policy::Policy;
use crate::domain::terms::Overrides;
use crate::settings_file::FileSettings;
use crate::store::Rules;
use crate::store::history::Keep;
use crate::store::postgres::{ConnectSettings, PostgresUrl};

/// How long a request may wait for the database. Clients give up after 10 s: an answer must come before.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(8);

/// Where seeds may be asked for their health unless settings say otherwise: private networks, and this machine.
pub const PROBE_NETWORKS: &str =
    "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7,127.0.0.0/8,::1/128";

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

/// No database to use.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// `--database-url` is no URL of a database.
    #[error("--database-url {0}")]
    Url(BadDatabaseUrl),
    /// The user has no home directory.
    #[error("there is no data directory for this user ({0}); give --database-url sqlite:///path/planner.db")]
    NoDataDirectory(String),
    /// `--database-url-file` cannot be read.
    #[error("--database-url-file {path} cannot be read: {reason}")]
    UrlFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// What it holds is no URL of a database.
    #[error("--database-url-file {path}: the URL in it {reason}")]
    UrlInFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: BadDatabaseUrl,
    },
}

impl DatabaseUrl {
    /// The default: `rfork/planner.db` in the platform's data directory.
    ///
    /// # Errors
    /// [`DatabaseError::NoDataDirectory`].
    pub fn default_file() -> Result<Self, DatabaseError> {
        use etcetera::BaseStrategy;
        let directories = etcetera::choose_base_strategy()
            .map_err(|error| DatabaseError::NoDataDirectory(error.to_string()))?;
        Ok(Self::Sqlite(directories.data_dir().join("rfork").join("planner.db")))
    }

    /// The URL that stands alone in a file, which keeps it out of the process list.
    ///
    /// # Errors
    /// [`DatabaseError`], never with the file's content.
    pub fn from_file(path: &Path) -> Result<Self, DatabaseError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| DatabaseError::UrlFile { path: path.to_owned(), reason: error.to_string() })?;
        text.trim().parse().map_err(|reason| DatabaseError::UrlInFile { path: path.to_owned(), reason })
    }
}

/// What a planner takes from its clients at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once; more take the place of idle ones, or wait.
    pub connections: usize,
    /// Requests at once of each kind: those that ask for a seed, and the rest. More are refused.
    pub requests: usize,
    /// The longest that a connection waits for a request's whole head, and with that without a request; and the
    /// longest that its client takes nothing of an answer.
    pub idle: Duration,
    /// The longest from a request's head to its answer.
    pub deadline: Duration,
    /// How long a planner that was told to end serves on.
    pub drain: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 8_192,
            requests: 4_096,
            // Proxies keep a connection for a minute. It must not end first here, with a request on its way.
            idle: Duration::from_secs(65),
            // What a handler says of its own deadline comes first.
            deadline: REQUEST_DEADLINE + Duration::from_secs(1),
            drain: Duration::from_secs(5),
        }
    }
}

/// What a planner needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address or host name to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Where seeds and leases are kept.
    pub database: DatabaseUrl,
    /// How it is connected to. Only Postgres.
    pub connect: ConnectSettings,
    /// How long another planner that has the file is waited for. Only SQLite.
    pub lock_wait: Duration,
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
    pub probe_networks: Vec<IpNet>,
    /// Networks of proxies that say for whom they speak.
    pub trusted_proxies: Vec<IpNet>,
    /// What differs for some seeds, and where addresses are.
    pub file: Arc<FileSettings>,
}

impl Settings {
    /// The defaults, with this database.
    pub fn of(database: DatabaseUrl) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 1223,
            database,
            connect: ConnectSettings::default(),
            lock_wait: Duration::from_secs(30),
            heartbeat_ttl: Duration::from_secs(60),
            heartbeat_sweep: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(60),
            default_resource_points: 1,
            alloc_policy: Policy::default(),
            bounds: Bounds::default(),
            v1_hold: Duration::ZERO,
            heartbeat_interval: Duration::from_secs(30),
            history: Duration::from_secs(3_600),
            liveness_probe: true,
            probe_networks: PROBE_NETWORKS.split(',').filter_map(|network| network.parse().ok()).collect(),
            trusted_proxies: Vec::new(),
            file: Arc::default(),
        }
    }

    /// What a store must know of them.
    pub fn rules(&self) -> Rules {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Rules {
            heartbeat_ttl_ms: millis(self.heartbeat_ttl),
            lease_ttl_ms: millis(self.lease_ttl),
            capacity: self.default_resource_points,
            policy: self.alloc_policy,
            back_off: BackOff::default(),
            overrides: (self.file.overrides != Overrides::default())
                .then(|| Arc::new(self.file.overrides.clone())),
            history: Keep::of(millis(self.history)),
        }
    }
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
