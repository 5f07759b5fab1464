//! Planner API v2: JSON requests and answers, typed and checked here and nowhere else.
//!
//! A request is an object whose unknown fields are refused, so that a slip is not taken for a default; an answer
//! may come to have more fields, and a client leaves out what it does not know. Times are durations in
//! milliseconds, counted from the answer: no clock is compared with another. A lease id is a credential: it
//! travels in bodies, never in a URL. Whatever fails is answered with a [problem](crate::problem).

mod body;
mod history;
mod keys;
mod leads;
mod leases;
mod loading;
mod query;
mod seeds;
mod service;
mod values;

#[cfg(test)]
mod tests;

pub use body::{BodyError, decode};
pub use history::{EndedLease, EndedLeaseList, Event, EventKind, EventList, EventQuery, LeaseEnd};
pub use keys::{
    Explain, Explained, ExplainedSeed, Invalidate, Invalidated, KeyList, KeyQuery, KeySummary, SeedCounts,
    Verdict,
};
pub use leads::{Claim, Claimed, RIGHT_TO_LEAD, Role};
pub use leases::{
    Acquire, Granted, LeaseList, LeaseQuery, LeaseSummary, Release, Released, Renew, Renewed, TransferOutcome,
};
pub use loading::{
    Advice, Held, LOADING_SEEDS, LeasedPoint, LoadProgress, LoadingSeed, LoadingSummary, SeedPhase, Source,
    Stalled,
};
pub use query::{DEFAULT_PAGE, MAX_PAGE, NoQuery, Query, QueryError};
pub use seeds::{
    Beat, BeatResult, BeatStatus, Deregister, Deregistered, Deregistration, Drain, Drained, HeartbeatBatch,
    HeartbeatResults, Place, Register, Registered, Registration, SeedList, SeedOwner, SeedQuery, SeedState,
    SeedSummary,
};
pub use service::Service;
pub use values::{Cursor, IdempotencyKey, Label, Location, Name, Reason, Text, ValueError};

/// `GET`: what the planner is and speaks, [`Service`]. A planner that answers 404 speaks v1 only.
pub const SERVICE: &str = "/v2";
/// `POST`: registers a seed. `GET`: lists seeds.
pub const SEEDS: &str = "/v2/seeds";
/// `POST`: heartbeats of one seed or of all seeds of a host.
pub const HEARTBEAT: &str = "/v2/seeds/heartbeat";
/// `POST`: a seed is offered no more.
pub const DRAIN: &str = "/v2/seeds/drain";
/// `POST`: a seed goes.
pub const DEREGISTER: &str = "/v2/seeds/deregister";
/// `POST`: leases a seed. `GET`: lists leases.
pub const LEASES: &str = "/v2/leases";
/// `GET`: lists leases that ended.
pub const ENDED_LEASES: &str = "/v2/leases/ended";
/// `POST`: extends a lease.
pub const RENEW: &str = "/v2/leases/renew";
/// `POST`: ends a lease and tells how it went.
pub const RELEASE: &str = "/v2/leases/release";
/// `POST`: asks for the right to read weights from storage while others wait, or renews it.
pub const LEADS: &str = "/v2/leads";
/// `GET`: lists keys.
pub const KEYS: &str = "/v2/keys";
/// `POST`: the weights of a key were replaced.
pub const INVALIDATE: &str = "/v2/keys/invalidate";
/// `POST`: every seed of a key, and why it would or would not be granted.
pub const EXPLAIN: &str = "/v2/explain";
/// `GET`: lists what became of seeds.
pub const EVENTS: &str = "/v2/events";
/// `GET`: the description of this API.
pub const OPENAPI: &str = "/v2/openapi.json";

/// The request header that makes an acquisition repeatable, [`IdempotencyKey`].
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest body of a request, in bytes; that of [`HEARTBEAT`] has [`MAX_BATCH_BODY_BYTES`].
pub const MAX_BODY_BYTES: usize = 128 * 1024;
/// The longest body of a [`HeartbeatBatch`], in bytes.
pub const MAX_BATCH_BODY_BYTES: usize = 1024 * 1024;
/// Seeds in a [`HeartbeatBatch`] at most.
pub const MAX_BEATS: usize = 1_024;
/// Seeds that an acquisition excludes at most.
pub const MAX_EXCLUDED: usize = 64;
/// The longest wait that a request may ask for, in milliseconds. A planner may wait less; it says how long.
pub const MAX_WAIT_MS: u64 = 3_600_000;
