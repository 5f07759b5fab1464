//! Why a worker would, or would not, be given each seed of a key now.

use std::time::Duration;

use rfork_protocol::v2::{Explain, Explained, ExplainedSeed, Verdict};

use super::lists;
use super::refused::Refused;
use super::route::{Call, within};
use crate::domain::explain::{self, explain as judge};
use crate::domain::policy::{Candidate, HostRoom, Obstacle, Wish};
use crate::domain::seed::State;
use crate::store::list::{Part, SeedEntry, SeedFilter};

/// The most seeds of a key that are looked at.
const MAX_SEEDS: u32 = 1_000;
/// How long the database may take.
const DEADLINE: Duration = Duration::from_secs(5);

pub(super) async fn explain(call: Call<Explain>) -> Result<Explained, Refused> {
    let Call { api, client, request: Explain { seed_key, location, instance_id, exclude }, .. } = call;
    let location = super::whereabouts(&api, location, client.as_ref());
    let instance_id = instance_id.map(String::from);
    let source_instance = match &instance_id {
        Some(instance) => within(DEADLINE, api.store.source_instance(instance)).await?,
        None => None,
    };
    let wish = Wish { location, instance_id, source_instance, exclude, requester: None };
    let filter = SeedFilter { key: Some(seed_key), ..SeedFilter::default() };
    let part = Part { limit: MAX_SEEDS, after: None };
    let page = within(DEADLINE, api.store.list_seeds(&filter, &part)).await?;
    let truncated = page.next.is_some();
    let mut hosts = HostRoom::new();
    let seeds: Vec<(Candidate, State)> = page
        .entries
        .iter()
        .map(|seed| {
            hosts.extend(seed.host_room.clone());
            (candidate(seed), seed.state)
        })
        .collect();
    let verdicts = judge(api.policy, &seeds, &wish, &hosts);
    let mut entries: Vec<Option<SeedEntry>> = page.entries.into_iter().map(Some).collect();
    let seeds: Vec<ExplainedSeed> = verdicts
        .into_iter()
        .filter_map(|(at, verdict)| {
            let (verdict, rank) = told(verdict);
            Some(ExplainedSeed { verdict, rank, seed: lists::seed(entries[at].take()?) })
        })
        .collect();
    let grant = seeds.first().filter(|seed| seed.verdict == Verdict::WouldBeGranted);
    Ok(Explained { grant: grant.map(|seed| seed.seed.seed.clone()), seeds, truncated })
}

/// As the policy looks at it. Times are told as ages in lists: their negatives are in the order of the times.
fn candidate(seed: &SeedEntry) -> Candidate {
    Candidate {
        id: 0,
        identity: seed.identity.clone(),
        capacity: seed.capacity,
        free_points: (seed.used..seed.capacity).collect(),
        last_used_ms: seed.unused_ms.map_or(i64::MIN, |unused_ms| -unused_ms),
        last_heartbeat_ms: -seed.quiet_ms,
        location: seed.profile.location.clone(),
        instance_id: seed.profile.instance_id.clone(),
        capped_host: seed.host_room.as_ref().map(|(host, _)| host.clone()),
    }
}

fn told(verdict: explain::Verdict) -> (Verdict, Option<u32>) {
    match verdict {
        explain::Verdict::Ranked(0) => (Verdict::WouldBeGranted, Some(1)),
        explain::Verdict::Ranked(rank) => (Verdict::Ranked, u32::try_from(rank + 1).ok()),
        explain::Verdict::Obstacle(Obstacle::Full) => (Verdict::Full, None),
        explain::Verdict::Obstacle(Obstacle::HostFull) => (Verdict::HostFull, None),
        explain::Verdict::Obstacle(Obstacle::Excluded) => (Verdict::Excluded, None),
        explain::Verdict::NotOffered(State::Suspect) => (Verdict::Suspect, None),
        explain::Verdict::NotOffered(State::Silent) => (Verdict::Silent, None),
        explain::Verdict::NotOffered(State::Draining | State::Live) => (Verdict::Draining, None),
    }
}
