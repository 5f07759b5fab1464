//! The one driver of a load, from the first question to the last chunk: does what [`super::state`] decides. What each
//! state does stands in a file of its name: [`super::ask`], [`super::check`], [`super::read`], [`super::fill`].

use super::error::LoadError;
use super::load::Load;
use super::progress::{Phase, Share};
use super::state::{Effect, Limits, State, step};

/// Seeds that may fail a load before storage is asked.
const SEED_FAILURES: u32 = 4;

impl Load<'_> {
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
}
