//! Attacks on a worker that serves: on its metadata service, and on its TCP engine.

use std::io::{Read as _, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rfork_protocol::frame::{
    ANNOUNCEMENT_BYTES, ANNOUNCEMENTS, ANSWER_BYTES, Answer, Hello, Read, VERSION, WELCOME_BYTES, Welcome,
};
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
pub(crate) const HONEST: Ipv4Addr = Ipv4Addr::new(127, 71, 0, 1);
pub(crate) const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 66, 6, 6);
/// The most memory that a worker with a small model may take, in KiB.
const MOST_KIB: u64 = 128 << 10;
/// Readers that idle: three times as many as a seed serves.
const IDLE: usize = 48;

/// A worker that serves, and what its readers know of it.
pub(crate) struct Seed {
    pub(crate) worker: Worker,
    _planner: Planner,
    service: String,
    key: String,
    pub(crate) engine: String,
    root: [u8; 32],
    /// The last chunk, and its size: a small one.
    pub(crate) last: (u32, usize),
}

impl Seed {
    pub(crate) fn start() -> Self {
        open_files();
        let (model, planner) =
            (Model::new(1, 1), Planner::start(&["--host=127.0.0.1", "--no-liveness-probe"]));
        let worker = Worker::start("seed", &model, &planner.url(), &[]);
        let serving = worker.serving();
        let info = request_from(HONEST, &serving.address, "GET", &info_path(&serving.key), &[]).unwrap();
        Self::of((worker, planner), (serving.address, serving.key), &info.body)
    }

    /// The one of this key whose service is there and tells this.
    pub(crate) fn of(
        (worker, planner): (Worker, Planner),
        (service, key): (String, String),
        told: &[u8],
    ) -> Self {
        let metadata = Metadata::decode(told).unwrap();
        let (engine, extension) = (metadata.session.clone(), metadata.extension.unwrap());
        let content = extension.root.content().unwrap().clone();
        let last = u32::try_from(content.chunks.digests.len()).unwrap() - 1;
        let bytes = metadata.manifest.total_bytes() - u64::from(last) * content.chunks.chunk_bytes;
        Self {
            worker,
            _planner: planner,
            service,
            key,
            engine,
            root: content.id.hash,
            last: (last, usize::try_from(bytes).unwrap()),
        }
    }

    /// How long it all takes beside harmless requests.
    pub(crate) fn harmless(&self) -> Duration {
        let _running = attacks::HARMLESS.begin(&self.service);
        self.honest_rounds()
    }

    /// What a worker does that looks for this seed: it asks whether it lives and what it holds, and reads a chunk. Gives how
    /// long 99 of 100 of these took at most.
    pub(crate) fn honest_rounds(&self) -> Duration {
        self.rounds(|seed| seed.takes_the_last_chunk(HONEST).and_then(finished))
    }

    /// The same without the chunk.
    pub(crate) fn honest_requests(&self) -> Duration {
        self.rounds(|_| Ok(()))
    }

    /// The same, and it begins to hear what the seed holds instead.
    pub(crate) fn honest_followers(&self) -> Duration {
        self.rounds(|seed| seed.follows(HONEST).and_then(finished))
    }

    fn rounds(&self, reads: impl Fn(&Self) -> Result<(), String>) -> Duration {
        let health = format!("{HEALTH_PATH}?seed_key={}", self.key.replace('$', "%24"));
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
            reads(self).unwrap_or_else(|why| panic!("round {round}: {why}"));
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }

    /// Greets as a reader of chunks, or as one that hears what is held.
    pub(crate) fn hello(&self, features: u32) -> Vec<u8> {
        Hello { version: VERSION, features, root: self.root, identity: Vec::new() }.encode().unwrap()
    }

    /// Says this, and is welcome.
    fn welcomes(&self, from: Ipv4Addr, said: &[u8]) -> Result<TcpStream, String> {
        let mut stream = connect_from(from, &self.engine).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(said).map_err(|error| error.to_string())?;
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome).map_err(|error| format!("no welcome: {error}"))?;
        match Welcome::decode(&welcome).unwrap().refusal {
            Some(refusal) => Err(format!("{refusal:?}")),
            None => Ok(stream),
        }
    }

    /// Reads the last chunk; the connection goes on.
    pub(crate) fn takes_the_last_chunk(&self, from: Ipv4Addr) -> Result<TcpStream, String> {
        let (chunk, bytes) = self.last;
        let said = [self.hello(0), Read::new(&[chunk]).unwrap().encode()].concat();
        let mut stream = self.welcomes(from, &said)?;
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).map_err(|error| format!("no answer: {error}"))?;
        assert_eq!(Answer::decode(&answer), Ok(Answer::Chunk { chunk, len_bytes: bytes as u64 }));
        stream.read_exact(&mut vec![0; bytes]).map_err(|error| format!("no bytes: {error}"))?;
        Ok(stream)
    }

    /// Hears something of what is held; the connection goes on.
    pub(crate) fn follows(&self, from: Ipv4Addr) -> Result<TcpStream, String> {
        let mut stream = self.welcomes(from, &self.hello(ANNOUNCEMENTS))?;
        stream
            .read_exact(&mut [0; ANNOUNCEMENT_BYTES])
            .map_err(|error| format!("nothing is said: {error}"))?;
        Ok(stream)
    }

    /// One line of the report, and the bound of memory.
    pub(crate) fn reports(&self, name: &str, harmless: Duration, attacked: Duration) {
        let kib = peak_kib(self.worker.process.pid());
        let (harmless_ms, attacked_ms) = (harmless.as_secs_f64() * 1e3, attacked.as_secs_f64() * 1e3);
        let bar = if attacked_ms <= 2.0 * harmless_ms + 20.0 { "met" } else { "missed" };
        println!("| {name} | {harmless_ms:.1} | {attacked_ms:.1} | {bar} | {} |", kib >> 10);
        assert!(kib < MOST_KIB, "{} MiB", kib >> 10);
    }

    /// Where its service is, and its engine.
    pub(crate) fn doors(&self) -> [(&'static str, &str); 2] {
        [("service", &self.service), ("engine", &self.engine)]
    }
}

/// Goes, and waits until the seed has noticed.
fn finished(mut stream: TcpStream) -> Result<(), String> {
    let _ = stream.shutdown(Shutdown::Write);
    stream.read_to_end(&mut Vec::new()).map(drop).map_err(|error| error.to_string())
}

fn tried(attack: Attack, on: &str, address: fn(&Seed) -> &str) {
    let seed = Seed::start();
    let harmless = seed.harmless();
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
    silent_sockets_of_many_addresses_keep_nobody_from_a_seed_s_service: SILENT_OF_MANY on "service" at service,
    silent_sockets_of_many_addresses_keep_nobody_from_a_seed_s_engine: SILENT_OF_MANY on "engine" at engine,
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
    let harmless = seed.harmless();
    let idle: Vec<_> = (0..IDLE).map_while(|_| seed.takes_the_last_chunk(HOSTILE).ok()).collect();
    assert!(idle.len() >= 12, "{} readers idle", idle.len());
    // What they took pays for a few milliseconds, which this takes.
    rfork_tests::until("the first place", || seed.takes_the_last_chunk(HONEST).ok());
    let attacked = seed.honest_rounds();
    seed.reports("idle readers, engine", harmless, attacked);
}
