//! What was: leases that ended, and what became of seeds.

use rfork_protocol::ids::hash_fingerprint;
use rfork_protocol::v2::{
    Cursor, EndedLease, EndedLeaseList, Event, EventKind, EventList, EventQuery, LeaseEnd, LeaseQuery,
    TransferOutcome,
};

use super::lists::{DEADLINE, part};
use super::refused::Refused;
use super::route::{Call, within};
use crate::store::Report;
use crate::store::history::{self, End, EventFilter};
use crate::store::list::LeaseFilter;

pub(super) async fn leases(call: Call<LeaseQuery>) -> Result<EndedLeaseList, Refused> {
    let LeaseQuery { seed_key: key, seed, limit, after } = call.request;
    let filter = LeaseFilter { key, seed };
    let page = within(DEADLINE, call.api.store.list_ended_leases(&filter, &part(limit, after))).await?;
    let leases = page.entries.into_iter().map(lease).collect();
    Ok(EndedLeaseList { leases, next: page.next.as_deref().map(Cursor::of) })
}

fn lease(lease: history::EndedLease) -> EndedLease {
    EndedLease {
        lease: hash_fingerprint(&lease.lease),
        seed: lease.identity,
        seed_key: lease.key,
        requester: lease.requester,
        reader: lease.reader,
        granted_age_ms: lease.granted_age_ms.unsigned_abs(),
        ended_age_ms: lease.ended_age_ms.unsigned_abs(),
        ended: lease.end.map(|end| match end {
            End::Released => LeaseEnd::Released,
            End::GivenBack => LeaseEnd::GivenBack,
            End::Expired => LeaseEnd::Expired,
            End::Revoked => LeaseEnd::Revoked,
            End::PassedOn => LeaseEnd::PassedOn,
        }),
        outcome: match lease.report {
            Report::Unknown => None,
            Report::Ok => Some(TransferOutcome::Ok),
            Report::Failed => Some(TransferOutcome::Failed),
            Report::Aborted => Some(TransferOutcome::Aborted),
        },
        reason: lease.reason,
        bytes: lease.bytes,
        duration_ms: lease.duration_ms,
    }
}

/// Each kind here and on the wire.
const KINDS: [(history::EventKind, EventKind); 11] = [
    (history::EventKind::Registered, EventKind::Registered),
    (history::EventKind::NewHolding, EventKind::NewHolding),
    (history::EventKind::Removed, EventKind::Removed),
    (history::EventKind::Drained, EventKind::Drained),
    (history::EventKind::Silent, EventKind::Silent),
    (history::EventKind::Suspect, EventKind::Suspect),
    (history::EventKind::Recovered, EventKind::Recovered),
    (history::EventKind::Invalidated, EventKind::Invalidated),
    (history::EventKind::Completed, EventKind::Completed),
    (history::EventKind::Moved, EventKind::Moved),
    (history::EventKind::Leads, EventKind::Leads),
];

pub(super) async fn events(call: Call<EventQuery>) -> Result<EventList, Refused> {
    let EventQuery { seed_key: key, kind, since_ms, limit, after } = call.request;
    let kind = kind.and_then(|kind| KINDS.iter().find(|(_, told)| *told == kind)).map(|(known, _)| *known);
    let within_ms = since_ms.map(|since_ms| i64::try_from(since_ms).unwrap_or(i64::MAX));
    let filter = EventFilter { key, kind, within_ms };
    let page = within(DEADLINE, call.api.store.list_events(&filter, &part(limit, after))).await?;
    let events = page.entries.into_iter().map(event).collect();
    Ok(EventList { events, next: page.next.as_deref().map(Cursor::of) })
}

fn event(event: history::Event) -> Event {
    let kind = event.kind.and_then(|kind| KINDS.iter().find(|(known, _)| *known == kind));
    Event {
        kind: kind.map(|(_, told)| *told),
        age_ms: event.age_ms.unsigned_abs(),
        seed_key: event.key,
        seed: event.identity,
        by: event.by,
        detail: event.detail,
    }
}
