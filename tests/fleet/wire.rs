//! HTTP to planners over connections that are kept: a bounded number of them, from several addresses, as those of a fleet are.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// Addresses that requests come from: no client of a planner has all of its places.
const ADDRESSES: usize = 64;
/// Requests at once that wait for a seed, and others.
const AT_ONCE: [usize; 2] = [4_000, 512];
/// A request that has no answer for so long, beyond what it waits, makes the fleet's clock stand still.
const LATE: Duration = Duration::from_secs(2);

/// A request.
#[derive(Debug)]
pub(crate) struct Question {
    /// Who asks.
    pub(crate) from: usize,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: String,
    /// How long the planner may wait before it answers.
    pub(crate) wait: Duration,
    /// How much longer an answer is waited for, with all repetitions.
    pub(crate) patience: Duration,
    /// The same for each repetition.
    pub(crate) idempotency: Option<String>,
}

/// An answer that says something.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// When the request was sent that is answered, and when the answer was there.
    pub(crate) sent: Instant,
    pub(crate) heard: Instant,
}

/// Planners, and connections to them. A request goes to the next one when the one that it went to does not answer.
#[derive(Debug)]
pub(crate) struct Wire {
    planners: Vec<SocketAddr>,
    idle: Mutex<HashMap<(usize, usize), Vec<TcpStream>>>,
    room: [Semaphore; 2],
    late: AtomicUsize,
    asked: AtomicU64,
    repeated: AtomicU64,
}

impl Wire {
    pub(crate) fn new(planners: Vec<SocketAddr>) -> Self {
        let room = AT_ONCE.map(Semaphore::new);
        let [asked, repeated] = [const { AtomicU64::new(0) }; 2];
        Self { planners, idle: Mutex::default(), room, late: AtomicUsize::new(0), asked, repeated }
    }

    /// Whether an answer is late.
    pub(crate) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed) > 0
    }

    /// Requests that were sent, and how many of these were repetitions.
    pub(crate) fn asked(&self) -> [u64; 2] {
        [&self.asked, &self.repeated].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Asks until there is an answer that says something; `None` when there is none in time.
    pub(crate) async fn ask(&self, question: &Question) -> Option<Told> {
        let _room = self.room[usize::from(question.wait.is_zero())].acquire().await.unwrap();
        let asking = self.until_answered(question);
        tokio::pin!(asking);
        if let Ok(told) = timeout(question.wait + LATE, &mut asking).await {
            return told;
        }
        self.late.fetch_add(1, Ordering::Relaxed);
        let told = asking.await;
        self.late.fetch_sub(1, Ordering::Relaxed);
        told
    }

    async fn until_answered(&self, question: &Question) -> Option<Told> {
        let (begun, longest) = (Instant::now(), question.wait + question.patience);
        let mut planner = question.from % self.planners.len();
        loop {
            let sent = Instant::now();
            let left = longest.saturating_sub(begun.elapsed());
            match timeout(left, self.exchange(planner, question)).await {
                Ok(Ok((status, body))) if status < 500 && status != 429 => {
                    return Some(Told { status, body, sent, heard: Instant::now() });
                }
                // It has no room, or is about to end.
                Ok(Ok(_)) => {}
                Ok(Err(_)) => planner = (planner + 1) % self.planners.len(),
                Err(_) => return None,
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(fastrand::u64(50..250))).await;
        }
    }

    async fn exchange(&self, planner: usize, question: &Question) -> std::io::Result<(u16, Vec<u8>)> {
        let place = (planner, question.from % ADDRESSES);
        let request = self.written(planner, question);
        let kept = self.idle.lock().unwrap().get_mut(&place).and_then(Vec::pop);
        if let Some(mut stream) = kept {
            // The planner may have closed it meanwhile.
            if let Ok(answer) = exchange(&mut stream, &request).await {
                self.keep(place, stream);
                return Ok(answer);
            }
        }
        let socket = TcpSocket::new_v4()?;
        let number = u8::try_from(place.1).unwrap_or_default();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 80, 1, 1 + number), 0)))?;
        let mut stream = socket.connect(self.planners[planner]).await?;
        stream.set_nodelay(true)?;
        let answer = exchange(&mut stream, &request).await?;
        self.keep(place, stream);
        Ok(answer)
    }

    fn keep(&self, place: (usize, usize), stream: TcpStream) {
        self.idle.lock().unwrap().entry(place).or_default().push(stream);
    }

    fn written(&self, planner: usize, question: &Question) -> String {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let Question { method, path, body, idempotency, .. } = question;
        let key = idempotency.as_ref().map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{key}Content-Length: {}\r\n\r\n{body}",
            self.planners[planner],
            body.len()
        )
    }
}

/// Sends a request and reads its answer: status and body.
async fn exchange(stream: &mut TcpStream, request: &str) -> std::io::Result<(u16, Vec<u8>)> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1_024);
    let head = loop {
        if let Some(end) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let status =
        text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    let length =
        text.split("\r\n").find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.ok_or(ErrorKind::InvalidData)?;
    while answer.len() < head + length {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((status, answer.split_off(head)))
}
