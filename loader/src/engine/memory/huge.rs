//! Huge pages for a caller's memory: making them takes a quarter of the time of small ones.
//!
//! Only what lies wholly within tensors that follow each other is asked for, so that no page is made that is not filled. It
//! is an advice: it changes no byte, and a kernel, or memory, that has none refuses it, which costs only speed.

use std::ops::Range;
use std::sync::OnceLock;

use rustix::mm::{Advice, madvise};

/// Each advice may cut a mapping in three, and a process may have some ten thousand mappings.
const MAX_RANGES: usize = 1_000;

/// Asks for huge pages where tensors lie: `(first address, end)` in the order of addresses.
///
/// # Safety
/// Each range must be memory of this process.
pub(super) unsafe fn ask(tensors: impl IntoIterator<Item = (u64, u64)>) {
    let Some(page_bytes) = page_bytes() else { return };
    for pages in ranges(tensors, page_bytes) {
        let (Ok(start), Ok(end)) = (usize::try_from(pages.start), usize::try_from(pages.end)) else {
            continue;
        };
        // SAFETY: the range is the process's memory, as the caller promises; the advice changes no byte.
        let _ = unsafe { madvise(start as *mut _, end - start, Advice::LinuxHugepage) };
    }
}

/// How large a huge page is; `None` where there are none.
fn page_bytes() -> Option<u64> {
    static BYTES: OnceLock<Option<u64>> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let told = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
        told.trim().parse().ok().filter(|bytes: &u64| bytes.is_power_of_two())
    })
}

/// The whole huge pages within tensors that follow each other, the longest ranges if there are too many. Pure.
fn ranges(tensors: impl IntoIterator<Item = (u64, u64)>, page_bytes: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for (start, end) in tensors {
        match joined.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => joined.push(start..end),
        }
    }
    let whole = joined.into_iter().filter_map(|range| {
        let start = range.start.checked_next_multiple_of(page_bytes)?;
        let end = range.end / page_bytes * page_bytes;
        (start < end).then_some(start..end)
    });
    let mut whole: Vec<_> = whole.collect();
    whole.sort_by_key(|range| std::cmp::Reverse(range.end - range.start));
    whole.truncate(MAX_RANGES);
    whole
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 1 << 21;

    #[test]
    fn tensors_that_follow_each_other_share_pages_and_others_do_not() {
        let half = PAGE / 2;
        for (tensors, pages) in [
            ([(half, PAGE), (PAGE, 3 * PAGE + 1)], Some(PAGE..3 * PAGE)),
            ([(0, half), (half, PAGE)], Some(0..PAGE)),
            ([(0, half), (half + 1, PAGE + half)], None),
            ([(0, 1), (u64::MAX - 7, u64::MAX)], None),
        ] {
            assert!(ranges(tensors, PAGE).into_iter().eq(pages), "{tensors:?}");
        }
    }

    proptest! {
        #[test]
        fn only_whole_pages_of_tensors_are_asked_for(gaps in prop::collection::vec((0u64..3, 1u64..9), 0..1_500)) {
            let mut tensors = Vec::new();
            let mut at = 3;
            for (gap, bytes) in gaps {
                tensors.push((at + gap, at + gap + bytes));
                at += gap + bytes;
            }
            let ranges = ranges(tensors.clone(), 4);
            prop_assert!(ranges.len() <= MAX_RANGES);
            for pages in &ranges {
                prop_assert!(pages.start % 4 == 0 && pages.end % 4 == 0 && pages.start < pages.end);
                let covered: u64 = tensors.iter().map(|(start, end)| {
                    end.min(&pages.end).saturating_sub(*start.max(&pages.start))
                }).sum();
                prop_assert_eq!(covered, pages.end - pages.start);
            }
        }
    }
}
