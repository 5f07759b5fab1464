//! What histories are about: a few seeds and keys, and rules under which all that rules do happens soon.

use std::sync::Arc;

use super::super::history::Keep;
use super::super::{Room, Rules};
use crate::domain::health::BackOff;
use crate::domain::location::Location;
use crate::domain::owner::Owner;
use crate::domain::policy::Policy;
use crate::domain::seed::Profile;
use crate::domain::terms::{Overrides, Selector};
use crate::store::conformance::identity;

/// Seeds that take part.
pub(super) const SEEDS: u8 = 4;
/// What seeds hold.
pub(super) const KEYS: [&str; 2] = ["k", "l"];
/// Idempotency keys under which the first of [`KEYS`] is asked for. A lease belongs to each.
pub(super) const NAMES: u8 = 3;
const FIRST_NAMED: u32 = 1_000_000;
/// The most points of a seed, but for the one that has a rule.
pub(super) const MAX_CAPACITY: u32 = 3;
/// How many worlds there are: each needs a database, or a planner that starts again.
pub(super) const WORLDS: usize = 9;

/// Times to live, of heartbeats or leases: short in steps, so that both pass often.
const LONG_TTL_MS: i64 = 30;
const SHORT_TTL_MS: i64 = 10;
const BACK_OFF: BackOff = BackOff { first_ms: 8, most_ms: 20 };
/// A seed with one point more than others, and one whose leases live longer.
const ROOMY: u8 = 1;
const PATIENT: u8 = 2;
const MORE_PATIENT_MS: i64 = 5;
/// What the seeds of one of two hosts lend together, where that is bounded.
const HOST_CAPACITY: u32 = 2;
/// How long what has ended is kept: forgetting it is to happen, too.
const HISTORY_MS: i64 = 20;

/// Somebody who registers seeds.
pub(super) fn owned_by(owner: Option<u8>) -> Owner {
    Owner { principal: owner.map(|owner| format!("owner-{owner}").into()), address: None }
}

/// The rules of a history, and what seeds tell of themselves in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    number: usize,
    capacity: u32,
}

impl World {
    pub(super) fn new(number: usize) -> Self {
        Self { number, capacity: u32::try_from(number / 3).unwrap() % MAX_CAPACITY + 1 }
    }

    /// The same, but for the usual capacity.
    pub(super) fn with_capacity(self, capacity: u32) -> Self {
        Self { capacity, ..self }
    }

    pub(super) fn policy(self) -> Policy {
        Policy::NAMES[self.number % 3].1
    }

    /// Whether the seeds of a host share a bound.
    pub(super) fn caps_hosts(self) -> bool {
        self.number % 4 == 3
    }

    /// One or the other lives longer: a seed falls silent with leases or without.
    pub(super) fn heartbeat_ttl_ms(self) -> i64 {
        if self.number.is_multiple_of(2) { LONG_TTL_MS } else { SHORT_TTL_MS }
    }

    pub(super) fn lease_ttl_ms(self, seed: u8) -> i64 {
        let usual_ms = LONG_TTL_MS + SHORT_TTL_MS - self.heartbeat_ttl_ms();
        if seed == PATIENT { usual_ms + MORE_PATIENT_MS } else { usual_ms }
    }

    pub(super) fn capacity(self, seed: u8) -> u32 {
        if seed == ROOMY { self.capacity + 1 } else { self.capacity }
    }

    /// What the seed's host may lend, and which that is.
    pub(super) fn host(self, seed: u8) -> Option<(u8, u32)> {
        self.caps_hosts().then_some((seed % 2, HOST_CAPACITY))
    }

    /// After how long without any a seed's failures are forgotten.
    pub(super) const FORGIVEN_MS: i64 = BACK_OFF.most_ms;

    /// How long a seed is suspect after so many failures.
    pub(super) fn pause_ms(failures: u32) -> i64 {
        let mut pause_ms = BACK_OFF.first_ms;
        for _ in 1..failures {
            pause_ms = (pause_ms * 2).min(BACK_OFF.most_ms);
        }
        pause_ms
    }

    pub(super) fn profile(self, seed: u8, process: Option<u8>) -> Profile {
        let host = self.host(seed).map(|(host, _)| format!("host-{host}"));
        Profile {
            location: Location { host, ..Location::default() },
            incarnation: process.map(|process| format!("process-{process}")),
            ..Profile::default()
        }
    }

    /// The same, as a planner's settings.
    pub(super) fn rules(self) -> Rules {
        let only = |seed: u8| Selector { seed: identity(seed).host().parse().ok(), ..Selector::default() };
        let others = SEEDS;
        Rules {
            heartbeat_ttl_ms: self.heartbeat_ttl_ms(),
            lease_ttl_ms: self.lease_ttl_ms(others),
            capacity: self.capacity(others),
            policy: self.policy(),
            max_chain_depth: 0,
            back_off: BACK_OFF,
            overrides: Some(Arc::new(Overrides {
                capacity: vec![(only(ROOMY), self.capacity(ROOMY))],
                lease_ttl_ms: vec![(only(PATIENT), self.lease_ttl_ms(PATIENT))],
                host_capacity: self
                    .host(others)
                    .map(|(_, capacity)| ("10.0.0.*".parse().unwrap(), capacity))
                    .into_iter()
                    .collect(),
                ..Overrides::default()
            })),
            history: Keep { ms: HISTORY_MS, leases: 3, events: 3 },
            room: Room::AMPLE,
        }
    }
}

/// The lease of the acquisition under an idempotency key, and how long that waits.
pub(super) fn named(name: u8) -> (u32, i64) {
    (FIRST_NAMED + u32::from(name), [0, 20, 100_000][usize::from(name)])
}
