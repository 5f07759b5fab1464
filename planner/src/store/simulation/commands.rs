//! The model's words and the store's: all that the simulation knows of the shape of commands and outcomes.

use super::super::conformance;
use super::super::{Command, Grant, Idempotency, Left, Outcome, Queue, Woken};
use super::model::{self, Event, Granted, Told};
use super::world::{KEYS, SEEDS, World, owned_by};

/// The command that stands for an event of a client.
pub(super) fn command(world: World, event: &Event) -> Command {
    match *event {
        Event::Register { seed, key, process, owner: by, age_ms: waited_ms } => {
            let mut command = conformance::register(seed, KEYS[key]);
            if let Command::Register { age_ms, profile, owner, .. } = &mut command {
                (*age_ms, *owner) = (waited_ms, owned_by(by));
                **profile = world.profile(seed, process);
            }
            command
        }
        Event::Hear { seed, key, process, owner, age_ms } => Command::Beat {
            identity: conformance::identity(seed),
            key: conformance::key(KEYS[key]),
            incarnation: world.profile(seed, process).incarnation,
            age_ms,
            owner: owned_by(owner),
            progress: None,
        },
        Event::Acquire { key, lease, exclude, place } => {
            let mut command = conformance::acquire(KEYS[key], lease);
            if let Command::Acquire { wish, queue, .. } = &mut command {
                wish.exclude = exclude.map(conformance::identity).into_iter().collect();
                *queue = place.map(|place| {
                    let hashed = |(name, request)| Idempotency { key: [name; 32], request: [request; 32] };
                    let idempotency = place.name.map(hashed);
                    let model::Place { wait_ms, attempt, again, .. } = place;
                    Box::new(Queue { wait_ms, idempotency, attempt, again })
                });
            }
            command
        }
        Event::Serve { key } => Command::Serve { key: conformance::key(KEYS[key]) },
        Event::Leave { lease, attempt, why, .. } => {
            Command::Leave { lease: conformance::lease(lease), attempt, why }
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
        Event::Remove { seed, key, owner } => Command::Remove {
            identity: conformance::identity(seed),
            key: conformance::key(KEYS[key]),
            owner: owned_by(owner),
        },
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
        Outcome::Owned => Told::Owned,
        Outcome::NoRoom(_) => panic!("there is room"),
        Outcome::NotPinned => panic!("nothing is pinned"),
        Outcome::Claimed(_) => panic!("nobody asked: the histories of loading seeds do"),
        Outcome::Heard(heard, number) => Told::Heard(*heard, *number),
        Outcome::Acquired(Err(refusal)) => Told::Refused(*refusal),
        Outcome::Acquired(Ok(grant)) => Told::Granted(granted(grant)),
        Outcome::Queued(end_ms) => Told::Queued(*end_ms),
        Outcome::Served(end_ms) => Told::Served(*end_ms),
        Outcome::Left(left) => Told::Left(match left {
            Left::Nothing => model::Left::Nothing,
            Left::Granted { grant, kept } => model::Left::Granted(granted(grant), *kept),
            Left::Over => model::Left::Over,
            Left::Superseded => model::Left::Superseded,
        }),
        Outcome::Renewed(renewed) => Told::Renewed(renewed.map(|renewed| renewed.ttl_ms)),
        Outcome::Released(released) => Told::Released(*released),
        Outcome::Noted(noted) => Told::Noted(*noted),
        Outcome::Removed(removal) => Told::Removed(*removal),
        Outcome::Drained(leases) => Told::Drained(*leases),
    }
}

fn granted(grant: &Grant) -> Granted {
    let seed = (0..SEEDS).find(|seed| conformance::identity(*seed) == grant.identity);
    Granted {
        seed: seed.unwrap_or(u8::MAX),
        ttl_ms: grant.lease_ttl_ms,
        quiet_ms: grant.quiet_ms,
        answers: grant.answers,
    }
}

/// Whose turn came, as the model says it.
pub(super) fn woken(woken: &Woken) -> (u32, i64, Option<Granted>) {
    let [a, b, c, d, ..] = woken.lease;
    (u32::from_be_bytes([a, b, c, d]), woken.attempt, woken.grant.as_ref().map(granted))
}
