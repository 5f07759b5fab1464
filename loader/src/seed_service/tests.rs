use super::*;
use rfork_protocol::manifest::metadata::MetadataError;
use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn metadata() -> Metadata {
    let tensor = Tensor {
        name: "w".into(),
        address: 16,
        count: 6,
        element_bytes: 2,
        shape: Some(vec![2, 3]),
        dtype: Some("bfloat16".into()),
        format: Some(FORMAT_ND),
    };
    Metadata {
        session: "127.0.0.1:9".into(),
        manifest: Manifest::new(vec![tensor]).unwrap(),
        extension: None,
    }
}

async fn start(key: &SeedKey) -> (SeedService, String) {
    let service = SeedService::start(Some("127.0.0.1"), 0, key).await.unwrap();
    service.publish(&metadata(), EntryFields::Five);
    let base = format!("http://{}", service.address());
    (service, base)
}

fn http() -> reqwest::Client {
    crate::http::client(Duration::from_secs(5), false).unwrap()
}

#[tokio::test]
async fn the_right_key_gets_metadata_and_another_gets_none() {
    let key = SeedKey::from_text("/m$s$é x").unwrap();
    let (service, base) = start(&key).await;
    let get = async |path: &str| {
        let answer = http().get(format!("{base}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    for right in ["%2Fm%24s%24%C3%A9+x", "/m$s$%C3%A9%20x", "/m$s$%E9%20x"] {
        let (status, body) = get(&format!("{INFO_PATH}?seed_key={right}")).await;
        assert_eq!((status, Metadata::decode(&body).unwrap()), (200, metadata()), "{right}");
        assert_eq!(get(&format!("{HEALTH_PATH}?seed_key={right}")).await.0, 200, "{right}");
        let (_, shapes) = get(&format!("{SHAPE_INFO_PATH}?seed_key={right}")).await;
        assert_eq!(&shapes[..], br#"{"rfork_transfer_engine_shape_info":{"w":[2,3]}}"#);
    }
    let (status, body) = get(&format!("{INFO_PATH}?seed_key=other")).await;
    assert_eq!((status, Metadata::decode(&body)), (200, Err(MetadataError::OtherKey)));
    assert_eq!(get(&format!("{HEALTH_PATH}?seed_key=other")).await.0, 400);
    assert_eq!(get(HEALTH_PATH).await.0, 400);
    assert_eq!(get(INFO_PATH).await.0, 400);
    assert_eq!(get(FETCH_SEED_PATH).await, (200, Bytes::from_static(br#"{"status":"ok"}"#)));
    let address = service.address();
    service.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "it still listens");
}

#[tokio::test]
async fn who_waits_is_told_when_there_is_something_to_tell() {
    let key = SeedKey::from_text("k").unwrap();
    let (service, base) = start(&key).await;
    service.withdraw();
    let url = format!("{base}{INFO_PATH}?seed_key=k");
    let status = async |url: &str| http().get(url).send().await.unwrap().status().as_u16();
    assert_eq!(status(&url).await, 503, "who does not wait");
    assert_eq!(status(&format!("{url}&wait_ms=x")).await, 503);
    assert_eq!(status(&format!("{url}&wait_ms=1")).await, 503);
    assert_eq!(status(&format!("{base}{INFO_PATH}?seed_key=other&wait_ms=9000")).await, 200);
    assert_eq!(status(&format!("{base}{HEALTH_PATH}?seed_key=k")).await, 200);
    let waiting = tokio::spawn(http().get(format!("{url}&wait_ms=10000")).send());
    while service.shared.waiting.taken() == 0 {
        tokio::task::yield_now().await;
    }
    service.publish(&metadata(), EntryFields::Five);
    let answer = waiting.await.unwrap().unwrap().bytes().await.unwrap();
    assert_eq!(Metadata::decode(&answer).unwrap(), metadata());
    assert_eq!(status(&url).await, 200);
    let ready = format!("{base}{READY_PATH}");
    assert_eq!(status(&ready).await, 503, "who waits for a whole seed");
    service.readiness().say();
    assert_eq!(status(&ready).await, 200);
}

#[tokio::test]
async fn those_who_wait_are_bounded_and_end_with_the_service() {
    let key = SeedKey::from_text("k").unwrap();
    let (service, base) = start(&key).await;
    service.withdraw();
    let url = format!("{base}{INFO_PATH}?seed_key=k&wait_ms=10000");
    let client = http();
    let mut waiting = tokio::task::JoinSet::new();
    // As many as one address may.
    let most = MAX_WAITING * 3 / 4;
    (0..most).for_each(|_| drop(waiting.spawn(client.get(&url).send())));
    while service.shared.waiting.taken() < most {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.get(&url).send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    service.stop().await;
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

/// Whether the service has closed the connection, on which it has sent nothing.
fn is_closed(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0]) {
        Ok(0) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        other => other.is_err(),
    }
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let key = SeedKey::from_text("k").unwrap();
    let hangs = Duration::from_secs(300);
    // Nobody is closed for being slow.
    let service = SeedService::start_with(Some("127.0.0.1"), 0, &key, hangs).await.unwrap();
    let url = format!("http://{}{HEALTH_PATH}?seed_key=k", service.address());
    let mut silent = Vec::new();
    for number in 0..3 * MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(service.address()).await.unwrap();
        if number % 2 == 0 {
            // A part of a request says nothing yet.
            stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
        }
        silent.push(stream);
    }
    let client = crate::http::client(hangs, false).unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().status(), StatusCode::OK);
    // All are of one address, which leaves a quarter to others.
    let (first, last) = silent.split_at(3 * MAX_CONNECTIONS - MAX_CONNECTIONS * 3 / 4);
    for stream in first {
        tokio::time::timeout(hangs, stream.readable()).await.unwrap().unwrap();
        assert!(is_closed(stream), "the oldest make room");
    }
    assert_eq!(last.iter().filter(|stream| is_closed(stream)).count(), 1, "and no more than have to");
    service.stop().await;
}

#[tokio::test]
async fn who_waits_for_an_answer_stays_however_many_come() {
    let key = SeedKey::from_text("k").unwrap();
    let (service, base) = start(&key).await;
    service.withdraw();
    let waiting = tokio::spawn(http().get(format!("{base}{INFO_PATH}?seed_key=k&wait_ms=10000")).send());
    while service.shared.waiting.taken() == 0 {
        tokio::task::yield_now().await;
    }
    let mut silent = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        silent.push(TcpStream::connect(service.address()).await.unwrap());
    }
    tokio::time::timeout(Duration::from_secs(300), silent[0].readable()).await.unwrap().unwrap();
    service.publish(&metadata(), EntryFields::Five);
    let answer = waiting.await.unwrap().unwrap().bytes().await.unwrap();
    assert_eq!(Metadata::decode(&answer).unwrap(), metadata());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let key = SeedKey::from_text("k").unwrap();
    let (service, _) = start(&key).await;
    let port = service.address().port();
    let error = SeedService::start(Some("127.0.0.1"), port, &key).await;
    assert!(error.unwrap_err().to_string().contains(&format!("127.0.0.1 port {port}")));
}

#[tokio::test]
async fn garbage_costs_only_its_connection() {
    let key = SeedKey::from_text("k").unwrap();
    let (service, base) = start(&key).await;
    let mut garbage = TcpStream::connect(service.address()).await.unwrap();
    garbage.write_all(b"\x00\x01garbage\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = garbage.read_to_end(&mut rest).await;
    let healthy = http().get(format!("{base}{HEALTH_PATH}?seed_key=k")).send().await.unwrap();
    assert_eq!(healthy.status(), StatusCode::OK);
}

#[tokio::test]
async fn requests_of_one_address_that_wait_leave_room_for_those_of_others() {
    let key = SeedKey::from_text("k").unwrap();
    let (service, _) = start(&key).await;
    service.withdraw();
    let to = service.address();
    let ask = |from: [u8; 4]| {
        tokio::spawn(async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            let mut stream = socket.connect(to).await.unwrap();
            let head = format!("GET {INFO_PATH}?seed_key=k&wait_ms=10000 HTTP/1.1\r\nHost: s\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            String::from_utf8_lossy(&status).into_owned()
        })
    };
    let mut waiting = Vec::new();
    for count in 1..=MAX_WAITING * 3 / 4 {
        waiting.push(ask([127, 0, 0, 1]));
        while service.shared.waiting.taken() < count {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(ask([127, 0, 0, 1]).await.unwrap(), "HTTP/1.1 503", "its address waits as often as it may");
    waiting.push(ask([127, 0, 0, 2]));
    while service.shared.waiting.taken() <= MAX_WAITING * 3 / 4 {
        tokio::task::yield_now().await;
    }
    service.publish(&metadata(), EntryFields::Five);
    for one in waiting {
        assert_eq!(one.await.unwrap(), "HTTP/1.1 200");
    }
}
