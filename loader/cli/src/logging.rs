//! Logs go to standard error; standard output is for results.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

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

/// Sets logging up for the whole process.
pub(crate) fn init(args: &LoggingArgs) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&args.log))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
