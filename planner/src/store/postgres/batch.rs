//! What is decided in a transaction: load, offer, decide ([`crate::decide`]), write. Other planners work on the same rows
//! meanwhile; if one of them comes first, the next attempt holds what it was about from the start.

use std::collections::BTreeSet;

use async_trait::async_trait;
use rfork_protocol::SeedKey;

use super::super::commands::{Acquired, Commands, Outcomes};
use super::super::{MAX_BATCH, Room};
use super::Database;
use super::clients::{self, Difference};
use super::load::Load;
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::waiters;
use super::write::{Held, write};
use crate::decide::{Batch, Decision, Tables, Wants};

/// The most looks that a batch takes: each asks for something that no one before has asked for.
const MAX_LOOKS: usize = 4_096;

/// The work of [`super::super::Store::apply`].
pub(super) struct Apply<'a> {
    store: &'a Database,
    commands: &'a Commands,
    held: Held,
}

/// What a batch did.
pub(super) struct Applied {
    pub(super) outcomes: Outcomes,
    /// Whether waiters of this planner's were served.
    pub(super) woke: bool,
    /// Seeds and requests of clients that came, or went.
    pub(super) clients: Difference,
    /// Keys that are to be looked at once more: [`waiters`].
    pub(super) touched: BTreeSet<SeedKey>,
}

impl<'a> Apply<'a> {
    pub(super) fn new(store: &'a Database, commands: &'a Commands) -> Self {
        Self { store, commands, held: Held::default() }
    }

    async fn decide(&self, connection: &mut Connection, load: &mut Load<'_>) -> Result<Decision, Stopped> {
        let Self { store, commands, held } = self;
        let mut wants = Batch::first_wants(commands, &store.rules);
        wants.hosts.extend(held.hosts.iter().cloned());
        // Whoever waited may load now, and be a seed.
        load.adds_rows = !commands.registers.is_empty()
            || !commands.claims.is_empty()
            || store.rules.max_chain_depth > 0
            || commands.acquires.iter().any(|one| one.queue.is_some() || one.wish.instance_id.is_some());
        let shown = load.look(connection, &wants, (&[], &[])).await?;
        let room =
            if load.adds_rows { store.left.of(&store.rules.room, connection).await? } else { Room::ENDLESS };
        let mut tables = Tables::new(load.first_number, load.first_number, room);
        self.store.clients.put(&wants, &mut tables);
        shown.put(&mut tables);
        let mut batch = Batch::new(commands, &store.rules, &store.planner, load.now()?, tables);
        for _ in 0..MAX_LOOKS {
            let wants = batch.decide();
            if wants.is_empty() {
                return Ok(batch.finish());
            }
            load.look(connection, &wants, (&[], &[])).await?.put(batch.tables());
        }
        Err(Stopped::Broken("a batch keeps asking for rows".into()))
    }
}

#[async_trait]
impl Work for Apply<'_> {
    type Done = Applied;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Applied, Stopped> {
        let (store, commands) = (self.store, self.commands);
        if commands.len() > MAX_BATCH {
            return Err(Stopped::Broken(format!("{} commands are more than a batch", commands.len())));
        }
        self.held.lock(connection).await?;
        let mut load = Load::new(store);
        let mut decision = self.decide(connection, &mut load).await?;
        let now = load.now()?;
        write(connection, store, (now, &load.seen, &mut self.held), &decision.changes).await?;
        let waits = |answer: &Acquired| matches!(answer, Acquired::Queued(_));
        if decision.outcomes.acquires.iter().any(waits) || !commands.serves.is_empty() {
            let serves = commands.serves.iter().map(|serve| &serve.key);
            let keys = commands.acquires.iter().map(|acquire| &acquire.key).chain(serves);
            let ends = waiters::next_ends(connection, now, keys.collect()).await?;
            decision.wait_ms(commands, |key| ends.get(key).copied());
        }
        let woke = decision.woken.remove(&store.planner);
        waiters::tell(connection, &decision.woken).await?;
        // A batch of acquisitions that were all answered neither frees nor waits.
        let matters =
            commands.len() > commands.acquires.len() || decision.outcomes.acquires.iter().any(waits);
        let touched = if matters { decision.touched } else { BTreeSet::new() };
        let clients = clients::difference(&decision.changes);
        Ok(Applied { outcomes: decision.outcomes, woke, clients, touched })
    }
}

/// Rows that are found by what they are like, not named by commands.
#[async_trait]
pub(super) trait Find: Send + Sync {
    /// The numbers of seeds and of requests, a bounded number, as they seem to be. Whether they are is decided.
    async fn find(
        &self,
        connection: &mut Connection,
        store: &Database,
        now: i64,
    ) -> Result<(Vec<i64>, Vec<i64>), Stopped>;
}

/// Something that is decided over rows that are found; gives what comes of it.
pub(super) struct Change<'a, F, D> {
    pub(super) store: &'a Database,
    pub(super) find: F,
    pub(super) decide: D,
    pub(super) held: Held,
}

impl<'a, F, D> Change<'a, F, D> {
    pub(super) fn new(store: &'a Database, find: F, decide: D) -> Self {
        Self { store, find, decide, held: Held::default() }
    }
}

#[async_trait]
impl<T: Send, F: Find, D: FnMut(&mut Tables, i64) -> T + Send> Work for Change<'_, F, D> {
    type Done = T;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<T, Stopped> {
        let store = self.store;
        let now = store.time.now(connection).await?;
        let (seeds, requests) = self.find.find(connection, store, now).await?;
        // Others change them often: they are held before they are looked at.
        self.held.seeds.clear();
        self.held.seeds.extend(&seeds);
        self.held.lock(connection).await?;
        let mut load = Load::new(store);
        load.now = Some(now);
        let wants = Wants { hosts: self.held.hosts.clone(), ..Wants::default() };
        let shown = load.look(connection, &wants, (&seeds, &requests)).await?;
        let mut tables = Tables::new(0, 0, Room::ENDLESS);
        shown.put(&mut tables);
        let done = (self.decide)(&mut tables, now);
        let changes = tables.into_changes();
        write(connection, store, (now, &load.seen, &mut self.held), &changes).await?;
        Ok(done)
    }
}
