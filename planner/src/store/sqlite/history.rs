//! What was: written where it happens, listed, forgotten.

use rfork_protocol::SeedIdentity;
use rfork_protocol::ids::hex;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::super::history::{
    Account, End, EndedLease, Event, EventFilter, EventKind, Forgotten, Happened, STEP_ROWS, before, place,
    signed,
};
use super::super::list::{LeaseFilter, Page, Part};
use super::super::{Report, Rules, StoreError};
use super::json;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// A leased point whose lease ends now, or has ended by itself, which is then what is kept of it: its seed, its
/// number, the end, the outcome, the reason, the bytes and the milliseconds.
#[derive(serde::Serialize)]
pub(super) struct Ending(i64, u32, u8, u8, Option<String>, Option<i64>, Option<i64>);

impl Ending {
    /// Of a point, in this way.
    pub(super) fn by((seed_id, n): (i64, u32), end: End) -> Self {
        Self(seed_id, n, end as u8, Report::Unknown as u8, None, None, None)
    }

    /// Of a point, as it is told.
    pub(super) fn told((seed_id, n): (i64, u32), report: Report, account: Option<&Account>) -> Self {
        let Some(Account { end, reason, bytes, duration_ms }) = account else {
            return Self(seed_id, n, End::Released as u8, report as u8, None, None, None);
        };
        Self(seed_id, n, *end as u8, report as u8, reason.clone(), signed(*bytes), signed(*duration_ms))
    }
}

/// Ends leases: keeps what is told of them, and frees their points.
pub(super) async fn end_leases(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    endings: &[Ending],
) -> Result<(), StoreError> {
    if endings.is_empty() {
        return Ok(());
    }
    keep_endings(connection, now, rules, endings).await?;
    let points: Vec<(i64, u32)> = endings.iter().map(|Ending(seed_id, n, ..)| (*seed_id, *n)).collect();
    sqlx::query(
        "DELETE FROM points WHERE (seed_id, n) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1))",
    )
    .bind(json(&points)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps what is known of the leases of a seed that is about to be deleted, which takes them along.
pub(super) async fn end_leases_of(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    seed_id: i64,
) -> Result<(), StoreError> {
    if !rules.keeps_history() {
        return Ok(());
    }
    let points: Vec<u32> = sqlx::query_scalar("SELECT n FROM points WHERE seed_id = ?1")
        .bind(seed_id)
        .fetch_all(&mut *connection)
        .await?;
    let endings: Vec<_> = points.into_iter().map(|n| Ending::by((seed_id, n), End::Revoked)).collect();
    keep_endings(connection, now, rules, &endings).await
}

async fn keep_endings(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    endings: &[Ending],
) -> Result<(), StoreError> {
    if endings.is_empty() || !rules.keeps_history() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO ended_leases (lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind,
                                   outcome, reason, bytes, duration_ms)
         SELECT e.lease_hash, s.seed_key, s.host, s.port, s.rank, e.requester, e.granted_ms,
                min(e.busy_until_ms, ?1), iif(e.busy_until_ms <= ?1, ?3, t.value ->> 2), t.value ->> 3,
                t.value ->> 4, t.value ->> 5, t.value ->> 6
         FROM json_each(?2) t CROSS JOIN points e ON e.seed_id = t.value ->> 0 AND e.n = t.value ->> 1
         CROSS JOIN seeds s ON s.id = e.seed_id",
    )
    .bind(now)
    .bind(json(endings)?)
    .bind(End::Expired as u8)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes what happened.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    happened: &[Happened],
) -> Result<(), StoreError> {
    if happened.is_empty() || !rules.keeps_history() {
        return Ok(());
    }
    let row = |event: &Happened| {
        let seed = event.identity.as_ref();
        let host = seed.map(|seed| seed.host().to_owned());
        let (port, rank) = (seed.map(SeedIdentity::port), seed.map(SeedIdentity::rank));
        (event.kind as u8, hex(event.key.as_bytes()), host, port, rank, event.detail.clone())
    };
    let rows: Vec<_> = happened.iter().map(row).collect();
    sqlx::query(
        "INSERT INTO events (at_ms, kind, seed_key, host, port, rank, detail)
         SELECT ?1, value ->> 0, unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5
         FROM json_each(?2)",
    )
    .bind(now)
    .bind(json(&rows)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// What happened to the seed of a row.
pub(super) fn happened(row: &SqliteRow, kind: EventKind) -> Result<Happened, StoreError> {
    let identity = super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?;
    Ok(Happened::to(&identity, &super::seed_key(row.try_get("seed_key")?)?, kind))
}

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
    let entries = rows.iter().map(|row| lease(row, now)).collect::<Result<_, _>>()?;
    Ok(Page::of(entries, part.limit, |lease: &EndedLease| place(lease.number)))
}

fn lease(row: &SqliteRow, now: i64) -> Result<EndedLease, StoreError> {
    let hash: Vec<u8> = row.try_get("lease_hash")?;
    Ok(EndedLease {
        number: row.try_get("id")?,
        lease: hash.try_into().map_err(|_| StoreError::Broken("a lease hash is not 32 bytes".into()))?,
        identity: super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?,
        key: super::seed_key(row.try_get("seed_key")?)?,
        requester: row.try_get("requester")?,
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
    let entries = rows.iter().map(|row| event(row, now)).collect::<Result<_, _>>()?;
    Ok(Page::of(entries, part.limit, |event: &Event| place(event.number)))
}

fn event(row: &SqliteRow, now: i64) -> Result<Event, StoreError> {
    let host: Option<String> = row.try_get("host")?;
    let identity = match host {
        Some(host) => Some(super::identity(host, row.try_get("port")?, row.try_get("rank")?)?),
        None => None,
    };
    Ok(Event {
        number: row.try_get("id")?,
        kind: EventKind::of_number(row.try_get("kind")?),
        age_ms: now.saturating_sub(row.try_get("at_ms")?).max(0),
        key: super::seed_key(row.try_get("seed_key")?)?,
        identity,
        detail: row.try_get("detail")?,
    })
}
