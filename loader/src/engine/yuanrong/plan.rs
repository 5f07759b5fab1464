//! What one call of the vendor's library reads: missing chunks -> bounded batches of ranges. Pure.
//!
//! A range is a tensor, or what is missing of it. It never goes on into the next tensor, although that may lie behind it
//! on both sides: a seed may have registered the two apart, and the library refuses a range that is not within one
//! registration. Each tensor is, because every client of the field asks for whole ones.

use crate::chunks::ChunkPlan;

/// What a batch has at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes, at least 1.
    pub(super) bytes: u64,
    /// Ranges, at least 1.
    pub(super) ranges: usize,
}

/// What vLLM Ascend's own client asks for at most, so that seeds of the field are used to it.
pub(super) const LIMITS: Limits = Limits { bytes: 1 << 30, ranges: 512 };

/// What the library takes at most in one call that registers, unregisters or reads.
const MOST_ITEMS: usize = 4_096;
const _: () = assert!(LIMITS.ranges <= MOST_ITEMS);

/// What one call reads: `lens[i]` bytes from the peer's `from[i]` to our `to[i]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) to: Vec<u64>,
    pub(super) from: Vec<u64>,
    pub(super) lens: Vec<u64>,
    /// Chunks whose first byte it brings.
    pub(super) begins: Vec<u32>,
    /// Chunks whose last byte it brings.
    pub(super) completes: Vec<u32>,
    /// The tensor that the last range is of.
    last_tensor: usize,
}

impl Batch {
    /// The bytes of all ranges.
    pub(super) fn bytes(&self) -> u64 {
        self.lens.iter().sum()
    }

    /// Takes up to `len` bytes of a tensor, as its limits allow; gives how many.
    fn take(&mut self, tensor: usize, (to, from): (u64, u64), len: u64, limits: Limits) -> u64 {
        let taken = len.min(limits.bytes - self.bytes());
        if taken == 0 {
            return 0;
        }
        if let (Some(last_to), Some(last_len)) = (self.to.last(), self.lens.last_mut())
            && self.last_tensor == tensor
            && last_to + *last_len == to
        {
            *last_len += taken;
            return taken;
        }
        if self.lens.len() == limits.ranges {
            return 0;
        }
        self.last_tensor = tensor;
        self.to.push(to);
        self.from.push(from);
        self.lens.push(taken);
        taken
    }
}

/// Cuts `chunks` into batches, in their order. `to` and `from` give where each tensor starts here and at the peer, and
/// are as long as the manifest.
pub(super) fn batches(
    plan: &ChunkPlan,
    chunks: impl IntoIterator<Item = u32>,
    to: &[u64],
    from: &[u64],
    limits: Limits,
) -> Vec<Batch> {
    let mut done = Vec::new();
    let mut batch = Batch::default();
    for chunk in chunks {
        let mut begun = false;
        for segment in plan.segments(chunk) {
            let mut at = segment.offset_bytes;
            let end = at + segment.len_bytes;
            while at < end {
                let places = (to[segment.tensor] + at, from[segment.tensor] + at);
                let taken = batch.take(segment.tensor, places, end - at, limits);
                if taken == 0 {
                    done.push(std::mem::take(&mut batch));
                    continue;
                }
                if !begun {
                    batch.begins.push(chunk);
                    begun = true;
                }
                at += taken;
            }
        }
        if begun {
            batch.completes.push(chunk);
        }
    }
    if !batch.lens.is_empty() {
        done.push(batch);
    }
    done
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Starts of tensors that lie behind each other, with these gaps.
    fn starts(sizes: &[u64], gaps: &[u64], base: u64) -> Vec<u64> {
        let mut at = base;
        let place = |(size, gap): (&u64, &u64)| {
            let start = at;
            at += size + gap;
            start
        };
        sizes.iter().zip(gaps).map(place).collect()
    }

    proptest! {
        /// Played on memory: each byte of the chunks is read once, to its place, and no other is touched; chunks
        /// begin and end where the batches say; nothing is over its limits.
        #[test]
        fn every_byte_of_the_chunks_is_read_once_and_no_other(
            tensors in prop::collection::vec((0u64..400_000, 0u64..3, 0u64..3), 1..12),
            wanted in any::<u64>(),
            bytes in 1_000u64..600_000,
            ranges in 1usize..5,
        ) {
            let sizes: Vec<u64> = tensors.iter().map(|(size, ..)| *size).collect();
            prop_assume!(sizes.iter().sum::<u64>() > 0);
            let plan = ChunkPlan::new(&sizes).unwrap();
            let to = starts(&sizes, &tensors.iter().map(|(_, gap, _)| *gap).collect::<Vec<_>>(), 100);
            let from = starts(&sizes, &tensors.iter().map(|(_, _, gap)| *gap).collect::<Vec<_>>(), 7_000);
            let chunks: Vec<u32> = (0..plan.count()).filter(|chunk| wanted >> (chunk % 64) & 1 == 1).collect();
            let limits = Limits { bytes, ranges };
            let made = batches(&plan, chunks.iter().copied(), &to, &from, limits);

            let mut expected: Vec<(u64, u64)> = chunks
                .iter()
                .flat_map(|chunk| plan.segments(*chunk))
                .flat_map(|s| {
                    let at = s.offset_bytes..s.offset_bytes + s.len_bytes;
                    let (to, from) = (to[s.tensor], from[s.tensor]);
                    at.map(move |at| (to + at, from + at))
                })
                .collect();
            let mut read: Vec<(u64, u64)> = Vec::new();
            let (mut begun, mut completed) = (Vec::<u32>::new(), Vec::<u32>::new());
            for batch in &made {
                prop_assert!(batch.bytes() <= bytes && batch.lens.len() <= ranges && !batch.lens.is_empty());
                prop_assert!(batch.to.len() == batch.lens.len() && batch.from.len() == batch.lens.len());
                for at in 0..batch.lens.len() {
                    let range = 0..batch.lens[at];
                    read.extend(range.map(|offset| (batch.to[at] + offset, batch.from[at] + offset)));
                }
                begun.extend(&batch.begins);
                completed.extend(&batch.completes);
                // A chunk is not said to be there before the bytes up to its end are.
                let bytes_of = |chunk: &u32| plan.chunk_bytes(*chunk);
                prop_assert!(completed.iter().map(bytes_of).sum::<u64>() <= read.len() as u64);
            }
            expected.sort_unstable();
            read.sort_unstable();
            prop_assert!(read == expected);
            prop_assert_eq!(&begun, &chunks);
            prop_assert_eq!(&completed, &chunks);
        }
    }

    #[test]
    fn a_tensor_is_one_range_across_chunks_and_never_goes_on_into_the_next() {
        let sizes = [1_000_000, 500, 2_000_000];
        let plan = ChunkPlan::new(&sizes).unwrap();
        let (ours, theirs) = (starts(&sizes, &[0; 3], 1 << 40), starts(&sizes, &[0; 3], 1 << 41));
        let made = batches(&plan, 0..plan.count(), &ours, &theirs, LIMITS);
        assert_eq!(made.len(), 1);
        assert_eq!((&made[0].to, &made[0].from, &made[0].lens[..]), (&ours, &theirs, &sizes[..]));
    }
}
