//! Which contents the seeds of a key may have, where an operator has pinned that: what others hold is offered to nobody.

use std::sync::Arc;

use rfork_protocol::SeedKey;
use rfork_protocol::manifest::content::{ContentId, Origin};
use rfork_protocol::v2::Name;

use super::terms::Pattern;

/// Contents by key. Of the pins the first whose pattern fits a key counts; the seeds of a key that none fits may have any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins(pub Vec<(Pattern, Pinned)>);

/// Content ids, each made of cryptographic digests: of another kind everybody can make other bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned(Arc<[Name]>);

/// A text that pins nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPin {
    /// Not a content id.
    #[error("must be content ids as 'rfork digest --algorithm blake3' prints them")]
    NotOne,
    /// Of digests that are made against accidents.
    #[error(
        "must be content ids that begin with 'blake3:': others are made of CRCs, and anybody can make other bytes that have them"
    )]
    Forgeable,
}

impl Pinned {
    /// What may be held, by these texts.
    ///
    /// # Errors
    /// [`BadPin`].
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadPin> {
        let name = |text: &str| {
            let id: ContentId = text.parse().map_err(|_| BadPin::NotOne)?;
            if !id.algorithm.is_cryptographic() {
                return Err(BadPin::Forgeable);
            }
            // One content has one text, whatever letters the digits were written with.
            Name::cut(&id.to_string()).ok_or(BadPin::NotOne)
        };
        texts.into_iter().map(name).collect::<Result<_, _>>().map(Self)
    }

    /// The ids.
    pub fn ids(&self) -> &[Name] {
        &self.0
    }

    /// Whether a seed may be offered that says that its bytes have this name. Of bytes that are still being read from storage
    /// nobody knows what they are: whoever reads them compares once they have a content id.
    pub fn allow(&self, root: Option<&str>, loads: bool) -> bool {
        match root {
            Some(root) if loads && root.starts_with(Origin::PREFIX) => true,
            Some(root) => self.0.iter().any(|id| id.as_str() == root),
            None => loads,
        }
    }
}

impl Pins {
    /// What the seeds of a key may hold; `None` if that is anything.
    pub fn of(&self, key: &SeedKey) -> Option<&Pinned> {
        let found = self.0.iter().find(|(pattern, _)| pattern.fits(key.as_bytes()));
        found.map(|(_, pinned)| pinned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rfork_protocol::manifest::digest::DigestAlgorithm;

    use super::*;

    fn id(byte: u8) -> String {
        ContentId { algorithm: DigestAlgorithm::Blake3, hash: [byte; 32] }.to_string()
    }

    #[test]
    fn the_first_pin_that_fits_counts() {
        let pinned = |byte| Pinned::new([id(byte).as_str()]).unwrap();
        let pins = Pins(vec![(Pattern::new("/m/a*"), pinned(1)), (Pattern::new("*"), pinned(2))]);
        let of = |key: &str| pins.of(&SeedKey::new(key).unwrap()).cloned();
        assert_eq!((of("/m/ab"), of("/m/b")), (Some(pinned(1)), Some(pinned(2))));
        assert_eq!(Pins::default().of(&SeedKey::new("k").unwrap()), None);
    }

    #[test]
    fn only_ids_that_cannot_be_forged_are_pinned() {
        let (crc, blake3) = ("1f".repeat(32), format!("blake3:{}", "1F".repeat(32)));
        assert_eq!(Pinned::new([crc.as_str()]), Err(BadPin::Forgeable));
        for bad in ["", "blake3:", "blake3:1f", "sha1:1f", "origin:1f"] {
            assert_eq!(Pinned::new([bad]), Err(BadPin::NotOne), "{bad}");
        }
        let pinned = Pinned::new([blake3.as_str()]).unwrap();
        assert!(pinned.allow(Some(&format!("blake3:{crc}")), false), "in one form");
    }

    proptest! {
        #[test]
        fn a_complete_seed_is_allowed_by_its_content_alone(byte in 0u8..4, pinned in prop::collection::vec(0u8..4, 1..3)) {
            let ids: Vec<String> = pinned.iter().map(|byte| id(*byte)).collect();
            let these = Pinned::new(ids.iter().map(String::as_str)).unwrap();
            for loads in [false, true] {
                prop_assert_eq!(these.allow(Some(&id(byte)), loads), pinned.contains(&byte));
                prop_assert_eq!(these.allow(None, loads), loads);
                prop_assert_eq!(these.allow(Some(&format!("origin:{}", "0".repeat(64))), loads), loads);
            }
        }
    }
}
