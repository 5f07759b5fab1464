//! For people and their tools: is it up, is it ready, what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use rfork_protocol::ids::hash_fingerprint;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::{ApiError, Unavailable};
use super::permit::Permit;
use super::{Api, written_apart};
use crate::store::{LeaseView, SeedView, Snapshot, StoreError};

/// How long the database may take to answer a question here.
const DEADLINE: Duration = Duration::from_secs(5);

/// Whether the process runs; says nothing of its database.
pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether requests should be sent here: the database takes writes, and the planner does not end.
pub(super) async fn readyz(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    if api.stop.is_draining() {
        return Err(Unavailable::STOPPING.into());
    }
    within(api.store.check()).await?;
    Ok(Json(json!({"status": "ok"})))
}

/// What is counted, as Prometheus reads it.
pub(super) async fn metrics(State(api): State<Api>, Extension(_): Extension<Permit>) -> Response {
    match api.metrics.scrape(api.store.as_ref()).await {
        Ok((format, text)) => ([(header::CONTENT_TYPE, format)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            ApiError::from(Unavailable::FAULT).into_response()
        }
    }
}

#[derive(Serialize)]
pub(super) struct SnapshotBody {
    seed_count: u64,
    lease_count: u64,
    /// Whether the lists below are cut; not there otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    seeds: BTreeMap<String, SeedBody>,
    leases: BTreeMap<String, LeaseBody>,
}

#[derive(Serialize)]
struct SeedBody {
    seed_key: String,
    resource_total: u32,
    resource_used: u32,
    last_heartbeat_ts: f64,
    last_used_ts: f64,
    draining: bool,
}

#[derive(Serialize)]
struct LeaseBody {
    seed_identity: String,
    seed_key: String,
    allocated_points: u32,
}

/// What the planner knows, in the form that the example planner gives; leases are named by the first 12
/// characters of their hash.
pub(super) async fn snapshot(
    State(api): State<Api>,
    Extension(_): Extension<Permit>,
) -> Result<Response, ApiError> {
    let Snapshot { ahead_ms, seed_count, lease_count, seeds, leases } = within(api.store.snapshot()).await?;
    let truncated = seeds.len() as u64 != seed_count || leases.len() as u64 != lease_count;
    let shown = |ms: i64| if ms > 0 { ms.saturating_sub(ahead_ms) as f64 / 1000.0 } else { 0.0 };
    let seeds = seeds.into_iter().map(|seed: SeedView| {
        let body = SeedBody {
            seed_key: seed.key.text().into_owned(),
            resource_total: seed.capacity,
            resource_used: seed.used,
            last_heartbeat_ts: shown(seed.last_heartbeat_ms),
            last_used_ts: shown(seed.last_used_ms),
            draining: seed.draining,
        };
        (seed.identity, body)
    });
    let leases = leases.into_iter().map(|lease: LeaseView| {
        let body = LeaseBody {
            seed_identity: lease.seed_identity,
            seed_key: lease.seed_key.text().into_owned(),
            allocated_points: 1,
        };
        (hash_fingerprint(&lease.lease), body)
    });
    let body =
        SnapshotBody { seed_count, lease_count, truncated, seeds: seeds.collect(), leases: leases.collect() };
    Ok(written_apart(body).await)
}

async fn within<T>(asking: impl Future<Output = Result<T, StoreError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Unavailable::TIMED_OUT.into()),
    }
}
