//! The series, in groups that are counted together.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::series::Series;
use super::{Handshake, LATENCY_SECONDS, Pool, PoolSeries, by_state};
use crate::store::Counts;
use crate::store::commands::Move;

/// Bounds of how many commands one transaction takes.
const BATCH_COMMANDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Bounds of waits: to the longest that a request may ask for.
const WAIT_SECONDS: &[f64] = &[0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0];
/// Bounds of transfers: from a small model near by to one that is nearly given up.
const TRANSFER_SECONDS: &[f64] =
    &[0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0];
/// Bounds of throughputs, in bytes per second: 1 MiB/s to 256 GiB/s by fours.
const BYTES_PER_SECOND: &[f64] = &[
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
    17_179_869_184.0,
    68_719_476_736.0,
    274_877_906_944.0,
];
/// What became of seeds and leases.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) seeds: IntCounterVec,
    pub(super) leases: IntCounterVec,
    pub(super) releases: IntCounterVec,
    pub(super) refusals: IntCounterVec,
    pub(super) claims: IntCounterVec,
    pub(super) moves: IntCounterVec,
    pub(super) depth: Histogram,
    pub(super) heartbeats: IntCounterVec,
    pub(super) forgotten: IntCounterVec,
}

/// What the database holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) seeds: IntGaugeVec,
    pub(super) capacity: IntGaugeVec,
    pub(super) leases: IntGaugeVec,
    pub(super) quota_used: IntGaugeVec,
    pub(super) quota_most: IntGaugeVec,
    pub(super) counted_at: IntGauge,
}

/// How the store fares.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) seconds: HistogramVec,
    pub(super) errors: IntCounterVec,
    pub(super) batch_commands: Histogram,
    pub(super) pool_connections: IntGaugeVec,
    pub(super) pool_most: IntGaugeVec,
    pub(super) swept_at: IntGauge,
}

/// TLS.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) files_good: IntGauge,
    pub(super) ends: IntGauge,
    pub(super) handshakes: IntCounterVec,
}

/// What clients share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) places: IntGaugeVec,
    pub(super) most: IntGaugeVec,
    pub(super) refused: IntCounterVec,
}

/// Requests that may wait for a seed.
#[derive(Debug)]
pub(super) struct Waits {
    pub(super) now: IntGauge,
    pub(super) seconds: HistogramVec,
}

/// What workers report of their transfers, which only v2 lets them.
#[derive(Debug)]
pub(super) struct Transfers {
    pub(super) bytes: IntCounter,
    pub(super) seconds: Histogram,
    pub(super) bytes_per_second: Histogram,
}

impl Secured {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
        let secured = Self {
            files_good: series.gauge(
                "tls_files_good",
                "1 while certificate and key can be used, or there are none; 0 while those before are in force.",
            )?,
            ends: series.gauge(
                "tls_certificate_end_timestamp_seconds",
                "When the certificate ends that is in force, in Unix seconds; 0 without TLS.",
            )?,
            handshakes: series.counters(
                "tls_handshakes_total",
                "TLS handshakes that were made (done), that client and planner did not agree in (failed), or that took too long \
                 (late); and connections of clients that do not speak TLS (plain).",
                &["outcome"],
                &Handshake::ALL.map(Handshake::name),
            )?,
        };
        secured.files_good.set(1);
        Ok(secured)
    }
}

impl Shared {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
        let pools = Pool::ALL.map(Pool::name);
        let shared = Self {
            places: series.gauges(
                "shared_places",
                "What clients have of a pool that they share: connections, requests that ask for a seed (asking) or wait for \
                 one (waiting), list for people (listing), all other requests (other), bytes of bodies (body_bytes) and of long answers (answer_bytes).",
                &["pool"],
                &pools,
            )?,
            most: series.gauges("shared_places_most", "All that there is of a pool.", &["pool"], &pools)?,
            refused: series.counters(
                "shared_places_refused_total",
                "How often nothing was left of a pool (full), or only what is kept for other clients (share).",
                &["pool", "reason"],
                &[],
            )?,
        };
        for pool in pools {
            for reason in ["full", "share"] {
                shared.refused.with_label_values(&[pool, reason]);
            }
        }
        Ok(shared)
    }

    pub(super) fn of(&self, pool: Pool) -> PoolSeries {
        let name = pool.name();
        PoolSeries {
            used: self.places.with_label_values(&[name]),
            most: self.most.with_label_values(&[name]),
            full: self.refused.with_label_values(&[name, "full"]),
            share: self.refused.with_label_values(&[name, "share"]),
        }
    }
}

impl Changes {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
        Ok(Self {
            seeds: series.counters(
                "seed_changes_total",
                "Seeds that came (new, new_holding), repeated, completed (they loaded), drained or went (removed, forgotten, silenced: with \
                 leases, counted on SQLite alone).",
                &["change"],
                &["new", "new_holding", "repeated", "completed", "drained", "removed", "forgotten", "silenced"],
            )?,
            leases: series.counters(
                "lease_changes_total",
                "Leases that were granted (told once more to repeated requests, too), queued (their requests wait), \
                 renewed, lost (a renewal of one that is gone) or expired.",
                &["change"],
                &["granted", "queued", "renewed", "lost", "expired"],
            )?,
            releases: series.counters(
                "releases_total",
                "Leases that were given back, by how the transfer went (ok, failed, aborted, unknown: v1 does not \
                 say); those that the planner gave back because their seed did not answer it (no_answer); and late \
                 ones, of leases that were gone.",
                &["outcome"],
                &["ok", "failed", "aborted", "unknown", "no_answer", "late"],
            )?,
            refusals: series.counters(
                "refusals_total",
                "Requests for a seed that got none, by reason.",
                &["reason"],
                &["unknown_key", "all_busy", "all_suspect", "lease_ended", "other_request"],
            )?,
            claims: series.counters(
                "lead_answers_total",
                "Answers to workers that asked whether they may read storage, or still may: they lead, wait for another one, or \
                 load alone, as they cannot be registered.",
                &["role"],
                &["leads", "waits", "alone"],
            )?,
            moves: series.counters(
                "moves_total",
                "Loading seeds that got another source than they had, by reason: theirs was lost or left, fell behind, sent \
                 slowly or brought no byte; or their own place was given to a reader of them (overtaken).",
                &["reason"],
                &Move::NAMES.map(|(name, _)| name),
            )?,
            depth: series.histogram(
                "grant_depth",
                "Sources between a worker that serves while it loads and a seed that holds everything, or storage, at its grant: 0                  for who reads from such a seed.",
                &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
            )?,
            heartbeats: series.counters(
                "heartbeats_total",
                "Heartbeats written in gathered statements, and those among them whose seed was gone.",
                &["outcome"],
                &["written", "gone"],
            )?,
            forgotten: series.counters(
                "history_deleted_total",
                "Rows that were kept for long enough: ended leases, events, and requests remembered for their \
                 repetitions.",
                &["kind"],
                &["lease", "event", "request"],
            )?,
        })
    }
}

impl Held {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
        let states = by_state(&Counts::default()).map(|(state, _)| state);
        let by_state = |name: &str, help: &str| series.gauges(name, help, &["state"], &states);
        Ok(Self {
            seeds: by_state("seeds", "Seeds that the database knows, by state.")?,
            capacity: by_state(
                "capacity_points",
                "Leases that seeds may have at once, by the seeds' state; only live ones are offered.",
            )?,
            leases: by_state("leases", "Leases that live, by their seed's state.")?,
            quota_used: series.gauges(
                "quota_used",
                "How much planners of the database keep of what has a quota: seeds, requests that wait or are remembered, and \
                 bytes of memory, on SQLite alone.",
                &["quota"],
                &[],
            )?,
            quota_most: series.gauges("quota_most", "How much they may keep of it.", &["quota"], &[])?,
            counted_at: series.gauge(
                "counted_timestamp_seconds",
                "When the database last said how many seeds and leases there are, in Unix seconds.",
            )?,
        })
    }
}

impl Calls {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
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

impl Waits {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
        Ok(Self {
            now: series.gauge("requests_waiting", "Requests that wait here for a seed.")?,
            seconds: series.histograms(
                "wait_seconds",
                "Time that requests took which were allowed to wait, by outcome.",
                "outcome",
                WAIT_SECONDS,
            )?,
        })
    }
}

impl Transfers {
    pub(super) fn new(series: &Series) -> prometheus::Result<Self> {
        Ok(Self {
            bytes: series.counter("transfer_bytes_total", "Bytes that workers say they read from seeds.")?,
            seconds: series.histogram(
                "transfer_seconds",
                "Time that workers say their transfers took.",
                TRANSFER_SECONDS,
            )?,
            bytes_per_second: series.histogram(
                "transfer_bytes_per_second",
                "Throughput of transfers of which workers say bytes and time.",
                BYTES_PER_SECOND,
            )?,
        })
    }
}
