//! Which seed a worker is sent to.
//!
//! The problem: given some seeds of one key and what they are doing, choose one point, so that readers spread
//! over seeds and no seed is asked for more than its capacity. Hard conditions first (a point must be free),
//! then a score, read from top to bottom, whose last part makes the choice deterministic.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use rfork_protocol::SeedIdentity;

use super::chain::{self, Asker, Loading, Offer, Reader, Stalled};
use super::location::{Distance, Location};

/// How seeds are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The instance that serves the worker's other ranks first, then the nearest, then the largest share of free
    /// points, then the least recently allocated.
    #[default]
    Balanced,
    /// The least recent heartbeat first, then the identity.
    Fifo,
    /// The least recently allocated first, then the identity.
    Lru,
}

impl Policy {
    /// All of them, by their names in settings.
    pub const NAMES: [(&'static str, Self); 3] =
        [("balanced", Self::Balanced), ("fifo", Self::Fifo), ("lru", Self::Lru)];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(_, policy)| policy == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

/// A policy that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be balanced, fifo or lru, got '{0}'")]
pub struct UnknownPolicy(String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let named = Self::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        named.map(|(_, policy)| *policy).ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// What a worker wishes beside a key. The default wishes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// Where it stands: nearer seeds are better.
    pub location: Location,
    /// The inference instance that it is a rank of.
    pub instance_id: Option<String>,
    /// The instance that served other ranks of its own: better than others, so that one model comes from one.
    pub source_instance: Option<String>,
    /// Seeds that it does not want.
    pub exclude: Vec<SeedIdentity>,
    /// Who it is, for people: nothing is chosen by it.
    pub requester: Option<String>,
    /// Who asks, as its share is counted: of requests, and of seeds if it comes to be one that loads.
    pub client: Option<IpAddr>,
    /// Whose worker it is, by its principal's name: nothing is chosen by it.
    pub by: Option<Arc<str>>,
    /// What it would be as a loading seed, if it can read from one.
    pub loading: Option<Box<Asker>>,
    /// The same as it stands at the choice; without it no loading seed is granted.
    pub reader: Option<Box<Reader>>,
}

impl Wish {
    /// A planner has asked the source that this one calls lost for its health; or, some time later, that says nothing any
    /// more.
    pub fn asked_whether_lost(&mut self, unanswered: bool) {
        if let Some(stalled) = self.loading.as_mut().and_then(|asker| asker.stalled.as_mut()) {
            stalled.unanswered = unanswered;
        }
    }

    /// The source that this one calls lost.
    pub fn lost(&self) -> Option<&Stalled> {
        self.loading.as_ref()?.stalled.as_ref().filter(|stalled| stalled.lost)
    }

    /// The seeds that say who a reader is: itself, and the source that brings it no byte.
    pub fn named(&self) -> impl Iterator<Item = &SeedIdentity> {
        let asker = self.loading.as_deref();
        let stalled = asker.and_then(|asker| asker.stalled.as_ref()).map(|stalled| &stalled.identity);
        asker.map(|asker| &asker.identity).into_iter().chain(stalled)
    }
}

/// A seed that might serve: live, of the key that was asked for, neither drained nor suspect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The store's number of it.
    pub id: i64,
    /// Where it is.
    pub identity: SeedIdentity,
    /// How many points it offers.
    pub capacity: u32,
    /// The numbers of the points that are free, each below `capacity`.
    pub free_points: Vec<u32>,
    /// When a point of it was last allocated, Unix milliseconds.
    pub last_used_ms: i64,
    /// When it was last heard of, Unix milliseconds.
    pub last_heartbeat_ms: i64,
    /// Where it stands.
    pub location: Location,
    /// The inference instance that it is a rank of.
    pub instance_id: Option<String>,
    /// Its host, if what all seeds of that may lend together is bounded.
    pub capped_host: Option<String>,
    /// What names its bytes, as far as that is known.
    pub root: Option<String>,
    /// What named them before they had a content id, if they had none once.
    pub origin: Option<String>,
    /// What is known of it while it loads; `None` for a complete seed.
    pub loading: Option<Loading>,
    /// Whether its bytes are none that its key is pinned to.
    pub barred: bool,
    /// The point that a loading seed has beyond its capacity, if it is free: for readers whose source stalls.
    pub reserve: Option<u32>,
}

impl Candidate {
    /// Whether somebody reads from it.
    fn has_readers(&self) -> bool {
        u32::try_from(self.free_points.len()).is_ok_and(|free| free < self.capacity)
    }

    /// The point that a worker would get.
    fn point(&self, wish: &Wish) -> Option<u32> {
        let stalls = wish.reader.as_ref().is_some_and(|reader| reader.is_believed);
        self.free_points.iter().min().copied().or(self.reserve.filter(|_| stalls))
    }

    fn may_be_read_by(&self, reader: Option<&Reader>) -> bool {
        let (root, origin, loading) = (self.root.as_deref(), self.origin.as_deref(), self.loading.as_ref());
        match reader {
            None => loading.is_none(),
            // It would take a part of what the chain gets that has overtaken it.
            Some(reader) if reader.was_moved && !reader.is_believed && self.has_readers() => false,
            Some(reader) => {
                chain::may_read(reader, Offer { identity: &self.identity, root, origin, loading })
            }
        }
    }
}

/// Leases that seeds of a host may still be given together, by host. A host that is not there has none.
pub type HostRoom = HashMap<String, u32>;

/// What is compared, most important first; the least wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    /// Those that nobody reads from first, for who passes on what it reads: so workers become a chain and not a star.
    has_readers: bool,
    /// Ranks of the instance that serves this one's first. Only `balanced`.
    other_instance: bool,
    /// Nearer first. Only `balanced`.
    distance: Distance,
    /// Complete ones first, of the others those that are nearer to one and then those that hold more. Only `balanced`.
    to_load: Option<(u32, Reverse<u64>)>,
    /// Larger free shares first, in parts of 2^32. Only `balanced`.
    free_share: Reverse<u64>,
    /// Longer silent first. Only `fifo`.
    last_heartbeat_ms: i64,
    /// Longer unused first. Not `fifo`.
    last_used_ms: i64,
    /// Decides between equals.
    name: Name<'a>,
}

/// An identity in the order of its text, which is spelt only where all before it is equal.
#[derive(PartialEq, Eq)]
struct Name<'a>(&'a SeedIdentity);

impl Ord for Name<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.to_string().cmp(&other.0.to_string())
    }
}

impl PartialOrd for Name<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn score<'a>(policy: Policy, candidate: &'a Candidate, wish: &Wish) -> Score<'a> {
    let balanced = policy == Policy::Balanced;
    let free_share = (candidate.free_points.len() as u64) << 32;
    let free_share = free_share / u64::from(candidate.capacity.max(1));
    let to_load = candidate.loading.as_ref().map(|loading| (loading.depth, Reverse(loading.held_share())));
    Score {
        has_readers: wish.reader.is_some() && candidate.has_readers(),
        other_instance: balanced
            && wish.source_instance.is_some()
            && wish.source_instance != candidate.instance_id,
        distance: if balanced { wish.location.distance(&candidate.location) } else { Distance::Far },
        to_load: to_load.filter(|_| balanced),
        free_share: Reverse(if balanced { free_share } else { 0 }),
        last_heartbeat_ms: if policy == Policy::Fifo { candidate.last_heartbeat_ms } else { 0 },
        last_used_ms: if policy == Policy::Fifo { 0 } else { candidate.last_used_ms },
        name: Name(&candidate.identity),
    }
}

/// Why a candidate cannot be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// All its points are leased.
    Full,
    /// Its host lends as much as it may.
    HostFull,
    /// The worker does not want it.
    Excluded,
    /// Its bytes are none that its key is pinned to.
    Barred,
    /// It still loads, and the worker cannot read from such; or it is no source for this one.
    NoSource,
}

/// What keeps a candidate from being chosen, if anything.
pub fn obstacle(candidate: &Candidate, wish: &Wish, hosts: &HostRoom) -> Option<Obstacle> {
    if candidate.barred {
        Some(Obstacle::Barred)
    } else if wish.exclude.contains(&candidate.identity) {
        Some(Obstacle::Excluded)
    } else if !candidate.may_be_read_by(wish.reader.as_deref()) {
        Some(Obstacle::NoSource)
    } else if candidate.point(wish).is_none() {
        Some(Obstacle::Full)
    } else if candidate.capped_host.as_ref().is_some_and(|host| hosts.get(host).is_none_or(|room| *room == 0))
    {
        Some(Obstacle::HostFull)
    } else {
        None
    }
}

/// The places of those candidates that can be chosen.
fn free<'a>(
    candidates: &'a [Candidate],
    wish: &'a Wish,
    hosts: &'a HostRoom,
) -> impl Iterator<Item = usize> + use<'a> {
    let can_be = move |at: &usize| obstacle(&candidates[*at], wish, hosts).is_none();
    (0..candidates.len()).filter(can_be)
}

/// The candidates that can be chosen, as places in `candidates`, best first.
pub fn rank(policy: Policy, candidates: &[Candidate], wish: &Wish, hosts: &HostRoom) -> Vec<usize> {
    let mut ranked: Vec<usize> = free(candidates, wish, hosts).collect();
    ranked.sort_by(|a, b| score(policy, &candidates[*a], wish).cmp(&score(policy, &candidates[*b], wish)));
    ranked
}

/// Chooses the best candidate that can be chosen: its place in `candidates`, and its first free point.
pub fn choose(
    policy: Policy,
    candidates: &[Candidate],
    wish: &Wish,
    hosts: &HostRoom,
) -> Option<(usize, u32)> {
    let at = free(candidates, wish, hosts).min_by_key(|at| score(policy, &candidates[*at], wish))?;
    candidates[at].point(wish).map(|point| (at, point))
}

/// Chooses and takes: the chosen point is no longer free in `candidates` and `hosts`, and its seed was used at
/// `now_ms`, so that the next of several workers that ask together is sent elsewhere. Gives the candidate's
/// place and the point.
pub fn take(
    policy: Policy,
    candidates: &mut [Candidate],
    wish: &Wish,
    hosts: &mut HostRoom,
    now_ms: i64,
) -> Option<(usize, u32)> {
    let (at, point) = choose(policy, candidates, wish, hosts)?;
    let chosen = &mut candidates[at];
    chosen.free_points.retain(|free| *free != point);
    chosen.reserve = chosen.reserve.filter(|reserve| *reserve != point);
    chosen.last_used_ms = now_ms;
    if let Some(room) = chosen.capped_host.as_ref().and_then(|host| hosts.get_mut(host)) {
        *room = room.saturating_sub(1);
    }
    Some((at, point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: i64, capacity: u32, free: u32, last_used_ms: i64, last_heartbeat_ms: i64) -> Candidate {
        Candidate {
            id,
            identity: SeedIdentity::new(format!("10.0.0.{id}"), 8000, 0).unwrap(),
            capacity,
            free_points: (0..free).collect(),
            last_used_ms,
            last_heartbeat_ms,
            location: Location::default(),
            instance_id: None,
            capped_host: None,
            root: None,
            origin: None,
            loading: None,
            barred: false,
            reserve: None,
        }
    }

    fn chosen(policy: Policy, candidates: &[Candidate]) -> Option<i64> {
        choose(policy, candidates, &Wish::default(), &HostRoom::new()).map(|(at, _)| candidates[at].id)
    }

    #[test]
    fn balanced_keeps_an_instance_together_then_goes_near_then_spreads() {
        let zone = |name: &str| Location { zone: Some(name.into()), ..Location::default() };
        let seeds = [
            Candidate { location: zone("far"), instance_id: Some("i".into()), ..candidate(1, 4, 1, 9, 0) },
            Candidate { location: zone("near"), ..candidate(2, 4, 2, 9, 0) },
            Candidate { location: zone("near"), ..candidate(3, 4, 3, 9, 0) },
            Candidate { location: zone("far"), ..candidate(4, 4, 4, 0, 0) },
        ];
        let best = |policy, wish: &Wish| {
            let ranked = rank(policy, &seeds, wish, &HostRoom::new());
            ranked.into_iter().map(|at| seeds[at].id).collect::<Vec<_>>()
        };
        let mut wish = Wish { location: zone("near"), ..Wish::default() };
        assert_eq!(best(Policy::Balanced, &wish), [3, 2, 4, 1]);
        wish.source_instance = Some("i".into());
        assert_eq!(best(Policy::Balanced, &wish), [1, 3, 2, 4]);
        wish.exclude = vec![seeds[0].identity.clone()];
        assert_eq!(best(Policy::Balanced, &wish), [3, 2, 4]);
        assert_eq!(
            best(Policy::Lru, &Wish { exclude: Vec::new(), ..wish }),
            [4, 1, 2, 3],
            "as the protocol has it"
        );
    }

    #[test]
    fn seeds_of_one_host_share_its_room() {
        let on = |id, host: &str| Candidate { capped_host: Some(host.into()), ..candidate(id, 2, 2, 0, 0) };
        let mut seeds = [on(1, "a"), on(2, "a"), on(3, "b")];
        let mut hosts = HostRoom::from([("a".to_owned(), 3), ("b".to_owned(), 0)]);
        let mut taken = Vec::new();
        while let Some((at, _)) = take(Policy::Balanced, &mut seeds, &Wish::default(), &mut hosts, 1) {
            taken.push(seeds[at].id);
        }
        assert_eq!(taken, [1, 2, 1], "three of the four points of a, none of b");
        assert_eq!(obstacle(&seeds[2], &Wish::default(), &hosts), Some(Obstacle::HostFull));
    }

    #[test]
    fn each_policy_has_its_order() {
        let seeds = [
            candidate(1, 4, 2, 10, 50), // half free, long unused
            candidate(2, 2, 2, 30, 40), // all free
            candidate(3, 2, 2, 20, 60), // all free, longer unused
        ];
        assert_eq!(chosen(Policy::Balanced, &seeds), Some(3));
        assert_eq!(chosen(Policy::Lru, &seeds), Some(1));
        assert_eq!(chosen(Policy::Fifo, &seeds), Some(2));
        let equal = [candidate(2, 1, 1, 0, 0), candidate(1, 1, 1, 0, 0)];
        for (_, policy) in Policy::NAMES {
            assert_eq!(chosen(policy, &equal), Some(1), "{policy}: the identity decides");
        }
    }

    #[test]
    fn names_are_read_back() {
        for (name, policy) in Policy::NAMES {
            assert_eq!(name.parse(), Ok(policy));
            assert_eq!(policy.to_string(), name);
        }
        assert!("FIFO".parse::<Policy>().is_ok());
        assert_eq!("x".parse::<Policy>().unwrap_err().to_string(), "must be balanced, fifo or lru, got 'x'");
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (1u32..5, 0u32..6, 0i64..5, 0i64..5);
        prop::collection::vec(one, 0..8).prop_map(|seeds| {
            let numbered = seeds.into_iter().enumerate();
            numbered
                .map(|(id, (capacity, free, used, beat))| {
                    candidate(i64::try_from(id).unwrap(), capacity, free.min(capacity), used, beat)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_free_point_is_always_found_and_nothing_else(candidates in candidates(), policy in 0usize..3) {
            let policy = Policy::NAMES[policy].1;
            match choose(policy, &candidates, &Wish::default(), &HostRoom::new()) {
                None => prop_assert!(candidates.iter().all(|candidate| candidate.free_points.is_empty())),
                Some((at, point)) => {
                    prop_assert!(candidates[at].free_points.contains(&point));
                    prop_assert!(point < candidates[at].capacity);
                }
            }
        }

        #[test]
        fn the_chosen_one_is_the_first_of_all_in_their_order(candidates in candidates(), policy in 0usize..3) {
            let policy = Policy::NAMES[policy].1;
            let first = rank(policy, &candidates, &Wish::default(), &HostRoom::new()).first().copied();
            prop_assert_eq!(chosen(policy, &candidates), first.map(|at| candidates[at].id));
        }

        #[test]
        fn the_order_of_candidates_does_not_matter(candidates in candidates(), policy in 0usize..3, by in 0usize..8) {
            let policy = Policy::NAMES[policy].1;
            let mut rotated = candidates.clone();
            if !rotated.is_empty() { let by = by % rotated.len(); rotated.rotate_left(by); }
            prop_assert_eq!(chosen(policy, &candidates), chosen(policy, &rotated));
        }

        #[test]
        fn taking_hands_out_every_free_point_once(mut candidates in candidates(), policy in 0usize..3) {
            let policy = Policy::NAMES[policy].1;
            let free: usize = candidates.iter().map(|candidate| candidate.free_points.len()).sum();
            let mut taken = std::collections::HashSet::new();
            let mut hosts = HostRoom::new();
            while let Some(point) = take(policy, &mut candidates, &Wish::default(), &mut hosts, 100) {
                prop_assert!(taken.insert(point), "{point:?} was handed out twice");
            }
            prop_assert_eq!(taken.len(), free);
        }
    }
}
