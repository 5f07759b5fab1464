//! Those who wait: who comes first, who is called up, who answers whom.

use std::collections::BTreeSet;

use super::super::super::{Leaving, ONCE_MEMORY_MS, PLANNER_TTL_MS, REQUEST_MEMORY_MS, Refusal};
use super::{Event, Granted, Left, Model, Order, Place, Seed, Told};

/// An acquisition that waits, or was granted and is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Request {
    lease: u32,
    key: usize,
    exclude: Option<u8>,
    name: Option<(u8, u8)>,
    attempt: i64,
    /// Who answers it, if it is not answered yet.
    planner: Option<u32>,
    /// `None` once it was granted.
    waits_until_ms: Option<i64>,
    changed_ms: i64,
}

impl Model {
    /// What is after a batch that was alone: everything in the order of the kinds, and whoever waits for a key before
    /// those who are new there. The planner `answers`, however long it was silent.
    ///
    /// # Errors
    /// What a client should have been told.
    pub(in super::super) fn batch(
        &self,
        events: &[Event],
        told: Option<&[Option<Told>]>,
        answers: Option<u32>,
    ) -> Result<Self, String> {
        let mut next = self.clone();
        let told = |at: usize| told.and_then(|told| told[at]);
        let mut ordered: Vec<usize> = (0..events.len()).collect();
        ordered.sort_by_key(|at| events[*at].kind());
        let mut expected: Vec<(usize, Told)> = Vec::new();
        let mut asked: Vec<usize> = Vec::new();
        let mut touched: BTreeSet<usize> = BTreeSet::new();
        for at in ordered {
            match events[at] {
                Event::Leave { planner, lease, attempt, why } => {
                    let (left, freed) = next.leave(planner, lease, attempt, why);
                    touched.extend(freed);
                    expected.push((at, Told::Left(left)));
                }
                Event::Acquire { .. } => asked.push(at),
                Event::Serve { .. } => expected.push((at, Told::Served(None))),
                _ => {
                    let mut after = next.after(&events[at], told(at), Order::Policy)?;
                    next = after.pop().ok_or("nothing may be after it")?;
                }
            }
        }
        touched.extend(events.iter().filter_map(|event| next.touches(event)));
        // What is there already has its place before anybody is called up.
        asked.retain(|at| {
            let answer = next.resume(&events[*at]);
            expected.extend(answer.map(|answer| (*at, answer)));
            answer.is_none()
        });
        for key in touched {
            next.call(key, answers);
        }
        for at in asked {
            let answer = match next.resume(&events[at]) {
                Some(answer) => answer,
                None => next.ask(&events[at]),
            };
            next.belongs_to(&events[at]);
            expected.push((at, answer));
        }
        for (at, expected) in expected {
            let fits = match (told(at), expected) {
                (None, _) => true,
                (Some(Told::Queued(end)), Told::Queued(_)) | (Some(Told::Served(end)), Told::Served(_)) => {
                    next.is_next_end(&events[at], end)
                }
                (told, expected) => told == Some(expected),
            };
            if !fits {
                return Err(format!("{:?} was told {:?}, not {expected:?}", events[at], told(at)));
            }
        }
        Ok(next)
    }

    /// The key of which a point may be free because of it.
    fn touches(&self, event: &Event) -> Option<usize> {
        match *event {
            Event::Register { key, .. }
            | Event::Hear { key, .. }
            | Event::Acquire { key, .. }
            | Event::Serve { key } => Some(key),
            Event::Release { seed, .. } => self.seeds.get(&seed).map(|seed| seed.key),
            _ => None,
        }
    }

    fn lives(&mut self, planner: u32) {
        let until_ms = self.alive_until_ms.entry(planner).or_default();
        *until_ms = (*until_ms).max(self.now + PLANNER_TTL_MS);
    }

    /// Gives a key's free points to those who wait for it, and whose planner lives, in their order.
    fn call(&mut self, key: usize, answers: Option<u32>) {
        for at in 0..self.requests.len() {
            let Request { lease, exclude, .. } = self.requests[at];
            if !self.is_called(&self.requests[at], key, answers) {
                continue;
            }
            let Some((name, n)) = self.offered(key, exclude).first().copied() else { continue };
            self.lend(name, n, lease);
            let (request, now) = (&mut self.requests[at], self.now);
            (request.waits_until_ms, request.changed_ms) = (None, now);
        }
    }

    fn is_called(&self, request: &Request, key: usize, answers: Option<u32>) -> bool {
        let lives = |planner| self.alive_until_ms.get(&planner).is_some_and(|until_ms| *until_ms > self.now);
        request.key == key
            && request.waits_until_ms.is_some_and(|until_ms| until_ms > self.now)
            && request.planner.is_some_and(|planner| answers == Some(planner) || lives(planner))
    }

    /// The answer to an acquisition that is there already, if it is.
    fn resume(&mut self, event: &Event) -> Option<Told> {
        let Event::Acquire { lease, place: Some(place), .. } = *event else { return None };
        let at = self.requests.iter().position(|request| request.lease == lease);
        if let Some(before) = place.again {
            return self.take_up_again(at, lease, before, place);
        }
        let request = &mut self.requests[at?];
        Some(if request.name? != place.name? {
            Told::Refused(Refusal::OtherRequest)
        } else if request.waits_until_ms.is_some() {
            self.take(at?, place)
        } else {
            // The lease is the last attempt's.
            (request.attempt, request.planner) = (place.attempt, None);
            self.granted(lease).map_or(Told::Refused(Refusal::LeaseEnded), Told::Granted)
        })
    }

    /// Whoever was given a seed that does not answer has its place again, while it may still wait.
    fn take_up_again(&mut self, at: Option<usize>, lease: u32, before: i64, place: Place) -> Option<Told> {
        if let Some(grant) = self.granted(lease) {
            return Some(Told::Granted(grant));
        }
        // Of a lease that has ended by itself nothing is left when its next one may begin.
        self.give_back(lease);
        let at = at?;
        if self.requests[at].attempt != before {
            return Some(Told::Refused(Refusal::LeaseEnded));
        }
        if place.wait_ms > 0 {
            return Some(self.take(at, place));
        }
        self.requests.remove(at);
        None
    }

    /// The place of a request is that of the last attempt, at its planner.
    fn take(&mut self, at: usize, place: Place) -> Told {
        let request = &mut self.requests[at];
        request.planner = Some(place.planner);
        request.attempt = place.attempt;
        request.waits_until_ms = Some(self.now + place.wait_ms.max(1));
        self.lives(place.planner);
        Told::Queued(None)
    }

    /// Of attempts that are new at once the last one counts, whatever they are told.
    fn belongs_to(&mut self, event: &Event) {
        let Event::Acquire { lease, place: Some(place), .. } = *event else { return };
        for request in self.requests.iter_mut().filter(|request| request.lease == lease) {
            request.attempt = place.attempt;
        }
    }

    /// Grants, queues or refuses an acquisition that is new.
    fn ask(&mut self, event: &Event) -> Told {
        let Event::Acquire { key, lease, exclude, place } = *event else { panic!("{event:?}") };
        let best = self.offered(key, exclude).first().copied();
        let granted = best.and_then(|(name, n)| self.lend(name, n, lease));
        let waits = place.filter(|place| granted.is_none() && place.wait_ms > 0);
        let kept = waits.or(place.filter(|place| granted.is_some() && place.name.is_some()));
        if let Some(Place { name, attempt, .. }) = kept {
            self.requests.push(Request {
                lease,
                key,
                exclude,
                name,
                attempt,
                planner: waits.map(|place| place.planner),
                waits_until_ms: waits.map(|place| self.now + place.wait_ms),
                changed_ms: self.now,
            });
        }
        if let Some(place) = waits {
            self.lives(place.planner);
            return Told::Queued(None);
        }
        granted.map_or_else(|| Told::Refused(self.refusal(key)), Told::Granted)
    }

    /// Ends an attempt, and no other; gives the key of which a point was given back.
    fn leave(&mut self, planner: u32, lease: u32, attempt: i64, why: Leaving) -> (Left, Option<usize>) {
        let at = self.requests.iter().position(|request| request.lease == lease);
        let Some(at) = at else { return (Left::Nothing, None) };
        let request = &self.requests[at];
        if request.attempt != attempt || request.planner.is_some_and(|known| known != planner) {
            return (Left::Superseded, None);
        }
        let (kept, waits) = (request.name.is_some(), request.waits_until_ms.is_some());
        let left = match self.granted(lease) {
            _ if waits => Left::Nothing,
            Some(grant) => Left::Granted(grant, kept),
            None => Left::Over,
        };
        if kept && !(waits && why == Leaving::TimedOut) {
            self.requests[at].planner = None;
            return (left, None);
        }
        self.requests.remove(at);
        let gives_back = why == Leaving::Gone && !waits;
        (left, if gives_back { self.give_back(lease) } else { None })
    }

    /// Frees a lease's point; gives the key.
    fn give_back(&mut self, lease: u32) -> Option<usize> {
        let mut seeds = self.seeds.values_mut();
        let seed = seeds.find(|seed| seed.points.values().any(|point| point.lease == lease))?;
        seed.points.retain(|_, point| point.lease != lease);
        Some(seed.key)
    }

    /// Whether nothing of the event's key that frees a point ends by itself before so many milliseconds have passed, and
    /// something ends then.
    fn is_next_end(&self, event: &Event, told_ms: Option<i64>) -> bool {
        let (Event::Acquire { key: wanted, .. } | Event::Serve { key: wanted }) = *event else {
            return false;
        };
        let first = |counts: &dyn Fn(&Seed, &[i64]) -> bool| {
            let of_key = self.seeds.values().filter(|seed| seed.key == wanted);
            let ends = of_key.flat_map(|seed| {
                let leases = seed.points.range(..seed.capacity).map(|(_, point)| point.ends_ms);
                let ends: Vec<i64> =
                    leases.chain([seed.suspect_until_ms]).filter(|end_ms| *end_ms > 0).collect();
                if counts(seed, &ends) { ends } else { Vec::new() }
            });
            ends.filter(|end_ms| *end_ms > self.now).min().map_or(i64::MAX, |end_ms| end_ms - self.now)
        };
        // One of which something has ended has a free point: who waits does not want it, and may hear nothing of it.
        let matters = |seed: &Seed, ends: &[i64]| {
            !seed.removed && !seed.drained && ends.iter().all(|end_ms| *end_ms > self.now)
        };
        let told_ms = told_ms.unwrap_or(i64::MAX);
        // Whoever is told 0 asks at once, and is told better.
        told_ms == 0 || first(&|_, _| true) <= told_ms && told_ms <= first(&matters)
    }

    /// The waiters of a planner's that were served: lease, attempt, what is left of it. It has told some, and lives.
    pub(in super::super) fn collect(
        &mut self,
        planner: u32,
        told: &[(u32, i64)],
    ) -> Vec<(u32, i64, Option<Granted>)> {
        self.lives(planner);
        let mut woken = Vec::new();
        for at in 0..self.requests.len() {
            let Request { lease, attempt, planner: answers, waits_until_ms, .. } = self.requests[at];
            if answers != Some(planner) || waits_until_ms.is_some() {
                continue;
            }
            if told.contains(&(lease, attempt)) {
                self.requests[at].planner = None;
            } else {
                woken.push((lease, attempt, self.granted(lease)));
            }
        }
        woken.sort_unstable_by_key(|(lease, ..)| *lease);
        woken
    }

    /// The only planner starts again: nobody waits there any more. What may be repeated keeps its lease or its place.
    pub(in super::super) fn abandon(&mut self) {
        self.requests.retain(|request| request.name.is_some());
        for request in &mut self.requests {
            request.planner = None;
        }
        self.alive_until_ms.clear();
    }

    /// Forgets requests that are long over; gives how many.
    pub(super) fn forget(&mut self) -> u64 {
        let before = self.requests.len();
        let (now, seeds) = (self.now, &self.seeds);
        let is_leased =
            |lease| seeds.values().any(|seed| seed.points.values().any(|point| point.lease == lease));
        self.requests.retain(|request| match request.waits_until_ms {
            Some(until_ms) => until_ms + PLANNER_TTL_MS > now,
            None if request.name.is_none() && request.planner.is_none() => {
                request.changed_ms + ONCE_MEMORY_MS > now
            }
            None => request.changed_ms + REQUEST_MEMORY_MS > now || is_leased(request.lease),
        });
        (before - self.requests.len()) as u64
    }
}
