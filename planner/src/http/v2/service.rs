//! What the planner says of itself.

use rfork_protocol::v2::{LOADING_SEEDS, NoQuery, Service};
use serde_json::Value;

use crate::waiting::MAX_WAIT;

use super::openapi::document;
use super::refused::Refused;
use super::route::Call;

pub(super) async fn service(call: Call<NoQuery>) -> Result<Service, Refused> {
    Ok(Service {
        service: Service::NAME.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        api: vec!["v1".into(), "v2".into()],
        heartbeat_interval_ms: heartbeat_interval_ms(&call),
        max_wait_ms: super::millis(MAX_WAIT),
        features: call.api.loading_seeds.then(|| LOADING_SEEDS.into()).into_iter().collect(),
    })
}

/// How often a seed should be heard of: at least twice within its time to live, so that one beat may be lost.
pub(super) fn heartbeat_interval_ms<T>(call: &Call<T>) -> u64 {
    super::millis(call.api.heartbeat_interval.min(call.api.heartbeat_ttl / 2))
}

pub(super) async fn openapi(_: Call<NoQuery>) -> Result<&'static Value, Refused> {
    Ok(document())
}
