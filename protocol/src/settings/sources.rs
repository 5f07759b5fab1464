//! Where the values of a table come from, and what they are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::{Object, Section, Setting};

/// The longest value that a message quotes, in characters.
const MAX_SHOWN_CHARS: usize = 100;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// A value that cannot be.
    #[error("{place} {why}")]
    Bad {
        /// Where it stands: a flag, a variable, a field, a line of a file.
        place: String,
        /// What it must be, and what it is if that may be told.
        why: String,
    },
    /// It must be given, and is not.
    #[error("{name} is required: set it{}", env.map(|env| format!(", or {env} in the environment")).unwrap_or_default())]
    Missing {
        /// The setting.
        name: &'static str,
        /// Its environment variable.
        env: Option<&'static str>,
    },
    /// Its reader asks for what the table does not have: a fault of this program.
    #[error("there is no value of {0}")]
    Absent(&'static str),
}

/// Where values come from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Flags by the setting's name. They count first.
    pub flags: &'a [(&'static str, String)],
    /// An object, which counts next.
    pub object: Option<&'a Object>,
    /// The environment, which counts last. An empty variable is one that is not set.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
}

/// Nothing is given: all is as the defaults have it.
pub const DEFAULTS: Sources<'static> = Sources { flags: &[], object: None, env: &|_| None };

/// Where a value comes from: what stands before counts before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A flag.
    Flag,
    /// An object.
    Object,
    /// The environment.
    Environment,
    /// Nobody gives one.
    Default,
}

/// A value, and the place where it stands.
struct Found {
    text: String,
    source: Source,
    place: String,
}

/// Why something that was given is no value.
struct Unfit {
    error: SettingError,
    /// It is passed over.
    lenient: bool,
}

impl Sources<'_> {
    /// Reads each setting of a table.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn read(&self, table: &'static [Section]) -> Result<Values, SettingError> {
        let settings = || table.iter().flat_map(|section| section.settings);
        let mut values = Values { known: BTreeMap::new(), warnings: Vec::new() };
        if let Some(object) = self.object {
            let unknown = object.names().filter(|name| !settings().any(|setting| setting.name == *name));
            let warned = unknown
                .map(|name| format!("{}: there is no such setting; it is ignored", object.place(name)));
            values.warnings.extend(warned);
        }
        // What is wrong is said before what is missing.
        let mut missing = None;
        for setting in settings() {
            match self.find(setting, &mut values.warnings) {
                Ok(found) => drop(values.known.insert(setting.name, found)),
                Err(error @ SettingError::Missing { .. }) => missing = missing.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        missing.map_or(Ok(values), Err)
    }

    fn find(
        &self,
        setting: &'static Setting,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Found>, SettingError> {
        let mut unfit = None;
        for given in [self.flag(setting), self.field(setting), self.variable(setting)] {
            match given {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(Unfit { error, lenient: false }) => return Err(error),
                Err(Unfit { error, lenient: true }) => {
                    warnings.push(format!("{error}: it is ignored"));
                    unfit.get_or_insert(error);
                }
            }
        }
        if let Some(default) = setting.default {
            let (text, place) = (default.to_owned(), setting.name.to_owned());
            return Ok(Some(Found { text, source: Source::Default, place }));
        }
        match (setting.required, unfit) {
            (false, _) => Ok(None),
            (true, Some(error)) => Err(error),
            (true, None) => Err(SettingError::Missing { name: setting.name, env: setting.env }),
        }
    }

    fn flag(&self, setting: &Setting) -> Result<Option<Found>, Unfit> {
        let Some((_, text)) = self.flags.iter().find(|(name, _)| *name == setting.name) else {
            return Ok(None);
        };
        let place = (Source::Flag, format!("--{}", setting.flag()));
        found(setting, place, setting.takes.read_text(text), &shown(text), false)
    }

    fn field(&self, setting: &Setting) -> Result<Option<Found>, Unfit> {
        let Some((object, value)) = self.object.and_then(|object| Some((object, object.get(setting.name)?)))
        else {
            return Ok(None);
        };
        if value.is_null() && !setting.null_refused {
            return Ok(None);
        }
        let place = (Source::Object, object.place(setting.name));
        found(setting, place, setting.takes.read_json(value), &cut(value.to_string()), setting.lenient)
    }

    fn variable(&self, setting: &Setting) -> Result<Option<Found>, Unfit> {
        let Some((name, value)) = setting.env.and_then(|name| Some((name, (self.env)(name)?))) else {
            return Ok(None);
        };
        if value.is_empty() {
            return Ok(None);
        }
        let place = (Source::Environment, format!("{name} in the environment (--{})", setting.flag()));
        // What is no text has no value.
        let value = value.into_string();
        let (text, got) = match &value {
            Ok(text) => (setting.takes.read_text(text), shown(text)),
            Err(bytes) => (None, shown(&bytes.to_string_lossy())),
        };
        found(setting, place, text, &got, setting.lenient)
    }
}

fn found(
    setting: &Setting,
    (source, place): (Source, String),
    text: Option<String>,
    got: &str,
    lenient: bool,
) -> Result<Option<Found>, Unfit> {
    let Some(text) = text else {
        let got = if setting.secret { String::new() } else { format!(", got {got}") };
        let why = format!("must be {}{got}", setting.takes);
        return Err(Unfit { error: SettingError::Bad { place, why }, lenient });
    };
    Ok(Some(Found { text, source, place }))
}

/// A text as JSON writes it, which shows what cannot be seen.
fn shown(text: &str) -> String {
    cut(Value::from(text).to_string())
}

fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// What a table's settings are.
pub struct Values {
    known: BTreeMap<&'static str, Option<Found>>,
    /// What is to be logged, a sentence each.
    pub warnings: Vec<String>,
}

impl Values {
    /// A setting that has a value.
    ///
    /// # Errors
    /// [`SettingError`], when its reader does not take it.
    pub fn get<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, SettingError> {
        self.find(name)?.ok_or(SettingError::Absent(name))
    }

    /// A setting that may have none.
    ///
    /// # Errors
    /// [`SettingError`], when its reader does not take it.
    pub fn find<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Option<T>, SettingError> {
        self.find_with(name, T::from_str)
    }

    /// The same, with a reader that says why it does not take a text, as `must be …`. It quotes the text if nothing
    /// in it may be secret.
    ///
    /// # Errors
    /// [`SettingError`], when the reader does not take it.
    pub fn find_with<T, E: Display>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, SettingError> {
        let known = self.known.get(name).ok_or(SettingError::Absent(name))?;
        let Some(found) = known else { return Ok(None) };
        read(&found.text).map(Some).map_err(|why| self.refused(name, &why))
    }

    /// A number of seconds.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn seconds(&self, name: &'static str) -> Result<Duration, SettingError> {
        let seconds: f64 = self.get(name)?;
        Duration::try_from_secs_f64(seconds).map_err(|why| self.refused(name, &why))
    }

    /// What is said of a setting whose value cannot be, for a reason that reads after its name.
    pub fn refused(&self, name: &'static str, why: &dyn Display) -> SettingError {
        let place = self.place(name).unwrap_or(name).to_owned();
        SettingError::Bad { place, why: why.to_string() }
    }

    /// Where a setting's value comes from, if it has one.
    pub fn source(&self, name: &str) -> Option<Source> {
        Some(self.known.get(name)?.as_ref()?.source)
    }

    /// Where a setting's value stands, if it has one.
    pub fn place(&self, name: &str) -> Option<&str> {
        self.known.get(name)?.as_ref().map(|found| found.place.as_str())
    }
}
