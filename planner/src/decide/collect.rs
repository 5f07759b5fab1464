//! Which of a planner's waiters were served, and are to be told.

use std::sync::Arc;

use super::tables::Tables;
use crate::store::{Told, Woken};

/// Gives the requests of the planner that were granted and put, each with its seed, but for those that were `told`:
/// they are nobody's any more. The planner lives.
pub fn collect(tables: &mut Tables, now: i64, planner: &Arc<str>, told: &[Told]) -> Vec<Woken> {
    tables.lives(planner, now);
    let mine =
        tables.requests().filter(|row| row.waits_until_ms.is_none() && row.planner.as_ref() == Some(planner));
    let (told, untold): (Vec<_>, Vec<_>) =
        mine.cloned().partition(|row| told.contains(&(row.lease, row.attempt)));
    for row in told {
        tables.change_request(row.id, |row| row.planner = None);
    }
    let woken = untold.into_iter().map(|row| Woken {
        lease: row.lease,
        attempt: row.attempt,
        grant: tables.grant(&row.lease, now),
    });
    woken.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rows::RequestRow;
    use super::super::testing::{NOW, any_requests, any_seeds, tables};
    use super::*;
    use crate::store::PLANNER_TTL_MS;

    proptest! {
        #[test]
        fn who_was_served_here_is_named_until_it_was_told(
            seeds in any_seeds(), requests in any_requests(), told in prop::collection::vec((0usize..6, any::<bool>()), 0..4),
        ) {
            let planner: Arc<str> = "mine".into();
            let mut tables = tables(&seeds);
            for row in &requests {
                tables.put_request(Arc::new(row.clone()));
            }
            // Some were told of another attempt.
            let told = told.into_iter().filter_map(|(at, right)| {
                let row = requests.get(at)?;
                Some((row.lease, row.attempt + i64::from(!right)))
            });
            let told: Vec<Told> = told.collect();
            let woken = collect(&mut tables, NOW, &planner, &told);
            let mut expected = Vec::new();
            for before in &requests {
                let is_served = before.waits_until_ms.is_none() && before.planner.as_deref() == Some("mine");
                let was_told = is_served && told.contains(&(before.lease, before.attempt));
                if is_served && !was_told {
                    expected.push((before.lease, before.attempt, tables.grant(&before.lease, NOW)));
                }
                let planner = before.planner.clone().filter(|_| !was_told);
                prop_assert_eq!(tables.request(before.id).unwrap().as_ref(), &RequestRow { planner, ..before.clone() });
            }
            let woken: Vec<_> = woken.into_iter().map(|Woken { lease, attempt, grant }| (lease, attempt, grant)).collect();
            prop_assert_eq!(woken, expected);
            prop_assert_eq!(tables.into_changes().alive, Some((planner, NOW + PLANNER_TTL_MS)));
        }
    }
}
