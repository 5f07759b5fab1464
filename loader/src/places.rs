//! Places of a pool of connections, and their end: whoever has said nothing makes room for who comes, by the rule of
//! [`crate::silence`].
//!
//! A place is given back when it is dropped. One that somebody else has got is ended by its token: its holder stops what it
//! does with the connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rfork_protocol::host::network;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::silence::{Occupant, Room, Silence};

/// Connections that may wait for a place of a pool.
const MAX_WAITING: usize = 64;

/// A pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when a place is free, or one that has one is silent.
    changed: Notify,
    waiting: Semaphore,
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
        let waiting = Semaphore::new(MAX_WAITING);
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new(), waiting }))
    }

    /// A place for one that comes from there, after no longer a wait than the grace; `None` when all who could make room have
    /// said something.
    pub(crate) async fn enter(&self, address: IpAddr) -> Option<Place> {
        loop {
            // Excluded: what changes between the look and the wait is missed.
            let changed = self.0.changed.notified();
            let then = match self.look(Instant::now(), address) {
                Ok(place) => return Some(place),
                Err(Room::At(then)) => then,
                Err(_) => return None,
            };
            let _ = tokio::time::timeout_at(then.into(), changed).await;
        }
    }

    /// A place as soon as there is one, within `patience`; `None` when there is none by then, or too many wait.
    pub(crate) async fn wait(&self, address: IpAddr, patience: Duration) -> Option<Place> {
        let _waits = self.0.waiting.try_acquire().ok()?;
        let waiting = async {
            loop {
                let changed = self.0.changed.notified();
                if let Some(place) = self.enter(address).await {
                    return place;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, waiting).await.ok()
    }

    /// A place, or why there is none.
    fn look(&self, now: Instant, address: IpAddr) -> Result<Place, Room> {
        let address = network(address);
        let mut state = self.0.state();
        match state.silence.room(now, address) {
            Room::Free => {}
            Room::Of(oldest) => state.end(oldest),
            room => return Err(room),
        }
        let who = state.silence.enter(now, address);
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
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn the_oldest_that_is_silent_is_ended_for_who_comes() {
        let places = Places::new(2, Duration::ZERO);
        let (one, two) = (places.enter(HERE).await.unwrap(), places.enter(HERE).await.unwrap());
        one.speaks();
        let three = places.enter(HERE).await.unwrap();
        assert!(two.ended.is_cancelled() && !one.ended.is_cancelled());
        drop(two);
        assert_eq!(places.taken(), 2, "it had given its place up before");
        three.speaks();
        assert!(places.enter(HERE).await.is_none());
        let (waiting, ()) = tokio::join!(places.wait(HERE, HANGS), async {
            tokio::task::yield_now().await;
            drop(one);
        });
        assert_eq!(places.taken(), 2);
        let four = waiting.unwrap();
        four.speaks();
        let (waiting, ()) = tokio::join!(places.wait(HERE, HANGS), async {
            tokio::task::yield_now().await;
            three.falls_silent();
        });
        assert!(waiting.is_some() && three.ended.is_cancelled() && !four.ended.is_cancelled());
    }

    #[tokio::test]
    async fn who_has_just_come_is_left_alone_for_a_moment() {
        let grace = Duration::from_millis(50);
        let places = Places::new(1, grace);
        let begun = Instant::now();
        let first = places.enter(HERE).await.unwrap();
        let second = places.enter(HERE).await.unwrap();
        assert!(begun.elapsed() >= grace && first.ended.is_cancelled());
        // One that has a place no more changes nothing.
        first.speaks();
        first.falls_silent();
        drop(first);
        assert!(!second.ended.is_cancelled());
        assert_eq!(places.taken(), 1);
    }

    #[tokio::test]
    async fn an_address_that_speaks_leaves_room_for_others_and_is_told_at_once() {
        let places = Places::new(4, HANGS);
        let other = IpAddr::from([10, 0, 0, 2]);
        let mut mine = Vec::new();
        while let Some(place) = places.enter(HERE).await {
            place.speaks();
            mine.push(place);
        }
        assert_eq!(mine.len(), 3, "of four one is kept");
        let another = places.enter(other).await.unwrap();
        another.speaks();
        assert!(places.enter(other).await.is_none(), "it has its share");
        assert!(places.wait(HERE, Duration::ZERO).await.is_none());
        assert_eq!(places.taken(), 4);
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let places = Places::new(1, Duration::ZERO);
        let place = places.enter(HERE).await.unwrap();
        place.speaks();
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                tokio::spawn({
                    let places = places.clone();
                    async move { places.wait(HERE, HANGS).await }
                })
            })
            .collect();
        while places.0.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(places.wait(HERE, HANGS).await.is_none());
        drop(place);
        let mut waiting = waiting.into_iter();
        for _ in 0..MAX_WAITING {
            // Each has the place in its turn, whichever that is, and gives it back.
            drop(waiting.next().unwrap().await.unwrap().expect("it was waiting"));
        }
        assert_eq!(places.taken(), 0);
    }
}
