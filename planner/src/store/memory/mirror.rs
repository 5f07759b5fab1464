//! A mirror of the rows that a file holds, with the indexes that make every look at them cheap: its cost does not grow
//! with the number of seeds. It takes [`Changes`] once these are committed, so it shows only what is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use rfork_protocol::SeedKey;

use crate::decide::place::{HostUse, Place, place};
use crate::decide::quota::OfClient;
use crate::decide::rows::{RequestRow, SeedRow};
use crate::decide::{Changed, Changes, Near};
use crate::domain::pace::MOVE_PAUSE_MS;
use crate::domain::seed::Profile;
use crate::store::{LeaseHash, Quota, Room, Rules, Usage};

/// A seed in the order of offers: its rank, its name, its number.
pub(super) type Slot = (u64, i64, Arc<str>, i64);

/// A seed, and where it stands.
#[derive(Debug)]
pub(super) struct Seed {
    pub(super) row: Arc<SeedRow>,
    pub(super) place: Place,
}

/// What there is of a key.
#[derive(Debug, Default)]
pub(super) struct OfKey {
    /// All seeds, by name.
    pub(super) seeds: BTreeMap<Arc<str>, i64>,
    /// Those that may have a free point, by where they are looked for.
    pub(super) near: HashMap<Near, BTreeSet<Slot>>,
    /// Those whose place grows old, and when.
    pub(super) due: BTreeSet<(i64, i64)>,
    /// Requests that wait.
    pub(super) waiting: BTreeSet<i64>,
    /// The seed that has the right to lead, or was the last to have it.
    pub(super) leader: Option<i64>,
}

/// Which instance serves the ranks of another one, and when that was last used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) instance: String,
    pub(super) used_ms: i64,
}

impl Source {
    /// Its memory, in bytes, about, with that of the name that it serves.
    fn bytes(&self, served: &str) -> usize {
        4 * size_of::<Self>() + served.len() + self.instance.len()
    }
}

/// The memory of a key and of what there is of it, in bytes, about.
fn key_bytes(key: &SeedKey) -> usize {
    size_of::<OfKey>() + key.as_bytes().len()
}

/// All rows, and their indexes.
#[derive(Debug)]
pub(super) struct Mirror {
    rules: Rules,
    pub(super) seeds: BTreeMap<i64, Seed>,
    pub(super) names: BTreeMap<Arc<str>, i64>,
    pub(super) keys: BTreeMap<Arc<SeedKey>, OfKey>,
    pub(super) leases: HashMap<LeaseHash, i64>,
    /// Seeds of hosts whose leases are bounded together.
    pub(super) hosts: HashMap<String, BTreeSet<i64>>,
    pub(super) requests: BTreeMap<i64, Arc<RequestRow>>,
    pub(super) requests_by_lease: HashMap<LeaseHash, i64>,
    pub(super) requests_by_name: HashMap<[u8; 32], i64>,
    /// Requests that were granted and are to be told.
    pub(super) to_answer: BTreeSet<i64>,
    pub(super) sources: BTreeMap<String, Source>,
    /// When a place of a key was last promised to a reader; those that still matter.
    pub(super) moves: HashMap<SeedKey, i64>,
    /// Until when planners answer. Only in memory: a process that starts finds no other.
    pub(super) planners: HashMap<Arc<str>, i64>,
    pub(super) new_seed: i64,
    pub(super) new_request: i64,
    bytes: usize,
    /// What the file has of it, in bytes, about.
    stored: usize,
    /// What is each client's.
    pub(super) by_client: HashMap<IpAddr, OfClient>,
    /// What most seeds tell of themselves: nothing.
    no_profile: Arc<Profile>,
}

impl Mirror {
    /// Nothing is there.
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            seeds: BTreeMap::new(),
            names: BTreeMap::new(),
            keys: BTreeMap::new(),
            leases: HashMap::new(),
            hosts: HashMap::new(),
            requests: BTreeMap::new(),
            requests_by_lease: HashMap::new(),
            requests_by_name: HashMap::new(),
            to_answer: BTreeSet::new(),
            sources: BTreeMap::new(),
            moves: HashMap::new(),
            planners: HashMap::new(),
            new_seed: 1,
            new_request: 1,
            bytes: 0,
            stored: 0,
            by_client: HashMap::new(),
            no_profile: Arc::default(),
        }
    }

    /// What there is room for beside what is there.
    pub(super) fn room(&self) -> Room {
        let most = self.rules.room;
        Room {
            seeds: most.seeds.saturating_sub(self.seeds.len()),
            requests: most.requests.saturating_sub(self.requests.len()),
            instances: most.instances.saturating_sub(self.sources.len()),
            bytes: most.bytes.saturating_sub(self.bytes),
            stored: most.stored.saturating_sub(self.stored),
        }
    }

    /// How much there is of what has a quota.
    pub(super) fn usage(&self) -> [Usage; 4] {
        let most = self.rules.room;
        [
            Usage { quota: Quota::Seeds, used: self.seeds.len(), most: most.seeds },
            Usage { quota: Quota::Requests, used: self.requests.len(), most: most.requests },
            Usage { quota: Quota::Memory, used: self.bytes, most: most.bytes },
            Usage { quota: Quota::Database, used: self.stored, most: most.stored },
        ]
    }

    /// Takes in what was committed at `now`.
    pub(super) fn apply(&mut self, changes: Changes, now: i64) {
        for changed in changes.seeds {
            self.change_seed(changed, now);
        }
        for Changed { before, after } in changes.requests {
            if let Some(row) = before {
                self.remove_request(&row);
            }
            if let Some(row) = after {
                self.insert_request(row);
            }
        }
        for (served, instance) in changes.sources {
            match instance {
                Some(instance) => self.insert_source(served, Source { instance, used_ms: now }),
                None => self.remove_source(&served),
            }
        }
        if !changes.moves.is_empty() {
            self.moves.retain(|_, moved_ms| moved_ms.saturating_add(MOVE_PAUSE_MS) > now);
            self.moves.extend(changes.moves.into_iter().map(|key| (key, now)));
        }
        self.new_seed = self.new_seed.max(changes.next_seed.unwrap_or(0));
        if let Some((planner, until_ms)) = changes.alive {
            let known = self.planners.entry(planner).or_default();
            *known = until_ms.max(*known);
        }
    }

    /// An instance is served by another one.
    pub(super) fn insert_source(&mut self, served: String, source: Source) {
        self.remove_source(&served);
        self.bytes = self.bytes.saturating_add(source.bytes(&served));
        self.stored = self.stored.saturating_add(source.bytes(&served));
        self.sources.insert(served, source);
    }

    fn remove_source(&mut self, served: &str) {
        if let Some(source) = self.sources.remove(served) {
            self.bytes = self.bytes.saturating_sub(source.bytes(served));
            self.stored = self.stored.saturating_sub(source.bytes(served));
        }
    }

    fn change_seed(&mut self, Changed { before, after }: Changed<SeedRow>, now: i64) {
        match (before, after) {
            (Some(before), Some(after)) if before.is_told_as(&after) => {
                self.bytes = self.bytes.saturating_sub(before.bytes()).saturating_add(after.bytes());
                self.note_leases(&before, false);
                self.note_leases(&after, true);
                self.note_leader(&before, false);
                self.note_leader(&after, after.leads());
                if let Some(seed) = self.seeds.get_mut(&after.id) {
                    seed.row = after.clone();
                }
                self.moved(&after, now);
            }
            (before, after) => {
                if let Some(row) = before {
                    self.remove_seed(&row, now);
                }
                if let Some(row) = after {
                    self.insert_seed(row, now);
                }
            }
        }
    }

    /// A seed comes. Its key and its profile are kept once for all that have the same.
    pub(super) fn insert_seed(&mut self, mut row: Arc<SeedRow>, now: i64) {
        let shared = self.keys.get_key_value(&row.key).map(|(key, _)| key.clone());
        let told = (*row.profile == Profile::default()).then(|| self.no_profile.clone());
        let owned = Arc::make_mut(&mut row);
        owned.key = shared.unwrap_or_else(|| owned.key.clone());
        owned.profile = told.unwrap_or_else(|| owned.profile.clone());
        self.new_seed = self.new_seed.max(row.id.saturating_add(1));
        self.bytes = self.bytes.saturating_add(row.bytes());
        self.note_leases(&row, true);
        let stored = SeedRow::stored(&row.key);
        self.stored = self.stored.saturating_add(stored);
        self.count_client(row.client, |theirs| {
            (theirs.seeds, theirs.stored) = (theirs.seeds + 1, theirs.stored + stored);
        });
        self.names.insert(row.name.clone(), row.id);
        self.key(&row.key).seeds.insert(row.name.clone(), row.id);
        self.note_leader(&row, row.leads());
        if let Some(host) = row.capped_host() {
            self.hosts.entry(host.to_owned()).or_default().insert(row.id);
        }
        self.seeds.insert(row.id, Seed { row: row.clone(), place: Place::default() });
        self.moved(&row, now);
    }

    fn remove_seed(&mut self, row: &Arc<SeedRow>, now: i64) {
        self.put(row.id, Place::default());
        self.seeds.remove(&row.id);
        self.bytes = self.bytes.saturating_sub(row.bytes());
        self.note_leases(row, false);
        let stored = SeedRow::stored(&row.key);
        self.stored = self.stored.saturating_sub(stored);
        self.count_client(row.client, |theirs| {
            (theirs.seeds, theirs.stored) = (theirs.seeds - 1, theirs.stored - stored);
        });
        if self.names.get(&row.name) == Some(&row.id) {
            self.names.remove(&row.name);
        }
        self.note_leader(row, false);
        if let Some(key) = self.keys.get_mut(&row.key) {
            if key.seeds.get(&row.name) == Some(&row.id) {
                key.seeds.remove(&row.name);
            }
            self.tidy_key(&row.key);
        }
        if let Some(host) = row.capped_host()
            && let Some(seeds) = self.hosts.get_mut(host)
        {
            seeds.remove(&row.id);
            let beside: Vec<i64> = seeds.iter().copied().collect();
            if beside.is_empty() {
                self.hosts.remove(host);
            }
            for id in beside {
                self.refresh(id, now);
            }
        }
    }

    /// What there is of a key, which is in memory once for all of its seeds.
    fn key(&mut self, key: &Arc<SeedKey>) -> &mut OfKey {
        let bytes = &mut self.bytes;
        self.keys.entry(key.clone()).or_insert_with(|| {
            *bytes = bytes.saturating_add(key_bytes(key));
            OfKey::default()
        })
    }

    fn count_client(&mut self, client: Option<IpAddr>, change: impl FnOnce(&mut OfClient)) {
        let Some(client) = client else { return };
        let theirs = self.by_client.entry(client).or_default();
        change(theirs);
        if *theirs == OfClient::default() {
            self.by_client.remove(&client);
        }
    }

    fn tidy_key(&mut self, key: &Arc<SeedKey>) {
        if self.keys.get(key).is_some_and(|key| key.seeds.is_empty() && key.waiting.is_empty()) {
            self.keys.remove(key);
            self.bytes = self.bytes.saturating_sub(key_bytes(key));
        }
    }

    /// Whether a seed leads now. One that does not takes nothing from who does.
    fn note_leader(&mut self, row: &SeedRow, leads: bool) {
        let Some(key) = self.keys.get_mut(&row.key) else { return };
        if leads {
            key.leader = Some(row.id);
        } else if key.leader == Some(row.id) {
            key.leader = None;
        }
    }

    fn note_leases(&mut self, row: &SeedRow, are_there: bool) {
        for lease in &row.leases {
            if are_there {
                self.leases.insert(lease.lease, row.id);
            } else if self.leases.get(&lease.lease) == Some(&row.id) {
                self.leases.remove(&lease.lease);
            }
        }
    }

    /// A seed has changed, and so may have the places of all of its host.
    fn moved(&mut self, row: &SeedRow, now: i64) {
        match row.capped_host().and_then(|host| self.hosts.get(host)) {
            Some(beside) => {
                for id in beside.clone() {
                    self.refresh(id, now);
                }
            }
            None => self.refresh(row.id, now),
        }
    }

    /// Finds a seed's place anew.
    pub(super) fn refresh(&mut self, id: i64, now: i64) {
        let Some(seed) = self.seeds.get(&id) else { return };
        let host = seed.row.capped_host().and_then(|host| self.hosts.get(host)).map(|beside| {
            let rows = beside.iter().filter_map(|id| self.seeds.get(id)).map(|seed| seed.row.as_ref());
            HostUse::of(rows, now)
        });
        let place = place(&seed.row, now, &self.rules, host);
        self.put(id, place);
    }

    /// Puts a seed in its place.
    pub(super) fn put(&mut self, id: i64, place: Place) {
        let Some(seed) = self.seeds.get_mut(&id).filter(|seed| seed.place != place) else { return };
        let before = std::mem::replace(&mut seed.place, place);
        let Some(key) = self.keys.get_mut(&seed.row.key) else { return };
        if before.due_ms != place.due_ms {
            if let Some(due_ms) = before.due_ms {
                key.due.remove(&(due_ms, id));
            }
            key.due.extend(place.due_ms.map(|due_ms| (due_ms, id)));
        }
        if (before.rank, before.among) == (place.rank, place.among) {
            return;
        }
        let slot = |(busy, order_ms)| (busy, order_ms, seed.row.name.clone(), id);
        let (told, policy) = (&seed.row.profile, self.rules.policy);
        if let Some(slot) = before.rank.map(slot) {
            for near in before.among.nears(told, policy) {
                let Some(slots) = key.near.get_mut(&near) else { continue };
                slots.remove(&slot);
                if slots.is_empty() {
                    key.near.remove(&near);
                }
            }
        }
        if let Some(slot) = place.rank.map(slot) {
            for near in place.among.nears(told, policy) {
                key.near.entry(near).or_default().insert(slot.clone());
            }
        }
    }

    /// A request comes.
    pub(super) fn insert_request(&mut self, mut row: Arc<RequestRow>) {
        self.new_request = self.new_request.max(row.id.saturating_add(1));
        if let Some((key, _)) = self.keys.get_key_value(&row.key) {
            let key = key.clone();
            Arc::make_mut(&mut row).key = key;
        }
        self.bytes = self.bytes.saturating_add(row.bytes());
        let stored = RequestRow::stored(&row.key, &row.wish);
        self.stored = self.stored.saturating_add(stored);
        self.count_client(row.wish.client, |theirs| {
            (theirs.requests, theirs.stored) = (theirs.requests + 1, theirs.stored + stored);
        });
        self.requests_by_lease.insert(row.lease, row.id);
        if let Some(asked) = &row.idempotency {
            self.requests_by_name.insert(asked.key, row.id);
        }
        if row.waits_until_ms.is_some() {
            self.key(&row.key).waiting.insert(row.id);
        } else if row.planner.is_some() {
            self.to_answer.insert(row.id);
        }
        self.requests.insert(row.id, row);
    }

    fn remove_request(&mut self, row: &Arc<RequestRow>) {
        self.requests.remove(&row.id);
        let stored = RequestRow::stored(&row.key, &row.wish);
        self.stored = self.stored.saturating_sub(stored);
        self.count_client(row.wish.client, |theirs| {
            (theirs.requests, theirs.stored) = (theirs.requests - 1, theirs.stored - stored);
        });
        self.bytes = self.bytes.saturating_sub(row.bytes());
        self.to_answer.remove(&row.id);
        if self.requests_by_lease.get(&row.lease) == Some(&row.id) {
            self.requests_by_lease.remove(&row.lease);
        }
        if let Some(asked) = &row.idempotency
            && self.requests_by_name.get(&asked.key) == Some(&row.id)
        {
            self.requests_by_name.remove(&asked.key);
        }
        if let Some(key) = self.keys.get_mut(&row.key) {
            key.waiting.remove(&row.id);
            self.tidy_key(&row.key);
        }
    }

    /// Finds the places anew of seeds of a key of which a lease or a suspicion has ended by itself: each is met once for
    /// each such end.
    pub(super) fn refresh_due(&mut self, key: &SeedKey, now: i64) {
        while let Some((due_ms, id)) = self.keys.get(key).and_then(|key| key.due.first().copied())
            && due_ms <= now
        {
            self.refresh(id, now);
        }
    }

    /// In how many milliseconds the next lease or suspicion of a key ends by itself.
    pub(super) fn next_end_ms(&self, key: &SeedKey, now: i64) -> Option<i64> {
        let due = &self.keys.get(key)?.due;
        let (due_ms, _) = due.range((now.saturating_add(1), i64::MIN)..).next()?;
        Some(due_ms.saturating_sub(now))
    }
}
