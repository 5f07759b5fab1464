//! The engines that read, and their seed.

use std::sync::Arc;
use std::time::Instant;

use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::memory::{Content, WeightMemory};
use rfork_loader::engine::tcp::{TcpEngine, TcpOptions};
use rfork_loader::engine::{ReadRequest, TransferEngine};
use rfork_protocol::manifest::content::Root;
use rfork_protocol::manifest::metadata::Metadata;
use rfork_tls::certificate::KeyHash;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{Result, SeedAddress, Setup};

/// The engine, with digests and without, and the one with digests also while it makes no pages ahead.
pub(crate) struct Engines {
    runtime: Runtime,
    with_digests: TcpEngine,
    without_digests: TcpEngine,
    without_pages: TcpEngine,
    seed: Metadata,
    secured: (Metadata, KeyHash),
    content: Content,
    /// The same bytes with other digests. The seed knows them by one name, so this has that one as well.
    by_blake3: Content,
}

impl Engines {
    pub(crate) fn new(setup: &Setup, address: &SeedAddress) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let engine = |verify, pages_ahead| {
            let options = TcpOptions { verify, pages_ahead, ..setup.options.clone() };
            runtime.block_on(TcpEngine::bind(options))
        };
        let (with_digests, without_digests) = (engine(true, true)?, engine(false, true)?);
        let without_pages = engine(true, false)?;
        let seed = Metadata { session: address.engine.clone(), manifest: setup.manifest()?, extension: None };
        let secured = (Metadata { session: address.secured.clone(), ..seed.clone() }, address.key);
        let content = setup.content(DigestAlgorithm::Crc64Nvme, &address.crc64nvme)?;
        let mut by_blake3 = setup.content(DigestAlgorithm::Blake3, &address.blake3)?;
        by_blake3.id.hash = content.id.hash;
        Ok(Self { runtime, with_digests, without_digests, without_pages, seed, secured, content, by_blake3 })
    }

    /// What the seed's bytes are.
    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    /// One run of the engine, in seconds. It makes pages ahead, unless it verifies and is told not to.
    pub(crate) fn read(&self, memory: &Arc<WeightMemory>, verify: bool, pages_ahead: bool) -> Result<f64> {
        let engine = match (verify, pages_ahead) {
            (true, true) => &self.with_digests,
            (true, false) => &self.without_pages,
            (false, _) => &self.without_digests,
        };
        self.read_by(engine, (&self.seed, None), &self.content, memory)
    }

    /// One run of the engine with digests over TLS, in seconds.
    pub(crate) fn read_secured(&self, memory: &Arc<WeightMemory>) -> Result<f64> {
        let (seed, key) = &self.secured;
        self.read_by(&self.with_digests, (seed, Some(*key)), &self.content, memory)
    }

    /// One run of the engine with BLAKE3 digests, in seconds.
    pub(crate) fn read_by_blake3(&self, memory: &Arc<WeightMemory>) -> Result<f64> {
        self.read_by(&self.with_digests, (&self.seed, None), &self.by_blake3, memory)
    }

    fn read_by(
        &self,
        engine: &TcpEngine,
        (seed, key): (&Metadata, Option<KeyHash>),
        content: &Content,
        memory: &Arc<WeightMemory>,
    ) -> Result<f64> {
        let request = ReadRequest {
            seed,
            manifest: &seed.manifest,
            root: Some(&Root::Content(content.clone())),
            memory,
            loading: None,
            held: None,
            in_a_chain: false,
            key,
            point: None,
            cancel: &CancellationToken::new(),
        };
        let begun = Instant::now();
        let report = self.runtime.block_on(engine.read(request))?;
        let seconds = begun.elapsed().as_secs_f64();
        let whole = report.bytes == memory.plan().total_bytes() && memory.all_held();
        whole.then_some(seconds).ok_or_else(|| "the engine did not bring every chunk".into())
    }

    /// The memory holds the seed's bytes.
    pub(crate) fn check(&self, memory: &Arc<WeightMemory>) -> Result<()> {
        let digests = memory.chunk_digests(DigestAlgorithm::default());
        let equal = digests.as_ref() == Some(&self.content.chunks);
        equal.then_some(()).ok_or_else(|| "the bytes that came are not the seed's".into())
    }
}
