//! The `rfork` command: planner, worker, demo, inspect, explain.
//!
//! Without the feature `planner` there is neither planner nor demo, and no database driver: the Python package has the
//! rest as `python -m rfork`.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

#[cfg(feature = "planner")]
mod demo;
mod explain;
mod inspect;
mod logging;
#[cfg(feature = "planner")]
mod sample_model;
mod show;
mod signals;
mod worker;

/// Start inference workers from running ones instead of from storage.
#[derive(Debug, Parser)]
#[command(name = "rfork", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    logging: logging::LoggingArgs,

    /// End, as on SIGTERM, when standard input ends: a child then never outlives its parent
    #[arg(long, global = true, hide = true)]
    end_with_stdin: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "planner")]
    /// Run the planner: it knows the seeds and sends new workers to them
    Planner(Box<rfork_planner::cli::PlannerArgs>),
    /// Hold a model in memory: fork it from a seed or load it from storage, then serve it to others
    Worker(Box<worker::WorkerArgs>),
    #[cfg(feature = "planner")]
    /// See it work on this machine: a planner, a worker that loads from storage, and others that fork
    Demo(demo::DemoArgs),
    /// Ask a planner or a seed what it knows
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
    /// Ask a planner why a worker would be given a seed now, or not
    Explain(explain::ExplainArgs),
}

/// Runs the command with these arguments, of which the first is its own name; gives the exit code. Arguments that
/// cannot be, and those that ask for help, end the process.
///
/// To be called once in a process: it takes the signals and the logging of all of it.
// Not generic over its argument: all that it runs would be compiled once more in every crate that calls it.
pub fn run(args: Vec<OsString>) -> u8 {
    let cli = Cli::parse_from(args);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no threads: {error}");
            return FAILURE;
        }
    };
    let code = runtime.block_on(execute(cli));
    // All that had to end has ended. A name that the system still looks up for nobody is not waited for.
    runtime.shutdown_background();
    code
}

/// Exit code of what went wrong.
const FAILURE: u8 = 1;
/// Exit code of what a signal ended before it was done.
const INTERRUPTED: u8 = 130;

async fn execute(cli: Cli) -> u8 {
    let exporter = match logging::Traces::of(&cli.command) {
        Ok(exporter) => exporter,
        Err(error) => {
            eprintln!("error: {error}");
            return FAILURE;
        }
    };
    logging::init(&cli.logging, &exporter);
    if cli.end_with_stdin {
        end_with_stdin();
    }
    let result = match cli.command {
        #[cfg(feature = "planner")]
        Command::Planner(args) => {
            rfork_planner::cli::serve(*args).await.map(|()| 0).map_err(anyhow::Error::from)
        }
        Command::Worker(args) => worker::run(*args).await,
        #[cfg(feature = "planner")]
        Command::Demo(args) => demo::run(args).await,
        Command::Explain(args) => explain::run(args).await.map(|()| 0),
        Command::Inspect(command) => inspect::run(command).await.map(|()| 0),
    };
    exporter.finish().await;
    result.unwrap_or_else(|error| {
        // The chain's parts often quote each other; each is said once.
        let mut message = error.to_string();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        eprintln!("error: {message}");
        FAILURE
    })
}

/// Sends this process SIGTERM when standard input ends.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    });
}
