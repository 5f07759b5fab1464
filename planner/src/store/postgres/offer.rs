//! Where to look for free points: each seed's place among those of its key, kept in indexes.
//!
//! A place is recomputed from the points whenever they change, by whoever changes them and so holds the seed's
//! lock. It never decides: a claim looks at the points. A lease that ends by itself changes no place; such
//! seeds are found by when their first lease ends, until a sweep or a claim puts them right. Places that are
//! wrong because the clock went back cost a second look and never hide a free point.
//!
//! A place is the same for every policy, so that planners with different ones can run side by side.

use sqlx::PgConnection;

use super::transaction::Stopped;

/// The part of SQL that computes a seed's place at time `$1`.
macro_rules! place {
    () => {
        "(offer_rank, next_end_ms) = (
             SELECT CASE WHEN NOT s.removed AND count(*) < s.capacity
                         THEN count(*) * 1099511627776 / s.capacity END,
                    CASE WHEN NOT s.removed THEN min(p.busy_until_ms) END
             FROM points p
             WHERE p.seed_id = s.id AND p.n < s.capacity AND p.busy_until_ms > $1)
         WHERE s.id = ANY($2)"
    };
}

/// Recomputes the places of these seeds, which the caller has locked.
pub(super) async fn refresh(
    connection: &mut PgConnection,
    now: i64,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    run(connection, concat!("UPDATE seeds s SET ", place!()), now, seed_ids).await
}

/// Recomputes the places of seeds whose point has just been allocated, which the caller has locked.
pub(super) async fn refresh_used(
    connection: &mut PgConnection,
    now: i64,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    run(connection, concat!("UPDATE seeds s SET last_used_ms = $1, ", place!()), now, seed_ids).await
}

async fn run(
    connection: &mut PgConnection,
    update: &'static str,
    now: i64,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    if !seed_ids.is_empty() {
        sqlx::query(update).bind(now).bind(seed_ids).execute(connection).await?;
    }
    Ok(())
}
