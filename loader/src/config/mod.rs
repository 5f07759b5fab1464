//! What a worker's settings mean, checked. [`crate::settings`] describes each of them.

use std::ffi::OsString;
use std::num::ParseFloatError;
use std::time::Duration;

use rfork_protocol::manifest::metadata::EntryFields;
use rfork_protocol::settings::{BadObject, Object, SettingError, Sources, Values};
use rfork_protocol::v2::{Location, Name};
use serde_json::Value;

use crate::digest::DigestAlgorithm;
use crate::planner_ca::PlannerCa;
use crate::planner_client::{Topology, base_url_of};
use crate::settings::SETTINGS;
use crate::token::{self, TokenFile};

mod builder;
#[cfg(test)]
mod tests;

pub use builder::ConfigBuilder;

/// Settings that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// They are no JSON object.
    #[error("the loader's configuration {0}")]
    Object(#[from] BadObject),
    /// One of them cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// A worker's settings, checked. Field names are the users' (`rfork_` dropped where it says nothing).
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `model_url`: which model; part of the seed key.
    pub model_url: String,
    /// `model_deploy_strategy_name`: which deployment of it; part of the seed key.
    pub model_deploy_strategy_name: String,
    /// `rfork_scheduler_url`: the planner's base URL.
    pub scheduler_url: String,
    /// `rfork_token_file`: where the token is that the planner is shown.
    pub token_file: Option<TokenFile>,
    /// `rfork_token_over_http`: whether it is shown where others may read it on its way.
    pub token_over_http: bool,
    /// `rfork_planner_ca_file`: who vouches for the planner; the system's CAs do when `None`.
    pub planner_ca: Option<PlannerCa>,
    /// `rfork_seed_timeout_sec`: how long the own seed service may take to answer its health check.
    pub seed_timeout: Duration,
    /// `rfork_request_timeout_sec`: deadline of each request to planner and seeds.
    pub request_timeout: Duration,
    /// `rfork_seed_key_separator`: between the parts of a readable key.
    pub seed_key_separator: String,
    /// `rfork_seed_bind_host`: where the seed service and the TCP engine listen; every address of this machine, of both
    /// families, when `None`. `0.0.0.0`, if set, is IPv4 alone, as vLLM Ascend's users have it.
    pub seed_bind_host: Option<String>,
    /// `rfork_seed_advertise_host`: the address that peers are told; detected when `None`.
    pub seed_advertise_host: Option<String>,
    /// `rfork_seed_port_base`: fixed ports from here on; free ports when 0.
    pub seed_port_base: u16,
    /// `rfork_model_identity_headers`: whether requests carry the label headers.
    pub model_identity_headers: bool,
    /// `rfork_heartbeat_interval_sec`: how often a seed says that it lives.
    pub heartbeat_interval: Duration,
    /// `rfork_lease_release_max_attempts`: how often a release is tried.
    pub lease_release_max_attempts: u32,
    /// `rfork_lease_release_retry_interval_sec`: pause between two tries.
    pub lease_release_retry_interval: Duration,
    /// `rfork_seed_wait_sec`: how long a worker may wait for a seed before it goes to storage. Zero asks once. When
    /// `None`, it depends on whether it serves while it loads.
    pub seed_wait: Option<Duration>,
    /// `rfork_fork_while_loading`: whether it serves while it loads; as the engine has it when `None`.
    pub fork_while_loading: Option<bool>,
    /// `rfork_zone`, `rfork_rack`, `rfork_host` and `rfork_instance_id`: where this worker stands, and the instance
    /// whose rank it is. Planners that speak v2 prefer near seeds, and serve an instance from one.
    pub topology: Topology,
    /// `rfork_seed_max_readers`: connections that this worker's seed side serves at once.
    pub seed_max_readers: u32,
    /// `rfork_seed_max_gib_per_sec`: what this worker's seed side sends at most, in GiB/s; unlimited when
    /// `None`.
    pub seed_max_gib_per_sec: Option<f64>,
    /// `rfork_transfer_timeout_sec`: how long a call of YuanRong's library may last, besides the time for its bytes,
    /// before it is given up.
    pub transfer_timeout: Duration,
    /// `rfork_digest`: how chunks are digested of weights that this worker reads from storage.
    pub digest: DigestAlgorithm,
    /// `rfork_seed_metadata_fields`: 3 or 5 fields a tensor; by the key's form when `None`.
    pub seed_metadata_fields: Option<EntryFields>,
}

impl Config {
    /// Settings one by one, in Rust: the planner's URL, which model, and which deployment of it.
    pub fn builder(scheduler_url: &str, model_url: &str, model_deploy_strategy_name: &str) -> ConfigBuilder {
        ConfigBuilder::new(scheduler_url, model_url, model_deploy_strategy_name)
    }

    /// Reads the settings from a JSON object, with `env` for the environment.
    ///
    /// Returns the settings and the warnings to log, one sentence each.
    ///
    /// # Errors
    /// [`ConfigError`], naming the setting, where it stands and what it accepts.
    pub fn from_json(
        json: &Value,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let object = Object::from_value(json)?;
        let mut values = Sources { flags: &[], object: Some(&object), env: &env }.read(SETTINGS)?;
        let warnings = std::mem::take(&mut values.warnings);
        Ok((Self::read(&values)?, warnings))
    }

    /// What the values of [`SETTINGS`] mean.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn read(values: &Values) -> Result<Self, SettingError> {
        let planner = values.find_with("rfork_scheduler_url", base_url_of)?;
        let token_file =
            values.find_with("rfork_token_file", |path| Ok::<_, String>(TokenFile::new(path)))?;
        let token_over_http: bool = values.get("rfork_token_over_http")?;
        if token_file.is_some() && planner.as_ref().is_some_and(token::has_credential) {
            let why = "cannot be used with a user or a password in rfork_scheduler_url: a request shows one credential";
            return Err(values.refused("rfork_token_file", &why));
        }
        let planner_ca = values.find_with("rfork_planner_ca_file", |path| PlannerCa::read(path))?;
        if planner_ca.is_some() && planner.as_ref().is_some_and(|planner| planner.scheme() != "https") {
            let why = "is for a planner at https://, and rfork_scheduler_url begins with http://";
            return Err(values.refused("rfork_planner_ca_file", &why));
        }
        let in_the_clear = planner.is_some_and(|planner| !token::is_private(&planner));
        if token_file.is_some() && in_the_clear && !token_over_http {
            let why = "is for a planner at https://, or on this machine: others may read the token on its way. Set \
                       rfork_token_over_http if nobody else is on that network";
            return Err(values.refused("rfork_token_file", &why));
        }
        let config = Self {
            model_url: values.get("model_url")?,
            model_deploy_strategy_name: values.get("model_deploy_strategy_name")?,
            scheduler_url: values.get("rfork_scheduler_url")?,
            token_file,
            token_over_http,
            planner_ca,
            seed_timeout: values.seconds("rfork_seed_timeout_sec")?,
            request_timeout: values.seconds("rfork_request_timeout_sec")?,
            seed_key_separator: values.get("rfork_seed_key_separator")?,
            seed_bind_host: values.find("rfork_seed_bind_host")?,
            seed_advertise_host: values.find("rfork_seed_advertise_host")?,
            seed_port_base: values.get("rfork_seed_port_base")?,
            model_identity_headers: values.get("rfork_model_identity_headers")?,
            heartbeat_interval: values.seconds("rfork_heartbeat_interval_sec")?,
            lease_release_max_attempts: values.get("rfork_lease_release_max_attempts")?,
            lease_release_retry_interval: values.seconds("rfork_lease_release_retry_interval_sec")?,
            seed_wait: values.find_with("rfork_seed_wait_sec", seconds)?,
            fork_while_loading: values.find("rfork_fork_while_loading")?,
            topology: topology(values)?,
            seed_max_readers: values.get("rfork_seed_max_readers")?,
            seed_max_gib_per_sec: values.find("rfork_seed_max_gib_per_sec")?,
            transfer_timeout: values.seconds("rfork_transfer_timeout_sec")?,
            digest: values.get("rfork_digest")?,
            seed_metadata_fields: values.find::<u8>("rfork_seed_metadata_fields")?.map(
                |fields| match fields {
                    3 => EntryFields::Three,
                    _ => EntryFields::Five,
                },
            ),
        };
        // They go into headers, as vLLM Ascend's planner takes them.
        let labels = [
            ("model_url", &config.model_url),
            ("model_deploy_strategy_name", &config.model_deploy_strategy_name),
        ];
        let unfit = labels.into_iter().find(|(_, text)| config.model_identity_headers && !text.is_ascii());
        match unfit {
            None => Ok(config),
            Some((name, text)) => {
                let switch = values.place("rfork_model_identity_headers").unwrap_or_default();
                Err(values.refused(name, &format!("must be ASCII while {switch} is on, got '{text}'")))
            }
        }
    }

    /// The port of the metadata service for a worker of that rank among all: 0, a free one, without a base, else
    /// `base + 2 x rank` for a main model and the next for its draft; `None` if there is no such port.
    pub fn seed_port(&self, global_rank: u32, draft: bool) -> Option<u16> {
        if self.seed_port_base == 0 {
            return Some(0);
        }
        u16::try_from(u64::from(self.seed_port_base) + 2 * u64::from(global_rank) + u64::from(draft)).ok()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn topology(values: &Values) -> Result<Topology, SettingError> {
    let name = |setting| values.find_with(setting, |text| Name::try_from(text.to_owned()));
    let location =
        Location { zone: name("rfork_zone")?, rack: name("rfork_rack")?, host: name("rfork_host")? };
    let location = (location != Location::default()).then_some(location);
    Ok(Topology { location, instance_id: name("rfork_instance_id")? })
}
