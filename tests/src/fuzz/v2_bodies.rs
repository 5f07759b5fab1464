//! The bodies of API v2: of all requests, as a planner reads them, and of all answers, as a worker does.

use std::fmt::Debug;

use rfork_protocol::problem::Problem;
use rfork_protocol::v2::{
    self, Acquire, Claim, Claimed, Deregister, Deregistered, Drain, Drained, EndedLeaseList, EventList,
    Explain, Explained, Granted, HeartbeatBatch, HeartbeatResults, Invalidate, Invalidated, KeyList,
    LeaseList, MAX_BEATS, MAX_EXCLUDED, MAX_WAIT_MS, Register, Registered, Release, Released, Renew, Renewed,
    SeedList, Service,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "v2_bodies", run, executions: 10_000, most_bytes: |input| 128 * input + (64 << 10) };

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    requested::<Register>(data);
    requested::<Drain>(data);
    requested::<Deregister>(data);
    requested::<Renew>(data);
    requested::<Release>(data);
    requested::<Invalidate>(data);
    let excluded = requested::<Explain>(data).map_or(0, |explain| explain.exclude.len());
    assert!(excluded <= MAX_EXCLUDED);
    let beats = requested::<HeartbeatBatch>(data).map_or(1, |batch| batch.seeds.len());
    assert!((1..=MAX_BEATS).contains(&beats));
    if let Some(acquire) = requested::<Acquire>(data) {
        assert!(acquire.wait_ms <= MAX_WAIT_MS && acquire.exclude.len() <= MAX_EXCLUDED);
    }
    if let Some(claim) = requested::<Claim>(data) {
        assert!(claim.patience_ms <= MAX_WAIT_MS);
    }
    answered::<Registered>(data);
    answered::<HeartbeatResults>(data);
    answered::<Drained>(data);
    answered::<Deregistered>(data);
    answered::<Granted>(data);
    answered::<Renewed>(data);
    answered::<Released>(data);
    answered::<Claimed>(data);
    answered::<Invalidated>(data);
    answered::<Explained>(data);
    answered::<SeedList>(data);
    answered::<LeaseList>(data);
    answered::<EndedLeaseList>(data);
    answered::<KeyList>(data);
    answered::<EventList>(data);
    answered::<Service>(data);
    if let Some(problem) = Problem::from_json(data) {
        assert_eq!(Problem::from_json(problem.to_json().as_bytes()), Some(problem));
    }
}

fn requested<T: PartialEq + Debug + Serialize + DeserializeOwned>(body: &[u8]) -> Option<T> {
    match v2::decode::<T>(body) {
        Ok(request) => {
            let written = serde_json::to_vec(&request).unwrap();
            assert_eq!(v2::decode::<T>(&written).as_ref(), Ok(&request));
            Some(request)
        }
        Err(error) => {
            is_one_line(&error);
            None
        }
    }
}

fn answered<T: PartialEq + Debug + Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<T>(body) {
        let written = serde_json::to_vec(&answer).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), answer);
    }
}
