//! Interoperation with the generations of clients in the field, as peers that are no code of ours speak them.
//!
//! The peers' bytes move by the TCP engine's frames. Keys, planner calls, metadata and the order of work are those of
//! the field; only the addition of the TCP engine to the metadata is not, and one test is about its absence.

use rfork_tests::model::Model;
use rfork_tests::peer::Generation;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::until;

fn start_ours(generation: Generation, model: &Model, planner: &Planner) -> Worker {
    Worker::start("ours", model, &planner.url(), generation.flags())
}

/// Asserts that a worker has all bytes of the model, and has them from that seed or from storage.
fn assert_loaded(worker: &Worker, model: &Model, source: &str) {
    let loaded = worker.loaded();
    assert_eq!((loaded.source.as_str(), loaded.digest), (source, model.digest()));
    let from_seeds = if source == "seed" { model.bytes } else { 0 };
    assert_eq!(loaded.bytes_from_seeds, from_seeds);
}

#[test]
fn a_worker_forks_from_a_peer_of_each_generation() {
    for generation in Generation::ALL {
        let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
        let mut peer = generation.start(&model, &planner.url(), &[]);
        let seed = peer.serving();
        assert_loaded(&peer, &model, "storage");

        let mut ours = start_ours(generation, &model, &planner);
        assert_eq!(ours.serving().key, seed.key);
        assert_loaded(&ours, &model, "seed");
        until("that the reader's connections end", || (peer.served_bytes() == model.bytes).then_some(()));
        until("the release", || (planner.snapshot()["lease_count"] == 0).then_some(()));
        assert_eq!(planner.snapshot()["seed_count"], 2);

        assert_eq!(ours.process.terminate().code(), Some(0));
        assert_eq!(peer.process.terminate().code(), Some(0));
        // The first generation has no word for leaving.
        let left = u32::from(generation == Generation::A);
        assert_eq!(planner.snapshot()["seed_count"], left);
    }
}

#[test]
fn a_peer_of_each_generation_forks_from_a_worker_and_serves_on() {
    for generation in Generation::ALL {
        let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
        let mut ours = start_ours(generation, &model, &planner);
        let seed = ours.serving();
        let peer = generation.start(&model, &planner.url(), &[]);
        assert_eq!(peer.serving().key, seed.key);
        assert_loaded(&peer, &model, "seed");
        assert_eq!(peer.process.said("released")[0]["status"], 200);

        // What it has from us is good enough for the next of ours, which reads from nobody else.
        assert_eq!(ours.process.terminate().code(), Some(0));
        let next = start_ours(generation, &model, &planner);
        assert_loaded(&next, &model, "seed");
    }
}

#[test]
fn one_planner_serves_all_generations_at_once() {
    let planner = Planner::start(&["--default-resource-points=8"]);
    // Each has other weights, so bytes of another's would show.
    let models = [1, 2, 3].map(|seed| Model::new(2, seed));
    let fleet = || Generation::ALL.iter().zip(&models);
    let seeds: Vec<Worker> =
        fleet().map(|(generation, model)| generation.start(model, &planner.url(), &[])).collect();
    for seed in &seeds {
        seed.serving();
    }
    let forks: Vec<(Worker, &Model)> = fleet()
        .flat_map(|(generation, model)| {
            let peer = generation.start(model, &planner.url(), &[]);
            [(start_ours(*generation, model, &planner), model), (peer, model)]
        })
        .collect();
    for (fork, model) in &forks {
        assert_loaded(fork, model, "seed");
        fork.serving();
    }
    until("every release", || (planner.snapshot()["lease_count"] == 0).then_some(()));
    assert_eq!(planner.snapshot()["seed_count"], 9);
}

#[test]
fn a_peer_whose_metadata_disagrees_moves_no_byte() {
    let cases = [
        // With the shapes of its second URL.
        (Generation::A, "shape", "shape [1024, 512] here and [2048, 256] at the seed"),
        (Generation::A, "element-size", "element size 2 here and 4 at the seed"),
        (Generation::B, "count", "count 524288 here and 262144 at the seed"),
        (Generation::B, "missing", "'layers.0.weight' is missing at the seed"),
        (Generation::B, "extra", "'layers.0.weight.extra' is missing here"),
        (Generation::C, "dtype", "dtype bfloat16 here and float16 at the seed"),
        (Generation::C, "format", "format 2 here and 29 at the seed"),
    ];
    let model = Model::new(1, 1);
    for (generation, how, expected) in cases {
        let planner = Planner::start(&[]);
        let disagree = format!("--disagree={how}");
        let peer = generation.start(&model, &planner.url(), &["--no-extension", &disagree]);
        peer.serving();
        let ours = start_ours(generation, &model, &planner);
        assert_loaded(&ours, &model, "storage");
        let refusal =
            ours.process.said("the seed holds another model under this key: no byte is read").remove(0);
        assert!(refusal["error"].as_str().unwrap().contains(expected), "{how}: {refusal}");
        assert!(
            peer.process.said("a reader connected").is_empty(),
            "{how}: somebody connected to the engine"
        );
    }
}

#[test]
fn a_peer_without_the_tcp_engine_is_passed_over() {
    let model = Model::new(1, 1);
    for generation in Generation::ALL {
        let planner = Planner::start(&[]);
        let peer = generation.start(&model, &planner.url(), &["--no-extension"]);
        peer.serving();
        let ours = start_ours(generation, &model, &planner);
        assert_loaded(&ours, &model, "storage");
        let why = ours.process.said("the seed is passed over").remove(0);
        assert!(why["reason"].as_str().unwrap().contains("its engine is yuanrong"), "{why}");
        assert!(peer.process.said("a reader connected").is_empty(), "somebody connected to the engine");
    }
}

#[test]
fn a_peer_whose_engine_is_on_another_host_is_warned_of_once() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    // Of two, so that there is a second time.
    let peers = ["--session=127.9.9.1:9", "--session=127.9.9.2:9"];
    let flags = |session| ["--no-extension", session];
    let peers = peers.map(|session| Generation::B.start(&model, &planner.url(), &flags(session)));
    for peer in &peers {
        peer.serving();
    }
    let ours = start_ours(Generation::B, &model, &planner);
    assert_loaded(&ours, &model, "storage");
    assert_eq!(ours.process.said("the seed is passed over").len(), 2);
    let warned = "a seed names a transfer engine on another host";
    let warnings = ours.process.log();
    let warnings =
        warnings.iter().filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(warned)));
    assert_eq!(warnings.count(), 1);
}

#[test]
fn only_the_last_generation_keeps_its_lease_over_a_long_read() {
    for generation in [Generation::B, Generation::C] {
        let (model, planner) = (Model::new(24, 1), Planner::start(&["--lease-ttl-sec=1"]));
        let flags = [generation.flags(), &["--rfork-seed-max-gib-per-sec=0.012"]].concat();
        let ours = Worker::start("ours", &model, &planner.url(), &flags);
        ours.serving();
        let peer = generation.start(&model, &planner.url(), &[]);
        assert_loaded(&peer, &model, "seed");
        let renewed = peer.process.said("renewed");
        let released = peer.process.said("released")[0]["status"].clone();
        if generation == Generation::C {
            assert!(!renewed.is_empty() && renewed.iter().all(|line| line["status"] == 200), "{renewed:?}");
            assert_eq!(released, 200);
        } else {
            assert_eq!((renewed.len(), released), (0, 404.into()), "it ended, and another could have read");
        }
    }
}
