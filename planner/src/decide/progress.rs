//! What is heard of loading seeds, and what they are told.

use std::sync::Arc;

use rfork_protocol::v2::Advice;

use super::rows::SeedRow;
use super::tables::Tables;
use crate::domain::chain::{self, Progress};
use crate::domain::pace::{Ahead, Sending};
use crate::store::commands::Guidance;

/// Takes in what the holder of a lease on `source` tells with its renewal. The lease tells which source counts: whoever
/// asked for another one and did not take it reads on from this one. A source that has moved, or has everything now,
/// makes its reader's depth another. One that an operator takes out while it loads is left: its reader has its place.
pub(super) fn of_reader(
    tables: &mut Tables,
    now: i64,
    source: &Arc<SeedRow>,
    reader: i64,
    told: &Progress,
    period_ms: i64,
) -> Guidance {
    let guidance = Guidance { renew_after_ms: period_ms, advice: None };
    let row = tables.seed(reader).filter(|row| is_of(row, told) && !row.removed && !row.drained);
    let Some(row) = row else { return Guidance { advice: Some(Advice::RegistrationEnded), ..guidance } };
    let leaves = source.loading.as_ref().is_some_and(|loading| loading.source.is_some())
        && (source.drained || source.removed);
    if row.loading.is_some() {
        let depth = chain::depth_behind(source.loading.as_deref());
        let ahead = source.loading.as_ref().map(|loading| loading.ahead(source.live_leases(now)));
        let falls_behind = tell(tables, now, reader, told, (Some(source.id), ahead, depth, period_ms));
        if falls_behind == Some(false) {
            keeps_up(tables, source.id, reader);
        }
    }
    Guidance { advice: leaves.then_some(Advice::Move), ..guidance }
}

/// Takes in what a seed without a lease tells, if it loads: it reads from storage.
pub(super) fn of_itself(tables: &mut Tables, now: i64, id: i64, told: &Progress, period_ms: i64) {
    if tables.seed(id).is_some_and(|row| row.loading.is_some() && is_of(row, told)) {
        tell(tables, now, id, told, (None, None, 0, period_ms));
        tables.change(id, |row| {
            if let Some(loading) = row.loading.as_mut().filter(|loading| loading.lead.is_none()) {
                loading.forget_origin();
            }
        });
    }
}

/// Whether it is of this memory.
fn is_of(row: &SeedRow, told: &Progress) -> bool {
    row.profile.incarnation.as_ref() == Some(&told.incarnation)
}

/// A reader gets as much as its source does: that sends well. Of who was moved it is known that a link of its is slow.
fn keeps_up(tables: &mut Tables, source: i64, reader: i64) {
    let is_slow =
        tables.seed(reader).and_then(|row| row.loading.as_ref()).is_none_or(|row| row.pace.was_moved);
    let pace = tables.seed(source).and_then(|row| row.loading.as_ref()).map(|loading| loading.pace);
    if !is_slow && pace.is_some_and(|pace| pace.sends == Sending::Doubtful) {
        tables.change(source, |row| {
            if let Some(loading) = &mut row.loading {
                loading.pace.sends = Sending::Well;
            }
        });
    }
}

/// Gives whether it falls behind its source, if that can be said.
fn tell(
    tables: &mut Tables,
    now: i64,
    id: i64,
    told: &Progress,
    (source, ahead, depth, period_ms): (Option<i64>, Option<Ahead>, u32, i64),
) -> Option<bool> {
    let falls_behind = tables.change(id, |row| {
        row.heard_ms = row.heard_ms.max(now);
        let loading = row.loading.as_mut()?;
        (loading.depth, loading.period_ms) = (depth, period_ms);
        // Who reads from a seed has no need of storage.
        loading.lead = loading.lead.filter(|_| source.is_none());
        loading.tell(now, told, source, ahead)
    });
    falls_behind.flatten()
}
