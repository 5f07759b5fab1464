//! Opening a file: whose it is, and whether it is one of ours.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;

use super::super::schema::{self, Schema};

/// Pause between two attempts to get the file from another planner.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

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

/// Makes the file's directory, and gives the file's one true name, by which it is locked.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, OpenError> {
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
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| directory.canonicalize())
        .map(|directory| directory.join(name))
        .map_err(|error| failed(directory, error.to_string()))
}

/// Brings the schema up to what this program knows. That of a newer planner is left as it is; see [`schema`].
///
/// [`schema`]: crate::store::schema
pub(super) async fn migrate(writer: &SqlitePool, path: &Path) -> Result<(), OpenError> {
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

/// Takes the lock, waiting so long for whoever has it, which `in_use` is told. It is asked for now and then: a wait in the
/// system's own call could not be ended.
pub(super) async fn wait_for_lock(
    path: &Path,
    wait: Duration,
    in_use: impl Fn(bool),
) -> Result<File, OpenError> {
    let since = Instant::now();
    let mut said = false;
    loop {
        match lock(path) {
            Err(OpenError::InUse { .. }) if since.elapsed() < wait => {
                if !std::mem::replace(&mut said, true) {
                    in_use(true);
                    let path = path.display();
                    tracing::warn!(
                        "{path} is in use by another planner process: waiting up to {wait:?} for that to end"
                    );
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            locked => {
                in_use(false);
                return locked;
            }
        }
    }
}

/// How a file is made: for the planner's user alone, whatever the umask. Who leases what is nobody else's.
fn private() -> OpenOptions {
    let mut options = File::options();
    options.write(true).mode(0o600);
    options
}

/// Makes an empty file when there is none, which is an empty database. SQLite gives the files beside it the same rights.
/// A file that is there keeps the rights that somebody gave it.
pub(super) fn make(path: &Path) -> Result<(), OpenError> {
    match private().create_new(true).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(OpenError::Io { path: path.to_owned(), reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Takes the lock file beside the database. A lock of the system's, so that a crash leaves none behind.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = private()
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|error| OpenError::Io { path: lock_path.clone(), reason: error.to_string() })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::Io { path: lock_path, reason: error.to_string() }),
    }
}
