//! A planner beside another one, that of before maybe: both are there at once and take turns, each first as often as the
//! other, so that what the machine does meanwhile strikes both alike. Figures are medians, and ratios are of medians.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::bars::{FEW, KEYS, LEAST_RATIO, MANY, PEAK_MEMORY_BYTES, START_SECONDS};
use crate::child::Program;
use crate::cluster::Cluster;
use crate::load::Load;
use crate::measure::{self, Setup};
use crate::options::Options;
use crate::report::median;
use crate::rows::{Connections, Row, StoreKind, Work};
use crate::{Result, bars, machine};

/// Clients of a burst, each with a key of its own.
const BURST: u32 = 1_024;
/// Bursts of a round.
const BURSTS: u32 = 10;

/// A figure of each planner.
#[derive(Debug, Clone, Copy, Serialize)]
struct Pair<T> {
    now: T,
    before: T,
}

impl<T> Pair<T> {
    /// The one, then the other; `turn` says which goes first.
    fn try_each<U>(&self, turn: u32, mut of: impl FnMut(&T) -> Result<U>) -> Result<Pair<U>> {
        if turn.is_multiple_of(2) {
            let now = of(&self.now)?;
            Ok(Pair { now, before: of(&self.before)? })
        } else {
            let before = of(&self.before)?;
            Ok(Pair { now: of(&self.now)?, before })
        }
    }
}

impl Pair<f64> {
    fn of_medians(all: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(&all.iter().map(value).collect::<Vec<_>>());
        Self { now: of(|pair| pair.now), before: of(|pair| pair.before) }
    }

    fn ratio(self) -> f64 {
        self.now / self.before
    }
}

/// What is compared.
#[derive(Debug, Serialize)]
struct Line {
    store: StoreKind,
    seeds: u32,
    what: What,
    figures: Pair<f64>,
}

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    /// Cycles a second.
    Cycles,
    /// In a burst of [`BURST`] requests, the time within which 99 of 100 are answered, in milliseconds.
    Burst,
    /// The most memory of the planner, in bytes.
    Memory,
    /// From the start on a file with all seeds until the planner is ready, in seconds.
    Start,
}

/// All that was compared.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    runs: u32,
    seconds: f64,
    lines: Vec<Line>,
}

/// Compares the planner of this program, or of the command that the options name, with that of the command `against`.
///
/// # Errors
/// At the first wrong answer, and when something that is needed is missing.
pub(crate) fn all(options: &Options, against: &Path) -> Result<Comparison> {
    let now = options.planner.clone().map_or(Program::Own, Program::Command);
    let programs = Pair { now, before: Program::Command(against.to_owned()) };
    let mut lines = Vec::new();
    for &store in options.stores() {
        lines.extend(compare(options, &programs, store)?);
    }
    Ok(Comparison { runs: options.runs(), seconds: options.seconds(), lines })
}

fn compare(options: &Options, programs: &Pair<Program>, store: StoreKind) -> Result<Vec<Line>> {
    let homes = Pair { now: measure::directory()?, before: measure::directory()? };
    let cluster = (store == StoreKind::Postgres).then(|| Cluster::durable(homes.now.path()));
    let make = |seeds: u32, keys: u32| -> Result<Pair<Setup>> {
        let setup = |program: &Program, home: &tempfile::TempDir| {
            Setup::make(program, home.path(), cluster.as_ref(), seeds, keys).map(|(setup, _)| setup)
        };
        let now = setup(&programs.now, &homes.now)?;
        Ok(Pair { now, before: setup(&programs.before, &homes.before)? })
    };
    let mut setups = Vec::new();
    for &seeds in options.seeds() {
        setups.push(make(seeds, KEYS.min(seeds))?);
    }
    let mut cycles: Vec<Vec<Pair<f64>>> = setups.iter().map(|_| Vec::new()).collect();
    for round in 0..options.runs() {
        eprintln!("{store}: run {} of {}", round + 1, options.runs());
        for (pair, cycles) in setups.iter().zip(&mut cycles) {
            let seeds = pair.now.seeds;
            let (keys, work, connections) = (KEYS.min(seeds), Work::Cycles, Connections::KeepAlive);
            let row = Row { store, seeds, keys, work, connections };
            cycles.push(pair.try_each(round, |setup| Ok(setup.run(options, &row)?.outcome.per_second))?);
        }
    }
    let line = |seeds, what, figures| Line { store, seeds, what, figures };
    let mut lines = Vec::new();
    for (pair, cycles) in setups.iter().zip(&cycles) {
        lines.push(line(pair.now.seeds, What::Cycles, Pair::of_medians(cycles)));
        let memory = pair.try_each(0, |setup| Ok(machine::peak_memory_bytes(setup.planner.id())? as f64))?;
        lines.push(line(pair.now.seeds, What::Memory, memory));
    }
    if store == StoreKind::Sqlite {
        lines.push(line(BURST, What::Burst, bursts(options, &make(BURST, BURST)?)?));
        for pair in setups {
            lines.push(line(pair.now.seeds, What::Start, starts(options, programs, pair)?));
        }
    }
    Ok(lines)
}

fn bursts(options: &Options, setups: &Pair<Setup>) -> Result<Pair<f64>> {
    let mut p99_ms = Vec::new();
    for round in 0..options.runs() {
        p99_ms.push(setups.try_each(round, |setup| {
            let load = Load {
                server: setup.planner.address,
                population: &setup.population,
                work: Work::Cycles,
                connections: Connections::KeepAlive,
                clients: BURST as usize,
            };
            let p99_ms = load.bursts(BURSTS)?;
            setup.rest()?;
            Ok(median(&p99_ms))
        })?);
    }
    Ok(Pair::of_medians(&p99_ms))
}

fn starts(options: &Options, programs: &Pair<Program>, mut setups: Pair<Setup>) -> Result<Pair<f64>> {
    let mut seconds = Vec::new();
    for round in 0..options.runs() {
        let Pair { now, before } = setups;
        // Whoever starts second does so beside the first sweep of the other.
        let ((now, of_now), (before, of_before)) = if round.is_multiple_of(2) {
            let now = now.restart(&programs.now)?;
            (now, before.restart(&programs.before)?)
        } else {
            let before = before.restart(&programs.before)?;
            (now.restart(&programs.now)?, before)
        };
        setups = Pair { now, before };
        seconds.push(Pair { now: of_now, before: of_before });
    }
    Ok(Pair::of_medians(&seconds))
}

impl Comparison {
    /// The cycles at [`MANY`] seeds over those at [`FEW`], of the planner of now.
    fn many_over_few(&self, store: StoreKind) -> Option<f64> {
        let of = |seeds| {
            let is = |line: &&Line| (line.store, line.seeds, line.what) == (store, seeds, What::Cycles);
            self.lines.iter().find(is).map(|line| line.figures.now)
        };
        Some(of(MANY)? / of(FEW)?)
    }
}

impl Line {
    /// Whether it reaches its bar, and the bar in words; `None` without one.
    fn verdict(&self) -> Option<(bool, String)> {
        let Pair { now, .. } = self.figures;
        let at_most =
            |bar: f64, unit: f64, name: &str| Some((now <= bar, format!("at most {} {name}", bar / unit)));
        match self.what {
            What::Cycles => {
                let bar = bars::ratio(self.store, self.seeds)?;
                Some((self.figures.ratio() >= bar, format!("at least {bar:.1} times")))
            }
            What::Burst => at_most(bars::BURST_P99_MS, 1.0, "ms"),
            What::Memory if (self.store, self.seeds) == (StoreKind::Sqlite, MANY) => {
                at_most(PEAK_MEMORY_BYTES as f64, 1e6, "MB")
            }
            What::Start if self.seeds == MANY => at_most(START_SECONDS, 1.0, "s"),
            What::Memory | What::Start => None,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "medians of {} runs of {} s, in turns\n", self.runs, self.seconds)?;
        writeln!(f, "| store | seeds | what | now | before | now over before | bar |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for line in &self.lines {
            let Pair { now, before } = line.figures;
            let (what, unit) = match line.what {
                What::Cycles => ("cycles/s", 1.0),
                What::Burst => ("p99 of a burst of 1,024, ms", 1.0),
                What::Memory => ("peak memory, MB", 1e6),
                What::Start => ("start, s", 1.0),
            };
            let verdict =
                line.verdict().map(|(met, bar)| format!("{bar}: {}", if met { "met" } else { "**missed**" }));
            let digits = if line.what == What::Start { 2 } else { 0 };
            writeln!(
                f,
                "| {} | {} | {what} | {:.digits$} | {:.digits$} | {:.2} | {} |",
                line.store,
                line.seeds,
                now / unit,
                before / unit,
                line.figures.ratio(),
                verdict.unwrap_or_default()
            )?;
        }
        for store in [StoreKind::Sqlite, StoreKind::Postgres] {
            if let Some(ratio) = self.many_over_few(store) {
                let met = if ratio >= LEAST_RATIO { "met" } else { "**missed**" };
                writeln!(
                    f,
                    "\n{store}: cycles/s at {MANY} seeds over those at {FEW}: {ratio:.2}, at least {LEAST_RATIO}: {met}"
                )?;
            }
        }
        Ok(())
    }
}
