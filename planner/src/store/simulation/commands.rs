//! The model's words and the store's: all that the simulation knows of the shape of commands and outcomes.

use super::super::conformance;
use super::super::{Command, Outcome};
use super::model::{Event, Told};
use super::world::{KEYS, SEEDS, World};

/// The command that stands for an event of a client.
pub(super) fn command(world: World, event: &Event) -> Command {
    match *event {
        Event::Register { seed, key, process, age_ms: waited_ms } => {
            let mut command = conformance::register(seed, KEYS[key]);
            if let Command::Register { age_ms, profile, .. } = &mut command {
                *age_ms = waited_ms;
                **profile = world.profile(seed, process);
            }
            command
        }
        Event::Hear { seed, key, process, age_ms } => Command::Beat {
            identity: conformance::identity(seed),
            key: conformance::key(KEYS[key]),
            incarnation: world.profile(seed, process).incarnation,
            age_ms,
        },
        Event::Acquire { key, lease, exclude } => {
            let mut command = conformance::acquire(KEYS[key], lease);
            if let Command::Acquire { wish, .. } = &mut command {
                wish.exclude = exclude.map(conformance::identity).into_iter().collect();
            }
            command
        }
        Event::Renew { seed, lease } => conformance::renew(seed, lease),
        Event::Release { seed, lease, report: outcome } => {
            let mut command = conformance::release(seed, lease);
            if let Command::Release { report, .. } = &mut command {
                *report = outcome;
            }
            command
        }
        Event::Answered { seed, number } => {
            Command::Answered { identity: conformance::identity(seed), seed_id: number }
        }
        Event::Remove { seed, key } => conformance::remove(seed, KEYS[key]),
        Event::Drain { seed, key } => {
            Command::Drain { identity: conformance::identity(seed), key: conformance::key(KEYS[key]) }
        }
        Event::Beat { .. } | Event::Sweep { .. } => panic!("no command: {event:?}"),
    }
}

/// What a client was told.
pub(super) fn told(outcome: &Outcome) -> Told {
    match outcome {
        Outcome::Registered(registration, number) => Told::Registered(*registration, *number),
        Outcome::Heard(heard, number) => Told::Heard(*heard, *number),
        Outcome::Acquired(Err(refusal)) => Told::Refused(*refusal),
        Outcome::Acquired(Ok(grant)) => {
            let seed = (0..SEEDS).find(|seed| conformance::identity(*seed) == grant.identity);
            Told::Granted {
                seed: seed.unwrap_or(u8::MAX),
                ttl_ms: grant.lease_ttl_ms,
                quiet_ms: grant.quiet_ms,
                answers: grant.answers,
            }
        }
        Outcome::Renewed(ttl_ms) => Told::Renewed(*ttl_ms),
        Outcome::Released(released) => Told::Released(*released),
        Outcome::Noted(noted) => Told::Noted(*noted),
        Outcome::Removed(removal) => Told::Removed(*removal),
        Outcome::Drained(leases) => Told::Drained(*leases),
        // Nobody waits in these histories.
        Outcome::Queued(_) | Outcome::Served(_) | Outcome::Left(_) => panic!("not asked for: {outcome:?}"),
    }
}
