//! What was: listed, and forgotten.

use rfork_protocol::SeedIdentity;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::super::history::{
    End, EndedLease, Event, EventFilter, EventKind, Forgotten, STEP_ROWS, before, place,
};
use super::super::list::{LeaseFilter, Page, Part};
use super::super::{Report, Rules, StoreError};
use super::load::{hash, identity, seed_key};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Deletes a bounded number of rows that are too old or too many; gives how many.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
) -> Result<Forgotten, StoreError> {
    let since = now.saturating_sub(rules.history.ms);
    let mut deleted = [0, 0];
    for (deleted, (delete, most)) in deleted.iter_mut().zip([
        (
            "DELETE FROM ended_leases WHERE id < (SELECT min(id) FROM ended_leases) + ?3
               AND (ended_ms <= ?1 OR id <= (SELECT max(id) FROM ended_leases) - ?2)",
            rules.history.leases,
        ),
        (
            "DELETE FROM events WHERE id < (SELECT min(id) FROM events) + ?3
               AND (at_ms <= ?1 OR id <= (SELECT max(id) FROM events) - ?2)",
            rules.history.events,
        ),
    ]) {
        *deleted = sqlx::query(delete)
            .bind(since)
            .bind(most)
            .bind(STEP_ROWS)
            .execute(&mut *connection)
            .await?
            .rows_affected();
    }
    let [leases, events] = deleted;
    Ok(Forgotten { leases, events, requests: 0 })
}

pub(super) async fn leases(
    connection: &mut SqliteConnection,
    now: i64,
    filter: &LeaseFilter,
    part: &Part,
) -> Result<Page<EndedLease>, StoreError> {
    let seed = filter.seed.as_ref();
    let rows = sqlx::query(
        "SELECT * FROM ended_leases
         WHERE id < ?1 AND (?2 IS NULL OR seed_key = ?2)
           AND (?3 IS NULL OR (host = ?3 AND port = ?4 AND rank = ?5))
         ORDER BY id DESC LIMIT ?6 + 0",
    )
    .bind(before(part))
    .bind(filter.key.as_ref().map(rfork_protocol::SeedKey::as_bytes))
    .bind(seed.map(SeedIdentity::host))
    .bind(seed.map(SeedIdentity::port))
    .bind(seed.map(SeedIdentity::rank))
    .bind(part.rows())
    .fetch_all(connection)
    .await?;
    let entries = rows.iter().map(|row| lease(row, now)).collect::<Result<Vec<_>, _>>()?;
    Ok(Page::of(entries, part.limit, |lease: &EndedLease| place(lease.number)))
}

fn lease(row: &SqliteRow, now: i64) -> Result<EndedLease, StoreError> {
    Ok(EndedLease {
        number: row.try_get("id")?,
        lease: hash(row.try_get("lease_hash")?)?,
        identity: identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?,
        key: seed_key(row.try_get("seed_key")?)?,
        requester: row.try_get("requester")?,
        reader: row.try_get::<Option<String>, _>("reader")?.and_then(|reader| reader.parse().ok()),
        granted_age_ms: now.saturating_sub(row.try_get("granted_ms")?).max(0),
        ended_age_ms: now.saturating_sub(row.try_get("ended_ms")?).max(0),
        end: End::of_number(row.try_get("end_kind")?),
        report: Report::of_number(row.try_get("outcome")?),
        reason: row.try_get("reason")?,
        bytes: row.try_get::<Option<i64>, _>("bytes")?.map(i64::unsigned_abs),
        duration_ms: row.try_get::<Option<i64>, _>("duration_ms")?.map(i64::unsigned_abs),
    })
}

pub(super) async fn events(
    connection: &mut SqliteConnection,
    now: i64,
    filter: &EventFilter,
    part: &Part,
) -> Result<Page<Event>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM events
         WHERE id < ?1 AND (?2 IS NULL OR seed_key = ?2) AND (?3 IS NULL OR kind = ?3) AND at_ms >= ?4
         ORDER BY id DESC LIMIT ?5 + 0",
    )
    .bind(before(part))
    .bind(filter.key.as_ref().map(rfork_protocol::SeedKey::as_bytes))
    .bind(filter.kind.map(|kind| kind as u8))
    .bind(filter.within_ms.map_or(i64::MIN, |within_ms| now.saturating_sub(within_ms)))
    .bind(part.rows())
    .fetch_all(connection)
    .await?;
    let entries = rows.iter().map(|row| event(row, now)).collect::<Result<Vec<_>, _>>()?;
    Ok(Page::of(entries, part.limit, |event: &Event| place(event.number)))
}

fn event(row: &SqliteRow, now: i64) -> Result<Event, StoreError> {
    let host: Option<String> = row.try_get("host")?;
    let identity = match host {
        Some(host) => Some(identity(host, row.try_get("port")?, row.try_get("rank")?)?),
        None => None,
    };
    Ok(Event {
        number: row.try_get("id")?,
        kind: EventKind::of_number(row.try_get("kind")?),
        age_ms: now.saturating_sub(row.try_get("at_ms")?).max(0),
        key: seed_key(row.try_get("seed_key")?)?,
        identity,
        by: row.try_get("done_by")?,
        detail: row.try_get("detail")?,
    })
}
