//! A store's first migration makes its schema; from the first release on the others only add: the planner of the version
//! before runs on the schema of this one.

use std::path::{Path, PathBuf};

/// What takes away, or changes what is there.
const TAKES_AWAY: [&str; 8] = [
    "DROP ",
    "RENAME ",
    "ALTER COLUMN",
    "DELETE FROM",
    "TRUNCATE ",
    "ADD CONSTRAINT",
    "CREATE UNIQUE INDEX",
    "VACUUM",
];

/// What a statement does that an older planner would notice.
fn objection(statement: &str) -> Option<&'static str> {
    let upper = statement.to_uppercase();
    if let Some(taking) = TAKES_AWAY.into_iter().find(|word| upper.contains(word)) {
        return Some(taking);
    }
    let must_be_given =
        upper.contains("ADD COLUMN") && upper.contains("NOT NULL") && !upper.contains("DEFAULT");
    must_be_given.then_some("a column that must be given")
}

/// The statements of a file, without comments, in one line each.
fn statements(sql: &str) -> Vec<String> {
    let code = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    let text = code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    text.split(';').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[test]
fn what_an_older_planner_would_notice_is_told_from_what_only_adds() {
    for sql in [
        "ALTER TABLE seeds ADD COLUMN colour TEXT; -- DROP nothing",
        "ALTER TABLE seeds ADD COLUMN size INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX seeds_by_colour ON seeds (colour);\nCREATE TABLE colours (name TEXT PRIMARY KEY NOT NULL)",
    ] {
        assert_eq!(statements(sql).iter().find_map(|statement| objection(statement)), None, "{sql}");
    }
    for sql in [
        "DROP INDEX seeds_by_offer",
        "CREATE TABLE a (b TEXT);\n alter table seeds\n drop column host;",
        "ALTER TABLE seeds RENAME COLUMN host TO place",
        "ALTER TABLE seeds ADD COLUMN size INTEGER NOT NULL",
    ] {
        assert!(statements(sql).iter().any(|statement| objection(statement).is_some()), "{sql}");
    }
}

#[test]
fn migrations_after_the_first_only_add() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    for store in ["sqlite", "postgres"] {
        let files = std::fs::read_dir(all.join(store)).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(files[0].ends_with("0001_initial.sql"), "{files:?}");
        for file in &files[1..] {
            for statement in statements(&std::fs::read_to_string(file).unwrap()) {
                let place = file.display();
                assert_eq!(
                    objection(&statement),
                    None,
                    "{place}: {statement}; see \"Changes of the schema\" in CONTRIBUTING.md"
                );
            }
        }
    }
}
