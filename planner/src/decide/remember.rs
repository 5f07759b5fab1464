//! What is remembered for people: leases that ended, and what became of seeds. Nothing is decided by it.

use std::sync::Arc;

use super::rows::{EndedRow, EventRow, LeaseRow, SeedRow};
use super::tables::Tables;
use crate::store::history::{Account, End, Happened};
use crate::store::{Report, Rules};

/// Something happened.
pub(super) fn event(tables: &mut Tables, now: i64, rules: &Rules, happened: Happened) {
    if rules.keeps_history() {
        tables.changes.events.push(EventRow { at_ms: now, happened });
    }
}

/// How a lease ended, and what its holder told of that.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) account: Account,
    pub(super) report: Report,
}

impl From<End> for Told {
    fn from(end: End) -> Self {
        Self { account: Account { end, ..Account::default() }, report: Report::Unknown }
    }
}

/// A lease on a seed has ended: now, or by itself before, and then nobody has ended it.
pub(super) fn ended(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    (seed, lease): (&Arc<SeedRow>, &LeaseRow),
    told: Told,
) {
    if !rules.keeps_history() {
        return;
    }
    let Told { account: Account { end, reason, bytes, duration_ms }, report } = told;
    tables.changes.ended.push(EndedRow {
        lease: lease.lease,
        key: seed.key.clone(),
        identity: seed.identity.clone(),
        requester: lease.requester.clone(),
        reader: lease.reader.and_then(|reader| tables.seed(reader)).map(|row| row.identity.clone()),
        granted_ms: lease.granted_ms,
        ended_ms: lease.ends_ms.min(now),
        end: if lease.lives(now) { end } else { End::Expired },
        report,
        reason,
        bytes,
        duration_ms,
    });
}
