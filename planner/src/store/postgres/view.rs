//! What is there, for people; and whether anything can be done with it.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::list::{Part, SeedFilter};
use super::super::schema::Schema;
use super::super::views::{MAX_SNAPSHOT_BYTES, shown};
use super::super::{
    Counts, LeaseView, MAX_SNAPSHOT, PLANNER_TTL_MS, Rules, SeedView, Snapshot, Tally, Usage,
};
use super::connect::{is_set_read_only, schema};
use super::kept::Kept;
use super::session::Connection;
use super::transaction::{Stopped, Work, has_code};
use super::{Database, list, load, rows, write};
use crate::domain::seed::Standing;

/// How many seeds there are, what they may lend and have lent, by what their state follows from: what is read from
/// `seeds s`, `heartbeats h` and the count `u` of their leases that live at `$1`. Those are silent that were last heard of
/// at or before `$2`.
macro_rules! standing {
    () => {
        "s.removed, s.drained, h.last_ms <= coalesce($1 - 3 * g.period_ms, $2) AS silent,
         s.suspect_until_ms > $1 AS suspect, u.leases > 0 AS leased,
         count(*) AS seeds, sum(s.capacity)::bigint AS capacity, sum(u.leases)::bigint AS leases
         FROM heartbeats h JOIN seeds s ON s.id = h.seed_id LEFT JOIN loading_seeds g ON g.seed_id = h.seed_id
         CROSS JOIN LATERAL (
             SELECT count(*) AS leases FROM points p WHERE p.seed_id = s.id AND p.ends_ms > $1) AS u"
    };
}

/// The end of such a statement.
macro_rules! of_standing {
    () => {
        "GROUP BY 1, 2, 3, 4, 5"
    };
}
pub(super) use {of_standing, standing};

/// Seeds that are shown, by rows of [`standing`].
pub(super) fn counts(rows: &[PgRow]) -> Result<Counts, Stopped> {
    let mut all = Counts::default();
    for row in rows {
        let standing = Standing {
            removed: row.try_get("removed")?,
            drained: row.try_get("drained")?,
            silent: row.try_get("silent")?,
            suspect: row.try_get("suspect")?,
            leased: row.try_get("leased")?,
        };
        let count = |name| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(name)?.unsigned_abs());
        if !standing.is_gone() {
            let more =
                Tally { seeds: count("seeds")?, capacity: count("capacity")?, leases: count("leases")? };
            all.add(standing.state(), more);
        }
    }
    Ok(all)
}

/// Of all seeds, at `now`.
async fn all_counts(connection: &mut Connection, now: i64, rules: &Rules) -> Result<Counts, Stopped> {
    let rows = sqlx::query(concat!("/* count seeds */ SELECT ", standing!(), " ", of_standing!()))
        .bind(now)
        .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
        .fetch_all(connection)
        .await?;
    counts(&rows)
}

/// The work of [`super::super::Store::snapshot`]; its statements see one moment.
pub(super) struct View<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for View<'_> {
    type Done = Snapshot;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Snapshot, Stopped> {
        let rules = &self.0.rules;
        let (now, ahead_ms) = self.0.time.look(connection).await?;
        let Counts { live, suspect, draining, silent } = all_counts(connection, now, rules).await?;
        let all = [live, suspect, draining, silent];
        let part = Part { limit: MAX_SNAPSHOT, after: None };
        let seeds =
            list::seeds(connection, (now, rules), &SeedFilter::default(), &part, MAX_SNAPSHOT_BYTES).await?;
        // As many as there may be by their bytes and, without their keys, by their number.
        let rows = sqlx::query(
            "/* list leases */
             SELECT lease_hash, identity, seed_key FROM (
                 SELECT p.lease_hash, s.identity, s.seed_key, p.n,
                        sum(length(s.seed_key)) OVER (ORDER BY s.identity, p.n) AS bytes
                 FROM points p JOIN seeds s ON s.id = p.seed_id
                 WHERE p.ends_ms > $1) AS l
             WHERE bytes <= $3 ORDER BY identity, n LIMIT $2",
        )
        .bind(now)
        .bind(i64::from(MAX_SNAPSHOT))
        .bind(i64::try_from(MAX_SNAPSHOT_BYTES).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
        let mut leases = Vec::with_capacity(rows.len());
        for row in rows {
            leases.push(LeaseView {
                lease: rows::hash(row.try_get("lease_hash")?)?,
                seed_identity: row.try_get("identity")?,
                seed_key: rows::seed_key(row.try_get("seed_key")?)?,
            });
        }
        Ok(Snapshot {
            ahead_ms,
            seed_count: all.iter().map(|tally| tally.seeds).sum(),
            lease_count: all.iter().map(|tally| tally.leases).sum(),
            seeds: shown(seeds.iter().map(|row| SeedView::of(row, now, rules))),
            leases: shown(leases),
        })
    }
}

/// The work of [`super::super::Store::counts`].
pub(super) struct Count<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Count<'_> {
    type Done = Counts;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Counts, Stopped> {
        let now = self.0.now_to_read(connection).await?;
        all_counts(connection, now, &self.0.rules).await
    }
}

/// The work of [`super::super::Store::usage`].
pub(super) struct Used<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Used<'_> {
    type Done = Vec<Usage>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Vec<Usage>, Stopped> {
        Ok(Kept::look(connection).await?.usage(&self.0.rules.room))
    }
}

/// The work of [`super::super::Store::source_instance`].
pub(super) struct Source<'a>(pub(super) &'a str);

#[async_trait]
impl Work for Source<'_> {
    type Done = Option<String>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Option<String>, Stopped> {
        let served = self.0.to_owned();
        Ok(load::sources(connection, &[&served]).await?.remove(&served))
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

/// What only the planners of the database know, by its name.
pub(super) struct Secret(pub(super) &'static str);

#[async_trait]
impl Work for Secret {
    type Done = Vec<u8>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Vec<u8>, Stopped> {
        let secret = sqlx::query_scalar("SELECT value FROM secrets WHERE name = $1").bind(self.0);
        Ok(secret.fetch_one(&mut *connection).await?)
    }
}

/// Writes: always to the same row, so that the table does not grow, and flushed as every commit is. A server that only
/// reads, or cannot write, refuses it.
pub(super) struct Written<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Written<'_> {
    type Done = ();

    async fn attempt(&mut self, connection: &mut Connection) -> Result<(), Stopped> {
        let now = self.0.time.now(connection).await?;
        let until_ms = now.saturating_add(PLANNER_TTL_MS);
        write::alive(connection, Some(&(self.0.planner.clone(), until_ms))).await
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
