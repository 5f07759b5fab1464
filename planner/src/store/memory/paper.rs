//! A journal of the tests: a sheet that outlives the stores on it, and is as a file is.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Journal, Loaded, Record, Version};
use crate::decide::rows::{EndedRow, EventRow, RequestRow, SeedRow};
use crate::store::history::{EndedLease, Event, EventFilter, Forgotten, before, place};
use crate::store::list::{LeaseFilter, Page, Part};
use crate::store::simulation::{commit, statement};
use crate::store::{PoolView, Rules, StoreError};

#[derive(Debug, Default)]
pub(super) struct Sheet {
    seeds: BTreeMap<i64, Arc<SeedRow>>,
    requests: BTreeMap<i64, Arc<RequestRow>>,
    sources: BTreeMap<String, (String, i64)>,
    moves: BTreeMap<SeedKey, i64>,
    ended: BTreeMap<i64, EndedRow>,
    events: BTreeMap<i64, EventRow>,
    last_ended: i64,
    last_event: i64,
    next_seed: i64,
    batch: i64,
    foreign: i64,
    pub(super) clock: (i64, i64),
    /// As it was made with it.
    pub(super) secret: [u8; 32],
    /// The next commit fails: after it was done, or before.
    pub(super) fails: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Done,
    Undone,
}

impl Sheet {
    /// Somebody else makes it empty.
    pub(super) fn clear(&mut self) {
        let Self { clock, next_seed, secret, .. } = *self;
        *self = Self { next_seed, foreign: self.foreign + 1, clock, secret, ..Self::default() };
    }

    fn take_in(&mut self, staged: Staged) {
        let Staged { batch, now, changes, clock } = staged;
        self.batch = batch;
        self.next_seed = changes.next_seed.unwrap_or(self.next_seed);
        self.clock = clock.unwrap_or(self.clock);
        for changed in changes.seeds {
            assert_eq!(
                changed.before.as_ref(),
                changed.before.as_ref().and_then(|row| self.seeds.get(&row.id))
            );
            changed.before.map(|row| self.seeds.remove(&row.id));
            if let Some(row) = changed.after {
                self.seeds.insert(row.id, row);
            }
        }
        for changed in changes.requests {
            changed.before.map(|row| self.requests.remove(&row.id));
            self.requests.extend(changed.after.map(|row| (row.id, row)));
        }
        for (served, source) in changes.sources {
            self.sources.remove(&served);
            self.sources.extend(source.map(|source| (served, (source, now))));
        }
        self.moves.extend(changes.moves.into_iter().map(|key| (key, now)));
        for row in changes.ended {
            self.last_ended += 1;
            self.ended.insert(self.last_ended, row);
        }
        for row in changes.events {
            self.last_event += 1;
            self.events.insert(self.last_event, row);
        }
    }
}

#[derive(Debug)]
struct Staged {
    batch: i64,
    now: i64,
    changes: crate::decide::Changes,
    clock: Option<(i64, i64)>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Paper(pub(super) Arc<Mutex<Sheet>>);

pub(super) struct Writing {
    sheet: OwnedMutexGuard<Sheet>,
    staged: Option<Staged>,
}

/// A moment at which the planner may be killed.
async fn moment() {
    statement();
    tokio::task::yield_now().await;
}

#[async_trait]
impl Journal for Paper {
    type Transaction = Writing;

    async fn begin(&self) -> Result<(Writing, Version), StoreError> {
        let sheet = self.0.clone().lock_owned().await;
        moment().await;
        let version = Version { batch: sheet.batch, foreign: (0, sheet.foreign) };
        Ok((Writing { sheet, staged: None }, version))
    }

    async fn load(&self, tx: &mut Writing) -> Result<Loaded, StoreError> {
        moment().await;
        let Sheet { seeds, requests, sources, moves, next_seed, .. } = &*tx.sheet;
        let sources =
            sources.iter().map(|(served, (source, used_ms))| (served.clone(), source.clone(), *used_ms));
        Ok(Loaded {
            seeds: seeds.values().map(|row| row.as_ref().clone()).collect(),
            requests: requests.values().map(|row| row.as_ref().clone()).collect(),
            sources: sources.collect(),
            moves: moves.iter().map(|(key, moved_ms)| (key.clone(), *moved_ms)).collect(),
            new_seed: *next_seed,
        })
    }

    async fn write(&self, tx: &mut Writing, record: Record<'_>) -> Result<(), StoreError> {
        let Record { batch, now, changes, clock } = record;
        tx.staged = Some(Staged { batch, now, changes: changes.clone(), clock });
        moment().await;
        Ok(())
    }

    async fn forget(&self, tx: &mut Writing, now: i64, rules: &Rules) -> Result<Forgotten, StoreError> {
        let since = now.saturating_sub(rules.history.ms);
        let before = (tx.sheet.ended.len(), tx.sheet.events.len());
        let (last_ended, last_event) = (tx.sheet.last_ended, tx.sheet.last_event);
        let Sheet { ended, events, .. } = &mut *tx.sheet;
        ended.retain(|number, row| row.ended_ms > since && *number > last_ended - rules.history.leases);
        events.retain(|number, row| row.at_ms > since && *number > last_event - rules.history.events);
        let (leases, events) = ((before.0 - ended.len()) as u64, (before.1 - events.len()) as u64);
        Ok(Forgotten { leases, events, requests: 0 })
    }

    async fn check(&self, _: Writing) -> Result<(), StoreError> {
        Ok(())
    }

    async fn commit(&self, tx: Writing) -> Result<(), StoreError> {
        let Writing { mut sheet, staged } = tx;
        let fails = sheet.fails.take();
        if let Some(staged) = staged.filter(|_| fails != Some(Failure::Undone)) {
            sheet.take_in(staged);
        }
        drop(sheet);
        commit();
        moment().await;
        match fails {
            Some(_) => Err(StoreError::Unavailable("the commit failed".into())),
            None => Ok(()),
        }
    }

    async fn list_ended_leases(
        &self,
        now: i64,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        let sheet = self.0.lock().await;
        let fits = |row: &EndedRow| {
            filter.key.as_ref().is_none_or(|key| *row.key == *key)
                && filter.seed.as_ref().is_none_or(|seed| row.identity == *seed)
        };
        let rows = sheet.ended.range(..before(part)).rev().filter(|(_, row)| fits(row));
        let entries = rows.take(usize::try_from(part.rows()).unwrap()).map(|(number, row)| EndedLease {
            number: *number,
            lease: row.lease,
            identity: row.identity.clone(),
            key: row.key.as_ref().clone(),
            requester: row.requester.as_deref().map(str::to_owned),
            reader: row.reader.clone(),
            granted_age_ms: now.saturating_sub(row.granted_ms).max(0),
            ended_age_ms: now.saturating_sub(row.ended_ms).max(0),
            end: Some(row.end),
            report: row.report,
            reason: row.reason.clone(),
            bytes: row.bytes,
            duration_ms: row.duration_ms,
        });
        Ok(Page::of(entries, part.limit, |lease: &EndedLease| place(lease.number)))
    }

    async fn list_events(
        &self,
        now: i64,
        filter: &EventFilter,
        part: &Part,
    ) -> Result<Page<Event>, StoreError> {
        let sheet = self.0.lock().await;
        let fits = |row: &EventRow| {
            filter.key.as_ref().is_none_or(|key| row.happened.key == *key)
                && filter.kind.is_none_or(|kind| row.happened.kind == kind)
                && filter.within_ms.is_none_or(|ms| row.at_ms >= now - ms)
        };
        let rows = sheet.events.range(..before(part)).rev().filter(|(_, row)| fits(row));
        let entries = rows.take(usize::try_from(part.rows()).unwrap()).map(|(number, row)| Event {
            number: *number,
            kind: Some(row.happened.kind),
            age_ms: now.saturating_sub(row.at_ms).max(0),
            key: row.happened.key.clone(),
            identity: row.happened.identity.clone(),
            by: row.happened.by.as_deref().map(str::to_owned),
            detail: row.happened.detail.clone(),
        });
        Ok(Page::of(entries, part.limit, |event: &Event| place(event.number)))
    }

    fn pools(&self) -> Vec<PoolView> {
        Vec::new()
    }

    async fn close(&self) {}
}
