//! `rfork`, and what stands before it, as processes: their logs are read as they come, and they end with the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{Answer, request};
use crate::model::Model;
use crate::network::Network;
use crate::{DEADLINE, until};

/// The `rfork` program of this tree: the one that `RFORK_BIN` names, or else built if it is not up to date.
pub fn rfork() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("RFORK_BIN") {
        Some(program) => program.into(),
        None => built(&["--package", "rfork-cli", "--bin", "rfork"]).join("rfork"),
    })
}

/// An example of the loader's: beside the program that `RFORK_BIN` names, or else built if it is not up to date.
pub fn example(name: &str) -> PathBuf {
    let programs = match std::env::var_os("RFORK_BIN") {
        Some(_) => rfork().parent().unwrap().to_owned(),
        None => built(&["--package", "rfork-loader", "--example", name]),
    };
    programs.join("examples").join(name)
}

/// Builds a program; gives where programs of this build are.
fn built(what: &[&str]) -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--locked"])
        .args(what)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success(), "it does not build: {what:?}");
    // This test's own file is in `<target>/<profile>/deps`.
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(|deps| deps.parent()).unwrap().to_owned()
}

/// The `rfork` program of the last release. `tests/run` builds it from the release's tag, where there is one in the
/// history, and tells where it is by `RFORK_TEST_RELEASED`.
pub fn released_rfork() -> Option<PathBuf> {
    std::env::var_os("RFORK_TEST_RELEASED").map(PathBuf::from)
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Process {
    /// Starts `rfork` with these arguments, logging JSON.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_version(name, rfork(), arguments, &[])
    }

    /// The same in a network of its own.
    pub fn start_in(network: &Network, name: &str, arguments: &[&str]) -> Self {
        Self::start_command(name, network.command(rfork()), arguments, &[])
    }

    /// The same of another version of it.
    fn start_version(name: &str, rfork: &Path, arguments: &[&str], environment: &[(String, String)]) -> Self {
        Self::start_command(name, Command::new(rfork), arguments, environment)
    }

    fn start_command(
        name: &str,
        mut command: Command,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> Self {
        command.args(["--log-format=json", "--log=info,rfork_loader=debug"]).args(arguments);
        // Seeds of tests may stand at addresses where somebody is.
        command.env("RFORK_CFG_PROBE_NETWORKS", "127.0.0.0/8,::1/128");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::spawn(name, command.env_remove("RFORK_LOG"))
    }

    /// Starts another program, which logs to its standard error.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Self { name: name.to_owned(), child, log: Mutex::new(Log { lines, seen: Vec::new() }) }
    }

    /// Waits for a log line that `found` accepts; earlier lines count too.
    ///
    /// # Panics
    /// When the process ends without it, or it does not come within [`DEADLINE`].
    pub fn wait_until(&self, what: &str, found: impl Fn(&Value) -> bool) -> Value {
        let mut log = self.log.lock().unwrap();
        let Log { lines, seen } = &mut *log;
        if let Some(line) = seen.iter().find(|line| found(line)) {
            return line.clone();
        }
        let begun = Instant::now();
        loop {
            match lines.recv_timeout(DEADLINE.saturating_sub(begun.elapsed())) {
                Ok(line) => {
                    seen.push(line.clone());
                    if found(&line) {
                        return line;
                    }
                }
                Err(error) => {
                    let said: Vec<String> = seen.iter().map(ToString::to_string).collect();
                    let how =
                        if error == RecvTimeoutError::Timeout { "did not say" } else { "ended without" };
                    panic!("{} {how} {what}; it said:\n{}", self.name, said.join("\n"));
                }
            }
        }
    }

    /// Waits for a log line with this message.
    pub fn wait_for(&self, message: &str) -> Value {
        self.wait_until(message, |line| line["message"] == message)
    }

    /// Everything it has said until now.
    pub fn log(&self) -> Vec<Value> {
        let mut log = self.log.lock().unwrap();
        let Log { lines, seen } = &mut *log;
        seen.extend(lines.try_iter());
        seen.clone()
    }

    /// The log lines with this message.
    pub fn said(&self, message: &str) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// The last log line with this message.
    pub fn said_last(&self, message: &str) -> Option<Value> {
        let mut log = self.log.lock().unwrap();
        let Log { lines, seen } = &mut *log;
        seen.extend(lines.try_iter());
        seen.iter().rev().find(|line| line["message"] == message).cloned()
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Kills it, as kill -9 does, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let status = until(&format!("the end of {}", self.name), || self.child.try_wait().unwrap());
        // Excluded: what it said last is still on its way when its end is seen.
        let mut log = self.log.lock().unwrap();
        let Log { lines, seen } = &mut *log;
        let until = Instant::now() + DEADLINE;
        while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            seen.push(line);
        }
        status
    }

    /// Sends SIGTERM and waits until it has ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Sends SIGTERM and waits until it has ended, unless it has already or takes too long.
    pub(crate) fn try_terminate(&mut self) {
        let begun = Instant::now();
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
        }
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Not again what `wait_until` has shown, whose lock is poisoned then.
        if std::thread::panicking() && !self.log.is_poisoned() {
            let said: Vec<String> = self.log().iter().map(ToString::to_string).collect();
            eprintln!("--- {} said:\n{}", self.name, said.join("\n"));
        }
    }
}

/// A planner.
#[derive(Debug)]
pub struct Planner {
    /// The process.
    pub process: Process,
    /// Where it listens, as `127.0.0.1:1223`.
    pub address: String,
    /// Of a database that is its own.
    _directory: Option<TempDir>,
    database_url: String,
    flags: Vec<String>,
    program: PathBuf,
    environment: Vec<(String, String)>,
}

impl Planner {
    /// Starts one on a free port, with a database of its own and these flags besides.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_in(Vec::new(), flags)
    }

    /// The same, with this in its environment, too.
    pub fn start_in(environment: Vec<(String, String)>, flags: &[&str]) -> Self {
        let directory = TempDir::with_prefix("rfork-test-planner-").unwrap();
        let database_url = format!("sqlite:{}", directory.path().join("planner.db").display());
        let planner = Self::start_with(rfork(), &database_url, flags, environment);
        Self { _directory: Some(directory), ..planner }
    }

    /// Starts one on a free port, with this database and these flags besides.
    pub fn start_on(database_url: &str, flags: &[&str]) -> Self {
        Self::start_version(rfork(), database_url, flags)
    }

    /// Starts one of another version, such as [`released_rfork`], on a free port.
    pub fn start_version(program: &Path, database_url: &str, flags: &[&str]) -> Self {
        Self::start_with(program, database_url, flags, Vec::new())
    }

    fn start_with(
        program: &Path,
        database_url: &str,
        flags: &[&str],
        environment: Vec<(String, String)>,
    ) -> Self {
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let (process, address) = Self::run(program, database_url, &flags, &environment, "0");
        let (database_url, program) = (database_url.to_owned(), program.to_owned());
        Self { process, address, _directory: None, database_url, flags, program, environment }
    }

    fn run(
        program: &Path,
        database_url: &str,
        flags: &[String],
        environment: &[(String, String)],
        port: &str,
    ) -> (Process, String) {
        let mut arguments = vec!["planner", "--port", port, "--database-url", database_url];
        arguments.extend(flags.iter().map(String::as_str));
        let process = Process::start_version("planner", program, &arguments, environment);
        let address = process.wait_for("the planner listens")["address"].as_str().unwrap().to_owned();
        (process, address)
    }

    /// Kills it and starts it again, on the same port and database.
    pub fn kill_and_restart(&mut self) {
        self.process.kill();
        self.restart();
    }

    /// Starts it again after its end, on the same port and database.
    pub fn restart(&mut self) {
        let port = self.address.rsplit_once(':').unwrap().1.to_owned();
        (self.process, _) =
            Self::run(&self.program, &self.database_url, &self.flags, &self.environment, &port);
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it keeps what it knows.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// One request.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        request(&self.address, method, path, headers).unwrap()
    }

    /// What it knows.
    pub fn snapshot(&self) -> Value {
        self.request("GET", "/debug/snapshot", &[]).json()
    }
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub process: Process,
}

impl Worker {
    /// Starts one on this model and planner, with these flags besides.
    pub fn start(name: &str, model: &Model, planner_url: &str, flags: &[&str]) -> Self {
        Self::start_in(&[], name, model, planner_url, flags)
    }

    /// The same, with this in its environment, too.
    pub fn start_in(
        environment: &[(String, String)],
        name: &str,
        model: &Model,
        planner_url: &str,
        flags: &[&str],
    ) -> Self {
        let model = format!("--model={}", model.path().display());
        let url = format!("--rfork-scheduler-url={planner_url}");
        let mut arguments = vec![
            "worker",
            "--digest",
            "--progress-interval-ms=10",
            "--model-url=m",
            "--model-deploy-strategy-name=s",
            &model,
            &url,
        ];
        if !flags.iter().any(|flag| flag.starts_with("--rfork-seed-bind-host")) {
            arguments.push("--rfork-seed-bind-host=127.0.0.1");
        }
        arguments.extend(flags);
        Self { process: Process::start_version(name, rfork(), &arguments, environment) }
    }

    /// Waits until it serves.
    pub fn serving(&self) -> Serving {
        let line = self.process.wait_for("serving");
        let text = |field: &str| line[field].as_str().unwrap().to_owned();
        Serving { identity: text("identity"), address: text("url").replace("http://", ""), key: text("key") }
    }

    /// Waits until it can serve while it loads; gives its `ip:port:rank`.
    pub fn listens(&self) -> String {
        let line = self.process.wait_for("this worker serves what it holds while it loads");
        line["identity"].as_str().unwrap().to_owned()
    }

    /// Waits until it is loaded; gives what it says of that.
    pub fn loaded(&self) -> Loaded {
        let line = self.process.wait_for("loaded");
        let shares = self.process.said("a source gave its share");
        let share =
            |line: &Value| (line["source"].as_str().unwrap().to_owned(), line["bytes"].as_u64().unwrap());
        Loaded {
            source: line["source"].as_str().unwrap().to_owned(),
            bytes_from_seeds: line["bytes_from_seeds"].as_u64().unwrap(),
            digest: line["digest"].as_str().unwrap().to_owned(),
            shares: shares.iter().map(share).collect(),
        }
    }

    /// Waits until some bytes, but not all, came from a seed; gives that seed.
    pub fn reading_from_a_seed(&self) -> String {
        let line = self.process.wait_until("that bytes come from a seed", |line| {
            line["message"] == "progress"
                && line["phase"].as_str().is_some_and(|phase| phase.starts_with("loading from seed "))
                && line["held_bytes"].as_u64() > Some(0)
                && line["held_bytes"].as_u64() < line["total_bytes"].as_u64()
        });
        line["phase"].as_str().unwrap().replace("loading from seed ", "")
    }

    /// Chunk bytes that it has sent to readers whose connections have ended.
    pub fn served_bytes(&self) -> u64 {
        self.process.said("a reader was served").iter().map(|line| line["bytes"].as_u64().unwrap()).sum()
    }
}

/// Where a worker serves.
#[derive(Debug, Clone)]
pub struct Serving {
    /// `ip:port:rank`.
    pub identity: String,
    /// `ip:port` of its metadata service.
    pub address: String,
    /// Its seed key.
    pub key: String,
}

/// How a worker was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// `seed` or `storage`: what gave most.
    pub source: String,
    /// Bytes from seeds.
    pub bytes_from_seeds: u64,
    /// SHA-256 over what it holds.
    pub digest: String,
    /// Each source with the bytes that it gave.
    pub shares: Vec<(String, u64)>,
}
