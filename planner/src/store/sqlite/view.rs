//! What is there, for people.

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::super::list::{shown_sql, state_sql};
use super::super::{Counts, LeaseView, MAX_SNAPSHOT, Rules, SeedView, Snapshot, StoreError};

pub(super) async fn snapshot(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
) -> Result<Snapshot, StoreError> {
    let silent_since = now.saturating_sub(rules.heartbeat_ttl_ms);
    let shown = shown_sql("?1", "?2");
    let seed_count: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT count(*) FROM seeds s JOIN heartbeats h ON h.seed_id = s.id WHERE {shown}"
    )))
    .bind(now)
    .bind(silent_since)
    .fetch_one(&mut *connection)
    .await?;
    let lease_count: i64 = sqlx::query_scalar("SELECT count(*) FROM points WHERE busy_until_ms > ?1")
        .bind(now)
        .fetch_one(&mut *connection)
        .await?;
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT s.*, h.last_ms, (s.removed = 1 OR s.drained = 1 OR h.last_ms <= ?2) AS draining,
                (SELECT count(*) FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > ?1) AS used
         FROM seeds s JOIN heartbeats h ON h.seed_id = s.id WHERE {shown} ORDER BY s.identity LIMIT ?3 + 0",
    )))
    .bind(now)
    .bind(silent_since)
    .bind(MAX_SNAPSHOT)
    .fetch_all(&mut *connection)
    .await?;
    let mut seeds = Vec::with_capacity(rows.len());
    for row in rows {
        seeds.push(SeedView {
            identity: row.try_get("identity")?,
            key: super::seed_key(row.try_get("seed_key")?)?,
            capacity: row.try_get("capacity")?,
            used: row.try_get("used")?,
            last_heartbeat_ms: row.try_get("last_ms")?,
            last_used_ms: row.try_get("last_used_ms")?,
            draining: row.try_get("draining")?,
            suspect_until_ms: row.try_get("suspect_until_ms")?,
            failures: row.try_get("failures")?,
            profile: super::seeds::profile(&row)?,
        });
    }
    let rows = sqlx::query(
        "SELECT p.lease_hash, s.identity, s.seed_key FROM points p JOIN seeds s ON s.id = p.seed_id
         WHERE p.busy_until_ms > ?1 ORDER BY s.identity, p.n LIMIT ?2 + 0",
    )
    .bind(now)
    .bind(MAX_SNAPSHOT)
    .fetch_all(connection)
    .await?;
    let mut leases = Vec::with_capacity(rows.len());
    for row in rows {
        let hash: Vec<u8> = row.try_get("lease_hash")?;
        leases.push(LeaseView {
            lease: hash.try_into().map_err(|_| StoreError::Broken("a lease hash is not 32 bytes".into()))?,
            seed_identity: row.try_get("identity")?,
            seed_key: super::seed_key(row.try_get("seed_key")?)?,
        });
    }
    Ok(Snapshot {
        ahead_ms: 0,
        seed_count: seed_count.unsigned_abs(),
        lease_count: lease_count.unsigned_abs(),
        seeds,
        leases,
    })
}

pub(super) async fn counts(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
) -> Result<Counts, StoreError> {
    let (state, shown) = (state_sql("?1", "?2"), shown_sql("?1", "?2"));
    let rows = sqlx::query_as(AssertSqlSafe(format!(
        "WITH used AS (SELECT seed_id, count(*) AS n FROM points WHERE busy_until_ms > ?1 GROUP BY seed_id)
         SELECT {state} AS state, count(*), sum(s.capacity), coalesce(sum(u.n), 0)
         FROM seeds s JOIN heartbeats h ON h.seed_id = s.id LEFT JOIN used u ON u.seed_id = s.id
         WHERE {shown} GROUP BY state",
    )))
    .bind(now)
    .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
    .fetch_all(connection)
    .await?;
    Counts::from_rows(rows)
}
