//! One load: what it has, and whose chunks it was given. [`super::drive`] goes on with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::content::Root;
use rfork_protocol::manifest::metadata::Metadata;
use tokio_util::sync::CancellationToken;

use super::claim::Turn;
use super::loading::Loading;
use super::patience::Patience;
use super::progress::{Reporter, Share, Source};
use super::read::Reading;
use super::seek::Asking;
use super::stall::StallRule;
use super::{Session, Worker};
use crate::engine::TransferEngine;
use crate::engine::memory::WeightMemory;
use crate::fallback::Fallback;
use crate::lease::{Lease, Releases};
use crate::planner_client::{PlannerClient, TransferReport};

/// For how long a source that was left is not asked for again.
const LEFT_ALONE: Duration = Duration::from_secs(10);

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
    /// Sources that were left, though they did not fail, and when.
    pub(super) left: HashMap<SeedIdentity, Instant>,
    /// The seed that is read: what it says, and what names its bytes, if it has digests.
    pub(super) source: Option<Arc<(Metadata, Option<Root>)>>,
    /// What is read from it just now.
    pub(super) reading: Option<Reading<'a>>,
    /// The lease on another source, which was asked for because this one stalls.
    pub(super) replacement: Option<Lease>,
    /// The question for one that is under way, when the connection to this one has ended.
    pub(super) asking: Option<Asking>,
    /// This worker as a loading seed, if it is one.
    pub(super) loading: &'a mut Option<Loading>,
    pub(super) patience: Patience,
    pub(super) stall: StallRule,
    /// How long it was set to wait for a seed, if it was.
    pub(super) seed_wait: Option<Duration>,
    /// Whose turn it is to read storage.
    pub(super) turn: Turn,
    pub(super) shares: Vec<Share>,
    /// Whether a seed's bytes may have been written.
    pub(super) touched: bool,
    /// What the source brought that was left for storage.
    pub(super) left_bytes_per_sec: f64,
    /// Whether storage could not be read when there was a seed as well.
    pub(super) storage_failed: bool,
    /// Whether it was said that a seed has its engine on another host.
    pub(super) told_of_data_network: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(
        session: &'a Session,
        manifest: &'a Manifest,
        memory: &'a Arc<WeightMemory>,
        fallback: &'a dyn Fallback,
        cancel: &'a CancellationToken,
        loading: &'a mut Option<Loading>,
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
            stall: session.stall,
            seed_wait: session.config.seed_wait,
            turn: Turn::default(),
            reporter: Reporter::start(session.progress.clone(), memory.clone()),
            lease: None,
            condemned: Vec::new(),
            failed: HashSet::new(),
            left: HashMap::new(),
            source: None,
            reading: None,
            replacement: None,
            asking: None,
            loading,
            patience: Patience::new(session.config.seed_wait.unwrap_or_default()),
            shares: Vec::new(),
            touched: false,
            left_bytes_per_sec: 0.0,
            storage_failed: false,
            told_of_data_network: false,
        }
    }

    /// Notes how the seed did, for the planner.
    pub(super) fn report(&mut self, report: TransferReport) {
        if let Some(lease) = &mut self.lease {
            lease.report(report);
        }
    }

    /// Seeds that are not wanted now.
    pub(super) fn excluded(&mut self) -> Vec<SeedIdentity> {
        self.left.retain(|_, left| left.elapsed() < LEFT_ALONE);
        self.failed.iter().chain(self.left.keys()).cloned().collect()
    }

    fn depth_behind(&self, seed: &SeedIdentity) -> Option<u32> {
        let lease = self.lease.as_ref().filter(|lease| lease.seed() == seed)?;
        lease.source().map(|source| source.depth)
    }

    /// Notes what a source gave.
    pub(super) fn share(&mut self, source: Source, held_before: u64, begun: Instant) {
        let bytes = self.memory.held_bytes() - held_before;
        if bytes > 0 {
            let depth = match &source {
                Source::Storage => Some(0),
                Source::Seed(seed) => self.depth_behind(seed),
            };
            self.shares.push(Share { source, depth, bytes, duration: begun.elapsed() });
        }
    }
}
