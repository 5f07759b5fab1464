//! Logs go to standard error; standard output is for results.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use rfork_planner::telemetry::Exporter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// What is logged, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LoggingArgs {
    /// What to log: error, warn, info, debug, trace, or a filter such as `rfork_loader=debug,info`
    #[arg(long, env = "RFORK_LOG", global = true, default_value = "info", value_parser = filter, value_name = "FILTER")]
    log: String,

    /// How to log: lines for people, or a JSON object a line
    #[arg(long, env = "RFORK_LOG_FORMAT", global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Sets logging up for the whole process, and traces, if they are exported.
pub(crate) fn init(args: &LoggingArgs, exporter: Option<&Exporter>) {
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match args.log_format {
        LogFormat::Text => lines.boxed(),
        // The list ends with the current one.
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(EnvFilter::new(&args.log)))
        .with(exporter.map(Exporter::layer))
        .init();
}
