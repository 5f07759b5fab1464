//! Sequences of calls to a planner on SQLite: what it promises is compared with what it says.
//!
//! An input is a list of calls, each of a byte that says which and one that says of what; bytes that go to the socket as
//! they are follow their length. Each input has keys and seeds of its own, and takes them away at its end, so that all
//! have one planner.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rfork_planner::config::{DatabaseUrl, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Target;
use super::planner::Planner;
use crate::DEADLINE;
use crate::http::{self, Answer};

/// The entry point.
pub const TARGET: Target = Target { name: "planner_calls", run, executions: 50, most_bytes: |_| 512 << 20 };

/// Calls of an input at most.
const MOST_CALLS: usize = 40;
/// Seeds and keys that an input has.
const SEEDS: u8 = 3;
const KEYS: u8 = 2;
/// Leases that a seed may have at once.
const CAPACITY: usize = 2;
/// Longer than any test: time is no part of what is tried here.
const FOR_EVER: Duration = Duration::from_hours(24);

fn start(home: &TempDir) -> Planner {
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("planner.db")));
    settings.liveness_probe = false;
    settings.default_resource_points = u32::try_from(CAPACITY).unwrap();
    (settings.heartbeat_ttl, settings.lease_ttl) = (FOR_EVER, FOR_EVER);
    Planner::start(settings)
}

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    thread_local! {
        static PLANNER: (Planner, TempDir) = {
            let home = TempDir::with_prefix("rfork-fuzz-").unwrap();
            (start(&home), home)
        };
    }
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    PLANNER.with(|(planner, _)| {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut caller = Caller { planner: &planner.address, number, leases: Vec::new() };
        // What a planner refuses because the machine is slow proves nothing.
        let _ = caller.calls(data).and_then(|()| caller.ends());
    });
}

/// A lease that was granted.
struct Lease {
    id: String,
    seed: String,
    /// Whether it was given back.
    is_released: bool,
}

/// The planner is too busy to say.
struct Busy;

struct Caller<'a> {
    planner: &'a str,
    number: usize,
    leases: Vec<Lease>,
}

impl Caller<'_> {
    fn key(&self, number: u8) -> String {
        format!("{}:{}", self.number, number % KEYS)
    }

    fn seed(&self, number: u8) -> String {
        format!("10.{}.{}.{}:8000:0", self.number >> 8 & 255, self.number & 255, 1 + number % SEEDS)
    }

    fn calls(&mut self, data: &[u8]) -> Result<(), Busy> {
        let mut bytes = data.iter().copied();
        for _ in 0..MOST_CALLS {
            let (Some(what), Some(of)) = (bytes.next(), bytes.next()) else { break };
            let (seed, key) = (self.seed(of), self.key(of >> 2));
            let incarnation = format!("i{}", of >> 3 & 1);
            match what % 10 {
                0 => drop(self.v1("POST", "/add_seed", &seed, &[("SEED_KEY", &key)])?),
                1 => {
                    let of = json!({"seed": seed, "seed_key": key, "incarnation": incarnation});
                    self.v2("/v2/seeds", &of)?;
                }
                2 => self.acquires(&key, true)?,
                3 => self.acquires(&key, false)?,
                4 => self.renews(of)?,
                5 => self.releases(of)?,
                6 => drop(self.v1("POST", "/remove_seed", &seed, &[("SEED_KEY", &key)])?),
                7 => drop(self.v2("/v2/seeds/drain", &json!({"seed": seed, "seed_key": key}))?),
                8 => drop(self.v2("/v2/keys/invalidate", &json!({"seed_key": key}))?),
                _ => {
                    let length = bytes.next().unwrap_or_default();
                    let sent: Vec<u8> = bytes.by_ref().take(length.into()).collect();
                    self.sends(&sent);
                }
            }
        }
        self.check_points()
    }

    /// A lease is granted exactly if one would be, of a seed that has the key and a free point.
    fn acquires(&mut self, key: &str, by_v1: bool) -> Result<(), Busy> {
        let would = self.v2("/v2/explain", &json!({"seed_key": key}))?.json();
        let would = would["grant"].as_str().map(str::to_owned);
        let answer = if by_v1 {
            self.told(http::request(self.planner, "GET", "/get_seed", &[("SEED_KEY", key)]))?
        } else {
            self.v2("/v2/leases", &json!({"seed_key": key}))?
        };
        let granted = match (answer.status, by_v1) {
            (200, true) => {
                let of = |name| answer.header(name).to_owned();
                Some((of("user_id"), format!("{}:{}:{}", of("seed_ip"), of("seed_port"), of("seed_rank"))))
            }
            (200, false) => {
                let of = |name: &str| answer.json()[name].as_str().unwrap().to_owned();
                Some((of("lease_id"), of("seed")))
            }
            (404, _) => None,
            _ => panic!("an acquisition was answered {answer:?}"),
        };
        assert_eq!(granted.is_some(), would.is_some(), "{key} was explained as {would:?}");
        if let Some((id, seed)) = granted {
            assert!(self.leases.iter().all(|lease| lease.id != id), "one lease was granted twice");
            self.leases.push(Lease { id, seed, is_released: false });
            self.check_points()?;
        }
        Ok(())
    }

    fn renews(&self, of: u8) -> Result<(), Busy> {
        let Some(lease) = self.lease(of) else { return Ok(()) };
        let elsewhere = of & 64 != 0;
        let seed = if elsewhere { "10.255.255.255:1:0" } else { &lease.seed };
        let is_renewed = self.is_renewed(&lease.id, seed, of & 128 != 0)?;
        assert!(!is_renewed || !(elsewhere || lease.is_released), "a lease that is none was renewed");
        Ok(())
    }

    fn is_renewed(&self, lease: &str, seed: &str, by_v1: bool) -> Result<bool, Busy> {
        let answer = if by_v1 {
            self.v1("POST", "/renew_seed_lease", seed, &[("USER_ID", lease)])?
        } else {
            self.v2("/v2/leases/renew", &json!({"lease_id": lease, "seed": seed}))?
        };
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
        Ok(answer.status == 200)
    }

    fn releases(&mut self, of: u8) -> Result<(), Busy> {
        let Some(lease) = self.lease(of) else { return Ok(()) };
        let answer = if of & 128 != 0 {
            self.v1("POST", "/put_seed", &lease.seed, &[("USER_ID", &lease.id)])?
        } else {
            let release = json!({"lease_id": lease.id, "seed": lease.seed, "outcome": "ok"});
            self.v2("/v2/leases/release", &release)?
        };
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
        let at = usize::from(of) % self.leases.len();
        self.leases[at].is_released = true;
        Ok(())
    }

    fn lease(&self, of: u8) -> Option<&Lease> {
        self.leases.get(usize::from(of).checked_rem(self.leases.len())?)
    }

    /// No seed of this input has more leases that are told of than points, nor other ones than its own.
    fn check_points(&self) -> Result<(), Busy> {
        let mut used = BTreeMap::new();
        for of in 0..SEEDS {
            let seed = self.seed(of);
            let path = format!("/v2/leases?seed={seed}");
            let leases = self.told(http::request(self.planner, "GET", &path, &[]))?.json();
            let leases = leases["leases"].as_array().map_or(0, Vec::len);
            let known = self.leases.iter().filter(|lease| lease.seed == seed && !lease.is_released).count();
            assert!(leases <= CAPACITY && leases <= known, "{leases} leases on {seed}, which has {known}");
            used.insert(seed, leases);
        }
        for of in 0..KEYS {
            let path = format!("/v2/seeds?seed_key={}", self.key(of));
            let seeds = self.told(http::request(self.planner, "GET", &path, &[]))?.json();
            for seed in seeds["seeds"].as_array().into_iter().flatten() {
                let leases = used[seed["seed"].as_str().unwrap()];
                assert_eq!(seed["used"].as_u64(), Some(leases as u64), "{seed}");
            }
        }
        Ok(())
    }

    /// Gives back what lives; then nothing is left of the seeds that go.
    fn ends(&mut self) -> Result<(), Busy> {
        for Lease { id, seed, is_released } in &self.leases {
            let lives = self.is_renewed(id, seed, true)?;
            assert!(!(lives && *is_released), "a lease lives after it was given back");
            let answer = self.v1("POST", "/put_seed", seed, &[("USER_ID", id)])?;
            assert!(!lives || answer.status == 200, "a lease that lives cannot be given back: {answer:?}");
            assert!(!self.is_renewed(id, seed, false)?, "a lease that was given back was renewed");
        }
        for of in 0..SEEDS {
            for key in 0..KEYS {
                self.v2("/v2/seeds/deregister", &json!({"seed": self.seed(of), "seed_key": self.key(key)}))?;
            }
        }
        for key in 0..KEYS {
            let key = self.key(key);
            let explained = self.v2("/v2/explain", &json!({"seed_key": key}))?.json();
            assert_eq!(explained["seeds"], Value::Array(Vec::new()), "{key}");
        }
        Ok(())
    }

    fn v1(&self, method: &str, path: &str, seed: &str, headers: &[(&str, &str)]) -> Result<Answer, Busy> {
        let mut parts = seed.rsplitn(3, ':');
        let mut next = || parts.next().unwrap_or_default();
        let seed = [("SEED_RANK", next()), ("SEED_PORT", next()), ("SEED_IP", next())];
        self.told(http::request(self.planner, method, path, &[headers, &seed].concat()))
    }

    fn v2(&self, path: &str, body: &Value) -> Result<Answer, Busy> {
        self.told(http::post_within(DEADLINE, self.planner, path, &[], body))
    }

    /// Nothing that a client does is a fault of the planner.
    fn told(&self, answer: std::io::Result<Answer>) -> Result<Answer, Busy> {
        let answer = answer.unwrap();
        match answer.status {
            503 => Err(Busy),
            500.. => panic!("input {} has the planner say {answer:?}", self.number),
            _ => Ok(answer),
        }
    }

    /// Sends these bytes; what is answered, if anything, is no fault of the planner.
    fn sends(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.planner).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&said));
    }
}
