//! Workers and seeds that speak with planners, and write down what they saw: all of it over API v1, but for workers
//! that wait for a seed, who ask over v2.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;

use crate::history::{Answer, Asked, Exchange, LeaseName, Seed, Span};
use crate::http;

/// As long as workers in the field wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two heartbeats of a seed.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Between two looks at how late threads are.
const LOOK: Duration = Duration::from_millis(5);

/// As long as a worker waits for a seed at most: a request that was given up has no effect after this.
const MAX_WAIT: Duration = Duration::from_millis(800);
/// How often a worker that waits repeats a request that had no clear answer.
const REPETITIONS: usize = 5;

/// A lease that a worker was given.
#[derive(Debug, Clone)]
pub struct Held {
    /// The seed.
    pub seed: String,
    /// The lease.
    pub lease: LeaseName,
}

/// Asks planners at one address, and writes down what it saw.
#[derive(Debug)]
pub struct Recorder {
    address: String,
    seeds: Vec<Seed>,
    lease_ttl: Duration,
    begun: Instant,
    exchanges: Mutex<Vec<Exchange>>,
    repeated: AtomicUsize,
    waited: AtomicUsize,
    late_us: AtomicU64,
}

impl Recorder {
    /// For planners at `address` that lend these seeds for `lease_ttl`.
    pub fn new(address: &str, seeds: Vec<Seed>, lease_ttl: Duration) -> Self {
        let exchanges = Mutex::new(Vec::new());
        let address = address.to_owned();
        let [repeated, waited] = [const { AtomicUsize::new(0) }; 2];
        let (begun, late_us) = (Instant::now(), AtomicU64::new(0));
        Self { address, seeds, lease_ttl, begun, exchanges, repeated, waited, late_us }
    }

    /// Microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap()
    }

    /// What was seen until now.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().unwrap().clone()
    }

    /// Requests that were repeated under their idempotency key and then got a clear answer, and leases that a worker
    /// waited for.
    pub fn waits(&self) -> [usize; 2] {
        [&self.repeated, &self.waited].map(|counter| counter.load(Ordering::SeqCst))
    }

    /// Looks until `stop` how late the machine lets a thread go on that was due: for what a fault does not explain, a
    /// planner or its database may be as late.
    pub fn watch(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            let due = Instant::now() + LOOK;
            std::thread::sleep(LOOK);
            let late_us = u64::try_from(due.elapsed().as_micros()).unwrap();
            self.late_us.fetch_max(late_us, Ordering::SeqCst);
        }
    }

    /// The latest that a thread was, in microseconds, while [`Recorder::watch`] looked.
    pub fn late_us(&self) -> u64 {
        self.late_us.load(Ordering::SeqCst)
    }

    /// Registers a seed, or sends its heartbeat.
    pub fn heartbeat(&self, seed: &Seed) -> Answer {
        let headers = seed_headers(&seed.identity);
        let headers = [&headers[..], &[("SEED_KEY", &seed.key), ("SEED_REFCNT", "0")]].concat();
        self.ask(Asked::Heartbeat(seed.identity.clone()), "POST", "/add_seed", &headers)
    }

    /// Removes a seed.
    pub fn remove(&self, seed: &Seed) -> Answer {
        let headers = seed_headers(&seed.identity);
        let headers = [&headers[..], &[("SEED_KEY", &seed.key)]].concat();
        self.ask(Asked::Remove(seed.identity.clone()), "POST", "/remove_seed", &headers)
    }

    /// Asks for a seed.
    pub fn acquire(&self, key: &str) -> (Answer, Option<Held>) {
        let answer = self.ask(Asked::Acquire(key.to_owned()), "GET", "/get_seed", &[("SEED_KEY", key)]);
        let held = held(&answer);
        (answer, held)
    }

    /// Waits for a seed, and asks again under the same idempotency key when there was no clear answer. All of that is
    /// one exchange: it takes effect once, between the first request and the last answer.
    pub fn wait(&self, key: &str, random: &mut Rng) -> (Answer, Option<Held>) {
        let asked = Asked::Acquire(key.to_owned());
        let idempotency_key = format!("{:032x}", random.u128(..));
        let wait_ms = random.u64(1..=u64::try_from(MAX_WAIT.as_millis()).unwrap());
        let from_us = self.now_us();
        let mut attempts = 0;
        let answer = loop {
            let headers = [("Idempotency-Key", idempotency_key.as_str())];
            let body = json!({"seed_key": key, "wait_ms": wait_ms});
            let answer = http::post_within(PATIENCE, &self.address, "/v2/leases", &headers, &body);
            let answer = self.understand_wait(answer);
            attempts += 1;
            match answer {
                Answer::Unclear(_) if attempts <= REPETITIONS => pause(random, 50..200),
                _ => break answer,
            }
        };
        let unclear = matches!(answer, Answer::Unclear(_));
        self.repeated.fetch_add((attempts > 1 && !unclear).into(), Ordering::SeqCst);
        self.note(Span { from_us, until_us: self.now_us() }, asked, &answer);
        let held = held(&answer);
        (answer, held)
    }

    fn understand_wait(&self, answer: std::io::Result<http::Answer>) -> Answer {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Answer::Unclear(error.to_string()),
        };
        let told = || -> Result<serde_json::Value, String> {
            serde_json::from_slice(&answer.body).map_err(|error| format!("{}: {error}", answer.status))
        };
        match (answer.status, told()) {
            (500.., told) => Answer::Unclear(format!("{}: {told:?}", answer.status)),
            (200, Ok(told)) => {
                let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
                let ttl_ms = told["ttl_ms"].as_u64().unwrap_or(u64::MAX);
                if ttl_ms > u64::try_from(self.lease_ttl.as_millis()).unwrap() {
                    return Answer::Wrong(format!("a time to live of {ttl_ms} ms"));
                }
                let waited = told["waited_ms"].as_u64().is_some_and(|waited_ms| waited_ms > 50);
                self.waited.fetch_add(waited.into(), Ordering::SeqCst);
                Answer::Granted { seed: text("seed"), lease: LeaseName(text("lease_id")) }
            }
            (404, Ok(told)) if ["unknown-key", "all-busy"].map(Some).contains(&told["code"].as_str()) => {
                Answer::NoSeed
            }
            // It was granted while nobody heard the answer, and its time is over.
            (409, Ok(told)) if told["code"] == "lease-ended" => Answer::Unclear(told.to_string()),
            (status, told) => Answer::Wrong(format!("{status}: {told:?}")),
        }
    }

    /// Renews a lease.
    pub fn renew(&self, held: &Held) -> Answer {
        self.ask(Asked::Renew(held.lease.clone()), "POST", "/renew_seed_lease", &lease_headers(held))
    }

    /// Gives a lease back.
    pub fn release(&self, held: &Held) -> Answer {
        self.ask(Asked::Release(held.lease.clone()), "POST", "/put_seed", &lease_headers(held))
    }

    fn ask(&self, asked: Asked, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let from_us = self.now_us();
        let answer = http::request_within(PATIENCE, &self.address, method, path, headers);
        let span = Span { from_us, until_us: self.now_us() };
        let answer = self.understand(&asked, answer);
        self.note(span, asked, &answer);
        answer
    }

    fn note(&self, span: Span, asked: Asked, answer: &Answer) {
        let exchange = Exchange { span, asked, answer: answer.clone() };
        self.exchanges.lock().unwrap().push(exchange);
    }

    fn understand(&self, asked: &Asked, answer: std::io::Result<http::Answer>) -> Answer {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Answer::Unclear(error.to_string()),
        };
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        match (asked, answer.status, body.as_str()) {
            (_, 500.., _) => Answer::Unclear(format!("{}: {body}", answer.status)),
            (Asked::Acquire(_), 200, "") => {
                let ttl = answer.header("lease_ttl_sec");
                if ttl != self.lease_ttl.as_secs().to_string() {
                    return Answer::Wrong(format!("a time to live of {ttl} s"));
                }
                let [ip, port, rank] = ["seed_ip", "seed_port", "seed_rank"].map(|name| answer.header(name));
                let lease = LeaseName(answer.header("user_id").to_owned());
                Answer::Granted { seed: format!("{ip}:{port}:{rank}"), lease }
            }
            (_, 200, "") => Answer::Done,
            (Asked::Acquire(_), 404, "no available seed") => Answer::NoSeed,
            (Asked::Renew(_) | Asked::Release(_), 404, "lease not found") => Answer::NoLease,
            (Asked::Remove(_), 404, _) => Answer::NotKnown,
            (Asked::Remove(_), 409, _) => Answer::Draining,
            (_, status, _) => Answer::Wrong(format!("{status}: {body}")),
        }
    }

    /// A worker after the other that wants a seed, until `stop`; some hold several leases at a time.
    pub fn work(&self, mut random: Rng, stop: &AtomicBool) {
        let keys: Vec<&str> = self.seeds.iter().map(|seed| seed.key.as_str()).collect();
        let mut held: Vec<(Held, Use, Instant)> = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let now = Instant::now();
            if let Some(due) = held.iter().position(|(_, _, due)| *due <= now) {
                let (lease, to_do, _) = held.swap_remove(due);
                let next = self.use_lease(&lease, to_do, &mut random);
                held.extend(next.map(|(to_do, pause)| (lease, to_do, Instant::now() + pause)));
                continue;
            }
            let key = *random.choice(&keys).unwrap();
            let asked = if random.bool() { self.acquire(key) } else { self.wait(key, &mut random) };
            match asked {
                (Answer::Granted { .. }, granted) => {
                    let (to_do, pause) = self.plan(&mut random);
                    held.extend(granted.map(|granted| (granted, to_do, Instant::now() + pause)));
                }
                // Somebody who has no answer waits before the next attempt.
                (Answer::Unclear(_), _) => pause(&mut random, 100..400),
                _ => {}
            }
            pause(&mut random, 5..40);
        }
    }

    /// What a worker does with a lease: mostly what it should, sometimes nothing, or the wrong thing.
    fn plan(&self, random: &mut Rng) -> (Use, Duration) {
        let short = Duration::from_millis(random.u64(10..200));
        match random.u8(..20) {
            0..15 => (Use::Release, short),
            15..18 => (Use::Renew { more: random.u8(1..6) }, self.lease_ttl / 3),
            18 => (Use::Vanish, short),
            _ => (Use::Release, self.lease_ttl + short),
        }
    }

    fn use_lease(&self, lease: &Held, to_do: Use, random: &mut Rng) -> Option<(Use, Duration)> {
        let soon = Duration::from_millis(random.u64(50..300));
        match to_do {
            Use::Vanish => None,
            Use::Renew { more } => match self.renew(lease) {
                Answer::NoLease => None,
                _ if more > 0 => Some((Use::Renew { more: more - 1 }, self.lease_ttl / 3)),
                _ => Some((Use::Release, soon)),
            },
            Use::Release => match self.release(lease) {
                Answer::Unclear(_) => Some((Use::Release, soon)),
                // Some do not know that it is over.
                _ if random.u8(..4) == 0 => Some((Use::Release, soon)),
                _ if random.u8(..8) == 0 => Some((Use::Renew { more: 0 }, soon)),
                _ => None,
            },
        }
    }

    /// The heartbeats of these seeds until `stop`. Before `calm` now and then one falls silent for this long, or is
    /// removed and comes back.
    pub fn beat(
        &self,
        seeds: &[Seed],
        silence: Duration,
        mut random: Rng,
        calm: &AtomicBool,
        stop: &AtomicBool,
    ) {
        let mut due: Vec<(Instant, Instant)> = vec![(Instant::now(), Instant::now()); seeds.len()];
        while !stop.load(Ordering::SeqCst) {
            let calm = calm.load(Ordering::SeqCst);
            for (seed, (due, usual)) in seeds.iter().zip(&mut due) {
                let now = Instant::now();
                if now < if calm { *usual } else { *due } {
                    continue;
                }
                *usual = now + HEARTBEAT;
                *due = *usual;
                match random.u8(..) {
                    0..2 if !calm => *due = now + silence,
                    2..6 if !calm => {
                        self.remove(seed);
                    }
                    _ => {
                        self.heartbeat(seed);
                    }
                }
            }
            pause(&mut random, 5..15);
        }
    }
}

fn held(answer: &Answer) -> Option<Held> {
    match answer {
        Answer::Granted { seed, lease } => Some(Held { seed: seed.clone(), lease: lease.clone() }),
        _ => None,
    }
}

/// What is to be done with a lease next.
#[derive(Debug, Clone, Copy)]
enum Use {
    /// Nothing, ever.
    Vanish,
    Renew {
        /// How often after this time.
        more: u8,
    },
    Release,
}

/// The pace of the load; nothing waits for it.
fn pause(random: &mut Rng, milliseconds: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(random.u64(milliseconds)));
}

fn seed_headers(identity: &str) -> [(&'static str, &str); 3] {
    let mut parts = identity.rsplitn(3, ':');
    let (rank, port) = (parts.next().unwrap(), parts.next().unwrap());
    [("SEED_IP", parts.next().unwrap()), ("SEED_PORT", port), ("SEED_RANK", rank)]
}

fn lease_headers(held: &Held) -> [(&'static str, &str); 4] {
    let [ip, port, rank] = seed_headers(&held.seed);
    [ip, port, rank, ("USER_ID", &held.lease.0)]
}
