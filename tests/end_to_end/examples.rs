//! The loader's examples, as programs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rfork_tests::model::Model;
use rfork_tests::process::{Planner, example};
use rfork_tests::until;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn one_example_forks_from_the_other() {
    let (model, planner) = (Model::new(4, 1), Planner::start(&[]));
    let url = planner.url();
    let command = |name| {
        let mut command = Command::new(example(name));
        command.arg(&url).arg(model.path());
        command
    };
    let mut seed = command("seed").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(seed.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let identity = line.trim_end().strip_prefix("serving as ").unwrap_or_else(|| panic!("{line:?}"));

    let fork = command("fork").output().unwrap();
    let said = String::from_utf8(fork.stdout).unwrap();
    let bytes = model.bytes;
    assert_eq!(said, format!("loaded {bytes} bytes, {bytes} from seed {identity}\n"));
    assert_eq!(fork.status.code(), Some(0));
    until("the release", || (planner.snapshot()["lease_count"] == 0).then_some(()));

    kill_process(Pid::from_child(&seed), Signal::INT).unwrap();
    assert_eq!(seed.wait().unwrap().code(), Some(0));
    assert_eq!(planner.snapshot()["seed_count"], 0, "a seed that ends takes its advertisement back");
}
