//! Migrations only add: the planner of the version before runs on the schema of this one.

use std::path::Path;

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

/// Those that stay, each with its reason.
const ACCEPTED: [(&str, &str); 1] = [
    // An index that no statement names decides nothing, only how fast.
    ("sqlite/0003_requests.sql", "DROP INDEX seeds_by_next_end"),
];

#[test]
fn migrations_only_add() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut read = 0;
    for store in ["sqlite", "postgres"] {
        for file in std::fs::read_dir(all.join(store)).unwrap() {
            let name = format!("{store}/{}", file.as_ref().unwrap().file_name().to_str().unwrap());
            read += 1;
            for statement in statements(&std::fs::read_to_string(file.unwrap().path()).unwrap()) {
                let accepted =
                    ACCEPTED.iter().any(|(known, part)| *known == name && statement.contains(part));
                let upper = statement.to_uppercase();
                let taking = TAKES_AWAY.iter().find(|word| upper.contains(**word) && !accepted);
                assert_eq!(
                    taking, None,
                    "{name}: {statement}; see \"Changes of the schema\" in CONTRIBUTING.md"
                );
                let column = upper.contains("ADD COLUMN") && upper.contains("NOT NULL");
                assert!(
                    !column || upper.contains("DEFAULT"),
                    "{name}: a column that must be given: {statement:?}"
                );
            }
        }
    }
    assert!(read >= 8, "{read} migrations are not all");
}

/// The statements of a file, without comments, in one line each.
fn statements(sql: &str) -> Vec<String> {
    let code = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    let text = code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    text.split(';').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
