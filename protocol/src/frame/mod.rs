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

mod chunks;
mod greeting;
#[cfg(test)]
mod tests;

pub use chunks::{Answer, Failure, Range, Read};
pub use greeting::{Hello, Refusal, Welcome};

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
