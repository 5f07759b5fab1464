//! What the bytes in memory are: what names them, and the digest of each chunk.

use std::sync::{Arc, PoisonError};

use rfork_protocol::manifest::Manifest;
pub use rfork_protocol::manifest::content::Content;
use rfork_protocol::manifest::content::{ChunkDigests, Growing, Origin, Root, content_id};

use super::WeightMemory;
use crate::digest::{ChunkDigest, Digest, DigestAlgorithm};

/// What names the bytes. A content that has grown has both names: its readers know it by the one that it began with.
#[derive(Debug, Default)]
pub(super) struct Names {
    content: Option<Arc<Content>>,
    growing: Option<Growing>,
    /// How chunks are digested while nothing names them.
    algorithm: DigestAlgorithm,
}

impl WeightMemory {
    /// What the bytes are, once it is known.
    pub fn content(&self) -> Option<Arc<Content>> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).content.clone()
    }

    /// Says what the bytes are. Readers that wait for that are told.
    pub fn set_content(&self, content: Content) {
        self.names.write().unwrap_or_else(PoisonError::into_inner).content = Some(Arc::new(content));
        self.commits.send_modify(|commits| *commits += 1);
    }

    /// How chunks are digested: as those of what names them.
    pub fn algorithm(&self) -> DigestAlgorithm {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let content = names.content.as_ref().map(|content| content.chunks.algorithm);
        content.or(names.growing.as_ref().map(|growing| growing.algorithm)).unwrap_or(names.algorithm)
    }

    /// Says how chunks are digested as long as nothing names them.
    pub fn digest_by(&self, algorithm: DigestAlgorithm) {
        self.names.write().unwrap_or_else(PoisonError::into_inner).algorithm = algorithm;
    }

    /// What named the bytes before they had a content id, if they had none once.
    pub fn growing(&self) -> Option<Growing> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).growing.clone()
    }

    /// Says what names the bytes as long as they have no content id.
    pub fn set_growing(&self, growing: Growing) {
        self.names.write().unwrap_or_else(PoisonError::into_inner).growing = Some(growing);
    }

    /// Says what names the bytes; `was`: what named those of a content before, as far as its source knows. What grew here under
    /// another name goes on without that.
    ///
    /// Excluded: two contents that are the same only in what is held are served under the origin of one. Who reads by that
    /// name is refused from now on ([`is_named`](Self::is_named)).
    pub fn set_root(&self, root: Root, was: Option<Origin>) {
        match root {
            Root::Content(content) => {
                if self.content().is_none() {
                    let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
                    names.growing.take_if(|growing| Some(growing.origin) != was);
                }
                self.set_content(content);
            }
            Root::Growing(growing) => self.set_growing(growing),
        }
    }

    /// Whether the bytes have this name.
    pub fn is_named(&self, name: &[u8; 32]) -> bool {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.content.as_ref().is_some_and(|content| content.id.hash == *name)
            || names.growing.as_ref().is_some_and(|growing| growing.origin.0 == *name)
    }

    pub(super) fn forget_names(&self) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        *names = Names { algorithm: names.algorithm, ..Names::default() };
        drop(names);
        self.digests().fill(None);
    }

    pub(super) fn digests(&self) -> std::sync::MutexGuard<'_, Box<[Option<Digest>]>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of a chunk: what the content says, or what it came with. `None` if neither is known.
    pub fn digest(&self, chunk: u32) -> Option<Digest> {
        let chunk = usize::try_from(chunk).ok()?;
        match self.content() {
            Some(content) => content.chunks.digests.get(chunk).copied(),
            None => self.digests().get(chunk).copied().flatten(),
        }
    }

    /// The content that the digests make with which all chunks came; `None` if one is not known, or was made otherwise.
    pub fn content_by_digests(&self, manifest: &Manifest) -> Option<Content> {
        let algorithm = self.algorithm();
        let of_algorithm = |digest: &Option<Digest>| digest.filter(|digest| digest.algorithm() == algorithm);
        let digests: Option<Vec<Digest>> = self.digests().iter().map(of_algorithm).collect();
        let chunks =
            ChunkDigests { algorithm, chunk_bytes: self.plan.chunk_size(), digests: digests?.into() };
        Some(Content { id: content_id(manifest, &chunks), chunks })
    }

    /// Whether chunks of `root` may stand beside those that are held: it is the same, or nothing named these yet, or it is a
    /// content that has the digests of all that grew here.
    pub fn goes_on_with(&self, root: &Root) -> bool {
        let (content, growing) = (self.content(), self.growing());
        match (root, content, growing) {
            (_, None, None) => true,
            (Root::Content(theirs), Some(ours), _) => theirs.id == ours.id,
            (Root::Content(theirs), None, Some(growing)) => {
                theirs.chunks.algorithm == growing.algorithm && self.has_digests_of(&theirs.chunks)
            }
            (Root::Growing(theirs), _, growing) => growing.is_some_and(|ours| ours == *theirs),
        }
    }

    /// Whether every chunk that is held has the digest that it has there.
    fn has_digests_of(&self, chunks: &ChunkDigests) -> bool {
        let missing = self.missing();
        let ours = self.digests();
        let is_same = |(chunk, ours): (u32, &Option<Digest>)| {
            let theirs = chunks.digests.get(chunk as usize);
            missing.contains(chunk) || (ours.is_some() && ours.as_ref() == theirs)
        };
        (0..).zip(ours.iter()).all(is_same)
    }

    /// The digest of each chunk, made of the bytes; `None` when a chunk is not held, or when a device does not give its
    /// bytes. For weights that did not come through a chunk digest: those that an inference engine loaded itself.
    pub fn chunk_digests(self: &Arc<Self>, algorithm: DigestAlgorithm) -> Option<ChunkDigests> {
        self.synchronize().ok()?;
        let one = |chunk| {
            let mut digest = ChunkDigest::start(algorithm);
            self.begin_read(chunk)?.visit(|bytes| digest.update(bytes)).ok()?;
            Some(digest.finish())
        };
        let digests: Option<Vec<Digest>> = (0..self.plan.count()).map(one).collect();
        Some(ChunkDigests { algorithm, chunk_bytes: self.plan.chunk_size(), digests: digests?.into() })
    }
}
