//! Seeds: registered, heard of, drained, gone, listed.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::query::{Fields, Query, QueryError, Written};
use super::{Cursor, DEFAULT_PAGE, Label, LoadProgress, LoadingSummary, Location, MAX_BEATS, Name, body};
use crate::host::Host;
use crate::ids::{SeedIdentity, SeedKey};

/// `POST /v2/seeds`: a worker holds weights and lets others read them. Repeating it is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Where it is.
    pub seed: SeedIdentity,
    /// What it holds.
    pub seed_key: SeedKey,
    /// Which model, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_url: Option<Label>,
    /// Which deployment of it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_strategy: Option<Label>,
    /// Whether it is a draft model, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_draft: Option<bool>,
    /// Tells one process at this address from the next: another one means other memory, so leases on the earlier
    /// end and its failures are forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Name>,
    /// The instance whose rank this is. Ranks that ask together are preferably served from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<Name>,
    /// What its bytes are: the manifest's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<Name>,
    /// What named them while they had no content id, if it was a loading seed then. Whoever still loads under that name goes
    /// on from it.
    #[serde(default, deserialize_with = "body::origin", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^origin:[0-9a-fA-F]{64}$"))]
    pub origin: Option<Name>,
    /// Where it stands.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// It was not known.
    New,
    /// It was known and unchanged; its leases live on.
    Repeated,
    /// It was a loading seed of the same incarnation, and is a complete one now; its leases live on.
    Completed,
    /// It held something else, or another process did: leases on that end.
    NewHolding,
    /// It was drained, and stays out while its memory is the same; or it was deregistered, and comes back once its last lease
    /// has ended.
    Draining,
}

/// The answer to `Register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Registered {
    /// What became of it.
    pub registration: Registration,
    /// How often it should be heard of, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// How long it may be silent before it is offered no more, in milliseconds.
    pub heartbeat_ttl_ms: u64,
}

/// `POST /v2/seeds/heartbeat`: these seeds live. A host sends one for all its ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatBatch {
    /// The seeds.
    #[serde(deserialize_with = "body::objects::<1, MAX_BEATS, _, _>")]
    #[schemars(length(min = 1, max = MAX_BEATS))]
    pub seeds: Vec<Beat>,
}

/// A sign of life of one seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// Where it is.
    pub seed: SeedIdentity,
    /// What it holds.
    pub seed_key: SeedKey,
    /// As it was registered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Name>,
    /// How far it is, if it is a loading seed that has no lease to renew. Only for planners with that feature.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadProgress>,
}

/// The answer to `HeartbeatBatch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatResults {
    /// For each seed, in the order of the request.
    pub results: Vec<BeatResult>,
}

/// What a heartbeat met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BeatResult {
    /// The seed.
    pub seed: SeedIdentity,
    /// What is known of it.
    pub status: BeatStatus,
}

/// What is known of a seed that was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BeatStatus {
    /// It is registered.
    Ok,
    /// It is not, or with another key or incarnation: it must register.
    Unknown,
    /// It is offered no more until its last lease has ended.
    Draining,
}

/// `POST /v2/seeds/drain`: the seed is offered no more; its leases live on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Where it is.
    pub seed: SeedIdentity,
    /// What it must hold.
    pub seed_key: SeedKey,
}

/// The answer to `Drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drained {
    /// Leases on it that still live.
    pub active_leases: u32,
}

/// `POST /v2/seeds/deregister`: the worker is a seed no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deregister {
    /// Where it is.
    pub seed: SeedIdentity,
    /// What it must hold.
    pub seed_key: SeedKey,
}

/// The answer to `Deregister`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deregistered {
    /// What became of it.
    pub state: Deregistration,
}

/// What a deregistration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Deregistration {
    /// It is gone.
    Gone,
    /// It is offered no more and goes with its last lease.
    Draining,
}

/// What a seed is to the planner now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeedState {
    /// It is offered.
    Live,
    /// It failed lately and is not offered for a while.
    Suspect,
    /// It is offered no more and goes with its last lease.
    Draining,
    /// It was not heard of for too long, and is not offered until it is.
    Silent,
}

impl SeedState {
    const NAMES: [(&str, Self); 4] = [
        ("live", Self::Live),
        ("suspect", Self::Suspect),
        ("draining", Self::Draining),
        ("silent", Self::Silent),
    ];

    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }
}

/// `GET /v2/seeds`: those that fit all that is told, in the order of their identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedQuery {
    /// Seeds that hold this.
    pub seed_key: Option<SeedKey>,
    /// Seeds of this model.
    pub model_url: Option<Label>,
    /// Seeds at this host.
    pub host: Option<Host>,
    /// Seeds in this state.
    pub state: Option<SeedState>,
    /// Seeds on a page.
    pub limit: u32,
    /// Where the page begins.
    pub after: Option<Cursor>,
}

impl Default for SeedQuery {
    fn default() -> Self {
        Self { seed_key: None, model_url: None, host: None, state: None, limit: DEFAULT_PAGE, after: None }
    }
}

impl Query for SeedQuery {
    const PARAMETERS: &'static [&'static str] = &["seed_key", "model_url", "host", "state", "limit", "after"];

    fn decode(query: &str) -> Result<Self, QueryError> {
        let mut fields = Fields::read(query, Self::PARAMETERS)?;
        Ok(Self {
            seed_key: fields.seed_key()?,
            model_url: fields.value("model_url")?,
            host: fields.host()?,
            state: fields.one_of("state", &SeedState::NAMES)?,
            limit: fields.limit()?,
            after: fields.value("after")?,
        })
    }

    fn encode(&self) -> String {
        Written::default()
            .bytes("seed_key", self.seed_key.as_ref().map(SeedKey::as_bytes))
            .text("model_url", self.model_url.as_ref().map(Label::as_str))
            .text("host", self.host.as_ref().map(Host::as_str))
            .text("state", self.state.map(SeedState::as_str))
            .text("limit", Some(&self.limit.to_string()))
            .text("after", self.after.as_ref().map(Cursor::as_str))
            .finish()
    }
}

/// The answer to `SeedQuery`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedList {
    /// The page.
    pub seeds: Vec<SeedSummary>,
    /// Where the next page begins; null when this is the last.
    pub next: Option<Cursor>,
}

/// A seed, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedSummary {
    /// Where it is.
    pub seed: SeedIdentity,
    /// What it holds.
    pub seed_key: SeedKey,
    /// What it is to the planner.
    pub state: SeedState,
    /// Leases that it may have at once.
    pub capacity: u32,
    /// Leases that it has.
    pub used: u32,
    /// How long ago it was last heard of, in milliseconds.
    pub heartbeat_age_ms: u64,
    /// How long ago a lease on it was last granted, in milliseconds; null for never.
    pub last_used_age_ms: Option<u64>,
    /// How long it will still be suspect, in milliseconds; null when it is not.
    pub suspect_for_ms: Option<u64>,
    /// Transfers that failed since it last did well.
    pub failures: u32,
    /// Which model.
    pub model_url: Option<String>,
    /// Which deployment of it.
    pub deploy_strategy: Option<String>,
    /// Whether it is a draft model.
    pub is_draft: Option<bool>,
    /// Which process at its address.
    pub incarnation: Option<String>,
    /// The instance whose rank it is.
    pub instance_id: Option<String>,
    /// What its bytes are.
    pub content_id: Option<String>,
    /// Where it stands.
    pub location: Place,
    /// Whose it is; null if it is nobody's who is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<SeedOwner>,
    /// How far it is, while it loads; null once it has everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadingSummary>,
}

/// Whose a seed is: who alone may send its heartbeats, register its address or take it out, while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedOwner {
    /// The principal that registered it, by its name; null if that is not known.
    pub principal: Option<String>,
    /// The address that it was registered from; null if that does not bind.
    pub address: Option<IpAddr>,
}

/// Where a seed stands, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The largest part that is told apart.
    pub zone: Option<String>,
    /// A part of the zone that shares a switch.
    pub rack: Option<String>,
    /// The machine.
    pub host: Option<String>,
}
