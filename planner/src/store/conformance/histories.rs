//! Generated histories of commands, clock steps, sweeps, flushes and restarts, run on the store and on a small
//! model of the protocol. Every outcome and every state must be the model's: a point leased twice, a false
//! refusal, a leak, a broken fence or a wrong order of seeds is a difference.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

const SEEDS: u8 = 4;
const KEYS: [&str; 2] = ["k", "l"];

#[derive(Debug, Clone)]
enum Step {
    /// One transaction.
    Batch(Vec<Ask>),
    /// Milliseconds go by.
    Wait(i64),
    Sweep,
    /// Gathered heartbeats: of which holding of which seed, the latest or an earlier one, and their age.
    Flush(Vec<(u8, bool, i64)>),
    Restart,
}

#[derive(Debug, Clone, Copy)]
enum Ask {
    Register(u8, usize, i64),
    Acquire(usize),
    /// A lease, counted back from the newest, and the seed that is named: the right one or some other.
    Renew(usize, Option<u8>),
    Release(usize, Option<u8>),
    Remove(u8, usize),
}

#[derive(Debug, Clone)]
struct Lease {
    seed: u8,
    /// The holding that it is for; `None` once released.
    holding: Option<i64>,
    ends_ms: i64,
}

#[derive(Debug, Clone)]
struct Seed {
    holding: i64,
    key: usize,
    removed: bool,
    heard_ms: i64,
    used_ms: i64,
}

/// The protocol, without regard to how it is stored.
struct Model {
    rules: Rules,
    now: i64,
    seeds: BTreeMap<u8, Seed>,
    leases: Vec<Lease>,
    /// All numbers that a seed's holdings have had.
    holdings: BTreeMap<u8, Vec<i64>>,
}

impl Model {
    fn live(&self, seed: u8) -> u32 {
        let Some(known) = self.seeds.get(&seed) else { return 0 };
        let live = self.leases.iter().filter(|lease| {
            lease.seed == seed && lease.holding == Some(known.holding) && lease.ends_ms > self.now
        });
        u32::try_from(live.count()).unwrap()
    }

    fn silent(&self, seed: &Seed) -> bool {
        seed.heard_ms + self.rules.heartbeat_ttl_ms <= self.now
    }

    fn register(&mut self, seed: u8, key: usize, heard_ms: i64, told: &Outcome) {
        let Outcome::Registered(registration, holding) = *told else { panic!("{told:?}") };
        let expected = match self.seeds.get(&seed) {
            None => Registration::New,
            Some(known) if known.key != key => Registration::NewHolding,
            Some(known) if !known.removed => Registration::Repeated,
            Some(_) if self.live(seed) > 0 => Registration::Draining,
            Some(_) => Registration::NewHolding,
        };
        assert_eq!(registration, expected, "registering seed {seed}");
        if matches!(expected, Registration::New | Registration::NewHolding) {
            assert!(!self.holdings.values().flatten().any(|used| *used == holding), "a number used twice");
            self.holdings.entry(seed).or_default().push(holding);
            self.seeds.insert(seed, Seed { holding, key, removed: false, heard_ms, used_ms: 0 });
        } else if let Some(known) = self.seeds.get_mut(&seed) {
            assert_eq!(known.holding, holding);
            known.heard_ms = known.heard_ms.max(heard_ms);
        }
    }

    /// The seed that the policy prefers among those that may be offered.
    fn best(&self, key: usize) -> Option<u8> {
        let offered = self.seeds.iter().filter(|(seed, known)| {
            known.key == key
                && !known.removed
                && !self.silent(known)
                && self.live(**seed) < self.rules.capacity
        });
        let scored = offered.map(|(seed, known)| match self.rules.policy {
            Policy::Balanced => (i64::from(self.live(*seed)), known.used_ms, *seed),
            Policy::Lru => (0, known.used_ms, *seed),
            Policy::Fifo => (0, known.heard_ms, *seed),
        });
        scored.min().map(|(.., seed)| seed)
    }

    fn acquire(&mut self, key: usize, told: &Outcome) {
        let best = self.best(key);
        assert_eq!(granted(told), best.map(identity), "at {}", self.now);
        let ends_ms = self.now + self.rules.lease_ttl_ms;
        match best.and_then(|seed| Some((seed, self.seeds.get_mut(&seed)?))) {
            Some((seed, known)) => {
                known.used_ms = self.now;
                self.leases.push(Lease { seed, holding: Some(known.holding), ends_ms });
            }
            // Its number is taken all the same, by a lease that never was.
            None => self.leases.push(Lease { seed: 0, holding: None, ends_ms: 0 }),
        }
    }

    /// The lease, if it lives and is of the named seed.
    fn named(&mut self, lease: usize, seed: u8) -> Option<&mut Lease> {
        let holding = self.seeds.get(&seed).map(|known| known.holding)?;
        let now = self.now;
        let lease = self.leases.get_mut(lease)?;
        (lease.seed == seed && lease.holding == Some(holding) && lease.ends_ms > now).then_some(lease)
    }

    fn renew(&mut self, lease: usize, seed: u8, told: &Outcome) {
        let ends_ms = self.now + self.rules.lease_ttl_ms;
        let renewed = self.named(lease, seed).map(|lease| lease.ends_ms = ends_ms).is_some();
        assert_eq!(*told, Outcome::Renewed(renewed.then_some(self.rules.lease_ttl_ms)));
    }

    fn release(&mut self, lease: usize, seed: u8, told: &Outcome) {
        let released = self.named(lease, seed).map(|lease| lease.holding = None).is_some();
        assert_eq!(*told, Outcome::Released(released));
        if released && self.live(seed) == 0 && self.seeds.get(&seed).is_some_and(|known| known.removed) {
            self.seeds.remove(&seed);
        }
    }

    fn remove(&mut self, seed: u8, key: usize, told: &Outcome) {
        let live = self.live(seed);
        let removal = match self.seeds.get_mut(&seed).filter(|known| known.key == key) {
            None => Removal::Unknown,
            Some(known) if live > 0 => {
                known.removed = true;
                Removal::Draining
            }
            Some(_) => {
                self.seeds.remove(&seed);
                Removal::Gone
            }
        };
        assert_eq!(*told, Outcome::Removed(removal));
    }

    fn sweep(&mut self) {
        let ended: Vec<u8> = self
            .seeds
            .iter()
            .filter(|(seed, known)| (known.removed || self.silent(known)) && self.live(**seed) == 0)
            .map(|(seed, _)| *seed)
            .collect();
        for seed in ended {
            self.seeds.remove(&seed);
        }
    }

    /// Compares with all that the store shows.
    fn check(&self, snapshot: &Snapshot) {
        let live: u64 = self.seeds.keys().map(|seed| u64::from(self.live(*seed))).sum();
        assert_eq!(snapshot.lease_count, live);
        let shown: Vec<_> = snapshot.seeds.iter().collect();
        assert_eq!(shown.len(), self.seeds.len());
        for (view, (seed, known)) in shown.into_iter().zip(&self.seeds) {
            let expected = SeedView {
                identity: identity(*seed).to_string(),
                key: key(KEYS[known.key]),
                capacity: self.rules.capacity,
                used: self.live(*seed),
                last_heartbeat_ms: known.heard_ms,
                last_used_ms: known.used_ms,
                draining: known.removed || self.silent(known),
                suspect_until_ms: 0,
                failures: 0,
                profile: Profile::default(),
            };
            assert_eq!(*view, expected);
            assert!(view.used <= view.capacity);
        }
    }
}

fn asks() -> impl Strategy<Value = Ask> {
    let (seed, key, back) = (0..SEEDS, 0..KEYS.len(), 0usize..6);
    let named = prop::option::weighted(0.15, 0..SEEDS);
    prop_oneof![
        3 => (seed.clone(), 0i64..3).prop_map(|(seed, age_ms)| Ask::Register(seed, 0, age_ms)),
        1 => (seed.clone(), key.clone()).prop_map(|(seed, key)| Ask::Register(seed, key, 0)),
        6 => prop_oneof![4 => Just(0usize), 1 => Just(1)].prop_map(Ask::Acquire),
        2 => (back.clone(), named.clone()).prop_map(|(back, named)| Ask::Renew(back, named)),
        3 => (back, named).prop_map(|(back, named)| Ask::Release(back, named)),
        1 => (seed, key).prop_map(|(seed, key)| Ask::Remove(seed, key)),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => asks().prop_map(|ask| Step::Batch(vec![ask])),
        3 => prop::collection::vec(asks(), 2..8).prop_map(Step::Batch),
        // Exactly a time to live, and one millisecond less, must occur often.
        4 => prop_oneof![Just(1), Just(9), Just(10), Just(29), Just(30), 1i64..40].prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => prop::collection::vec((0..SEEDS, any::<bool>(), 0i64..20), 1..4).prop_map(Step::Flush),
        1 => Just(Step::Restart),
    ]
}

async fn run<H: Home>(rules: Rules, steps: Vec<Step>) {
    let mut bench = Bench::<H>::new(rules.clone()).await;
    let mut model = Model {
        rules: rules.clone(),
        now: bench.now(),
        seeds: BTreeMap::new(),
        leases: Vec::new(),
        holdings: BTreeMap::new(),
    };
    for step in steps {
        match step {
            Step::Batch(asks) => batch(&bench, &mut model, &asks).await,
            Step::Wait(ms) => {
                bench.step(ms);
                model.now += ms;
            }
            Step::Sweep => {
                bench.store.sweep().await.unwrap();
                model.sweep();
            }
            Step::Flush(beats) => flush(&bench, &mut model, &beats).await,
            Step::Restart => bench.restart(rules.clone()).await,
        }
        model.check(&bench.snapshot().await);
    }
}

async fn batch<H: Home>(bench: &Bench<H>, model: &mut Model, asks: &[Ask]) {
    let newest = model.leases.len();
    let counted_back = |back: usize| newest.saturating_sub(1 + back);
    let named = |lease: usize, other: Option<u8>| {
        other.unwrap_or_else(|| model.leases.get(lease).map_or(0, |lease| lease.seed))
    };
    // The order in which a store applies them.
    let mut ordered: Vec<Ask> = asks.to_vec();
    ordered.sort_by_key(|ask| match ask {
        Ask::Register(..) => 0,
        Ask::Renew(..) => 1,
        Ask::Release(..) => 2,
        Ask::Remove(..) => 3,
        Ask::Acquire(key) => 4 + key,
    });
    let mut next = newest;
    let mut commands = Vec::new();
    let mut resolved = Vec::new();
    for ask in ordered {
        let (command, ask) = match ask {
            Ask::Register(seed, k, age_ms) => {
                let (identity, key) = (identity(seed), key(KEYS[k]));
                (Command::Register { identity, key, profile: Box::default(), age_ms }, ask)
            }
            Ask::Acquire(k) => {
                next += 1;
                (acquire(KEYS[k], u32::try_from(next - 1).unwrap()), ask)
            }
            Ask::Renew(back, other) => {
                let lease = counted_back(back);
                let seed = named(lease, other);
                (renew(seed, u32::try_from(lease).unwrap()), Ask::Renew(lease, Some(seed)))
            }
            Ask::Release(back, other) => {
                let lease = counted_back(back);
                let seed = named(lease, other);
                (release(seed, u32::try_from(lease).unwrap()), Ask::Release(lease, Some(seed)))
            }
            Ask::Remove(seed, k) => (remove(seed, KEYS[k]), ask),
        };
        commands.push(command);
        resolved.push(ask);
    }
    let outcomes = bench.apply(&commands).await;
    for (ask, told) in resolved.into_iter().zip(&outcomes) {
        match ask {
            Ask::Register(seed, key, age_ms) => model.register(seed, key, model.now - age_ms, told),
            Ask::Acquire(key) => model.acquire(key, told),
            Ask::Renew(lease, seed) => model.renew(lease, seed.unwrap_or(0), told),
            Ask::Release(lease, seed) => model.release(lease, seed.unwrap_or(0), told),
            Ask::Remove(seed, key) => model.remove(seed, key, told),
        }
    }
}

async fn flush<H: Home>(bench: &Bench<H>, model: &mut Model, beats: &[(u8, bool, i64)]) {
    // One beat a number, as the planner gathers them.
    let mut by_number: BTreeMap<i64, i64> = BTreeMap::new();
    for (seed, latest, age_ms) in beats {
        let Some(numbers) = model.holdings.get(seed) else { continue };
        let number = if *latest { numbers.last() } else { numbers.first() };
        by_number.insert(*number.unwrap(), *age_ms);
    }
    let beats: Vec<Beat> =
        by_number.iter().map(|(seed_id, age_ms)| Beat { seed_id: *seed_id, age_ms: *age_ms }).collect();
    let gone = bench.store.flush(&beats).await.unwrap();
    for (number, age_ms) in by_number {
        let heard_ms = model.now - age_ms;
        match model.seeds.values_mut().find(|known| known.holding == number) {
            None => assert!(gone.contains(&number)),
            Some(known) => {
                assert!(!gone.contains(&number));
                known.heard_ms = known.heard_ms.max(heard_ms);
            }
        }
    }
}

pub(crate) async fn generated_histories_agree_with_the_model<H: Home>() {
    // `block_on` cannot be nested, and a history is driven by a runner that is not async.
    let histories = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rules = (1u32..4, 0usize..3).prop_map(|(capacity, policy)| Rules {
            heartbeat_ttl_ms: 30,
            lease_ttl_ms: 10,
            capacity,
            policy: Policy::NAMES[policy].1,
            ..RULES
        });
        let mut runner = TestRunner::new(Config { cases: 96, ..Config::default() });
        runner
            .run(&(rules, prop::collection::vec(steps(), 1..60)), |(rules, steps)| {
                runtime.block_on(run::<H>(rules, steps));
                Ok(())
            })
            .unwrap();
    });
    histories.join().unwrap();
}
