//! Lists for people, a page at a time. The statements of a list see one moment.

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::super::list::{
    KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter, Times, lease_place, shown_sql,
    state_sql,
};
use super::seeds::profile;
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::{Database, identity, key_hash, lease_hash, seed_key, small};
use crate::domain::seed::State;

/// The work of [`super::super::Store::list_seeds`].
pub(super) struct Seeds<'a> {
    pub(super) store: &'a Database,
    pub(super) filter: &'a SeedFilter,
    pub(super) part: &'a Part,
}

#[async_trait]
impl Work for Seeds<'_> {
    type Done = Page<SeedEntry>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Page<SeedEntry>, Stopped> {
        let Self { store, filter, part } = self;
        let now = store.now_to_read(connection).await?;
        let (columns, state, shown) = (of_seed!(), state_sql("$1", "$2"), shown_sql("$1", "$2"));
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {columns}, h.last_ms, {state} AS state,
                    (SELECT count(*) FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > $1) AS used,
                    s.capacity - (SELECT count(*) FROM points p
                        WHERE p.seed_id = s.id AND p.n < s.capacity AND p.busy_until_ms > $1) AS free,
                    CASE WHEN s.capped_host IS NOT NULL THEN s.host_capacity - (
                        SELECT count(*) FROM seeds o JOIN points q ON q.seed_id = o.id
                        WHERE o.capped_host = s.capped_host AND q.busy_until_ms > $1) END AS host_room
             FROM seeds s JOIN heartbeats h ON h.seed_id = s.id
             WHERE ($3::bytea IS NULL OR h.key_hash = $3) AND ($4::text IS NULL OR s.model_url = $4)
               AND ($5::text IS NULL OR s.host = $5) AND ($6::int IS NULL OR {state} = $6)
               AND ($7::text IS NULL OR s.identity > $7) AND {shown}
             ORDER BY s.identity LIMIT $8",
        )))
        .bind(now)
        .bind(now.saturating_sub(store.rules.heartbeat_ttl_ms))
        .bind(filter.key.as_ref().map(|key| key_hash(key).to_vec()))
        .bind(&filter.model_url)
        .bind(&filter.host)
        .bind(filter.state.map(|state| i32::from(state as u8)))
        .bind(part.after_text())
        .bind(part.rows())
        .fetch_all(connection)
        .await?;
        let entries = rows.iter().map(|row| seed(row, now)).collect::<Result<_, _>>()?;
        Ok(Page::of(entries, part.limit, |seed: &SeedEntry| seed.identity.to_string().into_bytes()))
    }
}

fn seed(row: &PgRow, now: i64) -> Result<SeedEntry, Stopped> {
    let state: u8 = small(row.try_get::<i32, _>("state")?.into())?;
    let entry = SeedEntry {
        identity: identity(row)?,
        key: seed_key(row.try_get("seed_key")?)?,
        state: State::of_number(state).ok_or_else(|| Stopped::Broken(format!("state {state}")))?,
        capacity: small(row.try_get::<i32, _>("capacity")?.into())?,
        used: small(row.try_get("used")?)?,
        free: small(row.try_get("free")?)?,
        quiet_ms: 0,
        unused_ms: None,
        suspect_ms: None,
        failures: small(row.try_get::<i32, _>("failures")?.into())?,
        profile: profile(row)?,
        host_room: row
            .try_get::<Option<String>, _>("capped_host")?
            .zip(row.try_get::<Option<i64>, _>("host_room")?)
            .map(|(host, room)| (host, u32::try_from(room).unwrap_or(0))),
    };
    let times = Times {
        heard_ms: row.try_get("last_ms")?,
        used_ms: row.try_get("last_used_ms")?,
        suspect_until_ms: row.try_get("suspect_until_ms")?,
    };
    Ok(entry.aged(now, &times))
}

/// The work of [`super::super::Store::list_leases`].
pub(super) struct Leases<'a> {
    pub(super) store: &'a Database,
    pub(super) filter: &'a LeaseFilter,
    pub(super) part: &'a Part,
}

#[async_trait]
impl Work for Leases<'_> {
    type Done = Page<LeaseEntry>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Page<LeaseEntry>, Stopped> {
        let Self { store, filter, part } = self;
        let now = store.now_to_read(connection).await?;
        let (after, after_point) = lease_place(part);
        let rows = sqlx::query(
            "SELECT p.lease_hash, p.n, p.busy_until_ms, p.granted_ms, s.host, s.port, s.rank, s.seed_key
             FROM seeds s JOIN points p ON p.seed_id = s.id
             WHERE ($2::bytea IS NULL OR s.key_hash = $2) AND ($3::text IS NULL OR s.identity = $3)
               AND p.busy_until_ms > $1 AND s.identity >= $4 AND (s.identity > $4 OR p.n > $5)
             ORDER BY s.identity, p.n LIMIT $6",
        )
        .bind(now)
        .bind(filter.key.as_ref().map(|key| key_hash(key).to_vec()))
        .bind(filter.seed.as_ref().map(ToString::to_string))
        .bind(after)
        .bind(after_point)
        .bind(part.rows())
        .fetch_all(connection)
        .await?;
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            entries.push(LeaseEntry {
                lease: lease_hash(row.try_get("lease_hash")?)?,
                point: small(row.try_get::<i32, _>("n")?.into())?,
                identity: identity(row)?,
                key: seed_key(row.try_get("seed_key")?)?,
                ttl_ms: row.try_get::<i64, _>("busy_until_ms")?.saturating_sub(now),
                age_ms: now.saturating_sub(row.try_get("granted_ms")?).max(0),
            });
        }
        Ok(Page::of(entries, part.limit, LeaseEntry::place))
    }
}

/// The work of [`super::super::Store::list_keys`]. In the order of the keys' hashes, by which the index has them.
pub(super) struct Keys<'a> {
    pub(super) store: &'a Database,
    pub(super) part: &'a Part,
}

#[async_trait]
impl Work for Keys<'_> {
    type Done = Page<KeyEntry>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Page<KeyEntry>, Stopped> {
        let Self { store, part } = self;
        let now = store.now_to_read(connection).await?;
        let (state, shown) = (state_sql("$1", "$2"), shown_sql("$1", "$2"));
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT (array_agg(s.seed_key))[1] AS seed_key, count(*) FILTER (WHERE {state} = $5) AS live,
                    count(*) FILTER (WHERE {state} = $6) AS suspect,
                    count(*) FILTER (WHERE {state} = $7) AS draining,
                    count(*) FILTER (WHERE {state} = $8) AS silent,
                    coalesce(sum(s.capacity) FILTER (WHERE {state} = $5), 0)::bigint AS capacity,
                    sum((SELECT count(*) FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > $1))::bigint
                        AS used,
                    (SELECT count(*) FROM requests r WHERE r.key_hash = h.key_hash
                       AND r.waits_until_ms IS NOT NULL AND r.waits_until_ms > $1) AS waiting
             FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
             WHERE h.key_hash > $3 AND {shown} GROUP BY h.key_hash ORDER BY h.key_hash LIMIT $4",
        )))
        .bind(now)
        .bind(now.saturating_sub(store.rules.heartbeat_ttl_ms))
        .bind(part.after.clone().unwrap_or_default())
        .bind(part.rows())
        .bind(i32::from(State::Live as u8))
        .bind(i32::from(State::Suspect as u8))
        .bind(i32::from(State::Draining as u8))
        .bind(i32::from(State::Silent as u8))
        .fetch_all(connection)
        .await?;
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            let count = |name| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(name)?.unsigned_abs());
            entries.push(KeyEntry {
                key: seed_key(row.try_get("seed_key")?)?,
                live: count("live")?,
                suspect: count("suspect")?,
                draining: count("draining")?,
                silent: count("silent")?,
                capacity: count("capacity")?,
                used: count("used")?,
                waiting: count("waiting")?,
            });
        }
        Ok(Page::of(entries, part.limit, |entry: &KeyEntry| key_hash(&entry.key).to_vec()))
    }
}
