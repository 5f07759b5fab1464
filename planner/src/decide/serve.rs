//! Whose turn it is: of each key those who wait, in the order in which they came, each once; then those who are new.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::choose::{self, Candidates};
use super::rows::RequestRow;
use super::tables::Tables;
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
        Self { lines, ..Self::default() }
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
            }
            line.candidates.learn(tables, batch.now, batch.rules, key, &mut self.hosts);
            while let Some(worker) = line.queue.front_mut() {
                let mut lacks = Wants::default();
                choose::find_source(tables, &mut worker.wish, &mut lacks);
                let (wish, workers) = (worker.wish.clone(), line.queue.len());
                let policy = batch.rules.policy;
                let from = (key, &line.candidates, &self.hosts);
                choose::want(tables, policy, from, &wish, workers, &mut lacks);
                if !lacks.is_empty() {
                    // And, in the same look, what the others of the line need.
                    for other in &mut line.queue {
                        choose::find_source(tables, &mut other.wish, wants);
                        choose::want(tables, policy, from, &other.wish, workers, wants);
                    }
                    return false;
                }
                let Some(Worker { who, lease, .. }) = line.queue.pop_front() else { break };
                let Some(chosen) = line.candidates.take(policy, &wish, &mut self.hosts, batch.now) else {
                    line.left = true;
                    if let Who::Command(at) = who {
                        self.unserved.push(at);
                    }
                    continue;
                };
                choose::claim(tables, batch.now, batch.rules, chosen, lease, &wish);
                match who {
                    Who::Waiter(id) => self.served(tables, batch.now, id),
                    Who::Command(at) => answers[at] = tables.grant(&lease, batch.now).map(Acquired::Granted),
                }
            }
        }
    }

    fn may_have_room(&self, key: &SeedKey, line: &Line, tables: &Tables) -> bool {
        let page = tables.offers.get(key).and_then(|pages| pages.get(&Near::Anywhere));
        page.is_none_or(|page| !page.complete) || line.candidates.have_room(&self.hosts)
    }

    fn served(&mut self, tables: &mut Tables, now: i64, id: i64) {
        self.woken.extend(tables.request(id).and_then(|row| row.planner.clone()));
        tables.change_request(id, |row| (row.waits_until_ms, row.changed_ms) = (None, now));
    }
}
