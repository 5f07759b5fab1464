//! Which seed a worker is sent to.
//!
//! The problem: given some seeds of one key and what they are doing, choose one point, so that readers spread
//! over seeds and no seed is asked for more than its capacity. Hard conditions first (a point must be free),
//! then a score, read from top to bottom, whose last part makes the choice deterministic.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

/// How seeds are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The largest share of free points first, then the least recently allocated.
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

/// A seed that might serve: live, of the key that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The store's number of it.
    pub id: i64,
    /// `host:port:rank`.
    pub identity: String,
    /// How many points it offers.
    pub capacity: u32,
    /// The numbers of the points that are free, each below `capacity`.
    pub free_points: Vec<u32>,
    /// When a point of it was last allocated, Unix milliseconds.
    pub last_used_ms: i64,
    /// When it was last heard of, Unix milliseconds.
    pub last_heartbeat_ms: i64,
}

/// What is compared, most important first; the least wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    /// Larger free shares first, in parts of 2^32. Only `balanced`.
    free_share: Reverse<u64>,
    /// Longer silent first. Only `fifo`.
    last_heartbeat_ms: i64,
    /// Longer unused first. Not `fifo`.
    last_used_ms: i64,
    /// Decides between equals.
    identity: &'a str,
}

fn score(policy: Policy, candidate: &Candidate) -> Score<'_> {
    let free_share = (candidate.free_points.len() as u64) << 32;
    let free_share = free_share / u64::from(candidate.capacity.max(1));
    Score {
        free_share: Reverse(if policy == Policy::Balanced { free_share } else { 0 }),
        last_heartbeat_ms: if policy == Policy::Fifo { candidate.last_heartbeat_ms } else { 0 },
        last_used_ms: if policy == Policy::Fifo { 0 } else { candidate.last_used_ms },
        identity: &candidate.identity,
    }
}

/// Chooses the best candidate that has a free point: its place in `candidates`, and the point.
pub fn choose(policy: Policy, candidates: &[Candidate]) -> Option<(usize, u32)> {
    let free = candidates.iter().enumerate().filter(|(_, candidate)| !candidate.free_points.is_empty());
    let (at, best) = free.min_by(|(_, a), (_, b)| score(policy, a).cmp(&score(policy, b)))?;
    best.free_points.iter().min().map(|point| (at, *point))
}

/// Chooses and takes: the chosen point is no longer free in `candidates` and its seed was used at `now_ms`, so
/// that the next of several workers that ask together is sent elsewhere.
pub fn take(policy: Policy, candidates: &mut [Candidate], now_ms: i64) -> Option<(i64, u32)> {
    let (at, point) = choose(policy, candidates)?;
    let chosen = &mut candidates[at];
    chosen.free_points.retain(|free| *free != point);
    chosen.last_used_ms = now_ms;
    Some((chosen.id, point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: i64, capacity: u32, free: u32, last_used_ms: i64, last_heartbeat_ms: i64) -> Candidate {
        Candidate {
            id,
            identity: format!("10.0.0.{id}:8000:0"),
            capacity,
            free_points: (0..free).collect(),
            last_used_ms,
            last_heartbeat_ms,
        }
    }

    fn chosen(policy: Policy, candidates: &[Candidate]) -> Option<i64> {
        choose(policy, candidates).map(|(at, _)| candidates[at].id)
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
            match choose(policy, &candidates) {
                None => prop_assert!(candidates.iter().all(|candidate| candidate.free_points.is_empty())),
                Some((at, point)) => {
                    prop_assert!(candidates[at].free_points.contains(&point));
                    prop_assert!(point < candidates[at].capacity);
                }
            }
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
            while let Some(point) = take(policy, &mut candidates, 100) {
                prop_assert!(taken.insert(point), "{point:?} was handed out twice");
            }
            prop_assert_eq!(taken.len(), free);
        }
    }
}
