//! Settings, as processes take them: from flags, files and the environment.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use rfork_tests::cluster::{Cluster, sql};
use rfork_tests::loopback;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Process, Worker, rfork};
use tempfile::TempDir;

/// Each variable that the documents know; a test of the command sees to it that these are all.
fn variables() -> BTreeSet<&'static str> {
    let names = include_str!("../../docs/settings.md").split('`');
    let own = |name: &&str| name.starts_with("RFORK_") || name.starts_with("MODEL_");
    let all: BTreeSet<&str> = names.filter(own).filter(|name| !name.contains('=')).collect();
    assert!(all.len() > 30, "{all:?}");
    all
}

/// The command with nothing of ours in its environment.
fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(rfork());
    command.args(["--log-format=json"]).args(arguments).stdin(Stdio::null());
    for name in variables() {
        command.env_remove(name);
    }
    command
}

/// What a command that does not start says.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[test]
fn variables_that_are_empty_are_not_set() {
    let home = TempDir::new().unwrap();
    let database = format!("--database-url=sqlite:{}", home.path().join("p.db").display());
    let mut command = bare(&["planner", "--port=0", &database]);
    let planner = Process::spawn("planner", command.envs(variables().into_iter().map(|name| (name, ""))));
    let address = planner.wait_for("the planner listens")["address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");

    let model = Model::new(1, 1);
    let path = format!("--model={}", model.path().display());
    let url = format!("--rfork-scheduler-url=http://{address}");
    let mut command = bare(&["worker", &path, &url, "--model-url=m", "--model-deploy-strategy-name=s"]);
    let worker = Process::spawn("worker", command.envs(variables().into_iter().map(|name| (name, ""))));
    worker.wait_for("serving");
}

#[test]
fn empty_variables_of_the_database_s_driver_are_not_set() {
    const NAMES: [&str; 12] = [
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
        "PGSSLMODE",
        "PGSSLROOTCERT",
        "PGSSLCERT",
        "PGSSLKEY",
        "PGAPPNAME",
        "PGOPTIONS",
    ];
    let cluster = Cluster::shared();
    let url = cluster.database();
    let mut command = bare(&["planner", "--port=0", "--database-url", &url]);
    let planner = Process::spawn("planner", command.envs(NAMES.map(|name| (name, ""))));
    planner.wait_for("the planner listens");
    let named = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'rfork-planner' AND datname = current_database()";
    assert_eq!(sql(&url, named).unwrap(), "t");
    // What it would set is not for who lends sessions to others.
    let mut command = bare(&["planner", "--port=0", "--database-url", &url]);
    let said = refusal(command.env("PGOPTIONS", "-c search_path=planner"));
    assert!(said.contains("got PGOPTIONS in the environment: give it as options=... in the URL"), "{said}");
}

#[test]
fn a_bad_value_is_refused_with_its_variable() {
    let free = ["HOST", "DATABASE_URL_FILE", "SETTINGS_FILE"].map(|name| format!("RFORK_CFG_{name}"));
    for name in variables().into_iter().filter(|name| name.starts_with("RFORK_CFG_")) {
        if !free.contains(&name.to_owned()) {
            let said = refusal(bare(&["planner"]).env(name, "per:haps"));
            assert!(said.starts_with(&format!("error: {name} in the environment (--")), "{said}");
        }
    }
    for name in ["RFORK_LOG", "RFORK_LOG_FORMAT"] {
        let mut command = Command::new(rfork());
        let said = refusal(command.args(["inspect", "planner", "http://127.0.0.1:9"]).env(name, "in=fo=x"));
        assert!(said.starts_with(&format!("error: {name} in the environment (--log")), "{said}");
    }
    let worker = ["worker", "--model=none", "--model-url=m", "--model-deploy-strategy-name=s"];
    let worker =
        |more: &[&str]| bare(&[&worker[..], &["--rfork-scheduler-url=http://127.0.0.1:9"], more].concat());
    let said = refusal(worker(&[]).env("RFORK_MODEL_IDENTITY_HEADERS", "yes"));
    assert!(said.contains("error: RFORK_MODEL_IDENTITY_HEADERS in the environment (--rfork-model"), "{said}");
    let said = refusal(worker(&[]).env("RFORK_ZONE", "z".repeat(300)));
    assert!(said.contains("error: RFORK_ZONE in the environment (--rfork-zone) must be "), "{said}");
    let said = refusal(&mut worker(&["--rfork-rack="]));
    assert!(said.contains("error: --rfork-rack must be a text of 1 to 256 bytes"), "{said}");
}

#[test]
fn a_bad_value_is_refused_with_its_file_and_line() {
    let home = TempDir::new().unwrap();
    let (worker, rules) = (home.path().join("worker.json"), home.path().join("rules.toml"));
    std::fs::write(&worker, "{\n  \"model_url\": \"m\",\n  \"rfork_seed_port_base\": \"80\"\n}\n").unwrap();
    let (config, model) = (format!("--config={}", worker.display()), "--model=none");
    let said = refusal(&mut bare(&["worker", model, &config]));
    assert!(
        said.contains(&format!("error: {} line 3: rfork_seed_port_base must be ", worker.display())),
        "{said}"
    );
    std::fs::write(&worker, "{\n  \"model_url\": }\n").unwrap();
    let said = refusal(&mut bare(&["worker", model, &config]));
    assert!(said.contains("is not JSON: ") && said.contains("line 2"), "{said}");
    std::fs::write(&rules, "[[capacity]]\nkey = 'k'\nleases = 0\n").unwrap();
    let said = refusal(bare(&["planner", "--port=0"]).env("RFORK_CFG_SETTINGS_FILE", &rules));
    assert!(said.contains("RFORK_CFG_SETTINGS_FILE") && said.contains("rules.toml line 3: "), "{said}");
}

#[test]
fn a_fixed_port_that_cannot_be_had_is_replaced_by_a_free_one() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    // Of an address that nobody else has: no other process takes it in between.
    let (host, port) = (loopback(), 61_000);
    let taken = TcpListener::bind((host, port)).unwrap();
    let said = "a free port is taken instead of the one of rfork_seed_port_base";
    let (base, bind) = (format!("--rfork-seed-port-base={port}"), format!("--rfork-seed-bind-host={host}"));
    let worker = Worker::start("its port is taken", &model, &planner.url(), &[&base, &bind]);
    worker.serving();
    assert_eq!(worker.process.said(said).len(), 1);
    drop(taken);
    let worker = Worker::start("its port is free", &model, &planner.url(), &[&base, &bind]);
    assert!(worker.serving().address.ends_with(&format!(":{port}")));
    // It counts the rank among all, and 30,000 of them are beyond the last port.
    let flags = [&base[..], &bind, "--tp-rank=1", "--global-rank=30000"];
    let worker = Worker::start("beyond the last port", &model, &planner.url(), &flags);
    assert!(worker.serving().identity.ends_with(":1"));
    assert_eq!(
        worker.process.said("rfork_seed_port_base leads beyond the last port: a free one is taken").len(),
        1
    );
}
