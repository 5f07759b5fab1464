//! A store whose rows are kept in a file that one process has for itself ([`Journal`]), and mirrored in memory, where
//! all decisions are taken ([`crate::decide`]).
//!
//! One transaction of the file is under way at a time, and whoever has it may decide: what it has seen stays as it is
//! until it ends. The mirror takes a batch in after the commit, and before anybody hears of it. So a reader of the mirror
//! sees committed rows only, and a batch sees all that were committed before it.
//!
//! *In doubt.* Between the first write of a batch and its place in the mirror there may be an error, a time-out, or the
//! end of the call that waits; the file may have committed the batch or not. Its changes are kept meanwhile
//! ([`Pending`]), under the number that it writes. Whoever begins next reads the file's number: the batch's, and the
//! changes are taken in; the one before, and they are dropped; another one, or a sign that somebody else has written,
//! and all rows are read anew. None decides before that is done.
//!
//! The mirror is locked for moments, never across an await.

mod journal;
mod lists;
mod load;
mod mirror;
#[cfg(test)]
mod paper;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use tokio::sync::Notify;

use super::clock::Own;
use super::commands::{Commands, Outcomes};
use super::history::{EndedLease, Event, EventFilter, Forgotten, MAX_STEPS};
use super::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use super::{
    Beat, Counts, LeaseSecret, MAX_FLUSH, PoolView, Rules, Snapshot, Store, StoreError, Swept, Told, Usage,
    Woken,
};
use crate::decide::place::Place;
use crate::decide::{Batch, Changes, Decision, adopt, collect, drain, heartbeat, sweep};
pub use journal::{Journal, Loaded, Record, Version};
use mirror::{Mirror, Source};

/// Rows that one step of a sweep looks at.
const STEP_ROWS: usize = 1_000;

/// The most looks that a batch takes: each asks for something that no one before has asked for.
const MAX_LOOKS: usize = 4_096;

/// A store over a journal. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct MirrorStore<J: Journal> {
    pub(in crate::store) journal: J,
    rules: Rules,
    time: Own,
    lease_secret: LeaseSecret,
    /// This process, for those who wait for its answers.
    planner: Arc<str>,
    /// Told when some of those were served.
    served: Arc<Notify>,
    held: Mutex<Held>,
}

/// The mirror, and how it stands to the file.
#[derive(Debug)]
struct Held {
    mirror: Mirror,
    /// What the mirror shows; `None` when all rows are to be read anew.
    version: Option<Version>,
    pending: Option<Pending>,
}

/// A batch that was written, of which it is not known yet whether it was committed.
#[derive(Debug)]
struct Pending {
    batch: i64,
    now: i64,
    changes: Arc<Changes>,
}

impl Held {
    /// Finds out what became of a batch in doubt; gives whether the mirror shows what the file has.
    fn settle(&mut self, version: Version) -> bool {
        let pending = self.pending.take();
        let shown = self.version.take().filter(|shown| shown.foreign == version.foreign);
        let Some(shown) = shown else { return false };
        if let Some(Pending { batch, now, changes }) =
            pending.filter(|pending| pending.batch == version.batch)
        {
            if batch == shown.batch + 1 {
                self.mirror.apply(Arc::unwrap_or_clone(changes), now);
                self.version = Some(version);
            }
        } else if shown.batch == version.batch {
            self.version = Some(version);
        }
        self.version.is_some()
    }
}

impl<J: Journal> MirrorStore<J> {
    /// Reads all rows, ends what a process before has left, and gives seeds the terms of today's rules.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn over(
        journal: J,
        rules: Rules,
        time: Own,
        lease_secret: LeaseSecret,
    ) -> Result<Self, StoreError> {
        let held = Held { mirror: Mirror::new(rules.clone()), version: None, pending: None };
        let (planner, served) = (super::planner_id().into(), Arc::default());
        let store = Self { journal, rules, time, lease_secret, planner, served, held: Mutex::new(held) };
        store.take_over().await?;
        Ok(store)
    }

    /// In bounded steps: a process that ends meanwhile leaves the rest to the next.
    async fn take_over(&self) -> Result<(), StoreError> {
        let mut after = Some(0);
        while let Some(last) = after {
            after = self
                .change(|mirror, _| {
                    let ids: Vec<i64> =
                        mirror.requests.range(last + 1..).take(STEP_ROWS).map(|(id, _)| *id).collect();
                    let mut tables = mirror.tables();
                    for id in &ids {
                        mirror.put_request(&mut tables, *id);
                    }
                    adopt::abandon(&mut tables);
                    (ids.last().copied(), tables.into_changes())
                })
                .await?;
        }
        let mut after = Some(0);
        while let Some(last) = after {
            after = self
                .change(|mirror, _| {
                    let outdated = mirror
                        .seeds
                        .range(last + 1..)
                        .filter(|(_, seed)| adopt::is_outdated(&seed.row, &self.rules));
                    let ids: Vec<i64> = outdated.take(STEP_ROWS).map(|(id, _)| *id).collect();
                    let mut tables = mirror.tables();
                    for id in &ids {
                        mirror.put_seed(&mut tables, *id);
                    }
                    adopt::adopt(&mut tables, &self.rules);
                    (ids.last().copied(), tables.into_changes())
                })
                .await?;
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whoever panicked has changed the mirror as a whole or not at all, but for places, which only say where to look.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transaction, and brings the mirror up to what was committed before it. Its time is no earlier than that
    /// of the one before.
    pub(in crate::store) async fn begin(&self) -> Result<(J::Transaction, i64), StoreError> {
        let (mut tx, version) = self.journal.begin().await?;
        let now = self.time.now_ms();
        let is_shown = self.held().settle(version);
        if !is_shown {
            let loaded = self.journal.load(&mut tx).await?;
            let mut held = self.held();
            held.mirror = mirror_of(loaded, &held.mirror, &self.rules, now);
            held.version = Some(version);
        }
        Ok((tx, now))
    }

    /// Writes, commits, and takes in.
    async fn commit(&self, mut tx: J::Transaction, changes: Changes, now: i64) -> Result<(), StoreError> {
        let clock = self.time.news();
        if changes.is_empty() && clock.is_none() {
            self.journal.commit(tx).await?;
            // What nobody keeps but this process.
            self.held().mirror.apply(changes, now);
            return Ok(());
        }
        let changes = Arc::new(changes);
        let batch = {
            let mut held = self.held();
            let batch = held.version.map_or(0, |version| version.batch) + 1;
            held.pending = Some(Pending { batch, now, changes: changes.clone() });
            batch
        };
        self.journal.write(&mut tx, Record { batch, now, changes: &changes, clock }).await?;
        drop(changes);
        self.journal.commit(tx).await?;
        let mut held = self.held();
        // Nobody else has begun: what is pending is this batch, unless somebody has found out already.
        if let Some(Pending { changes, .. }) = held.pending.take_if(|pending| pending.batch == batch) {
            held.mirror.apply(Arc::unwrap_or_clone(changes), now);
            held.version = held.version.map(|version| Version { batch, ..version });
        }
        drop(held);
        if let Some(clock) = clock {
            self.time.note(clock);
        }
        Ok(())
    }

    /// Decides something by the mirror, and has it committed.
    async fn change<T>(
        &self,
        decide: impl FnOnce(&mut Mirror, i64) -> (T, Changes) + Send,
    ) -> Result<T, StoreError> {
        let (tx, now) = self.begin().await?;
        let (decided, changes) = decide(&mut self.held().mirror, now);
        self.commit(tx, changes, now).await?;
        Ok(decided)
    }

    fn decide(&self, commands: &Commands, now: i64) -> Result<Decision, StoreError> {
        let mirror = &mut self.held().mirror;
        let mut tables = mirror.tables();
        mirror.load(&Batch::first_wants(commands, &self.rules), &mut tables, now, &self.rules);
        let mut batch = Batch::new(commands, &self.rules, &self.planner, now, tables);
        for _ in 0..MAX_LOOKS {
            let wants = batch.decide();
            if wants.is_empty() {
                return Ok(batch.finish());
            }
            mirror.load(&wants, batch.tables(), now, &self.rules);
        }
        Err(StoreError::Broken("a batch keeps asking for rows".into()))
    }

    /// One step of a sweep over seeds, from a number on; gives where the next begins.
    async fn sweep_seeds(&self, from: i64) -> Result<(Swept, Option<i64>), StoreError> {
        self.change(|mirror, now| {
            let mut tables = mirror.tables();
            let (mut silenced, mut next, mut due) = (Vec::new(), None, 0);
            for (id, seed) in mirror.seeds.range(from..).take(4 * STEP_ROWS) {
                if due == STEP_ROWS {
                    break;
                }
                next = Some(id + 1);
                if sweep::is_due(&seed.row, now, &self.rules) {
                    tables.put_seed(seed.row.clone());
                    due += 1;
                }
                if seed.place.rank.is_some() && seed.row.is_silent(now, &self.rules) {
                    silenced.push((*id, seed.place.due_ms));
                }
            }
            // Out of the way of allocations, which would skip them one by one.
            for (id, due_ms) in &silenced {
                mirror.put(*id, Place { due_ms: *due_ms, ..Place::default() });
            }
            let ended = sweep::sweep(&mut tables, now, &self.rules);
            let (leases, seeds, silenced) = (ended.leases, ended.seeds, silenced.len() as u64);
            (
                (Swept { leases, seeds, silenced, forgotten: Forgotten::default() }, next),
                tables.into_changes(),
            )
        })
        .await
    }

    /// The same over requests; gives how many were forgotten.
    async fn sweep_requests(&self, from: i64) -> Result<(u64, Option<i64>), StoreError> {
        self.change(|mirror, now| {
            let mut tables = mirror.tables();
            let mut next = None;
            let ids: Vec<i64> = mirror
                .requests
                .range(from..)
                .take(4 * STEP_ROWS)
                .inspect(|(id, _)| next = Some(**id + 1))
                .filter(|(_, row)| {
                    let is_leased = mirror.leases.contains_key(&row.lease);
                    sweep::is_forgotten(row, now, &self.rules, is_leased)
                })
                .map(|(id, _)| *id)
                .collect();
            for id in &ids {
                mirror.put_request(&mut tables, *id);
            }
            ((sweep::forget(&mut tables, now, &self.rules), next), tables.into_changes())
        })
        .await
    }

    /// Forgets which instances served others long ago.
    async fn sweep_sources(&self) -> Result<(), StoreError> {
        loop {
            let is_over = self
                .change(|mirror, now| {
                    let unused =
                        mirror.sources.iter().filter(|(_, source)| sweep::is_unused(source.used_ms, now));
                    let unused = unused.take(STEP_ROWS).map(|(served, _)| (served.clone(), None));
                    let changes = Changes { sources: unused.collect(), ..Changes::default() };
                    (changes.sources.is_empty(), changes)
                })
                .await?;
            if is_over {
                return Ok(());
            }
        }
    }
}

/// A mirror of all rows of a file.
fn mirror_of(loaded: Loaded, before: &Mirror, rules: &Rules, now: i64) -> Mirror {
    let mut mirror = Mirror::new(rules.clone());
    mirror.planners.clone_from(&before.planners);
    for row in loaded.seeds {
        mirror.insert_seed(Arc::new(row), now);
    }
    for row in loaded.requests {
        mirror.insert_request(Arc::new(row));
    }
    for (served, instance, used_ms) in loaded.sources {
        mirror.insert_source(served, Source { instance, used_ms });
    }
    mirror.moves.extend(loaded.moves);
    mirror.new_seed = mirror.new_seed.max(before.new_seed).max(loaded.new_seed);
    mirror
}

#[async_trait]
impl<J: Journal> Store for MirrorStore<J> {
    async fn apply(&self, commands: &Commands) -> Result<Outcomes, StoreError> {
        let (tx, now) = self.begin().await?;
        let mut decision = self.decide(commands, now)?;
        self.commit(tx, std::mem::take(&mut decision.changes), now).await?;
        let held = self.held();
        decision.wait_ms(commands, |key| held.mirror.next_end_ms(key, now));
        drop(held);
        if decision.woken.contains(&self.planner) {
            self.served.notify_one();
        }
        Ok(decision.outcomes)
    }

    fn lease_secret(&self) -> &LeaseSecret {
        &self.lease_secret
    }

    fn wakes(&self) -> Arc<Notify> {
        self.served.clone()
    }

    async fn collect(&self, told: &[Told]) -> Result<Vec<Woken>, StoreError> {
        self.change(|mirror, now| {
            let mut tables = mirror.tables();
            for id in &mirror.to_answer {
                mirror.put_request(&mut tables, *id);
            }
            let woken = collect::collect(&mut tables, now, &self.planner, told);
            (woken, tables.into_changes())
        })
        .await
    }

    async fn source_instance(&self, instance: &str) -> Result<Option<String>, StoreError> {
        Ok(self.held().mirror.sources.get(instance).map(|source| source.instance.clone()))
    }

    async fn invalidate(
        &self,
        key: &SeedKey,
        keep: Option<&str>,
        by: Option<&Arc<str>>,
    ) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let drained = self
                .change(|mirror, now| {
                    let mut tables = mirror.tables();
                    let seeds = mirror.keys.get(key).into_iter().flat_map(|key| key.seeds.values());
                    let rows = seeds.filter_map(|id| Some(&mirror.seeds.get(id)?.row));
                    let outdated = rows.filter(|row| drain::is_outdated(row, keep)).take(STEP_ROWS);
                    outdated.for_each(|row| tables.put_seed(row.clone()));
                    let drained = drain::invalidate(&mut tables, now, &self.rules, key, keep, by);
                    (drained, tables.into_changes())
                })
                .await?;
            all += drained;
            if drained == 0 {
                return Ok(all);
            }
        }
    }

    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError> {
        let mut gone = HashSet::new();
        for some in beats.chunks(MAX_FLUSH) {
            let more = self
                .change(|mirror, now| {
                    let mut tables = mirror.tables();
                    for beat in some {
                        mirror.put_seed(&mut tables, beat.seed_id);
                    }
                    (heartbeat::flush(&mut tables, now, some), tables.into_changes())
                })
                .await?;
            gone.extend(more);
        }
        Ok(gone)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut from = Some(i64::MIN);
        while let Some(number) = from {
            let (step, next) = self.sweep_seeds(number).await?;
            swept.leases += step.leases;
            swept.seeds += step.seeds;
            swept.silenced += step.silenced;
            from = next;
        }
        let mut from = Some(i64::MIN);
        while let Some(number) = from {
            let (forgotten, next) = self.sweep_requests(number).await?;
            swept.forgotten.requests += forgotten;
            from = next;
        }
        self.sweep_sources().await?;
        for _ in 0..MAX_STEPS {
            let (mut tx, now) = self.begin().await?;
            let step = self.journal.forget(&mut tx, now, &self.rules).await?;
            self.journal.commit(tx).await?;
            if step == Forgotten::default() {
                break;
            }
            swept.forgotten.leases += step.leases;
            swept.forgotten.events += step.events;
        }
        Ok(swept)
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let now = self.time.now_ms();
        let snapshot = self.held().mirror.snapshot(now, &self.rules);
        Ok(Snapshot { ahead_ms: self.time.offset_ms(), ..snapshot })
    }

    async fn list_seeds(&self, filter: &SeedFilter, part: &Part) -> Result<Page<SeedEntry>, StoreError> {
        Ok(self.held().mirror.list_seeds(self.time.now_ms(), &self.rules, filter, part))
    }

    async fn list_leases(&self, filter: &LeaseFilter, part: &Part) -> Result<Page<LeaseEntry>, StoreError> {
        Ok(self.held().mirror.list_leases(self.time.now_ms(), filter, part))
    }

    async fn list_ended_leases(
        &self,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        self.journal.list_ended_leases(self.time.now_ms(), filter, part).await
    }

    async fn list_events(&self, filter: &EventFilter, part: &Part) -> Result<Page<Event>, StoreError> {
        self.journal.list_events(self.time.now_ms(), filter, part).await
    }

    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError> {
        Ok(self.held().mirror.list_keys(self.time.now_ms(), &self.rules, part))
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Ok(self.held().mirror.counts(self.time.now_ms(), &self.rules))
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        Ok(self.held().mirror.usage().to_vec())
    }

    async fn check(&self) -> Result<(), StoreError> {
        let (tx, _) = self.begin().await?;
        self.journal.check(tx).await
    }

    fn pools(&self) -> Vec<PoolView> {
        self.journal.pools()
    }

    async fn close(&self) {
        if let Ok((mut tx, now)) = self.begin().await {
            let (changes, clock) = (Changes::default(), Some((self.time.offset_ms(), now)));
            let batch = self.held().version.map_or(0, |version| version.batch);
            // Without it the next process begins with what was noted before.
            if self.journal.write(&mut tx, Record { batch, now, changes: &changes, clock }).await.is_ok() {
                let _ = self.journal.commit(tx).await;
            }
        }
        self.journal.close().await;
    }
}
