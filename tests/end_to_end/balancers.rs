//! Planners behind nginx and behind haproxy, with the configurations that the documentation gives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rfork_tests::balancer::{Balancer, Kind};
use rfork_tests::cluster::Cluster;
use rfork_tests::http::{Answer, request, request_from};
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::{loopback, until};

/// How long nginx leaves out a planner that failed: `fail_timeout` in its configuration.
const NGINX_FAIL_TIMEOUT: Duration = Duration::from_secs(5);

/// Three planners over one database, and a balancer before them.
fn planners(kind: Kind) -> (Balancer, Vec<Planner>) {
    let url = Cluster::shared().database();
    let start = |_| Planner::start_on(&url, &["--host", &loopback().to_string()]);
    let planners: Vec<Planner> = (0..3).map(start).collect();
    let [one, two, three] = &planners[..] else { unreachable!() };
    (Balancer::start(kind, [&one.address, &two.address, &three.address]), planners)
}

/// One request through the balancer.
fn ask(balancer: &Balancer, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(&balancer.address, method, path, headers).unwrap()
}

/// The headers that register a seed.
fn seed<'a>(key: &'a str, ip: &'a str) -> [(&'a str, &'a str); 5] {
    [("SEED_KEY", key), ("SEED_IP", ip), ("SEED_PORT", "8000"), ("SEED_RANK", "3"), ("SEED_REFCNT", "0")]
}

/// The headers that name a granted lease.
fn lease(granted: &Answer) -> [(&'static str, &str); 4] {
    ["SEED_IP", "SEED_PORT", "SEED_RANK", "USER_ID"].map(|name| (name, granted.header(&name.to_lowercase())))
}

fn every_request_of_v1_passes(kind: Kind) {
    let (balancer, planners) = planners(kind);
    // The longest key that there may be, of bytes that a proxy might take for something.
    let key = format!("/models/é$%C3%A9 \"x\"{}", "k".repeat(8 * 1024));
    let key = &key[..8 * 1024];
    let seed = seed(key, "10.0.0.7");
    assert_eq!(ask(&balancer, "POST", "/add_seed", &seed).status, 200);
    let known = planners[0].snapshot();
    assert_eq!(known["seeds"]["10.0.0.7:8000:3"]["seed_key"], key, "the key came through as it is");

    let probed = ask(&balancer, "HEAD", "/get_seed", &seed[..1]);
    assert_eq!((probed.status, planners[0].snapshot()["lease_count"].as_u64()), (405, Some(0)));
    // A base URL that ends in a slash.
    let granted = ask(&balancer, "GET", "//get_seed", &seed[..1]);
    assert_eq!((granted.status, granted.header("lease_ttl_sec")), (200, "60"), "{granted:?}");
    assert_eq!(lease(&granted)[..3], seed[1..4]);
    let refused = ask(&balancer, "GET", "/get_seed", &seed[..1]);
    assert_eq!((refused.status, &refused.body[..]), (404, &b"no available seed"[..]));
    let missing = ask(&balancer, "GET", "/get_seed", &[]);
    assert_eq!((missing.status, &missing.body[..]), (400, &b"missing required header: SEED_KEY"[..]));

    assert_eq!(ask(&balancer, "POST", "/renew_seed_lease", &lease(&granted)).status, 200);
    assert_eq!(ask(&balancer, "POST", "/remove_seed", &seed[..4]).status, 409);
    assert_eq!(ask(&balancer, "POST", "/put_seed", &lease(&granted)).status, 200);
    assert_eq!(ask(&balancer, "POST", "/put_seed", &lease(&granted)).status, 404);
    assert_eq!(planners[0].snapshot()["seed_count"], 0, "it went with its last lease");
}

#[test]
fn every_request_of_v1_passes_nginx() {
    every_request_of_v1_passes(Kind::Nginx);
}

#[test]
fn every_request_of_v1_passes_haproxy() {
    every_request_of_v1_passes(Kind::Haproxy);
}

fn workers_fork_and_a_killed_planner_is_passed_over(kind: Kind) {
    let (balancer, mut planners) = planners(kind);
    let model = Model::new(2, 1);
    let first = Worker::start("seed", &model, &balancer.url(), &[]);
    let serving = first.serving();
    let mut reader = Worker::start("reader", &model, &balancer.url(), &["--once"]);
    let loaded = reader.loaded();
    assert_eq!(loaded.shares, [(format!("seed {}", serving.identity), model.bytes)]);
    assert_eq!(loaded.digest, model.digest());
    assert_eq!(reader.process.wait().code(), Some(0));

    let seeds: Vec<String> = (0..16).map(|number| format!("10.0.0.{number}")).collect();
    for planner in &mut planners[..2] {
        planner.process.kill();
        let killed = Instant::now();
        // Not one heartbeat fails, the first after the death of a planner included.
        for ip in &seeds {
            let answer = ask(&balancer, "POST", "/add_seed", &seed("k", ip));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        // By now it is known to be dead, and no worker is sent there to ask for a seed.
        for _ in &seeds {
            let granted = ask(&balancer, "GET", "/get_seed", &[("SEED_KEY", "k")]);
            if kind == Kind::Nginx && granted.status == 502 && killed.elapsed() > NGINX_FAIL_TIMEOUT {
                // A slow machine has come so far only when nginx tries the dead one again.
                continue;
            }
            assert_eq!(granted.status, 200, "{granted:?}");
            assert_eq!(ask(&balancer, "POST", "/put_seed", &lease(&granted)).status, 200);
        }
    }
    planners[0].restart();
    planners[2].process.kill();
    // The one that is back is found again.
    until("a heartbeat to the planner that is back", || {
        (ask(&balancer, "POST", "/add_seed", &seed("k", "10.0.0.1")).status == 200).then_some(())
    });
}

#[test]
fn workers_fork_and_a_killed_planner_is_passed_over_by_nginx() {
    workers_fork_and_a_killed_planner_is_passed_over(Kind::Nginx);
}

#[test]
fn workers_fork_and_a_killed_planner_is_passed_over_by_haproxy() {
    workers_fork_and_a_killed_planner_is_passed_over(Kind::Haproxy);
}

#[test]
fn a_planner_that_is_stopped_in_order_is_left_by_haproxy_before_it_closes() {
    let (balancer, mut planners) = planners(Kind::Haproxy);
    std::thread::scope(|scope| {
        let stopped = planners.remove(0);
        let stopping = scope.spawn(|| {
            let mut stopped = stopped;
            stopped.process.terminate()
        });
        let mut rounds = 0;
        while !stopping.is_finished() {
            assert_eq!(ask(&balancer, "POST", "/add_seed", &seed("k", "10.0.0.1")).status, 200);
            let granted = ask(&balancer, "GET", "/get_seed", &[("SEED_KEY", "k")]);
            assert_eq!(granted.status, 200, "{granted:?}");
            assert_eq!(ask(&balancer, "POST", "/put_seed", &lease(&granted)).status, 200);
            rounds += 1;
        }
        assert!(stopping.join().unwrap().success() && rounds > 10, "{rounds} rounds");
    });
}

#[test]
fn a_worker_that_leaves_while_it_waits_leaves_the_queue_behind_nginx() {
    let (balancer, planners) = planners(Kind::Nginx);
    assert_eq!(ask(&balancer, "POST", "/add_seed", &seed("k", "10.0.0.1")).status, 200);
    let granted = ask(&balancer, "GET", "/get_seed", &[("SEED_KEY", "k")]);
    assert_eq!(granted.status, 200);
    let waiting = |count: u64| {
        until(&format!("that {count} wait"), || {
            let keys = planners[0].request("GET", "/v2/keys", &[]).json();
            (keys["keys"][0]["waiting"] == count).then_some(())
        });
    };
    let mut worker = TcpStream::connect(&balancer.address).unwrap();
    let body = r#"{"seed_key":"k","wait_ms":3600000}"#;
    let head = format!(
        "POST /v2/leases HTTP/1.1\r\nHost: planner\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    worker.write_all(format!("{head}{body}").as_bytes()).unwrap();
    waiting(1);
    // Its time is not over before the test's is.
    drop(worker);
    waiting(0);
}

fn a_worker_is_where_its_address_is(kind: Kind) {
    let directory = tempfile::TempDir::with_prefix("rfork-test-locations-").unwrap();
    let (near, far, file) = (loopback(), loopback(), directory.path().join("settings.toml"));
    let rule = |network: &str, zone: &str| format!("[[location]]\nnetwork = {network:?}\nzone = {zone:?}\n");
    let rules = [rule(&format!("{near}/32"), "a"), rule(&format!("{far}/32"), "b"), rule("10.1.0.0/16", "a")];
    std::fs::write(&file, rules.concat() + &rule("10.2.0.0/16", "b")).unwrap();
    let settings = format!("--settings-file={}", file.display());
    // By the balancer's own address everybody would be in zone b.
    let planner = Planner::start(&["--trusted-proxies=127.0.0.1/32,::1/128", &settings]);
    for ip in ["10.1.0.1", "10.2.0.1"] {
        assert_eq!(planner.request("POST", "/add_seed", &seed("k", ip)).status, 200);
    }
    let balancer = Balancer::start(kind, [&planner.address; 3].map(String::as_str));
    for (from, expected) in [(near, "10.1.0.1"), (far, "10.2.0.1"), (near, "10.1.0.1")] {
        // What a worker says of itself is not believed.
        let forged = [("SEED_KEY", "k"), ("X-Forwarded-For", "10.2.0.9")];
        let granted = request_from(from, &balancer.address, "GET", "/get_seed", &forged).unwrap();
        assert_eq!((granted.status, granted.header("seed_ip")), (200, expected), "{from}: {granted:?}");
        assert_eq!(planner.request("POST", "/put_seed", &lease(&granted)).status, 200);
    }
}

#[test]
fn a_worker_is_where_its_address_is_behind_nginx() {
    a_worker_is_where_its_address_is(Kind::Nginx);
}

#[test]
fn a_worker_is_where_its_address_is_behind_haproxy() {
    a_worker_is_where_its_address_is(Kind::Haproxy);
}

/// A planner that takes every `get_seed` and dies of it, and is well otherwise; gives its address and its deaths.
fn dying_planner() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let deaths = Arc::new(AtomicUsize::new(0));
    let counted = deaths.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            if head.starts_with(b"GET /get_seed") {
                counted.fetch_add(1, Ordering::SeqCst);
            } else {
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        }
    });
    (address, deaths)
}

fn a_get_seed_whose_answer_is_lost_is_not_sent_again(kind: Kind) {
    let (dying, deaths) = dying_planner();
    let planner = Planner::start(&[]);
    for number in 0..32 {
        let ip = format!("10.0.0.{number}");
        assert_eq!(planner.request("POST", "/add_seed", &seed("k", &ip)).status, 200);
    }
    let balancer = Balancer::start(kind, [&dying, &planner.address, &planner.address]);
    let mut granted = 0;
    let failed = until("a get_seed that kills a planner", || {
        let answer = ask(&balancer, "GET", "/get_seed", &[("SEED_KEY", "k")]);
        match answer.status {
            200 => granted += 1,
            status => assert_eq!(status, 502, "{answer:?}"),
        }
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(deaths.load(Ordering::SeqCst), 1, "{failed:?}");
    assert_eq!(planner.snapshot()["lease_count"].as_u64(), Some(granted), "a lease that nobody knows of");
}

#[test]
fn a_get_seed_whose_answer_is_lost_is_not_sent_again_by_nginx() {
    a_get_seed_whose_answer_is_lost_is_not_sent_again(Kind::Nginx);
}

#[test]
fn a_get_seed_whose_answer_is_lost_is_not_sent_again_by_haproxy() {
    a_get_seed_whose_answer_is_lost_is_not_sent_again(Kind::Haproxy);
}
