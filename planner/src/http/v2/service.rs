//! What the planner says of itself.

use rfork_protocol::v2::{LOADING_SEEDS, NoQuery, RIGHT_TO_LEAD, Service};
use serde_json::Value;

use crate::waiting::MAX_WAIT;

use super::openapi::document;
use super::refused::Refused;
use super::route::Call;

/// What a planner knows under which workers may serve while they load.
const FEATURES: [&str; 2] = [LOADING_SEEDS, RIGHT_TO_LEAD];

pub(super) async fn service(call: Call<NoQuery>) -> Result<Service, Refused> {
    Ok(Service {
        service: Service::NAME.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        api: vec!["v1".into(), "v2".into()],
        heartbeat_interval_ms: heartbeat_interval_ms(&call),
        max_wait_ms: super::millis(MAX_WAIT),
        features: if call.api.loading_seeds { FEATURES.map(str::to_owned).to_vec() } else { Vec::new() },
    })
}

/// How often a seed should be heard of: at least twice within its time to live, so that one beat may be lost.
pub(super) fn heartbeat_interval_ms<T>(call: &Call<T>) -> u64 {
    super::millis(call.api.heartbeat_interval.min(call.api.heartbeat_ttl / 2))
}

pub(super) async fn openapi(_: Call<NoQuery>) -> Result<&'static Value, Refused> {
    Ok(document())
}
