//! Who goes when a pool is full: of those that have said nothing, the one that has been silent for longest. Whoever has said
//! what it came for has its place until it leaves. So peers that connect and are silent, however many, keep nobody out.
//!
//! Pure: [`crate::places`] has the clock and ends the connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Names one that has a place; no two ever have one name.
pub(crate) type Occupant = u64;

/// Whether there is room for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// A place is free.
    Free,
    /// This one has to go first.
    Of(Occupant),
    /// Not yet: who is silent has just come, and its first bytes may be on their way until then.
    At(Instant),
    /// All have said something.
    None,
}

/// The places of a pool.
#[derive(Debug)]
pub(crate) struct Silence {
    places: usize,
    grace: Duration,
    next: Occupant,
    /// Since when each is silent, if it is.
    taken: BTreeMap<Occupant, Option<Instant>>,
}

impl Silence {
    /// A pool of so many places, in which nobody goes before it was silent for `grace`.
    pub(crate) fn new(places: usize, grace: Duration) -> Self {
        Self { places, grace, next: 0, taken: BTreeMap::new() }
    }

    /// Whether there is room for one who comes now.
    pub(crate) fn room(&self, now: Instant) -> Room {
        if self.taken.len() < self.places {
            return Room::Free;
        }
        let silent = self.taken.iter().filter_map(|(who, since)| Some((since.as_ref()?, who)));
        match silent.min() {
            Some((since, who)) if now.saturating_duration_since(*since) >= self.grace => Room::Of(*who),
            Some((since, _)) => Room::At(*since + self.grace),
            None => Room::None,
        }
    }

    /// Gives a place to one that has said nothing yet. There has to be room.
    pub(crate) fn enter(&mut self, now: Instant) -> Occupant {
        let who = self.next;
        self.next += 1;
        self.taken.insert(who, Some(now));
        who
    }

    /// It has said what it came for.
    pub(crate) fn speaks(&mut self, who: Occupant) {
        if let Some(since) = self.taken.get_mut(&who) {
            *since = None;
        }
    }

    /// It is expected to say something from now on.
    pub(crate) fn falls_silent(&mut self, who: Occupant, now: Instant) {
        if let Some(since) = self.taken.get_mut(&who) {
            *since = Some(now);
        }
    }

    /// It moves, if it is silent: it goes later.
    pub(crate) fn moves(&mut self, who: Occupant, now: Instant) {
        if let Some(Some(since)) = self.taken.get_mut(&who) {
            *since = now.max(*since);
        }
    }

    /// It leaves, or has to go.
    pub(crate) fn leave(&mut self, who: Occupant) {
        self.taken.remove(&who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRACE: Duration = Duration::from_millis(10);

    #[test]
    fn the_oldest_of_the_silent_goes_after_a_moment_and_who_speaks_stays() {
        let begun = Instant::now();
        let mut silence = Silence::new(2, GRACE);
        let one = silence.enter(begun);
        assert_eq!(silence.room(begun), Room::Free);
        let two = silence.enter(begun + GRACE / 2);
        assert_eq!(silence.room(begun + GRACE / 2), Room::At(begun + GRACE));
        assert_eq!(silence.room(begun + GRACE), Room::Of(one));
        silence.speaks(one);
        assert_eq!(silence.room(begun + GRACE), Room::At(begun + GRACE / 2 + GRACE));
        assert_eq!(silence.room(begun + 2 * GRACE), Room::Of(two));
        silence.speaks(two);
        assert_eq!(silence.room(begun + 100 * GRACE), Room::None);
        silence.falls_silent(one, begun + 100 * GRACE);
        silence.falls_silent(two, begun + 101 * GRACE);
        assert_eq!(silence.room(begun + 102 * GRACE), Room::Of(one));
        silence.moves(one, begun + 102 * GRACE);
        assert_eq!(silence.room(begun + 102 * GRACE), Room::Of(two));
        silence.leave(two);
        assert_eq!(silence.room(begun + 102 * GRACE), Room::Free);
    }

    /// What happens to a pool: somebody comes, or the peer of that number among those that ever came does something.
    #[derive(Debug, Clone)]
    enum Step {
        Comes,
        Speaks(usize),
        FallsSilent(usize),
        Moves(usize),
        Leaves(usize),
        Passes(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Comes),
            2 => (0usize..64).prop_map(Step::Speaks),
            1 => (0usize..64).prop_map(Step::FallsSilent),
            1 => (0usize..64).prop_map(Step::Moves),
            1 => (0usize..64).prop_map(Step::Leaves),
            3 => (0u64..15).prop_map(Step::Passes),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn who_speaks_never_goes_nor_more_come_than_there_are_places(places in 1usize..6, steps in steps()) {
            let mut now = Instant::now();
            let mut silence = Silence::new(places, GRACE);
            // Since when each that is in is silent, by another count.
            let mut inside: Vec<(Occupant, Option<Instant>)> = Vec::new();
            for step in steps {
                let at = |number: usize, inside: &[_]| (!inside.is_empty()).then(|| number % inside.len());
                match step {
                    Step::Passes(ms) => now += Duration::from_millis(ms),
                    Step::Speaks(number) => if let Some(at) = at(number, &inside) {
                        silence.speaks(inside[at].0);
                        inside[at].1 = None;
                    },
                    Step::FallsSilent(number) => if let Some(at) = at(number, &inside) {
                        silence.falls_silent(inside[at].0, now);
                        inside[at].1 = Some(now);
                    },
                    Step::Moves(number) => if let Some(at) = at(number, &inside) {
                        silence.moves(inside[at].0, now);
                        inside[at].1 = inside[at].1.map(|_| now);
                    },
                    Step::Leaves(number) => if let Some(at) = at(number, &inside) {
                        silence.leave(inside.swap_remove(at).0);
                    },
                    Step::Comes => {
                        let oldest = inside.iter().filter_map(|(_, since)| *since).min();
                        match silence.room(now) {
                            Room::Free => prop_assert!(inside.len() < places),
                            Room::Of(who) => {
                                let at = inside.iter().position(|(known, _)| *known == who);
                                let (_, since) = inside.swap_remove(at.expect("it is in"));
                                prop_assert_eq!(since, oldest, "nobody was silent for longer");
                                prop_assert!(since.is_some_and(|since| now - since >= GRACE));
                                prop_assert_eq!(inside.len() + 1, places, "it goes only when all places are taken");
                                silence.leave(who);
                            }
                            Room::At(then) => {
                                prop_assert_eq!(Some(then), oldest.map(|oldest| oldest + GRACE));
                                prop_assert!(then > now);
                                prop_assert!(matches!(silence.room(then), Room::Of(_)), "it is worth waiting");
                                continue;
                            }
                            Room::None => {
                                prop_assert!(oldest.is_none() && inside.len() == places);
                                continue;
                            }
                        }
                        let who = silence.enter(now);
                        prop_assert!(inside.iter().all(|(known, _)| *known != who));
                        inside.push((who, Some(now)));
                    }
                }
                prop_assert!(silence.taken.len() == inside.len() && inside.len() <= places);
            }
        }

        #[test]
        fn however_many_are_silent_somebody_who_comes_waits_no_longer_than_the_grace(places in 1usize..6, silent in 0usize..200) {
            let mut now = Instant::now();
            let mut silence = Silence::new(places, GRACE);
            for _ in 0..=silent {
                let asked = now;
                loop {
                    match silence.room(now) {
                        Room::Free => break,
                        Room::Of(who) => {
                            silence.leave(who);
                            break;
                        }
                        Room::At(then) => now = then,
                        Room::None => prop_assert!(false, "nobody has spoken"),
                    }
                }
                prop_assert!(now - asked <= GRACE);
                silence.enter(now);
            }
        }
    }
}
