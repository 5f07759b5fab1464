//! Lists for people, a page at a time. The statements of a list see one moment.

use std::collections::HashMap;

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::Row;

use super::super::Rules;
use super::super::list::{
    KeyEntry, LeaseEntry, LeaseFilter, LoadingEntry, MAX_PAGE_BYTES, Page, Part, SeedEntry, SeedFilter,
    lease_place, profile_bytes,
};
use super::Database;
use super::places::key_hash;
use super::rows::{self, of_seeds};
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::view::{counts, of_standing, standing};
use crate::decide::place::host_room;
use crate::decide::rows::SeedRow;

/// The most seeds that are looked at at a time for a list.
const STEP_ROWS: i64 = 1_000;

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
        let found = seeds(connection, (now, &store.rules), filter, part, MAX_PAGE_BYTES).await?;
        let rooms = host_rooms(connection, &found, now).await?;
        let sources = sources(connection, &found).await?;
        let entries = found.iter().map(|row| {
            let room = row.capped_host().and_then(|host| Some((host.to_owned(), *rooms.get(host)?)));
            let mut entry = SeedEntry::of(row, now, &store.rules, room);
            entry.loading = row.loading.as_deref().map(|loading| {
                let source = loading.source.and_then(|source| sources.get(&source)).cloned();
                LoadingEntry { loading: loading.clone(), source }
            });
            entry
        });
        Ok(Page::of(entries, part.limit, |seed: &SeedEntry| seed.identity.to_string().into_bytes()))
    }
}

/// Where those are that loading seeds read from.
async fn sources(
    connection: &mut Connection,
    seeds: &[SeedRow],
) -> Result<HashMap<i64, SeedIdentity>, Stopped> {
    let sources: Vec<i64> = seeds.iter().filter_map(|row| row.loading.as_ref()?.source).collect();
    if sources.is_empty() {
        return Ok(HashMap::new());
    }
    let rows =
        sqlx::query("/* list sources of seeds */ SELECT id, host, port, rank FROM seeds WHERE id = ANY($1)")
            .bind(sources)
            .fetch_all(connection)
            .await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, rows::identity(row)?))).collect()
}

/// One seed more than is wanted, or of more bytes than there may be, in the order of their identities.
pub(super) async fn seeds(
    connection: &mut Connection,
    (now, rules): (i64, &Rules),
    filter: &SeedFilter,
    part: &Part,
    most_bytes: usize,
) -> Result<Vec<SeedRow>, Stopped> {
    let wanted = usize::try_from(part.rows()).unwrap_or(usize::MAX);
    let mut bytes = 0;
    let (mut found, mut after) = (Vec::new(), part.after_text().unwrap_or_default());
    // Of those that are looked at few may be in the state that is asked for.
    let step = if filter.state.is_some() { STEP_ROWS } else { part.rows().min(STEP_ROWS) };
    while found.len() < wanted && bytes <= most_bytes {
        let rows = sqlx::query(concat!(
            "/* list seeds */ SELECT ",
            rows::seed_columns!(),
            " FROM ",
            of_seeds!(),
            " WHERE s.identity > $1 AND ($2::bytea IS NULL OR h.key_hash = $2)
                AND ($3::text IS NULL OR s.model_url = $3) AND ($4::text IS NULL OR s.host = $4)
              ORDER BY s.identity LIMIT $5",
        ))
        .bind(&after)
        .bind(filter.key.as_ref().map(key_hash))
        .bind(&filter.model_url)
        .bind(&filter.host)
        .bind(step)
        .fetch_all(&mut *connection)
        .await?;
        let Some(last) = rows.last() else { break };
        last.try_get::<&str, _>("identity")?.clone_into(&mut after);
        for row in &rows {
            let seed = rows::seed(row)?;
            if filter.fits(&seed, now, rules) {
                bytes += profile_bytes(&seed.key, &seed.profile);
                found.push(seed);
            }
        }
    }
    found.truncate(wanted);
    Ok(found)
}

/// Leases that seeds of the hosts of these may still be given together, where that is bounded.
async fn host_rooms(
    connection: &mut Connection,
    seeds: &[SeedRow],
    now: i64,
) -> Result<HashMap<String, u32>, Stopped> {
    let hosts: Vec<&str> = seeds.iter().filter_map(SeedRow::capped_host).collect();
    if hosts.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(concat!(
        "/* list seeds of hosts */ SELECT ",
        rows::seed_columns!(),
        " FROM ",
        of_seeds!(),
        " WHERE s.capped_host = ANY($1)"
    ))
    .bind(&hosts)
    .fetch_all(connection)
    .await?;
    let mut of_hosts: HashMap<String, Vec<SeedRow>> = HashMap::new();
    for row in &rows {
        let seed = rows::seed(row)?;
        if let Some(host) = seed.capped_host().map(str::to_owned) {
            of_hosts.entry(host).or_default().push(seed);
        }
    }
    Ok(of_hosts.into_iter().map(|(host, seeds)| (host, host_room(seeds.iter(), now))).collect())
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
            "/* list leases */
             SELECT p.lease_hash, p.n, p.ends_ms, p.granted_ms, s.host, s.port, s.rank, s.seed_key
             FROM seeds s JOIN points p ON p.seed_id = s.id
             WHERE ($2::bytea IS NULL OR s.key_hash = $2) AND ($3::text IS NULL OR s.identity = $3)
               AND p.ends_ms > $1 AND s.identity >= $4 AND (s.identity > $4 OR p.n > $5)
             ORDER BY s.identity, p.n LIMIT $6",
        )
        .bind(now)
        .bind(filter.key.as_ref().map(key_hash))
        .bind(filter.seed.as_ref().map(SeedIdentity::to_string))
        .bind(after)
        .bind(after_point)
        .bind(part.rows())
        .fetch_all(connection)
        .await?;
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            entries.push(LeaseEntry {
                lease: rows::hash(row.try_get("lease_hash")?)?,
                point: rows::small(row.try_get::<i32, _>("n")?.into())?,
                identity: rows::identity(row)?,
                key: rows::seed_key(row.try_get("seed_key")?)?,
                ttl_ms: row.try_get::<i64, _>("ends_ms")?.saturating_sub(now),
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
        let wanted = usize::try_from(part.rows()).unwrap_or(usize::MAX);
        let (mut entries, mut after) = (Vec::new(), part.after.clone().unwrap_or_default());
        while entries.len() < wanted {
            let rows = sqlx::query(concat!(
                "/* list keys */
                 SELECT k.key_hash, f.*, (SELECT s.seed_key FROM heartbeats h JOIN seeds s ON s.id = h.seed_id
                                          WHERE h.key_hash = k.key_hash LIMIT 1) AS seed_key,
                        (SELECT count(*) FROM requests r WHERE r.key_hash = k.key_hash
                           AND r.waits_until_ms IS NOT NULL AND r.waits_until_ms > $1) AS waiting
                 FROM (SELECT DISTINCT key_hash FROM heartbeats WHERE key_hash > $3 ORDER BY key_hash LIMIT $4) AS k
                 CROSS JOIN LATERAL (SELECT ",
                standing!(),
                " WHERE h.key_hash = k.key_hash ",
                of_standing!(),
                ") AS f ORDER BY k.key_hash"
            ))
            .bind(now)
            .bind(now.saturating_sub(store.rules.heartbeat_ttl_ms))
            .bind(&after)
            .bind(part.rows())
            .fetch_all(&mut *connection)
            .await?;
            let Some(last) = rows.last() else { break };
            after = last.try_get("key_hash")?;
            for of_key in rows.chunk_by(is_of_one_key) {
                let key: SeedKey = rows::seed_key(of_key[0].try_get("seed_key")?)?;
                let waiting = of_key[0].try_get::<i64, _>("waiting")?.unsigned_abs();
                entries.extend(KeyEntry::of(&key, &counts(of_key)?, waiting));
            }
        }
        entries.truncate(wanted);
        Ok(Page::of(entries, part.limit, |entry: &KeyEntry| key_hash(&entry.key)))
    }
}

fn is_of_one_key(one: &sqlx::postgres::PgRow, other: &sqlx::postgres::PgRow) -> bool {
    let key = |row: &sqlx::postgres::PgRow| row.try_get::<Vec<u8>, _>("key_hash").ok();
    key(one) == key(other)
}
