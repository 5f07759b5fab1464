//! What each route does, and that both APIs see the same seeds.

use std::sync::Arc;
use std::time::Duration;

use rfork_planner::settings_file::FileSettings;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{PATIENCE, Planner, Seed};

const SEED: &str = "10.0.0.7:8000:3";

on_both_stores!(
    what_would_be_granted_is_explained_seed_by_seed,
    the_planner_says_what_it_speaks,
    a_seed_is_registered_leased_renewed_released_and_gone,
    a_lease_is_of_its_seed_alone,
    all_ranks_of_a_host_are_heard_of_together,
    a_heartbeat_is_of_one_process,
    a_drained_seed_keeps_its_leases_and_is_not_offered_while_it_is_the_same,
    a_seed_that_failed_is_left_alone,
    both_apis_see_the_same_seeds_and_leases,
    a_key_that_is_not_utf8_is_the_same_in_both,
    seeds_leases_and_keys_are_listed,
    an_invalidated_key_keeps_only_the_new_weights,
    a_seed_of_an_invalidated_key_is_told_that_it_drains,
);

fn seed(seed: &str) -> Value {
    json!({"seed": seed, "seed_key": "k"})
}

fn lease(granted: &Value) -> Value {
    json!({"lease_id": granted["lease_id"], "seed": granted["seed"]})
}

fn release(granted: &Value) -> Value {
    json!({"lease_id": granted["lease_id"], "seed": granted["seed"], "outcome": "ok"})
}

/// The status and the code of a problem.
fn told((status, problem): (u16, Value)) -> (u16, String) {
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

async fn what_would_be_granted_is_explained_seed_by_seed(planner: &Planner) {
    for (seed, zone) in [("10.0.0.1:1:0", "far"), ("10.0.0.2:1:0", "near"), ("10.0.0.3:1:0", "near")] {
        let register = json!({"seed": seed, "seed_key": "k", "location": {"zone": zone}});
        assert_eq!(planner.call("POST", "/v2/seeds", &register).await.0, 200);
    }
    let near = json!({"seed_key": "k", "location": {"zone": "near"}, "exclude": ["10.0.0.3:1:0"]});
    let verdicts = async || {
        let (status, explained) = planner.call("POST", "/v2/explain", &near).await;
        assert_eq!(status, 200, "{explained}");
        let seeds = explained["seeds"].as_array().unwrap().iter();
        let seeds: Vec<Value> =
            seeds.map(|seed| json!([seed["seed"], seed["verdict"], seed["rank"]])).collect();
        (explained["grant"].clone(), seeds)
    };
    let expected = [
        json!(["10.0.0.2:1:0", "would_be_granted", 1]),
        json!(["10.0.0.1:1:0", "ranked", 2]),
        json!(["10.0.0.3:1:0", "excluded", null]),
    ];
    assert_eq!(verdicts().await, (json!("10.0.0.2:1:0"), expected.to_vec()));
    let (_, granted) = planner.call("POST", "/v2/leases", &near).await;
    assert_eq!(granted["seed"], "10.0.0.2:1:0", "what was told");
    planner.call("POST", "/v2/seeds/drain", &json!({"seed": "10.0.0.1:1:0", "seed_key": "k"})).await;
    let expected = [
        json!(["10.0.0.1:1:0", "draining", null]),
        json!(["10.0.0.2:1:0", "full", null]),
        json!(["10.0.0.3:1:0", "excluded", null]),
    ];
    assert_eq!(verdicts().await, (Value::Null, expected.to_vec()));
}

async fn the_planner_says_what_it_speaks(planner: &Planner) {
    let (status, service) = planner.call("GET", "/v2", &Value::Null).await;
    assert_eq!(
        (status, &service["service"], &service["api"]),
        (200, &json!("rfork-planner"), &json!(["v1", "v2"]))
    );
    assert_eq!(service["heartbeat_interval_ms"], 30_000);
}

#[tokio::test]
async fn who_may_not_serve_while_it_loads_reads_storage_for_itself() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("planner.db");
    let planner = Planner::start(&path, |settings| settings.fork_while_loading = false).await;
    let loading = json!({"seed": SEED, "incarnation": "1", "total_bytes": 9});
    let claim = json!({"seed_key": "k", "loading": loading, "arrived_bytes": 0, "patience_ms": 1_000});
    let (status, claimed) = planner.call("POST", "/v2/leads", &claim).await;
    assert_eq!((status, &claimed["role"], &claimed["leader"]), (200, &json!("alone"), &Value::Null));
    assert_eq!(planner.call("GET", "/v2/seeds", &Value::Null).await.1["seeds"], json!([]));
    planner.stop().await;
}

async fn a_seed_is_registered_leased_renewed_released_and_gone(planner: &Planner) {
    let register = json!({"seed": SEED, "seed_key": "k", "model_url": "/m", "is_draft": false, "incarnation": "1",
        "instance_id": "i", "content_id": "c", "location": {"zone": "z", "rack": "r", "host": "h"}});
    let (status, registered) = planner.call("POST", "/v2/seeds", &register).await;
    assert_eq!((status, &registered["registration"]), (200, &json!("new")));
    assert_eq!(registered["heartbeat_ttl_ms"], 60_000);
    assert_eq!(planner.call("POST", "/v2/seeds", &register).await.1["registration"], "repeated");

    let acquire =
        json!({"seed_key": "k", "location": {"zone": "z"}, "instance_id": "j", "exclude": ["other:1:0"]});
    let (status, granted) = planner.call("POST", "/v2/leases", &acquire).await;
    assert_eq!((status, &granted["seed"], &granted["waited_ms"]), (200, &json!(SEED), &json!(0)));
    assert!(granted["ttl_ms"].as_u64().is_some_and(|ttl| ttl > 50_000 && ttl <= 60_000), "{granted}");
    assert_eq!(told(planner.call("POST", "/v2/leases", &acquire).await), (404, "all-busy".into()));

    let (status, renewed) = planner.call("POST", "/v2/leases/renew", &lease(&granted)).await;
    assert!(status == 200 && renewed["ttl_ms"].as_u64().is_some_and(|ttl| ttl > 50_000), "{renewed}");
    let told_of = json!({"lease_id": granted["lease_id"], "seed": SEED, "outcome": "ok", "reason": null, "bytes": 7,
        "duration_ms": 9});
    assert_eq!(planner.call("POST", "/v2/leases/release", &told_of).await, (200, json!({})));
    let gone = (404, "lease-not-found".to_owned());
    assert_eq!(told(planner.call("POST", "/v2/leases/release", &told_of).await), gone);
    assert_eq!(told(planner.call("POST", "/v2/leases/renew", &lease(&granted)).await), gone);

    assert_eq!(
        planner.call("POST", "/v2/seeds/deregister", &seed(SEED)).await,
        (200, json!({"state": "gone"}))
    );
    let unknown = (404, "seed-not-found".to_owned());
    assert_eq!(told(planner.call("POST", "/v2/seeds/deregister", &seed(SEED)).await), unknown);
}

async fn a_lease_is_of_its_seed_alone(planner: &Planner) {
    planner.call("POST", "/v2/seeds", &seed(SEED)).await;
    let (_, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await;
    let other = json!({"lease_id": granted["lease_id"], "seed": "10.0.0.8:8000:3"});
    let not_found = (404, "lease-not-found".to_owned());
    assert_eq!(told(planner.call("POST", "/v2/leases/renew", &other).await), not_found);
    assert_eq!(planner.call("POST", "/v2/leases/renew", &lease(&granted)).await.0, 200);
}

async fn all_ranks_of_a_host_are_heard_of_together(planner: &Planner) {
    let ranks: Vec<_> = (0..700).map(|rank| seed(&format!("10.0.0.7:8000:{rank}"))).collect();
    for rank in &ranks[..2] {
        planner.call("POST", "/v2/seeds", rank).await;
    }
    let (status, answer) = planner.call("POST", "/v2/seeds/heartbeat", &json!({"seeds": ranks})).await;
    assert_eq!(status, 200);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), ranks.len());
    for (rank, result) in ranks.iter().zip(results) {
        assert_eq!(rank["seed"], result["seed"], "in the order of the request");
    }
    for (rank, result) in results.iter().enumerate() {
        assert_eq!(
            result["status"],
            if rank < 2 { "ok" } else { "unknown" },
            "a heartbeat registers nothing"
        );
    }
    assert_eq!(planner.snapshot().await["seed_count"], 2);
}

async fn a_heartbeat_is_of_one_process(planner: &Planner) {
    let told = |incarnation: &str| json!({"seed": SEED, "seed_key": "k", "incarnation": incarnation});
    let beat = async |beat: Value| {
        let (status, answer) = planner.call("POST", "/v2/seeds/heartbeat", &json!({"seeds": [beat]})).await;
        assert_eq!(status, 200);
        answer["results"][0]["status"].as_str().unwrap().to_owned()
    };
    planner.call("POST", "/v2/seeds", &told("1")).await;
    assert_eq!(beat(told("1")).await, "ok");
    assert_eq!(beat(told("2")).await, "unknown");
    assert_eq!(beat(seed(SEED)).await, "ok", "one that does not tell its process");
    assert_eq!(beat(told("1")).await, "ok");
    assert_eq!(planner.call("POST", "/v2/seeds", &told("2")).await.1["registration"], "new_holding");
    assert_eq!(beat(told("1")).await, "unknown");
    assert_eq!(beat(told("2")).await, "ok");
}

async fn a_drained_seed_keeps_its_leases_and_is_not_offered_while_it_is_the_same(planner: &Planner) {
    let told = |incarnation: &str| json!({"seed": SEED, "seed_key": "k", "incarnation": incarnation});
    assert_eq!(
        super::calls::told(planner.call("POST", "/v2/seeds/drain", &seed(SEED)).await).1,
        "seed-not-found"
    );
    planner.call("POST", "/v2/seeds", &told("1")).await;
    let (_, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await;
    assert_eq!(
        planner.call("POST", "/v2/seeds/drain", &seed(SEED)).await,
        (200, json!({"active_leases": 1}))
    );
    assert_eq!(planner.call("POST", "/v2/leases/renew", &lease(&granted)).await.0, 200);
    assert_eq!(planner.call("POST", "/v2/leases/release", &release(&granted)).await.0, 200);
    let beats = json!({"seeds": [told("1")]});
    let (_, answer) = planner.call("POST", "/v2/seeds/heartbeat", &beats).await;
    assert_eq!(answer["results"][0]["status"], "draining");
    assert_eq!(planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await.0, 404);
    planner.call("POST", "/v2/seeds", &told("2")).await;
    assert_eq!(planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await.0, 200);
}

async fn a_seed_that_failed_is_left_alone(planner: &Planner) {
    planner.call("POST", "/v2/seeds", &seed(SEED)).await;
    let acquire = json!({"seed_key": "k"});
    assert_eq!(told(planner.call("POST", "/v2/leases", &json!({"seed_key": "l"})).await).1, "unknown-key");
    let (_, granted) = planner.call("POST", "/v2/leases", &acquire).await;
    let failed =
        json!({"lease_id": granted["lease_id"], "seed": SEED, "outcome": "failed", "reason": "hung"});
    assert_eq!(planner.call("POST", "/v2/leases/release", &failed).await.0, 200);
    assert_eq!(told(planner.call("POST", "/v2/leases", &acquire).await), (404, "all-suspect".into()));
    planner.call("POST", "/v2/seeds", &seed("10.0.0.8:8000:3")).await;
    let exclude = json!({"seed_key": "k", "exclude": ["10.0.0.8:8000:3"]});
    assert_eq!(planner.call("POST", "/v2/leases", &exclude).await.0, 404);
    assert_eq!(planner.call("POST", "/v2/leases", &acquire).await.1["seed"], "10.0.0.8:8000:3");
}

async fn both_apis_see_the_same_seeds_and_leases(planner: &Planner) {
    // A seed of v1 serves a worker of v2, …
    planner.add(&Seed { key: "k", ip: "10.0.0.7" }).await.is(200, "");
    let (status, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await;
    assert_eq!((status, &granted["seed"]), (200, &json!(SEED)));
    planner.get("k").await.is(404, "no available seed");
    // … whose lease v1 knows as well.
    let id = granted["lease_id"].as_str().unwrap().to_owned();
    let v1 = [("SEED_IP", "10.0.0.7"), ("SEED_PORT", "8000"), ("SEED_RANK", "3"), ("USER_ID", &id)];
    planner.ask("POST", "/renew_seed_lease", &v1).await.is(200, "");
    planner.ask("POST", "/put_seed", &v1).await.is(200, "");
    assert_eq!(planner.call("POST", "/v2/seeds/deregister", &seed(SEED)).await.1["state"], "gone");
    // And the other way round.
    planner.call("POST", "/v2/seeds", &seed("[fd00::1]:8000:3")).await;
    let granted = planner.get("k").await;
    assert_eq!((granted.status, granted.header("SEED_IP")), (200, Some("fd00::1")));
    let id = granted.header("USER_ID").unwrap();
    let v2 = json!({"lease_id": id, "seed": "[fd00::1]:8000:3"});
    assert_eq!(planner.call("POST", "/v2/leases/renew", &v2).await.0, 200);
    assert_eq!(
        planner.call("POST", "/v2/seeds/deregister", &seed("[fd00::1]:8000:3")).await.1["state"],
        "draining"
    );
    assert_eq!(planner.call("POST", "/v2/leases/release", &release(&v2)).await.0, 200);
}

async fn a_key_that_is_not_utf8_is_the_same_in_both(planner: &Planner) {
    let headers: [(&str, &[u8]); 5] = [
        ("SEED_KEY", b"caf\xe9"),
        ("SEED_IP", b"10.0.0.7"),
        ("SEED_PORT", b"8000"),
        ("SEED_RANK", b"3"),
        ("SEED_REFCNT", b"0"),
    ];
    planner.raw(&super::support::request("POST", "/add_seed", &headers)).await.is(200, "");
    let text = planner.call("POST", "/v2/leases", &json!({"seed_key": "café"})).await;
    assert_eq!(text.0, 404, "UTF-8 is another key");
    let (status, granted) =
        planner.call("POST", "/v2/leases", &json!({"seed_key": {"hex": "636166e9"}})).await;
    assert_eq!((status, &granted["seed"]), (200, &json!(SEED)));
}

async fn seeds_leases_and_keys_are_listed(planner: &Planner) {
    for rank in 0..3 {
        let register = json!({"seed": format!("10.0.0.7:8000:{rank}"), "seed_key": "k", "model_url": "/m",
            "incarnation": "1", "location": {"zone": "z"}});
        planner.call("POST", "/v2/seeds", &register).await;
    }
    planner.add(&Seed { key: "caf\u{e9}$%&=", ip: "::1" }).await.is(200, "");
    let (_, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await;

    let (status, all) = planner.call("GET", "/v2/seeds", &Value::Null).await;
    assert_eq!((status, all["seeds"].as_array().unwrap().len(), &all["next"]), (200, 4, &Value::Null));
    let (_, page) = planner.call("GET", "/v2/seeds?limit=3", &Value::Null).await;
    let after = page["next"].as_str().unwrap();
    let (_, rest) = planner.call("GET", &format!("/v2/seeds?limit=3&after={after}"), &Value::Null).await;
    assert_eq!((rest["seeds"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let (_, of_key) = planner.call("GET", "/v2/seeds?seed_key=caf%C3%A9%24%25%26%3D", &Value::Null).await;
    assert_eq!((&of_key["seeds"][0]["seed"], &of_key["seeds"][1]), (&json!("[::1]:8000:3"), &Value::Null));
    for (query, count) in [
        ("model_url=/m", 3),
        ("host=10.0.0.7", 3),
        ("host=10.0.0.8", 0),
        ("host=%5B0:0::1%5D", 1),
        ("state=live", 4),
        ("state=silent", 0),
    ] {
        let (_, found) = planner.call("GET", &format!("/v2/seeds?{query}"), &Value::Null).await;
        assert_eq!(found["seeds"].as_array().unwrap().len(), count, "{query}");
    }
    let used = all["seeds"].as_array().unwrap().iter().find(|seed| seed["seed"] == granted["seed"]).unwrap();
    assert_eq!(
        (&used["used"], &used["location"]["zone"], &used["state"]),
        (&json!(1), &json!("z"), &json!("live"))
    );

    let (_, leases) = planner.call("GET", "/v2/leases?seed_key=k", &Value::Null).await;
    assert_eq!(leases["leases"][0]["seed"], granted["seed"]);
    assert!(!leases.to_string().contains(granted["lease_id"].as_str().unwrap()), "it is a credential");
    let (_, none) = planner.call("GET", "/v2/leases?seed=10.0.0.9:8000:0", &Value::Null).await;
    assert_eq!(none["leases"], json!([]));

    let (_, keys) = planner.call("GET", "/v2/keys", &Value::Null).await;
    let k = keys["keys"].as_array().unwrap().iter().find(|key| key["seed_key"] == "k").unwrap();
    assert_eq!((&k["seeds"]["live"], &k["capacity"], &k["used"]), (&json!(3), &json!(3), &json!(1)));
}

async fn an_invalidated_key_keeps_only_the_new_weights(planner: &Planner) {
    for (seed, content) in [("h:1:0", json!("old")), ("h:1:1", json!("new")), ("h:1:2", Value::Null)] {
        planner
            .call("POST", "/v2/seeds", &json!({"seed": seed, "seed_key": "k", "content_id": content}))
            .await;
    }
    let invalidate = json!({"seed_key": "k", "keep_content_id": "new"});
    assert_eq!(planner.call("POST", "/v2/keys/invalidate", &invalidate).await, (200, json!({"drained": 2})));
    let (_, live) = planner.call("GET", "/v2/seeds?state=live", &Value::Null).await;
    assert_eq!((&live["seeds"][0]["seed"], &live["seeds"][1]), (&json!("h:1:1"), &Value::Null));
    assert_eq!(planner.call("POST", "/v2/keys/invalidate", &json!({"seed_key": "k"})).await.1["drained"], 1);
    assert_eq!(told(planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await).0, 404);
}

async fn a_seed_of_an_invalidated_key_is_told_that_it_drains(planner: &Planner) {
    planner.call("POST", "/v2/seeds", &seed(SEED)).await;
    let status = async || {
        let (_, told) = planner.call("POST", "/v2/seeds/heartbeat", &json!({"seeds": [seed(SEED)]})).await;
        told["results"][0]["status"].clone()
    };
    assert_eq!(status().await, "ok");
    planner.call("POST", "/v2/keys/invalidate", &json!({"seed_key": "k"})).await;
    // Not by its next heartbeat, but when that was written.
    let draining = async {
        while status().await != "draining" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, draining).await.unwrap();
}

#[tokio::test]
async fn who_tells_no_place_is_where_the_settings_have_its_address() {
    let directory = TempDir::new().unwrap();
    let rules = directory.path().join("rules.toml");
    let networks = [("127.0.0.0/8", "near"), ("10.2.0.0/16", "near"), ("10.1.0.0/16", "far")];
    let rule = |(network, zone)| format!("[[location]]\nnetwork = '{network}'\nzone = '{zone}'\n");
    std::fs::write(&rules, networks.map(rule).concat()).unwrap();
    let file = FileSettings::read(&rules).unwrap();
    let planner =
        Planner::start(&directory.path().join("p.db"), |settings| settings.file = Arc::new(file)).await;
    for seed in ["10.1.0.1:1:0", "10.2.0.1:1:0", "h:1:0"] {
        planner.call("POST", "/v2/seeds", &json!({"seed": seed, "seed_key": "k"})).await;
    }
    let tells = json!({"seed": "10.2.0.2:1:0", "seed_key": "k", "location": {"zone": "told", "host": "h"}});
    planner.call("POST", "/v2/seeds", &tells).await;
    let (_, all) = planner.call("GET", "/v2/seeds", &Value::Null).await;
    let zones: Vec<_> =
        all["seeds"].as_array().unwrap().iter().map(|seed| &seed["location"]["zone"]).collect();
    assert_eq!(zones, [&json!("far"), &json!("near"), &json!("told"), &Value::Null]);

    let asks = json!({"seed_key": "k"});
    assert_eq!(planner.call("POST", "/v2/explain", &asks).await.1["grant"], "10.2.0.1:1:0");
    assert_eq!(planner.call("POST", "/v2/leases", &asks).await.1["seed"], "10.2.0.1:1:0");
    let elsewhere = json!({"seed_key": "k", "location": {"zone": "told"}});
    assert_eq!(planner.call("POST", "/v2/explain", &elsewhere).await.1["grant"], "10.2.0.2:1:0");
    assert_eq!(planner.call("POST", "/v2/leases", &elsewhere).await.1["seed"], "10.2.0.2:1:0");
    planner.stop().await;
}
