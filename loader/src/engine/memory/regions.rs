//! Which ranges of memory hold a model's tensors, as engines register them. Pure.

/// What allocators leave between two tensors that they put side by side, less than this: they hand out multiples of it.
const ALLOCATION_GRAIN_BYTES: u64 = 512;

/// A range of memory that holds tensors, and perhaps what an allocator leaves between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its first byte's address.
    pub start: u64,
    /// Its size.
    pub bytes: u64,
    /// The allocation that it lies in, `(address, bytes)`; the region itself where none is known.
    pub allocation: (u64, u64),
}

impl Region {
    fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

/// All tensors, `(address, bytes)`, in one region: they were allocated together.
pub(super) fn of_one_allocation(tensors: &[(u64, u64)]) -> Vec<Region> {
    let Some(start) = tensors.iter().map(|(start, _)| *start).min() else { return Vec::new() };
    let end = tensors.iter().map(|(start, bytes)| start + bytes).max().unwrap_or(start);
    vec![Region { start, bytes: end - start, allocation: (start, end - start) }]
}

/// As few regions as tensors make that lie side by side: without a byte between them, or, in one allocation, with no
/// more than an allocator leaves. Neither tensors nor allocations, `(address, bytes)`, overlap.
pub(super) fn of_caller(mut tensors: Vec<(u64, u64)>, allocations: &[(u64, u64)]) -> Vec<Region> {
    tensors.sort_unstable();
    let mut allocations = allocations.to_vec();
    allocations.sort_unstable();
    let mut regions: Vec<Region> = Vec::new();
    let mut known: Vec<bool> = Vec::new();
    for (start, bytes) in tensors {
        let at = allocations.partition_point(|(first, _)| *first <= start);
        let allocation = at.checked_sub(1).map(|at| allocations[at]);
        let allocation = allocation.filter(|(first, len)| start + bytes <= first.saturating_add(*len));
        if let (Some(last), Some(last_known)) = (regions.last_mut(), known.last()) {
            let gap = start - last.end();
            let joins = match allocation {
                Some(allocation) => {
                    *last_known && allocation == last.allocation && gap < ALLOCATION_GRAIN_BYTES
                }
                None => !last_known && gap == 0,
            };
            if joins {
                last.bytes = start + bytes - last.start;
                if allocation.is_none() {
                    last.allocation = (last.start, last.bytes);
                }
                continue;
            }
        }
        known.push(allocation.is_some());
        regions.push(Region { start, bytes, allocation: allocation.unwrap_or((start, bytes)) });
    }
    regions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(start: u64, bytes: u64, allocation: (u64, u64)) -> Region {
        Region { start, bytes, allocation }
    }

    #[test]
    fn tensors_of_one_allocation_are_one_region_with_what_is_between_them() {
        let regions = of_one_allocation(&[(4_096, 10), (1_024, 100), (2_048, 1)]);
        assert_eq!(regions, [region(1_024, 3_082, (1_024, 3_082))]);
        assert_eq!(of_one_allocation(&[]), []);
    }

    #[test]
    fn tensors_side_by_side_join_and_those_of_two_allocations_do_not() {
        let allocations = [(10_000, 2_000), (12_000, 2_000)];
        let tensors =
            vec![(0, 10), (10, 5), (16, 4), (10_000, 100), (10_512, 100), (11_500, 500), (12_000, 1)];
        let expected = [
            region(0, 15, (0, 15)),
            region(16, 4, (16, 4)),
            region(10_000, 612, allocations[0]),
            region(11_500, 500, allocations[0]),
            region(12_000, 1, allocations[1]),
        ];
        assert_eq!(of_caller(tensors, &allocations), expected);
    }

    #[test]
    fn an_allocation_that_ends_within_a_tensor_is_not_its_own() {
        assert_eq!(of_caller(vec![(5, 10)], &[(0, 14)]), [region(5, 10, (5, 10))]);
        assert_eq!(of_caller(vec![(5, 10)], &[(6, 100)]), [region(5, 10, (5, 10))]);
    }

    proptest! {
        #[test]
        fn every_tensor_is_in_one_region_and_no_region_leaves_its_allocation(
            steps in prop::collection::vec((0u64..1_500, 1u64..3_000, any::<bool>()), 1..40),
        ) {
            let (mut at, mut tensors, mut allocations) = (1u64, Vec::new(), Vec::<(u64, u64)>::new());
            for (gap, bytes, new) in steps {
                at += gap;
                tensors.push((at, bytes));
                match allocations.last_mut() {
                    Some((first, len)) if !new => *len = at + bytes - *first,
                    _ => allocations.push((at, bytes)),
                }
                at += bytes;
            }
            let regions = of_caller(tensors.clone(), &allocations);
            for (start, bytes) in &tensors {
                let holding = regions.iter().filter(|one| one.start <= *start && start + bytes <= one.end());
                prop_assert_eq!(holding.count(), 1);
            }
            for one in &regions {
                let (first, len) = one.allocation;
                prop_assert!(first <= one.start && one.end() <= first + len);
                prop_assert!(tensors.iter().any(|(start, _)| *start == one.start));
            }
            let spare: u64 = regions.iter().map(|one| one.bytes).sum::<u64>()
                - tensors.iter().map(|(_, bytes)| bytes).sum::<u64>();
            prop_assert!(spare < ALLOCATION_GRAIN_BYTES * tensors.len() as u64);
        }
    }
}
