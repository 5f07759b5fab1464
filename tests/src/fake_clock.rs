//! A clock that a test sets, for processes that it starts: libfaketime shows it to them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

/// A clock, which is right until it is set.
#[derive(Debug)]
pub struct FakeClock {
    directory: TempDir,
    library: PathBuf,
}

impl FakeClock {
    /// One that is right.
    ///
    /// # Panics
    /// Where libfaketime is not installed.
    pub fn new() -> Self {
        let directories = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|directory| directory.path());
        let mut libraries = directories.map(|directory| directory.join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|library| library.exists()).expect("libfaketime; tests/run installs it");
        let directory = TempDir::with_prefix("rfork-test-clock-").unwrap();
        // Postgres runs as another user.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let clock = Self { directory, library };
        clock.set(0);
        clock
    }

    /// Sets it so many seconds ahead of the right time, or back. At once: nobody reads half of it.
    pub fn set(&self, ahead_sec: i64) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, format!("{ahead_sec:+}\n")).unwrap();
        std::fs::set_permissions(&new, Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("ahead")
    }

    /// The environment in which a process sees it. What has passed by the system's count is left alone.
    pub fn environment(&self) -> Vec<(String, String)> {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let variables = [
            ("LD_PRELOAD", path(self.library.clone())),
            ("FAKETIME_TIMESTAMP_FILE", path(self.file())),
            ("FAKETIME_NO_CACHE", "1".into()),
            // By its name in older and newer versions.
            ("DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_process_sees_how_it_is_set() {
        let clock = FakeClock::new();
        for ahead_sec in [0, -3_600, 365 * 24 * 3_600] {
            clock.set(ahead_sec);
            let shown = Command::new("date").arg("+%s").envs(clock.environment()).output().unwrap();
            let shown: i64 = String::from_utf8(shown.stdout).unwrap().trim().parse().unwrap();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            // However long it took to ask.
            assert!(
                (now.cast_signed() + ahead_sec).abs_diff(shown) < 600,
                "{shown} is not {ahead_sec} s ahead"
            );
        }
    }
}
