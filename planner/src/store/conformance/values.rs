//! Values that tests of stores and of rules share.

use rfork_protocol::{SeedIdentity, SeedKey};

use crate::domain::health::BackOff;
use crate::domain::policy::Policy;
use crate::store::history::Keep;
use crate::store::{LeaseHash, Room, Rules};

/// The rules of most tests.
pub(crate) const RULES: Rules = Rules {
    heartbeat_ttl_ms: 60_000,
    lease_ttl_ms: 10_000,
    capacity: 1,
    policy: Policy::Balanced,
    max_chain_depth: 0,
    back_off: BackOff { first_ms: 1_000, most_ms: 4_000 },
    overrides: None,
    history: Keep::of(3_600_000),
    room: Room::AMPLE,
};

pub(crate) fn identity(seed: u8) -> SeedIdentity {
    SeedIdentity::new(format!("10.0.0.{seed}"), 8000, 0).unwrap()
}

pub(crate) fn key(text: &str) -> SeedKey {
    SeedKey::new(text).unwrap()
}

pub(crate) fn lease(number: u32) -> LeaseHash {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    hash
}
