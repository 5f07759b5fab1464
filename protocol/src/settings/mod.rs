//! Settings of a command: each is described once, in a table, and whatever shows or reads it goes by that: flags and
//! their help, the environment, files, and the documents.
//!
//! The tables stand where the settings are used (`rfork_planner::settings`, `rfork_loader::settings`). [`Sources`]
//! reads them: a flag counts before a file or an object, that before the environment, and the default comes last. A
//! value is text until its reader has parsed it, and [`Takes`] says which texts there can be.

mod object;
mod sources;
mod takes;
#[cfg(test)]
mod tests;

pub use object::{BadObject, Object};
pub use sources::{DEFAULTS, SettingError, Source, Sources, Values};
pub use takes::Takes;

/// Settings that belong together, under a heading.
#[derive(Debug)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// What is in it.
    pub settings: &'static [Setting],
}

/// One setting.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // None of them has to do with another.
pub struct Setting {
    /// With underscores; the flag has hyphens.
    pub name: &'static str,
    /// Which values there are.
    pub takes: Takes,
    /// One of them, for who gives none.
    pub default: Option<&'static str>,
    /// Where there is no default: what happens without a value, for people.
    pub otherwise: &'static str,
    /// It must be given.
    pub required: bool,
    /// Its environment variable.
    pub env: Option<&'static str>,
    /// How help calls its value: `SECONDS`.
    pub value: &'static str,
    /// What it is, in a sentence without a full stop.
    pub help: &'static str,
    /// The rest that there is to know; empty, or sentences of which the last has no full stop.
    pub more: &'static str,
    /// Its value may hold a password: nothing shows it.
    pub secret: bool,
    /// A bad value in an object or in the environment is passed over with a warning, as vLLM Ascend does it.
    pub lenient: bool,
    /// An object's `null` is a bad value, and not the same as nothing.
    pub null_refused: bool,
}

impl Setting {
    /// One that takes this, with neither default nor variable.
    pub const fn new(name: &'static str, takes: Takes, help: &'static str) -> Self {
        Self {
            name,
            takes,
            default: None,
            otherwise: "",
            required: false,
            env: None,
            value: takes.placeholder(),
            help,
            more: "",
            secret: false,
            lenient: false,
            null_refused: false,
        }
    }

    /// With this default.
    #[must_use]
    pub const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    /// What happens without a value, in words.
    #[must_use]
    pub const fn otherwise(self, otherwise: &'static str) -> Self {
        Self { otherwise, ..self }
    }

    /// It must be given.
    #[must_use]
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// With this environment variable.
    #[must_use]
    pub const fn env(self, env: &'static str) -> Self {
        Self { env: Some(env), ..self }
    }

    /// How help calls its value.
    #[must_use]
    pub const fn value(self, value: &'static str) -> Self {
        Self { value, ..self }
    }

    /// What else there is to know.
    #[must_use]
    pub const fn more(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    /// Its value is shown nowhere.
    #[must_use]
    pub const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// See [`Setting::lenient`].
    #[must_use]
    pub const fn lenient(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// See [`Setting::null_refused`].
    #[must_use]
    pub const fn null_refused(self) -> Self {
        Self { null_refused: true, ..self }
    }

    /// Its flag, without the leading hyphens.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}
