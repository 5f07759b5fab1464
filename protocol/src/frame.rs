//! Frames of the TCP engine, version 1. All integers are little-endian; every length has a cap that is
//! checked before anything is allocated or read.
//!
//! ```text
//! reader                                             seed
//!   │  HELLO    48 bytes + identity                    │
//!   ├─────────────────────────────────────────────────▶│  a foreign magic: closed at once
//!   │                        WELCOME or refusal, 32 b. │
//!   │◀─────────────────────────────────────────────────┤
//!   │  READ     8 bytes + 8 a range, several may wait  │
//!   ├─────────────────────────────────────────────────▶│
//!   │         for each chunk, in the order asked for:  │
//!   │         NOT_YET 16 bytes, again and again        │  while the seed waits for the chunk itself
//!   │         CHUNK   16 bytes + the chunk's bytes     │
//!   │      or FAILED  16 bytes, then closed            │
//!   │◀─────────────────────────────────────────────────┤
//! ```
//!
//! | frame | bytes |
//! |---|---|
//! | HELLO | magic 8, version u16, identity length u16, features u32, content id 32; identity |
//! | WELCOME | magic 8, status u16, version u16, features u32, chunk size u64, chunk count u32, most chunks a READ u32 |
//! | READ | kind u8 = 1, zero u8, range count u16, zero u32; a range: first chunk u32, count u32 |
//! | answer | kind u8, code u8, zero u16, chunk u32, length u64 |
//!
//! Versions: a seed answers a version that it does not speak with a refusal that carries its own, and closes.
//! Features are bits that both must have; a reader offers those it knows, the seed's answer is the common
//! set, and an unknown bit is never set in it. None is defined yet. The identity is an opaque token that
//! proves who the reader is; seeds without such a check ignore it.

use crate::manifest::content::ContentId;

/// First bytes in either direction.
pub const MAGIC: [u8; 8] = *b"RFORKTCP";
/// The version of these frames.
pub const VERSION: u16 = 1;
/// Length of [`Hello`] without the identity.
pub const HELLO_BYTES: usize = 48;
/// The longest identity.
pub const MAX_IDENTITY_BYTES: usize = 4_096;
/// Length of [`Welcome`].
pub const WELCOME_BYTES: usize = 32;
/// Length of a READ without its ranges.
pub const READ_BYTES: usize = 8;
/// Length of one range of a READ.
pub const RANGE_BYTES: usize = 8;
/// The most ranges of one READ.
pub const MAX_RANGES: usize = 256;
/// The most chunks of one READ.
pub const MAX_CHUNKS_PER_READ: u32 = 4_096;
/// Length of [`Answer`] without a chunk's bytes.
pub const ANSWER_BYTES: usize = 16;

/// Bytes that are not the frame that belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another protocol, or none.
    #[error("the peer does not speak the RFork TCP engine's protocol")]
    ForeignMagic,
    /// An identity that is too long.
    #[error("an identity of {0} bytes is too long: at most {MAX_IDENTITY_BYTES} are accepted")]
    IdentityTooLong(usize),
    /// A status, kind or code that this version does not know.
    #[error("the peer sent an unknown {what} ({value})")]
    Unknown {
        /// What was read.
        what: &'static str,
        /// Its value.
        value: u16,
    },
    /// More ranges or chunks than one READ may have, or none.
    #[error(
        "a READ of {ranges} ranges and {chunks} chunks: 1 to {MAX_RANGES} and {MAX_CHUNKS_PER_READ} are accepted"
    )]
    BadRead {
        /// Its ranges.
        ranges: usize,
        /// Its chunks, all together.
        chunks: u64,
    },
}

/// A reader's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The version it speaks.
    pub version: u16,
    /// The features it knows.
    pub features: u32,
    /// The bytes that it wants; a seed that holds others refuses.
    pub content: ContentId,
    /// Who it is; empty when nobody asks.
    pub identity: Vec<u8>,
}

impl Hello {
    /// The frame's bytes.
    ///
    /// # Errors
    /// [`FrameError::IdentityTooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let identity_len = u16::try_from(self.identity.len())
            .ok()
            .filter(|len| usize::from(*len) <= MAX_IDENTITY_BYTES)
            .ok_or(FrameError::IdentityTooLong(self.identity.len()))?;
        let mut bytes = Vec::with_capacity(HELLO_BYTES + self.identity.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&identity_len.to_le_bytes());
        bytes.extend_from_slice(&self.features.to_le_bytes());
        bytes.extend_from_slice(&self.content.0);
        bytes.extend_from_slice(&self.identity);
        Ok(bytes)
    }

    /// Reads the fixed part; the identity, of the length that is also returned, follows.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<(Self, usize), FrameError> {
        check_magic(bytes)?;
        let identity_len = usize::from(u16_at(bytes, 10));
        if identity_len > MAX_IDENTITY_BYTES {
            return Err(FrameError::IdentityTooLong(identity_len));
        }
        let hello = Self {
            version: u16_at(bytes, 8),
            features: u32_at(bytes, 12),
            content: ContentId(array_at(bytes, 16)),
            identity: Vec::new(),
        };
        Ok((hello, identity_len))
    }
}

/// Why a seed refuses a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks another version.
    Version,
    /// It holds other bytes, or none.
    OtherContent,
    /// It serves as many readers as it may.
    Busy,
    /// The reader may not read.
    NotAllowed,
    /// It is going away.
    Stopping,
}

impl Refusal {
    const CODES: [(u16, Self); 5] = [
        (1, Self::Version),
        (2, Self::OtherContent),
        (3, Self::Busy),
        (4, Self::NotAllowed),
        (5, Self::Stopping),
    ];
}

/// A seed's first frame: what it serves, or why it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// `Some`: refused, and the seed closes.
    pub refusal: Option<Refusal>,
    /// The version that the seed speaks.
    pub version: u16,
    /// The features that both know.
    pub features: u32,
    /// The size of a full chunk in bytes; 0 with a refusal.
    pub chunk_size: u64,
    /// How many chunks the content has; 0 with a refusal.
    pub chunk_count: u32,
    /// The most chunks of one READ.
    pub max_chunks_per_read: u32,
}

impl Welcome {
    /// A refusal.
    pub fn refuse(refusal: Refusal) -> Self {
        Self {
            refusal: Some(refusal),
            version: VERSION,
            features: 0,
            chunk_size: 0,
            chunk_count: 0,
            max_chunks_per_read: 0,
        }
    }

    /// The frame's bytes.
    pub fn encode(&self) -> [u8; WELCOME_BYTES] {
        let status = self.refusal.map_or(0, |refusal| code_of(&Refusal::CODES, refusal));
        let mut bytes = [0; WELCOME_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&status.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.features.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.chunk_size.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.chunk_count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.max_chunks_per_read.to_le_bytes());
        bytes
    }

    /// Reads the frame.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, FrameError> {
        check_magic(bytes)?;
        let refusal = match u16_at(bytes, 8) {
            0 => None,
            status => Some(named(&Refusal::CODES, "refusal", status)?),
        };
        Ok(Self {
            refusal,
            version: u16_at(bytes, 10),
            features: u32_at(bytes, 12),
            chunk_size: u64_at(bytes, 16),
            chunk_count: u32_at(bytes, 24),
            max_chunks_per_read: u32_at(bytes, 28),
        })
    }
}

/// Chunks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first chunk.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// A request for chunks, in ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read(Vec<Range>);

impl Read {
    /// A request for these chunks, in this order; neighbours are put together.
    ///
    /// # Errors
    /// [`FrameError::BadRead`] for none, or for more than one READ may have.
    pub fn new(chunks: &[u32]) -> Result<Self, FrameError> {
        let mut ranges: Vec<Range> = Vec::new();
        for &chunk in chunks {
            match ranges.last_mut() {
                Some(last) if last.first.checked_add(last.count) == Some(chunk) => last.count += 1,
                _ => ranges.push(Range { first: chunk, count: 1 }),
            }
        }
        Self::check(ranges)
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
        self.0.iter().flat_map(|range| (0..range.count).map(|more| range.first + more))
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(READ_BYTES + self.0.len() * RANGE_BYTES);
        // `check` has bounded the number of ranges.
        let count = u16::try_from(self.0.len()).unwrap_or(0);
        bytes.extend_from_slice(&[READ_KIND, 0]);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for range in &self.0 {
            bytes.extend_from_slice(&range.first.to_le_bytes());
            bytes.extend_from_slice(&range.count.to_le_bytes());
        }
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
        let ranges = bytes.chunks_exact(RANGE_BYTES);
        let ranges = ranges.map(|range| Range { first: u32_at(range, 0), count: u32_at(range, 4) });
        Self::check(ranges.collect())
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
    const CODES: [(u16, Self); 3] = [(1, Self::NoSuchChunk), (2, Self::NotHeld), (3, Self::Stopping)];
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

/// Whether the first eight bytes are ours; what a seed looks at before it reads on.
///
/// # Errors
/// [`FrameError::ForeignMagic`].
pub fn check_magic(bytes: &[u8]) -> Result<(), FrameError> {
    if bytes.starts_with(&MAGIC) { Ok(()) } else { Err(FrameError::ForeignMagic) }
}

fn code_of<T: Copy + PartialEq>(codes: &[(u16, T)], value: T) -> u16 {
    codes.iter().find(|(_, named)| *named == value).map_or(0, |(code, _)| *code)
}

fn named<T: Copy>(codes: &[(u16, T)], what: &'static str, value: u16) -> Result<T, FrameError> {
    let found = codes.iter().find(|(code, _)| *code == value).map(|(_, named)| *named);
    found.ok_or(FrameError::Unknown { what, value })
}

/// The `N` bytes at `at`; zeros where the slice ends, which no caller's lengths allow.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusals() -> impl Strategy<Value = Option<Refusal>> {
        prop::option::of((0usize..5).prop_map(|at| Refusal::CODES[at].1))
    }

    fn answers() -> impl Strategy<Value = Answer> {
        (0u8..3, any::<u32>(), any::<u64>(), 0usize..3).prop_map(
            |(kind, chunk, len_bytes, code)| match kind {
                0 => Answer::Chunk { chunk, len_bytes },
                1 => Answer::NotYet { chunk },
                _ => Answer::Failed { chunk, failure: Failure::CODES[code].1 },
            },
        )
    }

    proptest! {
        #[test]
        fn a_hello_is_read_as_it_was_made(version: u16, features: u32, content: [u8; 32], identity in prop::collection::vec(any::<u8>(), 0..100)) {
            let hello = Hello { version, features, content: ContentId(content), identity };
            let bytes = hello.encode().unwrap();
            let (mut read, identity_len) = Hello::decode(bytes[..HELLO_BYTES].try_into().unwrap()).unwrap();
            read.identity = bytes[HELLO_BYTES..].to_vec();
            prop_assert_eq!(read.identity.len(), identity_len);
            prop_assert_eq!(read, hello);
        }

        #[test]
        fn a_welcome_is_read_as_it_was_made(refusal in refusals(), version: u16, features: u32, chunk_size: u64, chunk_count: u32, max_chunks_per_read: u32) {
            let welcome = Welcome { refusal, version, features, chunk_size, chunk_count, max_chunks_per_read };
            prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        }

        #[test]
        fn a_read_is_read_as_it_was_made(chunks in prop::collection::vec(0u32..500, 1..200)) {
            let read = Read::new(&chunks).unwrap();
            let bytes = read.encode();
            let ranges = Read::decode_head(bytes[..READ_BYTES].try_into().unwrap()).unwrap();
            prop_assert_eq!(bytes.len(), READ_BYTES + ranges * RANGE_BYTES);
            let again = Read::decode_ranges(&bytes[READ_BYTES..]).unwrap();
            prop_assert_eq!(again.chunks().collect::<Vec<_>>(), chunks);
        }

        #[test]
        fn an_answer_is_read_as_it_was_made(answer in answers()) {
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; 64], ranges in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Hello::decode(bytes[..HELLO_BYTES].try_into().unwrap());
            let _ = Welcome::decode(bytes[..WELCOME_BYTES].try_into().unwrap());
            let _ = Read::decode_head(bytes[..READ_BYTES].try_into().unwrap());
            let _ = Answer::decode(bytes[..ANSWER_BYTES].try_into().unwrap());
            if let Ok(read) = Read::decode_ranges(&ranges) {
                prop_assert!(read.chunks().count() <= MAX_CHUNKS_PER_READ as usize);
            }
        }
    }

    #[test]
    fn what_passes_a_cap_is_refused() {
        let hello = Hello {
            version: 1,
            features: 0,
            content: ContentId([0; 32]),
            identity: vec![0; MAX_IDENTITY_BYTES + 1],
        };
        assert_eq!(hello.encode(), Err(FrameError::IdentityTooLong(MAX_IDENTITY_BYTES + 1)));
        let scattered: Vec<u32> = (0..600).map(|chunk| chunk * 2).collect();
        assert!(matches!(Read::new(&scattered), Err(FrameError::BadRead { .. })));
        assert!(matches!(Read::new(&[]), Err(FrameError::BadRead { .. })));
        let mut range = u32::MAX.to_le_bytes().to_vec();
        range.extend(2u32.to_le_bytes());
        assert!(
            matches!(Read::decode_ranges(&range), Err(FrameError::BadRead { .. })),
            "chunk numbers overflow"
        );
        assert_eq!(check_magic(b"GET / HTTP/1.1"), Err(FrameError::ForeignMagic));
    }
}
