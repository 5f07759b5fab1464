//! Why a worker got nothing.

use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::rows::SeedRow;
use super::tables::Tables;
use crate::domain::seed::State;
use crate::store::{Refusal, Rules};

/// The reason that there is no seed of a key for somebody, by the seeds that were seen and a witness of the others.
pub(super) fn reason(tables: &Tables, now: i64, rules: &Rules, key: &SeedKey) -> Refusal {
    let mut reason = Refusal::UnknownKey;
    // Who has just begun to read storage is no seed to anybody, nor is who holds what the key is not pinned to.
    let is_one = |row: &&Arc<SeedRow>| !row.is_nameless() && !row.is_barred(rules);
    for row in tables.seeds_of(key).filter(is_one) {
        match row.state(now, rules) {
            State::Live => return Refusal::AllBusy,
            State::Suspect => reason = Refusal::AllSuspect,
            State::Draining | State::Silent => {}
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seeds, key, rules, tables};
    use super::*;
    use crate::domain::policy::Policy;

    proptest! {
        #[test]
        fn a_reason_is_that_of_the_best_seed_of_the_key(
            seeds in any_seeds(), others in prop::collection::vec(any::<bool>(), 6),
        ) {
            let rules = rules(Policy::Balanced);
            let of_key = |(row, other): (SeedRow, &bool)| match other {
                true => SeedRow { key: Arc::new(key("other")), ..row },
                false => row,
            };
            let seeds: Vec<SeedRow> = seeds.into_iter().zip(&others).map(of_key).collect();
            let is_there = |state| seeds.iter().any(|row| *row.key == key("k") && row.state(NOW, &rules) == state);
            let expected = match (is_there(State::Live), is_there(State::Suspect)) {
                (true, _) => Refusal::AllBusy,
                (false, true) => Refusal::AllSuspect,
                (false, false) => Refusal::UnknownKey,
            };
            prop_assert_eq!(reason(&tables(&seeds), NOW, &rules, &key("k")), expected);
        }
    }
}
