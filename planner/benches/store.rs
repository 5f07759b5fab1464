//! How fast the store on a SQLite file is by itself: batches of 32 commands, one after the other, without HTTP.
//!
//! `cargo bench -p rfork-planner --bench store -- [--against PROGRAM]`. `PROGRAM` is this benchmark as it was built at
//! another commit: both are there at once and take turns, and the ratio of their medians is printed. Each batch acquires a
//! seed of 16 keys, and releases the 16 leases of the batch before.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use rfork_planner::config::{DatabaseUrl, Settings};
use rfork_planner::domain::owner::Owner;
use rfork_planner::store::commands::{Acquire, Acquired, Register, Release};
use rfork_planner::store::sqlite::SqliteStore;
use rfork_planner::store::{Clock, Commands, LeaseHash, MAX_BATCH, Report, Store};
use rfork_protocol::{SeedIdentity, SeedKey};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tells a process of how many seeds its store is.
const SEEDS: &str = "RFORK_BENCH_STORE_SEEDS";
const KEYS: u32 = 1_000;
/// Acquisitions of a batch; it has as many releases.
const HALF: usize = 16;
const WARM_UP: Duration = Duration::from_millis(300);

/// How fast the store is, without HTTP.
#[derive(Debug, Parser)]
struct Options {
    /// This benchmark as it was built at another commit, to be compared with
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,

    /// How many seeds there are, of 1,000 keys
    #[arg(long, value_delimiter = ',', default_value = "1000,100000")]
    seeds: Vec<u32>,

    /// Runs of each, in turns; their median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,

    /// Seconds of one run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,

    /// Given by `cargo bench`; without it, as `cargo test --benches` does, this is only seen to work
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    if let Ok(seeds) = std::env::var(SEEDS) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(serve(seeds.parse()?));
    }
    let mut options = Options::parse();
    if !options.bench {
        (options.seeds, options.runs, options.seconds) = (vec![200], 1, 0.1);
    }
    let own = std::env::current_exe()?;
    println!("batches of {} commands; medians of {} runs of {} s", 2 * HALF, options.runs, options.seconds);
    for seeds in options.seeds {
        let mut stores = vec![Process::start(&own, seeds)?];
        if let Some(against) = &options.against {
            stores.push(Process::start(against, seeds)?);
        }
        let mut rates: Vec<Vec<f64>> = stores.iter().map(|_| Vec::new()).collect();
        for turn in 0..options.runs {
            for at in 0..stores.len() {
                let at = (at + turn) % stores.len();
                rates[at].push(stores[at].run(options.seconds)?);
            }
        }
        let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
        print!("{seeds} seeds: {:.0} commands/s", medians[0]);
        if let Some(before) = medians.get(1) {
            print!(", {before:.0} before: {:.2} times", medians[0] / before);
        }
        println!();
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A store in a process of its own, which ends with its standard input.
struct Process {
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it, and waits until its seeds are registered.
    fn start(program: &Path, seeds: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.env(SEEDS, seeds.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        let (ask, answers) = (child.stdin.take(), child.stdout.take().ok_or("no standard output")?);
        let mut process = Self { child, ask, answers: BufReader::new(answers) };
        process.answer()?;
        Ok(process)
    }

    /// Commands a second, for so many seconds.
    fn run(&mut self, seconds: f64) -> Result<f64> {
        writeln!(self.ask.as_mut().ok_or("it has ended")?, "{seconds}")?;
        Ok(self.answer()?.trim().parse()?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() { Err("a store ended; its error is above".into()) } else { Ok(line) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.ask.take());
        let _ = self.child.wait();
    }
}

/// The store's side: says that it is ready, then runs for the seconds of each line that it reads.
async fn serve(seeds: u32) -> Result<()> {
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR"))?;
    let directory = tempfile::TempDir::with_prefix_in("rfork-bench-", env!("CARGO_TARGET_TMPDIR"))?;
    let path = directory.path().join("store.db");
    let mut settings = Settings::of(DatabaseUrl::Sqlite(path.clone()));
    // No seed falls silent meanwhile.
    settings.heartbeat_ttl = Duration::from_secs(6 * 3_600);
    let store = SqliteStore::open(&path, settings.rules(), Clock::System).await?;
    let mut bench = Bench { store, keys: KEYS.min(seeds), next: 0, leased: Vec::new() };
    bench.register(seeds).await?;
    println!("ready");
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {
        bench.work(WARM_UP).await?;
        println!("{}", bench.work(Duration::from_secs_f64(line.trim().parse()?)).await?);
        line.clear();
    }
    bench.store.close().await;
    Ok(())
}

fn key(number: u32) -> Result<SeedKey> {
    let mut random = fastrand::Rng::with_seed(u64::from(number));
    Ok(SeedKey::new(format!("{:032x}{:032x}", random.u128(..), random.u128(..)))?)
}

struct Bench {
    store: SqliteStore,
    keys: u32,
    /// How many leases there were.
    next: u32,
    leased: Vec<(SeedIdentity, LeaseHash)>,
}

impl Bench {
    async fn register(&self, seeds: u32) -> Result<()> {
        let numbers: Vec<u32> = (0..seeds).collect();
        for some in numbers.chunks(MAX_BATCH) {
            let register = |seed: &u32| {
                let [_, a, b, c] = (seed / 8).to_be_bytes();
                let identity = SeedIdentity::new(format!("10.{a}.{b}.{c}"), 20_000, seed % 8)?;
                Ok(Register {
                    by: None,
                    identity,
                    key: key(seed % self.keys)?,
                    profile: Box::default(),
                    age_ms: 0,
                    client: None,
                    owner: Owner::default(),
                })
            };
            let registers: Result<Vec<Register>> = some.iter().map(register).collect();
            self.store.apply(&Commands { registers: registers?, ..Commands::default() }).await?;
        }
        Ok(())
    }

    /// Gives commands a second.
    async fn work(&mut self, time: Duration) -> Result<f64> {
        let (begun, mut commands) = (Instant::now(), 0);
        while begun.elapsed() < time {
            commands += self.batch().await?;
        }
        Ok(f64::from(commands) / begun.elapsed().as_secs_f64())
    }

    async fn batch(&mut self) -> Result<u32> {
        let mut commands = Commands::default();
        for (identity, lease) in self.leased.drain(..) {
            commands.releases.push(Release {
                by: None,
                identity,
                lease,
                report: Report::Unknown,
                account: None,
            });
        }
        for _ in 0..HALF {
            self.next += 1;
            let mut lease = [0; 32];
            lease[..4].copy_from_slice(&self.next.to_be_bytes());
            // Keys that follow each other are not neighbours.
            let key = key(self.next % self.keys * 7_919 % self.keys)?;
            commands.acquires.push(Acquire { key, wish: Box::default(), lease, queue: None });
        }
        let outcomes = self.store.apply(&commands).await?;
        for (acquire, acquired) in commands.acquires.iter().zip(outcomes.acquires) {
            let Acquired::Granted(grant) = acquired else { return Err(format!("{acquired:?}").into()) };
            self.leased.push((grant.identity, acquire.lease));
        }
        Ok(u32::try_from(commands.len())?)
    }
}
