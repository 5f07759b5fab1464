//! Generated histories of workers that serve while they load, and a checker that knows no code of the planner: it has
//! what the workers did and were told, and says of each grant and renewal whether that was right.
//!
//! A history comes from one number, which a failure prints. [`Fault`]s change what a worker asked on its way to the store,
//! as a store would that did not look at it: each must be found.

use rfork_protocol::v1::Labels;
use rfork_protocol::v2::Advice;

use crate::domain::chain::{Asker, Held, Progress, Stalled};
use crate::domain::owner::Owner;
use crate::domain::policy::Wish;
use crate::domain::seed::Profile;
use crate::store::conformance::loading::RULES;
use crate::store::conformance::{Bench, Home, identity, key, lease, registering};
use crate::store::listed::{Command, Outcome};
use crate::store::{Grant, Registration, Report, Rules};

mod inheriting;
mod leading;
pub(crate) mod overtaking;

/// Workers of a history.
const WORKERS: u8 = 7;
/// What happens in one.
const STEPS: usize = 60;
/// Leases that a seed may have at once.
const CAPACITY: u32 = 2;
/// How long a loading seed may be silent, in milliseconds.
const SILENT_MS: i64 = 3_000;
const TOTAL_BYTES: u64 = 100;

/// A deliberate fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A source may hold less than its reader.
    HoldsLess,
    /// A loading seed is granted to an unmodified client.
    LoadingToUnmodified,
    /// Bytes of two roots are offered to one worker.
    TwoRoots,
    /// Who starts over keeps its readers.
    KeepsReaders,
    /// Whoever says that it stalls is believed, and so is who is new.
    EveryoneStalls,
    /// The place of a source that is lost goes back to the queue.
    PlaceGoesBack,
    /// Nobody waits for who leads.
    TwoLeaders,
}

impl Fault {
    pub(crate) const ALL: [Self; 7] = [
        Self::HoldsLess,
        Self::LoadingToUnmodified,
        Self::TwoRoots,
        Self::KeepsReaders,
        Self::EveryoneStalls,
        Self::PlaceGoesBack,
        Self::TwoLeaders,
    ];

    fn put_into(self, command: &mut Command, a_lease: Option<(u8, u32)>) {
        match (self, command) {
            (Self::LoadingToUnmodified, Command::Acquire { wish, .. }) if wish.loading.is_none() => {
                wish.loading = Some(Box::new(asker(200, 0, None)));
            }
            (Self::HoldsLess, Command::Acquire { wish, .. }) => {
                wish.loading.iter_mut().for_each(|asker| {
                    asker.incarnation = format!("{}, anew", asker.incarnation);
                    asker.held.iter_mut().for_each(|held| held.bytes = 0);
                });
            }
            (Self::TwoRoots, Command::Acquire { wish, .. }) => {
                wish.loading.iter_mut().for_each(|asker| asker.held = None);
            }
            (Self::KeepsReaders, Command::Acquire { wish, .. }) => {
                wish.loading.iter_mut().for_each(|asker| asker.incarnation = "0".into());
            }
            (Self::EveryoneStalls, Command::Acquire { wish, .. }) => {
                let stalled = a_lease.map(|(source, number)| stalled(source, number, false));
                wish.loading.iter_mut().for_each(|asker| asker.stalled = stalled.clone());
            }
            (Self::PlaceGoesBack, Command::Acquire { wish, .. }) => {
                if let Some(stalled) = wish.loading.as_mut().and_then(|asker| asker.stalled.as_mut()) {
                    stalled.lost = false;
                }
            }
            (Self::TwoLeaders, Command::Claim(claim)) => claim.patience_ms = 0,
            _ => {}
        }
    }
}

/// The first of the roots that are origins.
const ORIGINS: char = '\u{4e00}';

fn is_origin(root: char) -> bool {
    root >= ORIGINS
}

/// What a planner is told of a root.
fn named(root: char) -> String {
    if is_origin(root) { format!("origin:{root}") } else { root.into() }
}

fn stalled(source: u8, number: u32, lost: bool) -> Stalled {
    Stalled { identity: identity(source), lease: lease(number), lost, unanswered: false }
}

fn asker(worker: u8, memory: u32, held: Option<Held>) -> Asker {
    Asker {
        owner: Owner::default(),
        identity: identity(worker),
        incarnation: memory.to_string(),
        labels: Labels::default(),
        total_bytes: TOTAL_BYTES,
        held,
        starts_over: false,
        stalled: None,
    }
}

/// A lease as its holder has it.
#[derive(Debug, Clone, Copy)]
struct Lease {
    number: u32,
    source: u8,
    /// Of the source, when it was granted.
    memory: u32,
    /// Of the holder, when it was granted.
    holder: u32,
    ends_ms: i64,
    /// Whether it is on the point beyond the capacity.
    is_reserve: bool,
}

/// A worker as it knows itself, and what it told.
#[derive(Debug, Clone, Default)]
struct Worker {
    memory: u32,
    /// The root and the bytes that it holds.
    held: Option<(char, u64)>,
    /// What names what it reads from storage.
    origin: Option<char>,
    /// What named its bytes, of one that has everything.
    grew_from: Option<char>,
    /// The bytes that it has told.
    told_bytes: u64,
    told_root: Option<char>,
    /// The bytes that it has told to have come.
    arrived_bytes: u64,
    depth: u32,
    /// When somebody was last let read storage beside it, since it began with that.
    shared_ms: Option<i64>,
    /// Who, and which memory of it.
    reads_from: Option<(u8, u32)>,
    /// Whether it is registered, and as what.
    loads: bool,
    is_complete: bool,
    heard_ms: i64,
    /// What its memory before was, of which a row stays while that has readers.
    before: Before,
    leases: Vec<Lease>,
    /// Given back, and kept for its readers.
    kept: Vec<Lease>,
}

/// A memory that was taken away.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    memory: u32,
    loads: bool,
    depth: u32,
    reads_from: Option<(u8, u32)>,
}

struct Play<H: Home> {
    bench: Bench<H>,
    random: fastrand::Rng,
    fault: Option<Fault>,
    workers: Vec<Worker>,
    /// Of clients that do not load.
    others: Vec<Lease>,
    leads: Option<leading::Leader>,
    next_lease: u32,
    next_origin: char,
    now: i64,
}

/// Plays the history of a number; says what was wrong in it.
async fn play<H: Home>(seed: u64, fault: Option<Fault>) -> Result<(), String> {
    let bench = Bench::<H>::new(Rules { capacity: CAPACITY, ..RULES }).await;
    let workers = vec![Worker::default(); usize::from(WORKERS)];
    let random = fastrand::Rng::with_seed(seed);
    let mut play = Play {
        bench,
        random,
        fault,
        workers,
        others: Vec::new(),
        leads: None,
        next_lease: 1,
        next_origin: ORIGINS,
        now: 0,
    };
    for _ in 0..STEPS {
        play.step().await?;
    }
    Ok(())
}

impl<H: Home> Play<H> {
    async fn apply(&self, mut command: Command) -> Outcome {
        let a_lease = self.workers.iter().flat_map(|worker| &worker.leases).next();
        if let Some(fault) = self.fault {
            fault.put_into(&mut command, a_lease.map(|lease| (lease.source, lease.number)));
        }
        self.bench.apply(&[command]).await.remove(0)
    }

    async fn step(&mut self) -> Result<(), String> {
        let name = self.random.u8(0..WORKERS);
        let at = usize::from(name);
        match self.random.u8(0..24) {
            0..7 => self.ask(name).await,
            7 => self.ask_unmodified().await,
            8..14 => self.renew(name).await,
            14 => self.complete(name).await,
            15 if self.workers[at].loads || self.workers[at].is_complete => {
                // It starts over: first it is taken away; or it ended, and comes back at once with other memory.
                let remove =
                    Command::Remove { identity: identity(name), key: key("k"), owner: Owner::default() };
                let is_taken_away = self.random.bool();
                if is_taken_away {
                    self.apply(remove.clone()).await;
                }
                let Worker { memory, leases, kept, loads, depth, reads_from, .. } = self.workers[at].clone();
                let before = Before { memory, loads, depth, reads_from };
                self.workers[at] = Worker { memory: memory + 1, leases, kept, before, ..Worker::default() };
                if !is_taken_away {
                    self.ask(name).await?;
                    if !self.workers[at].loads {
                        self.apply(remove).await;
                    }
                }
                Ok(())
            }
            16 => self.release(name).await,
            17..21 => self.claim(name).await,
            _ => {
                let ms = self.random.i64(1..SILENT_MS);
                self.bench.step(ms);
                self.now += ms;
                Ok(())
            }
        }
    }

    /// Live leases on a worker, as it is now.
    fn on(&self, source: u8) -> impl Iterator<Item = &Lease> {
        let memory = self.workers[usize::from(source)].memory;
        let of_workers = self.workers.iter().flat_map(|worker| worker.leases.iter().chain(&worker.kept));
        let all = of_workers.chain(&self.others);
        all.filter(move |lease| lease.source == source && lease.memory == memory && lease.ends_ms > self.now)
    }

    fn is_silent(&self, worker: &Worker) -> bool {
        worker.loads && worker.heard_ms <= self.now - SILENT_MS
    }

    /// What is right of any grant; `inherited`: of a place that another had, whether that is the reserve.
    fn granted(&mut self, grant: &Grant, stalls: bool, inherited: Option<bool>) -> Result<Lease, String> {
        let source = (0..WORKERS).find(|worker| identity(*worker) == grant.identity);
        let source = source.ok_or_else(|| format!("nobody is {}", grant.identity))?;
        let known = &self.workers[usize::from(source)];
        if !known.loads && !known.is_complete {
            return Err(format!("{source} serves nobody"));
        }
        if self.is_silent(known) {
            return Err(format!("{source} was not heard of"));
        }
        if self.is_nameless(source) {
            return Err(format!("{source} has just begun to read storage"));
        }
        // A point of the reserve stays leased when its seed has everything.
        let (reserve, points): (Vec<&Lease>, Vec<&Lease>) =
            self.on(source).partition(|lease| lease.is_reserve);
        let has_room = u32::try_from(points.len()).unwrap() < CAPACITY;
        let has_reserve = known.loads && stalls && reserve.is_empty();
        if !has_room && !has_reserve && inherited.is_none() {
            return Err(format!("{source} lends more than it may"));
        }
        let lease = Lease {
            number: self.next_lease,
            source,
            memory: known.memory,
            holder: 0,
            ends_ms: self.now + grant.lease_ttl_ms,
            is_reserve: inherited.unwrap_or(!has_room),
        };
        self.next_lease += 1;
        Ok(lease)
    }

    async fn ask_unmodified(&mut self) -> Result<(), String> {
        let command = Command::Acquire {
            key: key("k"),
            wish: Box::default(),
            lease: lease(self.next_lease),
            queue: None,
        };
        if let Outcome::Acquired(Ok(grant)) = self.apply(command).await {
            let lease = self.granted(&grant, false, None)?;
            if self.workers[usize::from(lease.source)].loads {
                return Err(format!("an unmodified client was given {}, which loads", lease.source));
            }
            self.others.push(lease);
        }
        Ok(())
    }

    async fn ask(&mut self, name: u8) -> Result<(), String> {
        let now = self.now;
        let worker = self.workers[usize::from(name)].clone();
        if worker.is_complete {
            return Ok(());
        }
        let held = worker.held.map(|(root, bytes)| Held { root: named(root), bytes });
        let mut told = asker(name, worker.memory, held);
        let stalls = worker.leases.last().filter(|lease| {
            let is_there = self.workers[usize::from(lease.source)].memory == lease.memory;
            lease.ends_ms > now && is_there
        });
        let lost = self.random.bool();
        told.stalled = stalls.map(|stalls| stalled(stalls.source, stalls.number, lost));
        let inherits =
            stalls.filter(|_| lost).and_then(|stalls| self.inheritance(name, (stalls.source, stalls.memory)));
        let wish = Wish { loading: Some(Box::new(told)), ..Wish::default() };
        let number = lease(self.next_lease);
        let command = Command::Acquire { key: key("k"), wish: Box::new(wish), lease: number, queue: None };
        let outcome = self.apply(command).await;
        if let (Some(inherited), Some(stalls)) = (&inherits, stalls) {
            let expected = identity(inherited.source);
            if !matches!(&outcome, Outcome::Acquired(Ok(grant)) if grant.identity == expected) {
                return Err(format!("{name} has not the place of the lost {} on {expected}", stalls.source));
            }
            self.workers[usize::from(name)].leases.retain(|lease| lease.number != stalls.number);
            self.pass_over(&inherited.passed_over);
        }
        let Outcome::Acquired(Ok(grant)) = outcome else { return Ok(()) };
        let on_reserve = inherits.map(|inherited| inherited.on_reserve);
        let lease = Lease { holder: worker.memory, ..self.granted(&grant, stalls.is_some(), on_reserve)? };
        let source = self.workers[usize::from(lease.source)].clone();
        if lease.source == name || stalls.is_some_and(|stalls| stalls.source == lease.source) {
            return Err(format!("{name} was given itself, or the source that stalls"));
        }
        if source.loads && worker.loads && source.reads_from == Some((name, worker.memory)) {
            return Err(format!("{name} was given its reader"));
        }
        if let Some((root, bytes)) = worker.held {
            let is_same =
                source.told_root.is_none_or(|known| known == root) || source.grew_from == Some(root);
            if !is_same {
                return Err(format!("{name} has bytes of {root}, and {} of another root", lease.source));
            }
            let is_nearer = worker.loads && source.depth < worker.depth;
            if source.loads && source.told_bytes <= bytes && !is_nearer {
                return Err(format!("{name} holds {bytes}, and {} no more", lease.source));
            }
        }
        let depth = if source.loads { source.depth + 1 } else { 0 };
        let worker = &mut self.workers[usize::from(name)];
        if grant.source.as_ref().map(|source| source.depth) != Some(depth) {
            return Err(format!("{name} was told {:?} instead of the depth {depth}", grant.source));
        }
        (worker.loads, worker.depth, worker.heard_ms) = (true, depth, now);
        (worker.reads_from, worker.told_bytes) =
            (Some((lease.source, lease.memory)), worker.held.map_or(0, |held| held.1));
        worker.told_root = worker.held.map(|held| held.0).or(source.told_root);
        if let (Some(held), Some((root, _))) = (&mut worker.held, source.held.filter(|_| source.is_complete))
        {
            // It goes on under the content id, if it has not got it already.
            held.0 = root;
        }
        worker.leases.push(lease);
        Ok(())
    }

    /// More has come, as far as the source holds it; and the lease is renewed.
    async fn renew(&mut self, name: u8) -> Result<(), String> {
        let now = self.now;
        let Some(held_lease) = self.workers[usize::from(name)].leases.last().copied() else { return Ok(()) };
        let source = self.workers[usize::from(held_lease.source)].clone();
        let is_there = source.memory == held_lease.memory && held_lease.ends_ms > now;
        let more = self.random.u64(0..30);
        let worker = &mut self.workers[usize::from(name)];
        if is_there && let Some((root, bytes)) = source.held.filter(|_| worker.loads) {
            let own = worker.held.map_or(0, |held| held.1);
            worker.held = Some((worker.held.map_or(root, |held| held.0), (own + more).min(bytes).max(own)));
        }
        let worker = worker.clone();
        let progress = Progress {
            incarnation: worker.memory.to_string(),
            arrived_bytes: worker.arrived_bytes,
            held: worker.held.map(|(root, bytes)| Held { root: named(root), bytes }),
        };
        let command = Command::Renew {
            identity: identity(held_lease.source),
            lease: lease(held_lease.number),
            progress: Some(Box::new(progress)),
        };
        let Outcome::Renewed(renewed) = self.apply(command).await else { panic!("not of a renewal") };
        let worker = &mut self.workers[usize::from(name)];
        let Some(renewed) = renewed else {
            worker.leases.pop();
            return if is_there { Err(format!("{name} lost its lease")) } else { Ok(()) };
        };
        if source.memory != held_lease.memory && (source.loads || source.is_complete) {
            return Err(format!("{name} still reads from {}, which has started over", held_lease.source));
        }
        if let Some(lease) = worker.leases.last_mut() {
            lease.ends_ms = now + renewed.ttl_ms;
        }
        let is_known = renewed.loading.is_some_and(|told| told.advice != Some(Advice::RegistrationEnded));
        if worker.loads && is_known {
            worker.heard_ms = now;
            let is_same = source.memory == held_lease.memory;
            let before = source.before;
            let (loads, depth) =
                if is_same { (source.loads, source.depth) } else { (before.loads, before.depth) };
            worker.depth = if loads { depth + 1 } else { 0 };
            worker.reads_from = Some((held_lease.source, held_lease.memory));
            worker.told_bytes = worker.held.map_or(0, |held| held.1);
            worker.told_root = worker.held.map(|held| held.0).or(worker.told_root);
        }
        Ok(())
    }

    /// It has everything: from its source, or from storage.
    async fn complete(&mut self, name: u8) -> Result<(), String> {
        let root = self.random.choice(['x', 'x', 'x', 'y']).unwrap_or('x');
        let worker = self.workers[usize::from(name)].clone();
        // Whatever grew is found to be of one content.
        let origin = worker.held.map(|held| held.0).filter(|root| is_origin(*root));
        let root = worker.held.map_or(root, |held| if origin.is_some() { 'x' } else { held.0 });
        let profile = Profile {
            incarnation: Some(worker.memory.to_string()),
            content_id: Some(root.into()),
            origin: origin.map(named),
            ..Profile::default()
        };
        let command = registering(name, "k", profile);
        let outcome = self.apply(command).await;
        let Outcome::Registered(registration, _) = outcome else { panic!("{outcome:?}") };
        if registration != Registration::Draining {
            let worker = &mut self.workers[usize::from(name)];
            (worker.loads, worker.is_complete) = (false, true);
            (worker.held, worker.told_root) = (Some((root, TOTAL_BYTES)), Some(root));
            worker.grew_from = origin;
        }
        Ok(())
    }

    /// A lease is given back. The place of a memory that was taken away is kept for those who read from it.
    async fn release(&mut self, name: u8) -> Result<(), String> {
        let Some(held) = self.workers[usize::from(name)].leases.pop() else { return Ok(()) };
        let command = Command::Release {
            identity: identity(held.source),
            lease: lease(held.number),
            report: Report::Aborted,
            account: None,
        };
        self.apply(command).await;
        let of = (name, held.holder);
        let leases = self.workers.iter().flat_map(|worker| &worker.leases);
        let is_read =
            leases.into_iter().any(|lease| (lease.source, lease.memory) == of && lease.ends_ms > self.now);
        let now = self.now;
        let worker = &mut self.workers[usize::from(name)];
        let before = worker.before;
        let is_of_it = held.holder == before.memory && worker.memory != before.memory;
        let was_source = before.loads && before.reads_from == Some((held.source, held.memory));
        if is_of_it && was_source && is_read && !worker.loads && !worker.is_complete {
            worker.kept.push(Lease { ends_ms: held.ends_ms.min(now + SILENT_MS), ..held });
        }
        Ok(())
    }
}

fn run<H: Home>(seed: u64, fault: Option<Fault>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play::<H>(seed, fault))
}

/// Plays so many histories; a failure prints the number of its history.
pub(crate) fn histories_keep_the_rules<H: Home>(histories: u64) {
    for seed in 0..histories {
        if let Err(wrong) = run::<H>(seed, None) {
            panic!("history {seed}: {wrong}");
        }
    }
}

/// Each fault is found by one of so many histories.
pub(crate) fn faults_are_found<H: Home>(histories: u64) {
    for fault in Fault::ALL {
        let found = (0..histories).find_map(|seed| run::<H>(seed, Some(fault)).err());
        assert!(found.is_some(), "no history finds {fault:?}");
    }
}
