//! Planners over one Postgres: side by side, and while it is away.

#[path = "../../tests/src/cluster.rs"]
mod cluster;
mod support;

use cluster::Cluster;
use rfork_test_authority::{Authority, Issued};
use support::{FAILS, PATIENCE, Planner, Seed};

const SEED: Seed<'_> = Seed { key: "k", ip: "10.0.0.7" };

#[tokio::test]
async fn planners_that_start_together_on_one_database_are_one_to_their_clients() {
    let url = Cluster::shared().database();
    let (first, second) = tokio::join!(
        Planner::start_on(url.parse().unwrap(), |_| {}),
        Planner::start_on(url.parse().unwrap(), |_| {}),
    );
    first.add(&SEED).await.is(200, "");
    let granted = second.get(SEED.key).await;
    granted.is(200, "");
    first.get(SEED.key).await.is(404, "no available seed");
    first.ask("POST", "/renew_seed_lease", &granted.lease()).await.is(200, "");
    first.put(&granted).await.is(200, "");
    second.put(&granted).await.is(404, "lease not found");
    // The database keeps all of it for whoever comes next.
    first.stop().await;
    second.stop().await;
    let third = Planner::start_on(url.parse().unwrap(), |_| {}).await;
    third.get(SEED.key).await.is(200, "");
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_postgres_is_503_and_passes() {
    let cluster = Cluster::private("crash");
    let planner = Planner::start_on(cluster.database().parse().unwrap(), |_| {}).await;
    planner.add(&SEED).await.is(200, "");
    let granted = planner.get(SEED.key).await;
    granted.is(200, "");
    for _ in 0..2 {
        cluster.crash();
        let (seed, lease, other) = (SEED.headers(), granted.lease(), Seed { ip: "10.0.0.8", ..SEED });
        let asked = std::time::Instant::now();
        let answers = tokio::join!(
            planner.get(SEED.key),
            planner.add(&other),
            planner.ask("POST", "/remove_seed", &seed),
            planner.ask("POST", "/renew_seed_lease", &lease),
            planner.ask("GET", "/readyz", &[]),
        );
        for answer in [answers.0, answers.1, answers.2, answers.3, answers.4] {
            assert_eq!(answer.status, 503, "{answer:?}");
            assert!(FAILS.contains(&answer.body.as_str()), "{answer:?}");
        }
        // On a slow machine, too.
        assert!(asked.elapsed() < rfork_planner::config::REQUEST_DEADLINE * 10, "{:?}", asked.elapsed());
        planner.ask("GET", "/healthz", &[]).await.is(200, r#"{"status":"ok"}"#);
        cluster.start();
        let back = async { while planner.ask("GET", "/readyz", &[]).await.status != 200 {} };
        tokio::time::timeout(PATIENCE, back).await.unwrap();
        // What was acknowledged is there.
        planner.ask("POST", "/renew_seed_lease", &granted.lease()).await.is(200, "");
        planner.get(SEED.key).await.is(404, "no available seed");
    }
    // A restart between two requests is not even noticed: broken connections are replaced.
    cluster.crash();
    cluster.start();
    planner.put(&granted).await.is(200, "");
    planner.get(SEED.key).await.is(200, "");
    planner.stop().await;
}

#[tokio::test]
async fn tls_to_the_database_is_as_strict_as_its_url_says() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = |name: &str, root: &Authority| {
        let path = directory.path().join(name);
        std::fs::write(&path, root.pem()).unwrap();
        path.display().to_string()
    };
    let root = Authority::new();
    let Issued { cert: certificate, key } = root.issue(&["localhost"]);
    let (root, other) = (file("root.pem", &root), file("other.pem", &Authority::new()));

    let mut cluster = Cluster::private("tls");
    let socket = cluster.database();
    let name = socket.trim_start_matches("postgres:///").split('?').next().unwrap_or_default();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    cluster.use_tls(free, &certificate, &key);
    let url = |host: &str, mode: &str| format!("postgres://rfork@{host}:{free}/{name}?sslmode={mode}");

    let full = |root: &str| format!("verify-full&sslrootcert={root}");
    for url in [
        url("localhost", &full(&root)),
        url("127.0.0.1", &format!("verify-ca&sslrootcert={root}")),
        url("127.0.0.1", "require"),
    ] {
        let planner = Planner::start_on(url.parse().unwrap(), |_| {}).await;
        planner.add(&SEED).await.is(200, "");
        planner.ask("GET", "/readyz", &[]).await.is(200, r#"{"status":"ok"}"#);
        planner.stop().await;
    }
    for (url, why) in [
        (url("localhost", &full(&other)), "certificate"),
        (url("127.0.0.1", &full(&root)), "certificate"),
        (url("localhost", "disable"), "no encryption"),
        (url("localhost", &full("/no/such/file")), "/no/such/file"),
    ] {
        let refused = Planner::refused_on(url.parse().unwrap()).await;
        assert!(refused.contains(why) && refused.contains("sslmode"), "{url}: {refused}");
    }
}
