//! Looks for an order of what happened at the same time in which every answer was right.

use std::collections::HashSet;

use super::super::Snapshot;
use super::model::{Event, Model, Order, Told};

/// States that are looked at before the search is given up: far more than any history needs.
const MAX_STATES: usize = 200_000;

/// What one planner did.
pub(super) struct Done {
    pub(super) events: Vec<Event>,
    /// What it told of each; `None` if it was killed, and did all or nothing.
    pub(super) told: Option<Vec<Option<Told>>>,
}

struct Search<'a> {
    done: Vec<&'a Done>,
    snapshot: &'a Snapshot,
    seen: HashSet<(Vec<u64>, Model)>,
    found: HashSet<Model>,
    /// Why the last branch ended.
    difference: String,
}

/// What the model may be after all of it: the database shows `snapshot` then.
///
/// # Errors
/// There is no such order; with one of the reasons.
pub(super) fn explain(model: &Model, done: &[Done], snapshot: &Snapshot) -> Result<HashSet<Model>, String> {
    let killed: Vec<usize> = (0..done.len()).filter(|at| done[*at].told.is_none()).collect();
    let mut found = HashSet::new();
    let mut difference = String::new();
    // Each of the killed has committed or has not.
    for committed in 0..1usize << killed.len() {
        let bit = |at: &usize| killed.iter().position(|killed| killed == at);
        let is_done = |at: &usize| bit(at).is_none_or(|bit| committed >> bit & 1 == 1);
        let done: Vec<&Done> = (0..done.len()).filter(is_done).map(|at| &done[at]).collect();
        let remaining: Vec<u64> = done.iter().map(|done| (1 << done.events.len()) - 1).collect();
        let mut search = Search { done, snapshot, seen: HashSet::new(), found, difference: String::new() };
        search.go_on(model, &remaining);
        (found, difference) = (search.found, search.difference);
    }
    if found.is_empty() {
        return Err(format!("no order explains what was told, for one because {difference}"));
    }
    Ok(found)
}

impl Search<'_> {
    /// `remaining`: of each planner's events a bit.
    fn go_on(&mut self, model: &Model, remaining: &[u64]) {
        if remaining.iter().all(|events| *events == 0) {
            match model.compare(self.snapshot) {
                Ok(()) => drop(self.found.insert(model.clone())),
                Err(difference) => self.difference = difference,
            }
            return;
        }
        assert!(self.seen.len() < MAX_STATES, "the search for an order has no end");
        if !self.seen.insert((remaining.to_vec(), model.clone())) {
            return;
        }
        for planner in 0..remaining.len() {
            for at in self.next_of(model, planner, remaining[planner]) {
                let done = self.done[planner];
                let told = done.told.as_ref().and_then(|told| told[at]);
                let mut remaining = remaining.to_vec();
                remaining[planner] &= !(1 << at);
                match model.after(&done.events[at], told, Order::Any) {
                    Ok(models) => models.iter().for_each(|model| self.go_on(model, &remaining)),
                    Err(difference) => self.difference = difference,
                }
            }
        }
    }

    /// The events that may be a planner's next: of each seed that is named the first, since its lock ties what is
    /// done to it together and to nothing else; after them, in any order, what names none. A refusal changes nothing,
    /// so it is right if it was when its planner looked: it comes after what its own batch does to seeds of its key,
    /// and may come before what that does to others.
    fn next_of(&self, model: &Model, planner: usize, remaining: u64) -> Vec<usize> {
        let Done { events, told } = self.done[planner];
        let mut left: Vec<usize> = (0..events.len()).filter(|at| remaining >> at & 1 == 1).collect();
        left.sort_by_key(|at| events[*at].kind());
        let mut named = HashSet::new();
        let first_of_each =
            left.iter().filter(|at| events[**at].names().is_some_and(|seed| named.insert(seed)));
        let mut next: Vec<usize> = first_of_each.copied().collect();
        if next.is_empty() {
            return left;
        }
        let is_refused =
            |at: usize| matches!(told.as_ref().and_then(|told| told[at]), Some(Told::Refused(_)));
        let is_early = |at: &usize| match events[*at] {
            Event::Acquire { key, .. } => {
                is_refused(*at) && !left.iter().any(|at| model.concerns(&events[*at], key))
            }
            _ => false,
        };
        next.extend(left.iter().copied().filter(is_early));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Refusal, Registration};
    use super::super::world::World;
    use super::*;

    const REFUSED: Option<Told> = Some(Told::Refused(Refusal::UnknownKey));

    fn registers(seed: u8, key: usize) -> (Event, Option<Told>) {
        let event = Event::Register { seed, key, process: None, owner: None, age_ms: 0 };
        (event, Some(Told::Registered(Registration::New, i64::from(seed))))
    }

    fn is_refused(lease: u32, key: usize) -> (Event, Option<Told>) {
        (Event::Acquire { key, lease, exclude: None, place: None }, REFUSED)
    }

    fn done(events: Vec<(Event, Option<Told>)>) -> Done {
        let (events, told) = events.into_iter().unzip();
        Done { events, told: Some(told) }
    }

    fn empty() -> Model {
        Model::new(World::new(0), 1_000_000, 1_000_000)
    }

    fn after(model: &Model, (event, told): (Event, Option<Told>)) -> Model {
        model.after(&event, told, Order::Any).unwrap().remove(0)
    }

    fn shown(model: &Model) -> Snapshot {
        let seeds = model.shown();
        Snapshot { seed_count: seeds.len() as u64, seeds, ..Snapshot::default() }
    }

    #[test]
    fn two_planners_that_each_register_what_the_other_asks_for_may_both_refuse() {
        let both = shown(&after(&after(&empty(), registers(1, 0)), registers(2, 1)));
        let first = done(vec![registers(1, 0), is_refused(1, 1)]);
        let second = done(vec![registers(2, 1), is_refused(2, 0)]);
        assert_eq!(explain(&empty(), &[first, second], &both).unwrap().len(), 1);
    }

    #[test]
    fn a_planner_refuses_nobody_for_whom_its_own_batch_registers_a_seed() {
        let both = shown(&after(&after(&empty(), registers(1, 0)), registers(2, 1)));
        let first = done(vec![registers(1, 0), is_refused(1, 0)]);
        let second = done(vec![registers(2, 1), is_refused(2, 0)]);
        explain(&empty(), &[first, second], &both).unwrap_err();
    }

    #[test]
    fn nobody_is_refused_whose_seed_was_there_before() {
        let before = after(&empty(), registers(1, 0));
        let both = shown(&after(&before, registers(2, 1)));
        let late = done(vec![registers(2, 1), is_refused(1, 0)]);
        explain(&before, &[late], &both).unwrap_err();
    }
}
