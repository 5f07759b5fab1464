//! How a planner is told to end, and by which signals.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The end of a planner, in two steps: it *drains*, that is, it says that it is not ready and serves on, so that
/// load balancers turn elsewhere; then it *closes*, that is, it listens no more and finishes what runs.
///
/// Cheap to clone and to ask; what waits for long watches it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    draining: CancellationToken,
    closing: CancellationToken,
}

impl Stop {
    /// One that SIGTERM or Ctrl-C begins. A second signal ends the drain at once, and one after that the process.
    ///
    /// # Errors
    /// When the system does not let the process receive signals.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        obey(stop.clone())?;
        Ok(stop)
    }

    /// Takes the next step: begins the drain, or ends it. `false`: there is none after the last.
    pub fn advance(&self) -> bool {
        let over = self.closing.is_cancelled();
        let step = if self.is_draining() { &self.closing } else { &self.draining };
        step.cancel();
        !over
    }

    /// Whether the end has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Ends when the drain begins: what is new should not be sent here any more.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Ends when the planner closes: what waits is answered now, for nobody waits for it long.
    pub async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Waits for the beginning of the end, then at most `drain`, and closes.
    pub(crate) async fn close_after(&self, drain: Duration) {
        self.draining.cancelled().await;
        if !drain.is_zero() && !self.closing.is_cancelled() {
            tracing::info!(
                drain_sec = drain.as_secs_f64(),
                "not ready any more; serving on for others to notice"
            );
        }
        let _ = tokio::time::timeout(drain, self.closing.cancelled()).await;
        self.closing.cancel();
    }
}

/// One that closes at once when the token is cancelled.
impl From<CancellationToken> for Stop {
    fn from(token: CancellationToken) -> Self {
        Self { draining: token.clone(), closing: token }
    }
}

/// Takes one step of `stop` a signal; the signal after the last step ends the process.
fn obey(stop: Stop) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            let name = next(&mut terminate, &mut interrupt).await;
            if !stop.advance() {
                tracing::warn!("{name} once more: ending at once");
                std::process::exit(130);
            }
            tracing::info!("{name}: stopping");
        }
    });
    Ok(())
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "Ctrl-C",
    }
}
