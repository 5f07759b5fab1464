//! What callers see of a load while it runs, and afterwards.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::content::ContentId;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::memory::WeightMemory;

/// How often progress is told while bytes flow.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Another worker.
    Seed(SeedIdentity),
    /// Storage.
    Storage,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(identity) => write!(f, "seed {identity}"),
            Self::Storage => f.write_str("storage"),
        }
    }
}

/// What a worker is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Idle,
    /// Asking the planner for a seed, or waiting to ask again.
    Asking,
    /// Comparing a seed's metadata.
    Checking(SeedIdentity),
    /// Bytes flow.
    Loading(Source),
    /// Every chunk is held.
    Loaded,
    /// It could not be loaded.
    Failed,
}

/// How far a load is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// What the worker is doing.
    pub phase: Phase,
    /// Bytes that are held and verified.
    pub held_bytes: u64,
    /// All bytes of the model.
    pub total_bytes: u64,
    /// Chunks that are held.
    pub held_chunks: u32,
    /// All chunks of the model.
    pub total_chunks: u32,
    /// Bytes a second since this phase began.
    pub bytes_per_sec: f64,
}

/// What one source gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Which.
    pub source: Source,
    /// Sources between this worker and a seed that holds everything, or storage, as the planner said when it granted this
    /// one; `None` if it said nothing.
    pub depth: Option<u32>,
    /// Bytes that it gave and that are held at the end.
    pub bytes: u64,
    /// How long it was read.
    pub duration: Duration,
}

/// A finished load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// The model's size.
    pub bytes: u64,
    /// From the first question to the last byte.
    pub duration: Duration,
    /// From the first question to the first byte; `None` if the memory was filled without this worker's seeing it.
    pub first_byte: Option<Duration>,
    /// What each source gave, in the order in which they were asked; those that gave nothing are left out.
    pub shares: Vec<Share>,
    /// What the bytes are; `None` when they came from a seed without digests. They get a name when this worker serves.
    pub content: Option<ContentId>,
}

impl LoadReport {
    /// The source that gave most.
    pub fn main_source(&self) -> &Source {
        let most = self.shares.iter().max_by_key(|share| share.bytes);
        most.map_or(&Source::Storage, |share| &share.source)
    }

    /// Sources between this worker and a seed that holds everything, or storage, while it read from its
    /// [main source](Self::main_source), if the planner said so.
    pub fn depth(&self) -> Option<u32> {
        self.shares.iter().max_by_key(|share| share.bytes)?.depth
    }

    /// How long bytes flowed, from all sources; the rest of the time went into asking and waiting.
    pub fn transfer_duration(&self) -> Duration {
        self.shares.iter().map(|share| share.duration).sum()
    }

    /// Bytes that came from other workers.
    pub fn bytes_from_seeds(&self) -> u64 {
        let seeds = self.shares.iter().filter(|share| matches!(share.source, Source::Seed(_)));
        seeds.map(|share| share.bytes).sum()
    }
}

/// Tells progress while it lives.
pub(super) struct Reporter {
    _task: AbortOnDropHandle<()>,
    sender: watch::Sender<Progress>,
    memory: Arc<WeightMemory>,
}

impl Reporter {
    pub(super) fn start(sender: watch::Sender<Progress>, memory: Arc<WeightMemory>) -> Self {
        let (told, from) = (sender.clone(), memory.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            let (mut phase, mut began, mut held_before) = (Phase::Idle, Instant::now(), 0);
            loop {
                ticks.tick().await;
                told.send_modify(|progress| {
                    if progress.phase != phase {
                        (phase, began, held_before) =
                            (progress.phase.clone(), Instant::now(), from.held_bytes());
                    }
                    measure(progress, &from);
                    let gained = progress.held_bytes.saturating_sub(held_before);
                    progress.bytes_per_sec = gained as f64 / began.elapsed().as_secs_f64().max(0.001);
                });
            }
        }));
        let reporter = Self { _task: task, sender, memory };
        reporter.phase(Phase::Idle);
        reporter
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.sender.send_modify(|progress| {
            progress.phase = phase;
            measure(progress, &self.memory);
        });
    }
}

fn measure(progress: &mut Progress, memory: &WeightMemory) {
    let plan = memory.plan();
    progress.held_bytes = memory.held_bytes();
    progress.total_bytes = plan.total_bytes();
    progress.total_chunks = plan.count();
    progress.held_chunks = plan.count() - memory.missing().len();
}
