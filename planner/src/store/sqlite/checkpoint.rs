//! Checkpoints beside the writer: what the log gathered is written to its place in the file by a connection of its
//! own, so that the waits for the disk which that takes hold up no batch.
//!
//! A log begins anew only after a checkpoint that nobody wrote beside. While there is always a batch under way none
//! of these is one, and the log grows until it has as many pages as [`LOG_PAGES`]: the writer then puts in place
//! what little is left, and the log begins anew.
//!
//! A checkpoint changes nothing that anybody reads, and SQLite completes one that was cut off: it may end at any
//! point, with the store, the process or the machine.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::pool;

/// Pages that the log has when the writer itself puts it in place: with more, a page that changes often is written
/// less often, and the file beside the database is larger (64 MiB).
pub(super) const LOG_PAGES: &str = "16000";
/// How long after a checkpoint the next one begins at the earliest. Pages that change in the meantime are written
/// once.
const PAUSE: Duration = Duration::from_millis(20);
/// The connection's cache, in KiB (negative means so): a checkpoint reads the log, not pages.
const CACHE: &str = "-256";

/// Makes checkpoints whenever something was written.
#[derive(Debug)]
pub(super) struct Checkpoints {
    written: Arc<Notify>,
    connection: SqlitePool,
    _task: AbortOnDropHandle<()>,
}

impl Checkpoints {
    /// Starts the task, which ends with this value.
    pub(super) fn start(options: SqliteConnectOptions) -> Self {
        let written: Arc<Notify> = Arc::default();
        let connection = pool(1).connect_lazy_with(options.pragma("cache_size", CACHE));
        let task = tokio::spawn({
            let (written, connection) = (written.clone(), connection.clone());
            async move {
                loop {
                    written.notified().await;
                    // Without it the log is put in place by the writer, which says what is wrong with the file.
                    if let Err(error) =
                        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&connection).await
                    {
                        tracing::debug!(%error, "no checkpoint beside the writer");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        Self { written, connection, _task: AbortOnDropHandle::new(task) }
    }

    /// To be called after a commit.
    pub(super) fn written(&self) {
        self.written.notify_one();
    }

    /// Ends with the checkpoint that is under way.
    pub(super) async fn close(&self) {
        self.connection.close().await;
    }
}
