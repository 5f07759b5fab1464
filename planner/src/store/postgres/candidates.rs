//! What a choice is made from: of each key, the seeds that may serve.
//!
//! A snapshot holds the best seeds by an index in the policy's order, as many as workers wait, up to a page, and
//! as many more as they exclude; beside them a page of seeds of which a lease or a suspicion has ended by itself,
//! whose places are older than that; and, for workers with wishes, a page of those near them and of the instance
//! that serves their own. The choice is then the same as from all seeds, and its cost does not grow with their
//! number.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use rfork_protocol::SeedKey;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::Rules;
use super::allocate::Waiting;
use super::session::Connection;
use super::transaction::Stopped;
use super::{identity, key_hash, seeds, small};
use crate::domain::location::Location;
use crate::domain::policy::{Candidate, HostRoom, Policy};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most seeds of one key that a page holds, beside those that workers exclude.
const PAGE: usize = 64;

/// What a snapshot knows of a seed that the policy does not ask for.
#[derive(Clone, Copy, Default)]
pub(super) struct Facts {
    /// When it last answered a planner, Unix milliseconds.
    pub(super) answered_ms: i64,
}

/// The first seeds that may have a free point, by key; no entry for a key that has none.
#[derive(Default)]
pub(super) struct Snapshot<'a> {
    pub(super) seeds: HashMap<&'a SeedKey, Vec<Candidate>>,
    pub(super) facts: HashMap<i64, Facts>,
    pub(super) hosts: HostRoom,
}

/// The part of a snapshot's SQL that is the same for every page: for each entry of `$3` (a key), `$6` and `$7`
/// (what the page asks for), the seeds that `$page` names, with the points that are busy, and the room on their
/// host where that is bounded.
macro_rules! snapshot {
    ($page:expr) => {
        concat!(
            "SELECT wanted.at, s.id, s.host, s.port, s.rank, s.capacity, s.last_used_ms, h.last_ms,
                    s.answered_ms, s.capped_host, s.zone, s.rack, s.node, s.instance_id,
                    ARRAY(SELECT p.n FROM points p WHERE p.seed_id = s.id AND p.busy_until_ms > $1) AS busy,
                    CASE WHEN s.capped_host IS NOT NULL THEN
                        s.host_capacity - (
                            SELECT count(*) FROM seeds o JOIN points q ON q.seed_id = o.id
                            WHERE o.capped_host = s.capped_host AND q.busy_until_ms > $1) END AS host_room
             FROM unnest($3::bytea[], $6::text[], $7::text[]) WITH ORDINALITY AS wanted (key_hash, a, b, at)
             CROSS JOIN LATERAL (",
            $page,
            ") AS page
             JOIN seeds s ON s.id = page.id
             JOIN heartbeats h ON h.seed_id = s.id"
        )
    };
}

/// A page in the order of `$order`, of seeds that also meet `$condition`.
macro_rules! page {
    ($condition:literal, $order:literal) => {
        concat!(
            "SELECT c.id FROM seeds c JOIN heartbeats b ON b.seed_id = c.id
             WHERE c.key_hash = wanted.key_hash AND c.offer_rank IS NOT NULL AND b.last_ms > $2 AND c.suspect_until_ms <= $1
               AND c.id <> ALL($5::bigint[]) ",
            $condition,
            " ORDER BY ",
            $order,
            " LIMIT $4"
        )
    };
}

/// That page, and the seeds whose place is older than the end of a lease or of a suspicion.
macro_rules! with_ended {
    ($page:expr) => {
        concat!(
            "(",
            $page,
            ") UNION (
                 SELECT c.id FROM seeds c JOIN heartbeats b ON b.seed_id = c.id
                 WHERE c.key_hash = wanted.key_hash AND c.next_end_ms <= $1 AND b.last_ms > $2
                   AND c.suspect_until_ms <= $1 AND NOT c.drained AND c.id <> ALL($5::bigint[])
                 ORDER BY c.next_end_ms LIMIT 64 + $4)"
        )
    };
}

const BY_SHARE: &str = snapshot!(with_ended!(page!("", "c.offer_rank, c.last_used_ms, c.identity")));
const BY_USE: &str = snapshot!(with_ended!(page!("", "c.last_used_ms, c.identity")));
const BY_HEARTBEAT: &str = snapshot!(with_ended!(
    "SELECT c.id FROM heartbeats b JOIN seeds c ON c.id = b.seed_id
     WHERE b.key_hash = wanted.key_hash AND c.offer_rank IS NOT NULL AND b.last_ms > $2 AND c.suspect_until_ms <= $1
       AND c.id <> ALL($5::bigint[])
     ORDER BY b.last_ms, c.identity LIMIT $4"
));
const OF_INSTANCE: &str =
    snapshot!(page!("AND c.instance_id = wanted.a", "c.offer_rank, c.last_used_ms, c.identity"));
const ON_NODE: &str = snapshot!(page!("AND c.node = wanted.a", "c.offer_rank, c.last_used_ms, c.identity"));
const IN_RACK: &str = snapshot!(page!(
    "AND c.rack = wanted.a AND c.zone IS NOT DISTINCT FROM wanted.b",
    "c.offer_rank, c.last_used_ms, c.identity"
));
const IN_ZONE: &str = snapshot!(page!("AND c.zone = wanted.a", "c.offer_rank, c.last_used_ms, c.identity"));

/// Seeds of capped hosts whose place says that they are full, and whose host has room all the same: another
/// planner's release may have met this one's lock.
const HIDDEN: &str = snapshot!(
    "SELECT c.id FROM seeds c JOIN heartbeats b ON b.seed_id = c.id
     WHERE c.key_hash = wanted.key_hash AND c.capped_host IS NOT NULL AND c.offer_rank IS NULL
       AND b.last_ms > $2 AND NOT c.removed AND NOT c.drained AND c.suspect_until_ms <= $1
       AND c.id <> ALL($5::bigint[])
       AND (SELECT count(*) FROM points p WHERE p.seed_id = c.id AND p.n < c.capacity
              AND p.busy_until_ms > $1) < c.capacity
       AND (SELECT count(*) FROM seeds o JOIN points q ON q.seed_id = o.id
            WHERE o.capped_host = c.capped_host AND q.busy_until_ms > $1) < c.host_capacity
     LIMIT $4"
);

/// What a page asks for: a query and a limit; the entries are a key's place and the query's own parameters.
type Pages<'a> = BTreeMap<(&'static str, usize), BTreeSet<(usize, Option<&'a str>, Option<&'a str>)>>;

/// The pages that the workers need. Most keys are asked for once, and most workers wish nothing; a limit is the
/// same for all entries of a statement.
fn pages<'a>(policy: Policy, waiting: &'a Waiting<'_>, thorough: &HashSet<&SeedKey>) -> Pages<'a> {
    let mut pages = Pages::new();
    for (at, (key, queue)) in waiting.iter().enumerate() {
        let excluded: HashSet<_> = queue.iter().flat_map(|worker| &worker.wish.exclude).collect();
        let limit = queue.len().next_power_of_two().min(PAGE) + excluded.len().next_multiple_of(PAGE);
        let general = match policy {
            Policy::Balanced => BY_SHARE,
            Policy::Lru => BY_USE,
            Policy::Fifo => BY_HEARTBEAT,
        };
        pages.entry((general, limit)).or_default().insert((at, None, None));
        if thorough.contains(key) {
            pages.entry((HIDDEN, limit)).or_default().insert((at, None, None));
        }
        // Only `balanced` looks at places and instances.
        for worker in queue.iter().filter(|_| policy == Policy::Balanced) {
            let Location { zone, rack, host } = &worker.wish.location;
            let mut near = |query, a: Option<&'a str>, b: Option<&'a str>| {
                if a.is_some() {
                    pages.entry((query, limit)).or_default().insert((at, a, b));
                }
            };
            near(OF_INSTANCE, worker.wish.source_instance.as_deref(), None);
            near(ON_NODE, host.as_deref(), None);
            near(IN_RACK, rack.as_deref(), zone.as_deref());
            near(IN_ZONE, zone.as_deref(), None);
        }
    }
    pages
}

/// Looks. Seeds in `misplaced` were looked at before and are left out.
pub(super) async fn snapshot<'a>(
    connection: &mut Connection,
    now: i64,
    rules: &Rules,
    waiting: &Waiting<'a>,
    misplaced: &[i64],
    thorough: &HashSet<&SeedKey>,
) -> Result<Snapshot<'a>, Stopped> {
    let keys: Vec<&'a SeedKey> = waiting.keys().copied().collect();
    let mut snapshot = Snapshot::default();
    for ((query, limit), entries) in pages(rules.policy, waiting, thorough) {
        let entries: Vec<_> = entries.into_iter().collect();
        let rows = sqlx::query(query)
            .bind(now)
            .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
            .bind(entries.iter().map(|(at, ..)| key_hash(keys[*at]).to_vec()).collect::<Vec<_>>())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(misplaced)
            .bind(entries.iter().map(|(_, a, _)| *a).collect::<Vec<_>>())
            .bind(entries.iter().map(|(.., b)| *b).collect::<Vec<_>>())
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            // Counted from 1.
            let at: usize = small(row.try_get::<i64, _>("at")? - 1)?;
            let (at, ..) =
                *entries.get(at).ok_or_else(|| Stopped::Broken("a seed that nobody wants".into()))?;
            let id = row.try_get("id")?;
            let facts = Facts { answered_ms: row.try_get("answered_ms")? };
            if snapshot.facts.insert(id, facts).is_some() {
                // On an earlier page.
                continue;
            }
            let candidate = candidate(id, &row)?;
            if let Some(host) = &candidate.capped_host {
                let room = row.try_get::<Option<i64>, _>("host_room")?.unwrap_or(0);
                let room = u32::try_from(room).unwrap_or(0);
                // Of several bounds for one host the least counts.
                snapshot
                    .hosts
                    .entry(host.clone())
                    .and_modify(|known| *known = room.min(*known))
                    .or_insert(room);
            }
            snapshot.seeds.entry(keys[at]).or_default().push(candidate);
        }
    }
    Ok(snapshot)
}

fn candidate(id: i64, row: &PgRow) -> Result<Candidate, Stopped> {
    let busy: HashSet<i32> = row.try_get::<Vec<i32>, _>("busy")?.into_iter().collect();
    let capacity: i32 = row.try_get("capacity")?;
    let free = (0..capacity).filter(|n| !busy.contains(n)).map(|n| small(n.into()));
    Ok(Candidate {
        id,
        identity: identity(row)?,
        capacity: small(capacity.into())?,
        free_points: free.collect::<Result<_, _>>()?,
        last_used_ms: row.try_get("last_used_ms")?,
        last_heartbeat_ms: row.try_get("last_ms")?,
        location: seeds::location(row)?,
        instance_id: row.try_get("instance_id")?,
        capped_host: row.try_get("capped_host")?,
    })
}
