//! Places of a pool of connections, and their end: whoever has said nothing makes room for who comes, by the rule of
//! [`crate::silence`].
//!
//! A place is given back when it is dropped. One that somebody else has got is ended by its token: its holder stops what it
//! does with the connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::silence::{Occupant, Room, Silence};

/// A pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when a place is free, or one that has one is silent.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    silence: Silence,
    /// What ends those that have places.
    ends: HashMap<Occupant, CancellationToken>,
}

impl Places {
    /// So many places; who has just come is left alone for `grace`.
    pub(crate) fn new(places: usize, grace: Duration) -> Self {
        let state = State { silence: Silence::new(places, grace), ends: HashMap::new() };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// A place, after no longer a wait than the grace; `None` when all who have one have said something.
    pub(crate) async fn enter(&self) -> Option<Place> {
        loop {
            // Excluded: what changes between the look and the wait is missed.
            let changed = self.0.changed.notified();
            let then = match self.look(Instant::now()) {
                Ok(place) => return Some(place),
                Err(Room::At(then)) => then,
                Err(_) => return None,
            };
            let _ = tokio::time::timeout_at(then.into(), changed).await;
        }
    }

    /// A place, as soon as there is one.
    pub(crate) async fn wait(&self) -> Place {
        loop {
            let changed = self.0.changed.notified();
            if let Some(place) = self.enter().await {
                return place;
            }
            changed.await;
        }
    }

    /// A place, or why there is none.
    fn look(&self, now: Instant) -> Result<Place, Room> {
        let mut state = self.0.state();
        match state.silence.room(now) {
            Room::Free => {}
            Room::Of(oldest) => state.end(oldest),
            room => return Err(room),
        }
        let who = state.silence.enter(now);
        let ended = CancellationToken::new();
        state.ends.insert(who, ended.clone());
        Ok(Place { shared: self.0.clone(), who, ended })
    }

    /// How many are taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.0.state().ends.len()
    }
}

impl Shared {
    /// The guard is never held across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, who: Occupant) {
        self.silence.leave(who);
        if let Some(ended) = self.ends.remove(&who) {
            ended.cancel();
        }
    }
}

/// A place. At first its holder counts as silent.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    who: Occupant,
    /// Cancelled when somebody else has the place.
    pub(crate) ended: CancellationToken,
}

impl Place {
    /// Its holder has said what it came for: it stays.
    pub(crate) fn speaks(&self) {
        self.shared.state().silence.speaks(self.who);
    }

    /// Its holder is expected to say something from now on.
    pub(crate) fn falls_silent(&self) {
        self.shared.state().silence.falls_silent(self.who, Instant::now());
        self.shared.changed.notify_waiters();
    }

    /// Its holder takes what it is sent: if it counts as silent, it does from now on.
    pub(crate) fn moves(&self) {
        self.shared.state().silence.moves(self.who, Instant::now());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.state().end(self.who);
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANGS: Duration = Duration::from_secs(300);

    #[tokio::test]
    async fn the_oldest_that_is_silent_is_ended_for_who_comes() {
        let places = Places::new(2, Duration::ZERO);
        let (one, two) = (places.enter().await.unwrap(), places.enter().await.unwrap());
        one.speaks();
        let three = places.enter().await.unwrap();
        assert!(two.ended.is_cancelled() && !one.ended.is_cancelled());
        drop(two);
        assert_eq!(places.taken(), 2, "it had given its place up before");
        three.speaks();
        assert!(places.enter().await.is_none());
        let (waiting, ()) = tokio::join!(tokio::time::timeout(HANGS, places.wait()), async {
            tokio::task::yield_now().await;
            drop(one);
        });
        assert_eq!(places.taken(), 2);
        let four = waiting.unwrap();
        four.speaks();
        let (waiting, ()) = tokio::join!(tokio::time::timeout(HANGS, places.wait()), async {
            tokio::task::yield_now().await;
            three.falls_silent();
        });
        assert!(waiting.is_ok() && three.ended.is_cancelled() && !four.ended.is_cancelled());
    }

    #[tokio::test]
    async fn who_has_just_come_is_left_alone_for_a_moment() {
        let grace = Duration::from_millis(50);
        let places = Places::new(1, grace);
        let begun = Instant::now();
        let first = places.enter().await.unwrap();
        let second = places.enter().await.unwrap();
        assert!(begun.elapsed() >= grace && first.ended.is_cancelled());
        // One that has a place no more changes nothing.
        first.speaks();
        first.falls_silent();
        drop(first);
        assert!(!second.ended.is_cancelled());
        assert_eq!(places.taken(), 1);
    }
}
