//! What a seed's readers and planners say of its health. The callers recompute the places of the seeds.

use std::collections::BTreeMap;

use sqlx::{Row, SqliteConnection};

use super::super::history::{EventKind, Happened};
use super::super::{Command, Outcome, Report, Rules, StoreError};
use super::{history, json};
use crate::domain::health::Health;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Notes which seeds answered a planner just now.
pub(super) async fn answered(
    connection: &mut SqliteConnection,
    now: i64,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Answered { identity, seed_id } = command else { continue };
        let noted = sqlx::query("UPDATE seeds SET answered_ms = ?1 WHERE id = ?2 AND identity = ?3")
            .bind(now)
            .bind(seed_id)
            .bind(identity.to_string())
            .execute(&mut *connection)
            .await?
            .rows_affected();
        *outcome = Some(Outcome::Noted(noted > 0));
    }
    Ok(())
}

/// How transfers from them went, in this order.
pub(super) async fn reported(
    connection: &mut SqliteConnection,
    now: i64,
    rules: &Rules,
    reports: &[(i64, Report, Option<&str>)],
) -> Result<(), StoreError> {
    let mut by_seed: BTreeMap<i64, Vec<(Report, Option<&str>)>> = BTreeMap::new();
    for (id, report, reason) in reports {
        if matches!(report, Report::Ok | Report::Failed) {
            by_seed.entry(*id).or_default().push((*report, *reason));
        }
    }
    // Nearly all go well.
    let (only_well, others): (Vec<_>, Vec<_>) = by_seed
        .into_iter()
        .partition(|(_, reports)| reports.iter().all(|(report, _)| *report != Report::Failed));
    let only_well: Vec<i64> = only_well.into_iter().map(|(id, _)| id).collect();
    let mut happened = well(connection, &only_well).await?;
    for (id, reports) in others {
        let row = sqlx::query(
            "SELECT failures, suspect_until_ms, host, port, rank, seed_key FROM seeds WHERE id = ?1",
        )
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { continue };
        let mut health =
            Health { failures: row.try_get("failures")?, suspect_until_ms: row.try_get("suspect_until_ms")? };
        for (report, reason) in reports {
            let before = health;
            health = report.on(health, now, rules.back_off);
            happened
                .extend(history::happened(&row, EventKind::Suspect)?.of_health(before, health, now, reason));
        }
        sqlx::query("UPDATE seeds SET failures = ?2, suspect_until_ms = ?3 WHERE id = ?1")
            .bind(id)
            .bind(health.failures)
            .bind(health.suspect_until_ms)
            .execute(&mut *connection)
            .await?;
    }
    history::write(connection, now, rules, &happened).await
}

/// Gives those that had failed.
async fn well(connection: &mut SqliteConnection, seed_ids: &[i64]) -> Result<Vec<Happened>, StoreError> {
    if seed_ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "UPDATE seeds SET failures = 0, suspect_until_ms = 0
         WHERE id IN (SELECT value FROM json_each(?1)) AND failures > 0
         RETURNING host, port, rank, seed_key",
    )
    .bind(json(seed_ids)?)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| history::happened(row, EventKind::Recovered)).collect()
}
