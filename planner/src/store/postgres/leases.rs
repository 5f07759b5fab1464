//! Renewing and releasing. Both act on exactly one live lease of exactly the named seed, or on nothing.
//!
//! The seed is locked and its points were read after that, so a sweep, another planner's claim or a second
//! release of the same lease came either before, and is seen, or waits.

use sqlx::PgConnection;

use super::super::{Command, LeaseHash, Outcome, Rules};
use super::batch::{HeldSeeds, Seed};
use super::transaction::Stopped;

pub(super) fn renew(
    now: i64,
    rules: Rules,
    commands: &[Command],
    held: &mut HeldSeeds<'_>,
    outcomes: &mut [Option<Outcome>],
) {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Renew { identity, lease } = command else { continue };
        let seed = held.get_mut(&identity.to_string()).and_then(|held| held.seed.as_mut());
        *outcome = Some(Outcome::Renewed(seed.is_some_and(|seed| renew_one(seed, lease, now, rules))));
    }
}

fn renew_one(seed: &mut Seed, lease: &LeaseHash, now: i64, rules: Rules) -> bool {
    let Some(point) = seed.leased(lease, now) else { return false };
    point.busy_until_ms = now + rules.lease_ttl_ms;
    let n = point.n;
    seed.renewed.insert(n);
    seed.moved = true;
    true
}

pub(super) fn release(
    now: i64,
    commands: &[Command],
    held: &mut HeldSeeds<'_>,
    outcomes: &mut [Option<Outcome>],
) {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Release { identity, lease } = command else { continue };
        let held = held.get_mut(&identity.to_string());
        let released = held.is_some_and(|held| {
            let Some(seed) = &mut held.seed else { return false };
            let released = release_one(seed, lease, now);
            // A seed that was removed goes with its last lease.
            if released && seed.removed && seed.live_leases(now) == 0 {
                held.seed = None;
            }
            released
        });
        *outcome = Some(Outcome::Released(released));
    }
}

fn release_one(seed: &mut Seed, lease: &LeaseHash, now: i64) -> bool {
    let Some(point) = seed.leased(lease, now) else { return false };
    let n = point.n;
    seed.points.retain(|point| point.n != n);
    seed.renewed.remove(&n);
    seed.released.insert(n);
    seed.moved = true;
    true
}

/// Writes what [`renew`] and [`release`] decided for seeds that stay; the others take their points along.
pub(super) async fn write(
    connection: &mut PgConnection,
    now: i64,
    rules: Rules,
    held: &HeldSeeds<'_>,
) -> Result<(), Stopped> {
    let (mut renewed, mut released) = (Points::default(), Points::default());
    for seed in held.values().filter_map(|held| held.seed.as_ref()) {
        renewed.add(seed.id, &seed.renewed);
        released.add(seed.id, &seed.released);
    }
    if !renewed.seed_ids.is_empty() {
        sqlx::query(
            "UPDATE points p SET busy_until_ms = $3 FROM unnest($1::bigint[], $2::int[]) AS t (seed_id, n)
             WHERE p.seed_id = t.seed_id AND p.n = t.n",
        )
        .bind(renewed.seed_ids)
        .bind(renewed.numbers)
        .bind(now + rules.lease_ttl_ms)
        .execute(&mut *connection)
        .await?;
    }
    if !released.seed_ids.is_empty() {
        sqlx::query(
            "DELETE FROM points p USING unnest($1::bigint[], $2::int[]) AS t (seed_id, n)
             WHERE p.seed_id = t.seed_id AND p.n = t.n",
        )
        .bind(released.seed_ids)
        .bind(released.numbers)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Points, as the columns of an array parameter each.
#[derive(Default)]
struct Points {
    seed_ids: Vec<i64>,
    numbers: Vec<i32>,
}

impl Points {
    fn add(&mut self, seed_id: i64, numbers: &std::collections::BTreeSet<u32>) {
        for n in numbers {
            self.seed_ids.push(seed_id);
            self.numbers.push(i32::try_from(*n).unwrap_or(i32::MAX));
        }
    }
}
