//! `rfork planner`: the planner as a process, or one thing that is done instead.

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rfork_planner::config::Settings;
use rfork_planner::http::v2::openapi;
use rfork_planner::telemetry::Endpoint;
use rfork_protocol::settings::{Section, SettingError};

use crate::flags::{Flags, Table};

/// The planner's settings.
#[derive(Debug)]
pub(crate) struct PlannerTable;

impl Table for PlannerTable {
    const SETTINGS: &'static [Section] = rfork_planner::settings::SETTINGS;
}

/// Flags of `rfork planner`.
#[derive(Debug, Args)]
pub(crate) struct PlannerArgs {
    /// Without it: run. With it: do that instead, and end
    #[arg(value_enum, value_name = "ACTION")]
    action: Option<Action>,

    #[command(flatten)]
    settings: Flags<PlannerTable>,
}

/// What is done instead of running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Bring the database's schema up to date; a planner that starts does so, too
    Migrate,
    /// Print the OpenAPI document of API v2
    Openapi,
}

/// What is to be done, with settings that can be used.
pub(crate) enum Job {
    Run(Box<Settings>),
    Migrate(Box<Settings>),
    Openapi,
}

impl PlannerArgs {
    /// What they ask for.
    ///
    /// # Errors
    /// [`SettingError`].
    pub(crate) fn job(&self) -> Result<Job, SettingError> {
        if self.action == Some(Action::Openapi) {
            return Ok(Job::Openapi);
        }
        let settings = Box::new(Settings::read(&self.settings.read(None)?)?);
        Ok(if self.action == Some(Action::Migrate) { Job::Migrate(settings) } else { Job::Run(settings) })
    }
}

impl Job {
    /// Where its traces go.
    pub(crate) fn otlp_endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Run(settings) | Self::Migrate(settings) => settings.otlp_endpoint.as_ref(),
            Self::Openapi => None,
        }
    }

    /// Does it.
    pub(crate) async fn run(self) -> Result<u8> {
        match self {
            Self::Run(settings) => rfork_planner::serve::serve(*settings).await?,
            Self::Migrate(settings) => rfork_planner::migrate(&settings).await?,
            Self::Openapi => {
                std::io::stdout().write_all(openapi::text().as_bytes()).context("it cannot be printed")?;
            }
        }
        Ok(0)
    }
}
