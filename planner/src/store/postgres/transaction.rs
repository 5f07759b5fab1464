//! One call, one transaction: repeated while that is safe, ended in time.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Executor};

use super::super::StoreError;
use super::connect::HEED_READ_ONLY;
use super::pool::Pool;
use super::session::Connection;
use super::time::Uneven;

/// How long a call may take in all. Two of them fit into a request's deadline: that of the batch which is under
/// way when a command comes, and its own.
pub(super) const CALL_DEADLINE: Duration = Duration::from_millis(3_800);

/// The most attempts of one call. Each that fails has let another planner get on, or has thrown away a
/// connection that was broken.
const MAX_ATTEMPTS: usize = 32;

/// Why nothing is written to a database that could be written to.
pub(super) const SET_READ_ONLY: &str = "default_transaction_read_only was set for it, or for this planner's role: nothing is written until that is reset";

/// What a transaction is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin {
    /// Reading and writing.
    Write,
    /// Reading, all at one moment.
    View,
    /// One statement, which is a transaction by itself: nothing is said before or after it, where the session is ours.
    Single,
}

impl Begin {
    /// Begins in one round trip, settings included. Whether it may write is as the database has it: that may be
    /// somebody's decision. A session that is lent may be older than the decision, or than its end, so there each
    /// transaction asks for it.
    async fn begin(self, connection: &mut Connection, pool: &Pool) -> Result<(), Stopped> {
        const WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
        const VIEW: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        // Lists that read a whole table do so in its own order, and are planned for what they leave out.
        const LISTS: &str = "SET LOCAL enable_seqscan = on; SET LOCAL plan_cache_mode = auto";
        let set = pool.set_local();
        let sql = match (self, connection.shared) {
            (Self::Single, false) => return Ok(()),
            (Self::Write, false) => WRITE.into(),
            (Self::View, false) => format!("{VIEW}; {LISTS}"),
            (Self::Write, true) => format!("{WRITE} READ WRITE; {set}; {HEED_READ_ONLY}"),
            (Self::Single, true) => format!("{WRITE}; {set}"),
            (Self::View, true) => format!("{VIEW}; {set}; {LISTS}"),
        };
        // What comes from outside in it is the URL's own settings, as texts.
        connection.execute(AssertSqlSafe(sql)).await.map_err(|error| match error {
            // feature_not_supported: "READ WRITE" on a server that follows another one
            error if has_code(&error, "0A000") => Stopped::OnlyReads(error),
            error => Stopped::Database(error),
        })?;
        Ok(())
    }

    async fn commit(self, connection: &mut Connection) -> Result<(), Stopped> {
        if !matches!(self, Self::Single) || connection.shared {
            #[cfg(test)]
            crate::store::simulation::commit();
            connection.execute("COMMIT").await?;
        }
        Ok(())
    }
}

/// Why an attempt did not come to its end. What it did is undone.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Another planner came first: to be begun again.
    Again,
    /// Time is not even: to be begun again when it is.
    Uneven(Uneven),
    /// The server takes no transaction that may write.
    OnlyReads(sqlx::Error),
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
    async fn attempt(&mut self, connection: &mut Connection) -> Result<Self::Done, Stopped>;
}

/// What an error means for the transaction and its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Two transactions were in each other's way; the connection is sound.
    Collision,
    /// The connection leads nowhere; another one may not.
    Lost,
    /// What was prepared in the session is not there: it was another one.
    Shared,
    /// The server only reads, or the session began while somebody had decided so; another one may not.
    ReadOnly,
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
            // invalid_sql_statement_name, duplicate_prepared_statement; protocol_violation: one that takes other
            // parameters
            "26000" | "42P05" => Meaning::Shared,
            "08P01" if database.message().contains("prepared statement") => Meaning::Shared,
            READ_ONLY => Meaning::ReadOnly,
            // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped, idle session or transaction
            // ended
            "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" => Meaning::Lost,
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

/// `read_only_sql_transaction`.
const READ_ONLY: &str = "25006";

/// The most attempts of one call on servers or sessions that only read: the second is on a new connection.
const READ_ONLY_ATTEMPTS: usize = 2;

/// Whether the error is that of a lock that somebody else holds.
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    has_code(error, "55P03")
}

/// Whether the error is that of a server, or a session, that only reads.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    has_code(error, READ_ONLY)
}

/// Whether the database gave this code.
pub(super) fn has_code(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some(code)
}

/// A connection of the pool. Unless it is kept it is closed without a word, also when its call is cancelled:
/// nothing is known of the state that it is in, and a server that went away would not answer.
struct Lent(Option<Connection>);

impl Lent {
    async fn from(pool: &Pool) -> Result<Self, sqlx::Error> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    fn connection(&mut self) -> Result<&mut Connection, Stopped> {
        // It is there until `keep` or `drop`, which end it.
        self.0.as_mut().ok_or_else(|| Stopped::Broken("a connection was used after its end".into()))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.raw.detach());
        }
    }
}

/// Runs `work` in a transaction and commits it. What writes is not begun while the database is set read-only.
///
/// # Errors
/// [`StoreError`]; nothing was changed, unless the answer to the commit itself was lost.
pub(super) async fn run<W: Work>(pool: &Pool, begin: Begin, work: W) -> Result<W::Done, StoreError> {
    let mut keeping = Keeping { work, done: None };
    match tokio::time::timeout(CALL_DEADLINE, attempts(pool, begin, &mut keeping)).await {
        Ok(ended) => ended?,
        Err(_) => return Err(StoreError::Unavailable(format!("no answer within {CALL_DEADLINE:?}"))),
    }
    keeping.done.ok_or_else(|| StoreError::Broken("a transaction was committed that nothing came of".into()))
}

/// Keeps what comes of work, so that what repeats and ends a transaction is compiled once, and not for each kind.
struct Keeping<W: Work> {
    work: W,
    done: Option<W::Done>,
}

#[async_trait]
impl<W: Work> Work for Keeping<W> {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        self.done = Some(self.work.attempt(connection).await?);
        Ok(())
    }
}

async fn attempts(pool: &Pool, begin: Begin, work: &mut dyn Work<Done = ()>) -> Result<(), StoreError> {
    let mut last = String::from("no attempt");
    // A warning for each kind of trouble, not for each attempt.
    let mut told = HashSet::new();
    let mut read_only = 0;
    if pool.is_read_only() && matches!(begin, Begin::Write) {
        return Err(StoreError::Unavailable(SET_READ_ONLY.into()));
    }
    for _ in 0..MAX_ATTEMPTS {
        let mut lent = Lent::from(pool).await.map_err(|error| unavailable(&error))?;
        let stopped = match attempt(&mut lent, pool, begin, work).await {
            Ok(()) => {
                let commit = match lent.connection() {
                    Ok(connection) => begin.commit(connection).await,
                    Err(stopped) => Err(stopped),
                };
                return match commit {
                    Ok(()) => {
                        lent.keep();
                        Ok(())
                    }
                    Err(stopped) => Err(StoreError::Unavailable(format!("commit: {}", stopped.text()))),
                };
            }
            Err(stopped) => stopped,
        };
        last = stopped.text();
        let meaning = match &stopped {
            Stopped::Again | Stopped::Uneven(_) => Meaning::Collision,
            Stopped::OnlyReads(_) => Meaning::ReadOnly,
            Stopped::Database(error) => meaning(error),
            Stopped::Broken(_) => Meaning::Broken,
        };
        match meaning {
            Meaning::Collision => {
                if matches!(stopped, Stopped::Database(_)) && told.insert("collision") {
                    tracing::warn!(reason = %last, "a transaction is repeated");
                }
                roll_back(lent).await;
                if let Stopped::Uneven(uneven) = stopped {
                    // Sessions from before the decision could still write, and so could what only reads.
                    if pool.is_read_only() {
                        return Err(StoreError::Unavailable(SET_READ_ONLY.into()));
                    }
                    put_right(pool, uneven)
                        .await
                        .map_err(|stopped| StoreError::Unavailable(stopped.text()))?;
                }
            }
            Meaning::Shared => {
                drop(lent);
                pool.note_shared();
            }
            Meaning::ReadOnly => {
                drop(lent);
                pool.note_reading();
                read_only += 1;
                if read_only == READ_ONLY_ATTEMPTS {
                    return Err(StoreError::Unavailable(format!("it only reads: {last}")));
                }
            }
            Meaning::Lost => {
                drop(lent);
                pool.note_trouble();
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

async fn attempt<D: Send>(
    lent: &mut Lent,
    pool: &Pool,
    begin: Begin,
    work: &mut dyn Work<Done = D>,
) -> Result<D, Stopped> {
    let connection = lent.connection()?;
    begin.begin(connection, pool).await?;
    work.attempt(connection).await
}

/// In a transaction of its own, so that nobody waits for it who holds anything.
async fn put_right(pool: &Pool, mut uneven: Uneven) -> Result<(), Stopped> {
    let mut lent = Lent::from(pool).await?;
    attempt(&mut lent, pool, Begin::Write, &mut uneven).await?;
    Begin::Write.commit(lent.connection()?).await?;
    lent.keep();
    Ok(())
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
            Self::Uneven(_) => "the time is not even".into(),
            Self::OnlyReads(error) | Self::Database(error) => error.to_string(),
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
