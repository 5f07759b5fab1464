//! Digests of chunks, as they travel with a manifest and in announcements.
//!
//! They are made once, where a chunk comes from storage, and every reader compares the chunk with its digest, by itself. The
//! CRC guards against accidents: whoever may choose bytes can make others of the same CRC. BLAKE3 guards against that, too.

use std::fmt;
use std::str::FromStr;

use crate::ids::hex;
use crate::shown::Shown;

/// The longest digest, in bytes.
pub const MAX_DIGEST_BYTES: usize = 32;

/// How chunks are digested. Named on the wire, so that another can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum DigestAlgorithm {
    /// The 64-bit CRC of the NVM Express standard, which processors compute at memory speed.
    #[default]
    Crc64Nvme,
    /// BLAKE3, with 256 bits.
    Blake3,
}

/// An algorithm that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest algorithm '{0}' is unknown here: use workers of one release")]
pub struct UnknownAlgorithm(String);

impl DigestAlgorithm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Crc64Nvme, Self::Blake3];

    /// Its name, on the wire and in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "crc64nvme",
            Self::Blake3 => "blake3",
        }
    }

    /// How many bytes its digests have.
    pub const fn digest_bytes(self) -> usize {
        match self {
            Self::Crc64Nvme => 8,
            Self::Blake3 => MAX_DIGEST_BYTES,
        }
    }

    /// Whether nobody can make other bytes that have the same digest.
    pub const fn is_cryptographic(self) -> bool {
        matches!(self, Self::Blake3)
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DigestAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        let known = Self::ALL.into_iter().find(|algorithm| algorithm.name() == text);
        known.ok_or_else(|| UnknownAlgorithm(Shown::within(text, 40).to_string()))
    }
}

/// The digest of a chunk. Those of two algorithms are never equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: DigestAlgorithm,
    /// As frames have it, and zeros after it.
    bytes: [u8; MAX_DIGEST_BYTES],
}

impl Digest {
    /// A CRC.
    pub fn crc64_nvme(crc: u64) -> Self {
        let mut bytes = [0; MAX_DIGEST_BYTES];
        bytes[..8].copy_from_slice(&crc.to_le_bytes());
        Self { algorithm: DigestAlgorithm::Crc64Nvme, bytes }
    }

    /// A BLAKE3 hash.
    pub const fn blake3(hash: [u8; MAX_DIGEST_BYTES]) -> Self {
        Self { algorithm: DigestAlgorithm::Blake3, bytes: hash }
    }

    /// From its bytes; `None` if they are not as many as the algorithm makes.
    pub fn from_bytes(algorithm: DigestAlgorithm, digest: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_DIGEST_BYTES];
        if digest.len() != algorithm.digest_bytes() {
            return None;
        }
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Self { algorithm, bytes })
    }

    /// How it was made.
    pub const fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// Its bytes, as frames and content ids have them: a CRC's least significant byte comes first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_bytes()]
    }

    /// From what [`fmt::Display`] writes; `None` if it is nothing of this algorithm's.
    pub fn from_hex(algorithm: DigestAlgorithm, text: &str) -> Option<Self> {
        if text.len() != 2 * algorithm.digest_bytes() || !text.bytes().all(|digit| digit.is_ascii_hexdigit())
        {
            return None;
        }
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let mut bytes = text.as_bytes().chunks_exact(2).map(pair).collect::<Option<Vec<u8>>>()?;
        if algorithm == DigestAlgorithm::Crc64Nvme {
            bytes.reverse();
        }
        Self::from_bytes(algorithm, &bytes)
    }
}

/// In hexadecimal: a CRC as a number.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm {
            DigestAlgorithm::Crc64Nvme => {
                let number: Vec<u8> = self.as_bytes().iter().rev().copied().collect();
                f.write_str(&hex(&number))
            }
            DigestAlgorithm::Blake3 => f.write_str(&hex(self.as_bytes())),
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_crc_is_written_as_the_number_that_it_is() {
        let digest = Digest::crc64_nvme(0xae8b_1486_0a79_9888);
        assert_eq!(digest.to_string(), "ae8b14860a799888");
        assert_eq!(digest.as_bytes(), 0xae8b_1486_0a79_9888_u64.to_le_bytes());
        assert_eq!(format!("{digest:?}"), "crc64nvme:ae8b14860a799888");
        assert!("md5".parse::<DigestAlgorithm>().is_err());
    }

    proptest! {
        #[test]
        fn digests_are_read_as_they_were_written(bytes: [u8; 32], crc: u64) {
            for digest in [Digest::crc64_nvme(crc), Digest::blake3(bytes)] {
                let algorithm = digest.algorithm();
                prop_assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
                prop_assert_eq!(Digest::from_bytes(algorithm, digest.as_bytes()), Some(digest));
                prop_assert_eq!(Digest::from_hex(algorithm, &digest.to_string()), Some(digest));
                prop_assert_eq!(digest.as_bytes().len(), algorithm.digest_bytes());
                for other in DigestAlgorithm::ALL.into_iter().filter(|other| *other != algorithm) {
                    prop_assert_eq!(Digest::from_bytes(other, digest.as_bytes()), None);
                    prop_assert_eq!(Digest::from_hex(other, &digest.to_string()), None);
                }
            }
        }

        #[test]
        fn any_text_is_refused_or_read(text in ".{0,66}|[0-9a-fA-F]{16}|[0-9a-f]{64}") {
            for algorithm in DigestAlgorithm::ALL {
                if let Some(digest) = Digest::from_hex(algorithm, &text) {
                    prop_assert_eq!(digest.to_string(), text.to_ascii_lowercase());
                }
            }
        }
    }
}
