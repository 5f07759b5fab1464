//! Lists and counts for people, from the mirror.

use std::ops::Bound;
use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::mirror::{Mirror, OfKey};
use crate::decide::place::host_room;
use crate::decide::rows::SeedRow;
use crate::domain::seed::State;
use crate::store::list::{
    KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter, Times, lease_place,
};
use crate::store::{Counts, LeaseView, MAX_SNAPSHOT, Rules, SeedView, Snapshot, Tally};

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
        let most = usize::try_from(MAX_SNAPSHOT).unwrap_or(usize::MAX);
        let seeds = self.shown(now, rules).take(most).map(|row| SeedView {
            identity: row.name.to_string(),
            key: SeedKey::clone(&row.key),
            capacity: row.terms.capacity,
            used: row.live_leases(now),
            last_heartbeat_ms: row.heard_ms,
            last_used_ms: row.used_ms,
            draining: row.removed || row.drained || row.is_silent(now, rules),
            suspect_until_ms: row.health.suspect_until_ms,
            failures: row.health.failures,
            profile: row.profile.as_ref().clone(),
        });
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
            seeds: seeds.collect(),
            leases: leases.take(most).collect(),
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
            after.as_deref().is_none_or(|after| *row.name > *after)
                && row.is_shown(now, rules)
                && filter
                    .model_url
                    .as_ref()
                    .is_none_or(|url| row.profile.labels.model_url.as_ref() == Some(url))
                && filter.host.as_ref().is_none_or(|host| row.identity.host() == host)
                && filter.state.is_none_or(|state| row.state(now, rules) == state)
        };
        let entries = rows.filter(fits).take(rows_of(part)).map(|row| self.seed_entry(row, now, rules));
        Page::of(entries.collect(), part.limit, |seed: &SeedEntry| seed.identity.to_string().into_bytes())
    }

    fn seed_entry(&self, row: &SeedRow, now: i64, rules: &Rules) -> SeedEntry {
        let host_room = row.capped_host().map(|host| {
            let beside = self.hosts.get(host).into_iter().flatten();
            let rows = beside.filter_map(|id| self.seeds.get(id)).map(|seed| seed.row.as_ref());
            (host.to_owned(), host_room(rows, now))
        });
        let entry = SeedEntry {
            identity: row.identity.clone(),
            key: SeedKey::clone(&row.key),
            state: row.state(now, rules),
            capacity: row.terms.capacity,
            used: row.live_leases(now),
            free: u32::try_from(row.free_points(now).len()).unwrap_or(u32::MAX),
            quiet_ms: 0,
            unused_ms: None,
            suspect_ms: None,
            failures: row.health.failures,
            profile: row.profile.as_ref().clone(),
            host_room,
        };
        let times = Times {
            heard_ms: row.heard_ms,
            used_ms: row.used_ms,
            suspect_until_ms: row.health.suspect_until_ms,
        };
        entry.aged(now, &times)
    }

    pub(super) fn list_leases(&self, now: i64, filter: &LeaseFilter, part: &Part) -> Page<LeaseEntry> {
        let (after, after_point) = lease_place(part);
        let seed = filter.seed.as_ref().map(ToString::to_string);
        let rows = self.by_name(filter.key.as_ref(), after.clone());
        let rows = rows.filter(|row| seed.as_ref().is_none_or(|seed| *row.name == **seed));
        let entries = rows.flat_map(|row| {
            let is_first = *row.name == *after;
            let live = row.leases.iter().filter(|lease| lease.lives(now));
            live.filter(move |lease| !is_first || i64::from(lease.point) > after_point).map(|lease| {
                LeaseEntry {
                    lease: lease.lease,
                    point: lease.point,
                    identity: row.identity.clone(),
                    key: SeedKey::clone(&row.key),
                    ttl_ms: lease.ends_ms.saturating_sub(now),
                    age_ms: now.saturating_sub(lease.granted_ms).max(0),
                }
            })
        });
        Page::of(entries.take(rows_of(part)).collect(), part.limit, LeaseEntry::place)
    }

    pub(super) fn list_keys(&self, now: i64, rules: &Rules, part: &Part) -> Page<KeyEntry> {
        let after = part.after.as_deref().unwrap_or_default();
        let keys = match SeedKey::new(after) {
            Ok(after) => self.keys.range((Bound::Excluded(Arc::new(after)), Bound::Unbounded)),
            Err(_) => self.keys.range::<Arc<SeedKey>, _>(..),
        };
        let entries = keys.filter_map(|(key, of_key)| self.key_entry(now, rules, key, of_key));
        Page::of(entries.take(rows_of(part)).collect(), part.limit, |entry| entry.key.as_bytes().to_vec())
    }

    fn key_entry(&self, now: i64, rules: &Rules, key: &SeedKey, of_key: &OfKey) -> Option<KeyEntry> {
        let rows = of_key.seeds.values().filter_map(|id| Some(&self.seeds.get(id)?.row));
        let counts = counts(rows.filter(|row| row.is_shown(now, rules)), now, rules);
        let Counts { live, suspect, draining, silent } = counts;
        let all = [live, suspect, draining, silent];
        let waits = |id: &&i64| {
            self.requests.get(id).and_then(|row| row.waits_until_ms).is_some_and(|until_ms| until_ms > now)
        };
        (all.iter().map(|tally| tally.seeds).sum::<u64>() > 0).then(|| KeyEntry {
            key: key.clone(),
            live: live.seeds,
            suspect: suspect.seeds,
            draining: draining.seeds,
            silent: silent.seeds,
            capacity: live.capacity,
            used: all.iter().map(|tally| tally.leases).sum(),
            waiting: of_key.waiting.iter().filter(waits).count() as u64,
        })
    }

    pub(super) fn counts(&self, now: i64, rules: &Rules) -> Counts {
        let rows = self.seeds.values().map(|seed| &seed.row);
        counts(rows.filter(|row| row.is_shown(now, rules)), now, rules)
    }
}

fn rows_of(part: &Part) -> usize {
    usize::try_from(part.rows()).unwrap_or(usize::MAX)
}

fn counts<'a>(rows: impl Iterator<Item = &'a Arc<SeedRow>>, now: i64, rules: &Rules) -> Counts {
    let mut counts = Counts::default();
    for row in rows {
        let tally: &mut Tally = match row.state(now, rules) {
            State::Live => &mut counts.live,
            State::Suspect => &mut counts.suspect,
            State::Draining => &mut counts.draining,
            State::Silent => &mut counts.silent,
        };
        tally.seeds += 1;
        tally.capacity += u64::from(row.terms.capacity);
        tally.leases += u64::from(row.live_leases(now));
    }
    counts
}
