//! Seeds that lie to a worker: it is loaded from storage all the same, with the right bytes, within its memory.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rfork_protocol::frame::{Answer, HELLO_BYTES, Hello, MAX_CHUNKS_PER_READ, VERSION, Welcome};
use rfork_protocol::manifest::metadata::{EntryFields, Metadata};
use rfork_tests::http::request;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;

use crate::limits::peak_kib;

/// The most memory that a worker with a model of 1 MiB may take, in KiB: metadata has 64 MiB at most, and what is made of it
/// some five times that.
const MOST_KIB: u64 = 448 << 10;
/// The longest line of a worker's log, in bytes.
const MOST_LINE_BYTES: usize = 16 << 10;
/// Between two steps of a seed that hardly does anything.
const NOW_AND_THEN: Duration = Duration::from_millis(100);

/// What is told of a model by a seed that tells the truth.
pub(crate) struct Truth {
    pub(crate) model: Model,
    pub(crate) key: String,
    pub(crate) metadata: Metadata,
}

impl Truth {
    pub(crate) fn learn() -> Self {
        let (model, planner) = (Model::new(1, 1), Planner::start(&["--host=127.0.0.1"]));
        let worker = Worker::start("seed", &model, &planner.url(), &[]);
        let seed = worker.serving();
        let info = request(&seed.address, "GET", &info_path(&seed.key), &[]).unwrap();
        Self { model, key: seed.key, metadata: Metadata::decode(&info.body).unwrap() }
    }

    /// A worker that is granted this seed alone is loaded all the same.
    fn is_loaded_beside(
        &self,
        name: &str,
        service: fn(&mut TcpStream, &str),
        engine: fn(&mut TcpStream, &Metadata),
    ) {
        let planner = Planner::start(&["--host=127.0.0.1", "--no-liveness-probe"]);
        let own = self.metadata.clone();
        let session = listens(move |stream| engine(stream, &own));
        let told = Metadata { session, ..self.metadata.clone() }.encode(EntryFields::Three);
        let service = listens(move |stream| {
            let _ = stream.read(&mut [0; 4096]);
            service(stream, &told);
        });
        let port = service.rsplit_once(':').unwrap().1.to_owned();
        let seed = [
            ("SEED_KEY", self.key.as_str()),
            ("SEED_IP", "127.0.0.1"),
            ("SEED_PORT", &port),
            ("SEED_RANK", "0"),
        ];
        assert_eq!(planner.request("POST", "/add_seed", &seed).status, 200);
        let begun = Instant::now();
        let worker = Worker::start(name, &self.model, &planner.url(), &["--rfork-request-timeout-sec=5"]);
        assert_eq!(worker.loaded().source, "storage", "{name}");
        self.is_right(name, &worker, begun);
    }

    /// A worker is loaded with the right bytes, within its memory, and without a long line. One line of the report.
    pub(crate) fn is_right(&self, name: &str, worker: &Worker, begun: Instant) {
        assert_eq!(worker.loaded().digest, self.model.digest(), "{name}");
        let took = begun.elapsed();
        let longest = worker.process.log().iter().map(|line| line.to_string().len()).max();
        assert!(longest < Some(MOST_LINE_BYTES), "{name}: {longest:?} bytes in a line of its log");
        let kib = peak_kib(worker.process.pid());
        println!("| {name} | {:.1} | {} |", took.as_secs_f64(), kib >> 10);
        assert!(kib < MOST_KIB, "{name}: {} MiB", kib >> 10);
    }
}

/// Listens, and does this to whoever comes; gives where. Ends with the test's process.
pub(crate) fn listens(does: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let does = std::sync::Arc::new(does);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let does = does.clone();
            std::thread::spawn(move || does(&mut stream));
        }
    });
    address
}

/// Answers with this body, or as much of it as is taken.
pub(crate) fn answers(stream: &mut TcpStream, body: &[u8]) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(body);
}

pub(crate) fn truth(stream: &mut TcpStream, told: &str) {
    answers(stream, told.as_bytes());
}

fn nothing(_: &mut TcpStream, _: &Metadata) {}

/// Greets a reader as it should.
fn welcomes(stream: &mut TcpStream, metadata: &Metadata) {
    let mut hello = [0; HELLO_BYTES];
    if stream.read_exact(&mut hello).is_err() {
        return;
    }
    let (hello, identity) = Hello::decode(&hello).unwrap();
    let _ = stream.read_exact(&mut vec![0; identity]);
    let root = &metadata.extension.as_ref().unwrap().root;
    let chunks = &root.content().unwrap().chunks;
    let welcome = Welcome {
        refusal: None,
        version: VERSION,
        features: hello.features & rfork_protocol::frame::POINT,
        chunk_size: chunks.chunk_bytes,
        chunk_count: u32::try_from(chunks.digests.len()).unwrap(),
        max_chunks_per_read: MAX_CHUNKS_PER_READ,
    };
    let _ = stream.write_all(&welcome.encode());
}

/// Says this again and again, for as long as somebody hears it.
pub(crate) fn goes_on(stream: &mut TcpStream, saying: &[u8], pause: Duration) {
    while stream.write_all(saying).is_ok() {
        std::thread::sleep(pause);
    }
}

#[test]
fn metadata_that_lies_costs_a_worker_neither_its_load_nor_its_memory() {
    let truth = Truth::learn();
    let tried = |name, service| truth.is_loaded_beside(name, service, nothing);
    tried("too many tensors", |stream, told| {
        let entries: Vec<String> = (0..300_000).map(|number| format!("\"{number}\":[0,1,1]")).collect();
        let list = format!("{{{},\"layers", entries.join(","));
        answers(stream, told.replacen("{\"layers", &list, 1).as_bytes());
    });
    tried("deep JSON", |stream, _| answers(stream, "{\"a\":".repeat(4 << 20).as_bytes()));
    tried("huge numbers", |stream, told| {
        answers(stream, told.replace(":[0,", ":[18446744073709551615,").as_bytes());
    });
    tried("an endless body", |stream, _| {
        answers(stream, b"{");
        goes_on(stream, &vec![b' '; 1 << 20], Duration::ZERO);
    });
    tried("a body that trickles", |stream, _| {
        answers(stream, b"{");
        goes_on(stream, b" ", NOW_AND_THEN);
    });
    tried("an endless head", |stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        goes_on(stream, b"x: y\r\n", Duration::ZERO);
    });
    tried("an engine with a long name", |stream, told| {
        answers(stream, told.replacen("\"tcp\"", &format!("\"{}\"", "x".repeat(8 << 20)), 1).as_bytes());
    });
}

#[test]
fn an_engine_that_lies_costs_a_worker_neither_its_load_nor_its_memory() {
    let told = Truth::learn();
    let tried = |name, engine| told.is_loaded_beside(name, truth, engine);
    tried("a connection that ends", nothing);
    tried("an endless welcome", |stream, _| goes_on(stream, &vec![0; 1 << 16], Duration::ZERO));
    tried("another chunk", |stream, metadata| {
        welcomes(stream, metadata);
        let _ = stream.write_all(&Answer::Chunk { chunk: 3, len_bytes: 1 }.encode());
    });
    tried("a chunk of 2^63 bytes", |stream, metadata| {
        welcomes(stream, metadata);
        goes_on(stream, &Answer::Chunk { chunk: 0, len_bytes: 1 << 63 }.encode(), NOW_AND_THEN);
    });
    tried("other bytes", |stream, metadata| {
        welcomes(stream, metadata);
        let root = &metadata.extension.as_ref().unwrap().root;
        let len_bytes = root.content().unwrap().chunks.chunk_bytes;
        let bytes = vec![7; usize::try_from(len_bytes).unwrap()];
        let head = Answer::Chunk { chunk: 0, len_bytes }.encode();
        goes_on(stream, &[&head[..], &bytes].concat(), NOW_AND_THEN);
    });
    tried("not yet, for ever", |stream, metadata| {
        welcomes(stream, metadata);
        goes_on(stream, &Answer::NotYet { chunk: 0 }.encode(), NOW_AND_THEN);
    });
}
