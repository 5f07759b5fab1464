//! What is there, for people; and whether anything can be done with it.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row};

use super::super::list::{shown_sql, state_sql};
use super::super::schema::Schema;
use super::super::{LeaseView, MAX_SNAPSHOT, SeedView, Snapshot};
use super::connect::{is_set_read_only, schema};
use super::session::Connection;
use super::transaction::{Stopped, Work, has_code};
use super::{Database, lease_hash, requests, seed_key, small};

/// The work of [`super::super::Store::snapshot`]; its statements see one moment.
pub(super) struct View<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for View<'_> {
    type Done = Snapshot;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Snapshot, Stopped> {
        let (now, ahead_ms) = self.0.time.look(connection).await?;
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
            ahead_ms,
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

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Self::Done, Stopped> {
        let now = self.0.now_to_read(connection).await?;
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

/// Whether the schema is usable: it has all migrations of this program; newer ones only add to it.
pub(super) struct HasSchema;

#[async_trait]
impl Work for HasSchema {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        match schema(&mut connection.raw).await? {
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

/// Whether a session that begins now would only read, because somebody has decided so for the database, the role or
/// both. A session that is older does not know of it.
pub(super) struct IsSetReadOnly;

#[async_trait]
impl Work for IsSetReadOnly {
    type Done = bool;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<bool, Stopped> {
        Ok(is_set_read_only(&mut connection.raw).await?)
    }
}

/// Writes: always to the same row, so that the table does not grow, and flushed as every commit is. A server that only
/// reads, or cannot write, refuses it.
pub(super) struct Written<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Written<'_> {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        let now = self.0.now(connection).await?;
        requests::alive(connection, now, &self.0.planner).await
    }
}

/// Whether the server's disk has room: the same row needs none that is new, but most of what planners write does. A
/// list that is too long for its memory goes to a file of the server's, which is gone at the end of the statement.
pub(super) struct Room;

/// Numbers in that list: some hundred KiB.
const ROOM_ROWS: i64 = 10_000;

#[async_trait]
impl Work for Room {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        sqlx::query("SET LOCAL work_mem = '64kB'").execute(&mut *connection).await?;
        let counted = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM generate_series(1, $1)")
            .bind(ROOM_ROWS)
            .fetch_one(connection)
            .await;
        match counted {
            // configuration_limit_exceeded: this role may have no such file, and it is not known.
            Err(error) if has_code(&error, "53400") => Ok(()),
            counted => Ok(counted.map(|_| ())?),
        }
    }
}
