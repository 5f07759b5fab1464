//! The demo's processes: this program again, with its log read line by line.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStderr, ChildStdin, Command};

/// How long a process may take to end by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a process may say nothing. Workers tell progress all the time, also while they wait.
const SILENCE_DEADLINE: Duration = Duration::from_mins(15);
/// Lines that are kept to explain an early end.
const KEPT_LINES: usize = 20;

/// A log line in JSON.
pub(super) struct Line(Value);

impl Line {
    pub(super) fn message(&self) -> &str {
        self.0["message"].as_str().unwrap_or_default()
    }

    /// A field as text; empty when it is not there.
    pub(super) fn text(&self, field: &str) -> String {
        self.0[field].as_str().unwrap_or_default().to_owned()
    }

    /// A field as a count; 0 when it is not there.
    pub(super) fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_default()
    }

    /// A field as a count, if it is there.
    pub(super) fn count(&self, field: &str) -> Option<u64> {
        self.0[field].as_u64()
    }

    /// A field as a figure; 0 when it is not there.
    pub(super) fn float(&self, field: &str) -> f64 {
        self.0[field].as_f64().unwrap_or_default()
    }
}

/// A running process. It is killed when dropped, and it ends by itself when this process does, however that
/// ends, because its standard input then closes.
pub(super) struct Child {
    name: String,
    process: tokio::process::Child,
    lines: Lines<BufReader<ChildStderr>>,
    kept: VecDeque<String>,
    _stdin: Option<ChildStdin>,
}

impl Child {
    /// Starts this program with these arguments, and without the settings in this process's environment: the
    /// demo is the same whatever its user has set for real workers.
    pub(super) fn spawn(name: &str, arguments: &[&str], last: OsString) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file cannot be found")?;
        let mut command = Command::new(&program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RFORK_") || text.starts_with("MODEL_") {
                command.env_remove(&name);
            }
        }
        let mut process = command
            .args(["--end-with-stdin", "--log=info", "--log-format=json"])
            .args(arguments)
            .arg(last)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started from {}", program.display()))?;
        let stderr = process.stderr.take().context("standard error is not a pipe")?;
        Ok(Self {
            name: name.to_owned(),
            _stdin: process.stdin.take(),
            process,
            lines: BufReader::new(stderr).lines(),
            kept: VecDeque::new(),
        })
    }

    /// The next line of its log.
    pub(super) async fn next_line(&mut self) -> Result<Line> {
        loop {
            let line = tokio::time::timeout(SILENCE_DEADLINE, self.lines.next_line()).await;
            let line =
                line.with_context(|| format!("{} said nothing for {SILENCE_DEADLINE:?}", self.name))?;
            let Some(text) = line? else {
                let status = self.process.wait().await?;
                let said: Vec<&str> = self.kept.iter().map(String::as_str).collect();
                bail!("{} ended early ({status}); it said:\n{}", self.name, said.join("\n"));
            };
            let parsed = serde_json::from_str::<Value>(&text).ok();
            let level = parsed.as_ref().and_then(|line| line["level"].as_str()).unwrap_or("ERROR");
            if level != "INFO" {
                if self.kept.len() == KEPT_LINES {
                    self.kept.pop_front();
                }
                self.kept.push_back(text.clone());
            }
            if let Some(line) = parsed {
                return Ok(Line(line));
            }
        }
    }

    /// Reads on until it says `message`.
    pub(super) async fn wait_for(&mut self, message: &str) -> Result<Line> {
        loop {
            let line = self.next_line().await?;
            if line.message() == message {
                return Ok(line);
            }
        }
    }

    /// Asks it to end, and waits until it has; kills it if that takes too long.
    pub(super) async fn stop(mut self) {
        if let Some(id) = self.process.id().and_then(|id| i32::try_from(id).ok())
            && let Some(id) = rustix::process::Pid::from_raw(id)
        {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        // Its log is read to the end, so that it never blocks on a full pipe.
        let drained = async {
            while let Ok(Some(_)) = self.lines.next_line().await {}
            self.process.wait().await
        };
        if tokio::time::timeout(STOP_DEADLINE, drained).await.is_err() {
            eprintln!("{} did not end within {STOP_DEADLINE:?} and is killed", self.name);
        }
    }
}
