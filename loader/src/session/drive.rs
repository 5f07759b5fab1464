//! The one driver of a load, from the first question to the last chunk: does what [`super::state`] decides. What each
//! state does stands in a file of its name: [`super::ask`], [`super::check`], [`super::read`], [`super::seek`],
//! [`super::claim`], [`super::fill`].

use std::time::Instant;

use super::error::LoadError;
use super::load::Load;
use super::progress::{Phase, Share};
use super::state::{Effect, Limits, State, step};

/// Seeds that may fail a load before storage is asked.
const SEED_FAILURES: u32 = 4;
/// How often a load may change its source without a failure before storage is asked.
const MOVES: u32 = 64;

impl Load<'_> {
    /// Goes from state to state until the weights are loaded, beginning with `first`; gives what each source gave.
    pub(super) async fn run(mut self, first: State) -> Result<Vec<Share>, LoadError> {
        let result = self.drive(first).await;
        match &result {
            // Who could not take itself away has just tried.
            Ok(()) | Err(LoadError::StillRead(_)) => {}
            // Whatever is asked of the engine waits for the call that hangs. It keeps the memory, and nobody changes it.
            Err(LoadError::Hung(_)) => {
                if let Some(loading) = self.loading.as_mut() {
                    loading.leave().await;
                }
            }
            Err(_) => self.leave_the_chain().await,
        }
        self.reporter.phase(if result.is_ok() { Phase::Loaded } else { Phase::Failed });
        result.map(|()| self.shares)
    }

    /// Does what each state says, and the effects between them.
    async fn drive(&mut self, mut state: State) -> Result<(), LoadError> {
        let limits = Limits { seed_failures: SEED_FAILURES, moves: MOVES, fallback: self.fallback.fills() };
        let cancel = self.cancel;
        loop {
            let outcome = match state {
                State::Loaded => return Ok(()),
                _ if cancel.is_cancelled() => {
                    // Excluded: a read that a stall has left under way still writes when the load has returned.
                    self.end_reading().await?;
                    None
                }
                State::Asking(_) => cancel.run_until_cancelled(self.ask()).await,
                State::Waiting(_) => cancel.run_until_cancelled(self.pause()).await,
                State::Claiming(_) => cancel.run_until_cancelled(self.claim()).await,
                State::Checking(_) => cancel.run_until_cancelled(self.check()).await,
                // Excluded: a cancelled load returns while bytes still arrive. Reading and filling watch for the
                // cancellation themselves, and end when nothing writes any more.
                State::Reading(_) => Some(self.read().await?),
                State::Seeking(_) => Some(self.seek().await?),
                State::Filling(filling) => Some(self.fill(filling).await?),
            };
            let (next, effects) = step(state, outcome.ok_or(LoadError::Cancelled)?, limits);
            for effect in effects {
                self.perform(effect).await?;
            }
            state = next;
        }
    }

    /// Takes this loading seed away before its lease is released.
    ///
    /// Excluded: the planner hears of the release first and gives the place to somebody else, and who reads here has none.
    async fn leave_the_chain(&mut self) {
        if let Some(loading) = self.loading.as_mut()
            && let Err(error) = loading.take_away().await
        {
            tracing::warn!(%error, "peers still read this worker's memory");
        }
    }

    async fn perform(&mut self, effect: Effect) -> Result<(), LoadError> {
        self.end_reading().await?;
        match effect {
            Effect::Condemn => {
                if let Some(lease) = self.lease.take() {
                    self.failed.insert(lease.seed().clone());
                    self.condemned.push(lease);
                }
            }
            Effect::Release => {
                self.lease = None;
                self.replacement = None;
                self.asking = None;
                self.condemned.clear();
            }
            Effect::Replace => {
                if let Some(lease) = std::mem::replace(&mut self.lease, self.replacement.take()) {
                    self.left.insert(lease.seed().clone(), Instant::now());
                }
            }
            Effect::TakeAway => {
                if let Some(loading) = self.loading.as_mut() {
                    loading.take_away().await.map_err(LoadError::StillRead)?;
                }
            }
            Effect::StartOver => {
                tracing::warn!("what comes next has other bytes: the load starts over");
                self.memory.forget_all()?;
                if self.loading.is_some() {
                    self.engine.register(self.memory.clone()).await?;
                }
                self.shares.clear();
            }
        }
        Ok(())
    }
}
