//! A worker without bytes: what it holds is a count, and its times are ticks of the fleet's clock.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rfork_protocol::v2::{Advice, LeasedPoint, LoadProgress, LoadingSeed, Name};
use rfork_protocol::{LeaseId, SeedIdentity, SeedKey};
use tokio::time::Instant;

use crate::answers::Kind;
use crate::plan::{Fate, Scale};
use crate::wire::Told;

/// Bytes of a chunk.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;

/// What is remembered of a worker, for people.
const TRACE: usize = 12;

/// When a source is given up, and for how long what is missing is waited for, as in workers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// How long a source may owe bytes without one that comes.
    pub(crate) stall: u64,
    /// For how much longer a source is waited for that waits as well.
    pub(crate) limit: u64,
    /// How long a source that has nothing new is waited for.
    pub(crate) longest: u64,
    /// A source that says nothing of itself for so long is not heard.
    pub(crate) unheard: u64,
    /// How long another source is asked for before storage is read.
    pub(crate) seek: u64,
    /// How long a source that was left is not asked for.
    pub(crate) exclude: u64,
    /// Pauses between two questions, the longest.
    pub(crate) pause: u64,
}

impl Patience {
    pub(crate) fn of(scale: &Scale) -> Self {
        let ticks = |sec| scale.ticks(Duration::from_secs(sec) / scale.hurry);
        Self {
            stall: ticks(3),
            limit: ticks(10),
            longest: ticks(60),
            unheard: ticks(2),
            seek: ticks(30),
            exclude: ticks(10),
            pause: ticks(2),
        }
    }

    /// The most that one fault of a source costs those behind it: the stall, until its planner believes that it is lost
    /// (three of its longest periods), a question, a pause; and as much again, if what they then get is gone as well.
    pub(crate) fn heal(&self, scale: &Scale) -> u64 {
        2 * (self.stall * 5 / 4 + scale.ticks(Duration::from_secs(3 * 4 + 5)) + self.pause)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Lives,
    /// It stands still until this tick.
    Stopped(u64),
    Gone,
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    NotYet,
    Asking,
    Reading,
    /// Its source brings nothing, or is gone: another one is asked for.
    Seeking,
    Claiming,
    /// It reads storage.
    Filling,
    /// It has everything, and tells its planner so.
    Registering,
    /// It is a seed.
    Seed,
}

/// A lease that it has.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) seed: SeedIdentity,
    pub(crate) point: LeasedPoint,
    pub(crate) due: Instant,
    pub(crate) asked: bool,
    /// The planner does not know it any more.
    pub(crate) lost: bool,
    pub(crate) advice: Option<Advice>,
}

/// Something that is renewed.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) due: Instant,
    pub(crate) asked: bool,
}

#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: usize,
    pub(crate) seed_key: SeedKey,
    pub(crate) identity: SeedIdentity,
    /// Tells its memory from the one before.
    pub(crate) memory: u32,
    pub(crate) starts: u64,
    /// What becomes of it, once it holds so many chunks.
    pub(crate) fate: (Fate, u32),
    pub(crate) life: Life,
    pub(crate) state: State,
    /// Whether it had everything from the beginning.
    pub(crate) first: bool,

    /// Whose bytes it holds, by number.
    pub(crate) root: Option<usize>,
    pub(crate) held: u32,
    /// Whether it knows which content that is.
    pub(crate) known: bool,
    /// Chunks that came, from wherever.
    pub(crate) arrived: u64,
    /// Ticks since one came, or since its source said that it makes progress.
    pub(crate) silent: u64,
    /// Ticks since a chunk came.
    pub(crate) waits: u64,
    /// Ticks since its source said something.
    pub(crate) unheard: u64,
    /// Whether its source compares what it holds, or passes that on.
    pub(crate) compares: bool,
    /// Of what it holds it has to compare so many chunks with storage.
    pub(crate) to_compare: u32,
    /// From whom chunks come.
    pub(crate) link: Option<usize>,
    /// Who has greeted it with which point, and since when that is granted.
    pub(crate) points: HashMap<u32, (u64, usize)>,

    pub(crate) lease: Option<Lease>,
    pub(crate) lead: Option<Due>,
    pub(crate) beat: Option<Due>,
    /// A question for a source, for the right to lead, or a registration is under way.
    pub(crate) asked: bool,
    /// Which question it is whose answer it wants.
    pub(crate) question: u32,
    /// When it may ask again.
    pub(crate) pause: u64,
    /// When it began to look for another source, since when nothing has come.
    pub(crate) seeks: Option<u64>,
    /// How long the next question waits, and when the right may be asked for again.
    pub(crate) led: Duration,
    pub(crate) next_claim: Instant,
    /// Whether it had the right, and asked for a seed once more.
    pub(crate) claimed: bool,
    /// Whether who leads reads other bytes than those that it holds.
    pub(crate) starts_over: bool,
    /// Whether advice counts.
    pub(crate) heeds: bool,
    /// Sources that were left, and until when they are not asked for.
    pub(crate) left: Vec<(SeedIdentity, u64)>,
    pub(crate) failures: u32,
    /// What came while it stood still.
    pub(crate) inbox: Vec<(Kind, Option<Told>)>,

    /// What it was told last, for people.
    pub(crate) trace: VecDeque<String>,
    /// Sources that it has had, and whether it has led.
    pub(crate) sources: u32,
    pub(crate) has_led: bool,
    pub(crate) longest_wait: u64,
    pub(crate) loaded: Option<u64>,
}

impl Worker {
    pub(crate) fn new(number: usize, key: usize, (starts, fate): (u64, (Fate, u32))) -> Self {
        let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
        Self {
            key,
            seed_key: SeedKey::from_text(&format!("key {key}")).unwrap(),
            identity: SeedIdentity::new(format!("10.{high}.{middle}.{low}"), 20_000, 0).unwrap(),
            memory: 0,
            starts,
            fate,
            life: Life::Lives,
            state: State::NotYet,
            first: false,
            root: None,
            held: 0,
            known: false,
            arrived: 0,
            silent: 0,
            waits: 0,
            unheard: 0,
            compares: false,
            to_compare: 0,
            link: None,
            points: HashMap::new(),
            lease: None,
            lead: None,
            beat: None,
            asked: false,
            question: 0,
            pause: 0,
            seeks: None,
            led: Duration::ZERO,
            next_claim: Instant::now(),
            claimed: false,
            starts_over: false,
            heeds: true,
            left: Vec::new(),
            failures: 0,
            inbox: Vec::new(),
            trace: VecDeque::new(),
            sources: 0,
            has_led: false,
            longest_wait: 0,
            loaded: None,
        }
    }

    /// The number of the worker that serves there.
    pub(crate) fn at(identity: &SeedIdentity) -> usize {
        let Some(std::net::IpAddr::V4(address)) = identity.address() else {
            panic!("{identity} is nobody's")
        };
        let [_, high, middle, low] = address.octets();
        u32::from_be_bytes([0, high, middle, low]).try_into().unwrap()
    }

    /// Notes what it met.
    pub(crate) fn note(&mut self, tick: u64, what: impl std::fmt::Display) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{tick}: {what}"));
    }

    pub(crate) fn incarnation(&self) -> Name {
        Name::cut(&format!("memory {}", self.memory)).unwrap()
    }

    pub(crate) fn is_loading(&self) -> bool {
        !matches!(self.state, State::NotYet | State::Registering | State::Seed)
    }

    pub(crate) fn has_all(&self, scale: &Scale) -> bool {
        self.held == scale.chunks && self.known
    }

    /// Whether no byte has come for longer than its source may take, which holds so many chunks and got nothing itself for
    /// `own` ticks.
    pub(crate) fn has_stalled(&self, patience: &Patience, (held, own): (u32, u64)) -> bool {
        let Patience { stall, limit, longest, unheard, .. } = *patience;
        if self.silent >= stall && self.unheard >= stall.max(unheard) {
            return true;
        }
        if held > self.held {
            self.silent >= stall + own.min(limit)
        } else {
            self.silent >= longest || (self.silent >= stall && own >= stall + limit)
        }
    }

    /// Whether neither a byte nor a sign of life comes of its source.
    pub(crate) fn has_lost(&self, patience: &Patience) -> bool {
        self.link.is_none() || (self.unheard >= patience.unheard && self.silent >= patience.stall)
    }

    /// What it tells of itself as a loading seed. `root` names what it holds.
    pub(crate) fn loading(&self, scale: &Scale, root: Option<Name>, starts_over: bool) -> LoadingSeed {
        LoadingSeed {
            seed: self.identity.clone(),
            incarnation: self.incarnation(),
            total_bytes: u64::from(scale.chunks) * CHUNK_BYTES,
            held: self.progress(root).held,
            starts_over,
            model_url: None,
            deploy_strategy: None,
            is_draft: None,
        }
    }

    pub(crate) fn progress(&self, root: Option<Name>) -> LoadProgress {
        let bytes = u64::from(self.held) * CHUNK_BYTES;
        let held = root.filter(|_| bytes > 0).map(|root| rfork_protocol::v2::Held { root, bytes });
        LoadProgress { incarnation: self.incarnation(), arrived_bytes: self.arrived * CHUNK_BYTES, held }
    }
}
