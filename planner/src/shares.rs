//! Pools of which many clients take: connections, requests of each kind, clients that wait, bytes of bodies.
//!
//! As long as more than a quarter of a pool is free, anybody takes of it: a fleet behind one address is not held back for
//! nothing. Of the last quarter a client takes only up to its share, a sixteenth of the pool. So one client never has more
//! than three quarters, and others find room however much it asks for.
//!
//! What is taken is an owned value: dropped, on a cancel or a panic too, it is given back. The lock is held for one look
//! into a map, which has no more entries than places are taken.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use rfork_protocol::host::network;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::config::Bounds;
use crate::metrics::{self, Metrics, PoolSeries};

/// Of so many parts one is kept for clients that have no more than their share.
const KEPT: usize = 4;
/// Of so many parts one is a client's share.
const SHARES: usize = 16;

/// Open files that are left for the database, whose pool may have 100, for connections in the hall and for probes, and for
/// the rest of the process.
const OTHER_FILES: u64 = 512;
/// The most lists that are made at once: each may take some milliseconds of a processor.
const LISTS: usize = 4;
/// The most bytes of bodies whose requests are not served yet.
const BODY_BYTES: usize = 64 << 20;
/// The most bytes of long answers that their clients have not taken yet.
const ANSWER_BYTES: usize = 128 << 20;

/// The pools of a planner.
#[derive(Debug)]
pub struct Pools {
    /// Connections.
    pub connections: Pool,
    /// Requests that ask for a seed.
    pub asking: Pool,
    /// Requests that wait for one.
    pub waiting: Pool,
    /// Requests that list much for people.
    pub listing: Pool,
    /// All other requests, but for probes.
    pub other: Pool,
    /// Bytes of bodies whose requests are not served yet.
    pub body_bytes: Pool,
    /// Bytes of long answers that their clients have not taken yet.
    pub answer_bytes: Pool,
}

impl Pools {
    /// As `bounds` say; what is taken is counted in `metrics`.
    pub fn new(bounds: &Bounds, metrics: &Metrics) -> Self {
        let pool = |places, pool| Pool::new(places, metrics.pool(pool));
        Self {
            connections: pool(connection_limit(bounds.connections), metrics::Pool::Connections),
            asking: pool(bounds.requests, metrics::Pool::Asking),
            waiting: pool(bounds.waiting, metrics::Pool::Waiting),
            listing: pool(LISTS, metrics::Pool::Listing),
            other: pool(bounds.requests, metrics::Pool::Other),
            body_bytes: pool(BODY_BYTES, metrics::Pool::BodyBytes),
            answer_bytes: pool(ANSWER_BYTES, metrics::Pool::AnswerBytes),
        }
    }
}

/// `wanted`, or fewer where the system lets the process have fewer open files: what can be accepted
/// can then be served.
fn connection_limit(wanted: usize) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let room = files
        .map_or(usize::MAX, |files| usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX));
    room.min(wanted).max(1)
}

/// So many places, for all clients. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: usize,
    taken: Mutex<Taken>,
    freed: Notify,
    series: Option<PoolSeries>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// Places of a pool that somebody has, until it is dropped.
#[derive(Debug)]
pub struct Part {
    pool: Pool,
    client: Option<IpAddr>,
    places: usize,
}

impl Pool {
    /// A pool that counts in `series`.
    pub fn new(places: usize, series: PoolSeries) -> Self {
        series.most.set(i64::try_from(places).unwrap_or(i64::MAX));
        Self::of(places, Some(series))
    }

    /// A pool that nobody counts.
    pub fn uncounted(places: usize) -> Self {
        Self::of(places, None)
    }

    fn of(places: usize, series: Option<PoolSeries>) -> Self {
        Self(Arc::new(Inner { places, taken: Mutex::default(), freed: Notify::new(), series }))
    }

    /// Takes `places`, if the client may have them now. A client that is not known has no share: it takes what is free.
    ///
    /// # Errors
    /// [`Short`].
    pub fn take(&self, client: Option<IpAddr>, places: usize) -> Result<Part, Short> {
        let client = client.map(network);
        let mut taken = self.taken();
        let mine = client.and_then(|client| taken.by_client.get(&client)).copied().unwrap_or_default();
        let short = short(self.0.places, taken.all, client.map(|_| mine), places);
        let Some(short) = short else {
            taken.all += places;
            if let Some(client) = client.filter(|_| places > 0) {
                *taken.by_client.entry(client).or_default() += places;
            }
            self.0.count(&taken);
            return Ok(Part { pool: self.clone(), client, places });
        };
        drop(taken);
        if let Some(series) = &self.0.series {
            if short == Short::Full { series.full.inc() } else { series.share.inc() }
        }
        Err(short)
    }

    /// A part without a place, for a client who takes some later.
    pub fn nothing(&self, client: Option<IpAddr>) -> Part {
        Part { pool: self.clone(), client: client.map(network), places: 0 }
    }

    /// Ends when something is given back after this was called and [enabled](Notified::enable).
    pub fn freed(&self) -> Notified<'_> {
        self.0.freed.notified()
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Whoever panicked left whole entries behind.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(&self, taken: &Taken) {
        if let Some(series) = &self.series {
            series.used.set(i64::try_from(taken.all).unwrap_or(i64::MAX));
        }
    }
}

impl Part {
    /// Takes more, if the client may have it now.
    pub fn grow(&mut self, places: usize) -> bool {
        let Ok(mut more) = self.pool.take(self.client, places) else { return false };
        self.places += std::mem::take(&mut more.places);
        true
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.places == 0 {
            return;
        }
        let mut taken = self.pool.taken();
        taken.all -= self.places;
        if let Some(Entry::Occupied(mut mine)) = self.client.map(|client| taken.by_client.entry(client)) {
            *mine.get_mut() -= self.places;
            if *mine.get() == 0 {
                mine.remove();
            }
        }
        self.pool.0.count(&taken);
        drop(taken);
        self.pool.0.freed.notify_waiters();
    }
}

/// The room of a request that runs, as its handler has it: one that waits for long gives it up.
#[derive(Debug, Clone)]
pub struct Entered(Arc<Mutex<Option<Part>>>);

impl Entered {
    /// With this room.
    pub fn new(part: Part) -> Self {
        Self(Arc::new(Mutex::new(Some(part))))
    }

    /// Gives the room up, for it is not needed any more.
    pub fn leave(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Why a client may take nothing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// Not as much is left.
    Full,
    /// What is left is kept for clients that have less.
    Share,
}

/// Why a client that has `mine` places may not take `wanted` more, of a pool of `places` of which `taken` are.
pub(crate) fn short(places: usize, taken: usize, mine: Option<usize>, wanted: usize) -> Option<Short> {
    let Some(left) = places.checked_sub(taken.saturating_add(wanted)) else { return Some(Short::Full) };
    let share = (places / SHARES).max(1);
    let is_greedy = mine.is_some_and(|mine| mine.saturating_add(wanted) > share);
    (is_greedy && left < places / KEPT).then_some(Short::Share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn a_lone_client_has_three_quarters_and_others_find_room() {
        let pool = Pool::uncounted(64);
        let mine: Vec<_> = (0..64).filter_map(|_| pool.take(Some(client(1)), 1).ok()).collect();
        assert_eq!(mine.len(), 48);
        let others: Vec<_> = (2..9).filter_map(|number| pool.take(Some(client(number)), 4).ok()).collect();
        assert_eq!(others.len(), 4, "each of four has its share");
        assert_eq!(pool.take(Some(client(9)), 1).err(), Some(Short::Full));
        drop(mine);
        assert!(pool.take(Some(client(2)), 8).is_ok(), "shares bind only while little is left");
    }

    #[test]
    fn a_small_pool_serves_a_lone_client_whole() {
        let pool = Pool::uncounted(2);
        let both = (pool.take(Some(client(1)), 1), pool.take(Some(client(1)), 1));
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(pool.take(Some(client(2)), 1).err(), Some(Short::Full));
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let networks = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "::ffff:10.0.0.1", "10.0.0.1"]
            .map(|address| network(address.parse().unwrap()).to_string());
        assert_eq!(networks, ["2001:db8::", "2001:db8::", "2001:db8:0:1::", "10.0.0.1", "10.0.0.1"]);
    }

    #[tokio::test]
    async fn who_looks_for_what_is_freed_misses_nothing() {
        let pool = Pool::uncounted(1);
        let part = pool.take(None, 1).unwrap();
        let mut freed = std::pin::pin!(pool.freed());
        freed.as_mut().enable();
        assert!(pool.take(None, 1).is_err());
        drop(part);
        freed.await;
        assert!(pool.take(None, 1).is_ok());
    }

    proptest! {
        #[test]
        fn no_pool_is_overdrawn_and_everything_comes_back(
            places in 1_usize..100,
            steps in prop::collection::vec((0_u8..5, 0_usize..9, any::<bool>(), any::<prop::sample::Index>()), 0..120),
        ) {
            let pool = Pool::uncounted(places);
            let mut parts: Vec<Part> = Vec::new();
            for (number, wanted, gives_back, at) in steps {
                if gives_back && !parts.is_empty() {
                    parts.swap_remove(at.index(parts.len()));
                    continue;
                }
                let had: usize = parts.iter().map(|part| part.places).sum();
                let (who, had_nothing) = (client(number), parts.iter().all(|part| part.client != Some(client(number))));
                let grown = parts.iter_mut().find(|part| part.client == Some(who)).map(|part| part.grow(wanted));
                if grown.is_none() {
                    let part = pool.take(Some(who), wanted);
                    if wanted <= (places / SHARES).max(1) && had_nothing {
                        prop_assert_eq!(part.is_ok(), had + wanted <= places, "a share is refused only by a full pool");
                    }
                    parts.extend(part);
                }
                let all: usize = parts.iter().map(|part| part.places).sum();
                prop_assert_eq!(pool.taken().all, all);
                prop_assert!(all <= places);
                for number in 0..5 {
                    let mine: usize = parts.iter().filter(|part| part.client == Some(client(number))).map(|part| part.places).sum();
                    prop_assert!(mine <= places - places / KEPT || mine <= (places / SHARES).max(1));
                }
            }
            drop(parts);
            let taken = pool.taken();
            prop_assert!(taken.all == 0 && taken.by_client.is_empty());
        }
    }
}
