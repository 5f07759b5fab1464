//! Renewing, releasing, and what is told of a seed beside that. All act on exactly one live lease of exactly the named seed, or on nothing.
//!
//! The seed is locked and its points were read after that, so a sweep, another planner's claim or a second
//! release of the same lease came either before, and is seen, or waits.

use sqlx::PgConnection;

use super::super::{Command, LeaseHash, Outcome, Report, Rules};
use super::batch::{HeldSeeds, Seed};
use super::transaction::Stopped;
use crate::domain::health::Health;
#[cfg(test)]
use crate::store::simulation::sqlx;

pub(super) fn renew(
    now: i64,
    commands: &[Command],
    held: &mut HeldSeeds<'_>,
    outcomes: &mut [Option<Outcome>],
) {
    for (command, outcome) in commands.iter().zip(outcomes) {
        let Command::Renew { identity, lease } = command else { continue };
        let seed = held.get_mut(&identity.to_string()).and_then(|held| held.seed.as_mut());
        *outcome = Some(Outcome::Renewed(seed.and_then(|seed| renew_one(seed, lease, now))));
    }
}

fn renew_one(seed: &mut Seed, lease: &LeaseHash, now: i64) -> Option<i64> {
    let lease_ttl_ms = seed.terms.lease_ttl_ms;
    let point = seed.leased(lease, now)?;
    point.busy_until_ms = now.saturating_add(lease_ttl_ms);
    let n = point.n;
    seed.renewed.insert(n);
    seed.moved = true;
    Some(lease_ttl_ms)
}

pub(super) fn release(
    now: i64,
    rules: &Rules,
    commands: &[Command],
    held: &mut HeldSeeds<'_>,
    outcomes: &mut [Option<Outcome>],
) {
    for (command, outcome) in commands.iter().zip(outcomes) {
        if let Command::Answered { identity, lease } = command {
            let seed = held.get_mut(&identity.to_string()).and_then(|held| held.seed.as_mut());
            *outcome = Some(Outcome::Noted(seed.is_some_and(|seed| note_one(seed, lease, now))));
        }
        let Command::Release { identity, lease, report } = command else { continue };
        let held = held.get_mut(&identity.to_string());
        let released = held.is_some_and(|held| {
            let Some(seed) = &mut held.seed else { return false };
            let released = release_one(seed, lease, now);
            if released {
                judge(seed, *report, now, rules);
            }
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

/// What the end of a lease says of its seed.
fn judge(seed: &mut Seed, report: Report, now: i64, rules: &Rules) {
    let health = match report {
        Report::Unknown => seed.health,
        Report::Ok => Health::default(),
        Report::Failed => seed.health.failed(now, rules.back_off),
    };
    seed.changed |= health != seed.health;
    seed.health = health;
}

/// A seed that answers with nobody's lease on it is not believed: the lease ties the answer to this holding.
fn note_one(seed: &mut Seed, lease: &LeaseHash, now: i64) -> bool {
    let lives = seed.leased(lease, now).is_some();
    if lives {
        seed.answered_ms = now;
        seed.changed = true;
    }
    lives
}

/// Writes what [`renew`] and [`release`] decided for seeds that stay; the others take their points along.
pub(super) async fn write(connection: &mut PgConnection, held: &HeldSeeds<'_>) -> Result<(), Stopped> {
    let (mut renewed, mut released) = (Points::default(), Points::default());
    let mut ends: Vec<i64> = Vec::new();
    for seed in held.values().filter_map(|held| held.seed.as_ref()) {
        renewed.add(seed.id, &seed.renewed);
        let end = |n: &u32| seed.points.iter().find(|point| point.n == *n).map(|point| point.busy_until_ms);
        ends.extend(seed.renewed.iter().filter_map(end));
        released.add(seed.id, &seed.released);
    }
    if !renewed.seed_ids.is_empty() {
        sqlx::query(
            "UPDATE points p SET busy_until_ms = t.ends_ms
             FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS t (seed_id, n, ends_ms)
             WHERE p.seed_id = t.seed_id AND p.n = t.n",
        )
        .bind(renewed.seed_ids)
        .bind(renewed.numbers)
        .bind(ends)
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
