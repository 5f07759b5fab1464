//! What a store shows to people and to metrics.

use rfork_protocol::SeedKey;

use super::Rules;
use super::commands::LeaseHash;
use super::history::Forgotten;
use super::list::{Entry, entry_bytes, first, profile_bytes};
use crate::decide::rows::SeedRow;
use crate::domain::owner::Owner;
use crate::domain::seed::{Profile, State};

/// What a sweep tidied up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Leases whose time had passed.
    pub leases: u64,
    /// Seeds that were removed, or silent for as long as they are kept, and have no lease left.
    pub seeds: u64,
    /// Seeds that fell silent and still have leases.
    pub silenced: u64,
    /// What was kept for long enough.
    pub forgotten: Forgotten,
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
    /// Whether it is offered no more: removed, drained, or silent.
    pub draining: bool,
    /// Until when it is not offered because it failed, Unix milliseconds; a time that has passed means nothing.
    pub suspect_until_ms: i64,
    /// Failures since it last proved to be well, or went without any for long.
    pub failures: u32,
    /// What it told of itself.
    pub profile: Profile,
    /// Whose it is.
    pub owner: Owner,
}

impl SeedView {
    /// A seed at `now`.
    pub(super) fn of(row: &SeedRow, now: i64, rules: &Rules) -> Self {
        Self {
            identity: row.name.to_string(),
            key: SeedKey::clone(&row.key),
            capacity: row.terms.capacity,
            used: row.live_leases(now),
            last_heartbeat_ms: row.heard_ms,
            last_used_ms: row.used_ms,
            draining: matches!(row.state(now, rules), State::Draining | State::Silent),
            suspect_until_ms: row.health.suspect_until_ms,
            failures: row.health.failures,
            profile: row.profile.as_ref().clone(),
            owner: row.owner.clone(),
        }
    }
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

impl Entry for SeedView {
    fn bytes(&self) -> usize {
        profile_bytes(&self.key, &self.profile)
    }
}

impl Entry for LeaseView {
    fn bytes(&self) -> usize {
        entry_bytes(&self.seed_key, [])
    }
}

/// The first entries of a list of a snapshot.
pub(super) fn shown<T: Entry>(entries: impl IntoIterator<Item = T>) -> Vec<T> {
    first(entries, usize::try_from(MAX_SNAPSHOT).unwrap_or(usize::MAX), MAX_SNAPSHOT_BYTES).0
}

/// Everything at one moment, for people; the lists hold at most [`MAX_SNAPSHOT`] and 8 MiB each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// How far the times here are ahead of the clock that people see, in milliseconds.
    pub ahead_ms: i64,
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
/// The most bytes of seeds, and of leases, that a snapshot lists, about.
pub(super) const MAX_SNAPSHOT_BYTES: usize = 8 << 20;

/// Seeds in one state, and what they have to lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many they are.
    pub seeds: u64,
    /// Leases that they may have at once.
    pub capacity: u64,
    /// Leases on them that live.
    pub leases: u64,
}

/// How much of everything there is, by the state of seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Those that are offered.
    pub live: Tally,
    /// Those that failed lately.
    pub suspect: Tally,
    /// Those that were removed or drained.
    pub draining: Tally,
    /// Those that were not heard of.
    pub silent: Tally,
}

impl Counts {
    /// More seeds in a state.
    pub(super) fn add(&mut self, state: State, more: Tally) {
        let tally = match state {
            State::Live => &mut self.live,
            State::Suspect => &mut self.suspect,
            State::Draining => &mut self.draining,
            State::Silent => &mut self.silent,
        };
        tally.seeds += more.seeds;
        tally.capacity += more.capacity;
        tally.leases += more.leases;
    }
}

/// The connections of a store to its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolView {
    /// What they are for; one of few.
    pub name: &'static str,
    /// How many there are.
    pub connections: u32,
    /// How many of them nobody uses.
    pub idle: u32,
    /// How many there may be.
    pub most: u32,
}

pub(super) fn pool_view<D: sqlx::Database>(name: &'static str, pool: &sqlx::Pool<D>) -> PoolView {
    PoolView {
        name,
        connections: pool.size(),
        idle: u32::try_from(pool.num_idle()).unwrap_or(u32::MAX),
        most: pool.options().get_max_connections(),
    }
}
