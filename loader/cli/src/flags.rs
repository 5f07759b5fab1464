//! A table's settings as flags of a command, with the environment behind them.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use rfork_protocol::settings::{Object, Section, Setting, SettingError, Sources, Takes, Values};

/// A table of settings, as a type.
pub(crate) trait Table {
    /// The settings.
    const SETTINGS: &'static [Section];
    /// Whether subcommands take them, too.
    const GLOBAL: bool = false;
}

/// The flags of a table that were given. What they say is looked at when they are [read](Flags::read).
pub(crate) struct Flags<T> {
    given: Vec<(&'static str, String)>,
    table: PhantomData<T>,
}

impl<T: Table> Flags<T> {
    fn settings() -> impl Iterator<Item = (&'static Section, &'static Setting)> {
        T::SETTINGS.iter().flat_map(|section| section.settings.iter().map(move |setting| (section, setting)))
    }

    /// The values of all settings: flags first, then those of an object, then the environment.
    ///
    /// # Errors
    /// [`SettingError`].
    pub(crate) fn read(&self, object: Option<&Object>) -> Result<Values, SettingError> {
        Sources { flags: &self.given, object, env: &environment }.read(T::SETTINGS)
    }
}

/// A variable of this process.
fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

impl<T> fmt::Debug for Flags<T> {
    /// Without values, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.given.iter().map(|(name, _)| name)).finish()
    }
}

impl<T: Table> Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        command.args(Self::settings().map(|(section, setting)| {
            let arg = Arg::new(setting.name)
                .long(setting.flag())
                .action(ArgAction::Set)
                .value_name(setting.value)
                .help(help(setting, setting.help))
                .long_help(help(setting, &whole(setting)))
                .help_heading(section.title)
                .global(T::GLOBAL);
            if setting.takes.is_switch() {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                arg
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = Self::settings().filter_map(|(_, setting)| {
            Some((setting.name, matches.get_one::<String>(setting.name)?.clone()))
        });
        Ok(Self { given: given.collect(), table: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// All that is said of a setting, and what it takes.
fn whole(setting: &Setting) -> String {
    let more = if setting.more.is_empty() { String::new() } else { format!(". {}", setting.more) };
    let takes = match setting.takes {
        // There is nothing to it.
        Takes::Text => String::new(),
        takes => format!(" [takes: {takes}]"),
    };
    format!("{}{more}{takes}", setting.help)
}

/// A text, with where else the setting may stand and what it is without a value.
fn help(setting: &Setting, text: &str) -> String {
    let env = setting.env.map(|env| format!(" [env: {env}]")).unwrap_or_default();
    let default = match (setting.default, setting.otherwise) {
        (Some(default), _) => format!(" [default: {default}]"),
        (None, "") => String::new(),
        (None, otherwise) => format!(" [default: {otherwise}]"),
    };
    format!("{text}{env}{default}")
}
