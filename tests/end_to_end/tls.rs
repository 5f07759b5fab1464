//! A planner that speaks TLS, and those who come to it.

use std::path::PathBuf;
use std::process::{Command, Output};

use rfork_test_authority::{Authority, replace};
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker, rfork};
use rfork_tests::until;
use serde_json::Value;
use tempfile::TempDir;

const TOKEN: &str = "everybody-0123456789abcdef";

/// Files of a planner at 127.0.0.1, of those who come to it, and of a CA that vouches for others.
struct Home {
    directory: TempDir,
    authority: Authority,
}

impl Home {
    fn new() -> Self {
        let home = Self { directory: TempDir::new().unwrap(), authority: Authority::new() };
        home.certify(&home.authority);
        replace(&home.path("ca.crt"), &home.authority.pem());
        replace(&home.path("other.crt"), &Authority::new().pem());
        replace(&home.path("token"), TOKEN);
        let tokens = format!(
            "[[principal]]\nname = 'everybody'\nroles = ['worker', 'operator']\ntokens = ['{TOKEN}']\n"
        );
        replace(&home.path("tokens.toml"), &tokens);
        home
    }

    fn certify(&self, authority: &Authority) {
        authority.issue(&["127.0.0.1"]).write(&self.path("tls.crt"), &self.path("tls.key"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn flag(&self, flag: &str, file: &str) -> String {
        format!("--{flag}={}", self.path(file).display())
    }

    fn planner(&self) -> Planner {
        let flags =
            [("tls-cert-file", "tls.crt"), ("tls-key-file", "tls.key"), ("token-file", "tokens.toml")];
        let flags = flags.map(|(flag, file)| self.flag(flag, file));
        Planner::start(&flags.each_ref().map(String::as_str))
    }

    /// Runs a command that shows the token.
    fn run(&self, arguments: &[&str]) -> Output {
        let token = self.flag("token-file", "token");
        Command::new(rfork()).args(arguments).arg(token).output().unwrap()
    }
}

fn https(planner: &Planner) -> String {
    format!("https://{}", planner.address)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn workers_fork_by_a_planner_that_their_ca_vouches_for_and_keep_to_it_while_cas_change() {
    let home = Home::new();
    let (model, planner) = (Model::new(2, 1), home.planner());
    let url = https(&planner);
    let shows = home.flag("rfork-token-file", "token");
    let trusts = |ca: &str| home.flag("rfork-planner-ca-file", ca);
    let flags = [shows.as_str(), &trusts("ca.crt"), "--rfork-heartbeat-interval-sec=0.1"];
    let seed = Worker::start("seed", &model, &url, &flags);
    let serving = seed.serving();
    let fork = Worker::start("fork", &model, &url, &[&shows, &trusts("ca.crt"), "--once"]);
    assert_eq!(fork.loaded().source, "seed");
    // Who believes others, or the system's alone, is no worker of it, and says why.
    for (name, more) in [("other", vec![trusts("other.crt")]), ("system", Vec::new())] {
        let flags: Vec<&str> =
            [shows.as_str(), "--once"].into_iter().chain(more.iter().map(String::as_str)).collect();
        let stranger = Worker::start(name, &model, &url, &flags);
        assert_eq!(stranger.loaded().source, "storage");
        stranger.process.wait_until("why", |line| line.to_string().contains("invalid peer certificate"));
    }

    // Another CA takes over while the seed runs: workers believe both, then the planner has a certificate of the new one,
    // then workers believe that alone.
    let next = Authority::new();
    replace(&home.path("ca.crt"), &(home.authority.pem() + &next.pem()));
    let heard = || {
        let output = home.run(&["inspect", "planner", &url, "--json", &home.flag("ca-file", "both.crt")]);
        let snapshot: Value = serde_json::from_slice(&output.stdout).ok()?;
        snapshot["seeds"][&serving.identity]["last_heartbeat_ts"].as_f64()
    };
    replace(&home.path("both.crt"), &(home.authority.pem() + &next.pem()));
    home.certify(&next);
    planner.process.wait_for("certificate and key were read anew");
    replace(&home.path("ca.crt"), &next.pem());
    let before = heard();
    until("a heartbeat by the new CA", || (heard() > before).then_some(()));
    // A wrong file changes nothing.
    replace(&home.path("ca.crt"), "nothing");
    seed.process.wait_for("the CAs of the planner are not replaced; those before stay in force");
    let before = heard();
    until("a heartbeat by the last good file", || (heard() > before).then_some(()));
    assert_eq!(seed.process.said("serving").len(), 1, "it is a seed all along");
}

#[test]
fn commands_come_to_a_planner_that_their_ca_vouches_for() {
    let home = Home::new();
    let planner = home.planner();
    let url = https(&planner);
    let by_flag = format!("--planner={url}");
    let commands: [&[&str]; 3] = [
        &["inspect", "planner", &url],
        &["explain", &by_flag, "--seed-key=k"],
        &["selftest", &by_flag, "--wait-sec=0"],
    ];
    for command in commands {
        let with = |more: &[&str]| home.run(&[command, more].concat());
        let done = with(&[&home.flag("ca-file", "ca.crt")]);
        assert!(done.status.success(), "{command:?}: {}", told(&done));
        for (ca, why) in
            [("other.crt", "certificate"), ("none.crt", "No such file"), ("token", "holds no certificate")]
        {
            let refused = with(&[&home.flag("ca-file", ca)]);
            assert!(
                !refused.status.success() && told(&refused).contains(why),
                "{command:?}: {}",
                told(&refused)
            );
        }
        // In plain: what to do is said.
        let plain: Vec<String> = command.iter().map(|word| word.replace("https://", "http://")).collect();
        let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        let refused = home.run(&plain);
        assert!(!refused.status.success(), "{command:?}");
        let refused = home.run(&[&plain[..], &[&home.flag("ca-file", "ca.crt")]].concat());
        assert!(told(&refused).contains("--ca-file is for a planner at https://"), "{}", told(&refused));
    }
}
