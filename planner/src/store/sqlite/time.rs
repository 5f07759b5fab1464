//! What the database knows of the time: for the process that has the file next. See [`super::super::clock`].

use sqlx::{SqliteConnection, SqlitePool};

use super::super::StoreError;
use super::super::clock::{Clock, Own};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Goes on where the process before ended.
pub(super) async fn resume(writer: &SqlitePool, clock: Clock) -> Result<Own, StoreError> {
    let (offset_ms, seen_ms) =
        sqlx::query_as("SELECT offset_ms, seen_ms FROM clock").fetch_one(writer).await?;
    Ok(Own::resume(clock, offset_ms, seen_ms))
}

/// Tells what time it is, and how far ahead of the clock.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    (offset_ms, now_ms): (i64, i64),
) -> Result<(), StoreError> {
    sqlx::query("UPDATE clock SET offset_ms = ?1, seen_ms = ?2")
        .bind(offset_ms)
        .bind(now_ms)
        .execute(connection)
        .await?;
    Ok(())
}
