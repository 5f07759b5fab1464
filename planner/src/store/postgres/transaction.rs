//! One call, one transaction: repeated while that is safe, ended in time.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{Executor, PgConnection, Postgres};

use super::super::StoreError;

/// How long a call may take in all. Two of them fit into a request's deadline: that of the batch which is under
/// way when a command comes, and its own.
pub(super) const CALL_DEADLINE: Duration = Duration::from_millis(3_800);

/// The most attempts of one call. Each that fails has let another planner get on, or has thrown away a
/// connection that was broken.
const MAX_ATTEMPTS: usize = 32;

/// What a transaction is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin {
    /// Reading and writing.
    Write,
    /// Reading, all at one moment.
    View,
    /// One statement, which is a transaction by itself: nothing is said before or after it.
    Single,
}

impl Begin {
    async fn begin(self, connection: &mut PgConnection) -> Result<(), Stopped> {
        let sql = match self {
            Self::Write => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            // Lists that read a whole table do so in its own order.
            Self::View => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_seqscan = on",
            Self::Single => return Ok(()),
        };
        connection.execute(sql).await?;
        Ok(())
    }

    async fn commit(self, connection: &mut PgConnection) -> Result<(), Stopped> {
        if !matches!(self, Self::Single) {
            connection.execute("COMMIT").await?;
        }
        Ok(())
    }
}

/// Why an attempt did not come to its end. What it did is undone.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Another planner came first: to be begun again,.
    Again,
    /// The database said so.
    Database(sqlx::Error),
    /// What the database holds is not what this program expects.
    Broken(String),
}

impl From<sqlx::Error> for Stopped {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The content of a transaction.
#[async_trait]
pub(super) trait Work: Send {
    /// What it gives.
    type Done: Send;

    /// Does it, within a transaction that has just begun. It may be called anew after it stopped.
    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Self::Done, Stopped>;
}

/// What an error means for the transaction and its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Two transactions were in each other's way; the connection is sound.
    Collision,
    /// The connection leads nowhere, or to a server that only reads; another one may not.
    Lost,
    /// Too slow, or a lock was held for too long; the connection is sound.
    Late,
    /// The schema or a right is missing.
    Broken,
    /// Anything else.
    Other,
}

fn meaning(error: &sqlx::Error) -> Meaning {
    use sqlx::Error as E;
    match error {
        E::Io(_) | E::Protocol(_) | E::Tls(_) | E::WorkerCrashed => Meaning::Lost,
        E::Database(database) => match database.code().as_deref().unwrap_or_default() {
            // serialization_failure, deadlock_detected; unique_violation: another planner has granted the same request,
            // which is found in its row then
            "40001" | "40P01" | "23505" => Meaning::Collision,
            // lock_not_available, query_canceled (the statement's time is up)
            "55P03" | "57014" => Meaning::Late,
            // feature_not_supported: what was prepared on the connection is of an older schema
            "0A000" => Meaning::Lost,
            // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped, idle session or transaction
            // ended, read_only_sql_transaction
            "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" | "25006" => Meaning::Lost,
            // insufficient_privilege, undefined_table, undefined_column, undefined_function
            "42501" | "42P01" | "42703" | "42883" => Meaning::Broken,
            code if code.starts_with("08") => Meaning::Lost,
            _ => Meaning::Other,
        },
        E::ColumnDecode { .. } | E::ColumnNotFound(_) | E::Decode(_) | E::TypeNotFound { .. } => {
            Meaning::Broken
        }
        _ => Meaning::Other,
    }
}

/// Whether the error is that of a lock that somebody else holds.
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("55P03")
}

/// A connection of the pool. Unless it is kept it is closed without a word, also when its call is cancelled:
/// nothing is known of the state that it is in, and a server that went away would not answer.
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    fn connection(&mut self) -> Result<&mut PgConnection, Stopped> {
        // It is there until `keep` or `drop`, which end it.
        self.0.as_deref_mut().ok_or_else(|| Stopped::Broken("a connection was used after its end".into()))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// Runs `work` in a transaction and commits it.
///
/// # Errors
/// [`StoreError`]; nothing was changed, unless the answer to the commit itself was lost.
pub(super) async fn run<W: Work>(pool: &PgPool, begin: Begin, mut work: W) -> Result<W::Done, StoreError> {
    match tokio::time::timeout(CALL_DEADLINE, attempts(pool, begin, &mut work)).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {CALL_DEADLINE:?}"))),
    }
}

async fn attempts<W: Work>(pool: &PgPool, begin: Begin, work: &mut W) -> Result<W::Done, StoreError> {
    let mut last = String::from("no attempt");
    // A warning for each kind of trouble, not for each attempt.
    let mut told = HashSet::new();
    for _ in 0..MAX_ATTEMPTS {
        let mut lent = Lent::from(pool).await.map_err(|error| unavailable(&error))?;
        let stopped = match attempt(&mut lent, begin, work).await {
            Ok(done) => {
                let commit = match lent.connection() {
                    Ok(connection) => begin.commit(connection).await,
                    Err(stopped) => Err(stopped),
                };
                return match commit {
                    Ok(()) => {
                        lent.keep();
                        Ok(done)
                    }
                    Err(stopped) => Err(StoreError::Unavailable(format!("commit: {}", stopped.text()))),
                };
            }
            Err(stopped) => stopped,
        };
        last = stopped.text();
        let meaning = match &stopped {
            Stopped::Again => Meaning::Collision,
            Stopped::Database(error) => meaning(error),
            Stopped::Broken(_) => Meaning::Broken,
        };
        match meaning {
            Meaning::Collision => {
                if matches!(stopped, Stopped::Database(_)) && told.insert("collision") {
                    tracing::warn!(reason = %last, "a transaction is repeated");
                }
                roll_back(lent).await;
            }
            Meaning::Lost => {
                drop(lent);
                if told.insert("lost") {
                    tracing::info!(reason = %last, "a connection to the database is lost; taking another");
                }
            }
            Meaning::Late => {
                roll_back(lent).await;
                return Err(StoreError::Unavailable(last));
            }
            Meaning::Broken => {
                roll_back(lent).await;
                return Err(StoreError::Broken(last));
            }
            Meaning::Other => return Err(StoreError::Unavailable(last)),
        }
    }
    Err(StoreError::Unavailable(format!("gave up after {MAX_ATTEMPTS} attempts: {last}")))
}

async fn attempt<W: Work>(lent: &mut Lent, begin: Begin, work: &mut W) -> Result<W::Done, Stopped> {
    let connection = lent.connection()?;
    begin.begin(connection).await?;
    work.attempt(connection).await
}

/// Ends the transaction; a connection on which that fails is not used again.
async fn roll_back(mut lent: Lent) {
    if let Ok(connection) = lent.connection()
        && connection.execute("ROLLBACK").await.is_ok()
    {
        lent.keep();
    }
}

impl Stopped {
    fn text(&self) -> String {
        match self {
            Self::Again => "other planners kept coming first".into(),
            Self::Database(error) => error.to_string(),
            Self::Broken(reason) => reason.clone(),
        }
    }
}

fn unavailable(error: &sqlx::Error) -> StoreError {
    StoreError::Unavailable(match error {
        sqlx::Error::PoolTimedOut => "no connection could be had in time".into(),
        other => other.to_string(),
    })
}
