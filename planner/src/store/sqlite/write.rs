//! Writing what a batch changes: a statement for each table and kind of change, and none where nothing changes. No rule
//! stands here.

use std::sync::Arc;

use rfork_protocol::SeedIdentity;
use rfork_protocol::ids::hex;
use serde::Serialize;
use sqlx::SqliteConnection;

use super::super::history::signed;
use super::super::memory::Record;
use super::super::{StoreError, wish};
use crate::decide::Changed;
use crate::decide::rows::{EndedRow, EventRow, LeaseRow, RequestRow, SeedRow};
use crate::domain::chain::Loading;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Writes a batch, its number and, if it is to be noted, the time.
pub(super) async fn record(connection: &mut SqliteConnection, record: Record<'_>) -> Result<(), StoreError> {
    let Record { batch, now, changes, clock } = record;
    seeds(connection, &changes.seeds).await?;
    leases(connection, &changes.seeds).await?;
    requests(connection, &changes.requests).await?;
    let (used, unused): (Vec<_>, Vec<_>) = changes.sources.iter().partition(|(_, source)| source.is_some());
    let unused: Vec<&String> = unused.into_iter().map(|(served, _)| served).collect();
    let used: Vec<_> = used.into_iter().map(|(served, source)| (served, source, now)).collect();
    list(connection, FORGET_SOURCES, &unused).await?;
    list(connection, WRITE_SOURCES, &used).await?;
    let moves: Vec<_> = changes.moves.iter().map(|key| (hex(key.as_bytes()), now)).collect();
    list(connection, FORGET_MOVES, &moves).await?;
    list(connection, WRITE_MOVES, &moves).await?;
    list(connection, WRITE_ENDED, &changes.ended.iter().map(ended).collect::<Vec<_>>()).await?;
    list(connection, WRITE_EVENTS, &changes.events.iter().map(event).collect::<Vec<_>>()).await?;
    sqlx::query(
        "UPDATE planner SET batch = ?1, next_seed = coalesce(?2, next_seed), offset_ms = coalesce(?3, offset_ms),
             seen_ms = coalesce(?4, seen_ms)",
    )
    .bind(batch)
    .bind(changes.next_seed)
    .bind(clock.map(|(offset_ms, _)| offset_ms))
    .bind(clock.map(|(_, now_ms)| now_ms))
    .execute(connection)
    .await?;
    Ok(())
}

/// Executes a statement over a list, which is how many rows are bound to one parameter.
async fn list<T: Serialize>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    rows: &[T],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows = serde_json::to_string(rows).map_err(|error| StoreError::Broken(error.to_string()))?;
    sqlx::query(statement).bind(rows).execute(connection).await?;
    Ok(())
}

const DELETE_SEEDS: &str = "DELETE FROM seeds WHERE id IN (SELECT value FROM json_each(?1))";

const WRITE_SEEDS: &str =
    "INSERT INTO seeds (id, host, port, rank, seed_key, capacity, lease_ttl_ms, host_capacity, model_url,
                        deploy_strategy, is_draft, zone, rack, node, instance_id, incarnation, content_id,
                        origin, client, owner, owner_address)
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, unhex(value ->> 4), value ->> 5, value ->> 6,
            value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13,
            value ->> 14, value ->> 15, value ->> 16, value ->> 17, value ->> 18, value ->> 19, value ->> 20
     FROM json_each(?1) WHERE true
     ON CONFLICT (id) DO UPDATE SET capacity = excluded.capacity, lease_ttl_ms = excluded.lease_ttl_ms,
         host_capacity = excluded.host_capacity, model_url = excluded.model_url,
         deploy_strategy = excluded.deploy_strategy, is_draft = excluded.is_draft, zone = excluded.zone,
         rack = excluded.rack, node = excluded.node, instance_id = excluded.instance_id,
         incarnation = excluded.incarnation, content_id = excluded.content_id,
         origin = excluded.origin, owner = excluded.owner, owner_address = excluded.owner_address";

const WRITE_STATES: &str =
    "INSERT INTO seed_states (seed_id, heard_ms, used_ms, answered_ms, failures, suspect_until_ms, removed, drained)
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
     FROM json_each(?1) WHERE true
     ON CONFLICT (seed_id) DO UPDATE SET heard_ms = excluded.heard_ms, used_ms = excluded.used_ms,
         answered_ms = excluded.answered_ms, failures = excluded.failures,
         suspect_until_ms = excluded.suspect_until_ms, removed = excluded.removed, drained = excluded.drained";

async fn seeds(connection: &mut SqliteConnection, changed: &[Changed<SeedRow>]) -> Result<(), StoreError> {
    let (mut gone, mut told, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut completed, mut progress) = (Vec::new(), Vec::new());
    for Changed { before, after } in changed {
        let Some(after) = after else {
            gone.extend(before.as_ref().map(|row| row.id));
            continue;
        };
        if before.as_ref().is_none_or(|before| !before.is_told_as(after)) {
            told.push(seed(after));
        }
        if before.as_ref().is_none_or(|before| state(before) != state(after)) {
            states.push(state(after));
        }
        match (before.as_ref().and_then(|before| before.loading.as_ref()), &after.loading) {
            (Some(_), None) => completed.push(after.id),
            (before, Some(now)) if before != Some(now) => progress.push(loading(after.id, now)),
            _ => {}
        }
    }
    list(connection, DELETE_SEEDS, &gone).await?;
    list(connection, WRITE_SEEDS, &told).await?;
    list(connection, WRITE_STATES, &states).await?;
    list(connection, DELETE_LOADING, &completed).await?;
    list(connection, WRITE_LOADING, &progress).await
}

fn seed(row: &SeedRow) -> impl Serialize {
    let (identity, profile, terms) = (&row.identity, &row.profile, row.terms);
    let place = (row.id, identity.host().to_owned(), identity.port(), identity.rank());
    let key = hex(row.key.as_bytes());
    let labels = &profile.labels;
    let location = &profile.location;
    // In an array of JSON, which tuples of this length are not.
    serde_json::json!([
        place.0,
        place.1,
        place.2,
        place.3,
        key,
        terms.capacity,
        terms.lease_ttl_ms,
        terms.host_capacity,
        labels.model_url,
        labels.deploy_strategy,
        labels.is_draft,
        location.zone,
        location.rack,
        location.host,
        profile.instance_id,
        profile.incarnation,
        profile.content_id,
        profile.origin,
        row.client,
        row.owner.principal.as_deref(),
        row.owner.address,
    ])
}

fn state(row: &SeedRow) -> (i64, i64, i64, i64, u32, i64, bool, bool) {
    let health = row.health;
    (
        row.id,
        row.heard_ms,
        row.used_ms,
        row.answered_ms,
        health.failures,
        health.suspect_until_ms,
        row.removed,
        row.drained,
    )
}

const DELETE_LOADING: &str = "DELETE FROM loading_seeds WHERE seed_id IN (SELECT value FROM json_each(?1))";

const WRITE_LOADING: &str =
    "INSERT INTO loading_seeds (seed_id, source_id, depth, root, held_bytes, total_bytes, arrived_bytes, period_ms,
                                told_ms, rate, lags, sends, was_moved, yields_to, yielded_ms, lead_until_ms,
                                lead_moved_ms, lead_since_ms)
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
            value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14, value ->> 15,
            value ->> 16, value ->> 17
     FROM json_each(?1) WHERE true
     ON CONFLICT (seed_id) DO UPDATE SET source_id = excluded.source_id, depth = excluded.depth, root = excluded.root,
         held_bytes = excluded.held_bytes, total_bytes = excluded.total_bytes,
         arrived_bytes = excluded.arrived_bytes, period_ms = excluded.period_ms, told_ms = excluded.told_ms,
         rate = excluded.rate, lags = excluded.lags, sends = excluded.sends, was_moved = excluded.was_moved,
         yields_to = excluded.yields_to, yielded_ms = excluded.yielded_ms, lead_until_ms = excluded.lead_until_ms,
         lead_moved_ms = excluded.lead_moved_ms, lead_since_ms = excluded.lead_since_ms";

fn loading(id: i64, loading: &Loading) -> impl Serialize {
    let pace = loading.pace;
    // In an array of JSON, which tuples of this length are not.
    serde_json::json!([
        id,
        loading.source,
        loading.depth,
        loading.root.as_deref(),
        signed(Some(loading.held_bytes)),
        signed(Some(loading.total_bytes)),
        signed(Some(loading.arrived_bytes)),
        loading.period_ms,
        pace.told_ms,
        signed(Some(pace.rate)),
        pace.lags,
        pace.sends as u8,
        pace.was_moved,
        pace.yields_to,
        pace.yielded_ms,
        loading.lead.map(|lead| lead.until_ms),
        loading.lead.map(|lead| lead.moved_ms),
        loading.lead.map(|lead| lead.since_ms),
    ])
}

const DELETE_POINTS: &str =
    "DELETE FROM points WHERE (seed_id, n) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1))";

const WRITE_POINTS: &str = "INSERT INTO points (seed_id, n, lease_hash, granted_ms, ends_ms, requester, reader)
     SELECT value ->> 0, value ->> 1, unhex(value ->> 2), value ->> 3, value ->> 4, value ->> 5, value ->> 6
     FROM json_each(?1) WHERE true
     ON CONFLICT (seed_id, n) DO UPDATE SET lease_hash = excluded.lease_hash, granted_ms = excluded.granted_ms,
         ends_ms = excluded.ends_ms, requester = excluded.requester, reader = excluded.reader";

async fn leases(connection: &mut SqliteConnection, changed: &[Changed<SeedRow>]) -> Result<(), StoreError> {
    let (mut gone, mut written) = (Vec::new(), Vec::new());
    for Changed { before, after } in changed {
        // Those of a seed that goes go with it.
        let Some(after) = after else { continue };
        let before = before.as_ref().map(|row| row.leases.as_slice()).unwrap_or_default();
        let is_at = |leases: &[LeaseRow], point| leases.iter().any(|lease| lease.point == point);
        let freed = before.iter().filter(|lease| !is_at(&after.leases, lease.point));
        gone.extend(freed.map(|lease| (after.id, lease.point)));
        let new = after.leases.iter().filter(|lease| !before.contains(lease));
        written.extend(new.map(|lease| {
            let LeaseRow { point, lease, granted_ms, ends_ms, requester, reader } = lease;
            (after.id, point, hex(lease), granted_ms, ends_ms, requester.as_deref(), reader)
        }));
    }
    list(connection, DELETE_POINTS, &gone).await?;
    list(connection, WRITE_POINTS, &written).await
}

const DELETE_REQUESTS: &str = "DELETE FROM requests WHERE id IN (SELECT value FROM json_each(?1))";

const WRITE_REQUESTS: &str =
    "INSERT INTO requests (id, seed_key, lease_hash, idempotency, request_hash, attempt, wish, planner, waits_until_ms,
                           changed_ms)
     SELECT value ->> 0, unhex(value ->> 1), unhex(value ->> 2), unhex(value ->> 3), unhex(value ->> 4), value ->> 5,
            value ->> 6, value ->> 7, value ->> 8, value ->> 9
     FROM json_each(?1) WHERE true
     ON CONFLICT (id) DO UPDATE SET attempt = excluded.attempt, planner = excluded.planner,
         waits_until_ms = excluded.waits_until_ms, changed_ms = excluded.changed_ms";

async fn requests(
    connection: &mut SqliteConnection,
    changed: &[Changed<RequestRow>],
) -> Result<(), StoreError> {
    let gone = changed.iter().filter(|changed| changed.after.is_none());
    let gone: Vec<i64> = gone.filter_map(|changed| Some(changed.before.as_ref()?.id)).collect();
    let written: Vec<_> = changed.iter().filter_map(|changed| changed.after.as_ref()).map(request).collect();
    list(connection, DELETE_REQUESTS, &gone).await?;
    list(connection, WRITE_REQUESTS, &written).await
}

fn request(row: &Arc<RequestRow>) -> impl Serialize + '_ {
    let asked = row.idempotency.as_ref();
    (
        row.id,
        hex(row.key.as_bytes()),
        hex(&row.lease),
        asked.map(|asked| hex(&asked.key)),
        asked.map(|asked| hex(&asked.request)),
        row.attempt,
        wish::encode(&row.wish),
        row.planner.as_deref(),
        row.waits_until_ms,
        row.changed_ms,
    )
}

const FORGET_SOURCES: &str = "DELETE FROM instances WHERE instance_id IN (SELECT value FROM json_each(?1))";

const WRITE_SOURCES: &str = "INSERT INTO instances (instance_id, source_instance, used_ms)
     SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true
     ON CONFLICT (instance_id) DO UPDATE SET source_instance = excluded.source_instance, used_ms = excluded.used_ms";

/// Those of other keys matter no more than a moment.
const FORGET_MOVES: &str =
    "DELETE FROM moves WHERE moved_ms < (SELECT min(value ->> 1) FROM json_each(?1)) - 60000";

const WRITE_MOVES: &str =
    "INSERT INTO moves (seed_key, moved_ms) SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?1) WHERE true
     ON CONFLICT (seed_key) DO UPDATE SET moved_ms = excluded.moved_ms";

const WRITE_ENDED: &str =
    "INSERT INTO ended_leases (lease_hash, seed_key, host, port, rank, requester, granted_ms, ended_ms, end_kind,
                               outcome, reason, bytes, duration_ms, reader)
     SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
            value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13
     FROM json_each(?1)";

fn ended(row: &EndedRow) -> impl Serialize + '_ {
    (
        hex(&row.lease),
        hex(row.key.as_bytes()),
        row.identity.host(),
        row.identity.port(),
        row.identity.rank(),
        row.requester.as_deref(),
        row.granted_ms,
        row.ended_ms,
        row.end as u8,
        row.report as u8,
        row.reason.as_deref(),
        signed(row.bytes),
        signed(row.duration_ms),
        row.reader.as_ref().map(SeedIdentity::to_string),
    )
}

const WRITE_EVENTS: &str = "INSERT INTO events (at_ms, kind, seed_key, host, port, rank, done_by, detail)
     SELECT value ->> 0, value ->> 1, unhex(value ->> 2), value ->> 3, value ->> 4, value ->> 5, value ->> 6,
         value ->> 7
     FROM json_each(?1)";

fn event(row: &EventRow) -> impl Serialize + '_ {
    let happened = &row.happened;
    let seed = happened.identity.as_ref();
    (
        row.at_ms,
        happened.kind as u8,
        hex(happened.key.as_bytes()),
        seed.map(SeedIdentity::host),
        seed.map(SeedIdentity::port),
        seed.map(SeedIdentity::rank),
        happened.by.as_deref(),
        happened.detail.as_deref(),
    )
}
