//! Reads chunks from the files into a worker's memory.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rfork_protocol::manifest::content::ChunkDigests;
use tokio_util::sync::CancellationToken;

use super::parallel::on_threads;
use super::reader::Reader;
use super::{Checkpoint, StorageError};
use crate::chunks::{ChunkPlan, ChunkSet};
use crate::digest::{ChunkDigest, Digest, DigestAlgorithm};
use crate::engine::memory::{ChunkWriter, WeightMemory};

/// How much is read before it is digested: small enough to be in the cache still, large enough for a disk.
const PIECE_BYTES: u64 = 512 << 10;

/// How to read.
#[derive(Debug, Clone)]
pub struct FillOptions {
    /// How many threads read at once, the calling one among them.
    pub threads: NonZeroUsize,
    /// How to digest the chunks.
    pub algorithm: DigestAlgorithm,
    /// What the digests have to be, when some of the chunks came from a seed; of `algorithm`.
    pub expected: Option<ChunkDigests>,
    /// Whether the chunks that are held are read, too, after the others, and compared by the digests that they came with.
    pub checks_held: bool,
}

impl Default for FillOptions {
    fn default() -> Self {
        Self {
            threads: DEFAULT_THREADS,
            algorithm: DigestAlgorithm::default(),
            expected: None,
            checks_held: false,
        }
    }
}

/// Enough requests at once for a disk or a network file system, whatever the number of processors. While some wait for
/// it, others make pages: one more thread that makes them ahead only took time from them (`docs/tcp-engine.md`).
const DEFAULT_THREADS: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// How much a thread takes at once where there is enough.
const TURN_BYTES: u64 = 8 << 20;

impl Checkpoint {
    /// Reads those of `chunks` that `memory` does not hold, straight into place, and returns the digest of each
    /// that it has read so, ascending by chunk. `progress` grows by the bytes of each chunk once it is held.
    ///
    /// `memory` must have been allocated for the tensors of [`Checkpoint::manifest`]. Blocks; the threads that
    /// help end with the call. Cancelling takes effect after the piece that each thread is reading.
    ///
    /// # Errors
    /// [`StorageError`]. Chunks that were complete before the error stay held: without expected digests they
    /// may stem from a file that was changing, and have to be forgotten before another attempt.
    pub fn fill(
        &self,
        memory: &Arc<WeightMemory>,
        chunks: &ChunkSet,
        options: &FillOptions,
        cancel: &CancellationToken,
        progress: &AtomicU64,
    ) -> Result<Vec<(u32, Digest)>, StorageError> {
        self.check_layout(memory)?;
        self.check_expected(memory.plan(), options)?;
        let mut order = self.reading_order(memory.plan(), chunks);
        if options.checks_held {
            let mut held = ChunkSet::all(memory.plan().count());
            for chunk in memory.missing().iter() {
                held.remove(chunk);
            }
            order.extend(self.reading_order(memory.plan(), &held));
        }
        let fill = Fill {
            checkpoint: self,
            memory,
            options,
            cancel,
            progress,
            order: &order,
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        };
        let threads = options.threads.get().min(order.len());
        let mut digests = Vec::with_capacity(order.len());
        for part in on_threads(threads, || fill.run(Reader::new(self))) {
            digests.extend(part?);
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// The chunks in the order in which they lie in the files, so that each file is read nearly from start to
    /// end by all threads together.
    fn reading_order(&self, plan: &ChunkPlan, chunks: &ChunkSet) -> Vec<u32> {
        let mut order: Vec<u32> = chunks.iter().filter(|chunk| *chunk < plan.count()).collect();
        order.sort_by_cached_key(|chunk| {
            plan.segments(*chunk).next().map(|first| {
                let position = self.positions[first.tensor];
                (position.file, position.offset + first.offset_bytes)
            })
        });
        order
    }

    /// Makes sure that the expected digests are of the same chunks, made the same way.
    fn check_expected(&self, plan: &ChunkPlan, options: &FillOptions) -> Result<(), StorageError> {
        let Some(expected) = &options.expected else { return Ok(()) };
        let algorithm = options.algorithm;
        if expected.algorithm != algorithm
            || expected.chunk_bytes != plan.chunk_size()
            || expected.digests.len() != plan.count() as usize
        {
            let reason = format!(
                "the seed's {} digests ({}) are of chunks of {} bytes, here there are {} chunks of {} bytes ({})",
                expected.digests.len(),
                expected.algorithm,
                expected.chunk_bytes,
                plan.count(),
                plan.chunk_size(),
                algorithm
            );
            return Err(StorageError::OtherLayout { path: self.path.clone(), reason });
        }
        Ok(())
    }
}

/// How many chunks that follow each other a thread takes at once: those of some huge pages, for threads that fill one page
/// together that was never touched all clear it. Fewer where threads would be left without any. Pure.
fn turn(chunk_bytes: u64, chunks: usize, threads: usize) -> usize {
    let wanted = usize::try_from(TURN_BYTES / chunk_bytes.max(1)).unwrap_or(1);
    wanted.min(chunks / threads / 4).max(1)
}

/// One call of [`Checkpoint::fill`], shared by its threads. Each chunk is taken by exactly one of them, through
/// `next`, and written under that chunk's guard; a thread that leaves early drops its guard, which empties the
/// chunk again.
struct Fill<'a> {
    checkpoint: &'a Checkpoint,
    memory: &'a Arc<WeightMemory>,
    options: &'a FillOptions,
    cancel: &'a CancellationToken,
    progress: &'a AtomicU64,
    order: &'a [u32],
    /// How many of `order` have been taken, or more.
    next: AtomicUsize,
    /// Whether a thread has failed, so that the others stop too.
    failed: AtomicBool,
}

impl Fill<'_> {
    /// Fills chunks until none is left.
    fn run(&self, reader: Reader<'_>) -> Result<Vec<(u32, Digest)>, StorageError> {
        self.run_until_done(reader).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }

    fn run_until_done(&self, mut reader: Reader<'_>) -> Result<Vec<(u32, Digest)>, StorageError> {
        let mut digests = Vec::new();
        let turn = turn(self.memory.plan().chunk_size(), self.order.len(), self.options.threads.get());
        let mut taken = &[][..];
        let mut buffer = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            if taken.is_empty() {
                let from = self.next.fetch_add(turn, Ordering::Relaxed).min(self.order.len());
                taken = &self.order[from..self.order.len().min(from.saturating_add(turn))];
            }
            let Some((&chunk, others)) = taken.split_first() else { break };
            taken = others;
            match self.memory.begin_write(chunk) {
                Some(writer) => digests.push((chunk, self.fill_chunk(&mut reader, writer)?)),
                // Held already. A chunk that another source is writing may still fail there.
                None if self.memory.begin_read(chunk).is_some() => {
                    if self.options.checks_held {
                        self.check_chunk(&mut reader, chunk, &mut buffer)?;
                    }
                }
                None => return Err(StorageError::Busy { chunk }),
            }
        }
        reader.finish()?;
        Ok(digests)
    }

    fn fill_chunk(&self, reader: &mut Reader<'_>, mut writer: ChunkWriter) -> Result<Digest, StorageError> {
        let chunk = writer.chunk();
        let mut digest = ChunkDigest::start(self.options.algorithm);
        let mut at = 0;
        for segment in self.memory.plan().segments(chunk) {
            let (file, start) = reader.seek(segment.tensor)?;
            let mut done = 0;
            while done < segment.len_bytes {
                if self.cancel.is_cancelled() {
                    return Err(StorageError::Cancelled { path: self.checkpoint.path.clone() });
                }
                let piece = (segment.len_bytes - done).min(PIECE_BYTES);
                // At most `PIECE_BYTES`, which fits.
                let len = usize::try_from(piece).unwrap_or(0);
                writer
                    .read_file_at(file, start + segment.offset_bytes + done, at, len)
                    .and_then(|()| writer.digest(at, len, &mut digest))
                    .map_err(|error| Reader::error(self.checkpoint, segment.tensor, error))?;
                at += len;
                done += piece;
            }
        }
        let digest = digest.finish();
        if let Some(expected) = &self.options.expected
            && expected.digests.get(chunk as usize) != Some(&digest)
        {
            return Err(self.mismatch(chunk));
        }
        let bytes = writer.len() as u64;
        writer.commit_as(digest);
        self.progress.fetch_add(bytes, Ordering::Relaxed);
        Ok(digest)
    }

    /// Reads a chunk that is held, through a small buffer, and compares it.
    fn check_chunk(
        &self,
        reader: &mut Reader<'_>,
        chunk: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<(), StorageError> {
        let each = |bytes: usize| {
            if self.cancel.is_cancelled() {
                return Err(StorageError::Cancelled { path: self.checkpoint.path.clone() });
            }
            // It is progress, though nothing is new.
            self.memory.arrivals().arrived(bytes as u64);
            Ok(())
        };
        let digest = ChunkDigest::start(self.options.algorithm);
        let digest =
            self.checkpoint.digest_chunk((self.memory.plan(), chunk), digest, reader, buffer, each)?;
        if self.memory.digest(chunk) == Some(digest) { Ok(()) } else { Err(self.mismatch(chunk)) }
    }

    fn mismatch(&self, chunk: u32) -> StorageError {
        let first = self.memory.plan().segments(chunk).next().map_or(0, |segment| segment.tensor);
        StorageError::Mismatch {
            chunk,
            tensor: self.checkpoint.tensor(first).name.clone(),
            path: self.checkpoint.file_of(first).path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{shard, small_directory, touch};
    use super::*;

    /// Runs `test` with a [`Fill`] of the one chunk of a model in one file, and that file.
    fn with_fill(test: impl FnOnce(&Fill<'_>, &std::path::Path)) {
        let directory = small_directory();
        let path = shard(&directory, 0);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes()).unwrap();
        let fill = Fill {
            checkpoint: &checkpoint,
            memory: &memory,
            options: &FillOptions::default(),
            cancel: &CancellationToken::new(),
            progress: &AtomicU64::new(0),
            order: &[0],
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        };
        test(&fill, &path);
    }

    #[test]
    fn a_file_that_is_written_to_while_it_is_read_fails_the_load() {
        with_fill(|fill, path| {
            let mut reader = Reader::new(fill.checkpoint);
            // Open, and found unchanged so far.
            reader.seek(0).unwrap();
            touch(path);
            let error = fill.run(reader).unwrap_err().to_string();
            assert!(error.contains("it was written to"), "{error}");
            assert!(fill.failed.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn a_thread_takes_some_huge_pages_and_leaves_enough_to_the_others() {
        assert_eq!(turn(256 << 10, 4_096, 8), 32);
        assert_eq!(turn(16 << 20, 4_096, 8), 1);
        // Four turns for each.
        assert_eq!(turn(256 << 10, 320, 8), 10);
        assert_eq!((turn(256 << 10, 3, 8), turn(256 << 10, 0, 8), turn(0, 1, 1)), (1, 1, 1));
    }

    #[test]
    fn a_thread_stops_when_another_has_failed() {
        with_fill(|fill, _| {
            fill.failed.store(true, Ordering::Relaxed);
            assert_eq!(fill.run(Reader::new(fill.checkpoint)).unwrap(), []);
            assert_eq!(fill.memory.held_bytes(), 0);
        });
    }
}
