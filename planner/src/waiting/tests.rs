use std::future::Future;
use std::task::{Context, Waker};

use rfork_protocol::SeedIdentity;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::config::{DatabaseUrl, Settings};
use crate::domain::owner::Owner;
use crate::heartbeats::Heartbeats;
use crate::shares::Pool;
use crate::store::Clock;
use crate::store::commands::Register;
use crate::store::sqlite::SqliteStore;

/// A room over a store with one seed of one point.
struct Scene {
    room: WaitingRoom,
    _writing: AbortOnDropHandle<()>,
    _directory: TempDir,
}

fn key() -> SeedKey {
    SeedKey::new(*b"k").unwrap()
}

fn ask(number: u8, wait_ms: i64) -> Ask {
    let queue = Queue { wait_ms, attempt: i64::from(number), ..Queue::default() };
    Ask { key: key(), wish: Box::default(), lease: [number; 32], queue, client: None, entered: None }
}

impl Scene {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("p.db");
        let rules = Settings::of(DatabaseUrl::Sqlite(path.clone())).rules();
        let store = Arc::new(SqliteStore::open(&path, rules, Clock::System).await.unwrap());
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
        let room = WaitingRoom::new(
            writer,
            store,
            Arc::new(Metrics::new().unwrap()),
            Pool::uncounted(64),
            Stop::default(),
        );
        Self { room, _writing: writing, _directory: directory }
    }

    /// A client that waits, and what the store says of it when its turn has come.
    async fn served(&self) -> (Sitting<'_>, Vec<Woken>) {
        let before = self.room.acquire(&ask(1, 0)).await.unwrap();
        let mut sitting = self.room.sit(&ask(2, 60_000));
        let waits = self.room.ask(&ask(2, 60_000), ask(2, 60_000).queue).await.unwrap();
        let Acquisition::Queued(place, _) = waits else { panic!("{waits:?}") };
        sitting.place = Some(place);
        drop(before);
        assert_eq!(self.leases().await, 1, "it is its turn");
        let woken = self.room.store.collect(&[]).await.unwrap();
        assert_eq!(woken.len(), 1);
        (sitting, woken)
    }

    /// How many leases there are once all is done that was told before.
    async fn leases(&self) -> u64 {
        self.room.writer.submit(Serve { key: key() }).await.unwrap();
        self.room.store.snapshot().await.unwrap().lease_count
    }
}

#[tokio::test]
async fn a_lease_that_comes_as_a_wait_ends_is_one_wherever_it_is_found() {
    // When the room hands it out: before the seat is given up, between the question for it and the answer, after that.
    for moment in 0..3 {
        let scene = Scene::new().await;
        let (sitting, woken) = scene.served().await;
        let mut woken = Some(woken);
        let mut hand_out = || scene.room.hand_out(&[], woken.take().unwrap_or_default());
        if moment == 0 {
            hand_out();
        }
        let mut leaving = std::pin::pin!(scene.room.leave(sitting));
        if moment == 1 {
            // The writer, on this thread too, has not run when this comes back.
            assert!(leaving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            hand_out();
        }
        let granted = leaving.await.unwrap().expect("it has its lease");
        hand_out();
        assert_eq!(scene.leases().await, 1, "moment {moment}");
        drop(granted);
        assert_eq!(scene.leases().await, 0, "moment {moment}");
    }
}
