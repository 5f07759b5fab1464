//! Seeds that lie while they load themselves: of what they hold, of its digests, of which content it is, and of how they
//! fare. A worker that is granted such a one is loaded all the same, with the right bytes, within its memory.

use std::io::{Read as _, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rfork_loader::digest::ChunkDigest;
use rfork_protocol::frame::{
    ANNOUNCEMENTS, Announcement, Answer, Failure, HELLO_BYTES, Hello, MAX_CHUNKS_PER_READ, POINT,
    RANGE_BYTES, READ_BYTES, Range, Read, SignOfLife, VERSION, Welcome,
};
use rfork_protocol::manifest::content::{ChunkDigests, Growing, Origin, Root};
use rfork_protocol::manifest::digest::Digest;
use rfork_protocol::manifest::metadata::{EntryFields, Extension, Metadata};
use rfork_tests::http::{post_within, request};
use rfork_tests::process::{Planner, Worker};
use rfork_tests::{DEADLINE, until};
use serde_json::{Value, json};

use crate::liars::{Truth, listens, truth};

/// Between two signs of life, and between two things that a liar tells its planner.
const SECOND: Duration = Duration::from_secs(1);
/// The name of bytes that are said to come from storage.
pub(crate) const ORIGIN: Origin = Origin([7; 32]);

/// What a liar knows of the model.
#[derive(Debug, Clone)]
struct Chunks {
    told: ChunkDigests,
    total_bytes: u64,
}

impl Chunks {
    fn count(&self) -> u32 {
        u32::try_from(self.told.digests.len()).unwrap()
    }

    fn len_bytes(&self, chunk: u32) -> u64 {
        let before = u64::from(chunk) * self.told.chunk_bytes;
        self.told.chunk_bytes.min(self.total_bytes - before)
    }

    /// Other bytes than the model's.
    fn garbage(&self, chunk: u32) -> Vec<u8> {
        vec![9; usize::try_from(self.len_bytes(chunk)).unwrap()]
    }

    /// Their digests.
    fn of_garbage(&self) -> Vec<(u32, Digest)> {
        let digest = |chunk| {
            let mut digest = ChunkDigest::start(self.told.algorithm);
            digest.update(&self.garbage(chunk));
            (chunk, digest.finish())
        };
        (0..self.count()).map(digest).collect()
    }

    /// Digests of the model's bytes.
    fn of_model(&self) -> Vec<(u32, Digest)> {
        (0..self.count()).zip(self.told.digests.iter().copied()).collect()
    }
}

/// A lie.
struct Lie {
    name: &'static str,
    /// Whether the bytes are said to have no content id yet.
    grows: bool,
    /// What is said on a connection for announcements.
    says: fn(&mut TcpStream, &Chunks),
    /// What is sent when chunks are asked for.
    sends: fn(&mut TcpStream, &Chunks, &Read) -> std::io::Result<()>,
}

fn say(stream: &mut TcpStream, what: &[Announcement]) -> bool {
    what.iter().all(|one| stream.write_all(&one.encode()).is_ok())
}

/// Gives signs of life for as long as somebody hears them: bytes come.
fn lives(stream: &mut TcpStream) {
    let alive = Announcement::Alive(SignOfLife { has_source: true, silent_ms: 0 });
    while say(stream, std::slice::from_ref(&alive)) {
        std::thread::sleep(SECOND);
    }
}

fn holds_all(stream: &mut TcpStream, chunks: &Chunks) {
    say(stream, &Announcement::held(0..chunks.count()));
    lives(stream);
}

#[expect(clippy::unnecessary_wraps, reason = "others fail")]
fn sends_nothing(_: &mut TcpStream, _: &Chunks, _: &Read) -> std::io::Result<()> {
    Ok(())
}

fn sends_garbage(stream: &mut TcpStream, chunks: &Chunks, wanted: &Read) -> std::io::Result<()> {
    for chunk in wanted.chunks() {
        stream.write_all(&Answer::Chunk { chunk, len_bytes: chunks.len_bytes(chunk) }.encode())?;
        stream.write_all(&chunks.garbage(chunk))?;
    }
    Ok(())
}

/// Greets whoever comes, and then lies.
fn engine(stream: &mut TcpStream, lie: &Lie, chunks: &Chunks) -> std::io::Result<()> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello)?;
    let (hello, identity_bytes) = Hello::decode(&hello).map_err(std::io::Error::other)?;
    stream.read_exact(&mut vec![0; identity_bytes])?;
    let welcome = Welcome {
        refusal: None,
        version: VERSION,
        features: hello.features & (POINT | ANNOUNCEMENTS),
        chunk_size: chunks.told.chunk_bytes,
        chunk_count: chunks.count(),
        max_chunks_per_read: MAX_CHUNKS_PER_READ,
    };
    stream.write_all(&welcome.encode())?;
    if hello.features & ANNOUNCEMENTS != 0 {
        (lie.says)(stream, chunks);
        return Ok(());
    }
    loop {
        let mut head = [0; READ_BYTES];
        stream.read_exact(&mut head)?;
        let mut ranges = vec![0; Read::decode_head(&head).map_err(std::io::Error::other)? * RANGE_BYTES];
        stream.read_exact(&mut ranges)?;
        (lie.sends)(stream, chunks, &Read::decode_ranges(&ranges).map_err(std::io::Error::other)?)?;
    }
}

/// A seed that is known to a planner as one that loads, and says again and again that it makes progress.
pub(crate) struct Liar {
    stop: Arc<AtomicBool>,
    telling: Option<JoinHandle<()>>,
}

impl Liar {
    fn begin(told: &Truth, lie: &'static Lie, planner: &Planner) -> Self {
        let extension = told.metadata.extension.clone().unwrap();
        let content = extension.root.content().unwrap().clone();
        let total_bytes = told.metadata.manifest.total_bytes();
        let chunks = Chunks { told: content.chunks.clone(), total_bytes };
        let session = listens(move |stream| drop(engine(stream, lie, &chunks)));
        let growing = Growing {
            origin: ORIGIN,
            algorithm: content.chunks.algorithm,
            chunk_bytes: content.chunks.chunk_bytes,
        };
        let root = if lie.grows { Root::Growing(growing) } else { extension.root.clone() };
        let extension = Some(Extension { root, ..extension });
        let metadata = Metadata { session, extension, ..told.metadata.clone() }.encode(EntryFields::Three);
        let service = listens(move |stream| {
            let _ = stream.read(&mut [0; 4096]);
            truth(stream, &metadata);
        });
        Self::that_tells(told, lie.grows, &service, planner)
    }

    /// One whose service is there.
    pub(crate) fn that_tells(told: &Truth, grows: bool, service: &str, planner: &Planner) -> Self {
        let extension = told.metadata.extension.as_ref().unwrap();
        let total_bytes = told.metadata.manifest.total_bytes();
        let name = if grows { ORIGIN.to_string() } else { extension.root.content().unwrap().id.to_string() };
        let loading = json!({"seed": format!("{service}:0"), "incarnation": "1", "total_bytes": total_bytes});
        let (address, key) = (planner.address.clone(), told.key.clone());
        let post = move |path: &str, body: &Value| -> Value {
            let answer = post_within(DEADLINE, &address, path, &[], body).unwrap();
            assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
            answer.json()
        };
        let held = json!({"root": name, "bytes": total_bytes});
        let tells: Box<dyn Fn(u64) + Send> = if grows {
            let begins = json!({"seed_key": key, "loading": loading, "arrived_bytes": 0, "patience_ms": 0, "origin": name});
            post("/v2/leads", &begins);
            Box::new(move |arrived_bytes| {
                let mut claim = begins.clone();
                claim["arrived_bytes"] = arrived_bytes.into();
                claim["loading"]["held"] = held.clone();
                post("/v2/leads", &claim);
            })
        } else {
            // One that has everything, whose only point is the liar's.
            post("/v2/seeds", &json!({"seed": "127.0.0.1:9:0", "seed_key": key, "content_id": name}));
            let lease = post("/v2/leases", &json!({"seed_key": key, "loading": loading}));
            assert_eq!(lease["source"]["phase"], "complete", "{lease}");
            Box::new(move |arrived_bytes| {
                let told = json!({"incarnation": "1", "arrived_bytes": arrived_bytes, "held": held});
                let renew = json!({"lease_id": lease["lease_id"], "seed": lease["seed"], "loading": told});
                post("/v2/leases/renew", &renew);
            })
        };
        tells(total_bytes);
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let telling = std::thread::spawn(move || {
            let mut arrived_bytes = total_bytes;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(SECOND / 4);
                arrived_bytes += 1;
                tells(arrived_bytes);
            }
        });
        Self { stop, telling: Some(telling) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It may have failed because the planner is gone.
        let _ = self.telling.take().map(JoinHandle::join);
    }
}

impl Truth {
    fn is_loaded_beside_one_that_loads(&self, lie: &'static Lie) {
        let planner = Planner::start(&["--host=127.0.0.1", "--no-liveness-probe", "--lease-ttl-sec=3600"]);
        let _liar = Liar::begin(self, lie, &planner);
        let begun = Instant::now();
        let flags = ["--rfork-seed-wait-sec=0", "--rfork-request-timeout-sec=5"];
        let worker = Worker::start(lie.name, &self.model, &planner.url(), &flags);
        self.is_right_beside_one_that_loads(lie.name, &worker, begun, &planner);
    }

    /// A worker that was granted a liar, once, is loaded as it should be, and a seed.
    pub(crate) fn is_right_beside_one_that_loads(
        &self,
        name: &str,
        worker: &Worker,
        begun: Instant,
        planner: &Planner,
    ) {
        // It has met the lie.
        let granted = |line: &Value| line["message"] == "the planner granted a seed";
        worker.process.wait_until("that it was granted the liar", granted);
        self.is_right(name, worker, begun);
        let grants = worker.process.said("the planner granted a seed").len();
        assert_eq!(grants, 1, "{name}: it is asked for again");
        until("that it is a seed", || {
            let seeds = request(&planner.address, "GET", "/v2/seeds?state=live", &[]).unwrap().json();
            let mut seeds = seeds["seeds"].as_array().unwrap().clone().into_iter();
            let identity = worker.serving().identity;
            seeds.any(|seed| seed["seed"] == identity.as_str() && seed["loading"].is_null()).then_some(())
        });
    }
}

static OF_A_CONTENT: [Lie; 5] = [
    Lie {
        name: "announces everything, and sends nothing",
        grows: false,
        says: holds_all,
        sends: sends_nothing,
    },
    Lie {
        name: "announces what it does not hold",
        grows: false,
        says: holds_all,
        sends: |stream, _, wanted| {
            let chunk = wanted.chunks().next().unwrap_or_default();
            stream.write_all(&Answer::Failed { chunk, failure: Failure::NotHeld }.encode())?;
            Err(std::io::ErrorKind::ConnectionAborted.into())
        },
    },
    Lie {
        name: "announces chunks that there are not",
        grows: false,
        says: |stream, chunks| {
            say(stream, &[Announcement::Held(vec![Range { first: chunks.count(), count: u32::MAX }])]);
            lives(stream);
        },
        sends: sends_nothing,
    },
    Lie {
        name: "announces the same without end",
        grows: false,
        says: |stream, chunks| {
            let all: Vec<u8> =
                Announcement::held(0..chunks.count()).iter().flat_map(Announcement::encode).collect();
            while stream.write_all(&all).is_ok() {}
        },
        sends: sends_nothing,
    },
    Lie { name: "sends other bytes than it announces", grows: false, says: holds_all, sends: sends_garbage },
];

/// As two workers that read from each other, neither of whom has anything.
static CIRCLE: [Lie; 1] = [Lie {
    name: "says that bytes come, and never holds any",
    grows: false,
    says: |stream, _| lives(stream),
    sends: sends_nothing,
}];

static OF_AN_ORIGIN: [Lie; 5] = [
    Lie {
        name: "announces digests that its bytes do not have",
        grows: true,
        says: |stream, chunks| {
            say(stream, &Announcement::digested(&chunks.of_model()));
            lives(stream);
        },
        sends: sends_garbage,
    },
    Lie {
        name: "announces a chunk twice, with other digests",
        grows: true,
        says: |stream, chunks| {
            say(stream, &Announcement::digested(&chunks.of_garbage()));
            say(stream, &Announcement::digested(&chunks.of_model()));
            lives(stream);
        },
        sends: sends_garbage,
    },
    Lie {
        name: "names a content that its digests do not make",
        grows: true,
        says: |stream, chunks| {
            say(stream, &Announcement::digested(&chunks.of_garbage()));
            say(stream, &[Announcement::Final([5; 32])]);
            lives(stream);
        },
        sends: sends_garbage,
    },
    Lie {
        name: "names a content before it has announced everything",
        grows: true,
        says: |stream, chunks| {
            let some = chunks.of_garbage();
            say(stream, &Announcement::digested(&some[..some.len() / 2]));
            say(stream, &[Announcement::Final([5; 32])]);
            lives(stream);
        },
        sends: sends_garbage,
    },
    Lie {
        name: "sends everything, and never says which content it is",
        grows: true,
        says: |stream, chunks| {
            let begun = Instant::now();
            say(stream, &Announcement::digested(&chunks.of_garbage()));
            loop {
                let silent_ms = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX);
                if !say(stream, &[Announcement::Alive(SignOfLife { has_source: true, silent_ms })]) {
                    return;
                }
                std::thread::sleep(SECOND);
            }
        },
        sends: sends_garbage,
    },
];

/// All at once: most of the time is waited.
fn tried(lies: &'static [Lie]) {
    let told = Truth::learn();
    std::thread::scope(|scope| {
        for lie in lies {
            let told = &told;
            scope.spawn(move || told.is_loaded_beside_one_that_loads(lie));
        }
    });
}

#[test]
fn a_loading_seed_that_lies_of_a_content_costs_a_worker_neither_its_load_nor_its_memory() {
    tried(&OF_A_CONTENT);
}

#[test]
fn a_loading_seed_that_lies_of_an_origin_costs_a_worker_neither_its_load_nor_its_bytes() {
    tried(&OF_AN_ORIGIN);
}

#[test]
fn a_source_that_says_for_ever_that_bytes_come_is_left_after_a_minute() {
    tried(&CIRCLE);
}
