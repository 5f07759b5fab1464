//! Which API is spoken, and that it may change at any time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::*;
use crate::lease::{Lease, Releases};

const V1_GRANT: [(&str, &str); 5] = [
    ("SEED_IP", "10.0.0.7"),
    ("SEED_PORT", "8000"),
    ("SEED_RANK", "3"),
    ("USER_ID", "0123456789abcdef0123456789abcdef"),
    ("LEASE_TTL_SEC", "60"),
];

/// A planner that notes what it is asked.
#[derive(Default)]
struct Fake {
    speaks_v2: AtomicBool,
    busy: AtomicBool,
    loses_an_answer: AtomicBool,
    hangs: AtomicBool,
    /// Acquisitions that are answered with this code, one after the other, before one is granted.
    refuses: Mutex<Vec<(u16, &'static str)>>,
    floods: AtomicBool,
    renews: AtomicBool,
    refuses_renewals: AtomicBool,
    asked: Mutex<Vec<String>>,
    idempotency_keys: Mutex<Vec<String>>,
}

impl Fake {
    fn answer(&self, request: &Request) -> Response {
        let path = request.uri().path().to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let json =
            |body: &str| ([(header::CONTENT_TYPE, "application/json")], body.to_owned()).into_response();
        let problem = |status: StatusCode, code: &str| {
            let body = format!(r#"{{"status":{},"code":"{code}"}}"#, status.as_u16());
            (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
        };
        if path.starts_with("/v2") && !self.speaks_v2.load(Ordering::SeqCst) {
            return StatusCode::NOT_FOUND.into_response();
        }
        if self.floods.load(Ordering::SeqCst) {
            return json(&" ".repeat(1 << 20));
        }
        match path.as_str() {
            "/v2" if self.busy.load(Ordering::SeqCst) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            "/v2" => json(
                r#"{"service":"rfork-planner","version":"9","api":["v2"],"heartbeat_interval_ms":1,"max_wait_ms":5}"#,
            ),
            "/v2/leases" => {
                let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
                self.idempotency_keys.lock().unwrap().push(key);
                if let Some((status, code)) = self.refuses.lock().unwrap().pop() {
                    return problem(StatusCode::from_u16(status).unwrap(), code);
                }
                if self.loses_an_answer.swap(false, Ordering::SeqCst) {
                    // More is announced than comes: the connection breaks.
                    let body = axum::body::Body::from("{");
                    return (
                        [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_LENGTH, "9")],
                        body,
                    )
                        .into_response();
                }
                json(r#"{"lease_id":"0123456789abcdef","seed":"10.0.0.8:8000:3","ttl_ms":9,"waited_ms":1}"#)
            }
            "/v2/leases/renew" if self.renews.load(Ordering::SeqCst) => json(r#"{"ttl_ms":15}"#),
            "/v2/leases/renew" if self.refuses_renewals.load(Ordering::SeqCst) => {
                problem(StatusCode::UNAUTHORIZED, "unauthorized")
            }
            "/v2/leases/renew" => problem(StatusCode::NOT_FOUND, "lease-not-found"),
            "/v2/seeds/heartbeat" => json(r#"{"results":[{"seed":"h:1:0","status":"unknown"}]}"#),
            "/v2/seeds" => json(r#"{"registration":"new","heartbeat_interval_ms":1,"heartbeat_ttl_ms":2}"#),
            "/get_seed" => (V1_GRANT, ()).into_response(),
            _ => StatusCode::OK.into_response(),
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn start(speaks_v2: bool) -> (Arc<Fake>, PlannerClient) {
    start_within(speaks_v2, Duration::from_secs(20)).await
}

async fn start_within(speaks_v2: bool, timeout: Duration) -> (Arc<Fake>, PlannerClient) {
    let fake = Arc::new(Fake { speaks_v2: AtomicBool::new(speaks_v2), ..Fake::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answering = fake.clone();
    let router = Router::new().fallback(async move |request: Request| {
        let answer = answering.answer(&request);
        if answering.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        answer
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = PlannerClient::new(&url, timeout, Labels::default(), Topology::default()).unwrap();
    (fake, client)
}

fn advert() -> Advert {
    let identity = SeedIdentity::new("h", 1, 0).unwrap();
    Advert { key: SeedKey::new("k").unwrap(), identity, incarnation: None, content_id: None, origin: None }
}

async fn acquire(client: &PlannerClient) -> Grant {
    client.acquire(&SeedKey::new("k").unwrap(), &Wish::default()).await.unwrap().grant().unwrap()
}

#[tokio::test]
async fn a_planner_is_asked_once_what_it_speaks() {
    let (v1, client) = start(false).await;
    assert_eq!(acquire(&client).await.reference.identity.host(), "10.0.0.7");
    client.clone().register(&advert()).await.unwrap();
    assert_eq!(v1.asked(), ["/v2", "/get_seed", "/add_seed"]);
    let (v2, client) = start(true).await;
    assert_eq!(acquire(&client).await.reference.identity.host(), "10.0.0.8");
    client.clone().register(&advert()).await.unwrap();
    assert_eq!(v2.asked(), ["/v2", "/v2/leases", "/v2/seeds"]);
}

#[tokio::test]
async fn a_planner_that_is_put_back_to_v1_goes_on_in_v1() {
    let (fake, client) = start(true).await;
    let grant = acquire(&client).await;
    fake.speaks_v2.store(false, Ordering::SeqCst);
    fake.asked();
    let renewed = client.renew(&grant.reference, None).await.unwrap();
    let lives = Renewal::Lives { ttl: None, next: None, advice: None };
    assert_eq!(renewed, lives, "the lease is the same in both");
    client.release(&grant.reference, &TransferReport::Aborted).await.unwrap();
    assert_eq!(client.beat(&advert()).await.unwrap(), Heard::Known);
    client.withdraw(&advert()).await.unwrap();
    let v1 = ["/v2/leases/renew", "/renew_seed_lease", "/put_seed", "/add_seed", "/remove_seed"];
    assert_eq!(fake.asked(), v1);
}

#[tokio::test]
async fn a_planner_that_cannot_say_is_asked_again() {
    let (fake, client) = start(true).await;
    fake.busy.store(true, Ordering::SeqCst);
    assert_eq!(acquire(&client).await.reference.identity.host(), "10.0.0.7", "over v1 this time");
    fake.busy.store(false, Ordering::SeqCst);
    assert_eq!(acquire(&client).await.reference.identity.host(), "10.0.0.8");
}

#[tokio::test]
async fn no_more_is_read_than_an_answer_may_have() {
    let (fake, client) = start(true).await;
    let grant = acquire(&client).await;
    fake.floods.store(true, Ordering::SeqCst);
    let error = client.renew(&grant.reference, None).await.unwrap_err();
    assert!(matches!(error, PlannerError::Malformed { .. }) && !error.is_passing(), "{error}");
    assert!(error.to_string().contains("more than 65536 bytes"), "{error}");
}

#[tokio::test]
async fn a_problem_is_an_answer_and_no_sign_of_v1() {
    let (fake, client) = start(true).await;
    let grant = acquire(&client).await;
    assert_eq!(client.renew(&grant.reference, None).await.unwrap(), Renewal::Gone);
    assert_eq!(client.beat(&advert()).await.unwrap(), Heard::Unknown);
    assert_eq!(fake.asked(), ["/v2", "/v2/leases", "/v2/leases/renew", "/v2/seeds/heartbeat"]);
}

#[tokio::test]
async fn an_acquisition_whose_answer_is_lost_is_repeated_under_its_key() {
    let (fake, client) = start(true).await;
    fake.loses_an_answer.store(true, Ordering::SeqCst);
    acquire(&client).await;
    acquire(&client).await;
    let keys = fake.idempotency_keys.lock().unwrap().clone();
    assert_eq!(keys.len(), 3);
    assert!(keys[0] == keys[1] && keys[1] != keys[2] && keys[0].len() >= 32);
}

#[tokio::test]
async fn an_acquisition_that_is_told_to_come_back_is_repeated_under_its_key() {
    let (fake, client) = start(true).await;
    *fake.refuses.lock().unwrap() = vec![(429, "slow-down"), (500, "internal"), (503, "stopping")];
    acquire(&client).await;
    let keys = fake.idempotency_keys.lock().unwrap().clone();
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");

    // Not for ever, and not what is no better later.
    for (status, asked) in [(503, 4), (403, 1)] {
        fake.asked();
        *fake.refuses.lock().unwrap() = vec![(status, "no"); 9];
        let error = client.acquire(&SeedKey::new("k").unwrap(), &Wish::default()).await.unwrap_err();
        assert!(matches!(error, PlannerError::Refused { status: told, .. } if told == status), "{error}");
        assert_eq!(fake.asked(), vec!["/v2/leases"; asked]);
    }
}

#[tokio::test]
async fn a_lease_is_renewed_by_the_time_to_live_that_was_told_last() {
    const RENEWALS: usize = 40;
    let (fake, client) = start(true).await;
    fake.renews.store(true, Ordering::SeqCst);
    let grant = Grant { ttl: Some(Duration::from_secs(3)), ..acquire(&client).await };
    let releases = Releases::new(client.clone(), 1, Duration::from_secs(1));
    let lease = Lease::hold(grant, client, releases, None);
    let renewed = async {
        let mut renewals = 0;
        while renewals < RENEWALS {
            renewals += fake.asked().iter().filter(|path| *path == "/v2/leases/renew").count();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // By the time that came with the grant these would take 40 s, by the other one 4 s.
    tokio::time::timeout(Duration::from_secs(300), renewed).await.expect("it is renewed too seldom");
    assert!(!lease.lost().is_cancelled());
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_is_given_back_and_one_that_is_gone_is_not() {
    for refuses in [true, false] {
        let (fake, client) = start(true).await;
        fake.refuses_renewals.store(refuses, Ordering::SeqCst);
        let grant = Grant { ttl: Some(Duration::from_millis(300)), ..acquire(&client).await };
        let releases = Releases::new(client.clone(), 1, Duration::from_secs(1));
        let lease = Lease::hold(grant, client, releases.clone(), None);
        lease.lost().cancelled().await;
        drop(lease);
        releases.finish(Duration::from_secs(300)).await;
        let given_back = fake.asked().iter().filter(|path| *path == "/v2/leases/release").count();
        assert_eq!(given_back, usize::from(refuses));
    }
}

#[tokio::test]
async fn an_acquisition_of_a_planner_that_hangs_ends_with_its_time_and_is_not_repeated() {
    let (fake, client) = start_within(true, Duration::from_secs(2)).await;
    acquire(&client).await;
    fake.asked();
    fake.hangs.store(true, Ordering::SeqCst);
    let error = client.acquire(&SeedKey::new("k").unwrap(), &Wish::default()).await.unwrap_err();
    assert!(matches!(error, PlannerError::Unreachable { .. }), "{error}");
    assert_eq!(fake.asked(), ["/v2/leases"]);
}

#[tokio::test]
async fn no_connection_to_the_planner_is_kept() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client =
        PlannerClient::new(&url, Duration::from_secs(20), Labels::default(), Topology::default()).unwrap();
    let ends = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap_err().kind()
    };
    let (excludes, ended) = tokio::join!(
        client.excludes_seeds(),
        // Sooner than connections are usually kept.
        tokio::time::timeout(Duration::from_secs(60), ends)
    );
    assert!(!excludes);
    assert_eq!(ended.expect("it is kept open"), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn the_worker_is_where_the_connection_that_worked_came_from() {
    let (_fake, client) = start(true).await;
    let port = client.base.port().unwrap();
    let (ipv6, ipv4) =
        (SocketAddr::from((Ipv6Addr::LOCALHOST, port)), SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    // The planner listens on IPv4 alone, whichever its name gives first.
    for addresses in [[ipv6, ipv4], [ipv4, ipv6]] {
        let name = "two-families.invalid";
        let builder = Client::builder().no_proxy().tls_certs_only([]).resolve_to_addrs(name, &addresses);
        let mut client = PlannerClient {
            http: builder.build().unwrap(),
            known: Arc::default(),
            local: Arc::default(),
            ..client.clone()
        };
        client.base.set_host(Some(name)).unwrap();
        assert_eq!(client.local_address().await, Some(Ipv4Addr::LOCALHOST.into()), "{addresses:?}");
    }
}

#[tokio::test]
async fn a_planner_that_is_not_reached_leads_nowhere_and_is_asked_again() {
    let (_fake, mut client) = start(true).await;
    let port = client.base.port().unwrap();
    // Nobody listens there.
    client.base.set_port(Some(1)).unwrap();
    assert_eq!(client.local_address().await, None);
    client.base.set_port(Some(port)).unwrap();
    assert_eq!(client.local_address().await, Some(Ipv4Addr::LOCALHOST.into()));
}
