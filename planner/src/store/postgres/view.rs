//! What is there, for people; and whether anything can be done with it.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::super::list::{shown_sql, state_sql};
use super::super::schema::Schema;
use super::super::{LeaseView, MAX_SNAPSHOT, SeedView, Snapshot};
use super::connect::schema;
use super::transaction::{Stopped, Work};
use super::{Database, lease_hash, seed_key, small};

/// The work of [`super::super::Store::snapshot`]; its statements see one moment.
pub(super) struct View<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for View<'_> {
    type Done = Snapshot;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Snapshot, Stopped> {
        let now = self.0.now(connection).await?;
        let silent_since = now.saturating_sub(self.0.rules.heartbeat_ttl_ms);
        let (columns, shown) = (of_seed!(), shown_sql("$1", "$2"));
        let (seed_count, lease_count): (i64, i64) = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT (SELECT count(*) FROM seeds s JOIN heartbeats h ON h.seed_id = s.id WHERE {shown}),
                    (SELECT count(*) FROM points WHERE busy_until_ms > $1)",
        )))
        .bind(now)
        .bind(silent_since)
        .fetch_one(&mut *connection)
        .await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {columns}, h.last_ms, (s.removed OR s.drained OR h.last_ms <= $2) AS draining,
                    (SELECT count(*) FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > $1) AS used
             FROM seeds s JOIN heartbeats h ON h.seed_id = s.id WHERE {shown} ORDER BY s.identity LIMIT $3",
        )))
        .bind(now)
        .bind(silent_since)
        .bind(i64::from(MAX_SNAPSHOT))
        .fetch_all(&mut *connection)
        .await?;
        let mut seeds = Vec::with_capacity(rows.len());
        for row in rows {
            seeds.push(SeedView {
                identity: row.try_get("identity")?,
                key: seed_key(row.try_get("seed_key")?)?,
                capacity: small(row.try_get::<i32, _>("capacity")?.into())?,
                used: small(row.try_get("used")?)?,
                last_heartbeat_ms: row.try_get("last_ms")?,
                last_used_ms: row.try_get("last_used_ms")?,
                draining: row.try_get("draining")?,
                suspect_until_ms: row.try_get("suspect_until_ms")?,
                failures: small(row.try_get::<i32, _>("failures")?.into())?,
                profile: super::seeds::profile(&row)?,
            });
        }
        let rows = sqlx::query(
            "SELECT p.lease_hash, s.identity, s.seed_key FROM points p JOIN seeds s ON s.id = p.seed_id
             WHERE p.busy_until_ms > $1 ORDER BY s.identity, p.n LIMIT $2",
        )
        .bind(now)
        .bind(i64::from(MAX_SNAPSHOT))
        .fetch_all(connection)
        .await?;
        let mut leases = Vec::with_capacity(rows.len());
        for row in rows {
            leases.push(LeaseView {
                lease: lease_hash(row.try_get("lease_hash")?)?,
                seed_identity: row.try_get("identity")?,
                seed_key: seed_key(row.try_get("seed_key")?)?,
            });
        }
        Ok(Snapshot {
            seed_count: seed_count.unsigned_abs(),
            lease_count: lease_count.unsigned_abs(),
            seeds,
            leases,
        })
    }
}

/// The work of [`super::super::Store::counts`]: rows of a state's number, seeds, capacity, leases.
pub(super) struct Count<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Count<'_> {
    type Done = Vec<(i32, i64, i64, i64)>;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<Self::Done, Stopped> {
        let now = self.0.now(connection).await?;
        let (state, shown) = (state_sql("$1", "$2"), shown_sql("$1", "$2"));
        let rows = sqlx::query_as(AssertSqlSafe(format!(
            "WITH used AS (SELECT seed_id, count(*) AS n FROM points WHERE busy_until_ms > $1 GROUP BY seed_id)
             SELECT {state} AS state, count(*), sum(s.capacity)::bigint, coalesce(sum(u.n), 0)::bigint
             FROM seeds s JOIN heartbeats h ON h.seed_id = s.id LEFT JOIN used u ON u.seed_id = s.id
             WHERE {shown} GROUP BY state",
        )))
        .bind(now)
        .bind(now.saturating_sub(self.0.rules.heartbeat_ttl_ms))
        .fetch_all(connection)
        .await?;
        Ok(rows)
    }
}

/// The work of [`super::super::Store::check`]. That a transaction which may write has begun proves that the
/// server takes writes: one in recovery refuses it. A schema is usable that has all migrations of this program;
/// newer ones only add to it.
pub(super) struct Check;

#[async_trait]
impl Work for Check {
    type Done = ();

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<(), Stopped> {
        match schema(connection).await? {
            Schema::Complete => Ok(()),
            Schema::Behind => Err(Stopped::Broken(
                "its schema lacks migrations of this program; `rfork planner migrate` applies them".into(),
            )),
            Schema::Unreleased(version) => Err(Stopped::Broken(format!(
                "its migration {version} is another one than this program's: a planner made it that was never released"
            ))),
        }
    }
}
