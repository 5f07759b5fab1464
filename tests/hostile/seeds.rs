//! Attacks on a worker that serves: on its metadata service, and on its TCP engine.

use std::io::{Read as _, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rfork_protocol::frame::{ANSWER_BYTES, Answer, Hello, Read, VERSION, WELCOME_BYTES, Welcome};
use rfork_protocol::manifest::metadata::{HEALTH_PATH, Metadata};
use rfork_tests::DEADLINE;
use rfork_tests::http::{connect_from, request_from};
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;

use crate::attacks::{self, Attack};
use crate::limits::{open_files, peak_kib};

/// How often the well-behaved reader does what it does.
const ROUNDS: usize = 60;
/// The well-behaved reader's address, and the attacker's.
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 71, 0, 1);
const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 66, 6, 6);
/// The most memory that a worker with a model of 1 MiB may take, in KiB.
const MOST_KIB: u64 = 128 << 10;
/// Readers that idle: three times as many as a seed serves.
const IDLE: usize = 48;

/// A worker that serves, and what its readers know of it.
struct Seed {
    worker: Worker,
    _planner: Planner,
    service: String,
    key: String,
    engine: String,
    root: [u8; 32],
    /// The last chunk, and its size: a small one.
    last: (u32, usize),
}

impl Seed {
    fn start() -> Self {
        open_files();
        let (model, planner) =
            (Model::new(1, 1), Planner::start(&["--host=127.0.0.1", "--no-liveness-probe"]));
        let worker = Worker::start("seed", &model, &planner.url(), &[]);
        let serving = worker.serving();
        let info = request_from(HONEST, &serving.address, "GET", &info_path(&serving.key), &[]).unwrap();
        let metadata = Metadata::decode(&info.body).unwrap();
        let (engine, extension) = (metadata.session.clone(), metadata.extension.unwrap());
        let content = extension.root.content().unwrap().clone();
        let last = u32::try_from(content.chunks.digests.len()).unwrap() - 1;
        let bytes = metadata.manifest.total_bytes() - u64::from(last) * content.chunks.chunk_bytes;
        Self {
            worker,
            _planner: planner,
            service: serving.address,
            key: serving.key,
            engine,
            root: content.id.0,
            last: (last, usize::try_from(bytes).unwrap()),
        }
    }

    /// What a worker does that looks for this seed: it asks whether it lives and what it holds, and reads a chunk.
    fn honest_rounds(&self) -> Duration {
        let health = format!("{HEALTH_PATH}?seed_key={}", self.key);
        let mut took = Vec::new();
        for round in 0..ROUNDS {
            for path in [&health, &info_path(&self.key)] {
                let begun = Instant::now();
                let answer = request_from(HONEST, &self.service, "GET", path, &[]);
                took.push(begun.elapsed());
                assert_eq!(
                    answer.unwrap_or_else(|error| panic!("round {round}, {path}: {error}")).status,
                    200
                );
            }
            let begun = Instant::now();
            self.takes_the_last_chunk(HONEST).unwrap_or_else(|why| panic!("round {round}: {why}"));
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }

    /// Reads the last chunk; the connection goes on.
    fn takes_the_last_chunk(&self, from: Ipv4Addr) -> Result<TcpStream, String> {
        let (chunk, bytes) = self.last;
        let mut stream = connect_from(from, &self.engine).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let hello = Hello { version: VERSION, features: 0, root: self.root, identity: Vec::new() };
        let said = [hello.encode().unwrap(), Read::new(&[chunk]).unwrap().encode()].concat();
        stream.write_all(&said).map_err(|error| error.to_string())?;
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome).map_err(|error| format!("no welcome: {error}"))?;
        if let Some(refusal) = Welcome::decode(&welcome).unwrap().refusal {
            return Err(format!("{refusal:?}"));
        }
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).map_err(|error| format!("no answer: {error}"))?;
        assert_eq!(Answer::decode(&answer), Ok(Answer::Chunk { chunk, len_bytes: bytes as u64 }));
        stream.read_exact(&mut vec![0; bytes]).map_err(|error| format!("no bytes: {error}"))?;
        Ok(stream)
    }

    /// One line of the report, and the bound of memory.
    fn reports(&self, name: &str, harmless: Duration, attacked: Duration) {
        let kib = peak_kib(self.worker.process.pid());
        let (harmless_ms, attacked_ms) = (harmless.as_secs_f64() * 1e3, attacked.as_secs_f64() * 1e3);
        let bar = if attacked_ms <= 2.0 * harmless_ms + 20.0 { "met" } else { "missed" };
        println!("| {name} | {harmless_ms:.1} | {attacked_ms:.1} | {bar} | {} |", kib >> 10);
        assert!(kib < MOST_KIB, "{} MiB", kib >> 10);
    }
}

fn tried(attack: Attack, on: &str, address: fn(&Seed) -> &str) {
    let seed = Seed::start();
    let harmless = {
        let _running = attacks::HARMLESS.begin(&seed.service);
        seed.honest_rounds()
    };
    let attacked = {
        let _running = attack.begin(address(&seed));
        seed.honest_rounds()
    };
    seed.reports(&format!("{}, {on}", attack.name), harmless, attacked);
}

macro_rules! attacked {
    ($($name:ident: $attack:ident on $on:literal at $address:ident,)*) => {
        $(
            #[test]
            fn $name() {
                tried(attacks::$attack, $on, |seed| &seed.$address);
            }
        )*
    };
}

attacked! {
    silent_sockets_keep_nobody_from_a_seed_s_service: SILENT on "service" at service,
    slow_heads_keep_nobody_from_a_seed_s_service: SLOW_HEADS on "service" at service,
    connections_that_are_cut_off_keep_nobody_from_a_seed_s_service: STORM on "service" at service,
    silent_sockets_keep_nobody_from_a_seed_s_engine: SILENT on "engine" at engine,
    slow_greetings_keep_nobody_from_a_seed_s_engine: SLOW_GREETINGS on "engine" at engine,
    connections_that_are_cut_off_keep_nobody_from_a_seed_s_engine: STORM on "engine" at engine,
}

/// Each takes one small chunk, and keeps its connection.
#[test]
fn idle_readers_keep_nobody_from_a_seed_s_engine() {
    let seed = Seed::start();
    let harmless = {
        let _running = attacks::HARMLESS.begin(&seed.service);
        seed.honest_rounds()
    };
    let idle: Vec<_> = (0..IDLE).map_while(|_| seed.takes_the_last_chunk(HOSTILE).ok()).collect();
    assert!(idle.len() >= 16, "{} readers idle", idle.len());
    // What they took pays for a few milliseconds, which this takes.
    rfork_tests::until("the first place", || seed.takes_the_last_chunk(HONEST).ok());
    let attacked = seed.honest_rounds();
    seed.reports("idle readers, engine", harmless, attacked);
}
