//! Which addresses a worker listens at, tells others and answers at, on machines with IPv4, IPv6 or both.

use rfork_tests::model::Model;
use rfork_tests::network::Network;
use rfork_tests::process::{Process, Worker};
use tempfile::TempDir;

const IPV4: &str = "10.9.0.1";
const IPV6: &str = "fd00:10::1";
const BOTH: &str = "ip addr add 10.9.0.1/32 dev lo; ip -6 addr add fd00:10::1/128 dev lo";
/// Names of both families, IPv6 first, and IPv4 first.
const NAMES: &str = "::1 localhost\n127.0.0.1 localhost\nfd00:10::1 six-first\n10.9.0.1 six-first\n\
    10.9.0.1 four-first\nfd00:10::1 four-first\n";

/// Processes of one network of its own.
struct Host {
    network: Network,
    model: Model,
    directory: TempDir,
}

impl Host {
    /// A machine with the addresses that `setup`, a shell command, gives it.
    fn new(setup: &str) -> Option<Self> {
        let network = Network::new()?;
        network.names(NAMES);
        network.run(setup);
        let directory = TempDir::with_prefix("rfork-test-addresses-").unwrap();
        Some(Self { network, model: Model::new(1, 1), directory })
    }

    /// A planner that listens at `host`, on port 1223.
    fn planner(&self, host: &str) -> Process {
        let database = format!("sqlite:{}", self.directory.path().join("planner.db").display());
        let arguments = ["planner", "--host", host, "--database-url", &database, "--drain-sec=0"];
        let planner = Process::start_in(&self.network, "planner", &arguments);
        planner.wait_for("the planner listens");
        planner
    }

    fn worker(&self, name: &str, planner: &str, flags: &[&str]) -> Worker {
        let model = format!("--model={}", self.model.path().display());
        let url = format!("--rfork-scheduler-url=http://{planner}:1223");
        let arguments =
            ["worker", "--digest", "--model-url=m", "--model-deploy-strategy-name=s", &model, &url];
        Worker { process: Process::start_in(&self.network, name, &[&arguments[..], flags].concat()) }
    }

    /// Where another worker gets its weights.
    fn source_of_another(&self, planner: &str) -> String {
        let loaded = self.worker("another", planner, &["--once"]).loaded();
        assert_eq!(loaded.digest, self.model.digest());
        loaded.source
    }
}

/// With default settings the first worker tells others to come to `told`, and another does.
fn others_come_to(told: &str, setup: &str, listens: &str, planner: &str) {
    let Some(host) = Host::new(setup) else { return };
    let _planner = host.planner(listens);
    let first = host.worker("first", planner, &[]);
    let identity = first.serving().identity;
    assert!(
        identity.starts_with(&format!("{told}:")),
        "{identity}, not {told}: {setup}, {listens}, {planner}"
    );
    assert_eq!(host.source_of_another(planner), "seed", "{setup}, {listens}, {planner}");
}

#[test]
fn a_machine_with_one_family_needs_no_settings() {
    others_come_to(
        "[fd00:10::1]",
        "ip -4 addr flush dev lo; ip -6 addr add fd00:10::1/128 dev lo",
        "::",
        "[fd00:10::1]",
    );
    let ipv4 = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip addr add 10.9.0.1/32 dev lo";
    others_come_to(IPV4, ipv4, "0.0.0.0", IPV4);
}

#[test]
fn of_both_families_the_one_counts_by_which_the_planner_was_reached() {
    others_come_to(IPV4, BOTH, "::", IPV4);
    others_come_to("[fd00:10::1]", BOTH, "::", "[fd00:10::1]");
    // A name has both, and the planner one, whichever comes first.
    for name in ["six-first", "four-first"] {
        others_come_to(IPV4, BOTH, IPV4, name);
        others_come_to("[fd00:10::1]", BOTH, IPV6, name);
    }
    others_come_to("127.0.0.1", BOTH, "127.0.0.1", "localhost");
    others_come_to("[::1]", BOTH, "::1", "localhost");
    let four_first = format!("{BOTH}; printf '127.0.0.1 localhost\\n::1 localhost\\n' >/etc/hosts");
    others_come_to("127.0.0.1", &four_first, "127.0.0.1", "localhost");
    others_come_to("[::1]", &four_first, "::1", "localhost");
}

#[test]
fn a_system_that_keeps_families_apart_by_default_needs_no_settings() {
    let apart = format!("echo 1 >/proc/sys/net/ipv6/bindv6only; {BOTH}");
    others_come_to(IPV4, &apart, IPV4, IPV4);
    others_come_to("[fd00:10::1]", &apart, IPV6, "[fd00:10::1]");
    // A planner on every address is there for both families.
    others_come_to(IPV4, &apart, "::", IPV4);
    others_come_to("[fd00:10::1]", &apart, "::", "[fd00:10::1]");
}

#[test]
fn a_worker_that_nobody_reaches_says_what_to_set_and_stays() {
    let Some(host) = Host::new(BOTH) else { return };
    let _planner = host.planner("::");
    // Time enough for a slow machine to answer itself.
    let timeout = "--rfork-seed-timeout-sec=5";
    let first = host.worker("first", "[fd00:10::1]", &["--rfork-seed-bind-host=0.0.0.0", timeout]);
    let said = first.process.wait_for("nobody can fork from this worker");
    let error = said["error"].as_str().unwrap();
    for part in [
        "[fd00:10::1]:",
        "rfork_seed_bind_host is 0.0.0.0",
        "listens on IPv4 alone",
        "rfork_seed_advertise_host",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(host.source_of_another("[fd00:10::1]"), "storage");
    let mut first = first;
    assert_eq!(first.process.terminate().code(), Some(0), "it ended by itself");
}

#[test]
fn a_worker_that_comes_to_be_reached_becomes_a_seed() {
    let Some(host) = Host::new(BOTH) else { return };
    let _planner = host.planner("::");
    let flags = ["--rfork-seed-advertise-host=10.9.0.7", "--rfork-seed-timeout-sec=5"];
    let first = host.worker("first", IPV4, &flags);
    first.process.wait_for("nobody can fork from this worker");
    assert_eq!(host.source_of_another(IPV4), "storage");
    host.network.run("ip addr add 10.9.0.7/32 dev lo");
    first.process.wait_for("others reach this worker now: it becomes a seed");
    first.process.wait_for("the planner has this seed");
    assert_eq!(host.source_of_another(IPV4), "seed");
}
