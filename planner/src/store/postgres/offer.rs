//! Where to look for free points: each seed's place among those of its key, kept in indexes.
//!
//! A place is recomputed from the points whenever they change, by whoever changes them and so holds the seed's
//! lock. It never decides: a claim looks at the points. A lease that ends by itself changes no place; such
//! seeds are found by when their first lease ends, until a sweep or a claim puts them right. Places that are
//! wrong cost a second look and never hide a free point.
//!
//! A place is the same for every policy, so that planners with different ones can run side by side.

use super::super::Rules;
use super::session::Connection;
use super::transaction::Stopped;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The part of SQL that computes a seed's place at time `$1`.
macro_rules! place {
    () => {
        "(offer_rank, next_end_ms) = (
             SELECT CASE WHEN NOT s.removed AND NOT s.drained AND s.suspect_until_ms <= $1
                          AND count(*) < s.capacity
                          AND CASE WHEN s.capped_host IS NULL THEN TRUE ELSE
                                  (SELECT count(*) FROM seeds o JOIN points q ON q.seed_id = o.id
                                   WHERE o.capped_host = s.capped_host AND q.busy_until_ms > $1)
                                  < s.host_capacity END
                         THEN count(*) * 1099511627776 / s.capacity END,
                    CASE WHEN NOT s.removed AND NOT s.drained THEN least(
                        min(p.busy_until_ms),
                        CASE WHEN s.suspect_until_ms > $1 THEN s.suspect_until_ms END,
                        CASE WHEN s.capped_host IS NOT NULL THEN
                            (SELECT min(q.busy_until_ms) FROM seeds o JOIN points q ON q.seed_id = o.id
                             WHERE o.capped_host = s.capped_host AND q.busy_until_ms > $1) END) END
             FROM points p
             WHERE p.seed_id = s.id AND p.n < s.capacity AND p.busy_until_ms > $1)
         WHERE s.id = ANY($2)"
    };
}

/// Recomputes the places of these seeds, which the caller has locked.
pub(super) async fn refresh(
    connection: &mut Connection,
    now: i64,
    rules: &Rules,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    run(connection, concat!("UPDATE seeds s SET ", place!()), now, seed_ids).await?;
    refresh_hosts(connection, now, rules, seed_ids).await
}

/// Recomputes the places of seeds whose point has just been allocated, which the caller has locked.
pub(super) async fn refresh_used(
    connection: &mut Connection,
    now: i64,
    rules: &Rules,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    run(connection, concat!("UPDATE seeds s SET last_used_ms = $1, ", place!()), now, seed_ids).await?;
    refresh_hosts(connection, now, rules, seed_ids).await
}

/// Recomputes the places of the other seeds of their hosts, where those share a bound. They are not locked, and
/// locking them would break the order of locks: those that somebody holds are left, and their holder or whoever
/// meets them next puts them right. A place that is wrong costs a second look: see the snapshot, which finds
/// seeds of capped hosts whatever their place says.
async fn refresh_hosts(
    connection: &mut Connection,
    now: i64,
    rules: &Rules,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    if seed_ids.is_empty() || !rules.caps_hosts() {
        return Ok(());
    }
    let others: Vec<i64> = sqlx::query_scalar(
        "SELECT o.id FROM seeds o
         WHERE o.capped_host IN (SELECT capped_host FROM seeds WHERE id = ANY($1)) AND o.id <> ALL($1)
         ORDER BY o.id FOR UPDATE SKIP LOCKED",
    )
    .bind(seed_ids)
    .fetch_all(&mut *connection)
    .await?;
    run(connection, concat!("UPDATE seeds s SET ", place!()), now, &others).await
}

async fn run(
    connection: &mut Connection,
    update: &'static str,
    now: i64,
    seed_ids: &[i64],
) -> Result<(), Stopped> {
    if !seed_ids.is_empty() {
        sqlx::query(update).bind(now).bind(seed_ids).execute(connection).await?;
    }
    Ok(())
}
