//! Where a seed stands in the order of offers, and until when. It says where to look, and never decides: what is
//! chosen is chosen by the leases.

use super::rows::SeedRow;
use super::wants::Near;
use crate::domain::chain::{self, Loading};
use crate::domain::policy::Policy;
use crate::domain::seed::Profile;
use crate::store::Rules;

/// What seeds of a host lend together, where that is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostUse {
    /// Whether it may lend no more.
    pub full: bool,
    /// When the first of its leases ends; `None` when it has none.
    pub first_end_ms: Option<i64>,
}

impl HostUse {
    /// Of all seeds of a host.
    pub fn of<'a>(seeds: impl Iterator<Item = &'a SeedRow> + Clone, now: i64) -> Self {
        let ends = seeds.clone().flat_map(|row| &row.leases).filter(|lease| lease.lives(now));
        Self { full: host_room(seeds, now) == 0, first_end_ms: ends.map(|lease| lease.ends_ms).min() }
    }
}

/// Leases that the seeds of a host may still be given together.
pub fn host_room<'a>(seeds: impl Iterator<Item = &'a SeedRow> + Clone, now: i64) -> u32 {
    let capacity = seeds.clone().filter_map(|row| row.terms.host_capacity).min().unwrap_or(0);
    capacity.saturating_sub(seeds.map(|row| row.live_leases(now)).sum())
}

/// A seed's place among those of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The least comes first, equals by their names; `None` when it has no free point or is not offered.
    pub rank: Option<(u64, i64)>,
    /// Among which it is looked for, if it is.
    pub among: Among,
    /// When it may have another place by itself, because a lease or a suspicion ends.
    pub due_ms: Option<i64>,
}

/// Seeds that are looked for together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Among {
    /// Complete ones.
    #[default]
    Complete,
    /// Complete ones that nobody reads from, where the order does not have them first.
    Idle,
    /// Those that still load.
    Loading,
    /// The same that nobody reads from, where the order does not have them first.
    LoadingIdle,
    /// The same when no point of theirs is free but the one for readers whose source stalls.
    Reserve,
}

impl Among {
    /// Where a seed is looked for that told this. Only `balanced` looks at places and instances.
    pub fn nears(self, told: &Profile, policy: Policy) -> impl Iterator<Item = Near> {
        let loads = matches!(self, Self::Loading | Self::LoadingIdle);
        let near = (policy == Policy::Balanced && self != Self::Reserve).then(|| Near::of(told));
        let all = std::iter::once(Near::Anywhere).filter(move |_| self != Self::Reserve);
        let whole = match self {
            Self::Complete | Self::Loading => None,
            Self::Idle | Self::LoadingIdle => Some(Near::Idle),
            Self::Reserve => Some(Near::Reserve),
        };
        let all = all.chain(near.into_iter().flatten()).chain(whole);
        all.map(move |near| if loads { near.loading() } else { near })
    }
}

/// The place of a seed at `now`; `host` where its host's leases are bounded.
pub fn place(row: &SeedRow, now: i64, rules: &Rules, host: Option<HostUse>) -> Place {
    let busy = super::rows::count(row.offered_leases(now));
    let has_room = busy < row.terms.capacity;
    let is_idle = busy == 0 && rules.policy != Policy::Balanced;
    let among = match &row.loading {
        None if is_idle => Among::Idle,
        None => Among::Complete,
        Some(_) if is_idle => Among::LoadingIdle,
        Some(_) if has_room => Among::Loading,
        Some(_) => Among::Reserve,
    };
    let is_offered = !row.removed
        && !row.drained
        && !row.health.is_suspect(now)
        && !row.is_silent(now, rules)
        && !row.is_leaf()
        && (has_room || row.free_reserve(now).is_some())
        && row
            .loading
            .as_ref()
            .is_none_or(|loading| loading.may_be_read() && loading.depth < rules.max_chain_depth)
        && host.is_none_or(|host| !host.full);
    // Those on points that may be lent again.
    let last = row.terms.capacity.saturating_add(row.loading.is_some().into());
    let ends =
        row.leases.iter().filter(|lease| lease.point < last && lease.lives(now)).map(|lease| lease.ends_ms);
    let suspicion = row.health.is_suspect(now).then_some(row.health.suspect_until_ms);
    Place {
        among: if is_offered { among } else { Among::default() },
        rank: is_offered.then(|| order(row, busy, rules.policy)),
        due_ms: ends.chain(suspicion).chain(host.and_then(|host| host.first_end_ms)).min(),
    }
}

/// Fine enough to tell any two busy shares apart.
const WHOLE: u64 = 1 << 40;

fn order(row: &SeedRow, busy: u32, policy: Policy) -> (u64, i64) {
    if let Some(loading) = &row.loading {
        return order_of_loading(row, loading, busy, policy);
    }
    match policy {
        Policy::Balanced => (u64::from(busy) * WHOLE / u64::from(row.terms.capacity.max(1)), row.used_ms),
        Policy::Lru => (0, row.used_ms),
        Policy::Fifo => (0, row.heard_ms),
    }
}

/// For `balanced` those that nobody reads from first; then the nearest to a complete seed, and those that hold more:
/// a bit, 16 for the depth, 17 for the share that is not held, and 29 for the busy share. A signed number holds it, too.
fn order_of_loading(row: &SeedRow, loading: &Loading, busy: u32, policy: Policy) -> (u64, i64) {
    match policy {
        Policy::Balanced => {
            let has_readers = u64::from(busy > 0) << 62;
            let depth = u64::from(loading.depth.min(u16::MAX.into())) << 46;
            let lacks = chain::SHARES.saturating_sub(loading.held_share()) << 29;
            let busy = (u64::from(busy) << 29) / u64::from(row.terms.capacity.max(1));
            (has_readers | depth | lacks | busy.min((1 << 29) - 1), row.used_ms)
        }
        Policy::Lru => (0, row.used_ms),
        Policy::Fifo => (0, row.heard_ms),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seed, held, rules, seed};
    use super::*;
    use crate::domain::seed::State;

    #[test]
    fn a_host_lends_as_much_as_the_least_of_its_bounds() {
        let on_host = |number: u8, host_capacity, leases: u32| {
            let mut row = seed(number, 4);
            row.terms.host_capacity = Some(host_capacity);
            row.leases =
                (0..leases).map(|point| held(point, u32::from(number) * 10 + point, NOW + 7)).collect();
            row
        };
        let seeds = [on_host(1, 3, 1), on_host(2, 4, 1)];
        assert_eq!(host_room(seeds.iter(), NOW), 1);
        assert_eq!(host_room(seeds.iter(), NOW + 7), 3, "they have ended");
        let host = HostUse::of(seeds.iter(), NOW);
        assert_eq!(host, HostUse { full: false, first_end_ms: Some(NOW + 7) });
        let full = HostUse { full: true, ..host };
        let at = place(&seed(3, 1), NOW, &rules(Policy::Balanced), Some(full));
        assert_eq!(at, Place { due_ms: Some(NOW + 7), ..Place::default() });
    }

    proptest! {
        #[test]
        fn a_seed_has_a_rank_exactly_while_it_may_be_chosen(row in any_seed(1), policy in 0usize..3) {
            let rules = rules(Policy::NAMES[policy].1);
            let at = place(&row, NOW, &rules, None);
            let is_free = row.state(NOW, &rules) == State::Live && !row.free_points(NOW).is_empty();
            prop_assert_eq!(at.rank.is_some(), is_free);
        }

        #[test]
        fn a_place_is_the_same_until_it_is_due(row in any_seed(1), later in 1i64..6) {
            let rules = rules(Policy::Balanced);
            let row = SeedRow { heard_ms: NOW, ..row };
            let at = place(&row, NOW, &rules, None);
            prop_assert!(at.due_ms.is_none_or(|due_ms| due_ms > NOW));
            if at.due_ms.is_none_or(|due_ms| NOW + later < due_ms) {
                prop_assert_eq!(place(&row, NOW + later, &rules, None), at);
            }
        }

        #[test]
        fn the_less_busy_comes_first(capacities in (1u32..5, 1u32..5), busy in (0u32..5, 0u32..5)) {
            let with = |number, capacity: u32, busy: u32| {
                let busy = busy.min(capacity - 1);
                let leases = (0..busy).map(|point| held(point, point, NOW + 1)).collect();
                (SeedRow { leases, ..seed(number, capacity) }, u64::from(busy))
            };
            let (a, a_busy) = with(1, capacities.0, busy.0);
            let (b, b_busy) = with(2, capacities.1, busy.1);
            let rank = |row: &SeedRow| place(row, NOW, &rules(Policy::Balanced), None).rank.unwrap();
            let shares = (a_busy * u64::from(capacities.1)).cmp(&(b_busy * u64::from(capacities.0)));
            prop_assert_eq!(rank(&a).cmp(&rank(&b)), shares);
        }
    }
}
