//! Who may read storage: the right to lead. Of those who would read the weights of a key from storage one does, and the
//! others wait for it: it will be a seed.
//!
//! The right is a registration as a loading seed without a source, and ends with it: it is renewed by asking again, and
//! given back by deregistering, by reading from a seed, or by having loaded everything. Who lost it loads for itself, and
//! is no source of anybody who does not know it already. So does who is loaded sooner that way than by waiting.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::rows::SeedRow;
use super::tables::Tables;
use super::{end, remember};
use crate::domain::chain::{Held, Lead, Loading};
use crate::domain::pace::{MOVE_PAUSE_MS, Pace};
use crate::domain::seed::{self, Joining};
use crate::store::Rules;
use crate::store::commands::{Claim, Claimed, Role};
use crate::store::history::{EventKind, Happened};

/// What comes to a holder of the right counts as progress up to so many copies of the model: it may have begun anew.
const MAX_COPIES: u64 = 4;

/// Decides who leads, of all who ask. Who has the right comes first, then whoever holds most: it has least to read.
pub(super) fn lead(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    claims: &[Claim],
    period_ms: i64,
) -> Vec<Claimed> {
    let order = |claim: &Claim| {
        let has_it = tables.seed_at(&claim.identity).is_some_and(|row| row.leads());
        (!has_it, Reverse(claim.held.as_ref().map_or(0, |held| held.bytes)))
    };
    let mut turns: Vec<(usize, &Claim)> = claims.iter().enumerate().collect();
    turns.sort_by_key(|(_, claim)| order(claim));
    let claimed = turns.into_iter().map(|(at, claim)| {
        let role = one(tables, now, rules, claim, period_ms);
        let leader = match &role {
            Role::Waits(leader) => tables.seed_at(leader),
            Role::Leads | Role::Alone => None,
        };
        let root = leader.and_then(|leader| leader.root()).map(str::to_owned);
        (at, Claimed { role, root, renew_after_ms: period_ms })
    });
    // Back in the order of the claims.
    claimed.collect::<BTreeMap<_, _>>().into_values().collect()
}

fn one(tables: &mut Tables, now: i64, rules: &Rules, claim: &Claim, period_ms: i64) -> Role {
    let row = tables.seed_at(&claim.identity).cloned();
    let known = row.as_ref().map(|row| row.known(now, rules));
    let joining = seed::join(known.as_ref(), &claim.key, &claim.profile, &claim.owner);
    let own = row.as_ref().filter(|_| joining == Joining::Repeated);
    // Under another incarnation, too: it has loaded, and others wait until it serves.
    let had_it = row.as_ref().is_some_and(|row| row.leads() && *row.key == claim.key);
    // Whoever had the address before has ended.
    let another = |holder: &&Arc<SeedRow>| holder.identity != claim.identity;
    let holder = tables.leader(&claim.key).filter(another).cloned();
    if let Some(holder) = holder.as_ref().filter(|holder| keeps(holder, now, claim.patience_ms)) {
        if let Some(own) = own {
            tell(tables, now, own.id, claim, period_ms, false);
        }
        if claim.held.as_ref().is_some_and(|held| is_outrun_by(tables, now, holder, held)) {
            let why = format!("reads storage beside {}, which has more to read", holder.identity);
            let happened = Happened::to(&claim.identity, &claim.key, EventKind::Leads).by(claim.by.as_ref());
            remember::event(tables, now, rules, happened.with(why));
            return Role::Alone;
        }
        return Role::Waits(holder.identity.clone());
    }
    let id = match (joining, row) {
        (Joining::Refused, _) => return Role::Alone,
        (Joining::Repeated, Some(row)) => row.id,
        (_, row) => {
            if tables.room_for_seed(&claim.key, claim.client, rules).is_err() {
                return Role::Alone;
            }
            if let Some(row) = row {
                // Other memory: nothing of what it was remains, its leases included.
                end::seed(tables, now, rules, row.id);
            }
            let profile = claim.profile.as_ref().clone();
            let whose = (claim.client, &claim.owner);
            tables.insert_seed((&claim.identity, &claim.key), profile, now, whose, rules)
        }
    };
    if !had_it {
        let happened = Happened::to(&claim.identity, &claim.key, EventKind::Leads).by(claim.by.as_ref());
        let why = holder.as_ref().map_or_else(|| "reads storage".into(), |holder| take(tables, now, holder));
        remember::event(tables, now, rules, happened.with(why));
    }
    tables.own(id, &claim.owner);
    tell(tables, now, id, claim, period_ms, true);
    Role::Leads
}

/// Whether others wait for a holder of the right.
fn keeps(holder: &SeedRow, now: i64, patience_ms: i64) -> bool {
    let lead = holder.loading.as_ref().and_then(|loading| loading.lead);
    !holder.removed && !holder.drained && lead.is_some_and(|lead| lead.holds_for(now, patience_ms))
}

/// Whether somebody with these bytes need not wait for the holder, of whose bytes something is known. One a second: the next
/// one goes by what they get then.
fn is_outrun_by(tables: &mut Tables, now: i64, holder: &SeedRow, held: &Held) -> bool {
    let outruns = |loading: &Loading| loading.root.is_some() && loading.is_outrun_by(held);
    let is_due = |loading: &Loading| {
        let last_ms = loading.pace.yielded_ms;
        last_ms == 0 || now.saturating_sub(last_ms) >= MOVE_PAUSE_MS
    };
    if !holder.loading.as_deref().is_some_and(|loading| outruns(loading) && is_due(loading)) {
        return false;
    }
    tables.change(holder.id, |row| {
        if let Some(loading) = &mut row.loading {
            loading.pace.yielded_ms = now;
        }
    });
    true
}

/// Takes the right from who had it; gives why, for people.
fn take(tables: &mut Tables, now: i64, holder: &Arc<SeedRow>) -> String {
    let lead = tables.change(holder.id, |row| {
        let loading = row.loading.as_mut()?;
        loading.forget_origin();
        loading.lead.take()
    });
    let is_late = lead.flatten().is_none_or(|lead| lead.until_ms <= now);
    let why = match (holder.removed || holder.drained, is_late) {
        (true, _) => "was taken out",
        (false, true) => "was not heard of",
        (false, false) => "made no progress",
    };
    format!("reads storage in the place of {}, which {why}", holder.identity)
}

/// Takes in how far who asks is, and whether it leads.
fn tell(tables: &mut Tables, now: i64, id: i64, claim: &Claim, period_ms: i64, leads: bool) {
    tables.change(id, |row| {
        row.heard_ms = row.heard_ms.max(now);
        let mut loading = row.loading.take().map_or_else(
            || Loading {
                source: None,
                depth: 0,
                root: None,
                held_bytes: 0,
                total_bytes: claim.total_bytes,
                arrived_bytes: 0,
                period_ms,
                pace: Pace::default(),
                lead: None,
            },
            |loading| *loading,
        );
        loading.holds(claim.held.as_ref());
        loading.period_ms = period_ms;
        if leads {
            let most = loading.total_bytes.saturating_mul(MAX_COPIES);
            let moves = loading.arrived_bytes < claim.arrived_bytes.min(most);
            loading.lead =
                Some(loading.lead.map_or(Lead::begin(now), |lead| lead.renewed(now, moves, claim.whole)));
            loading.reads_storage(now, claim.arrived_bytes);
            // Who begins with nothing may be read from once it has a name for what it reads.
            // Excluded: it still goes by the root of who it read from before, of which it has nothing.
            if claim.held.is_none() {
                loading.root.clone_from(&claim.origin);
            }
        } else {
            loading.forget_origin();
        }
        row.loading = Some(Box::new(loading));
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::testing::{NOW, identity, key, rules, seed, tables};
    use super::*;
    use crate::domain::chain::{Held, LEAD_TTL_MS, PERIOD_MS};
    use crate::domain::owner::Owner;
    use crate::domain::policy::Policy;
    use crate::domain::seed::Profile;

    fn profile(memory: u8) -> Profile {
        Profile { incarnation: Some(memory.to_string()), ..Profile::default() }
    }

    prop_compose! {
        /// A loading seed in any state, which may have the right. Of several rows the first that has it keeps it.
        fn any_loading(number: u8)(
            (removed, drained) in (prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
            source in prop::option::of(0i64..6),
            held_bytes in 0u64..3,
            arrived_bytes in 0u64..3,
            lead in prop::option::weighted(0.6, (-2i64..LEAD_TTL_MS + 2, 0i64..4)),
            quiet_ms in 0i64..12_000,
        ) -> SeedRow {
            let lead = lead.map(|(left_ms, still_ms)| Lead { until_ms: NOW + left_ms, moved_ms: NOW - still_ms, since_ms: 0 });
            let loading = Loading {
                source, depth: 1, root: Some("x".into()), held_bytes, total_bytes: 9, arrived_bytes,
                period_ms: PERIOD_MS, pace: Pace::default(), lead,
            };
            SeedRow {
                removed, drained,
                profile: Arc::new(profile(0)),
                loading: Some(Box::new(loading)),
                heard_ms: NOW - quiet_ms,
                ..seed(number, 1)
            }
        }
    }

    prop_compose! {
        fn any_rows()(
            rows in (any_loading(0), any_loading(1), any_loading(2)).prop_map(|(a, b, c)| [a, b, c]), most in 0usize..4,
        ) -> Vec<SeedRow> {
            let mut rows: Vec<SeedRow> = rows.into_iter().take(most).collect();
            let mut has_leader = false;
            for row in &mut rows {
                let loading = row.loading.as_mut().unwrap();
                loading.lead = loading.lead.filter(|_| !std::mem::replace(&mut has_leader, true));
                if loading.lead.is_some() {
                    loading.source = None;
                }
            }
            rows
        }
    }

    prop_compose! {
        fn any_claim()(
            number in 0u8..4, memory in 0u8..2, arrived_bytes in 0u64..40, held in prop::option::of(1u64..4), patience_ms in 0i64..6,
        ) -> Claim {
            Claim {
                by: None,
                owner: Owner::default(),
                identity: identity(number),
                key: key("k"),
                profile: Box::new(profile(memory)),
                client: None,
                total_bytes: 9,
                arrived_bytes,
                held: held.map(|bytes| Held { root: "x".into(), bytes }),
                origin: None,
                whole: false,
                patience_ms,
            }
        }
    }

    proptest! {
        #[test]
        fn one_at_most_leads_and_whoever_waits_is_told_for_whom(
            rows in any_rows(), mut claims in prop::collection::vec(any_claim(), 0..4),
        ) {
            // Of two memories at one address the later one is there.
            let mut addresses = HashSet::new();
            claims.retain(|claim| addresses.insert(claim.identity.clone()));
            let rules = rules(Policy::Balanced);
            let mut tables = tables(&rows);
            let claimed = lead(&mut tables, NOW, &rules, &claims, PERIOD_MS);
            prop_assert_eq!(claimed.len(), claims.len());
            let leaders: Vec<_> = tables.seeds().filter(|row| row.leads()).cloned().collect();
            prop_assert!(leaders.len() <= 1, "{leaders:?}");
            let leads = |claimed: &&Claimed| claimed.role == Role::Leads;
            for (claim, one) in claims.iter().zip(&claimed) {
                match &one.role {
                    Role::Leads => {
                        let row = tables.seed_at(&claim.identity).expect("it is registered");
                        let loading = row.loading.as_ref().expect("it loads");
                        prop_assert_eq!((loading.source, loading.depth, row.heard_ms), (None, 0, NOW));
                        prop_assert!(!row.removed && !row.drained);
                    }
                    Role::Waits(leader) => {
                        prop_assert_ne!(leader, &claim.identity);
                        let row = tables.seed_at(leader).expect("who leads is there");
                        prop_assert!(!row.removed && !row.drained);
                    }
                    Role::Alone => {
                        let row = tables.seed_at(&claim.identity).expect("there is room");
                        prop_assert!(row.removed || row.drained);
                    }
                }
            }
            // Without anybody who was there and keeps it, and without impatience, one of them has it.
            let is_kept = rows.iter().any(SeedRow::leads);
            let is_new = |claim: &Claim| rows.iter().all(|row| row.identity != claim.identity);
            if !is_kept && !claims.is_empty() && claims.iter().all(is_new) {
                prop_assert_eq!(leaders.len(), 1);
                let first = claimed.iter().zip(&claims).filter(|(one, _)| leads(one)).map(|(_, claim)| claim);
                let bytes = |claim: &Claim| claim.held.as_ref().map_or(0, |held| held.bytes);
                prop_assert!(first.map(bytes).max() == claims.iter().map(bytes).max(), "who holds most comes first");
            }
        }

        #[test]
        fn who_renews_and_makes_progress_keeps_the_right(
            mut row in any_loading(0), more in 1u64..4, others in prop::collection::vec(any_claim(), 0..3),
        ) {
            let rules = rules(Policy::Balanced);
            (row.removed, row.drained) = (false, false);
            let loading = row.loading.as_mut().unwrap();
            loading.lead = Some(Lead { until_ms: NOW - 5, moved_ms: NOW - 60_000, since_ms: 0 });
            let arrived_bytes = loading.arrived_bytes + more;
            let own = Claim {
                identity: identity(0), profile: Box::new(profile(0)), arrived_bytes, patience_ms: 1, ..any_own()
            };
            let patient = |claim: Claim| Claim { patience_ms: claim.patience_ms + 1, ..claim };
            let mut claims: Vec<Claim> = others.into_iter().map(patient).filter(|claim| claim.identity != identity(0)).collect();
            claims.push(own);
            let claimed = lead(&mut tables(&[row]), NOW, &rules, &claims, PERIOD_MS);
            let (last, others) = claimed.split_last().unwrap();
            prop_assert_eq!(&last.role, &Role::Leads);
            prop_assert!(others.iter().all(|one| one.role == Role::Waits(identity(0))));
        }
    }

    fn any_own() -> Claim {
        Claim {
            by: None,
            owner: Owner::default(),
            identity: identity(0),
            key: key("k"),
            profile: Box::default(),
            client: None,
            total_bytes: 9,
            arrived_bytes: 0,
            held: None,
            origin: None,
            whole: false,
            patience_ms: 1,
        }
    }
}
