//! This program's other processes: planners, and the bare responder. Each serves on a port that it tells its
//! parent, and ends when the parent does: its standard input closes then.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rfork_planner::config::{DatabaseUrl, Settings};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::{Result, responder};

/// Tells a process which database it is the planner of, or [`NO_DATABASE`].
const DATABASE: &str = "RFORK_BENCH_DATABASE";
const NO_DATABASE: &str = "none";
/// There for a planner of a fleet.
const FLEET: &str = "RFORK_BENCH_FLEET";

/// Longer than all runs together: the load's heartbeats are a row of their own, and no seed may fall silent in
/// another one for want of them.
const HEARTBEAT_TTL: Duration = Duration::from_secs(6 * 3_600);

/// What a process is for.
pub(crate) enum Role {
    /// Of seeds that send no heartbeats but in rows of their own.
    Planner(String),
    /// Of seeds that send theirs.
    PlannerOfFleet(String),
    Responder,
}

impl Role {
    /// That which this process was started in; `None` for the one that a user started.
    pub(crate) fn of_this_process() -> Option<Self> {
        let database = std::env::var(DATABASE).ok()?;
        Some(match std::env::var(FLEET) {
            Ok(_) => Self::PlannerOfFleet(database),
            Err(_) if database == NO_DATABASE => Self::Responder,
            Err(_) => Self::Planner(database),
        })
    }

    pub(crate) fn play(self) -> Result<()> {
        match self {
            Self::Planner(database) => plan(&database, Some(HEARTBEAT_TTL)),
            Self::PlannerOfFleet(database) => plan(&database, None),
            Self::Responder => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                println!("{}", listener.local_addr()?);
                std::thread::spawn(move || {
                    if let Err(error) = responder::serve(&listener) {
                        eprintln!("the bare responder: {error}");
                    }
                });
                wait_for_the_parent();
                Ok(())
            }
        }
    }
}

/// A planner with the defaults that users have, capacity 1 among them.
fn plan(database: &str, heartbeat_ttl: Option<Duration>) -> Result<()> {
    log()?;
    let mut settings = Settings::of(database.parse::<DatabaseUrl>()?);
    settings.heartbeat_ttl = heartbeat_ttl.unwrap_or(settings.heartbeat_ttl);
    // Nobody is at the addresses of these seeds.
    settings.liveness_probe = false;
    if let Ok(sec) = std::env::var("RFORK_BENCH_HISTORY_SEC") {
        settings.history = Duration::from_secs(sec.parse()?);
    }
    // As the command has it.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // With room for as many who are not accepted yet as the command has.
        let listener = rfork_planner::serve::listen("127.0.0.1", 0).await?;
        println!("{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        std::thread::spawn({
            let stop = stop.clone();
            move || {
                wait_for_the_parent();
                stop.cancel();
            }
        });
        Ok(rfork_planner::run(settings, listener, stop).await?)
    })
}

/// Logs as the command does by default, to where nobody reads it: what logs and spans cost is in the figures.
fn log() -> Result<()> {
    let nowhere = File::options().write(true).open("/dev/null")?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(Mutex::new(nowhere)).with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(LevelFilter::INFO)).init();
    Ok(())
}

fn wait_for_the_parent() {
    // However it ends, the parent is gone.
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
}

/// Where a planner is from.
#[derive(Debug, Clone)]
pub(crate) enum Program {
    /// This program.
    Own,
    /// An `rfork` command, of another commit maybe.
    Command(PathBuf),
}

impl Program {
    /// Starts a planner of seeds that send no heartbeats but in rows of their own, and waits until it is ready.
    pub(crate) fn planner(&self, database: &str) -> Result<Server> {
        match self {
            Self::Own => Server::start(&Role::Planner(database.into())),
            Self::Command(rfork) => Server::command(rfork, database),
        }
    }
}

/// A process that serves. Dropped, it is told to end, and waited for.
pub(crate) struct Server {
    process: std::process::Child,
    /// Closed, it tells this program's own processes to end; a command is sent a signal.
    stdin: Option<ChildStdin>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(role: &Role) -> Result<Self> {
        let database = match role {
            Role::Planner(database) | Role::PlannerOfFleet(database) => database,
            Role::Responder => NO_DATABASE,
        };
        let mut command = Command::new(std::env::current_exe()?);
        if let Role::PlannerOfFleet(_) = role {
            command.env(FLEET, "1");
        }
        let mut process =
            command.env(DATABASE, database).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().ok_or("a process was started without standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse();
        let address = address.map_err(|_| "a process ended before it served; its error is above")?;
        let server = Self { process, stdin, address };
        if !matches!(role, Role::Responder) {
            opened(address)?;
        }
        Ok(server)
    }

    /// A planner of the command `rfork`, with the settings of [`plan`].
    fn command(rfork: &Path, database: &str) -> Result<Self> {
        // Free until the planner takes it, but for a moment.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new(rfork)
            .args(["planner", "--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--database-url", database, "--no-liveness-probe"])
            .args(["--heartbeat-ttl-sec", &HEARTBEAT_TTL.as_secs().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", rfork.display()))?;
        let mut server = Self { process, stdin: None, address };
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.process.try_wait()? {
                return Err(format!("{} planner ended with {status}", rfork.display()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        opened(address)?;
        Ok(server)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

/// Waits until a planner has opened its database: until then it is not ready.
fn opened(address: SocketAddr) -> Result<()> {
    loop {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: planner\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200 ") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stdin.take().is_none() {
            let process = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
            let _ =
                process.map(|process| rustix::process::kill_process(process, rustix::process::Signal::TERM));
        }
        // It has nobody else to tell.
        let _ = self.process.wait();
    }
}
