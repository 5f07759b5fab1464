//! Networks of their own, in which processes see only the addresses that a test gives them. They need root.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::root::may;

/// A network namespace, with a file of host names of its own. It ends with its last process.
#[derive(Debug)]
pub struct Network {
    /// Holds it, and waits.
    holder: Child,
    hosts: TempDir,
}

impl Network {
    /// One in which there is loopback, with both families, and nothing else. `None`, with a line that says so, where that
    /// is not allowed.
    pub fn new() -> Option<Self> {
        if !may(&["unshare", "--net", "--mount", "ip", "link", "set", "lo", "up"]) {
            return None;
        }
        let hosts = TempDir::with_prefix("rfork-test-network-").unwrap();
        let file = hosts.path().join("hosts");
        std::fs::write(&file, "127.0.0.1 localhost\n").unwrap();
        let mount = format!(
            "mount --bind {} /etc/hosts && ip link set lo up && echo ready && exec sleep infinity",
            file.display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "--", "sh", "-c", &mount])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare is part of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let network = Self { holder, hosts };
        assert_eq!(line.trim(), "ready", "a network of its own");
        Some(network)
    }

    /// What names stand for there, as in `/etc/hosts`.
    pub fn names(&self, lines: &str) {
        std::fs::write(self.hosts.path().join("hosts"), lines).unwrap();
    }

    /// Runs a shell command there.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, command: &str) {
        let status = self.command(Path::new("sh")).args(["-ec", command]).status().unwrap();
        assert!(status.success(), "{command}: {status}");
    }

    /// A program that is to run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--target={}", self.holder.id()), "--net", "--mount", "--"]).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
