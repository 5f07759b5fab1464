//! Host memory over TCP: no dependency outside Rust, any machine.
//!
//! A seed listens (`server`); a reader opens a few connections, asks for chunks and receives them straight
//! into place (`client`). In user space no byte is copied on either side. The frames are
//! [`rfork_protocol::frame`]'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rfork_protocol::Host;
use rfork_protocol::manifest::content::ContentId;

use rfork_tls::peer::OwnKey;

use super::memory::WeightMemory;
use super::{Capabilities, EngineError, ReadError, ReadReport, ReadRequest, TransferEngine};

mod client;
mod follow;
mod link;
mod pace;
mod points;
mod secured;
mod server;
mod socket;
mod throttle;

#[cfg(test)]
mod tests;

use server::Server;

/// The name of this engine in seed keys and metadata.
pub const NAME: &str = "tcp";

/// Settings of the engine. The defaults suit a data-centre network.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    /// Where to listen; every address of this machine when `None`.
    pub bind_host: Option<String>,
    /// The port to listen on; 0 takes a free one.
    pub bind_port: u16,
    /// Connections of one read. Two keep two cores busy and a network card full.
    pub streams: usize,
    /// Bytes asked for ahead of what has arrived, for each connection.
    pub window_bytes: u64,
    /// Time to connect, and again to be greeted.
    pub connect_timeout: Duration,
    /// How long a peer may be silent while bytes or a sign of life are due.
    pub progress_timeout: Duration,
    /// How long a reader puts up with "not yet" of a seed that loads, without one new chunk.
    pub not_yet_timeout: Duration,
    /// The same of a seed that is said to hold everything.
    pub complete_timeout: Duration,
    /// How often a seed says "not yet" for a chunk that it waits for.
    pub not_yet_interval: Duration,
    /// How often a seed says how it fares to who it announces chunks to.
    pub sign_interval: Duration,
    /// How long a seed waits for a chunk before it gives up on the reader.
    pub held_timeout: Duration,
    /// What a reader takes at least while its socket is full, over twice `progress_timeout`; else it is left.
    pub least_bytes_per_sec: u64,
    /// How long an idle reader is kept.
    pub idle_timeout: Duration,
    /// Connections served at once.
    pub max_readers: u32,
    /// What is sent at most, in bytes a second; unlimited when `None`.
    pub max_bytes_per_sec: Option<f64>,
    /// The key by which it serves with TLS, and with nothing else; without TLS when `None`.
    pub key: Option<OwnKey>,
    /// Whether chunks are compared with their digests. Only a benchmark turns this off.
    pub verify: bool,
    /// Whether pages are made ahead of the bytes. Only a benchmark turns this off.
    pub pages_ahead: bool,
}

impl TcpOptions {
    /// Listens on `bind_host`, on a free port.
    pub fn new(bind_host: Option<&str>) -> Self {
        Self {
            bind_host: bind_host.map(str::to_owned),
            bind_port: 0,
            streams: 2,
            window_bytes: 8 << 20,
            connect_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(10),
            not_yet_timeout: Duration::from_mins(5),
            complete_timeout: Duration::from_secs(10),
            not_yet_interval: Duration::from_secs(1),
            sign_interval: Duration::from_secs(1),
            held_timeout: Duration::from_mins(10),
            // A hundredth of what a reader has who shares a link of 100 Mbit/s with fifteen others.
            least_bytes_per_sec: 8 << 10,
            idle_timeout: Duration::from_mins(1),
            max_readers: 16,
            max_bytes_per_sec: None,
            key: None,
            verify: true,
            pages_ahead: true,
        }
    }
}

/// The engine of one worker: it reads from others and serves what it holds.
#[derive(Debug)]
pub struct TcpEngine {
    options: TcpOptions,
    address: SocketAddr,
    server: Server,
}

impl TcpEngine {
    /// Listens, and serves nothing yet. Must be called within a tokio runtime, which then serves.
    ///
    /// # Errors
    /// [`EngineError::Bind`].
    pub async fn bind(options: TcpOptions) -> Result<Self, EngineError> {
        let server = Server::bind(&options).await?;
        Ok(Self { address: server.address(), server, options })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Chunk bytes that it has sent since it started.
    pub fn served_bytes(&self) -> u64 {
        self.server.served_bytes()
    }
}

#[async_trait]
impl TransferEngine for TcpEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn session(&self, host: &Host) -> String {
        host.authority(self.address.port())
    }

    fn capabilities(&self) -> Capabilities {
        let verifies = self.options.verify;
        Capabilities { verifies, serves_while_loading: verifies, by_address: false }
    }

    async fn register(&self, memory: Arc<WeightMemory>) -> Result<(), EngineError> {
        self.server.register(memory);
        Ok(())
    }

    async fn unregister(&self) -> Result<(), EngineError> {
        self.server.unregister().await
    }

    fn readers(&self) -> usize {
        self.server.readers()
    }

    async fn read(&self, request: ReadRequest<'_>) -> Result<ReadReport, ReadError> {
        client::read(&self.options, request).await
    }

    async fn greet(&self, session: &str, content: ContentId) -> Result<(), ReadError> {
        client::look_in(&self.options, session, content).await
    }

    async fn finalize(&self) {
        self.server.stop().await;
    }
}
