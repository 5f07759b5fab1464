//! A planner as a process of its own: it listens, and runs until a signal ends it.

use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;

use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

use crate::config::Settings;
use crate::shutdown::Stop;
use crate::{RunError, run};

/// Connections that may wait to be accepted, as far as the system lets them. One that finds no room there is tried again by
/// its system after a second.
const BACKLOG: u32 = 4096;

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
/// The future is boxed, so that the planner is compiled in this crate alone, and not once more in the crate that
/// awaits it.
///
/// # Errors
/// [`ServeError`], when it cannot start.
pub fn serve(settings: Settings) -> Pin<Box<dyn Future<Output = Result<(), ServeError>> + Send>> {
    Box::pin(async {
        let stop = Stop::on_signals().map_err(ServeError::Signals)?;
        raise_open_files();
        let listener = listen(&settings.host, settings.port).await.map_err(|source| ServeError::Listen {
            host: settings.host.clone(),
            port: settings.port,
            source,
        })?;
        Ok(run(settings, listener, stop).await?)
    })
}

/// Listens on an address, which may stand in brackets as in a URL, or on a name's. `::` is every address of both families,
/// whatever the system's own rule is for sockets that do not say.
///
/// # Errors
/// When the name has no address, or none of its addresses can be listened on.
pub async fn listen(host: &str, port: u16) -> std::io::Result<TcpListener> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut refused = std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in lookup_host((host, port)).await? {
        match listen_at(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn listen_at(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // The port of a planner that has just ended is free.
    socket.set_reuseaddr(true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
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
