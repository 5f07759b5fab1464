//! Whether an answer that grants a lease reaches its client: a lease whose client is gone when its answer is
//! written is released at once.
//!
//! A handler that has a lease to tell leaves it with its connection's [`Delivery`]. The connection's stream
//! ([`Watched`]) takes it out again when the system has taken the whole answer, and releases it when the client was
//! gone by then, writing failed, or the connection ended. One request runs on a connection at a time, so there is
//! one lease at most, and between the handler's end and the writing of its answer nothing else happens there.
//!
//! A client that closed its sending side counts as gone, as it does to the server while a request runs: it is told
//! nothing. What happens after the system has taken the answer nobody can tell from here: a client that did not read
//! it lets the lease end by its time to live, or asks again under its idempotency key.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::Socket;
use crate::grant::GrantedLease;

/// What a connection is about to tell. Cheap to clone; no lock of it is held across an await.
#[derive(Clone, Default)]
pub struct Delivery(Arc<Mutex<Option<GrantedLease>>>);

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Delivery")
    }
}

impl Delivery {
    /// Holds a lease until the answer that is given next is written, or is not. One that is kept whatever happens is
    /// the client's already.
    pub fn of_next_answer(&self, granted: GrantedLease) {
        if !granted.is_kept() {
            *self.owed() = Some(granted);
        }
    }

    fn owed(&self) -> std::sync::MutexGuard<'_, Option<GrantedLease>> {
        // What is in it is whole, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_owed(&self) -> bool {
        self.owed().is_some()
    }

    fn delivered(&self) {
        if let Some(granted) = self.owed().take() {
            granted.delivered();
        }
    }

    /// Its lease, if it has one, gives itself back.
    fn failed(&self) {
        let owed = self.owed().take();
        drop(owed);
    }
}

/// A connection's stream, which sees what becomes of answers.
pub(super) struct Watched {
    stream: Socket,
    delivery: Delivery,
}

impl Watched {
    /// Watches `stream` for what handlers leave with `delivery`.
    pub(super) fn new(stream: Socket, delivery: Delivery) -> Self {
        Self { stream, delivery }
    }

    /// Before the answer is written: whether there is still somebody.
    fn look(&mut self) -> io::Result<()> {
        if self.delivery.is_owed() && self.stream.is_gone() {
            self.delivery.failed();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn written(&self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if written.is_err() {
            self.delivery.failed();
        }
        Poll::Ready(written)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.delivery.failed();
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.look()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.look()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The server asks for this when all that it had to write is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        if flushed.is_ok() {
            self.delivery.delivered();
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rfork_protocol::{SeedIdentity, SeedKey};
    use rfork_test_authority::Authority;
    use rfork_tls::client::roots;
    use rfork_tls::server::ServerFiles;
    use rustix::net::{RecvFlags, recv};
    use rustls::ClientConfig;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::{DatabaseUrl, Settings};
    use crate::domain::owner::Owner;
    use crate::grant::Acquisition;
    use crate::heartbeats::Heartbeats;
    use crate::http::handshake::shake;
    use crate::store::commands::{Acquire, Register, Serve};
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Clock, Store};
    use crate::tls::Tls;
    use crate::writer::Writer;

    const LEASE: [u8; 32] = [7; 32];

    /// A lease that a handler has just granted, and the connection that is to tell of it.
    struct Scene<C = TcpStream> {
        _directory: tempfile::TempDir,
        store: Arc<dyn Store>,
        writer: Writer,
        _writing: AbortOnDropHandle<()>,
        watched: Watched,
        client: C,
    }

    impl Scene {
        async fn new() -> Self {
            let (server, client) = connected().await;
            Scene::of(Socket::Plain(server), client).await
        }
    }

    impl Scene<TlsStream<TcpStream>> {
        /// The same with TLS around it.
        async fn over_tls() -> Self {
            let (server, client) = connected().await;
            let authority = Authority::new();
            let home = tempfile::tempdir().unwrap();
            let files = ["crt", "key"].map(|name| home.path().join(name));
            authority.issue(&["p"]).write(&files[0], &files[1]);
            let [cert, key] = files;
            let tls = Tls::read(ServerFiles { cert, key, client_ca: None }).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots(authority.pem().as_bytes()).unwrap())
                .with_no_client_auth();
            let connector = TlsConnector::from(Arc::new(config));
            let (server, client) = tokio::join!(
                shake(server, &tls, Duration::from_secs(300)),
                connector.connect("p".try_into().unwrap(), client)
            );
            Scene::of(server.unwrap(), client.unwrap()).await
        }

        /// Sends what its session has to send.
        async fn send(&mut self) {
            let (stream, session) = self.client.get_mut();
            let mut bytes = Vec::new();
            session.write_tls(&mut bytes).unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    }

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    impl<C> Scene<C> {
        async fn of(server: Socket, client: C) -> Self {
            let directory = tempfile::TempDir::new().unwrap();
            let path = directory.path().join("p.db");
            let rules = Settings::of(DatabaseUrl::Sqlite(path.clone())).rules();
            let store: Arc<dyn Store> =
                Arc::new(SqliteStore::open(&path, rules, Clock::System).await.unwrap());
            let heartbeats = Arc::new(Heartbeats::new(Duration::from_secs(60)));
            let (writer, writing) = Writer::start(store.clone(), heartbeats, Duration::from_secs(60));
            let (key, identity) = (SeedKey::new(*b"k").unwrap(), SeedIdentity::new("h", 1, 0).unwrap());
            let (profile, wish) = Default::default();
            writer
                .submit(Register {
                    by: None,
                    identity,
                    key: key.clone(),
                    profile,
                    age_ms: 0,
                    client: None,
                    owner: Owner::default(),
                })
                .await
                .unwrap()
                .unwrap();
            let acquired = writer.submit(Acquire { key, wish, lease: LEASE, queue: None }).await.unwrap();
            let Acquisition::Granted(granted) = acquired else { panic!("{acquired:?}") };

            let delivery = Delivery::default();
            delivery.of_next_answer(granted);
            let watched = Watched::new(server, delivery);
            Self { _directory: directory, store, writer, _writing: writing, watched, client }
        }

        async fn leases(&self) -> u64 {
            self.store.snapshot().await.unwrap().lease_count
        }

        async fn is_released(&self) {
            let none = async {
                while self.leases().await != 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(300), none).await.expect("the lease is released");
        }

        /// Until the system knows that the client is gone.
        async fn hears(&self) {
            let stream = match &self.watched.stream {
                Socket::Plain(stream) => stream,
                Socket::Tls(stream) => stream.get_ref().0,
            };
            let hears = async {
                let again = Err(rustix::io::Errno::AGAIN);
                while recv(stream, &mut [0u8], RecvFlags::PEEK | RecvFlags::DONTWAIT) == again {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(300), hears).await.expect("something comes");
        }
    }

    #[tokio::test]
    async fn a_lease_whose_answer_is_written_is_kept() {
        let mut scene = Scene::new().await;
        scene.watched.write_all(b"granted").await.unwrap();
        scene.watched.flush().await.unwrap();
        let mut answer = [0; 7];
        scene.client.read_exact(&mut answer).await.unwrap();
        let Scene { watched, store, writer, _writing, client, _directory } = scene;
        drop((client, watched));
        // Commands are applied in order: what was told before this would have been done.
        let key = SeedKey::new(*b"k").unwrap();
        writer.submit(Serve { key }).await.unwrap();
        assert_eq!(store.snapshot().await.unwrap().lease_count, 1);
    }

    #[tokio::test]
    async fn a_lease_whose_client_has_closed_is_released_instead_of_told() {
        let mut scene = Scene::new().await;
        scene.client.shutdown().await.unwrap();
        scene.hears().await;
        let written = scene.watched.write_all(b"granted").await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        scene.is_released().await;
        let mut answer = Vec::new();
        drop(scene.watched);
        scene.client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"", "who was told nothing has no lease");
    }

    #[tokio::test]
    async fn a_lease_whose_client_was_reset_is_released() {
        let mut scene = Scene::new().await;
        rustix::net::sockopt::set_socket_linger(&scene.client, Some(Duration::ZERO)).unwrap();
        scene.client = Scene::new().await.client;
        scene.hears().await;
        scene.watched.write_all(b"granted").await.unwrap_err();
        scene.is_released().await;
    }

    #[tokio::test]
    async fn a_lease_whose_connection_ends_before_its_answer_is_released() {
        let mut scene = Scene::new().await;
        drop(std::mem::replace(&mut scene.watched, Scene::new().await.watched));
        scene.is_released().await;
    }

    #[tokio::test]
    async fn a_client_that_sends_its_next_request_already_is_there() {
        let mut scene = Scene::new().await;
        scene.client.write_all(b"GET").await.unwrap();
        scene.hears().await;
        scene.watched.write_all(b"granted").await.unwrap();
        scene.watched.flush().await.unwrap();
        assert_eq!(scene.leases().await, 1);
        assert!(!scene.watched.delivery.is_owed());
    }

    #[tokio::test]
    async fn a_lease_whose_client_closed_its_side_of_tls_is_released_instead_of_told() {
        let mut scene = Scene::over_tls().await;
        // Its last word alone: the connection stays.
        scene.client.get_mut().1.send_close_notify();
        scene.send().await;
        scene.hears().await;
        let written = scene.watched.write_all(b"granted").await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        scene.is_released().await;
        // An end without a word, and what is no TLS.
        for said in [&b""[..], b"\x17\x03\x03\x00\x13nothing of its keys"] {
            let mut scene = Scene::over_tls().await;
            scene.client.get_mut().0.write_all(said).await.unwrap();
            scene.client.get_mut().0.shutdown().await.unwrap();
            scene.hears().await;
            scene.watched.write_all(b"granted").await.unwrap_err();
            scene.is_released().await;
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_its_next_request_over_tls_is_there_and_is_heard() {
        let mut scene = Scene::over_tls().await;
        scene.client.write_all(b"GET").await.unwrap();
        scene.client.flush().await.unwrap();
        scene.hears().await;
        for said in [&b"gran"[..], b"ted"] {
            scene.watched.write_all(said).await.unwrap();
        }
        scene.watched.flush().await.unwrap();
        let (mut answer, mut request) = ([0; 7], [0; 3]);
        scene.client.read_exact(&mut answer).await.unwrap();
        scene.watched.read_exact(&mut request).await.unwrap();
        assert_eq!((&answer, &request), (b"granted", b"GET"));
        assert_eq!(scene.leases().await, 1);
        assert!(!scene.watched.delivery.is_owed());
    }
}
