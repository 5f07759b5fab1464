//! What it means that a seed's owner takes it out.

use super::tables::Tables;
use super::{end, remember};
use crate::domain::seed::{self, Removal};
use crate::store::Rules;
use crate::store::commands::Remove;
use crate::store::history::{EventKind, Happened};

/// Takes a seed out. It goes with its last lease; what is gone already leaves nothing behind.
pub(super) fn remove(tables: &mut Tables, now: i64, rules: &Rules, command: &Remove) -> Removal {
    let Remove { identity, key, owner, by } = command;
    let row = tables.seed_at(identity).cloned();
    let known = row.as_ref().map(|row| row.known(now, rules));
    let removal = seed::remove(known.as_ref(), key, owner);
    let is_its = !matches!(removal, Removal::Unknown | Removal::Owned);
    let Some(row) = row.filter(|_| is_its) else { return removal };
    if !row.removed {
        // As the sweep would have told of it.
        let kind = if removal == Removal::GoneBefore { EventKind::Silent } else { EventKind::Removed };
        let by = by.as_ref().filter(|_| kind == EventKind::Removed);
        let happened = Happened::to(identity, key, kind).by(by).leaving(row.live_leases(now));
        remember::event(tables, now, rules, happened);
    }
    match removal {
        Removal::Gone | Removal::GoneBefore => end::seed(tables, now, rules, row.id),
        Removal::Draining => {
            tables.change(row.id, |row| row.removed = true);
        }
        Removal::Unknown | Removal::Owned => {}
    }
    removal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rows::SeedRow;
    use super::super::testing::{self, NOW, any_seeds, identity, rules, tables};
    use super::*;
    use crate::domain::owner::Owner;
    use crate::domain::policy::Policy;

    proptest! {
        #[test]
        fn a_seed_goes_with_its_last_lease_and_touches_no_other(
            seeds in any_seeds(), number in 0u8..6, right_key in prop::bool::weighted(0.8),
        ) {
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&seeds);
            let key = testing::key(if right_key { "k" } else { "other" });
            let command = Remove { owner: Owner::default(), by: None, identity: identity(number), key };
            let removal = remove(&mut tables, NOW, &rules, &command);
            for before in &seeds {
                let after = tables.seed(before.id).map(AsRef::as_ref);
                if before.identity != identity(number) || !right_key {
                    prop_assert_eq!(after, Some(before));
                } else if before.live_leases(NOW) > 0 {
                    prop_assert_eq!(removal, Removal::Draining);
                    prop_assert_eq!(after, Some(&SeedRow { removed: true, ..before.clone() }), "its leases live on");
                } else {
                    let gone = if before.is_shown(NOW, &rules) { Removal::Gone } else { Removal::GoneBefore };
                    prop_assert_eq!((removal, after), (gone, None));
                }
            }
            let asked = seeds.iter().find(|row| row.identity == identity(number) && right_key);
            prop_assert_eq!(removal == Removal::Unknown, asked.is_none());
            // It is told once that a seed was taken out, and of each lease once that it ended.
            let changes = tables.into_changes();
            prop_assert_eq!(changes.events.len(), usize::from(asked.is_some_and(|row| !row.removed)));
            let gone = asked.filter(|_| removal != Removal::Draining);
            prop_assert_eq!(changes.ended.len(), gone.map_or(0, |row| row.leases.len()));
        }
    }
}
