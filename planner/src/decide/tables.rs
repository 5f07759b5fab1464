//! The rows that a decision has seen, as it changes them. What it has not seen it asks for ([`Wants`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rfork_protocol::{SeedIdentity, SeedKey};

use super::changes::{Changed, Changes};
use super::quota::OfClient;
use super::rows::{RequestRow, SeedRow};
use super::wants::Near;
use crate::domain::chain::{self, Source};
use crate::domain::health::Health;
use crate::domain::owner::Owner;
use crate::domain::pace::MOVE_PAUSE_MS;
use crate::domain::policy::Wish;
use crate::domain::seed::Profile;
use crate::store::commands::{Move, NoRoom};
use crate::store::{Grant, LeaseHash, PLANNER_TTL_MS, Room, Rules};

/// A page of an index: whether it is the whole, and the seeds in the order of the index.
#[derive(Debug, Default)]
pub(super) struct Offered {
    pub(super) seeds: Vec<i64>,
    pub(super) limit: usize,
    pub(super) complete: bool,
}

/// The rows that a decision has seen, as it changes them.
#[derive(Debug)]
pub struct Tables {
    pub(super) changes: Changes,
    pub(super) room: Room,
    /// What is those clients', who are known.
    by_client: HashMap<IpAddr, OfClient>,
    seeds: BTreeMap<i64, Changed<SeedRow>>,
    requests: BTreeMap<i64, Changed<RequestRow>>,
    /// The seed of an identity now. One that is not here was not loaded, or is not there.
    identities: HashMap<SeedIdentity, i64>,
    by_key: HashMap<Arc<SeedKey>, BTreeSet<i64>>,
    by_lease: HashMap<LeaseHash, i64>,
    requests_by_lease: HashMap<LeaseHash, i64>,
    requests_by_name: HashMap<[u8; 32], i64>,
    /// Until when planners answer.
    planners: HashMap<Arc<str>, i64>,
    pub(super) offers: HashMap<SeedKey, BTreeMap<Near, Offered>>,
    /// Which instance serves the ranks of another; `None` if none does.
    pub(super) sources: HashMap<String, Option<String>>,
    pub(super) hosts: BTreeSet<String>,
    pub(super) witnessed: HashSet<SeedKey>,
    /// When a place of a key was last promised to a reader; 0 for never.
    pub(super) moves: HashMap<SeedKey, i64>,
    /// Why loading seeds got other sources.
    pub(super) moved: Vec<Move>,
    /// By key: the last of the page of waiters that was loaded last, if there may be more.
    pub(super) waiting: HashMap<SeedKey, Option<i64>>,
    first_seed: i64,
    new_seed: i64,
    new_request: i64,
}

/// New seeds of one batch at most, beside those that commands register: those who waited and load now. A store takes numbers
/// for so many, and for a batch of commands.
const MAX_JOINING: i64 = 1_024;

impl Tables {
    /// Nothing was seen yet. New seeds and requests take these numbers, and those that follow.
    pub fn new(new_seed: i64, new_request: i64, room: Room) -> Self {
        Self {
            changes: Changes::default(),
            room,
            by_client: HashMap::new(),
            seeds: BTreeMap::new(),
            requests: BTreeMap::new(),
            identities: HashMap::new(),
            by_key: HashMap::new(),
            by_lease: HashMap::new(),
            requests_by_lease: HashMap::new(),
            requests_by_name: HashMap::new(),
            planners: HashMap::new(),
            offers: HashMap::new(),
            sources: HashMap::new(),
            hosts: BTreeSet::new(),
            witnessed: HashSet::new(),
            moves: HashMap::new(),
            moved: Vec::new(),
            waiting: HashMap::new(),
            first_seed: new_seed,
            new_seed,
            new_request,
        }
    }

    /// Whether there is a number for one more who joins.
    pub(super) fn may_join(&self) -> bool {
        self.new_seed - self.first_seed < MAX_JOINING
    }

    /// A seed is there. One that was seen before stays as the decision has made it.
    pub fn put_seed(&mut self, row: Arc<SeedRow>) {
        if self.seeds.contains_key(&row.id) {
            return;
        }
        self.index(&row);
        self.seeds.insert(row.id, Changed::loaded(row));
    }

    /// A request is there. One that was seen before stays as the decision has made it.
    pub fn put_request(&mut self, row: Arc<RequestRow>) {
        if self.requests.contains_key(&row.id) {
            return;
        }
        self.index_request(&row);
        self.requests.insert(row.id, Changed::loaded(row));
    }

    /// Answers one of [`Wants::clients`](super::Wants): what there is of its.
    pub fn put_client(&mut self, client: IpAddr, theirs: OfClient) {
        self.by_client.entry(client).or_insert(theirs);
    }

    /// What is a client's, if that is known.
    pub(super) fn of_client(&self, client: IpAddr) -> Option<OfClient> {
        self.by_client.get(&client).copied()
    }

    /// Whether there is room for one more seed of this key and client. Who is not known has no share: it takes what is free.
    pub(super) fn room_for_seed(
        &self,
        key: &SeedKey,
        client: Option<IpAddr>,
        rules: &Rules,
    ) -> Result<(), NoRoom> {
        let theirs = client.and_then(|client| self.of_client(client));
        self.room.for_seed_of(theirs, SeedRow::stored(key), &rules.room)
    }

    /// Whether there is room for what a seed comes to hold in its own place: for a longer key.
    pub(super) fn room_for_holding(
        &self,
        (before, after): (&SeedKey, &SeedKey),
        client: Option<IpAddr>,
        rules: &Rules,
    ) -> Result<(), NoRoom> {
        let theirs = client.and_then(|client| self.of_client(client));
        match SeedRow::stored(after).saturating_sub(SeedRow::stored(before)) {
            0 => Ok(()),
            more => self.room.for_bytes_of(theirs, more, &rules.room),
        }
    }

    /// Whether there is room for one more request.
    pub(super) fn room_for_request(&self, key: &SeedKey, wish: &Wish, rules: &Rules) -> Result<(), NoRoom> {
        let theirs = wish.client.and_then(|client| self.of_client(client));
        self.room.for_request_of(theirs, RequestRow::stored(key, wish), &rules.room)
    }

    /// Answers one of [`Wants::waiting`](super::Wants): the rows, and whether there may be more after them.
    pub fn put_waiting(&mut self, key: &SeedKey, rows: Vec<Arc<RequestRow>>, more: bool) {
        let last = rows.last().map(|row| row.id).filter(|_| more);
        for row in rows {
            self.put_request(row);
        }
        self.waiting.insert(key.clone(), last);
    }

    /// Answers one of [`Wants::offers`](super::Wants): the seeds in the order of the index, and whether these are all.
    pub fn put_offer(
        &mut self,
        key: &SeedKey,
        near: &Near,
        limit: usize,
        seeds: Vec<Arc<SeedRow>>,
        complete: bool,
    ) {
        let offered = Offered { seeds: seeds.iter().map(|row| row.id).collect(), limit, complete };
        for row in seeds {
            self.put_seed(row);
        }
        self.offers.entry(key.clone()).or_default().insert(near.clone(), offered);
    }

    /// Answers one of [`Wants::sources`](super::Wants).
    pub fn put_source(&mut self, instance: &str, source: Option<String>) {
        self.sources.entry(instance.to_owned()).or_insert(source);
    }

    /// All seeds of the host were put.
    pub fn put_host(&mut self, host: &str) {
        self.hosts.insert(host.to_owned());
    }

    /// Answers one of [`Wants::witnesses`](super::Wants): the seed, if there is one, was put.
    pub fn put_witness(&mut self, key: &SeedKey) {
        self.witnessed.insert(key.clone());
    }

    /// Answers one of [`Wants::moves`](super::Wants): when the last was, Unix milliseconds; 0 for never.
    pub fn put_move(&mut self, key: &SeedKey, moved_ms: i64) {
        self.moves.entry(key.clone()).or_insert(moved_ms);
    }

    /// Whether a place of a key may be promised now: it is known that none was for a while.
    pub(super) fn may_move(&self, key: &SeedKey, now: i64) -> bool {
        self.moves.get(key).is_some_and(|moved_ms| moved_ms.saturating_add(MOVE_PAUSE_MS) <= now)
    }

    /// A place of a key was promised.
    pub(super) fn note_move(&mut self, key: &SeedKey, now: i64) {
        self.moves.insert(key.clone(), now);
        self.changes.moves.insert(key.clone());
    }

    /// Until when a planner answers. Comes with each request of it, waiting or not.
    pub fn put_planner(&mut self, planner: &Arc<str>, alive_until_ms: i64) {
        self.planners.insert(planner.clone(), alive_until_ms);
    }

    fn index(&mut self, row: &Arc<SeedRow>) {
        self.identities.insert(row.identity.clone(), row.id);
        self.by_key.entry(row.key.clone()).or_default().insert(row.id);
        self.by_lease.extend(row.leases.iter().map(|lease| (lease.lease, row.id)));
    }

    fn index_request(&mut self, row: &RequestRow) {
        self.requests_by_lease.insert(row.lease, row.id);
        if let Some(idempotency) = &row.idempotency {
            self.requests_by_name.insert(idempotency.key, row.id);
        }
    }

    /// Whether a seed was put, be it that the decision has deleted it.
    pub fn has_seen(&self, id: i64) -> bool {
        self.seeds.contains_key(&id)
    }

    /// The last number of a seed that was put.
    pub fn last_seed(&self) -> Option<i64> {
        self.seeds.keys().next_back().copied()
    }

    /// A seed as it is now.
    pub(super) fn seed(&self, id: i64) -> Option<&Arc<SeedRow>> {
        self.seeds.get(&id)?.after.as_ref()
    }

    /// Whether a seed is as it was loaded.
    pub(super) fn is_same(&self, id: i64) -> bool {
        self.seeds.get(&id).is_some_and(Changed::is_same)
    }

    /// All seeds as they are now, by number.
    pub(super) fn seeds(&self) -> impl Iterator<Item = &Arc<SeedRow>> + Clone {
        self.seeds.values().filter_map(|changed| changed.after.as_ref())
    }

    /// Those that are not as they were, before and now.
    pub(super) fn changed_seeds(&self) -> impl Iterator<Item = &Changed<SeedRow>> {
        self.seeds.values().filter(|changed| !changed.is_same())
    }

    /// The seed of an identity.
    pub(super) fn seed_at(&self, identity: &SeedIdentity) -> Option<&Arc<SeedRow>> {
        self.seed(*self.identities.get(identity)?)
    }

    /// The seeds of a key that were seen.
    pub(super) fn seeds_of(&self, key: &SeedKey) -> impl Iterator<Item = &Arc<SeedRow>> {
        self.by_key.get(key).into_iter().flatten().filter_map(|id| self.seed(*id))
    }

    /// The seed of a key that has the right to lead, or was the last to have it.
    pub(super) fn leader(&self, key: &SeedKey) -> Option<&Arc<SeedRow>> {
        self.seeds_of(key).find(|row| row.leads())
    }

    /// A seed on a point of which the lease is or was.
    pub(super) fn seed_with(&self, lease: &LeaseHash) -> Option<&Arc<SeedRow>> {
        let seed = self.seed(*self.by_lease.get(lease)?)?;
        seed.leases.iter().any(|known| known.lease == *lease).then_some(seed)
    }

    /// Changes a seed that is there.
    pub(super) fn change<T>(&mut self, id: i64, change: impl FnOnce(&mut SeedRow) -> T) -> Option<T> {
        let row = self.seeds.get_mut(&id)?.after.as_mut()?;
        Some(change(Arc::make_mut(row)))
    }

    /// What is not known of a seed's owner is known now.
    pub(super) fn own(&mut self, id: i64, owner: &Owner) {
        let known = self.seed(id).map(|row| row.owner.or(owner));
        if let Some(known) = known.filter(|known| self.seed(id).is_some_and(|row| row.owner != *known)) {
            self.change(id, |row| row.owner = known);
        }
    }

    /// A new seed, of which nothing is known but this; gives its number.
    pub(super) fn insert_seed(
        &mut self,
        (identity, key): (&SeedIdentity, &SeedKey),
        profile: Profile,
        heard_ms: i64,
        (client, owner): (Option<IpAddr>, &Owner),
        rules: &Rules,
    ) -> i64 {
        let id = self.new_seed;
        self.new_seed += 1;
        self.changes.next_seed = Some(self.new_seed);
        let row = Arc::new(SeedRow {
            id,
            identity: identity.clone(),
            name: identity.to_string().into(),
            key: Arc::new(key.clone()),
            terms: rules.terms(identity, key, &profile),
            profile: Arc::new(profile),
            client,
            owner: owner.clone(),
            removed: false,
            drained: false,
            loading: None,
            health: Health::default(),
            answered_ms: 0,
            used_ms: 0,
            heard_ms,
            leases: Vec::new(),
        });
        self.room.seeds = self.room.seeds.saturating_sub(1);
        let stored = SeedRow::stored(key);
        self.room.stored = self.room.stored.saturating_sub(stored);
        if let Some(theirs) = client.and_then(|client| self.by_client.get_mut(&client)) {
            (theirs.seeds, theirs.stored) = (theirs.seeds + 1, theirs.stored + stored);
        }
        self.room.bytes = self.room.bytes.saturating_sub(row.bytes());
        self.index(&row);
        self.seeds.insert(id, Changed { before: None, after: Some(row) });
        id
    }

    /// A seed goes, with what is left of its leases.
    pub(super) fn delete_seed(&mut self, id: i64) {
        let Some(changed) = self.seeds.get_mut(&id) else { return };
        if let Some(row) = changed.after.take() {
            if self.identities.get(&row.identity) == Some(&id) {
                self.identities.remove(&row.identity);
            }
            let stored = SeedRow::stored(&row.key);
            self.room.seeds = self.room.seeds.saturating_add(1);
            self.room.stored = self.room.stored.saturating_add(stored);
            if let Some(theirs) = row.client.and_then(|client| self.by_client.get_mut(&client)) {
                theirs.seeds = theirs.seeds.saturating_sub(1);
                theirs.stored = theirs.stored.saturating_sub(stored);
            }
            self.room.bytes = self.room.bytes.saturating_add(row.bytes());
        }
    }

    /// A request as it is now.
    pub(super) fn request(&self, id: i64) -> Option<&Arc<RequestRow>> {
        self.requests.get(&id)?.after.as_ref()
    }

    /// All requests as they are now, by number.
    pub(super) fn requests(&self) -> impl Iterator<Item = &Arc<RequestRow>> {
        self.requests.values().filter_map(|changed| changed.after.as_ref())
    }

    /// The requests of a key that wait now, those after a number, up to one. One that this batch has put back into its
    /// place is among them, which no index knows of.
    pub(super) fn waiting_of(
        &self,
        key: &SeedKey,
        after: i64,
        last: Option<i64>,
    ) -> impl Iterator<Item = &Arc<RequestRow>> {
        let rows = self.requests.range(after.saturating_add(1)..=last.unwrap_or(i64::MAX));
        let rows = rows.filter_map(|(_, changed)| changed.after.as_ref());
        rows.filter(move |row| row.waits_until_ms.is_some() && *row.key == *key)
    }

    pub(super) fn request_for(&self, lease: &LeaseHash) -> Option<&Arc<RequestRow>> {
        self.request(*self.requests_by_lease.get(lease)?)
    }

    pub(super) fn request_named(&self, name: &[u8; 32]) -> Option<&Arc<RequestRow>> {
        self.request(*self.requests_by_name.get(name)?)
    }

    pub(super) fn change_request(&mut self, id: i64, change: impl FnOnce(&mut RequestRow)) {
        if let Some(row) = self.requests.get_mut(&id).and_then(|changed| changed.after.as_mut()) {
            change(Arc::make_mut(row));
        }
    }

    /// Adds a request, which takes the next number.
    pub(super) fn insert_request(&mut self, mut row: RequestRow) {
        row.id = self.new_request;
        self.new_request += 1;
        let stored = RequestRow::stored(&row.key, &row.wish);
        self.room.requests = self.room.requests.saturating_sub(1);
        self.room.stored = self.room.stored.saturating_sub(stored);
        if let Some(theirs) = row.wish.client.and_then(|client| self.by_client.get_mut(&client)) {
            (theirs.requests, theirs.stored) = (theirs.requests + 1, theirs.stored + stored);
        }
        self.room.bytes = self.room.bytes.saturating_sub(row.bytes());
        self.index_request(&row);
        self.requests.insert(row.id, Changed { before: None, after: Some(Arc::new(row)) });
    }

    pub(super) fn delete_request(&mut self, id: i64) {
        if let Some(changed) = self.requests.get_mut(&id) {
            changed.after = None;
        }
    }

    /// Whether a planner answers those who wait there.
    pub(super) fn answers(&self, planner: Option<&Arc<str>>, now: i64) -> bool {
        planner.and_then(|planner| self.planners.get(planner)).is_some_and(|until_ms| *until_ms > now)
    }

    /// Notes that a planner answers.
    pub(super) fn lives(&mut self, planner: &Arc<str>, now: i64) {
        let until_ms = now.saturating_add(PLANNER_TTL_MS);
        self.planners.insert(planner.clone(), until_ms);
        self.changes.alive = Some((planner.clone(), until_ms));
    }

    /// The lease as it would be granted now, if it lives.
    pub(super) fn grant(&self, lease: &LeaseHash, now: i64) -> Option<Grant> {
        let seed = self.seed_with(lease)?;
        let held = seed.lease(lease).filter(|known| known.lives(now))?;
        let source = held.reader.map(|_| Source {
            loads: seed.loading.is_some(),
            depth: chain::depth_behind(seed.loading.as_deref()),
            root: seed.root().map(str::to_owned),
            renew_after_ms: chain::PERIOD_MS,
            point: held.point,
            since_ms: held.granted_ms,
        });
        Some(Grant {
            source: source.map(Box::new),
            identity: seed.identity.clone(),
            seed_id: seed.id,
            // Excluded: it was granted by a planner whose time is a little ahead, and seems to have more left than its time.
            lease_ttl_ms: held.ends_ms.saturating_sub(now).min(seed.lease_ttl_ms(held.reader.is_some())),
            quiet_ms: now.saturating_sub(seed.heard_ms.max(seed.answered_ms)),
            answers: seed.answered_ms > 0,
        })
    }

    /// A lease is on a seed now.
    pub(super) fn note_lease(&mut self, lease: LeaseHash, seed: i64) {
        self.by_lease.insert(lease, seed);
    }

    /// What was changed. Rows that came and went are in it no more.
    pub fn into_changes(mut self) -> Changes {
        self.changes.seeds = self.seeds.into_values().filter(|changed| !changed.is_same()).collect();
        self.changes.requests = self.requests.into_values().filter(|changed| !changed.is_same()).collect();
        self.changes
    }
}
