//! API v1: headers in, headers out.

use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use rfork_protocol::LeaseId;
use rfork_protocol::v1::{
    AddSeed, GetSeed, Granted, LEASE_NOT_FOUND, LeaseRef, NO_AVAILABLE_SEED, RemoveSeed,
};

use super::Api;
use super::client::{Client, requester, tell_of};
use super::error::{ApiError, Unavailable};
use super::owned;
use super::permit::Permit;
use crate::domain::policy::Wish;
use crate::domain::seed::{Profile, Registration, Removal};
use crate::shares::{Entered, network};
use crate::store::commands::{Register, Release, Remove, Renew};
use crate::store::{Grant, Queue, Refusal, Report, attempt};
use crate::waiting::{AcquireError, Ask};

pub(super) async fn add_seed(
    State(api): State<Api>,
    Extension(permit): Extension<Permit>,
    client: Option<Extension<Client>>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let AddSeed { key, identity, labels, .. } = AddSeed::decode(&headers)?;
    permit.key(&key)?;
    let name = identity.to_string();
    let location = api.file.networks.locate_seed(&identity);
    let profile = Box::new(Profile { labels, location, ..Profile::default() });
    let owner = permit.owner();
    if api.heartbeats.note(&name, &key, &owner, &profile) {
        return Ok(StatusCode::OK);
    }
    let client = client.map(|Extension(client)| network(client.address));
    let register =
        Register { identity, key: key.clone(), profile, age_ms: 0, client, owner, by: permit.by() };
    let registration = owned::register(&api, &permit, register).await?;
    if matches!(registration, Registration::New | Registration::NewHolding) {
        tracing::info!(seed = %name, %key, "a seed registered");
    }
    // A seed that was removed and still has leases is told 200 as well: its heartbeat is right, and
    // one that comes after its last lease registers it anew.
    Ok(StatusCode::OK)
}

pub(super) async fn get_seed(
    State(api): State<Api>,
    Extension(permit): Extension<Permit>,
    client: Option<Extension<Client>>,
    entered: Option<Extension<Entered>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let GetSeed { key, .. } = GetSeed::decode(&headers)?;
    permit.key(&key)?;
    let address = client.as_ref().map(|Extension(client)| client.address);
    let location = address.map(|address| api.file.networks.locate(address)).unwrap_or_default();
    let lease = LeaseId::new(uuid::Uuid::new_v4().simple().to_string()).map_err(|_| Unavailable::FAULT)?;
    let wait_ms = i64::try_from(api.v1_hold.as_millis()).unwrap_or(i64::MAX);
    let ask = Ask {
        key: key.clone(),
        wish: Box::new(Wish {
            location,
            requester: requester(permit.by().as_deref(), None, address),
            client: address.map(network),
            by: permit.by(),
            ..Wish::default()
        }),
        lease: lease.hash(),
        queue: Queue { wait_ms, attempt: attempt(), ..Queue::default() },
        client: address,
        entered: entered.map(|Extension(entered)| entered),
    };
    match api.granter.acquire(&ask).await {
        Ok(granted) => {
            let Grant { identity, lease_ttl_ms, .. } = granted.grant().clone();
            tracing::debug!(seed = %identity, %key, %lease, "granted");
            tell_of(client.map(|Extension(client)| client), granted);
            let lease_ttl = Some(Duration::from_secs(whole_seconds(lease_ttl_ms)));
            let granted = Granted { identity, lease, lease_ttl };
            Ok((StatusCode::OK, granted.encode()).into_response())
        }
        Err(AcquireError::Refused(Refusal::NoRoom(no_room))) => Err(ApiError::Full(no_room)),
        Err(AcquireError::Refused(_)) => Err(ApiError::NotFound(NO_AVAILABLE_SEED)),
        Err(AcquireError::Write(error)) => Err(error.into()),
        Err(AcquireError::Superseded) => Err(Unavailable::SUPERSEDED.into()),
    }
}

/// A lease's time to live as v1 has it. Of the shortest less than a second may be left after a wait; 0 would be no lease.
fn whole_seconds(ttl_ms: i64) -> u64 {
    (ttl_ms.unsigned_abs() / 1_000).max(1)
}

pub(super) async fn renew_seed_lease(
    State(api): State<Api>,
    Extension(_): Extension<Permit>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let LeaseRef { identity, lease } = LeaseRef::decode(&headers)?;
    match api.submit(Renew { identity, lease: lease.hash(), progress: None }).await? {
        Some(_) => Ok(StatusCode::OK),
        None => Err(ApiError::NotFound(LEASE_NOT_FOUND)),
    }
}

pub(super) async fn put_seed(
    State(api): State<Api>,
    Extension(permit): Extension<Permit>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let LeaseRef { identity, lease } = LeaseRef::decode(&headers)?;
    let (seed, report) = (identity.clone(), Report::Unknown);
    let release = Release { identity, lease: lease.hash(), report, account: None, by: permit.by() };
    if !api.submit(release).await? {
        return Err(ApiError::NotFound(LEASE_NOT_FOUND));
    }
    tracing::debug!(%seed, %lease, "released");
    Ok(StatusCode::OK)
}

pub(super) async fn remove_seed(
    State(api): State<Api>,
    Extension(permit): Extension<Permit>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let RemoveSeed { key, identity, .. } = RemoveSeed::decode(&headers)?;
    permit.key(&key)?;
    let name = identity.to_string();
    let remove = Remove { identity, key, owner: permit.owner(), by: permit.by() };
    match owned::remove(&api, &permit, remove).await? {
        Removal::Gone => {
            tracing::info!(seed = %name, "a seed was removed");
            Ok(StatusCode::OK)
        }
        Removal::Draining => {
            tracing::info!(seed = %name, "a seed was removed and goes with its last lease");
            Err(ApiError::Conflict("the seed still has active leases; it is offered no more"))
        }
        Removal::Unknown | Removal::Owned | Removal::GoneBefore => Err(ApiError::NotFound("seed not found")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_was_granted_never_lives_for_no_time() {
        for (ttl_ms, seconds) in [(1, 1), (999, 1), (1_000, 1), (59_999, 59), (60_000, 60)] {
            assert_eq!(whole_seconds(ttl_ms), seconds, "{ttl_ms}");
        }
    }
}
