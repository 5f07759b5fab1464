//! What planners and clients of every generation send, and what comes of it.

use super::parameters::PARAMETERS;
use super::*;
use proptest::prelude::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

const SEED: [(&str, &str); 5] = [
    ("seed_key", "k"),
    ("seed_ip", "10.0.0.7"),
    ("seed_port", "8000"),
    ("seed_rank", "3"),
    ("seed_refcnt", "0"),
];

fn with(name: &'static str, value: &str) -> HeaderMap {
    let mut map = headers(&SEED);
    map.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    map
}

#[test]
fn the_two_spellings_are_of_one_name() {
    for parameter in PARAMETERS {
        assert_eq!(parameter.name.to_ascii_lowercase(), parameter.underscore);
        assert_eq!(parameter.underscore.replace('_', "-"), parameter.hyphen);
    }
}

#[test]
fn either_spelling_will_do_and_the_first_value_counts() {
    let hyphens = headers(&[("seed-key", "k")]);
    assert_eq!(GetSeed::decode(&hyphens).unwrap().key.as_bytes(), b"k");
    let repeated = headers(&[("seed_key", "first"), ("seed_key", "second"), ("seed-key", "third")]);
    assert_eq!(GetSeed::decode(&repeated).unwrap().key.as_bytes(), b"first");
}

#[test]
fn refusals_have_the_texts_that_people_grep_for() {
    let refusal = |map: &HeaderMap| AddSeed::decode(map).unwrap_err().to_string();
    assert_eq!(refusal(&HeaderMap::new()), "missing required header: SEED_KEY");
    assert_eq!(refusal(&with("seed_ip", "")), "missing required header: SEED_IP");
    assert_eq!(refusal(&with("seed_port", "x")), "invalid integer header SEED_PORT: x");
    assert_eq!(refusal(&with("seed_port", "0")), "header SEED_PORT must be >= 1, got 0");
    assert_eq!(refusal(&with("seed_port", "65536")), "header SEED_PORT must be <= 65535, got 65536");
    assert_eq!(refusal(&with("seed_rank", "-1")), "header SEED_RANK must be >= 0, got -1");
    assert_eq!(refusal(&with("seed_refcnt", "1.0")), "invalid integer header SEED_REFCNT: 1.0");
    assert!(refusal(&with("seed_ip", "a b")).starts_with("invalid header SEED_IP: "));
    let long = "k".repeat(crate::ids::MAX_SEED_KEY_BYTES + 1);
    assert!(matches!(AddSeed::decode(&with("seed_key", &long)), Err(HeaderError::KeyTooLong(..))));
}

#[test]
fn a_seed_s_host_may_be_told_as_a_url_or_with_its_port_and_is_answered_plain() {
    for told in [
        "http://10.0.0.7",
        "https://10.0.0.7/",
        "http://10.0.0.7:8000",
        "::ffff:10.0.0.7",
        "10.0.0.7:8000",
        // The one in SEED_PORT counts.
        "10.0.0.7:9",
        "http://10.0.0.7:9",
    ] {
        let add = AddSeed::decode(&with("seed_ip", told)).unwrap();
        assert_eq!(add.identity.to_string(), "10.0.0.7:8000:3", "{told}");
        assert_eq!(add.encode()["seed_ip"], "10.0.0.7", "{told}");
    }
    let ipv6 = AddSeed::decode(&with("seed_ip", "[FD00::7]:8000")).unwrap();
    assert_eq!(ipv6.encode()["seed_ip"], "fd00::7");
    for (told, reason) in [
        ("http://u:p@10.0.0.7", "user or a password"),
        ("http://10.0.0.7/path", "only a host"),
        ("10.7", "four decimal numbers"),
        ("fe80::1%eth0", "zone"),
        ("0.0.0.0", "listens"),
    ] {
        let error = AddSeed::decode(&with("seed_ip", told)).unwrap_err().to_string();
        assert!(error.starts_with("invalid header SEED_IP: ") && error.contains(reason), "{error}");
    }
}

#[test]
fn integers_are_read_as_python_reads_them() {
    for (text, port) in [("8000", 8000), (" 8000 ", 8000), ("+8000", 8000), ("008000", 8000)] {
        assert_eq!(AddSeed::decode(&with("seed_port", text)).unwrap().identity.port(), port);
    }
    for text in ["٣", "0x10", "1_000", "1e3", "-", "", "99999999999999999999999"] {
        assert!(AddSeed::decode(&with("seed_port", text)).is_err(), "{text}");
    }
}

#[test]
fn an_absent_rank_is_0_and_an_absent_count_is_none() {
    let mut request = headers(&SEED);
    request.insert("user_id", HeaderValue::from_static("0123456789abcdef0123456789abcdef"));
    for absent in [true, false] {
        for name in ["seed_rank", "seed_refcnt"] {
            request.remove(name);
            if !absent {
                request.insert(name, HeaderValue::from_static(""));
            }
        }
        let add = AddSeed::decode(&request).unwrap();
        assert_eq!((add.identity.rank(), add.refcnt), (0, None));
        assert_eq!(RemoveSeed::decode(&request).unwrap().identity.rank(), 0);
        assert_eq!(LeaseRef::decode(&request).unwrap().identity.rank(), 0);
        assert_eq!(Granted::decode(&request).unwrap().identity.rank(), 0);
    }
}

#[test]
fn a_time_to_live_is_read_as_python_reads_a_float() {
    let mut answer = headers(&SEED);
    answer.insert("user_id", HeaderValue::from_static("0123456789abcdef0123456789abcdef"));
    assert_eq!(Granted::decode(&answer).unwrap().lease_ttl, None);
    let mut told = |text: &str| {
        answer.insert("lease_ttl_sec", HeaderValue::from_str(text).unwrap());
        Granted::decode(&answer).map(|granted| granted.lease_ttl)
    };
    for (text, ms) in [
        ("60", 60_000),
        ("60.0", 60_000),
        (" 0.25 ", 250),
        ("6e1", 60_000),
        ("+1.5", 1_500),
        (".5", 500),
        ("4294967295", 4_294_967_295_000),
    ] {
        assert_eq!(told(text), Ok(Some(Duration::from_millis(ms))), "{text}");
    }
    for bad in ["soon", "0", "-1", "0.0", "nan", "inf", "-inf", "1e-30", "60s", "1,5"] {
        let error = told(bad).unwrap_err();
        assert!(matches!(error, HeaderError::NotSeconds(..)), "{bad}: {error}");
    }
    for large in ["4294967296", "1e300"] {
        assert!(matches!(told(large), Err(HeaderError::TooLarge(..))), "{large}");
    }
}

fn keys() -> impl Strategy<Value = SeedKey> {
    // What a header can carry: no control bytes, no space at either end (HTTP trims it).
    prop::collection::vec(prop_oneof![0x21u8..0x7f, 0x80u8..=0xff], 1..40)
        .prop_map(|bytes| SeedKey::new(bytes).unwrap())
}

#[test]
fn a_label_is_no_longer_than_it_may_be_whatever_its_bytes() {
    for (told, read) in [
        ([0xff; 600].to_vec(), "\u{fffd}".repeat(170)),
        ([&[b'x'; 511][..], "é".as_bytes()].concat(), "x".repeat(511)),
        ([b'x'; 512].to_vec(), "x".repeat(512)),
    ] {
        let mut headers =
            GetSeed { key: SeedKey::from_text("k").unwrap(), labels: Labels::default() }.encode();
        headers.insert(HeaderName::from_static("model_url"), HeaderValue::from_bytes(&told).unwrap());
        assert_eq!(GetSeed::decode(&headers).unwrap().labels.model_url, Some(read));
    }
}

prop_compose! {
    fn identities()(host in "[a-z0-9-]{1,20}\\.[a-z]|::1|\\[fe80::7\\]", port in 1u16.., rank: u32) -> SeedIdentity {
        SeedIdentity::new(host, port, rank).unwrap()
    }
}

prop_compose! {
    fn labels()(model_url in prop::option::of("[!-~]{1,20}"), deploy_strategy in prop::option::of("[!-~]{1,9}"),
        is_draft: Option<bool>) -> Labels {
        Labels { model_url, deploy_strategy, is_draft }
    }
}

/// What is left when a proxy has dropped every name with an underscore.
fn without_underscores(headers: HeaderMap) -> HeaderMap {
    headers
        .into_iter()
        .filter_map(|(name, value)| Some((name?, value)))
        .filter(|(name, _)| !name.as_str().contains('_'))
        .collect()
}

proptest! {
    #[test]
    fn requests_are_read_as_they_were_made(key in keys(), identity in identities(), labels in labels(), refcnt: Option<u64>, lease in "[!-~]{1,40}") {
        let add = AddSeed { key: key.clone(), identity: identity.clone(), refcnt, labels: labels.clone() };
        prop_assert_eq!(AddSeed::decode(&add.encode()), Ok(add.clone()));
        prop_assert_eq!(AddSeed::decode(&without_underscores(add.encode())), Ok(add));
        let get = GetSeed { key: key.clone(), labels: labels.clone() };
        prop_assert_eq!(GetSeed::decode(&get.encode()), Ok(get.clone()));
        prop_assert_eq!(GetSeed::decode(&without_underscores(get.encode())), Ok(get));
        let remove = RemoveSeed { key, identity: identity.clone(), labels };
        prop_assert_eq!(RemoveSeed::decode(&remove.encode()), Ok(remove));
        let lease = LeaseRef { identity, lease: LeaseId::new(lease).unwrap() };
        prop_assert_eq!(LeaseRef::decode(&lease.encode()), Ok(lease));
    }

    #[test]
    fn answers_are_read_as_they_were_made(identity in identities(), lease in "[0-9a-f]{32}", ttl_ms in prop::option::of(1u64..100_000_000)) {
        let lease_ttl = ttl_ms.map(Duration::from_millis);
        let granted = Granted { identity, lease: LeaseId::new(lease).unwrap(), lease_ttl };
        prop_assert_eq!(Granted::decode(&granted.encode()), Ok(granted.clone()));
        prop_assert!(granted.encode().keys().all(|name| !name.as_str().contains('-')));
    }

    #[test]
    fn any_headers_are_read_or_refused(values in prop::collection::vec(prop::collection::vec(0x20u8..0x7f, 0..12), 8)) {
        let mut map = HeaderMap::new();
        for (parameter, value) in PARAMETERS.iter().zip(values) {
            map.insert(HeaderName::from_static(parameter.underscore), HeaderValue::from_bytes(&value).unwrap());
        }
        let _ = (AddSeed::decode(&map), GetSeed::decode(&map), Granted::decode(&map), LeaseRef::decode(&map), RemoveSeed::decode(&map));
    }
}
