//! What it means that an operator takes a seed out, or all seeds of a key whose weights were replaced.

use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::remember;
use super::rows::SeedRow;
use super::tables::Tables;
use crate::store::Rules;
use crate::store::commands::Drain;
use crate::store::history::{EventKind, Happened};

/// Takes a seed out that goes on: it is not offered while its memory is the same, and its leases live on. Gives how
/// many it has; `None` when it is not known under the key.
pub(super) fn drain(tables: &mut Tables, now: i64, rules: &Rules, command: &Drain) -> Option<u32> {
    let Drain { identity, key, by } = command;
    let row = tables.seed_at(identity).filter(|row| *row.key == *key)?.clone();
    let leases = row.live_leases(now);
    if !row.drained {
        tables.change(row.id, |row| row.drained = true);
        let happened = Happened::to(identity, key, EventKind::Drained).by(by.as_ref()).leaving(leases);
        remember::event(tables, now, rules, happened);
    }
    Some(leases)
}

/// Whether a seed is to be taken out when its key holds the content `keep` from now on.
pub fn is_outdated(row: &SeedRow, keep: Option<&str>) -> bool {
    !row.drained && keep.is_none_or(|keep| row.root() != Some(keep))
}

/// Takes out those of the key that were put and are outdated; gives how many.
pub fn invalidate(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    key: &SeedKey,
    keep: Option<&str>,
    by: Option<&Arc<str>>,
) -> u64 {
    let outdated: Vec<i64> =
        tables.seeds_of(key).filter(|row| is_outdated(row, keep)).map(|row| row.id).collect();
    for id in &outdated {
        tables.change(*id, |row| row.drained = true);
    }
    let drained = outdated.len() as u64;
    if drained > 0 {
        remember::event(tables, now, rules, Happened::invalidated(key, drained).by(by));
    }
    drained
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, held, identity, key, rules, seed, tables};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::domain::seed::Profile;

    #[test]
    fn a_seed_is_taken_out_once_and_under_its_key_alone() {
        let row = SeedRow { leases: vec![held(0, 1, NOW + 1), held(1, 2, NOW)], ..seed(1, 2) };
        let mut tables = tables(&[row]);
        let rules = rules(Policy::Balanced);
        let of = |name| Drain { by: None, identity: identity(1), key: key(name) };
        assert_eq!(drain(&mut tables, NOW, &rules, &of("l")), None);
        assert_eq!(drain(&mut tables, NOW, &rules, &of("k")), Some(1), "one of them has ended");
        assert_eq!(drain(&mut tables, NOW, &rules, &of("k")), Some(1));
        assert_eq!(tables.into_changes().events.len(), 1);
    }

    #[test]
    fn only_other_content_than_what_stays_is_outdated() {
        let with = |content: Option<&str>| {
            let content_id = content.map(str::to_owned);
            SeedRow { profile: Arc::new(Profile { content_id, ..Profile::default() }), ..seed(1, 1) }
        };
        assert!(is_outdated(&with(None), Some("new")), "nobody knows what it holds");
        assert!(is_outdated(&with(Some("old")), Some("new")));
        assert!(!is_outdated(&with(Some("new")), Some("new")));
        assert!(is_outdated(&with(Some("new")), None));
        assert!(!is_outdated(&SeedRow { drained: true, ..with(None) }, None), "it is out already");
    }
}
