//! Renewing and releasing. Both act on exactly one live lease of exactly the named seed, or on nothing.

use sqlx::SqliteConnection;

use super::super::{Command, Outcome, Rules, StoreError};
use super::seeds::{json, offer_again};

pub(super) async fn renew(
    connection: &mut SqliteConnection,
    now: i64,
    rules: Rules,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut touched = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Renew { identity, lease } = command else { continue };
        let seed: Option<i64> = sqlx::query_scalar(
            "UPDATE points SET busy_until_ms = ?1 + ?2
             WHERE lease_hash = ?3 AND busy_until_ms > ?1
               AND seed_id = (SELECT id FROM seeds WHERE identity = ?4)
             RETURNING seed_id",
        )
        .bind(now)
        .bind(rules.lease_ttl_ms)
        .bind(&lease[..])
        .bind(identity.to_string())
        .fetch_optional(&mut *connection)
        .await?;
        touched.extend(seed);
        *outcome = Some(Outcome::Renewed(seed.is_some()));
    }
    offer_again(connection, now, &touched).await
}

pub(super) async fn release(
    connection: &mut SqliteConnection,
    now: i64,
    commands: &[Command],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let mut touched = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Release { identity, lease } = command else { continue };
        let seed: Option<i64> = sqlx::query_scalar(
            "DELETE FROM points
             WHERE lease_hash = ?2 AND busy_until_ms > ?1
               AND seed_id = (SELECT id FROM seeds WHERE identity = ?3)
             RETURNING seed_id",
        )
        .bind(now)
        .bind(&lease[..])
        .bind(identity.to_string())
        .fetch_optional(&mut *connection)
        .await?;
        touched.extend(seed);
        *outcome = Some(Outcome::Released(seed.is_some()));
    }
    if touched.is_empty() {
        return Ok(());
    }
    offer_again(connection, now, &touched).await?;
    // A seed that was removed goes with its last lease.
    sqlx::query(
        "DELETE FROM seeds WHERE removed = 1 AND id IN (SELECT value FROM json_each(?2))
           AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = seeds.id AND p.busy_until_ms > ?1)",
    )
    .bind(now)
    .bind(json(&touched))
    .execute(connection)
    .await?;
    Ok(())
}
