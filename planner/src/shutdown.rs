//! Signals.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM or Ctrl-C cancels. A second signal ends the process at once, for people in a hurry.
///
/// # Errors
/// When the system does not let the process receive signals.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stopping = token.clone();
    tokio::spawn(async move {
        let next = async |terminate: &mut tokio::signal::unix::Signal,
                          interrupt: &mut tokio::signal::unix::Signal| {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "Ctrl-C",
            }
        };
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::info!("{name}: stopping");
        stopping.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!("{name} once more: ending at once");
        std::process::exit(130);
    });
    Ok(token)
}
