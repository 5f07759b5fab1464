//! Whose turn it is: of each key those who wait, in the order in which they came, each once; then those who are new.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rfork_protocol::{SeedIdentity, SeedKey};

use super::choose::{self, Candidates};
use super::inherit::{self, Found, Heritage};
use super::join;
use super::rows::RequestRow;
use super::tables::{Offered, Tables};
use super::wants::{Near, Wants};
use crate::domain::policy::{HostRoom, Wish};
use crate::store::commands::{Acquire, Acquired};
use crate::store::{LeaseHash, MAX_CALLS, Rules};

/// Whose lease it is to be.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// The waiting request of this number.
    Waiter(i64),
    /// The acquisition at this place of the batch.
    Command(usize),
}

#[derive(Debug)]
struct Worker {
    who: Who,
    lease: LeaseHash,
    wish: Arc<Wish>,
}

/// Those who want a seed of one key.
#[derive(Debug)]
struct Line {
    /// Called up, and not served yet.
    queue: VecDeque<Worker>,
    /// The last waiter that was called up; `None` once no more are.
    after: Option<i64>,
    /// Whether somebody who was called up got nothing.
    left: bool,
    /// Acquisitions of the batch.
    commands: Vec<usize>,
    candidates: Candidates,
}

/// Whether a waiter may be called up: its time is not over, and its planner answers.
fn is_called(tables: &Tables, row: &RequestRow, now: i64) -> bool {
    row.waits_until_ms.is_some_and(|until_ms| until_ms > now) && tables.answers(row.planner.as_ref(), now)
}

/// What serving changes beside rows.
#[derive(Debug, Default)]
pub(super) struct Serving {
    lines: BTreeMap<SeedKey, Line>,
    hosts: HostRoom,
    calls: usize,
    /// Askers, and sources that stall, of which it is known whether they are there.
    sought: BTreeSet<SeedIdentity>,
    /// The same of sources' sources, by number.
    followed: BTreeSet<i64>,
    /// Planners whose waiters were served.
    pub(super) woken: BTreeSet<Arc<str>>,
    /// Acquisitions that got nothing.
    pub(super) unserved: Vec<usize>,
}

/// What every step looks at.
pub(super) struct Batch<'a> {
    pub(super) now: i64,
    pub(super) rules: &'a Rules,
    pub(super) acquires: &'a [Acquire],
}

impl Line {
    /// Those who hold bytes come first, and a chain enters a zone once: see [`join::order`].
    fn sort(&mut self) {
        self.queue.make_contiguous().sort_by(|a, b| join::order(&a.wish).cmp(&join::order(&b.wish)));
    }
}

fn page_of_loading<'a>(key: &SeedKey, tables: &'a Tables) -> Option<&'a Offered> {
    tables.offers.get(key)?.get(&Near::Anywhere.loading())
}

/// Fills in who the worker is as a reader, as far as it may be one.
fn find_reader(tables: &Tables, batch: &Batch<'_>, key: &SeedKey, wish: &mut Arc<Wish>) {
    if wish.loading.is_some() {
        let reader = join::reader(tables, batch.now, batch.rules, key, wish);
        Arc::make_mut(wish).reader = reader;
    }
}

impl Serving {
    /// Lines of these keys, with the acquisitions that have no answer yet.
    pub(super) fn new(
        touched: BTreeSet<SeedKey>,
        acquires: &[Acquire],
        answers: &[Option<Acquired>],
    ) -> Self {
        let mut lines: BTreeMap<SeedKey, Line> = BTreeMap::new();
        for key in touched {
            let candidates = Candidates::default();
            let commands = Vec::new();
            lines.insert(
                key,
                Line { queue: VecDeque::new(), after: Some(0), left: false, commands, candidates },
            );
        }
        for (at, Acquire { key, .. }) in acquires.iter().enumerate() {
            if let Some(line) = lines.get_mut(key).filter(|_| answers[at].is_none()) {
                line.commands.push(at);
            }
        }
        let sought = acquires.iter().flat_map(|one| one.wish.named()).cloned().collect();
        Self { lines, sought, ..Self::default() }
    }

    /// Serves whoever can be; says what it has to see for the others. Whoever got nothing is refused for a reason that
    /// is not known yet.
    pub(super) fn serve(
        &mut self,
        batch: &Batch<'_>,
        tables: &mut Tables,
        answers: &mut [Option<Acquired>],
    ) -> Wants {
        let mut wants = Wants::default();
        let mut lines = std::mem::take(&mut self.lines);
        lines.retain(|key, line| !self.serve_line(batch, (key, line), tables, answers, &mut wants));
        self.lines = lines;
        wants
    }

    /// Gives whether all of the line is decided.
    fn serve_line(
        &mut self,
        batch: &Batch<'_>,
        (key, line): (&SeedKey, &mut Line),
        tables: &mut Tables,
        answers: &mut [Option<Acquired>],
        wants: &mut Wants,
    ) -> bool {
        loop {
            if let Some(after) = line.after.filter(|_| line.queue.is_empty()) {
                // Whoever comes next finds nothing where these found nothing, unless it is something that they did not
                // want.
                let is_unknown =
                    line.left && batch.rules.max_chain_depth > 0 && page_of_loading(key, tables).is_none();
                if is_unknown && tables.waiting.contains_key(key) {
                    wants.offers.insert((key.clone(), Near::Anywhere.loading()), 1);
                    return false;
                }
                let is_over = line.left && !self.may_have_room(key, line, tables) || self.calls >= MAX_CALLS;
                match tables.waiting.remove(key) {
                    _ if is_over => line.after = None,
                    None => {
                        wants.waiting.insert(key.clone(), after);
                        return false;
                    }
                    Some(last) => {
                        self.calls += usize::from(last.is_some());
                        line.after = last;
                        let waiting = tables.waiting_of(key, after, last);
                        let called = waiting.filter(|row| is_called(tables, row, batch.now));
                        line.queue.extend(called.map(|row| Worker {
                            who: Who::Waiter(row.id),
                            lease: row.lease,
                            wish: row.wish.clone(),
                        }));
                        line.sort();
                    }
                }
            }
            if line.after.is_none() && line.queue.is_empty() {
                let commands = std::mem::take(&mut line.commands);
                if commands.is_empty() {
                    return true;
                }
                line.queue.extend(commands.into_iter().map(|at| {
                    let Acquire { lease, wish, .. } = &batch.acquires[at];
                    Worker { who: Who::Command(at), lease: *lease, wish: Arc::new(wish.as_ref().clone()) }
                }));
                line.sort();
            }
            let named = line.queue.iter().flat_map(|worker| worker.wish.named());
            let unknown: Vec<_> = named.filter(|one| !self.sought.contains(*one)).cloned().collect();
            if !unknown.is_empty() {
                wants.identities.extend(unknown.iter().cloned());
                self.sought.extend(unknown);
                return false;
            }
            line.candidates.learn(tables, batch.now, batch.rules, key, &mut self.hosts);
            while let Some(worker) = line.queue.front_mut() {
                let mut lacks = Wants::default();
                choose::find_source(tables, &mut worker.wish, &mut lacks);
                find_reader(tables, batch, key, &mut worker.wish);
                let (wish, workers) = (worker.wish.clone(), line.queue.len());
                let policy = batch.rules.policy;
                let heritage = self.heritage(batch, key, &wish, tables, &mut lacks);
                let from = (key, &line.candidates, &self.hosts);
                if heritage.is_none() {
                    choose::want(tables, policy, from, &wish, workers, &mut lacks);
                }
                if !lacks.is_empty() {
                    // And, in the same look, what the others of the line need.
                    wants.numbers.extend(lacks.numbers);
                    for other in &mut line.queue {
                        choose::find_source(tables, &mut other.wish, wants);
                        find_reader(tables, batch, key, &mut other.wish);
                        choose::want(tables, policy, from, &other.wish, workers, wants);
                    }
                    return false;
                }
                let Some(Worker { who, lease, .. }) = line.queue.pop_front() else { break };
                let chosen = if let Some(heritage) = &heritage {
                    inherit::pass_on(tables, batch.now, batch.rules, heritage, &wish);
                    Some(heritage.chosen)
                } else {
                    line.candidates.take(policy, &wish, &mut self.hosts, batch.now)
                };
                let Some(chosen) = chosen else {
                    line.left = true;
                    if let Who::Command(at) = who {
                        self.unserved.push(at);
                    }
                    continue;
                };
                let before = wish.loading.as_ref().and_then(|asker| tables.seed_at(&asker.identity));
                let before = before.map(|row| row.id);
                let reader =
                    join::join(tables, batch.now, batch.rules, key, &wish, (chosen.0, heritage.as_ref()));
                choose::claim(tables, batch.now, batch.rules, chosen, (lease, reader), &wish);
                if reader.is_some() {
                    // The next in the line may read from it, and not from whom it follows.
                    let passed_over = heritage.into_iter().flat_map(|heritage| heritage.passed_over);
                    for id in before.into_iter().chain(reader).chain(passed_over) {
                        line.candidates.see(tables, batch.now, batch.rules, id);
                    }
                }
                match who {
                    Who::Waiter(id) => self.served(tables, batch.now, id),
                    Who::Command(at) => answers[at] = tables.grant(&lease, batch.now).map(Acquired::Granted),
                }
            }
        }
    }

    /// The place that a worker gets without a choice, as its source is gone.
    fn heritage(
        &mut self,
        batch: &Batch<'_>,
        key: &SeedKey,
        wish: &Wish,
        tables: &Tables,
        lacks: &mut Wants,
    ) -> Option<Heritage> {
        match inherit::find(tables, batch.now, batch.rules, key, wish) {
            Found::Place(heritage) => Some(heritage),
            Found::Unseen(number) => {
                // One that is not there is asked for once.
                if self.followed.insert(number) {
                    lacks.numbers.insert(number);
                }
                None
            }
            Found::Nothing => None,
        }
    }

    fn may_have_room(&self, key: &SeedKey, line: &Line, tables: &Tables) -> bool {
        let page = tables.offers.get(key).and_then(|pages| pages.get(&Near::Anywhere));
        let loads = page_of_loading(key, tables).is_some_and(|page| !page.complete || !page.seeds.is_empty());
        loads || page.is_none_or(|page| !page.complete) || line.candidates.have_room(&self.hosts)
    }

    fn served(&mut self, tables: &mut Tables, now: i64, id: i64) {
        self.woken.extend(tables.request(id).and_then(|row| row.planner.clone()));
        tables.change_request(id, |row| (row.waits_until_ms, row.changed_ms) = (None, now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rows::SeedRow;
    use super::super::testing::{self, NOW, any_requests, any_seeds, key, lease, rules};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::domain::seed::State;
    use crate::store::commands::{Commands, Serve};

    fn free(seeds: &[SeedRow], rules: &Rules) -> usize {
        let live = seeds.iter().filter(|row| row.state(NOW, rules) == State::Live);
        live.map(|row| row.free_points(NOW).len()).sum()
    }

    proptest! {
        #[test]
        fn those_who_wait_are_served_in_turn_each_once_and_before_who_is_new(
            seeds in any_seeds(), requests in any_requests(), new in 0u32..4,
        ) {
            let rules = rules(Policy::Fifo);
            let acquires = (0..new).map(|number| {
                Acquire { key: key("k"), wish: Box::default(), lease: lease(10_000 + number), queue: None }
            });
            let serves = vec![Serve { key: key("k") }];
            let commands = Commands { acquires: acquires.collect(), serves, ..Commands::default() };
            let decision = testing::decide_with(&seeds, &requests, &commands, &rules);
            // Of the planners of these tests one answers.
            let called = requests.iter().filter(|row| {
                row.waits_until_ms.is_some_and(|until_ms| until_ms > NOW) && row.planner.as_deref() == Some("mine")
            });
            let points = free(&seeds, &rules);
            let turn: Vec<i64> = called.map(|row| row.id).take(points).collect();
            let served = decision.changes.requests.iter().map(|changed| changed.after.as_ref().unwrap());
            prop_assert_eq!(served.clone().map(|row| row.id).collect::<Vec<_>>(), turn.clone());
            for row in served {
                prop_assert_eq!((row.waits_until_ms, row.changed_ms), (None, NOW));
            }
            let granted = decision.outcomes.acquires.iter().map(|answer| matches!(answer, Acquired::Granted(_)));
            let left = points - turn.len();
            prop_assert_eq!(granted.collect::<Vec<_>>(), (0..new as usize).map(|at| at < left).collect::<Vec<_>>());
            prop_assert_eq!(decision.woken.len(), usize::from(!turn.is_empty()));
            // Each has one point, and none is anybody else's.
            let mut leased = Vec::new();
            for changed in &decision.changes.seeds {
                let (before, after) = (changed.before.as_ref().unwrap(), changed.after.as_ref().unwrap());
                prop_assert!(before.leases.iter().filter(|lease| lease.lives(NOW)).all(|lease| after.leases.contains(lease)));
                let new = after.leases.iter().filter(|lease| !before.leases.contains(lease));
                leased.extend(new.map(|lease| lease.lease));
            }
            let ids = requests.iter().filter(|row| turn.contains(&row.id)).map(|row| row.lease);
            let mut expected: Vec<_> = ids.chain((0..).map(|number| lease(10_000 + number)).take(left.min(new as usize))).collect();
            leased.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(leased, expected);
        }
    }
}
