//! Where the rows of a mirror are kept.

use std::fmt;

use async_trait::async_trait;
use rfork_protocol::SeedKey;

use crate::decide::Changes;
use crate::decide::rows::{RequestRow, SeedRow};
use crate::store::history::{EndedLease, Event, EventFilter, Forgotten};
use crate::store::list::{LeaseFilter, Page, Part};
use crate::store::{PoolView, Rules, StoreError};

/// What tells whether a mirror shows what was committed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Of the last batch that was committed.
    pub batch: i64,
    /// Is another one after somebody else has written, and on another connection.
    pub foreign: (u64, i64),
}

/// One batch, as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its number.
    pub batch: i64,
    /// When it was decided.
    pub now: i64,
    /// What it changes.
    pub changes: &'a Changes,
    /// The clock's offset and the time, if they are to be noted.
    pub clock: Option<(i64, i64)>,
}

/// All rows that a mirror shows.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Seeds, with their leases by point.
    pub seeds: Vec<SeedRow>,
    /// Requests.
    pub requests: Vec<RequestRow>,
    /// Which instance is served by which other one, and when that was last used.
    pub sources: Vec<(String, String, i64)>,
    /// When a place of a key was last promised to a reader, by how fast bytes come.
    pub moves: Vec<(SeedKey, i64)>,
    /// The number that the next seed takes: no seed ever had it.
    pub new_seed: i64,
}

/// A file of rows, which one process has for itself.
#[async_trait]
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// Dropped, it is undone.
    type Transaction: Send;

    /// Begins a transaction that may write: no other is under way until it ends.
    async fn begin(&self) -> Result<(Self::Transaction, Version), StoreError>;

    /// Reads all rows.
    async fn load(&self, tx: &mut Self::Transaction) -> Result<Loaded, StoreError>;

    /// Writes a batch.
    async fn write(&self, tx: &mut Self::Transaction, record: Record<'_>) -> Result<(), StoreError>;

    /// Forgets a bounded number of ended leases and events that are too old or too many.
    async fn forget(
        &self,
        tx: &mut Self::Transaction,
        now: i64,
        rules: &Rules,
    ) -> Result<Forgotten, StoreError>;

    /// Proves that it can be written, without changing anything, and ends the transaction.
    async fn check(&self, tx: Self::Transaction) -> Result<(), StoreError>;

    /// Ends a transaction. After an error it may have been committed, or not.
    async fn commit(&self, tx: Self::Transaction) -> Result<(), StoreError>;

    /// Ended leases, the last first.
    async fn list_ended_leases(
        &self,
        now: i64,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError>;

    /// Events, the last first.
    async fn list_events(
        &self,
        now: i64,
        filter: &EventFilter,
        part: &Part,
    ) -> Result<Page<Event>, StoreError>;

    /// Its connections, by what they are for.
    fn pools(&self) -> Vec<PoolView>;

    /// Ends all connections.
    async fn close(&self);
}
