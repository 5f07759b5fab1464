//! What a release ends, and what it says of the seed's health.

use std::sync::Arc;

use super::remember::Told;
use super::rows::SeedRow;
use super::tables::Tables;
use super::{end, remember};
use crate::store::commands::Release;
use crate::store::history::{EventKind, Happened};
use crate::store::{Report, Rules};

/// Ends exactly the live lease of exactly the named seed, or nothing; gives whether it lived. The first of two that
/// release the same lease does. The place of a loading seed that was taken away, and from which somebody reads, is that
/// one's: it is kept until that asks, for as long as loading seeds may be silent.
pub(super) fn release(tables: &mut Tables, now: i64, rules: &Rules, command: &Release) -> bool {
    let Release { identity, lease, report, account, by } = command;
    let Some(row) = tables.seed_at(identity) else { return false };
    let id = row.id;
    let Some(at) = row.leases.iter().position(|known| known.lease == *lease && known.lives(now)) else {
        return false;
    };
    let holder = row.leases[at].reader.and_then(|reader| tables.seed(reader));
    let kept_ms = holder.and_then(|holder| kept_ms(holder, id, now));
    let account = account.as_deref().cloned().unwrap_or_default();
    reported(tables, now, rules, id, *report, (account.reason.as_deref(), by.as_ref()));
    if let Some(kept_ms) = kept_ms {
        tables.change(id, |row| {
            let ends_ms = &mut row.leases[at].ends_ms;
            *ends_ms = now.saturating_add(kept_ms).min(*ends_ms);
        });
        return true;
    }
    end::leases(tables, now, rules, id, |known| known.lease == *lease, &Told { account, report: *report });
    end::removed_seed(tables, now, rules, id);
    true
}

/// For how long the place that a loading seed has on its source is kept for who reads from it.
fn kept_ms(holder: &SeedRow, source: i64, now: i64) -> Option<i64> {
    let loading = holder.loading.as_ref().filter(|loading| loading.source == Some(source))?;
    let is_read = holder.leases.iter().any(|lease| lease.reader.is_some() && lease.lives(now));
    (holder.removed && is_read).then(|| loading.silent_after_ms())
}

/// What a reader tells of a transfer makes its seed suspect, or well.
fn reported(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    id: i64,
    report: Report,
    (reason, by): (Option<&str>, Option<&Arc<str>>),
) {
    let Some(row) = tables.seed(id) else { return };
    let before = row.health;
    let after = report.on(before, now, rules.back_off);
    if after == before {
        return;
    }
    let happened = Happened::to(&row.identity, &row.key, EventKind::Suspect).by(by);
    tables.change(id, |row| row.health = after);
    if let Some(happened) = happened.of_health(before, after, now, reason) {
        remember::event(tables, now, rules, happened);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seeds, held, identity, lease, rules, seed, tables};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::store::history::End;

    fn of(seed: u8, number: u32, report: Report) -> Release {
        Release { by: None, identity: identity(seed), lease: lease(number), report, account: None }
    }

    #[test]
    fn a_failure_makes_a_seed_suspect_and_a_success_well_in_the_order_of_the_reports() {
        let row = SeedRowOf::two_leases();
        for (reports, failures) in [([Report::Failed, Report::Ok], 0), ([Report::Ok, Report::Failed], 1)] {
            let mut tables = tables(std::slice::from_ref(&row));
            for (number, report) in (0..).zip(reports) {
                assert!(release(&mut tables, NOW, &rules(Policy::Balanced), &of(1, number, report)));
            }
            assert_eq!(tables.seed(row.id).unwrap().health.failures, failures, "{reports:?}");
        }
    }

    struct SeedRowOf;

    impl SeedRowOf {
        fn two_leases() -> super::super::rows::SeedRow {
            let leases = vec![held(0, 0, NOW + 9), held(1, 1, NOW + 9)];
            super::super::rows::SeedRow { leases, ..seed(1, 2) }
        }
    }

    #[test]
    fn a_removed_seed_goes_with_its_last_lease() {
        let row = super::super::rows::SeedRow { removed: true, ..SeedRowOf::two_leases() };
        let mut tables = tables(std::slice::from_ref(&row));
        assert!(release(&mut tables, NOW, &rules(Policy::Balanced), &of(1, 0, Report::Unknown)));
        assert!(tables.seed(row.id).is_some());
        assert!(release(&mut tables, NOW, &rules(Policy::Balanced), &of(1, 1, Report::Unknown)));
        assert!(tables.seed(row.id).is_none());
    }

    proptest! {
        #[test]
        fn exactly_the_named_live_lease_ends_once(
            seeds in any_seeds(), seed in 0u8..5, number in (0u32..5, 0u32..5),
        ) {
            let command = of(seed, number.0 * 100 + number.1, Report::Unknown);
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&seeds);
            let released = release(&mut tables, NOW, &rules, &command);
            prop_assert!(!release(&mut tables, NOW, &rules, &command), "twice is once");
            for before in &seeds {
                let mut left = before.leases.clone();
                let named = |known: &super::super::rows::LeaseRow| {
                    before.identity == command.identity && known.lease == command.lease && known.lives(NOW)
                };
                prop_assert!(!before.leases.iter().any(named) || released);
                left.retain(|known| !named(known));
                match tables.seed(before.id) {
                    Some(row) => prop_assert_eq!(&row.leases, &left),
                    None => prop_assert!(released && before.removed && !left.iter().any(|known| known.lives(NOW))),
                }
            }
            let told = tables.into_changes().ended;
            prop_assert_eq!(told.iter().filter(|row| row.end == End::Released).count(), usize::from(released));
        }
    }
}
