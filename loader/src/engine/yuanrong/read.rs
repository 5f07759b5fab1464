//! Reading a seed by address: calls of bounded size, and what each of them completes.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rfork_protocol::manifest::NO_ADDRESS;
use rfork_protocol::manifest::content::Root;
use rfork_protocol::shown::Shown;

use super::follow::follow;
use super::pace::Pace;
use super::plan::{Batch, LIMITS, batches};
use super::{Ranges, Unanswered, VendorError, YuanRongEngine};
use crate::digest::Digest;
use crate::engine::memory::ChunkWriter;
use crate::engine::{EngineError, ReadError, ReadReport, ReadRequest};

/// Reads every chunk that the memory misses.
pub(super) async fn read(
    engine: &YuanRongEngine,
    request: &ReadRequest<'_>,
) -> Result<ReadReport, ReadError> {
    let mut reading = Reading::begin(engine, request)?;
    if request.loading.is_some() {
        follow(&mut reading).await?;
    } else if matches!(request.root, Some(Root::Growing(_))) {
        return Err(
            reading.unusable("its bytes have no content id, and it tells nothing of what it holds".into())
        );
    } else {
        let missing: Vec<u32> = request.memory.missing().iter().collect();
        let mut missing = missing.into_iter();
        loop {
            let batches = reading.next(|| missing.next());
            if batches.is_empty() {
                break;
            }
            for batch in batches {
                for writer in reading.call(batch).await? {
                    reading.hold(writer, None);
                }
            }
        }
    }
    Ok(reading.report)
}

/// A read under way. Dropped, chunks that are not held are empty again, once no call writes there.
pub(super) struct Reading<'a> {
    engine: &'a YuanRongEngine,
    pub(super) request: &'a ReadRequest<'a>,
    /// Where tensors start, here and at the seed.
    to: Vec<u64>,
    from: Vec<u64>,
    /// Chunks of which only a part is there yet, in the order in which they were begun.
    open: Vec<ChunkWriter>,
    pace: Pace,
    report: ReadReport,
}

impl<'a> Reading<'a> {
    fn begin(engine: &'a YuanRongEngine, request: &'a ReadRequest<'a>) -> Result<Self, ReadError> {
        let (memory, theirs) = (request.memory, request.seed.manifest.tensors());
        let from: Vec<u64> = theirs.iter().map(|tensor| tensor.address).collect();
        let to: Vec<u64> = (0..).map_while(|tensor| memory.tensor_address(tensor)).collect();
        let (open, pace, report) = (Vec::new(), Pace::begin(), ReadReport::default());
        let reading = Self { engine, request, to, from, open, pace, report };
        if reading.to.len() != reading.from.len() {
            // A draft model's seed may lack what it shares with its target; then the two are not cut alike.
            let (theirs, ours) = (reading.from.len(), reading.to.len());
            return Err(reading.unusable(format!("it has {theirs} tensors, this worker {ours}")));
        }
        if let Some(tensor) = theirs.iter().find(|tensor| tensor.address == NO_ADDRESS) {
            let name = Shown::within(&tensor.name, 120);
            return Err(reading.breaks(format!("it does not tell the address of '{name}'")));
        }
        Ok(reading)
    }

    /// What brings the next chunks, call by call: as many as a call should read in a chain, else all. None if there are none.
    pub(super) fn next(&self, mut chunk: impl FnMut() -> Option<u32>) -> Vec<Batch> {
        let plan = self.request.memory.plan();
        let most = if self.request.in_a_chain { self.pace.bytes() } else { u64::MAX };
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        while bytes < most
            && let Some(chunk) = chunk()
        {
            bytes += plan.chunk_bytes(chunk);
            chunks.push(chunk);
        }
        // So most ranges are long.
        chunks.sort_unstable();
        batches(plan, chunks, &self.to, &self.from, LIMITS)
    }

    /// Makes one call. Gives the chunks that it has completed: they are held when their reader says so.
    pub(super) async fn call(&mut self, batch: Batch) -> Result<Vec<ChunkWriter>, ReadError> {
        let memory = self.request.memory;
        if self.request.cancel.is_cancelled() {
            return Err(ReadError::Cancelled);
        }
        for chunk in &batch.begins {
            let Some(writer) = memory.begin_write(*chunk) else {
                return Err(self.unusable(format!("chunk {chunk} is being written by somebody else")));
            };
            self.open.push(writer);
        }
        let (bytes, completed) = (batch.bytes(), batch.completes.len());
        let (target, writers) = (self.peer(), std::mem::take(&mut self.open));
        let synchronized = self.request.in_a_chain.then(|| memory.clone());
        // The call owns what it writes until it returns, whoever waits for it.
        let calling = self.engine.call(self.engine.options.deadline(bytes), move |driver| {
            driver
                .vendor
                .read(&target, Ranges::from(&batch))
                .map_err(|error| read_error(target.clone(), &error))?;
            // Excluded: somebody is told of a chunk that still arrives on the device.
            if let Some(Err(error)) = synchronized.map(|memory| memory.synchronize()) {
                return Err(ReadError::Unusable { peer: target, reason: error.to_string() });
            }
            Ok(writers)
        });
        let begun = Instant::now();
        self.open = match calling.await {
            Ok(read) => read?,
            Err(Unanswered::Gone) => return Err(self.unusable(EngineError::Gone.to_string())),
            Err(Unanswered::Hung) => {
                let waited_ms = self.engine.hung.waited_ms.load(Ordering::Relaxed);
                return Err(ReadError::Hung { peer: self.peer(), waited_ms });
            }
        };
        self.pace.lasted(bytes, begun.elapsed());
        memory.arrivals().arrived(bytes);
        // Chunks are completed in the order in which they were begun.
        Ok(self.open.drain(..completed).collect())
    }

    /// Holds a chunk, with the digest that it has if nothing else tells that.
    pub(super) fn hold(&mut self, writer: ChunkWriter, digest: Option<Digest>) {
        self.report.chunks += 1;
        self.report.bytes += writer.len() as u64;
        match digest {
            Some(digest) => writer.commit_as(digest),
            None => writer.commit(),
        }
    }

    fn peer(&self) -> String {
        self.request.seed.session.clone()
    }

    pub(super) fn unusable(&self, reason: String) -> ReadError {
        ReadError::Unusable { peer: self.peer(), reason }
    }

    fn breaks(&self, reason: String) -> ReadError {
        ReadError::Protocol { peer: self.peer(), reason }
    }
}

/// What a failed read says of the seed.
fn read_error(peer: String, error: &VendorError) -> ReadError {
    let reason = error.to_string();
    match error.code {
        VendorError::NOT_AUTHORIZED => ReadError::Refused { peer, reason },
        VendorError::INVALID => ReadError::Unusable { peer, reason },
        _ => ReadError::Lost { peer, reason },
    }
}
