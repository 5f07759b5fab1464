//! Logs go to standard error; standard output is for results.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
#[cfg(feature = "planner")]
use rfork_planner::telemetry::Exporter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::Command;

/// What is logged, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LoggingArgs {
    /// What to log: error, warn, info, debug, trace, or a filter such as `rfork_loader=debug,info`
    #[arg(long, env = "RFORK_LOG", global = true, default_value = "info", value_name = "FILTER")]
    log: Targets,

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

/// Where traces go, if anywhere: a planner may export them.
pub(crate) struct Traces {
    #[cfg(feature = "planner")]
    exporter: Option<Exporter>,
}

// Only planners have any.
#[cfg_attr(not(feature = "planner"), allow(clippy::unused_async, clippy::unnecessary_wraps))]
impl Traces {
    /// As the command wants it.
    ///
    /// # Errors
    /// When they cannot be exported, in words for people.
    pub(crate) fn of(command: &Command) -> Result<Self, String> {
        #[cfg(feature = "planner")]
        let exporter = match command {
            Command::Planner(args) => args.exporter().map_err(|error| error.to_string())?,
            _ => None,
        };
        #[cfg(not(feature = "planner"))]
        let _ = command;
        Ok(Self {
            #[cfg(feature = "planner")]
            exporter,
        })
    }

    /// Exports what is left. Bounded.
    pub(crate) async fn finish(self) {
        #[cfg(feature = "planner")]
        if let Some(exporter) = self.exporter {
            exporter.finish().await;
        }
    }
}

/// Sets logging up for the whole process, and traces, if they are exported.
pub(crate) fn init(args: &LoggingArgs, traces: &Traces) {
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match args.log_format {
        LogFormat::Text => lines.boxed(),
        // The list ends with the current one.
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(args.log.clone()));
    #[cfg(feature = "planner")]
    let subscriber = subscriber.with(traces.exporter.as_ref().map(Exporter::layer));
    #[cfg(not(feature = "planner"))]
    let _ = traces;
    subscriber.init();
}
