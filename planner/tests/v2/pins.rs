//! Keys that are pinned to contents: what others hold is neither registered nor granted, on both stores and by both APIs.

use std::path::Path;
use std::sync::Arc;

use rfork_planner::config::DatabaseUrl;
use rfork_planner::settings_file::FileSettings;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::Cluster;
use super::support::Planner;

const GOOD: &str = "blake3:1111111111111111111111111111111111111111111111111111111111111111";
const BAD: &str = "blake3:2222222222222222222222222222222222222222222222222222222222222222";
const SEED: &str = "127.0.0.1:8000:3";

/// One that pins a key, over this database.
async fn pinning(home: &Path, database: &DatabaseUrl, key: &str) -> Planner {
    let rules = home.join("rules.toml");
    std::fs::write(&rules, format!("[[pin]]\nkey = '{key}'\ncontent = ['{GOOD}']\n")).unwrap();
    let file = FileSettings::read(&rules).unwrap();
    Planner::start_on(database.clone(), |settings| settings.file = Arc::new(file)).await
}

fn seed(port: u16, content: Option<&str>) -> Value {
    let mut seed = json!({"seed": format!("127.0.0.1:{port}:0"), "seed_key": "k"});
    if let Some(content) = content {
        seed["content_id"] = content.into();
    }
    seed
}

async fn verdicts(planner: &Planner) -> Vec<Value> {
    let (_, explained) = planner.call("POST", "/v2/explain", &json!({"seed_key": "k"})).await;
    explained["seeds"].as_array().unwrap().iter().map(|seed| seed["verdict"].clone()).collect()
}

async fn others_are_refused(database: DatabaseUrl) {
    let home = TempDir::new().unwrap();
    let planner = pinning(home.path(), &database, "k").await;
    // What no id can be compared of is none of these, either.
    for content in [Some(BAD), None] {
        let (status, problem) = planner.call("POST", "/v2/seeds", &seed(1, content)).await;
        assert_eq!((status, &problem["code"]), (503, &json!("not-pinned")), "{problem}");
        assert_eq!(problem["retry_after_ms"], 1_000);
    }
    let told = [
        ("SEED_KEY", "k"),
        ("SEED_IP", "127.0.0.1"),
        ("SEED_PORT", "8000"),
        ("SEED_RANK", "3"),
        ("SEED_REFCNT", "0"),
    ];
    let answer = planner.ask("POST", "/add_seed", &told).await;
    assert_eq!(
        (answer.status, answer.header("RETRY-AFTER")),
        (503, Some("1")),
        "an unmodified worker asks again"
    );
    assert!(answer.body.starts_with("not-pinned: "), "{answer:?}");
    assert_eq!(planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await.1["code"], "unknown-key");

    assert_eq!(planner.call("POST", "/v2/seeds", &seed(2, Some(GOOD))).await.0, 200);
    // Its heartbeats need not say it again.
    assert_eq!(planner.call("POST", "/v2/seeds", &seed(2, None)).await.0, 200);
    let (status, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await;
    assert_eq!((status, &granted["pinned"]), (200, &json!([GOOD])), "readers compare, too");
    let metrics = planner.ask("GET", "/metrics", &[]).await.body;
    let counted = "rfork_planner_requests_denied_total{reason=\"pin\",refused=\"yes\"} 3";
    assert!(metrics.contains(counted), "{metrics}");

    // Other keys are free.
    let other = json!({"seed": SEED, "seed_key": "l"});
    assert_eq!(planner.call("POST", "/v2/seeds", &other).await.0, 200);
    let (_, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "l"})).await;
    assert_eq!((&granted["seed"], granted.get("pinned")), (&json!(SEED), None));

    // Who comes to hold something else is gone, and so are the leases on what it was.
    assert_eq!(planner.call("POST", "/v2/seeds", &seed(2, Some(BAD))).await.0, 503);
    assert_eq!(verdicts(&planner).await, Vec::<Value>::new());
    planner.stop().await;
}

async fn those_who_are_known_are_offered_no_more(database: DatabaseUrl) {
    let home = TempDir::new().unwrap();
    let before = pinning(home.path(), &database, "another").await;
    for (port, content) in [(1, Some(BAD)), (2, None), (3, Some(GOOD))] {
        assert_eq!(before.call("POST", "/v2/seeds", &seed(port, content)).await.0, 200);
    }
    before.stop().await;
    let planner = pinning(home.path(), &database, "k").await;
    assert_eq!(verdicts(&planner).await, ["would_be_granted", "not_pinned", "not_pinned"]);
    let (_, granted) = planner.call("POST", "/v2/leases", &json!({"seed_key": "k"})).await;
    assert_eq!(granted["seed"], "127.0.0.1:3:0");
    // Not for an unmodified worker, either.
    let answer = planner.ask("GET", "/get_seed", &[("SEED_KEY", "k")]).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    planner.stop().await;
}

mod sqlite {
    use super::*;

    fn database(home: &TempDir) -> DatabaseUrl {
        DatabaseUrl::Sqlite(home.path().join("p.db"))
    }

    #[tokio::test]
    async fn others_are_refused() {
        let home = TempDir::new().unwrap();
        super::others_are_refused(database(&home)).await;
    }

    #[tokio::test]
    async fn those_who_are_known_are_offered_no_more() {
        let home = TempDir::new().unwrap();
        super::those_who_are_known_are_offered_no_more(database(&home)).await;
    }
}

mod postgres {
    use super::*;

    #[tokio::test]
    async fn others_are_refused() {
        super::others_are_refused(Cluster::shared().database().parse().unwrap()).await;
    }

    #[tokio::test]
    async fn those_who_are_known_are_offered_no_more() {
        super::those_who_are_known_are_offered_no_more(Cluster::shared().database().parse().unwrap()).await;
    }
}
