//! Acquisitions that wait for a seed.
//!
//! The queue is in the database: whichever planner frees a point gives it to the first who waits, in the same
//! transaction. A planner keeps no more than a seat for each of its own clients that wait, to be told there.
//!
//! Nothing is polled: a waiter is served by what frees a point. What frees itself, a lease or a suspicion that
//! ends, has one timer a key; and once a sweep each key with a seat is looked at, which makes up for any hint
//! that was lost.
//!
//! On cancel: a client that goes away gives up its seat, and its place in the database is ended at once; if it
//! had been served in that moment its lease is given back. One that asks under an idempotency key keeps its place
//! and its lease for a repetition, and so does one whose planner stops. On kill -9 of the planner: its waiters are
//! passed over after [`PLANNER_TTL_MS`](crate::store::PLANNER_TTL_MS), and their rows are swept.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rfork_protocol::SeedKey;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::domain::policy::Wish;
use crate::grant::{Acquisition, EndOfWait, GrantedLease, Place};
use crate::metrics::Metrics;
use crate::shares::{Entered, Pool};
use crate::shutdown::Stop;
use crate::store::commands::{Acquire, Leave, Serve};
use crate::store::{LeaseHash, Leaving, PLANNER_TTL_MS, Queue, Refusal, Store, Told, Woken};
use crate::writer::{WriteError, Writer};

/// The longest that a request may wait; one that asks for more waits so long.
pub const MAX_WAIT: Duration = Duration::from_secs(300);
/// How often a planner with seats says that it lives.
const ALIVE_EVERY: Duration = Duration::from_millis(PLANNER_TTL_MS.unsigned_abs() / 4);
/// The most keys that are served at once.
const MAX_SERVING: usize = 256;

/// Why an acquisition has no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// There is none for it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// It was repeated elsewhere, and the repetition is answered.
    #[error("the request was repeated, and its repetition is answered")]
    Superseded,
    /// It could not be decided.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A client that waits.
#[derive(Debug)]
struct Seat {
    /// Tells it from a later one of the same lease.
    attempt: i64,
    key: SeedKey,
    may_be_repeated: bool,
    tell: oneshot::Sender<Option<GrantedLease>>,
}

/// What the room knows of a key for which somebody waits here.
#[derive(Debug, Default)]
struct KeySeats {
    count: usize,
    /// When its waiters are to be served because something ends by itself.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct Seats {
    by_lease: HashMap<LeaseHash, Seat>,
    by_key: HashMap<SeedKey, KeySeats>,
    /// Those that were told, until the store knows that they were.
    told: HashSet<Told>,
}

impl Seats {
    /// Seats a client. One of the same lease is the request that this one repeats: it is told that by the end of its
    /// channel.
    fn take(&mut self, lease: LeaseHash, seat: Seat) {
        self.give_up(&lease);
        self.by_key.entry(seat.key.clone()).or_default().count += 1;
        self.by_lease.insert(lease, seat);
    }

    /// Whether this attempt sits.
    fn has(&self, lease: &LeaseHash, attempt: i64) -> bool {
        self.by_lease.get(lease).is_some_and(|seat| seat.attempt == attempt)
    }

    fn give_up(&mut self, lease: &LeaseHash) -> Option<Seat> {
        let seat = self.by_lease.remove(lease)?;
        if let Some(key) = self.by_key.get_mut(&seat.key) {
            key.count -= 1;
            if key.count == 0 {
                self.by_key.remove(&seat.key);
            }
        }
        Some(seat)
    }
}

/// What an acquisition asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What the worker wants.
    pub key: SeedKey,
    /// What it wishes beside that.
    pub wish: Box<Wish>,
    /// The lease to be.
    pub lease: LeaseHash,
    /// How it waits.
    pub queue: Queue,
    /// Who asks, whose share of those that wait it takes.
    pub client: Option<IpAddr>,
    /// The room among requests that ask, which it gives up when it begins to wait.
    pub entered: Option<Entered>,
}

/// Where clients wait. No lock is held across an await.
pub struct WaitingRoom {
    writer: Writer,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    stop: Stop,
    seats: Mutex<Seats>,
    /// Places for those that wait.
    places: Pool,
    /// Told when there is a seat or a timer that the room does not know yet.
    changed: Notify,
}

impl std::fmt::Debug for WaitingRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitingRoom").field("seats", &self.seats().by_lease.len()).finish_non_exhaustive()
    }
}

/// A seat that is given up when it is dropped.
struct Sitting<'a> {
    room: &'a WaitingRoom,
    lease: LeaseHash,
    attempt: i64,
    told: oneshot::Receiver<Option<GrantedLease>>,
    /// The place that it has in the database.
    place: Option<Place>,
}

impl Sitting<'_> {
    /// Gives up the seat; what it was told before, if anything. The room tells under the same lock, so the lease of the
    /// wait is owned here or by the store's answer to a [`Leave`] that comes after this, and never by both: whichever were
    /// dropped would end it for the client of the other.
    fn stand_up(&mut self) -> Option<Result<GrantedLease, AcquireError>> {
        let mut seats = self.room.seats();
        if seats.has(&self.lease, self.attempt) {
            seats.give_up(&self.lease);
        }
        self.told.try_recv().ok().map(heard)
    }
}

impl Drop for Sitting<'_> {
    fn drop(&mut self) {
        // Closing comes first: a lease is then either here, and dropped with this, or still with the room, which sees that
        // nobody waits.
        self.told.close();
        let mut seats = self.room.seats();
        let is_seated = seats.has(&self.lease, self.attempt);
        if is_seated {
            seats.give_up(&self.lease);
        }
        drop(seats);
        // Without a seat it was told, or a later attempt has its place.
        if let Some(place) = self.place.take().filter(|_| !is_seated) {
            place.ended();
        }
    }
}

impl WaitingRoom {
    /// An empty one. [`WaitingRoom::run`] serves it.
    pub fn new(
        writer: Writer,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        places: Pool,
        stop: Stop,
    ) -> Self {
        Self { writer, store, metrics, stop, seats: Mutex::default(), places, changed: Notify::new() }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        // Whoever panicked left whole entries behind.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many clients wait here.
    pub fn waiting(&self) -> usize {
        self.seats().by_lease.len()
    }

    /// Leases a point, waiting for one as long as the request may, at most until the planner closes.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(&self, ask: &Ask) -> Result<GrantedLease, AcquireError> {
        let begun = Instant::now();
        let granted = self.acquire_in_turn(ask).await;
        if ask.queue.wait_ms > 0 {
            self.metrics.waited(granted.is_ok(), begun.elapsed());
        }
        granted
    }

    async fn acquire_in_turn(&self, ask: &Ask) -> Result<GrantedLease, AcquireError> {
        // The seat comes first: the lease may be collected before the answer to the command is here.
        let mut sitting = self.sit(ask);
        let begun = Instant::now();
        match self.ask(ask, ask.queue.clone()).await? {
            Acquisition::Granted(granted) => return Ok(granted),
            Acquisition::Refused(refusal) => return Err(AcquireError::Refused(refusal)),
            Acquisition::Queued(place, next_end_ms) => {
                sitting.place = Some(place);
                self.due(&ask.key, next_end_ms);
            }
        }
        // Without room for it, its place in the queue ends with `sitting`.
        let _place = self.places.take(ask.client, 1).map_err(|_| WriteError::Overloaded)?;
        if let Some(entered) = &ask.entered {
            entered.leave();
        }
        let _waiting = self.metrics.waiting();
        let wait = Duration::from_millis(ask.queue.wait_ms.unsigned_abs()).saturating_sub(begun.elapsed());
        let closing = tokio::select! {
            told = &mut sitting.told => return told.map_or(Err(AcquireError::Superseded), heard),
            () = tokio::time::sleep(wait) => false,
            () = self.stop.closing() => true,
        };
        if closing && ask.queue.idempotency.is_some() {
            // It keeps its place, which the end of `sitting` leaves, for a repetition to another planner.
            return Err(WriteError::Stopping.into());
        }
        if let Some(granted) = self.leave(sitting).await? {
            return Ok(granted);
        }
        // Once more, at the end: for the reason, and for what was freed just now.
        let queue = Queue { wait_ms: 0, again: None, ..ask.queue.clone() };
        match self.ask(ask, queue).await? {
            Acquisition::Granted(granted) => Ok(granted),
            _ if closing => Err(WriteError::Stopping.into()),
            Acquisition::Refused(refusal) => Err(AcquireError::Refused(refusal)),
            // Its place goes at once: a later attempt is about to take it.
            Acquisition::Queued(..) => Err(AcquireError::Superseded),
        }
    }

    /// Ends a wait whose time is up; gives what it was granted by then.
    async fn leave(&self, mut sitting: Sitting<'_>) -> Result<Option<GrantedLease>, AcquireError> {
        if let Some(heard) = sitting.stand_up() {
            return heard.map(Some);
        }
        let Sitting { lease, attempt, .. } = sitting;
        // Dropped on an error or a cancel: the place is left then, too.
        let place = sitting.place.take();
        let left = self.writer.submit(Leave { lease, attempt, why: Leaving::TimedOut }).await?;
        if let Some(place) = place {
            place.ended();
        }
        match left {
            EndOfWait::Granted(granted) => Ok(Some(granted)),
            EndOfWait::Over => Err(AcquireError::Refused(Refusal::LeaseEnded)),
            EndOfWait::Superseded => Err(AcquireError::Superseded),
            EndOfWait::Nothing => Ok(None),
        }
    }

    async fn ask(&self, ask: &Ask, queue: Queue) -> Result<Acquisition, WriteError> {
        let Ask { key, wish, lease, .. } = ask.clone();
        self.writer.submit(Acquire { key, wish, lease, queue: Some(Box::new(queue)) }).await
    }

    fn sit(&self, ask: &Ask) -> Sitting<'_> {
        let (tell, told) = oneshot::channel();
        let mut seats = self.seats();
        let (attempt, may_be_repeated) = (ask.queue.attempt, ask.queue.idempotency.is_some());
        seats.take(ask.lease, Seat { attempt, key: ask.key.clone(), may_be_repeated, tell });
        drop(seats);
        Sitting { room: self, lease: ask.lease, attempt, told, place: None }
    }

    /// Notes when something of a key ends by itself, if somebody waits for it here.
    fn due(&self, key: &SeedKey, in_ms: Option<i64>) {
        if let Some(in_ms) = in_ms {
            let at = Instant::now() + Duration::from_millis(in_ms.unsigned_abs().saturating_add(1));
            if let Some(key) = self.seats().by_key.get_mut(key) {
                key.due = Some(key.due.map_or(at, |due| due.min(at)));
            }
        }
        self.changed.notify_one();
    }

    /// Serves the room until stopped: hands out what was granted, and has keys looked at when something of them
    /// ended, and every `sweep`.
    pub async fn run(self: Arc<Self>, sweep: Duration, stop: CancellationToken) {
        let wakes = self.store.wakes();
        let (mut swept, mut collected) = (Instant::now(), Instant::now());
        loop {
            let next = self.next(collected);
            let pause = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let woken = tokio::select! {
                () = stop.cancelled() => return,
                () = wakes.notified() => true,
                () = self.changed.notified() => false,
                () = pause => false,
            };
            if self.is_idle() {
                continue;
            }
            if swept.elapsed() >= sweep {
                swept = Instant::now();
                self.all_are_due();
            }
            let served = self.serve().await;
            if woken || served || collected.elapsed() >= ALIVE_EVERY {
                collected = Instant::now();
                self.collect().await;
            }
        }
    }

    /// Whether nobody waits, and the store knows of all that were told.
    fn is_idle(&self) -> bool {
        let seats = self.seats();
        seats.by_lease.is_empty() && seats.told.is_empty()
    }

    /// When there is something to do if nothing happens.
    fn next(&self, collected: Instant) -> Option<Instant> {
        if self.is_idle() {
            return None;
        }
        self.seats().by_key.values().filter_map(|key| key.due).chain([collected + ALIVE_EVERY]).min()
    }

    fn all_are_due(&self) {
        let now = Instant::now();
        for key in self.seats().by_key.values_mut() {
            key.due = Some(now);
        }
    }

    /// Has the keys that are due looked at; gives whether there were any.
    async fn serve(&self) -> bool {
        let now = Instant::now();
        let keys: Vec<SeedKey> = {
            let mut seats = self.seats();
            let due = seats.by_key.iter_mut().filter(|(_, key)| key.due.is_some_and(|at| at <= now));
            due.take(MAX_SERVING)
                .map(|(name, key)| {
                    key.due = None;
                    name.clone()
                })
                .collect()
        };
        let serve = |key: SeedKey| async move { (self.writer.submit(Serve { key: key.clone() }).await, key) };
        let any = !keys.is_empty();
        for (outcome, key) in join_all(keys.into_iter().map(serve)).await {
            match outcome {
                // Something that ends at once would be asked for in a loop if the store did not see it end.
                Ok(next_end_ms) => self.due(&key, next_end_ms.map(|ms| ms.max(10))),
                // The next sweep makes up for it.
                Err(error) => tracing::warn!(%error, "those who wait were not looked for"),
            }
        }
        any
    }

    /// Tells those who were served, and the store whom it has told.
    async fn collect(&self) {
        let told: Vec<Told> = self.seats().told.iter().copied().collect();
        let woken = match self.store.collect(&told).await {
            Ok(woken) => woken,
            Err(error) => {
                tracing::warn!(%error, "those who were served could not be told");
                return;
            }
        };
        self.hand_out(&told, woken);
    }

    /// Tells those who were served; of those that were `told` before the store knows.
    fn hand_out(&self, told: &[Told], woken: Vec<Woken>) {
        let mut seats = self.seats();
        for told in told {
            seats.told.remove(told);
        }
        for Woken { lease, attempt, grant } in woken {
            let seated = seats.by_lease.get(&lease).map(|seat| seat.attempt == attempt);
            // A later attempt has sat down, and is about to take the place.
            if seated == Some(false) {
                continue;
            }
            let is_told = seats.give_up(&lease).is_some_and(|seat| {
                let granted =
                    grant.map(|grant| GrantedLease::new(grant, lease, seat.may_be_repeated, &self.writer));
                seat.tell.send(granted).is_ok()
            });
            if is_told {
                seats.told.insert((lease, attempt));
            } else {
                // Gone in this moment: its place ends, and what it did not take is given back.
                self.writer.tell(Leave { lease, attempt, why: Leaving::Gone });
            }
        }
    }
}

/// What a waiter was told; without a lease that ended before it could be told.
fn heard(told: Option<GrantedLease>) -> Result<GrantedLease, AcquireError> {
    told.ok_or(AcquireError::Refused(Refusal::LeaseEnded))
}

#[cfg(test)]
mod tests;
