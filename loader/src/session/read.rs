//! Reading the missing chunks from a seed.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::LoadError;
use super::load::Load;
use super::progress::{Phase, Source};
use super::state::Event;
use crate::engine::{ReadError, ReadRequest};
use crate::planner_client::TransferReport;

/// How long a load that its caller ends waits for the read that is under way. One by address cannot be ended.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

impl Load<'_> {
    /// Reads what is missing. When this returns, nothing of the seed's writes to the memory any more, but for
    /// [`LoadError::Hung`].
    pub(super) async fn read(&mut self) -> Result<Event, LoadError> {
        let (Some(lease), Some((metadata, content))) = (&self.lease, &self.source) else {
            return Ok(Event::SeedFailed);
        };
        let seed = lease.seed().clone();
        self.reporter.phase(Phase::Loading(Source::Seed(seed.clone())));
        if let Some(content) = content {
            self.memory.set_content(content.clone());
        }
        self.touched = true;
        let (begun, held_before) = (Instant::now(), self.memory.held_bytes());
        let stop = self.cancel.child_token();
        let request = ReadRequest {
            seed: metadata,
            content: content.as_ref(),
            memory: self.memory,
            loading: None,
            cancel: &stop,
        };
        let mut reading = self.engine.read(request);
        let result = tokio::select! {
            result = &mut reading => result,
            // Excluded: another seed is asked, or storage read, while this read still writes. It ends first.
            () = lease.lost().cancelled() => {
                stop.cancel();
                reading.as_mut().await
            }
            // Only a read by address cannot be ended: another is waited for, so that nothing writes any more.
            () = long_cancelled(self.cancel), if !self.engine.capabilities().verifies => {
                // What reads still owns what it writes.
                let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(LoadError::Hung(ReadError::Hung { peer: metadata.session.clone(), waited_ms }));
            }
        };
        drop(reading);
        let lost = lease.lost().is_cancelled();
        self.share(Source::Seed(seed.clone()), held_before, begun);
        let (bytes, duration) = (self.memory.held_bytes().saturating_sub(held_before), begun.elapsed());
        let failed = |reason| TransferReport::Failed { reason, bytes, duration };
        self.report(match &result {
            Ok(_) if self.memory.all_held() => TransferReport::Done { bytes, duration },
            Ok(_) => failed("incomplete"),
            Err(ReadError::Lost { .. } | ReadError::Hung { .. }) => failed("lost"),
            Err(ReadError::Protocol { .. }) => failed("protocol"),
            Err(ReadError::Corrupt { .. }) => failed("corrupt"),
            // That says nothing of the seed's health: one that refuses, because it has readers enough, lives.
            Err(_) => TransferReport::Aborted,
        });
        match result {
            Ok(_) if self.memory.all_held() => Ok(Event::AllHeld),
            Ok(_) => Ok(Event::SeedFailed),
            // Nothing else may write where that call still may: not a fallback, nor another seed.
            Err(error @ ReadError::Hung { .. }) => Err(LoadError::Hung(error)),
            Err(_) if self.cancel.is_cancelled() => Err(LoadError::Cancelled),
            Err(ReadError::Cancelled) if lost => Ok(Event::LeaseLost),
            Err(error) => {
                let tensors = self.tensors_of(&error);
                let held_bytes = self.memory.held_bytes();
                tracing::warn!(%seed, %error, tensors, held_bytes, "the seed failed; what is held is kept");
                Ok(Event::SeedFailed)
            }
        }
    }

    /// The names of the tensors in a corrupt chunk, the first few.
    fn tensors_of(&self, error: &ReadError) -> String {
        let ReadError::Corrupt { chunk, .. } = error else { return String::new() };
        let segments = self.memory.plan().segments(*chunk).take(3);
        let names = segments.filter_map(|segment| self.manifest.tensors().get(segment.tensor));
        names.map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Returns when a token was cancelled [`CANCEL_GRACE`] ago.
async fn long_cancelled(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
}
