//! Attacks on a planner.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_test_authority::Authority;
use rfork_tests::cluster::{Cluster, sql};
use rfork_tests::process::Planner;
use rfork_tests::until;
use rfork_tls::client::{CaFile, trusting};
use rfork_tls::in_force::InForce;
use rustls::ClientConnection;

use crate::attacks::{self, Attack};
use crate::honest;
use crate::limits::{open_files, peak_kib};

/// How often the well-behaved client does what it does.
const ROUNDS: usize = 60;
/// Limits that are reached at once.
const SMALL: &[&str] = &["--max-connections=32", "--max-requests=8", "--max-waiting=8", "--max-seeds=2000"];
/// Seeds with long keys.
const LONG_KEYS: usize = 200;
/// The most memory that an attacked planner may take, in KiB.
const MOST_KIB: u64 = 512 << 10;

fn tried(attack: Attack) {
    open_files();
    for (limits, flags) in [("default", &[][..]), ("small", SMALL)] {
        let planner = Planner::start(&[&["--host=127.0.0.1", "--no-liveness-probe"], flags].concat());
        // So that a page of a list is long.
        for rank in 0..LONG_KEYS {
            let (rank, key) = (rank.to_string(), "k".repeat(7_000));
            let seed = [
                ("SEED_KEY", key.as_str()),
                ("SEED_IP", "127.71.0.3"),
                ("SEED_PORT", "1"),
                ("SEED_RANK", &rank),
            ];
            assert_eq!(planner.request("POST", "/add_seed", &seed).status, 200);
        }
        let harmless = {
            let _running = attacks::HARMLESS.begin(&planner.address);
            honest::rounds(&planner.address, ROUNDS)
        };
        let attacked = {
            let _running = attack.begin(&planner.address);
            honest::rounds(&planner.address, ROUNDS)
        };
        let (harmless_ms, attacked_ms) = (harmless.as_secs_f64() * 1e3, attacked.as_secs_f64() * 1e3);
        report((attack.name, limits), &planner, harmless_ms, attacked_ms);
    }
}

/// A line of the report.
fn report((attack, limits): (&str, &str), planner: &Planner, harmless_ms: f64, attacked_ms: f64) {
    let kib = peak_kib(planner.process.pid());
    println!(
        "| {attack} | {limits} | {harmless_ms:.1} | {attacked_ms:.1} | {} | {} | {:.1} |",
        if attacked_ms <= 2.0 * harmless_ms + 20.0 { "met" } else { "missed" },
        kib >> 10,
        disk_bytes(planner.database_url()) as f64 / 1e6,
    );
    assert!(kib < MOST_KIB, "{} MiB", kib >> 10);
}

/// A planner that speaks TLS is attacked before there is a request.
fn shaken(name: &str, begin: impl Fn(&str) -> attacks::Running) {
    open_files();
    let home = tempfile::tempdir().unwrap();
    let (authority, cert, key) = (Authority::new(), home.path().join("tls.crt"), home.path().join("tls.key"));
    authority.issue(&["127.0.0.1"]).write(&cert, &key);
    let ca = home.path().join("ca.crt");
    std::fs::write(&ca, authority.pem()).unwrap();
    let trusted = Arc::new(trusting(Arc::new(InForce::read(CaFile(ca)).unwrap())).unwrap());
    let files = [format!("--tls-cert-file={}", cert.display()), format!("--tls-key-file={}", key.display())];
    for (limits, flags) in [("default", &[][..]), ("small", SMALL)] {
        let files = files.each_ref().map(String::as_str);
        let planner =
            Planner::start(&[&["--host=127.0.0.1", "--no-liveness-probe"], &files[..], flags].concat());
        let rounds = || honest::rounds_by_tls(&trusted, &planner.address, ROUNDS).as_secs_f64() * 1e3;
        // Whoever asks in plain is told to speak TLS.
        let harmless_ms = {
            let _running = attacks::HARMLESS.begin(&planner.address);
            rounds()
        };
        let attacked_ms = {
            let _running = begin(&planner.address);
            rounds()
        };
        report((name, limits), &planner, harmless_ms, attacked_ms);
    }
}

#[test]
fn tls_handshakes_that_clients_do_not_end_keep_nobody_out() {
    // What a client says first; the planner signs its answer.
    let config = rfork_tls::peer::pinned([0; 32]).unwrap();
    let mut session = ClientConnection::new(config, rfork_tls::peer::name()).unwrap();
    let mut said = Vec::new();
    session.write_tls(&mut said).unwrap();
    shaken("TLS handshakes without an end", |planner| attacks::SAYS.begin_saying(planner, &said));
}

#[test]
fn slow_tls_handshakes_keep_nobody_out() {
    shaken("slow TLS handshakes", |planner| attacks::SLOW_HANDSHAKES.begin(planner));
}

/// A planner that knows a token and an issuer, and is shown others.
fn guessed(attack: Attack) {
    const TOKEN: &str = "honest-0123456789abcdef";
    open_files();
    let home = tempfile::tempdir().unwrap();
    let (tokens, keys) = (home.path().join("tokens.toml"), home.path().join("keys.json"));
    fs::write(&keys, include_bytes!("../fuzz/corpus/issuer_keys/ed25519")).unwrap();
    let told = format!(
        "[[issuer]]\nissuer = 'https://issuer.test'\naudience = 'rfork-planner'\njwks_file = '{}'\n\
         [[principal]]\nname = 'honest'\nroles = ['worker', 'metrics']\ntokens = ['{TOKEN}']\n",
        keys.display()
    );
    fs::write(&tokens, told).unwrap();
    let file = format!("--token-file={}", tokens.display());
    for (limits, flags) in [("default", &[][..]), ("small", SMALL)] {
        let planner = Planner::start(&[&["--host=127.0.0.1", "--no-liveness-probe", &file], flags].concat());
        let rounds = || honest::rounds_with(TOKEN, &planner.address, ROUNDS).as_secs_f64() * 1e3;
        let harmless_ms = {
            let _running = attacks::HARMLESS.begin(&planner.address);
            rounds()
        };
        let attacked_ms = {
            let _running = attack.begin(&planner.address);
            rounds()
        };
        report((attack.name, limits), &planner, harmless_ms, attacked_ms);
    }
}

#[test]
fn wrong_tokens_keep_nobody_out() {
    guessed(attacks::WRONG_TOKENS);
}

#[test]
fn jwts_of_unknown_keys_keep_nobody_out() {
    guessed(attacks::UNKNOWN_KEYS);
}

/// Seeds that a planner keeps which one client fills.
const QUOTA: u64 = 400;
/// No seed falls silent meanwhile, however slow the machine is.
const FLAGS: [&str; 3] = ["--host=127.0.0.1", "--no-liveness-probe", "--heartbeat-ttl-sec=3600"];
/// Bytes of a seed's row, and of the event that it came, at most: each with a key of 7 KB, on pages of which as much is
/// free.
const SEED_BYTES: u64 = 2 * 2 * (8 << 10);
/// Bytes of a database without rows, and of a log that is not written back yet.
const LOG_BYTES: u64 = 80 << 20;

/// One client registers as fast as it can, until there is room for no other seed of its own, and on: whoever is known goes
/// on, and others find room.
fn filled(name: &str, planner: &Planner, database_bytes: impl Fn() -> u64) {
    let before = database_bytes();
    honest::rounds(&planner.address, 1);
    let running = attacks::REGISTRATIONS.begin(&planner.address);
    let is_nearly_full = || planner.snapshot()["seed_count"].as_u64().filter(|seeds| *seeds >= QUOTA * 3 / 4);
    until("a planner that is nearly full", is_nearly_full);
    let refused = attacks::register_once(&planner.address);
    assert_eq!(refused.status, 429);
    let text = String::from_utf8_lossy(&refused.body);
    assert!(text.contains("planner-full: quota seeds-of-client"), "{text}");
    let took = honest::rounds(&planner.address, ROUNDS);
    let (begun, long) = (Instant::now(), lasts());
    let mut more = 0;
    while begun.elapsed() < long {
        honest::rounds(&planner.address, ROUNDS);
        more += ROUNDS;
        std::thread::sleep(Duration::from_secs(1));
    }
    if more > 0 {
        let (steps, seconds) = (running.steps(), begun.elapsed().as_secs());
        println!(
            "{name}: {steps} registrations of one client, beside {more} honest rounds in {seconds} s more"
        );
    }
    // A share of the last quarter is its own, for seeds that are new.
    let new = QUOTA / 16 - 1;
    (0..new).for_each(|number| honest::registers(&planner.address, number));
    drop(running);
    let most = QUOTA * 3 / 4 + 1 + new;
    assert!(planner.snapshot()["seed_count"].as_u64().is_some_and(|seeds| seeds <= most), "at most {most}");
    let (kib, bytes) = (peak_kib(planner.process.pid()), database_bytes());
    println!(
        "| registrations at their quota, {name} | {QUOTA} seeds | | {:.1} | | {} | {:.1} |",
        took.as_secs_f64() * 1e3,
        kib >> 10,
        bytes as f64 / 1e6,
    );
    assert!(kib < MOST_KIB, "{} MiB", kib >> 10);
    assert!(bytes - before < QUOTA * SEED_BYTES + LOG_BYTES, "{bytes} bytes, {before} before");
}

#[test]
fn registrations_fill_no_disk_beyond_their_quota_on_sqlite() {
    let quota = format!("--max-seeds={QUOTA}");
    let planner = Planner::start(&[&FLAGS[..], &[&quota]].concat());
    filled("SQLite", &planner, || disk_bytes(planner.database_url()));
}

#[test]
fn registrations_fill_no_disk_beyond_their_quota_on_postgres() {
    let quota = format!("--max-seeds={QUOTA}");
    let url = Cluster::shared().database();
    let planner = Planner::start_on(&url, &[&FLAGS[..], &[&quota]].concat());
    let size = || sql(&url, "SELECT pg_database_size(current_database())").unwrap().trim().parse().unwrap();
    filled("Postgres", &planner, size);
}

/// For how long registrations go on at their quota: `RFORK_HOSTILE_SEC` in the environment, no time without it.
fn lasts() -> Duration {
    Duration::from_secs(std::env::var("RFORK_HOSTILE_SEC").map_or(0, |text| text.parse().unwrap()))
}

/// A SQLite file's bytes, and those of its log.
fn disk_bytes(database_url: &str) -> u64 {
    let path = database_url.strip_prefix("sqlite:").unwrap();
    ["", "-wal"]
        .iter()
        .filter_map(|end| fs::metadata(Path::new(&format!("{path}{end}"))).ok())
        .map(|file| file.len())
        .sum()
}

macro_rules! attacked {
    ($($name:ident: $attack:ident,)*) => {
        $(
            #[test]
            fn $name() {
                tried(attacks::$attack);
            }
        )*
    };
}

attacked! {
    silent_sockets_keep_nobody_out: SILENT,
    silent_sockets_of_many_addresses_keep_nobody_out: SILENT_OF_MANY,
    slow_heads_keep_nobody_out: SLOW_HEADS,
    slow_bodies_keep_nobody_out: SLOW_BODIES,
    long_waits_keep_nobody_out: LONG_WAITS,
    answers_that_nobody_reads_keep_nobody_out: UNREAD,
    connections_that_are_cut_off_keep_nobody_out: STORM,
    large_batches_keep_nobody_out: BATCHES,
    registrations_keep_nobody_out: REGISTRATIONS,
}
