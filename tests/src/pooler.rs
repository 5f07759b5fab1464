//! A pgbouncer of a test's own before a cluster, with the configuration of `docs/pgbouncer.ini`.

// The planner's own tests take this file in, too, beside that of the cluster.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc)]

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::cluster::{Cluster, as_user, other_user};

/// The configuration that people are told.
const DOCUMENTED: &str = include_str!("../../docs/pgbouncer.ini");

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(300);

/// The first version that keeps prepared statements.
const KEEPS_STATEMENTS: (u32, u32) = (1, 21);

/// The installed pgbouncer: Debian keeps it out of most users' PATH.
fn installed() -> PathBuf {
    let debian = Path::new("/usr/sbin/pgbouncer");
    if debian.exists() { debian } else { Path::new("pgbouncer") }.to_owned()
}

/// A pgbouncer that keeps prepared statements: the one that `RFORK_TEST_PGBOUNCER` names, or the installed one, if it is
/// new enough.
pub fn that_keeps_statements() -> Option<PathBuf> {
    let named = std::env::var_os("RFORK_TEST_PGBOUNCER").filter(|path| !path.is_empty());
    let program = named.map_or_else(installed, PathBuf::from);
    let told = Command::new(&program).arg("--version").output().ok()?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let number = told.lines().next()?.split(' ').nth(1)?;
    let mut parts = number.split('.').map_while(|part| part.parse().ok());
    (parts.next()?, parts.next()?).ge(&KEEPS_STATEMENTS).then_some(program)
}

/// A pooler. Killed when dropped.
#[derive(Debug)]
pub struct Pooler {
    process: Child,
    address: String,
    _directory: TempDir,
}

impl Pooler {
    /// Starts the installed one before the cluster, with settings that differ from the documented ones: lines of its
    /// section.
    pub fn before(cluster: &Cluster, settings: &str) -> Self {
        Self::of(&installed(), cluster, settings)
    }

    /// The same with this program.
    pub fn of(program: &Path, cluster: &Cluster, settings: &str) -> Self {
        let address = format!("127.{}.{}.{}", fastrand::u8(1..=254), fastrand::u8(..), fastrand::u8(1..=254));
        let mut text = DOCUMENTED.to_owned();
        for (documented, ours) in [
            (
                "rfork = host=db.example port=5432",
                format!("* = host={} user=rfork", cluster.socket().display()),
            ),
            ("listen_addr = *", format!("listen_addr = {address}")),
            ("auth_type = scram-sha-256", "auth_type = any".into()),
            ("auth_file = /etc/pgbouncer/userlist.txt", "unix_socket_dir =".into()),
        ] {
            assert_eq!(text.matches(documented).count(), 1, "'{documented}' in docs/pgbouncer.ini");
            text = text.replace(documented, &ours);
        }
        let directory = TempDir::with_prefix("rfork-test-pooler-").unwrap();
        // The other user need not come where it was built.
        let mut program = program.to_owned();
        if program != installed() {
            let copy = directory.path().join("pgbouncer");
            std::fs::copy(&program, &copy).unwrap();
            program = copy;
        }
        let file = directory.path().join("pgbouncer.ini");
        // The last of two lines about one setting counts.
        std::fs::write(&file, format!("{text}\n{settings}\n")).unwrap();
        for path in [directory.path(), &file] {
            if let Some((user, group)) = other_user() {
                chown(path, Some(user), Some(group)).unwrap();
            }
        }
        let mut command = as_user(&program);
        command.arg("--quiet").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let process =
            command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
        let mut pooler = Self { process, address: format!("{address}:6432"), _directory: directory };
        let begun = Instant::now();
        while TcpStream::connect(&pooler.address).is_err() {
            assert_eq!(pooler.process.try_wait().unwrap(), None, "{command:?} has ended");
            assert!(begun.elapsed() < PATIENCE, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        pooler
    }

    /// The URL of a database behind it, by the one that leads to the cluster itself.
    pub fn url(&self, direct: &str) -> String {
        let database = direct.trim_start_matches("postgres:///").split('?').next().unwrap();
        format!("postgres://rfork@{}/{database}", self.address)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
