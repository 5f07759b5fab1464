//! Lists and counts for people, from the mirror.

use std::ops::Bound;
use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::mirror::{Mirror, OfKey};
use crate::decide::place::host_room;
use crate::decide::rows::SeedRow;
use crate::store::list::{
    KeyEntry, LeaseEntry, LeaseFilter, LoadingEntry, Page, Part, SeedEntry, SeedFilter, lease_place,
};
use crate::store::views::shown;
use crate::store::{Counts, LeaseView, Rules, SeedView, Snapshot, Tally};

impl Mirror {
    fn shown(&self, now: i64, rules: &Rules) -> impl Iterator<Item = &Arc<SeedRow>> {
        self.by_name(None, String::new()).filter(move |row| row.is_shown(now, rules))
    }

    /// Seeds by name, from one on, of a key or of all.
    fn by_name(&self, key: Option<&SeedKey>, from: String) -> impl Iterator<Item = &Arc<SeedRow>> {
        let names = match key {
            None => Some(&self.names),
            Some(key) => self.keys.get(key).map(|key| &key.seeds),
        };
        let range = (Bound::Included(Arc::<str>::from(from)), Bound::Unbounded);
        let ids = names.into_iter().flat_map(move |names| names.range(range.clone())).map(|(_, id)| id);
        ids.filter_map(|id| Some(&self.seeds.get(id)?.row))
    }

    pub(super) fn snapshot(&self, now: i64, rules: &Rules) -> Snapshot {
        let seeds = self.shown(now, rules).map(|row| SeedView::of(row, now, rules));
        let leases = self.by_name(None, String::new()).flat_map(|row| {
            let live = row.leases.iter().filter(|lease| lease.lives(now));
            live.map(|lease| LeaseView {
                lease: lease.lease,
                seed_identity: row.name.to_string(),
                seed_key: SeedKey::clone(&row.key),
            })
        });
        Snapshot {
            ahead_ms: 0,
            seed_count: self.shown(now, rules).count() as u64,
            lease_count: self.seeds.values().map(|seed| u64::from(seed.row.live_leases(now))).sum(),
            seeds: shown(seeds),
            leases: shown(leases),
        }
    }

    pub(super) fn list_seeds(
        &self,
        now: i64,
        rules: &Rules,
        filter: &SeedFilter,
        part: &Part,
    ) -> Page<SeedEntry> {
        let after = part.after_text();
        let rows = self.by_name(filter.key.as_ref(), after.clone().unwrap_or_default());
        let fits = |row: &&Arc<SeedRow>| {
            after.as_deref().is_none_or(|after| *row.name > *after) && filter.fits(row, now, rules)
        };
        let entries = rows.filter(fits).map(|row| self.seed_entry(row, now, rules));
        Page::of(entries, part.limit, |seed: &SeedEntry| seed.identity.to_string().into_bytes())
    }

    fn seed_entry(&self, row: &SeedRow, now: i64, rules: &Rules) -> SeedEntry {
        let host_room = row.capped_host().map(|host| {
            let beside = self.hosts.get(host).into_iter().flatten();
            let rows = beside.filter_map(|id| self.seeds.get(id)).map(|seed| seed.row.as_ref());
            (host.to_owned(), host_room(rows, now))
        });
        let mut entry = SeedEntry::of(row, now, rules, host_room);
        entry.loading = row.loading.as_deref().map(|loading| {
            let source = loading.source.and_then(|source| self.seeds.get(&source));
            LoadingEntry { loading: loading.clone(), source: source.map(|seed| seed.row.identity.clone()) }
        });
        entry
    }

    pub(super) fn list_leases(&self, now: i64, filter: &LeaseFilter, part: &Part) -> Page<LeaseEntry> {
        let (after, after_point) = lease_place(part);
        let seed = filter.seed.as_ref().map(ToString::to_string);
        let rows = self.by_name(filter.key.as_ref(), after.clone());
        let rows = rows.filter(|row| seed.as_ref().is_none_or(|seed| *row.name == **seed));
        let entries = rows.flat_map(|row| {
            let is_first = *row.name == *after;
            let live = row.leases.iter().filter(|lease| lease.lives(now));
            live.filter(move |lease| !is_first || i64::from(lease.point) > after_point)
                .map(|lease| LeaseEntry::of(row, lease, now))
        });
        Page::of(entries, part.limit, LeaseEntry::place)
    }

    pub(super) fn list_keys(&self, now: i64, rules: &Rules, part: &Part) -> Page<KeyEntry> {
        let after = part.after.as_deref().unwrap_or_default();
        let keys = match SeedKey::new(after) {
            Ok(after) => self.keys.range((Bound::Excluded(Arc::new(after)), Bound::Unbounded)),
            Err(_) => self.keys.range::<Arc<SeedKey>, _>(..),
        };
        let entries = keys.filter_map(|(key, of_key)| self.key_entry(now, rules, key, of_key));
        Page::of(entries, part.limit, |entry| entry.key.as_bytes().to_vec())
    }

    fn key_entry(&self, now: i64, rules: &Rules, key: &SeedKey, of_key: &OfKey) -> Option<KeyEntry> {
        let rows = of_key.seeds.values().filter_map(|id| Some(&self.seeds.get(id)?.row));
        let counts = counts(rows.filter(|row| row.is_shown(now, rules)), now, rules);
        let waits = |id: &&i64| {
            self.requests.get(id).and_then(|row| row.waits_until_ms).is_some_and(|until_ms| until_ms > now)
        };
        KeyEntry::of(key, &counts, of_key.waiting.iter().filter(waits).count() as u64)
    }

    pub(super) fn counts(&self, now: i64, rules: &Rules) -> Counts {
        let rows = self.seeds.values().map(|seed| &seed.row);
        counts(rows.filter(|row| row.is_shown(now, rules)), now, rules)
    }
}

fn counts<'a>(rows: impl Iterator<Item = &'a Arc<SeedRow>>, now: i64, rules: &Rules) -> Counts {
    let mut counts = Counts::default();
    for row in rows {
        counts.add(
            row.state(now, rules),
            Tally { seeds: 1, capacity: row.terms.capacity.into(), leases: row.live_leases(now).into() },
        );
    }
    counts
}
