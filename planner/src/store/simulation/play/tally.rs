//! What happened in histories, counted.

use super::super::super::{Heard, Refusal, Removal};
use super::super::model::{Event, Left, Place, Told};

/// How often what matters has happened: a simulation in which something never did shows nothing of it.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Tally {
    pub(in super::super) steps: u64,
    pub(in super::super) granted: u64,
    pub(in super::super) refused: u64,
    pub(in super::super) released: u64,
    pub(in super::super) fenced: u64,
    pub(in super::super) ended_by_sweep: u64,
    pub(in super::super) killed_before_commit: u64,
    pub(in super::super) killed_after_commit: u64,
    pub(in super::super) together: u64,
    pub(in super::super) queued: u64,
    pub(in super::super) woken: u64,
    pub(in super::super) left_granted: u64,
    pub(in super::super) superseded: u64,
    /// Repetitions that find something else, or the end of what they repeat.
    pub(in super::super) repeated_late: u64,
    pub(in super::super) queued_again: u64,
    pub(in super::super) clock_set: u64,
    /// What was refused because a seed is somebody else's.
    pub(in super::super) owned: u64,
}

impl Tally {
    pub(in super::super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.granted += other.granted;
        self.refused += other.refused;
        self.released += other.released;
        self.fenced += other.fenced;
        self.ended_by_sweep += other.ended_by_sweep;
        self.killed_before_commit += other.killed_before_commit;
        self.killed_after_commit += other.killed_after_commit;
        self.together += other.together;
        self.queued += other.queued;
        self.woken += other.woken;
        self.left_granted += other.left_granted;
        self.superseded += other.superseded;
        self.repeated_late += other.repeated_late;
        self.queued_again += other.queued_again;
        self.clock_set += other.clock_set;
        self.owned += other.owned;
    }

    pub(super) fn count(&mut self, event: &Event, told: Option<Told>) {
        let again = matches!(event, Event::Acquire { place: Some(Place { again: Some(_), .. }), .. });
        match told {
            Some(Told::Queued(_)) if again => self.queued_again += 1,
            Some(Told::Refused(Refusal::LeaseEnded | Refusal::OtherRequest)) => self.repeated_late += 1,
            Some(Told::Left(Left::Superseded)) => self.superseded += 1,
            Some(Told::Owned | Told::Heard(Heard::Owned, _) | Told::Removed(Removal::Owned)) => {
                self.owned += 1;
            }
            Some(Told::Granted(_)) => self.granted += 1,
            Some(Told::Queued(_)) => self.queued += 1,
            Some(Told::Left(Left::Granted(..))) => self.left_granted += 1,
            Some(Told::Refused(_)) => self.refused += 1,
            Some(Told::Released(true)) => self.released += 1,
            Some(Told::Released(false) | Told::Renewed(None)) => self.fenced += 1,
            _ => {}
        }
    }

    /// The names of what never happened.
    pub(in super::super) fn missing(&self) -> Vec<&'static str> {
        let all = [
            ("granted", self.granted),
            ("refused", self.refused),
            ("released", self.released),
            ("fenced", self.fenced),
            ("ended_by_sweep", self.ended_by_sweep),
            ("killed_before_commit", self.killed_before_commit),
            ("killed_after_commit", self.killed_after_commit),
            ("together", self.together),
            ("queued", self.queued),
            ("woken", self.woken),
            ("left_granted", self.left_granted),
            ("superseded", self.superseded),
            ("repeated_late", self.repeated_late),
            ("queued_again", self.queued_again),
            ("clock_set", self.clock_set),
        ];
        all.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }
}
