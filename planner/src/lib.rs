//! The RFork planner: which running worker a new worker may read its weights from.
//!
//! Requests come in over [`http`], become [`store::commands`], and are applied by the [`writer`]
//! in one transaction for all that wait. What a command means is decided by pure functions ([`domain`]);
//! what is true is in the database ([`store`]).

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::future::{OptionFuture, join};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub mod acquaint;
pub mod acquire;
pub mod config;
pub mod decide;
pub mod domain;
pub mod grant;
pub mod heartbeats;
pub mod http;
pub mod identity;
pub mod metrics;
pub mod probe;
pub mod serve;
pub mod settings;
pub mod settings_file;
pub mod shares;
pub mod shutdown;
pub mod store;
pub mod sweeper;
pub mod telemetry;
pub mod tls;
pub mod toml_file;
pub mod waiting;
pub mod writer;

use config::{DatabaseUrl, REQUEST_DEADLINE, Settings};
use identity::{Identity, Mode, TokenFile};
use metrics::Metrics;
use shutdown::Stop;
use store::postgres::{ConnectError, PostgresStore};
use store::sqlite::{OpenError, SqliteStore};
use store::{Clock, Store};

/// A planner that could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its SQLite file cannot be used.
    #[error(transparent)]
    Sqlite(#[from] OpenError),
    /// Its Postgres database cannot be used.
    #[error(transparent)]
    Postgres(#[from] ConnectError),
    /// Its metrics contradict each other: a fault of this program.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// There is no listening for probes.
    #[error("cannot listen for probes on {host} port {port}: {source}; give another --probe-port")]
    Probes {
        /// `--host`.
        host: String,
        /// `--probe-port`.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its socket cannot be used.
    #[error("the listening socket is unusable: {0}")]
    Listener(#[from] std::io::Error),
}

/// Brings the schema of the settings' database up to what this program knows, and nothing else. Boxed, like
/// [`serve::serve`].
///
/// # Errors
/// [`RunError`], when the database cannot be used.
pub fn migrate(settings: &Settings) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + Send + '_>> {
    Box::pin(async {
        match &settings.database {
            DatabaseUrl::Sqlite(path) => {
                SqliteStore::open(path, settings.rules(), Clock::System).await?.close().await;
            }
            DatabaseUrl::Postgres(url) => store::postgres::migrate(url, settings.connect).await?,
        }
        tracing::info!(database = %settings.database, "the schema is up to date");
        Ok(())
    })
}

/// Opens the settings' database, migrating its schema; tells what it waits for.
async fn open(settings: &Settings, why: watch::Sender<http::Opening>) -> Result<Arc<dyn Store>, RunError> {
    let (rules, clock) = (settings.rules(), Clock::System);
    Ok(match &settings.database {
        DatabaseUrl::Sqlite(path) => {
            let in_use = |is: bool| {
                why.send_replace(if is { http::Opening::InUse } else { http::Opening::Database });
            };
            Arc::new(SqliteStore::open_after(path, rules, clock, settings.lock_wait, in_use).await?)
        }
        DatabaseUrl::Postgres(url) => {
            Arc::new(PostgresStore::open(url, settings.connect, rules, clock).await?)
        }
    })
}

/// Who may come in, by a file that is watched until `stop`.
fn identity(settings: &Settings, metrics: &Arc<Metrics>, stop: &CancellationToken) -> Arc<Identity> {
    let listens_beyond = settings
        .host
        .parse()
        .map_or(settings.host != "localhost", |host: IpAddr| !host.to_canonical().is_loopback());
    if settings.auth_mode != Mode::Enforce && listens_beyond {
        tracing::warn!(
            host = %settings.host,
            mode = ?settings.auth_mode,
            "whoever reaches this planner may lease, register and drain seeds: --token-file with --auth-mode enforce says who may"
        );
    }
    let keys = metrics.clone();
    let tell_of_keys = Arc::new(move |issuer: &str, is_good| keys.issuer(issuer, is_good));
    let new = |tokens| Arc::new(Identity::new(settings.auth_mode, tokens, tell_of_keys, stop.clone()));
    let Some(TokenFile { path, tokens }) = settings.token_file.clone() else { return new(Arc::default()) };
    let identity = new(tokens);
    let metrics = metrics.clone();
    let tell = move |is_good| metrics.token_file(is_good);
    tokio::spawn(identity::watch(identity.clone(), path, tell, stop.clone()));
    identity
}

/// How seeds are asked whether they live, if they are, by a planner that listens at this address.
fn liveness(
    settings: &Settings,
    listens: IpAddr,
    writer: &writer::Writer,
    stop: &CancellationToken,
) -> Option<Arc<acquire::Liveness>> {
    if !settings.liveness_probe {
        return None;
    }
    let prober = Arc::new(probe::Prober::new(settings.probe_networks.clone(), listens));
    let acquaintance = Arc::new(acquaint::Acquaintance::new(prober.clone(), writer.clone(), stop.clone()));
    let heartbeat_interval = settings.heartbeat_interval;
    Some(Arc::new(acquire::Liveness { prober, acquaintance, heartbeat_interval }))
}

/// Runs a planner on `listener` until `stop`: then it drains, accepts no more, finishes what runs, writes the last
/// heartbeats and returns. A plain token stops it without a drain. Two can live in one process, each with a SQLite
/// file of its own.
///
/// # Errors
/// [`RunError`], when it cannot start.
pub async fn run(settings: Settings, listener: TcpListener, stop: impl Into<Stop>) -> Result<(), RunError> {
    let stop: Stop = stop.into();
    let address: SocketAddr = listener.local_addr()?;
    let second = match settings.probe_port {
        Some(port) => {
            let host = settings.host.clone();
            let listener = serve::listen(&host, port).await;
            Some(listener.map_err(|source| RunError::Probes { host, port, source })?)
        }
        None => None,
    };
    // From the beginning, so that whoever probes it does not take a planner for dead that migrates.
    let (serving, opened) = watch::channel(None);
    let (opening, why) = watch::channel(http::Opening::Database);
    let unopened = http::opening(opened.clone(), why);
    let proxies = settings.trusted_proxies.clone().into();
    let metrics = Arc::new(Metrics::new()?);
    let pools = shares::Pools::new(&settings.bounds, &metrics);
    let tls = settings.tls.clone().map(|tls| (tls, metrics.clone()));
    let _watching =
        tls.clone().map(|(tls, metrics)| AbortOnDropHandle::new(tokio::spawn(tls.watch(metrics))));
    let what = http::server::Served {
        opening: unopened,
        opened,
        tls,
        proxies,
        bounds: &settings.bounds,
        stop: &stop,
    };
    let probes_alone = second.map(|listener| http::server::serve_probes(listener, what.clone()));
    let all = http::server::serve(listener, pools.connections.clone(), what);
    let mut server = pin!(join(all, OptionFuture::from(probes_alone)));
    let store = tokio::select! {
        store = open(&settings, opening) => store?,
        // A stop does not wait for a database that is away.
        () = stop.draining() => return Ok(()),
        _ = server.as_mut() => return Ok(()),
    };
    let store: Arc<dyn Store> = Arc::new(metrics::MeasuredStore::new(store, metrics.clone()));
    if settings.heartbeat_interval >= settings.heartbeat_ttl {
        tracing::warn!(
            "--heartbeat-interval-sec is not less than --heartbeat-ttl-sec: a seed that sends its heartbeats so often is \
             silent in between, and none is asked whether it lives"
        );
    }
    let heartbeats = Arc::new(heartbeats::Heartbeats::new(settings.heartbeat_ttl));
    let (writer, writing) = writer::Writer::start(store.clone(), heartbeats.clone(), REQUEST_DEADLINE);
    // These two end after the requests do, so that no heartbeat that was answered is lost.
    let requests_done = CancellationToken::new();
    let flushing = tokio::spawn(heartbeats.clone().run(store.clone(), requests_done.clone()));
    let sweeping = tokio::spawn(sweeper::run(store.clone(), settings.heartbeat_sweep, requests_done.clone()));
    let room = waiting::WaitingRoom::new(
        writer.clone(),
        store.clone(),
        metrics.clone(),
        pools.waiting.clone(),
        stop.clone(),
    );
    let room = Arc::new(room);
    let seating = tokio::spawn(room.clone().run(settings.heartbeat_sweep, requests_done.clone()));
    let liveness = liveness(&settings, address.ip(), &writer, &requests_done);
    let granter = acquire::Granter { writer: writer.clone(), store: store.clone(), room, liveness };
    let identity = identity(&settings, &metrics, &requests_done);
    let api = http::Parts {
        granter,
        deadline: settings.bounds.deadline,
        v1_hold: settings.v1_hold,
        policy: settings.alloc_policy,
        loading_seeds: settings.fork_while_loading,
        seed_owner: settings.seed_owner,
        file: settings.file.clone(),
        writer,
        heartbeats,
        store: store.clone(),
        heartbeat_interval: settings.heartbeat_interval,
        heartbeat_ttl: settings.heartbeat_ttl,
        identity,
        metrics,
        stop: stop.clone(),
    };
    serving.send_replace(Some(http::router(api.into(), &settings.bounds, &pools)));
    // What the router holds, the writer among it, goes with the server.
    drop(serving);
    tracing::info!(
        %address,
        database = %settings.database,
        heartbeat_ttl_sec = settings.heartbeat_ttl.as_secs(),
        lease_ttl_sec = settings.lease_ttl.as_secs(),
        resource_points = settings.default_resource_points,
        policy = %settings.alloc_policy,
        tls = settings.tls.is_some(),
        "the planner listens"
    );
    server.await;
    requests_done.cancel();
    // A panic in one of them was logged when it happened; the rest is still to be closed.
    let _ = (flushing.await, sweeping.await, seating.await);
    let _ = tokio::time::timeout(REQUEST_DEADLINE, writing).await;
    store.close().await;
    tracing::info!("the planner has stopped");
    Ok(())
}
