//! What the documents say of settings comes from the program. With `RFORK_REGENERATE=1` it is written anew.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.
#![allow(clippy::format_push_string, clippy::format_collect)] // A document is written seldom.

use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use rfork_protocol::settings::{Section, Setting};

const END: &str = "<!-- end of settings -->";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn planner() -> &'static [Section] {
    rfork_planner::settings::SETTINGS
}

fn worker() -> &'static [Section] {
    rfork_loader::settings::SETTINGS
}

fn logging() -> &'static [Section] {
    rfork_cli::logging::SETTINGS
}

fn all(tables: &[&'static [Section]]) -> impl Iterator<Item = &'static Setting> {
    tables.iter().flat_map(|table| table.iter()).flat_map(|section| section.settings)
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn default(setting: &Setting) -> String {
    match setting.default {
        Some(default) => code(default),
        None if setting.required => "required".into(),
        None => setting.otherwise.to_owned(),
    }
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | ").replace('\n', " "))
}

fn head(cells: &[&str]) -> String {
    let cells = cells.join(" | ");
    let line: Vec<&str> = cells.split('|').map(|_| "---").collect();
    format!("| {cells} |\n|{}|\n", line.join("|"))
}

/// How people write a setting: the planner's as flags, a worker's as fields.
fn name(setting: &Setting, flags: bool) -> String {
    code(&if flags { format!("--{}", setting.flag()) } else { setting.name.to_owned() })
}

fn full(table: &'static [Section], flags: bool) -> String {
    let mut text = String::new();
    for section in table {
        if table.len() > 1 {
            text += &format!("\n### {}\n\n", section.title);
        }
        text += &head(&["setting", "takes", "default", "variable", ""]);
        for setting in section.settings {
            let mark = if setting.lenient { " †" } else { "" };
            let null = if setting.null_refused { ". `null` is refused" } else { "" };
            let more = if setting.more.is_empty() { String::new() } else { format!(". {}", setting.more) };
            text += &row(&[
                name(setting, flags) + mark,
                setting.takes.to_string(),
                default(setting),
                code(setting.env.unwrap_or_default()),
                format!("{}{more}{null}", setting.help),
            ]);
        }
    }
    text.trim_start().to_owned()
}

fn short(table: &'static [Section], flags: bool) -> String {
    let settings = table.iter().flat_map(|section| section.settings);
    if flags {
        let rows =
            settings.map(|setting| row(&[name(setting, flags), default(setting), setting.help.to_owned()]));
        return head(&["flag", "default", ""]) + &rows.collect::<String>();
    }
    let rows = settings.map(|setting| {
        let env = code(setting.env.unwrap_or_default());
        row(&[name(setting, flags), default(setting), env, setting.help.to_owned()])
    });
    head(&["setting", "default", "environment", ""]) + &rows.collect::<String>()
}

/// What a command takes besides the tables, and the same of its subcommands.
fn arguments(command: &Command, path: &str) -> String {
    let titles = || [planner(), worker(), logging()].into_iter().flatten().map(|section| section.title);
    let known =
        |arg: &Arg| arg.get_help_heading().is_some_and(|heading| titles().any(|title| title == heading));
    let own = command.get_arguments().filter(|arg| {
        !known(arg) && !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())
    });
    let rows: Vec<String> = own
        .map(|arg| {
            let values = arg.get_value_names().unwrap_or_default().iter();
            let values: String =
                values.filter(|_| arg.get_action().takes_values()).map(|name| format!(" <{name}>")).collect();
            let name =
                arg.get_long().map_or_else(|| values.trim().to_owned(), |long| format!("--{long}{values}"));
            let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
            let defaults: Vec<String> =
                defaults.filter(|_| arg.get_action().takes_values()).map(|text| code(&text)).collect();
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let default = if arg.is_required_set() { "required".into() } else { defaults.join(" ") };
            row(&[code(&name), default, help])
        })
        .collect();
    let mut text = String::new();
    if !rows.is_empty() {
        text += &format!("\n`{path}`:\n\n{}{}", head(&["argument", "default", ""]), rows.concat());
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        text += &arguments(inner, &format!("{path} {}", inner.get_name()));
    }
    text
}

fn rendered(what: &str) -> String {
    match what {
        "planner" => full(planner(), true),
        "planner in short" => short(planner(), true),
        "worker" => full(worker(), false),
        "worker in short" => short(worker(), false),
        "logging" => full(logging(), true),
        "arguments" => arguments(&rfork_cli::command(), "rfork").trim_start().to_owned(),
        other => panic!("no settings are called '{other}'"),
    }
}

/// The document with each of its tables as the program has it.
fn written(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!-- settings: ") {
        let (what, after) = after.split_once(" -->\n").unwrap();
        let (_, after) = after.split_once(END).unwrap();
        out += &format!("{before}<!-- settings: {what} -->\n\n{}\n{END}", rendered(what));
        rest = after;
    }
    out + rest
}

#[test]
fn documents_say_what_the_program_has() {
    let anew = std::env::var_os("RFORK_REGENERATE").is_some();
    for document in ["README.md", "docs/settings.md"] {
        let path = root().join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        let right = written(&text);
        assert!(right.contains("settings: "), "{document} has no tables");
        if anew {
            std::fs::write(&path, &right).unwrap();
        } else {
            assert!(
                text == right,
                "{document} says other things of settings than the program: RFORK_REGENERATE=1 cargo test -p rfork-cli \
                 --test documents writes it anew"
            );
        }
    }
}

/// The pages that name settings in passing name none that there is not.
#[test]
fn settings_that_documents_name_are_there() {
    let fields: Vec<&str> = all(&[worker()]).map(|setting| setting.name).collect();
    let variables: Vec<&str> =
        all(&[planner(), worker(), logging()]).filter_map(|setting| setting.env).collect();
    let command = rfork_cli::command();
    let commands = command.get_subcommands().flat_map(|command| command.get_subcommands().chain([command]));
    let arguments = commands.flat_map(Command::get_arguments);
    let flags: Vec<&str> = arguments.filter_map(Arg::get_long).collect();
    let mut documents: Vec<PathBuf> = vec![root().join("README.md")];
    documents.extend(std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    for path in documents.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(path).unwrap();
        let word = |sign: char| !(sign.is_ascii_alphanumeric() || sign == '_' || sign == '-');
        for word in text.split(word) {
            let field = word.starts_with("rfork_")
                && ["_sec", "_url", "_host", "_base"].iter().any(|end| word.ends_with(end));
            assert!(!field || fields.contains(&word), "{}: there is no setting {word}", path.display());
            let variable = word.starts_with("RFORK_CFG_") && word.len() > "RFORK_CFG_".len();
            assert!(
                !variable || variables.contains(&word),
                "{}: there is no variable {word}",
                path.display()
            );
            let flag =
                word.strip_prefix("--").filter(|flag| flag.ends_with("-sec") || flag.starts_with("rfork-"));
            assert!(
                flag.is_none_or(|flag| flags.contains(&flag)),
                "{}: there is no flag {word}",
                path.display()
            );
        }
    }
}
