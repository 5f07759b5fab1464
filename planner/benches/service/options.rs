//! What is measured, and how long.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::bars::{FEW, MANY};
use crate::rows::{Connections, Row, StoreKind, Work};

/// How fast the planner is, on this machine.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Options {
    /// The stores to measure
    #[arg(long, value_enum, default_value_t = Stores::Both)]
    pub(crate) store: Stores,

    /// Only what there is a bar for, in one run, of a second unless told otherwise
    #[arg(long)]
    pub(crate) quick: bool,

    /// Runs of each row, in turn with the others; their median counts [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,

    /// Seconds of one run [default: 3]
    #[arg(long)]
    seconds: Option<f64>,

    /// How many seeds there are [default: 1000,10000,100000]
    #[arg(long, value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(64..=1_000_000))]
    seeds: Vec<u32>,

    /// How many keys they have; at least one for each client that asks for a key of its own, or 1
    #[arg(long, value_delimiter = ',', default_value = "1,1000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: Vec<u32>,

    /// What the clients do
    #[arg(long, value_enum, value_delimiter = ',', default_value = "heartbeats,cycles")]
    work: Vec<Work>,

    /// Whether clients keep their connections
    #[arg(long, value_enum, value_delimiter = ',', default_value = "keep-alive,new")]
    connections: Vec<Connections>,

    /// Instead of all this: what fleets of so many ranks take, at the rate at which they ask; 90 s each on each store
    #[arg(long, value_delimiter = ',', value_name = "RANKS", value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub(crate) fleet: Vec<u32>,

    /// Instead of all this: what 1,000 workers take that serve while they load, in chains of these lengths; 30 s each on each store
    #[arg(long, value_delimiter = ',', value_name = "LENGTHS", conflicts_with = "fleet",
        value_parser = clap::value_parser!(u32).range(2..=256))]
    pub(crate) chain: Vec<u32>,

    /// How many planners a fleet has, on Postgres
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) replicas: u32,

    /// Instead of all this: compares with another planner, side by side in turns; the path of its `rfork` command
    #[arg(long, value_name = "RFORK")]
    pub(crate) against: Option<PathBuf>,

    /// The `rfork` command of the planner that is compared, instead of the planner in this program
    #[arg(long, value_name = "RFORK", requires = "against")]
    pub(crate) planner: Option<PathBuf>,

    /// Prints JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    /// Given by `cargo bench`; without it, as `cargo test --benches` does, this is only seen to work
    #[arg(long, hide = true)]
    bench: bool,
}

/// Which stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stores {
    /// SQLite alone
    Sqlite,
    /// Postgres alone
    Postgres,
    /// One after the other
    Both,
}

impl Options {
    /// These options with their defaults filled in.
    pub(crate) fn settled(mut self) -> Self {
        let (runs, seconds) = match (self.bench, self.quick) {
            (false, _) => (1, 0.1),
            (true, true) => (1, 1.0),
            (true, false) => (5, 3.0),
        };
        if !self.bench {
            (self.store, self.seeds, self.keys) = (Stores::Sqlite, vec![200], vec![1]);
        }
        if self.seeds.is_empty() {
            // Compared are the sizes that there is a bar for.
            self.seeds = if self.against.is_some() { vec![FEW, MANY] } else { vec![FEW, 10_000, MANY] };
        }
        self.runs.get_or_insert(runs);
        self.seconds.get_or_insert(seconds);
        self
    }

    /// Whether the ranks of a fleet keep their connections: as vLLM Ascend's workers they do not, unless told to.
    pub(crate) fn fleet_keeps_connections(&self) -> bool {
        self.connections == [Connections::KeepAlive]
    }

    /// How many seeds there are, each number by itself.
    pub(crate) fn seeds(&self) -> &[u32] {
        &self.seeds
    }

    /// How often each row is measured.
    pub(crate) fn runs(&self) -> u32 {
        self.runs.unwrap_or(1)
    }

    /// How long one run is.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(1.0)
    }

    /// The stores to measure.
    pub(crate) fn stores(&self) -> &'static [StoreKind] {
        match self.store {
            Stores::Sqlite => &[StoreKind::Sqlite],
            Stores::Postgres => &[StoreKind::Postgres],
            Stores::Both => &[StoreKind::Sqlite, StoreKind::Postgres],
        }
    }

    /// The rows to measure of one store. A key cannot have less than one seed.
    pub(crate) fn rows(&self, store: StoreKind) -> Vec<Row> {
        let mut rows = Vec::new();
        for &seeds in &self.seeds {
            for &keys in self.keys.iter().filter(|keys| **keys <= seeds) {
                for &work in &self.work {
                    for &connections in &self.connections {
                        rows.push(Row { store, seeds, keys, work, connections });
                    }
                }
            }
        }
        rows.retain(|row| !self.quick || crate::bars::wants(row));
        rows
    }
}
