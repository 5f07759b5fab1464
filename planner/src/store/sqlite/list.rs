//! Lists for people, a page at a time.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::super::list::{
    KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter, Times, lease_place, shown_sql,
    state_sql,
};
use super::super::{Rules, StoreError};
use super::seeds::profile;
use crate::domain::seed::State;

/// Seeds of all keys in the order of their identities; of one key by its index, since they are few.
const ALL: &str = "seeds s JOIN heartbeats h ON h.seed_id = s.id";
const OF_KEY: &str = "heartbeats h INDEXED BY heartbeats_by_key CROSS JOIN seeds s ON s.id = h.seed_id";

pub(super) async fn seeds(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    filter: &SeedFilter,
    part: &Part,
) -> Result<Page<SeedEntry>, StoreError> {
    let (from, of_key) = match filter.key {
        Some(_) => (OF_KEY, "h.seed_key = ?3"),
        None => (ALL, "?3 IS NULL"),
    };
    let (state, shown) = (state_sql("?1", "?2"), shown_sql("?1", "?2"));
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT s.*, h.last_ms, {state} AS state,
                (SELECT count(*) FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > ?1) AS used,
                s.capacity - (SELECT count(*) FROM points p
                    WHERE p.seed_id = s.id AND p.n < s.capacity AND p.busy_until_ms > ?1) AS free,
                CASE WHEN s.capped_host IS NOT NULL THEN s.host_capacity - (
                    SELECT count(*) FROM seeds o JOIN points q ON q.seed_id = o.id
                    WHERE o.capped_host = s.capped_host AND q.busy_until_ms > ?1) END AS host_room
         FROM {from}
         WHERE {of_key} AND (?4 IS NULL OR s.model_url = ?4) AND (?5 IS NULL OR s.host = ?5)
           AND (?6 IS NULL OR {state} = ?6) AND (?7 IS NULL OR s.identity > ?7) AND {shown}
         ORDER BY s.identity LIMIT ?8 + 0",
    )))
    .bind(now)
    .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
    .bind(filter.key.as_ref().map(rfork_protocol::SeedKey::as_bytes))
    .bind(&filter.model_url)
    .bind(&filter.host)
    .bind(filter.state.map(|state| state as u8))
    .bind(part.after_text())
    .bind(part.rows())
    .fetch_all(connection)
    .await?;
    let entries = rows.iter().map(|row| seed(row, now)).collect::<Result<_, _>>()?;
    Ok(Page::of(entries, part.limit, |seed: &SeedEntry| seed.identity.to_string().into_bytes()))
}

fn seed(row: &SqliteRow, now: i64) -> Result<SeedEntry, StoreError> {
    let state: u8 = row.try_get("state")?;
    let entry = SeedEntry {
        identity: super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?,
        key: super::seed_key(row.try_get("seed_key")?)?,
        state: State::of_number(state).ok_or_else(|| StoreError::Broken(format!("state {state}")))?,
        capacity: row.try_get("capacity")?,
        used: row.try_get("used")?,
        free: row.try_get("free")?,
        quiet_ms: 0,
        unused_ms: None,
        suspect_ms: None,
        failures: row.try_get("failures")?,
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

pub(super) async fn leases(
    connection: &mut SqliteConnection,
    now: i64,
    filter: &LeaseFilter,
    part: &Part,
) -> Result<Page<LeaseEntry>, StoreError> {
    let (from, of_key) = match filter.key {
        Some(_) => (OF_KEY, "h.seed_key = ?2"),
        None => (ALL, "?2 IS NULL"),
    };
    let (after, after_point) = lease_place(part);
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT p.lease_hash, p.n, p.busy_until_ms, p.granted_ms, s.host, s.port, s.rank, s.seed_key
         FROM {from} CROSS JOIN points p ON p.seed_id = s.id
         WHERE {of_key} AND (?3 IS NULL OR s.identity = ?3) AND p.busy_until_ms > ?1
           AND s.identity >= ?4 AND (s.identity > ?4 OR p.n > ?5)
         ORDER BY s.identity, p.n LIMIT ?6 + 0",
    )))
    .bind(now)
    .bind(filter.key.as_ref().map(rfork_protocol::SeedKey::as_bytes))
    .bind(filter.seed.as_ref().map(ToString::to_string))
    .bind(after)
    .bind(after_point)
    .bind(part.rows())
    .fetch_all(connection)
    .await?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let hash: Vec<u8> = row.try_get("lease_hash")?;
        entries.push(LeaseEntry {
            lease: hash.try_into().map_err(|_| StoreError::Broken("a lease hash is not 32 bytes".into()))?,
            point: row.try_get("n")?,
            identity: super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?,
            key: super::seed_key(row.try_get("seed_key")?)?,
            ttl_ms: row.try_get::<i64, _>("busy_until_ms")?.saturating_sub(now),
            age_ms: now.saturating_sub(row.try_get("granted_ms")?).max(0),
        });
    }
    Ok(Page::of(entries, part.limit, LeaseEntry::place))
}

pub(super) async fn keys(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    part: &Part,
) -> Result<Page<KeyEntry>, StoreError> {
    let (state, shown) = (state_sql("?1", "?2"), shown_sql("?1", "?2"));
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT h.seed_key, sum({state} = ?5) AS live, sum({state} = ?6) AS suspect, sum({state} = ?7) AS draining,
                sum({state} = ?8) AS silent, sum(iif({state} = ?5, s.capacity, 0)) AS capacity,
                sum((SELECT count(*) FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > ?1)) AS used,
                (SELECT count(*) FROM requests r WHERE r.seed_key = h.seed_key
                   AND r.waits_until_ms IS NOT NULL AND r.waits_until_ms > ?1) AS waiting
         FROM {OF_KEY} WHERE h.seed_key > ?3 AND {shown} GROUP BY h.seed_key ORDER BY h.seed_key LIMIT ?4 + 0",
    )))
    .bind(now)
    .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
    .bind(part.after.clone().unwrap_or_default())
    .bind(part.rows())
    .bind(State::Live as u8)
    .bind(State::Suspect as u8)
    .bind(State::Draining as u8)
    .bind(State::Silent as u8)
    .fetch_all(connection)
    .await?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let count = |name| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(name)?.unsigned_abs());
        entries.push(KeyEntry {
            key: super::seed_key(row.try_get("seed_key")?)?,
            live: count("live")?,
            suspect: count("suspect")?,
            draining: count("draining")?,
            silent: count("silent")?,
            capacity: count("capacity")?,
            used: count("used")?,
            waiting: count("waiting")?,
        });
    }
    Ok(Page::of(entries, part.limit, |entry: &KeyEntry| entry.key.as_bytes().to_vec()))
}
