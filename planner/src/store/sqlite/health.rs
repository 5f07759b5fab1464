//! What a seed's readers and planners say of its health. The callers recompute the places of the seeds.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;

use super::super::{Rules, StoreError};
use super::json;
use crate::domain::health::Health;

/// They answered a planner just now.
pub(super) async fn answered(
    connection: &mut SqliteConnection,
    now: i64,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    sqlx::query("UPDATE seeds SET answered_ms = ?1 WHERE id IN (SELECT value FROM json_each(?2))")
        .bind(now)
        .bind(json(seed_ids)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// A transfer from them went well.
pub(super) async fn well(connection: &mut SqliteConnection, seed_ids: &[i64]) -> Result<(), StoreError> {
    if seed_ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE seeds SET failures = 0, suspect_until_ms = 0
         WHERE id IN (SELECT value FROM json_each(?1)) AND failures > 0",
    )
    .bind(json(seed_ids)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// A transfer from them failed, or they did not answer.
pub(super) async fn failed(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    seed_ids: &[i64],
) -> Result<(), StoreError> {
    for id in seed_ids.iter().collect::<BTreeSet<_>>() {
        let row: Option<(u32, i64)> =
            sqlx::query_as("SELECT failures, suspect_until_ms FROM seeds WHERE id = ?1")
                .bind(id)
                .fetch_optional(&mut *connection)
                .await?;
        let Some((failures, suspect_until_ms)) = row else { continue };
        let health = Health { failures, suspect_until_ms }.failed(now, rules.back_off);
        sqlx::query("UPDATE seeds SET failures = ?2, suspect_until_ms = ?3 WHERE id = ?1")
            .bind(id)
            .bind(health.failures)
            .bind(health.suspect_until_ms)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
