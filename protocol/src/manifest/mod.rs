//! A manifest: which tensors a worker holds, where they are, and what they contain.
//!
//! The tensors stand in the byte order of their names, so two workers that hold the same model agree on the
//! order without talking about it. [`agreement`] decides whether two manifests describe the same weights,
//! [`content`] names what the bytes are, [`metadata`] is how a seed says all of it in JSON.

pub mod agreement;
pub mod content;
pub mod digest;
pub mod metadata;

use crate::shown::Shown;

/// The most tensors a manifest may list; the largest models in the field have about 100,000.
pub const MAX_TENSORS: usize = 250_000;

/// The longest tensor name, in bytes.
pub const MAX_NAME_BYTES: usize = 4096;

/// The most dimensions of a shape.
pub const MAX_DIMENSIONS: usize = 64;

/// The storage format that AscendCL calls `ACL_FORMAT_ND`: plain row-major, what host memory has.
pub const FORMAT_ND: i64 = 2;

/// The address of a tensor whose owner does not say where it is: an entry of every generation has one.
pub const NO_ADDRESS: u64 = 0;

/// A manifest that cannot be right. Names the tensor, so that its owner can look at it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No tensor at all: there is nothing to fork.
    #[error("the manifest lists no tensor")]
    Empty,
    /// More than [`MAX_TENSORS`].
    #[error("the manifest lists {0} tensors; at most {MAX_TENSORS} are accepted")]
    TooManyTensors(usize),
    /// The same name twice.
    #[error("tensor '{}' is listed twice", Shown::within(.0, 120))]
    DuplicateName(String),
    /// One entry that contradicts itself.
    #[error("tensor '{}': {}", Shown::within(name, 120), Shown::new(reason))]
    BadTensor {
        /// Its name, shortened when it is very long.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// All tensors together exceed what 64 bits can count.
    #[error("the tensors' sizes add up to more than 2^64 bytes")]
    TooLarge,
}

/// One tensor of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its unique name, 1 to [`MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// Where it starts in its owner's memory (device or host address); [`NO_ADDRESS`] when its owner does not say.
    pub address: u64,
    /// How many elements it has, at least 1.
    pub count: u64,
    /// Bytes of one element, at least 1.
    pub element_bytes: u64,
    /// Its dimensions, whose product is `count`; `None` when its owner did not say.
    pub shape: Option<Vec<u64>>,
    /// Element type as torch names it, without `torch.`: `bfloat16`; `None` when its owner did not say.
    pub dtype: Option<String>,
    /// Storage format as an AscendCL number ([`FORMAT_ND`] on hosts); `None` when its owner did not say.
    pub format: Option<i64>,
}

impl Tensor {
    /// The tensor's size. [`Manifest::new`] has made sure that it fits.
    pub fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.element_bytes)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let bad = |reason: String| Err(ManifestError::BadTensor { name: self.name.clone(), reason });
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES {
            return bad(format!(
                "its name has {} bytes; 1 to {MAX_NAME_BYTES} are accepted",
                self.name.len()
            ));
        }
        if self.count == 0 || self.element_bytes == 0 {
            return bad("its element count and element size must be positive".into());
        }
        let Some(bytes) = self.count.checked_mul(self.element_bytes) else {
            return bad("its size exceeds 2^64 bytes".into());
        };
        if self.address.checked_add(bytes).is_none() {
            return bad(format!("its {bytes} bytes at address {:#x} pass the end of memory", self.address));
        }
        if let Some(shape) = &self.shape {
            if shape.len() > MAX_DIMENSIONS {
                return bad(format!("{} dimensions; at most {MAX_DIMENSIONS} are accepted", shape.len()));
            }
            let product = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
            if product != Some(self.count) {
                return bad(format!("shape {shape:?} does not hold {} elements", self.count));
            }
        }
        if let Some(dtype) = &self.dtype
            && !is_dtype_name(dtype)
        {
            return bad(format!("'{dtype}' is not a dtype name (lower case, without 'torch.')"));
        }
        Ok(())
    }
}

fn is_dtype_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The tensors of one worker, checked, in the byte order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    tensors: Vec<Tensor>,
    total_bytes: u64,
}

impl Manifest {
    /// Sorts and checks `tensors`, which may come in any order.
    ///
    /// # Errors
    /// [`ManifestError`], naming the first tensor that is wrong.
    pub fn new(mut tensors: Vec<Tensor>) -> Result<Self, ManifestError> {
        if tensors.is_empty() {
            return Err(ManifestError::Empty);
        }
        if tensors.len() > MAX_TENSORS {
            return Err(ManifestError::TooManyTensors(tensors.len()));
        }
        tensors.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(ManifestError::DuplicateName(pair[0].name.clone()));
        }
        let mut total_bytes = 0u64;
        for tensor in &tensors {
            tensor.check()?;
            total_bytes = total_bytes.checked_add(tensor.bytes()).ok_or(ManifestError::TooLarge)?;
        }
        Ok(Self { tensors, total_bytes })
    }

    /// The tensors, in the byte order of their names.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_bytes().cmp(name.as_bytes()));
        found.ok().map(|index| &self.tensors[index])
    }

    /// Those of its tensors whose names `here` has, too. What only a seed has of a draft model, because the worker
    /// shares it with the target, is not read.
    #[must_use]
    pub fn restricted_to(mut self, here: &Self) -> Self {
        self.tensors.retain(|tensor| here.get(&tensor.name).is_some());
        self.total_bytes = self.tensors.iter().map(Tensor::bytes).sum();
        self
    }

    /// The same without addresses, for peers that do not read by them.
    #[must_use]
    pub fn without_addresses(mut self) -> Self {
        for tensor in &mut self.tensors {
            tensor.address = NO_ADDRESS;
        }
        self
    }

    /// All tensors' sizes together.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Each tensor's size, in manifest order: what a chunk plan is made from.
    pub fn tensor_bytes(&self) -> Vec<u64> {
        self.tensors.iter().map(Tensor::bytes).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tensor that is right, for tests.
    pub(crate) fn tensor(name: &str, shape: &[u64], dtype: &str, element_bytes: u64) -> Tensor {
        Tensor {
            name: name.into(),
            address: 0x1000,
            count: shape.iter().product(),
            element_bytes,
            shape: Some(shape.to_vec()),
            dtype: Some(dtype.into()),
            format: Some(FORMAT_ND),
        }
    }

    /// Any valid manifest of a few tensors.
    pub(crate) fn manifests() -> impl Strategy<Value = Manifest> {
        let one = ("[a-z.é0-9]{1,12}", any::<u32>(), prop::collection::vec(1u64..6, 0..4), 0usize..4);
        prop::collection::btree_map("[a-z.é0-9]{1,12}", one, 1..8).prop_map(|map| {
            let tensors = map.into_iter().map(|(name, (_, address, shape, kind))| {
                let (dtype, element_bytes) =
                    [("bfloat16", 2), ("float32", 4), ("int8", 1), ("int64", 8)][kind];
                Tensor { address: address.into(), ..tensor(&name, &shape, dtype, element_bytes) }
            });
            Manifest::new(tensors.collect()).unwrap()
        })
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let right = tensor("w", &[2, 3], "bfloat16", 2);
        let cases = [
            (Tensor { count: 5, ..right.clone() }, "does not hold 5"),
            (Tensor { count: 0, shape: None, ..right.clone() }, "positive"),
            (Tensor { element_bytes: 0, ..right.clone() }, "positive"),
            (Tensor { dtype: Some("torch.bfloat16".into()), ..right.clone() }, "torch.bfloat16"),
            (Tensor { count: u64::MAX, shape: None, ..right.clone() }, "2^64"),
            (Tensor { address: u64::MAX, ..right.clone() }, "end of memory"),
            (Tensor { shape: Some(vec![1; 65]), count: 1, ..right.clone() }, "65 dimensions"),
        ];
        for (wrong, reason) in cases {
            let error = Manifest::new(vec![wrong]).unwrap_err().to_string();
            assert!(error.contains("'w'") && error.contains(reason), "{error}");
        }
        assert_eq!(Manifest::new(vec![]), Err(ManifestError::Empty));
        assert_eq!(
            Manifest::new(vec![right.clone(), right.clone()]),
            Err(ManifestError::DuplicateName("w".into()))
        );
        let huge = |name: &str| Tensor {
            count: 1 << 63,
            element_bytes: 1,
            shape: None,
            address: 0,
            ..tensor(name, &[1], "int8", 1)
        };
        assert_eq!(Manifest::new(vec![huge("a"), huge("b")]), Err(ManifestError::TooLarge));
    }

    proptest! {
        #[test]
        fn without_addresses_all_else_is_the_same(manifest in manifests()) {
            let told = manifest.clone().without_addresses();
            prop_assert!(told.tensors().iter().all(|tensor| tensor.address == NO_ADDRESS));
            let back = told.tensors().iter().zip(manifest.tensors());
            let back = back.map(|(told, own)| Tensor { address: own.address, ..told.clone() }).collect();
            prop_assert_eq!(Manifest::new(back).unwrap(), manifest);
        }

        #[test]
        fn order_of_arrival_does_not_matter(manifest in manifests(), rotate in 0usize..8) {
            let mut tensors = manifest.tensors().to_vec();
            let by = rotate % tensors.len();
            tensors.rotate_left(by);
            let again = Manifest::new(tensors).unwrap();
            prop_assert_eq!(&again, &manifest);
            for tensor in manifest.tensors() {
                prop_assert_eq!(again.get(&tensor.name), Some(tensor));
            }
            prop_assert_eq!(manifest.tensor_bytes().iter().sum::<u64>(), manifest.total_bytes());
        }
    }
}
