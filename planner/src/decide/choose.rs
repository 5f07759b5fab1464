//! Which seed a worker gets: the policy's choice among the seeds that an index offers and those that this batch has
//! changed. It is the choice from all seeds of the key: a page of the index in which none is left that this batch has
//! not touched is loaded again, longer.

use std::collections::HashMap;
use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::place::host_room;
use super::remember;
use super::rows::{LeaseRow, SeedRow};
use super::tables::Tables;
use super::wants::{Near, Wants};
use crate::domain::location::Location;
use crate::domain::policy::{self, Candidate, HostRoom, Policy, Wish};
use crate::domain::seed::State;
use crate::store::history::End;
use crate::store::{LeaseHash, Rules};

/// The least that a page is made longer to.
const PAGE: usize = 64;

/// Seeds of a key that may be chosen, as they are after what was chosen before.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    all: Vec<Candidate>,
    at: HashMap<i64, usize>,
}

impl Candidates {
    /// Takes in what was loaded since.
    pub(super) fn learn(
        &mut self,
        tables: &Tables,
        now: i64,
        rules: &Rules,
        key: &SeedKey,
        hosts: &mut HostRoom,
    ) {
        for row in tables.seeds_of(key) {
            if let Some(host) = row.capped_host().filter(|host| tables.hosts.contains(*host)) {
                hosts.entry(host.to_owned()).or_insert_with(|| {
                    let beside = tables.seeds().filter(|row| row.capped_host() == Some(host));
                    host_room(beside.map(AsRef::as_ref), now)
                });
            }
            if self.at.contains_key(&row.id) || row.state(now, rules) != State::Live {
                continue;
            }
            self.put(row, now, rules);
        }
    }

    /// A seed is there now, or has changed.
    fn put(&mut self, row: &SeedRow, now: i64, rules: &Rules) {
        let candidate = candidate(row, now, rules);
        if let Some(at) = self.at.get(&row.id) {
            self.all[*at] = candidate;
        } else {
            self.at.insert(row.id, self.all.len());
            self.all.push(candidate);
        }
    }

    /// A seed may have changed, come, or gone.
    pub(super) fn see(&mut self, tables: &Tables, now: i64, rules: &Rules, id: i64) {
        match tables.seed(id).filter(|row| row.state(now, rules) == State::Live) {
            Some(row) => self.put(row, now, rules),
            None => self.remove(id),
        }
    }

    /// A seed is there no more.
    fn remove(&mut self, id: i64) {
        if let Some(at) = self.at.get(&id) {
            let candidate = &mut self.all[*at];
            candidate.free_points.clear();
            candidate.reserve = None;
        }
    }

    /// Whether one has a free point.
    pub(super) fn have_room(&self, hosts: &HostRoom) -> bool {
        let nobody = Wish::default();
        self.all.iter().any(|candidate| policy::obstacle(candidate, &nobody, hosts).is_none())
    }

    fn can_be(&self, id: i64, wish: &Wish, hosts: &HostRoom) -> bool {
        let candidate = self.at.get(&id).map(|at| &self.all[*at]);
        candidate.is_some_and(|candidate| policy::obstacle(candidate, wish, hosts).is_none())
    }

    /// Chooses and takes: the seed and its point.
    pub(super) fn take(
        &mut self,
        policy: Policy,
        wish: &Wish,
        hosts: &mut HostRoom,
        now: i64,
    ) -> Option<(i64, u32)> {
        let (at, point) = policy::take(policy, &mut self.all, wish, hosts, now)?;
        Some((self.all[at].id, point))
    }
}

fn candidate(row: &SeedRow, now: i64, rules: &Rules) -> Candidate {
    Candidate {
        id: row.id,
        identity: row.identity.clone(),
        capacity: row.terms.capacity,
        free_points: row.free_points(now),
        last_used_ms: row.used_ms,
        last_heartbeat_ms: row.heard_ms,
        location: row.profile.location.clone(),
        instance_id: row.profile.instance_id.clone(),
        capped_host: row.capped_host().map(str::to_owned),
        root: row.root().map(str::to_owned),
        origin: row.profile.origin.clone(),
        loading: row.loading.as_deref().cloned(),
        barred: row.is_barred(rules),
        reserve: row.free_reserve(now),
    }
}

/// What of loading seeds a worker may be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OfLoading {
    /// Whether any.
    any: bool,
    /// Whether the point that they keep for those whose source stalls.
    reserve: bool,
}

impl OfLoading {
    /// What it asks for.
    pub(super) fn asked(wish: &Wish) -> Self {
        let asker = wish.loading.as_ref();
        Self { any: asker.is_some(), reserve: asker.is_some_and(|asker| asker.stalled.is_some()) }
    }

    /// What it may have.
    fn granted(wish: &Wish) -> Self {
        let reader = wish.reader.as_ref();
        Self { any: reader.is_some(), reserve: reader.is_some_and(|reader| reader.is_believed) }
    }
}

/// The pages among which a worker chooses. Only `balanced` looks at places and instances, and has seeds first that nobody
/// reads from.
pub(super) fn pages(policy: Policy, wish: &Wish, of_loading: OfLoading) -> Vec<Near> {
    let mut pages = vec![Near::Anywhere];
    if policy == Policy::Balanced {
        let Location { zone, rack, host } = &wish.location;
        pages.extend(wish.source_instance.clone().map(Near::Instance));
        pages.extend(host.clone().map(Near::Node));
        pages.extend(rack.clone().map(|rack| Near::Rack(zone.clone(), rack)));
        pages.extend(zone.clone().map(Near::Zone));
    }
    if of_loading.any {
        pages.extend((policy != Policy::Balanced).then_some(Near::Idle));
        pages.extend(pages.clone().into_iter().map(Near::loading));
        pages.extend(of_loading.reserve.then_some(Near::Reserve));
    }
    pages
}

/// Fills in which instance serves the worker's own, as far as that is known; and asks for it where it is not.
pub(super) fn find_source(tables: &Tables, wish: &mut Arc<Wish>, wants: &mut Wants) {
    let Some(instance) = &wish.instance_id else { return };
    match tables.sources.get(instance) {
        None => drop(wants.sources.insert(instance.clone())),
        Some(source) if *source != wish.source_instance => {
            let source = source.clone();
            Arc::make_mut(wish).source_instance = source;
        }
        Some(_) => {}
    }
}

/// Asks for what is needed to choose for a worker, of which there are `workers` in a line, and was not seen yet.
pub(super) fn want(
    tables: &Tables,
    policy: Policy,
    (key, candidates, hosts): (&SeedKey, &Candidates, &HostRoom),
    wish: &Wish,
    workers: usize,
    wants: &mut Wants,
) {
    for near in pages(policy, wish, OfLoading::granted(wish)) {
        let page = tables.offers.get(key).and_then(|pages| pages.get(&near));
        let limit = match page {
            None => (workers + wish.exclude.len()).next_power_of_two(),
            Some(page) if page.complete => continue,
            Some(page) => {
                let can_be = |id: &i64| tables.is_same(*id) && candidates.can_be(*id, wish, hosts);
                if page.seeds.iter().any(can_be) {
                    continue;
                }
                (2 * page.limit).max(PAGE)
            }
        };
        wants.offers.insert((key.clone(), near), limit);
    }
    let capped = candidates.all.iter().filter_map(|candidate| candidate.capped_host.as_ref());
    wants.hosts.extend(capped.filter(|host| !tables.hosts.contains(*host)).cloned());
}

/// Leases a free point of a seed; `reader`: the number of the seed that its holder is while it loads.
pub(super) fn claim(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    (seed, point): (i64, u32),
    (lease, reader): (LeaseHash, Option<i64>),
    wish: &Wish,
) {
    let Some(row) = tables.seed(seed).cloned() else { return };
    let place = row.leases.binary_search_by_key(&point, |lease| lease.point);
    if let Ok(at) = place {
        // It has ended by itself.
        remember::ended(tables, now, rules, (&row, &row.leases[at]), End::Expired.into());
    }
    let claimed = LeaseRow {
        point,
        lease,
        granted_ms: now,
        ends_ms: now.saturating_add(row.lease_ttl_ms(reader.is_some())),
        requester: wish.requester.as_deref().map(Into::into),
        reader,
    };
    tables.change(seed, |row| {
        row.used_ms = now;
        match place {
            Ok(at) => row.leases[at] = claimed,
            Err(at) => row.leases.insert(at, claimed),
        }
    });
    tables.note_lease(lease, seed);
    let Some(instance) = &wish.instance_id else { return };
    let is_known = tables.sources.get(instance).is_some_and(Option::is_some);
    let is_full = tables.room.instances == 0 || tables.room.bytes == 0 || tables.room.stored == 0;
    if is_full && !is_known {
        // It is only a preference, so nobody is refused for it.
        return;
    }
    // The first rank of an instance that is served decides for the others.
    if let Some(source) = wish.source_instance.as_ref().or(row.profile.instance_id.as_ref()) {
        if !is_known {
            tables.room.instances = tables.room.instances.saturating_sub(1);
        }
        tables.sources.insert(instance.clone(), Some(source.clone()));
        tables.changes.sources.insert(instance.clone(), Some(source.clone()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, NOW, any_seeds, identity, key, lease, rules};
    use super::*;
    use crate::store::commands::{Acquire, Acquired, Commands};
    use crate::store::{Grant, Refusal};

    fn ask(number: u32, exclude: Option<u8>, instance: Option<u8>) -> Acquire {
        let wish = Wish {
            exclude: exclude.map(identity).into_iter().collect(),
            instance_id: instance.map(|instance| format!("of-{instance}")),
            ..Wish::default()
        };
        Acquire { key: key("k"), wish: Box::new(wish), lease: lease(10_000 + number), queue: None }
    }

    /// The same, by all seeds and one after the other.
    fn expected(seeds: &[SeedRow], asks: &[Acquire], rules: &Rules) -> Vec<Option<i64>> {
        let live = seeds.iter().filter(|row| row.state(NOW, rules) == State::Live);
        let mut all: Vec<Candidate> = live.map(|row| candidate(row, NOW, rules)).collect();
        let mut sources: HashMap<String, String> = HashMap::new();
        let chosen = asks.iter().map(|ask| {
            let mut wish = ask.wish.as_ref().clone();
            wish.source_instance = wish.instance_id.as_ref().and_then(|id| sources.get(id).cloned());
            let (at, _) = policy::take(rules.policy, &mut all, &wish, &mut HostRoom::new(), NOW)?;
            if let (Some(id), None, Some(source)) =
                (wish.instance_id, wish.source_instance, &all[at].instance_id)
            {
                sources.insert(id, source.clone());
            }
            Some(all[at].id)
        });
        chosen.collect()
    }

    proptest! {
        #[test]
        fn a_choice_from_short_pages_is_the_one_from_all_seeds(
            seeds in any_seeds(),
            asks in prop::collection::vec((prop::option::of(0u8..5), prop::option::weighted(0.3, 0u8..2)), 0..8),
            policy in 0usize..3,
        ) {
            let rules = rules(Policy::NAMES[policy].1);
            let asks = (0..).zip(asks).map(|(number, (exclude, instance))| ask(number, exclude, instance));
            let commands = Commands { acquires: asks.collect(), ..Commands::default() };
            let decision = testing::decide(&seeds, &commands, &rules);
            let granted = decision.outcomes.acquires.iter().map(|answer| match answer {
                Acquired::Granted(Grant { seed_id, .. }) => Some(*seed_id),
                _ => None,
            });
            let granted: Vec<Option<i64>> = granted.collect();
            prop_assert_eq!(&granted, &expected(&seeds, &commands.acquires, &rules));
            // No point is leased twice, and none beyond the capacity.
            for changed in &decision.changes.seeds {
                let (before, after) = (changed.before.as_ref().unwrap(), changed.after.as_ref().unwrap());
                for leases in after.leases.windows(2) {
                    prop_assert!(leases[0].point < leases[1].point);
                }
                for was in before.leases.iter().filter(|lease| lease.lives(NOW)) {
                    prop_assert!(after.leases.contains(was), "a lease that lives is nobody else's");
                }
                let granted = granted.iter().filter(|seed| **seed == Some(after.id)).count();
                let new = after.leases.iter().filter(|lease| !before.leases.contains(lease));
                prop_assert_eq!(new.clone().count(), granted);
                prop_assert!(new.clone().all(|lease| lease.point < after.terms.capacity));
            }
        }

        #[test]
        fn a_refusal_says_why(seeds in any_seeds()) {
            let rules = rules(Policy::Balanced);
            let commands = Commands { acquires: vec![ask(1, None, None)], ..Commands::default() };
            let states: Vec<State> = seeds.iter().map(|row| row.state(NOW, &rules)).collect();
            let expected = if states.contains(&State::Live) {
                Refusal::AllBusy
            } else if states.contains(&State::Suspect) {
                Refusal::AllSuspect
            } else {
                Refusal::UnknownKey
            };
            if let Acquired::Refused(refusal) = testing::decide(&seeds, &commands, &rules).outcomes.acquires[0] {
                prop_assert_eq!(refusal, expected);
            }
        }
    }
}
