//! What it means that a seed's owner takes it out.

use super::tables::Tables;
use super::{end, remember};
use crate::domain::seed::{self, Removal};
use crate::store::Rules;
use crate::store::commands::Remove;
use crate::store::history::{EventKind, Happened};

/// Takes a seed out. It goes with its last lease; what is gone already leaves nothing behind.
pub(super) fn remove(tables: &mut Tables, now: i64, rules: &Rules, command: &Remove) -> Removal {
    let Remove { identity, key } = command;
    let row = tables.seed_at(identity).cloned();
    let known = row.as_ref().map(|row| row.known(now, rules));
    let removal = seed::remove(known.as_ref(), key);
    let Some(row) = row.filter(|row| *row.key == *key) else { return removal };
    if !row.removed {
        // As the sweep would have told of it.
        let kind = if removal == Removal::GoneBefore { EventKind::Silent } else { EventKind::Removed };
        let happened = Happened::to(identity, key, kind).leaving(row.live_leases(now));
        remember::event(tables, now, rules, happened);
    }
    match removal {
        Removal::Gone | Removal::GoneBefore => end::seed(tables, now, rules, row.id),
        Removal::Draining => {
            tables.change(row.id, |row| row.removed = true);
        }
        Removal::Unknown => {}
    }
    removal
}
