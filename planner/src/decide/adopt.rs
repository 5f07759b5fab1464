//! What changes when a planner starts under other settings, or after another process.

use super::rows::SeedRow;
use super::tables::Tables;
use crate::store::Rules;

/// Whether a seed has other terms than the rules have now.
pub fn is_outdated(row: &SeedRow, rules: &Rules) -> bool {
    rules.terms(&row.identity, &row.key, &row.profile) != row.terms
}

/// Gives the seeds that were put the terms that the rules have now. Leases on points that are offered no more go on.
pub fn adopt(tables: &mut Tables, rules: &Rules) {
    let outdated = tables.seeds().filter(|row| is_outdated(row, rules));
    let others: Vec<_> =
        outdated.map(|row| (row.id, rules.terms(&row.identity, &row.key, &row.profile))).collect();
    for (id, terms) in others {
        tables.change(id, |row| row.terms = terms);
    }
}

/// Ends the waits of a process that is gone: nobody answers them. What may be repeated keeps its place, or its lease;
/// a lease that nobody may have heard of lives for its time.
pub fn abandon(tables: &mut Tables) {
    let all: Vec<_> =
        tables.requests().map(|row| (row.id, row.idempotency.is_some(), row.planner.is_some())).collect();
    for (id, may_be_repeated, is_answered) in all {
        if !may_be_repeated {
            tables.delete_request(id);
        } else if is_answered {
            tables.change_request(id, |row| row.planner = None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::rows::RequestRow;
    use super::super::testing::{any_requests, any_seeds, rules, tables};
    use super::*;
    use crate::domain::policy::Policy;

    proptest! {
        #[test]
        fn a_seed_is_lent_on_the_terms_of_now_and_keeps_all_else(seeds in any_seeds(), capacity in 1u32..4) {
            let rules = Rules { capacity, ..rules(Policy::Balanced) };
            let mut tables = tables(&seeds);
            adopt(&mut tables, &rules);
            for before in &seeds {
                let terms = rules.terms(&before.identity, &before.key, &before.profile);
                prop_assert_eq!(tables.seed(before.id).unwrap().as_ref(), &SeedRow { terms, ..before.clone() });
            }
            let changed = seeds.iter().filter(|row| row.terms.capacity != capacity).count();
            prop_assert_eq!(tables.into_changes().seeds.len(), changed, "others are not written");
        }

        #[test]
        fn nobody_answers_who_waited_for_a_process_that_is_gone(requests in any_requests()) {
            let mut tables = tables(&[]);
            for row in &requests {
                tables.put_request(Arc::new(row.clone()));
            }
            abandon(&mut tables);
            for before in &requests {
                let kept = before.idempotency.is_some();
                let expected = kept.then(|| RequestRow { planner: None, ..before.clone() });
                prop_assert_eq!(tables.request(before.id).map(AsRef::as_ref), expected.as_ref());
            }
            let changed = requests.iter().filter(|row| row.idempotency.is_none() || row.planner.is_some()).count();
            prop_assert_eq!(tables.into_changes().requests.len(), changed, "others are not written");
        }
    }
}
