//! What happened, what it may cost, and the table.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::fleet::Fleet;
use crate::plan::{Fate, Scale};
use crate::worker::{Life, Patience, Worker};

/// What became of workers of a key.
#[derive(Debug, Default, Clone)]
struct Faults {
    all: u64,
    /// Of those whose bytes the others are: seeds that had everything, and who read storage for others.
    roots: u64,
    /// The longest that one stood still.
    stopped: u64,
}

#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) grants: u32,
    pub(crate) moves: u32,
    /// Grants of sources that had begun anew with other bytes before anybody could hear of it.
    pub(crate) stale: u32,
    pub(crate) starts_over: u32,
    /// Who read storage without the right to lead.
    pub(crate) beside: u32,
    /// Who read it though somebody lived who had everything, or read it for others.
    pub(crate) needless: u32,
    /// By key: chunks that storage gave, and who led, one after the other.
    pub(crate) storage: Vec<u64>,
    pub(crate) leaders: Vec<Vec<usize>>,
    pub(crate) circles: Circles,
    faults: Vec<Faults>,
    /// Killed or vanished, stopped, ended.
    fates: [u32; 3],
}

impl Counts {
    pub(crate) fn new(keys: usize) -> Self {
        Self {
            grants: 0,
            moves: 0,
            stale: 0,
            starts_over: 0,
            beside: 0,
            needless: 0,
            storage: vec![0; keys],
            leaders: vec![Vec::new(); keys],
            circles: Circles::default(),
            faults: vec![Faults::default(); keys],
            fates: [0; 3],
        }
    }

    /// Whether somebody lives from whom all bytes of a key come.
    pub(crate) fn has_root(&self, key: usize) -> bool {
        self.faults[key].roots == 0
    }

    pub(crate) fn struck(&mut self, worker: &Worker, fate: Fate) {
        let faults = &mut self.faults[worker.key];
        faults.all += 1;
        faults.roots += u64::from(worker.first || worker.has_led || worker.lead.is_some());
        let kind = match fate {
            Fate::Stops(ticks) => {
                faults.stopped = faults.stopped.max(ticks);
                1
            }
            Fate::Ends => 2,
            Fate::Killed | Fate::Vanishes | Fate::Lives => 0,
        };
        self.fates[kind] += 1;
    }

    /// The tick by which all of a key are loaded whatever they met, when so many planners were killed: a round, a tick for each
    /// link of a chain, and what each fault costs that happened. When bytes lose their root, the others look for it, somebody
    /// gets the right to lead, reads the rest, and compares what it holds.
    pub(crate) fn longest(&self, (key, outages): (usize, u32), scale: &Scale, patience: &Patience) -> u64 {
        let (faults, round) = (&self.faults[key], u64::from(scale.chunks));
        let lead = patience.seek + scale.ticks(Duration::from_secs(10));
        let alone = scale.start + round + u64::try_from(scale.of_key).unwrap();
        let healed = patience.heal(scale) * (1 + faults.all + u64::from(outages));
        alone + healed + faults.roots * (lead + round) + faults.stopped
    }

    /// Storage was read as often as it has to be: never where somebody has everything and lives, and else once. Each worker
    /// that was lost may cost one that finds no place a copy more: its lease keeps a place until it ends.
    pub(crate) fn check(&self, all: &[Worker], scale: &Scale) {
        for (key, faults) in self.faults.iter().enumerate() {
            let has_first = all.iter().any(|worker| worker.first && worker.key == key);
            let round = u64::from(scale.chunks);
            let copies = if has_first { 0 } else { round };
            let (read, led) = (self.storage[key], &self.leaders[key]);
            let most = copies + round * faults.all;
            assert!((copies..=most).contains(&read), "key {key}: {read} chunks from storage; {led:?} led");
        }
        assert!(self.circles.now.is_empty(), "circles that go on: {:?}", self.circles.now);
    }
}

/// Workers that read from each other.
#[derive(Debug, Default)]
pub(crate) struct Circles {
    /// By the first worker of each: since when.
    now: HashMap<usize, u64>,
    pub(crate) all: u32,
    /// The longest that one lasted.
    pub(crate) longest: u64,
}

impl Circles {
    pub(crate) fn look(&mut self, all: &[Worker], tick: u64) {
        let source = |at: usize| {
            let worker = &all[at];
            worker.link.filter(|_| worker.life != Life::Gone && worker.is_loading())
        };
        // In which walk each was seen, counted from 1.
        let mut seen = vec![0_usize; all.len()];
        let mut found = HashMap::new();
        for start in 0..all.len() {
            let mut at = Some(start);
            while let Some(here) = at.filter(|here| seen[*here] == 0) {
                seen[here] = start + 1;
                at = source(here);
            }
            let Some(again) = at.filter(|here| seen[*here] == start + 1) else { continue };
            let (mut first, mut next) = (again, source(again));
            while let Some(here) = next.filter(|here| *here != again) {
                (first, next) = (first.min(here), source(here));
            }
            if next == Some(again) {
                found.insert(first, self.now.get(&first).copied().unwrap_or(tick));
            }
        }
        self.all +=
            u32::try_from(found.keys().filter(|first| !self.now.contains_key(first)).count()).unwrap();
        self.longest = found.values().map(|since| tick - since + 1).fold(self.longest, u64::max);
        self.now = found;
    }
}

/// A run of a fleet.
pub(crate) struct Report {
    workers: usize,
    keys: usize,
    fates: [u32; 3],
    outages: u32,
    /// From the first question until the last worker was a seed; until half of those were who lived.
    rounds: [f64; 2],
    longest_wait: f64,
    requests_per_sec: f64,
    repeated: u64,
    copies: f64,
    leaders: usize,
    beside: u32,
    needless: u32,
    moves: u32,
    starts_over: u32,
    circles: (u32, f64),
    looks: u32,
    took: Duration,
    stood: f64,
}

impl Report {
    pub(crate) fn new(fleet: &Fleet, took: Duration, (stood, looks, outages): (u64, u32, u32)) -> Self {
        let (scale, counts) = (&fleet.scale, &fleet.counts);
        let living = || fleet.all.iter().filter(|worker| !worker.first && worker.life == Life::Lives);
        let mut loaded: Vec<u64> = living().filter_map(|worker| worker.loaded).collect();
        loaded.sort_unstable();
        let [asked, repeated] = fleet.wire.asked();
        Self {
            workers: scale.workers(),
            keys: scale.keys,
            fates: counts.fates,
            outages,
            rounds: [loaded.last(), loaded.get(loaded.len() / 2)]
                .map(|at| scale.rounds(at.copied().unwrap_or_default())),
            longest_wait: scale.rounds(living().map(|worker| worker.longest_wait).max().unwrap_or_default()),
            requests_per_sec: asked as f64 / took.as_secs_f64(),
            repeated,
            copies: scale.rounds(counts.storage.iter().sum()),
            leaders: counts.leaders.iter().map(Vec::len).sum(),
            beside: counts.beside,
            needless: counts.needless,
            moves: counts.moves,
            starts_over: counts.starts_over,
            circles: (counts.circles.all, scale.rounds(counts.circles.longest)),
            looks,
            took,
            stood: stood as f64 / (stood + fleet.tick) as f64,
        }
    }

    pub(crate) const HEAD: &str = "| store | workers of keys | dead | stopped | ended | planners killed | rounds: last | half \
        | longest wait | copies from storage | leaders | needless | beside | moves | started over | circles, longest | requests/s | \
        repeated | looks | s | clock stood |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([dead, stopped, ended], [last, half]) = (self.fates, self.rounds);
        let (circles, longest) = self.circles;
        write!(
            f,
            "{} of {} | {dead} | {stopped} | {ended} | {} | {last:.2} | {half:.2} ",
            self.workers, self.keys, self.outages
        )?;
        write!(f, "| {:.2} | {:.2} | {} ", self.longest_wait, self.copies, self.leaders)?;
        write!(f, "| {} | {} ", self.needless, self.beside)?;
        write!(f, "| {} | {} | {circles}, {longest:.2} ", self.moves, self.starts_over)?;
        write!(f, "| {:.0} | {} | {} ", self.requests_per_sec, self.repeated, self.looks)?;
        write!(f, "| {:.0} | {:.0} % |", self.took.as_secs_f64(), self.stood * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::State;

    #[test]
    fn circles_are_found_and_counted_until_they_end() {
        let mut circles = Circles::default();
        let mut all: Vec<Worker> =
            (0..4).map(|number| Worker::new(number, 0, (0, (Fate::Lives, 0)))).collect();
        for (number, source) in [(0, 3), (1, 2), (2, 3), (3, 1)] {
            (all[number].state, all[number].link) = (State::Reading, Some(source));
        }
        (1..=3).for_each(|tick| circles.look(&all, tick));
        all[2].link = None;
        circles.look(&all, 4);
        assert_eq!((circles.all, circles.longest, circles.now.len()), (1, 3, 0));
    }
}
