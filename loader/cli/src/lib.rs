//! The `rfork` command: planner, worker, demo, digest, inspect, explain, selftest.
//!
//! Without the feature `planner` there is neither planner nor demo, and no database driver: the Python package has the
//! rest as `python -m rfork`.

use std::ffi::OsString;
use std::pin::Pin;

use clap::{CommandFactory, Parser, Subcommand};
use rfork_protocol::settings::SettingError;

mod access;
#[cfg(feature = "planner")]
mod demo;
mod digest;
mod explain;
mod flags;
mod inspect;
pub mod logging;
#[cfg(feature = "planner")]
mod planner;
#[cfg(feature = "planner")]
mod sample_model;
mod selftest;
mod show;
mod signals;
mod transfers;
mod worker;

use flags::Flags;
use logging::{Logging, LoggingTable, Traces};

/// Start inference workers from running ones instead of from storage.
#[derive(Debug, Parser)]
#[command(name = "rfork", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    logging: Flags<LoggingTable>,

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
    Planner(planner::PlannerArgs),
    /// Hold a model in memory: fork it from a seed or load it from storage, then serve it to others
    Worker(Box<worker::WorkerArgs>),
    #[cfg(feature = "planner")]
    /// See it work on this machine: a planner, a worker that loads from storage, and others that fork
    Demo(demo::DemoArgs),
    /// Print the content id of a model from its files: what `rfork worker` names its weights by that reads them
    Digest(digest::DigestArgs),
    /// Ask a planner or a seed what it knows
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
    /// Ask a planner why a worker would be given a seed now, or not
    Explain(explain::ExplainArgs),
    /// Try a planner: register, lease, renew, release and remove a seed of its own
    Selftest(selftest::SelftestArgs),
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

/// The command as its parser knows it, for whoever documents its arguments.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Exit code of what went wrong.
const FAILURE: u8 = 1;
/// Exit code for arguments and settings that cannot be.
const USAGE: u8 = 2;
/// Exit code of what a signal ended before it was done.
const INTERRUPTED: u8 = 130;

async fn execute(cli: Cli) -> u8 {
    let (work, traces) = match prepare(cli) {
        Ok(prepared) => prepared,
        Err(error) => return report(&error),
    };
    let result = work.await;
    traces.finish().await;
    result.unwrap_or_else(|error| report(&error))
}

/// What a command does; it gives the exit code.
type Work = Pin<Box<dyn Future<Output = anyhow::Result<u8>>>>;

/// What is to be done, with logging set up for it.
fn prepare(cli: Cli) -> anyhow::Result<(Work, Traces)> {
    let logging = Logging::read(&cli.logging)?;
    let (work, traces): (Work, Traces) = match cli.command {
        #[cfg(feature = "planner")]
        Command::Planner(args) => {
            let job = args.job()?;
            let traces = Traces::to(job.otlp_endpoint())?;
            (Box::pin(job.run()), traces)
        }
        Command::Worker(args) => (Box::pin(worker::run(*args)), Traces::nowhere()),
        #[cfg(feature = "planner")]
        Command::Demo(args) => (Box::pin(demo::run(args)), Traces::nowhere()),
        Command::Digest(args) => {
            (Box::pin(async move { digest::run(args).await.map(|()| 0) }), Traces::nowhere())
        }
        Command::Explain(args) => {
            (Box::pin(async move { explain::run(args).await.map(|()| 0) }), Traces::nowhere())
        }
        Command::Selftest(args) => {
            (Box::pin(async move { selftest::run(args).await.map(|()| 0) }), Traces::nowhere())
        }
        Command::Inspect(command) => {
            (Box::pin(async move { inspect::run(command).await.map(|()| 0) }), Traces::nowhere())
        }
    };
    logging::init(logging, &traces);
    if cli.end_with_stdin {
        end_with_stdin();
    }
    Ok((work, traces))
}

/// Says why it ended, and gives the exit code.
fn report(error: &anyhow::Error) -> u8 {
    // The chain's parts often quote each other; each is said once.
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    eprintln!("error: {message}");
    if error.is::<SettingError>() { USAGE } else { FAILURE }
}

/// Sends this process SIGTERM when standard input ends.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    });
}
