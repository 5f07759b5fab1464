//! Where seeds and leases are kept. The database is the only truth: a planner keeps nothing that matters.
//!
//! One call is one transaction. Times are Unix milliseconds on the database's clock; a lease or a heartbeat
//! whose time to live has passed exactly is gone. Every store passes the same suite, `conformance`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};

use crate::domain::policy::Policy;
pub use crate::domain::seed::{Registration, Removal};

#[cfg(test)]
pub(crate) mod conformance;
pub mod postgres;
pub mod sqlite;

/// The most commands that one transaction takes.
pub const MAX_BATCH: usize = 512;

/// The most heartbeats that one statement writes.
pub const MAX_FLUSH: usize = 2_000;

/// What decides over seeds and leases, the same for every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A seed that was silent this long is not offered, in milliseconds.
    pub heartbeat_ttl_ms: i64,
    /// A lease that was not renewed this long is gone, in milliseconds.
    pub lease_ttl_ms: i64,
    /// Leases that a seed may have at once.
    pub capacity: u32,
    /// How seeds are compared.
    pub policy: Policy,
}

/// The time by which a store judges.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The database's own.
    #[default]
    Database,
    /// A fixed time that a test sets, Unix milliseconds.
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// The fixed time, if it is one.
    pub fn fixed_ms(&self) -> Option<i64> {
        match self {
            Self::Database => None,
            Self::Fixed(now) => Some(now.load(Ordering::SeqCst)),
        }
    }
}

/// SHA-256 of a lease id: all that is stored of it.
pub type LeaseHash = [u8; 32];

/// One thing that a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Register a seed, or its heartbeat.
    Register {
        /// Where it is.
        identity: SeedIdentity,
        /// What it holds.
        key: SeedKey,
        /// How long ago the request arrived, in milliseconds. The writer fills it in.
        age_ms: i64,
    },
    /// Lease a point of some seed.
    Acquire {
        /// What the worker wants.
        key: SeedKey,
        /// The lease to be.
        lease: LeaseHash,
    },
    /// Extend a lease.
    Renew {
        /// The seed that it must be for.
        identity: SeedIdentity,
        /// The lease.
        lease: LeaseHash,
    },
    /// End a lease.
    Release {
        /// The seed that it must be for.
        identity: SeedIdentity,
        /// The lease.
        lease: LeaseHash,
    },
    /// Take a seed out.
    Remove {
        /// Where it is.
        identity: SeedIdentity,
        /// What it must hold.
        key: SeedKey,
    },
}

/// What became of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Command::Register`], with the store's number of the seed, which is that of this holding alone.
    Registered(Registration, i64),
    /// Of [`Command::Acquire`]: the seed whose point is leased, or `None` when no live seed of the key has a
    /// free one.
    Acquired(Option<SeedIdentity>),
    /// Of [`Command::Renew`]: whether the lease lives.
    Renewed(bool),
    /// Of [`Command::Release`]: whether the lease lived.
    Released(bool),
    /// Of [`Command::Remove`].
    Removed(Removal),
}

/// A heartbeat of a seed that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The store's number of the seed.
    pub seed_id: i64,
    /// How long ago it arrived, in milliseconds.
    pub age_ms: i64,
}

/// What a sweep tidied up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Leases whose time had passed.
    pub leases: u64,
    /// Seeds that were removed or fell silent, and have no lease left.
    pub seeds: u64,
    /// Seeds that fell silent and still have leases.
    pub silenced: u64,
}

/// A seed, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedView {
    /// `host:port:rank`.
    pub identity: String,
    /// What it holds.
    pub key: SeedKey,
    /// Leases that it may have at once.
    pub capacity: u32,
    /// Leases that it has.
    pub used: u32,
    /// When it was last heard of, Unix milliseconds.
    pub last_heartbeat_ms: i64,
    /// When a point of it was last allocated, Unix milliseconds; 0 for never.
    pub last_used_ms: i64,
    /// Whether it is offered no more: removed, or silent.
    pub draining: bool,
}

/// A lease, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// The lease's stored hash.
    pub lease: LeaseHash,
    /// The seed, as `host:port:rank`.
    pub seed_identity: String,
    /// What it holds.
    pub seed_key: SeedKey,
}

/// Everything at one moment, for people; the lists hold at most [`MAX_SNAPSHOT`] each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// All seeds that are known.
    pub seed_count: u64,
    /// All leases that live.
    pub lease_count: u64,
    /// Seeds, by identity.
    pub seeds: Vec<SeedView>,
    /// Leases, by seed.
    pub leases: Vec<LeaseView>,
}

/// The most seeds, and the most leases, that a snapshot lists.
pub const MAX_SNAPSHOT: u32 = 10_000;

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

/// A store of seeds and leases.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies up to [`MAX_BATCH`] commands in one transaction: all of them, with an outcome each, or none.
    /// They are all under way at the same time, so any order is a right one; a store keeps to this one, which
    /// refuses least: registrations, renewals, releases, removals, acquisitions, each kind as listed.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    async fn apply(&self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError>;

    /// Writes heartbeats of known seeds and gives the numbers of those that are gone. Never inserts.
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

    /// Whether the store can be read and written.
    ///
    /// # Errors
    /// [`StoreError`], when not.
    async fn check(&self) -> Result<(), StoreError>;

    /// Ends all connections; what was acknowledged stays.
    async fn close(&self);
}
