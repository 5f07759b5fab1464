//! Plays a history on the real store and on the model, and says where they differ.

mod begin;
mod clock;
mod tally;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::super::{
    ApplyList, Beat, Clock, Command, ManualClock, Outcome, Snapshot, Store, StoreError, Swept,
};
use super::Ground;
use super::commands::{told, woken};
use super::history::{Cut, History, Step, Work};
use super::interleave::{Task, interleave};
use super::model::{Event, Granted, Left, Model, Order, Told};
use super::search;
use super::world::{KEYS, SEEDS, World};
use crate::store::conformance::{key, lease};
pub(super) use tally::Tally;

/// What the clock shows at first, Unix milliseconds.
const BEGIN_MS: i64 = 1_000_000;

/// After how many steps all that the store shows is compared; every answer is.
const SHOWN_EVERY: usize = 3;

/// Planners over one database, which play one history after the other.
pub(super) struct Stage<G> {
    ground: G,
    /// By which each planner counts; all show the same.
    clocks: Vec<Arc<ManualClock>>,
    world: World,
    stores: Vec<Arc<dyn Store>>,
}

impl<G: Ground> Stage<G> {
    pub(super) async fn new(world: World) -> Self {
        let clock = ManualClock::new(BEGIN_MS);
        let clocks = (0..G::PLANNERS).map(|_| Arc::new(clock.shared())).collect();
        let mut stage = Self { ground: G::make().await, clocks, world, stores: Vec::new() };
        stage.restart(world).await;
        stage
    }

    /// Starts all planners, the earlier ones having crashed.
    async fn restart(&mut self, world: World) {
        self.world = world;
        self.stores.clear();
        for planner in 0..G::PLANNERS {
            self.stores.push(self.open(planner).await);
        }
    }

    async fn open(&self, planner: usize) -> Arc<dyn Store> {
        self.ground.open(self.world.rules(), Clock::Manual(self.clocks[planner].clone())).await
    }

    /// Plays a history from its begin, on an empty database.
    ///
    /// # Errors
    /// The first difference between the store and the model.
    pub(super) async fn play(&mut self, history: &History) -> Result<Tally, String> {
        self.ground.empty().await;
        let world = World::new(history.world);
        if self.world != world {
            self.restart(world).await;
        }
        let begin_ms = self.begin_time().await?;
        let mut play = Play {
            possible: vec![Model::new(world, begin_ms, self.shown_ms())],
            now: begin_ms,
            clock_is_news: false,
            // Which of several keys comes first is open, and counts where hosts are bounded.
            order: if world.caps_hosts() { Order::Any } else { Order::Policy },
            leases: Vec::new(),
            asked: 0,
            places: Vec::new(),
            names: (0..).take(G::PLANNERS).collect(),
            woken: vec![Vec::new(); G::PLANNERS],
            gathered: vec![Gathered::default(); G::PLANNERS],
            numbers: BTreeMap::new(),
            tally: Tally::default(),
            stage: self,
        };
        let last = history.steps.len() - 1;
        for (at, step) in history.steps.iter().enumerate() {
            let here = |difference| format!("step {at}, {step:?}: {difference}");
            play.step(step).await.map_err(here)?;
            // It takes as long as the step. What differs mostly stays so for a while.
            if at % SHOWN_EVERY == 0 || at == last {
                let snapshot = play.snapshot().await.map_err(here)?;
                play.keep(|model| model.compare(&snapshot)).map_err(here)?;
            }
        }
        play.tally.steps = history.steps.len() as u64;
        Ok(play.tally)
    }
}

/// When the last heartbeat of a holding came that a planner has not written yet, Unix milliseconds.
type Gathered = BTreeMap<i64, i64>;

/// What a planner's work comes to.
enum Done {
    Batch(Result<Vec<Outcome>, StoreError>),
    Flush(Result<HashSet<i64>, StoreError>),
    Sweep(Result<Swept, StoreError>),
}

/// Work that is about to be done: the planner, what it means for the model, and what for the store.
struct Begun {
    planner: usize,
    events: Vec<Event>,
    commands: Vec<Command>,
    beats: Vec<Beat>,
    cut: Option<Cut>,
}

struct Play<'a, G> {
    stage: &'a mut Stage<G>,
    /// What may be. More than one thing only after a call was cut off, or planners worked at the same time, as far
    /// as nothing that was shown tells them apart.
    possible: Vec<Model>,
    /// What time it is.
    now: i64,
    /// Whether nobody has worked since the clock was set.
    clock_is_news: bool,
    order: Order,
    /// All leases that were granted: number, seed.
    leases: Vec<(u32, u8)>,
    /// How many leases were asked for.
    asked: u32,
    /// All attempts of acquisitions that wait or may be repeated.
    places: Vec<Event>,
    /// Each planner's, which a new one takes when it starts again.
    names: Vec<u32>,
    /// Leases of waiters that each planner was named last.
    woken: Vec<Vec<(u32, i64)>>,
    gathered: Vec<Gathered>,
    /// The numbers of seeds that planners were told last, be they old by now.
    numbers: BTreeMap<u8, i64>,
    tally: Tally,
}

impl<G: Ground> Play<'_, G> {
    fn store(&self, planner: usize) -> &Arc<dyn Store> {
        &self.stage.stores[planner]
    }

    async fn snapshot(&self) -> Result<Snapshot, String> {
        self.store(0).snapshot().await.map_err(|error| error.to_string())
    }

    /// Keeps what may be as far as `fits` says.
    fn keep(&mut self, mut fits: impl FnMut(&mut Model) -> Result<(), String>) -> Result<(), String> {
        let mut difference = String::new();
        self.possible.retain_mut(|model| fits(model).map_err(|text| difference = text).is_ok());
        if self.possible.is_empty() { Err(difference) } else { Ok(()) }
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Batch(planner, asks) => {
                let begun = self.begin(*planner, asks, None);
                self.alone(begun).await?;
            }
            Step::Killed(planner, asks, cut) => {
                let begun = self.begin(*planner, asks, Some(*cut));
                self.alone(begun).await?;
            }
            Step::Together(works, order) => self.together(works, *order).await?,
            Step::Wait(ms) => self.wait(*ms),
            Step::Clock(ms) => self.clock_is_set(*ms),
            Step::Pause(paused, ms) => self.pause(*paused, *ms).await?,
            Step::Away(ms) => self.away(*ms).await?,
            Step::Beat(planner, seeds) => {
                let now = self.now;
                for seed in (0..SEEDS).filter(|seed| seeds >> seed & 1 == 1) {
                    if let Some(number) = self.numbers.get(&seed) {
                        self.gathered[*planner].insert(*number, now);
                    }
                }
            }
            Step::Flush(planner) => {
                let begun = self.begin_flush(*planner);
                self.alone(begun).await?;
            }
            Step::Sweep(planner) => {
                let swept = self.store(*planner).sweep().await.map_err(|error| error.to_string())?;
                self.tally.ended_by_sweep += swept.leases;
                self.keep(|model| match model.sweep() {
                    expected if expected == (swept.leases, swept.seeds, swept.forgotten.requests) => Ok(()),
                    expected => Err(format!("ended {swept:?}, not {expected:?}")),
                })?;
            }
            Step::Collect(planner, tells) => self.collect(*planner, *tells).await?,
            Step::Invalidate(planner, at) => {
                let done = self.store(*planner).invalidate(&key(KEYS[*at]), None, None).await;
                let drained = done.map_err(|error| error.to_string())?;
                self.keep(|model| match model.invalidate(*at) {
                    expected if expected == drained => Ok(()),
                    expected => Err(format!("drained {drained}, not {expected}")),
                })?;
            }
            Step::Restart(planner, crash) => {
                self.see_clock().await?;
                if !crash {
                    self.store(*planner).close().await;
                }
                self.restart(*planner).await;
            }
            Step::Capacity(capacity) => {
                self.see_clock().await?;
                let world = self.stage.world.with_capacity(*capacity);
                self.possible.iter_mut().for_each(|model| model.adopt(world));
                self.stage.restart(world).await;
                (0..G::PLANNERS).for_each(|planner| self.begin_anew(planner));
            }
        }
        Ok(())
    }

    /// A planner collects those of its waiters whose turn came.
    async fn collect(&mut self, planner: usize, tells: bool) -> Result<(), String> {
        let told = if tells { std::mem::take(&mut self.woken[planner]) } else { Vec::new() };
        let named: Vec<_> = told.iter().map(|(number, attempt)| (lease(*number), *attempt)).collect();
        let collected = self.store(planner).collect(&named).await.map_err(|error| error.to_string())?;
        let mut collected: Vec<(u32, i64, Option<Granted>)> = collected.iter().map(woken).collect();
        collected.sort_unstable_by_key(|(lease, ..)| *lease);
        let name = self.names[planner];
        self.keep(|model| match model.collect(name, &told) {
            expected if expected == collected => Ok(()),
            expected => Err(format!("collected {collected:?}, not {expected:?}")),
        })?;
        for (lease, _, grant) in &collected {
            self.tally.woken += 1;
            self.leases.extend(grant.map(|grant| (*lease, grant.seed)));
        }
        self.woken[planner] = collected.into_iter().map(|(lease, attempt, _)| (lease, attempt)).collect();
        Ok(())
    }

    /// Nothing is left of a planner that starts again but what the database has.
    fn begin_anew(&mut self, planner: usize) {
        self.gathered[planner] = Gathered::default();
        self.woken[planner].clear();
        self.names[planner] = self.names.iter().max().map_or(0, |last| last + 1);
        // The file's lock says that the one before is gone.
        if G::PLANNERS == 1 {
            self.possible.iter_mut().for_each(Model::abandon);
        }
    }

    async fn restart(&mut self, planner: usize) {
        self.begin_anew(planner);
        // The old store goes first: some databases allow only one.
        self.stage.stores.remove(planner);
        let store = self.stage.open(planner).await;
        self.stage.stores.insert(planner, store);
    }

    fn begin_flush(&mut self, planner: usize) -> Begun {
        let now = self.now;
        let waiting = std::mem::take(&mut self.gathered[planner]);
        let beats: Vec<Beat> = waiting
            .into_iter()
            .map(|(seed_id, arrived_ms)| Beat { seed_id, age_ms: (now - arrived_ms).max(0) })
            .collect();
        let events = beats.iter().map(|beat| Event::Beat { number: beat.seed_id, age_ms: beat.age_ms });
        Begun { planner, events: events.collect(), commands: Vec::new(), beats, cut: None }
    }

    /// Does one thing; its outcomes follow the documented order.
    async fn alone(&mut self, begun: Begun) -> Result<(), String> {
        if self.order == Order::Any {
            return self.beside(vec![begun], 0).await;
        }
        let told = self.perform(std::slice::from_ref(&begun), 0).await?.remove(0);
        let mut after = Vec::new();
        let mut difference = String::new();
        // One of several planners knows that it answers.
        let answers = (G::PLANNERS > 1).then(|| self.names[begun.planner]);
        for model in &self.possible {
            match model.batch(&begun.events, told.as_deref(), answers) {
                Ok(model) => after.push(model),
                Err(text) => difference = text,
            }
        }
        if after.is_empty() {
            return Err(difference);
        }
        if told.is_some() {
            self.possible = after;
            return Ok(());
        }
        self.stage.ground.settle(&self.stage.stores[begun.planner]).await;
        let snapshot = self.snapshot().await?;
        let undone = self.possible.iter().any(|model| model.compare(&snapshot).is_ok());
        let all: HashSet<Model> = self.possible.drain(..).chain(after).collect();
        self.possible = all.into_iter().collect();
        self.keep(|model| model.compare(&snapshot))
            .map_err(|text| format!("neither undone nor done: {text}"))?;
        if undone {
            self.tally.killed_before_commit += 1;
        } else {
            self.tally.killed_after_commit += 1;
        }
        Ok(())
    }

    /// Several planners work at the same time. There must be an order of all that they did in which everybody
    /// was told what is right; what a batch does to one seed comes in the documented order.
    async fn together(&mut self, works: &[Work], order: u64) -> Result<(), String> {
        let mut begun = Vec::new();
        for (at, work) in works.iter().enumerate() {
            let planner = at % G::PLANNERS;
            begun.push(match work {
                Work::Batch(asks) => self.begin(planner, asks, None),
                Work::Killed(asks, cut) => self.begin(planner, asks, Some(*cut)),
                Work::Flush => self.begin_flush(planner),
                Work::Sweep => {
                    let events = (0..SEEDS).map(|seed| Event::Sweep { seed }).collect();
                    Begun { planner, events, commands: Vec::new(), beats: Vec::new(), cut: None }
                }
            });
        }
        self.tally.together += 1;
        self.beside(begun, order).await
    }

    async fn beside(&mut self, begun: Vec<Begun>, order: u64) -> Result<(), String> {
        let told = self.perform(&begun, order).await?;
        if told.iter().any(Option::is_none) {
            self.stage.ground.settle(&self.stage.stores[0]).await;
        }
        let snapshot = self.snapshot().await?;
        let all: Vec<_> = begun
            .into_iter()
            .zip(told)
            .map(|(begun, told)| search::Done { events: begun.events, told })
            .collect();
        let mut found = HashSet::new();
        let mut difference = String::new();
        for model in &self.possible {
            match search::explain(model, &all, &snapshot) {
                Ok(models) => found.extend(models),
                Err(text) => difference = text,
            }
        }
        self.possible = found.into_iter().collect();
        if self.possible.is_empty() { Err(difference) } else { Ok(()) }
    }

    /// Has the planners do it, and gives what they told; `None` of those that were killed.
    async fn perform(
        &mut self,
        begun: &[Begun],
        order: u64,
    ) -> Result<Vec<Option<Vec<Option<Told>>>>, String> {
        let tasks = begun.iter().map(|begun| {
            let store = self.stage.stores[begun.planner].clone();
            Task { future: Box::pin(work(store, begun)), cut: begun.cut }
        });
        let done = interleave(tasks.collect(), order).await;
        let mut all = Vec::new();
        for (begun, done) in begun.iter().zip(done) {
            let told = match done {
                None => None,
                Some(Done::Batch(outcomes)) => {
                    let outcomes = outcomes.map_err(|error| error.to_string())?;
                    if outcomes.len() != begun.events.len() {
                        return Err(format!("{} outcomes of {}", outcomes.len(), begun.events.len()));
                    }
                    Some(outcomes.iter().map(|outcome| Some(told(outcome))).collect())
                }
                Some(Done::Flush(gone)) => {
                    let gone = gone.map_err(|error| error.to_string())?;
                    Some(
                        begun
                            .beats
                            .iter()
                            .map(|beat| Some(Told::Gone(gone.contains(&beat.seed_id))))
                            .collect(),
                    )
                }
                Some(Done::Sweep(swept)) => {
                    self.tally.ended_by_sweep += swept.map_err(|error| error.to_string())?.leases;
                    Some(vec![None; begun.events.len()])
                }
            };
            self.note(begun, told.as_deref().unwrap_or_default());
            all.push(told);
        }
        Ok(all)
    }

    /// What clients and the planner remember of what they were told.
    fn note(&mut self, begun: &Begun, told: &[Option<Told>]) {
        for (event, told) in begun.events.iter().zip(told) {
            self.tally.count(event, *told);
            match (event, told) {
                (Event::Acquire { lease, .. }, Some(Told::Granted(grant)))
                | (Event::Leave { lease, .. }, Some(Told::Left(Left::Granted(grant, _)))) => {
                    self.leases.push((*lease, grant.seed));
                }
                (Event::Register { seed, .. }, Some(Told::Registered(_, number)))
                | (Event::Hear { seed, .. }, Some(Told::Heard(_, Some(number)))) => {
                    self.numbers.insert(*seed, *number);
                }
                (Event::Beat { number, .. }, Some(Told::Gone(true))) => {
                    self.numbers.retain(|_, known| known != number);
                }
                _ => {}
            }
        }
    }
}

async fn work(store: Arc<dyn Store>, begun: &Begun) -> Done {
    if !begun.commands.is_empty() {
        Done::Batch(store.apply_list(&begun.commands).await)
    } else if matches!(begun.events.first(), Some(Event::Sweep { .. })) {
        Done::Sweep(store.sweep().await)
    } else {
        Done::Flush(store.flush(&begun.beats).await)
    }
}
