//! Acquisitions that wait, and those that are remembered.

use super::super::super::wish;
use super::super::places::key_hash;
use super::super::rows;
use super::super::session::Connection;
use super::super::transaction::Stopped;
use crate::decide::Changed;
use crate::decide::rows::RequestRow;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Locks requests that change, in their order, and compares them.
pub(super) async fn are_as_before(
    connection: &mut Connection,
    changed: &[Changed<RequestRow>],
) -> Result<(), Stopped> {
    let before: Vec<&RequestRow> = changed.iter().filter_map(|changed| changed.before.as_deref()).collect();
    if before.is_empty() {
        return Ok(());
    }
    let found = sqlx::query(concat!(
        "/* lock requests */ SELECT ",
        rows::request_columns!(),
        " FROM requests r WHERE r.id = ANY($1) ORDER BY r.id FOR UPDATE"
    ))
    .bind(before.iter().map(|row| row.id).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let found = found.iter().map(rows::request).collect::<Result<Vec<_>, _>>()?;
    // Both in the order of their numbers.
    if found.iter().eq(before) { Ok(()) } else { Err(Stopped::Again) }
}

pub(super) async fn write(
    connection: &mut Connection,
    changed: &[Changed<RequestRow>],
) -> Result<(), Stopped> {
    let gone = changed.iter().filter(|changed| changed.after.is_none());
    let gone: Vec<i64> = gone.filter_map(|changed| Some(changed.before.as_ref()?.id)).collect();
    if !gone.is_empty() {
        sqlx::query("/* delete requests */ DELETE FROM requests WHERE id = ANY($1)")
            .bind(gone)
            .execute(&mut *connection)
            .await?;
    }
    let rows: Vec<&RequestRow> = changed.iter().filter_map(|changed| changed.after.as_deref()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let asked = || rows.iter().map(|row| row.idempotency.as_ref());
    sqlx::query(
        "/* write requests */
         INSERT INTO requests (id, seed_key, key_hash, lease_hash, idempotency, request_hash, attempt, wish, planner,
                               waits_until_ms, changed_ms, client)
         SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bigint[],
                              $8::text[], $9::text[], $10::bigint[], $11::bigint[], $12::text[])
         ON CONFLICT (id) DO UPDATE SET attempt = excluded.attempt, planner = excluded.planner,
             waits_until_ms = excluded.waits_until_ms, changed_ms = excluded.changed_ms",
    )
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.key.as_bytes().to_vec()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| key_hash(&row.key)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.lease.to_vec()).collect::<Vec<_>>())
    .bind(asked().map(|asked| asked.map(|asked| asked.key.to_vec())).collect::<Vec<_>>())
    .bind(asked().map(|asked| asked.map(|asked| asked.request.to_vec())).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.attempt).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| wish::encode(&row.wish)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.planner.as_deref().map(str::to_owned)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.waits_until_ms).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.changed_ms).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.wish.client.map(|client| client.to_string())).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
