//! The store as the rest of the planner has it: each call is timed, traced, and its outcome counted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use tokio::sync::Notify;
use tracing::Instrument;

use super::{Metrics, unix_seconds};
use crate::store::history::{EndedLease, Event, EventFilter};
use crate::store::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use crate::store::{
    Beat, Commands, Counts, Outcomes, PoolView, Snapshot, Store, StoreError, Swept, Told, Woken,
};

/// A store whose calls are timed and whose outcomes are counted.
pub struct MeasuredStore {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl MeasuredStore {
    /// Stands before `inner`.
    pub fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    /// `items`: what the call is given, if it is given a list.
    async fn time<T>(
        &self,
        operation: &'static str,
        items: usize,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let span = tracing::debug_span!("store", operation, items, error = tracing::field::Empty);
        let result = call.instrument(span.clone()).await;
        let took = begun.elapsed().as_secs_f64();
        self.metrics.calls.seconds.with_label_values(&[operation]).observe(took);
        if let Err(error) = &result {
            span.record("error", tracing::field::display(error));
            self.metrics.calls.errors.with_label_values(&[operation]).inc();
        }
        result
    }
}

#[async_trait]
impl Store for MeasuredStore {
    async fn apply(&self, commands: &Commands) -> Result<Outcomes, StoreError> {
        let outcomes = self.time("apply", commands.len(), self.inner.apply(commands)).await?;
        self.metrics.calls.batch_commands.observe(commands.len() as f64);
        self.metrics.applied(commands, &outcomes);
        Ok(outcomes)
    }

    fn wakes(&self) -> Arc<Notify> {
        self.inner.wakes()
    }

    async fn collect(&self, told: &[Told]) -> Result<Vec<Woken>, StoreError> {
        let woken = self.time("collect", told.len(), self.inner.collect(told)).await?;
        let granted = woken.iter().filter(|woken| woken.grant.is_some()).count();
        self.metrics.changes.leases.with_label_values(&["granted"]).inc_by(granted as u64);
        Ok(woken)
    }

    async fn source_instance(&self, instance: &str) -> Result<Option<String>, StoreError> {
        self.time("source_instance", 0, self.inner.source_instance(instance)).await
    }

    async fn invalidate(&self, key: &SeedKey, keep: Option<&str>) -> Result<u64, StoreError> {
        let drained = self.time("invalidate", 0, self.inner.invalidate(key, keep)).await?;
        self.metrics.changes.seeds.with_label_values(&["drained"]).inc_by(drained);
        Ok(drained)
    }

    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError> {
        let gone = self.time("flush", beats.len(), self.inner.flush(beats)).await?;
        let count = |outcome, number: usize| {
            self.metrics.changes.heartbeats.with_label_values(&[outcome]).inc_by(number as u64);
        };
        count("written", beats.len() - gone.len().min(beats.len()));
        count("gone", gone.len());
        Ok(gone)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        let swept = self.time("sweep", 0, self.inner.sweep()).await?;
        self.metrics.changes.leases.with_label_values(&["expired"]).inc_by(swept.leases);
        self.metrics.changes.seeds.with_label_values(&["forgotten"]).inc_by(swept.seeds);
        self.metrics.changes.seeds.with_label_values(&["silenced"]).inc_by(swept.silenced);
        let forgotten = swept.forgotten;
        for (kind, rows) in
            [("lease", forgotten.leases), ("event", forgotten.events), ("request", forgotten.requests)]
        {
            self.metrics.changes.forgotten.with_label_values(&[kind]).inc_by(rows);
        }
        self.metrics.calls.swept_at.set(unix_seconds());
        Ok(swept)
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.time("snapshot", 0, self.inner.snapshot()).await
    }

    async fn list_seeds(&self, filter: &SeedFilter, part: &Part) -> Result<Page<SeedEntry>, StoreError> {
        self.time("list_seeds", 0, self.inner.list_seeds(filter, part)).await
    }

    async fn list_leases(&self, filter: &LeaseFilter, part: &Part) -> Result<Page<LeaseEntry>, StoreError> {
        self.time("list_leases", 0, self.inner.list_leases(filter, part)).await
    }

    async fn list_ended_leases(
        &self,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        self.time("list_ended_leases", 0, self.inner.list_ended_leases(filter, part)).await
    }

    async fn list_events(&self, filter: &EventFilter, part: &Part) -> Result<Page<Event>, StoreError> {
        self.time("list_events", 0, self.inner.list_events(filter, part)).await
    }

    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError> {
        self.time("list_keys", 0, self.inner.list_keys(part)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.time("counts", 0, self.inner.counts()).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.time("check", 0, self.inner.check()).await
    }

    fn pools(&self) -> Vec<PoolView> {
        self.inner.pools()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
