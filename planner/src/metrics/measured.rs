//! The store as the rest of the planner has it: each call is timed, traced, and its outcome counted.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rfork_protocol::SeedKey;
use tokio::sync::Notify;
use tracing::Instrument;

use super::{Metrics, unix_seconds};
use crate::store::history::{EndedLease, Event, EventFilter};
use crate::store::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use crate::store::{
    Beat, Commands, Counts, LeaseSecret, Outcomes, PoolView, Snapshot, Store, StoreError, Swept, Told, Usage,
    Woken,
};

/// The least time between two log lines of questions that failed: anybody may ask.
const SAY_PAUSE: Duration = Duration::from_secs(1);

/// A store whose calls are timed and whose outcomes are counted.
pub struct MeasuredStore {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    failures: Failures,
}

/// When it was last said that a question failed.
#[derive(Debug, Default)]
struct Failures(Mutex<Unsaid>);

#[derive(Debug, Default)]
struct Unsaid {
    said: Option<Instant>,
    since: u64,
}

impl Failures {
    /// Notes one; gives how many were not told of before it, if it is to be told of now.
    fn note(&self, now: Instant) -> Option<u64> {
        let mut unsaid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unsaid.said.is_some_and(|said| now.saturating_duration_since(said) < SAY_PAUSE) {
            unsaid.since += 1;
            return None;
        }
        unsaid.said = Some(now);
        Some(std::mem::take(&mut unsaid.since))
    }
}

impl MeasuredStore {
    /// Stands before `inner`.
    pub fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics, failures: Failures::default() }
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

    /// A question of a client's. Whoever asks is told nothing of what the database says, so it is said here; those who call
    /// for the planner itself say it themselves.
    async fn ask<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let result = self.time(operation, 0, call).await;
        if let Err(error) = &result
            && let Some(unsaid) = self.failures.note(Instant::now())
        {
            tracing::warn!(operation, %error, unsaid, "the database did not answer a question");
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

    fn lease_secret(&self) -> &LeaseSecret {
        self.inner.lease_secret()
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
        self.ask("source_instance", self.inner.source_instance(instance)).await
    }

    async fn invalidate(
        &self,
        key: &SeedKey,
        keep: Option<&str>,
        by: Option<&Arc<str>>,
    ) -> Result<u64, StoreError> {
        let drained = self.ask("invalidate", self.inner.invalidate(key, keep, by)).await?;
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
        self.ask("snapshot", self.inner.snapshot()).await
    }

    async fn list_seeds(&self, filter: &SeedFilter, part: &Part) -> Result<Page<SeedEntry>, StoreError> {
        self.ask("list_seeds", self.inner.list_seeds(filter, part)).await
    }

    async fn list_leases(&self, filter: &LeaseFilter, part: &Part) -> Result<Page<LeaseEntry>, StoreError> {
        self.ask("list_leases", self.inner.list_leases(filter, part)).await
    }

    async fn list_ended_leases(
        &self,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        self.ask("list_ended_leases", self.inner.list_ended_leases(filter, part)).await
    }

    async fn list_events(&self, filter: &EventFilter, part: &Part) -> Result<Page<Event>, StoreError> {
        self.ask("list_events", self.inner.list_events(filter, part)).await
    }

    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError> {
        self.ask("list_keys", self.inner.list_keys(part)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.ask("counts", self.inner.counts()).await
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.ask("usage", self.inner.usage()).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.ask("check", self.inner.check()).await
    }

    fn pools(&self) -> Vec<PoolView> {
        self.inner.pools()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_of_once_in_a_while_and_counted_in_between() {
        let failures = Failures::default();
        let begun = Instant::now();
        assert_eq!(failures.note(begun), Some(0));
        for _ in 0..3 {
            assert_eq!(failures.note(begun + SAY_PAUSE / 2), None);
        }
        assert_eq!(failures.note(begun + SAY_PAUSE), Some(3));
        assert_eq!(failures.note(begun + SAY_PAUSE), None);
        assert_eq!(failures.note(begun + 3 * SAY_PAUSE), Some(1));
    }
}
