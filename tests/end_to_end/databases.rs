//! Planners and what stands between them and their database, or becomes of it: poolers, decisions that nothing is to be
//! written, full disks, other servers, and a file that another planner has.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rfork_tests::cluster::{Cluster, sql, sql_with};
use rfork_tests::http::post_within;
use rfork_tests::pooler::{self, Pooler};
use rfork_tests::process::{Planner, Process, rfork};
use rfork_tests::{DEADLINE, skip, until};
use serde_json::json;

/// Whose points workers take and give back: fewer than workers.
const SEEDS: usize = 4;
const WORKERS: usize = 6;
const ROUNDS: usize = 40;

fn add(planner: &Planner, seed: usize) -> u16 {
    let ip = format!("10.0.{}.{}", seed / 256, seed % 256);
    let headers = [("SEED_IP", ip.as_str()), ("SEED_PORT", "9"), ("SEED_RANK", "0")];
    let headers = [&headers[..], &[("SEED_KEY", "k"), ("SEED_REFCNT", "0")]].concat();
    planner.request("POST", "/add_seed", &headers).status
}

fn readyz(planner: &Planner) -> u16 {
    planner.request("GET", "/readyz", &[]).status
}

/// Workers at all planners in turns, as many as there are; gives how often each status was answered. No point is ever
/// leased twice.
fn work(planners: &[Planner]) -> BTreeMap<u16, usize> {
    let (statuses, leased) = (Mutex::new(BTreeMap::new()), Mutex::new(BTreeSet::new()));
    let count = |status: u16| *statuses.lock().unwrap().entry(status).or_default() += 1;
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (count, leased) = (&count, &leased);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let at = |step: usize| &planners[(worker + round + step) % planners.len()];
                    count(add(at(0), worker % SEEDS));
                    let granted = at(1).request("GET", "/get_seed", &[("SEED_KEY", "k")]);
                    count(granted.status);
                    if granted.status != 200 {
                        continue;
                    }
                    let name = granted.header("seed_ip").to_owned();
                    assert!(leased.lock().unwrap().insert(name.clone()), "{name} is leased twice");
                    let lease = ["seed_ip", "seed_port", "seed_rank", "user_id"]
                        .map(|name| (name, granted.header(name)));
                    count(at(2).request("POST", "/renew_seed_lease", &lease).status);
                    // Whoever is granted it next may hear of it before this one hears of its end.
                    leased.lock().unwrap().remove(&name);
                    count(at(3).request("POST", "/put_seed", &lease).status);
                }
            });
        }
    });
    statuses.into_inner().unwrap()
}

/// What another client of the pooler's finds in the session that it is lent. A pooler that keeps statements goes on
/// keeping those of a migration, under names of its own, though they were closed.
const LEFT_BEHIND: &str = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),
     current_setting('idle_in_transaction_session_timeout'), current_setting('jit'),
     current_setting('enable_seqscan'), current_setting('work_mem'), current_setting('search_path'),
     (SELECT count(*) FROM pg_prepared_statements
      WHERE NOT (name LIKE 'PGBOUNCER%' AND strpos(statement, '_sqlx_migrations') > 0)),
     (SELECT count(*) FROM pg_listening_channels()),
     (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')";

/// Three planners behind this pooler, under load, beside another client of it.
fn planners_work_behind(cluster: &Cluster, pooler: &Pooler) {
    let direct = cluster.database();
    let url = pooler.url(&direct);
    let expected = sql(&direct, LEFT_BEHIND).unwrap();
    let planners: Vec<Planner> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| Planner::start_on(&url, &["--database-statement-timeout-ms=1500"])))
            .collect();
        starting.into_iter().map(|planner| planner.join().unwrap()).collect()
    });
    let over = AtomicBool::new(false);
    let (statuses, looks) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::SeqCst) {
                assert_eq!(sql(&url, LEFT_BEHIND).unwrap(), expected);
                looks += 1;
            }
            looks
        });
        let statuses = work(&planners);
        over.store(true, Ordering::SeqCst);
        (statuses, looking.join().unwrap())
    });
    println!("{statuses:?}; another client looked {looks} times");
    assert!(statuses.keys().all(|status| [200, 404].contains(status)), "{statuses:?}");
    assert!(looks > 0 && statuses[&200] > WORKERS * ROUNDS, "{statuses:?}");

    // Who waits at one planner is served by another, though nobody can be told.
    let [first, second, third] = &planners[..] else { unreachable!() };
    let granted = first.request("GET", "/get_seed", &[("SEED_KEY", "k")]);
    let rest = (1..SEEDS).map(|_| first.request("GET", "/get_seed", &[("SEED_KEY", "k")]).status);
    assert_eq!((granted.status, rest.collect::<Vec<_>>()), (200, vec![200; SEEDS - 1]));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let body = json!({"seed_key": "k", "wait_ms": 20_000});
            post_within(DEADLINE, &second.address, "/v2/leases", &[], &body).unwrap()
        });
        until("that somebody waits", || {
            (sql(&direct, "SELECT count(*) FROM requests WHERE waits_until_ms IS NOT NULL").unwrap() == "1")
                .then_some(())
        });
        let lease = ["seed_ip", "seed_port", "seed_rank", "user_id"].map(|name| (name, granted.header(name)));
        assert_eq!(third.request("POST", "/put_seed", &lease).status, 200);
        let answer = waiting.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    });

    // Settings hold where they are to: a lock that somebody keeps is given up. Beside a sweep that waits for it, too, a
    // request may run out of time first.
    let mut keys = 0..;
    until("that a lock is given up", || {
        let key = format!("other-{}", keys.next()?);
        std::thread::scope(|scope| {
            scope.spawn(|| sql(&direct, "SELECT 1 FROM seeds FOR UPDATE; SELECT pg_sleep(3)"));
            until("that the lock is held", || {
                let held = "SELECT 1 FROM seeds LIMIT 1 FOR UPDATE NOWAIT";
                sql(&direct, held).is_err().then_some(())
            });
            let headers =
                [("SEED_IP", "10.0.0.1"), ("SEED_PORT", "9"), ("SEED_RANK", "0"), ("SEED_KEY", &key)];
            first.request("POST", "/add_seed", &[&headers[..], &[("SEED_REFCNT", "0")]].concat());
        });
        let failed = first.process.said("a batch was not applied");
        failed.iter().any(|line| line.to_string().contains("lock timeout")).then_some(())
    });

    for planner in &planners {
        let said = planner.process.log();
        let said = said.iter().filter(|line| line["message"].as_str().is_some_and(|m| m.contains("pooler")));
        assert_eq!(said.count(), 1, "it is said once");
    }
}

#[test]
fn planners_work_behind_a_pooler_that_lends_sessions_for_transactions() {
    let cluster = Cluster::private("pooler");
    // What the last client had, in turns, and one for all.
    for settings in
        ["default_pool_size = 4", "server_round_robin = 1\ndefault_pool_size = 2", "default_pool_size = 1"]
    {
        println!("{settings}");
        planners_work_behind(&cluster, &Pooler::before(&cluster, settings));
    }
}

#[test]
fn planners_work_behind_a_pooler_that_keeps_prepared_statements() {
    let Some(program) = pooler::that_keeps_statements() else {
        skip("pgbouncer keeps no prepared statements before 1.21; RFORK_TEST_PGBOUNCER may name another one");
        return;
    };
    let cluster = Cluster::private("pooler-statements");
    let settings = "max_prepared_statements = 100\ndefault_pool_size = 4";
    planners_work_behind(&cluster, &Pooler::of(&program, &cluster, settings));
}

#[test]
fn a_pooler_that_lends_sessions_for_statements_is_refused_by_name() {
    let cluster = Cluster::private("pooler-single");
    let pooler = Pooler::before(&cluster, "pool_mode = statement");
    let url = pooler.url(&cluster.database());
    let mut planner = Process::start("planner", &["planner", "--port=0", "--database-url", &url]);
    assert_eq!(planner.wait().code(), Some(1));
    let log = planner.log();
    assert!(log.iter().any(|line| line.to_string().contains("have it do so for transactions")), "{log:?}");
}

/// What a database shows of what was written to it.
fn written(url: &str) -> String {
    sql(url, "SELECT (SELECT count(*) FROM seeds), (SELECT max(alive_until_ms) FROM planners)").unwrap()
}

#[test]
fn a_database_that_is_set_read_only_is_not_written_to_until_that_is_reset() {
    let cluster = Cluster::private("read-only");
    let url = cluster.database();
    let name = sql(&url, "SELECT current_database()").unwrap();
    // Its owner overrides that for itself, as it has to.
    let owner = |statement: &str| {
        sql_with(&url, "-c default_transaction_read_only=off", statement).unwrap();
    };
    let planner = Planner::start_on(&url, &["--heartbeat-sweep-sec=1"]);
    assert_eq!((add(&planner, 0), readyz(&planner)), (200, 200));
    let mut seeds = 1;
    for (set, reset) in [
        (
            "ALTER SYSTEM SET default_transaction_read_only = on".to_owned(),
            "ALTER SYSTEM RESET default_transaction_read_only".to_owned(),
        ),
        (
            format!("ALTER DATABASE {name} SET default_transaction_read_only = on"),
            format!("ALTER DATABASE {name} RESET default_transaction_read_only"),
        ),
        (
            "ALTER ROLE rfork SET default_transaction_read_only = on".to_owned(),
            "ALTER ROLE rfork RESET default_transaction_read_only".to_owned(),
        ),
    ] {
        owner(&set);
        owner("SELECT pg_reload_conf()");
        until("that it is not ready", || (readyz(&planner) == 503).then_some(()));
        let before = written(&url);
        for seed in 50..60 {
            assert_eq!(add(&planner, seed), 503, "{set}");
        }
        assert_eq!(readyz(&planner), 503, "{set}");
        assert_eq!(written(&url), before, "{set}");
        assert_eq!(planner.request("GET", "/healthz", &[]).status, 200);
        owner(&reset);
        owner("SELECT pg_reload_conf()");
        until("that it is ready", || (readyz(&planner) == 200).then_some(()));
        assert_eq!(add(&planner, seeds), 200, "{reset}");
        seeds += 1;
        assert_eq!(planner.snapshot()["seed_count"], seeds);
    }
    // One that nobody asks whether it is ready sees it, too.
    owner("ALTER ROLE rfork SET default_transaction_read_only = on");
    // Other seeds each time: a heartbeat that is repeated is not written at once.
    let mut others = 100..;
    until("that it refuses", || (add(&planner, others.next()?) == 503).then_some(()));
    owner("ALTER ROLE rfork RESET default_transaction_read_only");
    until("that it takes writes", || (add(&planner, others.next()?) == 200).then_some(()));
}

#[test]
fn planners_follow_their_database_to_another_server() {
    let primary = Cluster::private("primary");
    let direct = primary.database();
    let name = sql(&direct, "SELECT current_database()").unwrap();
    let standby = Cluster::standby_of(&primary, "standby");
    let hosts = format!("{},{}", standby.socket().display(), primary.socket().display());
    let url = format!(
        "postgres:///{name}?host={hosts}&user=rfork&target_session_attrs=read-write&connect_timeout=2"
    );
    let planner = Planner::start_on(&url, &[]);
    // The first that takes writes is the second.
    assert_eq!(add(&planner, 0), 200);
    assert_eq!(sql(&direct, "SELECT count(*) FROM seeds").unwrap(), "1");
    until("the copy", || {
        (sql(&standby.url(&name), "SELECT count(*) FROM seeds").is_ok_and(|count| count == "1")).then_some(())
    });
    primary.crash();
    until("that it is not ready", || (readyz(&planner) == 503).then_some(()));
    // One that is told of the copy alone waits for it to take writes.
    let copy = standby.url(&name);
    let waiting = ["--database-pooler=no", "--database-pooler=yes"].map(|pooler| {
        let waiting = Process::start("waiting", &["planner", "--port=0", "--database-url", &copy, pooler]);
        waiting.wait_until("that it waits", |line| {
            line["message"] == "waiting up to 15s for the database" && line.to_string().contains("only reads")
        });
        waiting
    });
    standby.promote();
    for planner in waiting {
        planner.wait_for("the planner listens");
    }
    until("that it is ready", || (readyz(&planner) == 200).then_some(()));
    assert_eq!(add(&planner, 1), 200);
    assert_eq!(planner.snapshot()["seed_count"], 2);
}

#[test]
fn a_full_disk_makes_planners_not_ready_until_there_is_room() {
    let Some(cluster) = Cluster::on_small_disk("full", 160) else {
        skip("a disk of the test's own takes root");
        return;
    };
    let planner = Planner::start_on(&cluster.database(), &[]);
    assert_eq!((add(&planner, 0), readyz(&planner)), (200, 200));
    let filler = cluster.fill_disk();
    until("that it is not ready", || (readyz(&planner) == 503).then_some(()));
    let said = planner.request("GET", "/readyz", &[]);
    println!("{}", String::from_utf8_lossy(&said.body));
    std::fs::remove_file(filler).unwrap();
    until("that it is ready", || (readyz(&planner) == 200).then_some(()));
    assert_eq!(add(&planner, 1), 200);
}

#[test]
fn a_full_disk_under_a_file_makes_its_planner_not_ready_until_there_is_room() {
    let may_mount = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !may_mount.is_ok_and(|status| status.success()) {
        skip("a disk of the test's own takes root");
        return;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let (disk, program) = (directory.path().join("disk"), directory.path().join("planner"));
    std::fs::create_dir(&disk).unwrap();
    // The disk is there for the planner alone, and goes with it.
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs -o size=4m tmpfs {} && exec {} \"$@\"' sh \"$@\"\n",
        disk.display(),
        rfork().display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let url = format!("sqlite:{}", disk.join("planner.db").display());
    let planner = Planner::start_version(&program, &url, &["--no-liveness-probe"]);
    let seen = format!("/proc/{}/root{}", planner.process.pid(), disk.display());
    assert_eq!((add(&planner, 0), readyz(&planner)), (200, 200));
    assert!(std::fs::exists(format!("{seen}/planner.db")).unwrap(), "its file is on its disk");
    let filler = format!("{seen}/filler");
    // A write that fits in part writes that part.
    let mut full = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut full, &[1; 4096]).is_ok() {}
    drop(full);
    let (mut known, mut next) = (1, 1);
    until("that it is not ready", || {
        // What its log has room for yet is written.
        known += usize::from(add(&planner, next) == 200);
        next += 1;
        (readyz(&planner) == 503).then_some(())
    });
    std::fs::remove_file(filler).unwrap();
    until("that it is ready", || (readyz(&planner) == 200).then_some(()));
    assert_eq!(add(&planner, next), 200);
    let count = planner.snapshot()["seed_count"].as_u64().unwrap();
    // One that was answered 503 may be there: its commit may have failed after it was made.
    assert!((known + 1..=next + 1).contains(&usize::try_from(count).unwrap()), "{count} of {known} known");
}

#[test]
fn a_second_planner_on_a_file_takes_over_when_the_first_ends() {
    let directory = tempfile::TempDir::new().unwrap();
    let url = format!("sqlite:{}", directory.path().join("planner.db").display());
    let mut first = Planner::start_on(&url, &["--drain-sec=0"]);
    assert_eq!(add(&first, 0), 200);
    let address = format!("{}:1223", rfork_tests::loopback());
    let host = format!("--host={}", address.trim_end_matches(":1223"));
    let second = Process::start("second", &["planner", &host, "--database-url", &url]);
    let ask = |path: &str| rfork_tests::http::request(&address, "GET", path, &[]);
    second.wait_until("what it waits for", |line| {
        let waits = "in use by another planner process: waiting up to 30s for that to end";
        line["message"].as_str().is_some_and(|message| message.contains(waits))
    });
    let told = ask("/readyz").unwrap();
    let text = String::from_utf8_lossy(&told.body);
    assert!(told.status == 503 && text.starts_with("store-unavailable: "), "{told:?}");
    assert!(text.contains("waits for another one, which has its SQLite file"), "{text}");
    assert!(!text.contains("planner.db"), "where its database is is for the log: {text}");
    assert_eq!(ask("/healthz").unwrap().status, 200);
    assert_eq!(readyz(&first), 200, "the first serves on");
    assert_eq!(first.process.terminate().code(), Some(0));
    second.wait_for("the planner listens");
    until("that it is ready", || (ask("/readyz").is_ok_and(|answer| answer.status == 200)).then_some(()));
    let known = ask("/debug/snapshot").unwrap().json();
    assert_eq!(known["seed_count"], 1);
}

#[test]
fn a_second_planner_on_a_file_ends_when_the_first_does_not() {
    let first = Planner::start(&[]);
    let url = first.database_url();
    let wait = ["planner", "--port=0", "--database-url", url, "--database-lock-wait-sec=1"];
    let mut second = Process::start("second", &wait);
    assert_eq!(second.wait().code(), Some(1));
    let message = "is in use by another planner process; a SQLite file serves one planner";
    // What it said last may be read after its end is seen.
    second.wait_until(message, |line| line.to_string().contains(message));
    assert_eq!(readyz(&first), 200);
}
