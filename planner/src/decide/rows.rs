//! The rows over which is decided: what a store keeps, as plain values. Times are Unix milliseconds.

use std::net::IpAddr;
use std::sync::Arc;

use rfork_protocol::{SeedIdentity, SeedKey};

use crate::domain::chain::{self, Loading};
use crate::domain::health::Health;
use crate::domain::owner::Owner;
use crate::domain::policy::Wish;
use crate::domain::seed::{Known, Profile, Standing, State};
use crate::domain::terms::Terms;
use crate::store::history::{End, Happened};
use crate::store::{Idempotency, LeaseHash, Report, Rules};

/// A seed: one holding of a worker. A worker that comes to hold something else is another seed, with another number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedRow {
    /// The store's number of it; none is used twice.
    pub id: i64,
    /// Where it is.
    pub identity: SeedIdentity,
    /// That as text: the order of lists, and the last part of every order of seeds.
    pub name: Arc<str>,
    /// What it holds.
    pub key: Arc<SeedKey>,
    /// What it told of itself.
    pub profile: Arc<Profile>,
    /// Who registered it, as far as that is known, as its share is counted.
    pub client: Option<IpAddr>,
    /// Whose it is.
    pub owner: Owner,
    /// On what terms it is lent.
    pub terms: Terms,
    /// Whether its owner took it out: it goes with its last lease.
    pub removed: bool,
    /// Whether an operator took it out: it is not offered while its memory is the same.
    pub drained: bool,
    /// What is known of it while it loads; `None` once it holds everything.
    pub loading: Option<Box<Loading>>,
    /// Its failures.
    pub health: Health,
    /// When it last answered a planner that asked for its health; 0 for never.
    pub answered_ms: i64,
    /// When a point of it was last leased; 0 for never.
    pub used_ms: i64,
    /// When its last heartbeat came.
    pub heard_ms: i64,
    /// Its points that are leased or were, by their numbers, each once. Other points are free.
    pub leases: Vec<LeaseRow>,
}

/// A point that is leased, or was: it is free once `ends_ms` has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The point's number; those below the seed's capacity are offered.
    pub point: u32,
    /// The lease.
    pub lease: LeaseHash,
    /// When it was granted.
    pub granted_ms: i64,
    /// When it ends unless it is renewed.
    pub ends_ms: i64,
    /// Who holds it, as far as that is known.
    pub requester: Option<Arc<str>>,
    /// The number of the seed that holds it while that loads: it was registered by the same grant.
    pub reader: Option<i64>,
}

impl LeaseRow {
    /// Whether the lease lives at `now`.
    pub fn lives(&self, now: i64) -> bool {
        self.ends_ms > now
    }

    /// Whether nothing makes it live again. Until then that of a loading seed is kept, and whoever is granted its point
    /// ends it.
    pub fn is_over(&self, now: i64) -> bool {
        let late_ms = self.reader.map_or(0, |_| chain::LATE_MS);
        self.ends_ms <= now.saturating_sub(late_ms)
    }
}

impl SeedRow {
    /// How long a lease on it lives without a renewal, in milliseconds; `loads`: its holder is a seed that loads.
    pub fn lease_ttl_ms(&self, loads: bool) -> i64 {
        let ttl_ms = self.terms.lease_ttl_ms;
        if loads { ttl_ms.min(chain::READER_TTL_MS) } else { ttl_ms }
    }

    /// Leases that live.
    pub fn live_leases(&self, now: i64) -> u32 {
        count(self.leases.iter().filter(|lease| lease.lives(now)))
    }

    /// The leases that live on points which are offered.
    pub fn offered_leases(&self, now: i64) -> impl Iterator<Item = &LeaseRow> {
        let capacity = self.terms.capacity;
        self.leases.iter().filter(move |lease| lease.point < capacity && lease.lives(now))
    }

    /// Whether it is granted to nobody while it loads, because it sends slowly.
    pub fn is_leaf(&self) -> bool {
        self.loading.as_ref().is_some_and(|loading| loading.is_leaf())
    }

    /// The numbers of the points that may be leased.
    pub fn free_points(&self, now: i64) -> Vec<u32> {
        if self.is_leaf() {
            return Vec::new();
        }
        let mut busy = self.offered_leases(now).map(|lease| lease.point).peekable();
        (0..self.terms.capacity).filter(|point| busy.next_if_eq(point).is_none()).collect()
    }

    /// The lease of this name on a point of it, be it over.
    pub fn lease(&self, lease: &LeaseHash) -> Option<&LeaseRow> {
        self.leases.iter().find(|known| known.lease == *lease)
    }

    /// The point beyond the capacity that a seed has while it loads, if it is free: for readers whose source stalls.
    pub fn free_reserve(&self, now: i64) -> Option<u32> {
        let point = self.terms.capacity;
        let is_free = !self.leases.iter().any(|lease| lease.point == point && lease.lives(now));
        (self.loading.is_some() && !self.is_leaf() && is_free).then_some(point)
    }

    /// Whether it has just begun to read storage, so that nobody may read from it yet.
    pub fn is_nameless(&self) -> bool {
        self.loading.as_ref().is_some_and(|loading| !loading.may_be_read())
    }

    /// Whether it has the right to lead, or was the last of its key to have it.
    pub fn leads(&self) -> bool {
        self.loading.as_ref().is_some_and(|loading| loading.lead.is_some())
    }

    /// What names its bytes, as far as that is known.
    pub fn root(&self) -> Option<&str> {
        let loading = self.loading.as_ref();
        loading.map_or(self.profile.content_id.as_deref(), |loading| loading.root.as_deref())
    }

    /// Whether its bytes are none that its key is pinned to, as far as it says what they are: it is offered to nobody.
    pub fn is_barred(&self, rules: &Rules) -> bool {
        let pinned = rules.pinned(&self.key);
        pinned.is_some_and(|pinned| !pinned.allow(self.root(), self.loading.is_some()))
    }

    /// How long it may be silent until it is not offered, in milliseconds.
    pub(super) fn silent_after_ms(&self, rules: &Rules) -> i64 {
        self.loading.as_ref().map_or(rules.heartbeat_ttl_ms, |loading| loading.silent_after_ms())
    }

    /// Whether it was not heard of for its time to live.
    pub fn is_silent(&self, now: i64, rules: &Rules) -> bool {
        self.heard_ms <= now.saturating_sub(self.silent_after_ms(rules))
    }

    /// What its state follows from.
    pub fn standing(&self, now: i64, rules: &Rules) -> Standing {
        Standing {
            removed: self.removed,
            drained: self.drained,
            silent: self.is_silent(now, rules),
            suspect: self.health.is_suspect(now),
            leased: self.live_leases(now) > 0,
        }
    }

    /// What it is to the planner.
    pub fn state(&self, now: i64, rules: &Rules) -> State {
        self.standing(now, rules).state()
    }

    /// What the rules of registering and removing look at.
    pub fn known(&self, now: i64, rules: &Rules) -> Known {
        Known {
            key: SeedKey::clone(&self.key),
            profile: Profile::clone(&self.profile),
            owner: self.owner.clone(),
            removed: self.removed,
            drained: self.drained,
            silent: self.is_silent(now, rules),
            loads: self.loading.is_some(),
            live_leases: self.live_leases(now),
        }
    }

    /// Whether it is not gone for everybody who looks.
    pub fn is_shown(&self, now: i64, rules: &Rules) -> bool {
        !self.standing(now, rules).is_gone()
    }

    /// Its host, if what seeds of that lend together is bounded.
    pub fn capped_host(&self) -> Option<&str> {
        self.terms.host_capacity?;
        Some(self.profile.location.host.as_deref().unwrap_or(self.identity.host()))
    }

    /// Whether nothing but what changes often is different from another row of the seed.
    pub fn is_told_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.profile, &other.profile) && self.terms == other.terms && self.owner == other.owner
    }

    /// What one of this key takes in the database, in bytes, about: all of its seeds have the key.
    pub fn stored(key: &SeedKey) -> usize {
        ROW_BYTES + key.as_bytes().len()
    }

    /// Its memory, in bytes, about, beside what seeds of its key share.
    pub fn bytes(&self) -> usize {
        let told = if *self.profile == Profile::default() { 0 } else { 512 };
        let told = told + self.owner.principal.as_ref().map_or(0, |name| 4 * name.len());
        let told = told + self.loading.as_ref().map_or(0, |_| 2 * size_of::<Loading>() + 64);
        // With indexes and what the allocator adds a seed of v1 was seen to take 0.8 kB, four times the row.
        4 * size_of::<Self>() + 4 * self.name.len() + told + self.leases.len() * 2 * size_of::<LeaseRow>()
    }
}

/// What a seed or a request takes in a database beside its key, in bytes, about: with what belongs to it, and with its entries
/// in indexes, which have hashes of long texts.
pub const ROW_BYTES: usize = 1 << 10;

/// An acquisition that waits, or one that was granted and is remembered for its repetitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// The store's number of it: who came first has the least.
    pub id: i64,
    /// What is wanted.
    pub key: Arc<SeedKey>,
    /// The lease that is to be, or is.
    pub lease: LeaseHash,
    /// What it may be repeated under.
    pub idempotency: Option<Idempotency>,
    /// Which attempt of it has its place, and is answered.
    pub attempt: i64,
    /// What is wished beside the key.
    pub wish: Arc<Wish>,
    /// The planner that is to answer; `None` when nobody waits for the answer at the moment.
    pub planner: Option<Arc<str>>,
    /// Until when it waits; `None` once it was granted.
    pub waits_until_ms: Option<i64>,
    /// When it came, and when it was granted or its wait ended.
    pub changed_ms: i64,
}

impl RequestRow {
    /// What one for this takes in the database, in bytes, about.
    pub fn stored(key: &SeedKey, wish: &Wish) -> usize {
        ROW_BYTES + key.as_bytes().len() + wish_bytes(wish)
    }

    /// Its memory, in bytes, about.
    pub fn bytes(&self) -> usize {
        2 * size_of::<Self>() + self.key.as_bytes().len() + size_of::<Wish>() + wish_bytes(&self.wish)
    }
}

/// What is wished beside the usual, in bytes, about.
fn wish_bytes(wish: &Wish) -> usize {
    wish.exclude.len() * 64 + wish.loading.as_ref().map_or(0, |_| 1_024)
}

/// A lease that ended, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedRow {
    /// The lease.
    pub lease: LeaseHash,
    /// What its seed held.
    pub key: Arc<SeedKey>,
    /// Where that was.
    pub identity: SeedIdentity,
    /// Who read, as far as that is known.
    pub requester: Option<Arc<str>>,
    /// Where the reader serves what it reads, as far as that is known.
    pub reader: Option<SeedIdentity>,
    /// When it was granted.
    pub granted_ms: i64,
    /// When it ended.
    pub ended_ms: i64,
    /// How it ended.
    pub end: End,
    /// How the transfer went.
    pub report: Report,
    /// Why it failed.
    pub reason: Option<String>,
    /// Bytes that were read.
    pub bytes: Option<u64>,
    /// How long reading took, in milliseconds.
    pub duration_ms: Option<u64>,
}

/// Something that happened, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// When.
    pub at_ms: i64,
    /// What.
    pub happened: Happened,
}

/// How many there are of what a seed or a host has few of.
pub(super) fn count<T>(some: impl Iterator<Item = T>) -> u32 {
    u32::try_from(some.count()).unwrap_or(u32::MAX)
}
