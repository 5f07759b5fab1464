//! What a request shows of whose it is: the header `Authorization`, with tokens and JWTs.
//!
//! A planner knows one token, and one issuer with one key. Whatever else is shown, nobody is let in.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rfork_planner::config::{DatabaseUrl, Settings};
use rfork_planner::identity::{Mode, TokenFile};
use tempfile::TempDir;

use super::Target;
use super::planner::Planner;
use crate::DEADLINE;

/// The entry point. A key that is not known is looked for, which may take some seconds.
pub const TARGET: Target = Target { name: "credentials", run, executions: 150, most_bytes: |_| 512 << 20 };

/// Whom the planner lets in: who shows this token, or this JWT, which ends in 2100.
const TOKEN: &str = "on-call-0123456789abcdef";
const JWT: &str = include_str!("../../fuzz/corpus/credentials/jwt");
/// The key that has signed it.
const KEYS: &str = include_str!("../../fuzz/corpus/issuer_keys/ed25519");

fn start(home: &TempDir) -> Planner {
    let (tokens, keys) = (home.path().join("tokens.toml"), home.path().join("keys.json"));
    std::fs::write(&keys, KEYS).unwrap();
    let told = format!(
        "[[issuer]]\nissuer = 'https://issuer.test'\naudience = 'rfork-planner'\njwks_file = '{}'\n\
         [[principal]]\nname = 'on-call'\nroles = ['operator']\ntokens = ['{TOKEN}']\n\
         jwts = [{{ issuer = 'https://issuer.test', subject = 'on-call' }}]\n",
        keys.display()
    );
    std::fs::write(&tokens, told).unwrap();
    let mut settings = Settings::of(DatabaseUrl::Sqlite(home.path().join("planner.db")));
    settings.token_file = Some(TokenFile::read(&tokens).unwrap());
    settings.auth_mode = Mode::Enforce;
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
    // What ends a header is tried by `planner_calls`.
    let shown: Vec<u8> = data.iter().copied().filter(|byte| !b"\r\n\0".contains(byte)).collect();
    let status = PLANNER.with(|(planner, _)| ask(&planner.address, &shown));
    match status {
        200 => assert!(is_known(&shown), "{:?} is let in", String::from_utf8_lossy(&shown)),
        400 | 401 | 403 | 429 | 431 => {
            assert!(!is_known(&shown), "{:?} is refused by {status}", String::from_utf8_lossy(&shown));
        }
        // What a planner refuses because the machine is slow proves nothing.
        503 => {}
        _ => panic!("{:?} is answered {status}", String::from_utf8_lossy(&shown)),
    }
}

fn ask(planner: &str, shown: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(planner).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request =
        [b"GET /v2/seeds HTTP/1.1\r\nhost: p\r\nconnection: close\r\nauthorization: ", shown, b"\r\n\r\n"];
    // An answer may come before all was sent.
    let _ = stream.write_all(&request.concat());
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    let status = said.strip_prefix(b"HTTP/1.1 ").and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok());
    status.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&said))).parse().unwrap()
}

/// Whether it is the known token or JWT, behind `Bearer` or as the password of `Basic`.
fn is_known(shown: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(shown.trim_ascii()) else { return false };
    let Some((scheme, told)) = text.split_once(' ') else { return false };
    let jwt = JWT.split_once(' ').unwrap().1;
    let is_known = |told: &str| told == TOKEN || told == jwt;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => is_known(told.trim_ascii()),
        "basic" => STANDARD
            .decode(told.trim_ascii())
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok())
            .is_some_and(|pair| pair.split_once(':').is_some_and(|(_, password)| is_known(password))),
        _ => false,
    }
}
