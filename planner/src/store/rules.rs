//! What decides over seeds and leases beside what clients ask: settings, and how long things are remembered.

use std::sync::Arc;

use rfork_protocol::{SeedIdentity, SeedKey};

use super::history::Keep;
use crate::domain::health::BackOff;
use crate::domain::pins::Pinned;
use crate::domain::policy::Policy;
use crate::domain::seed::Profile;
use crate::domain::terms::{Overrides, Subject, Terms};

/// How long it is remembered which instance served another one, in milliseconds.
pub(crate) const INSTANCE_MEMORY_MS: i64 = 3_600_000;

/// How long a drained seed may be silent before it is forgotten that it was drained, in milliseconds. It is much longer
/// than others are kept: a pause of its heartbeats, or of the database, is not to bring back what was taken out.
pub(crate) const DRAIN_MEMORY_MS: i64 = 24 * 3_600_000;

/// A planner that was silent this long answers nobody any more, in milliseconds: its waiters are passed over.
pub const PLANNER_TTL_MS: i64 = 8_000;

/// The most waiters of one key that are called up at once. More are when these are served.
pub(crate) const MAX_CALLED: usize = 64;

/// The most times that waiters are called up in one transaction; the rest is called up by the next.
pub(crate) const MAX_CALLS: usize = 256;

/// How long a granted request is remembered for its repetitions at least, in milliseconds.
pub(crate) const REQUEST_MEMORY_MS: i64 = 3_600_000;

/// How long one that nobody can repeat is remembered, in milliseconds: until it is known whether its seed answers.
pub(crate) const ONCE_MEMORY_MS: i64 = 60_000;

/// What decides over seeds and leases, the same for every call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// A seed that was silent this long is not offered, in milliseconds.
    pub heartbeat_ttl_ms: i64,
    /// A lease that was not renewed this long is gone, in milliseconds, unless `overrides` say otherwise.
    pub lease_ttl_ms: i64,
    /// Leases that a seed may have at once, unless `overrides` say otherwise.
    pub capacity: u32,
    /// How seeds are compared.
    pub policy: Policy,
    /// Sources at most between a worker and a complete seed, or storage.
    pub max_chain_depth: u32,
    /// How long a seed that failed is left alone.
    pub back_off: BackOff,
    /// What differs for some seeds.
    pub overrides: Option<Arc<Overrides>>,
    /// How much is kept of what was.
    pub history: Keep,
    /// How much there may be at most.
    pub room: Room,
}

/// What there may be at most, or is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Seeds.
    pub seeds: usize,
    /// Requests that wait or are remembered.
    pub requests: usize,
    /// Instances of which it is remembered which other one serves them. Nobody is refused for them.
    pub instances: usize,
    /// Bytes of memory, of a planner that keeps its rows there.
    pub bytes: usize,
    /// Bytes of seeds and requests in the database.
    pub stored: usize,
}

impl Room {
    /// More than there ever is.
    pub(crate) const ENDLESS: Self = Self {
        seeds: usize::MAX,
        requests: usize::MAX,
        instances: usize::MAX,
        bytes: usize::MAX,
        stored: usize::MAX,
    };

    /// More than any test needs.
    #[cfg(test)]
    pub(crate) const AMPLE: Self =
        Self { seeds: 1_000_000, requests: 1_000_000, instances: 1_000_000, bytes: 1 << 30, stored: 4 << 30 };
}

impl Rules {
    /// Whether what ends is kept at all.
    pub(crate) fn keeps_history(&self) -> bool {
        self.history.ms > 0
    }

    /// How long a granted request is remembered, in milliseconds: as long as the rest, and long enough for its
    /// repetitions, which must find their lease.
    pub(crate) fn request_memory_ms(&self) -> i64 {
        self.history.ms.max(REQUEST_MEMORY_MS)
    }

    /// The terms of one seed.
    pub fn terms(&self, identity: &SeedIdentity, key: &SeedKey, profile: &Profile) -> Terms {
        self.terms_of(&Subject { key, model_url: profile.labels.model_url.as_deref(), host: identity.host() })
    }

    pub(crate) fn terms_of(&self, subject: &Subject<'_>) -> Terms {
        match &self.overrides {
            Some(overrides) => overrides.terms(self.capacity, self.lease_ttl_ms, subject),
            None => Terms { capacity: self.capacity, lease_ttl_ms: self.lease_ttl_ms, host_capacity: None },
        }
    }

    /// What the seeds of a key may hold, if that is pinned.
    pub(crate) fn pinned(&self, key: &SeedKey) -> Option<&Pinned> {
        self.overrides.as_ref()?.pins.of(key)
    }

    /// Whether what seeds of a host lend together is bounded for any host.
    pub(crate) fn caps_hosts(&self) -> bool {
        self.overrides.as_ref().is_some_and(|overrides| !overrides.host_capacity.is_empty())
    }
}
