//! Why a worker got nothing.

use rfork_protocol::SeedKey;

use super::tables::Tables;
use crate::domain::seed::State;
use crate::store::{Refusal, Rules};

/// The reason that there is no seed of a key for somebody, by the seeds that were seen and a witness of the others.
pub(super) fn reason(tables: &Tables, now: i64, rules: &Rules, key: &SeedKey) -> Refusal {
    let mut reason = Refusal::UnknownKey;
    for row in tables.seeds_of(key) {
        match row.state(now, rules) {
            State::Live => return Refusal::AllBusy,
            State::Suspect => reason = Refusal::AllSuspect,
            State::Draining | State::Silent => {}
        }
    }
    reason
}
