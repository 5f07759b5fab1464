//! What was: leases that ended, and what became of seeds. For people; kept for as long as the planner is set to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::query::{Fields, Query, QueryError, Written};
use super::{Cursor, DEFAULT_PAGE, TransferOutcome};
use crate::ids::{SeedIdentity, SeedKey};

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEnd {
    /// Its holder released it.
    Released,
    /// The planner gave it back: its client was gone, or its seed did not answer.
    GivenBack,
    /// It was not renewed in time.
    Expired,
    /// Its seed came to hold something else.
    Revoked,
    /// Its holder was lost, or left while it loaded: the point went on to who read from that holder, and so ended the
    /// leases between the two.
    PassedOn,
}

/// The answer to `LeaseQuery` of `GET /v2/leases/ended`: the last one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndedLeaseList {
    /// The page.
    pub leases: Vec<EndedLease>,
    /// Where the next page begins; null when this is the last.
    pub next: Option<Cursor>,
}

/// A lease that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndedLease {
    /// The first 12 hex digits of the lease id's SHA-256, as workers log it. No credential.
    pub lease: String,
    /// The seed that it was for.
    pub seed: SeedIdentity,
    /// What that held.
    pub seed_key: SeedKey,
    /// Who read, as far as it is known: `principal/instance@address`, or some of them.
    pub requester: Option<String>,
    /// Where the reader served what it read, if it loaded as a seed.
    #[serde(default)]
    pub reader: Option<SeedIdentity>,
    /// How long ago it was granted, in milliseconds.
    pub granted_age_ms: u64,
    /// How long ago it ended, in milliseconds.
    pub ended_age_ms: u64,
    /// How it ended; null for a way that this planner does not know.
    pub ended: Option<LeaseEnd>,
    /// How the transfer went; null when nobody said.
    pub outcome: Option<TransferOutcome>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Bytes that were read, as the worker says.
    pub bytes: Option<u64>,
    /// How long reading took, in milliseconds, as the worker says.
    pub duration_ms: Option<u64>,
}

/// What became of a seed, or of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A seed that was not known registered.
    Registered,
    /// A seed came to hold something else: its leases ended.
    NewHolding,
    /// Its owner took it out.
    Removed,
    /// An operator took it out.
    Drained,
    /// It was not heard of, and forgotten.
    Silent,
    /// It failed, and is left alone for a while.
    Suspect,
    /// It did well after failures.
    Recovered,
    /// The weights of a key were replaced: the seeds of the old ones drain.
    Invalidated,
    /// It loaded, and has everything now.
    Completed,
    /// It loads, and reads from another seed now.
    Moved,
    /// It has the right to lead: it reads storage, and others wait for it.
    Leads,
}

impl EventKind {
    const NAMES: [(&str, Self); 11] = [
        ("registered", Self::Registered),
        ("new_holding", Self::NewHolding),
        ("removed", Self::Removed),
        ("drained", Self::Drained),
        ("silent", Self::Silent),
        ("suspect", Self::Suspect),
        ("recovered", Self::Recovered),
        ("invalidated", Self::Invalidated),
        ("completed", Self::Completed),
        ("moved", Self::Moved),
        ("leads", Self::Leads),
    ];

    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// `GET /v2/events`: those that fit all that is told, the last one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Events of this key, and of seeds that held it.
    pub seed_key: Option<SeedKey>,
    /// Events of this kind.
    pub kind: Option<EventKind>,
    /// Events of the last so many milliseconds.
    pub since_ms: Option<u64>,
    /// Events on a page.
    pub limit: u32,
    /// Where the page begins.
    pub after: Option<Cursor>,
}

impl Default for EventQuery {
    fn default() -> Self {
        Self { seed_key: None, kind: None, since_ms: None, limit: DEFAULT_PAGE, after: None }
    }
}

impl Query for EventQuery {
    const PARAMETERS: &'static [&'static str] = &["seed_key", "kind", "since_ms", "limit", "after"];

    fn decode(query: &str) -> Result<Self, QueryError> {
        let mut fields = Fields::read(query, Self::PARAMETERS)?;
        Ok(Self {
            seed_key: fields.seed_key()?,
            kind: fields.one_of("kind", &EventKind::NAMES)?,
            since_ms: fields.number("since_ms")?,
            limit: fields.limit()?,
            after: fields.value("after")?,
        })
    }

    fn encode(&self) -> String {
        Written::default()
            .bytes("seed_key", self.seed_key.as_ref().map(SeedKey::as_bytes))
            .text("kind", self.kind.map(EventKind::as_str))
            .text("since_ms", self.since_ms.map(|since_ms| since_ms.to_string()).as_deref())
            .text("limit", Some(&self.limit.to_string()))
            .text("after", self.after.as_ref().map(Cursor::as_str))
            .finish()
    }
}

/// The answer to `EventQuery`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventList {
    /// The page.
    pub events: Vec<Event>,
    /// Where the next page begins; null when this is the last.
    pub next: Option<Cursor>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// What; null for a kind that this planner does not know.
    pub kind: Option<EventKind>,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// The key: that of the seed, if it is about one.
    pub seed_key: SeedKey,
    /// The seed, if it is about one.
    pub seed: Option<SeedIdentity>,
    /// Whose request it was, by its principal's name; null when it was nobody's who is known.
    #[serde(default)]
    pub by: Option<String>,
    /// What else there is to say, at most 200 bytes.
    pub detail: Option<String>,
}
