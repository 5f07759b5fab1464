//! The load: many clients on one thread, each with one request under way.
//!
//! Sockets block, and are touched only when epoll says that an answer is there: a request of some hundred bytes
//! always fits into an idle connection's buffer, and loopback connects without the server's doing. So an
//! operation on a kept connection costs two system calls and a share of a third.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::population::{self, Population};
use crate::rows::{Connections, Work};
use crate::{Result, answer};

/// Clients give up after this.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What came of a run.
pub(crate) struct Outcome {
    /// Operations that ended within the time.
    pub(crate) operations: u64,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Clients that do one kind of work on one server.
pub(crate) struct Load<'a> {
    pub(crate) server: SocketAddr,
    pub(crate) population: &'a Population,
    pub(crate) work: Work,
    pub(crate) connections: Connections,
    pub(crate) clients: usize,
}

/// When a run ends.
#[derive(Clone, Copy)]
enum End {
    /// At this moment; what is under way is then finished and not counted.
    At(Instant),
    /// When each client has gone through its share once.
    AfterOnce,
    /// When each client has an answer to one question; each answer counts.
    OfBurst,
}

/// What a client waits for.
#[derive(Clone, Copy)]
enum Step {
    Heartbeat,
    Grant,
    Release,
}

struct Client {
    stream: Option<TcpStream>,
    /// Numbers of seeds, or of keys, that no other client has: two that ask for the only seed of a key would be
    /// in each other's way.
    share: Vec<u32>,
    /// How many operations it has begun.
    begun: usize,
    since: Instant,
    step: Step,
    /// The number of the key that it asks for.
    asked: u32,
    /// The number of the seed that it has a lease of.
    leased: usize,
    release: Vec<u8>,
    answer: [u8; 1024],
    filled: usize,
}

struct Run<'a> {
    load: &'a Load<'a>,
    epoll: OwnedFd,
    end: End,
    /// By seed: whether it is leased by one of these clients.
    leased: Vec<bool>,
    /// Of operations within the time.
    micros: Vec<u32>,
}

impl Load<'_> {
    /// Works for this time.
    ///
    /// # Errors
    /// At the first wrong answer, or the first that does not come.
    pub(crate) fn run(&self, time: Duration) -> Result<Outcome> {
        let begun = Instant::now();
        let mut micros = self.until(End::At(begun + time))?;
        micros.sort_unstable();
        let at = |percent: usize| {
            micros.get(micros.len() * percent / 100).map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        Ok(Outcome {
            operations: micros.len() as u64,
            per_second: micros.len() as f64 / time.as_secs_f64(),
            p50_ms: at(50),
            p99_ms: at(99),
        })
    }

    /// Does everything once, and gives the seconds that it took.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub(crate) fn once(&self) -> Result<f64> {
        let begun = Instant::now();
        self.until(End::AfterOnce)?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Has every client ask for a seed at once, so many times, over connections that were there before; gives the time
    /// within which 99 of 100 answers came, of each time, in milliseconds. Leases are given back between.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub(crate) fn bursts(&self, times: u32) -> Result<Vec<f64>> {
        let (mut run, mut clients) = (self.begin(End::OfBurst)?, self.clients());
        let mut p99_ms = Vec::new();
        // The first one opens the connections, and does not count.
        for _ in 0..=times {
            run.micros.clear();
            for (at, client) in clients.iter_mut().enumerate() {
                run.ask(client, at)?;
            }
            run.serve(&mut clients, self.clients)?;
            run.micros.sort_unstable();
            let p99 = run.micros.get(run.micros.len() * 99 / 100);
            p99_ms.push(p99.map_or(0.0, |micros| f64::from(*micros) / 1e3));
            for (at, client) in clients.iter_mut().enumerate() {
                run.release(client, at)?;
            }
            run.serve(&mut clients, self.clients)?;
        }
        p99_ms.remove(0);
        Ok(p99_ms)
    }

    fn until(&self, end: End) -> Result<Vec<u32>> {
        let (mut run, mut clients) = (self.begin(end)?, self.clients());
        let mut busy = 0;
        for (at, client) in clients.iter_mut().enumerate() {
            if run.begin(client, at)? {
                busy += 1;
            }
        }
        run.serve(&mut clients, busy)?;
        Ok(run.micros)
    }

    fn begin(&self, end: End) -> Result<Run<'_>> {
        Ok(Run {
            load: self,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            end,
            leased: vec![false; self.population.registrations.len()],
            micros: Vec::with_capacity(1 << 16),
        })
    }

    /// Clients with their shares, which are not in the order of registration.
    fn clients(&self) -> Vec<Client> {
        let things = match self.work {
            Work::Heartbeats => self.population.registrations.len(),
            Work::Cycles => self.population.questions.len(),
        };
        let mut numbers: Vec<u32> = (0..u32::try_from(things).unwrap_or(u32::MAX)).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut numbers);
        let share = |at: usize| match numbers.len() {
            // One key, with seeds enough for all.
            1 => numbers.clone(),
            _ => numbers.iter().skip(at).step_by(self.clients).copied().collect(),
        };
        let client = |at: usize| Client {
            stream: None,
            share: share(at),
            begun: 0,
            since: Instant::now(),
            step: Step::Heartbeat,
            asked: 0,
            leased: 0,
            release: Vec::with_capacity(256),
            answer: [0; 1024],
            filled: 0,
        };
        (0..self.clients).map(client).collect()
    }
}

impl Run<'_> {
    /// Takes answers, and goes on, until none of `busy` clients has anything to do.
    fn serve(&mut self, clients: &mut [Client], mut busy: usize) -> Result<()> {
        let mut events = Vec::with_capacity(clients.len());
        while busy > 0 {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&PATIENCE)) {
                Ok(0) => return Err(format!("no answer within {} s", PATIENCE.tv_sec).into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // All that is there is read before anybody goes on, so that two leases of one seed meet.
            let mut answered = Vec::with_capacity(events.len());
            for event in &events {
                let at = usize::try_from(event.data.u64())?;
                if self.receive(&mut clients[at])? {
                    answered.push(at);
                }
            }
            for at in answered {
                if !self.go_on(&mut clients[at], at)? {
                    busy -= 1;
                }
            }
        }
        Ok(())
    }

    /// Begins the client's next operation. `false`: there is none.
    fn begin(&self, client: &mut Client, at: usize) -> Result<bool> {
        let over = match self.end {
            End::At(end) => Instant::now() >= end,
            End::AfterOnce => client.begun == client.share.len(),
            End::OfBurst => true,
        };
        if over || client.share.is_empty() {
            return Ok(false);
        }
        self.ask(client, at)?;
        Ok(true)
    }

    /// Begins the client's next operation.
    fn ask(&self, client: &mut Client, at: usize) -> Result<()> {
        client.since = Instant::now();
        let number = client.share[client.begun % client.share.len()];
        client.begun += 1;
        let population = self.load.population;
        let request = match self.load.work {
            Work::Heartbeats => {
                client.step = Step::Heartbeat;
                &population.registrations[number as usize]
            }
            Work::Cycles => {
                (client.step, client.asked) = (Step::Grant, number);
                &population.questions[number as usize]
            }
        };
        self.send(&mut client.stream, at, request)
    }

    fn send(&self, stream: &mut Option<TcpStream>, at: usize, request: &[u8]) -> Result<()> {
        if self.load.connections == Connections::New {
            *stream = None;
        }
        if stream.is_none() {
            let new = TcpStream::connect(self.load.server)?;
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&self.epoll, &new, data, epoll::EventFlags::IN)?;
            *stream = Some(new);
        }
        if let Some(stream) = stream {
            stream.write_all(request)?;
        }
        Ok(())
    }

    /// Takes what has come for this client. `false`: more is to come.
    fn receive(&mut self, client: &mut Client) -> Result<bool> {
        let Some(stream) = &mut client.stream else { return Ok(false) };
        let read = stream.read(&mut client.answer[client.filled..])?;
        if read == 0 {
            return Err("a connection was closed without a whole answer".into());
        }
        client.filled += read;
        let bytes = &client.answer[..client.filled];
        if !answer::is_complete(bytes)? {
            return Ok(false);
        }
        client.filled = 0;
        if let Step::Grant = client.step {
            let lease = answer::lease(bytes)?;
            let seed = self.load.population.granted(&lease, client.asked)?;
            if std::mem::replace(&mut self.leased[seed], true) {
                return Err("a lease for a seed that is busy".into());
            }
            population::release(&lease, &mut client.release);
            client.leased = seed;
            if matches!(self.end, End::OfBurst) {
                self.count(client);
            }
            return Ok(true);
        }
        let now = Instant::now();
        if matches!(self.end, End::At(end) if now <= end) {
            self.count(client);
        }
        Ok(true)
    }

    fn count(&mut self, client: &Client) {
        self.micros.push(u32::try_from(client.since.elapsed().as_micros()).unwrap_or(u32::MAX));
    }

    /// Gives the client's lease back.
    fn release(&mut self, client: &mut Client, at: usize) -> Result<()> {
        // From now on it may be somebody else's.
        self.leased[client.leased] = false;
        client.step = Step::Release;
        self.send(&mut client.stream, at, &client.release)
    }

    /// Sends what the client sends after an answer. `false`: it has done its last operation.
    fn go_on(&mut self, client: &mut Client, at: usize) -> Result<bool> {
        if let (Step::Grant, End::At(_) | End::AfterOnce) = (client.step, self.end) {
            self.release(client, at)?;
            return Ok(true);
        }
        self.begin(client, at)
    }
}
