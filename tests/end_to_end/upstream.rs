//! What upstream's newest workers and its own tests count on, beside what all generations do: a test for each, on real
//! planners and real workers. What its planner answers otherwise is in `docs/migrating.md`.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;

use rfork_tests::front::Front;
use rfork_tests::http::Answer;
use rfork_tests::model::Model;
use rfork_tests::peer::Generation;
use rfork_tests::process::{Planner, Process, Worker, rfork};
use rfork_tests::{loopback, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Slow enough for a test to step in: 16 MiB take about a second.
const SLOW: &str = "--rfork-seed-max-gib-per-sec=0.015";

const SEED: [(&str, &str); 3] = [("SEED_KEY", "k"), ("SEED_IP", "10.0.0.7"), ("SEED_PORT", "8000")];

/// The headers of [`SEED`] with some more, or others instead.
fn seed<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut headers: BTreeMap<&str, &str> = SEED.into();
    headers.extend(more.iter().copied());
    headers.into_iter().collect()
}

fn granted(planner: &Planner, key: &str) -> Option<Answer> {
    let answer = planner.request("GET", "/get_seed", &[("SEED_KEY", key)]);
    assert!(matches!(answer.status, 200 | 404), "{answer:?}");
    (answer.status == 200).then_some(answer)
}

#[test]
fn rank_and_count_are_optional_wherever_they_stand() {
    let planner = Planner::start(&[]);
    let post = |path, headers: &[(&str, &str)]| planner.request("POST", path, headers).status;
    for rank in [None, Some("0"), Some("")] {
        let rank: Vec<_> = rank.map(|rank| ("SEED_RANK", rank)).into_iter().collect();
        assert_eq!(post("/add_seed", &seed(&rank)), 200);
        let granted = granted(&planner, "k").unwrap();
        assert_eq!(granted.header("seed_rank"), "0", "clients take no answer without it");
        let lease = [&seed(&rank)[..], &[("USER_ID", granted.header("user_id"))]].concat();
        assert_eq!(post("/renew_seed_lease", &lease), 200);
        assert_eq!(post("/put_seed", &lease), 200);
    }
    assert_eq!(planner.snapshot()["seed_count"], 1, "an absent rank is rank 0");
    assert_eq!(post("/remove_seed", &SEED), 200);
    assert_eq!(post("/add_seed", &seed(&[("SEED_RANK", "3"), ("SEED_REFCNT", "0")])), 200);
    assert_eq!(post("/remove_seed", &SEED), 404, "another rank is another seed");

    for (name, value, text) in [
        ("SEED_RANK", "-1", "header SEED_RANK must be >= 0, got -1"),
        ("SEED_RANK", "x", "invalid integer header SEED_RANK: x"),
        ("SEED_REFCNT", "-1", "header SEED_REFCNT must be >= 0, got -1"),
        ("SEED_REFCNT", "1.0", "invalid integer header SEED_REFCNT: 1.0"),
    ] {
        let refused = planner.request("POST", "/add_seed", &seed(&[(name, value)]));
        assert_eq!((refused.status, String::from_utf8_lossy(&refused.body).trim()), (400, text));
    }
}

/// A worker is a seed only once its release was acknowledged: any other answer than 200 and 404 puts that off, or ends
/// it for good.
#[test]
fn a_release_is_answered_at_once_and_once_whatever_else_is_asked() {
    const READERS: u32 = 16;
    let planner = &Planner::start(&["--default-resource-points=8"]);
    let ended: u32 = std::thread::scope(|scope| {
        let reader = |number: u32| {
            move || {
                let key = format!("key {}", number % 4);
                let headers =
                    seed(&[("SEED_KEY", &key), ("SEED_PORT", if number % 2 == 1 { "1" } else { "2" })]);
                let mut ended = 0;
                for _ in 0..40 {
                    // It moves from one key to another meanwhile, which ends leases under their holders.
                    assert_eq!(planner.request("POST", "/add_seed", &headers).status, 200);
                    let Some(granted) = granted(planner, &key) else { continue };
                    let lease =
                        [("SEED_IP", granted.header("seed_ip")), ("SEED_PORT", granted.header("seed_port"))];
                    let lease = [&lease[..], &[("USER_ID", granted.header("user_id"))]].concat();
                    for repeated in [false, true] {
                        let status = planner.request("POST", "/put_seed", &lease).status;
                        assert!(
                            if repeated { status == 404 } else { matches!(status, 200 | 404) },
                            "{status}"
                        );
                        ended += u32::from(status == 200);
                    }
                }
                ended
            }
        };
        let readers: Vec<_> = (0..READERS).map(|number| scope.spawn(reader(number))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(ended > 0);
    assert_eq!(planner.snapshot()["lease_count"], 0);
}

#[test]
fn a_receiver_of_upstream_s_advertises_itself_when_a_planner_that_was_away_takes_its_release() {
    let (model, mut planner) = (Model::new(16, 1), Planner::start(&[]));
    let ours = Worker::start("ours", &model, &planner.url(), &[Generation::C.flags(), &[SLOW]].concat());
    ours.serving();
    let receiver = Generation::C.start(&model, &planner.url(), &["--release-retry-sec=0.1"]);
    receiver.process.wait_for("reading");
    planner.process.kill();
    assert_eq!(receiver.loaded().digest, model.digest());
    receiver.process.wait_until("a release that nobody took", |line| {
        line["message"] == "released" && line["status"] == 0
    });
    assert!(receiver.process.said("serving").is_empty());
    planner.restart();
    receiver.process.wait_until("the acknowledgement", |line| {
        line["message"] == "released" && line["status"].as_u64() > Some(0)
    });
    assert_eq!(receiver.process.said("released").last().unwrap()["status"], 200, "the lease had been kept");
    receiver.serving();
    until("that both are seeds", || (planner.snapshot()["seed_count"] == 2).then_some(()));
}

#[test]
fn a_silent_seed_without_a_lease_is_gone_for_everybody_who_looks() {
    // Nothing is ever swept here.
    let planner = Planner::start(&["--heartbeat-ttl-sec=1", "--heartbeat-sweep-sec=3600"]);
    let post = |path, headers: &[(&str, &str)]| planner.request("POST", path, headers).status;
    assert_eq!(post("/add_seed", &SEED), 200);
    assert_eq!(post("/add_seed", &seed(&[("SEED_KEY", "leased"), ("SEED_PORT", "8001")])), 200);
    let lease = granted(&planner, "leased").unwrap().header("user_id").to_owned();
    let snapshot = until("that both fell silent", || {
        let snapshot = planner.snapshot();
        (snapshot["seeds"]["10.0.0.7:8001:0"]["draining"] == true).then_some(snapshot)
    });
    assert_eq!((&snapshot["seed_count"], &snapshot["lease_count"]), (&1.into(), &1.into()), "{snapshot}");
    let listed = planner.request("GET", "/v2/seeds", &[]).json();
    assert_eq!(listed["seeds"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(post("/remove_seed", &SEED), 404);

    let leased = seed(&[("SEED_PORT", "8001"), ("USER_ID", &lease)]);
    assert_eq!(post("/renew_seed_lease", &leased), 200);
    assert_eq!(post("/put_seed", &leased), 200);
    assert_eq!(planner.snapshot()["seed_count"], 0, "its last lease has ended");
    until("that a heartbeat brings it back", || {
        assert_eq!(post("/add_seed", &SEED), 200);
        granted(&planner, "k")
    });
}

#[test]
fn over_v1_a_lease_is_renewed_by_the_time_that_it_was_told_be_it_no_whole_number() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&[]));
    let front = Front::before(&planner.address);
    front.hide_v2();
    front.tell_lease_ttl_sec("0.75");
    let source = Worker::start("seed", &model, &planner.url(), &[SLOW]);
    source.serving();
    let reader = Worker::start("reader", &model, &front.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!((loaded.digest, loaded.bytes_from_seeds), (model.digest(), model.bytes));
    assert!(!front.requests_to("/renew_seed_lease").is_empty(), "the whole read took less than 0.25 s");
    assert!(reader.process.said("the lease is gone").is_empty());
    until("its release", || (!front.requests_to("/put_seed").is_empty()).then_some(()));
}

#[test]
fn over_v1_a_renewal_that_is_answered_404_ends_the_read() {
    let (model, planner) = (Model::new(16, 1), Planner::start(&[]));
    let front = Front::before(&planner.address);
    front.hide_v2();
    // Renewed every 0.1 s, of the several seconds that the read takes.
    front.tell_lease_ttl_sec("0.3");
    let source = Worker::start("seed", &model, &planner.url(), &["--rfork-seed-max-gib-per-sec=0.004"]);
    let serving = source.serving();
    let reader = Worker::start("reader", &model, &front.url(), &["--once"]);
    reader.reading_from_a_seed();
    let (address, rank) = serving.identity.rsplit_once(':').unwrap();
    let (host, port) = address.rsplit_once(':').unwrap();
    let elsewhere = [("SEED_KEY", "elsewhere"), ("SEED_IP", host), ("SEED_PORT", port), ("SEED_RANK", rank)];
    assert_eq!(planner.request("POST", "/add_seed", &elsewhere).status, 200);
    let loaded = reader.loaded();
    assert!(!reader.process.said("the lease is gone").is_empty());
    assert_eq!(loaded.digest, model.digest());
    assert!(loaded.bytes_from_seeds < model.bytes, "{loaded:?}");
    assert!(front.requests_to("/put_seed").is_empty(), "what is gone is not released");
}

#[test]
fn tensors_may_be_named_by_64_hex_digits() {
    let (model, planner) = (Model::with_digests_as_names(2, 1), Planner::start(&[]));
    let theirs = Generation::C.start(&model, &planner.url(), &[]);
    theirs.serving();
    let ours = Worker::start("ours", &model, &planner.url(), Generation::C.flags());
    let serving = ours.serving();
    assert_eq!((ours.loaded().source.as_str(), ours.loaded().digest), ("seed", model.digest()));
    let again = Generation::C.start(&model, &planner.url(), &[]);
    assert_eq!((again.loaded().source.as_str(), again.loaded().digest), ("seed", model.digest()));
    let info = rfork_tests::proxy::info_path(&serving.key);
    let told = rfork_tests::http::request(&serving.address, "GET", &info, &[]).unwrap().json();
    assert_eq!(told["rfork_protocol_version"], 1);
    let names = told["rfork_transfer_engine_info"][1].as_object().unwrap();
    assert!(names.len() == 4 && names.keys().all(|name| name.len() == 64));
}

#[test]
fn no_answer_to_a_removal_is_a_redirect() {
    let planner = Planner::start(&[]);
    // With a base URL that ends with a slash, too.
    for path in ["/remove_seed", "//remove_seed"] {
        assert_eq!(planner.request("POST", path, &SEED).status, 404);
        assert_eq!(planner.request("POST", "/add_seed", &SEED).status, 200);
        assert_eq!(planner.request("POST", path, &SEED).status, 200);
    }
}

/// A worker with settings as inference engines pass them, in a file, and with an environment.
fn configured(name: &str, settings: &Value, environment: &[(&str, &str)], flags: &[&str]) -> Worker {
    let directory = TempDir::with_prefix("rfork-test-settings-").unwrap();
    let file = directory.path().join("settings.json");
    std::fs::write(&file, settings.to_string()).unwrap();
    let mut command = Command::new(rfork());
    command.args(["--log-format=json", "--log=info,rfork_loader=debug", "worker", "--digest", "--config"]);
    command.arg(&file).args(flags).envs(environment.iter().copied()).env_remove("RFORK_LOG");
    // Read before anything else is done, and gone with its process.
    let worker = Worker { process: Process::spawn(name, &mut command) };
    worker.process.wait_until("that it has read its settings", |_| true);
    worker
}

/// The settings that every worker needs, with some more, or others instead.
fn settings(scheduler_url: &str, more: &Value) -> Value {
    let mut settings = json!({
        "model_url": "m",
        "model_deploy_strategy_name": "s",
        "rfork_scheduler_url": scheduler_url,
        "rfork_seed_bind_host": "127.0.0.1",
    });
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    settings
}

#[test]
fn forms_of_a_seed_s_address_are_one_seed_and_told_plainly() {
    let planner = Planner::start(&[]);
    let post = |path, headers: &[(&str, &str)]| planner.request("POST", path, headers).status;
    for (told, plain) in [
        (["10.0.0.7", "http://10.0.0.7", "https://10.0.0.7"], "10.0.0.7"),
        (["node-3.example", "http://node-3.example", "https://node-3.example"], "node-3.example"),
        (["[fd00::7]", "fd00::7", "[fd00::7]:8000"], "fd00::7"),
        // A 4xx would end a worker's seed service; readers come to SEED_PORT.
        (["[fd00::9]:9", "fd00::9", "http://[fd00::9]:9"], "fd00::9"),
    ] {
        let key = format!("key of {plain}");
        for form in told {
            let headers = seed(&[("SEED_KEY", &key), ("SEED_IP", form)]);
            assert_eq!(post("/add_seed", &headers), 200, "{form}");
            let answer = granted(&planner, &key).unwrap();
            let host = answer.header("seed_ip").trim_matches(['[', ']']).to_owned();
            assert_eq!((host.as_str(), answer.header("seed_port")), (plain, "8000"), "{form}");
            let lease = [&headers[..], &[("USER_ID", answer.header("user_id"))]].concat();
            assert_eq!(post("/renew_seed_lease", &lease), 200, "{form}");
            assert_eq!(post("/put_seed", &lease), 200, "{form}");
        }
        let seeds = planner.snapshot()["seeds"].clone();
        let of_key: Vec<_> =
            seeds.as_object().unwrap().values().filter(|seed| seed["seed_key"] == *key).collect();
        assert_eq!(of_key.len(), 1, "{seeds}");
        assert_eq!(post("/remove_seed", &seed(&[("SEED_KEY", &key), ("SEED_IP", told[1])])), 200);
    }
    for bad in ["ftp://10.0.0.7", "http://", "http://a b", "http://u@10.0.0.7", "http://10.0.0.7/x y"] {
        assert_eq!(post("/add_seed", &seed(&[("SEED_IP", bad)])), 400, "{bad}");
    }
}

#[test]
fn model_and_deployment_are_told_in_headers_when_that_is_switched_on() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    let flags = [&format!("--model={}", model.path().display()), "--once"];
    let tells = |more: &Value, environment: Option<&str>| {
        let front = Front::before(&planner.address);
        front.hide_v2();
        let environment: Vec<_> =
            environment.map(|value| ("RFORK_MODEL_IDENTITY_HEADERS", value)).into_iter().collect();
        configured("worker", &settings(&front.url(), more), &environment, &flags).loaded();
        let asked = front.requests_to("/get_seed");
        let told = |name: &str| asked[0].to_ascii_lowercase().contains(name);
        let all = ["\r\nmodel_url: m\r\n", "\r\ndeploy_strategy: s\r\n", "\r\nis_draft: false\r\n"].map(told);
        assert!(all.iter().all(|one| *one == all[0]), "{asked:?}");
        all[0]
    };
    let nothing = json!({});
    assert!(!tells(&nothing, None));
    for (text, on) in [("1", true), ("TRUE", true), (" True ", true), ("0", false), (" false", false)] {
        assert_eq!(tells(&nothing, Some(text)), on, "{text:?}");
    }
    for (field, text) in [(true, "0"), (true, "what"), (false, "1")] {
        assert_eq!(
            tells(&json!({"rfork_model_identity_headers": field}), Some(text)),
            field,
            "the field wins"
        );
    }
}

/// Asserts that a worker does not start, and says why in a line with these words.
fn assert_refused(more: &Value, environment: &[(&str, &str)], words: &[&str]) {
    let model = Model::new(1, 1);
    let flags = [&format!("--model={}", model.path().display()), "--once"];
    let mut worker = configured("worker", &settings("http://127.0.0.1:9", more), environment, &flags);
    worker.process.wait_until("why it does not start", |line| {
        let line = line.to_string();
        words.iter().all(|word| line.contains(word))
    });
    assert!(!worker.process.wait().success(), "{more}, {environment:?}");
}

#[test]
fn settings_that_upstream_refuses_end_the_start_by_name() {
    let headers = "rfork_model_identity_headers";
    for value in [Value::Null, json!("true"), json!(1), json!([])] {
        assert_refused(&json!({headers: value}), &[], &[headers]);
    }
    for text in ["2", "true!"] {
        let variable = "RFORK_MODEL_IDENTITY_HEADERS";
        assert_refused(&json!({}), &[(variable, text)], &[variable]);
    }
    // Headers carry ASCII alone.
    for field in ["model_url", "model_deploy_strategy_name"] {
        assert_refused(&json!({headers: true, field: "models/é"}), &[], &[field, "ASCII"]);
    }
    for field in [
        "rfork_heartbeat_interval_sec",
        "rfork_lease_release_max_attempts",
        "rfork_lease_release_retry_interval_sec",
    ] {
        for value in [Value::Null, json!("30"), json!(0), json!(-1), json!(true)] {
            assert_refused(&json!({field: value}), &[], &[field]);
        }
    }
}

#[test]
fn numbers_as_text_are_taken_from_the_environment_alone() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    let flags = [&format!("--model={}", model.path().display()), "--once"];
    let start = |more: &Value, environment: &[(&str, &str)]| {
        let worker = configured("worker", &settings(&planner.url(), more), environment, &flags);
        worker.loaded();
        worker.process.log().iter().map(ToString::to_string).collect::<String>()
    };
    let field = "rfork_request_timeout_sec";
    let said = start(&json!({field: "7"}), &[]);
    assert!(said.contains(field) && said.contains("WARN"), "{said}");
    let said = start(&json!({}), &[("RFORK_REQUEST_TIMEOUT_SEC", "7.5")]);
    assert!(!said.contains(field), "{said}");
}

#[test]
fn a_port_that_cannot_be_had_is_replaced_by_a_free_one_and_offsets_count_all_ranks() {
    let (model, planner) = (Model::new(1, 1), Planner::start(&[]));
    // Ports of an address that is likely nobody else's.
    let host = loopback().to_string();
    let base = 20_000 + 2 * fastrand::u16(..1_000);
    let taken = TcpListener::bind((host.as_str(), base)).unwrap();
    let start = |base: u16, ranks: &[&str]| {
        let place =
            ["--rfork-seed-bind-host=", "--rfork-seed-advertise-host="].map(|flag| format!("{flag}{host}"));
        let base = format!("--rfork-seed-port-base={base}");
        let flags = [&[place[0].as_str(), place[1].as_str(), base.as_str()], ranks].concat();
        let worker = Worker::start("worker", &model, &planner.url(), &flags);
        let identity = worker.serving().identity;
        let (address, rank) = identity.rsplit_once(':').unwrap();
        let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let warned =
            worker.process.log().iter().any(|line| line.to_string().contains("rfork_seed_port_base"));
        (port, rank.to_owned(), warned)
    };
    let (port, _, warned) = start(0, &[]);
    assert!(port > 0 && !warned);
    let (port, _, warned) = start(base, &[]);
    assert!(port != base && warned, "{port}");
    let (port, _, warned) = start(65_535, &["--global-rank=1"]);
    assert!(port > 0 && warned, "{port}");
    // A draft takes the next one; the planner is told the tensor-parallel rank.
    let placed = start(base, &["--global-rank=3", "--tp-rank=1"]);
    assert_eq!(placed, (base + 6, "1".into(), false));
    let placed = start(base, &["--global-rank=3", "--tp-rank=1", "--draft"]);
    assert_eq!(placed, (base + 7, "1".into(), false));
    drop(taken);
}
