//! Digests of chunks, as they are made.
//!
//! They are computed once, where a chunk comes from storage, and travel with the manifest; every reader
//! compares. So a bit that flips anywhere on the way, in a seed's memory too, is found.

pub use rfork_protocol::manifest::digest::{Digest, DigestAlgorithm, UnknownAlgorithm};

/// A digest in the making.
#[derive(Debug, Clone)]
pub struct ChunkDigest(Making);

#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each chunk that comes, and it is not moved about"
)]
enum Making {
    Crc64Nvme(crc_fast::Digest),
    /// Boxed: it has some kilobytes.
    Blake3(Box<blake3::Hasher>),
}

impl ChunkDigest {
    /// One that bytes are fed to.
    pub fn start(algorithm: DigestAlgorithm) -> Self {
        Self(match algorithm {
            DigestAlgorithm::Crc64Nvme => {
                Making::Crc64Nvme(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme))
            }
            DigestAlgorithm::Blake3 => Making::Blake3(Box::default()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Making::Crc64Nvme(crc) => crc.update(bytes),
            Making::Blake3(hasher) => _ = hasher.update(bytes),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self.0 {
            Making::Crc64Nvme(crc) => Digest::crc64_nvme(crc.finalize()),
            Making::Blake3(hasher) => Digest::blake3(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(algorithm: DigestAlgorithm, parts: &[&[u8]]) -> Digest {
        let mut digest = ChunkDigest::start(algorithm);
        for part in parts {
            digest.update(part);
        }
        digest.finish()
    }

    #[test]
    fn they_are_the_standards() {
        // The check value of CRC-64/NVME.
        let crc = digest(DigestAlgorithm::Crc64Nvme, &[b"123456789"]);
        assert_eq!(crc, Digest::crc64_nvme(0xae8b_1486_0a79_9888));
        // The first of BLAKE3's test vectors, of no bytes.
        let hash = digest(DigestAlgorithm::Blake3, &[]).to_string();
        assert_eq!(hash, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }

    fn crc(bytes: &[u8]) -> u64 {
        let mut crc = [0; 8];
        crc.copy_from_slice(digest(DigestAlgorithm::Crc64Nvme, &[bytes]).as_bytes());
        u64::from_le_bytes(crc)
    }

    /// Other bytes, of which the last eight are such that all have the CRC of these.
    pub(crate) fn with_crc_of(honest: &[u8], mut other: Vec<u8>) -> Vec<u8> {
        let at = other.len() - 8;
        // A CRC is linear: each bit of the last eight bytes changes it by a value of its own, and these make every value.
        let base = crc(&other);
        let mut changes: Vec<(u64, u64)> = Vec::new();
        let reduced = |changes: &[(u64, u64)], mut value: u64, mut bits: u64| {
            for (known, made_by) in changes {
                if value >> known.ilog2() & 1 == 1 {
                    (value, bits) = (value ^ known, bits ^ made_by);
                }
            }
            (value, bits)
        };
        for bit in 0..64 {
            other[at + bit / 8] ^= 1 << (bit % 8);
            let change = reduced(&changes, crc(&other) ^ base, 1 << bit);
            other[at + bit / 8] ^= 1 << (bit % 8);
            changes.push(change);
            // The highest bit of each is in none that follows.
            changes.sort_unstable_by_key(|(value, _)| std::cmp::Reverse(*value));
        }
        let (left, bits) = reduced(&changes, crc(honest) ^ base, 0);
        assert_eq!(left, 0, "every value can be made");
        let last = u64::from_le_bytes(other[at..].try_into().unwrap()) ^ bits;
        other[at..].copy_from_slice(&last.to_le_bytes());
        other
    }

    #[test]
    fn eight_bytes_make_any_crc_and_no_blake3() {
        let honest = b"the weights that they trained, and eight bytes more";
        let forged = with_crc_of(honest, b"other weights, of somebody else's choice. 01234567".to_vec());
        assert!(forged.starts_with(b"other weights, of somebody else's choice. "));
        let equal = |algorithm| digest(algorithm, &[&forged]) == digest(algorithm, &[honest]);
        assert_eq!(
            DigestAlgorithm::ALL.map(|algorithm| (algorithm.is_cryptographic(), equal(algorithm))),
            [(false, true), (true, false)]
        );
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_a_flipped_bit_does(
            bytes in prop::collection::vec(any::<u8>(), 1..3_000), cut: prop::sample::Index, at: prop::sample::Index, bit in 0u8..8
        ) {
            for algorithm in DigestAlgorithm::ALL {
                let whole = digest(algorithm, &[&bytes]);
                let (a, b) = bytes.split_at(cut.index(bytes.len()));
                prop_assert_eq!(whole, digest(algorithm, &[a, b]));
                let mut flipped = bytes.clone();
                let at = at.index(flipped.len());
                flipped[at] ^= 1 << bit;
                prop_assert_ne!(whole, digest(algorithm, &[&flipped]));
            }
        }
    }
}
