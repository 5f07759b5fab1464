//! Why a seed would or would not be granted, for people: the same decisions as [`policy`] takes, told one by one.

use super::policy::{self, Candidate, HostRoom, Obstacle, Policy, Wish};
use super::seed::State;

/// What keeps a seed from being granted, or how good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It could be granted; its place among those that could, from 0.
    Ranked(usize),
    /// The policy cannot choose it.
    Obstacle(Obstacle),
    /// It is not offered at all, being in this state.
    NotOffered(State),
}

/// Judges every seed; gives their places in `seeds`, those that could be granted first and best first, the others
/// in the order of their identities.
pub fn explain(
    policy: Policy,
    seeds: &[(Candidate, State)],
    wish: &Wish,
    hosts: &HostRoom,
) -> Vec<(usize, Verdict)> {
    let offered: Vec<usize> = (0..seeds.len()).filter(|at| seeds[*at].1 == State::Live).collect();
    let candidates: Vec<Candidate> = offered.iter().map(|at| seeds[*at].0.clone()).collect();
    let ranked = policy::rank(policy, &candidates, wish, hosts);
    let mut verdicts: Vec<(usize, Verdict)> =
        ranked.into_iter().enumerate().map(|(rank, at)| (offered[at], Verdict::Ranked(rank))).collect();
    let mut others: Vec<(usize, Verdict)> = seeds
        .iter()
        .enumerate()
        .filter_map(|(at, (candidate, state))| match state {
            State::Live => Some((at, Verdict::Obstacle(policy::obstacle(candidate, wish, hosts)?))),
            state => Some((at, Verdict::NotOffered(*state))),
        })
        .collect();
    others.sort_by_key(|(at, _)| seeds[*at].0.identity.to_string());
    verdicts.extend(others);
    verdicts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rfork_protocol::SeedIdentity;

    use super::*;
    use crate::domain::location::Location;

    fn seeds() -> impl Strategy<Value = Vec<(Candidate, State)>> {
        let one = (0u32..3, 0i64..3, 0u8..4, prop::option::of(0u8..2));
        prop::collection::vec(one, 0..8).prop_map(|seeds| {
            let numbered = seeds.into_iter().zip(1u16..);
            numbered
                .map(|((free, last_used_ms, state, host), port)| {
                    let candidate = Candidate {
                        id: port.into(),
                        identity: SeedIdentity::new("h", port, 0).unwrap(),
                        capacity: 2,
                        free_points: (0..free).collect(),
                        last_used_ms,
                        last_heartbeat_ms: 0,
                        location: Location::default(),
                        instance_id: None,
                        capped_host: host.map(|host| host.to_string()),
                        root: None,
                        origin: None,
                        loading: None,
                        barred: false,
                        reserve: None,
                    };
                    (
                        candidate,
                        [State::Live, State::Suspect, State::Draining, State::Silent][usize::from(state)],
                    )
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_seed_has_one_verdict_and_the_first_is_the_choice(seeds in seeds(), room in 0u32..2) {
            let hosts = HostRoom::from([("0".to_owned(), 0), ("1".to_owned(), room)]);
            let wish = Wish { exclude: seeds.iter().take(1).map(|(seed, _)| seed.identity.clone()).collect(), ..Wish::default() };
            let verdicts = explain(Policy::Balanced, &seeds, &wish, &hosts);
            let mut places: Vec<usize> = verdicts.iter().map(|(at, _)| *at).collect();
            places.sort_unstable();
            prop_assert_eq!(places, (0..seeds.len()).collect::<Vec<_>>());
            let live: Vec<Candidate> =
                seeds.iter().filter(|(_, state)| *state == State::Live).map(|(seed, _)| seed.clone()).collect();
            let choice = policy::choose(Policy::Balanced, &live, &wish, &hosts).map(|(at, _)| live[at].id);
            let first = verdicts.first().filter(|(_, verdict)| *verdict == Verdict::Ranked(0));
            prop_assert_eq!(choice, first.map(|(at, _)| seeds[*at].0.id));
        }
    }
}
