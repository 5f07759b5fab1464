//! A batch of commands: lock, look, decide, write.
//!
//! All seeds that are named are locked and read first; what registrations, renewals, releases and removals
//! mean is then decided on plain values, and written in a statement a kind. Acquisitions come last and choose
//! among what is there then.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::{Command, LeaseHash, Outcome, Rules};
use super::allocate::Asked;
use super::history::Log;
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::{Database, allocate, lease_hash, leases, offer, requests, seed_key, seeds, small};
use crate::domain::health::Health;
use crate::domain::seed::{Known, Profile};
use crate::domain::terms::Terms;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The work of [`super::Database::apply`].
pub(super) struct Batch<'a> {
    store: &'a Database,
    commands: &'a [Command],
    /// What an earlier attempt chose and others held: locked from the start.
    chosen_before: Chosen,
}

/// What a batch did.
pub(super) struct Applied {
    pub(super) outcomes: Vec<Outcome>,
    /// Whether waiters of this planner's were served.
    pub(super) woke: bool,
    /// Keys of which a point may have become free, or for which somebody may wait.
    pub(super) touched: BTreeSet<SeedKey>,
}

/// What was chosen when locks were held already, so that it could not be waited for.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Hosts whose seeds share a bound.
    pub(super) hosts: BTreeSet<String>,
    pub(super) seeds: BTreeSet<i64>,
    /// Waiting requests.
    pub(super) requests: BTreeSet<i64>,
}

/// A leased point of a seed that is held.
pub(super) struct Point {
    pub(super) n: u32,
    pub(super) lease: LeaseHash,
    pub(super) busy_until_ms: i64,
    pub(super) granted_ms: i64,
    pub(super) requester: Option<String>,
}

/// A seed as it is to be when the batch is written.
// Four facts that do not depend on each other.
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Seed {
    pub(super) id: i64,
    pub(super) key: SeedKey,
    pub(super) removed: bool,
    pub(super) drained: bool,
    pub(super) profile: Profile,
    pub(super) terms: Terms,
    pub(super) health: Health,
    /// When it last answered a planner, Unix milliseconds.
    pub(super) answered_ms: i64,
    /// When it was last heard of before this batch, Unix milliseconds; read with the heartbeat's lock, which whoever
    /// registers, beats or removes has.
    pub(super) last_ms: i64,
    /// Of a heartbeat in this batch, Unix milliseconds.
    pub(super) heard_ms: Option<i64>,
    /// Points that have a row.
    pub(super) points: Vec<Point>,
    /// Points to be written.
    pub(super) renewed: BTreeSet<u32>,
    /// Points whose row is to go.
    pub(super) released: BTreeSet<u32>,
    /// Whether its place among the seeds of its key may be another now.
    pub(super) moved: bool,
    /// Whether what its row says of it, beside its place, is to be written.
    pub(super) changed: bool,
}

impl Seed {
    /// A seed as its row, of which all columns were read, has it; without its points.
    pub(super) fn of_row(row: &PgRow) -> Result<Self, Stopped> {
        Ok(Self {
            id: row.try_get("id")?,
            key: seed_key(row.try_get("seed_key")?)?,
            removed: row.try_get("removed")?,
            drained: row.try_get("drained")?,
            profile: seeds::profile(row)?,
            terms: seeds::terms(row)?,
            health: Health {
                failures: small(row.try_get::<i32, _>("failures")?.into())?,
                suspect_until_ms: row.try_get("suspect_until_ms")?,
            },
            answered_ms: row.try_get("answered_ms")?,
            last_ms: 0,
            heard_ms: None,
            points: Vec::new(),
            renewed: BTreeSet::new(),
            released: BTreeSet::new(),
            moved: false,
            changed: false,
        })
    }

    pub(super) fn live_leases(&self, now: i64) -> u32 {
        let live = self.points.iter().filter(|point| point.busy_until_ms > now).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }

    pub(super) fn known(&self, now: i64, rules: &Rules) -> Known {
        let last_ms = self.heard_ms.unwrap_or(self.last_ms).max(self.last_ms);
        Known {
            key: self.key.clone(),
            profile: self.profile.clone(),
            removed: self.removed,
            drained: self.drained,
            silent: last_ms <= now.saturating_sub(rules.heartbeat_ttl_ms),
            live_leases: self.live_leases(now),
        }
    }

    /// The point that `lease` has, if it lives.
    pub(super) fn leased(&mut self, lease: &LeaseHash, now: i64) -> Option<&mut Point> {
        self.points.iter_mut().find(|point| point.lease == *lease && point.busy_until_ms > now)
    }
}

/// What a batch holds of one identity. The row lock keeps others away from it until the end.
pub(super) struct Held<'a> {
    pub(super) identity: &'a SeedIdentity,
    /// The number of the seed that the database has.
    pub(super) stored: Option<i64>,
    pub(super) seed: Option<Seed>,
}

/// By identity, in the order in which new ones are inserted.
pub(super) type HeldSeeds<'a> = BTreeMap<String, Held<'a>>;

/// What commands change, before it is written.
pub(super) struct Changes<'c, 'a> {
    pub(super) held: &'c mut HeldSeeds<'a>,
    pub(super) outcomes: &'c mut [Option<Outcome>],
    pub(super) log: &'c mut Log,
}

impl<'a> Batch<'a> {
    pub(super) fn new(store: &'a Database, commands: &'a [Command]) -> Self {
        Self { store, commands, chosen_before: Chosen::default() }
    }

    /// Locks the seeds, in the order of their numbers. A seed that another planner deletes meanwhile is not there,
    /// be it that its new holding is: registering it meets the unique index, and of what else is told of a seed
    /// that is not there [`seeds::write`] makes sure.
    async fn lock(&self, connection: &mut Connection) -> Result<HeldSeeds<'a>, Stopped> {
        let mut held: HeldSeeds<'a> = self
            .commands
            .iter()
            .filter_map(Command::identity)
            .map(|identity| (identity.to_string(), Held { identity, stored: None, seed: None }))
            .collect();
        allocate::lock_hosts(connection, &self.chosen_before.hosts).await?;
        if held.is_empty() && self.chosen_before.seeds.is_empty() {
            return Ok(held);
        }
        let rows = sqlx::query(concat!(
            "SELECT ",
            of_seed!(),
            " FROM seeds s WHERE s.identity = ANY($1) OR s.id = ANY($2) ORDER BY s.id FOR UPDATE",
        ))
        .bind(held.keys().cloned().collect::<Vec<_>>())
        .bind(self.chosen_before.seeds.iter().copied().collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        for row in rows {
            let Some(held) = held.get_mut(row.try_get::<&str, _>("identity")?) else { continue };
            held.stored = Some(row.try_get("id")?);
            held.seed = Some(Seed::of_row(&row)?);
        }
        Ok(held)
    }

    /// Locks the heartbeats of seeds that may be written or deleted here, in order, before anything is written.
    async fn lock_heartbeats(
        &self,
        connection: &mut Connection,
        held: &mut HeldSeeds<'a>,
    ) -> Result<(), Stopped> {
        let mut ids: BTreeSet<i64> = BTreeSet::new();
        for command in self.commands {
            let seed = command.identity().and_then(|identity| held.get(&identity.to_string())?.seed.as_ref());
            let Some(seed) = seed else { continue };
            let alone = matches!(
                command,
                Command::Renew { .. }
                    | Command::Release { .. }
                    | Command::Answered { .. }
                    | Command::Drain { .. }
            );
            if !alone || seed.removed {
                ids.insert(seed.id);
            }
        }
        let heard = seeds::lock_heartbeats(connection, &ids.into_iter().collect::<Vec<_>>()).await?;
        let last_ms: BTreeMap<i64, i64> = heard.into_iter().collect();
        for seed in held.values_mut().filter_map(|held| held.seed.as_mut()) {
            seed.last_ms = last_ms.get(&seed.id).copied().unwrap_or(seed.last_ms);
        }
        Ok(())
    }

    async fn load_points(
        &self,
        connection: &mut Connection,
        held: &mut HeldSeeds<'a>,
    ) -> Result<(), Stopped> {
        let mut by_id: BTreeMap<i64, &mut Seed> =
            held.values_mut().filter_map(|held| held.seed.as_mut()).map(|seed| (seed.id, seed)).collect();
        if by_id.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "SELECT granted_ms, requester, seed_id, n, lease_hash, busy_until_ms FROM points
             WHERE seed_id = ANY($1)",
        )
        .bind(by_id.keys().copied().collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        for row in rows {
            if let Some(seed) = by_id.get_mut(&row.try_get("seed_id")?) {
                seed.points.push(Point {
                    n: small(row.try_get::<i32, _>("n")?.into())?,
                    lease: lease_hash(row.try_get("lease_hash")?)?,
                    busy_until_ms: row.try_get("busy_until_ms")?,
                    granted_ms: row.try_get("granted_ms")?,
                    requester: row.try_get("requester")?,
                });
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        connection: &mut Connection,
        now: i64,
        held: &HeldSeeds<'a>,
        log: &Log,
    ) -> Result<(), Stopped> {
        leases::write(connection, held, log).await?;
        seeds::write(connection, held).await?;
        log.write(connection, now).await?;
        let moved = held.values().filter_map(|held| {
            let seed = held.seed.as_ref()?;
            seed.moved.then_some(seed.id)
        });
        offer::refresh(connection, now, &self.store.rules, &moved.collect::<Vec<_>>()).await
    }
}

#[async_trait]
impl Work for Batch<'_> {
    type Done = Applied;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Applied, Stopped> {
        let rules = &self.store.rules;
        let mut outcomes: Vec<Option<Outcome>> = vec![None; self.commands.len()];
        let mut held = self.lock(connection).await?;
        self.lock_heartbeats(connection, &mut held).await?;
        let now = self.store.now(connection).await?;
        self.load_points(connection, &mut held).await?;

        let mut log = Log::new(rules);
        let mut changes = Changes { held: &mut held, outcomes: &mut outcomes, log: &mut log };
        seeds::register(connection, now, rules, self.commands, &mut changes).await?;
        leases::answered(now, self.commands, &mut changes);
        leases::renew(now, self.commands, &mut changes);
        leases::release(now, rules, self.commands, &mut changes);
        seeds::remove(now, rules, self.commands, &mut changes);
        self.write(connection, now, &held, &log).await?;

        let (store, commands, chosen) = (self.store, self.commands, &mut self.chosen_before);
        let mut locks = requests::lock(connection, commands, chosen).await?;
        // Before repetitions, which may follow the end of what they repeat.
        let freed =
            requests::leave(connection, now, store, commands, chosen, &mut locks, &mut outcomes).await?;
        let twins =
            requests::resume(connection, now, store, commands, (&mut locks, chosen), &mut outcomes).await?;
        for (at, _) in &twins.of_first {
            // Until it is known what became of the first.
            outcomes[*at] = Some(Outcome::Queued(None));
        }
        let may_wait = held.is_empty() && chosen.seeds.is_empty();
        let touched = requests::touched(connection, rules, commands, &held, freed).await?;
        let asked = Asked { commands, touched: &touched, may_wait };
        let woke =
            allocate::acquire(connection, now, store, asked, chosen, &mut locks, &mut outcomes).await?;
        requests::enqueue(connection, now, &store.planner, commands, &twins, &mut locks, &mut outcomes)
            .await?;
        for (at, first) in twins.of_first {
            let of_first = outcomes[first].clone();
            outcomes[at] = of_first;
        }
        requests::next_ends(connection, now, commands, &mut outcomes).await?;
        locks.finish(connection, now, &store.planner).await?;
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| outcome.ok_or_else(|| Stopped::Broken("a command has no outcome".into())));
        Ok(Applied { outcomes: outcomes.collect::<Result<_, _>>()?, woke, touched })
    }
}
