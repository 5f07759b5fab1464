//! The store on SQLite: one file, one planner process.
//!
//! All writes go over one connection, so a transaction never waits for another of ours; readers have their
//! own, which see the last commit, and so have checkpoints. `BEGIN IMMEDIATE` takes the write lock before the
//! first read, without which a read-then-write could fail half-way.
//!
//! A limit that is a parameter is written `LIMIT ?1 + 0`. SQLite looks at the value of a bare one when it plans, and
//! so prepares the statement anew for each execution, which costs more than most of them.
//!
//! Durability: WAL with `synchronous=NORMAL`. What was acknowledged survives a crash of the planner (kill -9
//! included); a crash of the operating system or a power cut may lose the last moments, never consistency.

mod allocate;
mod checkpoint;
mod health;
mod history;
mod instances;
mod leases;
mod list;
mod offer;
mod requests;
mod seeds;
#[cfg(test)]
mod simulation;
mod sweep;
#[cfg(test)]
mod tests;
mod time;
mod view;

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, Transaction};
use tokio::sync::Notify;

use checkpoint::{Checkpoints, LOG_PAGES};

use crate::domain::location::Location;

use super::clock::Own;
use super::history::{EndedLease, Event, EventFilter, Forgotten, MAX_STEPS};
use super::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use super::schema::{self, Schema};
use super::{
    Beat, Clock, Command, Counts, LeaseHash, Opening, Outcome, PoolView, Rules, Snapshot, Store, StoreError,
    Swept, Told, Woken, pool_view,
};

/// How long a statement waits for the file's lock, which only a foreign process could hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two attempts to get the file from another planner.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The writer's cache, in KiB (negative means so): room for the indexes of 100,000 seeds.
const WRITER_CACHE: &str = "-36864";
/// However often it is asked for, a check writes no more often than this.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// Connections that only read.
const READERS: u32 = 2;

/// A database file that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or the file cannot be made or opened.
    #[error("cannot open {path}: {reason}; give --database-url sqlite:///a/path/that/is/writable.db")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another planner uses the file.
    #[error(
        "{path} is in use by another planner process; a SQLite file serves one planner: stop the other, or give another --database-url"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its tables are those of a planner between two releases.
    #[error(
        "{path} was made by a planner that was never released (its migration {version} is another one than ours): move the file away; only warmth is lost, since seeds register again with their next heartbeat"
    )]
    Unreleased {
        /// The file.
        path: PathBuf,
        /// The number of the migration.
        version: i64,
    },
    /// The file is no database of ours.
    #[error("{path} cannot be used as the planner's database: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the database said.
        reason: String,
    },
}

/// The store on a SQLite file. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    checkpoints: Checkpoints,
    rules: Rules,
    time: Own,
    /// This process, for those who wait for its answers.
    planner: String,
    /// Told when some of those were served.
    served: Arc<Notify>,
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
        Self::open_after(path, rules, clock, Duration::ZERO, &Opening::default()).await
    }

    /// The same, once another planner that has the file has ended, which is waited for so long.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_after(
        path: &Path,
        rules: Rules,
        clock: Clock,
        lock_wait: Duration,
        opening: &Opening,
    ) -> Result<Self, OpenError> {
        let path = &prepare(path)?;
        let lock = wait_for_lock(path, lock_wait, opening).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
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
        let writing = options.clone().pragma("cache_size", WRITER_CACHE);
        let writer = pool(1).connect_with(writing).await.map_err(|error| unusable(&error))?;
        if let Err(error) = migrate(&writer, path).await {
            // Puts the log into the file: whoever moves that away has moved it all.
            writer.close().await;
            return Err(error);
        }
        let checkpoints = Checkpoints::start(options.clone());
        let readers =
            pool(READERS).connect_with(options.read_only(true)).await.map_err(|error| unusable(&error))?;
        let time = time::resume(&writer, clock).await.map_err(|error| unusable(&error))?;
        let store = Self {
            writer,
            readers,
            checkpoints,
            rules,
            time,
            planner: super::planner_id(),
            served: Arc::default(),
            checked: Mutex::default(),
            _lock: lock,
        };
        store.take_over().await.map_err(|error| unusable(&error))?;
        Ok(store)
    }

    /// Gives seeds that were registered under other settings today's capacity and places. Leases on points that
    /// are no longer offered go on until they end. The file's lock says that the process before is gone: nobody
    /// waits there any more.
    async fn take_over(&self) -> Result<(), StoreError> {
        let (mut tx, now) = self.begin().await?;
        requests::abandon(&mut tx).await?;
        let mut after = 0;
        while let Some(last) = seeds::adopt(&mut tx, &self.rules, after).await? {
            after = last;
        }
        offer::refresh_all(&mut tx, now, &self.rules).await?;
        self.commit(tx).await?;
        Ok(())
    }

    /// A transaction that may write, and its time, which is no earlier than that of the one before.
    async fn begin(&self) -> Result<(Transaction<'_, Sqlite>, i64), StoreError> {
        let tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok((tx, self.time.now_ms()))
    }

    /// Ends a transaction that has written.
    async fn commit(&self, mut tx: Transaction<'_, Sqlite>) -> Result<(), StoreError> {
        let news = self.time.news();
        if let Some(news) = news {
            time::note(&mut tx, news).await?;
        }
        tx.commit().await?;
        if let Some(news) = news {
            self.time.note(news);
        }
        self.checkpoints.written();
        Ok(())
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

/// Makes the file's directory, and gives the file's one true name, by which it is locked.
fn prepare(path: &Path) -> Result<PathBuf, OpenError> {
    let failed = |path: &Path, reason: String| OpenError::Io { path: path.to_owned(), reason };
    if path.is_dir() {
        return Err(failed(path, "it is a directory".into()));
    }
    if path.exists() {
        return path.canonicalize().map_err(|error| failed(path, error.to_string()));
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| failed(path, "it names no file".into()))?;
    std::fs::create_dir_all(directory)
        .and_then(|()| directory.canonicalize())
        .map(|directory| directory.join(name))
        .map_err(|error| failed(directory, error.to_string()))
}

/// Brings the schema up to what this program knows. That of a newer planner is left as it is; see [`schema`].
///
/// [`schema`]: super::schema
async fn migrate(writer: &SqlitePool, path: &Path) -> Result<(), OpenError> {
    let migrations = schema::sqlite();
    let unusable = |reason: String| OpenError::Unusable { path: path.to_owned(), reason };
    match reached(&migrations, writer).await.map_err(|error| unusable(error.to_string()))? {
        None => Err(unusable("it is a database of another program".into())),
        Some(Schema::Unreleased(version)) => Err(OpenError::Unreleased { path: path.to_owned(), version }),
        Some(Schema::Complete) => Ok(()),
        Some(Schema::Behind) => migrations.run(writer).await.map_err(|error| unusable(error.to_string())),
    }
}

/// How far the file's schema is; `None` for one that has tables, and none of ours.
async fn reached(known: &Migrator, writer: &SqlitePool) -> Result<Option<Schema>, sqlx::Error> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table'").fetch_all(writer).await?;
    if !tables.iter().any(|table| table == "_sqlx_migrations") {
        return Ok(tables.is_empty().then_some(Schema::Behind));
    }
    let applied = sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success")
        .fetch_all(writer)
        .await?;
    Ok(Some(Schema::of(known, &applied)))
}

/// Takes the lock, waiting so long for whoever has it. It is asked for now and then: a wait in the system's own call
/// could not be ended.
async fn wait_for_lock(path: &Path, wait: Duration, opening: &Opening) -> Result<File, OpenError> {
    let since = Instant::now();
    loop {
        match lock(path) {
            Err(OpenError::InUse { .. }) if since.elapsed() < wait => {
                let path = path.display();
                let reason = format!(
                    "{path} is in use by another planner process: waiting up to {wait:?} for that to end"
                );
                if opening.waits_for(reason.clone()) {
                    tracing::warn!("{reason}");
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            locked => return locked,
        }
    }
}

/// Takes the lock file beside the database. A lock of the system's, so that a crash leaves none behind.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| OpenError::Io { path: lock_path.clone(), reason: error.to_string() })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::Io { path: lock_path, reason: error.to_string() }),
    }
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

/// The identity that a row spells; rows hold only what was checked when it came in.
fn identity(host: String, port: u16, rank: u32) -> Result<rfork_protocol::SeedIdentity, StoreError> {
    rfork_protocol::SeedIdentity::new(host, port, rank).map_err(|error| StoreError::Broken(error.to_string()))
}

/// A list, which is how many values are bound to one parameter.
fn json<T: serde::Serialize>(list: &[T]) -> Result<String, StoreError> {
    serde_json::to_string(list).map_err(|error| StoreError::Broken(error.to_string()))
}

/// Where a row's seed stands.
fn location(row: &sqlx::sqlite::SqliteRow) -> Result<Location, StoreError> {
    Ok(Location { zone: row.try_get("zone")?, rack: row.try_get("rack")?, host: row.try_get("node")? })
}

fn lease_hash(bytes: Vec<u8>) -> Result<LeaseHash, StoreError> {
    bytes.try_into().map_err(|_| StoreError::Broken("a lease hash is not 32 bytes".into()))
}

fn seed_key(bytes: Vec<u8>) -> Result<SeedKey, StoreError> {
    SeedKey::new(bytes).map_err(|error| StoreError::Broken(error.to_string()))
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError> {
        let (mut tx, now) = self.begin().await?;
        let mut outcomes: Vec<Option<Outcome>> = vec![None; commands.len()];
        seeds::register(&mut tx, now, &self.rules, commands, &mut outcomes).await?;
        health::answered(&mut tx, now, commands, &mut outcomes).await?;
        leases::renew(&mut tx, now, &self.rules, commands, &mut outcomes).await?;
        leases::release(&mut tx, now, &self.rules, commands, &mut outcomes).await?;
        seeds::remove(&mut tx, now, &self.rules, commands, &mut outcomes).await?;
        // Before repetitions, which may follow the end of what they repeat.
        let freed =
            requests::leave(&mut tx, now, &self.rules, &self.planner, commands, &mut outcomes).await?;
        offer::refresh(&mut tx, now, &self.rules, &freed).await?;
        let twins =
            requests::resume(&mut tx, now, &self.rules, &self.planner, commands, &mut outcomes).await?;
        for (at, _) in &twins.of_first {
            // Until it is known what became of the first.
            outcomes[*at] = Some(Outcome::Queued(None));
        }
        let touched = requests::touched(&mut tx, &self.rules, commands, &freed).await?;
        let served = allocate::acquire(&mut tx, now, &self.rules, commands, &touched, &mut outcomes).await?;
        requests::enqueue(&mut tx, now, &self.planner, commands, &twins, &mut outcomes).await?;
        for (at, first) in twins.of_first {
            let of_first = outcomes[first].clone();
            outcomes[at] = of_first;
        }
        requests::next_ends(&mut tx, now, commands, &mut outcomes).await?;
        self.commit(tx).await?;
        if served {
            self.served.notify_one();
        }
        outcomes
            .into_iter()
            .map(|outcome| outcome.ok_or_else(|| StoreError::Broken("a command has no outcome".into())))
            .collect()
    }

    fn wakes(&self) -> Arc<Notify> {
        self.served.clone()
    }

    async fn collect(&self, told: &[Told]) -> Result<Vec<Woken>, StoreError> {
        let (mut tx, now) = self.begin().await?;
        let woken = requests::collect(&mut tx, now, &self.planner, told).await?;
        self.commit(tx).await?;
        Ok(woken)
    }

    async fn source_instance(&self, instance: &str) -> Result<Option<String>, StoreError> {
        let mut tx = self.readers.begin().await?;
        Ok(instances::sources(&mut tx, std::iter::once(instance)).await?.remove(instance))
    }

    async fn invalidate(&self, key: &SeedKey, keep: Option<&str>) -> Result<u64, StoreError> {
        let mut drained = 0;
        loop {
            let (mut tx, now) = self.begin().await?;
            let step = seeds::invalidate(&mut tx, now, &self.rules, key, keep).await?;
            self.commit(tx).await?;
            drained += step as u64;
            if step == 0 {
                return Ok(drained);
            }
        }
    }

    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError> {
        let (mut tx, now) = self.begin().await?;
        let gone = seeds::flush(&mut tx, now, &self.rules, beats).await?;
        self.commit(tx).await?;
        Ok(gone)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        loop {
            let (mut tx, now) = self.begin().await?;
            let step = sweep::step(&mut tx, now, &self.rules).await?;
            self.commit(tx).await?;
            swept.leases += step.swept.leases;
            swept.seeds += step.swept.seeds;
            swept.silenced += step.swept.silenced;
            if !step.more {
                break;
            }
        }
        for _ in 0..MAX_STEPS {
            let (mut tx, now) = self.begin().await?;
            let mut step = history::forget(&mut tx, now, &self.rules).await?;
            step.requests = requests::forget(&mut tx, now, &self.rules).await?;
            self.commit(tx).await?;
            if step == Forgotten::default() {
                break;
            }
            swept.forgotten.leases += step.leases;
            swept.forgotten.events += step.events;
            swept.forgotten.requests += step.requests;
        }
        Ok(swept)
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let mut tx = self.readers.begin().await?;
        let snapshot = view::snapshot(&mut tx, self.time.now_ms(), &self.rules).await?;
        Ok(Snapshot { ahead_ms: self.time.offset_ms(), ..snapshot })
    }

    async fn list_seeds(&self, filter: &SeedFilter, part: &Part) -> Result<Page<SeedEntry>, StoreError> {
        let mut tx = self.readers.begin().await?;
        let now = self.time.now_ms();
        list::seeds(&mut tx, now, &self.rules, filter, part).await
    }

    async fn list_leases(&self, filter: &LeaseFilter, part: &Part) -> Result<Page<LeaseEntry>, StoreError> {
        let mut tx = self.readers.begin().await?;
        let now = self.time.now_ms();
        list::leases(&mut tx, now, filter, part).await
    }

    async fn list_ended_leases(
        &self,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        let mut tx = self.readers.begin().await?;
        let now = self.time.now_ms();
        history::leases(&mut tx, now, filter, part).await
    }

    async fn list_events(&self, filter: &EventFilter, part: &Part) -> Result<Page<Event>, StoreError> {
        let mut tx = self.readers.begin().await?;
        let now = self.time.now_ms();
        history::events(&mut tx, now, filter, part).await
    }

    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError> {
        let mut tx = self.readers.begin().await?;
        let now = self.time.now_ms();
        list::keys(&mut tx, now, &self.rules, part).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let mut tx = self.readers.begin().await?;
        let now = self.time.now_ms();
        view::counts(&mut tx, now, &self.rules).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        // Takes the write lock, which a read would not prove to be available.
        let (mut tx, _) = self.begin().await?;
        let written = *self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_some_and(|written| written.elapsed() < CHECK_PAUSE) {
            tx.rollback().await?;
            return Ok(());
        }
        // And writes, which a full disk would refuse: a number in the file's head that nobody reads.
        sqlx::query("PRAGMA user_version = 1").execute(&mut *tx).await?;
        self.commit(tx).await?;
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    fn pools(&self) -> Vec<PoolView> {
        vec![pool_view("writer", &self.writer), pool_view("readers", &self.readers)]
    }

    async fn close(&self) {
        if let Ok((mut tx, now)) = self.begin().await
            && time::note(&mut tx, (self.time.offset_ms(), now)).await.is_ok()
        {
            // Without it the next process begins with what was noted before.
            let _ = self.commit(tx).await;
        }
        self.readers.close().await;
        self.checkpoints.close().await;
        self.writer.close().await;
    }
}
