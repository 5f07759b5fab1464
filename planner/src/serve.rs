//! A planner as a process of its own: it listens, and runs until a signal ends it.

use tokio::net::TcpListener;

use crate::config::Settings;
use crate::shutdown::Stop;
use crate::{RunError, run};

/// Why a planner ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
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
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// It could not start.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs a planner until SIGTERM or Ctrl-C. It then drains, stops accepting, finishes what runs, and returns.
///
/// # Errors
/// [`ServeError`], when it cannot start.
pub async fn serve(settings: Settings) -> Result<(), ServeError> {
    let stop = Stop::on_signals().map_err(ServeError::Signals)?;
    raise_open_files();
    // An IPv6 address may stand in brackets, as in a URL.
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    let listener = TcpListener::bind((host, settings.port)).await.map_err(|source| ServeError::Listen {
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
