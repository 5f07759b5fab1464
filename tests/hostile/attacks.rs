//! What a hostile client does.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rfork_tests::http::{Answer, connect_from, request_from};
use rfork_tests::until;

/// Its address: all that it does is one client's, unless it has many.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 66, 6, 6);
/// Threads of it.
const THREADS: usize = 3;
/// Between two steps of a thread, so that a build without optimisation has time for others on any machine. With
/// `RFORK_HOSTILE=full` in the environment there is no pause.
const PACE: Duration = Duration::from_millis(5);
/// Connections that each thread keeps open at most.
const KEPT: usize = 1_000;
/// After so many connections the other client begins.
const BEGUN: usize = 300;
const NO_WAIT: Duration = Duration::from_millis(1);

/// One attack: what is done again and again with the connections that are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    step: fn(&mut Hostile),
}

/// Some address of an attacker who has many.
pub(crate) fn one_of_many(number: usize) -> Ipv4Addr {
    let number = u8::try_from(number % 200).unwrap_or_default();
    Ipv4Addr::new(127, 66, 100, 1 + number)
}

/// What the same number of harmless requests does.
pub(crate) const HARMLESS: Attack =
    Attack { name: "harmless requests", step: |me| me.asks("GET", "/healthz", "") };

/// Connections that never say anything.
pub(crate) const SILENT: Attack = Attack { name: "silent sockets", step: |me| me.keeps(b"") };
/// The same, from many addresses.
pub(crate) const SILENT_OF_MANY: Attack = Attack {
    name: "silent sockets of many addresses",
    step: |me| {
        me.from = one_of_many(me.made.load(Ordering::Relaxed));
        me.keeps(b"");
    },
};
/// Connections that say what they are told to, and read nothing.
pub(crate) const SAYS: Attack = Attack {
    name: "says something",
    step: |me| {
        let said = me.said.clone();
        me.keeps(&said);
    },
};
/// The same, from many addresses.
pub(crate) const SAYS_OF_MANY: Attack = Attack {
    name: "says something from many addresses",
    step: |me| {
        me.from = one_of_many(me.made.load(Ordering::Relaxed));
        let said = me.said.clone();
        me.keeps(&said);
    },
};
/// Heads that come a byte at a time.
pub(crate) const SLOW_HEADS: Attack = Attack {
    name: "slow heads",
    step: |me| {
        me.keeps(b"GET /get_seed HTTP/1.1\r\nX: ");
        me.trickles(b"x");
    },
};
/// TLS handshakes that come a byte at a time.
pub(crate) const SLOW_HANDSHAKES: Attack = Attack {
    name: "slow TLS handshakes",
    step: |me| {
        me.keeps(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        me.trickles(b"\0");
    },
};
/// Greetings of a seed's engine that come a byte at a time.
pub(crate) const SLOW_GREETINGS: Attack = Attack {
    name: "slow greetings",
    step: |me| {
        me.keeps(b"RFORKTCP\x01\0");
        me.trickles(b"\0");
    },
};
/// Bodies that come a byte at a time.
pub(crate) const SLOW_BODIES: Attack = Attack {
    name: "slow bodies",
    step: |me| {
        me.keeps(b"POST /v2/leases HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{");
        me.trickles(b" ");
    },
};
/// Requests that wait for a seed that never comes.
pub(crate) const LONG_WAITS: Attack = Attack {
    name: "long waits",
    step: |me| me.keeps(post("/v2/leases", r#"{"seed_key": "nobody's", "wait_ms": 300000}"#).as_bytes()),
};
/// Large answers that nobody reads.
pub(crate) const UNREAD: Attack = Attack {
    name: "answers unread",
    step: |me| me.keeps(b"GET /v2/seeds?limit=1000 HTTP/1.1\r\nHost: p\r\n\r\n"),
};
/// As many connections as there can be, each cut off at once.
pub(crate) const STORM: Attack = Attack {
    name: "connections",
    step: |me| {
        if let Some(stream) = me.connect() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    },
};
/// As many seeds in a heartbeat as there may be, none of which is known.
pub(crate) const BATCHES: Attack = Attack {
    name: "large batches",
    step: |me| {
        let one = |port: usize| format!(r#"{{"seed": "127.66.6.6:{port}:0", "seed_key": "k"}}"#);
        let seeds: Vec<String> = (1..=1_000).map(one).collect();
        me.asks("POST", "/v2/seeds/heartbeat", &format!(r#"{{"seeds": [{}]}}"#, seeds.join(",")));
    },
};
/// A seed with a long key of its own each time.
pub(crate) const REGISTRATIONS: Attack = Attack {
    name: "registrations",
    step: |me| {
        let number = me.made.fetch_add(1, Ordering::Relaxed);
        let (host, port, key) = (number / 60_000, 1 + number % 60_000, "k".repeat(7_000));
        let seed = format!(r#"{{"seed": "127.66.6.{host}:{port}:0", "seed_key": "{number}{key}"}}"#);
        me.asks("POST", "/v2/seeds", &seed);
    },
};

/// Tokens that nobody has, another one each time.
pub(crate) const WRONG_TOKENS: Attack = Attack {
    name: "wrong tokens",
    step: |me| {
        let number = me.made.load(Ordering::Relaxed);
        me.asks("GET", &showing(&format!("wrong-0123456789-{number}")), "");
    },
};
/// JWTs of the planner's issuer, by a key that it does not know, another one each time.
pub(crate) const UNKNOWN_KEYS: Attack = Attack {
    name: "JWTs of unknown keys",
    step: |me| {
        let number = me.made.load(Ordering::Relaxed);
        let header = format!(r#"{{"alg":"EdDSA","kid":"{number}"}}"#);
        let claims =
            r#"{"iss":"https://issuer.test","aud":"rfork-planner","sub":"on-call","exp":4102444800}"#;
        let parts = [header.as_bytes(), claims.as_bytes(), &[0; 64]];
        let jwt = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        // Each waits for a look at the issuer's keys.
        me.keeps(format!("GET {} HTTP/1.1\r\nHost: p\r\n\r\n", showing(&jwt)).as_bytes());
    },
};

/// A registration by the same client; gives what it is answered.
pub(crate) fn register_once(planner: &str) -> Answer {
    let seed = [
        ("SEED_KEY", "once"),
        ("SEED_IP", "127.66.6.6"),
        ("SEED_PORT", "65000"),
        ("SEED_RANK", "7"),
        ("SEED_REFCNT", "0"),
    ];
    request_from(FROM, planner, "POST", "/add_seed", &seed).unwrap()
}

/// A path, and behind it a credential: what follows is a header that means nothing.
fn showing(token: &str) -> String {
    format!("/get_seed HTTP/1.1\r\nAuthorization: Bearer {token}\r\nX:")
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// One thread of an attack.
struct Hostile {
    planner: String,
    from: Ipv4Addr,
    said: Vec<u8>,
    kept: VecDeque<TcpStream>,
    /// Connections of all threads.
    made: Arc<AtomicUsize>,
}

impl Hostile {
    fn connect(&self) -> Option<TcpStream> {
        let stream = connect_from(self.from, &self.planner).ok()?;
        self.made.fetch_add(1, Ordering::Relaxed);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(NO_WAIT)).unwrap();
        Some(stream)
    }

    /// Opens a connection, says this, and keeps it open as long as there is room for it.
    fn keeps(&mut self, said: &[u8]) {
        let Some(mut stream) = self.connect() else { return };
        let _ = stream.write_all(said);
        self.kept.push_back(stream);
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// Says a little more on the connection that was left alone for longest.
    fn trickles(&mut self, more: &[u8]) {
        if let Some(mut stream) = self.kept.pop_front()
            && stream.write_all(more).is_ok()
        {
            self.kept.push_back(stream);
        }
    }

    /// One request, whose answer is read.
    fn asks(&mut self, method: &str, path: &str, body: &str) {
        let Some(mut stream) = self.connect() else { return };
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = if body.is_empty() {
            format!("{method} {path} HTTP/1.1\r\nHost: p\r\n\r\n")
        } else {
            post(path, body)
        };
        let _ = stream.write_all(request.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// An attack that goes on until it is dropped.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    /// Connections that it made.
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// How many connections it has made.
    pub(crate) fn steps(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

impl Attack {
    /// Begins, and waits until it is felt.
    pub(crate) fn begin(self, planner: &str) -> Running {
        self.begin_saying(planner, b"")
    }

    /// The same, saying this.
    pub(crate) fn begin_saying(self, planner: &str, said: &[u8]) -> Running {
        let pace = if std::env::var_os("RFORK_HOSTILE").is_some_and(|how| how == "full") {
            Duration::ZERO
        } else {
            PACE
        };
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..THREADS).map(|_| {
            let stop = stop.clone();
            let (planner, said) = (planner.to_owned(), said.to_owned());
            let mut me = Hostile { planner, from: FROM, said, kept: VecDeque::new(), made: made.clone() };
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    (self.step)(&mut me);
                    std::thread::sleep(pace);
                }
            })
        });
        let threads = threads.collect();
        let running = Running { stop, made: made.clone(), threads };
        until(self.name, || (made.load(Ordering::Relaxed) >= BEGUN).then_some(()));
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
