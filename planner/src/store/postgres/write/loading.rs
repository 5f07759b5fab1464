//! How far seeds are that load.

use super::super::places::key_hash;
use super::super::session::Connection;
use super::super::transaction::Stopped;
use super::{kept, number};
use crate::decide::Changed;
use crate::decide::rows::SeedRow;
use crate::domain::chain::Loading;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Writes what was told, and deletes what there was of seeds that have everything now.
pub(super) async fn write(connection: &mut Connection, changed: &[Changed<SeedRow>]) -> Result<(), Stopped> {
    let (mut completed, mut told): (Vec<i64>, Vec<(&SeedRow, &Loading)>) = Default::default();
    for (before, after) in kept(changed) {
        match (before.and_then(|before| before.loading.as_ref()), &after.loading) {
            (Some(_), None) => completed.push(after.id),
            (before, Some(now)) if before != Some(now) => told.push((after, now)),
            _ => {}
        }
    }
    if !completed.is_empty() {
        sqlx::query("/* delete loading seeds */ DELETE FROM loading_seeds WHERE seed_id = ANY($1)")
            .bind(completed)
            .execute(&mut *connection)
            .await?;
    }
    if told.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* write loading seeds */
         INSERT INTO loading_seeds (seed_id, source_id, depth, root, held_bytes, total_bytes, arrived_bytes, period_ms,
                                    told_ms, rate, lags, sends, was_moved, yields_to, yielded_ms, lead_key, lead_until_ms,
                                    lead_moved_ms, lead_since_ms)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::int[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
                              $8::bigint[], $9::bigint[], $10::bigint[], $11::smallint[], $12::smallint[], $13::bool[],
                              $14::bigint[], $15::bigint[], $16::bytea[], $17::bigint[], $18::bigint[], $19::bigint[])
         ON CONFLICT (seed_id) DO UPDATE SET source_id = excluded.source_id, depth = excluded.depth,
             root = excluded.root, held_bytes = excluded.held_bytes, total_bytes = excluded.total_bytes,
             arrived_bytes = excluded.arrived_bytes, period_ms = excluded.period_ms, told_ms = excluded.told_ms,
             rate = excluded.rate, lags = excluded.lags, sends = excluded.sends, was_moved = excluded.was_moved,
             yields_to = excluded.yields_to, yielded_ms = excluded.yielded_ms, lead_key = excluded.lead_key,
             lead_until_ms = excluded.lead_until_ms, lead_moved_ms = excluded.lead_moved_ms,
             lead_since_ms = excluded.lead_since_ms",
    )
    .bind(told.iter().map(|(row, _)| row.id).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.source).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| number(now.depth)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.root.clone()).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| bytes(now.held_bytes)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| bytes(now.total_bytes)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| bytes(now.arrived_bytes)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.period_ms).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.pace.told_ms).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| bytes(now.pace.rate)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| i16::try_from(now.pace.lags).unwrap_or(i16::MAX)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| i16::from(now.pace.sends as u8)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.pace.was_moved).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.pace.yields_to).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.pace.yielded_ms).collect::<Vec<_>>())
    .bind(told.iter().map(|(row, now)| now.lead.map(|_| key_hash(&row.key))).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.lead.map(|lead| lead.until_ms)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.lead.map(|lead| lead.moved_ms)).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, now)| now.lead.map(|lead| lead.since_ms)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// A size as the database spells it; no model has as much.
fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
