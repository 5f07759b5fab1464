//! The greeting: HELLO and WELCOME.

use super::{
    FrameError, HELLO_BYTES, MAGIC, MAX_IDENTITY_BYTES, POINT, VERSION, WELCOME_BYTES, array_at, check_magic,
    code_of, named, u16_at, u32_at, u64_at,
};
use crate::v2::LeasedPoint;

/// A reader's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The version it speaks.
    pub version: u16,
    /// The features it knows.
    pub features: u32,
    /// The name of the bytes that it wants, a content id or an origin; a seed that holds others refuses.
    pub root: [u8; 32],
    /// Who it is; empty when nobody asks.
    pub identity: Vec<u8>,
}

/// Length of a point as an identity.
const POINT_BYTES: usize = 12;

impl Hello {
    /// The same of a reader to which this point is leased.
    #[must_use]
    pub fn holding(self, point: LeasedPoint) -> Self {
        let mut identity = point.number.to_le_bytes().to_vec();
        identity.extend_from_slice(&point.since_ms.to_le_bytes());
        Self { features: self.features | POINT, identity, ..self }
    }

    /// The point that is leased to the reader, if it says so.
    ///
    /// # Errors
    /// [`FrameError::NoPoint`].
    pub fn point(&self) -> Result<Option<LeasedPoint>, FrameError> {
        if self.features & POINT == 0 {
            return Ok(None);
        }
        let bytes: &[u8; POINT_BYTES] =
            self.identity.as_slice().try_into().map_err(|_| FrameError::NoPoint(self.identity.len()))?;
        Ok(Some(LeasedPoint { number: u32_at(bytes, 0), since_ms: u64_at(bytes, 4) }))
    }

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
        bytes.extend_from_slice(&self.root);
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
            root: array_at(bytes, 16),
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
    pub(super) const CODES: [(u16, Self); 5] = [
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
