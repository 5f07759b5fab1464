//! A fleet: its workers, its clock, and the planners that it asks.
//!
//! The clock ticks no faster than it is to. It stands still while an answer is late, so that what a round is does not depend
//! on how fast the machine serves requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use rfork_protocol::SeedIdentity;
use rfork_protocol::v2::{Cursor, MAX_PAGE, Name, Query, SEEDS, SeedList, SeedQuery};
use rfork_tests::process::Planner;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::answers::Kind;
use crate::counts::{Counts, Report};
use crate::plan::{Fate, First, Plan, Scale};
use crate::points::{CAPACITY, Points, RESERVE};
use crate::replicas::Replicas;
use crate::wire::{Question, Told, Wire};
use crate::worker::{Life, Patience, State, Worker};

/// Between two heartbeats of seeds that have everything.
const BEAT: Duration = Duration::from_secs(20);
/// Between two looks at the planner's list of seeds.
const LOOK: Duration = Duration::from_secs(5);
/// What takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(25 * 60);

/// What names bytes.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) name: Name,
    /// Whether they had no content id at first.
    pub(crate) grown: bool,
    content: Name,
}

impl Root {
    fn new(number: usize, grown: bool) -> Self {
        let content = Name::cut(&format!("content {number}")).unwrap();
        let name = if grown { Name::cut(&format!("origin:{number:064x}")).unwrap() } else { content.clone() };
        Self { name, grown, content }
    }

    pub(crate) fn is_called(&self, name: &Name) -> bool {
        self.name == *name || self.content == *name
    }
}

type Answer = (usize, u32, Kind, Option<Told>);

pub(crate) struct Fleet {
    pub(crate) scale: Scale,
    pub(crate) patience: Patience,
    pub(crate) tick: u64,
    pub(crate) all: Vec<Worker>,
    pub(crate) roots: Vec<Root>,
    pub(crate) points: Points,
    pub(crate) counts: Counts,
    pub(crate) random: Rng,
    pub(crate) wire: Arc<Wire>,
    pub(crate) answers: UnboundedSender<Answer>,
    told: UnboundedReceiver<Answer>,
    /// What a right planner, or a right worker of this test, does not do.
    pub(crate) faults: Vec<String>,
    plan: Plan,
}

impl Fleet {
    /// A fleet of these planners, whose choices come from this number.
    pub(crate) fn new(scale: Scale, planners: &[Planner], number: u64) -> Self {
        let mut random = Rng::with_seed(number);
        let plan = Plan::of(&mut random, &scale, planners.len());
        let workers = plan.workers.iter().enumerate();
        let mut all: Vec<Worker> = workers
            .map(|(number, (starts, fate, at))| {
                Worker::new(number, number / scale.of_key, (*starts, (*fate, *at)))
            })
            .collect();
        let mut roots = Vec::new();
        let firsts = plan.seeds.iter().enumerate().filter(|(_, first)| **first != First::Nobody);
        // Of some keys there are two, with bytes of their own: the weights were replaced.
        let firsts = firsts.flat_map(|(key, _)| std::iter::repeat_n(key, if key % 4 == 2 { 2 } else { 1 }));
        for key in firsts {
            let seed = Worker::new(all.len(), key, (0, (Fate::Lives, 0)));
            let root = Some(roots.len());
            roots.push(Root::new(roots.len(), false));
            let state = State::Registering;
            all.push(Worker { first: true, root, held: scale.chunks, known: true, state, ..seed });
        }
        let (answers, told) = unbounded_channel();
        let wire = Wire::new(planners.iter().map(|planner| planner.address.parse().unwrap()).collect());
        Self {
            scale,
            patience: Patience::of(&scale),
            tick: 0,
            counts: Counts::new(scale.keys),
            all,
            roots,
            points: Points::default(),
            random,
            wire: Arc::new(wire),
            answers,
            told,
            faults: Vec::new(),
            plan,
        }
    }

    pub(crate) fn new_root(&mut self, grown: bool) -> usize {
        self.roots.push(Root::new(self.roots.len(), grown));
        self.roots.len() - 1
    }

    pub(crate) fn name_of(&self, root: Option<usize>) -> Option<Name> {
        root.map(|root| self.roots[root].name.clone())
    }

    /// Runs until whoever lives is a seed; planners are killed and started again on the way.
    pub(crate) async fn run(mut self, store: &str, planners: Vec<Planner>) {
        let mut replicas = Replicas::new(planners, self.plan.outages.clone());
        let (mut begun, mut stood) = (Instant::now(), 0);
        let mut looks = Looks::begin(&self);
        let mut beats: Vec<Instant> = (0..self.scale.keys)
            .map(|key| begun + BEAT.mul_f64(key as f64 / self.scale.keys as f64))
            .collect();
        let mut clock = interval(self.scale.tick);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let firsts = self.scale.workers()..self.all.len();
        while !self.all.iter().all(is_done) {
            clock.tick().await;
            self.drain();
            if self.tick == 0 && !self.all[firsts.clone()].iter().all(is_done) {
                // Workers ask once there is something to be found.
                firsts.clone().for_each(|number| self.act(number));
                begun = Instant::now();
                continue;
            }
            replicas.step(self.tick).await;
            if self.wire.is_late() && replicas.all_work() {
                stood += 1;
            } else {
                self.tick += 1;
                self.transfer();
            }
            self.kill_seeds();
            (0..self.all.len()).for_each(|number| self.act(number));
            for (key, due) in beats.iter_mut().enumerate().filter(|(_, due)| Instant::now() >= **due) {
                *due += BEAT;
                self.beat(key);
            }
            self.faults.extend(looks.step());
            let first = &self.faults[..self.faults.len().min(5)];
            assert!(first.is_empty(), "{} faults, the first: {first:#?}", self.faults.len());
            assert!(begun.elapsed() < DEADLINE, "it hangs:\n{}", self.still());
            self.check_time(replicas.killed());
        }
        let report = Report::new(&self, begun.elapsed(), (stood, looks.count(), replicas.killed()));
        println!("{}\n| {} | {report}", Report::HEAD, store);
        self.counts.check(&self.all, &self.scale);
    }

    fn drain(&mut self) {
        while let Ok((number, asked, kind, told)) = self.told.try_recv() {
            self.take_in(number, (asked, kind, told));
        }
    }

    /// The seed of a key vanishes when somebody has so much.
    fn kill_seeds(&mut self) {
        for number in self.scale.workers()..self.all.len() {
            let key = self.all[number].key;
            let First::Vanishes(at) = self.plan.seeds[key] else { continue };
            if self.all.iter().any(|worker| !worker.first && worker.key == key && worker.held >= at) {
                self.plan.seeds[key] = First::Stays;
                self.all[number].life = Life::Gone;
                self.counts.struck(&self.all[number], Fate::Vanishes);
            }
        }
    }

    /// Whoever is not a seed, for people.
    fn still(&self) -> String {
        let still = self.all.iter().filter(|worker| !is_done(worker)).take(5);
        let said = still.map(|worker| {
            let Worker { identity, life, state, held, link, asked, .. } = worker;
            format!("{identity} of key {}: {life:?}, {state:?}, holds {held}, reads from {link:?}, has asked: {asked}", worker.key)
        });
        said.collect::<Vec<_>>().join("\n")
    }

    /// Nobody waits for longer than what happened to its key explains.
    fn check_time(&self, outages: u32) {
        for worker in self.all.iter().filter(|worker| !is_done(worker)) {
            let most = self.counts.longest((worker.key, outages), &self.scale, &self.patience);
            assert!(self.tick <= most, "not within {:.2} rounds:\n{}", self.scale.rounds(most), self.still());
        }
    }
}

fn is_done(worker: &Worker) -> bool {
    worker.life == Life::Gone || (worker.state == State::Seed && worker.life == Life::Lives)
}

/// Looks at the planner's list of seeds now and then, one look after the other.
struct Looks {
    wire: Arc<Wire>,
    first: HashSet<SeedIdentity>,
    running: JoinSet<Vec<String>>,
    due: Instant,
    count: u32,
}

impl Looks {
    fn begin(fleet: &Fleet) -> Self {
        let first = fleet.all.iter().filter(|worker| worker.first).map(|worker| worker.identity.clone());
        let (wire, first) = (fleet.wire.clone(), first.collect());
        Self { wire, first, running: JoinSet::new(), due: Instant::now(), count: 0 }
    }

    /// Gives what is wrong, as far as it was seen.
    fn step(&mut self) -> Vec<String> {
        if self.running.is_empty() && Instant::now() >= self.due {
            self.due = Instant::now() + LOOK;
            self.running.spawn(look(self.wire.clone(), self.first.clone()));
        }
        let Some(said) = self.running.try_join_next() else { return Vec::new() };
        self.count += 1;
        said.unwrap()
    }

    fn count(&self) -> u32 {
        self.count
    }
}

/// Looks through a planner's list of seeds: none has more leases than it may have, those of `first` no more than their
/// capacity.
async fn look(wire: Arc<Wire>, first: HashSet<SeedIdentity>) -> Vec<String> {
    let (mut faults, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let path = format!(
            "{SEEDS}?{}",
            SeedQuery { limit: MAX_PAGE, after: after.take(), ..SeedQuery::default() }.encode()
        );
        let (wait, patience) = (Duration::ZERO, Duration::from_secs(10));
        let question =
            Question { from: 0, method: "GET", path, body: String::new(), wait, patience, idempotency: None };
        let Some(told) = wire.ask(&question).await.filter(|told| told.status == 200) else { return faults };
        let page: SeedList = serde_json::from_slice(&told.body).unwrap();
        for seed in page.seeds {
            let most = if first.contains(&seed.seed) { CAPACITY } else { CAPACITY + RESERVE };
            if seed.used > most || seed.capacity != CAPACITY {
                faults.push(format!("{} has {} leases, and may have {most}", seed.seed, seed.used));
            }
        }
        after = page.next;
        if after.is_none() {
            return faults;
        }
    }
}
