//! Generated histories of chains with slow links. The checker knows no code of the planner: it has the links, what really
//! came to whom, and what each worker has told, and says of each advice and each grant whether that was right.

use rfork_protocol::v2::Advice;

use super::{asker, stalled};
use crate::domain::chain::{Held, Progress};
use crate::domain::policy::Wish;
use crate::domain::seed::Profile;
use crate::store::conformance::loading::{RULES, complete};
use crate::store::conformance::{Bench, Home, identity, key, lease, registering};
use crate::store::listed::{Command, Outcome};
use crate::store::{Grant, Report};

/// Workers of a chain; 0 is the seed that holds everything.
const WORKERS: u8 = 7;
const SECONDS: usize = 45;
const TOTAL_BYTES: u64 = 3_000;
/// Bytes a second of a link that is not slow, and of one that is.
const FULL: u64 = 100;
const SLOW: u64 = 20;
const MOVE_PAUSE_MS: i64 = 1_000;

/// A deliberate fault, in what reaches the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// One report counts as three.
    FewReports,
    /// Those in the front seem to have more than they have, so that whoever starves behind them seems slow.
    StarvedSeemSlow,
    /// It is forgotten who was moved.
    MovesAreForgotten,
}

impl Fault {
    /// All of them, and what is found.
    const ALL: [(Self, &str); 3] = [
        (Self::FewReports, "falls behind by three reports"),
        (Self::StarvedSeemSlow, "falls behind by three reports"),
        (Self::MovesAreForgotten, "was moved, and is to overtake"),
    ];
}

/// What somebody has told, and how its source stood then.
#[derive(Debug, Clone, Copy)]
struct Told {
    at: i64,
    bytes: u64,
    /// Bytes a second since the last time.
    rate: Option<u64>,
    /// Whether it had less than its source really had, and told of a lower rate than that.
    is_behind: bool,
}

#[derive(Debug, Clone)]
struct Worker {
    down: u64,
    up: u64,
    bytes: u64,
    /// Who it reads from, and by which lease.
    source: Option<(u8, u32)>,
    /// Since it reads from that one.
    told: Vec<Told>,
    was_moved: bool,
    is_complete: bool,
    /// How often it has told that its memory is another one: only by a fault.
    memory: u32,
}

struct Play<H: Home> {
    bench: Bench<H>,
    random: fastrand::Rng,
    fault: Option<Fault>,
    workers: Vec<Worker>,
    now: i64,
    next_lease: u32,
    /// Who was overtaken by whom, and when that was decided.
    promises: Vec<(u8, u8, i64)>,
}

async fn play<H: Home>(number: u64, fault: Option<Fault>) -> Result<usize, String> {
    let bench = Bench::<H>::new(RULES).await;
    bench.apply(&[complete(0, "x")]).await;
    let mut random = fastrand::Rng::with_seed(number);
    let seed = Worker {
        down: 0,
        up: FULL,
        bytes: TOTAL_BYTES,
        source: None,
        told: Vec::new(),
        was_moved: false,
        is_complete: true,
        memory: 0,
    };
    let mut workers = vec![seed.clone()];
    for _ in 1..WORKERS {
        let mut link = || if random.u8(0..6) == 0 { SLOW } else { FULL };
        workers.push(Worker { down: link(), up: link(), bytes: 0, is_complete: false, ..seed.clone() });
    }
    let mut play = Play { bench, random, fault, workers, now: 0, next_lease: 1, promises: Vec::new() };
    for name in 1..WORKERS {
        play.ask(name).await?;
        let at = play.now;
        play.worker(name).told.push(Told { at, bytes: 0, rate: None, is_behind: false });
    }
    for _ in 0..SECONDS {
        play.second().await?;
    }
    Ok(play.promises.len())
}

impl<H: Home> Play<H> {
    fn worker(&mut self, name: u8) -> &mut Worker {
        &mut self.workers[usize::from(name)]
    }

    fn readers(&self, name: u8) -> u64 {
        self.workers.iter().filter(|worker| worker.source.is_some_and(|(source, _)| source == name)).count()
            as u64
    }

    fn pass(&mut self, ms: i64) {
        self.bench.step(ms);
        self.now += ms;
    }

    async fn second(&mut self) -> Result<(), String> {
        let ms = self.random.i64(900..1_100);
        self.pass(ms);
        let before: Vec<u64> = self.workers.iter().map(|worker| worker.bytes).collect();
        for at in 1..self.workers.len() {
            let Some((source, _)) = self.workers[at].source else { continue };
            let up = self.workers[usize::from(source)].up / self.readers(source).max(1);
            let most = self.workers[at].down.min(up) * ms.unsigned_abs() / 1_000;
            self.workers[at].bytes += most.min(before[usize::from(source)].saturating_sub(before[at]));
        }
        let mut names: Vec<u8> = (1..WORKERS).collect();
        self.random.shuffle(&mut names);
        for name in names {
            let worker = self.worker(name);
            if worker.is_complete {
                continue;
            }
            if worker.bytes == TOTAL_BYTES {
                self.complete(name).await?;
            } else if worker.source.is_none() {
                self.ask(name).await?;
            } else {
                // Nobody leaves out two, and is silent.
                let last = self.worker(name).told.last().map_or(0, |told| told.at);
                if self.random.u8(0..10) > 0 || self.now - last > 1_500 {
                    self.renew(name).await?;
                }
            }
        }
        Ok(())
    }

    fn memory(&self, name: u8) -> String {
        self.workers[usize::from(name)].memory.to_string()
    }

    async fn renew(&mut self, name: u8) -> Result<(), String> {
        let Some((source, number)) = self.worker(name).source else { return Ok(()) };
        let mut bytes = self.worker(name).bytes;
        if self.fault == Some(Fault::StarvedSeemSlow) && name < WORKERS / 2 {
            bytes = (10 * bytes).min(TOTAL_BYTES);
        }
        let held = (bytes > 0).then(|| Held { root: "x".into(), bytes });
        let progress = Progress { incarnation: self.memory(name), arrived_bytes: bytes, held };
        let renewal = Command::Renew {
            identity: identity(source),
            lease: lease(number),
            progress: Some(Box::new(progress)),
        };
        if self.fault == Some(Fault::FewReports) && self.random.u8(0..12) == 0 {
            for _ in 0..2 {
                self.bench.apply(std::slice::from_ref(&renewal)).await;
                self.pass(500);
            }
        }
        self.note(name, source);
        let outcome = self.bench.apply(&[renewal]).await.remove(0);
        let Outcome::Renewed(Some(renewed)) = outcome else {
            return Err(format!("{name} lost its lease: {outcome:?}"));
        };
        if renewed.loading.and_then(|told| told.advice) != Some(Advice::Move) {
            return Ok(());
        }
        self.advised(name, source)?;
        // Now and then the answer is lost.
        if self.random.u8(0..5) > 0 { self.overtake(name, (source, number)).await } else { Ok(()) }
    }

    /// What it tells now is kept, beside how its source stands.
    fn note(&mut self, name: u8, source: u8) {
        let (now, of_source) = (self.now, self.workers[usize::from(source)].clone());
        let worker = self.worker(name);
        let rate = worker
            .told
            .last()
            .map(|last| (worker.bytes - last.bytes) * 1_000 / (now - last.at).max(1).unsigned_abs());
        let ahead = of_source.told.last().and_then(|told| told.rate).filter(|_| !of_source.is_complete);
        let is_slower = rate.zip(ahead).is_some_and(|(own, ahead)| own < ahead);
        let is_behind = is_slower && worker.bytes < of_source.bytes;
        worker.told.push(Told { at: now, bytes: worker.bytes, rate, is_behind });
    }

    /// Whether its last three reports say that it falls behind.
    fn falls_behind(&self, name: u8) -> bool {
        let told = &self.workers[usize::from(name)].told;
        told.len() >= 3 && told.iter().rev().take(3).all(|told| told.is_behind)
    }

    /// Whether it was right to advise a worker to take the place of its source.
    fn advised(&mut self, name: u8, source: u8) -> Result<(), String> {
        let is_known = |(who, by, _): &(u8, u8, i64)| (*who, *by) == (source, name);
        if self.promises.iter().any(is_known) {
            return Ok(());
        }
        if !self.falls_behind(source) && !self.falls_behind(name) {
            return Err(format!("{name} is to overtake {source}, and neither falls behind by three reports"));
        }
        if let Some(back) = self.promises.iter().find(|(who, by, _)| (*who, *by) == (name, source)) {
            return Err(format!("{name} is to overtake {source}, which has overtaken it: {back:?}"));
        }
        if self.worker(name).was_moved {
            return Err(format!("{name} was moved, and is to overtake {source}"));
        }
        if self.promises.last().is_some_and(|(.., at)| self.now - at < MOVE_PAUSE_MS) {
            return Err(format!("two moves in a second: {:?}, and {name}", self.promises.last()));
        }
        self.promises.push((source, name, self.now));
        self.worker(source).was_moved = true;
        Ok(())
    }

    /// The place of the source is this one's now.
    async fn overtake(&mut self, name: u8, from: (u8, u32)) -> Result<(), String> {
        let expected = self.worker(from.0).source.ok_or_else(|| format!("{} has no place", from.0))?.0;
        let granted = self.acquire(name, Some(from)).await;
        let Some(grant) = granted.filter(|grant| grant.identity == identity(expected)) else {
            return Err(format!("{name} did not get the place of {} on {expected}", from.0));
        };
        self.reads(name, &grant)?;
        let overtaken = self.worker(from.0);
        overtaken.source = None;
        overtaken.told.clear();
        Ok(())
    }

    async fn acquire(&mut self, name: u8, stalls: Option<(u8, u32)>) -> Option<Grant> {
        let bytes = self.worker(name).bytes;
        let held = (bytes > 0).then(|| Held { root: "x".into(), bytes });
        let mut told = asker(name, self.workers[usize::from(name)].memory, held);
        told.stalled = stalls.map(|(source, number)| stalled(source, number, false));
        let wish = Box::new(Wish { loading: Some(Box::new(told)), ..Wish::default() });
        let command = Command::Acquire { key: key("k"), wish, lease: lease(self.next_lease), queue: None };
        match self.bench.apply(&[command]).await.remove(0) {
            Outcome::Acquired(granted) => granted.ok(),
            other => panic!("{other:?}"),
        }
    }

    fn reads(&mut self, name: u8, grant: &Grant) -> Result<(), String> {
        let source = (0..WORKERS).find(|source| identity(*source) == grant.identity);
        let source = source.ok_or_else(|| format!("nobody is {}", grant.identity))?;
        let number = self.next_lease;
        self.next_lease += 1;
        let worker = self.worker(name);
        worker.source = Some((source, number));
        worker.told.clear();
        Ok(())
    }

    async fn ask(&mut self, name: u8) -> Result<(), String> {
        if self.fault == Some(Fault::MovesAreForgotten) {
            self.worker(name).memory += 1;
        }
        let Some(grant) = self.acquire(name, None).await else { return Ok(()) };
        self.reads(name, &grant)?;
        let (source, _) = self.worker(name).source.unwrap_or_default();
        let (bytes, was_moved) = (self.worker(name).bytes, self.worker(name).was_moved);
        if was_moved && self.readers(source) > 1 {
            return Err(format!("{name} was moved, and shares {source} with another one"));
        }
        let ahead = self.worker(source);
        if was_moved && !ahead.is_complete && ahead.bytes <= bytes {
            return Err(format!("{name} was moved, and {source} has not overtaken it"));
        }
        Ok(())
    }

    async fn complete(&mut self, name: u8) -> Result<(), String> {
        let profile = Profile {
            incarnation: Some(self.memory(name)),
            content_id: Some("x".into()),
            ..Profile::default()
        };
        let mut commands = vec![registering(name, "k", profile)];
        if let Some((source, number)) = self.worker(name).source.take() {
            commands.push(Command::Release {
                identity: identity(source),
                lease: lease(number),
                report: Report::Ok,
                account: None,
            });
        }
        self.bench.apply(&commands).await;
        self.worker(name).is_complete = true;
        Ok(())
    }
}

fn run<H: Home>(number: u64, fault: Option<Fault>) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play::<H>(number, fault))
}

/// Plays so many histories, in some of which there are moves; a failure prints the number of its history.
pub(crate) fn slow_links_are_passed_over_by_the_rules<H: Home>(histories: u64) {
    let mut moves = 0;
    for number in 0..histories {
        match run::<H>(number, None) {
            Ok(made) => moves += made,
            Err(wrong) => panic!("history {number}: {wrong}"),
        }
    }
    assert!(moves > 0);
}

/// Each fault is found by one of so many histories.
pub(crate) fn faults_of_moves_are_found<H: Home>(histories: u64) {
    for (fault, wrong) in Fault::ALL {
        let is_found = |number| run::<H>(number, Some(fault)).is_err_and(|found| found.contains(wrong));
        assert!((0..histories).any(is_found), "no history finds {fault:?}");
    }
}
