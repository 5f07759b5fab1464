//! Which chunks are held, in the order in which they came; and which of those that a source holds a reader lacks. Pure.
//!
//! A worker that loads has one [`HeldLog`], of one root: what it tells its readers. While it reads from a source that
//! still loads it has [`Offers`]: what it may ask for.

use std::collections::VecDeque;

use crate::chunks::ChunkSet;

/// Chunks in the order in which they came to be held. Once forgotten, it begins anew, and cursors of before see nothing.
#[derive(Debug, Default)]
pub(crate) struct HeldLog {
    chunks: Vec<u32>,
    /// How often everything was forgotten.
    generation: u64,
}

/// How far somebody has read a [`HeldLog`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldCursor {
    generation: u64,
    at: usize,
}

impl HeldCursor {
    /// Behind so many chunks of the same log.
    pub(crate) fn behind(self, chunks: usize) -> Self {
        Self { at: chunks, ..self }
    }
}

impl HeldLog {
    /// A chunk is held from now on.
    pub(crate) fn push(&mut self, chunk: u32) {
        self.chunks.push(chunk);
    }

    /// No chunk is held any more.
    pub(crate) fn forget(&mut self) {
        self.chunks.clear();
        self.generation += 1;
    }

    /// Before the first chunk.
    pub(crate) fn begin(&self) -> HeldCursor {
        HeldCursor { generation: self.generation, at: 0 }
    }

    /// The next chunks since the cursor was here last, so many at most; `None` when what it had seen was forgotten.
    pub(crate) fn next(&self, cursor: &mut HeldCursor, at_most: usize) -> Option<Vec<u32>> {
        if cursor.generation != self.generation {
            return None;
        }
        let new = self.chunks.get(cursor.at..).unwrap_or_default();
        let new = new[..new.len().min(at_most)].to_vec();
        cursor.at += new.len();
        Some(new)
    }
}

/// The chunks that a reader lacks: those that its source has offered, in that order, and the others.
#[derive(Debug)]
pub(crate) struct Offers {
    /// The source has them; nobody has asked for them yet.
    ready: VecDeque<u32>,
    /// The source has not offered them yet.
    awaited: ChunkSet,
}

impl Offers {
    /// Nothing is offered yet.
    pub(crate) fn awaiting(lacking: ChunkSet) -> Self {
        Self { ready: VecDeque::new(), awaited: lacking }
    }

    /// The source holds everything.
    pub(crate) fn of_all(lacking: ChunkSet) -> Self {
        let mut offers = Self::awaiting(lacking);
        offers.offer_all();
        offers
    }

    /// The source holds these. What the reader does not lack, or was offered before, is passed over.
    pub(crate) fn offer(&mut self, chunks: impl IntoIterator<Item = u32>) {
        for chunk in chunks {
            if self.awaited.remove(chunk) {
                self.ready.push_back(chunk);
            }
        }
    }

    /// The source holds everything.
    pub(crate) fn offer_all(&mut self) {
        let chunks: Vec<u32> = self.awaited.iter().collect();
        self.offer(chunks);
    }

    /// Takes the chunk that was offered first.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.ready.pop_front()
    }

    /// Gives a chunk back that was taken and did not come: it is the next.
    pub(crate) fn put_back(&mut self, chunk: u32) {
        self.ready.push_front(chunk);
    }

    /// Whether a chunk can be taken.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether no chunk is left to be taken, now or later.
    pub(crate) fn is_done(&self) -> bool {
        self.ready.is_empty() && self.awaited.is_empty()
    }

    /// How many chunks are left to be taken, now or later.
    pub(crate) fn left(&self) -> usize {
        self.ready.len() + self.awaited.len() as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Offer(Vec<u32>),
        All,
        Take,
        PutBack,
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => prop::collection::vec(0u32..120, 0..20).prop_map(Step::Offer),
            1 => Just(Step::All),
            6 => Just(Step::Take),
            2 => Just(Step::PutBack),
        ]
    }

    proptest! {
        #[test]
        fn only_what_is_lacking_and_offered_is_taken_and_in_the_order_of_the_offers(
            lacking in prop::collection::btree_set(0u32..100, 0..100), steps in prop::collection::vec(steps(), 0..80)
        ) {
            let mut set = ChunkSet::none(100);
            for chunk in &lacking {
                set.insert(*chunk);
            }
            let mut offers = Offers::awaiting(set);
            // The model: what was offered in order, without repetition; what is out.
            let (mut order, mut offered, mut taken) = (Vec::new(), BTreeSet::new(), Vec::new());
            for step in steps {
                let mut offer = |chunks: Vec<u32>| {
                    for chunk in chunks {
                        if lacking.contains(&chunk) && offered.insert(chunk) {
                            order.push(chunk);
                        }
                    }
                };
                match step {
                    Step::Offer(chunks) => { offer(chunks.clone()); offers.offer(chunks); }
                    Step::All => { offer(lacking.iter().copied().collect()); offers.offer_all(); }
                    Step::Take => {
                        let expected = (!order.is_empty()).then(|| order.remove(0));
                        prop_assert_eq!(offers.take(), expected);
                        taken.extend(expected);
                    }
                    Step::PutBack => if let Some(chunk) = taken.pop() {
                        order.insert(0, chunk);
                        offers.put_back(chunk);
                    }
                }
                prop_assert_eq!(offers.is_ready(), !order.is_empty());
                prop_assert_eq!(offers.left(), lacking.len() - taken.len());
                prop_assert_eq!(offers.is_done(), offers.left() == 0);
            }
        }

        #[test]
        fn every_cursor_sees_each_chunk_once_until_all_is_forgotten(
            steps in prop::collection::vec((0u32..1_000, any::<bool>(), any::<bool>()), 0..60), at_most in 1usize..4
        ) {
            let mut log = HeldLog::default();
            let (mut pushed, mut seen) = (Vec::new(), Vec::new());
            let mut cursor = log.begin();
            for (chunk, looks, forgets) in steps {
                log.push(chunk);
                pushed.push(chunk);
                if looks {
                    let new = log.next(&mut cursor, at_most).unwrap();
                    prop_assert_eq!(new.len(), at_most.min(pushed.len() - seen.len()));
                    seen.extend(new);
                    prop_assert_eq!(&seen, &pushed[..seen.len()]);
                    // One that was told elsewhere how far it is sees the same.
                    prop_assert_eq!(log.begin().behind(seen.len()), cursor);
                }
                // Seldom: both flips, and a quarter of the numbers.
                if forgets && looks && chunk < 250 {
                    log.forget();
                    log.push(chunk);
                    prop_assert_eq!(log.next(&mut cursor, at_most), None, "a cursor of before");
                    cursor = log.begin();
                    (pushed, seen) = (vec![chunk], Vec::new());
                }
            }
            seen.extend(log.next(&mut cursor, usize::MAX).unwrap());
            prop_assert_eq!(seen, pushed);
            prop_assert_eq!(log.next(&mut log.begin().behind(usize::MAX), at_most), Some(Vec::new()));
        }
    }
}
