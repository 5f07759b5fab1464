//! How a planner hears that waiters of its own were served by another one.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;

use super::pool::{ACQUIRE_TIMEOUT, Pool};
use super::waiters::CHANNEL;

/// Pause between two attempts to listen.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// How often waiters are looked for where nobody can be told of them: a session that a pooler lends hears nothing
/// between two transactions. Nobody looks while nobody waits.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Tells `served` when waiters of `planner` may have been served elsewhere: when another planner says so, on a
/// connection of its own, or now and then. While neither is possible nothing is lost but time: waiters ask for
/// themselves.
pub(super) async fn run(pool: Arc<Pool>, planner: Arc<str>, served: Arc<Notify>) {
    tokio::select! {
        () = pool.becomes_shared() => {}
        () = listen(&pool, &planner, &served) => {}
    }
    loop {
        served.notify_one();
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Without an end.
async fn listen(pool: &Pool, planner: &str, served: &Notify) {
    let mut told = false;
    loop {
        if let Err(error) = hear(pool, planner, served, &mut told).await
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(
                %error,
                "cannot listen to other planners: whom they serve is looked for every {LISTEN_PAUSE:?} until that works"
            );
        }
        // Those who were served meanwhile.
        served.notify_one();
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

/// Until the connection breaks.
async fn hear(pool: &Pool, planner: &str, served: &Notify, told: &mut bool) -> Result<(), sqlx::Error> {
    let own = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
    let mut listener = PgListener::connect_with(&own.connect_lazy_with(pool.options())).await?;
    let listening = listener.listen(CHANNEL);
    let late = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(ACQUIRE_TIMEOUT, listening).await.map_err(late)??;
    *told = false;
    while let Some(heard) = listener.try_recv().await? {
        if heard.payload() == planner {
            served.notify_one();
        }
    }
    Ok(())
}
