//! Chunks: a model's bytes, cut into bounded pieces. Pure.
//!
//! The plan depends on the tensors' sizes alone, so every worker that holds the manifest cuts alike without
//! talking about it. Tensors come in manifest order; a chunk is the next [`ChunkPlan::chunk_size`] bytes of
//! their concatenation, so small tensors share a chunk and large ones span several. A worker's state is the
//! set of chunks that it holds.
//!
//! The chunk size is about a 2,048th of the model, within 256 KiB and 16 MiB: fine enough that a chain of
//! workers that pass on what they hold finishes within a percent of one transfer's time, coarse enough that
//! a request costs nothing beside its bytes.

use std::num::NonZeroU64;

/// The smallest chunk size.
pub const MIN_CHUNK_BYTES: u64 = 256 << 10;
/// The largest chunk size.
pub const MAX_CHUNK_BYTES: u64 = 16 << 20;
/// How many chunks a model has, roughly, while the bounds allow.
const TARGET_CHUNKS: u64 = 2_048;
/// Chunk sizes are multiples of a page.
const GRAIN_BYTES: u64 = 4_096;

/// Sizes that no plan can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Together more than 64 bits count, or more chunks than 32 bits number.
    #[error("the tensors are too large to be cut into chunks")]
    TooLarge,
    /// No byte at all.
    #[error("there is nothing to cut into chunks")]
    Empty,
}

/// A piece of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The tensor's place in the manifest.
    pub tensor: usize,
    /// Where in the tensor it starts.
    pub offset_bytes: u64,
    /// How long it is, at least 1.
    pub len_bytes: u64,
}

/// How a model is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlan {
    /// Where each tensor ends in the concatenation; as long as the manifest.
    ends: Vec<u64>,
    chunk_size: NonZeroU64,
    count: u32,
}

impl ChunkPlan {
    /// Cuts tensors of these sizes, in manifest order.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(tensor_bytes: &[u64]) -> Result<Self, PlanError> {
        let mut end = 0u64;
        let mut ends = Vec::with_capacity(tensor_bytes.len());
        for bytes in tensor_bytes {
            end = end.checked_add(*bytes).ok_or(PlanError::TooLarge)?;
            ends.push(end);
        }
        let wanted = (end / TARGET_CHUNKS).clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES);
        let chunk_size = NonZeroU64::new(wanted.next_multiple_of(GRAIN_BYTES)).ok_or(PlanError::Empty)?;
        let count = u32::try_from(end.div_ceil(chunk_size.get())).map_err(|_| PlanError::TooLarge)?;
        if count == 0 {
            return Err(PlanError::Empty);
        }
        Ok(Self { ends, chunk_size, count })
    }

    /// How many chunks there are; they are numbered from 0.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The size of every chunk but the last, which may be shorter.
    pub fn chunk_size(&self) -> u64 {
        self.chunk_size.get()
    }

    /// The sizes of the tensors, in manifest order.
    pub fn tensor_bytes(&self) -> impl Iterator<Item = u64> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        self.ends.iter().zip(starts).map(|(end, start)| end - start)
    }

    /// The model's size.
    pub fn total_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The size of one chunk; 0 when there is no such chunk.
    pub fn chunk_bytes(&self, chunk: u32) -> u64 {
        let (start, end) = self.range(chunk);
        end - start
    }

    /// Where a chunk starts and ends in the concatenation of all tensors.
    fn range(&self, chunk: u32) -> (u64, u64) {
        let total = self.total_bytes();
        let start = u64::from(chunk).saturating_mul(self.chunk_size()).min(total);
        (start, start.saturating_add(self.chunk_size()).min(total))
    }

    /// The pieces of tensors that make up a chunk, in order; none when there is no such chunk.
    pub fn segments(&self, chunk: u32) -> impl Iterator<Item = Segment> {
        let (start, end) = self.range(chunk);
        // The first tensor that ends behind the start. Empty tensors in between give no segment.
        let first = self.ends.partition_point(|tensor_end| *tensor_end <= start);
        let mut at = start;
        (first..self.ends.len())
            .take_while(move |_| start < end)
            .map_while(move |tensor| {
                if at >= end {
                    return None;
                }
                let tensor_start = if tensor == 0 { 0 } else { self.ends[tensor - 1] };
                let len_bytes = self.ends[tensor].min(end) - at;
                let segment = Segment { tensor, offset_bytes: at - tensor_start, len_bytes };
                at += len_bytes;
                Some(segment)
            })
            .filter(|segment| segment.len_bytes > 0)
    }
}

/// A set of chunks of one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSet {
    words: Vec<u64>,
    count: u32,
}

impl ChunkSet {
    /// The empty set, for chunks 0 to `count - 1`.
    pub fn none(count: u32) -> Self {
        Self { words: vec![0; count.div_ceil(64) as usize], count }
    }

    /// All chunks from 0 to `count - 1`.
    pub fn all(count: u32) -> Self {
        let mut set = Self::none(count);
        (0..count).for_each(|chunk| set.insert(chunk));
        set
    }

    /// Adds a chunk; one that is not of the plan is passed over.
    pub fn insert(&mut self, chunk: u32) {
        if chunk < self.count {
            self.words[chunk as usize / 64] |= 1 << (chunk % 64);
        }
    }

    /// Takes a chunk out; tells whether it was in the set.
    pub fn remove(&mut self, chunk: u32) -> bool {
        let was_there = self.contains(chunk);
        if was_there {
            self.words[chunk as usize / 64] &= !(1 << (chunk % 64));
        }
        was_there
    }

    /// Whether the chunk is in the set.
    pub fn contains(&self, chunk: u32) -> bool {
        chunk < self.count && self.words[chunk as usize / 64] & (1 << (chunk % 64)) != 0
    }

    /// How many chunks are in the set.
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether no chunk is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The chunks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.count).filter(|chunk| self.contains(*chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_size_of_a_chunk_follows_the_model_within_bounds() {
        let size = |total: u64| ChunkPlan::new(&[total]).unwrap().chunk_size();
        assert_eq!(size(1), MIN_CHUNK_BYTES);
        assert_eq!(size(512 << 20), 256 << 10);
        assert_eq!(size(4 << 30), 2 << 20);
        assert_eq!(size(1 << 40), MAX_CHUNK_BYTES);
        assert_eq!(size((4 << 30) + 5), 2 << 20);
        assert_eq!(ChunkPlan::new(&[1 << 30]).unwrap().count(), 2_048);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        assert_eq!(ChunkPlan::new(&[]), Err(PlanError::Empty));
        assert_eq!(ChunkPlan::new(&[0, 0]), Err(PlanError::Empty));
        assert_eq!(ChunkPlan::new(&[u64::MAX, 1]), Err(PlanError::TooLarge));
        assert_eq!(ChunkPlan::new(&[u64::MAX]), Err(PlanError::TooLarge));
        let plan = ChunkPlan::new(&[10]).unwrap();
        assert_eq!((plan.chunk_bytes(1), plan.segments(1).count()), (0, 0));
        assert_eq!((plan.chunk_bytes(u32::MAX), plan.segments(u32::MAX).count()), (0, 0));
    }

    #[test]
    fn small_tensors_share_a_chunk_and_large_ones_span_several() {
        let plan = ChunkPlan::new(&[100, MIN_CHUNK_BYTES * 2, 0, 50]).unwrap();
        let segments: Vec<_> = (0..plan.count()).map(|c| plan.segments(c).collect::<Vec<_>>()).collect();
        let segment = |tensor, offset_bytes, len_bytes| Segment { tensor, offset_bytes, len_bytes };
        assert_eq!(
            segments,
            [
                vec![segment(0, 0, 100), segment(1, 0, MIN_CHUNK_BYTES - 100)],
                vec![segment(1, MIN_CHUNK_BYTES - 100, MIN_CHUNK_BYTES)],
                vec![segment(1, 2 * MIN_CHUNK_BYTES - 100, 100), segment(3, 0, 50)],
            ]
        );
    }

    proptest! {
        #[test]
        fn every_byte_is_in_exactly_one_chunk_in_order(
            tensors in prop::collection::vec(prop_oneof![0u64..3, 0u64..2_000_000, Just(MIN_CHUNK_BYTES)], 1..40)
        ) {
            prop_assume!(tensors.iter().sum::<u64>() > 0);
            let plan = ChunkPlan::new(&tensors).unwrap();
            let mut next = (0..tensors.len()).map(|tensor| (tensor, 0u64)).collect::<Vec<_>>();
            let mut last = 0;
            for chunk in 0..plan.count() {
                let mut bytes = 0;
                for segment in plan.segments(chunk) {
                    prop_assert!(segment.len_bytes > 0 && segment.tensor >= last);
                    last = segment.tensor;
                    prop_assert_eq!(segment.offset_bytes, next[segment.tensor].1);
                    next[segment.tensor].1 += segment.len_bytes;
                    bytes += segment.len_bytes;
                }
                prop_assert_eq!(bytes, plan.chunk_bytes(chunk));
                prop_assert!(bytes > 0 && bytes <= plan.chunk_size());
            }
            for (tensor, filled) in next {
                prop_assert_eq!(filled, tensors[tensor]);
            }
            prop_assert_eq!(plan.total_bytes(), tensors.iter().sum::<u64>());
        }

        #[test]
        fn a_plan_of_any_sizes_is_made_or_refused(tensors in prop::collection::vec(any::<u64>(), 0..5)) {
            if let Ok(plan) = ChunkPlan::new(&tensors) {
                prop_assert!(plan.chunk_size() >= MIN_CHUNK_BYTES && plan.chunk_size() <= MAX_CHUNK_BYTES);
                prop_assert!(plan.chunk_bytes(plan.count() - 1) > 0);
                prop_assert_eq!(plan.chunk_bytes(plan.count()), 0);
            }
        }

        #[test]
        fn a_set_holds_what_was_put_in(count in 1u32..300, chunks in prop::collection::vec(0u32..320, 0..50)) {
            let mut set = ChunkSet::none(count);
            let mut expected = std::collections::BTreeSet::new();
            for chunk in chunks {
                set.insert(chunk);
                if chunk < count { expected.insert(chunk); }
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len() as usize, expected.len());
            prop_assert_eq!(set.is_empty(), expected.is_empty());
            prop_assert_eq!(ChunkSet::all(count).len(), count);
            for chunk in 0..320 {
                prop_assert_eq!(set.remove(chunk), expected.contains(&chunk));
                prop_assert!(!set.contains(chunk) && !set.remove(chunk));
            }
            prop_assert!(set.is_empty());
        }
    }
}
