//! Whether a seed holds the very tensors that a worker wants to fill. Nothing is read before it does.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;

use super::{Manifest, Tensor};
use crate::shown::Shown;

/// How many differing tensors an error names; a wrong model differs in thousands.
pub const NAMED_DIFFERENCES: usize = 5;

/// How two tensors of one name, or two sets of names, differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The worker has it, the seed does not.
    MissingAtSeed {
        /// The tensor.
        name: String,
    },
    /// The seed has it, the worker does not.
    MissingHere {
        /// The tensor.
        name: String,
    },
    /// Both have it, with different properties.
    Property {
        /// The tensor.
        name: String,
        /// What differs: `count`, `element size`, `dtype`, `format` or `shape`.
        property: &'static str,
        /// Its value in the worker.
        here: String,
        /// Its value in the seed.
        at_seed: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::MissingAtSeed { name } | Self::MissingHere { name } | Self::Property { name, .. }) = self;
        write!(f, "'{}' ", Shown::within(name, 120))?;
        match self {
            Self::MissingAtSeed { .. } => f.write_str("is missing at the seed"),
            Self::MissingHere { .. } => f.write_str("is missing here"),
            Self::Property { property, here, at_seed, .. } => {
                let (here, at_seed) = (Shown::within(here, 240), Shown::within(at_seed, 240));
                write!(f, "has {property} {here} here and {at_seed} at the seed")
            }
        }
    }
}

/// The manifests describe different weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the seed's manifest disagrees in {total} tensor(s) ({here_bytes} bytes here, {seed_bytes} at the seed): {}{}",
    join(first),
    if *total > first.len() { "; …" } else { "" }
)]
pub struct Disagreement {
    /// How many tensors differ.
    pub total: usize,
    /// The first of them, at most [`NAMED_DIFFERENCES`], in manifest order.
    pub first: Vec<Difference>,
    /// Total size of the worker's tensors.
    pub here_bytes: u64,
    /// Total size of the seed's.
    pub seed_bytes: u64,
}

fn join(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What besides equality a worker accepts.
#[derive(Debug, Clone, Default)]
pub struct Tolerance {
    /// Names that a draft model shares with its target, which is already loaded: either side may lack them.
    pub shared: HashSet<String>,
    /// Whether the worker views its tensor in the seed's shape where the counts agree, as vLLM Ascend does.
    pub reshapes: bool,
}

/// Checks that the seed's tensors are the worker's: the same names, counts, element sizes, dtypes, formats
/// and total bytes. A dtype, format or shape that one side does not state is not compared.
///
/// # Errors
/// [`Disagreement`], naming the first tensors that differ and how, on both sides.
pub fn agree(here: &Manifest, seed: &Manifest, tolerance: &Tolerance) -> Result<(), Disagreement> {
    let mut total = 0;
    let mut first = Vec::new();
    let mut differs = |difference: Difference| {
        total += 1;
        if first.len() < NAMED_DIFFERENCES {
            first.push(difference);
        }
    };
    let (mut ours, mut theirs) = (here.tensors().iter().peekable(), seed.tensors().iter().peekable());
    loop {
        let side = match (ours.peek(), theirs.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(our), Some(their)) => our.name.as_bytes().cmp(their.name.as_bytes()),
        };
        let our = if side.is_le() { ours.next() } else { None };
        let their = if side.is_ge() { theirs.next() } else { None };
        let difference = match (our, their) {
            (Some(our), Some(their)) => property_difference(our, their, tolerance),
            (Some(our), None) if !tolerance.shared.contains(&our.name) => {
                Some(Difference::MissingAtSeed { name: our.name.clone() })
            }
            (None, Some(their)) if !tolerance.shared.contains(&their.name) => {
                Some(Difference::MissingHere { name: their.name.clone() })
            }
            _ => None,
        };
        if let Some(difference) = difference {
            differs(difference);
        }
    }
    if total == 0 {
        return Ok(());
    }
    Err(Disagreement { total, first, here_bytes: here.total_bytes(), seed_bytes: seed.total_bytes() })
}

fn property_difference(our: &Tensor, their: &Tensor, tolerance: &Tolerance) -> Option<Difference> {
    let differing = |property, here: String, at_seed: String| {
        Some(Difference::Property { name: our.name.clone(), property, here, at_seed })
    };
    if our.count != their.count {
        return differing("count", our.count.to_string(), their.count.to_string());
    }
    if our.element_bytes != their.element_bytes {
        return differing("element size", our.element_bytes.to_string(), their.element_bytes.to_string());
    }
    if let (Some(ours), Some(theirs)) = (&our.dtype, &their.dtype)
        && ours != theirs
    {
        return differing("dtype", ours.clone(), theirs.clone());
    }
    if let (Some(ours), Some(theirs)) = (our.format, their.format)
        && ours != theirs
    {
        return differing("format", ours.to_string(), theirs.to_string());
    }
    if let (Some(ours), Some(theirs), false) = (&our.shape, &their.shape, tolerance.reshapes)
        && ours != theirs
    {
        return differing("shape", format!("{ours:?}"), format!("{theirs:?}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::tests::{manifests, tensor};
    use super::*;
    use proptest::prelude::*;

    fn one(tensor: Tensor) -> Manifest {
        Manifest::new(vec![tensor]).unwrap()
    }

    #[test]
    fn each_property_is_compared_and_named_on_both_sides() {
        let right = tensor("layers.0.w", &[4, 2], "bfloat16", 2);
        let cases = [
            (tensor("layers.0.w", &[4, 3], "bfloat16", 2), "count 8 here and 12 at the seed"),
            (tensor("layers.0.w", &[4, 2], "bfloat16", 4), "element size 2 here and 4"),
            (tensor("layers.0.w", &[4, 2], "float16", 2), "dtype bfloat16 here and float16"),
            (Tensor { format: Some(29), ..right.clone() }, "format 2 here and 29"),
            (tensor("layers.0.w", &[2, 4], "bfloat16", 2), "shape [4, 2] here and [2, 4]"),
        ];
        for (theirs, expected) in cases {
            let error = agree(&one(right.clone()), &one(theirs), &Tolerance::default()).unwrap_err();
            assert_eq!(error.total, 1);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.to_string().contains("'layers.0.w'"), "{error}");
        }
    }

    #[test]
    fn names_missing_on_either_side_are_told_apart() {
        let manifest = |names: &[&str]| {
            Manifest::new(names.iter().map(|name| tensor(name, &[1], "int8", 1)).collect()).unwrap()
        };
        let error = agree(&manifest(&["a", "b"]), &manifest(&["b", "c"]), &Tolerance::default()).unwrap_err();
        assert_eq!(
            error.first,
            [Difference::MissingAtSeed { name: "a".into() }, Difference::MissingHere { name: "c".into() }]
        );
        let shared = Tolerance { shared: ["a".to_owned(), "c".to_owned()].into(), ..Tolerance::default() };
        assert_eq!(agree(&manifest(&["a", "b"]), &manifest(&["b", "c"]), &shared), Ok(()));
    }

    #[test]
    fn a_seed_s_names_are_shown_in_one_line() {
        let strange = tensor(&format!("w\n\u{202e}{}", "x".repeat(4_000)), &[1], "int8", 1);
        let error =
            agree(&one(tensor("v", &[1], "int8", 1)), &one(strange), &Tolerance::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(r"'w\n\u{202e}xxx") && text.len() < 400, "{text}");
    }

    #[test]
    fn a_long_list_of_differences_is_cut() {
        let manifest = |dtype: &str| {
            let tensors = (0..50).map(|i| tensor(&format!("t{i}"), &[1], dtype, 2)).collect();
            Manifest::new(tensors).unwrap()
        };
        let error = agree(&manifest("float16"), &manifest("bfloat16"), &Tolerance::default()).unwrap_err();
        assert_eq!((error.total, error.first.len()), (50, NAMED_DIFFERENCES));
        assert!(error.to_string().ends_with("; …"), "{error}");
    }

    proptest! {
        #[test]
        fn a_manifest_agrees_with_itself_and_with_one_that_says_less(manifest in manifests()) {
            prop_assert_eq!(agree(&manifest, &manifest, &Tolerance::default()), Ok(()));
            let silent = manifest.tensors().iter().cloned()
                .map(|t| Tensor { shape: None, dtype: None, format: None, address: 7, ..t }).collect();
            let silent = Manifest::new(silent).unwrap();
            prop_assert_eq!(agree(&manifest, &silent, &Tolerance::default()), Ok(()));
        }

        #[test]
        fn what_only_the_seed_has_is_left_out_and_the_rest_is_as_it_was(
            manifest in manifests(), kept in prop::collection::vec(any::<bool>(), 1..8),
        ) {
            let some = manifest.tensors().iter().zip(kept.iter().cycle()).filter(|(_, kept)| **kept);
            let Ok(here) = Manifest::new(some.map(|(tensor, _)| tensor.clone()).collect()) else { return Ok(()) };
            let shared = manifest.tensors().iter().map(|tensor| tensor.name.clone()).collect();
            let tolerance = Tolerance { shared, reshapes: false };
            prop_assert_eq!(agree(&here, &manifest, &tolerance), Ok(()));
            prop_assert_eq!(manifest.restricted_to(&here), here);
        }

        #[test]
        fn agreement_means_equal_sizes(a in manifests(), b in manifests()) {
            if agree(&a, &b, &Tolerance::default()).is_ok() {
                prop_assert_eq!(a.tensor_bytes(), b.tensor_bytes());
            }
        }
    }
}
