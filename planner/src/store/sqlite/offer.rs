//! Where to look for free points: each seed's place among those of its key, kept in an index.
//!
//! A place is recomputed from the points whenever they change, and, by [`refresh_ended`], when a lease or a
//! suspicion has ended by itself. It never decides: a claim looks at the points. Places that are wrong for a
//! while cost a second look and never hide a free point. Where the seeds of a host share a
//! bound, a change of one moves all.

use rfork_protocol::SeedKey;
use rfork_protocol::ids::hex;
use sqlx::SqliteConnection;

use super::super::{Rules, StoreError};
use crate::domain::policy::Policy;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The part of SQL that computes a seed's place at time `?1`; `?2` is [`weight`]. 9223372036854775807 is "never".
macro_rules! place {
    () => {
        "(offer_rank, next_end_ms) = (
             SELECT CASE WHEN seeds.removed = 0 AND seeds.drained = 0 AND seeds.suspect_until_ms <= ?1
                          AND count(*) < seeds.capacity
                          AND CASE WHEN seeds.capped_host IS NULL THEN 1 ELSE
                                  (SELECT count(*) FROM seeds o JOIN points q ON q.seed_id = o.id
                                   WHERE o.capped_host = seeds.capped_host AND q.busy_until_ms > ?1)
                                  < seeds.host_capacity END
                         THEN count(*) * ?2 / seeds.capacity END,
                    nullif(min(
                        coalesce(min(p.busy_until_ms), 9223372036854775807),
                        CASE WHEN seeds.suspect_until_ms > ?1 THEN seeds.suspect_until_ms
                             ELSE 9223372036854775807 END,
                        CASE WHEN seeds.capped_host IS NULL THEN 9223372036854775807 ELSE coalesce(
                            (SELECT min(q.busy_until_ms) FROM seeds o JOIN points q ON q.seed_id = o.id
                             WHERE o.capped_host = seeds.capped_host AND q.busy_until_ms > ?1),
                            9223372036854775807) END
                    ), 9223372036854775807)
             FROM points p
             WHERE p.seed_id = seeds.id AND p.n < seeds.capacity AND p.busy_until_ms > ?1) "
    };
}

/// The seeds in `?3`.
macro_rules! these {
    () => {
        "WHERE id IN (SELECT value FROM json_each(?3))"
    };
}

/// Those, and all seeds of their hosts, where they share a bound.
macro_rules! these_and_their_hosts {
    () => {
        "WHERE id IN (SELECT value FROM json_each(?3)) OR capped_host IN (
             SELECT capped_host FROM seeds WHERE id IN (SELECT value FROM json_each(?3)))"
    };
}

/// What the busy share of a seed is multiplied with to be its place: seeds that are less busy come first, or,
/// for policies that do not look at it, all are equal. Fine enough to tell any two shares apart.
fn weight(rules: &Rules) -> i64 {
    match rules.policy {
        Policy::Balanced => 1 << 40,
        Policy::Fifo | Policy::Lru => 0,
    }
}

/// Recomputes the places of these seeds.
pub(super) async fn refresh(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    let update = if rules.caps_hosts() {
        concat!("UPDATE seeds SET ", place!(), these_and_their_hosts!())
    } else {
        concat!("UPDATE seeds SET ", place!(), these!())
    };
    sqlx::query(update)
        .bind(now)
        .bind(weight(rules))
        .bind(super::json(seed_ids)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Recomputes the places of seeds whose point has just been allocated.
pub(super) async fn refresh_used(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    let update = concat!("UPDATE seeds SET last_used_ms = ?1, ", place!(), these!());
    sqlx::query(update)
        .bind(now)
        .bind(weight(rules))
        .bind(super::json(seed_ids)?)
        .execute(&mut *connection)
        .await?;
    if rules.caps_hosts() {
        refresh(connection, now, rules, seed_ids).await?;
    }
    Ok(())
}

/// Recomputes the places of seeds of these keys of which a lease or a suspicion has ended by itself: each is met
/// once for each such end.
pub(super) async fn refresh_ended(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    keys: impl Iterator<Item = &SeedKey>,
) -> Result<(), StoreError> {
    let keys: Vec<String> = keys.map(|key| hex(key.as_bytes())).collect();
    let update = concat!(
        "UPDATE seeds SET ",
        place!(),
        "WHERE id IN (SELECT e.id FROM json_each(?3) wanted
                      CROSS JOIN seeds e INDEXED BY seeds_by_next_end
                      WHERE e.seed_key = unhex(wanted.value) AND e.next_end_ms <= ?1)"
    );
    sqlx::query(update).bind(now).bind(weight(rules)).bind(super::json(&keys)?).execute(connection).await?;
    Ok(())
}

/// Recomputes the places of all seeds, as another policy or capacity requires.
pub(super) async fn refresh_all(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
) -> Result<(), StoreError> {
    let update = concat!("UPDATE seeds SET ", place!());
    sqlx::query(update).bind(now).bind(weight(rules)).execute(connection).await?;
    Ok(())
}
