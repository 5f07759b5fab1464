//! Who goes when a pool is full: of those that have said nothing, the one that has been silent for longest. Whoever has said
//! what it came for has its place until it leaves. So peers that connect and are silent, however many, keep nobody out.
//!
//! Nor do those that speak, as long as they come from one address: of the last quarter of a pool that has one an address takes
//! only up to its share, an eighth of all: two of 16, for a reader uses two. Who has as much makes room for itself alone.
//!
//! Pure: [`crate::places`] has the clock and ends the connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Of so many parts one is kept for addresses that have no more than their share.
const KEPT: usize = 4;
/// Of so many parts one is an address's share.
const SHARES: usize = 8;

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
    /// All have said something, or what is left is for other addresses.
    None,
}

/// Who has a place.
#[derive(Debug)]
struct Taken {
    address: IpAddr,
    /// Since when it is silent, if it is.
    silent: Option<Instant>,
}

/// The places of a pool.
#[derive(Debug)]
pub(crate) struct Silence {
    places: usize,
    grace: Duration,
    next: Occupant,
    taken: BTreeMap<Occupant, Taken>,
}

impl Silence {
    /// A pool of so many places, in which nobody goes before it was silent for `grace`.
    pub(crate) fn new(places: usize, grace: Duration) -> Self {
        Self { places, grace, next: 0, taken: BTreeMap::new() }
    }

    /// Whether there is room for one who comes from there now.
    pub(crate) fn room(&self, now: Instant, address: IpAddr) -> Room {
        let has_its_share = self.has_its_share(address);
        if self.taken.len() < self.places && !has_its_share {
            return Room::Free;
        }
        let goes = self.taken.iter().filter(|(_, taken)| !has_its_share || taken.address == address);
        let silent = goes.filter_map(|(who, taken)| Some((taken.silent.as_ref()?, who)));
        match silent.min() {
            Some((since, who)) if now.saturating_duration_since(*since) >= self.grace => Room::Of(*who),
            Some((since, _)) => Room::At(*since + self.grace),
            None => Room::None,
        }
    }

    /// Whether what is left is kept for addresses that have less.
    fn has_its_share(&self, address: IpAddr) -> bool {
        let theirs = self.taken.values().filter(|taken| taken.address == address).count();
        let left = self.places.saturating_sub(self.taken.len() + 1);
        theirs >= (self.places / SHARES).max(1) && left < self.places / KEPT
    }

    /// Gives a place to one from there that has said nothing yet. There has to be room.
    pub(crate) fn enter(&mut self, now: Instant, address: IpAddr) -> Occupant {
        let who = self.next;
        self.next += 1;
        self.taken.insert(who, Taken { address, silent: Some(now) });
        who
    }

    /// It has said what it came for.
    pub(crate) fn speaks(&mut self, who: Occupant) {
        if let Some(taken) = self.taken.get_mut(&who) {
            taken.silent = None;
        }
    }

    /// It is expected to say something from now on.
    pub(crate) fn falls_silent(&mut self, who: Occupant, now: Instant) {
        if let Some(taken) = self.taken.get_mut(&who) {
            taken.silent = Some(now);
        }
    }

    /// It moves, if it is silent: it goes later.
    pub(crate) fn moves(&mut self, who: Occupant, now: Instant) {
        if let Some(since) = self.taken.get_mut(&who).and_then(|taken| taken.silent.as_mut()) {
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

    fn from(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn the_oldest_of_the_silent_goes_after_a_moment_and_who_speaks_stays() {
        let begun = Instant::now();
        let mut silence = Silence::new(2, GRACE);
        let one = silence.enter(begun, from(1));
        assert_eq!(silence.room(begun, from(1)), Room::Free);
        let two = silence.enter(begun + GRACE / 2, from(1));
        assert_eq!(silence.room(begun + GRACE / 2, from(1)), Room::At(begun + GRACE));
        assert_eq!(silence.room(begun + GRACE, from(1)), Room::Of(one));
        silence.speaks(one);
        assert_eq!(silence.room(begun + GRACE, from(1)), Room::At(begun + GRACE / 2 + GRACE));
        assert_eq!(silence.room(begun + 2 * GRACE, from(1)), Room::Of(two));
        silence.speaks(two);
        assert_eq!(silence.room(begun + 100 * GRACE, from(1)), Room::None);
        silence.falls_silent(one, begun + 100 * GRACE);
        silence.falls_silent(two, begun + 101 * GRACE);
        assert_eq!(silence.room(begun + 102 * GRACE, from(1)), Room::Of(one));
        silence.moves(one, begun + 102 * GRACE);
        assert_eq!(silence.room(begun + 102 * GRACE, from(1)), Room::Of(two));
        silence.leave(two);
        assert_eq!(silence.room(begun + 102 * GRACE, from(1)), Room::Free);
    }

    #[test]
    fn an_address_leaves_a_quarter_to_others_and_makes_room_for_itself() {
        let now = Instant::now();
        let mut silence = Silence::new(16, GRACE);
        let mine: Vec<Occupant> = (0..12).map(|_| silence.enter(now, from(1))).collect();
        for who in &mine {
            silence.speaks(*who);
        }
        assert_eq!(silence.room(now, from(1)), Room::None);
        for other in 2..4 {
            let both = [(); 2].map(|()| {
                assert_eq!(silence.room(now, from(other)), Room::Free);
                silence.enter(now, from(other))
            });
            assert_eq!(
                silence.room(now, from(other)),
                Room::At(now + GRACE),
                "it has its share, and is silent"
            );
            for who in both {
                silence.speaks(who);
            }
            assert_eq!(silence.room(now, from(other)), Room::None);
        }
        assert_eq!(silence.room(now, from(9)), Room::None, "all speak");
        silence.falls_silent(mine[3], now);
        assert_eq!(silence.room(now + GRACE, from(9)), Room::Of(mine[3]));
        assert_eq!(silence.room(now + GRACE, from(1)), Room::Of(mine[3]));
        assert_eq!(
            silence.room(now + GRACE, from(2)),
            Room::None,
            "others make no room for who has its share"
        );
    }

    /// What happens to a pool: somebody comes, or the peer of that number among those that ever came does something.
    #[derive(Debug, Clone)]
    enum Step {
        Comes(u8),
        Speaks(usize),
        FallsSilent(usize),
        Moves(usize),
        Leaves(usize),
        Passes(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1u8..4).prop_map(Step::Comes),
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
        fn who_speaks_never_goes_nor_more_come_than_there_are_places(places in 1usize..10, steps in steps()) {
            let mut now = Instant::now();
            let mut silence = Silence::new(places, GRACE);
            // Since when each that is in is silent, and whence it came, by another count.
            let mut inside: Vec<(Occupant, Option<Instant>, u8)> = Vec::new();
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
                    Step::Comes(whence) => {
                        let theirs = inside.iter().filter(|(.., other)| *other == whence).count();
                        // A share of such small pools is one place.
                        let is_held_back = theirs > 0 && (places - inside.len()).saturating_sub(1) < places / KEPT;
                        let goes = inside.iter().filter(|(.., other)| !is_held_back || *other == whence);
                        let oldest = goes.filter_map(|(_, since, _)| *since).min();
                        match silence.room(now, from(whence)) {
                            Room::Free => prop_assert!(inside.len() < places && !is_held_back),
                            Room::Of(who) => {
                                let at = inside.iter().position(|(known, ..)| *known == who);
                                let (_, since, _) = inside.swap_remove(at.expect("it is in"));
                                prop_assert_eq!(since, oldest, "nobody was silent for longer");
                                prop_assert!(since.is_some_and(|since| now - since >= GRACE));
                                prop_assert!(inside.len() + 1 == places || is_held_back, "it goes only when there is no place");
                                silence.leave(who);
                            }
                            Room::At(then) => {
                                prop_assert_eq!(Some(then), oldest.map(|oldest| oldest + GRACE));
                                prop_assert!(then > now);
                                prop_assert!(matches!(silence.room(then, from(whence)), Room::Of(_)), "it is worth waiting");
                                continue;
                            }
                            Room::None => {
                                prop_assert!(oldest.is_none() && (inside.len() == places || is_held_back));
                                continue;
                            }
                        }
                        let who = silence.enter(now, from(whence));
                        prop_assert!(inside.iter().all(|(known, ..)| *known != who));
                        inside.push((who, Some(now), whence));
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
                    match silence.room(now, from(1)) {
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
                silence.enter(now, from(1));
            }
        }
    }
}
