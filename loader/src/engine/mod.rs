//! Moving weights between workers, behind one narrow trait.
//!
//! The TCP engine ([`tcp`]) moves host memory on any machine. An engine for accelerator memory reads by
//! address and sees no bytes; [`Capabilities`] is how a session tells them apart.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rfork_protocol::Host;
use rfork_protocol::frame::SignOfLife;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::content::{ContentId, Root};
use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::v2::LeasedPoint;
use rfork_tls::certificate::KeyHash;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub mod device;
mod feed;
pub mod memory;
pub mod tcp;
pub mod yuanrong;

use crate::digest::Digest;
pub use feed::{FeedError, HeldFeed};
use memory::WeightMemory;
use rfork_ascend_sys::MissingLibrary;
use yuanrong::VendorError;

/// What an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It sees the bytes that it moves, so it compares each chunk's digest. Without, equality is the peers'
    /// promise.
    pub verifies: bool,
    /// Peers may read what is held while the rest still loads.
    pub serves_while_loading: bool,
    /// Peers read by the addresses of the tensors, so they are told them. Nobody else is: they show where things lie in a
    /// process.
    pub by_address: bool,
}

/// A batch of chunks to be read from a seed.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// What the seed says of itself: where its engine listens, and where its tensors are.
    pub seed: &'a Metadata,
    /// This worker's own tensors.
    pub manifest: &'a Manifest,
    /// What its bytes are: each chunk is compared with its digest. `None` for a seed that has no digests, which only
    /// an engine that reads by address can read. Of bytes that have no content id yet, the memory has one when the read
    /// has brought everything.
    pub root: Option<&'a Root>,
    /// Where they go: every chunk that is not held yet is read. It counts what arrives.
    pub memory: &'a Arc<WeightMemory>,
    /// The seed may still load: it is asked only for what it announces, and what it says of itself is told here. `None`
    /// for a seed that holds everything.
    pub loading: Option<&'a Arc<watch::Sender<SourceState>>>,
    /// Where such a seed says what it holds; for an engine that reads by address and is not told by the seed's own.
    pub held: Option<&'a dyn HeldFeed>,
    /// Whether others read here meanwhile, and the seed is left when it brings nothing for seconds: an engine that hears of
    /// bytes only when a call ends makes short ones.
    pub in_a_chain: bool,
    /// The hash of the seed's public key, if it speaks TLS: nothing is read from whoever has another one, or speaks none. An
    /// engine of which others are read in plain passes it over.
    pub key: Option<KeyHash>,
    /// The point of it that a planner has leased to this worker, and told: the seed ends what an earlier holder reads there.
    pub point: Option<LeasedPoint>,
    /// Ends the read early.
    pub cancel: &'a CancellationToken,
}

/// What a reader knows of a source that still loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceState {
    /// What it said of itself last.
    pub sign: SignOfLife,
    /// When it said that.
    pub signed: Option<Instant>,
    /// Whether it was asked for something that it has announced, and that has not come yet.
    pub owes: bool,
}

/// What a read did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadReport {
    /// Chunks that are now held.
    pub chunks: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks whose first copy had a wrong digest and whose second was right.
    pub corrected: u32,
}

/// A read that did not bring every chunk. Those that it brought are held.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The seed cannot be reached, or went away.
    #[error("the seed's transfer engine at {peer} was lost: {reason}")]
    Lost {
        /// Where it listens.
        peer: String,
        /// What failed.
        reason: String,
    },
    /// The seed was silent for too long.
    #[error("the seed's transfer engine at {peer} is silent: {reason}")]
    Silent {
        /// Where it listens.
        peer: String,
        /// What did not come.
        reason: String,
    },
    /// The seed does not let this worker read.
    #[error("the seed's transfer engine at {peer} refused: {reason}")]
    Refused {
        /// Where it listens.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The seed breaks the protocol.
    #[error("the seed's transfer engine at {peer} breaks the protocol: {reason}")]
    Protocol {
        /// Where it listens.
        peer: String,
        /// How.
        reason: String,
    },
    /// A chunk came with a wrong digest, twice.
    #[error("chunk {chunk} from {peer} is corrupt: digest {got}, expected {expected}, on two connections")]
    Corrupt {
        /// Where it listens.
        peer: String,
        /// Which chunk.
        chunk: u32,
        /// The digest of what came.
        got: Digest,
        /// What it should have been.
        expected: Digest,
    },
    /// A call that cannot be ended lasts longer than it may. It may still write to the memory, and keeps it.
    #[error("the transfer engine hangs since {waited_ms} ms in reading from {peer}; it is not used any more")]
    Hung {
        /// Where the seed listens.
        peer: String,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// The read was ended from here.
    #[error("the read was cancelled")]
    Cancelled,
    /// This worker cannot read at all.
    #[error("cannot read from {peer}: {reason}")]
    Unusable {
        /// Where it listens.
        peer: String,
        /// Why not.
        reason: String,
    },
}

/// An engine that cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address cannot be listened on.
    #[error("the transfer engine cannot listen on {address}: {source}; set rfork_seed_bind_host")]
    Bind {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The vendor's library says no.
    #[error("the transfer engine failed in {doing}: {source}")]
    Vendor {
        /// What it was to do.
        doing: &'static str,
        /// What it said.
        source: VendorError,
    },
    /// The vendor's library is not there.
    #[error(transparent)]
    Missing(#[from] MissingLibrary),
    /// A call to the vendor's library does not return. What it may use is kept until it does.
    #[error("the transfer engine hangs since {waited_ms} ms; it is not used any more")]
    Hung {
        /// How long was waited, in milliseconds; 0 when it hung before.
        waited_ms: u64,
    },
    /// The engine has ended.
    #[error("the transfer engine has ended")]
    Gone,
    /// Readers did not end in time; the memory stays registered.
    #[error("{readers} reader(s) did not end within {waited_ms} ms; the memory stays registered")]
    StillRead {
        /// How many.
        readers: usize,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
}

/// Moves weights between workers.
#[async_trait]
pub trait TransferEngine: Send + Sync + 'static {
    /// Its name, as it stands in seed keys.
    fn name(&self) -> &'static str;

    /// The version of the library behind it, if peers can read from each other only with the same one.
    fn version(&self) -> Option<&str> {
        None
    }

    /// Where peers reach it, `host:port`; at `host` if it does not listen at an address of its own.
    fn session(&self, host: &Host) -> String;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Lets peers read from `memory`: each chunk from when it is held, under the content that the memory
    /// names. Replaces what was registered before.
    ///
    /// # Errors
    /// [`EngineError`].
    async fn register(&self, memory: Arc<WeightMemory>) -> Result<(), EngineError>;

    /// Lets nobody read any more, and returns when nobody does. On an error the memory stays registered, and
    /// owned, because a peer may still read it.
    ///
    /// # Errors
    /// [`EngineError::StillRead`].
    async fn unregister(&self) -> Result<(), EngineError>;

    /// How many connections read from what is registered, or are told what it holds, as far as the engine sees them.
    fn readers(&self) -> usize {
        0
    }

    /// Reads every chunk that `request.memory` misses. When it returns, nothing writes there any more.
    ///
    /// # Errors
    /// [`ReadError`]; chunks that came before stay held.
    async fn read(&self, request: ReadRequest<'_>) -> Result<ReadReport, ReadError>;

    /// Goes to where peers are told to come for `content`, as a reader would, and reads nothing. Engines whose library
    /// listens at the one address that it was given, and answers nothing but reads, have nothing to ask.
    ///
    /// # Errors
    /// [`ReadError`]: nobody is there, or not a worker with this content.
    async fn greet(&self, session: &str, content: ContentId) -> Result<(), ReadError> {
        let _ = (session, content);
        Ok(())
    }

    /// Ends the engine. Bounded.
    async fn finalize(&self);
}
