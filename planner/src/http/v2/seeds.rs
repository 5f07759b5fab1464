//! Seeds: registered, heard of, drained, gone.

use rfork_protocol::problem::Code;
use rfork_protocol::v1::Labels;
use rfork_protocol::v2::{
    Beat, BeatResult, BeatStatus, Deregister, Deregistered, Deregistration, Drain, Drained, HeartbeatBatch,
    HeartbeatResults, Register, Registered, Registration,
};

use super::super::owned;
use super::loading;
use super::refused::Refused;
use super::route::Call;
use super::service::heartbeat_interval_ms;
use super::{location, millis};
use crate::domain::location::Location;
use crate::domain::seed::{self, Profile};
use crate::shares::network;
use crate::store::commands::{self, Heartbeat};
use crate::writer::Beats;

pub(super) async fn register(call: Call<Register>) -> Result<Registered, Refused> {
    let heartbeat_interval_ms = heartbeat_interval_ms(&call);
    let Call { api, permit, request, client, .. } = call;
    permit.key(&request.seed_key)?;
    let client = client.map(|client| network(client.address));
    let (seed, key) = (request.seed.clone(), request.seed_key.clone());
    let located = api.file.networks.locate_seed(&seed);
    let profile = Box::new(profile(request, &located));
    let (owner, by) = (permit.owner(), permit.by());
    let register = commands::Register {
        identity: seed.clone(),
        key: key.clone(),
        profile,
        age_ms: 0,
        client,
        owner,
        by,
    };
    let registration = told(owned::register(&api, &permit, register).await?);
    if matches!(registration, Registration::New | Registration::NewHolding) {
        tracing::info!(%seed, %key, "a seed registered");
    }
    Ok(Registered { registration, heartbeat_interval_ms, heartbeat_ttl_ms: millis(api.heartbeat_ttl) })
}

/// What a registration tells beside what the seed holds, and where it is by its address.
fn profile(told: Register, located: &Location) -> Profile {
    Profile {
        labels: Labels {
            model_url: told.model_url.map(String::from),
            deploy_strategy: told.deploy_strategy.map(String::from),
            is_draft: told.is_draft,
        },
        location: location(told.location).or(located),
        instance_id: told.instance_id.map(String::from),
        incarnation: told.incarnation.map(String::from),
        content_id: told.content_id.map(String::from),
        origin: told.origin.map(String::from),
    }
}

fn told(registration: seed::Registration) -> Registration {
    match registration {
        seed::Registration::New => Registration::New,
        seed::Registration::Repeated => Registration::Repeated,
        seed::Registration::Completed => Registration::Completed,
        seed::Registration::NewHolding => Registration::NewHolding,
        seed::Registration::Draining => Registration::Draining,
    }
}

/// Answers when all are done. Those that are not only repeated are one command, however many they are.
pub(super) async fn heartbeat(call: Call<HeartbeatBatch>) -> Result<HeartbeatResults, Refused> {
    let Call { api, permit, request, body, .. } = call;
    for beat in &request.seeds {
        permit.key(&beat.seed_key)?;
    }
    let owner = permit.owner();
    let (mut results, mut heartbeats, mut at) = (Vec::new(), Vec::new(), Vec::new());
    for Beat { seed, seed_key: key, incarnation, loading } in request.seeds {
        let incarnation = incarnation.map(String::from);
        let progress = loading.filter(|_| api.loading_seeds).map(loading::progress).map(Box::new);
        // How far somebody is is not gathered.
        let is_noted = progress.is_none()
            && api.heartbeats.note_beat(&seed.to_string(), &key, &owner, incarnation.as_deref());
        if !is_noted {
            at.push(results.len());
            let (identity, owner) = (seed.clone(), owner.clone());
            heartbeats.push(Heartbeat { identity, key, incarnation, age_ms: 0, owner, progress });
        }
        results.push(BeatResult { seed, status: BeatStatus::Ok });
    }
    if !heartbeats.is_empty() {
        let met = owned::hear(&api, &permit, &owner, Beats { heartbeats, body }).await?;
        for (at, (status, _)) in at.into_iter().zip(met) {
            results[at].status = heard(status);
        }
    }
    Ok(HeartbeatResults { results })
}

fn heard(heard: seed::Heard) -> BeatStatus {
    match heard {
        seed::Heard::Known => BeatStatus::Ok,
        // It is told why when it registers.
        seed::Heard::Unknown | seed::Heard::Owned => BeatStatus::Unknown,
        seed::Heard::Draining => BeatStatus::Draining,
    }
}

/// The seed goes on and may come back with other memory; [`deregister`] is for one that ends.
pub(super) async fn drain(call: Call<Drain>) -> Result<Drained, Refused> {
    let Call { api, permit, request: Drain { seed, seed_key: key }, .. } = call;
    let drained = api.submit(commands::Drain { identity: seed.clone(), key, by: permit.by() }).await?;
    let active_leases = drained.ok_or_else(|| not_found(&seed.to_string()))?;
    tracing::info!(%seed, active_leases, "a seed was drained");
    Ok(Drained { active_leases })
}

pub(super) async fn deregister(call: Call<Deregister>) -> Result<Deregistered, Refused> {
    let Call { api, permit, request: Deregister { seed, seed_key: key }, .. } = call;
    permit.key(&key)?;
    let remove = commands::Remove { identity: seed.clone(), key, owner: permit.owner(), by: permit.by() };
    let state = match owned::remove(&api, &permit, remove).await? {
        seed::Removal::Gone => Deregistration::Gone,
        seed::Removal::Draining => Deregistration::Draining,
        seed::Removal::Unknown | seed::Removal::Owned | seed::Removal::GoneBefore => {
            return Err(not_found(&seed.to_string()));
        }
    };
    tracing::info!(%seed, ?state, "a seed was deregistered");
    Ok(Deregistered { state })
}

fn not_found(seed: &str) -> Refused {
    Refused::new(Code::SeedNotFound, format!("the seed {seed} is not registered with this key"))
}
