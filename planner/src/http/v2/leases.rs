//! Leases: acquired, renewed, released.

use std::time::Instant;

use rfork_protocol::LeaseId;
use rfork_protocol::problem::Code;
use rfork_protocol::v2::{
    Acquire, Granted, IDEMPOTENCY_KEY, IdempotencyKey, Release, Released, Renew, Renewed, TransferOutcome,
};
use sha2::{Digest, Sha256};

use super::super::client::{requester, tell_of};
use super::loading;
use super::refused::Refused;
use super::route::Call;
use crate::domain::policy::Wish;
use crate::shares::network;
use crate::store::history::{Account, End};
use crate::store::{Grant, Idempotency, Queue, Refusal, Report, attempt, commands};
use crate::waiting::{AcquireError, Ask, MAX_WAIT};

pub(super) async fn acquire(call: Call<Acquire>) -> Result<Granted, Refused> {
    let begun = Instant::now();
    let idempotency_key = idempotency_key(&call)?;
    let Call { api, permit, request, client, entered, .. } = call;
    permit.key(&request.seed_key)?;
    let by = permit.by();
    let idempotency = idempotency_key.as_ref().map(|key| idempotency(key, &request, by.as_deref()));
    let lease_id = match &idempotency_key {
        Some(key) => api.store.lease_secret().lease_of(key.expose(), by.as_deref()),
        None => uuid::Uuid::new_v4().simple().to_string(),
    };
    let lease_id = LeaseId::new(lease_id).map_err(|error| Refused::new(Code::Internal, error.to_string()))?;
    let Acquire { seed_key: key, wait_ms, location, instance_id, exclude, loading, stalled } = request;
    let wait_ms = i64::try_from(wait_ms.min(super::millis(MAX_WAIT))).unwrap_or(i64::MAX);
    let address = client.as_ref().map(|client| client.address);
    let instance_id = instance_id.map(String::from);
    let ask = Ask {
        key,
        wish: Box::new(Wish {
            // To a planner that is to know nothing of loading seeds, its worker is as any other.
            loading: loading
                .filter(|_| api.loading_seeds)
                .map(|told| Box::new(loading::asker(told, permit.enforced_owner(), stalled))),
            location: super::whereabouts(&api, location, client.as_ref()),
            requester: requester(by.as_deref(), instance_id.as_deref(), address),
            instance_id,
            exclude,
            client: address.map(network),
            by,
            ..Wish::default()
        }),
        lease: lease_id.hash(),
        queue: Queue { wait_ms, idempotency, attempt: attempt(), again: None },
        client: address,
        entered,
    };
    match api.granter.acquire(&ask).await {
        Ok(granted) => {
            let Grant { identity: seed, lease_ttl_ms, source, .. } = granted.grant().clone();
            tell_of(client, granted);
            let waited_ms = if wait_ms > 0 { super::millis(begun.elapsed()) } else { 0 };
            tracing::debug!(%seed, key = %ask.key, lease = %lease_id, waited_ms, "granted");
            let source = source.map(|source| loading::source(*source));
            let pinned = api.file.overrides.pins.of(&ask.key).map(|pinned| pinned.ids().to_vec());
            Ok(Granted { lease_id, seed, ttl_ms: lease_ttl_ms.unsigned_abs(), waited_ms, source, pinned })
        }
        Err(AcquireError::Refused(refusal)) => Err(refused(refusal)),
        Err(AcquireError::Superseded) => Err(refused(Refusal::LeaseEnded)),
        Err(AcquireError::Write(error)) => Err(error.into()),
    }
}

/// What tells the request from others. How long it waits is not part of it: a repetition has less time.
fn idempotency(key: &IdempotencyKey, request: &Acquire, by: Option<&str>) -> Idempotency {
    let request = Acquire { wait_ms: 0, ..request.clone() };
    Idempotency {
        key: digest_of(key, by),
        // A request that was read from JSON has a JSON form.
        request: Sha256::digest(serde_json::to_vec(&request).unwrap_or_default()).into(),
    }
}

/// Of an idempotency key, as its principal has it: nobody meets the key of somebody else.
fn digest_of(key: &IdempotencyKey, by: Option<&str>) -> [u8; 32] {
    let mut digest = Sha256::new();
    if let Some(by) = by {
        digest.update(by);
        // It is in no name and in no key.
        digest.update([0]);
    }
    digest.update(key.expose());
    digest.finalize().into()
}

fn refused(refusal: Refusal) -> Refused {
    let (code, detail) = match refusal {
        Refusal::UnknownKey => (Code::UnknownKey, "no seed that lives holds this key"),
        Refusal::AllBusy => (Code::AllBusy, "the seeds of this key that may be offered have no room"),
        Refusal::LeaseEnded => {
            (Code::LeaseEnded, "the lease of this idempotency key has ended; ask anew under another key")
        }
        Refusal::OtherRequest => {
            (Code::IdempotencyConflict, "another request was made under this idempotency key; take a new one")
        }
        Refusal::AllSuspect => (Code::AllSuspect, "the seeds of this key that have room failed lately"),
        Refusal::NoRoom(no_room) => return Refused::full(no_room),
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
    let Call { api, request: Renew { lease_id, seed, loading }, .. } = call;
    let progress = loading.filter(|_| api.loading_seeds).map(loading::progress).map(Box::new);
    let renewal = commands::Renew { identity: seed, lease: lease_id.hash(), progress };
    let commands::Renewed { ttl_ms, loading } =
        api.submit(renewal).await?.ok_or_else(|| not_found(&lease_id))?;
    Ok(Renewed {
        ttl_ms: ttl_ms.unsigned_abs(),
        renew_after_ms: loading.map(|told| told.renew_after_ms.unsigned_abs()),
        advice: loading.and_then(|told| told.advice),
    })
}

pub(super) async fn release(call: Call<Release>) -> Result<Released, Refused> {
    let Call {
        api, permit, request: Release { lease_id, seed, outcome, reason, bytes, duration_ms }, ..
    } = call;
    let report = match outcome {
        TransferOutcome::Ok => Report::Ok,
        TransferOutcome::Failed => Report::Failed,
        TransferOutcome::Aborted => Report::Aborted,
    };
    let account =
        Account { end: End::Released, reason: reason.clone().map(String::from), bytes, duration_ms };
    let release = commands::Release {
        identity: seed.clone(),
        lease: lease_id.hash(),
        report,
        account: Some(Box::new(account)),
        by: permit.by(),
    };
    if !api.submit(release).await? {
        return Err(not_found(&lease_id));
    }
    tracing::debug!(%seed, lease = %lease_id, ?outcome, ?reason, "released");
    api.metrics.transfer(bytes, duration_ms);
    Ok(Released {})
}

fn not_found(lease: &LeaseId) -> Refused {
    let detail = format!("no lease {lease} lives on this seed: it expired, was released, or never was");
    Refused::new(Code::LeaseNotFound, detail)
}
