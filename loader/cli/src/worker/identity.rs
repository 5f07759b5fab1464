//! Flags that say which seeds hold the same weights.

use anyhow::Result;
use clap::{Args, ValueEnum};
use rfork_loader::config::Config;
use rfork_loader::identity::Identity;
use rfork_protocol::SeedKey;
use rfork_protocol::seed_key::KvRole;

use super::device::Engine;

/// What else makes up the seed key.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity: which seeds hold the same weights")]
pub(super) struct IdentityArgs {
    /// Tensor-parallel rank, also the rank under which it serves
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub(super) tp_rank: u32,

    /// Rank among all workers of the instance, by which --rfork-seed-port-base counts [default: the tensor-parallel rank]
    #[arg(long, value_name = "RANK")]
    pub(super) global_rank: Option<u32>,

    /// Pipeline rank, only with pipeline parallelism
    #[arg(long, value_name = "RANK")]
    pp_rank: Option<u32>,

    /// Expert rank, only with expert parallelism
    #[arg(long, value_name = "RANK")]
    ep_rank: Option<u32>,

    /// The node's rank
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    node_rank: u32,

    /// The worker's KV role
    #[arg(long, value_enum, value_name = "ROLE", default_value_t)]
    kv_role: Role,

    /// This is a draft model
    #[arg(long)]
    pub(super) draft: bool,

    /// Build a digest key (clients from 2026-08 on) from this fingerprint of the inference engine
    #[arg(long, value_name = "TEXT")]
    compatibility_fingerprint: Option<String>,

    /// Build the digest key of clients from 2026-09 on
    #[arg(long, value_name = "TEXT", requires = "compatibility_fingerprint")]
    structural_digest: Option<String>,

    /// The data-parallel rank, where weights are sharded over it
    #[arg(long, value_name = "RANK", requires = "structural_digest")]
    sharded_dp_rank: Option<u32>,

    /// A ready seed key, instead of all of the above
    #[arg(long, value_name = "KEY", conflicts_with_all = ["compatibility_fingerprint", "pp_rank", "ep_rank"])]
    seed_key: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Role {
    #[value(name = "kv_producer")]
    Producer,
    #[value(name = "kv_consumer")]
    Consumer,
    #[default]
    #[value(name = "kv_both")]
    Both,
}

impl IdentityArgs {
    /// The seed key, over that engine.
    pub(super) fn seed_key(&self, config: &Config, engine: Engine) -> Result<SeedKey> {
        if let Some(text) = &self.seed_key {
            return Ok(SeedKey::from_text(text)?);
        }
        let identity = Identity {
            tp_rank: self.tp_rank,
            pp_rank: self.pp_rank,
            ep_rank: self.ep_rank,
            node_rank: self.node_rank,
            kv_role: match self.kv_role {
                Role::Producer => KvRole::Producer,
                Role::Consumer => KvRole::Consumer,
                Role::Both => KvRole::Both,
            },
            draft: self.draft,
            compatibility_fingerprint: self.compatibility_fingerprint.clone(),
            structural_digest: self.structural_digest.clone(),
            sharded_dp_rank: self.sharded_dp_rank,
        };
        Ok(identity.seed_key(config, engine.name())?)
    }
}
