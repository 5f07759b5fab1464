//! What stands before a planner and may hide its API v2, as planners of other makers have none. Ends with the test's
//! process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A front. Requests pass, one a connection.
#[derive(Debug)]
pub struct Front {
    /// Where it listens, as `127.0.0.1:1223`.
    pub address: String,
    hides_v2: Arc<AtomicBool>,
}

impl Front {
    /// Stands before the planner at `planner`.
    pub fn before(planner: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hides_v2 = Arc::new(AtomicBool::new(false));
        let (planner, hides) = (planner.to_owned(), hides_v2.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (planner, hides) = (planner.clone(), hides.clone());
                std::thread::spawn(move || pass(stream, &planner, &hides));
            }
        });
        Self { address, hides_v2 }
    }

    /// Answers requests of API v2 with 404 from now on.
    pub fn hide_v2(&self) {
        self.hides_v2.store(true, Ordering::SeqCst);
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn pass(mut client: TcpStream, planner: &str, hides_v2: &AtomicBool) -> Option<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    let path = text.split(' ').nth(1)?;
    if path.starts_with("/v2") && hides_v2.load(Ordering::SeqCst) {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(answer).ok();
    }
    let mut upstream = TcpStream::connect(planner).ok()?;
    upstream.write_all(&head[..head.len() - 2]).ok()?;
    upstream.write_all(b"Connection: close\r\n\r\n").ok()?;
    upstream.write_all(&body).ok()?;
    std::io::copy(&mut upstream, &mut client).ok()?;
    Some(())
}
