//! What fails on the way: the weights must be right in the end, or the worker must say that it has none.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use rfork_tests::http::request;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Serving, Worker};
use rfork_tests::proxy::{Corrupt, corrupting, info_path};
use rfork_tests::until;
use rustix::process::{Resource, Signal, getrlimit, setrlimit};

/// Slow enough for a test to step in: 16 MiB take about a second.
const SLOW: &str = "--rfork-seed-max-gib-per-sec=0.015";

#[test]
fn a_seed_that_is_killed_is_replaced_by_another_and_no_chunk_is_read_twice() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&[]));
    let mut seeds = Vec::new();
    for name in ["one", "two"] {
        let worker = Worker::start(name, &model, &planner.url(), &[SLOW]);
        seeds.push((worker.serving(), worker));
    }
    let served_before: u64 = seeds.iter().map(|(_, worker)| worker.served_bytes()).sum();
    let reader = Worker::start("reader", &model, &planner.url(), &["--once", "--rfork-seed-wait-sec=60"]);
    let first = reader.reading_from_a_seed();
    let at = seeds.iter().position(|(serving, _)| serving.identity == first).unwrap();
    seeds[at].1.process.kill();
    let (other, survivor) = &seeds[1 - at];

    let loaded = reader.loaded();
    assert_eq!(loaded.digest, model.digest());
    let [(one, from_first), (two, from_other)] = &loaded.shares[..] else { panic!("{loaded:?}") };
    assert_eq!((one, two), (&format!("seed {first}"), &format!("seed {}", other.identity)));
    assert!(*from_first > 0 && from_first + from_other == model.bytes, "{loaded:?}");
    // The good seed sent exactly what was missing. (As a fork it may have been served by the other before.)
    let sent = until("that the reader's connections end", || {
        let sent = survivor.served_bytes();
        (sent >= *from_other).then_some(sent)
    });
    let before = if at == 0 { 0 } else { served_before };
    assert_eq!(sent - before, *from_other);
}

#[test]
fn storage_completes_what_a_killed_seed_began() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&[]));
    let mut seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    let serving = seed.serving();
    let reader = Worker::start("reader", &model, &planner.url(), &["--once"]);
    reader.reading_from_a_seed();
    seed.process.kill();
    let loaded = reader.loaded();
    assert_eq!(loaded.digest, model.digest());
    let [(one, from_seed), (two, from_storage)] = &loaded.shares[..] else { panic!("{loaded:?}") };
    assert_eq!((one, two.as_str()), (&format!("seed {}", serving.identity), "storage"));
    assert!(*from_seed > 0 && from_seed + from_storage == model.bytes, "{loaded:?}");
}

#[test]
fn storage_with_other_weights_than_the_seed_starts_over() {
    let (model, other, planner) = (Model::new(16, 1), Model::new(16, 2), Planner::start(&[]));
    let mut seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    seed.serving();
    // The reader's own storage was changed under the same name.
    let reader = Worker::start("reader", &other, &planner.url(), &["--once"]);
    reader.reading_from_a_seed();
    seed.process.kill();
    let loaded = reader.loaded();
    assert_eq!(loaded.digest, other.digest(), "one model or the other, never a mixture");
    assert_eq!(loaded.shares, [("storage".to_owned(), other.bytes)]);
}

#[test]
fn a_planner_that_goes_away_does_not_disturb_a_transfer() {
    let (model, mut planner) = (Model::new(16, 1), Planner::start(&["--lease-ttl-sec=1"]));
    let seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    seed.serving();
    let reader = Worker::start("reader", &model, &planner.url(), &["--once"]);
    reader.reading_from_a_seed();
    planner.process.kill();
    let loaded = reader.loaded();
    assert_eq!((loaded.digest, loaded.bytes_from_seeds), (model.digest(), model.bytes));
}

#[test]
fn a_lease_that_is_lost_stops_the_reading_and_what_is_held_is_kept() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&["--lease-ttl-sec=2"]));
    let seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    let serving = seed.serving();
    let reader = Worker::start("reader", &model, &planner.url(), &["--once"]);
    reader.reading_from_a_seed();
    // The seed moves to another key and back: a new holding, whose old leases have ended.
    for key in ["elsewhere", &serving.key] {
        assert_eq!(register(&planner, &serving, key), 200);
    }
    let loaded = reader.loaded();
    assert_eq!(loaded.digest, model.digest());
    assert!(!reader.process.said("the lease is gone").is_empty());
    assert_eq!(loaded.shares.iter().map(|(_, bytes)| bytes).sum::<u64>(), model.bytes, "{loaded:?}");
}

fn register(planner: &Planner, serving: &Serving, key: &str) -> u16 {
    let mut parts = serving.identity.rsplitn(3, ':');
    let (rank, port, host) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let headers = [
        ("SEED_KEY", key),
        ("SEED_IP", host),
        ("SEED_PORT", port),
        ("SEED_RANK", rank),
        ("SEED_REFCNT", "0"),
    ];
    planner.request("POST", "/add_seed", &headers).status
}

#[test]
fn a_manifest_that_differs_in_one_dtype_moves_no_byte() {
    let (model, planner) = (Model::new(4, 1), Planner::start(&[]));
    let other = Model::with_dtype(4, 1, safetensors::Dtype::F16);
    let mut seed = Worker::start("seed", &model, &planner.url(), &[]);
    seed.serving();
    let reader = Worker::start("reader", &other, &planner.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!((loaded.source.as_str(), loaded.digest), ("storage", other.digest()));
    let refusal = reader.process.log().iter().map(ToString::to_string).collect::<String>();
    assert!(
        refusal.contains("'layers.1.weight' has dtype float16 here and bfloat16 at the seed"),
        "{refusal}"
    );
    assert_eq!(seed.process.terminate().code(), Some(0));
    assert_eq!(seed.process.said("a reader was served").len(), 0, "somebody read from the engine");
}

#[test]
fn a_chunk_that_is_corrupted_in_flight_is_read_again() {
    let (model, theirs, ours) = (Model::new(8, 1), Planner::start(&[]), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &theirs.url(), &[]);
    corrupting(&seed.serving(), &ours, Corrupt::Once);
    let reader = Worker::start("reader", &model, &ours.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!((loaded.digest, loaded.bytes_from_seeds), (model.digest(), model.bytes));
    assert!(!reader.process.said("a chunk is corrupt").is_empty());
}

#[test]
fn a_path_that_always_corrupts_is_left_for_another_source() {
    let (model, theirs, ours) = (Model::new(8, 1), Planner::start(&[]), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &theirs.url(), &[]);
    corrupting(&seed.serving(), &ours, Corrupt::Always);
    let reader = Worker::start("reader", &model, &ours.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!(loaded.digest, model.digest());
    assert!(loaded.shares.iter().any(|(source, _)| source == "storage"), "{loaded:?}");
    assert_eq!(loaded.shares.iter().map(|(_, bytes)| bytes).sum::<u64>(), model.bytes, "{loaded:?}");
}

/// Flips a bit of these bytes wherever they are in a process's memory.
fn flip_in_memory(pid: u32, bytes: &[u8]) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let mut flipped = 0;
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let (start, end) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
        let mut held = vec![0; usize::try_from(end - start).unwrap()];
        // Some of the system's own cannot be read.
        if memory.read_exact_at(&mut held, start).is_err() {
            continue;
        }
        let found = held.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
        for (at, _) in found {
            memory.write_all_at(&[bytes[0] ^ 1], start + at as u64).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the weights are somewhere");
}

#[test]
fn a_bit_that_flips_in_a_seed_s_memory_is_found() {
    let (model, planner) = (Model::new(8, 1), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &planner.url(), &[]);
    seed.serving();
    flip_in_memory(seed.process.pid(), &model.start_of("layers.3.weight"));

    let reader = Worker::start("reader", &model, &planner.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!(loaded.digest, model.digest());
    let failure = reader.process.said("the seed failed; what is held is kept").remove(0);
    assert!(failure["error"].as_str().unwrap().contains("is corrupt"), "{failure}");
    assert!(failure["tensors"].as_str().unwrap().contains("layers.3.weight"), "{failure}");
    let from_storage = loaded.shares.iter().find(|(source, _)| source == "storage").unwrap().1;
    assert!(from_storage > 0 && from_storage + loaded.bytes_from_seeds == model.bytes, "{loaded:?}");
}

/// Lets this process have as many open files as it may.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn a_thousand_silent_peers_keep_nobody_out_of_a_seed() {
    raise_open_files();
    let (model, planner) = (Model::new(8, 1), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &planner.url(), &[]);
    let serving = seed.serving();
    let metadata = request(&serving.address, "GET", &info_path(&serving.key), &[]).unwrap().json();
    let engine = metadata["rfork_transfer_engine_info"][0].as_str().unwrap();
    let silent: Vec<TcpStream> = (0..1_000)
        .flat_map(|_| [serving.address.as_str(), engine].map(|address| TcpStream::connect(address).unwrap()))
        .collect();
    let reader = Worker::start("reader", &model, &planner.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!((loaded.digest, loaded.bytes_from_seeds), (model.digest(), model.bytes));
    drop(silent);
}

#[test]
fn a_hung_seed_costs_its_time_out_and_no_more() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    seed.serving();
    let reader = Worker::start("reader", &model, &planner.url(), &["--once"]);
    reader.reading_from_a_seed();
    seed.process.signal(Signal::STOP);
    let loaded = reader.loaded();
    seed.process.signal(Signal::CONT);
    assert_eq!(loaded.digest, model.digest());
    assert_eq!(loaded.shares.last().unwrap().0, "storage");
}

#[test]
fn a_truncated_file_is_a_clear_error_and_never_a_loaded_model() {
    let (model, planner) = (Model::new(4, 1), Planner::start(&[]));
    let file = File::options().write(true).open(model.file()).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    let mut worker = Worker::start("worker", &model, &planner.url(), &[]);
    let status = worker.process.wait();
    assert!(!status.success());
    // The error itself is a plain line for people.
    let error =
        worker.process.wait_until("an error", |line| line.as_str().is_some_and(|l| l.starts_with("error: ")));
    assert!(error.as_str().unwrap().contains("model.safetensors"), "{error}");
    assert!(worker.process.said("loaded").is_empty());
    assert_eq!(planner.snapshot()["seed_count"], 0);
}

#[test]
fn a_worker_that_is_stopped_while_it_loads_gives_its_lease_back() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&[]));
    let seed = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    seed.serving();
    let mut reader = Worker::start("reader", &model, &planner.url(), &[]);
    reader.reading_from_a_seed();
    assert_eq!(planner.snapshot()["lease_count"], 1);
    assert_eq!(reader.process.terminate().code(), Some(130));
    assert_eq!(planner.snapshot()["lease_count"], 0);
}
