//! What was: written by the transaction in which it happens, listed, forgotten.
//!
//! Rows are only added, and deleted from the beginning by whichever planner sweeps; nobody waits for one.

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::Report;
use super::super::history::{
    End, EndedLease, Event, EventFilter, EventKind, Forgotten, STEP_ROWS, before, place, signed,
};
use super::super::list::{LeaseFilter, Page, Part};
use super::Database;
use super::rows::{hash, identity, seed_key};
use super::session::Connection;
use super::transaction::{Stopped, Work};
use crate::decide::rows::{EndedRow, EventRow};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Writes leases that ended.
pub(super) async fn write_leases(connection: &mut Connection, ended: &[EndedRow]) -> Result<(), Stopped> {
    if ended.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* write ended leases */
         INSERT INTO ended_leases (lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind,
                                   outcome, reason, bytes, duration_ms, reader)
         SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::int[], $5::bigint[], $6::text[], $7::bigint[],
                              $8::bigint[], $9::smallint[], $10::smallint[], $11::text[], $12::bigint[], $13::bigint[],
                              $14::text[])",
    )
    .bind(ended.iter().map(|ended| ended.lease.to_vec()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.key.as_bytes().to_vec()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.identity.host().to_owned()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| i32::from(ended.identity.port())).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| i64::from(ended.identity.rank())).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.requester.as_deref().map(str::to_owned)).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.granted_ms).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.ended_ms).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.end as i16).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.report as i16).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.reason.clone()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| signed(ended.bytes)).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| signed(ended.duration_ms)).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.reader.as_ref().map(SeedIdentity::to_string)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes what happened.
pub(super) async fn write_events(connection: &mut Connection, events: &[EventRow]) -> Result<(), Stopped> {
    if events.is_empty() {
        return Ok(());
    }
    let seeds = || events.iter().map(|event| event.happened.identity.as_ref());
    sqlx::query(
        "/* write events */
         INSERT INTO events (at_ms, kind, seed_key, host, port, rank, done_by, detail)
         SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::bytea[], $4::text[], $5::int[], $6::bigint[], $7::text[],
             $8::text[])",
    )
    .bind(events.iter().map(|event| event.at_ms).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.happened.kind as i16).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.happened.key.as_bytes().to_vec()).collect::<Vec<_>>())
    .bind(seeds().map(|seed| seed.map(|seed| seed.host().to_owned())).collect::<Vec<_>>())
    .bind(seeds().map(|seed| seed.map(|seed| i32::from(seed.port()))).collect::<Vec<_>>())
    .bind(seeds().map(|seed| seed.map(|seed| i64::from(seed.rank()))).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.happened.by.as_deref().map(str::to_owned)).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.happened.detail.clone()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a bounded number of rows that are too old or too many; gives how many. What another planner deletes at
/// the moment is left to it.
pub(super) struct Forget<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Forget<'_> {
    type Done = Forgotten;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Forgotten, Stopped> {
        let keep = self.0.rules.history;
        let since = self.0.time.now(connection).await?.saturating_sub(keep.ms);
        let leases = sqlx::query(
            "/* forget ended leases */
             DELETE FROM ended_leases WHERE id IN (
                 SELECT id FROM ended_leases
                 WHERE id < (SELECT min(id) FROM ended_leases) + $3
                   AND (ended_ms <= $1 OR id <= (SELECT max(id) FROM ended_leases) - $2)
                 ORDER BY id FOR UPDATE SKIP LOCKED)",
        )
        .bind(since)
        .bind(keep.leases)
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        let events = sqlx::query(
            "/* forget events */
             DELETE FROM events WHERE id IN (
                 SELECT id FROM events
                 WHERE id < (SELECT min(id) FROM events) + $3
                   AND (at_ms <= $1 OR id <= (SELECT max(id) FROM events) - $2)
                 ORDER BY id FOR UPDATE SKIP LOCKED)",
        )
        .bind(since)
        .bind(keep.events)
        .bind(STEP_ROWS)
        .execute(connection)
        .await?
        .rows_affected();
        Ok(Forgotten { leases, events, requests: 0 })
    }
}

/// The work of [`super::super::Store::list_ended_leases`].
pub(super) struct Leases<'a> {
    pub(super) store: &'a Database,
    pub(super) filter: &'a LeaseFilter,
    pub(super) part: &'a Part,
}

#[async_trait]
impl Work for Leases<'_> {
    type Done = Page<EndedLease>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Page<EndedLease>, Stopped> {
        let Self { store, filter, part } = self;
        let now = store.now_to_read(connection).await?;
        let seed = filter.seed.as_ref();
        let rows = sqlx::query(
            "/* list ended leases */
             SELECT id, lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind, outcome, reason,
                    bytes, duration_ms, reader
             FROM ended_leases
             WHERE id < $1 AND ($2::bytea IS NULL OR seed_key = $2)
               AND ($3::text IS NULL OR (host = $3 AND port = $4 AND rank = $5))
             ORDER BY id DESC LIMIT $6",
        )
        .bind(before(part))
        .bind(filter.key.as_ref().map(SeedKey::as_bytes))
        .bind(seed.map(SeedIdentity::host))
        .bind(seed.map(|seed| i32::from(seed.port())))
        .bind(seed.map(|seed| i64::from(seed.rank())))
        .bind(part.rows())
        .fetch_all(connection)
        .await?;
        let entries = rows.iter().map(|row| lease(row, now)).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::of(entries, part.limit, |lease: &EndedLease| place(lease.number)))
    }
}

fn lease(row: &PgRow, now: i64) -> Result<EndedLease, Stopped> {
    Ok(EndedLease {
        number: row.try_get("id")?,
        lease: hash(row.try_get("lease_hash")?)?,
        identity: identity(row)?,
        key: seed_key(row.try_get("seed_key")?)?,
        requester: row.try_get("requester")?,
        reader: row.try_get::<Option<String>, _>("reader")?.and_then(|reader| reader.parse().ok()),
        granted_age_ms: now.saturating_sub(row.try_get("granted_ms")?).max(0),
        ended_age_ms: now.saturating_sub(row.try_get("ended_ms")?).max(0),
        end: End::of_number(row.try_get::<i16, _>("end_kind")?.into()),
        report: Report::of_number(row.try_get::<i16, _>("outcome")?.into()),
        reason: row.try_get("reason")?,
        bytes: row.try_get::<Option<i64>, _>("bytes")?.map(i64::unsigned_abs),
        duration_ms: row.try_get::<Option<i64>, _>("duration_ms")?.map(i64::unsigned_abs),
    })
}

/// The work of [`super::super::Store::list_events`].
pub(super) struct Events<'a> {
    pub(super) store: &'a Database,
    pub(super) filter: &'a EventFilter,
    pub(super) part: &'a Part,
}

#[async_trait]
impl Work for Events<'_> {
    type Done = Page<Event>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Page<Event>, Stopped> {
        let Self { store, filter, part } = self;
        let now = store.now_to_read(connection).await?;
        let rows = sqlx::query(
            "/* list events */
             SELECT id, at_ms, kind, seed_key, host, port, rank, done_by, detail FROM events
             WHERE id < $1 AND ($2::bytea IS NULL OR seed_key = $2) AND ($3::smallint IS NULL OR kind = $3)
               AND at_ms >= $4
             ORDER BY id DESC LIMIT $5",
        )
        .bind(before(part))
        .bind(filter.key.as_ref().map(SeedKey::as_bytes))
        .bind(filter.kind.map(|kind| kind as i16))
        .bind(filter.within_ms.map_or(i64::MIN, |within_ms| now.saturating_sub(within_ms)))
        .bind(part.rows())
        .fetch_all(connection)
        .await?;
        let entries = rows.iter().map(|row| event(row, now)).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::of(entries, part.limit, |event: &Event| place(event.number)))
    }
}

fn event(row: &PgRow, now: i64) -> Result<Event, Stopped> {
    let about_a_seed = row.try_get::<Option<&str>, _>("host")?.is_some();
    Ok(Event {
        number: row.try_get("id")?,
        kind: EventKind::of_number(row.try_get::<i16, _>("kind")?.into()),
        age_ms: now.saturating_sub(row.try_get("at_ms")?).max(0),
        key: seed_key(row.try_get("seed_key")?)?,
        identity: if about_a_seed { Some(identity(row)?) } else { None },
        by: row.try_get("done_by")?,
        detail: row.try_get("detail")?,
    })
}
