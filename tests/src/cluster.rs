//! A Postgres of the tests' own: the system's binaries on a temporary directory, spoken to over a Unix socket.
//!
//! Making one takes seconds, so all tests of a run share one and have a database each. nextest runs each test in
//! a process of its own: the one that comes first makes the cluster, under a file lock that the others wait for.
//! A guardian process outside of the tests ends the cluster and deletes its files as soon as the run is over,
//! however it ends.

// The planner's own tests take this file in as a module of theirs, and each uses a part of it. Clippy knows tests by
// their attribute, which helpers of theirs lack.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc)]

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A cluster, which lives as long as the process that it was made for.
#[derive(Debug)]
pub struct Cluster {
    home: PathBuf,
    /// Settings that differ from Postgres's own.
    settings: String,
    /// What the server finds in its environment beside the usual.
    environment: Vec<(String, String)>,
}

/// What a crash of the machine would lose is no matter to a test; what a crash of the server loses is.
const FOR_TESTS: &str = "-c fsync=off -c shared_buffers=32MB";

/// Ends when the owner does: `$1` is the owner's process, `$2` `pg_ctl`, `$3` the directory, and the rest runs a
/// command as the cluster's user.
const GUARDIAN: &str = r#"owner=$1 pg_ctl=$2 home=$3; shift 3
while kill -0 "$owner" 2>/dev/null; do sleep 0.2; done
"$@" "$pg_ctl" stop -D "$home/data" -m immediate -w
if mountpoint -q "$home"; then umount "$home"; fi
rm -rf "$home" "$home.lock""#;

impl Cluster {
    /// The cluster that the tests of this run share.
    pub fn shared() -> Self {
        // Under nextest the run is its process, which is the parent; else it is this one.
        let owner = match std::env::var_os("NEXTEST_RUN_ID") {
            Some(_) => std::os::unix::process::parent_id(),
            None => std::process::id(),
        };
        Self::of(owner, std::env::temp_dir().join(format!("rfork-test-pg-{owner}")), FOR_TESTS)
    }

    /// A cluster that a test may stop and start.
    pub fn private(name: &str) -> Self {
        Self::private_in(name, Vec::new())
    }

    /// The same, of which the server has this in its environment, too.
    pub fn private_in(name: &str, environment: Vec<(String, String)>) -> Self {
        let owner = std::process::id();
        let home = std::env::temp_dir().join(format!("rfork-test-pg-{owner}-{name}"));
        Self::made(owner, home, FOR_TESTS, environment, None)
    }

    /// A cluster that follows another one, and takes no writes until it is promoted.
    pub fn standby_of(primary: &Self, name: &str) -> Self {
        let owner = std::process::id();
        let home = std::env::temp_dir().join(format!("rfork-test-pg-{owner}-{name}"));
        Self::made(owner, home, FOR_TESTS, Vec::new(), Some(primary))
    }

    /// A cluster whose disk is a small one of its own, in memory. `None` where this user may not make one.
    pub fn on_small_disk(name: &str, mebibytes: u32) -> Option<Self> {
        let owner = std::process::id();
        let home = std::env::temp_dir().join(format!("rfork-test-pg-{owner}-{name}"));
        std::fs::create_dir_all(&home).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(&home);
        let mounted = mount.stdin(Stdio::null()).stderr(Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            std::fs::remove_dir(&home).unwrap();
            return None;
        }
        Some(Self::of(owner, home, FOR_TESTS))
    }

    /// Takes all room that is left on the cluster's disk, until the file is deleted whose path this gives.
    pub fn fill_disk(&self) -> PathBuf {
        let path = self.home.join("filler");
        let mut file = File::create(&path).unwrap();
        let block = vec![1; 64 * 1024];
        // The last bytes, too, which are less than a block.
        for size in [block.len(), 4096, 1] {
            while std::io::Write::write_all(&mut file, &block[..size]).is_ok() {}
        }
        path
    }

    /// A cluster in this directory with the settings that Postgres comes with, which lose nothing: for
    /// measuring.
    pub fn durable(directory: &Path) -> Self {
        Self::of(std::process::id(), directory.join("postgres"), "")
    }

    /// Starts the server again, on this port of 127.0.0.1, too, where it takes only connections with TLS, by which it
    /// shows this certificate. Both are PEM.
    pub fn use_tls(&mut self, port: u16, certificate: &str, key: &str) {
        self.crash();
        let hba = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
        for (name, text) in [("server.crt", certificate), ("server.key", key), ("pg_hba.conf", hba)] {
            let path = self.data().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = other_user() {
                std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
            }
        }
        self.settings = format!("{FOR_TESTS} -c listen_addresses=127.0.0.1 -c port={port} -c ssl=on");
        self.start();
    }

    fn of(owner: u32, home: PathBuf, settings: &str) -> Self {
        Self::made(owner, home, settings, Vec::new(), None)
    }

    fn made(
        owner: u32,
        home: PathBuf,
        settings: &str,
        environment: Vec<(String, String)>,
        primary: Option<&Self>,
    ) -> Self {
        let mut lock = home.clone().into_os_string();
        lock.push(".lock");
        let cluster = Self { home, settings: settings.to_owned(), environment };
        let lock = File::options().create(true).truncate(false).write(true).open(lock);
        let lock = lock.unwrap();
        lock.lock().unwrap();
        if !cluster.home.join("ready").exists() {
            cluster.make(owner, primary);
        }
        cluster
    }

    fn make(&self, owner: u32, primary: Option<&Self>) {
        // Left by a run whose process had the same number. A disk of its own is a directory that stays.
        let _ = std::fs::remove_dir_all(&self.home);
        std::fs::create_dir_all(&self.home).unwrap();
        std::fs::set_permissions(&self.home, Permissions::from_mode(0o755)).unwrap();
        if let Some(user) = other_user() {
            std::os::unix::fs::chown(&self.home, Some(user.0), Some(user.1)).unwrap();
        }
        let data = self.data();
        let mut make = match primary {
            None => as_user(&binary("initdb")),
            Some(_) => as_user(&binary("pg_basebackup")),
        };
        make.arg("-D").arg(&data).arg("--no-sync");
        match primary {
            None => make.args([
                "--auth=trust",
                "--username=rfork",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ]),
            Some(primary) => make
                .args(["--write-recovery-conf", "--checkpoint=fast", "--username=rfork", "--host"])
                .arg(&primary.home),
        };
        succeed(&mut make);
        self.start();
        let user = as_user(Path::new("env"));
        let mut guardian = Command::new("setsid");
        guardian.args(["--fork", "sh", "-c", GUARDIAN, "guardian", &owner.to_string()]).arg(binary("pg_ctl"));
        guardian.arg(&self.home).arg(user.get_program()).args(user.get_args()).current_dir("/");
        guardian.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(guardian.status().unwrap().success());
        std::fs::write(self.home.join("ready"), b"").unwrap();
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The server's first process, the parent of all its others.
    pub fn process(&self) -> u32 {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// Starts the server, and waits until it serves.
    pub fn start(&self) {
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c max_connections=1000 {}",
            self.home.display(),
            self.settings
        );
        let log = self.home.join("log");
        let mut start = self.pg_ctl();
        start.args(["start", "-w", "-t", "60", "-o", &options, "-D"]).arg(self.data()).arg("-l").arg(log);
        succeed(&mut start);
    }

    /// What starts the server: as its user, and only then in its environment, which may be for no other.
    fn pg_ctl(&self) -> Command {
        let mut command = as_user(Path::new("env"));
        command.args(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(binary("pg_ctl"));
        command
    }

    /// Ends the server at once, as a crash does.
    pub fn crash(&self) {
        succeed(as_user(&binary("pg_ctl")).args(["stop", "-w", "-m", "immediate", "-D"]).arg(self.data()));
    }

    /// Ends the server at once and starts it again.
    pub fn restart(&self) {
        let mut restart = self.pg_ctl();
        succeed(restart.args(["restart", "-w", "-t", "60", "-m", "immediate", "-D"]).arg(self.data()));
    }

    /// Makes a cluster that follows another one take writes.
    pub fn promote(&self) {
        succeed(as_user(&binary("pg_ctl")).args(["promote", "-w", "-t", "60", "-D"]).arg(self.data()));
    }

    /// Where its socket is.
    pub fn socket(&self) -> &Path {
        &self.home
    }

    /// The URL of a database in it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=rfork", self.home.display())
    }

    /// Makes an empty database, and gives its URL.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut create = Command::new(binary("createdb"));
        create.args(["--strategy=file_copy", "--username=rfork", "--host"]).arg(&self.home).arg(&name);
        succeed(&mut create);
        self.url(&name)
    }
}

/// What an ordinary client of the database is told, a line a row.
///
/// # Errors
/// What the client or the server says.
pub fn sql(url: &str, statement: &str) -> Result<String, String> {
    sql_with(url, "", statement)
}

/// The same in a session that begins with these options.
///
/// # Errors
/// What the client or the server says.
pub fn sql_with(url: &str, options: &str, statement: &str) -> Result<String, String> {
    let mut client = Command::new(binary("psql"));
    client.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, url]).env("PGOPTIONS", options);
    let output = client.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Where a program of Postgres is: Debian keeps its servers' out of PATH.
fn binary(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

/// Whom servers run as when this is root, which Postgres refuses and others need not be: user and group.
pub fn other_user() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??))
    };
    Some(user("postgres").or_else(|| user("nobody")).unwrap())
}

/// A command as [`other_user`], if there is one.
pub fn as_user(program: &Path) -> Command {
    let mut command = match other_user() {
        None => Command::new(program),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
            command.arg(program);
            command
        }
    };
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// Runs a command to its end. Its output goes to a file, because a server that it starts keeps it open.
fn succeed(command: &mut Command) {
    let output = tempfile::tempfile().unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
    let status = command.status();
    let said = std::io::read_to_string({
        let mut output = output;
        std::io::Seek::rewind(&mut output).unwrap();
        output
    });
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs Postgres"));
    assert!(status.success(), "{command:?}: {status}\n{}", said.unwrap_or_default());
}
