//! What a seed's readers and planners say of its health. The callers recompute the places of the seeds.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::super::{Report, Rules, StoreError};
use super::json;
use crate::domain::health::Health;
#[cfg(test)]
use crate::store::simulation::sqlx;

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

/// How transfers from them went, in this order.
pub(super) async fn reported(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    reports: &[(i64, Report)],
) -> Result<(), StoreError> {
    let mut by_seed: BTreeMap<i64, Vec<Report>> = BTreeMap::new();
    for (id, report) in reports.iter().filter(|(_, report)| *report != Report::Unknown) {
        by_seed.entry(*id).or_default().push(*report);
    }
    // Nearly all go well.
    let (only_well, others): (Vec<_>, Vec<_>) =
        by_seed.into_iter().partition(|(_, reports)| !reports.contains(&Report::Failed));
    well(connection, &only_well.into_iter().map(|(id, _)| id).collect::<Vec<_>>()).await?;
    for (id, reports) in others {
        let row: Option<(u32, i64)> =
            sqlx::query_as("SELECT failures, suspect_until_ms FROM seeds WHERE id = ?1")
                .bind(id)
                .fetch_optional(&mut *connection)
                .await?;
        let Some((failures, suspect_until_ms)) = row else { continue };
        let before = Health { failures, suspect_until_ms };
        let health = reports.into_iter().fold(before, |health, report| match report {
            Report::Unknown => health,
            Report::Ok => Health::default(),
            Report::Failed => health.failed(now, rules.back_off),
        });
        sqlx::query("UPDATE seeds SET failures = ?2, suspect_until_ms = ?3 WHERE id = ?1")
            .bind(id)
            .bind(health.failures)
            .bind(health.suspect_until_ms)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn well(connection: &mut SqliteConnection, seed_ids: &[i64]) -> Result<(), StoreError> {
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
