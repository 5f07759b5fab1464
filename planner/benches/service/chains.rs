//! What workers ask of a planner that serve while they load: chains that are granted, renewed each second, healed and
//! completed. In a chain that is longer a worker must not cost more.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rfork_protocol::v2::{
    Acquire, Granted, Held, LEASES, LoadProgress, LoadingSeed, Name, RENEW, Register, Renew, Renewed, SEEDS,
    Stalled,
};
use rfork_protocol::{SeedIdentity, SeedKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::child::{Role, Server};
use crate::cluster::Cluster;
use crate::machine::{Processes, Used};
use crate::measure;
use crate::options::Options;
use crate::rows::StoreKind;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Workers of all chains together, at least.
const WORKERS: u32 = 1_000;
/// How often each renews its lease, and tells how far it is.
const PERIOD: Duration = Duration::from_secs(1);
/// How long renewals are measured.
const MEASURED: Duration = Duration::from_secs(20);
/// How long a relay is silent before its reader asks for its place: longer than three periods.
const SILENT: Duration = Duration::from_secs(5);
/// As long as workers wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const TOTAL_BYTES: u64 = 1 << 40;
const BYTES_PER_MS: u64 = 1 << 20;
const INCARNATION: &str = "1";
const CONTENT: &str = "x";

/// Chains of one length, and what they took. Times are medians, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    store: StoreKind,
    length: u32,
    workers: u32,
    renewals_per_sec: f64,
    renewal_p99_ms: f64,
    planner_processors: f64,
    database_processors: f64,
    grant_ms: f64,
    heal_ms: f64,
    complete_ms: f64,
    share_of_others: f64,
}

/// Measures chains of each length on each store.
///
/// # Errors
/// At a wrong answer, and when something that is needed is missing.
pub(crate) fn all(options: &Options) -> Result<Vec<Row>> {
    let directory = measure::directory()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for &store in options.stores() {
        for &length in &options.chain {
            eprintln!("{store}: chains of {length}");
            rows.push(runtime.block_on(measure(directory.path(), store, length))?);
        }
    }
    Ok(rows)
}

async fn measure(directory: &Path, store: StoreKind, length: u32) -> Result<Row> {
    let home = tempfile::TempDir::with_prefix_in("chains-", directory)?;
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let cluster = (store == StoreKind::Postgres).then(|| Cluster::durable(home.path()));
    let database = match &cluster {
        Some(cluster) => cluster.database(),
        None => format!("sqlite://{}/planner.db", home.path().display()),
    };
    let planner = Server::start(&Role::PlannerOfFleet(database))?;
    let processes = Processes { planner: planner.id(), database: cluster.as_ref().map(Cluster::process) };
    let chains = WORKERS.div_ceil(length);

    let mut tasks = JoinSet::new();
    for number in 0..chains {
        let chain = Chain::new(number, length, TcpStream::connect(planner.address).await?)?;
        tasks.spawn(chain.grow());
    }
    let (mut grown, mut grants) = (Vec::new(), Vec::new());
    while let Some(chain) = tasks.join_next().await {
        let (chain, took) = chain??;
        grown.push(chain);
        grants.extend(took);
    }
    let begun = Instant::now();
    let renewals = Arc::<Mutex<Vec<Duration>>>::default();
    for chain in grown.drain(..) {
        tasks.spawn(chain.renew(begun, begun + MEASURED, renewals.clone(), None));
    }
    let before = processes.used()?;
    let mut renewed = finish(&mut tasks).await?;
    let used: Used = processes.used()?.since(&before);
    let seconds = begun.elapsed().as_secs_f64();
    let took = std::mem::take(&mut *renewals.lock().unwrap_or_else(PoisonError::into_inner));

    // A relay in the middle of each falls silent, and its reader asks for its place.
    let begun = Instant::now();
    for (chain, _) in renewed.drain(..) {
        tasks.spawn(chain.renew(begun, begun + SILENT, Arc::default(), Some(length / 2)));
    }
    let mut silent = finish(&mut tasks).await?;
    for (chain, _) in silent.drain(..) {
        tasks.spawn(chain.heal(length / 2));
    }
    let mut healed = finish(&mut tasks).await?;
    let heals: Vec<Duration> = healed.iter().flat_map(|(_, took)| took.clone()).collect();
    for (chain, _) in healed.drain(..) {
        tasks.spawn(chain.complete(length / 2));
    }
    let completions: Vec<Duration> =
        finish(&mut tasks).await?.into_iter().flat_map(|(_, took)| took).collect();
    Ok(Row {
        store,
        length,
        workers: chains * length,
        renewals_per_sec: took.len() as f64 / seconds,
        renewal_p99_ms: at(took, 99),
        planner_processors: used.planner / seconds,
        database_processors: used.database / seconds,
        grant_ms: at(grants, 50),
        heal_ms: at(heals, 50),
        complete_ms: at(completions, 50),
        share_of_others: used.share_of_others(),
    })
}

type Done = Result<(Chain, Vec<Duration>), Failed>;

async fn finish(tasks: &mut JoinSet<Done>) -> Result<Vec<(Chain, Vec<Duration>)>> {
    let mut done = Vec::new();
    while let Some(chain) = tasks.join_next().await {
        done.push(chain??);
    }
    Ok(done)
}

/// The time within which so many of 100 were done, in milliseconds.
fn at(mut times: Vec<Duration>, percent: usize) -> f64 {
    times.sort_unstable();
    let place = times.len() * percent / 100;
    times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// A key, its complete seed, and workers that read one from the other.
struct Chain {
    number: u32,
    length: u32,
    key: SeedKey,
    stream: TcpStream,
    /// By worker: its lease.
    leases: Vec<Granted>,
    begun: Instant,
}

impl Chain {
    fn new(number: u32, length: u32, stream: TcpStream) -> Result<Self> {
        let key = SeedKey::from_text(&format!("chain {number}"))?;
        Ok(Self { number, length, key, stream, leases: Vec::new(), begun: Instant::now() })
    }

    /// Where a worker serves; 0 is the complete seed.
    fn identity(&self, worker: u32) -> Result<SeedIdentity, Failed> {
        let [_, high, middle, low] = (self.number * (self.length + 1) + worker).to_be_bytes();
        SeedIdentity::new(format!("10.{high}.{middle}.{low}"), 20_000, 0).map_err(wrong)
    }

    fn held(&self) -> Option<Held> {
        let elapsed_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let bytes = elapsed_ms.saturating_mul(BYTES_PER_MS) + 1;
        Some(Held { root: Name::cut(CONTENT)?, bytes })
    }

    fn loading(&self, worker: u32) -> Result<LoadingSeed, Failed> {
        Ok(LoadingSeed {
            seed: self.identity(worker)?,
            incarnation: name(INCARNATION)?,
            total_bytes: TOTAL_BYTES,
            held: None,
            starts_over: false,
            model_url: None,
            deploy_strategy: None,
            is_draft: None,
        })
    }

    async fn register(&mut self, worker: u32) -> Result<Duration, Failed> {
        let register = Register {
            seed: self.identity(worker)?,
            seed_key: self.key.clone(),
            model_url: None,
            deploy_strategy: None,
            is_draft: None,
            incarnation: Some(name(INCARNATION)?),
            instance_id: None,
            content_id: Some(name(CONTENT)?),
            origin: None,
            location: None,
        };
        Ok(ask::<Value>(&mut self.stream, SEEDS, &register).await?.1)
    }

    async fn grow(mut self) -> Result<(Self, Vec<Duration>), Failed> {
        self.register(0).await?;
        let mut times = Vec::new();
        for worker in 1..=self.length {
            let asks = Acquire { loading: Some(self.loading(worker)?), ..Acquire::of(self.key.clone()) };
            let (granted, took) = ask::<Granted>(&mut self.stream, LEASES, &asks).await?;
            if granted.seed != self.identity(worker - 1)? {
                return Err(Failed(format!("worker {worker} of a chain reads from {}", granted.seed)));
            }
            self.leases.push(granted);
            times.push(took);
        }
        Ok((self, times))
    }

    /// Each worker renews once a period until the end, over a connection of its own; but for one.
    async fn renew(
        self,
        begun: Instant,
        end: Instant,
        times: Arc<Mutex<Vec<Duration>>>,
        silent: Option<u32>,
    ) -> Done {
        let planner = self.stream.peer_addr().map_err(wrong)?;
        let chain = Arc::new(self);
        let mut renewing = JoinSet::new();
        for worker in (1..=chain.length).filter(|worker| Some(*worker) != silent) {
            let stream = TcpStream::connect(planner).await.map_err(wrong)?;
            renewing.spawn(chain.clone().renew_one(worker, stream, begun..end, times.clone()));
        }
        while let Some(renewed) = renewing.join_next().await {
            renewed.map_err(wrong)??;
        }
        let chain = Arc::into_inner(chain).ok_or_else(|| Failed("a worker still renews".into()))?;
        Ok((chain, Vec::new()))
    }

    async fn renew_one(
        self: Arc<Self>,
        worker: u32,
        mut stream: TcpStream,
        time: Range<Instant>,
        times: Arc<Mutex<Vec<Duration>>>,
    ) -> Result<(), Failed> {
        // Chains and workers spread over the period.
        let offset = PERIOD * ((worker * 7_919 + self.number * 104_729) % 1_000) / 1_000;
        let mut due = time.start + offset;
        while due < time.end {
            sleep_until(due).await;
            let granted = &self.leases[worker as usize - 1];
            let held = self.held();
            let arrived_bytes = held.as_ref().map_or(0, |held| held.bytes);
            let renew = Renew {
                lease_id: granted.lease_id.clone(),
                seed: granted.seed.clone(),
                loading: Some(LoadProgress { incarnation: name(INCARNATION)?, arrived_bytes, held }),
            };
            let (renewed, _) = ask::<Renewed>(&mut stream, RENEW, &renew).await?;
            if renewed.advice.is_some() {
                return Err(Failed(format!("worker {worker} is advised to {:?}", renewed.advice)));
            }
            times.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed());
            due += PERIOD;
        }
        Ok(())
    }

    /// The reader of a relay that is silent gets its place.
    async fn heal(mut self, relay: u32) -> Done {
        let reader = relay + 1;
        if relay == 0 || reader > self.length {
            return Ok((self, Vec::new()));
        }
        let lease = self.leases[reader as usize - 1].clone();
        let loading = LoadingSeed { held: self.held(), ..self.loading(reader)? };
        let stalled = Stalled { seed: lease.seed, lease_id: lease.lease_id, silent_ms: 5_000, lost: true };
        let asks =
            Acquire { loading: Some(loading), stalled: Some(stalled), ..Acquire::of(self.key.clone()) };
        let (granted, took) = ask::<Granted>(&mut self.stream, LEASES, &asks).await?;
        if granted.seed != self.identity(relay - 1)? {
            return Err(Failed(format!("the reader of a lost relay reads from {}", granted.seed)));
        }
        self.leases[reader as usize - 1] = granted;
        Ok((self, vec![took]))
    }

    /// All but the lost one have everything.
    async fn complete(mut self, lost: u32) -> Done {
        let mut times = Vec::new();
        for worker in (1..=self.length).filter(|worker| *worker != lost) {
            times.push(self.register(worker).await?);
        }
        Ok((self, times))
    }
}

/// Asks, and gives how long the answer took.
async fn ask<T: DeserializeOwned>(
    stream: &mut TcpStream,
    path: &str,
    request: &impl Serialize,
) -> Result<(T, Duration), Failed> {
    let body = serde_json::to_string(request).map_err(wrong)?;
    let asked = Instant::now();
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: planner\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = timeout(PATIENCE, exchange(stream, text.as_bytes())).await.map_err(wrong)?;
    let (is_right, body) = answer.map_err(wrong)?;
    let took = asked.elapsed();
    if !is_right {
        return Err(Failed(format!("{path}: a wrong answer: {}", String::from_utf8_lossy(&body))));
    }
    Ok((serde_json::from_slice(&body).map_err(wrong)?, took))
}

/// Sends a request and reads its answer: whether that is 200, and its body.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<(bool, Vec<u8>)> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(2_048);
    let head = loop {
        if let Some(end) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length =
        text.split("\r\n").find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.unwrap_or(0);
    while answer.len() < head + length {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((text.starts_with("http/1.1 200 "), answer.split_off(head)))
}

fn name(text: &str) -> Result<Name, Failed> {
    Name::cut(text).ok_or_else(|| Failed(format!("{text:?} is no name")))
}

fn wrong(error: impl fmt::Display) -> Failed {
    Failed(error.to_string())
}

/// A request that went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(String);

/// The table, as Markdown has it.
pub(crate) struct Table<'a>(pub(crate) &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| store | workers, in chains of | renewals/s | 99 % of them, ms | processors: planner | database | \
             a grant, ms | a heal | a completion | others |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        for row in self.0 {
            writeln!(
                f,
                "| {} | {}, {} | {:.0} | {:.1} | {:.3} | {:.3} | {:.2} | {:.2} | {:.2} | {:.0} % |",
                row.store,
                row.workers,
                row.length,
                row.renewals_per_sec,
                row.renewal_p99_ms,
                row.planner_processors,
                row.database_processors,
                row.grant_ms,
                row.heal_ms,
                row.complete_ms,
                row.share_of_others * 100.0,
            )?;
        }
        Ok(())
    }
}
