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
