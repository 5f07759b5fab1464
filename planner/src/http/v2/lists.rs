//! Lists for people, a page at a time.

use std::time::Duration;

use rfork_protocol::ids::hash_fingerprint;
use rfork_protocol::v2::{
    Cursor, KeyList, KeyQuery, KeySummary, LeaseList, LeaseQuery, LeaseSummary, Place, SeedCounts, SeedList,
    SeedOwner, SeedQuery, SeedState, SeedSummary,
};

use super::loading;
use super::refused::Refused;
use super::route::{Call, within};
use crate::domain::owner::Owner;
use crate::domain::seed::State;
use crate::store::list::{KeyEntry, LeaseEntry, LeaseFilter, Part, SeedEntry, SeedFilter};

/// How long the database may take for a page.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

pub(super) async fn seeds(call: Call<SeedQuery>) -> Result<SeedList, Refused> {
    let SeedQuery { seed_key: key, model_url, host, state, limit, after } = call.request;
    let filter = SeedFilter {
        key,
        model_url: model_url.map(String::from),
        host: host.map(|host| host.as_str().to_owned()),
        state: state.map(known_state),
    };
    let page = within(DEADLINE, call.api.store.list_seeds(&filter, &part(limit, after))).await?;
    let seeds = page.entries.into_iter().map(seed).collect();
    Ok(SeedList { seeds, next: page.next.as_deref().map(Cursor::of) })
}

pub(super) fn part(limit: u32, after: Option<Cursor>) -> Part {
    Part { limit, after: after.map(|after| after.bytes()) }
}

fn known_state(state: SeedState) -> State {
    match state {
        SeedState::Live => State::Live,
        SeedState::Suspect => State::Suspect,
        SeedState::Draining => State::Draining,
        SeedState::Silent => State::Silent,
    }
}

fn told_state(state: State) -> SeedState {
    match state {
        State::Live => SeedState::Live,
        State::Suspect => SeedState::Suspect,
        State::Draining => SeedState::Draining,
        State::Silent => SeedState::Silent,
    }
}

pub(super) fn seed(seed: SeedEntry) -> SeedSummary {
    let profile = seed.profile;
    SeedSummary {
        seed: seed.identity,
        seed_key: seed.key,
        state: told_state(seed.state),
        capacity: seed.capacity,
        used: seed.used,
        heartbeat_age_ms: seed.quiet_ms.unsigned_abs(),
        last_used_age_ms: seed.unused_ms.map(i64::unsigned_abs),
        suspect_for_ms: seed.suspect_ms.map(i64::unsigned_abs),
        failures: seed.failures,
        model_url: profile.labels.model_url,
        deploy_strategy: profile.labels.deploy_strategy,
        is_draft: profile.labels.is_draft,
        incarnation: profile.incarnation,
        instance_id: profile.instance_id,
        content_id: profile.content_id,
        location: Place {
            zone: profile.location.zone,
            rack: profile.location.rack,
            host: profile.location.host,
        },
        owner: owner(seed.owner),
        loading: seed.loading.map(loading::summary),
    }
}

fn owner(owner: Owner) -> Option<SeedOwner> {
    let is_known = owner != Owner::default();
    let Owner { principal, address } = owner;
    is_known.then(|| SeedOwner { principal: principal.as_deref().map(str::to_owned), address })
}

pub(super) async fn leases(call: Call<LeaseQuery>) -> Result<LeaseList, Refused> {
    let LeaseQuery { seed_key: key, seed, limit, after } = call.request;
    let filter = LeaseFilter { key, seed };
    let page = within(DEADLINE, call.api.store.list_leases(&filter, &part(limit, after))).await?;
    let leases = page.entries.into_iter().map(|lease: LeaseEntry| LeaseSummary {
        lease: hash_fingerprint(&lease.lease),
        seed: lease.identity,
        seed_key: lease.key,
        ttl_ms: lease.ttl_ms.unsigned_abs(),
        age_ms: lease.age_ms.unsigned_abs(),
    });
    Ok(LeaseList { leases: leases.collect(), next: page.next.as_deref().map(Cursor::of) })
}

pub(super) async fn keys(call: Call<KeyQuery>) -> Result<KeyList, Refused> {
    let KeyQuery { limit, after } = call.request;
    let page = within(DEADLINE, call.api.store.list_keys(&part(limit, after))).await?;
    let keys = page.entries.into_iter().map(|key: KeyEntry| KeySummary {
        seed_key: key.key,
        seeds: SeedCounts {
            live: key.live,
            suspect: key.suspect,
            draining: key.draining,
            silent: key.silent,
        },
        capacity: key.capacity,
        used: key.used,
        waiting: key.waiting,
    });
    Ok(KeyList { keys: keys.collect(), next: page.next.as_deref().map(Cursor::of) })
}
