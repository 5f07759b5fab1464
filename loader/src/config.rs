//! A worker's settings: the fields, defaults and environment fallbacks that RFork users already have, and a
//! few of ours. They arrive as one JSON object (vLLM's `--model-loader-extra-config`).
//!
//! For a field with an environment fallback, a value that cannot be used is passed over, with a warning, for
//! the environment and then for the default; for any other field it is an error. That is what vLLM Ascend
//! does, so a configuration that works there works here.

use std::time::Duration;

use serde_json::{Map, Value};

use rfork_protocol::manifest::metadata::EntryFields;
use rfork_protocol::v2::{Location, Name};

use crate::planner_client::WorkerPlace;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The configuration is not a JSON object.
    #[error(
        "the loader's configuration must be a JSON object, for instance {{\"model_url\": \"/models/m\"}}"
    )]
    NotAnObject,
    /// A required field is neither in the configuration nor in the environment.
    #[error("{field} is required: set it in the loader's configuration or in the environment as {env}")]
    Missing {
        /// The field.
        field: &'static str,
        /// Its environment variable.
        env: &'static str,
    },
    /// A value that a field does not accept.
    #[error("{field} must be {accepts}, got {got}")]
    Bad {
        /// The field.
        field: &'static str,
        /// What it accepts.
        accepts: &'static str,
        /// What was given.
        got: String,
    },
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
    /// `rfork_seed_timeout_sec`: how long the own seed service may take to answer its health check.
    pub seed_timeout: Duration,
    /// `rfork_request_timeout_sec`: deadline of each request to planner and seeds.
    pub request_timeout: Duration,
    /// `rfork_seed_key_separator`: between the parts of a readable key.
    pub seed_key_separator: String,
    /// `rfork_seed_bind_host`: where the seed service and the TCP engine listen.
    pub seed_bind_host: String,
    /// `rfork_seed_advertise_host`: the address that peers are told; detected when `None`.
    pub seed_advertise_host: Option<String>,
    /// `rfork_seed_port_base`: fixed ports from here on; random ports when `None`.
    pub seed_port_base: Option<u16>,
    /// `rfork_model_identity_headers`: whether requests carry the label headers.
    pub model_identity_headers: bool,
    /// `rfork_heartbeat_interval_sec`: how often a seed says that it lives.
    pub heartbeat_interval: Duration,
    /// `rfork_lease_release_max_attempts`: how often a release is tried.
    pub lease_release_max_attempts: u32,
    /// `rfork_lease_release_retry_interval_sec`: pause between two tries.
    pub lease_release_retry_interval: Duration,
    /// `rfork_seed_wait_sec`: how long a worker may wait for a seed before it goes to storage. Zero asks once.
    pub seed_wait: Duration,
    /// `rfork_zone`, `rfork_rack`, `rfork_host` and `rfork_instance_id`: where this worker stands, and the instance
    /// whose rank it is. Planners that speak v2 prefer near seeds, and serve an instance from one.
    pub place: WorkerPlace,
    /// `rfork_seed_max_readers`: connections that this worker's seed side serves at once.
    pub seed_max_readers: u32,
    /// `rfork_seed_max_gib_per_sec`: what this worker's seed side sends at most, in GiB/s; unlimited when
    /// `None`.
    pub seed_max_gib_per_sec: Option<f64>,
    /// `rfork_transfer_timeout_sec`: how long a call of YuanRong's library may last, besides the time for its bytes,
    /// before it is given up.
    pub transfer_timeout: Duration,
    /// `rfork_seed_metadata_fields`: 3 or 5 fields a tensor; by the key's form when `None`.
    pub seed_metadata_fields: Option<EntryFields>,
}

/// Every field with its environment fallback, for help texts and to know a misspelt one.
pub const FIELDS: [(&str, Option<&str>); 22] = [
    ("model_url", Some("MODEL_URL")),
    ("model_deploy_strategy_name", Some("MODEL_DEPLOY_STRATEGY_NAME")),
    ("rfork_scheduler_url", Some("RFORK_SCHEDULER_URL")),
    ("rfork_seed_timeout_sec", Some("RFORK_SEED_TIMEOUT_SEC")),
    ("rfork_request_timeout_sec", Some("RFORK_REQUEST_TIMEOUT_SEC")),
    ("rfork_seed_key_separator", Some("RFORK_SEED_KEY_SEPARATOR")),
    ("rfork_seed_bind_host", Some("RFORK_SEED_BIND_HOST")),
    ("rfork_seed_advertise_host", Some("RFORK_SEED_ADVERTISE_HOST")),
    ("rfork_seed_port_base", None),
    ("rfork_model_identity_headers", None),
    ("rfork_heartbeat_interval_sec", None),
    ("rfork_lease_release_max_attempts", None),
    ("rfork_lease_release_retry_interval_sec", None),
    ("rfork_seed_wait_sec", None),
    ("rfork_zone", Some("RFORK_ZONE")),
    ("rfork_rack", Some("RFORK_RACK")),
    ("rfork_host", Some("RFORK_HOST")),
    ("rfork_instance_id", Some("RFORK_INSTANCE_ID")),
    ("rfork_seed_max_readers", None),
    ("rfork_seed_max_gib_per_sec", None),
    ("rfork_transfer_timeout_sec", None),
    ("rfork_seed_metadata_fields", None),
];

/// The longest time that a setting may give, in seconds: a year. More is a slip, and would overflow timers.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;

const NOT_EMPTY: &str = "a text that is not empty";

impl Config {
    /// Reads the settings from a JSON object, with `env` for the environment.
    ///
    /// Returns the settings and the warnings to log, one sentence each.
    ///
    /// # Errors
    /// [`ConfigError`], naming the field and what it accepts.
    pub fn from_json(
        json: &Value,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let Value::Object(object) = json else { return Err(ConfigError::NotAnObject) };
        let mut read = Reader { object, env: &env, warnings: Vec::new() };
        for name in object.keys().filter(|name| !FIELDS.iter().any(|(known, _)| known == name)) {
            read.warnings.push(format!("unknown setting '{name}' is ignored"));
        }
        let config = Self {
            model_url: read.required_text("model_url")?,
            model_deploy_strategy_name: read.required_text("model_deploy_strategy_name")?,
            scheduler_url: read.required_text("rfork_scheduler_url")?,
            seed_timeout: read.seconds_or_env("rfork_seed_timeout_sec", 5.0),
            request_timeout: read.seconds_or_env("rfork_request_timeout_sec", 10.0),
            seed_key_separator: read.text_or_env("rfork_seed_key_separator").unwrap_or_else(|| "$".into()),
            seed_bind_host: read.text_or_env("rfork_seed_bind_host").unwrap_or_else(|| "0.0.0.0".into()),
            seed_advertise_host: read.text_or_env("rfork_seed_advertise_host"),
            seed_port_base: read.optional("rfork_seed_port_base", "an integer from 1 to 65535", port)?,
            model_identity_headers: read
                .optional("rfork_model_identity_headers", "true or false", Value::as_bool)?
                .unwrap_or(false),
            heartbeat_interval: read.seconds("rfork_heartbeat_interval_sec", 30.0)?,
            lease_release_max_attempts: read.positive_integer("rfork_lease_release_max_attempts", 3)?,
            lease_release_retry_interval: read.seconds("rfork_lease_release_retry_interval_sec", 30.0)?,
            seed_wait: read
                .optional("rfork_seed_wait_sec", "a number of seconds, 0 or more", |value| {
                    if value.as_f64() == Some(0.0) { Some(Duration::ZERO) } else { seconds(value) }
                })?
                .unwrap_or(Duration::ZERO),
            place: read.place(),
            seed_max_readers: read.positive_integer("rfork_seed_max_readers", 16)?,
            seed_max_gib_per_sec: read.optional(
                "rfork_seed_max_gib_per_sec",
                "a finite positive number",
                |value| value.as_f64().filter(|rate| rate.is_finite() && *rate > 0.0),
            )?,
            transfer_timeout: read.seconds("rfork_transfer_timeout_sec", 30.0)?,
            seed_metadata_fields: read.optional(
                "rfork_seed_metadata_fields",
                "3 or 5",
                |value| match value.as_u64() {
                    Some(3) => Some(EntryFields::Three),
                    Some(5) => Some(EntryFields::Five),
                    _ => None,
                },
            )?,
        };
        Ok((config, read.warnings))
    }

    /// The port of the metadata service for a worker of that rank: random (0) without a base, else
    /// `base + 2 x rank` for a main model and the next for its draft.
    ///
    /// # Errors
    /// [`ConfigError::Bad`] when the result is no port.
    pub fn seed_port(&self, rank: u32, draft: bool) -> Result<u16, ConfigError> {
        let Some(base) = self.seed_port_base else { return Ok(0) };
        let port = u64::from(base) + 2 * u64::from(rank) + u64::from(draft);
        u16::try_from(port).map_err(|_| ConfigError::Bad {
            field: "rfork_seed_port_base",
            accepts: "a port such that base + 2 x rank + 1 is at most 65535",
            got: format!("{base} for rank {rank}"),
        })
    }
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

/// A finite, positive number of seconds, as a number or as text that is one.
fn seconds(value: &Value) -> Option<Duration> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (number.is_finite() && number > 0.0 && number <= MAX_SECONDS).then(|| Duration::from_secs_f64(number))
}

/// Reads fields one by one and gathers what to warn of.
struct Reader<'a> {
    object: &'a Map<String, Value>,
    env: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// The value of a field that is set; `null` counts as not set.
    fn given(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// The first usable one of the configuration's value and the environment's.
    fn or_env<T>(
        &mut self,
        field: &'static str,
        accepts: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let env_name = FIELDS.iter().find(|(name, _)| *name == field).and_then(|(_, env)| *env)?;
        let from_env = (self.env)(env_name).map(Value::String);
        let sources = [(field, self.given(field).cloned()), (env_name, from_env)];
        for (name, value) in sources {
            let Some(value) = value else { continue };
            match parse(&value) {
                Some(parsed) => return Some(parsed),
                None => self.warnings.push(format!("{name} must be {accepts}, got {value}: it is ignored")),
            }
        }
        None
    }

    fn text_or_env(&mut self, field: &'static str) -> Option<String> {
        self.or_env(field, NOT_EMPTY, |value| {
            value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
        })
    }

    fn name_or_env(&mut self, field: &'static str) -> Option<Name> {
        self.or_env(field, "a text of 1 to 256 bytes without control characters", |value| {
            Name::try_from(value.as_str()?.to_owned()).ok()
        })
    }

    fn place(&mut self) -> WorkerPlace {
        let location = Location {
            zone: self.name_or_env("rfork_zone"),
            rack: self.name_or_env("rfork_rack"),
            host: self.name_or_env("rfork_host"),
        };
        let instance_id = self.name_or_env("rfork_instance_id");
        WorkerPlace { location: (location != Location::default()).then_some(location), instance_id }
    }

    fn required_text(&mut self, field: &'static str) -> Result<String, ConfigError> {
        let env = FIELDS.iter().find(|(name, _)| *name == field).and_then(|(_, env)| *env).unwrap_or("");
        let found = self.text_or_env(field);
        found.ok_or_else(|| match self.given(field) {
            None => ConfigError::Missing { field, env },
            Some(value) => ConfigError::Bad { field, accepts: NOT_EMPTY, got: value.to_string() },
        })
    }

    fn seconds_or_env(&mut self, field: &'static str, default: f64) -> Duration {
        let found = self.or_env(field, "a finite positive number of seconds", seconds);
        found.unwrap_or(Duration::from_secs_f64(default))
    }

    fn optional<T>(
        &self,
        field: &'static str,
        accepts: &'static str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.given(field) else { return Ok(None) };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(ConfigError::Bad { field, accepts, got: value.to_string() }),
        }
    }

    fn seconds(&self, field: &'static str, default: f64) -> Result<Duration, ConfigError> {
        let given = self.optional(field, "a finite positive number of seconds", seconds)?;
        Ok(given.unwrap_or(Duration::from_secs_f64(default)))
    }

    fn positive_integer(&self, field: &'static str, default: u32) -> Result<u32, ConfigError> {
        let parse = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        Ok(self.optional(field, "a positive integer", parse)?.unwrap_or(default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"model_url": "/m", "model_deploy_strategy_name": "s", "rfork_scheduler_url": "http://p:1223"})
    }

    fn with(field: &str, value: Value) -> Value {
        let mut config = base();
        config[field] = value;
        config
    }

    fn read(json: &Value, env: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
        Config::from_json(json, |name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_are_the_field_s() {
        let (config, warnings) = read(&base(), &[]).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(config.seed_timeout, Duration::from_secs(5));
        assert_eq!(config.request_timeout, Duration::from_secs(10));
        assert_eq!(config.heartbeat_interval, Duration::from_secs(30));
        assert_eq!(config.lease_release_max_attempts, 3);
        assert_eq!(config.lease_release_retry_interval, Duration::from_secs(30));
        assert_eq!((config.seed_key_separator.as_str(), config.seed_bind_host.as_str()), ("$", "0.0.0.0"));
        assert_eq!((config.seed_port_base, config.seed_advertise_host), (None, None));
        assert_eq!((config.seed_wait, config.model_identity_headers), (Duration::ZERO, false));
    }

    #[test]
    fn the_environment_fills_what_is_missing_or_bad() {
        let env = [("MODEL_URL", "/env"), ("RFORK_SEED_TIMEOUT_SEC", "7.5")];
        let (config, _) = read(&with("model_url", json!("")), &env).unwrap();
        assert_eq!((config.model_url.as_str(), config.seed_timeout), ("/env", Duration::from_millis(7500)));
        for bad in [json!(-1), json!(0), json!("nan"), json!("inf"), json!(true), json!(1e300)] {
            let (config, warnings) = read(&with("rfork_seed_timeout_sec", bad), &env).unwrap();
            assert_eq!(config.seed_timeout, Duration::from_millis(7500));
            assert!(warnings[0].contains("rfork_seed_timeout_sec"), "{warnings:?}");
        }
        let (config, warnings) =
            read(&with("rfork_seed_timeout_sec", json!(-1)), &[("RFORK_SEED_TIMEOUT_SEC", "x")]).unwrap();
        assert_eq!((config.seed_timeout, warnings.len()), (Duration::from_secs(5), 2));
    }

    #[test]
    fn a_field_without_an_environment_must_be_right() {
        let cases = [
            ("rfork_heartbeat_interval_sec", json!(0)),
            ("rfork_lease_release_max_attempts", json!(1.5)),
            ("rfork_lease_release_max_attempts", json!(0)),
            ("rfork_lease_release_retry_interval_sec", json!("soon")),
            ("rfork_seed_port_base", json!(70_000)),
            ("rfork_seed_port_base", json!(0)),
            ("rfork_model_identity_headers", json!("yes")),
            ("rfork_seed_wait_sec", json!(-1)),
            ("rfork_seed_max_readers", json!(0)),
            ("rfork_seed_max_gib_per_sec", json!(0)),
            ("rfork_seed_metadata_fields", json!(4)),
        ];
        for (field, value) in cases {
            let error = read(&with(field, value), &[]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field} must be ")), "{error}");
        }
    }

    #[test]
    fn what_is_missing_or_misspelt_is_named() {
        let error = read(&json!({}), &[]).unwrap_err().to_string();
        assert!(error.contains("model_url") && error.contains("MODEL_URL"), "{error}");
        let error = read(&with("model_url", json!(5)), &[]).unwrap_err().to_string();
        assert_eq!(error, "model_url must be a text that is not empty, got 5");
        assert_eq!(read(&json!([]), &[]), Err(ConfigError::NotAnObject));
        let (_, warnings) = read(&with("rfork_seed_timout_sec", json!(1)), &[]).unwrap();
        assert!(warnings[0].contains("rfork_seed_timout_sec"), "{warnings:?}");
    }

    #[test]
    fn fixed_ports_leave_room_for_a_draft() {
        let (config, _) = read(&with("rfork_seed_port_base", json!(40_000)), &[]).unwrap();
        assert_eq!(config.seed_port(3, false), Ok(40_006));
        assert_eq!(config.seed_port(3, true), Ok(40_007));
        assert!(config.seed_port(20_000, false).is_err());
        assert!(config.seed_port(u32::MAX, true).is_err());
    }

    proptest! {
        #[test]
        fn any_value_of_any_field_is_read_or_refused(at in 0..FIELDS.len(), number: f64, integer: i64, text in ".{0,8}", kind in 0..5) {
            let value = match kind { 0 => json!(number), 1 => json!(text), 2 => json!(null), 3 => json!([1]), _ => json!(integer) };
            let _ = read(&with(FIELDS[at].0, value), &[]);
        }
    }
}
