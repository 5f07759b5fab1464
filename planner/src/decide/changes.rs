//! What a decision changes: rows before and after. A store writes these, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rfork_protocol::SeedKey;

use super::rows::{EndedRow, EventRow, RequestRow, SeedRow};

/// A row as it was loaded, and as it is to be. `None`: it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed<T> {
    /// As it was loaded.
    pub before: Option<Arc<T>>,
    /// As it is to be.
    pub after: Option<Arc<T>>,
}

impl<T> Changed<T> {
    /// A row that was loaded.
    pub(super) fn loaded(row: Arc<T>) -> Self {
        Self { before: Some(row.clone()), after: Some(row) }
    }

    /// Whether it is as it was.
    pub fn is_same(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after),
            (None, None) => true,
            _ => false,
        }
    }
}

/// All that a decision changes. Applied to the rows from which it was decided, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Seeds with their leases, by number: what goes comes before what is new in its place.
    pub seeds: Vec<Changed<SeedRow>>,
    /// Requests, by number.
    pub requests: Vec<Changed<RequestRow>>,
    /// Which instance serves the ranks of which other one, used just now; `None`: it is forgotten.
    pub sources: BTreeMap<String, Option<String>>,
    /// Keys of which a place was promised to a reader, by reports of how fast bytes come: once in
    /// [`MOVE_PAUSE_MS`](crate::domain::pace::MOVE_PAUSE_MS), whichever planner does it.
    pub moves: BTreeSet<SeedKey>,
    /// The number that the next seed takes, if this has used any, be it for one that came and went.
    pub next_seed: Option<i64>,
    /// A planner that answers, until when: never to be made earlier.
    pub alive: Option<(Arc<str>, i64)>,
    /// Leases that ended, to be remembered.
    pub ended: Vec<EndedRow>,
    /// What happened, to be remembered.
    pub events: Vec<EventRow>,
}

impl Changes {
    /// Whether there is nothing that a database keeps.
    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
            && self.requests.is_empty()
            && self.sources.is_empty()
            && self.moves.is_empty()
            && self.next_seed.is_none()
            && self.ended.is_empty()
            && self.events.is_empty()
    }
}
