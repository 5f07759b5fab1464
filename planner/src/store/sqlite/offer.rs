//! Where to look for free points: each seed's place among those of its key, kept in an index.
//!
//! A place is recomputed from the points whenever they change, and, by [`refresh_ended`], when a lease has
//! ended by itself. It never decides: a claim looks at the points. Places that are wrong for a while cost a
//! second look (the clock went back) and never hide a free point.

use sqlx::SqliteConnection;

use super::super::{Rules, StoreError};
use crate::domain::policy::Policy;

/// The part of SQL that computes a seed's place at time `?1`; `?2` is [`weight`].
macro_rules! place {
    () => {
        "(offer_rank, next_end_ms) = (
             SELECT CASE WHEN seeds.removed = 0 AND count(*) < seeds.capacity
                         THEN count(*) * ?2 / seeds.capacity END,
                    min(p.busy_until_ms)
             FROM points p
             WHERE p.seed_id = seeds.id AND p.n < seeds.capacity AND p.busy_until_ms > ?1) "
    };
}

/// What the busy share of a seed is multiplied with to be its place: seeds that are less busy come first, or,
/// for policies that do not look at it, all are equal. Fine enough to tell any two shares apart.
pub(super) fn weight(rules: Rules) -> i64 {
    match rules.policy {
        Policy::Balanced => 1 << 40,
        Policy::Fifo | Policy::Lru => 0,
    }
}

/// Recomputes the places of these seeds.
pub(super) async fn refresh(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    let update = concat!("UPDATE seeds SET ", place!(), "WHERE id IN (SELECT value FROM json_each(?3))");
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
    rules: Rules,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    let update = concat!(
        "UPDATE seeds SET last_used_ms = ?1, ",
        place!(),
        "WHERE id IN (SELECT value FROM json_each(?3))"
    );
    sqlx::query(update)
        .bind(now)
        .bind(weight(rules))
        .bind(super::json(seed_ids)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Recomputes the places of seeds of which a lease has ended by itself: each is met once for each such end.
pub(super) async fn refresh_ended(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
) -> Result<(), StoreError> {
    let update = concat!("UPDATE seeds SET ", place!(), "WHERE next_end_ms <= ?1");
    sqlx::query(update).bind(now).bind(weight(rules)).execute(connection).await?;
    Ok(())
}

/// Recomputes the places of all seeds, as another policy or capacity requires.
pub(super) async fn refresh_all(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
) -> Result<(), StoreError> {
    let update = concat!("UPDATE seeds SET ", place!());
    sqlx::query(update).bind(now).bind(weight(rules)).execute(connection).await?;
    Ok(())
}
