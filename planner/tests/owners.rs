//! Whose a seed is: who may register its address, send its heartbeats and take it out.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use rfork_planner::config::Settings;
use rfork_planner::domain::owner::OwnedBy;
use rfork_planner::identity::{Mode, TokenFile};
use serde_json::{Value, json};
use support::{Answer, PATIENCE, Planner, request};

const OWNER: &str = "owner-0123456789abcdef";
const OTHER: &str = "other-0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef";
/// Where their requests come from.
const HERE: &str = "10.1.0.7";
const THERE: &str = "10.1.0.8";
const SEED: &str = "127.0.0.1:8000:3";

async fn start(home: &Path, change: impl FnOnce(&mut Settings)) -> Planner {
    let path = home.join("tokens.toml");
    let principal = |name: &str, roles: &str, token: &str| {
        format!("[[principal]]\nname = '{name}'\nroles = [{roles}]\ntokens = ['{token}']\n")
    };
    let text = [
        principal("owner", "'worker'", OWNER),
        principal("other", "'worker'", OTHER),
        principal("operator", "'operator', 'metrics'", OPERATOR),
    ];
    std::fs::write(&path, text.concat()).unwrap();
    let file = TokenFile::read(&path).unwrap();
    Planner::start(&home.join("p.db"), |settings| {
        (settings.token_file, settings.auth_mode) = (Some(file), Mode::Enforce);
        settings.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        settings.fork_while_loading = true;
        change(settings);
    })
    .await
}

/// Somebody who asks, and from where.
#[derive(Clone, Copy)]
struct Client<'a> {
    planner: &'a Planner,
    token: &'a str,
    address: &'a str,
}

impl Client<'_> {
    async fn v1(self, path: &str, key: &str) -> Answer {
        self.v1_as(path, key, "127.0.0.1").await
    }

    async fn v1_as(self, path: &str, key: &str, host: &str) -> Answer {
        let authorization = format!("Bearer {}", self.token);
        let headers = [
            ("Authorization", authorization.as_str()),
            ("X-Forwarded-For", self.address),
            ("SEED_KEY", key),
            ("SEED_IP", host),
            ("SEED_PORT", "8000"),
            ("SEED_RANK", "3"),
            ("SEED_REFCNT", "0"),
        ];
        self.planner.ask("POST", path, &headers).await
    }

    async fn v2(self, path: &str, body: &Value) -> Answer {
        let (authorization, body) = (format!("Bearer {}", self.token), body.to_string());
        let length = body.len().to_string();
        let headers = [
            ("Authorization", authorization.as_bytes()),
            ("X-Forwarded-For", self.address.as_bytes()),
            ("Content-Type", b"application/json"),
            ("Content-Length", length.as_bytes()),
        ];
        self.planner.raw(&[request("POST", path, &headers), body.into_bytes()].concat()).await
    }

    async fn beat(self) -> Value {
        let answer = self.v2("/v2/seeds/heartbeat", &json!({"seeds": [named("k")]})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()["results"][0]["status"].clone()
    }

    async fn get(self, path: &str) -> String {
        let authorization = format!("Bearer {}", self.token);
        self.planner.ask("GET", path, &[("Authorization", &authorization)]).await.body
    }

    async fn seeds(self) -> Value {
        serde_json::from_str::<Value>(&self.get("/v2/seeds").await).unwrap()["seeds"].clone()
    }
}

fn named(key: &str) -> Value {
    json!({"seed": SEED, "seed_key": key})
}

fn is_owned(answer: &Answer) {
    assert_eq!((answer.status, answer.header("RETRY-AFTER")), (503, Some("1")), "{answer:?}");
    if let Ok(problem) = serde_json::from_str::<Value>(&answer.body) {
        assert_eq!((&problem["code"], &problem["status"]), (&json!("seed-owned"), &json!(503)));
        assert_eq!(problem["retry_after_ms"], 1_000);
    } else {
        assert!(answer.body.starts_with("seed-owned: "), "{answer:?}");
    }
}

/// All by which somebody could take a seed from its owner, or its readers.
async fn is_not_taken(thief: Client<'_>) {
    for key in ["k", "l"] {
        is_owned(&thief.v1("/add_seed", key).await);
        is_owned(&thief.v1_as("/add_seed", key, "::ffff:127.0.0.1").await);
        is_owned(&thief.v2("/v2/seeds", &named(key)).await);
        let incarnation = json!({"seed": SEED, "seed_key": key, "incarnation": "another"});
        is_owned(&thief.v2("/v2/seeds", &incarnation).await);
    }
    is_owned(&thief.v1("/remove_seed", "k").await);
    is_owned(&thief.v2("/v2/seeds/deregister", &named("k")).await);
    assert_eq!(thief.beat().await, "unknown");
    let loading = json!({"seed": SEED, "incarnation": "another", "total_bytes": 1});
    let claim = json!({"seed_key": "l", "loading": loading, "arrived_bytes": 0, "patience_ms": 1_000});
    let claimed = thief.v2("/v2/leads", &claim).await;
    assert_eq!(serde_json::from_str::<Value>(&claimed.body).unwrap()["role"], "alone", "{claimed:?}");
    let acquired = thief.v2("/v2/leases", &json!({"seed_key": "k", "loading": loading})).await;
    let granted: Value = serde_json::from_str(&acquired.body).unwrap();
    assert_eq!((acquired.status, &granted["source"]), (200, &Value::Null), "it may read: {acquired:?}");
    let released = json!({"lease_id": granted["lease_id"], "seed": SEED, "outcome": "ok"});
    assert_eq!(thief.v2("/v2/leases/release", &released).await.status, 200);
}

#[tokio::test]
async fn nobody_takes_a_seed_that_lives_from_its_principal() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), |_| {}).await;
    let [owner, other, operator] =
        [OWNER, OTHER, OPERATOR].map(|token| Client { planner: &planner, token, address: HERE });
    assert_eq!(owner.v1("/add_seed", "k").await.status, 200);
    is_not_taken(other).await;
    // Of an address nothing is known to it; and heartbeats that are gathered are its own.
    let moved = Client { address: THERE, ..owner };
    assert_eq!(moved.v1("/add_seed", "k").await.status, 200);
    is_not_taken(other).await;
    assert_eq!(owner.v2("/v2/seeds", &named("k")).await.status, 200);
    assert_eq!((owner.beat().await, other.beat().await), (json!("ok"), json!("unknown")));
    let seeds = operator.seeds().await;
    let owned_by = json!({"principal": "owner", "address": null});
    assert_eq!(
        (&seeds[0]["state"], &seeds[0]["owner"], &seeds[1]),
        (&json!("live"), &owned_by, &Value::Null)
    );
    let metrics = operator.get("/metrics").await;
    let refused = "rfork_planner_requests_denied_total{reason=\"owner\",refused=\"yes\"} 23";
    assert!(metrics.lines().any(|line| line == refused), "{metrics}");
    // Operators take out whose it is not; the address is its owner's even so.
    assert_eq!(operator.v2("/v2/seeds/drain", &named("k")).await.status, 200);
    is_owned(&other.v1("/add_seed", "k").await);
    let new = json!({"seed": SEED, "seed_key": "k", "incarnation": "2"});
    assert_eq!(owner.v2("/v2/seeds", &new).await.status, 200);
    assert_eq!(owner.v2("/v2/seeds/deregister", &named("k")).await.status, 200);
    assert_eq!(other.v1("/add_seed", "k").await.status, 200, "whoever comes next has the address");
    is_owned(&owner.v1("/add_seed", "k").await);
    planner.stop().await;
}

#[tokio::test]
async fn the_address_of_a_worker_that_is_gone_is_used_again() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), |settings| settings.heartbeat_ttl = Duration::from_secs(1)).await;
    let [owner, other] = [OWNER, OTHER].map(|token| Client { planner: &planner, token, address: HERE });
    assert_eq!(owner.v1("/add_seed", "k").await.status, 200);
    let asking = async {
        loop {
            let answer = other.v1("/add_seed", "l").await;
            match answer.status {
                200 => return,
                _ => is_owned(&answer),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
    planner.stop().await;
}

#[tokio::test]
async fn who_would_be_refused_is_served_and_counted() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), |settings| settings.auth_mode = Mode::Permissive).await;
    let [owner, other, operator] =
        [OWNER, OTHER, OPERATOR].map(|token| Client { planner: &planner, token, address: HERE });
    for count in [1, 4] {
        assert_eq!(owner.v1("/add_seed", "k").await.status, 200);
        assert_eq!(other.beat().await, "ok");
        assert_eq!(other.v1("/add_seed", "k").await.status, 200);
        assert_eq!(other.v2("/v2/seeds/deregister", &named("k")).await.status, 200);
        let denied = |refused| {
            format!("rfork_planner_requests_denied_total{{reason=\"owner\",refused=\"{refused}\"}}")
        };
        let metrics = operator.get("/metrics").await;
        let (counted, none) = (format!("{} {}", denied("no"), count + 2), format!("{} 0", denied("yes")));
        assert!(metrics.contains(&counted) && metrics.contains(&none), "{counted}: {metrics}");
    }
    planner.stop().await;
}

#[tokio::test]
async fn workers_that_share_a_token_or_have_none_are_told_apart_by_their_addresses() {
    for mode in [Mode::Off, Mode::Permissive, Mode::Enforce] {
        let home = tempfile::tempdir().unwrap();
        let planner = start(home.path(), |settings| {
            (settings.auth_mode, settings.seed_owner) = (mode, OwnedBy::Address);
        })
        .await;
        let owner = Client { planner: &planner, token: OWNER, address: HERE };
        assert_eq!(owner.v1("/add_seed", "k").await.status, 200);
        is_not_taken(Client { address: THERE, ..owner }).await;
        // A client says nothing of itself that counts more than what its proxy says.
        is_not_taken(Client { address: "10.1.0.7, 10.1.0.8", ..owner }).await;
        assert_eq!(owner.v1("/add_seed", "k").await.status, 200);
        let operator = Client { token: OPERATOR, ..owner };
        assert_eq!(operator.seeds().await[0]["owner"]["address"], HERE);
        assert_eq!(owner.v1("/remove_seed", "k").await.status, 200);
        planner.stop().await;
    }
}

#[tokio::test]
async fn without_identity_a_seed_is_whoevers_says_so() {
    let home = tempfile::tempdir().unwrap();
    let planner = start(home.path(), |settings| settings.auth_mode = Mode::Off).await;
    let [owner, other] =
        [(OWNER, HERE), (OTHER, THERE)].map(|(token, address)| Client { planner: &planner, token, address });
    assert_eq!(owner.v1("/add_seed", "k").await.status, 200);
    assert_eq!(other.v1("/add_seed", "l").await.status, 200);
    assert_eq!(owner.v2("/v2/seeds", &named("k")).await.status, 200);
    assert_eq!(other.beat().await, "ok");
    assert_eq!(owner.seeds().await[0]["owner"], Value::Null);
    assert_eq!(other.v1("/remove_seed", "k").await.status, 200);
    planner.stop().await;
}
