//! `rfork demo`: the main job on one machine, in separate processes.
//!
//! A planner on SQLite, a first worker that loads from storage, then the others, which form a chain behind it. Every
//! worker computes SHA-256 over what it holds, and the demo computes it over the files; it succeeds only if
//! all are equal.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use clap::Args;
use rfork_loader::storage::Checkpoint;
use serde::Serialize;

use crate::{FAILURE, INTERRUPTED, sample_model, show, signals};

mod board;
mod child;

use board::Board;
use child::{Child, Line};

/// The seed of the sample model's pseudo-random weights; any will do.
const SAMPLE_SEED: u64 = 1;

/// Flags of `rfork demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// A model in safetensors form; without it, one is written first
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,

    /// How many workers, the first among them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,

    /// Size of the model that is written
    #[arg(long, default_value = "512MiB", value_name = "SIZE", conflicts_with = "model")]
    size: ByteSize,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Keep the model that is written, and the planner's database, and say where they are
    #[arg(long)]
    keep: bool,
}

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    workers: Vec<WorkerReport>,
    model: ModelReport,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct WorkerReport {
    id: usize,
    source: String,
    seed: Option<String>,
    /// Which worker that is.
    source_worker: Option<usize>,
    /// Sources between this worker and one that holds everything, or storage.
    depth: Option<u64>,
    /// Since it began to ask.
    first_byte_seconds: f64,
    last_byte_seconds: f64,
    bytes: u64,
    seconds: f64,
    gib_per_s: f64,
    waited_seconds: f64,
    digest: String,
}

#[derive(Debug, Serialize)]
struct ModelReport {
    path: PathBuf,
    bytes: u64,
    digest: String,
}

/// Runs the demo. Exit code 0 only if every worker holds the files' bytes.
pub(crate) async fn run(args: DemoArgs) -> Result<u8> {
    let stop = signals::on_signal().context("signals cannot be received")?;
    let work = async {
        let directory = tempfile::Builder::new().prefix("rfork-demo-").tempdir();
        let mut directory = directory
            .context("a temporary directory cannot be made; set TMPDIR to a place that is writable")?;
        directory.disable_cleanup(args.keep);
        if args.keep {
            eprintln!("everything is kept in {}", directory.path().display());
        }
        demonstrate(&args, directory.path()).await
    };
    // Dropping the work kills its children and removes its files.
    let Some(report) = stop.run_until_cancelled(work).await else {
        eprintln!("interrupted");
        return Ok(INTERRUPTED);
    };
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.ok { 0 } else { FAILURE })
}

async fn demonstrate(args: &DemoArgs, directory: &Path) -> Result<Report> {
    let board = Board::new();
    let path = if let Some(path) = &args.model {
        std::path::absolute(path)?
    } else {
        check_memory(args.size.as_u64(), args.workers)?;
        write_model(directory, args.size.as_u64(), &board).await?
    };
    let opened = path.clone();
    let checkpoint = Arc::new(tokio::task::spawn_blocking(move || Checkpoint::open(&opened)).await??);
    let bytes = checkpoint.manifest().total_bytes();
    check_memory(bytes, args.workers)?;
    let workers = usize::try_from(args.workers)?;

    let database = directory.join("planner.db");
    let url = joined("--database-url=sqlite:", &database);
    let mut planner = Child::spawn("planner", &["planner", "--port=0", "--drain-sec=0"], url)?;
    let listening = planner.wait_for("the planner listens").await?;
    let url = format!("http://{}", listening.text("address"));
    board.say(&format!("the planner listens on {url}"));

    let hashed = checkpoint.clone();
    let file_digest = tokio::task::spawn_blocking(move || hashed.model_digest());

    let names = Names::default();
    let first = WorkerProcess::spawn(1, &path, &url, (&board, &names), bytes)?;
    let mut running = vec![first.until_serving(1).await?];
    // All others at once, as in a scale-out: each passes on what it has got.
    let mut others = tokio::task::JoinSet::new();
    for id in 2..=workers {
        let worker = WorkerProcess::spawn(id, &path, &url, (&board, &names), bytes)?;
        others.spawn(worker.until_serving(id));
    }
    while let Some(worker) = others.join_next().await {
        running.push(worker??);
    }
    let digest = file_digest.await??.to_string();
    board.clear();

    let mut reports = Vec::new();
    for (report, child) in running {
        child.stop().await;
        let source_worker = report.seed.as_ref().and_then(|seed| names.of(seed));
        reports.push(WorkerReport { source_worker, ..report });
    }
    planner.stop().await;
    reports.sort_by_key(|report| report.id);
    let ok = reports.iter().all(|report| report.digest == digest);
    Ok(Report { ok, workers: reports, model: ModelReport { path, bytes, digest } })
}

async fn write_model(directory: &Path, size_bytes: u64, board: &Board) -> Result<PathBuf> {
    let (path, bar) = (directory.join("model"), board.bar("writing a model", size_bytes));
    let written = tokio::task::spawn_blocking(move || {
        let written = sample_model::write(&path, size_bytes, SAMPLE_SEED, |bytes| bar.set(bytes))?;
        bar.finish("written");
        anyhow::Ok(written)
    });
    let model = written.await??;
    board.say(&format!(
        "a model of {} was written: {} tensors in {} file(s)",
        show::bytes(model.bytes),
        model.tensors,
        model.files
    ));
    Ok(model.path)
}

/// Every worker holds the model: refused before anything starts if that cannot fit.
fn check_memory(bytes: u64, workers: u64) -> Result<()> {
    let needed = bytes.saturating_mul(workers);
    let Some(available) = available_memory() else { return Ok(()) };
    ensure!(
        needed <= available,
        "{workers} workers with {} each need more memory than the {} available: use fewer --workers or a smaller model",
        show::bytes(bytes),
        show::bytes(available)
    );
    Ok(())
}

/// What Linux says is available, in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A flag and a path as one argument, so that no path is taken for a flag.
fn joined(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

/// Which worker serves where.
#[derive(Debug, Clone, Default)]
struct Names(Arc<Mutex<HashMap<String, usize>>>);

impl Names {
    fn is_at(&self, worker: usize, identity: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, worker);
    }

    fn of(&self, identity: &str) -> Option<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(identity).copied()
    }

    /// What a worker says that it does, with the number of the worker that it names at its end.
    fn told(&self, phase: &str) -> String {
        let named = phase.rsplit_once(" seed ").and_then(|(does, seed)| Some((does, self.of(seed)?)));
        named.map_or_else(|| phase.to_owned(), |(does, worker)| format!("{does} worker {worker}"))
    }
}

struct WorkerProcess {
    child: Child,
    bar: board::Bar,
    names: Names,
}

impl WorkerProcess {
    fn spawn(
        id: usize,
        model: &Path,
        url: &str,
        (board, names): (&Board, &Names),
        bytes: u64,
    ) -> Result<Self> {
        let url = format!("--rfork-scheduler-url={url}");
        let flags = [
            "worker",
            "--digest",
            "--progress-interval-ms=100",
            "--model-url=demo",
            "--model-deploy-strategy-name=demo",
            "--rfork-seed-bind-host=127.0.0.1",
            // The first has nobody to wait for.
            if id == 1 { "--rfork-seed-wait-sec=0" } else { "--rfork-seed-wait-sec=600" },
            &url,
        ];
        let child = Child::spawn(&format!("worker {id}"), &flags, joined("--model=", model))?;
        Ok(Self { child, bar: board.bar(&format!("worker {id}"), bytes), names: names.clone() })
    }

    /// Shows progress until the worker serves; gives what it said of its load.
    async fn until_serving(mut self, id: usize) -> Result<(WorkerReport, Child)> {
        let mut report = None;
        loop {
            let line = self.child.next_line().await?;
            match line.message() {
                "progress" => {
                    self.bar.set(line.number("held_bytes"));
                    self.bar.say(&self.names.told(&line.text("phase")));
                }
                "this worker serves what it holds while it loads" => {
                    self.names.is_at(id, line.text("identity"));
                }
                "loaded" => report = Some(worker_report(id, &line)),
                "serving" => {
                    self.names.is_at(id, line.text("identity"));
                    break;
                }
                _ => {}
            }
        }
        let report = report.with_context(|| format!("worker {id} serves without having loaded"))?;
        self.bar.set(report.bytes);
        self.bar.finish(&self.names.told(&format!("loaded from {}", source(&report))));
        Ok((report, self.child))
    }
}

fn worker_report(id: usize, line: &Line) -> WorkerReport {
    let seed = line.text("seed");
    WorkerReport {
        id,
        source: line.text("source"),
        seed: (!seed.is_empty()).then_some(seed),
        source_worker: None,
        depth: line.count("depth"),
        first_byte_seconds: line.float("first_byte_seconds"),
        last_byte_seconds: line.float("seconds") + line.float("waited_seconds"),
        bytes: line.number("bytes"),
        seconds: line.float("seconds"),
        gib_per_s: line.float("gib_per_s"),
        waited_seconds: line.float("waited_seconds"),
        digest: line.text("digest"),
    }
}

/// Where most of its bytes came from.
fn source(report: &WorkerReport) -> String {
    match (report.source_worker, &report.seed) {
        (Some(worker), _) => format!("worker {worker}"),
        (None, Some(seed)) => format!("seed {seed}"),
        (None, None) => report.source.clone(),
    }
}

fn print(report: &Report) {
    let rows = report.workers.iter().map(|worker| {
        let equal = if worker.digest == report.model.digest { "equal" } else { "DIFFERENT" };
        [
            worker.id.to_string(),
            source(worker),
            worker.depth.map(|depth| depth.to_string()).unwrap_or_default(),
            format!("{:.2}", worker.first_byte_seconds),
            format!("{:.2}", worker.last_byte_seconds),
            show::bytes(worker.bytes),
            format!("{:.2}", worker.gib_per_s),
            format!("{}… {equal}", worker.digest.chars().take(16).collect::<String>()),
        ]
    });
    println!(
        "{}",
        show::table(
            [
                "worker",
                "source",
                "depth",
                "first byte (s)",
                "last byte (s)",
                "bytes",
                "GiB/s",
                "digest (SHA-256)"
            ],
            rows
        )
    );
    println!("files: {} at {}", show::bytes(report.model.bytes), report.model.path.display());
    println!("digest of the files: {}", report.model.digest);
    if report.ok {
        println!("every worker holds the bytes of the files");
    } else {
        println!("a worker holds OTHER bytes than the files");
    }
}
