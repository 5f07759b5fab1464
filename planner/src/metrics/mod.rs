//! What a planner counts.
//!
//! One struct holds every series; what is written at each is its help text. Label values come from fixed sets,
//! never from a seed key or an address. What the store does is all counted in one place, [`MeasuredStore`],
//! which stands before whatever store there is.

mod due;
mod groups;
mod measured;
mod series;

use std::time::{Duration, Instant};

use prometheus::{
    Encoder, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::identity::Denied;
use crate::store::commands::{Acquired, Release, Role};
use crate::store::history::End;
use crate::store::{
    Commands, Counts, Heard, Leaving, Left, Outcomes, Refusal, Registration, Removal, Report, Store, Tally,
    Usage,
};
use due::Due;
use groups::{Calls, Changes, Held, Secured, Shared, Transfers, Waits};
pub use measured::MeasuredStore;
use series::Series;

/// Bounds of latencies, in seconds: from a database in memory to the request deadline.
const LATENCY_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// No transfer has more bytes, 1 PiB: what a client claims beyond is a slip and must not swamp the sum.
const MAX_TRANSFER_BYTES: u64 = 1 << 50;
/// No transfer takes longer than a day.
const MAX_TRANSFER_MS: u64 = 86_400_000;
/// The longest that a scrape waits for the database's counts.
const COUNT_DEADLINE: Duration = Duration::from_secs(5);

/// A pool that clients share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Connections.
    Connections,
    /// Requests that ask for a seed.
    Asking,
    /// Requests that wait for one.
    Waiting,
    /// Requests that list much for people.
    Listing,
    /// All other requests, but for probes.
    Other,
    /// Bytes of bodies whose requests are not served yet.
    BodyBytes,
    /// Bytes of long answers that their clients have not taken yet.
    AnswerBytes,
}

impl Pool {
    pub(crate) const ALL: [Self; 7] = [
        Self::Connections,
        Self::Asking,
        Self::Waiting,
        Self::Listing,
        Self::Other,
        Self::BodyBytes,
        Self::AnswerBytes,
    ];

    /// Its label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Asking => "asking",
            Self::Waiting => "waiting",
            Self::Listing => "listing",
            Self::Other => "other",
            Self::BodyBytes => "body_bytes",
            Self::AnswerBytes => "answer_bytes",
        }
    }
}

/// What came of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// It was made.
    Done,
    /// Client and planner did not agree, or the client went away.
    Failed,
    /// It took too long.
    Late,
    /// The client does not speak TLS.
    Plain,
}

impl Handshake {
    const ALL: [Self; 4] = [Self::Done, Self::Failed, Self::Late, Self::Plain];

    /// Its label.
    const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Plain => "plain",
        }
    }
}

/// What is counted of one pool.
#[derive(Debug)]
pub struct PoolSeries {
    /// What clients have.
    pub used: IntGauge,
    /// All that there is.
    pub most: IntGauge,
    /// How often it was full.
    pub full: IntCounter,
    /// How often only what is kept for others was left.
    pub share: IntCounter,
}

fn denied(series: &Series) -> prometheus::Result<IntCounterVec> {
    let denied = series.counters(
        "requests_denied_total",
        "Requests without a credential (missing), with one that nobody has (unknown; limited, if many of them came from one \
         address), that has ended (expired), fits no principal (stranger), or cannot be looked up (undecided), or whose \
         principal has another role (role), may not use the key (key) or speaks of a seed of somebody else (owner); those that \
         were served all the same have refused=\"no\".",
        &["reason", "refused"],
        &[],
    )?;
    for reason in
        ["missing", "unknown", "limited", "expired", "stranger", "undecided", "role", "key", "owner"]
    {
        for refused in ["yes", "no"] {
            denied.with_label_values(&[reason, refused]);
        }
    }
    Ok(denied)
}

/// Every series of a planner. Two planners in one process count apart.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    requests_running: IntGauge,
    denied: IntCounterVec,
    token_file_good: IntGauge,
    issuer_keys_good: IntGaugeVec,
    secured: Secured,
    changes: Changes,
    held: Held,
    calls: Calls,
    transfers: Transfers,
    waits: Waits,
    shared: Shared,
    count_due: Due,
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
        let token_file_good = series.gauge(
            "token_file_good",
            "1 while the file of tokens can be used, or there is none; 0 while what it said before counts.",
        )?;
        token_file_good.set(1);
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
            denied: denied(&series)?,
            token_file_good,
            issuer_keys_good: series.gauges(
                "issuer_keys_good",
                "1 if the keys of an issuer of JWTs could be had when they were looked for last; 0 while those before count.",
                &["issuer"],
                &[],
            )?,
            secured: Secured::new(&series)?,
            changes: Changes::new(&series)?,
            held: Held::new(&series)?,
            calls: Calls::new(&series)?,
            transfers: Transfers::new(&series)?,
            waits: Waits::new(&series)?,
            shared: Shared::new(&series)?,
            count_due: Due::default(),
            registry: series.registry,
        })
    }

    /// Counts a request that is denied, or would be.
    pub(crate) fn denied(&self, denied: Denied, is_refused: bool) {
        let refused = if is_refused { "yes" } else { "no" };
        self.denied.with_label_values(&[denied.label(), refused]).inc();
    }

    /// Tells whether the file of tokens can be used.
    pub(crate) fn token_file(&self, is_good: bool) {
        self.token_file_good.set(is_good.into());
    }

    /// Tells whether the keys of an issuer can be had; of none when it is one no longer.
    pub(crate) fn issuer(&self, name: &str, is_good: Option<bool>) {
        match is_good {
            Some(is_good) => self.issuer_keys_good.with_label_values(&[name]).set(is_good.into()),
            None => _ = self.issuer_keys_good.remove_label_values(&[name]),
        }
    }

    /// Tells whether the files of certificate and key can be used, and when the certificate ends that is in force.
    pub(crate) fn tls_files(&self, are_good: bool, ends_sec: i64) {
        self.secured.files_good.set(are_good.into());
        self.secured.ends.set(ends_sec);
    }

    /// Counts a handshake.
    pub(crate) fn handshake(&self, outcome: Handshake) {
        self.secured.handshakes.with_label_values(&[outcome.name()]).inc();
    }

    /// The series of a pool.
    pub(crate) fn pool(&self, pool: Pool) -> PoolSeries {
        self.shared.of(pool)
    }

    /// Counts a request while it runs.
    pub(crate) fn running(&self) -> Running<'_> {
        self.requests_running.inc();
        Running(&self.requests_running)
    }

    /// Counts a request that waits for a seed, while it waits.
    pub(crate) fn waiting(&self) -> Running<'_> {
        self.waits.now.inc();
        Running(&self.waits.now)
    }

    /// Counts how long a request waited that was allowed to, whatever came of it.
    pub(crate) fn waited(&self, granted: bool, took: Duration) {
        let outcome = if granted { "granted" } else { "refused" };
        self.waits.seconds.with_label_values(&[outcome]).observe(took.as_secs_f64());
    }

    /// Counts a request that was answered. `route` is a route's path, never what a client wrote.
    pub(crate) fn request(&self, route: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.request_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// Counts a transfer as its worker reports it, in bytes and milliseconds.
    pub(crate) fn transfer(&self, bytes: Option<u64>, duration_ms: Option<u64>) {
        let bytes = bytes.map(|bytes| bytes.min(MAX_TRANSFER_BYTES));
        let seconds = duration_ms.map(|ms| ms.min(MAX_TRANSFER_MS) as f64 / 1_000.0);
        if let Some(bytes) = bytes {
            self.transfers.bytes.inc_by(bytes);
        }
        if let Some(seconds) = seconds {
            self.transfers.seconds.observe(seconds);
        }
        if let (Some(bytes), Some(seconds)) = (bytes, seconds)
            && seconds > 0.0
        {
            self.transfers.bytes_per_second.observe(bytes as f64 / seconds);
        }
    }

    /// The series as Prometheus reads them, with what the store holds now; that is left as it was while the
    /// database is away, or was asked only just now.
    ///
    /// # Errors
    /// When a series cannot be written as text.
    pub(crate) async fn scrape(&self, store: &dyn Store) -> prometheus::Result<(String, Vec<u8>)> {
        // First: the question after it takes a connection itself.
        for pool in store.pools() {
            let used = pool.connections.saturating_sub(pool.idle);
            self.calls.pool_connections.with_label_values(&[pool.name, "idle"]).set(pool.idle.into());
            self.calls.pool_connections.with_label_values(&[pool.name, "used"]).set(used.into());
            self.calls.pool_most.with_label_values(&[pool.name]).set(pool.most.into());
        }
        let begun = Instant::now();
        if self.count_due.claim(begun) {
            let asked = async {
                self.note_usage(&store.usage().await?);
                store.counts().await
            };
            match tokio::time::timeout(COUNT_DEADLINE, asked).await {
                Ok(Ok(counts)) => self.count(&counts),
                Ok(Err(error)) => tracing::debug!(%error, "the counts of seeds and leases are old"),
                Err(_) => tracing::debug!("the counts of seeds and leases are old: no answer in time"),
            }
            self.count_due.done(begun, Instant::now());
        }
        self.encode()
    }

    fn encode(&self) -> prometheus::Result<(String, Vec<u8>)> {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((encoder.format_type().to_owned(), text))
    }

    fn note_usage(&self, usage: &[Usage]) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for Usage { quota, used, most } in usage {
            self.held.quota_used.with_label_values(&[quota.name()]).set(number(*used));
            self.held.quota_most.with_label_values(&[quota.name()]).set(number(*most));
        }
    }

    fn count(&self, counts: &Counts) {
        let set = |gauge: &IntGaugeVec, state: &str, count: u64| {
            gauge.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        for (state, tally) in by_state(counts) {
            set(&self.held.seeds, state, tally.seeds);
            set(&self.held.capacity, state, tally.capacity);
            set(&self.held.leases, state, tally.leases);
        }
        self.held.counted_at.set(unix_seconds());
    }

    fn applied(&self, commands: &Commands, outcomes: &Outcomes) {
        let Outcomes { registers, heartbeats, answers: _, renewals, releases, .. } = outcomes;
        let Outcomes { removals, drains, claims, leaves, acquires, serves: _, moved, .. } = outcomes;
        for claimed in claims {
            let role = match claimed.role {
                Role::Leads => "leads",
                Role::Waits(_) => "waits",
                Role::Alone => "alone",
            };
            self.changes.claims.with_label_values(&[role]).inc();
        }
        let registered = registers.iter().flatten().map(|(registration, _)| match registration {
            Registration::New => "new",
            Registration::NewHolding => "new_holding",
            Registration::Completed => "completed",
            // One that is out of allocation goes on beating.
            Registration::Repeated | Registration::Draining => "repeated",
        });
        let is_its = |heard: &Heard| matches!(heard, Heard::Known | Heard::Draining);
        let heard = heartbeats.iter().filter(|(heard, _)| is_its(heard)).map(|_| "repeated");
        let removed = removals.iter().filter_map(|removal| match removal {
            Removal::Draining => Some("drained"),
            Removal::Gone => Some("removed"),
            Removal::GoneBefore => Some("forgotten"),
            Removal::Unknown | Removal::Owned => None,
        });
        let drained = drains.iter().flatten().map(|_| "drained");
        for change in registered.chain(heard).chain(removed).chain(drained) {
            self.changes.seeds.with_label_values(&[change]).inc();
        }
        let renewed = renewals.iter().map(|ttl_ms| if ttl_ms.is_some() { "renewed" } else { "lost" });
        let left = commands.leaves.iter().zip(leaves).filter_map(|(leave, left)| {
            // The end of a wait in the moment of its grant; of a client that is gone it is given back.
            let is_granted = leave.why == Leaving::TimedOut && matches!(left, Left::Granted { .. });
            is_granted.then_some("granted")
        });
        let acquired = acquires.iter().filter_map(|acquired| match acquired {
            Acquired::Granted(_) => Some("granted"),
            Acquired::Queued(_) => Some("queued"),
            Acquired::Refused(_) => None,
        });
        for change in renewed.chain(left).chain(acquired) {
            self.changes.leases.with_label_values(&[change]).inc();
        }
        for acquired in acquires {
            if let Acquired::Refused(refusal) = acquired {
                self.changes.refusals.with_label_values(&[reason(*refusal)]).inc();
            }
        }
        let late = leaves.iter().filter_map(|left| match left {
            Left::Granted { grant, .. } => Some(grant),
            _ => None,
        });
        let granted = acquires.iter().filter_map(|acquired| match acquired {
            Acquired::Granted(grant) => Some(grant),
            Acquired::Queued(_) | Acquired::Refused(_) => None,
        });
        for source in granted.chain(late).filter_map(|grant| grant.source.as_ref()) {
            self.changes.depth.observe(f64::from(source.depth));
        }
        for why in moved {
            self.changes.moves.with_label_values(&[why.name()]).inc();
        }
        for (release, lived) in commands.releases.iter().zip(releases) {
            let outcome = if *lived { how_it_went(release) } else { "late" };
            self.changes.releases.with_label_values(&[outcome]).inc();
        }
    }
}

/// A refusal's label.
fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownKey => "unknown_key",
        Refusal::AllBusy => "all_busy",
        Refusal::AllSuspect => "all_suspect",
        Refusal::LeaseEnded => "lease_ended",
        Refusal::OtherRequest => "other_request",
        Refusal::NoRoom(_) => "no_room",
    }
}

/// A release's label.
fn how_it_went(release: &Release) -> &'static str {
    let is_given_back = release.account.as_ref().is_some_and(|account| account.end == End::GivenBack);
    match release.report {
        // By the planner, whose question the seed did not answer: no transfer has failed.
        Report::Failed if is_given_back => "no_answer",
        Report::Failed => "failed",
        Report::Ok => "ok",
        Report::Aborted => "aborted",
        Report::Unknown => "unknown",
    }
}

/// Each state's label, and what is in it.
fn by_state(counts: &Counts) -> [(&'static str, Tally); 4] {
    let Counts { live, suspect, draining, silent } = *counts;
    [("live", live), ("suspect", suspect), ("draining", draining), ("silent", silent)]
}

/// A request that runs, or waits, until it is dropped.
#[derive(Debug)]
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
    use crate::store::Quota;
    use crate::store::commands::Move;

    #[test]
    fn every_series_is_named_once_and_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.request("/get_seed", 404, Duration::from_millis(3));
        let identity = rfork_protocol::SeedIdentity::new("h", 1, 0).unwrap();
        let failed = Release {
            by: None,
            identity: identity.clone(),
            lease: [0; 32],
            report: Report::Failed,
            account: None,
        };
        let silent = Release::give_back(identity, [0; 32], Report::Failed, Some("no-answer"));
        let commands = Commands { releases: vec![failed.clone(), failed, silent], ..Commands::default() };
        let outcomes = Outcomes {
            releases: vec![true, false, true],
            acquires: vec![Acquired::Refused(Refusal::AllBusy)],
            moved: vec![Move::SendsSlowly],
            ..Outcomes::default()
        };
        metrics.applied(&commands, &outcomes);
        metrics.count(&Counts {
            live: Tally { seeds: 3, capacity: 6, leases: 4 },
            silent: Tally { seeds: 1, capacity: 2, leases: 1 },
            ..Counts::default()
        });
        metrics.note_usage(&[Usage { quota: Quota::Requests, used: 3, most: 4 }]);
        metrics.transfer(Some(3 << 30), Some(2_000));
        metrics.transfer(Some(u64::MAX), None);
        metrics.transfer(Some(0), Some(0));
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
            r#"moves_total{reason="source_sends_slowly"} 1"#,
            r#"moves_total{reason="overtaken"} 0"#,
            r#"releases_total{outcome="failed"} 1"#,
            r#"releases_total{outcome="late"} 1"#,
            r#"releases_total{outcome="no_answer"} 1"#,
            r#"lease_changes_total{change="expired"} 0"#,
            r#"history_deleted_total{kind="lease"} 0"#,
            r#"seeds{state="live"} 3"#,
            r#"seeds{state="suspect"} 0"#,
            r#"capacity_points{state="live"} 6"#,
            r#"leases{state="silent"} 1"#,
            r#"quota_used{quota="requests"} 3"#,
            r#"quota_most{quota="requests"} 4"#,
            "transfer_bytes_total 1125903128068096\n",
            "transfer_seconds_count 2\n",
            r#"transfer_bytes_per_second_bucket{le="1073741824"} 0"#,
            r#"transfer_bytes_per_second_bucket{le="4294967296"} 1"#,
            "transfer_bytes_per_second_count 1\n",
            "build_info{version=",
        ] {
            assert!(text.contains(&format!("\nrfork_planner_{line}")), "{line} is not in:\n{text}");
        }
        assert_eq!(metrics.requests_running.get(), 0);
    }
}
