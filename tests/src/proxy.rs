//! A seed that stands between a reader and a real seed: it passes metadata on with its own address in it, and
//! changes what the transfer engine sends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::http::request;
use crate::process::{Planner, Serving};

/// A byte of the stream from a seed that lies in the first chunk of a connection.
const IN_FIRST_CHUNK: usize = 32 + 16 + 100;

/// When the proxy flips a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corrupt {
    /// The first time only.
    Once,
    /// In every connection.
    Always,
}

/// Stands before `seed` and registers with `planner` under the seed's key. Ends with the test's process.
pub fn corrupting(seed: &Serving, planner: &Planner, corrupt: Corrupt) {
    let metadata = request(&seed.address, "GET", &info_path(&seed.key), &[]).unwrap().json();
    let session = metadata["rfork_transfer_engine_info"][0].as_str().unwrap().to_owned();
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let own_session = engine.local_addr().unwrap().to_string();
    let flipped = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for stream in engine.incoming().map_while(Result::ok) {
            let (session, flipped) = (session.clone(), flipped.clone());
            std::thread::spawn(move || {
                // Asked when the byte comes by: a connection that nothing is read from flips nothing.
                let flip = || corrupt == Corrupt::Always || !flipped.swap(true, Ordering::SeqCst);
                relay(&stream, &TcpStream::connect(session).unwrap(), flip);
            });
        }
    });
    let metadata = with_session(metadata, &own_session).to_string();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = service.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for mut stream in service.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", metadata.len());
            let _ = stream.write_all(format!("{head}{metadata}").as_bytes());
        }
    });
    let headers = [
        ("SEED_KEY", seed.key.as_str()),
        ("SEED_IP", "127.0.0.1"),
        ("SEED_PORT", &port),
        ("SEED_RANK", "0"),
        ("SEED_REFCNT", "0"),
    ];
    assert_eq!(planner.request("POST", "/add_seed", &headers).status, 200);
}

/// The metadata path for a key of plain characters.
pub fn info_path(key: &str) -> String {
    format!("/get_rfork_transfer_engine_info?seed_key={}", key.replace('$', "%24"))
}

fn with_session(mut metadata: Value, session: &str) -> Value {
    metadata["rfork_transfer_engine_info"][0] = session.into();
    metadata
}

fn relay(reader: &TcpStream, seed: &TcpStream, flip: impl Fn() -> bool) {
    let (mut from_reader, mut to_seed) = (reader.try_clone().unwrap(), seed.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_reader, &mut to_seed);
        let _ = to_seed.shutdown(std::net::Shutdown::Both);
    });
    let (mut from_seed, mut to_reader) = (seed.try_clone().unwrap(), reader.try_clone().unwrap());
    let (mut position, mut piece) = (0, vec![0; 65536]);
    while let Ok(read) = from_seed.read(&mut piece) {
        if read == 0 {
            break;
        }
        if (position..position + read).contains(&IN_FIRST_CHUNK) && flip() {
            piece[IN_FIRST_CHUNK - position] ^= 0x10;
        }
        position += read;
        if to_reader.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = reader.shutdown(std::net::Shutdown::Both);
}
