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
