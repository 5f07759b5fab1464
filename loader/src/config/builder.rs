//! A worker's settings, one by one, in Rust.

use std::time::Duration;

use rfork_protocol::manifest::digest::DigestAlgorithm;
use rfork_protocol::manifest::metadata::EntryFields;
use rfork_protocol::settings::{SettingError, Sources};

use super::Config;
use crate::settings::SETTINGS;

/// Makes a [`Config`]; see [`Config::builder`]. What is not set has its default; the environment is not read.
#[derive(Debug, Clone)]
pub struct ConfigBuilder {
    /// By the settings' names. As flags have them: nothing that is wrong is passed over.
    given: Vec<(&'static str, String)>,
}

/// A method for each setting, named as the field of [`Config`] that it sets, or part of that field.
macro_rules! setters {
    ($($setter:ident($taken:ty) sets $field:literal from $name:literal by $text:expr;)*) => {
        impl ConfigBuilder {
            $(
                #[doc = concat!("Sets [`Config::", $field, "`], which users know as `", $name, "`.")]
                #[must_use]
                pub fn $setter(self, value: $taken) -> Self {
                    let text: fn($taken) -> String = $text;
                    self.with($name, text(value))
                }
            )*

            /// The names of the settings that have a method.
            #[cfg(test)]
            pub(super) const NAMES: &[&str] = &[$($name),*];
        }
    };
}

setters! {
    token_file(&str) sets "token_file" from "rfork_token_file" by str::to_owned;
    token_over_http(bool) sets "token_over_http" from "rfork_token_over_http" by |on| on.to_string();
    planner_ca_file(&str) sets "planner_ca" from "rfork_planner_ca_file" by str::to_owned;
    seed_timeout(Duration) sets "seed_timeout" from "rfork_seed_timeout_sec" by seconds;
    request_timeout(Duration) sets "request_timeout" from "rfork_request_timeout_sec" by seconds;
    seed_key_separator(&str) sets "seed_key_separator" from "rfork_seed_key_separator" by str::to_owned;
    seed_bind_host(&str) sets "seed_bind_host" from "rfork_seed_bind_host" by str::to_owned;
    seed_advertise_host(&str) sets "seed_advertise_host" from "rfork_seed_advertise_host" by str::to_owned;
    seed_port_base(u16) sets "seed_port_base" from "rfork_seed_port_base" by |port| port.to_string();
    model_identity_headers(bool) sets "model_identity_headers" from "rfork_model_identity_headers"
        by |on| on.to_string();
    heartbeat_interval(Duration) sets "heartbeat_interval" from "rfork_heartbeat_interval_sec" by seconds;
    lease_release_max_attempts(u32) sets "lease_release_max_attempts" from "rfork_lease_release_max_attempts"
        by |attempts| attempts.to_string();
    lease_release_retry_interval(Duration) sets "lease_release_retry_interval"
        from "rfork_lease_release_retry_interval_sec" by seconds;
    seed_wait(Duration) sets "seed_wait" from "rfork_seed_wait_sec" by seconds;
    fork_while_loading(bool) sets "fork_while_loading" from "rfork_fork_while_loading" by |on| on.to_string();
    zone(&str) sets "topology" from "rfork_zone" by str::to_owned;
    rack(&str) sets "topology" from "rfork_rack" by str::to_owned;
    host(&str) sets "topology" from "rfork_host" by str::to_owned;
    instance_id(&str) sets "topology" from "rfork_instance_id" by str::to_owned;
    seed_max_readers(u32) sets "seed_max_readers" from "rfork_seed_max_readers" by |readers| readers.to_string();
    seed_max_gib_per_sec(f64) sets "seed_max_gib_per_sec" from "rfork_seed_max_gib_per_sec"
        by |rate| rate.to_string();
    transfer_timeout(Duration) sets "transfer_timeout" from "rfork_transfer_timeout_sec" by seconds;
    digest(DigestAlgorithm) sets "digest" from "rfork_digest" by |algorithm| algorithm.to_string();
    seed_metadata_fields(EntryFields) sets "seed_metadata_fields" from "rfork_seed_metadata_fields"
        by |fields| match fields {
            EntryFields::Three => "3".into(),
            EntryFields::Five => "5".into(),
        };
}

fn seconds(time: Duration) -> String {
    time.as_secs_f64().to_string()
}

impl ConfigBuilder {
    pub(super) fn new(scheduler_url: &str, model_url: &str, model_deploy_strategy_name: &str) -> Self {
        Self { given: Vec::new() }
            .with("rfork_scheduler_url", scheduler_url.into())
            .with("model_url", model_url.into())
            .with("model_deploy_strategy_name", model_deploy_strategy_name.into())
    }

    /// What was set last counts.
    fn with(mut self, name: &'static str, text: String) -> Self {
        self.given.retain(|(known, _)| *known != name);
        self.given.push((name, text));
        self
    }

    /// The settings, checked as those of users are.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting as its flag, and what it accepts.
    pub fn build(&self) -> Result<Config, SettingError> {
        Config::read(&Sources { flags: &self.given, object: None, env: &|_| None }.read(SETTINGS)?)
    }
}
