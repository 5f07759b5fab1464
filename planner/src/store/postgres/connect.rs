//! Reaching the database, and its schema.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::sync::Notify;

use super::requests;
use crate::config::PostgresUrl;
use crate::store::schema::{self, Schema};

/// What there is to set.
const TLS_HINT: &str = "see sslmode and sslrootcert in --database-url";
/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one attempt to connect at the start may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to listen to other planners.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two attempts to connect at the start.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
/// The longest that a migration may take, waiting for another planner's included.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// How connections are made and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectSettings {
    /// The most connections at once.
    pub pool_size: u32,
    /// The longest that one statement may take, its wait for locks included.
    pub statement_timeout: Duration,
    /// How long a database that is away is waited for at the start.
    pub patience: Duration,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self { pool_size: 8, statement_timeout: Duration::from_secs(2), patience: Duration::from_secs(15) }
    }
}

/// A database that cannot be used. Its text never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It cannot be reached.
    #[error(
        "{database} cannot be reached ({reason}; tried for {waited_sec} s); check --database-url and that it runs"
    )]
    Away {
        /// The database, without a password.
        database: String,
        /// What the system or the server said.
        reason: String,
        /// How long it was waited for, in seconds.
        waited_sec: u64,
    },
    /// Its tables are those of a planner between two releases.
    #[error(
        "{database} has tables of a planner that was never released (its migration {version} is another one than ours): drop the database and make it anew; only warmth is lost, since seeds register again with their next heartbeat"
    )]
    Unreleased {
        /// The database, without a password.
        database: String,
        /// The number of the migration.
        version: i64,
    },
    /// It was reached and refuses, or its schema is not ours.
    #[error("{database} cannot be used as the planner's database: {reason}")]
    Unusable {
        /// The database, without a password.
        database: String,
        /// What the server said.
        reason: String,
    },
}

impl ConnectError {
    pub(super) fn unusable(url: &PostgresUrl, reason: &dyn std::fmt::Display) -> Self {
        Self::Unusable { database: url.to_string(), reason: reason.to_string() }
    }
}

/// Connections that are made when they are needed.
pub(super) fn pool(url: &PostgresUrl, settings: ConnectSettings) -> PgPool {
    let statement = settings.statement_timeout.as_millis();
    // A lock is given up a little earlier than its statement, so that the error says what it was. A planner that
    // stopped dead within a transaction keeps its locks no longer than two statements.
    let (lock, idle) = (statement * 3 / 4, statement * 2);
    // What writes looks for a few rows by an index. Postgres would read a table of a thousand rows instead, or a large
    // one of which it has no statistics yet. Lists may: `transaction::Begin::View`.
    let set = format!(
        "SET statement_timeout = {statement}; SET lock_timeout = {lock};
         SET idle_in_transaction_session_timeout = {idle}; SET jit = off; SET enable_seqscan = off"
    );
    PgPoolOptions::new()
        .max_connections(settings.pool_size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A broken connection is noticed by its first use, and replaced.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let set = set.clone();
            // Nothing in it comes from outside but numbers.
            Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await.map(|_| ()) })
        })
        .connect_lazy_with(url.options().clone())
}

/// Hears on a connection of its own when waiters of `planner` were served by another one. While it has no
/// connection nothing is lost but time: waiters ask for themselves now and then.
pub(super) async fn listen(options: PgConnectOptions, planner: String, served: Arc<Notify>) {
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
    let pool = pool.connect_lazy_with(options);
    loop {
        if let Err(error) = hear(&pool, &planner, &served).await {
            tracing::debug!(%error, "not listening to other planners at the moment");
        }
        // Those who were served meanwhile.
        served.notify_one();
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

/// Until the connection breaks.
async fn hear(pool: &PgPool, planner: &str, served: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(requests::CHANNEL).await?;
    while let Some(told) = listener.try_recv().await? {
        if told.payload() == planner {
            served.notify_one();
        }
    }
    Ok(())
}

/// Brings the schema up to what this program knows, waiting at most `patience` for a database that is away. That of a
/// newer planner is left as it is; see [`schema`](crate::store::schema). Of several planners that start together one
/// migrates, under a lock of the database's, and the others wait for it.
///
/// # Errors
/// [`ConnectError`].
pub async fn migrate(url: &PostgresUrl, patience: Duration) -> Result<(), ConnectError> {
    let mut connection = connect(url, patience).await?;
    let migrated = tokio::time::timeout(MIGRATION_TIMEOUT, apply(&mut connection)).await;
    // Closing also gives back the lock that a migration which failed may have kept.
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
    match migrated {
        Ok(Ok(())) => Ok(()),
        Ok(Err(MigrateError::VersionMismatch(version))) => {
            Err(ConnectError::Unreleased { database: url.to_string(), version })
        }
        Ok(Err(error)) => Err(ConnectError::unusable(url, &error)),
        Err(_) => Err(ConnectError::unusable(
            url,
            &format!("its schema was not ready within {MIGRATION_TIMEOUT:?}"),
        )),
    }
}

async fn apply(connection: &mut PgConnection) -> Result<(), MigrateError> {
    match schema(connection).await? {
        // A role that may not change the schema serves, too, once another has migrated it.
        Schema::Complete => Ok(()),
        Schema::Unreleased(version) => Err(MigrateError::VersionMismatch(version)),
        // `run`, which is this, cannot be awaited in a future that has to be `Send`.
        Schema::Behind => schema::postgres().run_direct(None, connection, false).await,
    }
}

/// How far the database's schema is.
pub(super) async fn schema(connection: &mut PgConnection) -> Result<Schema, sqlx::Error> {
    let ours: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !ours {
        return Ok(Schema::Behind);
    }
    let applied = sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success")
        .fetch_all(connection)
        .await?;
    Ok(Schema::of(&schema::postgres(), &applied))
}

/// Connects, without the timeouts of the pool's connections: a migration may take long.
async fn connect(url: &PostgresUrl, patience: Duration) -> Result<PgConnection, ConnectError> {
    for (parameter, path) in url.tls_files() {
        if let Err(error) = tokio::fs::metadata(&path).await {
            let reason = format!("its {parameter}, {}, cannot be read: {error}; {TLS_HINT}", path.display());
            return Err(ConnectError::unusable(url, &reason));
        }
    }
    let since = Instant::now();
    let mut told = false;
    loop {
        let error = match tokio::time::timeout(CONNECT_TIMEOUT, url.options().connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) if may_come(&error) => error.to_string(),
            Ok(Err(error)) if is_about_tls(&error) => {
                return Err(ConnectError::unusable(url, &format!("{error}; {TLS_HINT}")));
            }
            Ok(Err(error)) => return Err(ConnectError::unusable(url, &error)),
            Err(_) => format!("no answer within {CONNECT_TIMEOUT:?}"),
        };
        if since.elapsed() >= patience {
            let waited_sec = since.elapsed().as_secs();
            return Err(ConnectError::Away { database: url.to_string(), reason: error, waited_sec });
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(database = %url, reason = %error, "waiting up to {patience:?} for the database");
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// Whether the two do not agree on how, or whether, the connection is encrypted.
fn is_about_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        // How rustls says that it does not believe the server.
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        // invalid_authorization_specification
        sqlx::Error::Database(error) => {
            error.code().as_deref() == Some("28000") && error.message().ends_with("no encryption")
        }
        _ => false,
    }
}

/// Whether a database that cannot be connected to may soon be there.
fn may_come(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => !is_about_tls(error),
        // cannot_connect_now, too_many_connections, admin_shutdown, crash_shutdown
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P03" | "53300" | "57P01" | "57P02"))
        }
        _ => false,
    }
}
