//! The seed that the planner granted: whether it holds this worker's tensors, and what its bytes are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::manifest::agreement::agree;
use rfork_protocol::manifest::content::{Root, content_id};
use rfork_protocol::manifest::metadata::Metadata;
use rfork_protocol::seed_key::UNNAMED_ENGINE;
use rfork_protocol::shown::Shown;
use rfork_protocol::v2::SeedPhase;

use super::load::Load;
use super::progress::Phase;
use super::state::{Event, Offered};
use crate::lease::Lease;
use crate::planner_client::TransferReport;
use crate::seed_client;

/// What is logged at most of an engine's name and version that a seed tells.
const MAX_NAME_BYTES: usize = 64;

impl Load<'_> {
    /// Fetches the seed's metadata and compares it.
    pub(super) async fn check(&mut self) -> Event {
        let Some(lease) = &self.lease else { return Event::SeedFailed };
        let seed = lease.seed().clone();
        self.reporter.phase(Phase::Checking(seed.clone()));
        let begun = Instant::now();
        let loads = lease.source().is_some_and(|source| source.phase == SeedPhase::Loading);
        let wait = if loads { self.planner.timeout() / 2 } else { Duration::ZERO };
        let fetching = seed_client::fetch(self.planner.http(), &seed, &self.worker.key, wait);
        let Some(metadata) = lease.lost().run_until_cancelled(fetching).await else {
            // In a chain a lost lease is no failure of its source's.
            return if lease.source().is_some() { Event::SourceGone } else { Event::LeaseLost };
        };
        let mut metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) if loads => {
                tracing::info!(%seed, %error, "the source, which loads itself, is left");
                return Event::SourceGone;
            }
            Err(error) => {
                tracing::warn!(%seed, %error, "the seed is passed over");
                self.report(TransferReport::Failed {
                    reason: "metadata",
                    bytes: 0,
                    duration: begun.elapsed(),
                });
                return Event::SeedFailed;
            }
        };
        if let Some(engine) = seed_client::engine_elsewhere(&seed, &metadata)
            && !std::mem::replace(&mut self.told_of_data_network, true)
        {
            tracing::warn!(
                %seed,
                %engine,
                "a seed names a transfer engine on another host; it is read there, as workers of other programs may have a \
                 network of their own for weights. This is said once"
            );
        }
        if let Err(error) = agree(self.manifest, &metadata.manifest, &self.worker.tolerance) {
            tracing::warn!(%seed, %error, "the seed holds another model under this key: no byte is read");
            return Event::Disagreed;
        }
        match self.root_of(&metadata) {
            Ok(root) if !is_allowed(lease, root.as_ref()) => {
                let content = root.as_ref().and_then(Root::content).map(|content| content.id.to_string());
                tracing::warn!(%seed, content, "the seed does not hold what the key is pinned to: no byte is read");
                self.report(TransferReport::Failed {
                    reason: "content",
                    bytes: 0,
                    duration: begun.elapsed(),
                });
                match root {
                    // Excluded: each worker of a fleet whose digests fit no pin reads storage while all others wait for it.
                    Some(Root::Growing(_)) => Event::Disagreed,
                    _ => Event::SeedFailed,
                }
            }
            Ok(root) => {
                let offered = match &root {
                    None => Offered::Unnamed,
                    Some(root) if self.memory.goes_on_with(root) => Offered::SameRoot,
                    Some(_) => Offered::OtherRoot,
                };
                if !self.worker.tolerance.shared.is_empty() {
                    metadata.manifest = metadata.manifest.restricted_to(self.manifest);
                }
                self.source = Some(Arc::new((metadata, root)));
                Event::Agreed(offered)
            }
            Err(reason) => {
                tracing::warn!(%seed, reason, "the seed is passed over");
                Event::SeedFailed
            }
        }
    }

    /// What names the seed's bytes, if this worker's engine can read them; `None` when the seed has no digests, as
    /// unmodified vLLM Ascend has none.
    fn root_of(&self, metadata: &Metadata) -> Result<Option<Root>, String> {
        let extension = metadata.extension.as_ref();
        // Who names no engine has the one that was there before engines had names.
        let (theirs, ours) = (extension.map_or(UNNAMED_ENGINE, |e| e.engine.as_str()), self.engine.name());
        if theirs != ours {
            let theirs = Shown::within(theirs, MAX_NAME_BYTES);
            return Err(format!("its engine is {theirs}, this worker's is {ours}"));
        }
        let their_version = extension.and_then(|extension| extension.engine_version.as_deref());
        match (their_version, self.engine.version()) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                let theirs = Shown::within(theirs, MAX_NAME_BYTES);
                return Err(format!(
                    "its engine is version {theirs}, this worker's is {ours}: use one version"
                ));
            }
            (None, Some(ours)) => {
                let session = &metadata.session;
                tracing::warn!(
                    session,
                    ours,
                    "the seed does not tell its engine's version; it is taken for ours"
                );
            }
            _ => {}
        }
        let Some(extension) = extension else { return Ok(None) };
        let plan = self.memory.plan();
        let fits = match &extension.root {
            Root::Content(content) => {
                let chunks = &content.chunks;
                chunks.chunk_bytes == plan.chunk_size() && chunks.digests.len() == plan.count() as usize
            }
            Root::Growing(growing) => growing.chunk_bytes == plan.chunk_size(),
        };
        if !fits {
            return Err("it cuts the model into other chunks: use workers of one release".into());
        }
        // Our own manifest agrees with the seed's and says everything, so it gives the id that the seed must
        // have given.
        if let Root::Content(content) = &extension.root
            && content_id(self.manifest, &content.chunks) != content.id
        {
            return Err("its content id does not fit its manifest and digests".into());
        }
        Ok(Some(extension.root.clone()))
    }
}

/// Whether a seed may be read whose bytes have this name. What grows has no content id yet: it is compared when it has, if its
/// digests are of a kind of which that may come out.
fn is_allowed(lease: &Lease, root: Option<&Root>) -> bool {
    match root {
        Some(Root::Growing(growing)) => lease.allows_one_of(growing.algorithm),
        root => lease.allows(root.and_then(Root::content).map(|content| content.id)),
    }
}
