//! A seed with weights of its own under somebody else's key: with a pin nobody reads them, and without one whoever asks does.

use std::process::Command;

use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker, rfork};
use rfork_tests::until;
use tempfile::TempDir;

const BLAKE3: &str = "--rfork-digest=blake3";

/// Two models of one shape.
fn models() -> (Model, Model) {
    let (model, other) = (Model::new(2, 1), Model::new(2, 2));
    assert_ne!(model.digest(), other.digest());
    (model, other)
}

/// As an operator finds it.
fn content_id(model: &Model) -> String {
    let path = model.path().to_str().unwrap();
    let told = Command::new(rfork()).args(["digest", path, "--algorithm", "blake3"]).output().unwrap();
    assert!(told.status.success(), "{told:?}");
    String::from_utf8(told.stdout).unwrap().trim().to_owned()
}

#[test]
fn without_a_pin_a_false_seed_is_read() {
    let ((model, other), planner) = (models(), Planner::start(&[]));
    let seed = Worker::start("false seed", &other, &planner.url(), &[BLAKE3]);
    seed.serving();
    let fork = Worker::start("fork", &model, &planner.url(), &["--once"]);
    assert_eq!((fork.loaded().source.as_str(), fork.loaded().digest), ("seed", other.digest()));
}

#[test]
fn with_a_pin_a_false_seed_is_neither_offered_nor_read() {
    let (model, other) = models();
    let home = TempDir::new().unwrap();
    let rules = home.path().join("rules.toml");
    let text = format!("[[pin]]\nkey = 'm$s$*'\ncontent = ['{}']\n", content_id(&model));
    std::fs::write(&rules, text).unwrap();
    let planner = Planner::start(&[&format!("--settings-file={}", rules.display())]);
    let seed = Worker::start("false seed", &other, &planner.url(), &[BLAKE3]);
    seed.process.wait_until("why it is no seed", |line| line.to_string().contains("not-pinned"));
    until("no seed", || (planner.snapshot()["seed_count"] == 0).then_some(()));
    // One whose digests are against accidents alone says nothing that can be compared.
    let plain = Worker::start("plain", &model, &planner.url(), &[]);
    plain.process.wait_until("why it is no seed", |line| line.to_string().contains("rfork_digest=blake3"));

    let honest = Worker::start("honest", &model, &planner.url(), &[BLAKE3]);
    let identity = honest.serving().identity;
    assert_eq!((honest.loaded().source.as_str(), honest.loaded().digest), ("storage", model.digest()));
    until("the honest seed", || (planner.snapshot()["seeds"][&identity].is_object()).then_some(()));
    let fork = Worker::start("fork", &model, &planner.url(), &["--once"]);
    assert_eq!(fork.loaded().shares, [(format!("seed {identity}"), model.bytes)]);
    assert_eq!(fork.loaded().digest, model.digest());
    // Nothing of it fails: it has loaded, and would serve.
    assert!(seed.loaded().digest == other.digest());
}
