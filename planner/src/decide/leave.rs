//! What the end of a wait finds, and what becomes of a lease that was granted in the same moment.

use std::sync::Arc;

use super::end;
use super::rows::SeedRow;
use super::tables::Tables;
use crate::store::commands::Leave;
use crate::store::{Leaving, Left, Rules};

/// Ends a wait for the attempt that has the place, and for no other; gives the seed of which a point was given back.
pub(super) fn leave(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    planner: &str,
    command: &Leave,
) -> (Left, Option<Arc<SeedRow>>) {
    let Leave { lease, attempt, why } = command;
    let Some(row) = tables.request_for(lease).cloned() else { return (Left::Nothing, None) };
    if row.attempt != *attempt || row.planner.as_deref().is_some_and(|known| known != planner) {
        return (Left::Superseded, None);
    }
    let (kept, waits) = (row.idempotency.is_some(), row.waits_until_ms.is_some());
    let left = match tables.grant(lease, now) {
        _ if waits => Left::Nothing,
        Some(grant) => Left::Granted { grant, kept },
        None => Left::Over,
    };
    let is_void = left == Left::Over && *why == Leaving::Void;
    if kept && !is_void && !(waits && *why == Leaving::TimedOut) {
        // A lease that may be asked for again, or is taken now; or a place for a client that comes back.
        tables.change_request(row.id, |row| row.planner = None);
        return (left, None);
    }
    tables.delete_request(row.id);
    let gives_back = *why == Leaving::Gone && !waits;
    let freed = if gives_back { end::give_back(tables, now, rules, lease) } else { None };
    (left, freed)
}

#[cfg(test)]
mod tests {
    use super::super::rows::RequestRow;
    use super::super::testing::{NOW, held, key, lease, rules, seed, tables};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::store::Idempotency;

    fn request(may_be_repeated: bool, waits: bool) -> RequestRow {
        let asked = Idempotency { key: [1; 32], request: [2; 32] };
        RequestRow {
            id: 7,
            key: Arc::new(key("k")),
            lease: lease(1),
            idempotency: may_be_repeated.then_some(asked),
            attempt: 5,
            wish: Arc::default(),
            planner: Some("mine".into()),
            waits_until_ms: waits.then_some(NOW + 9),
            changed_ms: NOW,
        }
    }

    /// What is left of it: the outcome, whether its row is there, whether its lease is.
    fn after(row: RequestRow, attempt: i64, planner: &str, why: Leaving) -> (Left, bool, bool) {
        let mut tables = tables(&[SeedRow { leases: vec![held(0, 1, NOW + 3)], ..seed(1, 1) }]);
        tables.put_request(Arc::new(row));
        let command = Leave { lease: lease(1), attempt, why };
        let (left, _) = leave(&mut tables, NOW, &rules(Policy::Balanced), planner, &command);
        (left, tables.request(7).is_some(), tables.seed_with(&lease(1)).is_some())
    }

    #[test]
    fn an_attempt_ends_no_later_one_and_none_of_another_planner() {
        for why in [Leaving::TimedOut, Leaving::Gone, Leaving::Void] {
            assert_eq!(after(request(false, true), 4, "mine", why), (Left::Superseded, true, true));
            assert_eq!(after(request(false, true), 5, "other", why), (Left::Superseded, true, true));
        }
    }

    #[test]
    fn a_lease_whose_client_is_gone_is_given_back_unless_it_may_be_asked_for_again() {
        let (left, row, leased) = after(request(false, false), 5, "mine", Leaving::Gone);
        assert!(matches!(left, Left::Granted { kept: false, .. }) && !row && !leased);
        let (left, row, leased) = after(request(true, false), 5, "mine", Leaving::Gone);
        assert!(matches!(left, Left::Granted { kept: true, .. }) && row && leased);
    }

    #[test]
    fn a_wait_that_is_over_keeps_no_place_and_one_whose_client_may_come_back_does() {
        assert_eq!(after(request(true, true), 5, "mine", Leaving::TimedOut), (Left::Nothing, false, true));
        assert_eq!(after(request(true, true), 5, "mine", Leaving::Gone), (Left::Nothing, true, true));
        assert_eq!(after(request(false, true), 5, "mine", Leaving::Gone), (Left::Nothing, false, true));
    }
}
