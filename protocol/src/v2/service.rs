//! What a planner says of itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LOADING_SEEDS, RIGHT_TO_LEAD};

/// The answer to `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// Always `rfork-planner`.
    pub service: String,
    /// The planner's version.
    pub version: String,
    /// The APIs that it speaks: `v1`, `v2`.
    pub api: Vec<String>,
    /// How often a seed should be heard of, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// The longest that it lets an acquisition wait, in milliseconds; a longer wait is cut to it.
    pub max_wait_ms: u64,
    /// What it knows beyond the first release of this API, such as `loading_seeds`. Requests carry fields of a feature
    /// only to planners that name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl Service {
    /// What [`Service::service`] says.
    pub const NAME: &str = "rfork-planner";

    /// Whether it knows workers that serve while they load.
    pub fn knows_loading_seeds(&self) -> bool {
        self.has(LOADING_SEEDS)
    }

    /// Whether it gives the right to lead.
    pub fn gives_right_to_lead(&self) -> bool {
        self.has(RIGHT_TO_LEAD)
    }

    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|named| named == feature)
    }

    /// Whether it is a planner that speaks this API.
    pub fn speaks_v2(&self) -> bool {
        self.service == Self::NAME && self.api.iter().any(|api| api == "v2")
    }
}
