//! What clients ask of a store, and what became of it.

use std::net::IpAddr;
use std::sync::Arc;

use rfork_protocol::v2::Advice;
use rfork_protocol::{SeedIdentity, SeedKey};

use super::history::{Account, End};
use crate::decide::quota::Quota;
use crate::domain::chain::{Held, Progress, Source};
use crate::domain::health::{BackOff, Health};
use crate::domain::owner::Owner;
use crate::domain::policy::Wish;
use crate::domain::seed::{Heard, Owned, Profile, Registration, Removal};

/// SHA-256 of a lease id: all that is stored of it.
pub type LeaseHash = [u8; 32];

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
    pub(crate) fn may_have_a_row(&self) -> bool {
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
    pub(crate) fn on(self, health: Health, now: i64, back_off: BackOff) -> Health {
        match self {
            Self::Unknown | Self::Aborted => health,
            Self::Ok => Health::default(),
            Self::Failed => health.failed(now, back_off),
        }
    }

    /// The report of this number; one of a later version is not known.
    pub(crate) fn of_number(number: i64) -> Self {
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
    /// What it is as a source, if the grant registered its asker as a loading seed.
    pub source: Option<Box<Source>>,
}

/// A lease that was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// How long it lives from now, in milliseconds.
    pub ttl_ms: i64,
    /// What its holder is told, if that is a loading seed and has told how far it is.
    pub loading: Option<Guidance>,
}

/// What a loading seed is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guidance {
    /// When it is to tell again how far it is, in milliseconds.
    pub renew_after_ms: i64,
    /// What it should do, beside going on.
    pub advice: Option<Advice>,
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
    /// It would have to wait, or to be remembered, and there is no room for one more that does.
    NoRoom(NoRoom),
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

/// A heartbeat of a seed that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The store's number of the seed.
    pub seed_id: i64,
    /// How long ago it arrived, in milliseconds.
    pub age_ms: i64,
}

/// Registers a seed, or is its heartbeat in v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Where it is.
    pub identity: SeedIdentity,
    /// What it holds.
    pub key: SeedKey,
    /// What it tells of itself beside that.
    pub profile: Box<Profile>,
    /// How long ago the request arrived, in milliseconds.
    pub age_ms: i64,
    /// Who asks, as far as it is known, as its [share](crate::shares::network) is counted.
    pub client: Option<IpAddr>,
    /// Whose it is to be.
    pub owner: Owner,
    /// Whose request it was, by its principal's name, if that is known.
    pub by: Option<Arc<str>>,
}

/// A heartbeat that registers nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Where the seed is.
    pub identity: SeedIdentity,
    /// What it must hold.
    pub key: SeedKey,
    /// Its process, if it tells.
    pub incarnation: Option<String>,
    /// How long ago the request arrived, in milliseconds.
    pub age_ms: i64,
    /// Whose the seed must be.
    pub owner: Owner,
    /// How far it is, if it loads.
    pub progress: Option<Box<Progress>>,
}

/// Notes that a seed has just answered when it was asked for its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Where it is.
    pub identity: SeedIdentity,
    /// The store's number of the holding that was asked: a later one has not answered.
    pub seed_id: i64,
}

/// Extends a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renew {
    /// The seed that it must be for.
    pub identity: SeedIdentity,
    /// The lease.
    pub lease: LeaseHash,
    /// How far its holder is, if that is a loading seed.
    pub progress: Option<Box<Progress>>,
}

/// Ends a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The seed that it must be for.
    pub identity: SeedIdentity,
    /// The lease.
    pub lease: LeaseHash,
    /// How the transfer went.
    pub report: Report,
    /// What else is told of its end; `None` for a release by its holder, who tells nothing.
    pub account: Option<Box<Account>>,
    /// Whose request it was, by its principal's name, if that is known.
    pub by: Option<Arc<str>>,
}

impl Release {
    /// Ends a lease that its client never used; `reason` is a short word for people.
    pub fn give_back(identity: SeedIdentity, lease: LeaseHash, report: Report, reason: Option<&str>) -> Self {
        let reason = reason.map(str::to_owned);
        let account = Some(Box::new(Account { end: End::GivenBack, reason, ..Account::default() }));
        Self { identity, lease, report, account, by: None }
    }
}

/// Takes a seed out: its owner ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remove {
    /// Where it is.
    pub identity: SeedIdentity,
    /// What it must hold.
    pub key: SeedKey,
    /// Whose it must be.
    pub owner: Owner,
    /// Whose request it was, by its principal's name, if that is known.
    pub by: Option<Arc<str>>,
}

/// Takes a seed out that goes on: it is not offered while its memory is the same, and its leases live on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Where it is.
    pub identity: SeedIdentity,
    /// What it must hold.
    pub key: SeedKey,
    /// Whose request it was, by its principal's name, if that is known.
    pub by: Option<Arc<str>>,
}

/// Ends an acquisition's wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The lease that it was to be.
    pub lease: LeaseHash,
    /// Which attempt of it: that of a later one, or of another planner, goes on.
    pub attempt: i64,
    /// Who ends it.
    pub why: Leaving,
}

/// Asks for the right to read storage while others wait, or renews it. It registers who gets it as a loading seed without
/// a source; whoever else asks is heard of, if it is a loading seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Where it serves.
    pub identity: SeedIdentity,
    /// What it loads.
    pub key: SeedKey,
    /// What it tells of itself beside that; its incarnation tells this memory from any other.
    pub profile: Box<Profile>,
    /// Who asks, as its share is counted.
    pub client: Option<IpAddr>,
    /// Whose it is to be.
    pub owner: Owner,
    /// Whose request it was, by its principal's name, if that is known.
    pub by: Option<Arc<str>>,
    /// The model's size.
    pub total_bytes: u64,
    /// Bytes that came since the load began.
    pub arrived_bytes: u64,
    /// What it holds; `None` for nothing.
    pub held: Option<Held>,
    /// What names what it reads, if it leads and has no name for its bytes yet.
    pub origin: Option<String>,
    /// Whether it gets everything at once, so that its renewals are its progress.
    pub whole: bool,
    /// How long it waits for who has the right, while that makes no progress, in milliseconds.
    pub patience_ms: i64,
}

/// What became of a [`Claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// What the asker is to do.
    pub role: Role,
    /// What names the bytes of who has the right, as far as that was heard.
    pub root: Option<String>,
    /// When it is to ask again, in milliseconds.
    pub renew_after_ms: i64,
}

/// What somebody is to do who asked for the right to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It has the right.
    Leads,
    /// This seed has it.
    Waits(SeedIdentity),
    /// It loads for itself: nobody has the right, and it cannot be registered; or it is done sooner than who has it.
    Alone,
}

/// Leases a point of some seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquire {
    /// What the worker wants.
    pub key: SeedKey,
    /// What it wishes beside that.
    pub wish: Box<Wish>,
    /// The lease to be.
    pub lease: LeaseHash,
    /// How it waits and is told from its repetitions; without it, it is answered at once.
    pub queue: Option<Box<Queue>>,
}

/// Gives a key's free points to those who wait for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// The key.
    pub key: SeedKey,
}

/// A batch of commands, each kind by itself. They are all under way at the same time, so any order is a right one; this
/// one, of the kinds as they stand here and of each as it is listed, refuses least. Waiters of a key come before
/// acquisitions of it that are new.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commands {
    /// Registrations.
    pub registers: Vec<Register>,
    /// Heartbeats.
    pub heartbeats: Vec<Heartbeat>,
    /// Signs of life.
    pub answers: Vec<Answered>,
    /// Renewals.
    pub renewals: Vec<Renew>,
    /// Releases.
    pub releases: Vec<Release>,
    /// Removals.
    pub removals: Vec<Remove>,
    /// Seeds that operators take out.
    pub drains: Vec<Drain>,
    /// Questions for the right to lead.
    pub claims: Vec<Claim>,
    /// Ends of waits.
    pub leaves: Vec<Leave>,
    /// Acquisitions.
    pub acquires: Vec<Acquire>,
    /// Keys of which free points are to be given to those who wait.
    pub serves: Vec<Serve>,
}

impl Commands {
    /// How many they are.
    pub fn len(&self) -> usize {
        let Self {
            registers,
            heartbeats,
            answers,
            renewals,
            releases,
            removals,
            drains,
            claims,
            leaves,
            acquires,
            serves,
        } = self;
        let of_seeds = registers.len() + heartbeats.len() + answers.len() + removals.len() + drains.len();
        of_seeds
            + claims.len()
            + renewals.len()
            + releases.len()
            + leaves.len()
            + acquires.len()
            + serves.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The seeds that they name.
    pub fn identities(&self) -> impl Iterator<Item = &SeedIdentity> {
        let heard = self.registers.iter().map(|one| &one.identity);
        heard
            .chain(self.heartbeats.iter().map(|one| &one.identity))
            .chain(self.answers.iter().map(|one| &one.identity))
            .chain(self.renewals.iter().map(|one| &one.identity))
            .chain(self.releases.iter().map(|one| &one.identity))
            .chain(self.removals.iter().map(|one| &one.identity))
            .chain(self.drains.iter().map(|one| &one.identity))
            .chain(self.claims.iter().map(|one| &one.identity))
    }

    /// The keys of which they may leave a free point, or want one, as far as they name them.
    pub fn keys(&self) -> impl Iterator<Item = &SeedKey> {
        let heard = self.registers.iter().map(|one| &one.key);
        heard
            .chain(self.heartbeats.iter().map(|one| &one.key))
            .chain(self.claims.iter().map(|one| &one.key))
            .chain(self.acquires.iter().map(|one| &one.key))
            .chain(self.serves.iter().map(|one| &one.key))
    }
}

/// There is no room for one more: this is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom(pub Quota);

/// Why a seed was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unregistered {
    /// There is no room for it.
    NoRoom(NoRoom),
    /// A seed of somebody else lives there.
    Owned,
    /// It does not hold what its key is pinned to.
    NotPinned,
}

impl From<NoRoom> for Unregistered {
    fn from(no_room: NoRoom) -> Self {
        Self::NoRoom(no_room)
    }
}

impl From<Owned> for Unregistered {
    fn from(_: Owned) -> Self {
        Self::Owned
    }
}

/// What became of an acquisition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It has a lease.
    Granted(Grant),
    /// It has none. Only when no seed that may be offered has a free point.
    Refused(Refusal),
    /// It waits, and [`Store::collect`](super::Store::collect) gives its lease when its turn comes. A lease on a seed of
    /// its key ends by itself after so many milliseconds, if any does: its key is to be served then.
    Queued(Option<i64>),
}

/// What became of [`Commands`]: of each one, at its place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// What it was, with the store's number of the seed, which is that of this holding alone.
    pub registers: Vec<Result<(Registration, i64), Unregistered>>,
    /// What it met, with the store's number of the seed if that is offered.
    pub heartbeats: Vec<(Heard, Option<i64>)>,
    /// Whether that holding is still there.
    pub answers: Vec<bool>,
    /// The lease; `None` if it has ended.
    pub renewals: Vec<Option<Renewed>>,
    /// Whether the lease lived.
    pub releases: Vec<bool>,
    /// What was there to be removed.
    pub removals: Vec<Removal>,
    /// How many leases the seed has; `None` when it is not known under the key.
    pub drains: Vec<Option<u32>>,
    /// What the asker is to do.
    pub claims: Vec<Claimed>,
    /// What the end of the wait found.
    pub leaves: Vec<Left>,
    /// Whether there is a lease.
    pub acquires: Vec<Acquired>,
    /// How long it is, in milliseconds, to the next end of a lease of the key by itself.
    pub serves: Vec<Option<i64>>,
    /// Why loading seeds got other sources than they had, be it that these had waited.
    pub moved: Vec<Move>,
}

/// Why a loading seed gets another source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It has the place of its source, which is lost or leaves.
    Gone,
    /// It has the place of its source, which falls behind.
    FallsBehind,
    /// It has the place of its source, which sends slowly.
    SendsSlowly,
    /// Its own place was given to a reader of it, because a link of it is slow.
    Overtaken,
    /// Its source brought no byte.
    Stalled,
    /// It did not say.
    Other,
}

impl Move {
    /// All of them, by their names in metrics.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("source_gone", Self::Gone),
        ("source_falls_behind", Self::FallsBehind),
        ("source_sends_slowly", Self::SendsSlowly),
        ("overtaken", Self::Overtaken),
        ("source_stalled", Self::Stalled),
        ("other", Self::Other),
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}
