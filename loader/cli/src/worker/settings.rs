//! The loader's settings, from flags, a file and the environment.

use std::path::Path;

use anyhow::Result;
use rfork_loader::config::Config;
use rfork_protocol::settings::{Object, Section, SettingError};

use crate::flags::{Flags, Table};

/// The loader's settings.
#[derive(Debug)]
pub(super) struct WorkerTable;

impl Table for WorkerTable {
    const SETTINGS: &'static [Section] = rfork_loader::settings::SETTINGS;
}

/// What they say. What is odd about them is logged.
///
/// # Errors
/// [`SettingError`].
pub(super) fn read(flags: &Flags<WorkerTable>, file: Option<&Path>) -> Result<Config, SettingError> {
    let object = file.map(object).transpose()?;
    let values = flags.read(object.as_ref())?;
    for warning in &values.warnings {
        tracing::warn!("{warning}");
    }
    Config::read(&values)
}

fn object(path: &Path) -> Result<Object, SettingError> {
    let shown = path.display().to_string();
    let refused = |why: String| SettingError::Bad { place: format!("--config {shown}"), why };
    let text = std::fs::read_to_string(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    Object::parse(shown.clone(), text).map_err(|error| refused(error.to_string()))
}
