//! What is written is read back, and what is wrong is refused with the field's name.

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::ids::{LeaseId, MAX_SEED_KEY_BYTES, SeedIdentity, SeedKey};
use crate::manifest::content::Origin;
use crate::shown::hidden;

fn refusal<T: DeserializeOwned + std::fmt::Debug>(body: &Value) -> (String, String) {
    match decode::<T>(body.to_string().as_bytes()) {
        Err(BodyError::Invalid { field, reason }) => (field, reason),
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_refusal_names_the_field() {
    let seed = "h:1:0";
    let many: Vec<_> = (0..=MAX_BEATS).map(|_| json!({"seed": seed, "seed_key": "k"})).collect();
    let long = "x".repeat(MAX_SEED_KEY_BYTES + 1);
    let register = |field: &str, value: Value| {
        let mut body = json!({"seed": seed, "seed_key": "k"});
        body[field] = value;
        refusal::<Register>(&body)
    };
    let acquire = |field: &str, value: Value| {
        let mut body = json!({"seed_key": "k"});
        body[field] = value;
        refusal::<Acquire>(&body)
    };
    for ((field, reason), expected, because) in [
        (refusal::<Register>(&json!({"seed_key": "k"})), ".", "missing field `seed`"),
        (refusal::<Register>(&json!([seed, "k"])), ".", "expected an object"),
        (refusal::<Register>(&json!(null)), ".", "expected an object"),
        (register("seedkey", json!(1)), "seedkey", "unknown field `seedkey`"),
        (register("seed", json!("h:0:0")), "seed", "1 to 65535"),
        (register("seed", json!("h:1")), "seed", "host:port:rank"),
        (register("seed", json!(1)), "seed", "expected a string"),
        (register("seed_key", json!("")), "seed_key", "must not be empty"),
        (register("seed_key", json!(long)), "seed_key", "too long"),
        (register("seed_key", json!({"hex": "e"})), "seed_key", "even number"),
        (register("seed_key", json!({"hex": "E9"})), "seed_key", "digits 0-9 and a-f"),
        (register("seed_key", json!({"hex": "e9", "text": "x"})), "seed_key", "unknown field `text`"),
        (register("seed_key", json!({})), "seed_key", "missing field `hex`"),
        (register("seed_key", json!(["k"])), "seed_key", "a string, or"),
        (register("is_draft", json!("true")), "is_draft", "expected a boolean"),
        (register("incarnation", json!("")), "incarnation", "1 to 256 bytes"),
        (register("model_url", json!("a\u{0}")), "model_url", "control"),
        (register("location", json!({"zone": "z", "row": "r"})), "location.row", "unknown field"),
        (register("location", json!({"rack": "r".repeat(257)})), "location.rack", "1 to 256 bytes"),
        (register("location", json!(["z"])), "location", "expected an object"),
        (acquire("wait_ms", json!(-1)), "wait_ms", "-1"),
        (acquire("wait_ms", json!(1.5)), "wait_ms", "1.5"),
        (acquire("wait_ms", json!(MAX_WAIT_MS + 1)), "wait_ms", "at most 3600000"),
        (acquire("exclude", json!(vec![seed; MAX_EXCLUDED + 1])), "exclude", "a list of 0 to 64"),
        (acquire("exclude", json!([seed, "?"])), "exclude[1]", "host:port:rank"),
        (refusal::<HeartbeatBatch>(&json!({"seeds": []})), "seeds", "a list of 1 to 1024"),
        (refusal::<HeartbeatBatch>(&json!({"seeds": many})), "seeds", "a list of 1 to 1024"),
        (
            refusal::<HeartbeatBatch>(&json!({"seeds": [{"seed": seed}]})),
            "seeds[0]",
            "missing field `seed_key`",
        ),
        (refusal::<HeartbeatBatch>(&json!({"seeds": [[seed, "k"]]})), "seeds[0]", "expected an object"),
        (refusal::<Renew>(&json!({"seed": seed, "lease_id": "a b"})), "lease_id", "printable"),
        (
            refusal::<Release>(&json!({"seed": seed, "lease_id": "l", "outcome": "good"})),
            "outcome",
            "one of `ok`, `failed`, `aborted`",
        ),
        (
            refusal::<Release>(&json!({"seed": seed, "lease_id": "l", "outcome": "ok", "reason": "Why?"})),
            "reason",
            "a-z",
        ),
    ] {
        assert!(
            field == expected && reason.contains(because),
            "{field}: {reason}; expected {expected}: {because}"
        );
    }
}

#[test]
fn what_is_not_json_is_told_apart_and_nothing_grows_long() {
    for body in [&b""[..], b"{", b"{}x", b"seed_key=k", b"\xff", br#"{"seed_key":"\ud800"}"#] {
        assert!(decode::<Acquire>(body).is_err());
    }
    assert!(matches!(decode::<Acquire>(b"{"), Err(BodyError::NotJson { .. })));
    let long = json!({"x".repeat(10_000): 1, "seed_key": "k"});
    let (field, reason) = refusal::<Acquire>(&long);
    let ellipsis = '…'.len_utf8();
    assert!(field.len() <= 200 + ellipsis && reason.len() <= 300 + ellipsis, "{field}: {reason}");
    let deep = format!("{{\"location\":{}", "{\"zone\":".repeat(10_000));
    assert!(decode::<Acquire>(deep.as_bytes()).is_err());
    let twice = br#"{"seed_key":"a","seed_key":"b"}"#;
    assert!(decode::<Acquire>(twice).unwrap_err().to_string().contains("duplicate field"));
}

#[test]
fn a_key_is_text_or_hex_and_the_same_either_way() {
    let key = |value: Value| serde_json::from_value::<SeedKey>(value).unwrap();
    assert_eq!(key(json!("é")), key(json!({"hex": "c3a9"})));
    assert_eq!(key(json!({"hex": "e9"})).as_bytes(), [0xe9]);
    assert_eq!(serde_json::to_value(key(json!({"hex": "e9"}))).unwrap(), json!({"hex": "e9"}));
    assert_eq!(serde_json::to_value(key(json!({"hex": "6b"}))).unwrap(), json!("k"));
    assert_eq!(
        Acquire::of(key(json!("k"))),
        decode(br#" {"seed_key":"k","wait_ms":null,"location":null} "#).unwrap()
    );
}

#[test]
fn an_answer_may_have_more_fields() {
    let service = json!({"service": "rfork-planner", "version": "9", "api": ["v2", "v3"], "heartbeat_interval_ms": 1,
        "max_wait_ms": 2, "more": {}});
    assert!(serde_json::from_value::<Service>(service.clone()).unwrap().speaks_v2());
    assert!(!serde_json::from_value::<Service>(service.clone()).unwrap().knows_loading_seeds());
    let mut chains = service.clone();
    chains["features"] = json!(["of_a_later_version", LOADING_SEEDS]);
    let chains: Service = serde_json::from_value(chains).unwrap();
    assert!(chains.knows_loading_seeds() && !chains.gives_right_to_lead());
    let leads = Service { features: vec![RIGHT_TO_LEAD.into()], ..chains };
    assert!(leads.gives_right_to_lead() && !leads.knows_loading_seeds());
    let mut other = service;
    other["service"] = json!("something");
    assert!(!serde_json::from_value::<Service>(other).unwrap().speaks_v2());
}

#[test]
fn what_loading_seeds_are_told_may_be_left_out_and_may_grow() {
    let seed = "h:1:0";
    let granted = json!({"lease_id": "l", "seed": seed, "ttl_ms": 1, "waited_ms": 0});
    assert_eq!(serde_json::from_value::<Granted>(granted.clone()).unwrap().source, None);
    let renewed: Renewed = serde_json::from_value(json!({"ttl_ms": 1})).unwrap();
    assert_eq!(renewed, Renewed { ttl_ms: 1, renew_after_ms: None, advice: None });
    // Without them nothing new is said, so that planners that know nothing of it take the request.
    let acquire = Acquire::of(SeedKey::from_text("k").unwrap());
    assert_eq!(serde_json::to_value(&acquire).unwrap(), json!({"seed_key": "k"}));
    assert_eq!(
        serde_json::to_value(serde_json::from_value::<Granted>(granted.clone()).unwrap()).unwrap(),
        granted
    );
    let renewed: Renewed =
        serde_json::from_value(json!({"ttl_ms": 1, "advice": "of_a_later_version"})).unwrap();
    assert_eq!(renewed.advice, Some(Advice::Unknown));
    for (body, field, because) in [
        (json!({"seed": seed}), "loading", "missing field `incarnation`"),
        (json!([seed, "i", 1]), "loading", "expected an object"),
        (
            json!({"seed": seed, "incarnation": "i", "total_bytes": 1, "held": ["r", 1]}),
            "loading.held",
            "an object",
        ),
        (json!({"seed": seed, "incarnation": "i", "total_bytes": -1}), "loading.total_bytes", "-1"),
        (
            json!({"seed": seed, "incarnation": "i", "total_bytes": 1, "root": "r"}),
            "loading.root",
            "unknown field",
        ),
    ] {
        let (at, reason) = refusal::<Acquire>(&json!({"seed_key": "k", "loading": body}));
        assert!(at == field && reason.contains(because), "{at}: {reason}; expected {field}: {because}");
    }
}

#[test]
fn a_question_for_the_right_to_lead_is_checked_and_its_answer_may_grow() {
    let loading = json!({"seed": "h:1:0", "incarnation": "i", "total_bytes": 1});
    let whole = json!({"seed_key": "k", "loading": loading, "arrived_bytes": 0, "patience_ms": 1});
    let claim: Claim = decode(whole.to_string().as_bytes()).unwrap();
    assert_eq!(serde_json::to_value(&claim).unwrap(), whole);
    for (field, value, because) in [
        ("loading", json!(["h:1:0", "i", 1]), "expected an object"),
        ("loading", Value::Null, "expected an object"),
        ("patience_ms", json!(MAX_WAIT_MS + 1), "must be at most"),
        ("arrived_bytes", json!(-1), "-1"),
        ("wait_ms", json!(1), "unknown field"),
        ("origin", json!("x"), "an origin is 'origin:' and 64 hexadecimal characters"),
    ] {
        let mut bad = whole.clone();
        bad[field] = value;
        let (at, reason) = refusal::<Claim>(&bad);
        assert!(at == field && reason.contains(because), "{at}: {reason}; expected {field}: {because}");
    }
    let later = json!({"role": "of_a_later_version", "renew_after_ms": 1, "more": {}});
    let claimed: Claimed = serde_json::from_value(later).unwrap();
    assert_eq!(claimed, Claimed { role: Role::Alone, renew_after_ms: 1, leader: None, root: None });
}

#[test]
fn a_query_is_refused_by_its_parameter() {
    let refusal = |query: &str| SeedQuery::decode(query).unwrap_err();
    for (query, parameter) in [
        ("key=k", "key"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=+1", "limit"),
        ("limit=1&limit=2", "limit"),
        ("state=dead", "state"),
        ("state=%ff", "state"),
        ("after=xyz", "after"),
        ("host=a%00", "host"),
    ] {
        let error = refusal(query);
        assert!(error.parameter() == parameter && error.to_string().contains(parameter), "{query}: {error}");
    }
    assert_eq!(SeedQuery::decode("").unwrap(), SeedQuery::default());
    assert_eq!(SeedQuery::decode("seed_key=&&limit=").unwrap(), SeedQuery::default());
    let spaced = SeedQuery::decode("seed_key=a+b%20c%2Bd%E9").unwrap().seed_key.unwrap();
    assert_eq!(spaced.as_bytes(), b"a b c+d\xe9");
    assert!(LeaseQuery::decode("seed=h:1").is_err());
    for (query, parameter) in
        [("kind=gone", "kind"), ("since_ms=-1", "since_ms"), ("since_ms=1.5", "since_ms")]
    {
        assert_eq!(EventQuery::decode(query).unwrap_err().parameter(), parameter);
    }
}

#[test]
fn a_credential_is_not_printed() {
    let key = IdempotencyKey::new("0123456789").unwrap();
    assert!(!format!("{key:?}").contains("0123"));
    for bad in ["1234567", "12345 78", &"x".repeat(201), "é1234567"] {
        assert!(IdempotencyKey::new(bad).is_err(), "{bad}");
    }
}

fn keys() -> impl Strategy<Value = SeedKey> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| SeedKey::new(bytes).unwrap()),
        ".{1,20}".prop_map(|text| SeedKey::new(text).unwrap()),
    ]
}

fn seeds() -> impl Strategy<Value = SeedIdentity> {
    ("[a-z0-9-]{1,12}\\.[a-z]|::1|\\[fe80::7\\]", 1u16.., any::<u32>())
        .prop_map(|(host, port, rank)| SeedIdentity::new(host, port, rank).unwrap())
}

fn text<const MOST: usize>() -> impl Strategy<Value = Text<MOST>> {
    "[ -~é√]{1,20}".prop_map(|text| Text::try_from(text).unwrap())
}

fn maybe<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::of(strategy)
}

prop_compose! {
    fn locations()(zone in maybe(text()), rack in maybe(text()), host in maybe(text())) -> Location {
        Location { zone, rack, host }
    }
}

fn origins() -> impl Strategy<Value = Name> {
    any::<[u8; 32]>().prop_map(|name| Name::cut(&Origin(name).to_string()).unwrap())
}

prop_compose! {
    fn registers()(
        seed in seeds(), seed_key in keys(), model_url in maybe(text()), deploy_strategy in maybe(text()),
        is_draft: Option<bool>, incarnation in maybe(text()), instance_id in maybe(text()),
        content_id in maybe(text()), origin in maybe(origins()), location in maybe(locations()),
    ) -> Register {
        Register {
            seed, seed_key, model_url, deploy_strategy, is_draft, incarnation, instance_id, content_id, origin, location,
        }
    }
}

prop_compose! {
    fn acquires()(
        seed_key in keys(), wait_ms in 0..=MAX_WAIT_MS, location in maybe(locations()), instance_id in maybe(text()),
        exclude in prop::collection::vec(seeds(), 0..4), loading in maybe(loading_seeds()), stalled in maybe(stalls()),
    ) -> Acquire {
        Acquire { seed_key, wait_ms, location, instance_id, exclude, loading, stalled }
    }
}

prop_compose! {
    fn holdings()(root in text(), bytes: u64) -> Held {
        Held { root, bytes }
    }
}

prop_compose! {
    fn loading_seeds()(
        seed in seeds(), incarnation in text(), total_bytes: u64, held in maybe(holdings()), starts_over: bool, model_url in maybe(text()),
        deploy_strategy in maybe(text()), is_draft: Option<bool>,
    ) -> LoadingSeed {
        LoadingSeed { seed, incarnation, total_bytes, held, starts_over, model_url, deploy_strategy, is_draft }
    }
}

prop_compose! {
    fn stalls()(seed in seeds(), lease in "[!-~]{1,40}", silent_ms: u64, lost: bool) -> Stalled {
        Stalled { seed, lease_id: LeaseId::new(lease).unwrap(), silent_ms, lost }
    }
}

prop_compose! {
    fn progress()(incarnation in text(), arrived_bytes: u64, held in maybe(holdings())) -> LoadProgress {
        LoadProgress { incarnation, arrived_bytes, held }
    }
}

prop_compose! {
    fn sources()(
        loads: bool, depth: u32, root in maybe(text()), renew_after_ms: u64, point: u32, since_ms: u64,
    ) -> Source {
        let phase = if loads { SeedPhase::Loading } else { SeedPhase::Complete };
        Source { phase, depth, root, renew_after_ms, point: LeasedPoint { number: point, since_ms } }
    }
}

prop_compose! {
    fn releases()(
        lease in "[!-~]{1,40}", seed in seeds(), outcome in outcomes(), reason in maybe("[a-z0-9_-]{1,64}"), bytes: Option<u64>,
        duration_ms: Option<u64>,
    ) -> Release {
        let reason = reason.map(|reason| Reason::try_from(reason).unwrap());
        Release { lease_id: LeaseId::new(lease).unwrap(), seed, outcome, reason, bytes, duration_ms }
    }
}

fn outcomes() -> impl Strategy<Value = TransferOutcome> {
    prop::sample::select(vec![TransferOutcome::Ok, TransferOutcome::Failed, TransferOutcome::Aborted])
}

fn states() -> impl Strategy<Value = SeedState> {
    prop::sample::select(vec![SeedState::Live, SeedState::Suspect, SeedState::Draining, SeedState::Silent])
}

fn kinds() -> impl Strategy<Value = EventKind> {
    use EventKind::{
        Completed, Drained, Invalidated, Leads, Moved, NewHolding, Recovered, Registered, Removed, Silent,
        Suspect,
    };
    prop::sample::select(vec![
        Registered,
        NewHolding,
        Removed,
        Drained,
        Silent,
        Suspect,
        Recovered,
        Invalidated,
        Completed,
        Moved,
        Leads,
    ])
}

fn place(Location { zone, rack, host }: Location) -> Place {
    Place { zone: zone.map(String::from), rack: rack.map(String::from), host: host.map(String::from) }
}

prop_compose! {
    fn loading_summaries()(
        registered in registers(), depth: u32, root in maybe(Just("root".to_owned())), bytes: (u64, u64, u64),
    ) -> LoadingSummary {
        let (held_bytes, arrived_bytes, total_bytes) = bytes;
        LoadingSummary { depth, source: Some(registered.seed), root, held_bytes, arrived_bytes, total_bytes }
    }
}

prop_compose! {
    fn summaries()(
        // Boxed: all of it is on the stack otherwise.
        registered in registers().boxed(), state in states(), numbers: (u32, u32, u64, u32),
        times: (Option<u64>, Option<u64>), loading in maybe(loading_summaries().boxed()),
        owner in maybe((maybe(Just("a".to_owned())), maybe(any::<std::net::IpAddr>()))),
    ) -> SeedSummary {
        let words = |text: Option<Name>| text.map(String::from);
        SeedSummary {
            seed: registered.seed, seed_key: registered.seed_key, state, capacity: numbers.0, used: numbers.1,
            heartbeat_age_ms: numbers.2, last_used_age_ms: times.0, suspect_for_ms: times.1, failures: numbers.3,
            model_url: registered.model_url.map(String::from),
            deploy_strategy: registered.deploy_strategy.map(String::from), is_draft: registered.is_draft,
            incarnation: words(registered.incarnation), instance_id: words(registered.instance_id),
            content_id: words(registered.content_id), location: registered.location.map(place).unwrap_or_default(),
            owner: owner.map(|(principal, address)| SeedOwner { principal, address }), loading,
        }
    }
}

/// A request is read as it was written.
fn kept<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    request: &T,
) -> Result<(), TestCaseError> {
    let written = serde_json::to_vec(request).unwrap();
    prop_assert_eq!(&decode::<T>(&written).map_err(|error| TestCaseError::fail(error.to_string()))?, request);
    Ok(())
}

/// An answer is read as it was written, whatever a later version adds to it.
fn kept_with_more<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    answer: &T,
) -> Result<(), TestCaseError> {
    let mut written = serde_json::to_value(answer).unwrap();
    written["of_a_later_version"] = json!([1]);
    prop_assert_eq!(&serde_json::from_value::<T>(written).unwrap(), answer);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_are_read_as_they_were_written(
        register in registers(), acquire in acquires(), release in releases(), keep_content_id in maybe(text()),
        loading in maybe(progress()),
    ) {
        kept(&register)?;
        kept(&acquire)?;
        kept(&release)?;
        let Register { seed, seed_key, incarnation, .. } = register;
        let beat =
            Beat { seed: seed.clone(), seed_key: seed_key.clone(), incarnation, loading: loading.clone() };
        kept(&HeartbeatBatch { seeds: vec![beat.clone(), beat] })?;
        kept(&Drain { seed: seed.clone(), seed_key: seed_key.clone() })?;
        kept(&Deregister { seed: seed.clone(), seed_key: seed_key.clone() })?;
        kept(&Renew { lease_id: release.lease_id, seed, loading })?;
        kept(&Invalidate { seed_key: seed_key.clone(), keep_content_id })?;
        let Acquire { location, instance_id, exclude, .. } = acquire;
        kept(&Explain { seed_key, location, instance_id, exclude })?;
    }

    #[test]
    fn answers_are_read_as_they_were_written(
        seed in summaries(), lease in "[0-9a-f]{32}", ttl_ms: u64, waited_ms: u64, source in maybe(sources()), pinned in maybe(prop::collection::vec(origins(), 0..3)), next in maybe(prop::collection::vec(any::<u8>(), 1..9)),
    ) {
        let next = next.map(|bytes| Cursor::of(&bytes));
        kept_with_more(&Registered { registration: Registration::NewHolding, heartbeat_interval_ms: ttl_ms, heartbeat_ttl_ms: ttl_ms })?;
        kept_with_more(&HeartbeatResults { results: vec![BeatResult { seed: seed.seed.clone(), status: BeatStatus::Unknown }] })?;
        kept_with_more(&Drained { active_leases: seed.used })?;
        kept_with_more(&Deregistered { state: Deregistration::Draining })?;
        kept_with_more(&Granted { lease_id: LeaseId::new(lease).unwrap(), seed: seed.seed.clone(), ttl_ms, waited_ms, source, pinned })?;
        kept_with_more(&Renewed { ttl_ms, renew_after_ms: None, advice: None })?;
        kept_with_more(&Renewed { ttl_ms, renew_after_ms: Some(waited_ms), advice: Some(Advice::Move) })?;
        kept_with_more(&Released {})?;
        kept_with_more(&Invalidated { drained: ttl_ms })?;
        kept_with_more(&SeedList { seeds: vec![seed.clone()], next: next.clone() })?;
        let lease = LeaseSummary { lease: "0123456789ab".into(), seed: seed.seed.clone(), seed_key: seed.seed_key.clone(), ttl_ms, age_ms: ttl_ms };
        kept_with_more(&LeaseList { leases: vec![lease], next: next.clone() })?;
        let counts = SeedCounts { live: 1, suspect: 2, draining: 3, silent: 4 };
        let key = KeySummary { seed_key: seed.seed_key.clone(), seeds: counts, capacity: ttl_ms, used: 0, waiting: 0 };
        kept_with_more(&KeyList { keys: vec![key], next: next.clone() })?;
        let ended = EndedLease {
            lease: "0123456789ab".into(), seed: seed.seed.clone(), seed_key: seed.seed_key.clone(),
            requester: seed.instance_id.clone(), reader: Some(seed.seed.clone()), granted_age_ms: ttl_ms, ended_age_ms: ttl_ms, ended: Some(LeaseEnd::GivenBack),
            outcome: Some(TransferOutcome::Failed), reason: None, bytes: Some(waited_ms), duration_ms: None,
        };
        kept_with_more(&EndedLeaseList { leases: vec![ended], next: next.clone() })?;
        let event = Event { kind: None, age_ms: ttl_ms, seed_key: seed.seed_key.clone(), seed: None, by: None, detail: None };
        kept_with_more(&EventList { events: vec![event], next })?;
        let explained = ExplainedSeed { verdict: Verdict::WouldBeGranted, rank: Some(1), seed };
        kept_with_more(&Explained { grant: Some(explained.seed.seed.clone()), seeds: vec![explained], truncated: false })?;
    }

    #[test]
    fn queries_are_read_as_they_were_written(
        seed_key in maybe(keys()), seed in maybe(seeds()), model_url in maybe(text()), host in maybe(seeds()),
        state in maybe(states()), kind in maybe(kinds()), since_ms: Option<u64>, limit in 1..=MAX_PAGE, after in maybe(prop::collection::vec(any::<u8>(), 1..9)),
    ) {
        let after = after.map(|bytes| Cursor::of(&bytes));
        let host = host.map(|seed| seed.host().parse().unwrap());
        let query = SeedQuery { seed_key: seed_key.clone(), model_url, host, state, limit, after: after.clone() };
        prop_assert_eq!(SeedQuery::decode(&query.encode()), Ok(query));
        let event_key = seed_key.clone();
        let query = LeaseQuery { seed_key, seed, limit, after: after.clone() };
        prop_assert_eq!(LeaseQuery::decode(&query.encode()), Ok(query));
        let query = EventQuery { seed_key: event_key, kind, since_ms, limit, after: after.clone() };
        prop_assert_eq!(EventQuery::decode(&query.encode()), Ok(query));
        let query = KeyQuery { limit, after };
        prop_assert_eq!(KeyQuery::decode(&query.encode()), Ok(query));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), query in ".{0,60}") {
        let _ = (decode::<Register>(&bytes), decode::<Acquire>(&bytes), SeedQuery::decode(&query));
    }

    #[test]
    fn a_cut_label_is_a_label(label in r"[a-z\p{Bidi_Control}\u{2028}\u{2029}\p{Cc}模]{0,30}", repeated in 1usize..40) {
        let label = label.repeat(repeated);
        let accepted: String = label.chars().filter(|character| !hidden(*character)).collect();
        let cut = Label::cut(&label);
        prop_assert_eq!(cut.is_none(), accepted.is_empty());
        if let Some(cut) = cut {
            prop_assert!(accepted.starts_with(cut.as_str()));
            prop_assert!(cut.as_str().len() + 3 > accepted.len().min(crate::v1::MAX_LABEL_BYTES));
            prop_assert_eq!(Label::try_from(String::from(cut.clone())), Ok(cut));
        }
    }

    #[test]
    fn a_cursor_stands_for_its_bytes(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let cursor = Cursor::of(&bytes);
        prop_assert_eq!(Cursor::try_from(cursor.as_str().to_owned()).unwrap().bytes(), bytes);
    }
}
