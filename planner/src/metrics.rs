//! What a planner counts, and where it counts it.
//!
//! One struct holds every series; what is written at each is its help text. Label values come from fixed sets,
//! never from a seed key or an address. The store's series are all counted in one place, [`MeasuredStore`],
//! which stands before whatever store there is.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tracing::Instrument;

use rfork_protocol::SeedKey;

use crate::store::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use crate::store::{
    Beat, Command, Heard, Outcome, Registration, Removal, Snapshot, Store, StoreError, Swept,
};

/// Bounds of latencies, in seconds: from a database in memory to the request deadline.
const LATENCY_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of how many commands one transaction takes.
const BATCH_COMMANDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Every series of a planner. Two planners in one process count apart.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    seeds: IntCounterVec,
    leases: IntCounterVec,
    batch_commands: Histogram,
    heartbeats: IntCounterVec,
    store_seconds: HistogramVec,
    store_errors: IntCounterVec,
    known: IntGaugeVec,
    swept_at: IntGauge,
}

impl Metrics {
    /// All series, at zero.
    ///
    /// # Errors
    /// When two series have one name, or a name is none: a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("rfork_planner".into()), None)?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let series = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(series.clone()))?;
            Ok::<_, prometheus::Error>(series)
        };
        let latencies = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(LATENCY_SECONDS.to_vec());
            let series = HistogramVec::new(options, labels)?;
            registry.register(Box::new(series.clone()))?;
            Ok::<_, prometheus::Error>(series)
        };
        let requests = counters("requests_total", "Requests, by route and status.", &["route", "status"])?;
        let request_seconds =
            latencies("request_seconds", "Time from a request's head to its answer, by route.", &["route"])?;
        let seeds = counters(
            "seed_changes_total",
            "Seeds that came (new, new_holding), repeated, drained or went (removed, forgotten, silenced).",
            &["change"],
        )?;
        let leases = counters(
            "lease_changes_total",
            "Leases that were granted, refused, renewed, lost (a renewal of one that is gone), released, \
             released_late (a release of one that is gone) or expired.",
            &["change"],
        )?;
        let options = HistogramOpts::new("batch_commands", "Commands that one transaction took.");
        let batch_commands = Histogram::with_opts(options.buckets(BATCH_COMMANDS.to_vec()))?;
        registry.register(Box::new(batch_commands.clone()))?;
        let heartbeats = counters(
            "heartbeats_total",
            "Heartbeats written in gathered statements, and those among them whose seed was gone.",
            &["outcome"],
        )?;
        let store_seconds = latencies("store_seconds", "Time of one call of the store.", &["operation"])?;
        let store_errors =
            counters("store_errors_total", "Calls of the store that changed nothing.", &["operation"])?;
        let known =
            IntGaugeVec::new(Opts::new("known", "Seeds and leases that the database knows."), &["what"])?;
        registry.register(Box::new(known.clone()))?;
        let swept_at =
            IntGauge::new("last_sweep_timestamp_seconds", "When the last sweep ended, in Unix seconds.")?;
        registry.register(Box::new(swept_at.clone()))?;
        let build = IntGaugeVec::new(Opts::new("build_info", "Always 1."), &["version"])?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            registry,
            requests,
            request_seconds,
            seeds,
            leases,
            batch_commands,
            heartbeats,
            store_seconds,
            store_errors,
            known,
            swept_at,
        })
    }

    /// Counts a request. `route` is a route's path, never what a client wrote.
    pub(crate) fn request(&self, route: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.request_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// Says how many seeds and leases there are.
    pub(crate) fn knows(&self, snapshot: &Snapshot) {
        let set = |what: &str, count: u64| {
            self.known.with_label_values(&[what]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("seeds", snapshot.seed_count);
        set("leases", snapshot.lease_count);
    }

    /// The series as Prometheus reads them.
    ///
    /// # Errors
    /// When a series cannot be written as text.
    pub(crate) fn encode(&self) -> prometheus::Result<(String, Vec<u8>)> {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((encoder.format_type().to_owned(), text))
    }

    fn applied(&self, outcome: &Outcome) {
        let lease = |change| self.leases.with_label_values(&[change]).inc();
        let seed = |change| self.seeds.with_label_values(&[change]).inc();
        match outcome {
            Outcome::Registered(Registration::New, _) => seed("new"),
            Outcome::Registered(Registration::NewHolding, _) => seed("new_holding"),
            Outcome::Registered(Registration::Repeated, _) | Outcome::Heard(Heard::Known, _) => {
                seed("repeated");
            }
            Outcome::Heard(Heard::Unknown, _) => {}
            Outcome::Registered(Registration::Draining, _)
            | Outcome::Heard(Heard::Draining, _)
            | Outcome::Removed(Removal::Draining) => {
                seed("drained");
            }
            Outcome::Removed(Removal::Gone) => seed("removed"),
            Outcome::Removed(Removal::Unknown) => {}
            Outcome::Acquired(Ok(_)) => lease("granted"),
            Outcome::Acquired(Err(_)) => lease("refused"),
            Outcome::Renewed(Some(_)) => lease("renewed"),
            Outcome::Renewed(None) => lease("lost"),
            Outcome::Released(true) => lease("released"),
            Outcome::Released(false) => lease("released_late"),
            Outcome::Noted(_) => {}
            Outcome::Drained(Some(_)) => seed("drained"),
            Outcome::Drained(None) => {}
        }
    }
}

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
        self.metrics.store_seconds.with_label_values(&[operation]).observe(took);
        if let Err(error) = &result {
            span.record("error", tracing::field::display(error));
            self.metrics.store_errors.with_label_values(&[operation]).inc();
        }
        result
    }
}

#[async_trait]
impl Store for MeasuredStore {
    async fn apply(&self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError> {
        let outcomes = self.time("apply", commands.len(), self.inner.apply(commands)).await?;
        self.metrics.batch_commands.observe(commands.len() as f64);
        for outcome in &outcomes {
            self.metrics.applied(outcome);
        }
        Ok(outcomes)
    }

    async fn invalidate(&self, key: &SeedKey, keep: Option<&str>) -> Result<u64, StoreError> {
        let drained = self.time("invalidate", 0, self.inner.invalidate(key, keep)).await?;
        self.metrics.seeds.with_label_values(&["drained"]).inc_by(drained);
        Ok(drained)
    }

    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError> {
        let gone = self.time("flush", beats.len(), self.inner.flush(beats)).await?;
        let count = |outcome, number: usize| {
            self.metrics.heartbeats.with_label_values(&[outcome]).inc_by(number as u64);
        };
        count("written", beats.len() - gone.len().min(beats.len()));
        count("gone", gone.len());
        Ok(gone)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        let swept = self.time("sweep", 0, self.inner.sweep()).await?;
        self.metrics.leases.with_label_values(&["expired"]).inc_by(swept.leases);
        self.metrics.seeds.with_label_values(&["forgotten"]).inc_by(swept.seeds);
        self.metrics.seeds.with_label_values(&["silenced"]).inc_by(swept.silenced);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.metrics.swept_at.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
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

    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError> {
        self.time("list_keys", 0, self.inner.list_keys(part)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.time("check", 0, self.inner.check()).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Refusal;

    #[test]
    fn every_series_is_named_once_and_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.request("/get_seed", 404, Duration::from_millis(3));
        metrics.applied(&Outcome::Acquired(Err(Refusal::AllBusy)));
        let (_, text) = metrics.encode().unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            r#"rfork_planner_requests_total{route="/get_seed",status="404"} 1"#,
            r#"rfork_planner_request_seconds_bucket{route="/get_seed",le="0.005"} 1"#,
            r#"rfork_planner_lease_changes_total{change="refused"} 1"#,
            "rfork_planner_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
