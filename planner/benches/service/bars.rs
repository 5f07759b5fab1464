//! What the planner is to reach, on two cores with the load on them, too.

use serde::Serialize;

use crate::report::Figure;
use crate::rows::{Connections, Row, StoreKind, Work};

/// Bytes that a planner of [`MANY`] seeds may take at most.
pub(crate) const PEAK_MEMORY_BYTES: u64 = 150_000_000;
/// The least share of the cycles at [`FEW`] seeds that are left at [`MANY`], of [`KEYS`] keys.
pub(crate) const LEAST_RATIO: f64 = 0.8;
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
    /// Whether the figure reaches all of it; `None` when there is nothing to reach.
    pub(crate) fn is_met(&self, figure: &Figure) -> Option<bool> {
        let fast = self.per_second.map(|bar| figure.per_second.median >= bar);
        let soon = self.p99_ms.map(|bar| figure.p99_ms <= bar);
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
