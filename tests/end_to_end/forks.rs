//! Workers that fork from others.

use std::sync::atomic::{AtomicBool, Ordering};

use rfork_tests::http::request;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;
use rfork_tests::until;
use serde_json::Value;

#[test]
fn a_worker_forks_from_another_and_serves_on() {
    let (model, planner) = (Model::new(8, 1), Planner::start(&[]));
    let first = Worker::start("first", &model, &planner.url(), &[]);
    let seed = first.serving();
    assert_eq!(first.loaded().source, "storage");
    assert_eq!(first.loaded().digest, model.digest());
    assert_eq!(seed.key, "m$s$kv_both$0$0$tcp");

    let mut second = Worker::start("second", &model, &planner.url(), &[]);
    let fork = second.serving();
    let loaded = second.loaded();
    assert_eq!((loaded.source.as_str(), loaded.bytes_from_seeds), ("seed", model.bytes));
    assert_eq!(loaded.digest, model.digest());
    assert_eq!(loaded.shares, [(format!("seed {}", seed.identity), model.bytes)]);
    // The lease is given back, in the background.
    until("the release", || (planner.snapshot()["lease_count"] == 0).then_some(()));

    // Both serve the same content, and the fork is as good a seed as its own.
    let content = |address: &str| {
        let metadata = request(address, "GET", &info_path(&seed.key), &[]).unwrap().json();
        metadata["rfork_rs"]["content_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(content(&seed.address), content(&fork.address));

    // A worker that ends takes its advertisement back.
    assert_eq!(second.process.terminate().code(), Some(0));
    let snapshot = planner.snapshot();
    assert_eq!(snapshot["seed_count"], 1);
    assert!(snapshot["seeds"][&seed.identity].is_object(), "{snapshot}");
}

#[test]
fn without_a_seed_or_a_planner_a_worker_loads_from_storage() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let cases = [
        ("no seed", planner.url(), "127.0.0.1"),
        ("no planner", "http://127.0.0.1:9".to_owned(), "127.0.0.1"),
        ("no such host", "http://planner.invalid:1223".to_owned(), "0.0.0.0"),
    ];
    for (name, url, bind) in cases {
        let bind = format!("--rfork-seed-bind-host={bind}");
        let mut worker = Worker::start(name, &model, &url, &["--once", &bind]);
        let loaded = worker.loaded();
        assert_eq!((loaded.source.as_str(), loaded.digest), ("storage", model.digest()), "{name}");
        assert_eq!(worker.process.wait().code(), Some(0), "{name}");
    }
}

#[test]
fn sixteen_workers_at_once_share_one_seed() {
    let (model, planner) = (Model::new(4, 1), Planner::start(&[]));
    let first = Worker::start("first", &model, &planner.url(), &[]);
    first.serving();
    let loading = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0;
            while loading.load(Ordering::SeqCst) {
                let snapshot = planner.snapshot();
                let seeds = snapshot["seeds"].as_object().unwrap();
                for (identity, seed) in seeds {
                    let (used, total) = (&seed["resource_used"], &seed["resource_total"]);
                    assert!(used.as_u64() <= total.as_u64(), "{identity} is over-booked: {used} of {total}");
                }
                most = most.max(snapshot["lease_count"].as_u64().unwrap());
            }
            most
        });
        let workers: Vec<Worker> = (0..16)
            .map(|id| {
                Worker::start(&format!("worker {id}"), &model, &planner.url(), &["--rfork-seed-wait-sec=300"])
            })
            .collect();
        for worker in &workers {
            worker.serving();
            let loaded = worker.loaded();
            assert_eq!((loaded.source.as_str(), loaded.digest), ("seed", model.digest()));
        }
        loading.store(false, Ordering::SeqCst);
        assert!(watching.join().unwrap() > 0, "no lease was ever seen");
        until("every release", || (planner.snapshot()["lease_count"] == 0).then_some(()));
        assert_eq!(planner.snapshot()["seed_count"], 17);
    });
}

#[test]
fn keys_keep_workers_apart() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let ranks = [["--tp-rank=0"], ["--tp-rank=1"]];
    let seeds: Vec<Worker> =
        ranks.iter().map(|rank| Worker::start("seed", &model, &planner.url(), rank)).collect();
    let identities: Vec<String> = seeds.iter().map(|seed| seed.serving().identity).collect();
    assert!(seeds.iter().all(|seed| seed.loaded().source == "storage"));
    for (rank, identity) in ranks.iter().zip(identities) {
        let fork = Worker::start("fork", &model, &planner.url(), &[rank[0], "--once"]);
        assert_eq!(fork.loaded().shares, [(format!("seed {identity}"), model.bytes)]);
    }
}

#[test]
fn metadata_has_the_fields_that_the_key_s_clients_read() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    let digest_key = "ab".repeat(32);
    let by_digest = format!("--seed-key={digest_key}");
    let cases: [(&[&str], usize); 4] = [
        (&[], 3),
        (&["--rfork-seed-metadata-fields=5"], 5),
        (&[&by_digest], 5),
        (&[&by_digest, "--rfork-seed-metadata-fields=3"], 3),
    ];
    for (flags, fields) in cases {
        let worker = Worker::start("seed", &model, &planner.url(), flags);
        let serving = worker.serving();
        let metadata = request(&serving.address, "GET", &info_path(&serving.key), &[]).unwrap().json();
        let entries = metadata["rfork_transfer_engine_info"][1].as_object().unwrap();
        assert!(entries.values().all(|entry| entry.as_array().unwrap().len() == fields), "{flags:?}");
        assert_eq!(metadata["rfork_protocol_version"], 1);
        let wrong = request(&serving.address, "GET", &info_path("other"), &[]).unwrap().json();
        assert_eq!(wrong["rfork_transfer_engine_info"], Value::Null);
    }
}
