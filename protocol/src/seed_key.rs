//! Seed keys as workers build them: readable (2026-03) and digest (2026-08 on).
//!
//! Only workers build keys; the planner compares them. A key names its transfer engine unless that is
//! YuanRong, because an unmodified worker that was handed a seed of another engine could hang for ever.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{IdError, SeedKey, hex};

/// The separator of readable keys where none is set.
pub const DEFAULT_SEPARATOR: &str = "$";

/// The engine that keys do not name, because it was there first.
pub const UNNAMED_ENGINE: &str = "yuanrong";

/// A key that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedKeyError {
    /// A part that must not be empty.
    #[error("{0} must not be empty: it is part of the seed key")]
    Empty(&'static str),
    /// The result is not a key.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// A worker's KV role, which is the `mode` part of a readable key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum KvRole {
    /// Prefills.
    #[serde(rename = "kv_producer")]
    Producer,
    /// Decodes.
    #[serde(rename = "kv_consumer")]
    Consumer,
    /// Does both; also what a worker without a role counts as.
    #[default]
    #[serde(rename = "kv_both")]
    Both,
}

impl KvRole {
    /// As it stands in a key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "kv_producer",
            Self::Consumer => "kv_consumer",
            Self::Both => "kv_both",
        }
    }
}

/// The parts of a readable key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadableKey<'a> {
    /// Which model.
    pub model_url: &'a str,
    /// Which deployment of it.
    pub model_deploy_strategy_name: &'a str,
    /// The worker's KV role.
    pub mode: KvRole,
    /// The node's rank.
    pub node_rank: u32,
    /// The pipeline rank, only with pipeline parallelism.
    pub pp_rank: Option<u32>,
    /// The tensor-parallel rank.
    pub tp_rank: u32,
    /// The expert rank, only with expert parallelism on a `MoE` model.
    pub ep_rank: Option<u32>,
    /// Whether this is a draft model.
    pub draft: bool,
    /// The transfer engine's name; [`UNNAMED_ENGINE`] adds nothing.
    pub engine: &'a str,
}

impl ReadableKey<'_> {
    /// The key: `model_url SEP strategy SEP mode SEP node_rank [SEP pp…] SEP tp_rank [SEP ep…] [SEP draft]
    /// [SEP engine]`.
    ///
    /// # Errors
    /// [`SeedKeyError`] for an empty model URL, strategy or separator, and for a key that is too long.
    pub fn build(&self, separator: &str) -> Result<SeedKey, SeedKeyError> {
        let required = [
            ("model_url", self.model_url),
            ("model_deploy_strategy_name", self.model_deploy_strategy_name),
            ("rfork_seed_key_separator", separator),
        ];
        if let Some((name, _)) = required.iter().find(|(_, value)| value.is_empty()) {
            return Err(SeedKeyError::Empty(name));
        }
        let mut parts = vec![
            self.model_url.to_owned(),
            self.model_deploy_strategy_name.to_owned(),
            self.mode.as_str().to_owned(),
            self.node_rank.to_string(),
        ];
        parts.extend(self.pp_rank.map(|rank| format!("pp{rank}")));
        parts.push(self.tp_rank.to_string());
        parts.extend(self.ep_rank.map(|rank| format!("ep{rank}")));
        parts.extend(self.draft.then(|| "draft".to_owned()));
        parts.extend((self.engine != UNNAMED_ENGINE).then(|| self.engine.to_owned()));
        Ok(SeedKey::from_text(&parts.join(separator))?)
    }
}

/// What generation C adds to a digest key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structure<'a> {
    /// Digest of the tensors' structure, from the inference engine.
    pub structural_digest: &'a str,
    /// The data-parallel rank where weights are sharded over it, else `None`.
    pub sharded_dp_rank: Option<u32>,
}

/// The parts of a digest key. Fingerprint and structural digest come from the inference engine, which alone
/// can read its configuration and tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestKey<'a> {
    /// Stands for all that makes two workers' weights interchangeable.
    pub compatibility_fingerprint: &'a str,
    /// Which model.
    pub model_url: &'a str,
    /// Which deployment of it.
    pub model_deploy_strategy_name: &'a str,
    /// The tensor-parallel rank.
    pub tp_rank: u32,
    /// The pipeline rank, only with pipeline parallelism.
    pub pp_rank: Option<u32>,
    /// The expert rank, only with expert parallelism.
    pub ep_rank: Option<u32>,
    /// Whether this is a draft model.
    pub draft: bool,
    /// `None` gives a key of generation B, `Some` one of generation C.
    pub structure: Option<Structure<'a>>,
    /// The transfer engine's name; [`UNNAMED_ENGINE`] adds nothing.
    pub engine: &'a str,
}

impl DigestKey<'_> {
    /// SHA-256, in hex, of the parts as JSON with sorted keys, no spaces and no ASCII escapes.
    ///
    /// # Errors
    /// [`SeedKeyError`] for an empty fingerprint, model URL, strategy or structural digest.
    pub fn build(&self) -> Result<SeedKey, SeedKeyError> {
        let required = [
            ("compatibility_fingerprint", self.compatibility_fingerprint),
            ("model_url", self.model_url),
            ("model_deploy_strategy_name", self.model_deploy_strategy_name),
            ("structural_digest", self.structure.as_ref().map_or("unused", |s| s.structural_digest)),
        ];
        if let Some((name, _)) = required.iter().find(|(_, value)| value.is_empty()) {
            return Err(SeedKeyError::Empty(name));
        }
        Ok(SeedKey::new(hex(&Sha256::digest(self.canonical_json())))?)
    }

    fn canonical_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Value<'a> {
            Text(&'a str),
            Rank(Option<u32>),
            Flag(bool),
        }
        let mut fields = BTreeMap::from([
            ("compatibility_fingerprint", Value::Text(self.compatibility_fingerprint)),
            ("model_url", Value::Text(self.model_url)),
            ("model_deploy_strategy_name", Value::Text(self.model_deploy_strategy_name)),
            ("tp_rank", Value::Rank(Some(self.tp_rank))),
            ("pp_rank", Value::Rank(self.pp_rank)),
            ("ep_rank", Value::Rank(self.ep_rank)),
        ]);
        match &self.structure {
            None => {
                fields.insert("is_draft_worker", Value::Flag(self.draft));
            }
            Some(structure) => {
                fields.insert("is_draft_model", Value::Flag(self.draft));
                fields.insert("structural_digest", Value::Text(structure.structural_digest));
                fields.insert("sharded_dp_rank", Value::Rank(structure.sharded_dp_rank));
            }
        }
        if self.engine != UNNAMED_ENGINE {
            fields.insert("engine", Value::Text(self.engine));
        }
        // Text, numbers and booleans always serialise.
        serde_json::to_string(&fields).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn readable() -> ReadableKey<'static> {
        ReadableKey {
            model_url: "/models/dsv4",
            model_deploy_strategy_name: "decode",
            mode: KvRole::Consumer,
            node_rank: 0,
            pp_rank: None,
            tp_rank: 3,
            ep_rank: None,
            draft: false,
            engine: UNNAMED_ENGINE,
        }
    }

    fn digest() -> DigestKey<'static> {
        DigestKey {
            compatibility_fingerprint: "f00",
            model_url: "/models/é",
            model_deploy_strategy_name: "decode",
            tp_rank: 1,
            pp_rank: None,
            ep_rank: Some(5),
            draft: false,
            structure: None,
            engine: UNNAMED_ENGINE,
        }
    }

    #[test]
    fn readable_keys_are_those_of_the_field() {
        let key = |parts: ReadableKey| parts.build("$").unwrap().text().into_owned();
        assert_eq!(key(readable()), "/models/dsv4$decode$kv_consumer$0$3");
        assert_eq!(
            key(ReadableKey { pp_rank: Some(0), tp_rank: 0, ep_rank: Some(0), ..readable() }),
            "/models/dsv4$decode$kv_consumer$0$pp0$0$ep0"
        );
        assert_eq!(
            key(ReadableKey { tp_rank: 0, ep_rank: Some(5), draft: true, ..readable() }),
            "/models/dsv4$decode$kv_consumer$0$0$ep5$draft"
        );
        assert_eq!(
            key(ReadableKey { engine: "tcp", ..readable() }),
            "/models/dsv4$decode$kv_consumer$0$3$tcp"
        );
    }

    #[test]
    fn an_empty_part_is_named() {
        let no_model = ReadableKey { model_url: "", ..readable() };
        assert_eq!(no_model.build("$"), Err(SeedKeyError::Empty("model_url")));
        assert_eq!(readable().build(""), Err(SeedKeyError::Empty("rfork_seed_key_separator")));
        let no_strategy = DigestKey { model_deploy_strategy_name: "", ..digest() };
        assert_eq!(no_strategy.build(), Err(SeedKeyError::Empty("model_deploy_strategy_name")));
    }

    #[test]
    fn the_canonical_json_is_python_s() {
        // json.dumps(…, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert_eq!(
            digest().canonical_json(),
            r#"{"compatibility_fingerprint":"f00","ep_rank":5,"is_draft_worker":false,"model_deploy_strategy_name":"decode","model_url":"/models/é","pp_rank":null,"tp_rank":1}"#
        );
        let structure = Some(Structure { structural_digest: "beef", sharded_dp_rank: None });
        assert_eq!(
            DigestKey { structure, draft: true, engine: "tcp", ..digest() }.canonical_json(),
            r#"{"compatibility_fingerprint":"f00","engine":"tcp","ep_rank":5,"is_draft_model":true,"model_deploy_strategy_name":"decode","model_url":"/models/é","pp_rank":null,"sharded_dp_rank":null,"structural_digest":"beef","tp_rank":1}"#
        );
        assert!(digest().build().unwrap().is_digest());
    }

    proptest! {
        #[test]
        fn a_readable_key_takes_apart_again(model in "[a-z/é]{1,20}", strategy in "[a-z]{1,8}", node: u32, tp: u32,
            pp: Option<u32>, ep: Option<u32>, draft: bool) {
            let parts = ReadableKey { model_url: &model, model_deploy_strategy_name: &strategy, node_rank: node,
                tp_rank: tp, pp_rank: pp, ep_rank: ep, draft, engine: "tcp", mode: KvRole::Both };
            let key = parts.build("$").unwrap().text().into_owned();
            let mut read = key.split('$');
            prop_assert_eq!(read.next(), Some(&model[..]));
            prop_assert_eq!(read.next(), Some(&strategy[..]));
            prop_assert_eq!(read.next(), Some("kv_both"));
            prop_assert_eq!(read.next(), Some(&node.to_string()[..]));
            if let Some(pp) = pp { prop_assert_eq!(read.next(), Some(&format!("pp{pp}")[..])); }
            prop_assert_eq!(read.next(), Some(&tp.to_string()[..]));
            if let Some(ep) = ep { prop_assert_eq!(read.next(), Some(&format!("ep{ep}")[..])); }
            if draft { prop_assert_eq!(read.next(), Some("draft")); }
            prop_assert_eq!(read.collect::<Vec<_>>(), ["tcp"]);
        }

        #[test]
        fn every_rank_changes_a_digest_key(a: u32, b: u32) {
            let key = |tp_rank| DigestKey { tp_rank, ..digest() }.build().unwrap();
            prop_assert_eq!(key(a) == key(b), a == b);
        }
    }
}
