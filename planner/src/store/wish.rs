//! A wish as the database keeps it while its worker waits.

use std::net::IpAddr;

use rfork_protocol::SeedIdentity;
use rfork_protocol::v1::Labels;
use serde::{Deserialize, Serialize};

use crate::domain::chain::{Asker, Held, Stalled};
use crate::domain::location::Location;
use crate::domain::owner::Owner;
use crate::domain::policy::Wish;

/// What of a wish is its worker's own; the rest is found anew at each choice.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Kept {
    #[serde(skip_serializing_if = "Location::is_unknown")]
    location: Location,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requester: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loading: Option<KeptAsker>,
}

/// What it would be as a loading seed.
#[derive(Serialize, Deserialize)]
struct KeptAsker {
    seed: SeedIdentity,
    /// Whose it would be: a principal, and an address.
    #[serde(default)]
    owner: (Option<String>, Option<IpAddr>),
    incarnation: String,
    total_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deploy_strategy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is_draft: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    starts_over: bool,
    /// The source that stalls, the hash of the lease on it, and whether it is lost. That it did not answer a planner says
    /// nothing of later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stalled: Option<(SeedIdentity, [u8; 32], bool)>,
}

impl From<&Asker> for KeptAsker {
    fn from(asker: &Asker) -> Self {
        let Asker { owner, identity, incarnation, labels, total_bytes, held, starts_over, stalled } =
            asker.clone();
        Self {
            seed: identity,
            owner: (owner.principal.as_deref().map(str::to_owned), owner.address),
            incarnation,
            total_bytes,
            model_url: labels.model_url,
            deploy_strategy: labels.deploy_strategy,
            is_draft: labels.is_draft,
            held,
            starts_over,
            stalled: stalled.map(|stalled| (stalled.identity, stalled.lease, stalled.lost)),
        }
    }
}

impl From<KeptAsker> for Asker {
    fn from(kept: KeptAsker) -> Self {
        let KeptAsker { owner: (principal, address), model_url, deploy_strategy, is_draft, .. } = kept;
        Self {
            owner: Owner { principal: principal.map(Into::into), address },
            identity: kept.seed,
            incarnation: kept.incarnation,
            labels: Labels { model_url, deploy_strategy, is_draft },
            total_bytes: kept.total_bytes,
            held: kept.held,
            starts_over: kept.starts_over,
            stalled: kept.stalled.map(|(identity, lease, lost)| Stalled {
                identity,
                lease,
                lost,
                unanswered: false,
            }),
        }
    }
}

/// As JSON.
pub(super) fn encode(wish: &Wish) -> String {
    let kept = Kept {
        location: wish.location.clone(),
        instance_id: wish.instance_id.clone(),
        exclude: wish.exclude.iter().map(ToString::to_string).collect(),
        requester: wish.requester.clone(),
        client: wish.client,
        by: wish.by.as_deref().map(str::to_owned),
        loading: wish.loading.as_deref().map(Into::into),
    };
    // A struct of texts always has a JSON form; should it not, nothing is wished.
    serde_json::to_string(&kept).unwrap_or_else(|_| "{}".into())
}

/// From JSON. What a version after this one adds to it is passed over.
pub(super) fn decode(text: &str) -> Result<Wish, String> {
    let kept: Kept = serde_json::from_str(text).map_err(|error| format!("a wish: {error}"))?;
    let exclude = kept.exclude.iter().map(|name| name.parse::<SeedIdentity>());
    Ok(Wish {
        location: kept.location,
        instance_id: kept.instance_id,
        source_instance: None,
        exclude: exclude.collect::<Result<_, _>>().map_err(|error| format!("a wish: {error}"))?,
        requester: kept.requester,
        client: kept.client,
        by: kept.by.map(Into::into),
        loading: kept.loading.map(|kept| Box::new(kept.into())),
        reader: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn asker()(
            incarnation in ".{0,8}",
            model_url in prop::option::of(".{0,8}"),
            is_draft in prop::option::of(any::<bool>()),
            total_bytes in any::<u64>(),
            held in prop::option::of((".{0,8}", any::<u64>())),
            starts_over in any::<bool>(),
            stalled in prop::option::of((any::<[u8; 32]>(), any::<bool>())),
            owner in (prop::option::of(".{0,8}"), prop::option::of(any::<IpAddr>())),
        ) -> Asker {
            let identity = SeedIdentity::new("h", 1, 0).unwrap();
            Asker {
                owner: Owner { principal: owner.0.map(Into::into), address: owner.1 },
                identity: identity.clone(),
                incarnation,
                labels: Labels { model_url, deploy_strategy: None, is_draft },
                total_bytes,
                held: held.map(|(root, bytes)| Held { root, bytes }),
                starts_over,
                stalled: stalled.map(|(lease, lost)| Stalled { identity, lease, lost, unanswered: false }),
            }
        }
    }

    proptest! {
        #[test]
        fn a_wish_is_read_back(zone in prop::option::of(".{0,8}"), instance_id in prop::option::of(".{0,8}"), ports in prop::collection::vec(1u16.., 0..3), requester in prop::option::of(".{0,8}"), client in any::<Option<IpAddr>>(), by in prop::option::of(".{0,8}"), loading in prop::option::of(asker())) {
            let exclude = ports.into_iter().map(|port| SeedIdentity::new("fd00::1", port, 7).unwrap()).collect();
            let location = Location { zone, ..Location::default() };
            let loading = loading.map(Box::new);
            let wish = Wish { location, instance_id, exclude, requester, client, by: by.map(Into::into), loading, ..Wish::default() };
            prop_assert_eq!(decode(&encode(&wish)).unwrap(), wish);
        }
    }
}
