//! What comes to whom in a tick, what becomes of whom, and who reads from whom.

use rfork_protocol::v2::Role;

use crate::fleet::Fleet;
use crate::plan::Fate;
use crate::worker::{Life, State, Worker};

/// How a worker stood before a tick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    held: u32,
    root: Option<usize>,
    /// Whether it says something.
    lives: bool,
    /// Whether it tells its readers which content it is.
    tells: bool,
    compares: bool,
}

impl Fleet {
    /// A tick: over each link, and from storage to each who reads it, a chunk at most; what a source holds goes on a tick
    /// later.
    pub(crate) fn transfer(&mut self) {
        let chunks = self.scale.chunks;
        let before: Vec<Before> = self
            .all
            .iter()
            .map(|worker| Before {
                held: worker.held,
                root: worker.root,
                lives: worker.life == Life::Lives,
                tells: worker.known && worker.held == chunks,
                compares: worker.compares,
            })
            .collect();
        let mut wanted = vec![0_u64; self.all.len()];
        let wants = |worker: &Worker| {
            let reads = worker.life == Life::Lives && matches!(worker.state, State::Reading | State::Seeking);
            worker.link.filter(|source| reads && before[*source].lives && before[*source].held > worker.held)
        };
        for worker in &self.all {
            if let Some(source) = wants(worker) {
                wanted[source] += 1;
            }
        }
        let mut turns = vec![0_u64; self.all.len()];
        for worker in &mut self.all {
            if worker.life != Life::Lives || !worker.is_loading() {
                continue;
            }
            worker.silent += 1;
            worker.waits += 1;
            worker.longest_wait = worker.longest_wait.max(worker.waits);
            if worker.state == State::Filling {
                fill(worker, chunks, &mut self.counts.storage[worker.key]);
                continue;
            }
            let Some(source) = worker.link else { continue };
            let from = before[source];
            worker.unheard = if from.lives { 0 } else { worker.unheard + 1 };
            if !from.lives {
                continue;
            }
            worker.compares = from.compares;
            if from.compares {
                worker.silent = 0;
            }
            if wants(worker).is_some() {
                let turn = turns[source];
                turns[source] += 1;
                if !(self.tick + turn).is_multiple_of(wanted[source]) {
                    continue;
                }
                if worker.held == 0 {
                    worker.root = from.root;
                }
                if worker.root != from.root || worker.root.is_none() {
                    self.faults.push(format!(
                        "{} mixes root {:?} with {:?}",
                        worker.identity, worker.root, from.root
                    ));
                }
                worker.held += 1;
                worker.came();
            }
            worker.known |= from.tells && worker.root == from.root
                || worker.root.is_some_and(|root| !self.roots[root].grown);
        }
        self.counts.circles.look(&self.all, self.tick);
    }

    /// For how long the source of a worker got nothing, and what that holds.
    pub(crate) fn of_source(&self, number: usize) -> (u32, u64) {
        let source = self.all[number].link.map(|source| &self.all[source]);
        source.map_or((0, 0), |source| match source.state {
            State::Seed | State::Registering => (source.held, 0),
            _ => (source.held, source.silent),
        })
    }

    /// What becomes of a worker whose time has come.
    pub(crate) fn strike(&mut self, number: usize) {
        let worker = &mut self.all[number];
        let (fate, at) = worker.fate;
        if fate == Fate::Lives || !worker.is_loading() || worker.held < at {
            return;
        }
        worker.fate.0 = Fate::Lives;
        worker.note(self.tick, format_args!("{fate:?}"));
        self.counts.struck(worker, fate);
        match fate {
            Fate::Lives => {}
            Fate::Stops(ticks) => worker.life = Life::Stopped(self.tick + ticks),
            Fate::Vanishes => worker.life = Life::Gone,
            Fate::Killed => self.gone(number),
            Fate::Ends => {
                self.release(number, rfork_protocol::v2::TransferOutcome::Aborted);
                self.deregister(number);
                self.gone(number);
            }
        }
    }

    fn gone(&mut self, number: usize) {
        self.all[number].life = Life::Gone;
        self.cut_readers(number);
    }

    /// Closes the connections of who reads from a worker.
    pub(crate) fn cut_readers(&mut self, number: usize) {
        for reader in &mut self.all {
            if reader.link == Some(number) {
                reader.link = None;
            }
        }
        self.all[number].points.clear();
    }

    /// A reader greets a source with its point; whoever had that before is closed. Gives whether it is let in.
    pub(crate) fn greet(&mut self, reader: usize, source: usize, (point, since_ms): (u32, u64)) -> bool {
        let before = self.all[source].points.get(&point).copied();
        if before.is_some_and(|(since, _)| since > since_ms) {
            return false;
        }
        self.all[source].points.insert(point, (since_ms, reader));
        if let Some((_, other)) = before.filter(|(_, other)| *other != reader)
            && self.all[other].link == Some(source)
            && self.all[other].lease.as_ref().is_none_or(|lease| lease.point.number == point)
        {
            self.all[other].link = None;
        }
        let worker = &mut self.all[reader];
        worker.link = Some(source);
        (worker.silent, worker.unheard) = (0, 0);
        true
    }

    /// Begins to read storage.
    pub(crate) fn fill_from_storage(&mut self, number: usize, role: Role) {
        let worker = &self.all[number];
        let leads = role == Role::Leads;
        let grown = worker.root.is_some_and(|root| self.roots[root].grown);
        if worker.held == 0 {
            let root = self.new_root(leads);
            self.all[number].root = Some(root);
        }
        let is_first =
            self.counts.leaders[self.all[number].key].is_empty() && !self.has_first(self.all[number].key);
        if !is_first && self.counts.has_root(self.all[number].key) {
            self.counts.needless += 1;
            println!("{}", self.why_nobody(number));
        }
        let worker = &mut self.all[number];
        // Of bytes without a content id storage has to show that it holds the same.
        worker.to_compare = if grown && !worker.known { worker.held } else { 0 };
        (worker.state, worker.link) = (State::Filling, None);
        if leads && !worker.has_led {
            worker.has_led = true;
            self.counts.leaders[worker.key].push(number);
        }
        self.counts.beside += u32::from(!leads);
    }

    fn has_first(&self, key: usize) -> bool {
        self.all.iter().any(|worker| worker.first && worker.key == key)
    }

    /// Who had what a worker lacked that reads storage now, for people.
    fn why_nobody(&self, number: usize) -> String {
        let worker = &self.all[number];
        let others = self.all.iter().filter(|other| {
            other.key == worker.key
                && other.life == Life::Lives
                && other.held > worker.held
                && other.root.is_some()
        });
        let (mut free, mut gone, mut read) = (0, 0, 0);
        for other in others {
            let reads = |reader: &Worker| reader.link == Some(Worker::at(&other.identity));
            match other.points.get(&0).map(|(_, reader)| &self.all[*reader]) {
                Some(reader) if reader.life == Life::Gone && reader.loaded.is_none() => gone += 1,
                Some(reader) if reads(reader) => read += 1,
                _ => free += 1,
            }
        }
        format!(
            "{} of key {} reads storage and holds {} of root {:?}, tick {}. Of who holds more {free} are free, {read} are read, {gone} \
             were by who is gone. It was told:\n  {}",
            worker.identity,
            worker.key,
            worker.held,
            worker.root,
            self.tick,
            worker.trace.iter().map(String::as_str).collect::<Vec<_>>().join("\n  ")
        )
    }
}

/// A chunk of storage: one that is missing, or one that is held, to be compared.
fn fill(worker: &mut Worker, chunks: u32, read: &mut u64) {
    if worker.held < chunks {
        worker.held += 1;
    } else if worker.to_compare > 0 {
        worker.to_compare -= 1;
        worker.compares = worker.to_compare > 0;
    } else {
        return;
    }
    *read += 1;
    worker.came();
    worker.known |= worker.held == chunks && worker.to_compare == 0;
}

impl Worker {
    fn came(&mut self) {
        self.arrived += 1;
        (self.silent, self.waits, self.seeks) = (0, 0, None);
    }
}
