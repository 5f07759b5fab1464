//! A planner that asks who asks, and those who tell it.

use std::path::Path;
use std::process::{Command, Output};

use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker, rfork};
use rfork_tests::until;
use tempfile::TempDir;

const WORKER: &str = "worker-0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef";

/// A file with these tokens of workers, and one of an operator.
fn write_tokens(path: &Path, of_workers: &[&str]) {
    let text = format!(
        "[[principal]]\nname = 'workers'\nroles = ['worker']\ntokens = {of_workers:?}\n\
         [[principal]]\nname = 'on-call'\nroles = ['operator', 'metrics']\ntokens = ['{OPERATOR}']\n"
    );
    std::fs::write(path, text).unwrap();
}

fn run(arguments: &[&str]) -> Output {
    Command::new(rfork()).args(arguments).output().unwrap()
}

#[test]
fn workers_with_a_token_fork_and_those_without_load_from_storage() {
    let home = TempDir::new().unwrap();
    let (tokens, token) = (home.path().join("tokens.toml"), home.path().join("token"));
    write_tokens(&tokens, &[WORKER]);
    std::fs::write(&token, WORKER).unwrap();
    let (model, planner) =
        (Model::new(2, 1), Planner::start(&[&format!("--token-file={}", tokens.display())]));
    let shows = format!("--rfork-token-file={}", token.display());
    let seed = Worker::start("seed", &model, &planner.url(), &[&shows, "--rfork-heartbeat-interval-sec=0.1"]);
    let serving = seed.serving();
    let fork = Worker::start("fork", &model, &planner.url(), &[&shows, "--once"]);
    assert_eq!(fork.loaded().source, "seed");
    let stranger = Worker::start("stranger", &model, &planner.url(), &["--once"]);
    assert_eq!(stranger.loaded().source, "storage");
    // By a log a stranger learns why.
    stranger.process.wait_until("why it has no seed", |line| line.to_string().contains("unauthenticated"));

    // The token is replaced while the seed runs: both are good, then only the new one, and it is a seed all along.
    let other = "other-0123456789abcdef";
    write_tokens(&tokens, &[WORKER, other]);
    let seeds = |token: &str| {
        let authorization = format!("Bearer {token}");
        planner
            .request("GET", "/get_seed", &[("SEED_KEY", "nobody's"), ("Authorization", &authorization)])
            .status
    };
    until("the new token", || (seeds(other) == 404).then_some(()));
    std::fs::write(&token, other).unwrap();
    write_tokens(&tokens, &[other]);
    // Or 429, after as many wrong ones as there were until now.
    until("the end of the old token", || [401, 429].contains(&seeds(WORKER)).then_some(()));
    let heard = || {
        let authorization = format!("Bearer {OPERATOR}");
        let snapshot = planner.request("GET", "/debug/snapshot", &[("Authorization", &authorization)]).json();
        snapshot["seeds"][&serving.identity]["last_heartbeat_ts"].as_f64()
    };
    let before = heard();
    until("a heartbeat with the new token", || (heard() > before).then_some(()));
    let fork = Worker::start("later", &model, &planner.url(), &[&shows, "--once"]);
    assert_eq!(fork.loaded().source, "seed");

    // No token in any log.
    for process in [&seed.process, &stranger.process, &planner.process] {
        assert!(!process.log().iter().any(|line| line.to_string().contains("0123456789abcdef")));
    }
}

#[test]
fn commands_show_a_token_and_say_what_is_wrong_with_it() {
    let home = TempDir::new().unwrap();
    let [tokens, worker, operator] = ["tokens.toml", "worker", "operator"].map(|name| home.path().join(name));
    write_tokens(&tokens, &[WORKER]);
    std::fs::write(&worker, format!("{WORKER}\n")).unwrap();
    std::fs::write(&operator, OPERATOR).unwrap();
    let planner = Planner::start(&[&format!("--token-file={}", tokens.display())]);
    let url = planner.url();
    let by_flag = format!("--planner={url}");
    let shows = |path: &Path| format!("--token-file={}", path.display());
    let commands: [(&[&str], &Path, &Path); 3] = [
        (&["inspect", "planner", &url], &operator, &worker),
        (&["explain", &by_flag, "--seed-key=k"], &operator, &worker),
        (&["selftest", &by_flag, "--wait-sec=0"], &worker, &operator),
    ];
    for (command, right, wrong) in commands {
        let said = |more: &[&str]| {
            let output = run(&[command, more].concat());
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert!(said(&[&shows(right)]).0, "{command:?}: {}", said(&[&shows(right)]).1);
        for (more, why) in [
            (None, "unauthenticated"),
            (Some(wrong), "forbidden"),
            (Some(&home.path().join("none")), "No such file"),
        ] {
            let more: Vec<String> = more.map(shows).into_iter().collect();
            let (success, told) = said(&more.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(!success && told.contains(why), "{command:?} {more:?}: {told}");
            assert!(!told.contains("0123456789abcdef"), "{told}");
        }
        // Nothing is sent where others may read it on its way.
        let far: Vec<String> =
            command.iter().map(|word| word.replace("127.0.0.1", "planner.invalid")).collect();
        let far: Vec<&str> = far.iter().map(String::as_str).collect();
        let output = run(&[&far[..], &[&shows(right)]].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains("--token-over-http"), "{command:?}: {told}");
    }
}
