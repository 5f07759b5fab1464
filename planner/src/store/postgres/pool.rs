//! The planner's connections, and what is known of the database behind them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::sync::{Notify, watch};

use super::ConnectSettings;
use super::session::Connection;
use super::url::{PostgresUrl, Server};

/// How long a call waits for a connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that are made when they are needed.
#[derive(Debug)]
pub(super) struct Pool {
    connections: PgPool,
    /// Whether sessions are lent by a pooler, each for the time of a transaction: `session`.
    shared: watch::Sender<bool>,
    /// What a transaction sets for itself then: a statement.
    set_local: String,
    /// Whether somebody has decided that the database, or this role in it, is not to be written to. Sessions that
    /// are older than the decision do not know of it.
    read_only: AtomicBool,
    /// Told when a connection was lost, could not be had, or led to a server that only reads.
    trouble: Notify,
    /// Connections that were made before are not used any more.
    renewed: Arc<Mutex<Option<Instant>>>,
}

impl Pool {
    pub(super) fn new(
        url: &PostgresUrl,
        server: &Server,
        settings: ConnectSettings,
        is_shared: bool,
    ) -> Self {
        let (shared, told) = watch::channel(is_shared);
        let ours = settings_of(settings);
        let for_session = set(&ours, false);
        let renewed: Arc<Mutex<Option<Instant>>> = Arc::default();
        let renewal = renewed.clone();
        let connections = PgPoolOptions::new()
            .max_connections(settings.pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A broken connection is noticed by its first use, and replaced.
            .test_before_acquire(false)
            .before_acquire(move |_, connection| {
                let renewal = *renewal.lock().unwrap_or_else(PoisonError::into_inner);
                let is_new = renewal.is_none_or(|renewal| connection.age <= renewal.elapsed());
                Box::pin(async move { Ok(is_new) })
            })
            .after_connect(move |connection, _| {
                let set = (!*told.borrow()).then(|| for_session.clone());
                Box::pin(async move {
                    if let Some(set) = set {
                        // Nothing in it comes from outside but numbers.
                        sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(server.options(is_shared).clone());
        let set_local = set(&[url.settings(), &ours].concat(), true);
        let (read_only, trouble) = (AtomicBool::new(false), Notify::new());
        Self { connections, shared, set_local, read_only, trouble, renewed }
    }

    /// A connection for a transaction.
    pub(super) async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        let raw = self.connections.acquire().await.inspect_err(|_| self.trouble.notify_one())?;
        Ok(Connection { raw, shared: self.is_shared() })
    }

    /// The statement by which a transaction sets for itself what it needs.
    pub(super) fn set_local(&self) -> &str {
        &self.set_local
    }

    pub(super) fn is_shared(&self) -> bool {
        *self.shared.borrow()
    }

    /// Ends when sessions turn out to be shared.
    pub(super) async fn becomes_shared(&self) {
        // The sender is here: it does not end.
        let _ = self.shared.subscribe().wait_for(|shared| *shared).await;
    }

    /// Notes that what was prepared in a session is not there any more, which a session of its own cannot show.
    pub(super) fn note_shared(&self) {
        if !self.shared.send_replace(true) {
            tracing::warn!(
                "statements that were prepared on a connection are gone: a pooler lends its sessions; going on as with \
                 --database-pooler yes"
            );
        }
    }

    /// Whether the database is not to be written to.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Notes whether that was decided.
    pub(super) fn note_read_only(&self, read_only: bool) {
        let before = self.read_only.swap(read_only, Ordering::Relaxed);
        if read_only && !before {
            tracing::warn!("the database, or this planner's role, was set read-only: not writing to it");
        } else if before && !read_only {
            tracing::info!("the database is not set read-only any more");
        }
    }

    /// Notes that a connection was lost.
    pub(super) fn note_trouble(&self) {
        self.trouble.notify_one();
    }

    /// Notes that a session only reads: for the server, or for a decision that was made when it began and may have been
    /// taken back. Others may be like it, and none is used any more.
    pub(super) fn note_reading(&self) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.trouble.notify_one();
    }

    /// Ends when there was trouble with connections.
    pub(super) async fn trouble(&self) {
        self.trouble.notified().await;
    }

    /// Makes further connections to this server.
    pub(super) fn turn_to(&self, server: &Server) {
        self.connections.set_connect_options(server.options(self.is_shared()).clone());
    }

    /// How further connections are made.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.connections.connect_options().as_ref().clone()
    }

    pub(super) fn connections(&self) -> &PgPool {
        &self.connections
    }
}

/// What every transaction of ours is to have.
fn settings_of(settings: ConnectSettings) -> Vec<(String, String)> {
    let statement = settings.statement_timeout.as_millis();
    // A lock is given up a little earlier than its statement, so that the error says what it was. A planner that
    // stopped dead within a transaction keeps its locks no longer than two statements.
    let (lock, idle) = (statement * 3 / 4, statement * 2);
    [
        ("statement_timeout", statement.to_string()),
        ("lock_timeout", lock.to_string()),
        ("idle_in_transaction_session_timeout", idle.to_string()),
        ("jit", "off".into()),
        // What writes looks for a few rows by an index. Postgres would read a table of a thousand rows instead, or a
        // large one of which it has no statistics yet. Lists may: `transaction::Begin::View`.
        ("enable_seqscan", "off".into()),
        // Postgres would plan the largest statement anew for each batch, which takes it longer than carrying it out: it
        // holds a plan for all parameters for dearer. Lists may: their filters are what a good plan depends on.
        ("plan_cache_mode", "force_generic_plan".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// A statement that sets these for a transaction, or for a session.
pub(super) fn set(settings: &[(String, String)], local: bool) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let calls = settings
        .iter()
        .map(|(name, value)| format!("set_config({}, {}, {local})", quoted(name), quoted(value)));
    format!("SELECT {}", calls.collect::<Vec<_>>().join(", "))
}
