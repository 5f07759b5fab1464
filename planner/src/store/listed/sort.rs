//! A list of commands as [`Commands`], which has each kind by itself, and what became of them in the order of the list.

use super::{Command, Outcome};
use crate::store::commands::{
    Acquire, Acquired, Answered, Commands, Drain, Heartbeat, Leave, Outcomes, Register, Release, Remove,
    Renew, Serve, Unregistered,
};
use crate::store::{Store, StoreError};

/// Applies lists.
pub(crate) trait ApplyList {
    /// As [`Store::apply`](Store::apply), with an outcome for each command of the list, in its order.
    fn apply_list(
        &self,
        commands: &[Command],
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;
}

impl<S: Store + ?Sized> ApplyList for S {
    async fn apply_list(&self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError> {
        let (sorted, places) = sort(commands);
        in_order(&self.apply(&sorted).await?, &places)
    }
}

/// Where a command of a list stands among those of its kind.
#[derive(Debug, Clone, Copy)]
enum At {
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
    Claim(usize),
}

/// Sorts a list by kind; gives the places, too.
fn sort(commands: &[Command]) -> (Commands, Vec<At>) {
    fn push<T>(all: &mut Vec<T>, one: T) -> usize {
        all.push(one);
        all.len() - 1
    }
    let mut sorted = Commands::default();
    let places = commands.iter().cloned().map(|command| match command {
        Command::Register { identity, key, profile, age_ms, client, owner } => At::Register(push(
            &mut sorted.registers,
            Register { by: None, identity, key, profile, age_ms, client, owner },
        )),
        Command::Beat { identity, key, incarnation, age_ms, owner, progress } => At::Heartbeat(push(
            &mut sorted.heartbeats,
            Heartbeat { identity, key, incarnation, age_ms, owner, progress },
        )),
        Command::Acquire { key, wish, lease, queue } => {
            At::Acquire(push(&mut sorted.acquires, Acquire { key, wish, lease, queue }))
        }
        Command::Serve { key } => At::Serve(push(&mut sorted.serves, Serve { key })),
        Command::Leave { lease, attempt, why } => {
            At::Leave(push(&mut sorted.leaves, Leave { lease, attempt, why }))
        }
        Command::Renew { identity, lease, progress } => {
            At::Renew(push(&mut sorted.renewals, Renew { identity, lease, progress }))
        }
        Command::Release { identity, lease, report, account } => {
            At::Release(push(&mut sorted.releases, Release { by: None, identity, lease, report, account }))
        }
        Command::Answered { identity, seed_id } => {
            At::Answered(push(&mut sorted.answers, Answered { identity, seed_id }))
        }
        Command::Remove { identity, key, owner } => {
            At::Remove(push(&mut sorted.removals, Remove { by: None, identity, key, owner }))
        }
        Command::Drain { identity, key } => {
            At::Drain(push(&mut sorted.drains, Drain { by: None, identity, key }))
        }
        Command::Claim(claim) => At::Claim(push(&mut sorted.claims, *claim)),
    });
    let places = places.collect();
    (sorted, places)
}

/// The outcomes in the order of the list.
fn in_order(outcomes: &Outcomes, places: &[At]) -> Result<Vec<Outcome>, StoreError> {
    let outcome = |place: &At| {
        Some(match *place {
            At::Register(at) => match outcomes.registers.get(at)? {
                Ok((registration, id)) => Outcome::Registered(*registration, *id),
                Err(Unregistered::NoRoom(no_room)) => Outcome::NoRoom(*no_room),
                Err(Unregistered::Owned) => Outcome::Owned,
                Err(Unregistered::NotPinned) => Outcome::NotPinned,
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
            At::Claim(at) => Outcome::Claimed(outcomes.claims.get(at)?.clone()),
        })
    };
    let all = places.iter().map(outcome);
    all.collect::<Option<_>>().ok_or_else(|| StoreError::Broken("a command has no outcome".into()))
}
