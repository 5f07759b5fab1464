//! Which seeds hold the same weights as a worker: the parts of its seed key that its configuration does not have.

use rfork_protocol::SeedKey;
use rfork_protocol::seed_key::{DigestKey, KvRole, ReadableKey, SeedKeyError, Structure};
use serde::Deserialize;

use crate::config::Config;

/// The parts of a seed key beside model and deployment, which are in [`Config`].
///
/// Ranks are those of the inference engine. With a fingerprint the key is a digest (clients from 2026-08 on; with a
/// structural digest, from 2026-09 on), else it is readable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// Tensor-parallel rank.
    pub tp_rank: u32,
    /// Pipeline rank, only with pipeline parallelism.
    pub pp_rank: Option<u32>,
    /// Expert rank, only with expert parallelism.
    pub ep_rank: Option<u32>,
    /// The node's rank; a part of readable keys only.
    pub node_rank: u32,
    /// `kv_producer`, `kv_consumer` or `kv_both`; a part of readable keys only.
    pub kv_role: KvRole,
    /// Whether it is a draft model.
    pub draft: bool,
    /// What the inference engine says of all that makes two workers' weights interchangeable.
    pub compatibility_fingerprint: Option<String>,
    /// What it says of the tensors' structure; counts only beside a fingerprint.
    pub structural_digest: Option<String>,
    /// The data-parallel rank where weights are sharded over it; counts only beside a structural digest.
    pub sharded_dp_rank: Option<u32>,
}

impl Identity {
    /// The seed key of a worker of this identity, over the engine of that name.
    ///
    /// # Errors
    /// [`SeedKeyError`].
    pub fn seed_key(&self, config: &Config, engine: &str) -> Result<SeedKey, SeedKeyError> {
        let (model_url, model_deploy_strategy_name) = (&config.model_url, &config.model_deploy_strategy_name);
        let &Self { tp_rank, pp_rank, ep_rank, node_rank, kv_role: mode, draft, sharded_dp_rank, .. } = self;
        if let Some(compatibility_fingerprint) = &self.compatibility_fingerprint {
            let structure = self.structural_digest.as_deref();
            let structure =
                structure.map(|structural_digest| Structure { structural_digest, sharded_dp_rank });
            return DigestKey {
                compatibility_fingerprint,
                model_url,
                model_deploy_strategy_name,
                tp_rank,
                pp_rank,
                ep_rank,
                draft,
                structure,
                engine,
            }
            .build();
        }
        ReadableKey {
            model_url,
            model_deploy_strategy_name,
            mode,
            node_rank,
            pp_rank,
            tp_rank,
            ep_rank,
            draft,
            engine,
        }
        .build(&config.seed_key_separator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fingerprint_makes_it_a_digest_and_slips_are_named() {
        let config = json!({"model_url": "/m", "model_deploy_strategy_name": "s", "rfork_scheduler_url": "http://p:1"});
        let config = Config::from_json(&config, |_| None).unwrap().0;
        let identity = |json| serde_json::from_value::<Identity>(json);
        let key = |json| identity(json).unwrap().seed_key(&config, "tcp").unwrap().to_string();
        assert_eq!(key(json!({})), "/m$s$kv_both$0$0$tcp");
        let decode = json!({"tp_rank": 3, "pp_rank": 1, "kv_role": "kv_consumer", "draft": true});
        assert_eq!(key(decode), "/m$s$kv_consumer$0$pp1$3$draft$tcp");
        let (b, c) = (
            json!({"compatibility_fingerprint": "f"}),
            json!({"compatibility_fingerprint": "f", "structural_digest": "d"}),
        );
        assert_eq!((key(b.clone()).len(), key(c.clone()).len()), (64, 64));
        assert_ne!(key(b), key(c));
        assert!(identity(json!({"tp": 1})).unwrap_err().to_string().contains("unknown field `tp`"));
    }
}
