//! What clients ask for, as it stands when they ask: which lease, which seed, which attempt.

use super::super::super::Report;
use super::super::Ground;
use super::super::commands::command;
use super::super::history::{Ask, Cut};
use super::super::model::{Event, Place};
use super::super::world::named;
use super::{Begun, Play};

impl<G: Ground> Play<'_, G> {
    pub(super) fn begin(&mut self, planner: usize, asks: &[Ask], cut: Option<Cut>) -> Begun {
        let mut events: Vec<Event> = Vec::with_capacity(asks.len());
        for ask in asks {
            // Where none was granted, of one that nobody has.
            let leased = |back, other: Option<u8>| {
                let lease = self.leases.iter().rev().nth(back).or(self.leases.first());
                let (lease, seed) = lease.copied().unwrap_or((u32::MAX, 0));
                (lease, other.unwrap_or(seed))
            };
            let event = match *ask {
                Ask::Register(seed, key, process, owner, age_ms) => {
                    Event::Register { seed, key, process, owner, age_ms }
                }
                Ask::Hear(seed, key, process, owner, age_ms) => {
                    Event::Hear { seed, key, process, owner, age_ms }
                }
                Ask::Acquire(key, exclude) => {
                    self.asked += 1;
                    Event::Acquire { key, lease: self.asked, exclude, place: None }
                }
                Ask::Renew(back, other) => {
                    let (lease, seed) = leased(back, other);
                    Event::Renew { seed, lease }
                }
                Ask::Release(back, other, report) => {
                    let (lease, seed) = leased(back, other);
                    Event::Release { seed, lease, report }
                }
                // Whichever holding of it was told of last: it may be gone.
                Ask::Answered(seed) => {
                    Event::Answered { seed, number: self.numbers.get(&seed).copied().unwrap_or_default() }
                }
                Ask::Drain(seed, key) => Event::Drain { seed, key },
                Ask::Remove(seed, key, owner) => Event::Remove { seed, key, owner },
                Ask::Serve(key) => Event::Serve { key },
                Ask::Wait(..) | Ask::Named(..) | Ask::Leave(..) | Ask::Again(..) => {
                    self.begin_wait(planner, *ask, &mut events);
                    continue;
                }
            };
            events.push(event);
        }
        // Of one batch those under a key may be queued after the others, in an order of the store's.
        events.sort_by_key(Event::name);
        // Registrations come before heartbeats, and removals before drains: a store may sort what it is given by kind.
        events.sort_by_key(|event| (event.kind(), matches!(event, Event::Hear { .. } | Event::Drain { .. })));
        let waits = |event: &&Event| matches!(event, Event::Acquire { place: Some(_), .. });
        self.places.extend(events.iter().filter(waits).cloned());
        let commands = events.iter().map(|event| command(self.stage.world, event)).collect();
        Begun { planner, events, commands, beats: Vec::new(), cut }
    }

    /// Of those who wait, or may be repeated; `beside` is what is asked at once.
    fn begin_wait(&mut self, planner: usize, ask: Ask, beside: &mut Vec<Event>) {
        self.asked += 1;
        let planner = self.names[planner];
        // Which of several comes first would be open.
        let is_beside = |lease, again| {
            beside.iter().any(|event| match event {
                Event::Acquire { lease: of, place: Some(place), .. } => {
                    *of == lease && (again || place.again.is_some())
                }
                _ => false,
            })
        };
        match ask {
            Ask::Wait(key, exclude, wait_ms) => {
                let place = Place { planner, wait_ms, name: None, attempt: 0, again: None };
                beside.push(Event::Acquire { key, lease: self.asked, exclude, place: Some(place) });
            }
            Ask::Named(name, request) => {
                let (lease, wait_ms) = named(name);
                if is_beside(lease, false) {
                    return;
                }
                // At once all ask for the same: of others it would be open which came first.
                let other = beside.iter().filter_map(Event::name).find(|(other, _)| *other == name);
                let (name, attempt) = (other.or(Some((name, request))), self.asked.into());
                let place = Place { planner, wait_ms, name, attempt, again: None };
                beside.push(Event::Acquire { key: 0, lease, exclude: None, place: Some(place) });
            }
            Ask::Leave(back, why) => {
                let Some((_, lease, _, Place { attempt, .. })) = self.place(back) else { return };
                // Nobody ends one wait twice at once.
                let is_end = |event: &Event| matches!(event, Event::Leave { lease: of, .. } if *of == lease);
                if !beside.iter().any(is_end) {
                    beside.push(Event::Leave { planner, lease, attempt, why });
                }
            }
            Ask::Again(back, fails) => {
                let Some((key, lease, exclude, place)) = self.place(back) else { return };
                if is_beside(lease, true) {
                    return;
                }
                let granted = self.leases.iter().rev().find(|(granted, _)| *granted == lease);
                if let Some((lease, seed)) = granted.filter(|_| fails) {
                    beside.push(Event::Release { seed: *seed, lease: *lease, report: Report::Failed });
                }
                let again = Some(place.attempt);
                let place = Some(Place { planner, attempt: self.asked.into(), again, ..place });
                beside.push(Event::Acquire { key, lease, exclude, place });
            }
            _ => {}
        }
    }

    /// Of acquisitions that wait or may be repeated, counted back from the last: key, lease, seed that is not wanted.
    fn place(&self, back: usize) -> Option<(usize, u32, Option<u8>, Place)> {
        match *self.places.iter().rev().nth(back).or(self.places.first())? {
            Event::Acquire { key, lease, exclude, place } => Some((key, lease, exclude, place?)),
            _ => None,
        }
    }
}
