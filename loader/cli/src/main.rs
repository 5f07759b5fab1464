//! The `rfork` command: planner, worker, demo, inspect.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod demo;
mod explain;
mod inspect;
mod logging;
mod sample_model;
mod show;
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
    /// Run the planner: it knows the seeds and sends new workers to them
    Planner(Box<rfork_planner::cli::PlannerArgs>),
    /// Hold a model in memory: fork it from a seed or load it from storage, then serve it to others
    Worker(Box<worker::WorkerArgs>),
    /// See it work on this machine: a planner, a worker that loads from storage, and others that fork
    Demo(demo::DemoArgs),
    /// Ask a planner or a seed what it knows
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
    /// Ask a planner why a worker would be given a seed now, or not
    Explain(explain::ExplainArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let exporter = match &cli.command {
        Command::Planner(args) => args.exporter(),
        _ => Ok(None),
    };
    let exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    logging::init(&cli.logging, exporter.as_ref());
    if cli.end_with_stdin {
        end_with_stdin();
    }
    let result = match cli.command {
        Command::Planner(args) => {
            rfork_planner::cli::serve(*args).await.map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from)
        }
        Command::Worker(args) => worker::run(*args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Explain(args) => explain::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Inspect(command) => inspect::run(command).await.map(|()| ExitCode::SUCCESS),
    };
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    result.unwrap_or_else(|error| {
        // The chain's parts often quote each other; each is said once.
        let mut message = error.to_string();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

/// Sends this process SIGTERM when standard input ends.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    });
}
