//! What workers tell that serve while they load, in the planner's words and back.

use rfork_protocol::v1::Labels;
use rfork_protocol::v2::{self, LoadProgress, LoadingSeed, LoadingSummary, SeedPhase};

use crate::domain::chain::{Asker, Held, Progress, Source, Stalled};
use crate::domain::owner::Owner;
use crate::store::list::LoadingEntry;

/// What an acquisition tells; a source that stalls is told by nobody else.
pub(super) fn asker(told: LoadingSeed, owner: Owner, stalled: Option<v2::Stalled>) -> Asker {
    let LoadingSeed {
        seed,
        incarnation,
        total_bytes,
        held,
        starts_over,
        model_url,
        deploy_strategy,
        is_draft,
    } = told;
    Asker {
        owner,
        identity: seed,
        incarnation: incarnation.into(),
        labels: Labels {
            model_url: model_url.map(String::from),
            deploy_strategy: deploy_strategy.map(String::from),
            is_draft,
        },
        total_bytes,
        held: held.map(of_root),
        starts_over,
        stalled: stalled.map(|v2::Stalled { seed, lease_id, lost, .. }| Stalled {
            identity: seed,
            lease: lease_id.hash(),
            lost,
            unanswered: false,
        }),
    }
}

/// What a renewal or a heartbeat tells.
pub(super) fn progress(told: LoadProgress) -> Progress {
    let LoadProgress { incarnation, arrived_bytes, held } = told;
    Progress { incarnation: incarnation.into(), arrived_bytes, held: held.map(of_root) }
}

pub(super) fn of_root(held: v2::Held) -> Held {
    Held { root: held.root.into(), bytes: held.bytes }
}

/// What is told of a source that was granted.
pub(super) fn source(source: Source) -> v2::Source {
    let Source { loads, depth, root, renew_after_ms, point, since_ms } = source;
    v2::Source {
        phase: if loads { SeedPhase::Loading } else { SeedPhase::Complete },
        depth,
        // A name that came in as one, or a seed's content id, which did.
        root: root.and_then(|root| root.try_into().ok()),
        renew_after_ms: renew_after_ms.unsigned_abs(),
        point: v2::LeasedPoint { number: point, since_ms: since_ms.unsigned_abs() },
    }
}

/// What people are told of a seed that loads.
pub(super) fn summary(entry: LoadingEntry) -> LoadingSummary {
    let LoadingEntry { loading, source } = entry;
    LoadingSummary {
        depth: loading.depth,
        source,
        root: loading.root,
        held_bytes: loading.held_bytes,
        arrived_bytes: loading.arrived_bytes,
        total_bytes: loading.total_bytes,
    }
}
