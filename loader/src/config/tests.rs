use super::*;
use proptest::prelude::*;
use rfork_protocol::settings::{Setting, Takes};
use serde_json::json;

fn base() -> Value {
    json!({"model_url": "/m", "model_deploy_strategy_name": "s", "rfork_scheduler_url": "http://localhost:1223"})
}

fn with(field: &str, value: Value) -> Value {
    let mut config = base();
    config[field] = value;
    config
}

fn read(json: &Value, env: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
    Config::from_json(json, |name| {
        env.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    })
}

fn all() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().flat_map(|section| section.settings)
}

/// A value that is not the default, and one that is none.
fn other_and_bad(takes: Takes) -> (Value, Option<Value>) {
    match takes {
        Takes::Whole(_, most) => (json!(most), Some(json!(1.5))),
        Takes::Positive(_) | Takes::PositiveOrZero(_) => (json!(0.25), Some(json!(-1))),
        Takes::NumberOf(numbers) => (json!(numbers[0]), Some(json!(4))),
        Takes::Switch | Takes::Bit => (json!(true), Some(json!("perhaps"))),
        Takes::Name => (json!("b"), Some(json!("a\nb"))),
        _ => (json!("http://other:1"), None),
    }
}

/// As a variable or a flag has it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
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
    assert_eq!((config.seed_key_separator.as_str(), config.seed_bind_host), ("$", None));
    assert_eq!((config.seed_port_base, config.seed_advertise_host), (0, None));
    assert_eq!((config.seed_wait, config.model_identity_headers), (None, false));
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let defaults = read(&base(), &[]).unwrap();
    for variable in all().filter_map(|setting| setting.env) {
        assert_eq!(read(&base(), &[(variable, "")]).unwrap(), defaults, "{variable}");
    }
    let required = ["MODEL_URL", "MODEL_DEPLOY_STRATEGY_NAME", "RFORK_SCHEDULER_URL"];
    let error = read(&json!({}), &required.map(|name| (name, ""))).unwrap_err().to_string();
    assert_eq!(error, "model_url is required: set it, or MODEL_URL in the environment");
}

#[test]
fn each_setting_is_read_from_object_environment_and_flags() {
    let ca = ca_file();
    // At https://, for that is where a CA is for.
    let base = || with("rfork_scheduler_url", json!("https://localhost:1223"));
    let with = |field: &str, value: Value| {
        let mut config = base();
        config[field] = value;
        config
    };
    let defaults = read(&base(), &[]).unwrap().0;
    for setting in all() {
        let (mut other, _) = other_and_bad(setting.takes);
        if setting.name == "rfork_planner_ca_file" {
            other = json!(ca.path().to_str());
        } else if setting.name == "rfork_digest" {
            other = json!("blake3");
        }
        let (changed, warnings) = read(&with(setting.name, other.clone()), &[]).unwrap();
        assert!(changed != defaults && warnings.is_empty(), "{}: {warnings:?}", setting.name);
        if let Some(variable) = setting.env {
            let mut rest = base();
            rest.as_object_mut().unwrap().remove(setting.name);
            assert_eq!(read(&rest, &[(variable, &text(&other))]).unwrap().0, changed, "{variable}");
        }
        let flags = [(setting.name, text(&other))];
        let object = Object::from_value(&base()).unwrap();
        let values = Sources { flags: &flags, object: Some(&object), env: &|_| None }.read(SETTINGS).unwrap();
        assert_eq!(Config::read(&values).unwrap(), changed, "--{}", setting.flag());
    }
}

#[test]
fn a_bad_value_is_refused_or_passed_over_with_its_source() {
    for setting in all() {
        let (_, Some(bad)) = other_and_bad(setting.takes) else { continue };
        let (name, flag) = (setting.name, format!("--{}", setting.flag()));
        let told = |result: Result<(Config, Vec<String>), ConfigError>, lenient: bool| match result {
            Ok((_, warnings)) if lenient => warnings.concat(),
            Err(error) if !lenient => error.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        let said = told(read(&with(name, bad.clone()), &[]), setting.lenient);
        assert!(said.starts_with(&format!("{name} must be {}, got {bad}", setting.takes)), "{said}");
        if let Some(variable) = setting.env {
            let said = told(read(&base(), &[(variable, &text(&bad))]), setting.lenient);
            assert!(said.starts_with(&format!("{variable} in the environment ({flag}) must be ")), "{said}");
        }
        let file = format!("{{\n\n  \"{name}\":\n    {bad}}}");
        let object = Object::parse("w.json".into(), file).unwrap();
        let values = Sources { flags: &[], object: Some(&object), env: &|_| None }.read(SETTINGS);
        // What is lenient is passed over there; then the required ones are missing.
        let said = values.map_or_else(|error| error.to_string(), |values| values.warnings.concat());
        let place = format!("w.json line 3: {name} must be ");
        assert!(said.starts_with(&place) || setting.lenient, "{said}");
        let flags = [(name, text(&bad))];
        let values = Sources { flags: &flags, object: None, env: &|_| None }.read(SETTINGS);
        let said = values.err().unwrap().to_string();
        assert!(said.starts_with(&format!("{flag} must be ")), "{said}");
    }
}

#[test]
fn the_environment_fills_what_is_missing_or_bad() {
    let env = [("MODEL_URL", "/env"), ("RFORK_SEED_TIMEOUT_SEC", " 7.5 ")];
    let (config, _) = read(&with("model_url", json!("")), &env).unwrap();
    assert_eq!((config.model_url.as_str(), config.seed_timeout), ("/env", Duration::from_millis(7500)));
    // Numbers as text are the environment's alone.
    for bad in [json!(-1), json!(0), json!("nan"), json!("6.5"), json!(true), json!(1e300)] {
        let (config, warnings) = read(&with("rfork_seed_timeout_sec", bad), &env).unwrap();
        assert_eq!(config.seed_timeout, Duration::from_millis(7500));
        assert!(warnings[0].starts_with("rfork_seed_timeout_sec must be "), "{warnings:?}");
    }
    let (config, warnings) =
        read(&with("rfork_seed_timeout_sec", json!(-1)), &[("RFORK_SEED_TIMEOUT_SEC", "x")]).unwrap();
    assert_eq!((config.seed_timeout, warnings.len()), (Duration::from_secs(5), 2));
    assert!(warnings[1].starts_with("RFORK_SEED_TIMEOUT_SEC in the environment"), "{warnings:?}");
}

#[test]
fn a_field_without_an_environment_must_be_right() {
    let cases = [
        ("rfork_heartbeat_interval_sec", json!(0)),
        ("rfork_heartbeat_interval_sec", json!("30")),
        ("rfork_heartbeat_interval_sec", json!(null)),
        ("rfork_lease_release_max_attempts", json!(1.5)),
        ("rfork_lease_release_max_attempts", json!(0)),
        ("rfork_lease_release_max_attempts", json!("3")),
        ("rfork_lease_release_max_attempts", json!(null)),
        ("rfork_lease_release_retry_interval_sec", json!("soon")),
        ("rfork_lease_release_retry_interval_sec", json!(null)),
        ("rfork_seed_port_base", json!(65_536)),
        ("rfork_seed_port_base", json!(-1)),
        ("rfork_seed_port_base", json!("8080")),
        ("rfork_seed_port_base", json!(8080.5)),
        ("rfork_seed_port_base", json!(true)),
        ("rfork_seed_wait_sec", json!(-1)),
        ("rfork_seed_max_readers", json!(0)),
        ("rfork_seed_max_gib_per_sec", json!(0)),
        ("rfork_seed_metadata_fields", json!(4)),
    ];
    for (field, value) in cases {
        let error = read(&with(field, value), &[]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field} must be ")), "{error}");
    }
    for (field, value) in [
        ("rfork_seed_port_base", json!(null)),
        ("rfork_zone", json!(null)),
        ("rfork_seed_timeout_sec", json!(null)),
    ] {
        assert_eq!(read(&with(field, value), &[]), read(&base(), &[]), "{field}");
    }
}

#[test]
fn what_is_missing_or_misspelt_is_named() {
    let error = read(&json!({}), &[]).unwrap_err().to_string();
    assert!(error.contains("model_url") && error.contains("MODEL_URL"), "{error}");
    let error = read(&with("model_url", json!(5)), &[]).unwrap_err().to_string();
    assert_eq!(error, "model_url must be a text that is not empty, got 5");
    assert_eq!(read(&json!([]), &[]), Err(BadObject::NotAnObject.into()));
    let (_, warnings) = read(&with("rfork_seed_timout_sec", json!(1)), &[]).unwrap();
    assert!(warnings[0].contains("rfork_seed_timout_sec"), "{warnings:?}");
}

#[test]
fn the_switch_of_identity_headers_is_read_as_vllm_ascend_reads_it() {
    let field = "rfork_model_identity_headers";
    let variable = |text| [("RFORK_MODEL_IDENTITY_HEADERS", text)];
    let on =
        |json: &Value, env: &[(&str, &str)]| read(json, env).map(|(config, _)| config.model_identity_headers);
    for (text, expected) in [
        ("0", false),
        ("1", true),
        ("false", false),
        ("true", true),
        ("FALSE", false),
        ("True", true),
        (" 0 ", false),
        (" 1 ", true),
        (" TRUE\t", true),
        ("", false),
    ] {
        assert_eq!(on(&base(), &variable(text)), Ok(expected), "{text:?}");
    }
    for text in ["   ", "2", "yes", "no", "on", "true!"] {
        let error = on(&base(), &variable(text)).unwrap_err().to_string();
        assert!(error.starts_with("RFORK_MODEL_IDENTITY_HEADERS in the environment"), "{error}");
        assert!(error.contains("must be 0, 1, true or false"), "{error}");
    }
    for (value, text) in [(true, "0"), (false, "true"), (true, "nonsense"), (false, "")] {
        assert_eq!(on(&with(field, json!(value)), &variable(text)), Ok(value), "{value} {text:?}");
    }
    for value in [json!(null), json!(0), json!(1), json!("true"), json!(""), json!([]), json!({})] {
        let error = on(&with(field, value), &variable("1")).unwrap_err().to_string();
        assert!(
            error.starts_with("rfork_model_identity_headers must be 0, 1, true or false, got "),
            "{error}"
        );
    }
}

#[test]
fn labels_are_ascii_while_they_are_sent() {
    for name in ["model_url", "model_deploy_strategy_name"] {
        let mut config = with(name, json!("modèle"));
        assert!(read(&config, &[("RFORK_MODEL_IDENTITY_HEADERS", "0")]).is_ok());
        let error = read(&config, &[("RFORK_MODEL_IDENTITY_HEADERS", "1")]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} must be ASCII while RFORK_MODEL_IDENTITY")), "{error}");
        config["rfork_model_identity_headers"] = json!(true);
        let error = read(&config, &[]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} must be ASCII while rfork_model_identity")), "{error}");
    }
    assert!(read(&with("rfork_model_identity_headers", json!(true)), &[]).is_ok());
}

#[test]
fn a_builder_has_a_method_for_each_setting() {
    let required = ["model_url", "model_deploy_strategy_name", "rfork_scheduler_url"];
    let mut names = [&required, ConfigBuilder::NAMES].concat();
    names.sort_unstable();
    let mut expected: Vec<_> = all().map(|setting| setting.name).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn a_builder_sets_what_a_user_would() {
    let builder = Config::builder("http://localhost:1223", "/m", "s");
    assert_eq!(builder.build().unwrap(), read(&base(), &[]).unwrap().0);
    let built = builder
        .clone()
        .seed_timeout(Duration::from_millis(2_500))
        .request_timeout(Duration::from_secs(3))
        .seed_key_separator("|")
        .seed_bind_host("127.0.0.1")
        .seed_advertise_host("node")
        .seed_port_base(40_000)
        .model_identity_headers(true)
        .heartbeat_interval(Duration::from_secs(7))
        .lease_release_max_attempts(5)
        .lease_release_retry_interval(Duration::from_secs(4))
        .seed_wait(Duration::ZERO)
        .zone("z")
        .rack("r")
        .host("h")
        .instance_id("i")
        .seed_max_readers(3)
        .seed_max_gib_per_sec(0.5)
        .transfer_timeout(Duration::from_secs(60))
        .seed_metadata_fields(EntryFields::Three)
        .fork_while_loading(false)
        .token_file("/run/token")
        .token_over_http(true)
        .seed_wait(Duration::from_micros(1_500));
    let mut user = base();
    let set = json!({
        "rfork_seed_timeout_sec": 2.5, "rfork_request_timeout_sec": 3, "rfork_seed_key_separator": "|",
        "rfork_seed_bind_host": "127.0.0.1", "rfork_seed_advertise_host": "node", "rfork_seed_port_base": 40_000,
        "rfork_model_identity_headers": true, "rfork_heartbeat_interval_sec": 7,
        "rfork_lease_release_max_attempts": 5, "rfork_lease_release_retry_interval_sec": 4,
        "rfork_zone": "z", "rfork_rack": "r", "rfork_host": "h", "rfork_instance_id": "i",
        "rfork_seed_max_readers": 3, "rfork_seed_max_gib_per_sec": 0.5, "rfork_transfer_timeout_sec": 60,
        "rfork_seed_metadata_fields": 3, "rfork_seed_wait_sec": 0.0015, "rfork_fork_while_loading": false,
        "rfork_token_file": "/run/token", "rfork_token_over_http": true,
    });
    user.as_object_mut().unwrap().extend(set.as_object().unwrap().clone());
    assert_eq!(built.build().unwrap(), read(&user, &[]).unwrap().0);
    let error = builder.seed_timeout(Duration::ZERO).build().unwrap_err().to_string();
    assert!(error.starts_with("--rfork-seed-timeout-sec must be a number greater than 0"), "{error}");
}

#[test]
fn a_token_is_not_sent_where_others_may_read_it() {
    let shows = |url: &str| {
        let mut config = with("rfork_token_file", json!("/run/token"));
        config["rfork_scheduler_url"] = json!(url);
        config
    };
    for url in ["https://planner", "http://localhost:1223", "http://[::1]:1223"] {
        assert!(read(&shows(url), &[]).is_ok(), "{url}");
    }
    let said = read(&shows("http://planner:1223"), &[]).unwrap_err().to_string();
    assert!(said.starts_with("rfork_token_file is for a planner at https://"), "{said}");
    assert!(read(&shows("http://planner:1223"), &[("RFORK_TOKEN_OVER_HTTP", "yes")]).is_ok());
    let said = read(&shows("https://user:SECRET@planner"), &[]).unwrap_err().to_string();
    assert!(said.contains("shows one credential") && !said.contains("SECRET"), "{said}");
}

#[test]
fn a_ca_is_for_a_planner_at_https() {
    let file = ca_file();
    let with_ca = |url: &str, ca: &str| {
        let mut config = with("rfork_planner_ca_file", json!(ca));
        config["rfork_scheduler_url"] = json!(url);
        read(&config, &[])
    };
    let ca = file.path().to_str().unwrap();
    let read_by_all = with_ca("https://planner", ca).unwrap().0;
    assert!(read_by_all.planner_ca.is_some());
    let built = Config::builder("https://planner", "/m", "s").planner_ca_file(ca).build().unwrap();
    assert_eq!(built, read_by_all);
    for (url, ca, said) in [
        ("http://127.0.0.1:1223", ca, "rfork_planner_ca_file is for a planner at https://".to_owned()),
        ("https://planner", "/no/such", "rfork_planner_ca_file /no/such cannot be used: No such file".into()),
        (
            "https://planner",
            "/proc/version",
            "rfork_planner_ca_file /proc/version cannot be used: it holds no".into(),
        ),
    ] {
        let refused = with_ca(url, ca).unwrap_err().to_string();
        assert!(refused.starts_with(&said), "{refused}");
    }
}

/// A file with a CA.
fn ca_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rfork_test_authority::Authority::new().pem()).unwrap();
    file
}

#[test]
fn fixed_ports_leave_room_for_a_draft() {
    let (config, _) = read(&with("rfork_seed_port_base", json!(40_000)), &[]).unwrap();
    assert_eq!(config.seed_port(3, false), Some(40_006));
    assert_eq!(config.seed_port(3, true), Some(40_007));
    assert_eq!(config.seed_port(12_767, true), Some(65_535));
    assert_eq!(config.seed_port(12_768, false), None);
    assert_eq!(config.seed_port(u32::MAX, true), None);
    for free in [base(), with("rfork_seed_port_base", json!(0))] {
        assert_eq!(read(&free, &[]).unwrap().0.seed_port(u32::MAX, true), Some(0));
    }
}

proptest! {
    #[test]
    fn any_value_of_any_field_is_read_or_refused(at in 0..all().count(), number: f64, integer: i64, text in ".{0,8}", kind in 0..5) {
        let value = match kind { 0 => json!(number), 1 => json!(text), 2 => json!(null), 3 => json!([1]), _ => json!(integer) };
        let setting = all().nth(at).unwrap();
        let _ = read(&with(setting.name, value), &[(setting.env.unwrap_or("NONE"), &text)]);
    }
}
