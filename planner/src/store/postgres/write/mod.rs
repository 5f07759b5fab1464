//! Writing what was decided: a statement a table, and none where nothing changes. No rule stands here.
//!
//! It was decided over rows that were read without locks. So rows that change are locked first, and must be as they were:
//! a seed by its version, which whoever changes it, its points or its places raises; a heartbeat and a request by what
//! they hold. If one is another, nothing is written and all is decided anew, by what is locked then from the start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Database;
use super::history;
use super::load::Seen;
use super::places::{Places, key_hash};
use super::session::Connection;
use super::transaction::Stopped;
use crate::decide::place::HostUse;
use crate::decide::rows::{LeaseRow, SeedRow};
use crate::decide::{Changed, Changes};
use crate::domain::pace::MOVE_PAUSE_MS;
#[cfg(test)]
use crate::store::simulation::sqlx;

mod loading;
mod requests;
mod seeds;

/// What is locked from the start of a transaction: nothing at first, and then what an attempt before has met.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Hosts whose leases are bounded together.
    pub(super) hosts: BTreeSet<String>,
    /// Seeds, by number.
    pub(super) seeds: BTreeSet<i64>,
}

impl Held {
    /// Locks, in the order that all keep: hosts, then seeds. Locks of hosts are advisory: two names that hash alike wait
    /// for each other, which costs time and nothing else.
    pub(super) async fn lock(&self, connection: &mut Connection) -> Result<(), Stopped> {
        if !self.hosts.is_empty() {
            sqlx::query(
                "/* lock hosts */
                 SELECT pg_advisory_xact_lock(t.number) FROM (
                     SELECT DISTINCT hashtextextended('rfork host ' || host, 0) AS number
                     FROM unnest($1::text[]) AS u (host) ORDER BY 1) AS t",
            )
            .bind(self.hosts.iter().collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        if !self.seeds.is_empty() {
            sqlx::query("/* lock seeds */ SELECT FROM seeds WHERE id = ANY($1) ORDER BY id FOR UPDATE")
                .bind(self.seeds.iter().copied().collect::<Vec<_>>())
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

/// Writes [`Changes`] that were decided at `now` over what was `seen`.
///
/// # Errors
/// [`Stopped::Again`], when some of it is not as it was seen, or cannot be locked without waiting while something is
/// held; `held` has it then.
pub(super) async fn write(
    connection: &mut Connection,
    store: &Database,
    (now, seen, held): (i64, &Seen, &mut Held),
    changes: &Changes,
) -> Result<(), Stopped> {
    let hosts = hosts_of(&changes.seeds);
    if !hosts.is_subset(&held.hosts) {
        // Their seeds were looked at before their lock was held.
        held.hosts.extend(hosts);
        return Err(Stopped::Again);
    }
    seeds::seeds(connection, seen, held, &changes.seeds).await?;
    seeds::heartbeats(connection, &changes.seeds).await?;
    seeds::told(connection, &changes.seeds).await?;
    seeds::delete(connection, &changes.seeds).await?;
    seeds::insert(connection, &changes.seeds).await?;
    loading::write(connection, &changes.seeds).await?;
    requests::are_as_before(connection, &changes.requests).await?;
    leases(connection, &changes.seeds).await?;
    places(store, (now, seen, &hosts), &changes.seeds).write(connection).await?;
    requests::write(connection, &changes.requests).await?;
    sources(connection, now, changes).await?;
    moves(connection, now, changes).await?;
    history::write_leases(connection, &changes.ended).await?;
    history::write_events(connection, &changes.events).await?;
    alive(connection, changes.alive.as_ref()).await
}

fn hosts_of(changed: &[Changed<SeedRow>]) -> BTreeSet<String> {
    let rows = changed.iter().flat_map(|changed| [&changed.before, &changed.after]).flatten();
    rows.filter_map(|row| row.capped_host().map(str::to_owned)).collect()
}

/// Seeds that were there, before and after.
fn known(changed: &[Changed<SeedRow>]) -> impl Iterator<Item = (&Arc<SeedRow>, Option<&Arc<SeedRow>>)> {
    changed.iter().filter_map(|changed| Some((changed.before.as_ref()?, changed.after.as_ref())))
}

/// Seeds that are there now, before and after.
fn kept(changed: &[Changed<SeedRow>]) -> impl Iterator<Item = (Option<&Arc<SeedRow>>, &Arc<SeedRow>)> {
    changed.iter().filter_map(|changed| Some((changed.before.as_ref(), changed.after.as_ref()?)))
}

/// A number as the database spells it; settings keep it far below the largest.
fn number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

async fn leases(connection: &mut Connection, changed: &[Changed<SeedRow>]) -> Result<(), Stopped> {
    let mut freed: (Vec<i64>, Vec<i32>) = Default::default();
    let mut leased: Vec<(i64, &LeaseRow)> = Vec::new();
    for (before, after) in kept(changed) {
        let before = before.map(|row| row.leases.as_slice()).unwrap_or_default();
        for lease in before.iter().filter(|lease| after.leases.iter().all(|other| other.point != lease.point))
        {
            freed.0.push(after.id);
            freed.1.push(number(lease.point));
        }
        leased.extend(
            after.leases.iter().filter(|lease| !before.contains(lease)).map(|lease| (after.id, lease)),
        );
    }
    if freed.0.is_empty() && leased.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* write points */
         WITH freed AS (
             DELETE FROM points p USING unnest($1::bigint[], $2::int[]) AS t (seed_id, n)
             WHERE p.seed_id = t.seed_id AND p.n = t.n)
         INSERT INTO points (seed_id, n, lease_hash, granted_ms, ends_ms, requester, reader)
         SELECT * FROM unnest($3::bigint[], $4::int[], $5::bytea[], $6::bigint[], $7::bigint[], $8::text[], $9::bigint[])
         ON CONFLICT (seed_id, n) DO UPDATE SET lease_hash = excluded.lease_hash, granted_ms = excluded.granted_ms,
             ends_ms = excluded.ends_ms, requester = excluded.requester, reader = excluded.reader",
    )
    .bind(freed.0)
    .bind(freed.1)
    .bind(leased.iter().map(|(seed_id, _)| *seed_id).collect::<Vec<_>>())
    .bind(leased.iter().map(|(_, lease)| number(lease.point)).collect::<Vec<_>>())
    .bind(leased.iter().map(|(_, lease)| lease.lease.to_vec()).collect::<Vec<_>>())
    .bind(leased.iter().map(|(_, lease)| lease.granted_ms).collect::<Vec<_>>())
    .bind(leased.iter().map(|(_, lease)| lease.ends_ms).collect::<Vec<_>>())
    .bind(leased.iter().map(|(_, lease)| lease.requester.as_deref().map(str::to_owned)).collect::<Vec<_>>())
    .bind(leased.iter().map(|(_, lease)| lease.reader).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The places of seeds that have changed, and of all seeds of their hosts where what those lend is bounded.
fn places(
    store: &Database,
    (now, seen, hosts): (i64, &Seen, &BTreeSet<String>),
    changed: &[Changed<SeedRow>],
) -> Places {
    let mut places = Places::default();
    let stays = |before: &SeedRow, after: &SeedRow| {
        SeedRow { heard_ms: after.heard_ms, answered_ms: after.answered_ms, ..before.clone() } == *after
    };
    let moved = kept(changed).filter(|(before, after)| before.is_none_or(|before| !stays(before, after)));
    for (_, row) in moved.filter(|(_, row)| row.capped_host().is_none()) {
        places.add(row, now, &store.rules, None);
    }
    if hosts.is_empty() {
        return places;
    }
    let mut rows: BTreeMap<i64, &Arc<SeedRow>> = seen.iter().map(|(id, (row, _))| (*id, row)).collect();
    for Changed { before, after } in changed {
        if let Some(before) = before {
            rows.remove(&before.id);
        }
        rows.extend(after.iter().map(|row| (row.id, row)));
    }
    for host in hosts {
        let of_host =
            rows.values().map(|row| -> &SeedRow { row }).filter(|row| row.capped_host() == Some(host));
        let host = HostUse::of(of_host.clone(), now);
        of_host.for_each(|row| places.add(row, now, &store.rules, Some(host)));
    }
    places
}

/// Sources that were used; a sweep deletes others.
async fn sources(connection: &mut Connection, now: i64, changes: &Changes) -> Result<(), Stopped> {
    let used = changes.sources.iter().filter_map(|(served, source)| Some((served.clone(), source.clone()?)));
    let (served, sources): (Vec<String>, Vec<String>) = used.unzip();
    if served.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* write sources */
         INSERT INTO instances (instance_id, source_instance, used_ms)
         SELECT t.*, $3 FROM unnest($1::text[], $2::text[]) AS t (instance_id, source_instance)
         ORDER BY t.instance_id COLLATE \"C\"
         ON CONFLICT (instance_id) DO UPDATE SET source_instance = excluded.source_instance, used_ms = excluded.used_ms",
    )
    .bind(served)
    .bind(sources)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves of keys. If another planner has moved one of them a moment ago, all is decided anew.
async fn moves(connection: &mut Connection, now: i64, changes: &Changes) -> Result<(), Stopped> {
    if changes.moves.is_empty() {
        return Ok(());
    }
    let written = sqlx::query(
        "/* write moves */
         INSERT INTO moves AS m (key_hash, moved_ms)
         SELECT u.key_hash, $2 FROM unnest($1::bytea[]) AS u (key_hash) ORDER BY u.key_hash
         ON CONFLICT (key_hash) DO UPDATE SET moved_ms = excluded.moved_ms WHERE m.moved_ms <= excluded.moved_ms - $3",
    )
    .bind(changes.moves.iter().map(key_hash).collect::<Vec<_>>())
    .bind(now)
    .bind(MOVE_PAUSE_MS)
    .execute(connection)
    .await?;
    let is_first = usize::try_from(written.rows_affected()) == Ok(changes.moves.len());
    if is_first { Ok(()) } else { Err(Stopped::Again) }
}

/// Until when a planner answers; the later counts.
pub(super) async fn alive(
    connection: &mut Connection,
    planner: Option<&(Arc<str>, i64)>,
) -> Result<(), Stopped> {
    let Some((planner, until_ms)) = planner else { return Ok(()) };
    sqlx::query(
        "/* write planner */
         INSERT INTO planners (id, alive_until_ms) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET alive_until_ms = greatest(planners.alive_until_ms, excluded.alive_until_ms)",
    )
    .bind(planner.as_ref())
    .bind(until_ms)
    .execute(connection)
    .await?;
    Ok(())
}
