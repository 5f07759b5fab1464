//! The right to lead: who may read storage.

use rfork_protocol::v1::Labels;
use rfork_protocol::v2::{Claim, Claimed, LoadingSeed, Role};

use super::loading;
use super::refused::Refused;
use super::route::Call;
use crate::domain::chain::PERIOD_MS;
use crate::domain::seed::Profile;
use crate::shares::network;
use crate::store::commands;

pub(super) async fn lead(call: Call<Claim>) -> Result<Claimed, Refused> {
    let Call { api, permit, request, client, .. } = call;
    permit.key(&request.seed_key)?;
    if !api.loading_seeds {
        return Ok(Claimed {
            role: Role::Alone,
            renew_after_ms: PERIOD_MS.unsigned_abs(),
            leader: None,
            root: None,
        });
    }
    let Claim { seed_key: key, loading, arrived_bytes, patience_ms, origin, whole, location, instance_id } =
        request;
    let LoadingSeed { seed, incarnation, total_bytes, held, model_url, deploy_strategy, is_draft, .. } =
        loading;
    let profile = Profile {
        labels: Labels {
            model_url: model_url.map(String::from),
            deploy_strategy: deploy_strategy.map(String::from),
            is_draft,
        },
        location: super::whereabouts(&api, location, client.as_ref()),
        instance_id: instance_id.map(String::from),
        incarnation: Some(incarnation.into()),
        content_id: None,
        origin: None,
    };
    let claim = commands::Claim {
        identity: seed.clone(),
        key,
        profile: Box::new(profile),
        client: client.map(|client| network(client.address)),
        owner: permit.enforced_owner(),
        by: permit.by(),
        total_bytes,
        arrived_bytes,
        held: held.map(loading::of_root),
        origin: origin.map(String::from),
        whole,
        patience_ms: i64::try_from(patience_ms).unwrap_or(i64::MAX),
    };
    let commands::Claimed { role, root, renew_after_ms } = api.submit(claim).await?;
    let (role, leader) = match role {
        commands::Role::Leads => (Role::Leads, None),
        commands::Role::Waits(leader) => (Role::Waits, Some(leader)),
        commands::Role::Alone => (Role::Alone, None),
    };
    tracing::debug!(%seed, ?role, "a worker asked whether it may read storage");
    // A name that came in as one.
    let root = root.and_then(|root| root.try_into().ok());
    Ok(Claimed { role, renew_after_ms: renew_after_ms.unsigned_abs(), leader, root })
}
