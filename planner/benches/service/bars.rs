//! What the planner is to reach, on two cores with the load on them, too.

use serde::Serialize;

use crate::rows::{Connections, Row, StoreKind, Work};

/// Bytes that a planner of [`MANY`] seeds may take at most.
pub(crate) const PEAK_MEMORY_BYTES: u64 = 150_000_000;
/// The least share of the cycles at [`FEW`] seeds that are left at [`MANY`], of [`KEYS`] keys.
pub(crate) const LEAST_RATIO: f64 = 0.85;
/// The time within which 99 of 100 requests of a burst are answered.
pub(crate) const BURST_P99_MS: f64 = 60.0;
/// From the start on a file of [`MANY`] seeds until the planner is ready.
pub(crate) const START_SECONDS: f64 = 2.0;
pub(crate) const FEW: u32 = 1_000;
pub(crate) const MANY: u32 = 100_000;
pub(crate) const KEYS: u32 = 1_000;

/// What a row is to reach.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Bar {
    /// At least.
    pub(crate) per_second: Option<f64>,
    /// At most.
    pub(crate) p99_ms: Option<f64>,
}

impl Bar {
    /// Whether these reach all of it; `None` when there is nothing to reach.
    pub(crate) fn is_met(&self, per_second: f64, p99_ms: f64) -> Option<bool> {
        let fast = self.per_second.map(|bar| per_second >= bar);
        let soon = self.p99_ms.map(|bar| p99_ms <= bar);
        match (fast, soon) {
            (None, None) => None,
            (fast, soon) => Some(fast.unwrap_or(true) && soon.unwrap_or(true)),
        }
    }
}

/// What this row is to reach by itself.
pub(crate) fn of(row: &Row) -> Bar {
    use {Connections as C, Work as W};
    // Of SQLite and of Postgres.
    let (per_second, p99_ms) = match (row.seeds, row.keys, row.work, row.connections) {
        (FEW, KEYS, W::Cycles, C::KeepAlive) => (Some([8_000.0, 6_000.0]), Some([25.0, 50.0])),
        (FEW, KEYS, W::Heartbeats, C::New) => (Some([6_000.0, 6_000.0]), None),
        (FEW, KEYS, W::Cycles, C::New) => (Some([2_500.0, 2_000.0]), None),
        (MANY, KEYS, W::Heartbeats, C::KeepAlive) => (Some([20_000.0, 20_000.0]), None),
        (MANY, 1, W::Cycles, C::KeepAlive) => (Some([2_000.0, 1_000.0]), None),
        _ => (None, None),
    };
    let store = match row.store {
        StoreKind::Sqlite => 0,
        StoreKind::Postgres => 1,
    };
    Bar { per_second: per_second.map(|bars| bars[store]), p99_ms: p99_ms.map(|bars| bars[store]) }
}

/// What a planner's cycles, of [`KEYS`] keys, over those of the planner before `decide` are to reach.
pub(crate) fn ratio(store: StoreKind, seeds: u32) -> Option<f64> {
    match (store, seeds) {
        (StoreKind::Sqlite, FEW) => Some(1.5),
        (StoreKind::Sqlite, MANY) => Some(2.2),
        (StoreKind::Postgres, FEW) => Some(1.2),
        (StoreKind::Postgres, MANY) => Some(1.0),
        _ => None,
    }
}

/// Whether there is a bar that needs this row.
pub(crate) fn wants(row: &Row) -> bool {
    let bar = of(row);
    let alone = bar.per_second.is_some() || bar.p99_ms.is_some();
    alone || is_for_ratio(row, FEW) || is_for_ratio(row, MANY)
}

/// Whether it is the row of so many seeds that the ratio is made of.
pub(crate) fn is_for_ratio(row: &Row, seeds: u32) -> bool {
    (row.seeds, row.keys, row.work, row.connections) == (seeds, KEYS, Work::Cycles, Connections::KeepAlive)
}
