//! What a seed that is read by address tells while it loads: which chunks it holds, and under which epoch.
//!
//! Its engine shows a reader nothing but bytes. So a reader asks here, before it reads and again afterwards: what it has read
//! counts only if the seed's [`Epoch`] is the same. A seed that is about to change a byte that it has told of takes its epoch
//! away first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::super::content::ContentId;
use super::super::digest::{Digest, DigestAlgorithm};
use super::{digests_from_hex, digests_to_hex, to_json};
use crate::frame::{Range, SignOfLife, ranges_of};
use crate::ids::hex;
use crate::manifest::content::hash_from_hex;
use crate::shown::Shown;

/// Path of it. Only seeds that are read by address, and that load or have passed on what they loaded, have it; 404 otherwise.
pub const HELD_PATH: &str = "/get_rfork_held_chunks";
/// The most chunks of one answer.
pub const MAX_TOLD_CHUNKS: usize = 4_096;
/// The longest answer, in bytes: with ranges of one chunk each, and the longest digests.
pub const MAX_HELD_BYTES: usize = 512 << 10;

const ROOT: &str = "root";
const READER: &str = "reader";
const EPOCH: &str = "epoch";
const AFTER: &str = "after";
const LACKS: &str = "lacks";
/// For how many milliseconds the seed may keep the request until it has something new to tell; at most
/// [`MAX_WAIT_MS`](super::MAX_WAIT_MS).
const WAIT: &str = super::WAIT_PARAMETER;

/// Names a time in which a seed changes no byte that it has told of. It is random, and another one whenever the seed's memory
/// begins anew.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u128);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

impl FromStr for Epoch {
    type Err = BadHeld;

    fn from_str(text: &str) -> Result<Self, BadHeld> {
        let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| BadHeld("an epoch is 32 hexadecimal characters".into()))
    }
}

/// An answer that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what the seed says that it holds is malformed: {}", Shown::new(.0))]
pub struct BadHeld(String);

/// What a reader asks, beside the seed's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldQuestion {
    /// What names the bytes that it reads. A seed whose bytes have that name no more does not answer.
    pub root: [u8; 32],
    /// Tells this reader from others; a number by chance.
    pub reader: u64,
    /// Under which epoch it was told what it knows; `None` if that is nothing.
    pub epoch: Option<Epoch>,
    /// Of how many chunks it was told then.
    pub after: u32,
    /// How many chunks it lacks still. Whoever lacks none reads no more.
    pub lacks: u32,
    /// How long the seed may take until it has something new to tell, in milliseconds.
    pub wait_ms: u64,
}

impl HeldQuestion {
    /// The parameters of its query, but for the key.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![
            (ROOT, hex(&self.root)),
            (READER, format!("{:016x}", self.reader)),
            (AFTER, self.after.to_string()),
            (LACKS, self.lacks.to_string()),
            (WAIT, self.wait_ms.to_string()),
        ];
        parameters.extend(self.epoch.map(|epoch| (EPOCH, epoch.to_string())));
        parameters
    }

    /// Reads the parameters; `None` if one is not there, but for the epoch, or is not what it should be.
    pub fn read<'a>(parameter: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let reader = parameter(READER)?;
        let is_hex = reader.len() == 16 && reader.bytes().all(|digit| digit.is_ascii_hexdigit());
        Some(Self {
            root: hash_from_hex(parameter(ROOT)?)?,
            reader: is_hex.then(|| u64::from_str_radix(reader, 16).ok()).flatten()?,
            epoch: parameter(EPOCH).map(str::parse).transpose().ok()?,
            after: parameter(AFTER)?.parse().ok()?,
            lacks: parameter(LACKS)?.parse().ok()?,
            wait_ms: parameter(WAIT)?.parse().ok()?,
        })
    }
}

/// What a seed answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldChunks {
    /// The epoch in which this is so.
    pub epoch: Epoch,
    /// The next chunks that came to be held since those that the reader was told of, in the order in which they came: at most
    /// [`MAX_TOLD_CHUNKS`]. A chunk is told once in an epoch.
    pub chunks: Vec<u32>,
    /// The digest of each, of bytes that have no content id yet; else none.
    pub digests: Vec<Digest>,
    /// Of such bytes: which content they are, once that is known and the reader was told of every chunk.
    pub content: Option<ContentId>,
    /// Whether the seed holds everything.
    pub is_whole: bool,
    /// How the seed fares itself.
    pub sign: SignOfLife,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    epoch: String,
    /// First chunk, and how many.
    ranges: Vec<(u32, u32)>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    chunk_digests: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_id: Option<String>,
    whole: bool,
    has_source: bool,
    silent_ms: u32,
}

impl HeldChunks {
    /// The JSON to serve at [`HELD_PATH`].
    pub fn encode(&self) -> String {
        let ranges = ranges_of(self.chunks.iter().copied());
        to_json(&Wire {
            epoch: self.epoch.to_string(),
            ranges: ranges.iter().map(|range| (range.first, range.count)).collect(),
            chunk_digests: digests_to_hex(&self.digests),
            content_id: self.content.map(|content| content.to_string()),
            whole: self.is_whole,
            has_source: self.sign.has_source,
            silent_ms: self.sign.silent_ms,
        })
    }

    /// Reads an answer about so many chunks, of bytes that are digested so.
    ///
    /// # Errors
    /// [`BadHeld`]: it is malformed, names chunks that there are not, more than one answer has, or other digests than one for
    /// each.
    pub fn decode(json: &[u8], algorithm: DigestAlgorithm, chunk_count: u32) -> Result<Self, BadHeld> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| BadHeld(error.to_string()))?;
        let mut chunks = Vec::new();
        for (first, count) in wire.ranges {
            let fits = first.checked_add(count).is_some_and(|end| count > 0 && end <= chunk_count);
            // Before it is made of it: a range of some bytes may be of billions of chunks.
            if !fits || chunks.len() + count as usize > MAX_TOLD_CHUNKS {
                let reason = format!(
                    "{count} chunks from {first} on: there are {chunk_count}, and an answer has {MAX_TOLD_CHUNKS} at most"
                );
                return Err(BadHeld(reason));
            }
            chunks.extend(Range { first, count }.chunks());
        }
        let digests = digests_from_hex(algorithm, &wire.chunk_digests);
        let digests = digests.map_err(|error| BadHeld(error.to_string()))?.to_vec();
        if !digests.is_empty() && digests.len() != chunks.len() {
            return Err(BadHeld(format!("{} digests of {} chunks", digests.len(), chunks.len())));
        }
        let content = wire.content_id.map(|id| id.parse::<ContentId>()).transpose();
        Ok(Self {
            epoch: wire.epoch.parse()?,
            chunks,
            digests,
            content: content.map_err(|error| BadHeld(error.to_string()))?,
            is_whole: wire.whole,
            sign: SignOfLife { has_source: wire.has_source, silent_ms: wire.silent_ms },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told() -> impl Strategy<Value = HeldChunks> {
        let chunks = prop::collection::vec((0u32..50, any::<[u8; 32]>()), 0..60);
        (any::<u128>(), chunks, any::<Option<[u8; 32]>>(), any::<[bool; 3]>(), any::<u32>()).prop_map(
            |(epoch, chunks, content, [is_whole, has_source, grows], silent_ms)| {
                let algorithm = DigestAlgorithm::Blake3;
                HeldChunks {
                    epoch: Epoch(epoch),
                    digests: chunks.iter().filter(|_| grows).map(|(_, hash)| Digest::blake3(*hash)).collect(),
                    chunks: chunks.into_iter().map(|(chunk, _)| chunk).collect(),
                    content: content.map(|hash| ContentId { algorithm, hash }),
                    is_whole,
                    sign: SignOfLife { has_source, silent_ms },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_told_is_read_as_it_was_written(told in told()) {
            let read = HeldChunks::decode(told.encode().as_bytes(), DigestAlgorithm::Blake3, 50);
            prop_assert_eq!(read, Ok(told));
        }

        #[test]
        fn a_question_is_read_as_it_was_asked(
            root: [u8; 32], reader: u64, epoch in any::<Option<u128>>(), after: u32, lacks: u32, wait_ms: u64
        ) {
            let asked = HeldQuestion { root, reader, epoch: epoch.map(Epoch), after, lacks, wait_ms };
            let parameters = asked.parameters();
            let parameter = |name: &str| {
                parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
            };
            prop_assert_eq!(HeldQuestion::read(parameter), Some(asked));
            for (missing, _) in &parameters {
                let without = |name: &str| parameter(name).filter(|_| name != *missing);
                prop_assert_eq!(HeldQuestion::read(without).is_some(), *missing == EPOCH);
                let other = |name: &str| if name == *missing { Some("-x") } else { parameter(name) };
                prop_assert_eq!(HeldQuestion::read(other), None, "{}", missing);
            }
        }

        /// Whatever comes, nothing panics, and what is taken is of chunks that there are.
        #[test]
        fn no_answer_names_chunks_that_there_are_not(
            ranges in prop::collection::vec((any::<u32>(), any::<u32>()), 0..4),
            small in prop::collection::vec((0u32..12, 0u32..6), 0..4),
            digests in "[0-9a-g]{0,40}", count in 0u32..12, rest in any::<Vec<u8>>()
        ) {
            for ranges in [ranges, small] {
                let json = serde_json::json!({"epoch": "0".repeat(32), "ranges": ranges, "chunk_digests": digests,
                    "whole": true, "has_source": false, "silent_ms": 0}).to_string();
                let asked: u64 = ranges.iter().map(|(_, count)| u64::from(*count)).sum();
                match HeldChunks::decode(json.as_bytes(), DigestAlgorithm::Crc64Nvme, count) {
                    Ok(told) => {
                        prop_assert_eq!(told.chunks.len() as u64, asked);
                        prop_assert!(told.chunks.iter().all(|chunk| *chunk < count));
                        prop_assert!(told.digests.is_empty() || told.digests.len() == told.chunks.len());
                    }
                    Err(error) => prop_assert!(error.to_string().len() < 1_000),
                }
            }
            let _ = HeldChunks::decode(&rest, DigestAlgorithm::Blake3, count);
        }
    }

    #[test]
    fn an_answer_has_no_more_chunks_than_it_may_and_is_no_longer() {
        let most = u32::try_from(MAX_TOLD_CHUNKS).unwrap();
        // Each a range of its own.
        let chunks: Vec<u32> = (0..most).rev().map(|chunk| u32::MAX - 1 - 2 * chunk).collect();
        let told = HeldChunks {
            epoch: Epoch(u128::MAX),
            digests: vec![Digest::blake3([0xff; 32]); chunks.len()],
            chunks,
            content: Some(ContentId { algorithm: DigestAlgorithm::Blake3, hash: [7; 32] }),
            is_whole: false,
            sign: SignOfLife { has_source: false, silent_ms: u32::MAX },
        };
        let json = told.encode();
        assert!(json.len() <= MAX_HELD_BYTES, "{}", json.len());
        assert_eq!(HeldChunks::decode(json.as_bytes(), DigestAlgorithm::Blake3, u32::MAX), Ok(told.clone()));
        let one_more = HeldChunks { chunks: (0..=most).collect(), digests: Vec::new(), ..told };
        let error = HeldChunks::decode(one_more.encode().as_bytes(), DigestAlgorithm::Blake3, u32::MAX);
        assert!(error.unwrap_err().to_string().contains("4096 at most"));
    }
}
