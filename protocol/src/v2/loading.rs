//! Workers that serve what they hold while they load: what they tell a planner, and what it tells them.
//!
//! A planner that knows of them names [`LOADING_SEEDS`] among its features ([`Service::features`](super::Service)). No
//! other planner is told any of this, because it would refuse fields that it does not know; and from an answer without
//! these fields a worker does what it did before there were any. API v1 has no words for loading seeds, so its clients
//! never find one.
//!
//! 1. A worker's services listen before it asks. Its acquisition carries [`LoadingSeed`], and the grant registers that, in
//!    the same transaction, with the key, the instance and the place of the acquisition and with the granted seed as its
//!    source. The answer has a [`Source`] when that was done. A refusal, or a wait that ends, registers nothing.
//! 2. The same address with another incarnation is other memory: leases on the earlier one end. With the same one its row
//!    stays, and gets the new source.
//! 3. It is heard of by its renewals, which carry [`LoadProgress`], and, while it has no lease, by heartbeats that carry the
//!    same, or by its questions for the right to read storage. Whoever was not heard of for three periods is no source.
//! 4. A lease that ends without another registration or acquisition ends the registration after those periods.
//! 5. Whoever gets no byte keeps its lease and asks for another source, naming the one that stalls ([`Stalled`]). It gives
//!    the first lease back when it has the second. If the one that it names is lost, or leaves, or has a slow link, it is
//!    granted that one's place: the same point of the same seed. Both leases that led there have ended then. Of a slow link
//!    the planner knows by what renewals tell; it advises the reader to move ([`Advice::Move`]), or, if storage gives more than
//!    a link does, to read that ([`Advice::ReadStorage`]).
//! 6. Whoever holds everything registers as any seed does, under the same address and incarnation: its row becomes a
//!    complete seed's, and leases on it live on ([`Registration::Completed`](super::Registration)).
//! 7. Whoever starts over, fails or is cancelled deregisters. It comes back under another incarnation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Label, Name};
use crate::ids::{LeaseId, SeedIdentity};

/// The feature of a planner that knows loading seeds.
pub const LOADING_SEEDS: &str = "loading_seeds";

/// How much of its weights a seed holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeedPhase {
    /// Some: it still loads, and serves what it holds.
    Loading,
    /// All.
    #[default]
    Complete,
}

/// What a worker that asks would be as a loading seed. Key, instance and place are those of its acquisition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadingSeed {
    /// Where its metadata service listens already.
    pub seed: SeedIdentity,
    /// Tells its memory from any other at this address.
    pub incarnation: Name,
    /// The model's size in bytes.
    pub total_bytes: u64,
    /// What it holds; none while that is nothing.
    #[serde(default, deserialize_with = "super::body::object", skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Whether it takes a source of another root, too, and drops what it holds if that has other bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starts_over: bool,
    /// Which model, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_url: Option<Label>,
    /// Which deployment of it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_strategy: Option<Label>,
    /// Whether it is a draft model, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_draft: Option<bool>,
}

/// Bytes that are held and verified. They are always of one root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// What names the bytes: a content id; or an origin, which begins with `origin:`, of bytes that had no content id when
    /// the load began. Compared exactly.
    pub root: Name,
    /// How many.
    pub bytes: u64,
}

/// The source of which no byte comes, or that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stalled {
    /// The source. It is not granted to this asker.
    pub seed: SeedIdentity,
    /// The asker's lease on it: only a live one is believed.
    pub lease_id: LeaseId,
    /// For how long no byte came, in milliseconds.
    pub silent_ms: u64,
    /// Whether there is no connection to it and no sign of life. If the planner hears nothing of it either, its place is
    /// the asker's.
    #[serde(default)]
    pub lost: bool,
}

/// What was granted to a worker that told what it would be as a loading seed, and is now registered as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// Whether the source has all, or still loads.
    pub phase: SeedPhase,
    /// Sources between this worker and a complete seed or storage: 0 for who reads from a complete seed.
    pub depth: u32,
    /// What names the source's bytes, as far as the planner has heard.
    pub root: Option<Name>,
    /// When the first renewal is due, in milliseconds.
    pub renew_after_ms: u64,
    /// What was granted of the source: whoever greets it with a point ends the connections of who had that before.
    pub point: LeasedPoint,
}

/// A point of a seed, and since when it is somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeasedPoint {
    /// Its number.
    pub number: u32,
    /// When it was granted, Unix milliseconds by the planner's clock: of two who have the same point, the later one has it.
    pub since_ms: u64,
}

/// How far a loading seed is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadProgress {
    /// Its incarnation: progress of other memory is not taken for its own.
    pub incarnation: Name,
    /// Bytes that came since the load began, from wherever, within chunks as well.
    pub arrived_bytes: u64,
    /// What it holds; none while that is nothing. All of it when it is as much as `total_bytes` of its registration.
    #[serde(default, deserialize_with = "super::body::object", skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// A seed that loads, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoadingSummary {
    /// Sources between it and a complete seed, or storage.
    pub depth: u32,
    /// The seed that it reads from; null when that is gone, or when it reads from storage.
    pub source: Option<SeedIdentity>,
    /// What names its bytes, as far as the planner has heard.
    pub root: Option<String>,
    /// Bytes that it holds.
    pub held_bytes: u64,
    /// Bytes that came since the load began.
    pub arrived_bytes: u64,
    /// The model's size in bytes.
    pub total_bytes: u64,
}

/// What a loading seed is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// Ask for another source, naming this one as stalled; read on until there is one.
    Move,
    /// Read what is missing from storage: nobody else has to be asked for the right to. Whoever cannot do that passes it over.
    ReadStorage,
    /// It is not registered any more, so nobody is sent to it. It reads on; its next acquisition registers it.
    RegistrationEnded,
    /// Something that a later version says: pass it over.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
