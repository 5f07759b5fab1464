//! Commands of all kinds in one list, and what became of them in its order: [`Commands`] has each kind by itself.

use rfork_protocol::{SeedIdentity, SeedKey};

use super::commands::{
    Acquire, Acquired, Answered, Commands, Drain, Heartbeat, Leave, NoRoom, Outcomes, Register, Release,
    Remove, Renew, Serve,
};
use super::history::Account;
use super::{Grant, LeaseHash, Leaving, Left, Queue, Refusal, Report, StoreError};
use crate::domain::policy::Wish;
use crate::domain::seed::{Heard, Profile, Registration, Removal};

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
        let Release { identity, lease, report, account } =
            Release::give_back(identity, lease, report, reason);
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

/// What became of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Command::Register`], with the store's number of the seed, which is that of this holding alone.
    Registered(Registration, i64),
    /// Of [`Command::Register`]: there is no room for one more seed.
    NoRoom,
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

/// Applies lists.
#[cfg(test)]
pub(crate) trait ApplyList {
    /// As [`Store::apply`](super::Store::apply), with an outcome for each command of the list, in its order.
    fn apply_list(
        &self,
        commands: &[Command],
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;
}

#[cfg(test)]
impl<S: super::Store + ?Sized> ApplyList for S {
    async fn apply_list(&self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError> {
        let (sorted, places) = sort(commands);
        in_order(&self.apply(&sorted).await?, &places)
    }
}

/// Where a command of a list stands among those of its kind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    Register(usize),
    Heartbeat(usize),
    Acquire(usize),
    Serve(usize),
    Leave(usize),
    Renew(usize),
    Release(usize),
    Answered(usize),
    Remove(usize),
    Drain(usize),
}

/// Sorts a list by kind; gives the places, too.
pub(crate) fn sort(commands: &[Command]) -> (Commands, Vec<At>) {
    fn push<T>(all: &mut Vec<T>, one: T) -> usize {
        all.push(one);
        all.len() - 1
    }
    let mut sorted = Commands::default();
    let places = commands.iter().cloned().map(|command| match command {
        Command::Register { identity, key, profile, age_ms } => {
            At::Register(push(&mut sorted.registers, Register { identity, key, profile, age_ms }))
        }
        Command::Beat { identity, key, incarnation, age_ms } => {
            At::Heartbeat(push(&mut sorted.heartbeats, Heartbeat { identity, key, incarnation, age_ms }))
        }
        Command::Acquire { key, wish, lease, queue } => {
            At::Acquire(push(&mut sorted.acquires, Acquire { key, wish, lease, queue }))
        }
        Command::Serve { key } => At::Serve(push(&mut sorted.serves, Serve { key })),
        Command::Leave { lease, attempt, why } => {
            At::Leave(push(&mut sorted.leaves, Leave { lease, attempt, why }))
        }
        Command::Renew { identity, lease } => {
            At::Renew(push(&mut sorted.renewals, Renew { identity, lease }))
        }
        Command::Release { identity, lease, report, account } => {
            At::Release(push(&mut sorted.releases, Release { identity, lease, report, account }))
        }
        Command::Answered { identity, seed_id } => {
            At::Answered(push(&mut sorted.answers, Answered { identity, seed_id }))
        }
        Command::Remove { identity, key } => At::Remove(push(&mut sorted.removals, Remove { identity, key })),
        Command::Drain { identity, key } => At::Drain(push(&mut sorted.drains, Drain { identity, key })),
    });
    let places = places.collect();
    (sorted, places)
}

/// The outcomes in the order of the list.
pub(crate) fn in_order(outcomes: &Outcomes, places: &[At]) -> Result<Vec<Outcome>, StoreError> {
    let outcome = |place: &At| {
        Some(match *place {
            At::Register(at) => match outcomes.registers.get(at)? {
                Ok((registration, id)) => Outcome::Registered(*registration, *id),
                Err(NoRoom) => Outcome::NoRoom,
            },
            At::Heartbeat(at) => {
                let (heard, id) = outcomes.heartbeats.get(at)?;
                Outcome::Heard(*heard, *id)
            }
            At::Acquire(at) => match outcomes.acquires.get(at)? {
                Acquired::Granted(grant) => Outcome::Acquired(Ok(grant.clone())),
                Acquired::Refused(refusal) => Outcome::Acquired(Err(*refusal)),
                Acquired::Queued(end_ms) => Outcome::Queued(*end_ms),
            },
            At::Serve(at) => Outcome::Served(*outcomes.serves.get(at)?),
            At::Leave(at) => Outcome::Left(outcomes.leaves.get(at)?.clone()),
            At::Renew(at) => Outcome::Renewed(*outcomes.renewals.get(at)?),
            At::Release(at) => Outcome::Released(*outcomes.releases.get(at)?),
            At::Answered(at) => Outcome::Noted(*outcomes.answers.get(at)?),
            At::Remove(at) => Outcome::Removed(*outcomes.removals.get(at)?),
            At::Drain(at) => Outcome::Drained(*outcomes.drains.get(at)?),
        })
    };
    let all = places.iter().map(outcome);
    all.collect::<Option<_>>().ok_or_else(|| StoreError::Broken("a command has no outcome".into()))
}
