//! Registering, heartbeats, removing, draining.

use std::collections::HashSet;

use rfork_protocol::v1::Labels;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::super::history::{EventKind, Happened};
use super::super::{Beat, Command, MAX_FLUSH, Outcome, Rules, StoreError};
use super::{history, json, location, offer};
use crate::domain::seed::{self, Heard, Known, Profile, Registration, Removal};
use crate::domain::terms::Terms;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most seeds that one step of [`adopt`] or [`invalidate`] changes.
const STEP_ROWS: u32 = 1_000;

/// What a row's seed told of itself.
pub(super) fn profile(row: &SqliteRow) -> Result<Profile, StoreError> {
    Ok(Profile {
        labels: Labels {
            model_url: row.try_get("model_url")?,
            deploy_strategy: row.try_get("deploy_strategy")?,
            is_draft: row.try_get("is_draft")?,
        },
        location: location(row)?,
        instance_id: row.try_get("instance_id")?,
        incarnation: row.try_get("incarnation")?,
        content_id: row.try_get("content_id")?,
    })
}

async fn known(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    identity: &SeedIdentity,
) -> Result<Option<(i64, Known)>, StoreError> {
    let row = sqlx::query(
        "SELECT id, seed_key, removed, drained, model_url, deploy_strategy, is_draft, zone, rack, node,
                instance_id, incarnation, content_id,
                (SELECT last_ms FROM heartbeats WHERE seed_id = seeds.id) <= ?3 AS silent,
                (SELECT count(*) FROM points WHERE seed_id = seeds.id AND busy_until_ms > ?1) AS live
         FROM seeds WHERE identity = ?2",
    )
    .bind(now)
    .bind(identity.to_string())
    .bind(now.saturating_sub(rules.heartbeat_ttl_ms))
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let known = Known {
        key: super::seed_key(row.try_get("seed_key")?)?,
        profile: profile(&row)?,
        removed: row.try_get("removed")?,
        drained: row.try_get("drained")?,
        silent: row.try_get("silent")?,
        live_leases: row.try_get("live")?,
    };
    Ok(Some((row.try_get("id")?, known)))
}

pub(super) async fn register(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    // Silent ones that are heard of again have no place, and others may have found room on their host.
    let mut moved = Vec::new();
    let mut happened = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        if let Command::Beat { identity, key, incarnation, age_ms } = command {
            let known = known(connection, now, rules, identity).await?;
            let status = seed::hear(known.as_ref().map(|(_, known)| known), key, incarnation.as_deref());
            let heard_id = known.map(|(id, _)| id).filter(|_| status != Heard::Unknown);
            if let Some(id) = heard_id {
                heard(connection, id, now.saturating_sub(*age_ms)).await?;
            }
            let id = heard_id.filter(|_| status == Heard::Known);
            moved.extend(id);
            *outcome = Some(Outcome::Heard(status, id));
        }
        let Command::Register { identity, key, profile, age_ms } = command else { continue };
        let known = known(connection, now, rules, identity).await?;
        let registration = seed::register(known.as_ref().map(|(_, known)| known), key, profile);
        let heard_ms = now.saturating_sub(*age_ms);
        let id = match (registration, known) {
            (Registration::New, _) | (_, None) => {
                happened.push(Happened::to(identity, key, EventKind::Registered));
                insert(connection, rules, identity, key, profile, heard_ms).await?
            }
            (Registration::NewHolding, Some((id, known))) => {
                let novelty = seed::novelty(&known, key, profile);
                happened.push(Happened::to(identity, key, EventKind::NewHolding).with(novelty));
                // Nothing of what it was remains, its leases included.
                moved.extend(beside(connection, rules, id).await?);
                delete(connection, now, rules, id).await?;
                insert(connection, rules, identity, key, profile, heard_ms).await?
            }
            (Registration::Repeated, Some((id, known))) => {
                heard(connection, id, heard_ms).await?;
                let profile = profile.as_ref().clone().or(&known.profile);
                if profile != known.profile {
                    moved.extend(beside(connection, rules, id).await?);
                    let terms = rules.terms(identity, key, &profile);
                    describe(connection, id, identity, &profile, terms).await?;
                }
                moved.push(id);
                id
            }
            (Registration::Draining, Some((id, _))) => {
                heard(connection, id, heard_ms).await?;
                id
            }
        };
        *outcome = Some(Outcome::Registered(registration, id));
    }
    history::write(connection, now, rules, &happened).await?;
    offer::refresh(connection, now, rules, &moved).await
}

/// The other seeds of a seed's host, if those share a bound.
async fn beside(connection: &mut SqliteConnection, rules: &Rules, id: i64) -> Result<Vec<i64>, StoreError> {
    if !rules.caps_hosts() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_scalar(
        "SELECT o.id FROM seeds s JOIN seeds o ON o.capped_host = s.capped_host WHERE s.id = ?1 AND o.id <> ?1",
    )
    .bind(id)
    .fetch_all(connection)
    .await?)
}

async fn insert(
    connection: &mut SqliteConnection,
    rules: &Rules,
    identity: &SeedIdentity,
    key: &SeedKey,
    profile: &Profile,
    heard_ms: i64,
) -> Result<i64, StoreError> {
    let terms = rules.terms(identity, key, profile);
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO seeds (identity, host, port, rank, seed_key, capacity, lease_ttl_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) RETURNING id",
    )
    .bind(identity.to_string())
    .bind(identity.host())
    .bind(identity.port())
    .bind(identity.rank())
    .bind(key.as_bytes())
    .bind(terms.capacity)
    .bind(terms.lease_ttl_ms)
    .fetch_one(&mut *connection)
    .await?;
    // Most tell nothing and are not bound.
    if *profile != Profile::default() || terms.host_capacity.is_some() {
        describe(connection, id, identity, profile, terms).await?;
    }
    sqlx::query("INSERT INTO heartbeats (seed_id, seed_key, last_ms) VALUES (?1, ?2, ?3)")
        .bind(id)
        .bind(key.as_bytes())
        .bind(heard_ms)
        .execute(connection)
        .await?;
    Ok(id)
}

/// Writes what a seed told of itself, and its terms.
async fn describe(
    connection: &mut SqliteConnection,
    id: i64,
    identity: &SeedIdentity,
    profile: &Profile,
    terms: Terms,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE seeds SET capacity = ?2, lease_ttl_ms = ?3, capped_host = ?4, host_capacity = ?5, model_url = ?6,
             deploy_strategy = ?7, is_draft = ?8, zone = ?9, rack = ?10, node = ?11, instance_id = ?12,
             incarnation = ?13, content_id = ?14
         WHERE id = ?1",
    )
    .bind(id)
    .bind(terms.capacity)
    .bind(terms.lease_ttl_ms)
    .bind(terms.host_capacity.map(|_| profile.location.host.as_deref().unwrap_or(identity.host())))
    .bind(terms.host_capacity)
    .bind(&profile.labels.model_url)
    .bind(&profile.labels.deploy_strategy)
    .bind(profile.labels.is_draft)
    .bind(&profile.location.zone)
    .bind(&profile.location.rack)
    .bind(&profile.location.host)
    .bind(&profile.instance_id)
    .bind(&profile.incarnation)
    .bind(&profile.content_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a bounded number of seeds, those that follow `after`, the terms that the rules have now; gives the last
/// of them.
pub(super) async fn adopt(
    connection: &mut SqliteConnection,
    rules: &Rules,
    after: i64,
) -> Result<Option<i64>, StoreError> {
    let rows = sqlx::query("SELECT * FROM seeds WHERE id > ?1 ORDER BY id LIMIT ?2 + 0")
        .bind(after)
        .bind(STEP_ROWS)
        .fetch_all(&mut *connection)
        .await?;
    let mut last = None;
    for row in rows {
        let id: i64 = row.try_get("id")?;
        last = Some(id);
        let identity = super::identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?;
        let profile = profile(&row)?;
        let terms = rules.terms(&identity, &super::seed_key(row.try_get("seed_key")?)?, &profile);
        let before = Terms {
            capacity: row.try_get("capacity")?,
            lease_ttl_ms: row.try_get("lease_ttl_ms")?,
            host_capacity: row.try_get("host_capacity")?,
        };
        if terms != before {
            describe(connection, id, &identity, &profile, terms).await?;
        }
    }
    Ok(last)
}

/// Its points and its heartbeat go with it.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    id: i64,
) -> Result<(), StoreError> {
    history::end_leases_of(connection, now, rules, id).await?;
    sqlx::query("DELETE FROM seeds WHERE id = ?1").bind(id).execute(connection).await?;
    Ok(())
}

/// Heartbeats may arrive out of order; the latest counts.
async fn heard(connection: &mut SqliteConnection, id: i64, heard_ms: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE heartbeats SET last_ms = max(last_ms, ?2) WHERE seed_id = ?1")
        .bind(id)
        .bind(heard_ms)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn flush(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    beats: &[Beat],
) -> Result<HashSet<i64>, StoreError> {
    let mut gone: HashSet<i64> = beats.iter().map(|beat| beat.seed_id).collect();
    for some in beats.chunks(MAX_FLUSH) {
        let heard: Vec<(i64, i64)> =
            some.iter().map(|beat| (beat.seed_id, now.saturating_sub(beat.age_ms))).collect();
        let written: Vec<i64> = sqlx::query_scalar(
            "UPDATE heartbeats SET last_ms = max(last_ms, beat.value ->> 1) FROM json_each(?1) AS beat
             WHERE heartbeats.seed_id = beat.value ->> 0 RETURNING seed_id",
        )
        .bind(json(&heard)?)
        .fetch_all(&mut *connection)
        .await?;
        for id in &written {
            gone.remove(id);
        }
        let placeless: Vec<(i64, bool)> = sqlx::query_as(
            "SELECT id, removed = 1 OR drained = 1 FROM seeds
             WHERE id IN (SELECT value FROM json_each(?1)) AND offer_rank IS NULL",
        )
        .bind(json(&written)?)
        .fetch_all(&mut *connection)
        .await?;
        let (over, placeless): (Vec<_>, Vec<_>) = placeless.into_iter().partition(|(_, is_over)| *is_over);
        gone.extend(over.into_iter().map(|(id, _)| id));
        // Silent seeds have no place and get one again. So have full and suspect ones, whose place stays none.
        let placeless: Vec<i64> = placeless.into_iter().map(|(id, _)| id).collect();
        offer::refresh(connection, now, rules, &placeless).await?;
    }
    Ok(gone)
}

pub(super) async fn remove(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut happened = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let (Command::Remove { identity, key } | Command::Drain { identity, key }) = command else {
            continue;
        };
        let known = known(connection, now, rules, identity).await?;
        if matches!(command, Command::Drain { .. }) {
            let drained = match known.filter(|(_, known)| known.key == *key) {
                Some((id, known)) => {
                    drain(connection, &[id]).await?;
                    if !known.drained {
                        let drained = Happened::to(identity, key, EventKind::Drained);
                        happened.push(drained.leaving(known.live_leases));
                    }
                    Some(known.live_leases)
                }
                None => None,
            };
            *outcome = Some(Outcome::Drained(drained));
            continue;
        }
        let removal = seed::remove(known.as_ref().map(|(_, known)| known), key);
        if let Some((_, known)) = known.as_ref().filter(|(_, known)| known.key == *key && !known.removed) {
            // As the sweep would have told of it.
            let kind = if removal == Removal::GoneBefore { EventKind::Silent } else { EventKind::Removed };
            happened.push(Happened::to(identity, key, kind).leaving(known.live_leases));
        }
        match (removal, known) {
            (Removal::Gone | Removal::GoneBefore, Some((id, _))) => {
                delete(connection, now, rules, id).await?;
            }
            (Removal::Draining, Some((id, _))) => {
                sqlx::query("UPDATE seeds SET removed = 1, offer_rank = NULL WHERE id = ?1")
                    .bind(id)
                    .execute(&mut *connection)
                    .await?;
            }
            (Removal::Unknown, _) | (_, None) => {}
        }
        *outcome = Some(Outcome::Removed(removal));
    }
    history::write(connection, now, rules, &happened).await
}

async fn drain(connection: &mut SqliteConnection, ids: &[i64]) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE seeds SET drained = 1, offer_rank = NULL WHERE id IN (SELECT value FROM json_each(?1))",
    )
    .bind(json(ids)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes out a bounded number of seeds of a key whose content is not `keep`; gives how many.
pub(super) async fn invalidate(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    key: &SeedKey,
    keep: Option<&str>,
) -> Result<usize, StoreError> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT s.id FROM heartbeats h INDEXED BY heartbeats_by_key CROSS JOIN seeds s ON s.id = h.seed_id
         WHERE h.seed_key = ?1 AND s.drained = 0 AND (?2 IS NULL OR s.content_id IS NOT ?2) LIMIT ?3 + 0",
    )
    .bind(key.as_bytes())
    .bind(keep)
    .bind(STEP_ROWS)
    .fetch_all(&mut *connection)
    .await?;
    drain(connection, &ids).await?;
    if !ids.is_empty() {
        let invalidated = Happened::invalidated(key, ids.len() as u64);
        history::write(connection, now, rules, &[invalidated]).await?;
    }
    Ok(ids.len())
}
