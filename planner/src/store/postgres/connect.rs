//! Reaching the database, and its schema.

use std::str::FromStr;
use std::time::{Duration, Instant};

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::pool::{Pool, set};
use super::session;
use super::transaction::{SET_READ_ONLY, is_read_only};
use super::url::{PostgresUrl, Server, Target};
use crate::store::schema::{self, Schema};

/// What there is to set.
const TLS_HINT: &str = "see sslmode and sslrootcert in --database-url";
/// How long one attempt to connect may take, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
/// The longest that a migration may take, waiting for another planner's included.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// The lock of whoever migrates: any number that no other program takes in the same database.
const MIGRATION_LOCK: i64 = 0x0072_666f_726b;

/// Whether a pooler stands before the database that lends its sessions for a transaction at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooler {
    /// Look at the start.
    #[default]
    Auto,
    /// There is one: right everywhere, and slower.
    Yes,
    /// There is none.
    No,
}

impl FromStr for Pooler {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "auto" => Ok(Self::Auto),
            "yes" => Ok(Self::Yes),
            "no" => Ok(Self::No),
            _ => Err("must be auto, yes or no"),
        }
    }
}

/// How connections are made and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectSettings {
    /// The most connections at once.
    pub pool_size: u32,
    /// The longest that one statement may take, its wait for locks included.
    pub statement_timeout: Duration,
    /// How long a database that is away, or only read, is waited for at the start.
    pub patience: Duration,
    /// Whether there is a pooler.
    pub pooler: Pooler,
}

/// A database that cannot be used. Its text never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It cannot be reached, or written to.
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

/// Why an attempt to open the database failed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It may soon be there.
    Away(String),
    /// It refuses.
    Final(String),
    /// Its tables are those of a planner between two releases, from this migration on.
    Unreleased(i64),
}

/// Waits between attempts to open a database, as long as that is allowed.
pub(super) struct Patience<'a> {
    url: &'a PostgresUrl,
    limit: Duration,
    since: Instant,
    /// What was last said to be waited for.
    said: Option<String>,
}

impl<'a> Patience<'a> {
    pub(super) fn new(url: &'a PostgresUrl, limit: Duration) -> Self {
        Self { url, limit, since: Instant::now(), said: None }
    }

    /// Waits for the next attempt after one that failed.
    pub(super) async fn after(&mut self, refusal: Refusal) -> Result<(), ConnectError> {
        let database = self.url.to_string();
        let reason = match refusal {
            Refusal::Final(reason) => return Err(ConnectError::Unusable { database, reason }),
            Refusal::Unreleased(version) => return Err(ConnectError::Unreleased { database, version }),
            Refusal::Away(reason) => reason,
        };
        let limit = self.limit;
        if self.since.elapsed() >= limit {
            let waited_sec = self.since.elapsed().as_secs();
            return Err(ConnectError::Away { database, reason, waited_sec });
        }
        if self.said.as_ref() != Some(&reason) {
            tracing::warn!(%database, %reason, "waiting up to {limit:?} for the database");
            self.said = Some(reason);
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
        Ok(())
    }
}

/// Brings the schema up to what this program knows, waiting at most as long as `settings` say for a database that is
/// away. That of a newer planner is left as it is; see [`schema`](crate::store::schema). Of several planners that start
/// together one migrates, under a lock of its transaction's, and the others wait for it.
///
/// # Errors
/// [`ConnectError`].
pub async fn migrate(url: &PostgresUrl, settings: ConnectSettings) -> Result<(), ConnectError> {
    let mut patience = Patience::new(url, settings.patience);
    loop {
        match reach(url, settings).await {
            Ok(_) => return Ok(()),
            Err(refusal) => patience.after(refusal).await?,
        }
    }
}

/// Connects to the server that is wanted, finds out whose its sessions are, and migrates its schema; gives the
/// connections to be.
pub(super) async fn reach(url: &PostgresUrl, settings: ConnectSettings) -> Result<Pool, Refusal> {
    let (server, mut connection) = find(url).await?;
    let is_shared = match settings.pooler {
        Pooler::Auto => session::are_shared(server.options(true)).await.map_err(|error| refusal(&error))?,
        Pooler::Yes => true,
        Pooler::No => false,
    };
    let migrated = tokio::time::timeout(MIGRATION_TIMEOUT, apply(&mut connection, url)).await;
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
    migrated
        .map_err(|_| Refusal::Final(format!("its schema was not ready within {MIGRATION_TIMEOUT:?}")))??;
    Ok(Pool::new(url, server, settings, is_shared))
}

/// In one transaction, so that nothing has to outlive it: neither a lock nor a statement that was prepared.
async fn apply(connection: &mut PgConnection, url: &PostgresUrl) -> Result<(), Refusal> {
    let failed = |error: sqlx::Error| refusal(&error);
    let mut tx = connection.begin().await.map_err(failed)?;
    if !url.settings().is_empty() {
        let set = AssertSqlSafe(set(url.settings(), true));
        sqlx::raw_sql(set).execute(&mut *tx).await.map_err(failed)?;
    }
    match schema(&mut tx).await.map_err(failed)? {
        // A role that may not change the schema serves, too, once another has migrated it.
        Schema::Complete => return Ok(()),
        Schema::Unreleased(version) => return Err(Refusal::Unreleased(version)),
        Schema::Behind => {}
    }
    if is_set_read_only(&mut tx).await.map_err(failed)? {
        return Err(Refusal::Away(SET_READ_ONLY.into()));
    }
    let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *tx).await.map_err(failed)?;
    let mut migrations = schema::postgres();
    migrations.set_locking(false);
    // `run`, which is this, cannot be awaited in a future that has to be `Send`.
    let migrated = migrations.run_direct(None, &mut *tx, false).await;
    // Whether it failed or not: a pooler lends this session to others, who would meet what it has prepared.
    let cleared = tx.clear_cached_statements().await;
    if let Err(error) = migrated {
        // Waited for: a pooler ends a session whose client goes away within a transaction.
        let _ = tx.rollback().await;
        return Err(match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => refusal(&error),
            MigrateError::VersionMismatch(version) => Refusal::Unreleased(version),
            error => Refusal::Final(error.to_string()),
        });
    }
    cleared.map_err(failed)?;
    tx.commit().await.map_err(failed)
}

/// What somebody has decided for the database, the role or both: a session that is older does not know of it, and a pooler
/// may lend such a one. Nothing, if nobody has.
macro_rules! decided {
    () => {
        // What is said of a role in a database counts before what is said of a role, and that before the database's.
        "(SELECT split_part(setting, '=', 2)::boolean
          FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS setting
          WHERE setting LIKE 'default\\_transaction\\_read\\_only=%'
            AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
            AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
          ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1)"
    };
}

/// Makes a transaction that may write only read, if a session that begins now would. Without a decision the session's own
/// value counts, by which the server's settings reach it at once, unless it is left from a decision.
pub(super) const HEED_READ_ONLY: &str = concat!(
    "SELECT set_config('transaction_read_only', 'on', true) WHERE COALESCE(",
    decided!(),
    ", CASE WHEN current_setting('default_transaction_read_only')::boolean
            THEN (SELECT source NOT IN ('database', 'user', 'database user') FROM pg_settings
                  WHERE name = 'default_transaction_read_only')
            ELSE false END)"
);

/// Whether somebody has decided that the database, or this role in it, is only read. Nothing is prepared for the question.
pub(super) async fn is_set_read_only(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let set = sqlx::raw_sql(concat!("SELECT COALESCE(", decided!(), ", false)"));
    set.fetch_one(connection).await?.try_get(0)
}

/// How far the database's schema is. Nothing is prepared for the question.
pub(super) async fn schema(connection: &mut PgConnection) -> Result<Schema, sqlx::Error> {
    let ours = sqlx::raw_sql("SELECT to_regclass('_sqlx_migrations') IS NOT NULL");
    if !ours.fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
        return Ok(Schema::Behind);
    }
    let applied = sqlx::raw_sql("SELECT version, checksum FROM _sqlx_migrations WHERE success");
    let applied = applied.fetch_all(connection).await?;
    let applied: Vec<(i64, Vec<u8>)> = applied
        .iter()
        .map(|row| Ok::<_, sqlx::Error>((row.try_get("version")?, row.try_get("checksum")?)))
        .collect::<Result<_, _>>()?;
    Ok(Schema::of(&schema::postgres(), &applied))
}

/// Connects to the first server that is there and is what is wanted, without the pool's timeouts: a migration may take
/// long.
pub(super) async fn find(url: &PostgresUrl) -> Result<(&Server, PgConnection), Refusal> {
    for (parameter, path) in url.tls_files() {
        if let Err(error) = tokio::fs::metadata(path).await {
            let reason = format!("its {parameter}, {}, cannot be read: {error}; {TLS_HINT}", path.display());
            return Err(Refusal::Final(reason));
        }
    }
    let timeout = url.connect_timeout().unwrap_or(CONNECT_TIMEOUT);
    let (mut reasons, mut may_come) = (Vec::new(), false);
    for server in url.servers() {
        let refused = match tokio::time::timeout(timeout, connect(server, url.target())).await {
            Ok(Ok(connection)) => return Ok((server, connection)),
            Ok(Err(refused)) => refused,
            Err(_) => Refusal::Away(format!("no answer within {timeout:?}")),
        };
        may_come |= matches!(refused, Refusal::Away(_));
        let reason = match refused {
            Refusal::Away(reason) | Refusal::Final(reason) => reason,
            unreleased @ Refusal::Unreleased(_) => return Err(unreleased),
        };
        reasons.push(if url.servers().len() > 1 { format!("{server}: {reason}") } else { reason });
    }
    let reason = reasons.join("; ");
    Err(if may_come { Refusal::Away(reason) } else { Refusal::Final(reason) })
}

async fn connect(server: &Server, target: Target) -> Result<PgConnection, Refusal> {
    let failed = |error: sqlx::Error| refusal(&error);
    let mut connection = server.options(true).connect().await.map_err(failed)?;
    let asked = match target {
        Target::Any => return Ok(connection),
        Target::ReadWrite => "SELECT current_setting('transaction_read_only')::boolean",
        Target::Primary => "SELECT pg_is_in_recovery()",
    };
    let only_reads = sqlx::raw_sql(asked).fetch_one(&mut connection).await.map_err(failed)?;
    if only_reads.try_get(0).map_err(failed)? {
        return Err(Refusal::Away("it is there, but not what target_session_attrs asks for".into()));
    }
    Ok(connection)
}

/// Moves the pool to the server that is wanted, whenever there was trouble with the one that it has.
pub(super) async fn follow(pool: std::sync::Arc<Pool>, url: PostgresUrl) {
    loop {
        pool.trouble().await;
        match find(&url).await {
            Ok((server, connection)) => {
                let _ = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
                pool.turn_to(server);
            }
            Err(refusal) => {
                tracing::debug!(?refusal, "no server to turn to");
                // It asks again for itself, until one is there.
                pool.note_trouble();
            }
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// What an error means for a database that is to be opened.
fn refusal(error: &sqlx::Error) -> Refusal {
    let text = error.to_string();
    // As pgbouncer says it, under the code of a connection that failed.
    if text.contains("unsupported startup parameter") {
        let hint = "a pooler refuses it: leave it out of --database-url, or have the pooler ignore it";
        Refusal::Final(format!("{text}; {hint}"))
    } else if text.contains("transaction blocks not allowed") {
        let hint = "a pooler lends its sessions for single statements: have it do so for transactions";
        Refusal::Final(format!("{text}; {hint}"))
    } else if may_come(error) {
        Refusal::Away(text)
    } else if is_about_tls(error) {
        Refusal::Final(format!("{text}; {TLS_HINT}"))
    } else {
        Refusal::Final(text)
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

/// Whether a database that cannot be connected to, or written to, may soon be.
fn may_come(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => !is_about_tls(error),
        sqlx::Error::Database(database) => match database.code().as_deref().unwrap_or_default() {
            // cannot_connect_now, too_many_connections, admin_shutdown, crash_shutdown
            "57P03" | "53300" | "57P01" | "57P02" => true,
            // A pooler whose database is away.
            code if code.starts_with("08") => true,
            _ => is_read_only(error),
        },
        _ => false,
    }
}
