//! Commands of all kinds in one list, and outcomes in its order: what tests play.

mod sort;

use std::net::IpAddr;

use rfork_protocol::{SeedIdentity, SeedKey};

use super::commands::{Claim, Claimed, NoRoom};
use super::history::Account;
use super::{Grant, LeaseHash, Leaving, Left, Queue, Refusal, Renewed, Report};
use crate::domain::chain::Progress;
use crate::domain::owner::Owner;
use crate::domain::policy::Wish;
use crate::domain::seed::{Heard, Profile, Registration, Removal};
pub(crate) use sort::ApplyList;

/// One thing that a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
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
        /// Who asks, as its share is counted.
        client: Option<IpAddr>,
        /// Whose it is to be.
        owner: Owner,
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
        /// Whose the seed must be.
        owner: Owner,
        /// How far it is, if it loads.
        progress: Option<Box<Progress>>,
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
        /// How far its holder is, if that is a loading seed.
        progress: Option<Box<Progress>>,
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
    /// Ask for the right to lead, or renew it.
    Claim(Box<Claim>),
    /// Take a seed out: its owner ends.
    Remove {
        /// Where it is.
        identity: SeedIdentity,
        /// What it must hold.
        key: SeedKey,
        /// Whose it must be.
        owner: Owner,
    },
    /// Take a seed out that goes on: it is not offered while its memory is the same, and its leases live on.
    Drain {
        /// Where it is.
        identity: SeedIdentity,
        /// What it must hold.
        key: SeedKey,
    },
}

/// What became of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Of [`Command::Register`], with the store's number of the seed, which is that of this holding alone.
    Registered(Registration, i64),
    /// Of [`Command::Register`]: there is no room for one more seed.
    NoRoom(NoRoom),
    /// Of [`Command::Register`]: a seed of somebody else lives there.
    Owned,
    /// A registration of what its key is not pinned to.
    NotPinned,
    /// Of [`Command::Beat`], with the store's number of the seed if that is offered.
    Heard(Heard, Option<i64>),
    /// Of [`Command::Acquire`]. It is refused only when no seed that may be offered has a free point.
    Acquired(Result<Grant, Refusal>),
    /// Of [`Command::Acquire`]: it waits, and [`Store::collect`](super::Store::collect) gives its lease when its turn comes. A lease on a
    /// seed of its key ends by itself after so many milliseconds, if any does: [`Command::Serve`] is to be asked
    /// for then.
    Queued(Option<i64>),
    /// Of [`Command::Serve`]: how long it is to the next such end, in milliseconds.
    Served(Option<i64>),
    /// Of [`Command::Leave`].
    Left(Left),
    /// Of [`Command::Renew`]; `None` if the lease has ended.
    Renewed(Option<Renewed>),
    /// Of [`Command::Release`]: whether the lease lived.
    Released(bool),
    /// Of [`Command::Answered`]: whether that holding is still there.
    Noted(bool),
    /// Of [`Command::Claim`].
    Claimed(Claimed),
    /// Of [`Command::Remove`].
    Removed(Removal),
    /// Of [`Command::Drain`]: how many leases the seed has, or `None` when it is not known under the key.
    Drained(Option<u32>),
}
