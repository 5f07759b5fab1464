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
//! | HELLO | magic 8, version u16, identity length u16, features u32, content id or origin 32; identity |
//! | WELCOME | magic 8, status u16, version u16, features u32, chunk size u64, chunk count u32, most chunks a READ u32 |
//! | READ | kind u8 = 1, zero u8, range count u16, zero u32; a range: first chunk u32, count u32 |
//! | answer | kind u8, code u8, zero u16, chunk u32, length u64 |
//!
//! Versions: a seed answers a version that it does not speak with a refusal that carries its own, and closes.
//! Features are bits that both must have; a reader offers those it knows, the seed's answer is the common
//! set, and an unknown bit is never set in it. The identity is an opaque token that proves who the reader is; seeds
//! without such a check ignore it.
//!
//! With [`POINT`] the identity is the point that a planner has leased to the reader: its number u32, and since when u64,
//! Unix milliseconds. A seed that knows the bit closes all connections of whoever had the point before, and refuses that
//! one from then on. So a reader that lost its place to another (it was silent, or its lease lapsed) takes no part of the
//! seed's bandwidth and none of its connections.
//!
//! ## Announcements
//!
//! With [`ANNOUNCEMENTS`] a reader asks for a connection without chunks, beside those that it reads over: what a seed
//! says there would queue behind their bytes. A WELCOME without the bit comes from a seed that has no such connections;
//! this one is then like any other.
//!
//! ```text
//! reader                                             seed
//!   │  HELLO with the bit; WELCOME with the bit        │
//!   │                  HELD 8 bytes + 8 a range        │  at once everything that it holds, then what comes
//!   │◀─────────────────────────────────────────────────┤
//!   │                  ALIVE 8 bytes                   │  at once, and each second
//!   │◀─────────────────────────────────────────────────┤
//!   │  nothing, until it closes                        │
//! ```
//!
//! | frame | bytes |
//! |---|---|
//! | HELD | kind u8 = 1, zero u8, range count u16, zero u32; a range: first chunk u32, count u32 |
//! | ALIVE | kind u8 = 2, has a source u8 (0 or 1), zero u16, milliseconds without a byte u32 |
//! | DIGESTED | kind u8 = 3, zero u8, range count u16, chunk count u32; ranges; a chunk: its digest, by the algorithm of the metadata |
//! | FINAL | kind u8 = 4, zero u8, zero u16, zero u32; content id 32 |
//!
//! - A chunk is announced once it is held and verified, and stays held while the connection lives: a seed that is about to
//!   give chunks up closes all its connections first. Ranges of one frame, and frames, are in the order in which chunks
//!   came; the first ones, of what was held at the greeting, ascend. Each chunk is announced once.
//! - A reader asks over its other connections only for what was announced. For anything else it would be told `NOT_YET`
//!   again and again, as every reader is that has no such connection: for those nothing has changed.
//! - ALIVE says for how long no byte has come to the seed itself, and whether it has a source. Who holds everything has
//!   none, and waits for no byte. A reader that gets nothing can tell by it whether its source hangs, or waits as well.
//! - To a reader that named an origin the seed says DIGESTED instead of HELD: the bytes have no content id yet, so each
//!   chunk's digest comes with it, before the chunk. FINAL says which content it is. A seed says that once it holds
//!   everything, has announced all of it, and knows by itself that this is so: from storage that did not change meanwhile, or
//!   by FINAL of its own source. The reader makes the content id of its manifest and the digests, and compares. An origin
//!   stays another name of its content, so nobody has to connect anew.
//! - Such connections are counted apart from those that carry chunks, up to the same limit; beyond it they are refused
//!   as busy.

mod announce;
mod chunks;
mod greeting;
#[cfg(test)]
mod tests;

pub use announce::{Announcement, Head, SignOfLife};
pub use chunks::{Answer, Failure, Read};
pub use greeting::{Hello, Refusal, Welcome};

/// The feature bit of a connection for announcements.
pub const ANNOUNCEMENTS: u32 = 1;

/// The feature bit of a reader that says which point is leased to it.
pub const POINT: u32 = 2;

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
/// Length of an [`Announcement`] without its ranges.
pub const ANNOUNCEMENT_BYTES: usize = 8;
/// Length of a READ without its ranges.
pub const READ_BYTES: usize = 8;
/// Length of one range of a READ or an announcement.
pub const RANGE_BYTES: usize = 8;
/// Length of a content id's hash in an announcement.
pub const CONTENT_ID_BYTES: usize = 32;
/// The most ranges of one READ or announcement.
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
    /// An identity that should be a point and is none.
    #[error("an identity of {0} bytes is no leased point")]
    NoPoint(usize),
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
    /// An announcement of chunks that there are not, or of too many ranges, or of none.
    #[error(
        "an announcement of {ranges} ranges: 1 to {MAX_RANGES} are accepted, of chunks that the content has"
    )]
    BadAnnouncement {
        /// Its ranges.
        ranges: usize,
    },
}

/// Chunks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first chunk.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

impl Range {
    /// The chunks, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.first;
        (0..self.count).map(move |more| first.saturating_add(more))
    }
}

/// Whether the first eight bytes are ours; what a seed looks at before it reads on.
///
/// # Errors
/// [`FrameError::ForeignMagic`].
pub fn check_magic(bytes: &[u8]) -> Result<(), FrameError> {
    if bytes.starts_with(&MAGIC) { Ok(()) } else { Err(FrameError::ForeignMagic) }
}

/// Ranges of these chunks, in this order; neighbours are put together.
pub(crate) fn ranges_of(chunks: impl IntoIterator<Item = u32>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for chunk in chunks {
        match ranges.last_mut() {
            Some(last) if last.first.checked_add(last.count) == Some(chunk) => last.count += 1,
            _ => ranges.push(Range { first: chunk, count: 1 }),
        }
    }
    ranges
}

fn ranges_to(bytes: &mut Vec<u8>, ranges: &[Range]) {
    for range in ranges {
        bytes.extend_from_slice(&range.first.to_le_bytes());
        bytes.extend_from_slice(&range.count.to_le_bytes());
    }
}

fn ranges_from(bytes: &[u8]) -> impl Iterator<Item = Range> {
    let ranges = bytes.chunks_exact(RANGE_BYTES);
    ranges.map(|range| Range { first: u32_at(range, 0), count: u32_at(range, 4) })
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
