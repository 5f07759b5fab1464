//! What was: leases that ended, and what became of seeds. For people; nothing is decided by it.
//!
//! It is written by the transaction in which it happened, and kept for a while, or as many rows as there may be
//! ([`Keep`]), whichever is less: the oldest go first, in bounded steps.

use std::sync::Arc;

use rfork_protocol::{SeedIdentity, SeedKey};

use super::list::{Entry, Part, entry_bytes};
use super::{LeaseHash, Report};
use crate::domain::health::Health;

/// How much is kept. Only the last rows are kept of a busy planner, so that it cannot fill a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// For so long, in milliseconds; 0 keeps nothing.
    pub ms: i64,
    /// Ended leases at most.
    pub leases: i64,
    /// Events at most.
    pub events: i64,
}

impl Keep {
    /// For so long, in milliseconds, and as much as is usual: about 50 MB of leases with keys of 64 bytes. At 8,000 a
    /// second they are those of the last half minute.
    pub const fn of(ms: i64) -> Self {
        Self { ms, leases: 200_000, events: 100_000 }
    }
}

/// Rows that one step of forgetting deletes at most.
pub(super) const STEP_ROWS: i64 = 1_000;
/// Steps of one sweep at most; what is left then waits for the next.
pub(super) const MAX_STEPS: usize = 1_000;
/// The longest detail of an event, in bytes.
const MAX_DETAIL_BYTES: usize = 200;

/// How a lease ended. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// Its holder released it.
    #[default]
    Released = 0,
    /// A planner gave it back: its client was gone, or its seed did not answer.
    GivenBack = 1,
    /// It was not renewed in time.
    Expired = 2,
    /// Its seed came to hold something else.
    Revoked = 3,
    /// Its holder was lost, or left while it loaded: whoever read from that has the place now.
    PassedOn = 4,
}

impl End {
    /// The end of this number; `None` for one of a later version.
    pub fn of_number(number: i64) -> Option<Self> {
        [Self::Released, Self::GivenBack, Self::Expired, Self::Revoked, Self::PassedOn]
            .into_iter()
            .find(|end| *end as i64 == number)
    }
}

/// What is told of the end of a lease, beside how the seed did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// How it ends.
    pub end: End,
    /// Why the transfer failed: a short word.
    pub reason: Option<String>,
    /// Bytes that were read.
    pub bytes: Option<u64>,
    /// How long reading took, in milliseconds.
    pub duration_ms: Option<u64>,
}

/// A lease that ended, at the moment of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedLease {
    /// Its place in the list; a later one is larger.
    pub number: i64,
    /// The lease's stored hash.
    pub lease: LeaseHash,
    /// The seed.
    pub identity: SeedIdentity,
    /// What that held.
    pub key: SeedKey,
    /// Who read, as far as it is known: `principal/instance@address`, or some of them.
    pub requester: Option<String>,
    /// Where the reader serves what it read, if it loaded as a seed.
    pub reader: Option<SeedIdentity>,
    /// How long ago it was granted, in milliseconds.
    pub granted_age_ms: i64,
    /// How long ago it ended, in milliseconds.
    pub ended_age_ms: i64,
    /// How it ended; `None` for a way that only a later version knows.
    pub end: Option<End>,
    /// How the transfer went.
    pub report: Report,
    /// Why it failed.
    pub reason: Option<String>,
    /// Bytes that were read.
    pub bytes: Option<u64>,
    /// How long reading took, in milliseconds.
    pub duration_ms: Option<u64>,
}

impl Entry for EndedLease {
    fn bytes(&self) -> usize {
        entry_bytes(&self.key, [&self.requester, &self.reason].map(Option::as_deref))
    }
}

/// What became of a seed, or of a key. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A seed that was not known registered.
    Registered = 0,
    /// A seed came to hold something else: its leases ended.
    NewHolding = 1,
    /// Its owner took it out.
    Removed = 2,
    /// An operator took it out.
    Drained = 3,
    /// It was not heard of, and forgotten.
    Silent = 4,
    /// It failed, and is left alone for a while.
    Suspect = 5,
    /// It did well after failures.
    Recovered = 6,
    /// The weights of a key were replaced: the seeds of the old ones drain.
    Invalidated = 7,
    /// It loaded, and has everything now.
    Completed = 8,
    /// It loads, and reads from another seed now.
    Moved = 9,
    /// It has the right to lead: it reads storage, and others wait for it.
    Leads = 10,
}

impl EventKind {
    /// The kind of this number; `None` for one of a later version.
    pub fn of_number(number: i64) -> Option<Self> {
        [
            Self::Registered,
            Self::NewHolding,
            Self::Removed,
            Self::Drained,
            Self::Silent,
            Self::Suspect,
            Self::Recovered,
            Self::Invalidated,
            Self::Completed,
            Self::Moved,
            Self::Leads,
        ]
        .into_iter()
        .find(|kind| *kind as i64 == number)
    }
}

/// Something that happened just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// What.
    pub kind: EventKind,
    /// To what.
    pub key: SeedKey,
    /// The seed, where it is about one.
    pub identity: Option<SeedIdentity>,
    /// Whose request it was, by its principal's name, if it was somebody's who is known.
    pub by: Option<Arc<str>>,
    /// What else there is to say, for people; no credential.
    pub detail: Option<String>,
}

impl Happened {
    /// To a seed.
    pub(crate) fn to(identity: &SeedIdentity, key: &SeedKey, kind: EventKind) -> Self {
        Self { kind, key: key.clone(), identity: Some(identity.clone()), by: None, detail: None }
    }

    /// The same, by this principal's request.
    #[must_use]
    pub(crate) fn by(self, principal: Option<&Arc<str>>) -> Self {
        Self { by: principal.cloned(), ..self }
    }

    /// The same, with a detail, of which as much is kept as there is room.
    #[must_use]
    pub(crate) fn with(mut self, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        let mut end = detail.len().min(MAX_DETAIL_BYTES);
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        detail.truncate(end);
        self.detail = Some(detail);
        self
    }

    /// What a report means that changed the seed's health at `now`; `None` if it is no news.
    pub(crate) fn of_health(
        self,
        before: Health,
        after: Health,
        now: i64,
        reason: Option<&str>,
    ) -> Option<Self> {
        if after.failures > before.failures {
            let pause_ms = after.suspect_until_ms.saturating_sub(now);
            let because = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let detail = format!("failure {}, left alone for {pause_ms} ms{because}", after.failures);
            return Some(Self { kind: EventKind::Suspect, ..self }.with(detail));
        }
        (after.failures < before.failures).then_some(Self { kind: EventKind::Recovered, ..self })
    }

    /// A removal or a drain of a seed that has so many leases.
    #[must_use]
    pub(crate) fn leaving(self, leases: u32) -> Self {
        if leases == 0 { self } else { self.with(format!("leases that live on: {leases}")) }
    }

    /// Seeds of a key are drained.
    pub(crate) fn invalidated(key: &SeedKey, drained: u64) -> Self {
        Self { kind: EventKind::Invalidated, key: key.clone(), identity: None, by: None, detail: None }
            .with(format!("seeds drained: {drained}"))
    }
}

/// Something that happened, at the moment of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the list; a later one is larger.
    pub number: i64,
    /// What it is; `None` for a kind that only a later version knows.
    pub kind: Option<EventKind>,
    /// How long ago it was, in milliseconds.
    pub age_ms: i64,
    /// The key.
    pub key: SeedKey,
    /// The seed, where it is about one.
    pub identity: Option<SeedIdentity>,
    /// Whose request it was, by its principal's name.
    pub by: Option<String>,
    /// What else there is to say.
    pub detail: Option<String>,
}

impl Entry for Event {
    fn bytes(&self) -> usize {
        entry_bytes(&self.key, [&self.by, &self.detail].map(Option::as_deref))
    }
}

/// Which events; all that is told must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// About seeds that held this, or this itself.
    pub key: Option<SeedKey>,
    /// Of this kind.
    pub kind: Option<EventKind>,
    /// Of the last so many milliseconds.
    pub within_ms: Option<i64>,
}

/// A number's place in a list of which the newest is first.
pub(super) fn place(number: i64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// The number before which a page begins; a place that is none of ours is before all.
pub(super) fn before(part: &Part) -> i64 {
    part.after_text().and_then(|text| text.parse().ok()).unwrap_or(i64::MAX)
}

/// A count as the database spells it.
pub(super) fn signed(number: Option<u64>) -> Option<i64> {
    number.map(|number| i64::try_from(number).unwrap_or(i64::MAX))
}

/// What became of history in a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Ended leases.
    pub leases: u64,
    /// Events.
    pub events: u64,
    /// Requests that were remembered for their repetitions, or had waited in vain.
    pub requests: u64,
}
