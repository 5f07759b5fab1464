//! Announcements: what a seed that still loads says on a connection without chunks.

use super::{
    ANNOUNCEMENT_BYTES, FrameError, MAX_RANGES, RANGE_BYTES, Range, ranges_from, ranges_of, ranges_to,
    u16_at, u32_at,
};

/// What a seed announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// It holds these chunks from now on, verified.
    Held(Vec<Range>),
    /// It lives.
    Alive(SignOfLife),
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

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Held(ranges) => {
                let mut bytes = vec![HELD_KIND, 0];
                // `held` has bounded their number.
                bytes.extend_from_slice(&u16::try_from(ranges.len()).unwrap_or(0).to_le_bytes());
                bytes.extend_from_slice(&[0; 4]);
                ranges_to(&mut bytes, ranges);
                bytes
            }
            Self::Alive(SignOfLife { has_source, silent_ms }) => {
                let mut bytes = vec![ALIVE_KIND, u8::from(*has_source), 0, 0];
                bytes.extend_from_slice(&silent_ms.to_le_bytes());
                bytes
            }
        }
    }

    /// Reads the fixed part. The ranges of [`Head::Held`] follow.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode_head(bytes: &[u8; ANNOUNCEMENT_BYTES]) -> Result<Head, FrameError> {
        match bytes[0] {
            HELD_KIND => {
                let ranges = usize::from(u16_at(bytes, 2));
                if !(1..=MAX_RANGES).contains(&ranges) {
                    return Err(FrameError::BadAnnouncement { ranges });
                }
                Ok(Head::Held { ranges_bytes: ranges * RANGE_BYTES })
            }
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

/// The fixed part of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Ranges of this length follow.
    Held {
        /// In bytes, at most [`MAX_RANGES`] times [`RANGE_BYTES`].
        ranges_bytes: usize,
    },
    /// Nothing follows.
    Alive(SignOfLife),
}

/// The kinds of announcements, first byte of each.
const HELD_KIND: u8 = 1;
const ALIVE_KIND: u8 = 2;
