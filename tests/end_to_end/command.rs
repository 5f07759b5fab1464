//! The `rfork` command, as people use it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker, rfork};
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(rfork()).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn the_demo_forks_three_workers_with_equal_digests() {
    let output = run(&["demo", "--size=8MiB", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report = json(&output);
    assert_eq!(report["ok"], true);
    let workers = report["workers"].as_array().unwrap();
    let sources: Vec<&str> = workers.iter().map(|worker| worker["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["storage", "seed", "seed", "seed"]);
    for worker in workers {
        assert_eq!(worker["digest"], report["model"]["digest"]);
        assert_eq!(worker["bytes"], report["model"]["bytes"]);
        assert_eq!(worker["seed"].is_string(), worker["source"] == "seed", "{worker}");
        assert_eq!(worker["source_worker"].is_u64(), worker["source"] == "seed", "{worker}");
        assert!(worker["depth"].is_u64(), "{worker}");
        assert!(worker["first_byte_seconds"].as_f64() <= worker["last_byte_seconds"].as_f64(), "{worker}");
    }
    assert!(
        !std::path::Path::new(report["model"]["path"].as_str().unwrap()).exists(),
        "the model was not removed"
    );
}

#[test]
fn the_demo_takes_a_model_that_is_there() {
    let model = Model::new(4, 7);
    let path = model.path().to_str().unwrap();
    let output = run(&["demo", "--model", path, "--workers=2", "--json"]);
    assert_eq!(json(&output)["model"]["digest"], model.digest());
    assert!(output.status.success() && model.file().exists());
    let table = run(&["demo", "--model", path, "--workers=2"]);
    let shown = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(shown.contains(&model.digest()) && shown.contains("every worker holds"), "{shown}");
}

#[test]
fn inspect_shows_what_planner_and_seed_say() {
    let (model, planner) = (Model::new(2, 1), Planner::start(&[]));
    let worker = Worker::start("seed", &model, &planner.url(), &[]);
    let serving = worker.serving();
    let table = run(&["inspect", "planner", &planner.url()]);
    let shown = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        shown.contains(&serving.identity) && shown.contains("0/1") && shown.contains("offered"),
        "{shown}"
    );
    let snapshot = json(&run(&["inspect", "planner", &planner.url(), "--json"]));
    assert_eq!(snapshot["seeds"][&serving.identity]["seed_key"], serving.key.as_str());

    let url = format!("http://{}", serving.address);
    let table = run(&["inspect", "seed", &url, "--seed-key", &serving.key]);
    let shown = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(shown.contains("layers.1.weight") && shown.contains("bfloat16"), "{shown}");
    let seed = json(&run(&["inspect", "seed", &url, "--seed-key", &serving.key, "--json"]));
    assert_eq!((seed["bytes"].as_u64(), &seed["engine"]), (Some(model.bytes), &"tcp".into()));
    assert!(
        seed["tensors"][0]["address"].is_null(),
        "where its memory is is nobody's who does not read by it"
    );

    let wrong = run(&["inspect", "seed", &url, "--seed-key", "other"]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("another seed key"), "{wrong:?}");
    assert!(!run(&["inspect", "planner", "nonsense"]).status.success());
    assert!(!run(&["inspect", "planner", "http://127.0.0.1:9"]).status.success());
}

#[test]
fn explain_tells_why_a_seed_would_be_given_or_not() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    let explain = |more: &[&str]| {
        let url = planner.url();
        let told = run(&[&["explain", "--planner", &url], more].concat());
        (told.status.success(), String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned())
    };
    let (ok, shown) = explain(&["--seed-key", "nobody's"]);
    assert!(ok && shown.contains("no seed of this key"), "{shown}");
    let worker = Worker::start("seed", &model, &planner.url(), &[]);
    let serving = worker.serving();
    let (ok, shown) = explain(&["--seed-key", &serving.key, "--zone", "z"]);
    assert!(ok && shown.contains(&format!("would be given {}", serving.identity)), "{shown}");
    let excluded = ["--seed-key", &serving.key, "--exclude", &serving.identity];
    let (ok, shown) = explain(&excluded);
    assert!(ok && shown.contains("given no seed") && shown.contains("excluded by the request"), "{shown}");
    let told = explain(&[&excluded[..], &["--json"]].concat()).1;
    assert!(told.contains(r#""grant":null"#) && told.contains(r#""verdict":"excluded""#), "{told}");
    let (ok, shown) = explain(&["--seed-key", "k", "--exclude", "nonsense"]);
    assert!(!ok && shown.contains("nonsense"), "{shown}");
}

#[test]
fn digest_prints_what_workers_name_the_weights_by_that_read_the_files() {
    let (model, planner) = (Model::new(8, 1), Planner::start(&[]));
    let path = model.path().to_str().unwrap();
    let digest = |more: &[&str]| {
        let output = run(&[&["digest", path], more].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    // The second one has the other setting: it takes what the seed has.
    let first = Worker::start("first", &model, &planner.url(), &["--rfork-digest=blake3"]);
    first.serving();
    let second = Worker::start("second", &model, &planner.url(), &["--once"]);
    let by_blake3 = digest(&["--algorithm=blake3"]);
    assert!(by_blake3.starts_with("blake3:"), "{by_blake3}");
    for worker in [&first, &second] {
        assert_eq!(worker.loaded().digest, model.digest());
        assert_eq!(worker.process.wait_for("loaded")["content_id"], by_blake3.as_str());
    }
    assert_eq!(second.loaded().source, "seed");
    let (model_of_others, alone) = (Model::new(8, 2), Planner::start(&[]));
    assert_ne!(digest(&[]), by_blake3);
    let by_crc = Worker::start("by-crc", &model, &alone.url(), &["--once"]);
    assert_eq!(by_crc.process.wait_for("loaded")["content_id"], digest(&[]).as_str());
    let other = run(&["digest", model_of_others.path().to_str().unwrap(), "--json"]);
    assert_ne!(json(&other)["content_id"], digest(&[]).as_str());
    let missing = run(&["digest", "/nothing/here"]);
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("/nothing/here"));
}

#[test]
fn selftest_goes_through_what_workers_ask_and_leaves_nothing() {
    let planner = Planner::start(&[]);
    let output = run(&["selftest", "--planner", &planner.url()]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && shown.ends_with("the planner works\n"), "{output:?}");
    let snapshot = json(&run(&["inspect", "planner", &planner.url(), "--json"]));
    assert_eq!((snapshot["seed_count"].as_u64(), snapshot["lease_count"].as_u64()), (Some(0), Some(0)));

    // Not a planner: whoever answers at that address says 404 to all.
    let (model, key) = (Model::new(1, 3), "k");
    let worker = Worker::start("seed", &model, &planner.url(), &["--seed-key", key]);
    let other = format!("http://{}", worker.serving().address);
    for (url, said) in
        [(other.as_str(), "404"), ("http://127.0.0.1:9", "did not answer"), ("nonsense", "URL")]
    {
        let failed = run(&["selftest", "--planner", url, "--wait-sec", "0"]);
        let error = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && error.contains(said), "{url}: {error}");
    }
}

#[test]
fn selftest_waits_for_a_planner_that_is_not_there_yet() {
    let mut planner = Planner::start(&[]);
    planner.process.kill();
    let mut selftest = Command::new(rfork())
        .args(["selftest", "--planner", &planner.url(), "--wait-sec", "600"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(selftest.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("waiting for the planner, up to 600 s: "), "{said}");
    planner.restart();
    let output = selftest.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.ends_with(b"the planner works\n"), "{output:?}");
}

#[test]
fn a_worker_s_bad_setting_is_refused_by_name() {
    let model = Model::new(1, 1);
    let path = model.path().to_str().unwrap();
    let base = ["worker", "--model", path, "--model-url=m", "--model-deploy-strategy-name=s"];
    let planner = "--rfork-scheduler-url=http://127.0.0.1:9";
    let cases: [(&[&str], &str); 5] = [
        (&[], "rfork_scheduler_url"),
        (&["--rfork-scheduler-url=planner"], "--rfork-scheduler-url must be the URL of a planner"),
        (&[planner, "--rfork-heartbeat-interval-sec=-1"], "--rfork-heartbeat-interval-sec"),
        (&[planner, "--rfork-seed-port-base=65536"], "--rfork-seed-port-base"),
        (&[planner, "--config=/no/such/file"], "--config"),
    ];
    for (flags, expected) in cases {
        let output =
            Command::new(rfork()).args(base).args(flags).env_remove("RFORK_SCHEDULER_URL").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{flags:?}: {said}");
    }
}
