//! Digests of chunks.
//!
//! They are computed once, where a chunk comes from storage, and travel with the manifest; every reader
//! compares. So a bit that flips anywhere on the way, in a seed's memory too, is found. They guard against
//! accidents, not against an adversary.

use std::fmt;
use std::str::FromStr;

use rfork_protocol::shown::Shown;

/// How chunks are digested. Named on the wire, so that another can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DigestAlgorithm {
    /// The 64-bit CRC of the NVM Express standard, which processors compute at memory speed.
    #[default]
    Crc64Nvme,
}

/// An algorithm that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest algorithm '{0}' is unknown here: use workers of one release")]
pub struct UnknownAlgorithm(String);

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crc64Nvme => f.write_str("crc64nvme"),
        }
    }
}

impl FromStr for DigestAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        match text {
            "crc64nvme" => Ok(Self::Crc64Nvme),
            other => Err(UnknownAlgorithm(Shown::within(other, 40).to_string())),
        }
    }
}

impl DigestAlgorithm {
    /// A digest that bytes are fed to.
    pub fn start(self) -> ChunkDigest {
        match self {
            Self::Crc64Nvme => ChunkDigest(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme)),
        }
    }
}

/// A digest in the making.
#[derive(Debug, Clone)]
pub struct ChunkDigest(crc_fast::Digest);

impl ChunkDigest {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_the_standard_s() {
        // The check value of CRC-64/NVME.
        let mut digest = DigestAlgorithm::Crc64Nvme.start();
        digest.update(b"123456789");
        assert_eq!(digest.finish(), 0xae8b_1486_0a79_9888);
        assert_eq!("crc64nvme".parse(), Ok(DigestAlgorithm::Crc64Nvme));
        assert!("md5".parse::<DigestAlgorithm>().is_err());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_a_flipped_bit_does(
            bytes in prop::collection::vec(any::<u8>(), 1..3_000), cut: prop::sample::Index, at: prop::sample::Index, bit in 0u8..8
        ) {
            let whole = { let mut d = DigestAlgorithm::default().start(); d.update(&bytes); d.finish() };
            let (a, b) = bytes.split_at(cut.index(bytes.len()));
            let parts = { let mut d = DigestAlgorithm::default().start(); d.update(a); d.update(b); d.finish() };
            prop_assert_eq!(whole, parts);
            let mut flipped = bytes.clone();
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << bit;
            let other = { let mut d = DigestAlgorithm::default().start(); d.update(&flipped); d.finish() };
            prop_assert_ne!(whole, other);
        }
    }
}
