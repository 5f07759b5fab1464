//! Chains of workers that serve what they hold while they load: who may read from whom.
//!
//! Nothing here keeps circles out for certain: reports are as old as a period, and leases lapse. A circle ends because
//! nobody is asked for what it does not hold, and nobody waits without a limit. What is decided here is how fast it is,
//! and that bytes of two roots are not offered to one worker.

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::content::Origin;
use rfork_protocol::v1::Labels;
use serde::{Deserialize, Serialize};

use super::owner::Owner;
use super::pace::{Ahead, Pace, SHARED, Sending};

/// How often a loading seed tells how far it is, in milliseconds, while the planner has time.
pub const PERIOD_MS: i64 = 1_000;

/// The same at most, however much there is to do.
const MAX_PERIOD_MS: i64 = 4_000;

/// Commands of one batch from which on a planner is busy, and hears less often.
const BUSY: usize = 128;

/// Periods after which a loading seed that was not heard of is no source.
const PERIODS: i64 = 3;

/// How long the lease of a loading seed lives at most without a renewal, in milliseconds: it renews each period. A worker that
/// is gone gives its place back before those who wait for one read storage (`rfork_seed_wait_sec`).
pub const READER_TTL_MS: i64 = 20_000;

/// For how long after its end the lease of a loading seed lives again by a renewal, if nobody has its place, in milliseconds:
/// a planner that was away for longer than [`READER_TTL_MS`] finds chains as they were.
pub const LATE_MS: i64 = 60_000;

/// How long the right to lead lives without a renewal, in milliseconds.
pub const LEAD_TTL_MS: i64 = 10_000;

/// For how long the renewals of somebody are progress who gets everything at once, in milliseconds: an inference engine's own
/// loader cannot say how far it is.
pub const MAX_WHOLE_MS: i64 = 600_000;

/// How often loading seeds are to tell how far they are, in milliseconds, when so many commands came together.
pub fn period_ms(commands: usize) -> i64 {
    let busy = i64::try_from(commands / BUSY).unwrap_or(i64::MAX);
    PERIOD_MS.saturating_mul(busy.saturating_add(1)).min(MAX_PERIOD_MS)
}

/// Bytes that are held and verified, of one root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What names them: a content id or an origin. Compared exactly.
    pub root: String,
    /// How many.
    pub bytes: u64,
}

/// A worker that asks for a seed, can read from one that still loads, and would be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Whose it would be.
    pub owner: Owner,
    /// Where it serves already.
    pub identity: SeedIdentity,
    /// Tells its memory from any other at this address.
    pub incarnation: String,
    /// For people.
    pub labels: Labels,
    /// The model's size.
    pub total_bytes: u64,
    /// What it holds; `None` for nothing.
    pub held: Option<Held>,
    /// Whether it takes bytes of another root, too, and drops what it holds.
    pub starts_over: bool,
    /// The source that brings it no byte.
    pub stalled: Option<Stalled>,
}

/// A source that brings no byte to who reads from it, or that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stalled {
    /// Where it is.
    pub identity: SeedIdentity,
    /// The asker's lease on it, by its stored hash: only a live one is believed.
    pub lease: [u8; 32],
    /// Whether the asker has no connection to it, and no sign of life.
    pub lost: bool,
    /// Whether a planner has just asked it for its health, in vain.
    pub unanswered: bool,
}

/// How far a loading seed is, as it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Its memory.
    pub incarnation: String,
    /// Bytes that came since the load began.
    pub arrived_bytes: u64,
    /// What it holds; `None` for nothing.
    pub held: Option<Held>,
}

/// What is known of a seed while it loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loading {
    /// The number of the seed that it reads from, or read from last; `None` when it reads from storage.
    pub source: Option<i64>,
    /// Sources between it and a complete seed, or storage, when that was last heard of.
    pub depth: u32,
    /// What names its bytes, as far as that was heard: of its own, or of its source's while it has none.
    pub root: Option<String>,
    /// Bytes that it holds.
    pub held_bytes: u64,
    /// The model's size.
    pub total_bytes: u64,
    /// Bytes that came since the load began, when it told that last for its pace.
    pub arrived_bytes: u64,
    /// How often it is to tell how far it is, in milliseconds.
    pub period_ms: i64,
    /// How fast they come, and what follows from that.
    pub pace: Pace,
    /// Its right to lead, if it has that or was the last to have it.
    pub lead: Option<Lead>,
}

/// The right to lead: to read a key's weights from storage while others wait for them. One seed of a key has it at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    /// When it ends unless it is renewed.
    pub until_ms: i64,
    /// When its holder last told of more bytes.
    pub moved_ms: i64,
    /// When it began.
    pub since_ms: i64,
}

impl Lead {
    /// The right of who begins.
    pub fn begin(now: i64) -> Self {
        Self { until_ms: now.saturating_add(LEAD_TTL_MS), moved_ms: now, since_ms: now }
    }

    /// The same, renewed; `moves`: more bytes came; `whole`: its holder gets everything at once.
    #[must_use]
    pub fn renewed(self, now: i64, moves: bool, whole: bool) -> Self {
        let is_borne = whole && now.saturating_sub(self.since_ms) < MAX_WHOLE_MS;
        let moved_ms = if moves || is_borne { now } else { self.moved_ms };
        Self { moved_ms, since_ms: self.since_ms, ..Self::begin(now) }
    }

    /// Whether somebody waits for its holder who waits so long for one that makes no progress.
    pub fn holds_for(self, now: i64, patience_ms: i64) -> bool {
        self.until_ms > now && self.moved_ms > now.saturating_sub(patience_ms)
    }
}

/// The parts in which a held share is compared.
pub const SHARES: u64 = 1 << 16;

impl Loading {
    /// How long it may be silent, in milliseconds, until it is no source.
    pub fn silent_after_ms(&self) -> i64 {
        self.period_ms.saturating_mul(PERIODS)
    }

    /// Whether it has what a reader may ask for: a source, or a name for its bytes. Who has just begun to read storage has
    /// neither.
    pub fn may_be_read(&self) -> bool {
        self.source.is_some() || self.root.is_some()
    }

    /// How much of the model it holds, in parts of 2^16.
    pub fn held_share(&self) -> u64 {
        let share = u128::from(self.held_bytes) * u128::from(SHARES) / u128::from(self.total_bytes.max(1));
        u64::try_from(share).unwrap_or(SHARES).min(SHARES)
    }

    /// Takes in what it holds.
    pub fn holds(&mut self, held: Option<&Held>) {
        self.held_bytes = held.map_or(0, |held| held.bytes);
        if let Some(held) = held {
            self.root = Some(held.root.clone());
        }
    }

    /// Without the right to lead it reads storage for itself, and for those who read from it already.
    ///
    /// Excluded: somebody new is granted it, who would be loaded no sooner than it, beside the chain of who leads.
    pub fn forget_origin(&mut self) {
        if self.source.is_none() {
            self.root = self.root.take().filter(|root| !is_origin(root));
        }
    }

    /// Whether its bytes have no content id yet.
    pub fn has_origin(&self) -> bool {
        self.root.as_deref().is_some_and(is_origin)
    }

    /// Takes in that it reads storage, from which so many bytes have come since its load began.
    pub fn reads_storage(&mut self, now: i64, arrived_bytes: u64) {
        if self.source.take().is_some() {
            // Excluded: those who wait for it are never granted it.
            self.pace = Pace { sends: Sending::Well, yielded_ms: 0, ..self.pace.elsewhere() };
        }
        self.depth = 0;
        let before = std::mem::replace(&mut self.arrived_bytes, arrived_bytes);
        if self.pace.is_due(now) {
            self.pace.hear(now, arrived_bytes.saturating_sub(before), self.held_bytes, None);
        }
    }

    /// Whether somebody who holds these bytes has read the rest from storage before this one has, which reads it already,
    /// though each of them gets half as much then. Bytes of an origin would be compared with storage, so all is read.
    pub fn is_outrun_by(&self, held: &Held) -> bool {
        let left = |bytes| self.total_bytes.saturating_sub(bytes);
        !is_origin(&held.root) && left(held.bytes).saturating_mul(SHARED) <= left(self.held_bytes)
    }

    /// Takes in what it tells of its load from `source`, which is compared with it. Gives whether it falls behind that, if
    /// it can be said.
    pub fn tell(
        &mut self,
        now: i64,
        told: &Progress,
        source: Option<i64>,
        ahead: Option<Ahead>,
    ) -> Option<bool> {
        self.holds(told.held.as_ref());
        if self.source != source {
            (self.source, self.pace) = (source, self.pace.elsewhere());
        }
        if !self.pace.is_due(now) {
            return None;
        }
        let before = std::mem::replace(&mut self.arrived_bytes, told.arrived_bytes);
        self.pace.hear(now, told.arrived_bytes.saturating_sub(before), self.held_bytes, ahead)
    }

    /// What readers of it are compared with, of which it has so many.
    pub fn ahead(&self, readers: u32) -> Ahead {
        Ahead { rate: self.pace.rate, held_bytes: self.held_bytes, readers }
    }

    /// Whether nobody is granted it while it loads.
    pub fn is_leaf(&self) -> bool {
        self.pace.sends == Sending::Slow
    }
}

/// What somebody who was granted a source is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whether it still loads.
    pub loads: bool,
    /// The reader's depth.
    pub depth: u32,
    /// What names its bytes, as far as that was heard.
    pub root: Option<String>,
    /// When the reader is to tell how far it is, in milliseconds.
    pub renew_after_ms: i64,
    /// The point of it that was granted.
    pub point: u32,
    /// When that was granted, Unix milliseconds.
    pub since_ms: i64,
}

/// The depth of who reads from a seed.
pub fn depth_behind(source: Option<&Loading>) -> u32 {
    source.map_or(0, |source| source.depth.saturating_add(1))
}

/// An [`Asker`] as it stands when it is chosen for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The number of its row; `None` when it is not registered with this memory. Nobody reads from it then.
    pub id: Option<i64>,
    /// Where it serves.
    pub identity: SeedIdentity,
    /// Its depth, if it is registered.
    pub depth: Option<u32>,
    /// What it holds now.
    pub held: Option<Held>,
    /// Whether it takes bytes of another root, too.
    pub starts_over: bool,
    /// The source that brings no byte. It is not wanted, believed or not.
    pub stalled: Option<SeedIdentity>,
    /// Whether it has a live lease on that source. Then it may have the point that loading seeds keep for those who stall,
    /// or the source's own place.
    pub is_believed: bool,
    /// Whether its place was given to a reader of it, because a link of it is slow.
    pub was_moved: bool,
}

/// A seed that might be a source.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Where it is.
    pub identity: &'a SeedIdentity,
    /// What names its bytes, as far as that was heard.
    pub root: Option<&'a str>,
    /// What named those of a complete seed while it loaded, if they had no content id then.
    pub origin: Option<&'a str>,
    /// What is known of it while it loads; `None` for a complete seed.
    pub loading: Option<&'a Loading>,
}

/// Whether this names bytes that had no content id when their load began.
pub fn is_origin(root: &str) -> bool {
    root.starts_with(Origin::PREFIX)
}

/// Whether a worker may read from a seed: never from itself or its own reader; from bytes of its root alone, unless it says
/// that it starts over; and, if it has bytes or may have readers, from a loading seed that holds more of them, or stands
/// nearer to where they come from.
/// What the seed holds was told a moment before what the reader holds now, so a reader of this reader never seems to
/// hold more. Whoever was moved stands behind those who have overtaken it: they hold more.
pub fn may_read(reader: &Reader, offer: Offer<'_>) -> bool {
    let Offer { identity, root, origin, loading } = offer;
    if reader.identity == *identity || reader.stalled.as_ref() == Some(identity) {
        return false;
    }
    let is_same = |held: &&Held| root == Some(&*held.root) || origin == Some(&*held.root);
    let held = reader.held.as_ref().filter(is_same);
    if held.is_none() && reader.held.is_some() && !reader.starts_over {
        return false;
    }
    let Some(loading) = loading else { return true };
    if !loading.may_be_read() || (reader.id.is_some() && loading.source == reader.id) {
        return false;
    }
    // Whoever reads from it has nothing of another root.
    let is_new = held.is_none() && (reader.id.is_none() || reader.starts_over);
    let held_bytes = held.map_or(0, |held| held.bytes);
    let is_nearer = !reader.was_moved && reader.depth.is_some_and(|depth| loading.depth < depth);
    is_new || loading.held_bytes > held_bytes || is_nearer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(port: u16) -> SeedIdentity {
        SeedIdentity::new("h", port, 0).unwrap()
    }

    fn loading(source: Option<i64>, depth: u32, root: &str, held_bytes: u64) -> Loading {
        Loading {
            source,
            depth,
            root: Some(root.into()),
            held_bytes,
            total_bytes: 100,
            arrived_bytes: held_bytes,
            period_ms: PERIOD_MS,
            pace: Pace::default(),
            lead: None,
        }
    }

    fn reader(id: Option<i64>, depth: u32, held: Option<(&str, u64)>) -> Reader {
        Reader {
            id,
            identity: identity(1),
            depth: id.map(|_| depth),
            held: held.map(|(root, bytes)| Held { root: root.into(), bytes }),
            starts_over: false,
            stalled: None,
            is_believed: false,
            was_moved: false,
        }
    }

    /// Whether the seed of port 2 may be read from.
    fn may(reader: &Reader, root: Option<&str>, loading: Option<&Loading>) -> bool {
        may_read(reader, Offer { identity: &identity(2), root, origin: None, loading })
    }

    #[test]
    fn nobody_reads_from_itself_its_reader_or_what_stalls() {
        let new = reader(None, 0, None);
        assert!(!may_read(&new, Offer { identity: &identity(1), root: None, origin: None, loading: None }));
        let of_mine = loading(Some(1), 1, "x", 50);
        assert!(!may(&reader(Some(1), 5, None), Some("x"), Some(&of_mine)));
        let of_another = loading(Some(3), 1, "x", 50);
        assert!(may(&reader(Some(1), 5, None), Some("x"), Some(&of_another)));
        let stalls = Reader { stalled: Some(identity(2)), ..reader(Some(1), 5, None) };
        assert!(!may(&stalls, Some("x"), Some(&of_another)));
        assert!(!may(&stalls, Some("x"), None), "nor a complete one");
    }

    #[test]
    fn bytes_of_another_root_are_not_offered_to_who_has_some() {
        let has = reader(Some(1), 1, Some(("x", 10)));
        assert!(may(&has, Some("x"), None) && !may(&has, Some("y"), None) && !may(&has, None, None));
        assert!(!may(&has, Some("y"), Some(&loading(None, 0, "y", 90))));
        assert!(may(&reader(Some(1), 1, None), Some("y"), None), "who has none takes any");
    }

    #[test]
    fn bytes_of_an_origin_go_on_with_it_and_with_the_content_that_it_became() {
        let has = reader(Some(1), 1, Some(("origin:1", 10)));
        let ahead = |root| loading(None, 0, root, 90);
        assert!(may(&has, Some("origin:1"), Some(&ahead("origin:1"))));
        assert!(!may(&has, Some("origin:2"), Some(&ahead("origin:2"))), "somebody else's");
        assert!(!may(&has, Some("y"), None), "a content that grew nowhere, or elsewhere");
        let became =
            Offer { identity: &identity(2), root: Some("y"), origin: Some("origin:1"), loading: None };
        assert!(may_read(&has, became));
    }

    #[test]
    fn who_starts_over_takes_any_root_but_nothing_of_its_readers() {
        let has = Reader { starts_over: true, ..reader(Some(1), 1, Some(("origin:1", 10))) };
        assert!(may(&has, Some("y"), None));
        assert!(may(&has, Some("origin:2"), Some(&loading(None, 0, "origin:2", 0))));
        assert!(
            !may(&has, Some("origin:2"), Some(&loading(Some(1), 2, "origin:2", 90))),
            "it reads from the asker"
        );
        assert!(
            !may(&has, Some("origin:1"), Some(&loading(Some(7), 3, "origin:1", 10))),
            "it may read from its readers"
        );
    }

    #[test]
    fn who_has_bytes_reads_from_who_has_more_or_stands_nearer() {
        let has = reader(Some(1), 3, Some(("x", 10)));
        let from = |depth, bytes| may(&has, Some("x"), Some(&loading(None, depth, "x", bytes)));
        assert!(from(7, 11) && from(2, 0));
        assert!(!from(3, 10) && !from(7, 10));
        let was_moved = Reader { was_moved: true, ..has.clone() };
        let moved_from = |depth, bytes| may(&was_moved, Some("x"), Some(&loading(None, depth, "x", bytes)));
        assert!(moved_from(7, 11) && !moved_from(2, 0), "it stands behind");
        let not_known = reader(None, 0, Some(("x", 10)));
        assert!(!may(&not_known, Some("x"), Some(&loading(None, 0, "x", 10))));
    }

    #[test]
    fn nobody_reads_from_who_has_just_begun_with_storage() {
        let nameless = Loading { root: None, ..loading(None, 0, "x", 0) };
        assert!(!may(&reader(None, 0, None), None, Some(&nameless)));
        assert!(may(&reader(None, 0, None), None, Some(&Loading { source: Some(9), ..nameless })));
    }

    #[test]
    fn who_leads_keeps_others_waiting_while_it_renews_and_makes_progress() {
        let lead = Lead::begin(0);
        assert!(lead.holds_for(LEAD_TTL_MS - 1, i64::MAX) && !lead.holds_for(LEAD_TTL_MS, i64::MAX));
        let stands = (1..=4).fold(lead, |lead, at| lead.renewed(at * 9_000, false, false));
        assert!(stands.holds_for(36_000, 36_001) && !stands.holds_for(36_000, 36_000));
        assert!(stands.renewed(36_000, true, false).holds_for(36_000, 1));
        assert!(!lead.holds_for(0, 0), "who does not wait at all reads storage, too");
        let whole = |lead: Lead, now| lead.renewed(now, false, true);
        assert!(whole(stands, 36_000).holds_for(36_000, 1), "it cannot say how far it is");
        let last = whole(stands, MAX_WHOLE_MS - 1);
        assert!(!whole(last, MAX_WHOLE_MS).holds_for(MAX_WHOLE_MS, 1), "but not without end");
    }

    #[test]
    fn a_busy_planner_hears_less_often_within_a_bound() {
        assert_eq!([0, 127, 128, 512, usize::MAX].map(period_ms), [1_000, 1_000, 2_000, 4_000, 4_000]);
    }

    proptest! {
        /// By reports of one moment, where a reader holds no more than its source and stands deeper.
        #[test]
        fn no_circle_forms_by_reports_of_one_moment(
            sources in prop::collection::vec((0usize..6, 0u64..10), 1..8), asks in 0usize..8,
        ) {
            // A tree: each reads from an earlier one, or from a complete seed.
            let mut rows: Vec<Loading> = Vec::new();
            for (at, (source, held)) in sources.iter().enumerate() {
                let from = (at > 0).then(|| source % at);
                let depth = from.map_or(0, |from| rows[from].depth + 1);
                let most = from.map_or(u64::MAX, |from| rows[from].held_bytes);
                let source = from.map(|from| i64::try_from(from).unwrap());
                rows.push(loading(source, depth, "x", (*held).min(most)));
            }
            let asks = asks % rows.len();
            let is_behind = |mut at: usize| loop {
                match rows[at].source.map(|source| usize::try_from(source).unwrap()) {
                    Some(source) if source == asks => return true,
                    Some(source) => at = source,
                    None => return at == asks,
                }
            };
            let held = Some(rows[asks].held_bytes).filter(|bytes| *bytes > 0);
            let reader = Reader {
                identity: identity(u16::try_from(asks).unwrap() + 1),
                ..reader(i64::try_from(asks).ok(), rows[asks].depth, held.map(|bytes| ("x", bytes)))
            };
            for (at, row) in rows.iter().enumerate() {
                let identity = identity(u16::try_from(at).unwrap() + 1);
                let offer = Offer { identity: &identity, root: Some("x"), origin: None, loading: Some(row) };
                if may_read(&reader, offer) {
                    prop_assert!(!is_behind(at), "{at} reads from {asks}: {rows:?}");
                }
            }
        }

        #[test]
        fn a_held_share_is_a_share(held in any::<u64>(), total in any::<u64>()) {
            let row = Loading { total_bytes: total, ..loading(None, 0, "x", held) };
            prop_assert!(row.held_share() <= SHARES);
            prop_assert_eq!(row.held_share() == SHARES, held >= total.max(1));
        }
    }
}
