//! What an acquisition has, as owned values: a lease, or a place in the queue. Dropped, it is given back.
//!
//! A lease is held from the commit that granted it until its client is told: in the writer's answer, by the request that
//! asked, by a waiter's seat, by the connection that writes the answer. Wherever its way ends, the value is dropped there,
//! and the lease ends with the writer's next batch. There is one way out: [`GrantedLease::delivered`], where the answer
//! left the socket. A lease whose request may be repeated is kept ([`GrantedLease::keep`]): its client comes back for it,
//! and until then it lives as long as any that is not renewed.
//!
//! On kill -9, and where the queue of the writer is full, the lease ends by its time to live.

use crate::store::commands::{Acquire, Acquired, Leave, Release};
use crate::store::{Grant, LeaseHash, Leaving, Left, Refusal, Report};
use crate::writer::Writer;

/// What became of an acquisition.
#[derive(Debug)]
pub enum Acquisition {
    /// It has a lease.
    Granted(GrantedLease),
    /// It has none.
    Refused(Refusal),
    /// It waits. A lease on a seed of its key ends by itself after so many milliseconds, if any does: its key is to be
    /// served then.
    Queued(Place, Option<i64>),
}

impl Acquisition {
    /// What a store decided, owned by whoever has this.
    pub(crate) fn of(asked: &Acquire, acquired: Acquired, writer: &Writer) -> Self {
        match acquired {
            Acquired::Granted(grant) => {
                let may_be_repeated = asked.queue.as_ref().is_some_and(|queue| queue.idempotency.is_some());
                Self::Granted(GrantedLease::new(grant, asked.lease, may_be_repeated, writer))
            }
            Acquired::Refused(refusal) => Self::Refused(refusal),
            Acquired::Queued(next_end_ms) => {
                let attempt = asked.queue.as_ref().map_or(0, |queue| queue.attempt);
                Self::Queued(Place { leave: Some((writer.clone(), asked.lease, attempt)) }, next_end_ms)
            }
        }
    }
}

/// What the end of a wait found.
#[derive(Debug)]
pub enum EndOfWait {
    /// It had been given nothing.
    Nothing,
    /// It had been given this.
    Granted(GrantedLease),
    /// It had been given a lease that is over.
    Over,
    /// A later attempt has its place.
    Superseded,
}

impl EndOfWait {
    /// What a store found, owned by whoever has this.
    pub(crate) fn of(leave: &Leave, left: Left, writer: &Writer) -> Self {
        match left {
            Left::Nothing => Self::Nothing,
            Left::Granted { grant, kept } => {
                // What a client that is gone had been given, the store has given back itself.
                let stays = kept || leave.why != Leaving::TimedOut;
                Self::Granted(GrantedLease::new(grant, leave.lease, stays, writer))
            }
            Left::Over => Self::Over,
            Left::Superseded => Self::Superseded,
        }
    }
}

/// A lease of which its client was not told yet. Dropped, it is given back.
#[derive(Debug)]
pub struct GrantedLease {
    grant: Grant,
    lease: LeaseHash,
    writer: Writer,
    stays: bool,
}

impl GrantedLease {
    /// A lease that was granted just now, and is kept if its request may be repeated.
    pub(crate) fn new(grant: Grant, lease: LeaseHash, may_be_repeated: bool, writer: &Writer) -> Self {
        let mut granted = Self { grant, lease, writer: writer.clone(), stays: false };
        if may_be_repeated {
            granted.keep();
        }
        granted
    }

    /// The point that is leased.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Whether it stays, whoever drops it.
    pub fn is_kept(&self) -> bool {
        self.stays
    }

    /// Its request may be repeated: it stays, whoever drops it.
    pub fn keep(&mut self) {
        self.stays = true;
    }

    /// Its client was told: it is the client's.
    pub fn delivered(mut self) {
        self.stays = true;
    }

    /// Ends it because its seed failed, which makes that suspect; `reason` is a short word for people.
    pub fn failed(mut self, reason: &str) {
        self.stays = true;
        self.give_back(Report::Failed, Some(reason));
    }

    fn give_back(&self, report: Report, reason: Option<&str>) {
        let identity = self.grant.identity.clone();
        self.writer.tell(Release::give_back(identity, self.lease, report, reason));
    }
}

impl Drop for GrantedLease {
    fn drop(&mut self) {
        if !self.stays {
            tracing::debug!(seed = %self.grant.identity, "a lease whose client was not told of it is given back");
            self.give_back(Report::Unknown, None);
        }
    }
}

/// A place among those who wait. Dropped, it is left, and what it was given in that moment is given back.
#[derive(Debug)]
pub struct Place {
    /// The lease that it waits for, and which attempt of it does.
    leave: Option<(Writer, LeaseHash, i64)>,
}

impl Place {
    /// It has ended otherwise.
    pub fn ended(mut self) {
        self.leave = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((writer, lease, attempt)) = self.leave.take() {
            writer.tell(Leave { lease, attempt, why: Leaving::Gone });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rfork_protocol::{SeedIdentity, SeedKey};
    use tempfile::TempDir;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::{DatabaseUrl, Settings};
    use crate::domain::owner::Owner;
    use crate::heartbeats::Heartbeats;
    use crate::store::commands::{Register, Serve};
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Clock, Idempotency, Queue, Store};

    /// A writer over a store with one seed of one point, and the end of the writer.
    struct Scene {
        store: Arc<dyn Store>,
        writer: Writer,
        writing: AbortOnDropHandle<()>,
        _directory: TempDir,
    }

    fn key() -> SeedKey {
        SeedKey::new(*b"k").unwrap()
    }

    impl Scene {
        async fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("p.db");
            let rules = Settings::of(DatabaseUrl::Sqlite(path.clone())).rules();
            let store: Arc<dyn Store> =
                Arc::new(SqliteStore::open(&path, rules, Clock::System).await.unwrap());
            let heartbeats = Arc::new(Heartbeats::new(Duration::from_secs(60)));
            let (writer, writing) = Writer::start(store.clone(), heartbeats, Duration::from_secs(60));
            let identity = SeedIdentity::new("h", 1, 0).unwrap();
            let register = Register {
                by: None,
                identity,
                key: key(),
                profile: Box::default(),
                age_ms: 0,
                client: None,
                owner: Owner::default(),
            };
            writer.submit(register).await.unwrap().unwrap();
            Self { store, writer, writing, _directory: directory }
        }

        async fn acquire(&self, number: u8, queue: Option<Queue>) -> Acquisition {
            let (wish, lease) = (Box::default(), [number; 32]);
            let acquire = Acquire { key: key(), wish, lease, queue: queue.map(Box::new) };
            self.writer.submit(acquire).await.unwrap()
        }

        async fn lease(&self, queue: Option<Queue>) -> GrantedLease {
            match self.acquire(1, queue).await {
                Acquisition::Granted(granted) => granted,
                other => panic!("{other:?}"),
            }
        }

        /// How many leases there are once all is done that was told before.
        async fn leases(&self) -> u64 {
            self.writer.submit(Serve { key: key() }).await.unwrap();
            self.store.snapshot().await.unwrap().lease_count
        }
    }

    fn repeatable() -> Queue {
        let idempotency = Some(Idempotency { key: [1; 32], request: [2; 32] });
        Queue { idempotency, ..Queue::default() }
    }

    #[tokio::test]
    async fn a_lease_that_is_dropped_before_its_client_was_told_is_given_back() {
        let scene = Scene::new().await;
        let granted = scene.lease(None).await;
        assert_eq!(scene.leases().await, 1, "while it is held");
        drop(granted);
        assert_eq!(scene.leases().await, 0);
    }

    #[tokio::test]
    async fn a_lease_of_which_its_client_was_told_is_the_clients() {
        let scene = Scene::new().await;
        scene.lease(None).await.delivered();
        assert_eq!(scene.leases().await, 1);
    }

    #[tokio::test]
    async fn a_lease_whose_request_may_be_repeated_is_kept_for_that() {
        let scene = Scene::new().await;
        let granted = scene.lease(Some(repeatable())).await;
        assert!(granted.is_kept());
        drop(granted);
        assert_eq!(scene.leases().await, 1);
        assert!(matches!(scene.acquire(1, Some(repeatable())).await, Acquisition::Granted(_)));
    }

    #[tokio::test]
    async fn a_lease_whose_seed_failed_ends_though_its_request_may_be_repeated() {
        let scene = Scene::new().await;
        scene.lease(Some(repeatable())).await.failed("no-answer");
        assert_eq!(scene.leases().await, 0);
        let refused = scene.acquire(2, None).await;
        assert!(matches!(refused, Acquisition::Refused(Refusal::AllSuspect)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_place_that_is_dropped_takes_no_lease_from_who_comes_later() {
        let scene = Scene::new().await;
        let granted = scene.lease(None).await;
        let queue = Queue { wait_ms: 60_000, attempt: 7, ..Queue::default() };
        let waiting = scene.acquire(2, Some(queue)).await;
        assert!(matches!(waiting, Acquisition::Queued(..)), "{waiting:?}");
        drop(waiting);
        drop(granted);
        assert_eq!(scene.leases().await, 0, "nobody waits any more");
    }

    #[tokio::test]
    async fn the_end_of_a_wait_owns_what_it_was_given() {
        let scene = Scene::new().await;
        let granted = scene.lease(None).await;
        let queue = Queue { wait_ms: 60_000, attempt: 7, ..Queue::default() };
        let Acquisition::Queued(place, _) = scene.acquire(2, Some(queue)).await else { panic!("it waits") };
        drop(granted);
        assert_eq!(scene.leases().await, 1, "it was the waiter's turn");
        let leave = Leave { lease: [2; 32], attempt: 7, why: Leaving::TimedOut };
        let left = scene.writer.submit(leave).await.unwrap();
        assert!(matches!(left, EndOfWait::Granted(_)), "{left:?}");
        place.ended();
        assert_eq!(scene.leases().await, 1, "while it is held");
        drop(left);
        assert_eq!(scene.leases().await, 0);
    }

    #[tokio::test]
    async fn what_is_given_back_while_the_planner_stops_reaches_the_store_before_the_writer_ends() {
        let scene = Scene::new().await;
        let granted = scene.lease(None).await;
        let Scene { store, writer, writing, _directory } = scene;
        drop(writer);
        // The last that has the writer is the lease.
        drop(granted);
        tokio::time::timeout(Duration::from_secs(300), writing).await.expect("the writer ends").unwrap();
        assert_eq!(store.snapshot().await.unwrap().lease_count, 0);
    }

    #[tokio::test]
    async fn what_gives_itself_back_finds_room_when_requests_fill_the_queue() {
        let scene = Scene::new().await;
        let granted = scene.lease(None).await;
        // Nothing is awaited before the queue is full: the writer, on this thread too, takes nothing.
        let mut waiting: Vec<_> =
            (0..2 * 8_192).map(|_| Box::pin(scene.writer.submit(Serve { key: key() }))).collect();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let refused = waiting.iter_mut().filter_map(|one| match one.as_mut().poll(&mut context) {
            std::task::Poll::Ready(answer) => Some(answer),
            std::task::Poll::Pending => None,
        });
        let refused: Vec<_> = refused.collect();
        assert_eq!(refused.len(), 8_192);
        assert!(refused.iter().all(|answer| matches!(answer, Err(crate::writer::WriteError::Overloaded))));
        drop(granted);
        drop(waiting);
        let emptied = async {
            while scene.store.snapshot().await.unwrap().lease_count != 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(300), emptied).await.expect("the lease is given back");
    }
}
