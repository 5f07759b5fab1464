//! What a fleet of so many ranks asks of its planners, at the rate at which it asks: nothing is scaled.
//!
//! Each rank is a task. It registers and sends a heartbeat every 30 s, as workers do. Then a tenth more ranks start
//! within 10 s: each asks for a seed of its key, reads for 25 s, renews its lease meanwhile, gives it back, and is a seed
//! from then on. A request's time counts from when it was due, so none hides behind a late one before it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use crate::child::{Role, Server};
use crate::cluster::{self, Cluster};
use crate::fleet_report::{Ask, Row, Times};
use crate::machine::{self, Processes, Used};
use crate::options::Options;
use crate::population::{self, Population};
use crate::rows::StoreKind;
use crate::{Result, answer, measure};

/// Between two heartbeats of a rank.
const BEAT: Duration = Duration::from_secs(30);
/// Two heartbeats of each rank, and the scale-out.
const MEASURED: Duration = Duration::from_secs(60);
/// One more rank starts for so many that there are.
const SCALE_OUT: u32 = 10;
/// They start within this.
const ARRIVAL: Duration = Duration::from_secs(10);
/// A lease is renewed after a third of its time.
const RENEWAL: Duration = Duration::from_secs(20);
/// And given back after this.
const TRANSFER: Duration = Duration::from_secs(25);
/// After a request for a seed that was not answered, or answered 503.
const RETRY: Duration = Duration::from_secs(1);
/// As long as workers wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests under way at once. When planners are behind, more wait here, where nothing but memory bounds them; their time
/// counts all the same.
const AT_ONCE: usize = 4_096;
/// Keys at most; each has at least ten seeds.
const MAX_KEYS: u32 = 1_000;

/// Measures fleets of each size on each store.
///
/// # Errors
/// At a wrong answer, and when something that is needed is missing. Answers that do not come are counted.
pub(crate) fn all(options: &Options) -> Result<Vec<Row>> {
    let directory = measure::directory()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for &store in options.stores() {
        for &ranks in &options.fleet {
            eprintln!("{store}: {ranks} ranks");
            rows.push(runtime.block_on(measure(options, directory.path(), store, ranks))?);
        }
    }
    Ok(rows)
}

async fn measure(options: &Options, directory: &Path, store: StoreKind, ranks: u32) -> Result<Row> {
    // Each size has a database server of its own, so that none pays for what another one left.
    let home = tempfile::TempDir::with_prefix_in("fleet-", directory)?;
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let cluster = (store == StoreKind::Postgres).then(|| Cluster::durable(home.path()));
    let database = match &cluster {
        Some(cluster) => cluster.database(),
        None => format!("sqlite://{}/planner.db", home.path().display()),
    };
    let replicas = if cluster.is_some() { options.replicas } else { 1 };
    let planners: Result<Vec<Server>> =
        (0..replicas).map(|_| Server::start(&Role::PlannerOfFleet(database.clone()))).collect();
    let planners = planners?;
    let processes = |planner: &Server| Processes {
        planner: planner.id(),
        database: cluster.as_ref().map(Cluster::process),
    };
    let used = || planners.iter().map(|planner| processes(planner).used()).collect::<Result<Vec<Used>>>();
    let memory = || {
        let peaks: Result<Vec<u64>> =
            planners.iter().map(|planner| machine::peak_memory_bytes(planner.id())).collect();
        peaks.map(|peaks| peaks.into_iter().max().unwrap_or(0))
    };
    let memory_at_start_bytes = memory()?;

    let more = ranks / SCALE_OUT;
    let begun = Instant::now();
    let fleet = Arc::new(Fleet {
        planners: planners.iter().map(|planner| planner.address).collect(),
        population: Population::new(ranks + more, (ranks / 10).clamp(1, MAX_KEYS)),
        keep: options.fleet_keeps_connections(),
        measured: begun + BEAT,
        end: begun + BEAT + MEASURED,
        room: Semaphore::new(AT_ONCE),
        times: Mutex::default(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for rank in 0..ranks {
        tasks.spawn(Rank::new(&fleet, rank).be_a_seed(begun + BEAT * rank / ranks));
    }
    for at in 0..more {
        tasks.spawn(Rank::new(&fleet, ranks + at).start(fleet.measured + ARRIVAL * at / more));
    }
    sleep_until(fleet.measured).await;
    eprintln!("all have begun");
    let before = used()?;
    sleep_until(fleet.end).await;
    let since: Vec<Used> = used()?.iter().zip(&before).map(|(now, then)| now.since(then)).collect();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let times = std::mem::take(&mut *fleet.times.lock().unwrap_or_else(PoisonError::into_inner));
    let planner_sec: f64 = since.iter().map(|used| used.planner).sum();
    Ok(Row {
        store,
        ranks,
        replicas,
        requests_per_sec: times.requests() as f64 / MEASURED.as_secs_f64(),
        planner_processors: planner_sec / MEASURED.as_secs_f64(),
        database_processors: since[0].database / MEASURED.as_secs_f64(),
        // Of all planners, the first's own time is not that of others.
        share_of_others: since[0].share_of_others_but(planner_sec),
        memory_at_start_bytes,
        memory_bytes: memory()?,
        database_bytes: match &cluster {
            Some(_) => {
                let size = cluster::sql(&database, "SELECT pg_database_size(current_database())")?;
                size.trim().parse()?
            }
            None => files_bytes(home.path())?,
        },
        times,
    })
}

/// What a SQLite database takes, with its log.
fn files_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in std::fs::read_dir(directory)? {
        bytes += file?.metadata()?.len();
    }
    Ok(bytes)
}

/// What all ranks share.
struct Fleet {
    planners: Vec<SocketAddr>,
    population: Population,
    keep: bool,
    measured: Instant,
    end: Instant,
    room: Semaphore,
    times: Mutex<Times>,
}

/// One rank of a worker.
struct Rank {
    fleet: Arc<Fleet>,
    number: u32,
    connection: Option<TcpStream>,
}

impl Rank {
    fn new(fleet: &Arc<Fleet>, number: u32) -> Self {
        Self { fleet: fleet.clone(), number, connection: None }
    }

    /// Registers at `due`, then beats until the end.
    async fn be_a_seed(mut self, mut due: Instant) -> std::result::Result<(), Failed> {
        let fleet = self.fleet.clone();
        while due < fleet.end {
            self.ask(Ask::Heartbeat, due, &fleet.population.registrations[self.number as usize]).await?;
            due += BEAT;
        }
        Ok(())
    }

    /// Starts at `due`: reads from a seed, and becomes one.
    async fn start(mut self, mut due: Instant) -> std::result::Result<(), Failed> {
        let fleet = self.fleet.clone();
        let key = self.number % fleet.population.keys();
        let answer = loop {
            let answer = self.ask(Ask::Seed, due, &fleet.population.questions[key as usize]).await?;
            match answer {
                Some(answer) => break answer,
                None => due = Instant::now() + RETRY,
            }
        };
        let lease = answer::lease(&answer).and_then(|lease| {
            fleet.population.granted(&lease, key)?;
            let of = |path| population::of_lease(path, &lease);
            Ok((of("/renew_seed_lease"), of("/put_seed")))
        });
        let (renew, release) = lease.map_err(|error| Failed(error.to_string()))?;
        let granted = Instant::now();
        self.ask(Ask::Lease, granted + RENEWAL, &renew).await?;
        self.ask(Ask::Lease, granted + TRANSFER, &release).await?;
        self.be_a_seed(granted + TRANSFER).await
    }

    /// Asks at `due`; the answer, or nothing when the planner has no room, or none came.
    async fn ask(
        &mut self,
        ask: Ask,
        due: Instant,
        request: &[u8],
    ) -> std::result::Result<Option<Vec<u8>>, Failed> {
        sleep_until(due).await;
        let fleet = self.fleet.clone();
        // With kept connections each rank has one in any case.
        let _room = fleet.room.acquire().await;
        let answer = match timeout(PATIENCE, self.exchange(request)).await {
            Ok(Ok(answer)) => answer,
            // As workers do, it asks anew in its time.
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        let right = answer.starts_with(b"HTTP/1.1 200 ");
        if !right && !answer.is_empty() && !answer.starts_with(b"HTTP/1.1 503 ") {
            return Err(Failed(format!("a wrong answer: {}", String::from_utf8_lossy(&answer))));
        }
        if (fleet.measured..fleet.end).contains(&due) {
            let took = due.elapsed();
            fleet.times.lock().unwrap_or_else(PoisonError::into_inner).add(ask, right.then_some(took));
        }
        Ok(right.then_some(answer))
    }

    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let fleet = &self.fleet;
        let planner = fleet.planners[self.number as usize % fleet.planners.len()];
        let mut stream = match self.connection.take() {
            Some(stream) => stream,
            None => TcpStream::connect(planner).await?,
        };
        stream.write_all(request).await?;
        let mut answer = Vec::with_capacity(512);
        // Right answers are heads alone; what follows another one is not read.
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.connection = fleet.keep.then_some(stream);
        Ok(answer)
    }
}

/// A request that went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);
