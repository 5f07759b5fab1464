//! What clients of planners saw, and whether planners that keep their promises could have answered so.
//!
//! A history is a set of exchanges, each with the instant at which it was sent and the one at which its answer was
//! there; what it asked for took effect at some moment between the two. From that alone follows what must have been
//! so at a moment (a lease that was granted and not yet given back lives), and what may have been so (a request that
//! got no clear answer may have taken a point). An answer is wrong when it contradicts every way in which it may have
//! been. So a right planner is never accused, and a wrong one is unless it was lucky.
//!
//! All of it is pure. Times are microseconds since the history began.

use std::fmt;

mod leases;
mod offers;
#[cfg(test)]
mod tests;

/// What the planners were told, and how exactly the rest can be known.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// A lease that was not renewed this long is gone.
    pub lease_ttl_us: u64,
    /// A seed that was silent this long is not offered.
    pub heartbeat_ttl_us: u64,
    /// A repeated heartbeat that was answered has reached the database after this, unless its planner died.
    pub flush_us: u64,
    /// After this a request without a clear answer has no effect any more.
    pub settle_us: u64,
    /// How far the clocks of clients and database may differ over a time to live.
    pub slack_us: u64,
    /// After this from the end of a fault, requests are served again.
    pub recovery_us: u64,
    /// A planner that has waited this long for its database may say so.
    pub gives_up_us: u64,
    /// How long the machine alone may keep something waiting.
    pub late_us: u64,
}

/// Threads that are waited for until something has its effect: of the client, the balancer, the planner and the database,
/// some of them twice.
const WAITED_FOR: u64 = 10;

impl Terms {
    /// The same on a machine on which a thread may be this late: so a verdict does not depend on its speed.
    #[must_use]
    pub fn where_threads_are_late(self, late_us: u64) -> Self {
        let more_us = late_us.saturating_mul(WAITED_FOR);
        Self {
            flush_us: self.flush_us.saturating_add(more_us),
            settle_us: self.settle_us.saturating_add(more_us),
            slack_us: self.slack_us.saturating_add(more_us),
            recovery_us: self.recovery_us.saturating_add(more_us),
            late_us: more_us,
            ..self
        }
    }
}

/// A seed that offers its points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// `host:port:rank`.
    pub identity: String,
    /// What it holds.
    pub key: String,
    /// Leases that it may have at once.
    pub capacity: usize,
}

/// From one instant to another, which is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub from_us: u64,
    /// Its end.
    pub until_us: u64,
}

impl Span {
    fn contains(self, at_us: u64) -> bool {
        (self.from_us..self.until_us).contains(&at_us)
    }

    fn meets(self, other: Self) -> bool {
        self.from_us <= other.until_us && other.from_us <= self.until_us
    }
}

/// A lease's id. It is a credential, so not all of it is shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseName(pub String);

impl fmt::Debug for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.0.get(..6).unwrap_or_default())
    }
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// `add_seed` of this seed.
    Heartbeat(String),
    /// `remove_seed` of this seed.
    Remove(String),
    /// `get_seed` for this key.
    Acquire(String),
    /// `renew_seed_lease` of this lease.
    Renew(LeaseName),
    /// `put_seed` of this lease.
    Release(LeaseName),
}

/// What it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A lease.
    Granted {
        /// On this seed.
        seed: String,
        /// Its id.
        lease: LeaseName,
    },
    /// 200.
    Done,
    /// 404: no available seed.
    NoSeed,
    /// 404: lease not found.
    NoLease,
    /// 404 to a removal.
    NotKnown,
    /// 409 to a removal: the seed has leases, and is offered no more.
    Draining,
    /// 5xx or a broken connection: it may have taken effect or not.
    Unclear(String),
    /// What no planner may answer to this.
    Wrong(String),
}

/// A request with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// From its sending to its answer.
    pub span: Span,
    /// The request.
    pub asked: Asked,
    /// The answer.
    pub answer: Answer,
}

/// Everything that was seen.
#[derive(Debug, Clone)]
pub struct History {
    /// What planners were told.
    pub terms: Terms,
    /// All seeds.
    pub seeds: Vec<Seed>,
    /// All exchanges, in any order. Those of one lease, and those of one seed, follow each other.
    pub exchanges: Vec<Exchange>,
    /// When planners were dead, or the database away.
    pub faults: Vec<Span>,
}

/// An answer that no planner may give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// More leases certainly live on a seed than it has points.
    TooManyLeases {
        /// The seed.
        seed: String,
        /// When.
        at_us: u64,
        /// The leases.
        leases: Vec<LeaseName>,
    },
    /// One lease id was given to two.
    SameLease(LeaseName),
    /// A lease that certainly lived was not found.
    Lost(Exchange),
    /// A lease that had certainly ended was found.
    Revived(Exchange),
    /// A worker was refused though a seed certainly offered a free point all the time.
    FalseRefusal(Exchange),
    /// A seed was granted for another key, after it had been silent for too long, or though it was removed.
    NotOffered(Exchange),
    /// No clear answer, and no fault to explain it.
    Unexplained(Exchange),
    /// An answer of another kind than the request.
    Unexpected(Exchange),
}

/// What happened, in numbers: a history in which nothing happened proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Leases that were granted.
    pub granted: usize,
    /// Leases that were renewed.
    pub renewed: usize,
    /// Leases that were given back in time.
    pub released: usize,
    /// Leases that were asked for after their end, and not found.
    pub late: usize,
    /// Workers that were refused.
    pub refused: usize,
    /// Of these, those while every earlier request for this key had had a clear answer or had settled.
    pub refused_clearly: usize,
    /// Seeds that were removed, at once or with their last lease.
    pub removed: usize,
    /// Requests without a clear answer.
    pub unclear: usize,
}

impl History {
    /// What is wrong with it; nothing, if planners that keep their promises could have answered so.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = self.unexpected();
        let lives = leases::lives(self, &mut found);
        leases::check_capacity(self, &lives, &mut found);
        offers::check_grants(self, &lives, &mut found);
        offers::check_refusals(self, &lives, &mut found);
        found
    }

    /// What happened.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for exchange in &self.exchanges {
            let counter = match (&exchange.asked, &exchange.answer) {
                (_, Answer::Granted { .. }) => &mut summary.granted,
                (_, Answer::NoSeed) => &mut summary.refused,
                (_, Answer::NoLease) => &mut summary.late,
                (_, Answer::Unclear(_)) => &mut summary.unclear,
                (Asked::Renew(_), Answer::Done) => &mut summary.renewed,
                (Asked::Release(_), Answer::Done) => &mut summary.released,
                (Asked::Remove(_), Answer::Done | Answer::Draining) => &mut summary.removed,
                _ => continue,
            };
            *counter += 1;
        }
        summary.refused_clearly = offers::clear_refusals(self);
        summary
    }

    fn unexpected(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for exchange in &self.exchanges {
            let fits = match (&exchange.asked, &exchange.answer) {
                (_, Answer::Unclear(_)) => {
                    if !self.is_explained(exchange.span) {
                        found.push(Violation::Unexplained(exchange.clone()));
                    }
                    true
                }
                (Asked::Acquire(_), Answer::Granted { .. } | Answer::NoSeed) => true,
                (Asked::Renew(_) | Asked::Release(_), Answer::Done | Answer::NoLease) => true,
                (Asked::Heartbeat(_), Answer::Done) => true,
                (Asked::Remove(_), Answer::Done | Answer::NotKnown | Answer::Draining) => true,
                _ => false,
            };
            if !fits {
                found.push(Violation::Unexpected(exchange.clone()));
            }
        }
        found
    }

    /// Whether a fault explains that a request was not served, or a machine that is slower than planners are patient.
    fn is_explained(&self, span: Span) -> bool {
        let gives_up_us = self.terms.gives_up_us;
        if self.terms.late_us >= gives_up_us && span.until_us - span.from_us >= gives_up_us {
            return true;
        }
        self.faults.iter().any(|fault| {
            let until_us = fault.until_us + self.terms.recovery_us;
            span.meets(Span { from_us: fault.from_us, until_us })
        })
    }

    fn seed(&self, identity: &str) -> Option<&Seed> {
        self.seeds.iter().find(|seed| seed.identity == identity)
    }
}

/// Whether seeds were leased exactly as often as they have points: `granted` names the seed of each lease.
///
/// # Errors
/// Each seed that was not, with how often it was leased and how many points it has.
pub fn each_point_once(seeds: &[Seed], granted: &[String]) -> Result<(), Vec<(String, usize, usize)>> {
    let known = seeds.iter().map(|seed| (seed.identity.clone(), seed.capacity));
    let strange = granted.iter().filter(|identity| seeds.iter().all(|seed| seed.identity != **identity));
    let wrong: Vec<_> = known
        .chain(strange.map(|identity| (identity.clone(), 0)))
        .map(|(identity, capacity)| {
            let leased = granted.iter().filter(|granted| **granted == identity).count();
            (identity, leased, capacity)
        })
        .filter(|(_, leased, capacity)| leased != capacity)
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}
