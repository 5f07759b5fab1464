//! Why a worker would, or would not, be given each seed of a key now.

use std::time::Duration;

use rfork_protocol::v2::{Explain, Explained, ExplainedSeed, Verdict};

use super::lists;
use super::refused::Refused;
use super::route::{Call, within};
use crate::domain::explain::{self, explain as judge};
use crate::domain::policy::{Candidate, HostRoom, Obstacle, Policy, Wish};
use crate::domain::seed::State;
use crate::store::list::{Page, Part, SeedEntry, SeedFilter};

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
    let wish = Wish { location, instance_id, source_instance, exclude, ..Wish::default() };
    let filter = SeedFilter { key: Some(seed_key), ..SeedFilter::default() };
    let part = Part { limit: MAX_SEEDS, after: None };
    let page = within(DEADLINE, api.store.list_seeds(&filter, &part)).await?;
    Ok(explained(api.policy, page, &wish))
}

/// Judges the seeds of a page. What is on no page may be better, so that only of a whole list it is told which would
/// be granted.
fn explained(policy: Policy, page: Page<SeedEntry>, wish: &Wish) -> Explained {
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
    let verdicts = judge(policy, &seeds, wish, &hosts);
    let mut entries: Vec<Option<SeedEntry>> = page.entries.into_iter().map(Some).collect();
    let seeds: Vec<ExplainedSeed> = verdicts
        .into_iter()
        .filter_map(|(at, verdict)| {
            let (verdict, rank) = match verdict {
                explain::Verdict::Ranked(_) if truncated => (Verdict::Ranked, None),
                verdict => told(verdict),
            };
            Some(ExplainedSeed { verdict, rank, seed: lists::seed(entries[at].take()?) })
        })
        .collect();
    let grant = seeds.first().filter(|seed| seed.verdict == Verdict::WouldBeGranted);
    Explained { grant: grant.map(|seed| seed.seed.seed.clone()), seeds, truncated }
}

/// As the policy looks at it. Times are told as ages in lists: their negatives are in the order of the times.
fn candidate(seed: &SeedEntry) -> Candidate {
    Candidate {
        id: 0,
        identity: seed.identity.clone(),
        capacity: seed.capacity,
        // Which they are is no matter to a comparison.
        free_points: (0..seed.free).collect(),
        last_used_ms: seed.unused_ms.map_or(i64::MIN, |unused_ms| -unused_ms),
        last_heartbeat_ms: -seed.quiet_ms,
        location: seed.profile.location.clone(),
        instance_id: seed.profile.instance_id.clone(),
        capped_host: seed.host_room.as_ref().map(|(host, _)| host.clone()),
        root: seed.profile.content_id.clone(),
        origin: seed.profile.origin.clone(),
        loading: seed.loading.as_ref().map(|entry| entry.loading.clone()),
        barred: seed.barred,
        reserve: None,
    }
}

fn told(verdict: explain::Verdict) -> (Verdict, Option<u32>) {
    match verdict {
        explain::Verdict::Ranked(0) => (Verdict::WouldBeGranted, Some(1)),
        explain::Verdict::Ranked(rank) => (Verdict::Ranked, u32::try_from(rank + 1).ok()),
        explain::Verdict::Obstacle(Obstacle::Full) => (Verdict::Full, None),
        explain::Verdict::Obstacle(Obstacle::HostFull) => (Verdict::HostFull, None),
        explain::Verdict::Obstacle(Obstacle::Excluded) => (Verdict::Excluded, None),
        explain::Verdict::Obstacle(Obstacle::Barred) => (Verdict::NotPinned, None),
        explain::Verdict::Obstacle(Obstacle::NoSource) => (Verdict::Loading, None),
        explain::Verdict::NotOffered(State::Suspect) => (Verdict::Suspect, None),
        explain::Verdict::NotOffered(State::Silent) => (Verdict::Silent, None),
        explain::Verdict::NotOffered(State::Draining | State::Live) => (Verdict::Draining, None),
    }
}

#[cfg(test)]
mod tests {
    use rfork_protocol::{SeedIdentity, SeedKey};

    use super::*;
    use crate::domain::owner::Owner;
    use crate::domain::seed::Profile;

    fn entry(port: u16, used: u32, free: u32) -> SeedEntry {
        SeedEntry {
            identity: SeedIdentity::new("h", port, 0).unwrap(),
            key: SeedKey::new("k").unwrap(),
            state: State::Live,
            capacity: 2,
            used,
            free,
            quiet_ms: 0,
            unused_ms: None,
            suspect_ms: None,
            failures: 0,
            barred: false,
            owner: Owner::default(),
            profile: Profile::default(),
            host_room: None,
            loading: None,
        }
    }

    fn verdicts(page: Page<SeedEntry>) -> (Option<u16>, Vec<(Verdict, Option<u32>)>) {
        let explained = explained(Policy::Balanced, page, &Wish::default());
        let seeds = explained.seeds.into_iter().map(|seed| (seed.verdict, seed.rank));
        (explained.grant.map(|seed| seed.port()), seeds.collect())
    }

    #[test]
    fn of_part_of_the_seeds_it_is_not_told_which_would_be_granted() {
        let entries = vec![entry(1, 1, 1), entry(2, 0, 2), entry(3, 2, 0)];
        let all = Page { entries: entries.clone(), next: None };
        let ranked = [(Verdict::WouldBeGranted, Some(1)), (Verdict::Ranked, Some(2)), (Verdict::Full, None)];
        assert_eq!(verdicts(all), (Some(2), ranked.to_vec()));
        let part = Page { entries, next: Some(b"h:3:0".to_vec()) };
        let ranked = [(Verdict::Ranked, None), (Verdict::Ranked, None), (Verdict::Full, None)];
        assert_eq!(verdicts(part), (None, ranked.to_vec()));
    }

    #[test]
    fn points_beyond_a_lowered_capacity_are_not_in_the_way() {
        let page = Page { entries: vec![entry(1, 2, 2)], next: None };
        assert_eq!(verdicts(page), (Some(1), vec![(Verdict::WouldBeGranted, Some(1))]));
    }
}
