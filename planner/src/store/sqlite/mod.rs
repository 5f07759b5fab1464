//! The store on SQLite: one file, one planner process. Decisions are taken by a mirror of the file in memory
//! ([`super::memory`]); here is how its rows are read and written.
//!
//! All writes go over one connection; readers of history have their own, which see the last commit, and so have
//! checkpoints. `BEGIN IMMEDIATE` takes the write lock at once, so that nobody else can write between what a batch is
//! decided by and its commit.
//!
//! A limit that is a parameter is written `LIMIT ?1 + 0`. SQLite looks at the value of a bare one when it plans, and
//! so prepares the statement anew for each execution, which costs more than most of them.
//!
//! Durability: WAL with `synchronous=NORMAL`. What was acknowledged survives a crash of the planner (kill -9
//! included); a crash of the operating system or a power cut may lose the last moments, never consistency.

mod checkpoint;
mod history;
mod load;
mod open;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod write;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Sqlite, Transaction};

use checkpoint::{Checkpoints, LOG_PAGES};
pub use open::OpenError;

use super::history::{EndedLease, Event, EventFilter, Forgotten};
use super::list::{LeaseFilter, Page, Part};
use super::memory::{Journal, Loaded, MirrorStore, Record, Version};
use super::{Clock, PoolView, Rules, StoreError, pool_view};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// How long a statement waits for the file's lock, which only a foreign process could hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The writer's cache, in KiB (negative means so): it only writes, to few pages at a time.
const WRITER_CACHE: &str = "-8192";
/// However often it is asked for, a check writes no more often than this.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// Connections that only read.
const READERS: u32 = 2;

/// The store on a SQLite file. Cheap to share behind an `Arc`.
pub type SqliteStore = MirrorStore<SqliteFile>;

/// A SQLite file.
#[derive(Debug)]
pub struct SqliteFile {
    writer: SqlitePool,
    readers: SqlitePool,
    checkpoints: Checkpoints,
    /// How many connections the writer has had: what one of them tells of foreign writers is its own.
    connections: Arc<AtomicU64>,
    /// When a check has last written. Not locked across an await.
    checked: Mutex<Option<Instant>>,
    /// Held while the store lives; the system frees it when the process ends, however it ends.
    _lock: File,
}

impl SqliteStore {
    /// Opens the file, makes it when it is missing, and migrates it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(path: &Path, rules: Rules, clock: Clock) -> Result<Self, OpenError> {
        Self::open_after(path, rules, clock, Duration::ZERO, |_| {}).await
    }

    /// The same, once another planner that has the file has ended, which is waited for so long; `in_use` is told when that
    /// begins and ends.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_after(
        path: &Path,
        rules: Rules,
        clock: Clock,
        lock_wait: Duration,
        in_use: impl Fn(bool),
    ) -> Result<Self, OpenError> {
        let path = &open::prepare(path)?;
        let lock = open::wait_for_lock(path, lock_wait, in_use).await?;
        open::make(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("wal_autocheckpoint", LOG_PAGES)
            // What a statement needs to undo itself, and its lists, are small: a file for each costs more than all.
            .pragma("temp_store", "MEMORY")
            .statement_cache_capacity(64);
        let unusable = |error: &dyn std::fmt::Display| OpenError::Unusable {
            path: path.clone(),
            reason: error.to_string(),
        };
        let connections: Arc<AtomicU64> = Arc::default();
        let counted = pool(1).after_connect({
            let connections = connections.clone();
            move |_, _| {
                connections.fetch_add(1, Ordering::SeqCst);
                Box::pin(async { Ok(()) })
            }
        });
        let writing = options.clone().pragma("cache_size", WRITER_CACHE);
        let writer = counted.connect_with(writing).await.map_err(|error| unusable(&error))?;
        if let Err(error) = open::migrate(&writer, path).await {
            // Puts the log into the file: whoever moves that away has moved it all.
            writer.close().await;
            return Err(error);
        }
        let checkpoints = Checkpoints::start(options.clone());
        let readers =
            pool(READERS).connect_with(options.read_only(true)).await.map_err(|error| unusable(&error))?;
        let time = load::time(&writer, clock).await.map_err(|error| unusable(&error))?;
        let secret = load::lease_secret(&writer).await.map_err(|error| unusable(&error))?;
        let checked = Mutex::default();
        let file = SqliteFile { writer, readers, checkpoints, connections, checked, _lock: lock };
        // The file's lock says that the process before is gone: nobody waits there any more.
        Self::over(file, rules, time, secret).await.map_err(|error| unusable(&error))
    }
}

/// A pool whose connections stay, unless a transaction came to a bad end on one. On a full disk or a failed read
/// SQLite itself rolls back; the rollback that follows fails then, and the driver holds the transaction for open,
/// so that no other could ever begin on that connection. It is closed for a new one. (A rollback that was only
/// asked for is done by the time of the question: the pool pings the connection first, behind it.)
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .before_acquire(|connection, _| {
            let usable = !connection.is_in_transaction();
            Box::pin(async move { Ok(usable) })
        })
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::ColumnDecode { .. } | E::ColumnNotFound(_) | E::Decode(_) | E::TypeNotFound { .. } => {
                Self::Broken(error.to_string())
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

#[async_trait]
impl Journal for SqliteFile {
    type Transaction = Transaction<'static, Sqlite>;

    async fn begin(&self) -> Result<(Self::Transaction, Version), StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let (batch, data_version) =
            sqlx::query_as("SELECT batch, data_version FROM planner, pragma_data_version")
                .fetch_one(&mut *tx)
                .await?;
        Ok((tx, Version { batch, foreign: (self.connections.load(Ordering::SeqCst), data_version) }))
    }

    async fn load(&self, tx: &mut Self::Transaction) -> Result<Loaded, StoreError> {
        load::rows(tx).await
    }

    async fn write(&self, tx: &mut Self::Transaction, record: Record<'_>) -> Result<(), StoreError> {
        write::record(tx, record).await
    }

    async fn forget(
        &self,
        tx: &mut Self::Transaction,
        now: i64,
        rules: &Rules,
    ) -> Result<Forgotten, StoreError> {
        history::forget(tx, now, rules).await
    }

    async fn check(&self, mut tx: Self::Transaction) -> Result<(), StoreError> {
        let written = *self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_some_and(|written| written.elapsed() < CHECK_PAUSE) {
            tx.rollback().await?;
            return Ok(());
        }
        // A full disk would refuse it: a number in the file's head that nobody reads.
        sqlx::query("PRAGMA user_version = 1").execute(&mut *tx).await?;
        self.commit(tx).await?;
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    async fn commit(&self, tx: Self::Transaction) -> Result<(), StoreError> {
        #[cfg(test)]
        crate::store::simulation::commit();
        tx.commit().await?;
        self.checkpoints.written();
        Ok(())
    }

    async fn list_ended_leases(
        &self,
        now: i64,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        let mut tx = self.readers.begin().await?;
        history::leases(&mut tx, now, filter, part).await
    }

    async fn list_events(
        &self,
        now: i64,
        filter: &EventFilter,
        part: &Part,
    ) -> Result<Page<Event>, StoreError> {
        let mut tx = self.readers.begin().await?;
        history::events(&mut tx, now, filter, part).await
    }

    fn pools(&self) -> Vec<PoolView> {
        vec![pool_view("writer", &self.writer), pool_view("readers", &self.readers)]
    }

    async fn close(&self) {
        self.readers.close().await;
        self.checkpoints.close().await;
        self.writer.close().await;
    }
}
