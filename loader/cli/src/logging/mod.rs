//! Logs go to standard error; standard output is for results.

#[cfg(feature = "planner")]
use rfork_planner::telemetry::{Endpoint, Exporter, ExporterError};
use rfork_protocol::settings::{Section, Setting, SettingError, Takes};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::flags::{Flags, Table};

pub mod lines;

/// What is logged, and how.
pub const SETTINGS: &[Section] = &[Section {
    title: "Logging",
    settings: &[
        Setting::new("log", Takes::Form("error, warn, info, debug, trace, or a filter"), "What to log")
            .value("FILTER")
            .env("RFORK_LOG")
            .default("info")
            .more("error, warn, info, debug, trace, or a filter such as rfork_loader=debug,info"),
        Setting::new("log_format", Takes::OneOf(&["text", "json"]), "How to log: text for people, or json")
            .value("FORMAT")
            .env("RFORK_LOG_FORMAT")
            .default("text")
            .more("json is an object a line"),
    ],
}];

/// The same, as flags of all commands.
#[derive(Debug)]
pub(crate) struct LoggingTable;

impl Table for LoggingTable {
    const SETTINGS: &'static [Section] = SETTINGS;
    const GLOBAL: bool = true;
}

/// What is logged, and how.
pub(crate) struct Logging {
    filter: Targets,
    json: bool,
}

impl Logging {
    /// What the flags and the environment say.
    ///
    /// # Errors
    /// [`SettingError`].
    pub(crate) fn read(flags: &Flags<LoggingTable>) -> Result<Self, SettingError> {
        let values = flags.read(None)?;
        let filter = |text: &str| {
            text.parse::<Targets>().map_err(|why| format!("must be a level or a filter, got '{text}': {why}"))
        };
        Ok(Self {
            filter: values.find_with("log", filter)?.unwrap_or_default(),
            json: values.get::<String>("log_format")? == "json",
        })
    }
}

/// Where traces go, if anywhere: a planner may export them.
pub(crate) struct Traces {
    #[cfg(feature = "planner")]
    exporter: Option<Exporter>,
}

// Only planners have any.
#[cfg_attr(not(feature = "planner"), allow(clippy::unused_async))]
impl Traces {
    /// Nowhere.
    pub(crate) fn nowhere() -> Self {
        Self {
            #[cfg(feature = "planner")]
            exporter: None,
        }
    }

    /// To a collector, if there is one.
    ///
    /// # Errors
    /// [`ExporterError`].
    #[cfg(feature = "planner")]
    pub(crate) fn to(endpoint: Option<&Endpoint>) -> Result<Self, ExporterError> {
        Ok(Self { exporter: endpoint.map(Exporter::new).transpose()? })
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
pub(crate) fn init(logging: Logging, traces: &Traces) {
    let lines = if logging.json { lines::json() } else { lines::text(false) };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(logging.filter));
    #[cfg(feature = "planner")]
    let subscriber = subscriber.with(traces.exporter.as_ref().map(Exporter::layer));
    #[cfg(not(feature = "planner"))]
    let _ = traces;
    subscriber.init();
}
