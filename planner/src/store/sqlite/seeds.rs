//! Registering, heartbeats, removing.

use std::collections::HashSet;

use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::{Row, SqliteConnection};

use super::super::{Beat, Command, MAX_FLUSH, Outcome, Rules, StoreError};
use super::{json, offer};
use crate::domain::seed::{self, Known, Registration, Removal};

async fn known(
    connection: &mut SqliteConnection,
    now: i64,
    identity: &SeedIdentity,
) -> Result<Option<(i64, Known)>, StoreError> {
    let row = sqlx::query(
        "SELECT id, seed_key, removed,
                (SELECT count(*) FROM points WHERE seed_id = seeds.id AND busy_until_ms > ?1) AS live
         FROM seeds WHERE identity = ?2",
    )
    .bind(now)
    .bind(identity.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let known = Known {
        key: super::seed_key(row.try_get("seed_key")?)?,
        removed: row.try_get("removed")?,
        live_leases: row.try_get("live")?,
    };
    Ok(Some((row.try_get("id")?, known)))
}

pub(super) async fn register(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut heard_again = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Register { identity, key, age_ms } = command else { continue };
        let known = known(connection, now, identity).await?;
        let registration = seed::register(known.as_ref().map(|(_, known)| known), key);
        let heard_ms = now.saturating_sub(*age_ms);
        let id = match (registration, known) {
            (Registration::New, _) | (_, None) => {
                insert(connection, identity, key, rules.capacity, heard_ms).await?
            }
            (Registration::NewHolding, Some((id, _))) => {
                // Nothing of what it was remains, its leases included.
                delete(connection, id).await?;
                insert(connection, identity, key, rules.capacity, heard_ms).await?
            }
            (Registration::Repeated, Some((id, _))) => {
                heard(connection, id, heard_ms).await?;
                heard_again.push(id);
                id
            }
            (Registration::Draining, Some((id, _))) => {
                heard(connection, id, heard_ms).await?;
                id
            }
        };
        *outcome = Some(Outcome::Registered(registration, id));
    }
    // It may have been silent, and so without a place.
    offer::refresh(connection, now, rules, &heard_again).await
}

async fn insert(
    connection: &mut SqliteConnection,
    identity: &SeedIdentity,
    key: &SeedKey,
    capacity: u32,
    heard_ms: i64,
) -> Result<i64, StoreError> {
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO seeds (identity, host, port, rank, seed_key, capacity) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         RETURNING id",
    )
    .bind(identity.to_string())
    .bind(identity.host())
    .bind(identity.port())
    .bind(identity.rank())
    .bind(key.as_bytes())
    .bind(capacity)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("INSERT INTO heartbeats (seed_id, seed_key, last_ms) VALUES (?1, ?2, ?3)")
        .bind(id)
        .bind(key.as_bytes())
        .bind(heard_ms)
        .execute(connection)
        .await?;
    Ok(id)
}

/// Its points and its heartbeat go with it.
async fn delete(connection: &mut SqliteConnection, id: i64) -> Result<(), StoreError> {
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
    rules: Rules,
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
        // Silent seeds have no place and get one again. So have full ones, whose place stays none.
        let placeless: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM seeds WHERE id IN (SELECT value FROM json_each(?1))
               AND removed = 0 AND offer_rank IS NULL",
        )
        .bind(json(&written)?)
        .fetch_all(&mut *connection)
        .await?;
        offer::refresh(connection, now, rules, &placeless).await?;
    }
    Ok(gone)
}

pub(super) async fn remove(
    connection: &mut SqliteConnection,
    now: i64,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Remove { identity, key } = command else { continue };
        let known = known(connection, now, identity).await?;
        let removal = seed::remove(known.as_ref().map(|(_, known)| known), key);
        match (removal, known) {
            (Removal::Gone, Some((id, _))) => delete(connection, id).await?,
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
    Ok(())
}
