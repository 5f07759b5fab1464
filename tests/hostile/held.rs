//! Attacks on what a worker tells that is read by address while it loads: `GET /get_rfork_held_chunks`, a long poll.

use std::time::{Duration, Instant};

use rfork_protocol::manifest::content::{Growing, Root};
use rfork_protocol::manifest::metadata::{Epoch, HEALTH_PATH, HELD_PATH, HeldChunks, HeldQuestion, Metadata};
use rfork_tests::by_address::{KEY, start};
use rfork_tests::fakes::StoppingStorage;
use rfork_tests::http::request_from;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;
use rfork_tests::until;

use crate::attacks::{self, Attack};
use crate::limits::{open_files, peak_kib};
use crate::seeds::HONEST;

/// How often the well-behaved reader does what it does.
const ROUNDS: usize = 60;
/// The most memory that the worker may take, in KiB.
const MOST_KIB: u64 = 128 << 10;
/// The longest that a question may wait.
const WAIT_MS: u64 = 10_000;

/// A worker that reads storage, which has stopped half way, and those who read from it by address.
struct Leader {
    worker: Worker,
    planner: Planner,
    model: Model,
    storage: StoppingStorage,
    service: String,
    growing: Growing,
    chunk_count: u32,
    epoch: Epoch,
    /// How many chunks it holds.
    holds: u32,
}

impl Leader {
    fn start() -> Self {
        open_files();
        let model = Model::new(8, 1);
        let planner = Planner::start(&["--host=127.0.0.1", "--no-liveness-probe", "--lease-ttl-sec=3600"]);
        let storage = StoppingStorage::after(model.bytes / 2);
        let worker = start(&storage.environment(), "leader", &model, &planner.url(), &[]);
        let service = worker.listens().rsplit_once(':').unwrap().0.to_owned();
        let told = until("its metadata", || {
            let answer = request_from(HONEST, &service, "GET", &info_path(KEY), &[]).unwrap();
            (answer.status == 200).then(|| Metadata::decode(&answer.body).unwrap())
        });
        let root = told.extension.unwrap().root;
        let Root::Growing(growing) = root else { panic!("it has read a half: {root}") };
        let chunk_count = u32::try_from(model.bytes.div_ceil(growing.chunk_bytes)).unwrap();
        let (epoch, holds) = (Epoch(0), 0);
        let mut leader =
            Self { worker, planner, model, storage, service, growing, chunk_count, epoch, holds };
        // It holds no more until storage goes on.
        (leader.epoch, leader.holds) = until("that storage has stopped", || {
            let told = leader.ask(&leader.question(None, 0, 0)).unwrap();
            let held = u32::try_from(told.chunks.len()).unwrap();
            let wait_ms = 1_000;
            let next = leader.ask(&leader.question(Some(told.epoch), held, wait_ms)).unwrap();
            (held > 0 && next.chunks.is_empty()).then_some((told.epoch, held))
        });
        leader
    }

    fn question(&self, epoch: Option<Epoch>, after: u32, wait_ms: u64) -> HeldQuestion {
        HeldQuestion { root: self.growing.origin.0, reader: 7, epoch, after, lacks: 1, wait_ms }
    }

    fn path(question: &HeldQuestion) -> String {
        let parameters = question.parameters().into_iter().map(|(name, value)| format!("&{name}={value}"));
        format!("{HELD_PATH}?seed_key={KEY}{}", parameters.collect::<String>())
    }

    fn ask(&self, question: &HeldQuestion) -> Result<HeldChunks, String> {
        let answer = request_from(HONEST, &self.service, "GET", &Self::path(question), &[]);
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("status {}", answer.status));
        }
        let told = HeldChunks::decode(&answer.body, self.growing.algorithm, self.chunk_count);
        told.map_err(|error| error.to_string())
    }

    /// What a reader does: it asks whether this worker lives, what its weights are, what it holds, and once more whether there
    /// is anything new. Gives how long 99 of 100 of these took at most.
    fn honest_rounds(&self) -> Duration {
        let health = format!("{HEALTH_PATH}?seed_key={KEY}");
        let mut took = Vec::new();
        for round in 0..ROUNDS {
            for path in [&health, &info_path(KEY)] {
                let begun = Instant::now();
                let answer = request_from(HONEST, &self.service, "GET", path, &[]);
                took.push(begun.elapsed());
                let answer = answer.unwrap_or_else(|error| panic!("round {round}, {path}: {error}"));
                assert_eq!(answer.status, 200, "round {round}, {path}");
            }
            for (epoch, after, new) in [(None, 0, self.holds), (Some(self.epoch), self.holds, 0)] {
                let begun = Instant::now();
                let told = self.ask(&self.question(epoch, after, 0));
                took.push(begun.elapsed());
                let told = told.unwrap_or_else(|why| panic!("round {round}: {why}"));
                assert_eq!((told.chunks.len(), told.epoch), (new as usize, self.epoch), "round {round}");
            }
        }
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}

/// Questions that wait, each of a reader of its own, whose answers nobody reads.
fn tried(name: &str, attack: Attack) {
    let leader = Leader::start();
    let harmless = {
        let _running = attacks::HARMLESS.begin(&leader.service);
        leader.honest_rounds()
    };
    let waits = Leader::path(&leader.question(Some(leader.epoch), leader.holds, WAIT_MS));
    let running =
        attack.begin_saying(&leader.service, format!("GET {waits} HTTP/1.1\r\nHost: s\r\n\r\n").as_bytes());
    let attacked = leader.honest_rounds();
    // Another worker reads what there is, and the rest when storage goes on.
    let reader = start(&[], "reader", &leader.model, &leader.planner.url(), &[]);
    assert_eq!(reader.reading_from_a_seed(), leader.worker.listens());
    leader.storage.go_on();
    for worker in [&leader.worker, &reader] {
        assert_eq!(worker.loaded().digest, leader.model.digest());
    }
    assert_eq!(reader.loaded().bytes_from_seeds, leader.model.bytes, "storage is read once");
    drop(running);
    let kib = peak_kib(leader.worker.process.pid());
    let (harmless_ms, attacked_ms) = (harmless.as_secs_f64() * 1e3, attacked.as_secs_f64() * 1e3);
    let bar = if attacked_ms <= 2.0 * harmless_ms + 20.0 { "met" } else { "missed" };
    println!("| {name} | {harmless_ms:.1} | {attacked_ms:.1} | {bar} | {} |", kib >> 10);
    assert!(kib < MOST_KIB, "{} MiB", kib >> 10);
}

#[test]
fn polls_for_what_a_seed_holds_keep_nobody_from_it() {
    tried("polls for held chunks", attacks::SAYS);
}

#[test]
fn polls_of_many_addresses_for_what_a_seed_holds_keep_nobody_from_it() {
    tried("polls for held chunks, of many addresses", attacks::SAYS_OF_MANY);
}
