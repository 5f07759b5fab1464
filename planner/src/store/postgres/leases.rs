//! Renewing, releasing, and what seeds answer. The former act on exactly one live lease of exactly the named seed, or on
//! nothing.
//!
//! The seed is locked and its points were read after that, so a sweep, another planner's claim or a second
//! release of the same lease came either before, and is seen, or waits.

use rfork_protocol::SeedIdentity;

use super::super::history::{Account, EventKind, Happened};
use super::super::{Command, LeaseHash, Outcome, Report, Rules};
use super::batch::{Changes, HeldSeeds, Point, Seed};
use super::history::{self, Log};
use super::session::Connection;
use super::transaction::Stopped;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Notes which seeds answered a planner just now.
pub(super) fn answered(now: i64, commands: &[Command], changes: &mut Changes<'_, '_>) {
    let Changes { held, outcomes, .. } = changes;
    for (command, outcome) in commands.iter().zip(outcomes.iter_mut()) {
        let Command::Answered { identity, seed_id } = command else { continue };
        let seed = held.get_mut(&identity.to_string()).and_then(|held| held.seed.as_mut());
        let noted = seed.filter(|seed| seed.id == *seed_id).map(|seed| {
            seed.answered_ms = now;
            seed.changed = true;
        });
        *outcome = Some(Outcome::Noted(noted.is_some()));
    }
}

pub(super) fn renew(now: i64, commands: &[Command], changes: &mut Changes<'_, '_>) {
    let Changes { held, outcomes, .. } = changes;
    for (command, outcome) in commands.iter().zip(outcomes.iter_mut()) {
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

pub(super) fn release(now: i64, rules: &Rules, commands: &[Command], changes: &mut Changes<'_, '_>) {
    let Changes { held, outcomes, log } = changes;
    for (command, outcome) in commands.iter().zip(outcomes.iter_mut()) {
        let Command::Release { identity, lease, report, account } = command else { continue };
        let held = held.get_mut(&identity.to_string());
        let released = held.is_some_and(|held| {
            let Some(seed) = &mut held.seed else { return false };
            let Some(point) = release_one(seed, lease, now) else { return false };
            let told = (*report, account.as_deref());
            judge(seed, identity, told, now, rules, log);
            log.release(now, (identity, &seed.key), point, told);
            // A seed that was removed goes with its last lease.
            if seed.removed
                && seed.live_leases(now) == 0
                && let Some(seed) = held.seed.take()
            {
                log.take_along(now, identity, seed);
            }
            true
        });
        *outcome = Some(Outcome::Released(released));
    }
}

fn release_one(seed: &mut Seed, lease: &LeaseHash, now: i64) -> Option<Point> {
    let n = seed.leased(lease, now)?.n;
    let at = seed.points.iter().position(|point| point.n == n)?;
    seed.renewed.remove(&n);
    seed.released.insert(n);
    seed.moved = true;
    Some(seed.points.swap_remove(at))
}

/// What the end of a lease says of its seed.
fn judge(
    seed: &mut Seed,
    identity: &SeedIdentity,
    (report, account): (Report, Option<&Account>),
    now: i64,
    rules: &Rules,
    log: &mut Log,
) {
    let health = report.on(seed.health, now, rules.back_off);
    if health == seed.health {
        return;
    }
    let reason = account.and_then(|account| account.reason.as_deref());
    let happened = Happened::to(identity, &seed.key, EventKind::Suspect);
    happened.of_health(seed.health, health, now, reason).into_iter().for_each(|event| log.note(event));
    seed.changed = true;
    seed.health = health;
}

/// Writes what [`renew`] and [`release`] decided for seeds that stay; the others take their points along.
pub(super) async fn write(
    connection: &mut Connection,
    held: &HeldSeeds<'_>,
    log: &Log,
) -> Result<(), Stopped> {
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
    history::end_leases(connection, (released.seed_ids, released.numbers), &log.ended).await
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
