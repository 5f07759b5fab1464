//! What a decision has to see, in the words of an index. A store answers each with [`super::Tables`]'s `put_` functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rfork_protocol::{SeedIdentity, SeedKey};

use crate::domain::location::Location;
use crate::domain::seed::Profile;
use crate::store::LeaseHash;

/// Seeds of a key that a worker prefers to others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Near {
    /// All of the key.
    Anywhere,
    /// Those of an instance.
    Instance(String),
    /// Those on a machine.
    Node(String),
    /// Those in a rack of a zone.
    Rack(Option<String>, String),
    /// Those in a zone.
    Zone(String),
    /// Those of these that nobody reads from. Only where the order of all does not have them first.
    Idle,
    /// Of those that still load, these. All others are complete.
    Loading(Box<Self>),
    /// Those that still load and have no point but the one for readers whose source stalls.
    Reserve,
}

impl Near {
    /// Where else than among all of its key a seed that told this is looked for.
    pub fn of(told: &Profile) -> impl Iterator<Item = Self> {
        let Location { zone, rack, host } = &told.location;
        let instance = told.instance_id.clone().map(Self::Instance);
        let node = host.clone().map(Self::Node);
        let rack = rack.clone().map(|rack| Self::Rack(zone.clone(), rack));
        [instance, node, rack, zone.clone().map(Self::Zone)].into_iter().flatten()
    }

    /// Those of these that still load.
    #[must_use]
    pub fn loading(self) -> Self {
        Self::Loading(Box::new(self))
    }
}

/// What is to be loaded next. Empty parts ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wants {
    /// Seeds by identity, each with its leases.
    pub identities: BTreeSet<SeedIdentity>,
    /// Seeds by number, each with its leases.
    pub numbers: BTreeSet<i64>,
    /// Seeds by a lease that is or was on a point of theirs, and requests by the lease that they are for.
    pub leases: BTreeSet<LeaseHash>,
    /// Seeds that hold these leases while they load.
    pub readers: BTreeSet<LeaseHash>,
    /// The seeds of these keys that have the right to lead, or were the last to have it.
    pub leaders: BTreeSet<SeedKey>,
    /// Requests by the hash of their idempotency key, each with the seed that its lease is on.
    pub names: BTreeSet<[u8; 32]>,
    /// Requests of a key that wait, those after a number, in the order of their numbers, at most
    /// [`MAX_CALLED`](crate::store::MAX_CALLED).
    pub waiting: BTreeMap<SeedKey, i64>,
    /// The first so many seeds that may have a free point, in the order of [`place`](super::place).
    pub offers: BTreeMap<(SeedKey, Near), usize>,
    /// Which instance serves the ranks of these.
    pub sources: BTreeSet<String>,
    /// When a place of these was last promised to a reader by reports of how fast bytes come.
    pub moves: BTreeSet<SeedKey>,
    /// All seeds of these hosts, whose leases are bounded together.
    pub hosts: BTreeSet<String>,
    /// How many seeds and requests are these clients'.
    pub clients: BTreeSet<IpAddr>,
    /// Of a key one seed that is live, else one that is suspect, if there is one beside those that were loaded. None that
    /// nobody may read from yet.
    pub witnesses: BTreeSet<SeedKey>,
}

impl Wants {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
