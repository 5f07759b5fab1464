//! What stands before a planner and may hide its API v2, as planners of other makers have none. Ends with the test's
//! process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A front. Requests pass, one a connection.
#[derive(Debug)]
pub struct Front {
    /// Where it listens, as `127.0.0.1:1223`.
    pub address: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    hides_v2: AtomicBool,
    /// What `LEASE_TTL_SEC` is to say instead of what the planner says.
    lease_ttl_sec: Mutex<Option<String>>,
    /// The heads of all requests that passed.
    passed: Mutex<Vec<String>>,
}

impl Front {
    /// Stands before the planner at `planner`.
    pub fn before(planner: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let (planner, passing) = (planner.to_owned(), state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (planner, passing) = (planner.clone(), passing.clone());
                std::thread::spawn(move || pass(stream, &planner, &passing));
            }
        });
        Self { address, state }
    }

    /// Has answers of API v1 tell this time to live.
    pub fn tell_lease_ttl_sec(&self, text: &str) {
        *self.state.lease_ttl_sec.lock().unwrap() = Some(text.to_owned());
    }

    /// The heads of the requests to this path that have passed, as they were sent.
    pub fn requests_to(&self, path: &str) -> Vec<String> {
        let passed = self.state.passed.lock().unwrap();
        passed.iter().filter(|head| head.split(' ').nth(1) == Some(path)).cloned().collect()
    }

    /// Answers requests of API v2 with 404 from now on.
    pub fn hide_v2(&self) {
        self.state.hides_v2.store(true, Ordering::SeqCst);
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn pass(mut client: TcpStream, planner: &str, state: &State) -> Option<()> {
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
    if path.starts_with("/v2") && state.hides_v2.load(Ordering::SeqCst) {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(answer).ok();
    }
    state.passed.lock().unwrap().push(text.clone());
    let mut upstream = TcpStream::connect(planner).ok()?;
    upstream.write_all(&head[..head.len() - 2]).ok()?;
    upstream.write_all(b"Connection: close\r\n\r\n").ok()?;
    upstream.write_all(&body).ok()?;
    let told = state.lease_ttl_sec.lock().unwrap().clone();
    let Some(told) = told else { return std::io::copy(&mut upstream, &mut client).ok().map(drop) };
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).ok()?;
    // Headers of v1 only: what they tell is text.
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let lines = answer.split("\r\n").map(|line| match line.split_once(':') {
        Some((name, _)) if name == "lease_ttl_sec" => format!("{name}: {told}"),
        _ => line.to_owned(),
    });
    client.write_all(lines.collect::<Vec<_>>().join("\r\n").as_bytes()).ok()
}
