//! The rules of this store still take commands of all kinds in one list.

use super::super::commands::{
    Acquire, Acquired, Answered, Drain, Heartbeat, Leave, NoRoom, Register, Release, Remove, Renew, Serve,
};
use super::super::{Command, Commands, Outcome, Outcomes};

/// All commands, in the order of their kinds.
pub(super) fn list(commands: &Commands) -> Vec<Command> {
    let Commands { registers, heartbeats, answers, renewals, releases, removals, drains, .. } =
        commands.clone();
    let Commands { leaves, acquires, serves, .. } = commands.clone();
    let mut list = Vec::with_capacity(commands.len());
    list.extend(registers.into_iter().map(|Register { identity, key, profile, age_ms }| Command::Register {
        identity,
        key,
        profile,
        age_ms,
    }));
    list.extend(heartbeats.into_iter().map(|Heartbeat { identity, key, incarnation, age_ms }| {
        Command::Beat { identity, key, incarnation, age_ms }
    }));
    list.extend(
        answers.into_iter().map(|Answered { identity, seed_id }| Command::Answered { identity, seed_id }),
    );
    list.extend(renewals.into_iter().map(|Renew { identity, lease }| Command::Renew { identity, lease }));
    list.extend(releases.into_iter().map(|Release { identity, lease, report, account }| Command::Release {
        identity,
        lease,
        report,
        account,
    }));
    list.extend(removals.into_iter().map(|Remove { identity, key }| Command::Remove { identity, key }));
    list.extend(drains.into_iter().map(|Drain { identity, key }| Command::Drain { identity, key }));
    list.extend(leaves.into_iter().map(|Leave { lease, attempt, why }| Command::Leave {
        lease,
        attempt,
        why,
    }));
    list.extend(acquires.into_iter().map(|Acquire { key, wish, lease, queue }| Command::Acquire {
        key,
        wish,
        lease,
        queue,
    }));
    list.extend(serves.into_iter().map(|Serve { key }| Command::Serve { key }));
    list
}

/// Their outcomes, each kind by itself.
pub(super) fn by_kind(list: Vec<Outcome>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for outcome in list {
        match outcome {
            Outcome::Registered(registration, id) => outcomes.registers.push(Ok((registration, id))),
            Outcome::NoRoom => outcomes.registers.push(Err(NoRoom)),
            Outcome::Heard(heard, id) => outcomes.heartbeats.push((heard, id)),
            Outcome::Acquired(Ok(grant)) => outcomes.acquires.push(Acquired::Granted(grant)),
            Outcome::Acquired(Err(refusal)) => outcomes.acquires.push(Acquired::Refused(refusal)),
            Outcome::Queued(end_ms) => outcomes.acquires.push(Acquired::Queued(end_ms)),
            Outcome::Served(end_ms) => outcomes.serves.push(end_ms),
            Outcome::Left(left) => outcomes.leaves.push(left),
            Outcome::Renewed(ttl_ms) => outcomes.renewals.push(ttl_ms),
            Outcome::Released(lived) => outcomes.releases.push(lived),
            Outcome::Noted(is_there) => outcomes.answers.push(is_there),
            Outcome::Removed(removal) => outcomes.removals.push(removal),
            Outcome::Drained(leases) => outcomes.drains.push(leases),
        }
    }
    outcomes
}
