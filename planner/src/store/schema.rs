//! The schemas, and how far a database's is, by the migrations that it says it has.
//!
//! Versions of a release only add to a schema, so two that follow each other run on one at the same time. Before the
//! first release, and between two, a migration may be made anew: a database that has an earlier state of it has other
//! tables, and is refused.

use std::borrow::Cow;

use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Number, name and SQL of a file in `migrations/`.
type File = (i64, &'static str, &'static str);

const SQLITE: [File; 1] = [(1, "initial", include_str!("../../../migrations/sqlite/0001_initial.sql"))];
const POSTGRES: [File; 1] = [(1, "initial", include_str!("../../../migrations/postgres/0001_initial.sql"))];

/// The migrations of a SQLite file.
pub(super) fn sqlite() -> Migrator {
    migrator(&SQLITE)
}

/// The migrations of a Postgres database.
pub(super) fn postgres() -> Migrator {
    migrator(&POSTGRES)
}

/// Not by sqlx's macro: its crate would be compiled with both database drivers, SQLite's C code included, once more.
fn migrator(files: &[File]) -> Migrator {
    let migrations = files.iter().map(|(version, name, sql)| {
        let (name, sql) = (Cow::Borrowed(*name), SqlStr::from_static(sql));
        Migration::new(*version, name, MigrationType::Simple, sql, false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // A newer planner's.
    migrator.set_ignore_missing(true);
    migrator
}

/// What a database has of the migrations that this program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    /// All of them. It may have later ones, of a newer planner: they only add.
    Complete,
    /// Not all yet.
    Behind,
    /// Another one than ours under this number: it was made by a planner that was never released.
    Unreleased(i64),
}

impl Schema {
    /// `applied`: versions and checksums, as the database's list of migrations has them.
    pub(super) fn of(known: &Migrator, applied: &[(i64, Vec<u8>)]) -> Self {
        let ours = |version: i64, sum: &[u8]| {
            known.iter().any(|known| known.version == version && *known.checksum == *sum)
        };
        let newest = known.iter().map(|known| known.version).max().unwrap_or_default();
        let foreign = applied.iter().find(|(version, sum)| *version <= newest && !ours(*version, sum));
        match foreign {
            Some((version, _)) => Self::Unreleased(*version),
            None if known
                .iter()
                .all(|known| applied.iter().any(|(version, _)| *version == known.version)) =>
            {
                Self::Complete
            }
            None => Self::Behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(sql: &[(i64, &'static str)]) -> Migrator {
        migrator(&sql.iter().map(|(version, sql)| (*version, "m", *sql)).collect::<Vec<_>>())
    }

    #[test]
    fn every_file_is_built_in() {
        for (store, files) in [("sqlite", &SQLITE[..]), ("postgres", &POSTGRES[..])] {
            let directory =
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(store);
            let mut found: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap()).collect();
            found.sort_unstable_by_key(std::fs::DirEntry::file_name);
            assert_eq!(found.len(), files.len(), "{store}");
            for (file, (version, name, sql)) in found.iter().zip(files) {
                assert_eq!(file.file_name().to_str().unwrap(), format!("{version:04}_{name}.sql"));
                assert_eq!(std::fs::read_to_string(file.path()).unwrap(), *sql);
            }
        }
    }

    #[test]
    fn a_database_is_complete_or_behind_or_of_a_planner_that_was_never_released() {
        let (ours, next) = (known(&[(1, "a"), (3, "b")]), known(&[(1, "a"), (3, "b"), (4, "c")]));
        let all: Vec<(i64, Vec<u8>)> =
            next.iter().map(|known| (known.version, known.checksum.to_vec())).collect();
        assert_eq!(Schema::of(&ours, &[]), Schema::Behind);
        assert_eq!(Schema::of(&ours, &all[..1]), Schema::Behind);
        assert_eq!(Schema::of(&ours, &all[..2]), Schema::Complete);
        assert_eq!(Schema::of(&ours, &all), Schema::Complete, "a newer planner was here");
        assert_eq!(Schema::of(&next, &all[..2]), Schema::Behind, "an older one was");

        let other = vec![9; 48];
        assert_eq!(Schema::of(&ours, &[(1, other.clone())]), Schema::Unreleased(1));
        assert_eq!(Schema::of(&ours, &[all[0].clone(), (3, other.clone())]), Schema::Unreleased(3));
        // One that we have not, before our last: no release had it.
        assert_eq!(Schema::of(&ours, &[all[0].clone(), (2, other), all[1].clone()]), Schema::Unreleased(2));
    }
}
