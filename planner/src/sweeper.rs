//! Tidies the store up, now and then. Nothing depends on it: what has expired is expired for every request.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Sweeps every `interval` until stopped.
pub async fn run(store: Arc<dyn Store>, interval: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match store.sweep().await {
            // What was kept for long enough goes all the time.
            Ok(swept) if (swept.leases, swept.seeds, swept.silenced) == (0, 0, 0) => {}
            Ok(swept) => tracing::info!(
                leases = swept.leases,
                seeds = swept.seeds,
                silenced = swept.silenced,
                "swept what had expired"
            ),
            Err(error) => tracing::warn!(%error, "a sweep failed; the next one makes up for it"),
        }
    }
}
