//! What a seed says of itself, and whether a worker agrees: the JSON of every generation.
//!
//! Up to three documents, apart by a byte of 0, which no JSON has: the seed's metadata, its shapes, and the worker's own.

use std::collections::BTreeMap;

use rfork_protocol::manifest::agreement::{NAMED_DIFFERENCES, Tolerance, agree};
use rfork_protocol::manifest::content::content_id;
use rfork_protocol::manifest::metadata::{EntryFields, Metadata};
use rfork_protocol::manifest::{Manifest, Tensor};

use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "metadata", run, executions: 20_000, most_bytes: |input| 64 * input + (64 << 10) };

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    let mut documents = data.split(|byte| *byte == 0);
    let mut next = || documents.next().unwrap_or_default();
    let (seed, shapes, here) = (read(next()), next(), read(next()));
    let Some(seed) = seed else { return };
    match seed.clone().with_shapes(shapes) {
        Ok(with_shapes) => {
            assert!(with_shapes.has_shapes());
            is_written_as_read(&with_shapes);
        }
        Err(error) => is_one_line(&error),
    }
    let Some(here) = here else { return };
    for reshapes in [false, true] {
        agrees(&here.manifest, &seed.manifest, &Tolerance { reshapes, ..Tolerance::default() });
    }
    let restricted = seed.manifest.restricted_to(&here.manifest);
    let bytes: u64 = restricted.tensors().iter().map(Tensor::bytes).sum();
    assert_eq!(restricted.total_bytes(), bytes);
    assert!(restricted.tensors().iter().all(|tensor| here.manifest.get(&tensor.name).is_some()));
}

fn read(json: &[u8]) -> Option<Metadata> {
    match Metadata::decode(json) {
        Ok(metadata) => {
            is_written_as_read(&metadata);
            Some(metadata)
        }
        Err(error) => {
            is_one_line(&error);
            None
        }
    }
}

/// It is never read as something else again; and where each tensor says everything, it is read.
fn is_written_as_read(metadata: &Metadata) {
    let tensors = metadata.manifest.tensors();
    let is_complete = tensors
        .iter()
        .all(|tensor| tensor.shape.is_some() && tensor.dtype.is_some() && tensor.format.is_some());
    let five = Metadata::decode(metadata.encode(EntryFields::Five).as_bytes());
    assert!(five.as_ref().map_or(!is_complete, |five| five == metadata), "{five:?}\n{metadata:?}");
    let three = Metadata::decode(metadata.encode(EntryFields::Three).as_bytes());
    if is_complete && metadata.extension.is_some() {
        assert_eq!(three.as_ref(), Ok(metadata));
    }
    if let Ok(three) = three {
        assert_eq!(three.manifest.tensor_bytes(), metadata.manifest.tensor_bytes());
    }
    if let Some(content) = metadata.extension.as_ref().and_then(|extension| extension.root.content()) {
        let id = content_id(&metadata.manifest, &content.chunks);
        assert_eq!(id, content_id(&metadata.manifest.clone().without_addresses(), &content.chunks));
    }
}

/// The answer is what a slower look at each name says, whoever asks whom.
fn agrees(here: &Manifest, seed: &Manifest, tolerance: &Tolerance) {
    let answer = agree(here, seed, tolerance);
    let differ = differing(here, seed, tolerance.reshapes);
    match &answer {
        Ok(()) => assert_eq!(differ, 0),
        Err(disagreement) => {
            assert_eq!(disagreement.total, differ);
            assert_eq!(disagreement.first.len(), differ.min(NAMED_DIFFERENCES));
            is_one_line(disagreement);
        }
    }
    assert_eq!(agree(seed, here, tolerance).is_ok(), answer.is_ok());
    assert_eq!(agree(here, here, tolerance), Ok(()));
}

/// How many names differ in something that both state.
fn differing(here: &Manifest, seed: &Manifest, reshapes: bool) -> usize {
    let mut names: BTreeMap<&str, (Option<&Tensor>, Option<&Tensor>)> = BTreeMap::new();
    here.tensors().iter().for_each(|tensor| names.entry(&tensor.name).or_default().0 = Some(tensor));
    seed.tensors().iter().for_each(|tensor| names.entry(&tensor.name).or_default().1 = Some(tensor));
    let same = |(one, other): &(Option<&Tensor>, Option<&Tensor>)| {
        one.zip(*other).is_some_and(|(one, other)| {
            (one.count, one.element_bytes) == (other.count, other.element_bytes)
                && both(one.dtype.as_ref(), other.dtype.as_ref())
                && both(one.format.as_ref(), other.format.as_ref())
                && (reshapes || both(one.shape.as_ref(), other.shape.as_ref()))
        })
    };
    names.values().filter(|pair| !same(pair)).count()
}

/// Whether they are the same, if both are told.
fn both<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}
