//! What the tests of the rules share: rows, and a store that is a plain list of them.

use std::sync::Arc;

use proptest::prelude::*;
use rfork_protocol::{SeedIdentity, SeedKey};

use super::place::{HostUse, place};
use super::rows::{LeaseRow, RequestRow, SeedRow};
use super::{Batch, Decision, Tables, Wants};
use crate::domain::health::Health;
use crate::domain::owner::Owner;
use crate::domain::policy::Policy;
use crate::domain::seed::{Profile, State};
use crate::domain::terms::Terms;
use crate::store::commands::Commands;
use crate::store::conformance::{self, RULES};
use crate::store::{Idempotency, LeaseHash, PLANNER_TTL_MS, Room, Rules};

/// What time it is.
pub(super) const NOW: i64 = 1_000_000;

pub(super) fn key(name: &str) -> SeedKey {
    conformance::key(name)
}

pub(super) fn identity(number: u8) -> SeedIdentity {
    conformance::identity(number)
}

pub(super) fn lease(number: u32) -> LeaseHash {
    conformance::lease(number)
}

pub(super) fn rules(policy: Policy) -> Rules {
    Rules { policy, ..RULES }
}

/// A live seed with no lease.
pub(super) fn seed(number: u8, capacity: u32) -> SeedRow {
    let identity = identity(number);
    SeedRow {
        id: i64::from(number) + 1,
        name: identity.to_string().into(),
        identity,
        key: Arc::new(key("k")),
        profile: Arc::new(Profile::default()),
        client: None,
        owner: Owner::default(),
        terms: Terms { capacity, lease_ttl_ms: RULES.lease_ttl_ms, host_capacity: None },
        removed: false,
        drained: false,
        loading: None,
        health: Health::default(),
        answered_ms: 0,
        used_ms: 0,
        heard_ms: NOW,
        leases: Vec::new(),
    }
}

pub(super) fn held(point: u32, number: u32, ends_ms: i64) -> LeaseRow {
    LeaseRow { point, lease: lease(number), granted_ms: 0, ends_ms, requester: None, reader: None }
}

prop_compose! {
    /// A seed in any state, with leases that live and leases that are over.
    pub(super) fn any_seed(number: u8)(
        capacity in 1u32..4,
        ends in prop::collection::btree_map(0u32..5, -3i64..3, 0..5),
        (removed, drained) in (prop::bool::weighted(0.2), prop::bool::weighted(0.2)),
        suspect_ms in prop_oneof![3 => Just(0i64), 1 => -2i64..3],
        quiet_ms in prop_oneof![3 => 0i64..3, 1 => RULES.heartbeat_ttl_ms - 1..RULES.heartbeat_ttl_ms + 2],
        used_ms in 0i64..4,
        instance in prop::option::of(0u8..2),
    ) -> SeedRow {
        let numbered = ends.into_iter().map(|(point, left_ms)| {
            held(point, u32::from(number) * 100 + point, NOW + left_ms)
        });
        let instance_id = instance.map(|instance| format!("instance-{instance}"));
        SeedRow {
            profile: Arc::new(Profile { instance_id, ..Profile::default() }),
            removed,
            drained,
            health: Health { failures: 1, suspect_until_ms: if suspect_ms == 0 { 0 } else { NOW + suspect_ms } },
            heard_ms: NOW - quiet_ms,
            used_ms,
            leases: numbered.collect(),
            ..seed(number, capacity)
        }
    }
}

/// Up to six seeds of one key.
pub(super) fn any_seeds() -> impl Strategy<Value = Vec<SeedRow>> {
    (any_seed(0), any_seed(1), any_seed(2), any_seed(3), any_seed(4), 0usize..6)
        .prop_map(|(a, b, c, d, e, most)| [a, b, c, d, e].into_iter().take(most).collect())
}

prop_compose! {
    /// A request of the key `k` that waits, or waited, or was granted; of the planner `mine`, which answers, or of another
    /// one, which does not, or of none.
    fn any_request(number: u8)(
        may_be_repeated in any::<bool>(),
        attempt in 0i64..3,
        planner in prop::option::weighted(0.8, prop_oneof![3 => Just("mine"), 1 => Just("other")]),
        left_ms in prop::option::weighted(0.7, prop_oneof![1 => -1i64..1, 4 => 1i64..3]),
    ) -> RequestRow {
        let idempotency = may_be_repeated.then_some(Idempotency { key: [number; 32], request: [1; 32] });
        RequestRow {
            id: i64::from(number) + 1,
            key: Arc::new(key("k")),
            // Some have a lease on one of `any_seeds`.
            lease: lease(u32::from(number)),
            idempotency,
            attempt,
            wish: Arc::default(),
            planner: planner.map(Into::into),
            waits_until_ms: left_ms.map(|left_ms| NOW + left_ms),
            changed_ms: NOW - 1,
        }
    }
}

/// Up to five requests, in the order in which they came.
pub(super) fn any_requests() -> impl Strategy<Value = Vec<RequestRow>> {
    (any_request(0), any_request(1), any_request(2), any_request(3), any_request(4), 0usize..6)
        .prop_map(|(a, b, c, d, e, most)| [a, b, c, d, e].into_iter().take(most).collect())
}

/// Tables in which these were put.
pub(super) fn tables(seeds: &[SeedRow]) -> Tables {
    let mut tables = Tables::new(1_000, 1_000, Room::AMPLE);
    for row in seeds {
        tables.put_seed(Arc::new(row.clone()));
    }
    tables
}

/// Decides over a list of seeds, with pages that are as short as may be.
pub(super) fn decide(seeds: &[SeedRow], commands: &Commands, rules: &Rules) -> Decision {
    decide_with(seeds, &[], commands, rules)
}

/// The same, with requests.
pub(super) fn decide_with(
    seeds: &[SeedRow],
    requests: &[RequestRow],
    commands: &Commands,
    rules: &Rules,
) -> Decision {
    let mut wants = Batch::first_wants(commands, rules);
    wants.offers.values_mut().for_each(|limit| *limit = 1);
    let mut tables = Tables::new(1_000, 1_000, Room::AMPLE);
    answer((seeds, requests), &wants, &mut tables, rules);
    let planner = "planner".into();
    let mut batch = Batch::new(commands, rules, &planner, NOW, tables);
    loop {
        let wants = batch.decide();
        if wants.is_empty() {
            return batch.finish();
        }
        answer((seeds, requests), &wants, batch.tables(), rules);
    }
}

fn answer((seeds, requests): (&[SeedRow], &[RequestRow]), wants: &Wants, tables: &mut Tables, rules: &Rules) {
    let put = |tables: &mut Tables, fits: &dyn Fn(&SeedRow) -> bool| {
        for row in seeds.iter().filter(|row| fits(row)) {
            tables.put_seed(Arc::new(row.clone()));
        }
    };
    put(tables, &|row| wants.identities.contains(&row.identity));
    put(tables, &|row| wants.numbers.contains(&row.id));
    put(tables, &|row| row.leases.iter().any(|lease| wants.leases.contains(&lease.lease)));
    let read_by = seeds.iter().flat_map(|row| &row.leases);
    let readers: Vec<i64> = read_by
        .filter(|lease| wants.readers.contains(&lease.lease))
        .filter_map(|lease| lease.reader)
        .collect();
    put(tables, &|row| readers.contains(&row.id));
    put(tables, &|row| row.leads() && wants.leaders.contains(row.key.as_ref()));
    for (key, after) in &wants.waiting {
        let waiting = requests.iter().filter(|row| row.waits_until_ms.is_some() && row.id > *after);
        let rows: Vec<_> = waiting.clone().take(1).cloned().map(Arc::new).collect();
        tables.put_waiting(key, rows, waiting.count() > 1);
        tables.put_planner(&"mine".into(), NOW + PLANNER_TTL_MS);
        tables.put_planner(&"other".into(), NOW);
    }
    for ((key, near), limit) in &wants.offers {
        let of_host = |host: &str| {
            let beside = seeds.iter().filter(|row| row.capped_host() == Some(host));
            HostUse::of(beside, NOW)
        };
        let ranked = |row: &SeedRow| {
            let at = place(row, NOW, rules, row.capped_host().map(of_host));
            at.rank.filter(|_| at.among.nears(&row.profile, rules.policy).any(|known| known == *near))
        };
        let mut offered: Vec<_> = seeds
            .iter()
            .filter(|row| *row.key == *key)
            .filter_map(|row| Some((ranked(row)?, row.name.clone(), Arc::new(row.clone()))))
            .collect();
        offered.sort_by_key(|(rank, name, _)| (*rank, name.clone()));
        let complete = offered.len() <= *limit;
        let page = offered.into_iter().take(*limit).map(|(.., row)| row).collect();
        tables.put_offer(key, near, *limit, page, complete);
    }
    for instance in &wants.sources {
        tables.put_source(instance, None);
    }
    for key in &wants.moves {
        tables.put_move(key, 0);
    }
    for host in &wants.hosts {
        put(tables, &|row| row.capped_host() == Some(host));
        tables.put_host(host);
    }
    for key in &wants.witnesses {
        for state in [State::Live, State::Suspect] {
            put(tables, &|row| *row.key == *key && row.state(NOW, rules) == state);
        }
        tables.put_witness(key);
    }
}
