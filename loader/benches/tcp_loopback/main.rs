//! What the TCP engine costs beside a bare write/read loop, over loopback, between two processes.
//!
//! `cargo bench -p rfork-loader --bench tcp_loopback [-- --json]`. The method, and results, are in
//! `docs/tcp-engine.md`. In each round this process starts a seed, a reader that measures, and a reader for its peak
//! memory alone. Sizes come from the environment, see [`Setup`].

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use rfork_loader::chunks::ChunkPlan;
use rfork_loader::digest::{Digest, DigestAlgorithm};
use rfork_loader::engine::memory::Content;
use rfork_loader::engine::tcp::TcpOptions;
use rfork_protocol::manifest::content::{ChunkDigests, content_id};
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};
use rfork_tls::certificate::KeyHash;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use model::ModelFile;

mod beside;
mod engines;
mod fresh;
mod model;
mod reader;
mod report;
mod seed;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tells a process that this one started which part it plays.
const ROLE: &str = "RFORK_BENCH_ROLE";
/// Set for the processes that this one starts, so that their large allocations have huge pages as
/// `WeightMemory` has, and the bare loop is not held back by small ones.
const HUGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

fn main() -> Result<()> {
    let setup = Setup::from_environment()?;
    match std::env::var(ROLE).as_deref() {
        Ok("seed") => seed::run(&setup),
        Ok("reader") => answer(&reader::measure(&setup, &read_line(std::io::stdin().lock())?)?),
        Ok("fresh reader") => answer(&reader::peak_memory(&setup, &read_line(std::io::stdin().lock())?)?),
        _ => {
            let model = ModelFile::write(&setup)?;
            let rounds: Result<Vec<Round>> = (0..setup.rounds).map(|_| Round::run(&setup, &model)).collect();
            let report = report::Report::new(&setup, &rounds?);
            if std::env::args().any(|arg| arg == "--json") {
                answer(&report)
            } else {
                print!("{report}");
                Ok(())
            }
        }
    }
}

/// One run of everything.
struct Round {
    runs: reader::Runs,
    /// The peak memory of a reader that does nothing else, in bytes.
    peak_bytes: u64,
    /// Seconds; `None` when it is not installed.
    iperf3: Option<f64>,
}

impl Round {
    /// Runs in new processes: where in the machine's memory a buffer lies makes a difference of up to a third,
    /// for as long as the buffer lives, and must not decide every round alike.
    fn run(setup: &Setup, model: &ModelFile) -> Result<Self> {
        let (mut seed, address) = Role::start(setup, model, "seed")?.answer::<SeedAddress>()?;
        let runs = Role::ask(setup, model, "reader", &address)?;
        let peak_bytes = Role::ask(setup, model, "fresh reader", &address)?;
        drop(seed.stdin.take());
        seed.child.wait()?;
        Ok(Self { runs, peak_bytes, iperf3: beside::iperf3(setup)? })
    }
}

/// How much is moved, and how often.
#[derive(Debug, Clone)]
struct Setup {
    /// `RFORK_BENCH_BYTES`: the model's size; 1 GiB.
    bytes: u64,
    /// `RFORK_BENCH_TENSORS`: its tensors; 400.
    tensors: u64,
    /// `RFORK_BENCH_ROUNDS`: runs of each kind, in turn; 7.
    rounds: usize,
    /// `RFORK_BENCH_STREAMS`, `RFORK_BENCH_WINDOW`: the engine's settings of these names; its defaults.
    options: TcpOptions,
}

impl Setup {
    fn from_environment() -> Result<Self> {
        // `cargo test --benches` runs this without `--bench`: then it only has to be seen to work.
        let in_earnest = std::env::args().any(|arg| arg == "--bench");
        let (bytes, rounds) = if in_earnest { (1 << 30, 7) } else { (16 << 20, 1) };
        let mut options = TcpOptions::new(Some("127.0.0.1"));
        options.streams = usize::try_from(number("STREAMS", options.streams as u64)?)?;
        options.window_bytes = number("WINDOW", options.window_bytes)?;
        let setup = Self {
            bytes: number("BYTES", bytes)?,
            tensors: number("TENSORS", 400)?,
            rounds: usize::try_from(number("ROUNDS", rounds)?)?,
            options,
        };
        let enough = setup.bytes >= setup.tensors * 2 * SMALL_TENSOR_BYTES;
        let right = enough && setup.tensors > 0 && setup.rounds > 0;
        right.then_some(setup).ok_or_else(|| "the benchmark needs a round, and 16 KiB a tensor".into())
    }

    /// Large tensors with a small one after every three, as transformers have norms and biases.
    fn tensor_bytes(&self) -> Vec<u64> {
        let small = self.tensors / 4;
        let large = self.tensors - small;
        let share = (self.bytes - small * SMALL_TENSOR_BYTES) / large;
        let mut sizes: Vec<u64> =
            (0..self.tensors).map(|at| if at % 4 == 3 { SMALL_TENSOR_BYTES } else { share }).collect();
        sizes[0] += self.bytes - sizes.iter().sum::<u64>();
        sizes
    }

    fn manifest(&self) -> Result<Manifest> {
        let tensor = |(at, count): (usize, u64)| Tensor {
            // In the order of their names, which is a manifest's.
            name: format!("tensor.{at:07}"),
            address: 0,
            count,
            element_bytes: 1,
            shape: Some(vec![count]),
            dtype: Some("int8".into()),
            format: Some(FORMAT_ND),
        };
        Ok(Manifest::new(self.tensor_bytes().into_iter().enumerate().map(tensor).collect())?)
    }

    /// Names bytes with these digests.
    fn content(&self, algorithm: DigestAlgorithm, digests: &[String]) -> Result<Content> {
        let digests = digests.iter().map(|digest| Digest::from_hex(algorithm, digest));
        let chunks = ChunkDigests {
            algorithm,
            chunk_bytes: ChunkPlan::new(&self.tensor_bytes())?.chunk_size(),
            digests: digests.collect::<Option<_>>().ok_or("a digest is none")?,
        };
        Ok(Content { id: content_id(&self.manifest()?, &chunks), chunks })
    }

    fn gib(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 30)
    }
}

const SMALL_TENSOR_BYTES: u64 = 8 << 10;

fn number(name: &str, default: u64) -> Result<u64> {
    let name = format!("RFORK_BENCH_{name}");
    match std::env::var(&name) {
        Ok(value) => {
            value.parse().map_err(|_| format!("{name} must be a whole number, not '{value}'").into())
        }
        Err(_) => Ok(default),
    }
}

/// What a seed tells its readers.
#[derive(Debug, Serialize, Deserialize)]
struct SeedAddress {
    /// Where the bare loop listens.
    bare: String,
    /// Where the engine listens.
    engine: String,
    /// Where the engine that speaks TLS listens.
    secured: String,
    /// The hash of that one's key.
    key: KeyHash,
    /// The digest of each chunk, by each algorithm.
    crc64nvme: Vec<String>,
    blake3: Vec<String>,
}

/// A process of this program in another part. It ends by itself when this one does: its standard input closes.
struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Role {
    fn start(setup: &Setup, model: &ModelFile, role: &str) -> Result<Self> {
        let (variable, path) = model.variable();
        let mut child = Command::new(std::env::current_exe()?)
            .env(ROLE, role)
            .env("RFORK_BENCH_BYTES", setup.bytes.to_string())
            .env("RFORK_BENCH_ROUNDS", setup.rounds.to_string())
            .env(HUGE_PAGES.0, HUGE_PAGES.1)
            .env(variable, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    fn answer<T: DeserializeOwned>(mut self) -> Result<(Self, T)> {
        let stdout = self.child.stdout.take().ok_or("a process was started without standard output")?;
        let value = read_line(BufReader::new(stdout))?;
        Ok((self, value))
    }

    fn ask<T: DeserializeOwned>(
        setup: &Setup,
        model: &ModelFile,
        role: &str,
        address: &SeedAddress,
    ) -> Result<T> {
        let mut reader = Self::start(setup, model, role)?;
        let mut stdin = reader.stdin.take().ok_or("a process was started without standard input")?;
        writeln!(stdin, "{}", serde_json::to_string(address)?)?;
        let (mut reader, value) = reader.answer()?;
        reader.child.wait()?;
        Ok(value)
    }
}

fn read_line<T: DeserializeOwned>(mut from: impl BufRead) -> Result<T> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if line.is_empty() {
        return Err("the other process ended without an answer; its error is above".into());
    }
    Ok(serde_json::from_str(&line)?)
}

fn answer(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
