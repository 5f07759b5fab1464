//! How leases end, and seeds with them.

use std::sync::Arc;

use super::remember::{self, Told};
use super::rows::{LeaseRow, SeedRow};
use super::tables::Tables;
use crate::store::history::End;
use crate::store::{LeaseHash, Rules};

/// Ends the leases of a seed that `which` names; gives how many.
pub(super) fn leases(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    seed: i64,
    which: impl Fn(&LeaseRow) -> bool,
    told: &Told,
) -> u64 {
    let Some(row) = tables.seed(seed).cloned() else { return 0 };
    let mut ended = 0;
    for lease in row.leases.iter().filter(|lease| which(lease)) {
        remember::ended(tables, now, rules, (&row, lease), told.clone());
        ended += 1;
    }
    if ended > 0 {
        tables.change(seed, |row| row.leases.retain(|lease| !which(lease)));
    }
    ended
}

/// A seed goes, and its leases with it: nothing is left of what they read.
pub(super) fn seed(tables: &mut Tables, now: i64, rules: &Rules, seed: i64) {
    leases(tables, now, rules, seed, |_| true, &End::Revoked.into());
    tables.delete_seed(seed);
}

/// Gives a lease back that nobody took, be it over by itself; gives its seed as it was.
pub(super) fn give_back(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    lease: &LeaseHash,
) -> Option<Arc<SeedRow>> {
    let seed = tables.seed_with(lease)?.clone();
    leases(tables, now, rules, seed.id, |known| known.lease == *lease, &End::GivenBack.into());
    Some(seed)
}

/// A seed that was removed goes with its last lease.
pub(super) fn removed_seed(tables: &mut Tables, now: i64, rules: &Rules, id: i64) {
    if tables.seed(id).is_some_and(|row| row.removed && row.live_leases(now) == 0) {
        seed(tables, now, rules, id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seeds, lease, rules, tables};
    use super::*;
    use crate::domain::policy::Policy;

    proptest! {
        #[test]
        fn leases_that_are_named_end_once_and_no_other(
            seeds in any_seeds(), named in prop::collection::btree_set(0u32..5, 0..5), number in 0i64..7,
        ) {
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&seeds);
            let is_named = |lease: &LeaseRow| named.contains(&lease.point);
            let ended = leases(&mut tables, NOW, &rules, number, is_named, &End::Revoked.into());
            for before in &seeds {
                let mut left = before.leases.clone();
                left.retain(|lease| before.id != number || !is_named(lease));
                prop_assert_eq!(tables.seed(before.id).unwrap().as_ref(), &SeedRow { leases: left, ..before.clone() });
            }
            let of = seeds.iter().find(|row| row.id == number);
            let expected: Vec<_> = of.iter().flat_map(|row| &row.leases).filter(|lease| is_named(lease)).collect();
            prop_assert_eq!(ended, expected.len() as u64);
            let told = tables.into_changes().ended;
            for (lease, told) in expected.iter().zip(&told) {
                let end = if lease.lives(NOW) { End::Revoked } else { End::Expired };
                prop_assert_eq!((told.lease, told.end, told.ended_ms), (lease.lease, end, lease.ends_ms.min(NOW)));
            }
            prop_assert_eq!(told.len(), expected.len());
        }

        #[test]
        fn a_lease_that_is_given_back_leaves_its_point_and_the_seed_as_it_was(seeds in any_seeds(), number in 0u32..500) {
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&seeds);
            let of = seeds.iter().find(|row| row.leases.iter().any(|known| known.lease == lease(number)));
            let seed = give_back(&mut tables, NOW, &rules, &lease(number));
            prop_assert_eq!(seed.as_deref(), of, "as it was before");
            prop_assert!(tables.seed_with(&lease(number)).is_none());
            let left: usize = tables.seeds().map(|row| row.leases.len()).sum();
            let before: usize = seeds.iter().map(|row| row.leases.len()).sum();
            prop_assert_eq!(left, before - usize::from(of.is_some()));
        }

        #[test]
        fn a_seed_goes_when_it_was_removed_and_nobody_reads_from_it(seeds in any_seeds()) {
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&seeds);
            for before in &seeds {
                removed_seed(&mut tables, NOW, &rules, before.id);
                let goes = before.removed && before.leases.iter().all(|lease| !lease.lives(NOW));
                prop_assert_eq!(tables.seed(before.id).map(AsRef::as_ref), (!goes).then_some(before));
            }
            // What is left of the leases of those that went is told, too.
            let gone = seeds.iter().filter(|row| tables.seed(row.id).is_none());
            let leases: usize = gone.map(|row| row.leases.len()).sum();
            prop_assert_eq!(tables.into_changes().ended.len(), leases);
        }
    }
}
