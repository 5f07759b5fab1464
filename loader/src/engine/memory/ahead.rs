//! Pages, made ahead of the bytes that go there.
//!
//! Memory that nobody has touched has no pages yet: at the first touch the kernel finds one and clears it, while
//! whoever fills the memory waits within `recvmsg`. A thread of its own does that beforehand, for the chunks
//! that come next ([`MAX_AHEAD_BYTES`]), in bounded steps. It keeps up with whoever fills, or ends once it is overtaken:
//! then processors are short, not the network, and it would take from those who fill the time that they need. Nobody waits
//! for it.
//!
//! Only the kernel can make pages beside readers and writers without changing a byte (`MADV_POPULATE_WRITE`, Linux
//! 5.14). Where it cannot, or will not, pages are made by whoever touches them, as ever. Writing zeros instead would
//! need a chunk's [`ChunkWriter`](super::ChunkWriter), which is wanted by those who fill.

use std::iter;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

use super::WeightMemory;
use super::chunk::ChunkBytes;

/// How far ahead pages are made: little enough that a load which fails has not paid for much, and that what was just
/// cleared is still in a processor's cache when bytes come.
const MAX_AHEAD_BYTES: u64 = 32 << 20;
/// What one system call makes: who ends the thread waits for one, as does who maps memory meanwhile.
const STEP_BYTES: usize = 4 << 20;

/// Makes pages ahead of whoever fills chunks, and owns this. Dropped, it waits for the step that is under way, so that
/// nobody touches the memory any more.
#[derive(Debug)]
pub struct PagesAhead {
    shared: Arc<Shared>,
    /// `None` where there is nothing to do.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many chunks of the order have been taken to be filled. Only grows.
    reached: AtomicUsize,
    /// How many chunks of the order have their pages, or were passed over. Only grows.
    made: AtomicUsize,
    /// How many chunks may have their pages before they are taken.
    ahead: usize,
    ended: AtomicBool,
}

impl PagesAhead {
    /// Starts to make the pages of `memory`'s chunks in this order, in which they are filled. Where the system has no
    /// thread, nothing is made ahead.
    pub(super) fn start(memory: &Arc<WeightMemory>, order: Vec<u32>) -> Self {
        Self::start_with(memory, order, populate)
    }

    /// The same, by this means.
    fn start_with(
        memory: &Arc<WeightMemory>,
        order: Vec<u32>,
        populate: impl FnMut(Range<usize>) -> rustix::io::Result<()> + Send + 'static,
    ) -> Self {
        let ahead = usize::try_from(MAX_AHEAD_BYTES / memory.plan().chunk_size()).unwrap_or(1).max(1);
        let shared = Arc::new(Shared { ahead, ..Shared::default() });
        let (its, memory) = (shared.clone(), memory.clone());
        let thread = thread::Builder::new().name("rfork-pages".into());
        let thread = thread.spawn(move || its.run(&memory, &order, populate));
        Self { shared, thread: thread.ok() }
    }

    /// Makes nothing.
    pub fn none() -> Self {
        Self { shared: Arc::default(), thread: None }
    }

    /// Tells that the first `chunks` of the order have been taken to be filled.
    pub fn reached(&self, chunks: usize) {
        let Some(thread) = &self.thread else { return };
        self.shared.reached.fetch_max(chunks, Ordering::Relaxed);
        // The thread is woken when half of what is ahead is used up: it takes fewer, longer turns then.
        // Excluded: the thread parks after this look, and is not woken when it has to be. It publishes what it made
        // before it parks, so `made` as seen here is that or less, and leads to the call. A call before the park is
        // kept until then, and the park returns at once.
        if self.shared.made.load(Ordering::Relaxed) <= chunks.saturating_add(self.shared.ahead / 2) {
            thread.thread().unpark();
        }
    }
}

impl Drop for PagesAhead {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic; if it did, it would be gone as well.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The thread. It owns the memory while it runs.
    fn run(
        &self,
        memory: &Arc<WeightMemory>,
        order: &[u32],
        mut populate: impl FnMut(Range<usize>) -> rustix::io::Result<()>,
    ) {
        let mut next = 0;
        while !self.ended.load(Ordering::Relaxed) {
            let reached = self.reached.load(Ordering::Relaxed);
            if next < reached {
                return;
            }
            let Some(&chunk) = order.get(next) else { return };
            if next >= reached.saturating_add(self.ahead) {
                thread::park();
                continue;
            }
            for step in steps(ChunkBytes::new(memory, chunk).pieces(), rustix::param::page_size()) {
                if self.ended.load(Ordering::Relaxed) {
                    return;
                }
                match populate(step) {
                    Ok(()) => {}
                    // An old kernel, or memory of a device's driver: it will not be otherwise later.
                    Err(Errno::INVAL) => return,
                    // A limit, a truncated file, a broken page: who fills meets it too, and says what it is.
                    Err(_) => break,
                }
            }
            next += 1;
            self.made.store(next, Ordering::Relaxed);
        }
    }
}

/// The whole pages that these pieces of memory, `(address, bytes)`, lie in, in steps. Pure. Pieces that share a page or
/// follow each other make one range, as far as they come in order of addresses.
fn steps(pieces: &[(usize, usize)], page_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let pages = pieces.iter().filter(|(_, bytes)| *bytes > 0).map(move |(address, bytes)| {
        let end = address.saturating_add(*bytes);
        address / page_bytes * page_bytes..end.checked_next_multiple_of(page_bytes).unwrap_or(end)
    });
    let mut pages = pages.peekable();
    let joined = iter::from_fn(move || {
        let mut range = pages.next()?;
        while let Some(next) = pages.next_if(|next| (range.start..=range.end).contains(&next.start)) {
            range.end = range.end.max(next.end);
        }
        Some(range)
    });
    joined.flat_map(|range| {
        let end = range.end;
        range.step_by(STEP_BYTES).map(move |start| start..end.min(start.saturating_add(STEP_BYTES)))
    })
}

/// Has the kernel make these pages, unless they are there.
fn populate(pages: Range<usize>) -> rustix::io::Result<()> {
    if present(&pages) == pages.len().div_ceil(rustix::param::page_size()) {
        return Ok(());
    }
    // SAFETY: each of the pages holds bytes of a chunk's memory, which the thread owns through its `Arc`. The advice
    // changes no byte: beside those who read and write there it only does what their next touch would do.
    unsafe { madvise(pages.start as *mut _, pages.len(), Advice::LinuxPopulateWrite) }
}

/// How many of these pages are there. To ask costs a fiftieth of having the kernel find that nothing is to be made.
fn present(pages: &Range<usize>) -> usize {
    let mut present = vec![0u8; pages.len().div_ceil(rustix::param::page_size())];
    // SAFETY: the call reads and writes nothing at `pages`, whatever is there; `present` has a byte for each page.
    let code = unsafe { libc::mincore(pages.start as *mut _, pages.len(), present.as_mut_ptr()) };
    if code == 0 { present.iter().filter(|page| **page & 1 == 1).count() } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::CallersMemory;
    use super::super::backing::{Backing, Mapping};
    use super::*;
    use crate::chunks::MIN_CHUNK_BYTES;

    /// Far above what any of it takes: these tests wait for what happens, not for time to pass.
    const DEADLINE: Duration = Duration::from_secs(60);
    /// Chunks that may have their pages before they are taken, when chunks are as small as can be.
    const AHEAD: usize = (MAX_AHEAD_BYTES / MIN_CHUNK_BYTES) as usize;

    /// Memory of so many chunks, each of which starts at a page and is made in one step, and their first addresses.
    fn memory(chunks: u64) -> (Arc<WeightMemory>, Vec<usize>) {
        let memory = WeightMemory::allocate(&[chunks * MIN_CHUNK_BYTES]).unwrap();
        let start = usize::try_from(memory.tensor_address(0).unwrap()).unwrap();
        let chunk = usize::try_from(MIN_CHUNK_BYTES).unwrap();
        assert_eq!((start % rustix::param::page_size(), chunk % rustix::param::page_size()), (0, 0));
        (memory, (0..).map(|at| start + at * chunk).take(usize::try_from(chunks).unwrap()).collect())
    }

    fn order(memory: &WeightMemory) -> Vec<u32> {
        (0..memory.plan().count()).collect()
    }

    type Answer = rustix::io::Result<()>;

    /// Makes the pages of all of that memory, by a kernel that tells each step's address, and gives the answers that it
    /// is sent, or `Ok` when nobody is there to send one.
    fn start(memory: &Arc<WeightMemory>) -> (PagesAhead, Receiver<usize>, Sender<Answer>) {
        let (told, steps) = mpsc::channel();
        let (answers, answer) = mpsc::channel();
        let populate = move |pages: Range<usize>| {
            let _ = told.send(pages.start);
            answer.recv().unwrap_or(Ok(()))
        };
        (PagesAhead::start_with(memory, order(memory), populate), steps, answers)
    }

    /// The next so many steps.
    fn take(steps: &Receiver<usize>, count: usize) -> Vec<usize> {
        (0..count).map(|_| steps.recv_timeout(DEADLINE).unwrap()).collect()
    }

    #[test]
    fn pages_are_made_a_bounded_way_ahead_of_what_is_reached() {
        let (memory, chunks) = memory(4 * AHEAD as u64);
        let (pages, steps, answers) = start(&memory);
        drop(answers);
        assert_eq!(take(&steps, AHEAD), chunks[..AHEAD]);
        // Half of them are used up.
        pages.reached(AHEAD / 2);
        assert_eq!(take(&steps, AHEAD / 2), chunks[AHEAD..AHEAD * 3 / 2]);
        // Overtaken: nothing more is made.
        pages.reached(3 * AHEAD);
        assert!(steps.recv_timeout(DEADLINE).is_err());
        drop(pages);
    }

    #[test]
    fn a_kernel_that_cannot_is_asked_once() {
        let (memory, chunks) = memory(8);
        let (pages, steps, answers) = start(&memory);
        answers.send(Err(Errno::INVAL)).unwrap();
        assert_eq!(steps.iter().collect::<Vec<_>>(), chunks[..1], "the thread has ended");
        pages.reached(8);
        memory.begin_write(0).unwrap().commit();
    }

    #[test]
    fn a_range_that_cannot_be_made_is_passed_over() {
        let (memory, chunks) = memory(4);
        let (_pages, steps, answers) = start(&memory);
        for error in [Errno::NOMEM, Errno::FAULT, Errno::HWPOISON] {
            answers.send(Err(error)).unwrap();
        }
        drop(answers);
        assert_eq!(steps.iter().collect::<Vec<_>>(), chunks);
    }

    #[test]
    fn whoever_drops_it_waits_for_the_step_under_way_and_nothing_is_touched_afterwards() {
        let (memory, chunks) = memory(4 * AHEAD as u64);
        let weak = Arc::downgrade(&memory);
        let (pages, steps, answers) = start(&memory);
        assert_eq!(take(&steps, 1), chunks[..1]);
        drop(memory);
        let shared = pages.shared.clone();
        let dropping = thread::spawn(move || drop(pages));
        while !shared.ended.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        // In its step, it keeps the memory.
        assert!(weak.upgrade().is_some() && !dropping.is_finished());
        answers.send(Ok(())).unwrap();
        dropping.join().unwrap();
        assert!(weak.upgrade().is_none());
        assert_eq!(steps.iter().count(), 0);
    }

    #[test]
    fn one_that_waits_for_whoever_fills_ends_when_it_is_dropped() {
        let (memory, _) = memory(4 * AHEAD as u64);
        let (pages, steps, answers) = start(&memory);
        drop(answers);
        take(&steps, AHEAD);
        drop(pages);
        assert_eq!((steps.iter().count(), Arc::strong_count(&memory)), (0, 1));
    }

    /// Memory of a caller's, at an address within a page.
    fn callers(bytes: u64) -> (Arc<WeightMemory>, usize) {
        let (owner, start) = Backing::host(Mapping::new(usize::try_from(bytes).unwrap() + 100).unwrap());
        let (owner, start) = (CallersMemory::on_host(Arc::new(owner)), start + 100);
        // SAFETY: the range is in a mapping that the owner keeps, and nobody else knows of it.
        let memory = unsafe { WeightMemory::of_caller(&[(start, bytes)], owner) };
        (memory.unwrap(), usize::try_from(start).unwrap())
    }

    #[test]
    fn the_kernel_makes_pages_of_our_own_memory_and_of_a_caller_s() {
        let chunk = usize::try_from(MIN_CHUNK_BYTES).unwrap();
        let (own, chunks) = memory(4);
        let (callers, start) = callers(4 * MIN_CHUNK_BYTES);
        for (memory, start) in [(own, chunks[0]), (callers, start)] {
            let start = start.next_multiple_of(rustix::param::page_size());
            let pages = memory.pages_ahead(order(&memory));
            // There are few enough chunks for all to be made.
            while pages.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
                thread::yield_now();
            }
            let range = start..start + 3 * chunk;
            let made = present(&range);
            if populate(range) == Err(Errno::INVAL) {
                println!("skipped: this kernel has no MADV_POPULATE_WRITE");
                return;
            }
            assert_eq!(made, 3 * chunk / rustix::param::page_size());
        }
    }

    #[test]
    fn what_is_written_meanwhile_stays() {
        let chunks = 2 * AHEAD as u64;
        for memory in [memory(chunks).0, callers(chunks * MIN_CHUNK_BYTES).0] {
            let mut file = tempfile::tempfile().unwrap();
            let bytes: Vec<u8> = (0..MIN_CHUNK_BYTES).map(|at| (at % 251) as u8 + 1).collect();
            std::io::Write::write_all(&mut file, &bytes).unwrap();
            let pages = memory.pages_ahead(order(&memory));
            // From the end, so that each chunk is written before, while and after its pages are made.
            for chunk in order(&memory).into_iter().rev() {
                let mut writer = memory.begin_write(chunk).unwrap();
                writer.read_file_at(&file, 0, 0, bytes.len()).unwrap();
                writer.commit();
                pages.reached(usize::try_from(memory.plan().count() - chunk).unwrap());
            }
            drop(pages);
            for chunk in order(&memory) {
                let mut at = 0;
                let reader = memory.begin_read(chunk).unwrap();
                reader
                    .visit(|piece| {
                        assert!(piece == &bytes[at..at + piece.len()], "chunk {chunk}");
                        at += piece.len();
                    })
                    .unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn steps_are_whole_pages_that_hold_every_byte_once(
            gaps in prop::collection::vec((0usize..200_000, 0usize..12_000_000), 0..12),
            page_bytes in prop::sample::select(vec![4_096usize, 16_384, 65_536]),
        ) {
            let (mut at, mut pieces) = (page_bytes + 7, Vec::new());
            for (gap, bytes) in gaps {
                pieces.push((at + gap, bytes));
                at += gap + bytes;
            }
            let steps: Vec<_> = steps(&pieces, page_bytes).collect();
            for step in &steps {
                prop_assert!(step.start % page_bytes == 0 && step.end % page_bytes == 0);
                prop_assert!(!step.is_empty() && step.len() <= STEP_BYTES);
            }
            prop_assert!(steps.windows(2).all(|pair| pair[0].end <= pair[1].start));
            let pages = |start: usize, end: usize| start / page_bytes..end.div_ceil(page_bytes);
            let mut expected: Vec<usize> = pieces.iter().filter(|(_, bytes)| *bytes > 0)
                .flat_map(|(start, bytes)| pages(*start, start + bytes)).collect();
            expected.dedup();
            let made: Vec<usize> = steps.iter().flat_map(|step| pages(step.start, step.end)).collect();
            prop_assert_eq!(made, expected);
        }
    }
}
