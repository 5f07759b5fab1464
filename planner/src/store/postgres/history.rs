//! What was: written by the transaction in which it happens, listed, forgotten.
//!
//! Rows are only added, and deleted from the beginning by whichever planner sweeps; nobody waits for one.

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::history::{
    Account, End, EndedLease, Event, EventFilter, EventKind, Forgotten, Happened, STEP_ROWS, before, place,
    signed,
};
use super::super::list::{LeaseFilter, Page, Part};
use super::super::{LeaseHash, Report, Rules};
use super::batch::{Point, Seed};
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::{Database, identity, lease_hash, seed_key};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// What a transaction adds to history.
pub(super) struct Log {
    keeps: bool,
    pub(super) ended: Vec<Ending>,
    happened: Vec<Happened>,
}

/// A lease that ends.
pub(super) struct Ending {
    lease: LeaseHash,
    key: SeedKey,
    identity: SeedIdentity,
    requester: Option<String>,
    granted_ms: i64,
    ended_ms: i64,
    end: End,
    report: Report,
    account: Option<Account>,
}

impl Log {
    pub(super) fn new(rules: &Rules) -> Self {
        Self { keeps: rules.keeps_history(), ended: Vec::new(), happened: Vec::new() }
    }

    /// Something happened.
    pub(super) fn note(&mut self, happened: Happened) {
        if self.keeps {
            self.happened.push(happened);
        }
    }

    /// A lease is released, as it is told.
    pub(super) fn release(
        &mut self,
        now: i64,
        (identity, key): (&SeedIdentity, &SeedKey),
        point: Point,
        (report, account): (Report, Option<&Account>),
    ) {
        let end = account.map(|account| account.end).unwrap_or_default();
        self.end(now, (identity, key), point, end);
        if let Some(ended) = self.ended.last_mut() {
            (ended.report, ended.account) = (report, account.cloned());
        }
    }

    /// A seed goes, and takes its points along.
    pub(super) fn take_along(&mut self, now: i64, identity: &SeedIdentity, seed: Seed) {
        for point in seed.points {
            self.end(now, (identity, &seed.key), point, End::Revoked);
        }
    }

    /// Of a lease that has ended by itself it is kept that it did.
    fn end(&mut self, now: i64, (identity, key): (&SeedIdentity, &SeedKey), point: Point, end: End) {
        if !self.keeps {
            return;
        }
        self.ended.push(Ending {
            lease: point.lease,
            key: key.clone(),
            identity: identity.clone(),
            requester: point.requester,
            granted_ms: point.granted_ms,
            ended_ms: point.busy_until_ms.min(now),
            end: if point.busy_until_ms <= now { End::Expired } else { end },
            report: Report::Unknown,
            account: None,
        });
    }

    /// Writes what happened; the leases that ended are written where their points go.
    pub(super) async fn write(&self, connection: &mut Connection, now: i64) -> Result<(), Stopped> {
        write(connection, now, &self.happened).await
    }
}

/// Writes what happened.
pub(super) async fn write(
    connection: &mut Connection,
    now: i64,
    happened: &[Happened],
) -> Result<(), Stopped> {
    if happened.is_empty() {
        return Ok(());
    }
    let seeds: Vec<Option<&SeedIdentity>> = happened.iter().map(|event| event.identity.as_ref()).collect();
    sqlx::query(
        "INSERT INTO events (at_ms, kind, seed_key, host, port, rank, detail)
         SELECT $1, t.* FROM unnest($2::smallint[], $3::bytea[], $4::text[], $5::int[], $6::bigint[], $7::text[])
             AS t (kind, seed_key, host, port, rank, detail)",
    )
    .bind(now)
    .bind(happened.iter().map(|event| event.kind as i16).collect::<Vec<_>>())
    .bind(happened.iter().map(|event| event.key.as_bytes()).collect::<Vec<_>>())
    .bind(seeds.iter().map(|seed| seed.map(SeedIdentity::host)).collect::<Vec<_>>())
    .bind(seeds.iter().map(|seed| seed.map(|seed| i32::from(seed.port()))).collect::<Vec<_>>())
    .bind(seeds.iter().map(|seed| seed.map(|seed| i64::from(seed.rank()))).collect::<Vec<_>>())
    .bind(happened.iter().map(|event| event.detail.as_deref()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Frees these points, and keeps what is told of their leases; some of those went with their seeds. One statement,
/// because most batches release something.
pub(super) async fn end_leases(
    connection: &mut Connection,
    (seed_ids, numbers): (Vec<i64>, Vec<i32>),
    ended: &[Ending],
) -> Result<(), Stopped> {
    if seed_ids.is_empty() && ended.is_empty() {
        return Ok(());
    }
    let accounts: Vec<Option<&Account>> = ended.iter().map(|ended| ended.account.as_ref()).collect();
    sqlx::query(
        "WITH freed AS (
             DELETE FROM points p USING unnest($1::bigint[], $2::int[]) AS t (seed_id, n)
             WHERE p.seed_id = t.seed_id AND p.n = t.n)
         INSERT INTO ended_leases (lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind,
                                   outcome, reason, bytes, duration_ms)
         SELECT * FROM unnest($3::bytea[], $4::bytea[], $5::text[], $6::int[], $7::bigint[], $8::text[],
                              $9::bigint[], $10::bigint[], $11::smallint[], $12::smallint[], $13::text[],
                              $14::bigint[], $15::bigint[])",
    )
    .bind(seed_ids)
    .bind(numbers)
    .bind(ended.iter().map(|ended| &ended.lease[..]).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.key.as_bytes()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.identity.host()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| i32::from(ended.identity.port())).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| i64::from(ended.identity.rank())).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.requester.as_deref()).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.granted_ms).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.ended_ms).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.end as i16).collect::<Vec<_>>())
    .bind(ended.iter().map(|ended| ended.report as i16).collect::<Vec<_>>())
    .bind(accounts.iter().map(|account| account.and_then(|one| one.reason.as_deref())).collect::<Vec<_>>())
    .bind(accounts.iter().map(|account| signed(account.and_then(|one| one.bytes))).collect::<Vec<_>>())
    .bind(accounts.iter().map(|account| signed(account.and_then(|one| one.duration_ms))).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// A statement that frees points `p`, whose seeds stay, by `$freed`, keeps what is known of their leases if `$keeps`,
/// and gives the seeds. A lease that has not ended by itself at `$now` is given back (1), another one expired (2).
macro_rules! freeing {
    ($freed:literal, $now:literal, $keeps:literal) => {
        concat!(
            "WITH freed AS (",
            $freed,
            " RETURNING p.seed_id, p.lease_hash, p.requester, p.granted_ms, p.busy_until_ms),
              kept AS (
                  INSERT INTO ended_leases (lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms,
                                            end_kind, outcome)
                  SELECT f.lease_hash, s.seed_key, s.host, s.port, s.rank, f.requester, f.granted_ms,
                         least(f.busy_until_ms, ",
            $now,
            "), CASE WHEN f.busy_until_ms <= ",
            $now,
            " THEN 2 ELSE 1 END, 0
                  FROM freed f JOIN seeds s ON s.id = f.seed_id WHERE ",
            $keeps,
            ") SELECT seed_id FROM freed"
        )
    };
}
pub(super) use freeing;

/// Deletes a bounded number of rows that are too old or too many; gives how many. What another planner deletes at
/// the moment is left to it.
pub(super) struct Forget<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Forget<'_> {
    type Done = Forgotten;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Forgotten, Stopped> {
        let keep = self.0.rules.history;
        let since = self.0.now(connection).await?.saturating_sub(keep.ms);
        let leases = sqlx::query(
            "DELETE FROM ended_leases WHERE id IN (
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
            "DELETE FROM events WHERE id IN (
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
            "SELECT id, lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind, outcome, reason,
                    bytes, duration_ms
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
        let entries = rows.iter().map(|row| lease(row, now)).collect::<Result<_, _>>()?;
        Ok(Page::of(entries, part.limit, |lease: &EndedLease| place(lease.number)))
    }
}

fn lease(row: &PgRow, now: i64) -> Result<EndedLease, Stopped> {
    Ok(EndedLease {
        number: row.try_get("id")?,
        lease: lease_hash(row.try_get("lease_hash")?)?,
        identity: identity(row)?,
        key: seed_key(row.try_get("seed_key")?)?,
        requester: row.try_get("requester")?,
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
            "SELECT id, at_ms, kind, seed_key, host, port, rank, detail FROM events
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
        let entries = rows.iter().map(|row| event(row, now)).collect::<Result<_, _>>()?;
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
        detail: row.try_get("detail")?,
    })
}
