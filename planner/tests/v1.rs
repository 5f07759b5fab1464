//! API v1 over a real socket, byte by byte.

mod support;

use serde_json::json;
use sha2::{Digest, Sha256};
use support::{Planner, Seed, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SEED: Seed<'_> = Seed { key: "/models/m$decode$kv_both$0$3", ip: "10.0.0.7" };

#[tokio::test]
async fn a_seed_is_added_granted_renewed_given_back_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    planner.get(SEED.key).await.is(404, "no available seed");
    planner.add(&SEED).await.is(200, "");
    let granted = planner.get(SEED.key).await;
    granted.is(200, "");
    assert_eq!(granted.header("SEED_IP"), Some("10.0.0.7"));
    assert_eq!(granted.header("SEED_PORT"), Some("8000"));
    assert_eq!(granted.header("SEED_RANK"), Some("3"));
    assert_eq!(granted.header("LEASE_TTL_SEC"), Some("60"));
    let lease = granted.header("USER_ID").unwrap();
    assert!(lease.len() == 32 && lease.bytes().all(|b| b.is_ascii_hexdigit()), "{lease}");
    planner.get(SEED.key).await.is(404, "no available seed");

    planner.ask("POST", "/renew_seed_lease", &granted.lease()).await.is(200, "");
    let mut of_another = granted.lease();
    of_another[0].1 = "10.0.0.8";
    planner.ask("POST", "/renew_seed_lease", &of_another).await.is(404, "lease not found");
    planner.ask("POST", "/put_seed", &of_another).await.is(404, "lease not found");

    let removal = planner.ask("POST", "/remove_seed", &SEED.headers()).await;
    assert_eq!(removal.status, 409, "{removal:?}");
    planner.put(&granted).await.is(200, "");
    planner.put(&granted).await.is(404, "lease not found");
    planner.ask("POST", "/renew_seed_lease", &granted.lease()).await.is(404, "lease not found");
    assert_eq!(
        planner.ask("POST", "/remove_seed", &SEED.headers()).await.status,
        404,
        "it went with its lease"
    );
    planner.add(&SEED).await.is(200, "");
    planner.ask("POST", "/remove_seed", &SEED.headers()).await.is(200, "");
    planner.get(SEED.key).await.is(404, "no available seed");
    planner.stop().await;
}

#[tokio::test]
async fn a_heartbeat_after_a_removal_or_another_key_is_no_repeat() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    let other = Seed { key: "other", ..SEED };
    for _ in 0..20 {
        // The second one is only gathered.
        planner.add(&SEED).await.is(200, "");
        planner.add(&SEED).await.is(200, "");
        planner.ask("POST", "/remove_seed", &SEED.headers()).await.is(200, "");
        planner.add(&SEED).await.is(200, "");
        let granted = planner.get(SEED.key).await;
        granted.is(200, "");
        planner.add(&other).await.is(200, "");
        planner.get(SEED.key).await.is(404, "no available seed");
        planner.put(&granted).await.is(404, "lease not found");
        let granted = planner.get(other.key).await;
        granted.is(200, "");
        planner.put(&granted).await.is(200, "");
    }
    planner.stop().await;
}

#[tokio::test]
async fn keys_are_bytes_and_both_spellings_are_read() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    let latin1: &[u8] = b"/mod\xe8les/caf\xe9 $% x$y";
    let rest: [(&str, &[u8]); 4] =
        [("Seed-Ip", b"node-1.rack"), ("seed_port", b"8000"), ("SEED-RANK", b"0"), ("SEED_REFCNT", b"0")];
    let added =
        planner.raw(&request("POST", "/add_seed", &[&rest[..], &[("seed-key", latin1)]].concat())).await;
    added.is(200, "");
    for other in [
        &b"/mod\xc3\xa8les/caf\xc3\xa9 $% x$y"[..],
        b"/mod%E8les/caf%E9 $% x$y",
        b"/MOD\xe8les/caf\xe9 $% x$y",
    ] {
        planner.raw(&request("GET", "/get_seed", &[("SEED_KEY", other)])).await.is(404, "no available seed");
    }
    let repeated =
        request("GET", "/get_seed", &[("SEED_KEY", latin1), ("SEED_KEY", b"x"), ("SEED-KEY", b"y")]);
    let granted = planner.raw(&repeated).await;
    granted.is(200, "");
    assert_eq!(granted.header("SEED_IP"), Some("node-1.rack"));
    planner.stop().await;
}

#[tokio::test]
async fn long_keys_are_accepted_up_to_8_kib() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    let both = |bytes: usize| {
        let key = vec![b'k'; bytes];
        let rest: [(&str, &[u8]); 4] =
            [("SEED_IP", b"h"), ("SEED_PORT", b"1"), ("SEED_RANK", b"0"), ("SEED_REFCNT", b"0")];
        request("POST", "/add_seed", &[&rest[..], &[("SEED_KEY", &key), ("SEED-KEY", &key)]].concat())
    };
    planner.raw(&both(8192)).await.is(200, "");
    assert_eq!(planner.raw(&both(8193)).await.status, 431);
    assert_eq!(planner.raw(&both(100_000)).await.status, 431);
    planner.get(&"k".repeat(8192)).await.is(200, "");
    planner.stop().await;
}

#[tokio::test]
async fn missing_and_bad_headers_are_400_with_the_known_texts() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    let add = async |name: &str, value: &str| {
        let mut headers = [&SEED.headers()[..], &[("SEED_REFCNT", "0")]].concat();
        headers.iter_mut().find(|(known, _)| *known == name).unwrap().1 = value;
        planner.ask("POST", "/add_seed", &headers).await
    };
    add("SEED_KEY", "").await.is(400, "missing required header: SEED_KEY");
    add("SEED_PORT", "  ").await.is(400, "missing required header: SEED_PORT");
    add("SEED_PORT", "http").await.is(400, "invalid integer header SEED_PORT: http");
    add("SEED_PORT", "0").await.is(400, "header SEED_PORT must be >= 1, got 0");
    add("SEED_RANK", "-1").await.is(400, "header SEED_RANK must be >= 0, got -1");
    for host in ["a b", "a/b", "a@b", "a#b"] {
        assert_eq!(add("SEED_IP", host).await.status, 400, "{host}");
    }
    planner.ask("GET", "/get_seed", &[]).await.is(400, "missing required header: SEED_KEY");
    for path in ["/put_seed", "/renew_seed_lease"] {
        let seed = &SEED.headers()[1..];
        planner.ask("POST", path, seed).await.is(400, "missing required header: USER_ID");
        let empty = [seed, &[("USER_ID", "")]].concat();
        planner.ask("POST", path, &empty).await.is(400, "missing required header: USER_ID");
    }
    planner
        .ask("POST", "/remove_seed", &SEED.headers()[1..])
        .await
        .is(400, "missing required header: SEED_KEY");
    planner.stop().await;
}

#[tokio::test]
async fn only_the_right_method_of_a_route_does_anything() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    planner.add(&SEED).await.is(200, "");
    let key = [("SEED_KEY", SEED.key)];
    for path in ["/get_seed", "//get_seed", "/debug/snapshot"] {
        let refusal = planner.ask("HEAD", path, &key).await;
        assert_eq!((refusal.status, refusal.header("ALLOW")), (405, Some("GET")), "HEAD {path}");
        assert_eq!(planner.ask("OPTIONS", path, &key).await.status, 405, "OPTIONS {path}");
        assert_eq!(planner.ask("POST", path, &key).await.status, 405, "POST {path}");
    }
    for path in ["/add_seed", "/put_seed", "/renew_seed_lease", "/remove_seed"] {
        assert_eq!(planner.ask("GET", path, &SEED.headers()).await.status, 405, "GET {path}");
        assert_eq!(planner.ask("HEAD", path, &SEED.headers()).await.status, 405, "HEAD {path}");
    }
    assert_eq!(planner.ask("GET", "/get_seeds", &key).await.status, 404);
    assert_eq!(planner.snapshot().await["lease_count"], 0);
    planner.ask("GET", "//get_seed", &key).await.is(200, "");
    planner.ask("GET", "//get_seed?x=1", &key).await.is(404, "no available seed");
    for path in ["///get_seed", "//v2", "//v2/seeds", "///v2/seeds", "//debug/snapshot", "//healthz"] {
        assert_eq!(planner.ask("GET", path, &key).await.status, 404, "{path} has no second name");
    }
    planner.stop().await;
}

#[tokio::test]
async fn a_seed_is_found_however_its_address_is_told() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |settings| settings.liveness_probe = false).await;
    let at = |ip| Seed { ip, ..SEED };
    for (forms, shown) in [
        (["10.0.0.7", "::ffff:10.0.0.7", "http://10.0.0.7", "10.0.0.7."], "10.0.0.7"),
        (["fd00::7", "[fd00:0::7]", "http://[FD00::7]:8000/", "[fd00:0::7]:8000"], "fd00::7"),
        (["Node-7.", "node-7", "https://NODE-7/", "http://node-7."], "node-7"),
    ] {
        for told in forms {
            planner.add(&at(told)).await.is(200, "");
        }
        assert_eq!(planner.snapshot().await["seed_count"], 1, "{forms:?}");
        for told in forms {
            let granted = planner.get(SEED.key).await;
            assert_eq!((granted.status, granted.header("SEED_IP")), (200, Some(shown)), "{told}");
            // As the seed tells it, and as the planner does.
            let lease = granted.header("USER_ID").unwrap();
            let ours = [&at(told).headers()[1..], &[("USER_ID", lease)]].concat();
            planner.ask("POST", "/renew_seed_lease", &ours).await.is(200, "");
            planner.ask("POST", "/renew_seed_lease", &granted.lease()).await.is(200, "");
            planner.ask("POST", "/put_seed", &ours).await.is(200, "");
        }
        planner.ask("POST", "/remove_seed", &at(forms[3]).headers()).await.is(200, "");
    }
    for (told, reason) in
        [("10.7", "four decimal numbers"), ("fe80::7%eth0", "zone"), ("0.0.0.0", "where one listens")]
    {
        let refusal = planner.add(&at(told)).await;
        assert!(refusal.status == 400 && refusal.body.contains(reason), "{told}: {}", refusal.body);
    }
    planner.stop().await;
}

#[tokio::test]
async fn the_snapshot_has_the_known_form() {
    let home = tempfile::tempdir().unwrap();
    let planner =
        Planner::start(&home.path().join("p.db"), |settings| settings.default_resource_points = 2).await;
    planner.ask("GET", "/healthz", &[]).await.is(200, r#"{"status":"ok"}"#);
    planner.ask("GET", "/readyz", &[]).await.is(200, r#"{"status":"ok"}"#);
    assert_eq!(
        planner.snapshot().await,
        json!({"seed_count": 0, "lease_count": 0, "seeds": {}, "leases": {}})
    );
    planner.add(&SEED).await.is(200, "");
    let granted = planner.get(SEED.key).await;
    let hash = Sha256::digest(granted.header("USER_ID").unwrap());
    let name = rfork_protocol::ids::hex(&hash[..6]);
    let snapshot = planner.snapshot().await;
    let seed = &snapshot["seeds"]["10.0.0.7:8000:3"];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for time in ["last_heartbeat_ts", "last_used_ts"] {
        assert!((seed[time].as_f64().unwrap() - now).abs() < 60.0, "{time} is in seconds: {seed}");
    }
    let expected = json!({
        "seed_count": 1,
        "lease_count": 1,
        "seeds": {"10.0.0.7:8000:3": {
            "seed_key": SEED.key,
            "resource_total": 2,
            "resource_used": 1,
            "last_heartbeat_ts": seed["last_heartbeat_ts"],
            "last_used_ts": seed["last_used_ts"],
            "draining": false,
        }},
        "leases": {name: {"seed_identity": "10.0.0.7:8000:3", "seed_key": SEED.key, "allocated_points": 1}},
    });
    assert_eq!(snapshot, expected);
    planner.stop().await;
}

#[tokio::test]
async fn requests_may_share_a_connection_and_carry_a_body() {
    let home = tempfile::tempdir().unwrap();
    let planner = Planner::start(&home.path().join("p.db"), |_| {}).await;
    let mut stream = tokio::net::TcpStream::connect(planner.address).await.unwrap();
    let add = "POST /add_seed HTTP/1.1\r\nHost: p\r\nSEED_KEY: k\r\nSEED_IP: h\r\nSEED_PORT: 1\r\nSEED_RANK: 0\r\n\
               SEED_REFCNT: 0\r\nContent-Length: 4\r\n\r\nbody";
    let get = "GET /get_seed HTTP/1.1\r\nHost: p\r\nSEED_KEY: k\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{add}{add}{get}").as_bytes()).await.unwrap();
    let mut answers = String::new();
    tokio::time::timeout(support::PATIENCE, stream.read_to_string(&mut answers)).await.unwrap().unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(answers.contains("user_id: "), "{answers}");
    planner.stop().await;
}
