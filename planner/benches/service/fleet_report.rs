//! How the table of fleets is printed.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::rows::StoreKind;

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Registers or says that it lives.
    Heartbeat,
    Seed,
    /// Renews or gives back.
    Lease,
}

/// How long requests took, in microseconds, by what they were for.
#[derive(Debug, Default)]
pub(crate) struct Times {
    heartbeats: Vec<u64>,
    seeds: Vec<u64>,
    leases: Vec<u64>,
    /// Answered 503, or not at all.
    pub(crate) failed: u64,
}

impl Times {
    /// Counts a request; one without a time was answered 503, or not at all.
    pub(crate) fn add(&mut self, ask: Ask, took: Option<Duration>) {
        let Some(took) = took else {
            self.failed += 1;
            return;
        };
        let times = match ask {
            Ask::Heartbeat => &mut self.heartbeats,
            Ask::Seed => &mut self.seeds,
            Ask::Lease => &mut self.leases,
        };
        times.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// All of them.
    pub(crate) fn requests(&self) -> u64 {
        (self.heartbeats.len() + self.seeds.len() + self.leases.len()) as u64 + self.failed
    }
}

/// The time within which 99 of 100 were answered, in milliseconds.
fn p99_ms(micros: &[u64]) -> f64 {
    let mut micros = micros.to_vec();
    micros.sort_unstable();
    micros.get(micros.len() * 99 / 100).map_or(0.0, |micros| *micros as f64 / 1e3)
}

/// A fleet and what it took.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) store: StoreKind,
    pub(crate) ranks: u32,
    pub(crate) replicas: u32,
    pub(crate) requests_per_sec: f64,
    /// Of all planners together.
    pub(crate) planner_processors: f64,
    pub(crate) database_processors: f64,
    pub(crate) share_of_others: f64,
    /// Of a planner that nobody has asked anything, at the most.
    pub(crate) memory_at_start_bytes: u64,
    /// The most of any planner.
    pub(crate) memory_bytes: u64,
    pub(crate) database_bytes: u64,
    #[serde(skip)]
    pub(crate) times: Times,
}

/// The table, as Markdown has it.
pub(crate) struct Table<'a>(pub(crate) &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| ranks | store | planners | requests/s | 99 % of heartbeats, ms | of questions for a seed, ms | failed | \
             processors: planners | database | memory of a planner, MB | of it at the start | database, MB | others |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|---|---|---|")?;
        for row in self.0 {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            writeln!(
                f,
                "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {} | {:.3} | {:.3} | {:.0} | {:.0} | {:.1} | {:.0} % |",
                row.ranks,
                row.store,
                row.replicas,
                row.requests_per_sec,
                p99_ms(&row.times.heartbeats),
                p99_ms(&row.times.seeds),
                row.times.failed,
                row.planner_processors,
                row.database_processors,
                megabytes(row.memory_bytes),
                megabytes(row.memory_at_start_bytes),
                megabytes(row.database_bytes),
                row.share_of_others * 100.0,
            )?;
        }
        Ok(())
    }
}
