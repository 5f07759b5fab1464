//! Where seeds and leases are kept. The database is the only truth: a planner keeps nothing that matters.
//!
//! One call is one transaction. Times are Unix milliseconds of a time that runs evenly ([`clock`]); a lease or a
//! heartbeat whose time to live has passed exactly is gone. Every store passes the same suite, `conformance`.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use tokio::sync::Notify;

pub use crate::decide::quota::{Quota, Usage};
pub use crate::domain::seed::{Heard, Registration, Removal};
pub use clock::{Clock, ManualClock};
pub use commands::{
    Beat, Commands, Grant, Guidance, Idempotency, LeaseHash, Leaving, Left, Outcomes, Queue, Refusal,
    Renewed, Report, Told, Woken, attempt,
};
use history::{EndedLease, Event, EventFilter};
use list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
#[cfg(test)]
pub(crate) use listed::{ApplyList, Command, Outcome};
pub(crate) use rules::{
    DRAIN_MEMORY_MS, INSTANCE_MEMORY_MS, MAX_CALLED, MAX_CALLS, ONCE_MEMORY_MS, REQUEST_MEMORY_MS,
};
pub use rules::{PLANNER_TTL_MS, Room, Rules};
pub use secret::LeaseSecret;
use views::pool_view;
pub use views::{Counts, LeaseView, MAX_SNAPSHOT, PoolView, SeedView, Snapshot, Swept, Tally};

mod clock;
pub mod commands;
#[cfg(test)]
pub(crate) mod conformance;
pub mod history;
pub mod list;
#[cfg(test)]
mod listed;
pub mod memory;
pub mod postgres;
mod rules;
mod schema;
mod secret;
#[cfg(test)]
pub(crate) mod simulation;
pub mod sqlite;
mod views;
mod wish;

/// The most commands that one transaction takes.
pub const MAX_BATCH: usize = 512;

/// The most heartbeats that one statement writes.
pub const MAX_FLUSH: usize = 2_000;

/// A store that could not do what it was asked; nothing of the call took effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or is too busy: the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The database's content or schema is not what this program expects.
    #[error("the database is unusable: {0}")]
    Broken(String),
}

/// A name for a process that answers those who wait: no other has it.
fn planner_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A store of seeds and leases.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies up to [`MAX_BATCH`] commands in one transaction, in the order of [`Commands`]: all of them, each with an
    /// outcome, or none.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    async fn apply(&self, commands: &Commands) -> Result<Outcomes, StoreError>;

    /// What names the leases of idempotency keys: the same for all planners of the database.
    fn lease_secret(&self) -> &LeaseSecret;

    /// Tells when some waiter of this store's may have been served, by whichever planner. A hint: it may come for
    /// nothing, and one may be lost.
    fn wakes(&self) -> Arc<Notify>;

    /// The waiters of this store's whose turn came, until they are given back as `told`: should the answer to this
    /// be lost, the next one names them again. It also says that this planner lives and answers. A planner that has
    /// waiters calls it at least every [`PLANNER_TTL_MS`] divided by 4; those of others are passed over.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn collect(&self, told: &[Told]) -> Result<Vec<Woken>, StoreError>;

    /// The instance that serves the ranks of `instance`, if one of them was served lately.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn source_instance(&self, instance: &str) -> Result<Option<String>, StoreError>;

    /// Takes out all seeds of a key that do not hold the content `keep`, in bounded steps, as [`Command::Drain`]
    /// does; gives how many were taken out. For weights that were replaced under the same name.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been taken out, and a repeated call takes out the rest.
    async fn invalidate(
        &self,
        key: &SeedKey,
        keep: Option<&str>,
        by: Option<&Arc<str>>,
    ) -> Result<u64, StoreError>;

    /// Writes heartbeats of known seeds and gives the numbers of those of which no more are to be gathered: they are
    /// gone, or removed or drained, as their next heartbeat is to be told. Never inserts.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been written, and writing them again does no harm.
    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError>;

    /// Tidies up what has ended, in bounded steps. Nothing depends on it: whatever it would end has ended
    /// for [`Store::apply`] already.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn sweep(&self) -> Result<Swept, StoreError>;

    /// What is there now.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// Seeds, in the order of their identities.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_seeds(&self, filter: &SeedFilter, part: &Part) -> Result<Page<SeedEntry>, StoreError>;

    /// Leases that live, by seed.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_leases(&self, filter: &LeaseFilter, part: &Part) -> Result<Page<LeaseEntry>, StoreError>;

    /// Leases that ended and are still remembered, the last first.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_ended_leases(
        &self,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError>;

    /// What became of seeds and is still remembered, the last first.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_events(&self, filter: &EventFilter, part: &Part) -> Result<Page<Event>, StoreError>;

    /// Keys of which there are seeds, in an order of the store's.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError>;

    /// How much there is now. It reads every seed once, and returns little.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// How much there is of what has a quota here.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn usage(&self) -> Result<Vec<Usage>, StoreError>;

    /// Whether the store can be read and written.
    ///
    /// # Errors
    /// [`StoreError`], when not.
    async fn check(&self) -> Result<(), StoreError>;

    /// Its connections, by what they are for. Asks nobody.
    fn pools(&self) -> Vec<PoolView>;

    /// Ends all connections; what was acknowledged stays.
    async fn close(&self);
}
