//! One load, from the first question to the last chunk: does what [`super::state`] decides. What each state does stands
//! in a file of its name: [`super::ask`], [`super::check`], [`super::read`], [`super::fill`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::metadata::Metadata;
use tokio_util::sync::CancellationToken;

use super::ask::Patience;
use super::error::LoadError;
use super::progress::{Phase, Reporter, Share, Source};
use super::state::{Effect, Limits, State, step};
use super::{Session, Worker};
use crate::engine::TransferEngine;
use crate::engine::memory::{Content, WeightMemory};
use crate::fallback::Fallback;
use crate::lease::{Lease, Releases};
use crate::planner_client::{PlannerClient, TransferReport};

/// Seeds that may fail a load before storage is asked.
const SEED_FAILURES: u32 = 4;

/// A load under way. Dropped, it releases its leases in the background.
pub(super) struct Load<'a> {
    pub(super) planner: &'a PlannerClient,
    pub(super) releases: &'a Releases,
    pub(super) engine: &'a dyn TransferEngine,
    pub(super) worker: &'a Worker,
    pub(super) manifest: &'a Manifest,
    pub(super) memory: &'a Arc<WeightMemory>,
    pub(super) fallback: &'a dyn Fallback,
    pub(super) cancel: &'a CancellationToken,
    pub(super) reporter: Reporter,
    /// The lease on the seed that is read.
    pub(super) lease: Option<Lease>,
    /// Leases on seeds that failed, kept until the planner has handed out another seed.
    pub(super) condemned: Vec<Lease>,
    pub(super) failed: HashSet<SeedIdentity>,
    /// The seed that is read: what it says, and what its bytes are, if it has digests.
    pub(super) source: Option<(Metadata, Option<Content>)>,
    pub(super) patience: Patience,
    pub(super) shares: Vec<Share>,
    /// Whether a seed's bytes may have been written.
    pub(super) touched: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(
        session: &'a Session,
        manifest: &'a Manifest,
        memory: &'a Arc<WeightMemory>,
        fallback: &'a dyn Fallback,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self {
            planner: &session.planner,
            releases: &session.releases,
            engine: session.engine.as_ref(),
            worker: &session.worker,
            manifest,
            memory,
            fallback,
            cancel,
            reporter: Reporter::start(session.progress.clone(), memory.clone()),
            lease: None,
            condemned: Vec::new(),
            failed: HashSet::new(),
            source: None,
            patience: Patience::new(session.config.seed_wait),
            shares: Vec::new(),
            touched: false,
        }
    }

    /// Goes from state to state until the weights are loaded, beginning with `first`; gives what each source gave.
    pub(super) async fn run(mut self, first: State) -> Result<Vec<Share>, LoadError> {
        let result = self.drive(first).await;
        self.reporter.phase(if result.is_ok() { Phase::Loaded } else { Phase::Failed });
        result.map(|()| self.shares)
    }

    /// Does what each state says, and the effects between them.
    async fn drive(&mut self, mut state: State) -> Result<(), LoadError> {
        let limits = Limits { seed_failures: SEED_FAILURES, fallback: self.fallback.fills() };
        let cancel = self.cancel;
        loop {
            let outcome = match state {
                State::Loaded => return Ok(()),
                _ if cancel.is_cancelled() => None,
                State::Asking(_) => cancel.run_until_cancelled(self.ask()).await,
                State::Waiting(_) => cancel.run_until_cancelled(self.pause()).await,
                State::Checking(_) => cancel.run_until_cancelled(self.check()).await,
                // Excluded: a cancelled load returns while bytes still arrive. Reading and filling watch for the
                // cancellation themselves, and end when nothing writes any more.
                State::Reading(_) => Some(self.read().await?),
                State::Filling(filling) => Some(self.fill(filling).await?),
            };
            let (next, effects) = step(state, outcome.ok_or(LoadError::Cancelled)?, limits);
            for effect in effects {
                self.perform(effect)?;
            }
            state = next;
        }
    }

    fn perform(&mut self, effect: Effect) -> Result<(), LoadError> {
        match effect {
            Effect::Condemn => {
                if let Some(lease) = self.lease.take() {
                    self.failed.insert(lease.seed().clone());
                    self.condemned.push(lease);
                }
            }
            Effect::Release => {
                self.lease = None;
                self.condemned.clear();
            }
            Effect::StartOver => {
                tracing::warn!("what comes next has other bytes: the load starts over");
                self.memory.forget_all()?;
                self.shares.clear();
            }
        }
        Ok(())
    }

    /// Notes how the seed did, for the planner.
    pub(super) fn report(&mut self, report: TransferReport) {
        if let Some(lease) = &mut self.lease {
            lease.report(report);
        }
    }

    /// Notes what a source gave.
    pub(super) fn share(&mut self, source: Source, held_before: u64, begun: Instant) {
        let bytes = self.memory.held_bytes() - held_before;
        if bytes > 0 {
            self.shares.push(Share { source, bytes, duration: begun.elapsed() });
        }
    }
}
