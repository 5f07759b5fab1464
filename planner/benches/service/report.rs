//! The figures, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::bars::{self, Bar};
use crate::load::Outcome;
use crate::machine::{self, Used};
use crate::options::Options;
use crate::rows::{CLIENTS, Connections, Row, StoreKind};

/// One run of a row.
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    /// Meanwhile.
    pub(crate) used: Used,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    cores: usize,
    clients: usize,
    runs: u32,
    seconds: f64,
    own_cost: Vec<OwnCost>,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) figures: Vec<Figure>,
    memory: Vec<Memory>,
}

/// The load on a server that does nothing, in requests.
#[derive(Debug, Serialize)]
pub(crate) struct OwnCost {
    connections: Connections,
    per_second: Spread,
    /// Processor time of the load itself, in microseconds a request.
    load_us: f64,
}

/// How long it took to register all seeds of a planner.
#[derive(Debug, Serialize)]
pub(crate) struct Registration {
    pub(crate) store: StoreKind,
    pub(crate) seeds: u32,
    pub(crate) keys: u32,
    pub(crate) seconds: f64,
}

/// A row. Medians of its runs.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    #[serde(flatten)]
    row: Row,
    /// Operations.
    pub(crate) per_second: Spread,
    p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Processor time of each, in microseconds an operation.
    planner_us: f64,
    database_us: f64,
    load_us: f64,
    /// Of the machine's processors.
    share_of_others: f64,
    /// What all processors together had time for, with nobody else there: no rate could be higher.
    alone_per_second: f64,
    bar: Bar,
    bar_met: Option<bool>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    min: f64,
    max: f64,
}

/// The most memory of a planner that has [`bars::MANY`] seeds, after all that was asked of it.
#[derive(Debug, Serialize)]
struct Memory {
    store: StoreKind,
    keys: u32,
    peak_bytes: u64,
    bar_met: bool,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        Self {
            median: median(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(0.0, f64::max),
        }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn all(runs: &[Run], value: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(value).collect()
}

/// The median of microseconds an operation.
fn micros(runs: &[Run], seconds: impl Fn(&Run) -> f64) -> f64 {
    median(&all(runs, |run| seconds(run) * 1e6 / run.outcome.operations.max(1) as f64))
}

impl OwnCost {
    pub(crate) fn new(connections: Connections, runs: &[Run]) -> Self {
        Self {
            connections,
            per_second: Spread::of(&all(runs, |run| run.outcome.per_second)),
            load_us: micros(runs, |run| run.used.load),
        }
    }
}

impl Figure {
    pub(crate) fn new(row: Row, runs: &[Run]) -> Self {
        let mut figure = Self {
            row,
            per_second: Spread::of(&all(runs, |run| run.outcome.per_second)),
            p50_ms: median(&all(runs, |run| run.outcome.p50_ms)),
            p99_ms: median(&all(runs, |run| run.outcome.p99_ms)),
            planner_us: micros(runs, |run| run.used.planner),
            database_us: micros(runs, |run| run.used.database),
            load_us: micros(runs, |run| run.used.load),
            share_of_others: median(&all(runs, |run| run.used.share_of_others())),
            alone_per_second: 0.0,
            bar: bars::of(&row),
            bar_met: None,
        };
        let us = figure.planner_us + figure.database_us + figure.load_us;
        figure.alone_per_second = machine::cores() as f64 * 1e6 / us.max(1.0);
        figure.bar_met = figure.bar.is_met(figure.per_second.median, figure.p99_ms);
        figure
    }
}

impl Report {
    pub(crate) fn new(options: &Options, own_cost: Vec<OwnCost>) -> Self {
        Self {
            cores: machine::cores(),
            clients: CLIENTS,
            runs: options.runs(),
            seconds: options.seconds(),
            own_cost,
            registrations: Vec::new(),
            figures: Vec::new(),
            memory: Vec::new(),
        }
    }

    pub(crate) fn remember_memory(&mut self, store: StoreKind, keys: u32, peak_bytes: u64) {
        let bar_met = peak_bytes <= bars::PEAK_MEMORY_BYTES;
        self.memory.push(Memory { store, keys, peak_bytes, bar_met });
    }

    /// The cycles at [`bars::MANY`] seeds over those at [`bars::FEW`].
    fn ratio(&self, store: StoreKind) -> Option<f64> {
        let of = |seeds| {
            let is = |row: &Row| row.store == store && bars::is_for_ratio(row, seeds);
            self.figures.iter().find(|figure| is(&figure.row)).map(|figure| figure.per_second.median)
        };
        Some(of(bars::MANY)? / of(bars::FEW)?)
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} clients on loopback, {} cores for all; medians of {} runs of {} s; one operation is a heartbeat, or a \
             cycle of get and put",
            self.clients, self.cores, self.runs, self.seconds
        )?;
        for cost in &self.own_cost {
            writeln!(
                f,
                "the load against a server that does nothing, {}: {:.0} requests/s ({:.0} to {:.0}), {:.1} us of \
                 its own each",
                cost.connections,
                cost.per_second.median,
                cost.per_second.min,
                cost.per_second.max,
                cost.load_us
            )?;
        }
        for Registration { store, seeds, keys, seconds } in &self.registrations {
            writeln!(f, "{store}: {seeds} seeds of {keys} keys registered in {seconds:.1} s")?;
        }
        writeln!(
            f,
            "\n{:<44} | {:^25} | {:^14} | {:^26} | {:^14} |",
            "", "operations/s", "ms", "processor us/op", "machine"
        )?;
        writeln!(
            f,
            "{:<8} {:>7} {:>5} {:<10} {:<10} | {:>6} ({:>6} to {:>6}) | {:>6} {:>7} | {:>8} {:>8} {:>8} | {:>6} {:>7} | bar",
            "store",
            "seeds",
            "keys",
            "work",
            "connection",
            "median",
            "min",
            "max",
            "p50",
            "p99",
            "planner",
            "database",
            "load",
            "others",
            "alone"
        )?;
        for figure in &self.figures {
            writeln!(f, "{figure}")?;
        }
        writeln!(f)?;
        for store in [StoreKind::Sqlite, StoreKind::Postgres] {
            if let Some(ratio) = self.ratio(store) {
                writeln!(
                    f,
                    "{store}: cycles/s at {} seeds over those at {}, {} keys: {ratio:.2}, at least {}: {}",
                    bars::MANY,
                    bars::FEW,
                    bars::KEYS,
                    bars::LEAST_RATIO,
                    verdict(ratio >= bars::LEAST_RATIO)
                )?;
            }
        }
        for Memory { store, keys, peak_bytes, bar_met } in &self.memory {
            writeln!(
                f,
                "{store}: peak memory of the planner, {} seeds of {keys} keys: {:.0} MB, at most {:.0}: {}",
                bars::MANY,
                *peak_bytes as f64 / 1e6,
                bars::PEAK_MEMORY_BYTES as f64 / 1e6,
                verdict(*bar_met)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { store, seeds, keys, work, connections } = self.row;
        write!(f, "{store:<8} {seeds:>7} {keys:>5} {work:<10} {connections:<10} | ")?;
        let Spread { median, min, max } = self.per_second;
        write!(f, "{median:>6.0} ({min:>6.0} to {max:>6.0}) | {:>6.1} {:>7.1} | ", self.p50_ms, self.p99_ms)?;
        write!(f, "{:>8.0} {:>8.0} {:>8.0} | ", self.planner_us, self.database_us, self.load_us)?;
        write!(f, "{:>4.0} % {:>7.0} |", self.share_of_others * 100.0, self.alone_per_second)?;
        if let Some(bar) = self.bar.per_second {
            write!(f, " {bar:.0}/s")?;
        }
        if let Some(bar) = self.bar.p99_ms {
            write!(f, ", {bar:.0} ms")?;
        }
        match self.bar_met {
            Some(met) => write!(f, ": {}", verdict(met)),
            None => Ok(()),
        }
    }
}
