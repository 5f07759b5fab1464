//! Leases: acquired, renewed, released, listed.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::query::{Fields, Query, QueryError, Written};
use super::{
    Advice, Cursor, DEFAULT_PAGE, LoadProgress, LoadingSeed, Location, MAX_EXCLUDED, MAX_WAIT_MS, Name,
    Reason, Source, Stalled, body,
};
use crate::ids::{LeaseId, SeedIdentity, SeedKey};

/// `POST /v2/leases`: a worker wants to read from a seed of this key. With an
/// `Idempotency-Key` it may be repeated after an answer was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acquire {
    /// What it wants.
    pub seed_key: SeedKey,
    /// How long it waits for a seed to be free, in milliseconds; at most what the planner says of itself.
    #[serde(default, deserialize_with = "wait_ms", skip_serializing_if = "is_zero")]
    #[schemars(range(max = MAX_WAIT_MS))]
    pub wait_ms: u64,
    /// Where it stands: a seed that is nearer is better.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The instance whose rank it is: its ranks are preferably served from one instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<Name>,
    /// Seeds that it does not want, because they failed it.
    #[serde(
        default,
        deserialize_with = "body::list::<0, MAX_EXCLUDED, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(length(max = MAX_EXCLUDED))]
    pub exclude: Vec<SeedIdentity>,
    /// What it would be as a loading seed, and that it can read from one. Only for planners with that feature.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadingSeed>,
    /// The source that it has, and of which no byte comes. Only with `loading`.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub stalled: Option<Stalled>,
}

impl Acquire {
    /// A request for a seed of `seed_key`, at once, of any.
    pub fn of(seed_key: SeedKey) -> Self {
        Self {
            seed_key,
            wait_ms: 0,
            location: None,
            instance_id: None,
            exclude: Vec::new(),
            loading: None,
            stalled: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn wait_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let wait_ms = Option::<u64>::deserialize(deserializer)?.unwrap_or(0);
    if wait_ms > MAX_WAIT_MS {
        return Err(serde::de::Error::custom(format_args!("must be at most {MAX_WAIT_MS}")));
    }
    Ok(wait_ms)
}

/// The answer to `Acquire`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Granted {
    /// The right to read from the seed.
    pub lease_id: LeaseId,
    /// The seed.
    pub seed: SeedIdentity,
    /// How long the lease still lives without a renewal, in milliseconds.
    pub ttl_ms: u64,
    /// How long the request waited, in milliseconds.
    pub waited_ms: u64,
    /// What the seed is as a source; told to who told what it would be as a loading seed, and was registered as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The content ids that the key is pinned to: a reader takes no others. None: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Vec<Name>>,
}

/// `POST /v2/leases/renew`: the worker still reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The lease.
    pub lease_id: LeaseId,
    /// The seed that it is for.
    pub seed: SeedIdentity,
    /// How far it is, if the grant told of a source.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadProgress>,
}

/// The answer to `Renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Renewed {
    /// How long the lease now lives without another renewal, in milliseconds.
    pub ttl_ms: u64,
    /// When the next renewal is due, in milliseconds: more seldom when the planner is busy. Told to who tells how far
    /// it is; others renew at a third of the time to live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_after_ms: Option<u64>,
    /// What it should do, beside going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
}

/// How a transfer went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferOutcome {
    /// The seed did well, whether or not all was read.
    Ok,
    /// The seed failed: others are spared it for a while.
    Failed,
    /// The worker stopped for reasons that say nothing of the seed.
    Aborted,
}

/// `POST /v2/leases/release`: the worker reads no more. Repeating it is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The lease.
    pub lease_id: LeaseId,
    /// The seed that it is for.
    pub seed: SeedIdentity,
    /// How it went.
    pub outcome: TransferOutcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Bytes that were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long reading took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// The answer to `Release`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Released {}

/// `GET /v2/leases`: those that live and fit all that is told, by seed. `GET /v2/leases/ended`: those that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseQuery {
    /// Leases on seeds that hold this.
    pub seed_key: Option<SeedKey>,
    /// Leases on this seed.
    pub seed: Option<SeedIdentity>,
    /// Leases on a page.
    pub limit: u32,
    /// Where the page begins.
    pub after: Option<Cursor>,
}

impl Default for LeaseQuery {
    fn default() -> Self {
        Self { seed_key: None, seed: None, limit: DEFAULT_PAGE, after: None }
    }
}

impl Query for LeaseQuery {
    const PARAMETERS: &'static [&'static str] = &["seed_key", "seed", "limit", "after"];

    fn decode(query: &str) -> Result<Self, QueryError> {
        let mut fields = Fields::read(query, Self::PARAMETERS)?;
        Ok(Self {
            seed_key: fields.seed_key()?,
            seed: fields.seed()?,
            limit: fields.limit()?,
            after: fields.value("after")?,
        })
    }

    fn encode(&self) -> String {
        Written::default()
            .bytes("seed_key", self.seed_key.as_ref().map(SeedKey::as_bytes))
            .text("seed", self.seed.as_ref().map(SeedIdentity::to_string).as_deref())
            .text("limit", Some(&self.limit.to_string()))
            .text("after", self.after.as_ref().map(Cursor::as_str))
            .finish()
    }
}

/// The answer to `LeaseQuery`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseList {
    /// The page.
    pub leases: Vec<LeaseSummary>,
    /// Where the next page begins; null when this is the last.
    pub next: Option<Cursor>,
}

/// A lease, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseSummary {
    /// The first 12 hex digits of the lease id's SHA-256, as workers log it. No credential.
    pub lease: String,
    /// The seed that it is for.
    pub seed: SeedIdentity,
    /// What that holds.
    pub seed_key: SeedKey,
    /// How long it still lives without a renewal, in milliseconds.
    pub ttl_ms: u64,
    /// How long ago it was granted, in milliseconds.
    pub age_ms: u64,
}
