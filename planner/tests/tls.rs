//! A planner whose port speaks TLS: who it is taken for, what it makes of others, and certificates that change.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used)]

mod support;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rfork_planner::config::Settings;
use rfork_planner::identity::{Mode, TokenFile};
use rfork_planner::tls::Tls;
use rfork_test_authority::{Authority, Issued, replace};
use rfork_tls::certificate;
use rfork_tls::client::roots;
use rfork_tls::server::ServerFiles;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, crypto::ring};
use support::{PATIENCE, Planner, raw, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAMES: &[&str] = &["planner.example", "127.0.0.1"];

/// A planner's files, and what it listens at besides.
struct Home {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Home {
    fn new() -> Self {
        let home = Self { directory: tempfile::tempdir().unwrap(), authority: Authority::new() };
        home.authority.issue(NAMES).write(&home.cert(), &home.key());
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn cert(&self) -> PathBuf {
        self.path("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.path("tls.key")
    }

    fn files(&self) -> ServerFiles {
        ServerFiles { cert: self.cert(), key: self.key(), client_ca: None }
    }

    async fn start(&self, change: impl FnOnce(&mut Settings)) -> Planner {
        let tls = Tls::read(self.files()).unwrap();
        let with_tls = |settings: &mut Settings| {
            settings.tls = Some(tls);
            change(settings);
        };
        let planner = Planner::start(&self.path("p.db"), with_tls).await;
        let is_held =
            async || self.client().ask(planner.address, "/v2").await.unwrap().starts_with("HTTP/1.1 503");
        while is_held().await {}
        planner
    }

    fn client(&self) -> Client {
        Client::new(&self.authority)
    }
}

/// Somebody who trusts one authority, and may show a certificate.
struct Client(Arc<ClientConfig>);

impl Client {
    fn new(authority: &Authority) -> Self {
        Self::speaking(authority, &[])
    }

    fn speaking(authority: &Authority, protocols: &[&[u8]]) -> Self {
        Self::showing(authority, protocols, None)
    }

    fn showing(authority: &Authority, protocols: &[&[u8]], shown: Option<&Issued>) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(authority.pem().as_bytes()).unwrap());
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(Issued { cert, key }) => {
                let chain = certificate::certificates(cert.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(chain, certificate::private_key(key.as_bytes()).unwrap())
                    .unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self(Arc::new(config))
    }

    async fn connect(&self, planner: SocketAddr, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connecting = async {
            let stream = TcpStream::connect(planner).await?;
            TlsConnector::from(self.0.clone()).connect(name, stream).await
        };
        tokio::time::timeout(PATIENCE, connecting).await.unwrap()
    }

    /// Asks over a connection of its own.
    async fn ask(&self, planner: SocketAddr, path: &str) -> io::Result<String> {
        said(self.connect(planner, NAMES[0]).await?, &request("GET", path, &[])).await
    }
}

/// What is answered to this, up to the end.
async fn said(mut stream: TlsStream<TcpStream>, request: &[u8]) -> io::Result<String> {
    let asking = async {
        stream.write_all(request).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}

/// A series of the planner's.
async fn series(client: &Client, planner: SocketAddr, name: &str) -> f64 {
    let metrics = client.ask(planner, "/metrics").await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn a_planner_is_whom_its_certificate_says_and_speaks_nothing_but_tls() {
    let home = Home::new();
    let planner = home.start(|_| {}).await;
    let (client, at) = (home.client(), planner.address);
    for name in NAMES {
        let stream = client.connect(at, name).await.unwrap();
        assert!(said(stream, &request("GET", "/readyz", &[])).await.unwrap().starts_with("HTTP/1.1 200"));
    }
    // Another name, another CA, another protocol.
    assert!(client.connect(at, "other.example").await.unwrap_err().to_string().contains("certificate"));
    let stranger = Client::new(&Authority::new());
    assert!(stranger.connect(at, NAMES[0]).await.unwrap_err().to_string().contains("certificate"));
    let of = |protocols: &[&[u8]]| Client::speaking(&home.authority, protocols);
    let refused = of(&[b"h2"]).connect(at, NAMES[0]).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    let stream = of(&[b"h2", b"http/1.1"]).connect(at, NAMES[0]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    // In plain: whoever asks is told, and an older worker does not take it for the end of its service.
    let plain = raw(at, &request("POST", "/add_seed", &[("Content-Length", b"5")])).await.unwrap();
    assert_eq!(plain.status, 503);
    assert!(plain.body.starts_with("tls-required: "), "{plain:?}");
    // A client that is gone at once, and one that breaks off.
    drop(TcpStream::connect(at).await.unwrap());
    TcpStream::connect(at).await.unwrap().write_all(b"\x16\x03\x01").await.unwrap();
    let counted = async {
        let of = async |outcome: &str| {
            series(&client, at, &format!("rfork_planner_tls_handshakes_total{{outcome=\"{outcome}\"}}")).await
        };
        while of("failed").await < 5.0 {}
        assert!(of("plain").await > 0.0 && of("done").await > 4.0);
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    planner.stop().await;
}

#[tokio::test]
async fn tls_at_a_port_without_it_ends_at_once() {
    let home = Home::new();
    let planner = Planner::start(&home.path("p.db"), |_| {}).await;
    let error = home.client().connect(planner.address, NAMES[0]).await.unwrap_err();
    assert!(error.to_string().contains("InvalidContentType"), "{error}");
    planner.stop().await;
}

#[tokio::test]
async fn certificates_are_replaced_while_many_ask_and_wrong_ones_are_not() {
    let home = Home::new();
    let planner = home.start(|_| {}).await;
    let at = planner.address;
    let (client, stop) = (Arc::new(home.client()), Arc::new(tokio::sync::Notify::new()));
    // Nobody notices.
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let stopped = stop.notified();
                tokio::pin!(stopped);
                let mut asked = 0;
                loop {
                    tokio::select! {
                        biased;
                        () = stopped.as_mut() => return asked,
                        answer = client.ask(at, "/readyz") => assert!(answer.unwrap().starts_with("HTTP/1.1 200")),
                    }
                    asked += 1;
                }
            })
        })
        .collect();
    let until = async |name: &str, is: &dyn Fn(f64) -> bool| {
        let looking = async {
            while !is(series(&client, at, name).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap();
    };
    let (good, ends) =
        ("rfork_planner_tls_files_good", "rfork_planner_tls_certificate_end_timestamp_seconds");
    let at_end = async || presented(&client, at).await;
    let first = at_end().await;
    for year in [3000, 3001] {
        home.authority.issue_until(NAMES, year).write(&home.cert(), &home.key());
        let begins = f64::from(year - 1970) * 365.2425 * 86_400.0;
        until(ends, &|sec| (sec - begins).abs() < 10.0 * 86_400.0).await;
        assert_ne!(at_end().await, first);
    }
    let last = at_end().await;
    let other = home.authority.issue(NAMES);
    let wrong: [(&Path, &str); 4] = [
        (&home.key(), &other.key),
        (&home.cert(), "nothing"),
        (&home.cert(), &home.authority.issue_until(NAMES, 2020).cert),
        (&home.key(), ""),
    ];
    for (path, text) in wrong {
        let before = std::fs::read_to_string(path).unwrap();
        replace(path, text);
        until(good, &|is| is < 0.5).await;
        assert_eq!(at_end().await, last, "{text}");
        replace(path, &before);
        until(good, &|is| is > 0.5).await;
    }
    stop.notify_waiters();
    for asking in asking {
        assert!(asking.await.unwrap() > 0);
    }
    planner.stop().await;
}

/// The certificate that a planner shows.
async fn presented(client: &Client, planner: SocketAddr) -> Vec<u8> {
    let stream = client.connect(planner, NAMES[0]).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn whoever_shows_a_certificate_is_the_principal_that_its_names_fit() {
    const TOKEN: &str = "operator-0123456789abcdef";
    let home = Home::new();
    let clients = Authority::new();
    replace(&home.path("clients.crt"), &clients.pem());
    let tokens = format!(
        "[[principal]]\nname = 'team-a'\nroles = ['worker']\nkeys = ['a/*']\ncertificates = ['spiffe://c/ns/a/*']\n\
         [[principal]]\nname = 'on-call'\nroles = ['operator']\ntokens = ['{TOKEN}']\ncertificates = ['on-call.example']\n"
    );
    replace(&home.path("tokens.toml"), &tokens);
    let file = TokenFile::read(&home.path("tokens.toml")).unwrap();
    let tls = Tls::read(ServerFiles { client_ca: Some(home.path("clients.crt")), ..home.files() }).unwrap();
    let change = |settings: &mut Settings| {
        settings.tls = Some(tls);
        (settings.token_file, settings.auth_mode) = (Some(file), Mode::Enforce);
    };
    let planner = home.start(change).await;
    let shows = |issued: &Issued| Client::showing(&home.authority, &[], Some(issued));
    let worker = clients.issue(&["w.example", "spiffe://c/ns/a/sa/w"]);
    let operator = clients.issue(&["on-call.example"]);
    let asked = async |client: &Client, path: &str, header: (&str, &str)| {
        let stream = client.connect(planner.address, NAMES[0]).await?;
        let answer = said(stream, &request("GET", path, &[(header.0, header.1.as_bytes())])).await?;
        Ok::<_, io::Error>(answer.split(' ').nth(1).unwrap_or_default().parse::<u16>().unwrap())
    };
    for (client, seed, of_other, list) in [
        (home.client(), 401, 401, 401),
        (shows(&worker), 404, 403, 403),
        (shows(&operator), 403, 403, 200),
        (shows(&clients.issue(&["spiffe://c/ns/ab/sa/w"])), 403, 403, 403),
    ] {
        assert_eq!(asked(&client, "/get_seed", ("SEED_KEY", "a/m")).await.unwrap(), seed);
        assert_eq!(asked(&client, "/get_seed", ("SEED_KEY", "b/m")).await.unwrap(), of_other);
        assert_eq!(asked(&client, "/v2/seeds", ("X", "x")).await.unwrap(), list);
        assert_eq!(asked(&client, "/healthz", ("X", "x")).await.unwrap(), 200);
    }
    // A token counts before a certificate, also one that nobody has.
    for (token, status) in [(TOKEN, 200), ("wrong-0123456789abcdef", 401)] {
        let bearer = format!("Bearer {token}");
        assert_eq!(asked(&shows(&worker), "/v2/seeds", ("Authorization", &bearer)).await.unwrap(), status);
    }
    // Another CA's, and one that has ended, are no certificates.
    let (other, ended) =
        (Authority::new().issue(&["on-call.example"]), clients.issue_until(&["on-call.example"], 2020));
    for wrong in [other, ended] {
        assert!(asked(&shows(&wrong), "/healthz", ("X", "x")).await.is_err());
    }
    planner.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_its_end_keeps_nobody_out() {
    let home = Home::new();
    let planner = home.start(|settings| settings.bounds.connections = 4).await;
    let (client, at) = (home.client(), planner.address);
    let mut kept = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"\x16\x03\x01\x02\x00").await.unwrap();
        }
        kept.push(stream);
        if number % 10 == 0 {
            assert!(client.ask(at, "/readyz").await.unwrap().starts_with("HTTP/1.1 200"));
        }
    }
    planner.stop().await;
}

#[tokio::test]
async fn a_handshake_has_a_time() {
    let home = Home::new();
    let planner = home.start(|settings| settings.bounds.idle = Duration::from_millis(200)).await;
    for said in [&b""[..], b"\x16\x03\x01\x02\x00"] {
        let mut stream = TcpStream::connect(planner.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    }
    planner.stop().await;
}

#[tokio::test]
async fn probes_at_their_own_port_need_no_tls() {
    let home = Home::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let planner = home.start(|settings| settings.probe_port = Some(free.port())).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(raw(free, &request("GET", path, &[])).await.unwrap().status, 200);
    }
    planner.stop().await;
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let home = Home::new();
    let refused = || Tls::read(home.files()).unwrap_err().to_string();
    let begins = |path: &Path| format!("{} cannot be used: ", path.display());
    let other = home.authority.issue(NAMES);
    std::fs::write(home.key(), &other.key).unwrap();
    assert_eq!(refused(), begins(&home.key()) + "it is not the key of the certificate");
    std::fs::write(home.key(), "SECRET").unwrap();
    let error = refused();
    assert!(error.starts_with(&begins(&home.key())) && !error.contains("SECRET"), "{error}");
    home.authority.issue_until(NAMES, 2020).write(&home.cert(), &home.key());
    assert_eq!(refused(), begins(&home.cert()) + "its certificate has ended");
    std::fs::remove_file(home.cert()).unwrap();
    assert!(refused().starts_with(&begins(&home.cert())));
}
