//! Keys: what there is of each, whose weights were replaced, and why a seed is or is not granted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::query::{Fields, Query, QueryError, Written};
use super::{Cursor, DEFAULT_PAGE, Location, MAX_EXCLUDED, Name, SeedSummary, body};
use crate::ids::{SeedIdentity, SeedKey};

/// `GET /v2/keys`, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyQuery {
    /// Keys on a page.
    pub limit: u32,
    /// Where the page begins.
    pub after: Option<Cursor>,
}

impl Default for KeyQuery {
    fn default() -> Self {
        Self { limit: DEFAULT_PAGE, after: None }
    }
}

impl Query for KeyQuery {
    const PARAMETERS: &'static [&'static str] = &["limit", "after"];

    fn decode(query: &str) -> Result<Self, QueryError> {
        let mut fields = Fields::read(query, Self::PARAMETERS)?;
        Ok(Self { limit: fields.limit()?, after: fields.value("after")? })
    }

    fn encode(&self) -> String {
        Written::default()
            .text("limit", Some(&self.limit.to_string()))
            .text("after", self.after.as_ref().map(Cursor::as_str))
            .finish()
    }
}

/// The answer to `KeyQuery`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyList {
    /// The page.
    pub keys: Vec<KeySummary>,
    /// Where the next page begins; null when this is the last.
    pub next: Option<Cursor>,
}

/// What there is of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeySummary {
    /// The key.
    pub seed_key: SeedKey,
    /// Its seeds, by state.
    pub seeds: SeedCounts,
    /// Leases that its live seeds may have at once.
    pub capacity: u64,
    /// Leases that its seeds have.
    pub used: u64,
    /// Requests that wait for one of its seeds.
    pub waiting: u64,
}

/// Seeds by what they are to the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SeedCounts {
    /// Offered.
    pub live: u64,
    /// Left alone for a while after a failure.
    pub suspect: u64,
    /// Offered no more.
    pub draining: u64,
    /// Not heard of.
    pub silent: u64,
}

/// `POST /v2/keys/invalidate`: the weights of this key were replaced under the same name. Seeds
/// that hold another content drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invalidate {
    /// The key.
    pub seed_key: SeedKey,
    /// What the new weights are; without it every seed drains, and so does one that does not tell its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_content_id: Option<Name>,
}

/// The answer to `Invalidate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Invalidated {
    /// Seeds that drain because of it.
    pub drained: u64,
}

/// `POST /v2/explain`: what an acquisition would meet now. Nothing is leased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// What the worker wants.
    pub seed_key: SeedKey,
    /// Where it stands.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The instance whose rank it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<Name>,
    /// Seeds that it does not want.
    #[serde(
        default,
        deserialize_with = "body::list::<0, MAX_EXCLUDED, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(length(max = MAX_EXCLUDED))]
    pub exclude: Vec<SeedIdentity>,
}

/// The answer to `Explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// The seed that would be granted. Null when none would, and when not all seeds are listed: one that is not may
    /// be better.
    pub grant: Option<SeedIdentity>,
    /// The key's seeds, those that could be granted first, the best of them first.
    pub seeds: Vec<ExplainedSeed>,
    /// Whether there are more than are listed.
    pub truncated: bool,
}

/// A seed, and why it would or would not be granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedSeed {
    /// Why.
    pub verdict: Verdict,
    /// Its place among those that could be granted, from 1; null for others, and when not all seeds are listed.
    pub rank: Option<u32>,
    /// The seed.
    #[serde(flatten)]
    pub seed: SeedSummary,
}

/// Why a seed would or would not be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is the best.
    WouldBeGranted,
    /// It could be granted, and others are better, or may be: not all are listed.
    Ranked,
    /// All its capacity is leased.
    Full,
    /// All that the seeds of its host may lend together is leased.
    HostFull,
    /// It failed lately.
    Suspect,
    /// It was not heard of for too long.
    Silent,
    /// It is offered no more.
    Draining,
    /// The request excludes it.
    Excluded,
    /// Its weights are none that the key is pinned to.
    NotPinned,
    /// It still loads: only who can read from such a seed is granted one.
    Loading,
}
