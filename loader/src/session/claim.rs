//! Asking for the right to read storage: of the workers that would, one reads it, and the others wait for that.

use std::time::{Duration, Instant};

use rfork_protocol::SeedIdentity;
use rfork_protocol::v2::Role;

use super::load::Load;
use super::loading::Loading;
use super::progress::Phase;
use super::state::Event;
use crate::fallback::Fills;
use crate::lead;
use crate::reporting::origin;

/// For how long a worker waits for who reads storage while that makes no progress, if nobody has set it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much longer than it was set to wait for a seed: who leads may wait as long before it reads.
const BESIDE: Duration = Duration::from_secs(10);

/// How this worker comes to storage, if its planner gives the right to read it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// How long the next question for a seed waits, as another one reads storage.
    led: Option<Duration>,
    /// When the right may be asked for again.
    next: Option<Instant>,
    /// Whether who reads storage reads other bytes than those that are held, as far as their names tell.
    reads_others: bool,
    /// Whether seeds of the key were there, and busy, when one was asked for last.
    pub(super) busy: bool,
    /// Who was waited for last.
    leader: Option<SeedIdentity>,
    /// Whether it was said that another one is waited for.
    told: bool,
}

impl Turn {
    /// Whether what is held may be dropped for what another one reads from storage: nobody who is known reads on what it is
    /// a part of.
    pub(super) fn may_start_over(&self) -> bool {
        self.led.is_some() && self.reads_others
    }

    /// Whether somebody else was waited for before: that one did not become a seed.
    fn has_waited_for_another_than(&self, leader: Option<&SeedIdentity>) -> bool {
        self.leader.as_ref().is_some_and(|before| Some(before) != leader)
    }

    /// How long a question for a seed waits of who does not lead.
    pub(super) fn wait(&mut self) -> Duration {
        self.led.take().unwrap_or_default()
    }
}

/// For how long another one is waited for that makes no progress, when a worker was set to wait for a seed so long.
fn patience(seed_wait: Option<Duration>) -> Duration {
    match seed_wait {
        None => PATIENCE,
        Some(Duration::ZERO) => Duration::ZERO,
        Some(set) => set + BESIDE,
    }
}

impl Load<'_> {
    /// Whether storage is read by a right that the planner gives. Whoever has no storage has no use for it, and waits for a seed
    /// for as long as it was set to.
    pub(super) async fn needs_the_right(&mut self) -> bool {
        let reads = self.fallback.fills() != Fills::Nothing;
        reads && self.loading.is_some() && self.planner.gives_right_to_lead().await
    }

    /// Whether this worker has the right.
    pub(super) fn leads(&self) -> bool {
        self.loading.as_ref().is_some_and(Loading::leads)
    }

    /// Asks whether storage may be read.
    pub(super) async fn claim(&mut self) -> Event {
        self.reporter.phase(Phase::Asking);
        if !self.needs_the_right().await {
            return Event::MayRead;
        }
        if self.leads() {
            return Event::Claimed;
        }
        let pause = self.turn.next.map(|next| next.saturating_duration_since(Instant::now()));
        tokio::time::sleep(pause.unwrap_or_default()).await;
        let patience = patience(self.seed_wait);
        let Some(loading) = self.loading.as_mut() else { return Event::MayRead };
        let whole = self.fallback.fills() == Fills::Whole;
        let Some(claiming) = loading.claiming(&self.worker.key, self.memory, (patience, whole)) else {
            return Event::MayRead;
        };
        let Some(claimed) = claiming.ask().await else {
            tracing::warn!("no planner says whether another worker reads storage: this one does");
            return Event::MayRead;
        };
        match claimed.role {
            Role::Leads => {
                loading.lead(claiming.hold(&claimed));
                Event::Claimed
            }
            // It would not serve either: one after the other would wait for the whole time of those before.
            Role::Waits if whole && self.turn.has_waited_for_another_than(claimed.leader.as_ref()) => {
                tracing::info!(
                    "whoever read storage serves nobody: this worker does not wait for the next one"
                );
                Event::MayRead
            }
            Role::Waits => {
                self.turn.leader.clone_from(&claimed.leader);
                let after = lead::after(&claimed);
                (self.turn.led, self.turn.next) = (Some(after), Some(Instant::now() + after));
                let own = origin(self.memory).filter(|_| self.memory.content().is_none());
                self.turn.reads_others = own.is_some() && claimed.root.is_some() && claimed.root != own;
                if !std::mem::replace(&mut self.turn.told, true) {
                    let leader = claimed.leader.map(|leader| leader.to_string());
                    tracing::info!(leader, "another worker reads storage: waiting for what it has read");
                }
                Event::Led
            }
            Role::Alone => Event::MayRead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_wait_for_a_seed_waits_for_no_reader_of_storage_either() {
        assert_eq!(patience(Some(Duration::ZERO)), Duration::ZERO);
        assert_eq!(patience(None), PATIENCE);
        assert_eq!(patience(Some(PATIENCE)), PATIENCE + BESIDE);
    }
}
