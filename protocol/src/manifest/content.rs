//! The content id: one name for all bytes of a model, so that chunks of two sources are never mixed unless
//! they are the same.
//!
//! It is SHA-256 over the manifest (names, counts, element sizes, shapes, dtypes and formats, but no
//! addresses) and the digest of each chunk. The chunk digests are made once, where the bytes come from
//! storage, and travel with the manifest from worker to worker.
//!
//! Bytes that are still being read from storage have no content id yet. A random [`Origin`] names them until then.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::Manifest;
use super::digest::{Digest, DigestAlgorithm};
use crate::ids::hex;

/// Names the bytes of a whole model; equal ids mean equal bytes, as far as the algorithm of its digests goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId {
    /// How the chunks were digested of which it is made.
    pub algorithm: DigestAlgorithm,
    /// The name, as connections between workers carry it.
    pub hash: [u8; 32],
}

/// Its hash in hexadecimal, and the algorithm before it unless that is the CRC: `blake3:` and 64 digits.
impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.algorithm != DigestAlgorithm::Crc64Nvme {
            write!(f, "{}:", self.algorithm)?;
        }
        f.write_str(&hex(&self.hash))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({} {})", self.algorithm, hex(&self.hash[..6]))
    }
}

/// A content id that is not 64 hex characters, or has something else than an algorithm before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a content id is 64 hexadecimal characters, or 'blake3:' and such")]
pub struct BadContentId;

impl FromStr for ContentId {
    type Err = BadContentId;

    fn from_str(text: &str) -> Result<Self, BadContentId> {
        let (algorithm, hash) = match text.split_once(':') {
            None => (DigestAlgorithm::Crc64Nvme, text),
            // One name has one text.
            Some((algorithm, hash)) => match algorithm.parse() {
                Ok(DigestAlgorithm::Crc64Nvme) | Err(_) => return Err(BadContentId),
                Ok(algorithm) => (algorithm, hash),
            },
        };
        Ok(Self { algorithm, hash: hash_from_hex(hash).ok_or(BadContentId)? })
    }
}

pub(super) fn hash_from_hex(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Names the bytes that one worker reads from storage, from before the first of them is there. It is random, and another
/// one for each attempt: two workers that read the same files have two origins, and nothing is mixed by a name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(pub [u8; 32]);

impl Origin {
    /// What its text begins with, which no content id does.
    pub const PREFIX: &str = "origin:";
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, hex(&self.0))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origin({})", hex(&self.0[..6]))
    }
}

/// An origin that is not `origin:` and 64 hex characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an origin is '{}' and 64 hexadecimal characters", Origin::PREFIX)]
pub struct BadOrigin;

impl FromStr for Origin {
    type Err = BadOrigin;

    fn from_str(text: &str) -> Result<Self, BadOrigin> {
        let name = text.strip_prefix(Self::PREFIX).ok_or(BadOrigin)?;
        hash_from_hex(name).map(Self).ok_or(BadOrigin)
    }
}

/// What the bytes of a model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub id: ContentId,
    /// The digest of each chunk, from which the name is made.
    pub chunks: ChunkDigests,
}

/// Bytes that are still being read from storage: the digest of a chunk is known once that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growing {
    /// Its name for now.
    pub origin: Origin,
    /// How its chunks are digested.
    pub algorithm: DigestAlgorithm,
    /// The size of a full chunk in bytes.
    pub chunk_bytes: u64,
}

/// What names bytes: only those of one root may stand beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// Every digest is known.
    Content(Content),
    /// It has no content id yet.
    Growing(Growing),
}

impl Root {
    /// Its name, as connections between workers carry it.
    pub fn name(&self) -> [u8; 32] {
        match self {
            Self::Content(content) => content.id.hash,
            Self::Growing(growing) => growing.origin.0,
        }
    }

    /// How its chunks are digested.
    pub fn algorithm(&self) -> DigestAlgorithm {
        match self {
            Self::Content(content) => content.chunks.algorithm,
            Self::Growing(growing) => growing.algorithm,
        }
    }

    /// The content, if that is known.
    pub fn content(&self) -> Option<&Content> {
        match self {
            Self::Content(content) => Some(content),
            Self::Growing(_) => None,
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(content) => content.id.fmt(f),
            Self::Growing(growing) => growing.origin.fmt(f),
        }
    }
}

/// The digest of each chunk of a model, and how it was cut and hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDigests {
    /// How it was hashed.
    pub algorithm: DigestAlgorithm,
    /// The size of a full chunk in bytes: a reader that cuts differently cannot compare.
    pub chunk_bytes: u64,
    /// One digest a chunk, in chunk order.
    pub digests: Arc<[Digest]>,
}

/// The content id of a model with that manifest and those chunks.
pub fn content_id(manifest: &Manifest, chunks: &ChunkDigests) -> ContentId {
    let mut hash = Sha256::new();
    // Each text carries its length, so that no two different models feed the same bytes.
    let text = |hash: &mut Sha256, text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    text(&mut hash, "rfork content 1");
    hash.update((manifest.tensors().len() as u64).to_le_bytes());
    for tensor in manifest.tensors() {
        text(&mut hash, &tensor.name);
        hash.update(tensor.count.to_le_bytes());
        hash.update(tensor.element_bytes.to_le_bytes());
        let shape = tensor.shape.as_deref().unwrap_or(&[]);
        hash.update((shape.len() as u64).to_le_bytes());
        for dim in shape {
            hash.update(dim.to_le_bytes());
        }
        text(&mut hash, tensor.dtype.as_deref().unwrap_or(""));
        hash.update(tensor.format.unwrap_or(i64::MIN).to_le_bytes());
    }
    text(&mut hash, chunks.algorithm.name());
    hash.update(chunks.chunk_bytes.to_le_bytes());
    hash.update((chunks.digests.len() as u64).to_le_bytes());
    for digest in chunks.digests.iter() {
        hash.update(digest.as_bytes());
    }
    ContentId { algorithm: chunks.algorithm, hash: hash.finalize().into() }
}

#[cfg(test)]
mod tests {
    use super::super::Tensor;
    use super::super::tests::{manifests, tensor};
    use super::*;
    use proptest::prelude::*;

    fn chunks(digests: &[u64]) -> ChunkDigests {
        let digests = digests.iter().copied().map(Digest::crc64_nvme).collect();
        ChunkDigests { algorithm: DigestAlgorithm::Crc64Nvme, chunk_bytes: 262_144, digests }
    }

    fn by_blake3() -> ChunkDigests {
        let digests = [1, 2].map(|byte| Digest::blake3([byte; 32])).into();
        ChunkDigests { algorithm: DigestAlgorithm::Blake3, digests, ..chunks(&[]) }
    }

    #[test]
    fn an_address_does_not_change_it_and_all_else_does() {
        let base = tensor("w", &[2, 3], "bfloat16", 2);
        let id = |tensor: Tensor, digests: &[u64]| {
            content_id(&Manifest::new(vec![tensor]).unwrap(), &chunks(digests))
        };
        let original = id(base.clone(), &[1, 2]);
        assert_eq!(id(Tensor { address: 99, ..base.clone() }, &[1, 2]), original);
        let others = [
            id(base.clone(), &[1, 3]),
            id(base.clone(), &[1]),
            id(Tensor { name: "v".into(), ..base.clone() }, &[1, 2]),
            id(tensor("w", &[3, 2], "bfloat16", 2), &[1, 2]),
            id(tensor("w", &[2, 3], "float16", 2), &[1, 2]),
            id(Tensor { format: Some(29), ..base.clone() }, &[1, 2]),
            content_id(&Manifest::new(vec![base]).unwrap(), &by_blake3()),
        ];
        for other in others {
            assert_ne!(other, original);
        }
    }

    #[test]
    fn it_never_changes_between_versions() {
        // Workers of two versions must agree on it: a change here is a change of the protocol.
        let manifest = Manifest::new(vec![tensor("w", &[2, 3], "bfloat16", 2)]).unwrap();
        insta::assert_snapshot!(content_id(&manifest, &chunks(&[1, 2])));
        insta::assert_snapshot!(content_id(&manifest, &by_blake3()));
    }

    proptest! {
        #[test]
        fn text_and_id_convert_both_ways(hash in any::<[u8; 32]>()) {
            for algorithm in DigestAlgorithm::ALL {
                let id = ContentId { algorithm, hash };
                prop_assert_eq!(id.to_string().parse(), Ok(id));
                prop_assert_eq!(id.to_string().contains("blake3:"), algorithm.is_cryptographic());
            }
            let text = format!("crc64nvme:{}", hex(&hash));
            prop_assert_eq!(text.parse::<ContentId>(), Err(BadContentId), "one name has one text");
        }

        #[test]
        fn an_origin_s_text_is_no_content_id(bytes in any::<[u8; 32]>()) {
            let text = Origin(bytes).to_string();
            prop_assert_eq!(text.parse(), Ok(Origin(bytes)));
            prop_assert_eq!(text.parse::<ContentId>(), Err(BadContentId));
            for algorithm in DigestAlgorithm::ALL {
                let id = ContentId { algorithm, hash: bytes };
                prop_assert_eq!(id.to_string().parse::<Origin>(), Err(BadOrigin));
            }
        }

        #[test]
        fn any_text_is_refused_or_read(text in "(origin:|blake3:|md5:)?(.{0,70}|[0-9a-f]{64})") {
            let _ = (text.parse::<ContentId>(), text.parse::<Origin>());
        }

        #[test]
        fn every_digest_counts(manifest in manifests(), digests in prop::collection::vec(any::<u64>(), 1..9), at in 0usize..9) {
            let mut other = digests.clone();
            let at = at % other.len();
            other[at] ^= 1;
            prop_assert_ne!(content_id(&manifest, &chunks(&digests)), content_id(&manifest, &chunks(&other)));
        }
    }
}
