//! Lists for people, a page at a time.

use rfork_protocol::{SeedIdentity, SeedKey};

use super::{Counts, LeaseHash, Rules};
use crate::decide::rows::{LeaseRow, SeedRow};
use crate::domain::chain::Loading;
use crate::domain::owner::Owner;
use crate::domain::seed::{Profile, State};

/// The most bytes of a page, about; of one entry that has more it is as many.
pub const MAX_PAGE_BYTES: usize = 1 << 20;
/// What an entry has beside its texts, about, in bytes of an answer.
const ENTRY_BYTES: usize = 384;

/// An entry of a list, or of a snapshot.
pub trait Entry {
    /// About so many bytes of an answer: its texts may have kilobytes.
    fn bytes(&self) -> usize;
}

/// About so many bytes of an answer for an entry with these texts.
pub(super) fn entry_bytes<const N: usize>(key: &SeedKey, texts: [Option<&str>; N]) -> usize {
    ENTRY_BYTES + key.as_bytes().len() + texts.into_iter().flatten().map(str::len).sum::<usize>()
}

/// The first entries, as many as there may be, and of so many bytes at most, but one at least; and whether there are more.
pub(super) fn first<T: Entry>(
    entries: impl IntoIterator<Item = T>,
    most: usize,
    most_bytes: usize,
) -> (Vec<T>, bool) {
    let (mut first, mut bytes) = (Vec::new(), 0_usize);
    for entry in entries {
        bytes = bytes.saturating_add(entry.bytes());
        if first.len() >= most || (bytes > most_bytes && !first.is_empty()) {
            return (first, true);
        }
        first.push(entry);
    }
    (first, false)
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// In the order of the list.
    pub entries: Vec<T>,
    /// What the next page comes after, in the store's own words; `None` when this is the last.
    pub next: Option<Vec<u8>>,
}

impl<T: Entry> Page<T> {
    /// A page of at most `limit` of `entries` and [`MAX_PAGE_BYTES`]. If there is one more, there is a next page, which
    /// comes after the last one here.
    pub(super) fn of(
        entries: impl IntoIterator<Item = T>,
        limit: u32,
        place: impl Fn(&T) -> Vec<u8>,
    ) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (entries, more) = first(entries, limit, MAX_PAGE_BYTES);
        let next = entries.last().filter(|_| more).map(place);
        Self { entries, next }
    }
}

/// Which part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Entries at most.
    pub limit: u32,
    /// [`Page::next`] of the page before.
    pub after: Option<Vec<u8>>,
}

impl Part {
    /// One more than is wanted.
    pub(super) fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The text that the page comes after. One that is not of this list leads somewhere in it, or to its end.
    pub(super) fn after_text(&self) -> Option<String> {
        self.after.as_ref().map(|after| String::from_utf8_lossy(after).into_owned())
    }
}

/// Which seeds; all that is told must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeedFilter {
    /// What they hold.
    pub key: Option<SeedKey>,
    /// The label that names their model.
    pub model_url: Option<String>,
    /// The host of their identity.
    pub host: Option<String>,
    /// What they are to the planner.
    pub state: Option<State>,
}

/// A seed, at the moment of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedEntry {
    /// Where it is.
    pub identity: SeedIdentity,
    /// What it holds.
    pub key: SeedKey,
    /// What it is to the planner.
    pub state: State,
    /// Leases that it may have at once.
    pub capacity: u32,
    /// Leases that it has.
    pub used: u32,
    /// Leases that it may have besides. More than `capacity` less `used` while points are leased that a lowered
    /// capacity offers no more.
    pub free: u32,
    /// How long ago it was last heard of, in milliseconds.
    pub quiet_ms: i64,
    /// How long ago a point of it was last allocated, in milliseconds; `None` for never.
    pub unused_ms: Option<i64>,
    /// How long it is suspect yet, in milliseconds; `None` when it is not.
    pub suspect_ms: Option<i64>,
    /// Failures since it last proved to be well.
    pub failures: u32,
    /// Whether its bytes are none that its key is pinned to.
    pub barred: bool,
    /// What it told of itself.
    pub profile: Profile,
    /// Whose it is.
    pub owner: Owner,
    /// Its host and the leases that seeds of that may still be given together, where that is bounded.
    pub host_room: Option<(String, u32)>,
    /// How far it is, while it loads.
    pub loading: Option<LoadingEntry>,
}

/// A seed that loads, at the moment of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadingEntry {
    /// What is known of it.
    pub loading: Loading,
    /// Where the seed is that it reads from, if that is there.
    pub source: Option<SeedIdentity>,
}

impl SeedEntry {
    /// A seed at `now`, with the room on its host where that is bounded.
    pub(super) fn of(row: &SeedRow, now: i64, rules: &Rules, host_room: Option<(String, u32)>) -> Self {
        let suspect_until_ms = row.health.suspect_until_ms;
        Self {
            identity: row.identity.clone(),
            key: SeedKey::clone(&row.key),
            state: row.state(now, rules),
            capacity: row.terms.capacity,
            used: row.live_leases(now),
            free: u32::try_from(row.free_points(now).len()).unwrap_or(u32::MAX),
            quiet_ms: now.saturating_sub(row.heard_ms).max(0),
            unused_ms: (row.used_ms > 0).then(|| now.saturating_sub(row.used_ms).max(0)),
            suspect_ms: (suspect_until_ms > now).then(|| suspect_until_ms.saturating_sub(now)),
            failures: row.health.failures,
            barred: row.is_barred(rules),
            profile: row.profile.as_ref().clone(),
            owner: row.owner.clone(),
            host_room,
            loading: None,
        }
    }
}

impl Entry for SeedEntry {
    fn bytes(&self) -> usize {
        let owner = self.owner.principal.as_ref().map_or(0, |name| name.len());
        profile_bytes(&self.key, &self.profile) + owner
    }
}

/// The same for what a seed told of itself.
pub(super) fn profile_bytes(key: &SeedKey, profile: &Profile) -> usize {
    let Profile { labels, location, instance_id, incarnation, content_id, origin } = profile;
    let texts = [
        &labels.model_url,
        &labels.deploy_strategy,
        &location.zone,
        &location.rack,
        &location.host,
        instance_id,
        incarnation,
        content_id,
        origin,
    ];
    entry_bytes(key, texts.map(Option::as_deref))
}

impl SeedFilter {
    /// Whether a seed is shown in a list of these.
    pub(super) fn fits(&self, row: &SeedRow, now: i64, rules: &Rules) -> bool {
        row.is_shown(now, rules)
            && self.key.as_ref().is_none_or(|key| *row.key == *key)
            && self.model_url.as_ref().is_none_or(|url| row.profile.labels.model_url.as_ref() == Some(url))
            && self.host.as_ref().is_none_or(|host| row.identity.host() == host)
            && self.state.is_none_or(|state| row.state(now, rules) == state)
    }
}

/// Which leases; all that is told must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseFilter {
    /// What their seeds hold.
    pub key: Option<SeedKey>,
    /// Their seed.
    pub seed: Option<SeedIdentity>,
}

/// A lease that lives, at the moment of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEntry {
    /// The lease's stored hash.
    pub lease: LeaseHash,
    /// Its point.
    pub point: u32,
    /// The seed.
    pub identity: SeedIdentity,
    /// What that holds.
    pub key: SeedKey,
    /// How long it lives yet, in milliseconds.
    pub ttl_ms: i64,
    /// How long ago it was granted, in milliseconds.
    pub age_ms: i64,
}

impl Entry for LeaseEntry {
    fn bytes(&self) -> usize {
        entry_bytes(&self.key, [])
    }
}

impl LeaseEntry {
    /// A lease on a seed, at `now`.
    pub(super) fn of(row: &SeedRow, lease: &LeaseRow, now: i64) -> Self {
        Self {
            lease: lease.lease,
            point: lease.point,
            identity: row.identity.clone(),
            key: SeedKey::clone(&row.key),
            ttl_ms: lease.ends_ms.saturating_sub(now),
            age_ms: now.saturating_sub(lease.granted_ms).max(0),
        }
    }

    /// Its place in the list of leases.
    pub(super) fn place(&self) -> Vec<u8> {
        format!("{} {}", self.identity, self.point).into_bytes()
    }
}

/// The seed and the point of a place; a place that is none of ours is before all.
pub(super) fn lease_place(part: &Part) -> (String, i64) {
    let text = part.after_text().unwrap_or_default();
    let (seed, point) = text.split_once(' ').unwrap_or_default();
    (seed.to_owned(), point.parse().unwrap_or(-1))
}

/// What there is of a key, at the moment of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// The key.
    pub key: SeedKey,
    /// Seeds that are offered.
    pub live: u64,
    /// Seeds that failed lately.
    pub suspect: u64,
    /// Seeds that were taken out.
    pub draining: u64,
    /// Seeds that were not heard of.
    pub silent: u64,
    /// Leases that those which are offered may have at once.
    pub capacity: u64,
    /// Leases that its seeds have.
    pub used: u64,
    /// Requests that wait for one of its seeds.
    pub waiting: u64,
}

impl Entry for KeyEntry {
    fn bytes(&self) -> usize {
        entry_bytes(&self.key, [])
    }
}

impl KeyEntry {
    /// Of a key whose seeds these are; `None` if there are none.
    pub(super) fn of(key: &SeedKey, counts: &Counts, waiting: u64) -> Option<Self> {
        let Counts { live, suspect, draining, silent } = *counts;
        let all = [live, suspect, draining, silent];
        (all.iter().map(|tally| tally.seeds).sum::<u64>() > 0).then(|| Self {
            key: key.clone(),
            live: live.seeds,
            suspect: suspect.seeds,
            draining: draining.seeds,
            silent: silent.seeds,
            capacity: live.capacity,
            used: all.iter().map(|tally| tally.leases).sum(),
            waiting,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Entry for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    proptest! {
        #[test]
        fn the_first_are_as_many_as_fit_and_one_at_least(
            entries in prop::collection::vec(0_usize..50, 0..20), most in 1_usize..20, most_bytes in 0_usize..200,
        ) {
            let (first, more) = first(entries.iter().copied(), most, most_bytes);
            prop_assert_eq!(&entries[..first.len()], &first[..]);
            prop_assert_eq!(more, first.len() < entries.len());
            prop_assert!(first.len() <= most && (first.len() <= 1 || first.iter().sum::<usize>() <= most_bytes));
            if let Some(next) = entries.get(first.len()) {
                let fits = first.len() < most && first.iter().sum::<usize>() + next <= most_bytes;
                prop_assert!(!first.is_empty() && !fits, "no more than is needed is left out");
            }
        }
    }
}
