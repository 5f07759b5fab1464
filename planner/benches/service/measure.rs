//! The measurement: all planners of one store are there at once, and their rows take turns, so that what the
//! machine does meanwhile strikes all of them alike.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::child::{Program, Role, Server};
use crate::cluster::Cluster;
use crate::load::Load;
use crate::machine::{self, Processes};
use crate::options::Options;
use crate::population::Population;
use crate::report::{Figure, OwnCost, Registration, Report, Run};
use crate::rows::{CLIENTS, Connections, Row, StoreKind, Work};
use crate::{Result, bars};

/// Clients that register seeds, more than in a row: it is only to be over soon.
const REGISTERING: usize = 512;
/// Before each run, and not counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// The planner and its database are at rest when they use less of a processor than this, or after the time.
const AT_REST: f64 = 0.1;
const REST_STEP: Duration = Duration::from_millis(250);
const REST_DEADLINE: Duration = Duration::from_secs(10);

/// A planner with its seeds.
pub(crate) struct Setup {
    database: String,
    pub(crate) seeds: u32,
    keys: u32,
    pub(crate) population: Population,
    pub(crate) planner: Server,
    processes: Processes,
}

/// Measures all that the options name.
///
/// # Errors
/// At the first wrong answer, and when something that is needed is missing.
pub(crate) fn all(options: &Options) -> Result<Report> {
    let directory = directory()?;
    let own_cost = own_cost(options)?;
    let mut report = Report::new(options, own_cost);
    for &store in options.stores() {
        let rows = options.rows(store);
        if !rows.is_empty() {
            measure_store(options, directory.path(), store, &rows, &mut report)?;
        }
    }
    Ok(report)
}

/// A directory of this run's own.
pub(crate) fn directory() -> Result<TempDir> {
    let directory = TempDir::with_prefix_in("rfork-bench-", place()?)?;
    // Postgres runs as another user.
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(directory)
}

/// A directory on a disk: what is kept in memory has no cost of a disk.
fn place() -> Result<PathBuf> {
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&place)?;
    if machine::is_in_memory(&place)? {
        return Err(format!(
            "{} is in memory, not on a disk: set CARGO_TARGET_DIR to a directory that is",
            place.display()
        )
        .into());
    }
    Ok(place)
}

/// What the load reaches with a server that does nothing.
fn own_cost(options: &Options) -> Result<Vec<OwnCost>> {
    let responder = Server::start(&Role::Responder)?;
    let processes = Processes { planner: responder.id(), database: None };
    let population = Population::new(1_000, 1);
    [Connections::KeepAlive, Connections::New]
        .into_iter()
        .map(|connections| {
            let load = Load {
                server: responder.address,
                population: &population,
                work: Work::Heartbeats,
                connections,
                clients: CLIENTS,
            };
            let runs: Result<Vec<Run>> =
                (0..options.runs()).map(|_| run(options, processes, &load)).collect();
            Ok(OwnCost::new(connections, &runs?))
        })
        .collect()
}

fn measure_store(
    options: &Options,
    directory: &Path,
    store: StoreKind,
    rows: &[Row],
    report: &mut Report,
) -> Result<()> {
    let cluster = (store == StoreKind::Postgres).then(|| Cluster::durable(directory));
    let mut setups: Vec<Setup> = Vec::new();
    for row in rows {
        if setups.iter().any(|setup| setup.is_of(row)) {
            continue;
        }
        let Row { seeds, keys, .. } = *row;
        let (setup, seconds) = Setup::make(&Program::Own, directory, cluster.as_ref(), seeds, keys)?;
        let registration = Registration { store, seeds, keys, seconds };
        setups.push(setup);
        report.registrations.push(registration);
    }
    let mut runs: Vec<Vec<Run>> = rows.iter().map(|_| Vec::new()).collect();
    for round in 0..options.runs() {
        eprintln!("{store}: run {} of {}", round + 1, options.runs());
        for (row, runs) in rows.iter().zip(&mut runs) {
            let setup = setups.iter().find(|setup| setup.is_of(row)).ok_or("a row without its planner")?;
            runs.push(setup.run(options, row)?);
        }
    }
    report.figures.extend(rows.iter().zip(&runs).map(|(row, runs)| Figure::new(*row, runs)));
    for setup in setups.iter().filter(|setup| setup.seeds == bars::MANY) {
        report.remember_memory(store, setup.keys, machine::peak_memory_bytes(setup.planner.id())?);
    }
    Ok(())
}

impl Setup {
    /// Starts a planner on an empty database, and registers its seeds; gives the seconds that this took, too.
    pub(crate) fn make(
        program: &Program,
        directory: &Path,
        cluster: Option<&Cluster>,
        seeds: u32,
        keys: u32,
    ) -> Result<(Self, f64)> {
        let database = match cluster {
            Some(cluster) => cluster.database(),
            None => format!("sqlite://{}/{seeds}-{keys}.db", directory.display()),
        };
        let planner = program.planner(&database)?;
        let processes = Processes { planner: planner.id(), database: cluster.map(Cluster::process) };
        let population = Population::new(seeds, keys);
        let register = Load {
            server: planner.address,
            population: &population,
            work: Work::Heartbeats,
            connections: Connections::KeepAlive,
            clients: REGISTERING,
        };
        let seconds = register.once()?;
        eprintln!(
            "{seeds} seeds of {keys} keys registered in {seconds:.1} s; planner is process {}",
            planner.id()
        );
        let setup = Self { database, seeds, keys, population, planner, processes };
        setup.rest()?;
        Ok((setup, seconds))
    }

    /// Stops the planner and starts it again on its database; gives the seconds until it was ready.
    pub(crate) fn restart(self, program: &Program) -> Result<(Self, f64)> {
        let Self { database, seeds, keys, population, planner, .. } = self;
        drop(planner);
        let begun = Instant::now();
        let planner = program.planner(&database)?;
        let seconds = begun.elapsed().as_secs_f64();
        // A SQLite file alone is opened twice.
        let processes = Processes { planner: planner.id(), database: None };
        Ok((Self { database, seeds, keys, population, planner, processes }, seconds))
    }

    fn is_of(&self, row: &Row) -> bool {
        (self.seeds, self.keys) == (row.seeds, row.keys)
    }

    pub(crate) fn run(&self, options: &Options, row: &Row) -> Result<Run> {
        let load = Load {
            server: self.planner.address,
            population: &self.population,
            work: row.work,
            connections: row.connections,
            clients: CLIENTS,
        };
        let run = run(options, self.processes, &load).map_err(|error| format!("{row:?}: {error}"))?;
        self.rest()?;
        Ok(run)
    }

    /// Waits until what was begun is done: heartbeats are written after they were answered.
    pub(crate) fn rest(&self) -> Result<()> {
        let begun = Instant::now();
        let mut before = self.processes.used()?;
        while begun.elapsed() < REST_DEADLINE {
            // A planner writes heartbeats every second, and must be seen at rest for longer.
            for _ in 0..6 {
                std::thread::sleep(REST_STEP);
            }
            let used = self.processes.used()?;
            let since = used.since(&before);
            if since.planner + since.database < AT_REST * 6.0 * REST_STEP.as_secs_f64() {
                break;
            }
            before = used;
        }
        Ok(())
    }
}

fn run(options: &Options, processes: Processes, load: &Load<'_>) -> Result<Run> {
    load.run(WARM_UP)?;
    let before = processes.used()?;
    let outcome = load.run(Duration::from_secs_f64(options.seconds()))?;
    Ok(Run { outcome, used: processes.used()?.since(&before) })
}
