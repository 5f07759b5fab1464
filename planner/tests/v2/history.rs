//! What was, as it is told afterwards.

use serde_json::{Value, json};

use super::support::Planner;

const SEED: &str = "10.0.0.7:8000:3";

on_both_stores!(
    an_ended_lease_is_told_without_its_id,
    a_v1_client_s_lease_is_told_by_its_address,
    events_are_listed_by_what_they_are,
);

async fn an_ended_lease_is_told_without_its_id(planner: &Planner) {
    planner.call("POST", "/v2/seeds", &json!({"seed": SEED, "seed_key": "k"})).await;
    let acquire = json!({"seed_key": "k", "instance_id": "i-9"});
    let (_, granted) = planner.call("POST", "/v2/leases", &acquire).await;
    let listed = planner.call("GET", "/v2/leases", &Value::Null).await.1;
    assert_eq!(planner.call("GET", "/v2/leases/ended", &Value::Null).await.1["leases"], json!([]));
    let release = json!({"lease_id": granted["lease_id"], "seed": SEED, "outcome": "failed",
        "reason": "connection-reset", "bytes": 7, "duration_ms": 9});
    assert_eq!(planner.call("POST", "/v2/leases/release", &release).await.0, 200);

    let (status, mut ended) = planner.call("GET", "/v2/leases/ended?seed_key=k", &Value::Null).await;
    assert_eq!((status, &ended["next"]), (200, &Value::Null));
    assert!(!ended.to_string().contains(granted["lease_id"].as_str().unwrap()), "a credential");
    let one = ended["leases"][0].as_object_mut().unwrap();
    for age in ["granted_age_ms", "ended_age_ms"] {
        assert!(one.remove(age).unwrap().as_u64().is_some_and(|age| age < 60_000));
    }
    let expected = json!([{"lease": listed["leases"][0]["lease"], "seed": SEED, "seed_key": "k",
        "requester": "i-9@127.0.0.1", "reader": null, "ended": "released", "outcome": "failed", "reason": "connection-reset",
        "bytes": 7, "duration_ms": 9}]);
    assert_eq!(ended["leases"], expected);
    let elsewhere = planner.call("GET", "/v2/leases/ended?seed=10.0.0.8:8000:3", &Value::Null).await;
    assert_eq!(elsewhere.1["leases"], json!([]));
}

async fn a_v1_client_s_lease_is_told_by_its_address(planner: &Planner) {
    planner.call("POST", "/v2/seeds", &json!({"seed": SEED, "seed_key": "k"})).await;
    let granted = planner.get("k").await;
    planner.put(&granted).await.is(200, "");
    let ended = planner.call("GET", "/v2/leases/ended", &Value::Null).await.1;
    let one = &ended["leases"][0];
    assert_eq!((&one["requester"], &one["outcome"]), (&json!("127.0.0.1"), &Value::Null), "{ended}");
}

async fn events_are_listed_by_what_they_are(planner: &Planner) {
    for process in ["a", "b"] {
        let register = json!({"seed": SEED, "seed_key": "k", "incarnation": process});
        planner.call("POST", "/v2/seeds", &register).await;
    }
    planner.call("POST", "/v2/keys/invalidate", &json!({"seed_key": "k"})).await;
    let listed = async |query: &str| {
        let (status, page) = planner.call("GET", &format!("/v2/events{query}"), &Value::Null).await;
        assert_eq!(status, 200, "{page}");
        let events = page["events"].as_array().unwrap().clone();
        let events = events.iter().map(|event| json!([event["kind"], event["seed"], event["detail"]]));
        (events.collect::<Vec<_>>(), page["next"].as_str().map(str::to_owned))
    };
    let invalidated = json!(["invalidated", null, "seeds drained: 1"]);
    let new_holding = json!(["new_holding", SEED, "another process"]);
    let registered = json!(["registered", SEED, null]);
    let all = vec![invalidated.clone(), new_holding.clone(), registered.clone()];
    assert_eq!(listed("").await, (all.clone(), None));
    assert_eq!(listed("?seed_key=k&since_ms=60000").await.0, all);
    assert_eq!(listed("?seed_key=other").await.0, [Value::Null; 0]);
    assert_eq!(listed("?kind=new_holding").await.0, all[1..2]);
    let (page, next) = listed("?limit=2").await;
    assert_eq!(page, [invalidated, new_holding]);
    assert_eq!(listed(&format!("?limit=2&after={}", next.unwrap())).await, (vec![registered], None));
    let (status, problem) = planner.call("GET", "/v2/events?kind=gone", &Value::Null).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid-request")));
}
