//! Which instance serves the ranks of another one.
//!
//! The first rank of an instance that is served decides; the others then prefer seeds of the same source. It is
//! a preference: what is lost or decided twice costs nothing but that.

use std::collections::{BTreeSet, HashMap};

use sqlx::SqliteConnection;

use super::super::StoreError;
use super::json;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The sources that are known for these instances.
pub(super) async fn sources(
    connection: &mut SqliteConnection,
    instances: impl Iterator<Item = &str>,
) -> Result<HashMap<String, String>, StoreError> {
    let wanted: Vec<&str> = instances.collect::<BTreeSet<_>>().into_iter().collect();
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT instance_id, source_instance FROM instances
         WHERE instance_id IN (SELECT value FROM json_each(?1))",
    )
    .bind(json(&wanted)?)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Writes them, with the time of this use.
pub(super) async fn remember(
    connection: &mut SqliteConnection,
    now: i64,
    sources: &HashMap<String, String>,
) -> Result<(), StoreError> {
    if sources.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = sources.iter().collect();
    sqlx::query(
        "INSERT INTO instances (instance_id, source_instance, used_ms)
         SELECT value ->> 0, value ->> 1, ?1 FROM json_each(?2) WHERE true
         ON CONFLICT (instance_id) DO UPDATE SET used_ms = excluded.used_ms",
    )
    .bind(now)
    .bind(json(&rows)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets a bounded number of those that were not used since; gives how many.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    unused_since_ms: i64,
    limit: u32,
) -> Result<u64, StoreError> {
    let forgotten = sqlx::query(
        "DELETE FROM instances WHERE instance_id IN
             (SELECT instance_id FROM instances WHERE used_ms <= ?1 LIMIT ?2 + 0)",
    )
    .bind(unused_since_ms)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
