use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;
use serde_json::json;

use super::*;

static TABLE: &[Section] = &[Section {
    title: "All",
    settings: &[
        Setting::new("port", Takes::Whole(1, 9), "A port").env("PORT").default("3"),
        Setting::new("wait_sec", Takes::PositiveOrZero(10.0), "A time").env("WAIT").default("1.5").lenient(),
        Setting::new("quiet", Takes::Switch, "A switch").env("QUIET").default("false").null_refused(),
        Setting::new("url", Takes::Text, "A secret").env("URL").secret().required().lenient(),
        Setting::new("word", Takes::OneOf(&["one", "two"]), "A word"),
    ],
}];

fn read(
    flags: &[(&'static str, &str)],
    object: Option<&Object>,
    env: &[(&str, &str)],
) -> Result<Values, SettingError> {
    let flags: Vec<_> = flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, text)| text.into());
    Sources { flags: &flags, object, env: &env }.read(TABLE)
}

const URL: (&str, &str) = ("URL", "u");

#[test]
fn a_flag_counts_before_an_object_and_that_before_the_environment_and_the_default_comes_last() {
    let object = Object::from_value(&json!({"port": 2})).unwrap();
    let env = [URL, ("PORT", "4")];
    let port = |values: Result<Values, SettingError>| values.unwrap().get::<u8>("port").unwrap();
    assert_eq!(port(read(&[("port", "1")], Some(&object), &env)), 1);
    assert_eq!(port(read(&[], Some(&object), &env)), 2);
    assert_eq!(port(read(&[], None, &env)), 4);
    assert_eq!(port(read(&[], None, &[URL])), 3);
    assert_eq!(port(read(&[], None, &[URL, ("PORT", "")])), 3, "empty is not set");
    assert_eq!(read(&[], None, &[URL]).unwrap().find::<String>("word"), Ok(None));
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let said = |values: Result<Values, SettingError>| values.err().unwrap().to_string();
    assert_eq!(
        said(read(&[("port", "10")], None, &[])),
        "--port must be a whole number from 1 to 9, got \"10\""
    );
    assert_eq!(
        said(read(&[], None, &[("PORT", "x\u{7}")])),
        "PORT in the environment (--port) must be a whole number from 1 to 9, got \"x\\u0007\""
    );
    let text = "{\"a\": [1,\n2],\n\n\"port\": 0}";
    let object = Object::parse("/etc/w.json".into(), text.into()).unwrap();
    assert_eq!(
        said(read(&[], Some(&object), &[])),
        "/etc/w.json line 4: port must be a whole number from 1 to 9, got 0"
    );
    let object = Object::from_value(&json!({"quiet": null, "port": null})).unwrap();
    assert_eq!(said(read(&[], Some(&object), &[])), "quiet must be 1, 0, true, false, yes or no, got null");
    assert_eq!(said(read(&[], None, &[])), "url is required: set it, or URL in the environment");
    let long = "9".repeat(10_000);
    assert!(said(read(&[("port", &long)], None, &[])).len() < 200);
    let bytes = Sources { flags: &[], object: None, env: &|_| Some(OsString::from_vec(vec![0xff])) };
    assert!(said(bytes.read(TABLE)).starts_with("PORT in the environment"));
}

#[test]
fn a_lenient_one_is_passed_over_with_a_warning_but_no_flag_is() {
    let object = Object::from_value(&json!({"wait_sec": "2"})).unwrap();
    let values = read(&[], Some(&object), &[URL, ("WAIT", " 2 ")]).unwrap();
    assert_eq!(values.warnings, ["wait_sec must be a number from 0 to 10, got \"2\": it is ignored"]);
    assert_eq!(values.seconds("wait_sec").unwrap().as_millis(), 2_000);
    let values = read(&[], Some(&object), &[URL, ("WAIT", "soon")]).unwrap();
    assert_eq!((values.warnings.len(), values.seconds("wait_sec").unwrap().as_millis()), (2, 1_500));
    assert!(read(&[("wait_sec", "soon")], None, &[URL]).is_err());
    // What is required and cannot be used is not called missing.
    let object = Object::from_value(&json!({"url": 5})).unwrap();
    let error = read(&[], Some(&object), &[]).err().unwrap().to_string();
    assert_eq!(error, "url must be a text that is not empty", "and its value is not shown");
}

#[test]
fn what_there_is_not_is_named() {
    let object = Object::parse("w.json".into(), "{\n\"prot\": 1}".into()).unwrap();
    let values = read(&[], Some(&object), &[URL]).unwrap();
    assert_eq!(values.warnings, ["w.json line 2: prot: there is no such setting; it is ignored"]);
    assert_eq!(values.get::<String>("prot"), Err(SettingError::Absent("prot")));
    assert_eq!(values.get::<String>("word"), Err(SettingError::Absent("word")));
    assert_eq!(Object::parse("w.json".into(), "[]".into()), Err(BadObject::NotAnObject));
    let error = Object::parse("w.json".into(), "{\n\"a\": }".into()).unwrap_err().to_string();
    assert!(error.starts_with("is not JSON: ") && error.contains("line 2"), "{error}");
}

#[test]
fn switches_are_written_in_several_ways() {
    for (text, switch, bit) in [
        ("1", Some("true"), Some("true")),
        ("True", Some("true"), Some("true")),
        ("YES", Some("true"), None),
        ("0", Some("false"), Some("false")),
        (" FALSE ", Some("false"), Some("false")),
        ("no", Some("false"), None),
        ("on", None, None),
        ("", None, None),
        ("2", None, None),
    ] {
        assert_eq!(Takes::Switch.read_text(text).as_deref(), switch, "{text}");
        assert_eq!(Takes::Bit.read_text(text).as_deref(), bit, "{text}");
    }
    assert_eq!(Takes::Switch.read_json(&json!(true)).as_deref(), Some("true"));
    for value in [json!("true"), json!(1), json!(null)] {
        assert_eq!(Takes::Switch.read_json(&value), None, "{value}");
    }
}

#[test]
fn numbers_in_json_are_no_text() {
    for takes in [Takes::Whole(0, 9), Takes::Positive(9.0), Takes::NumberOf(&[3, 5])] {
        assert_eq!(takes.read_json(&json!(3)).as_deref(), Some("3"), "{takes}");
        assert_eq!(takes.read_json(&json!("3")), None, "{takes}");
        assert_eq!(takes.read_text(" 3 ").as_deref(), Some("3"), "{takes}");
    }
    assert_eq!(Takes::Whole(0, 9).read_json(&json!(3.0)), None);
    for text in ["nan", "inf", "-1", "0", "1e300", ""] {
        assert_eq!(Takes::Positive(9.0).read_text(text), None, "{text}");
    }
    assert_eq!(Takes::PositiveOrZero(9.0).read_text("0").as_deref(), Some("0"));
    assert_eq!(Takes::OneOf(&["one", "two"]).read_text("Two").as_deref(), Some("two"));
    for (text, told) in [
        ("On", Some("on")),
        (" off ", Some("off")),
        ("1", Some("on")),
        ("NO", Some("off")),
        ("true", Some("on")),
        ("perhaps", None),
        ("", None),
    ] {
        assert_eq!(Takes::OnOff.read_text(text).as_deref(), told, "{text}");
    }
    assert_eq!(Takes::OnOff.read_json(&json!(false)).as_deref(), Some("off"));
    assert_eq!(Takes::OnOff.read_json(&json!(1)), None);
    assert_eq!(Takes::OneOf(&["one", "two", "three"]).to_string(), "one, two or three");
}

proptest! {
    #[test]
    fn whatever_is_read_is_read_again(text in ".{0,12}", number: f64) {
        for takes in [
            Takes::Text, Takes::Name, Takes::OneOf(&["a", "b"]), Takes::NumberOf(&[3, 5]), Takes::Whole(0, 99),
            Takes::Positive(f64::MAX), Takes::PositiveOrZero(1e9), Takes::Switch, Takes::Bit, Takes::OnOff,
        ] {
            for read in [takes.read_text(&text), takes.read_text(&number.to_string()), takes.read_json(&json!(number))]
                .into_iter().flatten()
            {
                prop_assert_eq!(takes.read_text(&read), Some(read.clone()));
            }
        }
    }
}
