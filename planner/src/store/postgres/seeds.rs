//! Registering, heartbeats, removing.

use std::collections::{BTreeSet, HashSet};

use async_trait::async_trait;
use rfork_protocol::SeedIdentity;
use sqlx::PgConnection;

use super::super::{Beat, Command, Outcome, Rules};
use super::batch::{HeldSeeds, Seed};
use super::transaction::{Stopped, Work};
use super::{PostgresStore, key_hash, offer};
use crate::domain::seed::{self, Registration, Removal};

/// The most seeds whose capacity one transaction changes.
const ADOPT_ROWS: i64 = 1_000;

/// Decides what the registrations mean. A seed that becomes another holding gets a number of the sequence,
/// which gives none twice, whoever asks.
pub(super) async fn register(
    connection: &mut PgConnection,
    now: i64,
    rules: Rules,
    commands: &[Command],
    held: &mut HeldSeeds<'_>,
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Stopped> {
    // Numbers below 0 stand for new ones until it is known how many are needed.
    let mut fresh: i64 = 0;
    for (command, outcome) in commands.iter().zip(outcomes.iter_mut()) {
        let Command::Register { identity, key, age_ms } = command else { continue };
        let Some(held) = held.get_mut(&identity.to_string()) else { continue };
        let known = held.seed.as_ref().map(|seed| seed.known(now));
        let registration = seed::register(known.as_ref(), key);
        let heard_ms = now.saturating_sub(*age_ms);
        let id = match (registration, &mut held.seed) {
            (Registration::New | Registration::NewHolding, _) | (_, None) => {
                fresh -= 1;
                held.seed = Some(Seed {
                    id: fresh,
                    key: key.clone(),
                    removed: false,
                    capacity: rules.capacity,
                    heard_ms: Some(heard_ms),
                    points: Vec::new(),
                    renewed: BTreeSet::new(),
                    released: BTreeSet::new(),
                    moved: false,
                });
                fresh
            }
            (Registration::Repeated | Registration::Draining, Some(seed)) => {
                seed.heard_ms = seed.heard_ms.max(Some(heard_ms));
                // A planner that ran beside this one, with an older setting, may have registered it.
                if seed.capacity != rules.capacity {
                    seed.capacity = rules.capacity;
                    seed.moved = true;
                }
                seed.id
            }
        };
        *outcome = Some(Outcome::Registered(registration, id));
    }
    if fresh == 0 {
        return Ok(());
    }
    let numbers: Vec<i64> = sqlx::query_scalar("SELECT nextval('seeds_id_seq') FROM generate_series(1, $1)")
        .bind(-fresh)
        .fetch_all(connection)
        .await?;
    let number = |id: i64| match usize::try_from(-id) {
        Ok(at) if at > 0 => numbers.get(at - 1).copied(),
        _ => Some(id),
    };
    let missing = || Stopped::Broken("the sequence gave too few numbers".into());
    for seed in held.values_mut().filter_map(|held| held.seed.as_mut()) {
        seed.id = number(seed.id).ok_or_else(missing)?;
    }
    for outcome in outcomes.iter_mut().flatten() {
        if let Outcome::Registered(_, id) = outcome {
            *id = number(*id).ok_or_else(missing)?;
        }
    }
    Ok(())
}

/// Decides what the removals mean. The seed's lock was waited for: an allocation either came before, and is a
/// lease that keeps the seed, or comes after and finds it removed.
pub(super) fn remove(
    now: i64,
    commands: &[Command],
    held: &mut HeldSeeds<'_>,
    outcomes: &mut [Option<Outcome>],
) {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Remove { identity, key } = command else { continue };
        let Some(held) = held.get_mut(&identity.to_string()) else { continue };
        let known = held.seed.as_ref().map(|seed| seed.known(now));
        let removal = seed::remove(known.as_ref(), key);
        match (removal, &mut held.seed) {
            (Removal::Gone, seed) => *seed = None,
            (Removal::Draining, Some(seed)) => {
                seed.removed = true;
                seed.moved = true;
            }
            (Removal::Draining, None) | (Removal::Unknown, _) => {}
        }
        *outcome = Some(Outcome::Removed(removal));
    }
}

/// Writes what was decided.
pub(super) async fn write(connection: &mut PgConnection, held: &HeldSeeds<'_>) -> Result<(), Stopped> {
    let mut gone: Vec<i64> = Vec::new();
    let mut heard: (Vec<i64>, Vec<i64>) = Default::default();
    let mut changed: (Vec<i64>, Vec<bool>, Vec<i32>) = Default::default();
    let mut new: Vec<(&SeedIdentity, &Seed)> = Vec::new();
    for held in held.values() {
        let kept = held.seed.as_ref().filter(|seed| held.stored == Some(seed.id));
        if let (Some(id), None) = (held.stored, kept) {
            gone.push(id);
        }
        match (&held.seed, kept) {
            (Some(seed), None) => new.push((held.identity, seed)),
            (Some(seed), Some(_)) => {
                if let Some(heard_ms) = seed.heard_ms {
                    heard.0.push(seed.id);
                    heard.1.push(heard_ms);
                }
                if seed.moved {
                    changed.0.push(seed.id);
                    changed.1.push(seed.removed);
                    changed.2.push(points(seed.capacity));
                }
            }
            (None, _) => {}
        }
    }
    delete(connection, &gone).await?;
    if !changed.0.is_empty() {
        sqlx::query(
            "UPDATE seeds s SET removed = t.removed, capacity = t.capacity
             FROM unnest($1::bigint[], $2::bool[], $3::int[]) AS t (id, removed, capacity)
             WHERE s.id = t.id AND (s.removed, s.capacity) <> (t.removed, t.capacity)",
        )
        .bind(changed.0)
        .bind(changed.1)
        .bind(changed.2)
        .execute(&mut *connection)
        .await?;
    }
    if !heard.0.is_empty() {
        // Heartbeats may arrive out of order; the latest counts.
        sqlx::query(
            "UPDATE heartbeats h SET last_ms = t.last_ms
             FROM unnest($1::bigint[], $2::bigint[]) AS t (seed_id, last_ms)
             WHERE h.seed_id = t.seed_id AND h.last_ms < t.last_ms",
        )
        .bind(heard.0)
        .bind(heard.1)
        .execute(&mut *connection)
        .await?;
    }
    insert(connection, &new).await
}

/// Inserts new holdings, in the order of their identities. Another planner that inserts the same ones is waited
/// for; if its seed stays, this transaction begins again and finds it.
async fn insert(connection: &mut PgConnection, new: &[(&SeedIdentity, &Seed)]) -> Result<(), Stopped> {
    if new.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = new.iter().map(|(_, seed)| seed.id).collect();
    let hashes: Vec<Vec<u8>> = new.iter().map(|(_, seed)| key_hash(&seed.key).to_vec()).collect();
    let inserted = sqlx::query(
        "INSERT INTO seeds (id, identity, host, port, rank, seed_key, key_hash, capacity)
         SELECT t.* FROM unnest($1::bigint[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bytea[],
                                $7::bytea[], $8::int[])
             AS t (id, identity, host, port, rank, seed_key, key_hash, capacity)
         ORDER BY t.identity COLLATE \"C\"
         ON CONFLICT (identity) DO NOTHING",
    )
    .bind(&ids)
    .bind(new.iter().map(|(identity, _)| identity.to_string()).collect::<Vec<_>>())
    .bind(new.iter().map(|(identity, _)| identity.host()).collect::<Vec<_>>())
    .bind(new.iter().map(|(identity, _)| i32::from(identity.port())).collect::<Vec<_>>())
    .bind(new.iter().map(|(identity, _)| i64::from(identity.rank())).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, seed)| seed.key.as_bytes()).collect::<Vec<_>>())
    .bind(&hashes)
    .bind(new.iter().map(|(_, seed)| points(seed.capacity)).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if inserted != new.len() as u64 {
        return Err(Stopped::Again);
    }
    sqlx::query(
        "INSERT INTO heartbeats (seed_id, key_hash, last_ms)
         SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[])",
    )
    .bind(&ids)
    .bind(&hashes)
    .bind(new.iter().map(|(_, seed)| seed.heard_ms.unwrap_or_default()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// A number of points as the database spells it; settings keep it far below the largest.
fn points(capacity: u32) -> i32 {
    i32::try_from(capacity).unwrap_or(i32::MAX)
}

/// Deletes seeds that the caller has locked, their heartbeats too; their points go with them.
pub(super) async fn delete(connection: &mut PgConnection, ids: &[i64]) -> Result<(), Stopped> {
    if !ids.is_empty() {
        sqlx::query("DELETE FROM seeds WHERE id = ANY($1)").bind(ids).execute(connection).await?;
    }
    Ok(())
}

/// Locks heartbeats in the order in which a flush does, so that the two cannot wait for each other.
pub(super) async fn lock_heartbeats(connection: &mut PgConnection, ids: &[i64]) -> Result<(), Stopped> {
    if !ids.is_empty() {
        sqlx::query("SELECT 1 FROM heartbeats WHERE seed_id = ANY($1) ORDER BY seed_id FOR UPDATE")
            .bind(ids)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Writes heartbeats; gives the seeds that are gone. It touches nothing that a claim locks.
pub(super) struct Flush<'a> {
    pub(super) store: &'a PostgresStore,
    /// In the order of their seeds' numbers.
    pub(super) beats: &'a [Beat],
}

#[async_trait]
impl Work for Flush<'_> {
    type Done = HashSet<i64>;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<HashSet<i64>, Stopped> {
        let now = self.store.now(connection).await?;
        let mut gone: HashSet<i64> = self.beats.iter().map(|beat| beat.seed_id).collect();
        let known: Vec<i64> = sqlx::query_scalar(
            "WITH beat AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS t (seed_id, last_ms)),
                  locked AS MATERIALIZED (
                      SELECT h.seed_id FROM heartbeats h WHERE h.seed_id = ANY($1) ORDER BY h.seed_id FOR UPDATE),
                  written AS (
                      UPDATE heartbeats h SET last_ms = beat.last_ms
                      FROM beat JOIN locked ON locked.seed_id = beat.seed_id
                      WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms)
             SELECT seed_id FROM locked",
        )
        .bind(self.beats.iter().map(|beat| beat.seed_id).collect::<Vec<_>>())
        .bind(self.beats.iter().map(|beat| now.saturating_sub(beat.age_ms)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        for id in known {
            gone.remove(&id);
        }
        Ok(gone)
    }
}

/// Gives a bounded number of seeds this planner's capacity; gives how many there were.
pub(super) struct AdoptCapacity<'a>(pub(super) &'a PostgresStore);

#[async_trait]
impl Work for AdoptCapacity<'_> {
    type Done = usize;

    async fn attempt(&mut self, connection: &mut PgConnection) -> Result<usize, Stopped> {
        let capacity = points(self.0.rules.capacity);
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM seeds WHERE capacity <> $1 ORDER BY id LIMIT $2 FOR UPDATE")
                .bind(capacity)
                .bind(ADOPT_ROWS)
                .fetch_all(&mut *connection)
                .await?;
        let now = self.0.now(connection).await?;
        sqlx::query("UPDATE seeds SET capacity = $1 WHERE id = ANY($2)")
            .bind(capacity)
            .bind(&ids)
            .execute(&mut *connection)
            .await?;
        offer::refresh(connection, now, &ids).await?;
        Ok(ids.len())
    }
}
