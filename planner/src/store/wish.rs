//! A wish as the database keeps it while its worker waits.

use rfork_protocol::SeedIdentity;
use serde::{Deserialize, Serialize};

use crate::domain::location::Location;
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
}

/// As JSON.
pub(super) fn encode(wish: &Wish) -> String {
    let kept = Kept {
        location: wish.location.clone(),
        instance_id: wish.instance_id.clone(),
        exclude: wish.exclude.iter().map(ToString::to_string).collect(),
        requester: wish.requester.clone(),
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wish_is_read_back(zone in prop::option::of(".{0,8}"), instance_id in prop::option::of(".{0,8}"), ports in prop::collection::vec(1u16.., 0..3), requester in prop::option::of(".{0,8}")) {
            let exclude = ports.into_iter().map(|port| SeedIdentity::new("fd00::1", port, 7).unwrap()).collect();
            let location = Location { zone, ..Location::default() };
            let wish = Wish { location, instance_id, source_instance: None, exclude, requester };
            prop_assert_eq!(decode(&encode(&wish)).unwrap(), wish);
        }
    }
}
