//! Readers of a seed that are slow, silent or many: what they hold, and what others still get.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rfork_protocol::frame::{ANNOUNCEMENTS, Read};
use rfork_tests::http::{begin_to_connect, request_from};
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;
use rfork_tests::until;

use crate::attacks::{self, one_of_many};
use crate::limits::open_files;
use crate::seeds::{HONEST, HOSTILE, Seed};

/// Connections that are tried.
const TRIED: usize = 48;
/// Places that a seed has for readers.
const PLACES: usize = 16;
/// What a slow reader takes at once.
const SIP_BYTES: usize = 16 << 10;
/// How often all of them do.
const SIP_PAUSE: Duration = Duration::from_millis(250);
/// How often a slow reader asks for the whole model: more than sockets take in.
const COPIES: usize = 64;

/// Readers that take what they asked for as slowly as they may, until they are dropped.
struct Slow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    /// As many as are let in from these addresses.
    fn begin(seed: &Seed, from: impl Iterator<Item = Ipv4Addr>) -> (Self, usize) {
        let asks = Read::new(&(0..=seed.last.0).collect::<Vec<_>>()).unwrap().encode().repeat(COPIES);
        let mut streams: Vec<TcpStream> = from
            .filter_map(|from| {
                let mut stream = seed.takes_the_last_chunk(from).ok()?;
                rustix::net::sockopt::set_socket_recv_buffer_size(&stream, SIP_BYTES).unwrap();
                stream.write_all(&asks).ok()?;
                Some(stream)
            })
            .collect();
        let (count, stop) = (streams.len(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut sip = vec![0; SIP_BYTES];
                while !stop.load(Ordering::Relaxed) {
                    for stream in &mut streams {
                        let _ = stream.read(&mut sip);
                    }
                    std::thread::sleep(SIP_PAUSE);
                }
            }
        });
        (Self { stop, thread: Some(thread) }, count)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn slow_readers_of_one_address_leave_places_to_others() {
    let seed = Seed::start();
    let harmless = seed.harmless();
    let (_slow, count) = Slow::begin(&seed, std::iter::repeat_n(HOSTILE, TRIED));
    assert_eq!(count, PLACES * 3 / 4, "an address has no more places");
    let attacked = seed.honest_rounds();
    seed.reports("slow readers of one address, engine", harmless, attacked);
}

/// They have all places for as long as they pay for them; who comes is told so at once, and the service does not notice.
#[test]
fn slow_readers_of_many_addresses_are_all_that_a_seed_reads_to() {
    let seed = Seed::start();
    let harmless = seed.harmless();
    let (slow, count) = Slow::begin(&seed, (0..TRIED).map(one_of_many));
    assert_eq!(count, PLACES);
    let busy = seed.takes_the_last_chunk(HONEST).unwrap_err();
    assert!(busy.contains("Busy"), "{busy}");
    let attacked = seed.honest_requests();
    drop(slow);
    until("a place, once they have gone", || seed.takes_the_last_chunk(HONEST).ok());
    seed.reports("slow readers of many addresses, service", harmless, attacked);
}

#[test]
fn announcements_that_nobody_reads_keep_no_other_from_them() {
    let seed = Seed::start();
    let harmless = seed.harmless();
    let silent: Vec<_> = (0..TRIED).filter_map(|_| seed.follows(HOSTILE).ok()).collect();
    assert!(silent.len() >= PLACES * 3 / 4);
    let attacked = seed.honest_followers();
    seed.reports("announcements unread, engine", harmless, attacked);
}

/// 10,000 connections in a second, if this machine begins as many: none is waited for, and each is cut off a little later.
fn storm(address: &str) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                let mut begun = VecDeque::new();
                for number in 0..3_334_u32 {
                    let due = Duration::from_secs(1) * number / 3_334;
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                    // No address has more ports than these.
                    begun.extend(
                        begin_to_connect(one_of_many(thread * 60 + number as usize % 60), address).ok(),
                    );
                    if begun.len() > TRIED {
                        begun.pop_front();
                    }
                }
            });
        }
    });
    start.elapsed()
}

#[test]
fn ten_thousand_connections_at_once_keep_nobody_from_a_seed() {
    let seed = Seed::start();
    let harmless = seed.harmless();
    for (on, address) in seed.doors() {
        let (took, attacked) = std::thread::scope(|scope| {
            let storm = scope.spawn(|| storm(address));
            let mut attacked = seed.honest_rounds();
            while !storm.is_finished() {
                attacked = attacked.max(seed.honest_rounds());
            }
            (storm.join().unwrap(), attacked)
        });
        let name = format!("10,000 connections in {:.1} s, {on}", took.as_secs_f64());
        seed.reports(&name, harmless, attacked);
    }
}

/// 4 seconds for 8 MiB.
const SLOW: &str = "--rfork-seed-max-gib-per-sec=0.002";

/// A worker that does not know its weights yet, and then loads slowly: others poll it for what it will hold, and listen to
/// what it holds, as many as it lets in. It is loaded all the same, and another reader hears what it asks for.
#[test]
fn polls_and_announcements_of_a_seed_that_loads_keep_nobody_from_it() {
    open_files();
    let model = Model::new(8, 1);
    let elsewhere = Planner::start(&["--host=127.0.0.1", "--no-liveness-probe"]);
    let source = Worker::start("source", &model, &elsewhere.url(), &[SLOW]).serving();
    let planner = Planner::start(&[
        "--host=127.0.0.1",
        "--no-liveness-probe",
        "--fork-while-loading=on",
        "--lease-ttl-sec=3600",
    ]);
    let worker = Worker::start("loading", &model, &planner.url(), &[SLOW, "--rfork-seed-wait-sec=3600"]);
    let identity = worker.listens();
    let service = identity.rsplit_once(':').unwrap().0.to_owned();
    let waits = format!("{}&wait_ms=10000", info_path(&source.key));
    let poll = format!("GET {waits} HTTP/1.1\r\nHost: s\r\n\r\n");
    let polls = attacks::SAYS.begin_saying(&service, poll.as_bytes());
    let asks = || {
        let answer = request_from(HONEST, &service, "GET", &waits, &[]).unwrap();
        (answer.status == 200).then_some(answer)
    };
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| until("its metadata", asks));
        let (host, rank) = source.identity.rsplit_once(':').unwrap();
        let (host, port) = host.rsplit_once(':').unwrap();
        let found =
            [("SEED_KEY", source.key.as_str()), ("SEED_IP", host), ("SEED_PORT", port), ("SEED_RANK", rank)];
        assert_eq!(planner.request("POST", "/add_seed", &found).status, 200);
        told.join().unwrap()
    });
    let seed = Seed::of((worker, planner), (service, source.key.clone()), &told.body);
    let polled = seed.honest_requests();
    drop(polls);
    let listening = attacks::SAYS.begin_saying(&seed.engine, &seed.hello(ANNOUNCEMENTS));
    let attacked = seed.honest_followers();
    assert_eq!(seed.worker.loaded().digest, model.digest());
    drop(listening);
    seed.reports("long polls and announcements, a seed that loads", polled, attacked);
}
