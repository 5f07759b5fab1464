//! Leases: acquired, renewed, released.

use rfork_protocol::problem::Code;
use rfork_protocol::v2::{
    Acquire, Granted, IDEMPOTENCY_KEY, IdempotencyKey, Location, Name, Release, Released, Renew, Renewed,
    TransferOutcome,
};
use rfork_protocol::{LeaseId, SeedIdentity};

use super::refused::Refused;
use super::route::Call;
use crate::domain::policy::Wish;
use crate::store::{Command, Grant, Outcome, Refusal, Report};

pub(super) async fn acquire(call: Call<Acquire>) -> Result<Granted, Refused> {
    idempotency_key(&call)?;
    let Call { api, request: Acquire { seed_key: key, location, instance_id, exclude, .. }, .. } = call;
    let lease_id = LeaseId::new(uuid::Uuid::new_v4().simple().to_string())
        .map_err(|error| Refused::new(Code::Internal, error.to_string()))?;
    let wish = Box::new(wish(location, instance_id, exclude));
    let command = Command::Acquire { key: key.clone(), wish, lease: lease_id.hash() };
    match api.writer.submit(command).await? {
        Outcome::Acquired(Ok(Grant { identity: seed, lease_ttl_ms, .. })) => {
            tracing::debug!(%seed, %key, lease = %lease_id, "granted");
            Ok(Granted { lease_id, seed, ttl_ms: lease_ttl_ms.unsigned_abs(), waited_ms: 0 })
        }
        Outcome::Acquired(Err(refusal)) => Err(refused(refusal)),
        outcome => Err(Refused::mismatched(&outcome)),
    }
}

/// What a worker wishes beside a key.
fn wish(location: Option<Location>, instance_id: Option<Name>, exclude: Vec<SeedIdentity>) -> Wish {
    Wish {
        location: super::location(location),
        instance_id: instance_id.map(String::from),
        source_instance: None,
        exclude,
    }
}

fn refused(refusal: Refusal) -> Refused {
    let (code, detail) = match refusal {
        Refusal::UnknownKey => (Code::UnknownKey, "no seed that lives holds this key"),
        Refusal::AllBusy => (Code::AllBusy, "the seeds of this key that may be offered have no room"),
        Refusal::AllSuspect => (Code::AllSuspect, "the seeds of this key that have room failed lately"),
    };
    Refused::new(code, detail)
}

/// The request's idempotency key, if it has one.
fn idempotency_key<T>(call: &Call<T>) -> Result<Option<IdempotencyKey>, Refused> {
    let Some(value) = call.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = IdempotencyKey::new(String::from_utf8_lossy(value.as_bytes()));
    key.map(Some).map_err(|error| Refused::invalid("Idempotency-Key", format!("the header {error}")))
}

pub(super) async fn renew(call: Call<Renew>) -> Result<Renewed, Refused> {
    let Call { api, request: Renew { lease_id, seed }, .. } = call;
    match api.writer.submit(Command::Renew { identity: seed, lease: lease_id.hash() }).await? {
        Outcome::Renewed(Some(ttl_ms)) => Ok(Renewed { ttl_ms: ttl_ms.unsigned_abs() }),
        Outcome::Renewed(None) => Err(not_found(&lease_id)),
        outcome => Err(Refused::mismatched(&outcome)),
    }
}

pub(super) async fn release(call: Call<Release>) -> Result<Released, Refused> {
    let Call { api, request: Release { lease_id, seed, outcome, reason, bytes, duration_ms }, .. } = call;
    let report = match outcome {
        TransferOutcome::Ok => Report::Ok,
        TransferOutcome::Failed => Report::Failed,
    };
    let command = Command::Release { identity: seed.clone(), lease: lease_id.hash(), report };
    match api.writer.submit(command).await? {
        Outcome::Released(true) => {
            tracing::debug!(%seed, lease = %lease_id, ?outcome, ?reason, "released");
            api.metrics.transfer(bytes, duration_ms);
            Ok(Released {})
        }
        Outcome::Released(false) => Err(not_found(&lease_id)),
        outcome => Err(Refused::mismatched(&outcome)),
    }
}

fn not_found(lease: &LeaseId) -> Refused {
    let detail = format!("no lease {lease} lives on this seed: it expired, was released, or never was");
    Refused::new(Code::LeaseNotFound, detail)
}
