//! The right to lead: of the workers that would read the same weights from storage one does, and the others wait for it.
//!
//! Only a planner that names [`RIGHT_TO_LEAD`] among its features is asked for it.
//!
//! 1. Who finds no seed asks ([`Claim`]), before it reads storage. Who is told [`Role::Leads`] has the right, and is
//!    registered as a loading seed without a source. It asks for a seed once more, as one may have come, and then reads.
//! 2. It renews the right by asking again, as often as it is told. The right ends by itself 10 s after the last time; when
//!    its holder deregisters, is granted a seed, or registers as a complete one; and when it makes no progress for as long
//!    as somebody else has patience.
//! 3. Who begins to read names an origin with its renewals ([`Claim::origin`]): from then on it is a source for workers that
//!    can read from loading seeds, and serves what it has read. Who names none is a source once it has everything.
//! 4. Who is told [`Role::Waits`] asks for a seed again, waits for one, and then asks for the right again.
//! 5. Who had the right and is told that somebody else has it loads on, for itself and for those who read from it already.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{LoadingSeed, Location, MAX_WAIT_MS, Name, body};
use crate::ids::{SeedIdentity, SeedKey};

/// The feature of a planner that gives the right to lead.
pub const RIGHT_TO_LEAD: &str = "right_to_lead";

/// `POST /v2/leads`: a worker would read weights from storage, or says that it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// What it loads.
    pub seed_key: SeedKey,
    /// What it is as a loading seed, or would be.
    #[serde(deserialize_with = "body::needed_object")]
    pub loading: LoadingSeed,
    /// Bytes that came since the load began, from wherever. More of them are progress.
    pub arrived_bytes: u64,
    /// For how long without any progress it waits for who has the right, in milliseconds.
    #[serde(deserialize_with = "patience_ms")]
    #[schemars(range(max = MAX_WAIT_MS))]
    pub patience_ms: u64,
    /// What names the bytes that it reads as long as they have no content id: `origin:` and a random name, another one for each
    /// attempt. Who leads and names it may be read from.
    #[serde(default, deserialize_with = "body::origin", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^origin:[0-9a-fA-F]{64}$"))]
    pub origin: Option<Name>,
    /// Whether it gets everything at once, and cannot say how far it is: its renewals are progress then, for ten minutes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// Where it stands.
    #[serde(default, deserialize_with = "body::object", skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The instance whose rank it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<Name>,
}

fn patience_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let patience_ms = u64::deserialize(deserializer)?;
    if patience_ms > MAX_WAIT_MS {
        return Err(serde::de::Error::custom(format_args!("must be at most {MAX_WAIT_MS}")));
    }
    Ok(patience_ms)
}

/// The answer to `Claim`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claimed {
    /// What the worker is to do.
    pub role: Role,
    /// When it is to ask again, in milliseconds: more seldom when the planner is busy.
    pub renew_after_ms: u64,
    /// Who has the right, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<SeedIdentity>,
    /// What names the bytes of who has the right, as far as the planner has heard. Whoever holds bytes of another origin may
    /// start over with these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Name>,
}

/// What a worker does that asked for the right to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It has the right: it reads storage.
    Leads,
    /// Another one has it: it waits for that.
    Waits,
    /// It reads storage for itself: it would wait longer for who has the right than that takes, or nobody has the right and it
    /// cannot be registered. So does who is told something that a later version says.
    #[serde(other)]
    Alone,
}
