//! How a worker is told to end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM or Ctrl-C cancels. A second signal ends the process at once, for people in a hurry.
///
/// # Errors
/// When the system does not let the process receive signals.
pub(crate) fn on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "Ctrl-C",
            };
            if told.is_cancelled() {
                tracing::warn!("{name} once more: ending at once");
                std::process::exit(130);
            }
            tracing::info!("{name}: stopping");
            told.cancel();
        }
    });
    Ok(stop)
}
