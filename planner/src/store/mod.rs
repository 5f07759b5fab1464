//! Where seeds and leases are kept. The database is the only truth: a planner keeps nothing that matters.
//!
//! One call is one transaction. Times are Unix milliseconds of a time that runs evenly ([`clock`]); a lease or a
//! heartbeat whose time to live has passed exactly is gone. Every store passes the same suite, `conformance`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::sync::Notify;

use crate::domain::health::{BackOff, Health};
use crate::domain::policy::{Policy, Wish};
pub use crate::domain::seed::{Heard, Registration, Removal};
use crate::domain::seed::{Profile, State};
use crate::domain::terms::{Overrides, Subject, Terms};
pub use clock::{Clock, ManualClock};
use history::{Account, End, EndedLease, Event, EventFilter, Forgotten, Keep};
use list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};

mod clock;
#[cfg(test)]
pub(crate) mod conformance;
pub mod history;
pub mod list;
pub mod postgres;
mod schema;
#[cfg(test)]
pub(crate) mod simulation;
pub mod sqlite;
mod twins;
mod wish;

/// The most commands that one transaction takes.
pub const MAX_BATCH: usize = 512;

/// The most heartbeats that one statement writes.
pub const MAX_FLUSH: usize = 2_000;

/// How long it is remembered which instance served another one, in milliseconds.
const INSTANCE_MEMORY_MS: i64 = 3_600_000;

/// How long a drained seed may be silent before it is forgotten that it was drained, in milliseconds. It is much longer
/// than others are kept: a pause of its heartbeats, or of the database, is not to bring back what was taken out.
const DRAIN_MEMORY_MS: i64 = 24 * 3_600_000;

/// A planner that was silent this long answers nobody any more, in milliseconds: its waiters are passed over.
pub const PLANNER_TTL_MS: i64 = 8_000;

/// The most waiters of one key that are called up at once. More are when these are served.
const MAX_CALLED: usize = 64;

/// The most times that waiters are called up in one transaction; the rest is called up by the next.
const MAX_CALLS: usize = 256;

/// How long a granted request is remembered for its repetitions at least, in milliseconds.
const REQUEST_MEMORY_MS: i64 = 3_600_000;

/// How long one that nobody can repeat is remembered, in milliseconds: until it is known whether its seed answers.
const ONCE_MEMORY_MS: i64 = 60_000;

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
    /// How long a seed that failed is left alone.
    pub back_off: BackOff,
    /// What differs for some seeds.
    pub overrides: Option<Arc<Overrides>>,
    /// How much is kept of what was.
    pub history: Keep,
}

impl Rules {
    /// Whether what ends is kept at all.
    fn keeps_history(&self) -> bool {
        self.history.ms > 0
    }

    /// How long a granted request is remembered, in milliseconds: as long as the rest, and long enough for its
    /// repetitions, which must find their lease.
    fn request_memory_ms(&self) -> i64 {
        self.history.ms.max(REQUEST_MEMORY_MS)
    }

    /// The terms of one seed.
    pub fn terms(&self, identity: &SeedIdentity, key: &SeedKey, profile: &Profile) -> Terms {
        self.terms_of(&Subject { key, model_url: profile.labels.model_url.as_deref(), host: identity.host() })
    }

    fn terms_of(&self, subject: &Subject<'_>) -> Terms {
        match &self.overrides {
            Some(overrides) => overrides.terms(self.capacity, self.lease_ttl_ms, subject),
            None => Terms { capacity: self.capacity, lease_ttl_ms: self.lease_ttl_ms, host_capacity: None },
        }
    }

    /// Whether what seeds of a host lend together is bounded for any host.
    fn caps_hosts(&self) -> bool {
        self.overrides.as_ref().is_some_and(|overrides| !overrides.host_capacity.is_empty())
    }
}

/// Why a store that is being opened is not open yet: for those who ask meanwhile. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Opening(Arc<Mutex<Option<String>>>);

impl Opening {
    /// Says what is waited for; gives whether that is the first wait.
    pub fn waits_for(&self, reason: String) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(reason).is_none()
    }

    /// What is waited for.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// SHA-256 of a lease id: all that is stored of it.
pub type LeaseHash = [u8; 32];

/// One thing that a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Register a seed, or its heartbeat in v1.
    Register {
        /// Where it is.
        identity: SeedIdentity,
        /// What it holds.
        key: SeedKey,
        /// What it tells of itself beside that.
        profile: Box<Profile>,
        /// How long ago the request arrived, in milliseconds. The writer fills it in.
        age_ms: i64,
    },
    /// A heartbeat that registers nothing.
    Beat {
        /// Where the seed is.
        identity: SeedIdentity,
        /// What it must hold.
        key: SeedKey,
        /// Its process, if it tells.
        incarnation: Option<String>,
        /// How long ago the request arrived, in milliseconds. The writer fills it in.
        age_ms: i64,
    },
    /// Lease a point of some seed.
    Acquire {
        /// What the worker wants.
        key: SeedKey,
        /// What it wishes beside that.
        wish: Box<Wish>,
        /// The lease to be.
        lease: LeaseHash,
        /// How it waits and is told from its repetitions; without it, it is answered at once.
        queue: Option<Box<Queue>>,
    },
    /// Give a key's free points to those who wait for them.
    Serve {
        /// The key.
        key: SeedKey,
    },
    /// End an acquisition's wait.
    Leave {
        /// The lease that it was to be.
        lease: LeaseHash,
        /// Which attempt of it: that of a later one, or of another planner, goes on.
        attempt: i64,
        /// Who ends it.
        why: Leaving,
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
        /// How the transfer went.
        report: Report,
        /// What else is told of its end; `None` for a release by its holder, who tells nothing.
        account: Option<Box<Account>>,
    },
    /// Note that a seed has just answered when it was asked for its health.
    Answered {
        /// Where it is.
        identity: SeedIdentity,
        /// The store's number of the holding that was asked: a later one has not answered.
        seed_id: i64,
    },
    /// Take a seed out: its owner ends.
    Remove {
        /// Where it is.
        identity: SeedIdentity,
        /// What it must hold.
        key: SeedKey,
    },
    /// Take a seed out that goes on: it is not offered while its memory is the same, and its leases live on.
    Drain {
        /// Where it is.
        identity: SeedIdentity,
        /// What it must hold.
        key: SeedKey,
    },
}

impl Command {
    /// Ends a lease that its client never used; `reason` is a short word for people.
    pub fn give_back(identity: SeedIdentity, lease: LeaseHash, report: Report, reason: Option<&str>) -> Self {
        let reason = reason.map(str::to_owned);
        let account = Some(Box::new(Account { end: End::GivenBack, reason, ..Account::default() }));
        Self::Release { identity, lease, report, account }
    }

    /// The seed that it names.
    pub fn identity(&self) -> Option<&SeedIdentity> {
        match self {
            Self::Acquire { .. } | Self::Serve { .. } | Self::Leave { .. } => None,
            Self::Register { identity, .. }
            | Self::Beat { identity, .. }
            | Self::Renew { identity, .. }
            | Self::Release { identity, .. }
            | Self::Answered { identity, .. }
            | Self::Remove { identity, .. }
            | Self::Drain { identity, .. } => Some(identity),
        }
    }
}

/// How an acquisition waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Queue {
    /// How long it may wait, in milliseconds; 0 for not at all.
    pub wait_ms: i64,
    /// What tells it from others, if it may be repeated.
    pub idempotency: Option<Idempotency>,
    /// What tells it from its own repetitions; see [`attempt`].
    pub attempt: i64,
    /// The attempt whose place it takes up once more, if that was granted a seed which does not answer: its lease is
    /// over.
    pub again: Option<i64>,
}

impl Queue {
    /// Whether there may be a row of it before it is decided.
    fn may_have_a_row(&self) -> bool {
        self.idempotency.is_some() || self.again.is_some()
    }
}

/// A name for one attempt of a request: no other has it, as far as chance goes.
pub fn attempt() -> i64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    i64::from_ne_bytes(high.to_ne_bytes())
}

/// What tells an acquisition that may be repeated from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// SHA-256 of its key.
    pub key: [u8; 32],
    /// SHA-256 of what is asked for: another request under the same key is refused.
    pub request: [u8; 32],
}

/// Who ends a wait, and so what becomes of a lease that was granted in the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// The waiter, whose time is over: the lease is its own.
    TimedOut,
    /// Its client has gone away: the lease is given back; an acquisition that may be repeated keeps its place, and
    /// its lease, for a client that comes back.
    Gone,
    /// The planner, which has ended the lease of a seed that does not answer and has no other: a repetition begins
    /// anew.
    Void,
}

/// What the end of a wait finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// It had been given nothing.
    Nothing,
    /// It had been given this; given back if its client is gone and does not come back.
    Granted {
        /// The leased point.
        grant: Grant,
        /// Whether it is kept for a repetition.
        kept: bool,
    },
    /// It had been given a lease that is over.
    Over,
    /// A later attempt has its place.
    Superseded,
}

/// How the transfer of a lease went. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Report {
    /// The worker does not say: v1 has no words for it.
    #[default]
    Unknown = 0,
    /// It has its weights: the seed is well.
    Ok = 1,
    /// It failed: the seed is suspect.
    Failed = 2,
    /// The worker gave it up, which says nothing of the seed.
    Aborted = 3,
}

impl Report {
    /// A seed's health after it.
    fn on(self, health: Health, now: i64, back_off: BackOff) -> Health {
        match self {
            Self::Unknown | Self::Aborted => health,
            Self::Ok => Health::default(),
            Self::Failed => health.failed(now, back_off),
        }
    }

    /// The report of this number; one of a later version is not known.
    fn of_number(number: i64) -> Self {
        let reports = [Self::Ok, Self::Failed, Self::Aborted];
        reports.into_iter().find(|report| *report as i64 == number).unwrap_or(Self::Unknown)
    }
}

/// A leased point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The seed.
    pub identity: SeedIdentity,
    /// The store's number of it, which is that of this holding alone.
    pub seed_id: i64,
    /// How long the lease lives from now, in milliseconds.
    pub lease_ttl_ms: i64,
    /// How long ago the seed gave a sign of life, in milliseconds.
    pub quiet_ms: i64,
    /// Whether it has ever answered when it was asked for its health.
    pub answers: bool,
}

/// Why no point was leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No live seed has the key.
    UnknownKey,
    /// Those that have it are full, or not wanted by the worker.
    AllBusy,
    /// Those that have it are suspect; they come back after a pause.
    AllSuspect,
    /// The repetition of an acquisition whose lease has ended.
    LeaseEnded,
    /// Under the idempotency key of another request.
    OtherRequest,
}

/// A waiter that was told of its turn: the lease, and which attempt of it.
pub type Told = (LeaseHash, i64);

/// A waiter whose turn came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// The lease that it waits for.
    pub lease: LeaseHash,
    /// Which attempt of it waits.
    pub attempt: i64,
    /// What it was given; `None` if that has ended already.
    pub grant: Option<Grant>,
}

/// What became of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Command::Register`], with the store's number of the seed, which is that of this holding alone.
    Registered(Registration, i64),
    /// Of [`Command::Beat`], with the store's number of the seed if that is offered.
    Heard(Heard, Option<i64>),
    /// Of [`Command::Acquire`]. It is refused only when no seed that may be offered has a free point.
    Acquired(Result<Grant, Refusal>),
    /// Of [`Command::Acquire`]: it waits, and [`Store::collect`] gives its lease when its turn comes. A lease on a
    /// seed of its key ends by itself after so many milliseconds, if any does: [`Command::Serve`] is to be asked
    /// for then.
    Queued(Option<i64>),
    /// Of [`Command::Serve`]: how long it is to the next such end, in milliseconds.
    Served(Option<i64>),
    /// Of [`Command::Leave`].
    Left(Left),
    /// Of [`Command::Renew`]: how long the lease lives from now, in milliseconds, or `None` if it has ended.
    Renewed(Option<i64>),
    /// Of [`Command::Release`]: whether the lease lived.
    Released(bool),
    /// Of [`Command::Answered`]: whether that holding is still there.
    Noted(bool),
    /// Of [`Command::Remove`].
    Removed(Removal),
    /// Of [`Command::Drain`]: how many leases the seed has, or `None` when it is not known under the key.
    Drained(Option<u32>),
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
    /// From rows of a state's number, seeds, capacity, leases.
    fn from_rows(rows: Vec<(i32, i64, i64, i64)>) -> Result<Self, StoreError> {
        let mut counts = Self::default();
        for (state, seeds, capacity, leases) in rows {
            let tally = match u8::try_from(state).ok().and_then(State::of_number) {
                Some(State::Live) => &mut counts.live,
                Some(State::Suspect) => &mut counts.suspect,
                Some(State::Draining) => &mut counts.draining,
                Some(State::Silent) => &mut counts.silent,
                None => return Err(StoreError::Broken(format!("{state} is no seed's state"))),
            };
            *tally = Tally {
                seeds: seeds.unsigned_abs(),
                capacity: capacity.unsigned_abs(),
                leases: leases.unsigned_abs(),
            };
        }
        Ok(counts)
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

fn pool_view<D: sqlx::Database>(name: &'static str, pool: &sqlx::Pool<D>) -> PoolView {
    PoolView {
        name,
        connections: pool.size(),
        idle: u32::try_from(pool.num_idle()).unwrap_or(u32::MAX),
        most: pool.options().get_max_connections(),
    }
}

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
    /// Applies up to [`MAX_BATCH`] commands in one transaction: all of them, with an outcome each, or none.
    /// They are all under way at the same time, so any order is a right one; a store keeps to this one, which
    /// refuses least: registrations and heartbeats, answers, renewals, releases, removals and drains, ends of waits,
    /// acquisitions, each kind as listed. Waiters of a key come before acquisitions of it that are new.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed.
    async fn apply(&self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError>;

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
    async fn invalidate(&self, key: &SeedKey, keep: Option<&str>) -> Result<u64, StoreError>;

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
