//! Reading chunks from the fallback.

use std::sync::Arc;
use std::time::Instant;

use rfork_protocol::manifest::content::{ChunkDigests, content_id};

use super::error::LoadError;
use super::load::Load;
use super::progress::{Phase, Source};
use super::state::{Event, Filling};
use crate::digest::DigestAlgorithm;
use crate::engine::memory::Content;
use crate::fallback::{FallbackError, FillRequest};

impl Load<'_> {
    /// Reads what `filling` says. What it filled before it failed stays held.
    pub(super) async fn fill(&mut self, filling: Filling) -> Result<Event, LoadError> {
        self.reporter.phase(Phase::Loading(Source::Storage));
        let (begun, held_before) = (Instant::now(), self.memory.held_bytes());
        let expected = match filling {
            Filling::Missing(_) => self.memory.content().map(|content| content.chunks.clone()),
            Filling::All => None,
        };
        let request = FillRequest {
            memory: self.memory.clone(),
            chunks: self.memory.missing(),
            expected,
            touched: self.touched,
            filled_bytes: Arc::default(),
            cancel: self.cancel.clone(),
        };
        // What is held is served on meanwhile, so the planner has to hear of it.
        let named = matches!(filling, Filling::Missing(_));
        let _beating = self.loading.as_ref().filter(|_| named).and_then(|loading| loading.beat(self.memory));
        self.memory.arrivals().source(true);
        let result = self.fallback.fill(request).await;
        self.memory.arrivals().source(false);
        self.share(Source::Storage, held_before, begun);
        match result {
            Ok(digests) => {
                if filling == Filling::All {
                    self.name_content(&digests);
                }
                if self.memory.all_held() && self.memory.content().is_some() {
                    return Ok(Event::AllHeld);
                }
                let missing = self.memory.missing().len();
                let reason = format!("the fallback left {missing} chunk(s) empty");
                Err(FallbackError::Crashed(reason).into())
            }
            Err(FallbackError::Cancelled) => Err(LoadError::Cancelled),
            Err(error @ FallbackError::OtherBytes(_)) if matches!(filling, Filling::Missing(_)) => {
                tracing::warn!(%error, "storage holds other weights than the seed did");
                Ok(Event::OtherBytes)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// All chunks came from storage: their digests are made here, and travel on from here.
    fn name_content(&self, digests: &[(u32, u64)]) {
        let plan = self.memory.plan();
        if digests.len() == plan.count() as usize {
            let chunks = ChunkDigests {
                algorithm: DigestAlgorithm::default().to_string(),
                chunk_bytes: plan.chunk_size(),
                digests: digests.iter().map(|(_, digest)| *digest).collect(),
            };
            self.memory.set_content(Content { id: content_id(self.manifest, &chunks), chunks });
        }
    }
}
