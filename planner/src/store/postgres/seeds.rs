//! Registering, heartbeats, removing, draining.

use std::collections::{BTreeSet, HashSet};

use async_trait::async_trait;
use rfork_protocol::v1::Labels;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::history::{EventKind, Happened};
use super::super::{Beat, Command, Outcome, Rules};
use super::batch::{Changes, Held, HeldSeeds, Seed};
use super::history::Log;
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::{Database, identity, key_hash, offer, small};
use crate::domain::health::Health;
use crate::domain::location::Location;
use crate::domain::seed::{self, Heard, Profile, Registration, Removal};
use crate::domain::terms::Terms;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most seeds that one step of [`Adopt`] or [`Invalidate`] changes.
const STEP_ROWS: i64 = 1_000;

/// Decides what the registrations mean. A seed that becomes another holding gets a number of the sequence,
/// which gives none twice, whoever asks.
pub(super) async fn register(
    connection: &mut Connection,
    now: i64,
    rules: &Rules,
    commands: &[Command],
    changes: &mut Changes<'_, '_>,
) -> Result<(), Stopped> {
    let Changes { held, outcomes, log } = changes;
    // Numbers below 0 stand for new ones until it is known how many are needed.
    let mut fresh: i64 = 0;
    for (command, outcome) in commands.iter().zip(outcomes.iter_mut()) {
        if let Command::Beat { identity, key, incarnation, age_ms } = command {
            let seed = held.get_mut(&identity.to_string()).and_then(|held| held.seed.as_mut());
            let known = seed.as_ref().map(|seed| seed.known(now, rules));
            let status = seed::hear(known.as_ref(), key, incarnation.as_deref());
            let heard = seed.filter(|_| status != Heard::Unknown).map(|seed| {
                seed.heard_ms = seed.heard_ms.max(Some(now.saturating_sub(*age_ms)));
                seed.id
            });
            *outcome = Some(Outcome::Heard(status, heard.filter(|_| status == Heard::Known)));
        }
        let Command::Register { identity, key, profile, age_ms } = command else { continue };
        let Some(held) = held.get_mut(&identity.to_string()) else { continue };
        let known = held.seed.as_ref().map(|seed| seed.known(now, rules));
        let registration = seed::register(known.as_ref(), key, profile);
        let heard_ms = now.saturating_sub(*age_ms);
        let id = match (registration, &mut held.seed) {
            (Registration::New | Registration::NewHolding, _) | (_, None) => {
                fresh -= 1;
                let happened = Happened::to(identity, key, EventKind::Registered);
                log.note(match &known {
                    None => happened,
                    Some(known) => Happened { kind: EventKind::NewHolding, ..happened }
                        .with(seed::novelty(known, key, profile)),
                });
                if let Some(old) = held.seed.take() {
                    log.take_along(now, identity, old);
                }
                held.seed = Some(Seed {
                    id: fresh,
                    key: key.clone(),
                    removed: false,
                    drained: false,
                    profile: profile.as_ref().clone(),
                    terms: rules.terms(identity, key, profile),
                    health: Health::default(),
                    answered_ms: 0,
                    last_ms: heard_ms,
                    heard_ms: Some(heard_ms),
                    points: Vec::new(),
                    renewed: BTreeSet::new(),
                    released: BTreeSet::new(),
                    moved: false,
                    changed: false,
                });
                fresh
            }
            (Registration::Repeated | Registration::Draining, Some(seed)) => {
                seed.heard_ms = seed.heard_ms.max(Some(heard_ms));
                let profile = profile.as_ref().clone().or(&seed.profile);
                // A planner that ran beside this one, with older settings, may have registered it.
                let terms = rules.terms(identity, key, &profile);
                if registration == Registration::Repeated && (&profile, terms) != (&seed.profile, seed.terms)
                {
                    (seed.profile, seed.terms) = (profile, terms);
                    (seed.moved, seed.changed) = (true, true);
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
        if let Outcome::Registered(_, id) | Outcome::Heard(_, Some(id)) = outcome {
            *id = number(*id).ok_or_else(missing)?;
        }
    }
    Ok(())
}

/// Decides what the removals mean. The seed's lock was waited for: an allocation either came before, and is a
/// lease that keeps the seed, or comes after and finds it removed.
pub(super) fn remove(now: i64, rules: &Rules, commands: &[Command], changes: &mut Changes<'_, '_>) {
    let Changes { held, outcomes, log } = changes;
    for (command, outcome) in commands.iter().zip(outcomes.iter_mut()) {
        let (Command::Remove { identity, key } | Command::Drain { identity, key }) = command else {
            continue;
        };
        let Some(held) = held.get_mut(&identity.to_string()) else { continue };
        if matches!(command, Command::Drain { .. }) {
            let seed = held.seed.as_mut().filter(|seed| seed.key == *key);
            *outcome = Some(Outcome::Drained(seed.map(|seed| {
                let leases = seed.live_leases(now);
                if !seed.drained {
                    log.note(Happened::to(identity, key, EventKind::Drained).leaving(leases));
                }
                seed.drained = true;
                (seed.moved, seed.changed) = (true, true);
                leases
            })));
            continue;
        }
        let known = held.seed.as_ref().map(|seed| seed.known(now, rules));
        let removal = seed::remove(known.as_ref(), key);
        if let Some(known) = known.filter(|known| known.key == *key && !known.removed) {
            // As the sweep would have told of it.
            let kind = if removal == Removal::GoneBefore { EventKind::Silent } else { EventKind::Removed };
            log.note(Happened::to(identity, key, kind).leaving(known.live_leases));
        }
        match (removal, &mut held.seed) {
            (Removal::Gone | Removal::GoneBefore, seed) => {
                if let Some(gone) = seed.take() {
                    log.take_along(now, identity, gone);
                }
            }
            (Removal::Draining, Some(seed)) => {
                seed.removed = true;
                (seed.moved, seed.changed) = (true, true);
            }
            (Removal::Draining, None) | (Removal::Unknown, _) => {}
        }
        *outcome = Some(Outcome::Removed(removal));
    }
}

/// Writes what was decided.
pub(super) async fn write(connection: &mut Connection, held: &HeldSeeds<'_>) -> Result<(), Stopped> {
    let mut gone: Vec<i64> = Vec::new();
    let mut heard: (Vec<i64>, Vec<i64>) = Default::default();
    let mut changed: Vec<(&SeedIdentity, &Seed)> = Vec::new();
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
                if seed.changed {
                    changed.push((held.identity, seed));
                }
            }
            (None, _) => {}
        }
    }
    delete(connection, &gone).await?;
    describe(connection, &changed).await?;
    meet_nobody(connection, held).await?;
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

/// Seeds of which clients are told that they are not there must not be there: others may have registered them, or a
/// new holding of theirs, while this transaction waited for locks, which the statement that locks does not see. If
/// one is there, this transaction begins again and finds it.
async fn meet_nobody(connection: &mut Connection, held: &HeldSeeds<'_>) -> Result<(), Stopped> {
    let is_absent = |held: &Held<'_>| held.stored.is_none() && held.seed.is_none();
    let absent: Vec<&String> =
        held.iter().filter(|(_, held)| is_absent(held)).map(|(name, _)| name).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let met: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM seeds WHERE identity = ANY($1))")
        .bind(absent)
        .fetch_one(connection)
        .await?;
    if met { Err(Stopped::Again) } else { Ok(()) }
}

/// Inserts new holdings, in the order of their identities. Another planner that inserts the same ones is waited
/// for; if its seed stays, this transaction begins again and finds it.
async fn insert(connection: &mut Connection, new: &[(&SeedIdentity, &Seed)]) -> Result<(), Stopped> {
    if new.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = new.iter().map(|(_, seed)| seed.id).collect();
    let hashes: Vec<Vec<u8>> = new.iter().map(|(_, seed)| key_hash(&seed.key).to_vec()).collect();
    let inserted = sqlx::query(
        "INSERT INTO seeds (id, identity, host, port, rank, seed_key, key_hash, capacity, lease_ttl_ms)
         SELECT t.* FROM unnest($1::bigint[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bytea[],
                                $7::bytea[], $8::int[], $9::bigint[])
             AS t (id, identity, host, port, rank, seed_key, key_hash, capacity, lease_ttl_ms)
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
    .bind(new.iter().map(|(_, seed)| points(seed.terms.capacity)).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, seed)| seed.terms.lease_ttl_ms).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if inserted != new.len() as u64 {
        return Err(Stopped::Again);
    }
    // Most tell nothing, are not bound, and are not drained at once.
    let more = |seed: &Seed| {
        seed.changed || seed.profile != Profile::default() || seed.terms.host_capacity.is_some()
    };
    let told: Vec<_> = new.iter().filter(|(_, seed)| more(seed)).copied().collect();
    describe(connection, &told).await?;
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

/// Writes all that a row says of a seed, beside its key and its place.
async fn describe(connection: &mut Connection, seeds: &[(&SeedIdentity, &Seed)]) -> Result<(), Stopped> {
    if seeds.is_empty() {
        return Ok(());
    }
    let texts = |of: fn(&Seed) -> &Option<String>| -> Vec<Option<&str>> {
        seeds.iter().map(|(_, seed)| of(seed).as_deref()).collect()
    };
    let capped = seeds.iter().map(|(identity, seed)| {
        seed.terms.host_capacity.map(|_| seed.profile.location.host.as_deref().unwrap_or(identity.host()))
    });
    sqlx::query(
        "UPDATE seeds s SET removed = t.removed, drained = t.drained, capacity = t.capacity,
             lease_ttl_ms = t.lease_ttl_ms, capped_host = t.capped_host, host_capacity = t.host_capacity,
             failures = t.failures, suspect_until_ms = t.suspect_until_ms, answered_ms = t.answered_ms,
             is_draft = t.is_draft, model_url = t.model_url, deploy_strategy = t.deploy_strategy, zone = t.zone,
             rack = t.rack, node = t.node, instance_id = t.instance_id, incarnation = t.incarnation,
             content_id = t.content_id
         FROM unnest($1::bigint[], $2::bool[], $3::bool[], $4::int[], $5::bigint[], $6::text[], $7::int[],
                     $8::int[], $9::bigint[], $10::bigint[], $11::bool[], $12::text[], $13::text[], $14::text[],
                     $15::text[], $16::text[], $17::text[], $18::text[], $19::text[])
             AS t (id, removed, drained, capacity, lease_ttl_ms, capped_host, host_capacity, failures,
                   suspect_until_ms, answered_ms, is_draft, model_url, deploy_strategy, zone, rack, node,
                   instance_id, incarnation, content_id)
         WHERE s.id = t.id",
    )
    .bind(seeds.iter().map(|(_, seed)| seed.id).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.removed).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.drained).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| points(seed.terms.capacity)).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.terms.lease_ttl_ms).collect::<Vec<_>>())
    .bind(capped.collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.terms.host_capacity.map(points)).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| points(seed.health.failures)).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.health.suspect_until_ms).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.answered_ms).collect::<Vec<_>>())
    .bind(seeds.iter().map(|(_, seed)| seed.profile.labels.is_draft).collect::<Vec<_>>())
    .bind(texts(|seed| &seed.profile.labels.model_url))
    .bind(texts(|seed| &seed.profile.labels.deploy_strategy))
    .bind(texts(|seed| &seed.profile.location.zone))
    .bind(texts(|seed| &seed.profile.location.rack))
    .bind(texts(|seed| &seed.profile.location.host))
    .bind(texts(|seed| &seed.profile.instance_id))
    .bind(texts(|seed| &seed.profile.incarnation))
    .bind(texts(|seed| &seed.profile.content_id))
    .execute(connection)
    .await?;
    Ok(())
}

/// Where a row's seed stands.
pub(super) fn location(row: &PgRow) -> Result<Location, Stopped> {
    Ok(Location { zone: row.try_get("zone")?, rack: row.try_get("rack")?, host: row.try_get("node")? })
}

/// What a row's seed told of itself.
pub(super) fn profile(row: &PgRow) -> Result<Profile, Stopped> {
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

/// The terms in a row.
pub(super) fn terms(row: &PgRow) -> Result<Terms, Stopped> {
    let host_capacity: Option<i32> = row.try_get("host_capacity")?;
    Ok(Terms {
        capacity: small(row.try_get::<i32, _>("capacity")?.into())?,
        lease_ttl_ms: row.try_get("lease_ttl_ms")?,
        host_capacity: host_capacity.map(|capacity| small(capacity.into())).transpose()?,
    })
}

/// A number of points as the database spells it; settings keep it far below the largest.
fn points(capacity: u32) -> i32 {
    i32::try_from(capacity).unwrap_or(i32::MAX)
}

/// Deletes seeds that the caller has locked, their heartbeats too; their points go with them.
pub(super) async fn delete(connection: &mut Connection, ids: &[i64]) -> Result<(), Stopped> {
    if !ids.is_empty() {
        sqlx::query("DELETE FROM seeds WHERE id = ANY($1)").bind(ids).execute(connection).await?;
    }
    Ok(())
}

/// Locks heartbeats in the order in which a flush does, so that the two cannot wait for each other; gives when each
/// seed was last heard of, Unix milliseconds.
pub(super) async fn lock_heartbeats(
    connection: &mut Connection,
    ids: &[i64],
) -> Result<Vec<(i64, i64)>, Stopped> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let heard = sqlx::query_as(
        "SELECT seed_id, last_ms FROM heartbeats WHERE seed_id = ANY($1) ORDER BY seed_id FOR UPDATE",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(heard)
}

/// Writes heartbeats; gives the seeds that are gone or offered no more. It changes nothing that a claim locks.
pub(super) struct Flush<'a> {
    pub(super) store: &'a Database,
    /// In the order of their seeds' numbers.
    pub(super) beats: &'a [Beat],
}

#[async_trait]
impl Work for Flush<'_> {
    type Done = HashSet<i64>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<HashSet<i64>, Stopped> {
        let now = self.store.now(connection).await?;
        let mut gone: HashSet<i64> = self.beats.iter().map(|beat| beat.seed_id).collect();
        let offered: Vec<i64> = sqlx::query_scalar(
            "WITH beat AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS t (seed_id, last_ms)),
                  locked AS MATERIALIZED (
                      SELECT h.seed_id FROM heartbeats h WHERE h.seed_id = ANY($1) ORDER BY h.seed_id FOR UPDATE),
                  written AS (
                      UPDATE heartbeats h SET last_ms = beat.last_ms
                      FROM beat JOIN locked ON locked.seed_id = beat.seed_id
                      WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms)
             SELECT s.id FROM locked JOIN seeds s ON s.id = locked.seed_id WHERE NOT s.removed AND NOT s.drained",
        )
        .bind(self.beats.iter().map(|beat| beat.seed_id).collect::<Vec<_>>())
        .bind(self.beats.iter().map(|beat| now.saturating_sub(beat.age_ms)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        for id in offered {
            gone.remove(&id);
        }
        Ok(gone)
    }
}

/// Gives a bounded number of seeds, those that follow `after`, the terms that this planner's rules have; gives
/// the last of them.
pub(super) struct Adopt<'a> {
    pub(super) store: &'a Database,
    pub(super) after: i64,
}

#[async_trait]
impl Work for Adopt<'_> {
    type Done = Option<i64>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Option<i64>, Stopped> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            of_seed!(),
            " FROM seeds s WHERE s.id > $1 ORDER BY s.id LIMIT $2 FOR UPDATE"
        ))
        .bind(self.after)
        .bind(STEP_ROWS)
        .fetch_all(&mut *connection)
        .await?;
        let now = self.store.now(connection).await?;
        let mut last = None;
        let mut changed: Vec<(SeedIdentity, Seed)> = Vec::new();
        for row in rows {
            let mut seed = Seed::of_row(&row)?;
            last = Some(seed.id);
            let identity = identity(&row)?;
            let terms = self.store.rules.terms(&identity, &seed.key, &seed.profile);
            if terms != seed.terms {
                seed.terms = terms;
                changed.push((identity, seed));
            }
        }
        let rows: Vec<_> = changed.iter().map(|(identity, seed)| (identity, seed)).collect();
        describe(connection, &rows).await?;
        let ids: Vec<i64> = changed.iter().map(|(_, seed)| seed.id).collect();
        offer::refresh(connection, now, &self.store.rules, &ids).await?;
        Ok(last)
    }
}

/// Takes out a bounded number of seeds of a key whose content is not `keep`; gives how many.
pub(super) struct Invalidate<'a> {
    pub(super) store: &'a Database,
    pub(super) key: &'a SeedKey,
    pub(super) keep: Option<&'a str>,
}

#[async_trait]
impl Work for Invalidate<'_> {
    type Done = u64;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<u64, Stopped> {
        let drained = sqlx::query(
            "UPDATE seeds SET drained = TRUE, offer_rank = NULL, next_end_ms = NULL WHERE id IN (
                 SELECT s.id FROM seeds s
                 WHERE s.id IN (SELECT h.seed_id FROM heartbeats h WHERE h.key_hash = $1)
                   AND NOT s.drained AND ($2::text IS NULL OR s.content_id IS DISTINCT FROM $2)
                 ORDER BY s.id LIMIT $3 FOR UPDATE)",
        )
        .bind(&key_hash(self.key)[..])
        .bind(self.keep)
        .bind(STEP_ROWS)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if drained > 0 {
            let now = self.store.now(connection).await?;
            let mut log = Log::new(&self.store.rules);
            log.note(Happened::invalidated(self.key, drained));
            log.write(connection, now).await?;
        }
        Ok(drained)
    }
}
