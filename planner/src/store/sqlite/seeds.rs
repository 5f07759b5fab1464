//! Registering, heartbeats, removing.

use std::collections::HashSet;

use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::{Row, SqliteConnection};

use super::super::{Beat, Command, MAX_FLUSH, Outcome, Rules, StoreError};
use crate::domain::seed::{self, Known, Registration, Removal};

/// `offer_from_ms` of a seed that is not offered: removed, or silent.
pub(super) const NOT_OFFERED: i64 = i64::MAX;

/// Where to look for free points of the seed in this row, at time `?1`: now when it has one, else when the
/// first of its leases ends.
macro_rules! offer {
    () => {
        "CASE WHEN removed = 1 THEN 9223372036854775807
         WHEN capacity > (SELECT count(*) FROM points p
                          WHERE p.seed_id = seeds.id AND p.n < seeds.capacity AND p.busy_until_ms > ?1) THEN 0
         ELSE (SELECT min(p.busy_until_ms) FROM points p
               WHERE p.seed_id = seeds.id AND p.n < seeds.capacity AND p.busy_until_ms > ?1) END"
    };
}

/// Recomputes the offer of these seeds.
pub(super) async fn offer_again(
    connection: &mut SqliteConnection,
    now: i64,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    let update = concat!(
        "UPDATE seeds SET offer_from_ms = ",
        offer!(),
        " WHERE id IN (SELECT value FROM json_each(?2))"
    );
    sqlx::query(update).bind(now).bind(json(seed_ids)).execute(connection).await?;
    Ok(())
}

/// Recomputes the offer of all seeds.
pub(super) async fn offer_all_again(connection: &mut SqliteConnection, now: i64) -> Result<(), StoreError> {
    let update = concat!("UPDATE seeds SET offer_from_ms = ", offer!());
    sqlx::query(update).bind(now).execute(connection).await?;
    Ok(())
}

/// Numbers as a JSON array, which is how a list is bound to one parameter.
pub(super) fn json(numbers: &[i64]) -> String {
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(","))
}

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
                hold_anew(connection, id, key, rules.capacity, heard_ms).await?;
                id
            }
            (Registration::Repeated, Some((id, _))) => {
                heard(connection, id, heard_ms).await?;
                offer_again(connection, now, &[id]).await?;
                id
            }
            (Registration::Draining, Some((id, _))) => {
                heard(connection, id, heard_ms).await?;
                id
            }
        };
        *outcome = Some(Outcome::Registered(registration, id));
    }
    Ok(())
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

/// The seed now holds something else: nothing of what it was remains.
async fn hold_anew(
    connection: &mut SqliteConnection,
    id: i64,
    key: &SeedKey,
    capacity: u32,
    heard_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM points WHERE seed_id = ?1").bind(id).execute(&mut *connection).await?;
    sqlx::query(
        "UPDATE seeds SET seed_key = ?2, capacity = ?3, removed = 0, last_used_ms = 0, offer_from_ms = 0
         WHERE id = ?1",
    )
    .bind(id)
    .bind(key.as_bytes())
    .bind(capacity)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE heartbeats SET seed_key = ?2, last_ms = ?3 WHERE seed_id = ?1")
        .bind(id)
        .bind(key.as_bytes())
        .bind(heard_ms)
        .execute(connection)
        .await?;
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
    beats: &[Beat],
) -> Result<HashSet<i64>, StoreError> {
    let mut gone: HashSet<i64> = beats.iter().map(|beat| beat.seed_id).collect();
    for some in beats.chunks(MAX_FLUSH) {
        let pairs: Vec<String> = some
            .iter()
            .map(|beat| format!("[{},{}]", beat.seed_id, now.saturating_sub(beat.age_ms)))
            .collect();
        let written: Vec<i64> = sqlx::query_scalar(
            "UPDATE heartbeats SET last_ms = max(last_ms, beat.heard_ms)
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS heard_ms FROM json_each(?1)) AS beat
             WHERE heartbeats.seed_id = beat.id RETURNING seed_id",
        )
        .bind(format!("[{}]", pairs.join(",")))
        .fetch_all(&mut *connection)
        .await?;
        for id in written {
            gone.remove(&id);
        }
        // A seed that had fallen silent is offered again.
        let ids: Vec<i64> = some.iter().map(|beat| beat.seed_id).collect();
        let update = concat!(
            "UPDATE seeds SET offer_from_ms = ",
            offer!(),
            " WHERE offer_from_ms = 9223372036854775807 AND removed = 0
              AND id IN (SELECT value FROM json_each(?2))"
        );
        sqlx::query(update).bind(now).bind(json(&ids)).execute(&mut *connection).await?;
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
        if let Some((id, _)) = known {
            let statement = match removal {
                Removal::Unknown => None,
                Removal::Draining => {
                    Some("UPDATE seeds SET removed = 1, offer_from_ms = 9223372036854775807 WHERE id = ?1")
                }
                Removal::Gone => Some("DELETE FROM seeds WHERE id = ?1"),
            };
            if let Some(statement) = statement {
                sqlx::query(statement).bind(id).execute(&mut *connection).await?;
            }
        }
        *outcome = Some(Outcome::Removed(removal));
    }
    Ok(())
}
