//! Chunks: what a reader asks for, and what it is answered.

use super::{
    ANSWER_BYTES, FrameError, MAX_CHUNKS_PER_READ, MAX_RANGES, RANGE_BYTES, READ_BYTES, Range, code_of,
    named, ranges_from, ranges_of, ranges_to, u16_at, u32_at, u64_at,
};

/// A request for chunks, in ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read(Vec<Range>);

impl Read {
    /// A request for these chunks, in this order; neighbours are put together.
    ///
    /// # Errors
    /// [`FrameError::BadRead`] for none, or for more than one READ may have.
    pub fn new(chunks: &[u32]) -> Result<Self, FrameError> {
        Self::check(ranges_of(chunks.iter().copied()))
    }

    fn check(ranges: Vec<Range>) -> Result<Self, FrameError> {
        let chunks: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        let countable =
            ranges.iter().all(|range| range.count > 0 && range.first.checked_add(range.count - 1).is_some());
        if !(1..=MAX_RANGES).contains(&ranges.len()) || chunks > u64::from(MAX_CHUNKS_PER_READ) || !countable
        {
            return Err(FrameError::BadRead { ranges: ranges.len(), chunks });
        }
        Ok(Self(ranges))
    }

    /// The chunks, in the order in which they are wanted.
    pub fn chunks(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(Range::chunks)
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(READ_BYTES + self.0.len() * RANGE_BYTES);
        // `check` has bounded the number of ranges.
        let count = u16::try_from(self.0.len()).unwrap_or(0);
        bytes.extend_from_slice(&[READ_KIND, 0]);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        ranges_to(&mut bytes, &self.0);
        bytes
    }

    /// Reads the fixed part: how many ranges follow.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode_head(bytes: &[u8; READ_BYTES]) -> Result<usize, FrameError> {
        if bytes[0] != READ_KIND {
            return Err(FrameError::Unknown { what: "request", value: bytes[0].into() });
        }
        let ranges = usize::from(u16_at(bytes, 2));
        if !(1..=MAX_RANGES).contains(&ranges) {
            return Err(FrameError::BadRead { ranges, chunks: 0 });
        }
        Ok(ranges)
    }

    /// Reads the ranges, which are all of `bytes`.
    ///
    /// # Errors
    /// [`FrameError::BadRead`].
    pub fn decode_ranges(bytes: &[u8]) -> Result<Self, FrameError> {
        Self::check(ranges_from(bytes).collect())
    }
}

const READ_KIND: u8 = 1;

/// Why a chunk does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The content has no such chunk.
    NoSuchChunk,
    /// The seed waited for it in vain.
    NotHeld,
    /// The seed is going away.
    Stopping,
}

impl Failure {
    pub(super) const CODES: [(u16, Self); 3] =
        [(1, Self::NoSuchChunk), (2, Self::NotHeld), (3, Self::Stopping)];
}

/// What a seed says of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its bytes follow, as many as are given.
    Chunk {
        /// Which.
        chunk: u32,
        /// How many bytes.
        len_bytes: u64,
    },
    /// The seed does not hold it yet and waits: the sign of life by which a reader tells that from a hang.
    NotYet {
        /// Which.
        chunk: u32,
    },
    /// It does not come, and the seed closes.
    Failed {
        /// Which.
        chunk: u32,
        /// Why.
        failure: Failure,
    },
}

impl Answer {
    /// The frame's bytes, without the chunk's.
    pub fn encode(&self) -> [u8; ANSWER_BYTES] {
        let (kind, code, chunk, len_bytes) = match *self {
            Self::Chunk { chunk, len_bytes } => (1, 0, chunk, len_bytes),
            Self::NotYet { chunk } => (2, 0, chunk, 0),
            Self::Failed { chunk, failure } => (3, code_of(&Failure::CODES, failure), chunk, 0),
        };
        let mut bytes = [0; ANSWER_BYTES];
        bytes[0] = kind;
        // Codes are small.
        bytes[1] = u8::try_from(code).unwrap_or(0);
        bytes[4..8].copy_from_slice(&chunk.to_le_bytes());
        bytes[8..16].copy_from_slice(&len_bytes.to_le_bytes());
        bytes
    }

    /// Reads the frame, without the chunk's bytes.
    ///
    /// # Errors
    /// [`FrameError::Unknown`].
    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, FrameError> {
        let chunk = u32_at(bytes, 4);
        match bytes[0] {
            1 => Ok(Self::Chunk { chunk, len_bytes: u64_at(bytes, 8) }),
            2 => Ok(Self::NotYet { chunk }),
            3 => Ok(Self::Failed { chunk, failure: named(&Failure::CODES, "failure", bytes[1].into())? }),
            kind => Err(FrameError::Unknown { what: "answer", value: kind.into() }),
        }
    }

    /// The chunk that it is about.
    pub fn chunk(&self) -> u32 {
        match *self {
            Self::Chunk { chunk, .. } | Self::NotYet { chunk } | Self::Failed { chunk, .. } => chunk,
        }
    }
}
