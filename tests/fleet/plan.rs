//! How large a fleet is, and what becomes of whom: all of it drawn from one number.

use std::time::Duration;

use fastrand::Rng;

/// How large, and how fast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) keys: usize,
    /// Workers of each.
    pub(crate) of_key: usize,
    /// A link, or storage, gives a chunk in this time.
    pub(crate) tick: Duration,
    /// Chunks of a model: one worker alone takes as many ticks, which is a round.
    pub(crate) chunks: u32,
    /// Ticks within which all start.
    pub(crate) start: u64,
    /// How long a lease lives without a renewal.
    pub(crate) lease_ttl: Duration,
    /// Workers wait for this part of what they wait elsewhere until they do something about it.
    pub(crate) hurry: u32,
}

impl Scale {
    /// What each test run tries.
    pub(crate) const SMALL: Self = Self {
        keys: 4,
        of_key: 50,
        tick: Duration::from_millis(25),
        chunks: 120,
        start: 15,
        lease_ttl: Duration::from_secs(10),
        hurry: 3,
    };
    /// 10,000 workers of 100 keys, who take a minute alone.
    pub(crate) const FULL: Self = Self {
        keys: 100,
        of_key: 100,
        tick: Duration::from_millis(100),
        chunks: 600,
        start: 100,
        lease_ttl: Duration::from_secs(60),
        hurry: 1,
    };

    pub(crate) fn workers(&self) -> usize {
        self.keys * self.of_key
    }

    /// Ticks in this time.
    pub(crate) fn ticks(&self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() / self.tick.as_nanos()).unwrap()
    }

    /// So many ticks, in rounds.
    pub(crate) fn rounds(&self, ticks: u64) -> f64 {
        ticks as f64 / f64::from(self.chunks)
    }
}

/// What becomes of a worker while it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// Its process is killed: its connections end.
    Killed,
    /// Its machine is gone: nobody hears anything of it, not even that.
    Vanishes,
    /// It stands still for so many ticks: its connections stay, and say nothing.
    Stops(u64),
    /// It is told to end, and says so.
    Ends,
}

impl Fate {
    fn of(random: &mut Rng, scale: &Scale) -> Self {
        // A tenth of all.
        match random.u8(0..100) {
            0..3 => Self::Killed,
            3..6 => Self::Vanishes,
            6..9 => Self::Stops(random.u64(
                scale.ticks(Duration::from_millis(500))..scale.ticks(Duration::from_secs(15) / scale.hurry),
            )),
            9 => Self::Ends,
            _ => Self::Lives,
        }
    }
}

/// Who has a key from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Nobody,
    /// Somebody who stays.
    Stays,
    /// Somebody who vanishes once another one holds so many chunks.
    Vanishes(u32),
}

/// What is to become of a fleet.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Of each worker: when it starts, what becomes of it, and once it holds how many chunks.
    pub(crate) workers: Vec<(u64, Fate, u32)>,
    /// Of each key.
    pub(crate) seeds: Vec<First>,
    /// Ticks at which a planner is killed, and started again.
    pub(crate) outages: Vec<[u64; 2]>,
}

impl Plan {
    pub(crate) fn of(random: &mut Rng, scale: &Scale, planners: usize) -> Self {
        let chunk = |random: &mut Rng| random.u32(1..scale.chunks * 95 / 100);
        let workers = (0..scale.workers()).map(|_| {
            let (start, fate) = (random.u64(0..scale.start), Fate::of(random, scale));
            (start, fate, chunk(random))
        });
        let workers = workers.collect();
        // Every second key.
        let seed = |random: &mut Rng, key: usize| match (key % 2, random.u8(0..4)) {
            (0, 0) => First::Vanishes(chunk(random)),
            (0, _) => First::Stays,
            _ => First::Nobody,
        };
        let seeds = (0..scale.keys).map(|key| seed(random, key)).collect();
        // One after the other, each for a little; one that is alone comes back at once.
        let round = u64::from(scale.chunks);
        let outage = |at: usize| {
            let from = round * (3 + 3 * at as u64) / 8 + random.u64(0..round / 8);
            [from, from + if planners > 1 { round / 4 } else { 1 }]
        };
        Self { workers, seeds, outages: (0..planners).map(outage).collect() }
    }
}
