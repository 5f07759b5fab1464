//! `rfork planner`: flags and environment to settings, and a run until a signal ends it.

use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use tokio::net::TcpListener;

use crate::config::{Bounds, DatabaseError, DatabaseUrl, PROBE_NETWORKS, Settings};
use crate::domain::policy::Policy;
use crate::http::v2::openapi;
use crate::settings_file::{FileError, FileSettings};
use crate::shutdown::Stop;
use crate::store::postgres::{ConnectSettings, Pooler};
use crate::telemetry::{Endpoint, Exporter, ExporterError};
use crate::{RunError, migrate, run};

/// Ten years. A longer time is a slip, and would overflow timers.
const SECONDS: RangeInclusive<u64> = 1..=10 * 365 * 86_400;
/// Leases that a seed may have at once; each is a row of the database.
pub(crate) const POINTS: RangeInclusive<u32> = 1..=1_000;
/// Connections to the database: one for the writer, and others for heartbeats, the sweep and questions.
const POOL: RangeInclusive<u32> = 2..=100;
const HOUR_SEC: u64 = 3_600;
const MONTH_SEC: u64 = 30 * 86_400;
/// Connections and requests at once.
const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
/// A statement that takes longer could not be answered within a request's deadline.
const STATEMENT_MS: RangeInclusive<u64> = 100..=3_500;

/// Flags of `rfork planner`. Each has an environment variable `RFORK_CFG_<FLAG>`; not `RFORK_PLANNER_<FLAG>`,
/// because Kubernetes itself sets `RFORK_PLANNER_PORT`, to a URL, for a Service named `rfork-planner`.
#[derive(Debug, Clone, Args)]
pub struct PlannerArgs {
    /// Without it: run. With it: do that instead, and end
    #[arg(value_enum, value_name = "ACTION")]
    action: Option<Action>,

    /// Address or host name to listen on; 0.0.0.0 for all addresses of this machine
    #[arg(long, env = "RFORK_CFG_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,

    /// Port to listen on; 0 takes a free one and logs it
    #[arg(long, env = "RFORK_CFG_PORT", default_value = "1223", value_parser = whole(0..=u16::MAX))]
    port: u16,

    /// Where seeds and leases are kept: `sqlite:///path/to/file.db` for one planner, or
    /// `postgres://user@host/database?sslmode=verify-full` for any number of them
    /// [default: rfork/planner.db in the user's data directory]
    #[arg(long, env = "RFORK_CFG_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<Hidden>,

    /// A file that holds the database URL, which keeps a password out of the process list
    #[arg(long, env = "RFORK_CFG_DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,

    /// Connections to Postgres that this planner has at most
    #[arg(long, env = "RFORK_CFG_DATABASE_POOL_SIZE", default_value = "8", value_name = "CONNECTIONS",
        value_parser = whole(POOL))]
    database_pool_size: u32,

    /// Milliseconds that a statement may take in Postgres, its wait for locks included; beyond them requests
    /// are answered 503
    #[arg(long, env = "RFORK_CFG_DATABASE_STATEMENT_TIMEOUT_MS", default_value = "2000",
        value_name = "MILLISECONDS", value_parser = whole(STATEMENT_MS))]
    database_statement_timeout_ms: u64,

    /// Whether a pooler, such as pgbouncer in transaction mode, stands before Postgres: found out at the start, or
    /// said; yes is right everywhere, and slower
    #[arg(
        long,
        env = "RFORK_CFG_DATABASE_POOLER",
        value_enum,
        default_value = "auto",
        value_name = "POOLER"
    )]
    database_pooler: Pooler,

    /// Seconds that a planner waits at the start for another one that has its SQLite file
    #[arg(long, env = "RFORK_CFG_DATABASE_LOCK_WAIT_SEC", default_value = "30", value_name = "SECONDS",
        value_parser = whole(0..=HOUR_SEC))]
    database_lock_wait_sec: u64,

    /// Seconds without a heartbeat after which a seed is not handed out any more
    #[arg(long, env = "RFORK_CFG_HEARTBEAT_TTL_SEC", default_value = "60", value_name = "SECONDS",
        value_parser = whole(SECONDS))]
    heartbeat_ttl_sec: u64,

    /// Seconds between two tidyings-up of what has expired
    #[arg(long, env = "RFORK_CFG_HEARTBEAT_SWEEP_SEC", default_value = "5", value_name = "SECONDS",
        value_parser = whole(SECONDS))]
    heartbeat_sweep_sec: u64,

    /// Seconds after which a lease that was not renewed is gone. Older vLLM Ascend workers never renew: a
    /// whole transfer must fit; 300 is sound for them
    #[arg(long, env = "RFORK_CFG_LEASE_TTL_SEC", default_value = "60", value_name = "SECONDS",
        value_parser = whole(SECONDS))]
    lease_ttl_sec: u64,

    /// Workers that may read from one seed at once
    #[arg(long, env = "RFORK_CFG_DEFAULT_RESOURCE_POINTS", default_value = "1", value_name = "POINTS",
        value_parser = whole(POINTS))]
    default_resource_points: u32,

    /// How a seed is chosen: balanced (least busy, then longest unused), fifo (longest without a heartbeat) or
    /// lru (longest unused)
    #[arg(long, env = "RFORK_CFG_ALLOC_POLICY", default_value_t, value_name = "POLICY")]
    alloc_policy: Policy,

    /// Connections at once; more take the place of idle ones, or wait until one ends
    #[arg(long, env = "RFORK_CFG_MAX_CONNECTIONS", default_value = "8192", value_name = "CONNECTIONS",
        value_parser = whole(CONNECTIONS))]
    max_connections: usize,

    /// Requests at once of each kind: those that ask for a seed, and all others. More are answered 503 at once;
    /// probes and metrics are not counted
    #[arg(long, env = "RFORK_CFG_MAX_REQUESTS", default_value = "4096", value_name = "REQUESTS",
        value_parser = whole(CONNECTIONS))]
    max_requests: usize,

    /// Seconds that a connection may wait for a whole request head, and a client let an answer wait. Longer than
    /// a proxy before the planner keeps its connections
    #[arg(long, env = "RFORK_CFG_IDLE_TIMEOUT_SEC", default_value = "65", value_name = "SECONDS",
        value_parser = whole(1..=HOUR_SEC))]
    idle_timeout_sec: u64,

    /// Seconds that the planner serves on after SIGTERM or Ctrl-C, while /readyz says 503; a second signal ends
    /// them
    #[arg(long, env = "RFORK_CFG_DRAIN_SEC", default_value = "5", value_name = "SECONDS",
        value_parser = whole(0..=HOUR_SEC))]
    drain_sec: u64,

    /// Seconds that a request for a seed (API v1) may wait for one while none is free, or none is there, instead of
    /// being refused at once; clients give up after 10
    #[arg(long, env = "RFORK_CFG_V1_HOLD_SEC", default_value = "0", value_name = "SECONDS",
        value_parser = whole(0..=9u64))]
    v1_hold_sec: u64,

    /// Seconds between two heartbeats of a seed, as its worker is set. One that was silent for longer is asked
    /// whether it lives before it is handed out
    #[arg(long, env = "RFORK_CFG_HEARTBEAT_INTERVAL_SEC", default_value = "30", value_name = "SECONDS",
        value_parser = whole(1..=HOUR_SEC))]
    heartbeat_interval_sec: u64,

    /// Seconds for which it is kept what has ended, for people: leases, and what became of seeds; 0 keeps nothing.
    /// Of a busy planner's only the last are kept: 200,000 leases and 100,000 events
    #[arg(long, env = "RFORK_CFG_HISTORY_SEC", default_value = "3600", value_name = "SECONDS",
        value_parser = whole(0..=MONTH_SEC))]
    history_sec: u64,

    /// Never ask a seed whether it lives
    #[arg(long, env = "RFORK_CFG_NO_LIVENESS_PROBE")]
    no_liveness_probe: bool,

    /// Networks, separated by commas, at whose addresses seeds may be asked
    #[arg(long, env = "RFORK_CFG_PROBE_NETWORKS", value_name = "NETWORKS", value_delimiter = ',',
        default_value = PROBE_NETWORKS)]
    probe_networks: Vec<IpNet>,

    /// Networks, separated by commas, of load balancers that say in X-Forwarded-For for whom they speak. The
    /// addresses of others than these decide where a worker is that does not tell it itself
    #[arg(long, env = "RFORK_CFG_TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',')]
    trusted_proxies: Vec<IpNet>,

    /// A TOML file of rules for some seeds: capacity, lease time, a bound for all seeds of a host; and where
    /// addresses are. `docs/settings-file.md` says what may stand in it
    #[arg(long, env = "RFORK_CFG_SETTINGS_FILE", value_name = "FILE")]
    settings_file: Option<PathBuf>,

    /// Collector that traces are sent to, by OTLP over HTTP, as `http://collector:4318` [default: none]
    #[arg(long, env = "RFORK_CFG_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<Endpoint>,
}

/// What `rfork planner` does instead of running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Bring the database's schema up to date; a planner that starts does so, too
    Migrate,
    /// Print the OpenAPI document of API v2
    Openapi,
}

/// A text that may hold a password: neither this program nor clap shows it.
#[derive(Clone)]
struct Hidden(String);

impl FromStr for Hidden {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Reads a whole number of `accepted`, or says what is accepted.
fn whole<T>(accepted: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + fmt::Display + Clone,
{
    move |text| {
        let number = text.trim().parse().ok().filter(|number| accepted.contains(number));
        number
            .ok_or_else(|| format!("must be a whole number from {} to {}", accepted.start(), accepted.end()))
    }
}

impl PlannerArgs {
    /// Where traces go, if anywhere. Whoever sets logging up adds its layer.
    ///
    /// # Errors
    /// [`ExporterError`].
    pub fn exporter(&self) -> Result<Option<Exporter>, ExporterError> {
        self.otlp_endpoint.as_ref().map(Exporter::new).transpose()
    }

    /// The settings that they mean.
    ///
    /// # Errors
    /// [`SettingsError`], when the database URL or a file is unusable, or there is no place for a default.
    pub fn settings(self) -> Result<Settings, SettingsError> {
        let database: DatabaseUrl = match (self.database_url, &self.database_url_file) {
            (Some(Hidden(url)), _) => url.parse().map_err(DatabaseError::Url)?,
            (None, Some(file)) => DatabaseUrl::from_file(file)?,
            (None, None) => DatabaseUrl::default_file()?,
        };
        let file = self.settings_file.as_deref().map(FileSettings::read).transpose()?;
        Ok(Settings {
            host: self.host,
            port: self.port,
            database,
            connect: ConnectSettings {
                pool_size: self.database_pool_size,
                statement_timeout: Duration::from_millis(self.database_statement_timeout_ms),
                pooler: self.database_pooler,
                ..ConnectSettings::default()
            },
            lock_wait: Duration::from_secs(self.database_lock_wait_sec),
            heartbeat_ttl: Duration::from_secs(self.heartbeat_ttl_sec),
            heartbeat_sweep: Duration::from_secs(self.heartbeat_sweep_sec),
            lease_ttl: Duration::from_secs(self.lease_ttl_sec),
            default_resource_points: self.default_resource_points,
            alloc_policy: self.alloc_policy,
            bounds: Bounds {
                connections: self.max_connections,
                requests: self.max_requests,
                idle: Duration::from_secs(self.idle_timeout_sec),
                drain: Duration::from_secs(self.drain_sec),
                ..Bounds::default()
            },
            v1_hold: Duration::from_secs(self.v1_hold_sec),
            heartbeat_interval: Duration::from_secs(self.heartbeat_interval_sec),
            history: Duration::from_secs(self.history_sec),
            liveness_probe: !self.no_liveness_probe,
            probe_networks: self.probe_networks,
            trusted_proxies: self.trusted_proxies,
            file: file.map(Arc::new).unwrap_or_default(),
        })
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Of the database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// In the settings file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why `rfork planner` ended badly.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// A setting cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {host} port {port}: {source}; give another --host or --port")]
    Listen {
        /// `--host`.
        host: String,
        /// `--port`.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// What was asked for cannot be printed.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// It could not start.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs a planner until SIGTERM or Ctrl-C, or does what was asked for instead. The planner then drains, stops
/// accepting, finishes what runs, and returns.
///
/// # Errors
/// [`PlannerError`], when it cannot start.
pub async fn serve(args: PlannerArgs) -> Result<(), PlannerError> {
    let action = args.action;
    if action == Some(Action::Openapi) {
        return std::io::stdout().write_all(openapi::text().as_bytes()).map_err(PlannerError::Print);
    }
    let settings = args.settings()?;
    if action == Some(Action::Migrate) {
        return Ok(migrate(&settings).await?);
    }
    let stop = Stop::on_signals().map_err(PlannerError::Signals)?;
    raise_open_files();
    // An IPv6 address may stand in brackets, as in a URL.
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    let listener = TcpListener::bind((host, settings.port)).await.map_err(|source| PlannerError::Listen {
        host: settings.host.clone(),
        port: settings.port,
        source,
    })?;
    Ok(run(settings, listener, stop).await?)
}

/// Lets the process have as many open files, and so connections, as the system grants. Many systems start a
/// process with room for 1,024.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        planner: PlannerArgs,
    }

    fn parse(flags: &[&str]) -> Result<Settings, String> {
        let command = Command::try_parse_from(["planner"].iter().chain(flags));
        command.map_err(|error| error.to_string())?.planner.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_that_people_know() {
        let settings = parse(&[]).unwrap();
        assert_eq!(settings, Settings::of(DatabaseUrl::default_file().unwrap()));
        assert_eq!((settings.host.as_str(), settings.port), ("127.0.0.1", 1223));
        assert_eq!(settings.heartbeat_ttl, Duration::from_secs(60));
        assert_eq!(settings.heartbeat_sweep, Duration::from_secs(5));
        assert_eq!(settings.lease_ttl, Duration::from_secs(60));
        assert_eq!((settings.default_resource_points, settings.alloc_policy), (1, Policy::Balanced));
    }

    #[test]
    fn a_bad_setting_is_refused_with_its_flag_and_what_it_accepts() {
        for (flag, value, accepted) in [
            ("--port", "tcp://10.0.0.1:1223", "0 to 65535"),
            ("--port", "65536", "0 to 65535"),
            ("--heartbeat-ttl-sec", "0", "1 to 315360000"),
            ("--heartbeat-sweep-sec", "-1", "1 to 315360000"),
            ("--history-sec", "2592001", "0 to 2592000"),
            ("--lease-ttl-sec", "1.5", "1 to 315360000"),
            ("--default-resource-points", "0", "1 to 1000"),
            ("--alloc-policy", "random", "balanced, fifo or lru"),
            ("--database-url", "/var/lib/planner.db", "sqlite:///"),
            ("--database-url", "mysql://h/d", "postgres://"),
            ("--database-url", "postgres://h/d?sslmode=perhaps", "postgres://"),
            ("--database-pool-size", "1", "2 to 100"),
            ("--database-statement-timeout-ms", "9000", "100 to 3500"),
            ("--database-pooler", "maybe", "auto, yes, no"),
            ("--database-lock-wait-sec", "3601", "0 to 3600"),
            ("--max-connections", "0", "1 to 1000000"),
            ("--max-requests", "-1", "1 to 1000000"),
            ("--idle-timeout-sec", "0", "1 to 3600"),
            ("--otlp-endpoint", "collector:4318", "http://collector:4318"),
            ("--drain-sec", "3601", "0 to 3600"),
            ("--trusted-proxies", "10.0.0.1/33", "IP address"),
            ("--database-url-file", "/no/such/file", "cannot be read"),
        ] {
            let refusal = parse(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(refusal.contains(flag) && refusal.contains(accepted), "{flag}={value}: {refusal}");
        }
        let both = parse(&["--database-url=sqlite:a.db", "--database-url-file=f"]).unwrap_err();
        assert!(both.contains("cannot be used with"), "{both}");
    }

    #[test]
    fn migrating_is_asked_for_by_a_word() {
        let action = |words: &[&str]| Command::try_parse_from(words).map(|command| command.planner.action);
        assert_eq!(action(&["planner", "--port=0"]).unwrap(), None);
        assert_eq!(action(&["planner", "migrate", "--port=0"]).unwrap(), Some(Action::Migrate));
        assert_eq!(action(&["planner", "--port=0", "migrate"]).unwrap(), Some(Action::Migrate));
        assert_eq!(action(&["planner", "openapi"]).unwrap(), Some(Action::Openapi));
        assert!(action(&["planner", "migrat"]).is_err());
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let flag = "--database-url=mysql://user:SECRET@host/db";
        let refusal = parse(&[flag]).unwrap_err();
        assert!(refusal.contains("'mysql'") && !refusal.contains("SECRET"), "{refusal}");
        let shown = format!("{:?}", Command::try_parse_from(["planner", flag]).unwrap());
        assert!(!shown.contains("SECRET"), "{shown}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "postgres://user:SECRET@host/db\n").unwrap();
        let settings = parse(&["--database-url-file", file.path().to_str().unwrap()]).unwrap();
        assert_eq!(settings.database.to_string(), "postgres://user@host:5432/db");
        assert!(!format!("{settings:?}").contains("SECRET"), "{settings:?}");
        std::fs::write(file.path(), "mysql://user:SECRET@host/db\n").unwrap();
        let refusal = parse(&["--database-url-file", file.path().to_str().unwrap()]).unwrap_err();
        assert!(refusal.contains("--database-url-file") && !refusal.contains("SECRET"), "{refusal}");
        std::fs::write(file.path(), "sqlite:///tmp/p.db\n").unwrap();
        let settings = parse(&["--database-url-file", file.path().to_str().unwrap()]).unwrap();
        assert_eq!(settings.database, DatabaseUrl::Sqlite("/tmp/p.db".into()));
    }
}
