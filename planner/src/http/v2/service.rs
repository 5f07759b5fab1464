//! What the planner says of itself.

use rfork_protocol::v2::{NoQuery, Service};
use serde_json::Value;

use super::openapi::document;
use super::refused::Refused;
use super::route::Call;

/// How often within its time to live a seed should be heard of: one beat may be lost.
const BEATS_A_TTL: u32 = 2;

pub(super) async fn service(call: Call<NoQuery>) -> Result<Service, Refused> {
    Ok(Service {
        service: Service::NAME.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        api: vec!["v1".into(), "v2".into()],
        heartbeat_interval_ms: heartbeat_interval_ms(&call),
        max_wait_ms: 0,
    })
}

/// How often a seed should be heard of.
pub(super) fn heartbeat_interval_ms<T>(call: &Call<T>) -> u64 {
    super::millis(call.api.heartbeat_ttl / BEATS_A_TTL)
}

pub(super) async fn openapi(_: Call<NoQuery>) -> Result<&'static Value, Refused> {
    Ok(document())
}
