//! What a planner counts.
//!
//! One struct holds every series; what is written at each is its help text. Label values come from fixed sets,
//! never from a seed key or an address. What the store does is all counted in one place, [`MeasuredStore`],
//! which stands before whatever store there is.

mod due;
mod measured;
mod series;

use std::time::{Duration, Instant};

use prometheus::{
    Encoder, Histogram, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::store::{Command, Counts, Heard, Outcome, Refusal, Registration, Removal, Report, Store};
use due::Due;
pub use measured::MeasuredStore;
use series::Series;

/// Bounds of latencies, in seconds: from a database in memory to the request deadline.
const LATENCY_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of how many commands one transaction takes.
const BATCH_COMMANDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// The longest that a scrape waits for the database's counts.
const COUNT_DEADLINE: Duration = Duration::from_secs(5);

/// Every series of a planner. Two planners in one process count apart.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    requests_running: IntGauge,
    changes: Changes,
    held: Held,
    calls: Calls,
    count_due: Due,
}

/// What became of seeds and leases.
#[derive(Debug)]
struct Changes {
    seeds: IntCounterVec,
    leases: IntCounterVec,
    releases: IntCounterVec,
    refusals: IntCounterVec,
    heartbeats: IntCounterVec,
}

/// What the database holds.
#[derive(Debug)]
struct Held {
    seeds: IntGaugeVec,
    capacity: IntGaugeVec,
    leases: IntGaugeVec,
    counted_at: IntGauge,
}

/// How the store fares.
#[derive(Debug)]
struct Calls {
    seconds: HistogramVec,
    errors: IntCounterVec,
    batch_commands: Histogram,
    pool_connections: IntGaugeVec,
    pool_most: IntGaugeVec,
    swept_at: IntGauge,
}

impl Changes {
    fn new(series: &Series) -> prometheus::Result<Self> {
        Ok(Self {
            seeds: series.counters(
                "seed_changes_total",
                "Seeds that came (new, new_holding), repeated, drained or went (removed, forgotten, silenced).",
                &["change"],
                &["new", "new_holding", "repeated", "drained", "removed", "forgotten", "silenced"],
            )?,
            leases: series.counters(
                "lease_changes_total",
                "Leases that were granted, renewed, lost (a renewal of one that is gone) or expired.",
                &["change"],
                &["granted", "renewed", "lost", "expired"],
            )?,
            releases: series.counters(
                "releases_total",
                "Leases that were given back, by how the transfer went (ok, failed, unknown: v1 does not say); and \
                 late ones, of leases that were gone.",
                &["outcome"],
                &["ok", "failed", "unknown", "late"],
            )?,
            refusals: series.counters(
                "refusals_total",
                "Requests for a seed that got none, by reason.",
                &["reason"],
                &["unknown_key", "all_busy", "all_suspect"],
            )?,
            heartbeats: series.counters(
                "heartbeats_total",
                "Heartbeats written in gathered statements, and those among them whose seed was gone.",
                &["outcome"],
                &["written", "gone"],
            )?,
        })
    }
}

impl Held {
    fn new(series: &Series) -> prometheus::Result<Self> {
        let states = Counts::default().by_state().map(|(state, _)| state);
        let by_state = |name: &str, help: &str| series.gauges(name, help, &["state"], &states);
        Ok(Self {
            seeds: by_state("seeds", "Seeds that the database knows, by state.")?,
            capacity: by_state(
                "capacity_points",
                "Leases that seeds may have at once, by the seeds' state; only live ones are offered.",
            )?,
            leases: by_state("leases", "Leases that live, by their seed's state.")?,
            counted_at: series.gauge(
                "counted_timestamp_seconds",
                "When the database last said how many seeds and leases there are, in Unix seconds.",
            )?,
        })
    }
}

impl Calls {
    fn new(series: &Series) -> prometheus::Result<Self> {
        Ok(Self {
            seconds: series.histograms(
                "store_seconds",
                "Time of one call of the store.",
                "operation",
                LATENCY_SECONDS,
            )?,
            errors: series.counters(
                "store_errors_total",
                "Calls of the store that failed.",
                &["operation"],
                &[],
            )?,
            batch_commands: series.histogram(
                "batch_commands",
                "Commands that one transaction took.",
                BATCH_COMMANDS,
            )?,
            pool_connections: series.gauges(
                "pool_connections",
                "Connections to the database, by pool: used, or idle.",
                &["pool", "state"],
                &[],
            )?,
            pool_most: series.gauges(
                "pool_connections_max",
                "Connections to the database that a pool may have.",
                &["pool"],
                &[],
            )?,
            swept_at: series
                .gauge("last_sweep_timestamp_seconds", "When the last sweep ended, in Unix seconds.")?,
        })
    }
}

impl Metrics {
    /// All series; those whose labels are known are at zero.
    ///
    /// # Errors
    /// When two series have one name, or a name is none: a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let series = Series::new("rfork_planner")?;
        let build = series.gauges("build_info", "Always 1.", &["version"], &[])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            requests: series.counters(
                "requests_total",
                "Requests, by route and status.",
                &["route", "status"],
                &[],
            )?,
            request_seconds: series.histograms(
                "request_seconds",
                "Time from a request's head to its answer, by route.",
                "route",
                LATENCY_SECONDS,
            )?,
            requests_running: series.gauge("requests_running", "Requests that have no answer yet.")?,
            changes: Changes::new(&series)?,
            held: Held::new(&series)?,
            calls: Calls::new(&series)?,
            count_due: Due::default(),
            registry: series.registry,
        })
    }

    /// Counts a request while it runs.
    pub(crate) fn running(&self) -> Running<'_> {
        self.requests_running.inc();
        Running(&self.requests_running)
    }

    /// Counts a request that was answered. `route` is a route's path, never what a client wrote.
    pub(crate) fn request(&self, route: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.request_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// The series as Prometheus reads them, with what the store holds now; that is left as it was while the
    /// database is away, or was asked only just now.
    ///
    /// # Errors
    /// When a series cannot be written as text.
    pub(crate) async fn scrape(&self, store: &dyn Store) -> prometheus::Result<(String, Vec<u8>)> {
        let begun = Instant::now();
        if self.count_due.claim(begun) {
            match tokio::time::timeout(COUNT_DEADLINE, store.counts()).await {
                Ok(Ok(counts)) => self.count(&counts),
                Ok(Err(error)) => tracing::debug!(%error, "the counts of seeds and leases are old"),
                Err(_) => tracing::debug!("the counts of seeds and leases are old: no answer in time"),
            }
            self.count_due.done(begun, Instant::now());
        }
        for pool in store.pools() {
            let used = pool.connections.saturating_sub(pool.idle);
            self.calls.pool_connections.with_label_values(&[pool.name, "idle"]).set(pool.idle.into());
            self.calls.pool_connections.with_label_values(&[pool.name, "used"]).set(used.into());
            self.calls.pool_most.with_label_values(&[pool.name]).set(pool.most.into());
        }
        self.encode()
    }

    fn encode(&self) -> prometheus::Result<(String, Vec<u8>)> {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((encoder.format_type().to_owned(), text))
    }

    fn count(&self, counts: &Counts) {
        let set = |gauge: &IntGaugeVec, state: &str, count: u64| {
            gauge.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        for (state, tally) in counts.by_state() {
            set(&self.held.seeds, state, tally.seeds);
            set(&self.held.capacity, state, tally.capacity);
            set(&self.held.leases, state, tally.leases);
        }
        self.held.counted_at.set(unix_seconds());
    }

    fn applied(&self, command: &Command, outcome: &Outcome) {
        let lease = |change| self.changes.leases.with_label_values(&[change]).inc();
        let seed = |change| self.changes.seeds.with_label_values(&[change]).inc();
        let released = |outcome| self.changes.releases.with_label_values(&[outcome]).inc();
        match outcome {
            Outcome::Registered(Registration::New, _) => seed("new"),
            Outcome::Registered(Registration::NewHolding, _) => seed("new_holding"),
            // One that is out of allocation goes on beating.
            Outcome::Registered(Registration::Repeated | Registration::Draining, _)
            | Outcome::Heard(Heard::Known | Heard::Draining, _) => seed("repeated"),
            Outcome::Heard(Heard::Unknown, _) => {}
            Outcome::Removed(Removal::Draining) => seed("drained"),
            Outcome::Removed(Removal::Gone) => seed("removed"),
            Outcome::Removed(Removal::Unknown) => {}
            Outcome::Acquired(Ok(_)) => lease("granted"),
            Outcome::Acquired(Err(refusal)) => {
                let reason = match refusal {
                    Refusal::UnknownKey => "unknown_key",
                    Refusal::AllBusy => "all_busy",
                    Refusal::AllSuspect => "all_suspect",
                };
                self.changes.refusals.with_label_values(&[reason]).inc();
            }
            Outcome::Renewed(Some(_)) => lease("renewed"),
            Outcome::Renewed(None) => lease("lost"),
            Outcome::Released(true) => match command {
                Command::Release { report: Report::Ok, .. } => released("ok"),
                Command::Release { report: Report::Failed, .. } => released("failed"),
                _ => released("unknown"),
            },
            Outcome::Released(false) => released("late"),
            Outcome::Noted(_) => {}
            Outcome::Drained(Some(_)) => seed("drained"),
            Outcome::Drained(None) => {}
        }
    }
}

/// A request that runs, until it is dropped.
pub(crate) struct Running<'a>(&'a IntGauge);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn unix_seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Tally;

    #[test]
    fn every_series_is_named_once_and_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.request("/get_seed", 404, Duration::from_millis(3));
        let release = Command::Release {
            identity: rfork_protocol::SeedIdentity::new("h", 1, 0).unwrap(),
            lease: [0; 32],
            report: Report::Failed,
        };
        metrics.applied(&release, &Outcome::Acquired(Err(Refusal::AllBusy)));
        metrics.applied(&release, &Outcome::Released(true));
        metrics.applied(&release, &Outcome::Released(false));
        metrics.count(&Counts {
            live: Tally { seeds: 3, capacity: 6, leases: 4 },
            silent: Tally { seeds: 1, capacity: 2, leases: 1 },
            ..Counts::default()
        });
        let running = metrics.running();
        let (_, text) = metrics.encode().unwrap();
        drop(running);
        let text = String::from_utf8(text).unwrap();
        for line in [
            r#"requests_total{route="/get_seed",status="404"} 1"#,
            r#"request_seconds_bucket{route="/get_seed",le="0.005"} 1"#,
            "requests_running 1",
            r#"refusals_total{reason="all_busy"} 1"#,
            r#"refusals_total{reason="all_suspect"} 0"#,
            r#"releases_total{outcome="failed"} 1"#,
            r#"releases_total{outcome="late"} 1"#,
            r#"lease_changes_total{change="expired"} 0"#,
            r#"seeds{state="live"} 3"#,
            r#"seeds{state="suspect"} 0"#,
            r#"capacity_points{state="live"} 6"#,
            r#"leases{state="silent"} 1"#,
            "build_info{version=",
        ] {
            assert!(text.contains(&format!("\nrfork_planner_{line}")), "{line} is not in:\n{text}");
        }
        assert_eq!(metrics.requests_running.get(), 0);
    }
}
