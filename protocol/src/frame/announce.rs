//! Announcements: what a seed that still loads says on a connection without chunks.

use super::{
    ANNOUNCEMENT_BYTES, CONTENT_ID_BYTES, FrameError, MAX_RANGES, RANGE_BYTES, Range, ranges_from, ranges_of,
    ranges_to, u16_at, u32_at,
};
use crate::manifest::digest::{Digest, DigestAlgorithm};

/// What a seed announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// It holds these chunks from now on, verified.
    Held(Vec<Range>),
    /// The same of bytes that have no content id yet, with the digest of each chunk, in the order of the ranges.
    Digested(Vec<Range>, Vec<Digest>),
    /// It lives.
    Alive(SignOfLife),
    /// The bytes have the content id with this hash. All of them were announced before.
    Final([u8; CONTENT_ID_BYTES]),
}

/// How a seed that still loads fares itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignOfLife {
    /// Whether it has a source: another seed, or storage.
    pub has_source: bool,
    /// For how long no byte has come to it, in milliseconds.
    pub silent_ms: u32,
}

impl Announcement {
    /// Announces these chunks, in this order, in as many frames as that takes; neighbours are put together.
    pub fn held(chunks: impl IntoIterator<Item = u32>) -> Vec<Self> {
        let ranges = ranges_of(chunks);
        ranges.chunks(MAX_RANGES).map(|ranges| Self::Held(ranges.to_vec())).collect()
    }

    /// The same, with the digest of each.
    pub fn digested(chunks: &[(u32, Digest)]) -> Vec<Self> {
        let frames = chunks.chunks(MAX_RANGES).map(|chunks| {
            let (chunks, digests): (Vec<u32>, Vec<Digest>) = chunks.iter().copied().unzip();
            Self::Digested(ranges_of(chunks), digests)
        });
        frames.collect()
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Held(ranges) => with_ranges(HELD_KIND, ranges, 0),
            Self::Digested(ranges, digests) => {
                let mut bytes = with_ranges(DIGESTED_KIND, ranges, digests.len());
                bytes.extend(digests.iter().flat_map(Digest::as_bytes));
                bytes
            }
            Self::Final(id) => {
                let mut bytes = vec![FINAL_KIND, 0, 0, 0, 0, 0, 0, 0];
                bytes.extend_from_slice(id);
                bytes
            }
            Self::Alive(SignOfLife { has_source, silent_ms }) => {
                let mut bytes = vec![ALIVE_KIND, u8::from(*has_source), 0, 0];
                bytes.extend_from_slice(&silent_ms.to_le_bytes());
                bytes
            }
        }
    }

    /// Reads the fixed part, of bytes that are digested so. What [`Head`] says follows.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode_head(
        bytes: &[u8; ANNOUNCEMENT_BYTES],
        algorithm: DigestAlgorithm,
    ) -> Result<Head, FrameError> {
        match bytes[0] {
            kind @ (HELD_KIND | DIGESTED_KIND) => {
                let ranges = usize::from(u16_at(bytes, 2));
                if !(1..=MAX_RANGES).contains(&ranges) {
                    return Err(FrameError::BadAnnouncement { ranges });
                }
                let ranges_bytes = ranges * RANGE_BYTES;
                if kind == HELD_KIND {
                    return Ok(Head::Held { ranges_bytes });
                }
                let chunks = usize::try_from(u32_at(bytes, 4)).unwrap_or(usize::MAX);
                if !(ranges..=MAX_RANGES).contains(&chunks) {
                    return Err(FrameError::BadAnnouncement { ranges });
                }
                Ok(Head::Digested { ranges_bytes, digests_bytes: chunks * algorithm.digest_bytes() })
            }
            FINAL_KIND => Ok(Head::Final),
            ALIVE_KIND => {
                Ok(Head::Alive(SignOfLife { has_source: bytes[1] != 0, silent_ms: u32_at(bytes, 4) }))
            }
            kind => Err(FrameError::Unknown { what: "announcement", value: kind.into() }),
        }
    }

    /// Reads the ranges, which are all of `bytes`, of a seed whose content has `chunk_count` chunks.
    ///
    /// # Errors
    /// [`FrameError::BadAnnouncement`] for chunks that there are not.
    pub fn decode_ranges(bytes: &[u8], chunk_count: u32) -> Result<Vec<Range>, FrameError> {
        let ranges: Vec<Range> = ranges_from(bytes).collect();
        let fits = |range: &Range| {
            let end = range.first.checked_add(range.count);
            range.count > 0 && end.is_some_and(|end| end <= chunk_count)
        };
        if ranges.iter().all(fits) {
            Ok(ranges)
        } else {
            Err(FrameError::BadAnnouncement { ranges: ranges.len() })
        }
    }
}

impl Announcement {
    /// Reads what follows [`Head::Digested`]: chunks, each with its digest.
    ///
    /// # Errors
    /// [`FrameError::BadAnnouncement`] for chunks that there are not, or for more or fewer than digests.
    pub fn decode_digested(
        ranges: &[u8],
        digests: &[u8],
        algorithm: DigestAlgorithm,
        chunk_count: u32,
    ) -> Result<Vec<(u32, Digest)>, FrameError> {
        let ranges = Self::decode_ranges(ranges, chunk_count)?;
        let announced: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        let digests = digests.chunks(algorithm.digest_bytes());
        if announced != digests.len() as u64 {
            return Err(FrameError::BadAnnouncement { ranges: ranges.len() });
        }
        let digests = digests.map(|digest| Digest::from_bytes(algorithm, digest)).collect::<Option<Vec<_>>>();
        let digests = digests.ok_or(FrameError::BadAnnouncement { ranges: ranges.len() })?;
        Ok(ranges.iter().flat_map(Range::chunks).zip(digests).collect())
    }
}

/// A frame of ranges, whose number their maker has bounded.
fn with_ranges(kind: u8, ranges: &[Range], chunks: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 0];
    bytes.extend_from_slice(&u16::try_from(ranges.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(chunks).unwrap_or(0).to_le_bytes());
    ranges_to(&mut bytes, ranges);
    bytes
}

/// The fixed part of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Ranges of this length follow.
    Held {
        /// In bytes, at most [`MAX_RANGES`] times [`RANGE_BYTES`].
        ranges_bytes: usize,
    },
    /// Ranges and digests of these lengths follow.
    Digested {
        /// In bytes, at most [`MAX_RANGES`] times [`RANGE_BYTES`].
        ranges_bytes: usize,
        /// In bytes, at most [`MAX_RANGES`] times the longest digest.
        digests_bytes: usize,
    },
    /// Nothing follows.
    Alive(SignOfLife),
    /// The hash of a content id follows, of [`CONTENT_ID_BYTES`].
    Final,
}

/// The kinds of announcements, first byte of each.
const HELD_KIND: u8 = 1;
const ALIVE_KIND: u8 = 2;
const DIGESTED_KIND: u8 = 3;
const FINAL_KIND: u8 = 4;
