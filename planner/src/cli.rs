//! `rfork planner`: flags and environment to settings, and a run until a signal ends it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;

use crate::config::{DatabaseError, DatabaseUrl, Settings};
use crate::domain::policy::Policy;
use crate::{RunError, run, shutdown};

/// The longest time that a flag takes, in seconds: ten years. More is a slip, and would overflow timers.
const MAX_SECONDS: u64 = 10 * 365 * 86_400;
/// The most leases that a seed may have at once.
const MAX_POINTS: u64 = 10_000;

/// Flags of `rfork planner`. Each has an environment variable `RFORK_CFG_<FLAG>`; not `RFORK_PLANNER_<FLAG>`,
/// because Kubernetes itself sets `RFORK_PLANNER_PORT`, to a URL, for a Service named `rfork-planner`.
#[derive(Debug, Clone, Args)]
pub struct PlannerArgs {
    /// Address to listen on; 0.0.0.0 for all of this machine
    #[arg(long, env = "RFORK_CFG_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,

    /// Port to listen on; 0 takes a free one and logs it
    #[arg(long, env = "RFORK_CFG_PORT", default_value_t = 1223)]
    port: u16,

    /// Where seeds and leases are kept, as `sqlite:///path/to/file.db`
    /// [default: rfork/planner.db in the user's data directory]
    #[arg(long, env = "RFORK_CFG_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<DatabaseUrl>,

    /// A file that holds the database URL, which keeps a password out of the process list
    #[arg(long, env = "RFORK_CFG_DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,

    /// Seconds without a heartbeat after which a seed is not handed out any more
    #[arg(long, env = "RFORK_CFG_HEARTBEAT_TTL_SEC", default_value_t = 60, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    heartbeat_ttl_sec: u64,

    /// Seconds between two tidyings-up of what has expired
    #[arg(long, env = "RFORK_CFG_HEARTBEAT_SWEEP_SEC", default_value_t = 5, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    heartbeat_sweep_sec: u64,

    /// Seconds after which a lease that was not renewed is gone
    #[arg(long, env = "RFORK_CFG_LEASE_TTL_SEC", default_value_t = 60, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    lease_ttl_sec: u64,

    /// Workers that may read from one seed at once
    #[arg(long, env = "RFORK_CFG_DEFAULT_RESOURCE_POINTS", default_value_t = 1, value_name = "POINTS",
        value_parser = clap::value_parser!(u64).range(1..=MAX_POINTS))]
    default_resource_points: u64,

    /// How a seed is chosen: balanced, fifo or lru
    #[arg(long, env = "RFORK_CFG_ALLOC_POLICY", default_value_t, value_name = "POLICY")]
    alloc_policy: Policy,
}

impl PlannerArgs {
    /// The settings that they mean.
    ///
    /// # Errors
    /// [`DatabaseError`], when there is no place for the default database or the URL's file is unusable.
    pub fn settings(self) -> Result<Settings, DatabaseError> {
        let database = match (self.database_url, &self.database_url_file) {
            (Some(url), _) => url,
            (None, Some(file)) => DatabaseUrl::from_file(file)?,
            (None, None) => DatabaseUrl::default_file()?,
        };
        Ok(Settings {
            host: self.host,
            port: self.port,
            database,
            heartbeat_ttl: Duration::from_secs(self.heartbeat_ttl_sec),
            heartbeat_sweep: Duration::from_secs(self.heartbeat_sweep_sec),
            lease_ttl: Duration::from_secs(self.lease_ttl_sec),
            default_resource_points: u32::try_from(self.default_resource_points).unwrap_or(1),
            alloc_policy: self.alloc_policy,
        })
    }
}

/// Why `rfork planner` ended badly.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// A setting cannot be used.
    #[error(transparent)]
    Settings(#[from] DatabaseError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; give another --host or --port")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// It could not start.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs a planner until SIGTERM or Ctrl-C. It then stops accepting, finishes what runs, and returns.
///
/// # Errors
/// [`PlannerError`], when it cannot start.
pub async fn serve(args: PlannerArgs) -> Result<(), PlannerError> {
    let settings = args.settings()?;
    let stop = shutdown::on_signal().map_err(PlannerError::Signals)?;
    let address = (settings.host, settings.port);
    let listener = TcpListener::bind(address).await.map_err(|source| PlannerError::Listen {
        address: std::net::SocketAddr::from(address).to_string(),
        source,
    })?;
    Ok(run(settings, listener, stop).await?)
}
