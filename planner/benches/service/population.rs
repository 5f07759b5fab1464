//! The seeds of one planner, and every request about them, written out before anything is measured.

use crate::Result;
use crate::answer::Lease;

/// Ranks of one host, each a seed with a key of its own where there are as many keys.
const RANKS: u32 = 8;
const FIRST_PORT: u32 = 20_000;

/// Seeds that are numbered from 0, each with a key that is numbered, too.
pub(crate) struct Population {
    keys: u32,
    /// `POST /add_seed`, by seed.
    pub(crate) registrations: Vec<Box<[u8]>>,
    /// `GET /get_seed`, by key.
    pub(crate) questions: Vec<Box<[u8]>>,
}

impl Population {
    pub(crate) fn new(seeds: u32, keys: u32) -> Self {
        let names: Vec<String> = (0..keys).map(key).collect();
        let register = |seed: u32| {
            let key = &names[(seed % keys) as usize];
            let (host, port, rank) = place(seed);
            request(
                "POST /add_seed",
                &format!(
                    "SEED_KEY: {key}\r\nSEED_IP: {host}\r\nSEED_PORT: {port}\r\nSEED_RANK: {rank}\r\nSEED_REFCNT: 0\r\n\
                     Content-Length: 0\r\n"
                ),
            )
        };
        let ask = |key: &String| request("GET /get_seed", &format!("SEED_KEY: {key}\r\n"));
        Self {
            keys,
            registrations: (0..seeds).map(register).collect(),
            questions: names.iter().map(ask).collect(),
        }
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u32 {
        self.keys
    }

    /// The number of the leased seed, which must be one of `key`.
    pub(crate) fn granted(&self, lease: &Lease<'_>, key: u32) -> Result<usize> {
        let seed = number(lease.host).zip(lease.rank.parse::<u32>().ok()).and_then(|(host, rank)| {
            let seed = host.checked_mul(RANKS)?.checked_add(rank)?;
            let known = (seed as usize) < self.registrations.len() && rank < RANKS;
            (known && lease.port.parse() == Ok(place(seed).1)).then_some(seed)
        });
        match seed {
            Some(seed) if seed % self.keys == key => Ok(seed as usize),
            Some(_) => Err("a lease for a seed of another key".into()),
            None => Err("a lease for a seed that nobody registered".into()),
        }
    }
}

/// Writes `POST /put_seed` of this lease over `to`.
pub(crate) fn release(lease: &Lease<'_>, to: &mut Vec<u8>) {
    to.clear();
    write_of_lease("/put_seed", lease, to);
}

/// A request to this path about a lease.
pub(crate) fn of_lease(path: &str, lease: &Lease<'_>) -> Vec<u8> {
    let mut request = Vec::new();
    write_of_lease(path, lease, &mut request);
    request
}

fn write_of_lease(path: &str, lease: &Lease<'_>, to: &mut Vec<u8>) {
    to.extend_from_slice(b"POST ");
    to.extend_from_slice(path.as_bytes());
    to.extend_from_slice(b" HTTP/1.1\r\nHost: planner\r\nContent-Length: 0\r\n");
    for (name, value) in [
        ("SEED_IP: ", lease.host),
        ("SEED_PORT: ", lease.port),
        ("SEED_RANK: ", lease.rank),
        ("USER_ID: ", lease.id),
    ] {
        to.extend_from_slice(name.as_bytes());
        to.extend_from_slice(value.as_bytes());
        to.extend_from_slice(b"\r\n");
    }
    to.extend_from_slice(b"\r\n");
}

fn request(line: &str, headers: &str) -> Box<[u8]> {
    format!("{line} HTTP/1.1\r\nHost: planner\r\n{headers}\r\n").into_bytes().into()
}

/// As long as keys in the field are, and as different from each other: the hexadecimal form of 32 bytes.
fn key(number: u32) -> String {
    let mut random = fastrand::Rng::with_seed(u64::from(number));
    format!("{:032x}{:032x}", random.u128(..), random.u128(..))
}

/// Host, port and rank.
fn place(seed: u32) -> (String, u32, u32) {
    let (host, rank) = (seed / RANKS, seed % RANKS);
    let [_, a, b, c] = host.to_be_bytes();
    (format!("10.{a}.{b}.{c}"), FIRST_PORT + 2 * rank, rank)
}

/// The host's number.
fn number(host: &str) -> Option<u32> {
    let address: std::net::Ipv4Addr = host.parse().ok()?;
    let [ten, a, b, c] = address.octets();
    (ten == 10).then_some(u32::from_be_bytes([0, a, b, c]))
}
