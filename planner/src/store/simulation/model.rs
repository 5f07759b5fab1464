//! The protocol as a small model: plain values, one event after the other. It knows nothing of how things are
//! stored, nor of clocks: by its time, which is what has passed, everything is judged.

mod waiting;

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    DRAIN_MEMORY_MS, Heard, Leaving, Refusal, Registration, Removal, Report, SeedView, Snapshot,
};
use super::world::{KEYS, World, owned_by};
use crate::domain::policy::Policy;
use crate::store::conformance::{identity, key, lease};

/// Something that happens at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A registration that waited `age_ms`, of a seed that may tell which process it is, by somebody who may be known.
    Register {
        seed: u8,
        key: usize,
        process: Option<u8>,
        owner: Option<u8>,
        age_ms: i64,
    },
    /// A heartbeat that registers nothing, and waited `age_ms`.
    Hear {
        seed: u8,
        key: usize,
        process: Option<u8>,
        owner: Option<u8>,
        age_ms: i64,
    },
    Acquire {
        key: usize,
        lease: u32,
        exclude: Option<u8>,
        place: Option<Place>,
    },
    /// A key's free points are given to those who wait for them.
    Serve {
        key: usize,
    },
    /// An attempt of an acquisition ends, at a planner.
    Leave {
        planner: u32,
        lease: u32,
        attempt: i64,
        why: Leaving,
    },
    Renew {
        seed: u8,
        lease: u32,
    },
    Release {
        seed: u8,
        lease: u32,
        report: Report,
    },
    /// The holding with the store's `number` has answered a planner that asked for its health.
    Answered {
        seed: u8,
        number: i64,
    },
    Remove {
        seed: u8,
        key: usize,
        owner: Option<u8>,
    },
    Drain {
        seed: u8,
        key: usize,
    },
    /// A gathered heartbeat of the holding with the store's `number`.
    Beat {
        number: i64,
        age_ms: i64,
    },
    /// A sweep comes by a seed; whether it had seen in time that something ended there is not known.
    Sweep {
        seed: u8,
    },
}

impl Event {
    /// The seed whose lock it needs.
    pub(super) fn names(&self) -> Option<u8> {
        match *self {
            Self::Register { seed, .. }
            | Self::Hear { seed, .. }
            | Self::Renew { seed, .. }
            | Self::Release { seed, .. }
            | Self::Answered { seed, .. }
            | Self::Remove { seed, .. }
            | Self::Drain { seed, .. } => Some(seed),
            Self::Acquire { .. }
            | Self::Serve { .. }
            | Self::Leave { .. }
            | Self::Beat { .. }
            | Self::Sweep { .. } => None,
        }
    }

    /// Its idempotency key, and what is asked for under that, if it is such an acquisition.
    pub(super) fn name(&self) -> Option<(u8, u8)> {
        match self {
            Self::Acquire { place, .. } => place.and_then(|place| place.name),
            _ => None,
        }
    }

    /// The order in which a store applies what is in one batch.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Register { .. } | Self::Hear { .. } => 0,
            Self::Answered { .. } => 1,
            Self::Renew { .. } => 2,
            Self::Release { .. } => 3,
            Self::Remove { .. } | Self::Drain { .. } => 4,
            Self::Leave { .. } => 5,
            Self::Acquire { .. } | Self::Serve { .. } | Self::Beat { .. } | Self::Sweep { .. } => 6,
        }
    }
}

/// How an acquisition waits, and what tells it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Who answers it.
    pub(super) planner: u32,
    pub(super) wait_ms: i64,
    /// Its idempotency key, and what is asked for under that.
    pub(super) name: Option<(u8, u8)>,
    pub(super) attempt: i64,
    /// Whether its seed did not answer.
    pub(super) again: Option<i64>,
}

/// A lease as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) seed: u8,
    /// How long it lives.
    pub(super) ttl_ms: i64,
    /// How long ago the seed was heard of.
    pub(super) quiet_ms: i64,
    /// Whether the seed has ever answered.
    pub(super) answers: bool,
}

/// What the end of a wait finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// And whether it is kept for a repetition.
    Granted(Granted, bool),
    Over,
    Superseded,
}

/// What the client of an event was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// With the store's number of the holding.
    Registered(Registration, i64),
    /// It was not registered: a seed of somebody else lives there.
    Owned,
    /// With the number, if the seed is known and offered.
    Heard(Heard, Option<i64>),
    Granted(Granted),
    Refused(Refusal),
    /// With how long it is until something of the key ends by itself.
    Queued(Option<i64>),
    Served(Option<i64>),
    Left(Left),
    Renewed(Option<i64>),
    Released(bool),
    Noted(bool),
    Removed(Removal),
    Drained(Option<u32>),
    /// Whether the holding of a heartbeat is no more, or offered no more.
    Gone(bool),
}

impl Told {
    /// Whether both are grants of the same seed. What is told of its signs of life is as old as the look at it.
    fn is_same_lease(self, other: Self) -> bool {
        let lease = |told| match told {
            Self::Granted(Granted { seed, ttl_ms, .. }) => Some((seed, ttl_ms)),
            _ => None,
        };
        lease(self).is_some() && lease(self) == lease(other)
    }
}

/// How much a grant says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// It is exactly the seed that the policy prefers.
    Policy,
    /// It is any seed that may be offered: others were at work, or places have grown old.
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Point {
    lease: u32,
    ends_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seed {
    /// The store's number of it, once it was told.
    number: Option<i64>,
    key: usize,
    process: Option<u8>,
    /// Whose it is; nobody's until somebody is known.
    owner: Option<u8>,
    capacity: u32,
    removed: bool,
    drained: bool,
    failures: u32,
    suspect_until_ms: i64,
    answered_ms: i64,
    heard_ms: i64,
    used_ms: i64,
    /// Those that are leased or were.
    points: BTreeMap<u32, Point>,
}

impl Seed {
    fn live(&self, now: i64) -> u32 {
        u32::try_from(self.points.values().filter(|point| point.ends_ms > now).count()).unwrap()
    }

    /// The points that are offered and leased.
    fn busy(&self, now: i64) -> u32 {
        let busy = self.points.range(..self.capacity).filter(|(_, point)| point.ends_ms > now);
        u32::try_from(busy.count()).unwrap()
    }

    fn free(&self, now: i64) -> Option<u32> {
        (0..self.capacity).find(|n| self.points.get(n).is_none_or(|point| point.ends_ms <= now))
    }

    /// A seed that was removed goes with its last lease.
    fn is_over(&self, now: i64) -> bool {
        self.removed && self.live(now) == 0
    }
}

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Model {
    pub(super) now: i64,
    /// What the clock shows to people.
    pub(super) clock_ms: i64,
    world: World,
    seeds: BTreeMap<u8, Seed>,
    /// All numbers that the store ever gave.
    numbers: BTreeSet<i64>,
    /// Acquisitions that wait, and those that are remembered, in the order in which they came.
    requests: Vec<waiting::Request>,
    /// Until when each planner counts as one that answers.
    alive_until_ms: BTreeMap<u32, i64>,
}

impl Model {
    pub(super) fn new(world: World, now: i64, clock_ms: i64) -> Self {
        Self {
            now,
            clock_ms,
            world,
            seeds: BTreeMap::new(),
            numbers: BTreeSet::new(),
            requests: Vec::new(),
            alive_until_ms: BTreeMap::new(),
        }
    }

    /// Whether an event is about a seed that has the key, or comes to have it.
    pub(super) fn concerns(&self, event: &Event, wanted: usize) -> bool {
        let comes = match *event {
            Event::Register { key, .. } | Event::Hear { key, .. } => key == wanted,
            _ => false,
        };
        comes || event.names().and_then(|seed| self.seeds.get(&seed)).is_some_and(|seed| seed.key == wanted)
    }

    fn silent(&self, seed: &Seed) -> bool {
        seed.heard_ms + self.world.heartbeat_ttl_ms() <= self.now
    }

    /// All planners start again under other rules.
    pub(super) fn adopt(&mut self, world: World) {
        self.world = world;
        for (name, seed) in &mut self.seeds {
            seed.capacity = world.capacity(*name);
        }
    }

    /// What may be after the event, of which the client was `told` that, or nothing: more than one thing if that
    /// left anything open.
    ///
    /// # Errors
    /// What the client should have been told.
    pub(super) fn after(&self, event: &Event, told: Option<Told>, order: Order) -> Result<Vec<Self>, String> {
        let mut next = self.clone();
        let expected = match *event {
            Event::Register { seed, key, process, owner, age_ms } => {
                let number = match told {
                    Some(Told::Registered(_, number)) => Some(number),
                    _ => None,
                };
                match next.register(seed, key, process, owner, self.now - age_ms) {
                    Some(registration) => Told::Registered(registration, next.learn(seed, number)?),
                    None => Told::Owned,
                }
            }
            Event::Hear { seed, key, process, owner, age_ms } => {
                let number = match told {
                    Some(Told::Heard(_, number)) => number,
                    _ => None,
                };
                let heard = next.hear(seed, key, process, owner, self.now - age_ms);
                let number = if heard == Heard::Known { Some(next.learn(seed, number)?) } else { None };
                Told::Heard(heard, number)
            }
            Event::Acquire { key, lease, exclude, .. } => {
                return self.acquire(key, lease, exclude, told, order);
            }
            Event::Serve { .. } | Event::Leave { .. } => panic!("not by itself: {event:?}"),
            Event::Renew { seed, lease } => {
                let ttl_ms = self.world.lease_ttl_ms(seed);
                let renewed = next.leased(seed, lease).map(|point| point.ends_ms = self.now + ttl_ms);
                Told::Renewed(renewed.map(|()| ttl_ms))
            }
            Event::Release { seed, lease, report } => Told::Released(next.release(seed, lease, report)),
            Event::Answered { seed, number } => {
                let seed = next.seeds.get_mut(&seed).filter(|seed| seed.number == Some(number));
                Told::Noted(seed.map(|seed| seed.answered_ms = self.now).is_some())
            }
            Event::Remove { seed, key, owner } => Told::Removed(next.remove(seed, key, owner)),
            Event::Drain { seed, key } => {
                let seed = next.seeds.get_mut(&seed).filter(|seed| seed.key == key);
                Told::Drained(seed.map(|seed| {
                    seed.drained = true;
                    seed.live(self.now)
                }))
            }
            Event::Beat { number, age_ms } => {
                let heard_ms = self.now - age_ms;
                let seed = next.seeds.values_mut().find(|seed| seed.number == Some(number));
                let offered = seed.is_some_and(|seed| {
                    seed.heard_ms = seed.heard_ms.max(heard_ms);
                    !seed.removed && !seed.drained
                });
                Told::Gone(!offered)
            }
            Event::Sweep { seed } => {
                next.sweep_one(seed);
                return Ok(if next == *self { vec![next] } else { vec![next, self.clone()] });
            }
        };
        match told {
            Some(told) if told != expected => Err(format!("{event:?} was told {told:?}, not {expected:?}")),
            _ => Ok(vec![next]),
        }
    }

    /// `None`: a seed of somebody else lives there.
    fn register(
        &mut self,
        name: u8,
        key: usize,
        process: Option<u8>,
        owner: Option<u8>,
        heard_ms: i64,
    ) -> Option<Registration> {
        let is_new = !self.seeds.contains_key(&name);
        let registration = match self.hear(name, key, process, owner, heard_ms) {
            Heard::Unknown if is_new => Registration::New,
            Heard::Unknown => Registration::NewHolding,
            Heard::Draining => Registration::Draining,
            Heard::Known => Registration::Repeated,
            Heard::Owned => return None,
        };
        if let Some(known) = self.seeds.get_mut(&name).filter(|_| registration == Registration::Repeated) {
            known.process = process.or(known.process);
        }
        if matches!(registration, Registration::New | Registration::NewHolding) {
            let new = Seed {
                number: None,
                key,
                process,
                owner,
                capacity: self.world.capacity(name),
                removed: false,
                drained: false,
                failures: 0,
                suspect_until_ms: 0,
                answered_ms: 0,
                heard_ms,
                used_ms: 0,
                points: BTreeMap::new(),
            };
            self.seeds.insert(name, new);
        }
        Some(registration)
    }

    /// Whether a seed is somebody else's; and whether that one is there yet.
    fn is_anothers(&self, seed: &Seed, asks: Option<u8>) -> (bool, bool) {
        let is_other = seed.owner.is_some() && asks.is_some() && seed.owner != asks;
        (is_other, is_other && !self.silent(seed) && !seed.is_over(self.now))
    }

    fn hear(&mut self, name: u8, key: usize, process: Option<u8>, owner: Option<u8>, heard_ms: i64) -> Heard {
        let now = self.now;
        let whose = self.seeds.get(&name).map(|known| self.is_anothers(known, owner));
        match whose {
            Some((_, true)) => return Heard::Owned,
            Some((true, _)) => return Heard::Unknown,
            _ => {}
        }
        let Some(known) = self.seeds.get_mut(&name) else { return Heard::Unknown };
        let other_process = matches!((known.process, process), (Some(was), Some(is)) if was != is);
        if known.key != key || other_process || !known.drained && known.is_over(now) {
            return Heard::Unknown;
        }
        known.heard_ms = known.heard_ms.max(heard_ms);
        known.owner = known.owner.or(owner);
        if known.drained || known.removed { Heard::Draining } else { Heard::Known }
    }

    /// Takes in the store's number of a seed that was just registered.
    fn learn(&mut self, seed: u8, told: Option<i64>) -> Result<i64, String> {
        let (Some(number), Some(known)) = (told, self.seeds.get_mut(&seed)) else { return Ok(0) };
        match known.number {
            Some(known) => Ok(known),
            None if self.numbers.insert(number) => Ok(*known.number.insert(number)),
            None => Err(format!("seed {seed} was given the number {number}, which was another's")),
        }
    }

    /// Whether the seed's host may lend no more.
    fn host_is_full(&self, name: u8) -> bool {
        let Some((host, capacity)) = self.world.host(name) else { return false };
        let beside = self.seeds.iter().filter(|(name, _)| self.world.host(**name) == Some((host, capacity)));
        beside.map(|(_, seed)| seed.live(self.now)).sum::<u32>() >= capacity
    }

    /// Seeds of the key with a free point, best first, and where that is.
    fn offered(&self, key: usize, exclude: Option<u8>) -> Vec<(u8, u32)> {
        let now = self.now;
        let mut scored = Vec::new();
        for (name, seed) in &self.seeds {
            let is_out = seed.removed || seed.drained || seed.suspect_until_ms > now || self.silent(seed);
            if seed.key != key || is_out || exclude == Some(*name) || self.host_is_full(*name) {
                continue;
            }
            let Some(n) = seed.free(now) else { continue };
            let free_share = (u64::from(seed.capacity - seed.busy(now)) << 32) / u64::from(seed.capacity);
            let score = match self.world.policy() {
                Policy::Balanced => (u64::MAX - free_share, seed.used_ms, *name),
                Policy::Lru => (0, seed.used_ms, *name),
                Policy::Fifo => (0, seed.heard_ms, *name),
            };
            scored.push((score, n));
        }
        scored.sort_unstable();
        scored.into_iter().map(|((.., name), n)| (name, n)).collect()
    }

    fn refusal(&self, key: usize) -> Refusal {
        let mut there = self
            .seeds
            .values()
            .filter(|seed| seed.key == key && !seed.removed && !seed.drained && !self.silent(seed));
        match (there.clone().next(), there.all(|seed| seed.suspect_until_ms > self.now)) {
            (None, _) => Refusal::UnknownKey,
            (Some(_), true) => Refusal::AllSuspect,
            (Some(_), false) => Refusal::AllBusy,
        }
    }

    fn acquire(
        &self,
        key: usize,
        lease: u32,
        exclude: Option<u8>,
        told: Option<Told>,
        order: Order,
    ) -> Result<Vec<Self>, String> {
        let mut offered = self.offered(key, exclude);
        if order == Order::Policy {
            offered.truncate(1);
        }
        let mut fitting = Vec::new();
        let mut expected = Vec::new();
        let nothing = offered.is_empty();
        for (name, n) in offered {
            let mut next = self.clone();
            let Some(grant) = next.lend(name, n, lease).map(Told::Granted) else { continue };
            expected.push(grant);
            if told.is_none_or(|told| told == grant || order == Order::Any && told.is_same_lease(grant)) {
                fitting.push(next);
            }
        }
        if nothing {
            let refusal = Told::Refused(self.refusal(key));
            expected.push(refusal);
            // The reason is looked for a little later than the seeds.
            let any = order == Order::Any && matches!(told, Some(Told::Refused(_)));
            if any || told.is_none_or(|told| told == refusal) {
                fitting.push(self.clone());
            }
        }
        if fitting.is_empty() {
            return Err(format!("lease {lease} of key {key} was told {told:?}, not any of {expected:?}"));
        }
        Ok(fitting)
    }

    /// Leases a free point.
    fn lend(&mut self, name: u8, n: u32, lease: u32) -> Option<Granted> {
        let ends_ms = self.now + self.world.lease_ttl_ms(name);
        let seed = self.seeds.get_mut(&name)?;
        seed.used_ms = self.now;
        seed.points.insert(n, Point { lease, ends_ms });
        self.granted(lease)
    }

    /// The live lease, as it is told now.
    fn granted(&self, lease: u32) -> Option<Granted> {
        self.seeds.iter().find_map(|(name, seed)| {
            let mut points = seed.points.values();
            let point = points.find(|point| point.lease == lease && point.ends_ms > self.now)?;
            Some(Granted {
                seed: *name,
                ttl_ms: point.ends_ms - self.now,
                quiet_ms: self.now - seed.heard_ms.max(seed.answered_ms),
                answers: seed.answered_ms > 0,
            })
        })
    }

    /// The point of a lease, if it lives and is of the named seed.
    fn leased(&mut self, seed: u8, lease: u32) -> Option<&mut Point> {
        let now = self.now;
        let points = &mut self.seeds.get_mut(&seed)?.points;
        points.values_mut().find(|point| point.lease == lease && point.ends_ms > now)
    }

    fn release(&mut self, name: u8, lease: u32, report: Report) -> bool {
        let now = self.now;
        if self.leased(name, lease).is_none() {
            return false;
        }
        let Some(seed) = self.seeds.get_mut(&name) else { return false };
        seed.points.retain(|_, point| point.lease != lease);
        match report {
            Report::Unknown | Report::Aborted => {}
            Report::Ok => (seed.failures, seed.suspect_until_ms) = (0, 0),
            // Of one trouble only the first who sees it counts.
            Report::Failed if seed.suspect_until_ms > now => {}
            Report::Failed => {
                let long_past = seed.suspect_until_ms + World::FORGIVEN_MS <= now;
                seed.failures = if long_past { 1 } else { seed.failures + 1 };
                seed.suspect_until_ms = now + World::pause_ms(seed.failures);
            }
        }
        if seed.is_over(now) {
            self.seeds.remove(&name);
        }
        true
    }

    /// Whether nobody who looks sees it, be it that a row is left.
    fn is_gone(&self, seed: &Seed) -> bool {
        seed.is_over(self.now) || !seed.drained && seed.live(self.now) == 0 && self.silent(seed)
    }

    fn remove(&mut self, name: u8, key: usize, owner: Option<u8>) -> Removal {
        let Some(seed) = self.seeds.get(&name).filter(|seed| seed.key == key) else {
            return Removal::Unknown;
        };
        match self.is_anothers(seed, owner) {
            (_, true) => return Removal::Owned,
            (true, _) => return Removal::Unknown,
            _ => {}
        }
        let removal = match (self.is_gone(seed), seed.live(self.now)) {
            (true, _) => Removal::GoneBefore,
            (false, 0) => Removal::Gone,
            (false, _) => Removal::Draining,
        };
        if removal == Removal::Draining {
            self.seeds.entry(name).and_modify(|seed| seed.removed = true);
        } else {
            self.seeds.remove(&name);
        }
        removal
    }

    /// Drains all seeds of a key; gives how many were not drained before.
    pub(super) fn invalidate(&mut self, key: usize) -> u64 {
        let mut seeds = 0;
        for seed in self.seeds.values_mut().filter(|seed| seed.key == key && !seed.drained) {
            seed.drained = true;
            seeds += 1;
        }
        seeds
    }

    fn sweep_one(&mut self, name: u8) -> (u64, u64) {
        let (now, silent_ms) = (self.now, self.world.heartbeat_ttl_ms());
        let Some(seed) = self.seeds.get_mut(&name) else { return (0, 0) };
        let points = seed.points.len();
        seed.points.retain(|_, point| point.ends_ms > now);
        let ended = (points - seed.points.len()) as u64;
        let forgotten_ms = if seed.drained { DRAIN_MEMORY_MS.max(silent_ms) } else { silent_ms };
        let over = seed.points.is_empty() && (seed.removed || seed.heard_ms + forgotten_ms <= now);
        if over {
            self.seeds.remove(&name);
        }
        (ended, u64::from(over))
    }

    /// Ends what is over; gives how many leases, seeds and requests that were.
    pub(super) fn sweep(&mut self) -> (u64, u64, u64) {
        let names: Vec<u8> = self.seeds.keys().copied().collect();
        let swept = names.into_iter().map(|name| self.sweep_one(name));
        let (leases, seeds) = swept.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (leases, seeds, self.forget())
    }

    /// Compares with all that the store shows.
    ///
    /// # Errors
    /// The first difference.
    pub(super) fn compare(&self, snapshot: &Snapshot) -> Result<(), String> {
        let expected = self.shown();
        let mut views = snapshot.seeds.iter();
        for expected in &expected {
            let shown = views.next();
            if shown != Some(expected) {
                return Err(format!("shown is {shown:?}, not {expected:?}"));
            }
        }
        let mut leases: Vec<_> = Vec::new();
        for (name, seed) in &self.seeds {
            let live = seed.points.values().filter(|point| point.ends_ms > self.now);
            leases.extend(
                live.map(|point| (lease(point.lease), identity(*name).to_string(), key(KEYS[seed.key]))),
            );
        }
        let view =
            |view: &super::super::LeaseView| (view.lease, view.seed_identity.clone(), view.seed_key.clone());
        let mut shown_leases: Vec<_> = snapshot.leases.iter().map(view).collect();
        leases.sort_by_key(|(lease, ..)| *lease);
        shown_leases.sort_by_key(|(lease, ..)| *lease);
        if shown_leases != leases {
            return Err(format!("leases are shown as {shown_leases:?}, not {leases:?}"));
        }
        let time_ms = snapshot.ahead_ms + self.clock_ms;
        if time_ms != self.now {
            return Err(format!("it is {time_ms} there, not {}", self.now));
        }
        let counts = (snapshot.seed_count, snapshot.lease_count);
        if (snapshot.seeds.len(), counts) == (expected.len(), (expected.len() as u64, leases.len() as u64)) {
            Ok(())
        } else {
            Err(format!("{counts:?} are counted, not {} and {}", expected.len(), leases.len()))
        }
    }

    /// The seeds that people see.
    pub(super) fn shown(&self) -> Vec<SeedView> {
        let shown = self.seeds.iter().filter(|(_, seed)| !self.is_gone(seed));
        shown.map(|(name, seed)| self.view(*name, seed)).collect()
    }

    fn view(&self, name: u8, seed: &Seed) -> SeedView {
        SeedView {
            identity: identity(name).to_string(),
            key: key(KEYS[seed.key]),
            capacity: seed.capacity,
            used: seed.live(self.now),
            last_heartbeat_ms: seed.heard_ms,
            last_used_ms: seed.used_ms,
            draining: seed.removed || seed.drained || self.silent(seed),
            suspect_until_ms: seed.suspect_until_ms,
            failures: seed.failures,
            profile: self.world.profile(name, seed.process),
            owner: owned_by(seed.owner),
        }
    }
}
