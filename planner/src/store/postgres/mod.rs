//! The store on Postgres: any number of planner processes over one database, all equal.
//!
//! Transactions are READ COMMITTED: each statement sees what was committed when it began, and a row that it
//! locks as it is after the wait. What makes concurrency right is who holds which lock, in which order:
//!
//! 1. Whoever changes a seed or its points holds the row lock of the seed. Locks of seeds are waited for in the
//!    order of their primary key, all in one statement, and before any other lock. What follows sees everything
//!    that earlier holders did, because it begins after the wait.
//! 2. Rows of heartbeats come next, in the same order. A flush takes only these and claims take none, so the
//!    two never wait for each other.
//! 3. Identities that are new come last, in their order: the unique index makes one of two planners wait that
//!    register the same seed, and the one that waited begins again and finds it.
//! 4. A seed that is chosen while locks are held already is out of this order, so nobody waits for it: when
//!    somebody has it, the transaction begins again and takes it at the start (1).
//!
//! Rows of [`history`] are only added, and whoever deletes them passes over what another planner deletes.
//!
//! So no two transactions wait for each other. Should Postgres report a deadlock all the same, the transaction
//! is repeated, as it is when its connection broke before the commit. After a commit was asked for nothing is
//! repeated.
//!
//! On cancel and kill -9 the connection closes and Postgres undoes what was not committed.

/// What is read of a row of `seeds s`. By name: a statement that was prepared for `*` fails once a planner of the next
/// version has added a column.
macro_rules! of_seed {
    () => {
        "s.id, s.identity, s.host, s.port, s.rank, s.seed_key, s.capacity, s.lease_ttl_ms, s.capped_host,
         s.host_capacity, s.removed, s.drained, s.last_used_ms, s.model_url, s.deploy_strategy, s.is_draft, s.zone,
         s.rack, s.node, s.instance_id, s.incarnation, s.content_id, s.failures, s.suspect_until_ms, s.answered_ms"
    };
}

mod allocate;
mod batch;
mod candidates;
mod connect;
mod history;
mod instances;
mod leases;
mod list;
mod listed;
mod listen;
mod offer;
mod pool;
mod requests;
mod seeds;
mod session;
#[cfg(test)]
mod simulation;
mod sweep;
#[cfg(test)]
mod tests;
mod time;
mod transaction;
mod url;
mod view;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
pub use connect::{ConnectError, ConnectSettings, Pooler, migrate};
use connect::{Patience, Refusal};
use pool::Pool;
use rfork_protocol::{SeedIdentity, SeedKey};
use session::Connection;
use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::history::{EndedLease, Event, EventFilter, Forgotten, MAX_STEPS};
use super::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use super::{
    Beat, Clock, Command, Commands, Counts, MAX_BATCH, MAX_FLUSH, Opening, Outcome, Outcomes, PoolView,
    Rules, Snapshot, Store, StoreError, Swept, Told, Woken, pool_view,
};
use time::Time;
use transaction::{Begin, SET_READ_ONLY, Stopped, run};
pub use url::PostgresUrl;

/// The most steps of one sweep; what is left then waits for the next.
const MAX_SWEEP_STEPS: usize = 1_000;

/// The most keys that wait to be looked at once more; a sweep makes up for others.
const MAX_AGAIN: usize = 8_192;

/// However often it is asked for, a check writes no more often than this.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two such looks, which gathers the keys of several batches: only what two planners did at the same
/// moment waits for it.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// The store on a Postgres database. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct PostgresStore {
    database: Arc<Database>,
    /// Hears of waiters whom other planners served; it ends with the store, and so does the next.
    listener: AbortOnDropHandle<()>,
    /// Looks once more for those who wait.
    looking: AbortOnDropHandle<()>,
    /// Turns to another server when there are several.
    _following: Option<AbortOnDropHandle<()>>,
    /// When a check has last written. Not locked across an await.
    checked: Mutex<Option<Instant>>,
}

/// What every call works with.
#[derive(Debug)]
struct Database {
    pool: Arc<Pool>,
    rules: Rules,
    time: Time,
    /// This process, for those who wait for its answers.
    planner: String,
    /// Told when some of those were served.
    served: Arc<Notify>,
    /// Keys to be looked at once more.
    again: Mutex<BTreeSet<SeedKey>>,
    /// Told when there are some.
    look: Notify,
}

impl PostgresStore {
    /// Connects, migrates the schema, and gives seeds that were registered under other rules today's terms.
    ///
    /// # Errors
    /// [`ConnectError`], when the database stays away, refuses, or is not ours.
    pub async fn open(
        url: &PostgresUrl,
        settings: ConnectSettings,
        rules: Rules,
        clock: Clock,
    ) -> Result<Self, ConnectError> {
        Self::open_telling(url, settings, rules, clock, &Opening::default()).await
    }

    /// The same, telling meanwhile what it waits for.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open_telling(
        url: &PostgresUrl,
        settings: ConnectSettings,
        rules: Rules,
        clock: Clock,
        opening: &Opening,
    ) -> Result<Self, ConnectError> {
        let patience = Patience::new(url, settings.patience, opening);
        let database = loop {
            match Database::open(url, settings, &rules, &clock).await {
                Ok(database) => break Arc::new(database),
                Err(refusal) => patience.after(refusal).await?,
            }
        };
        let Database { pool, planner, served, .. } = database.as_ref();
        if pool.is_shared() {
            tracing::info!(
                "a pooler lends its sessions: every question stands in a transaction, statements have no names, and who \
                 waits is looked for instead of told"
            );
        }
        let listening = listen::run(pool.clone(), planner.clone(), served.clone());
        let listener = AbortOnDropHandle::new(tokio::spawn(listening));
        let following = (url.servers().len() > 1)
            .then(|| AbortOnDropHandle::new(tokio::spawn(connect::follow(pool.clone(), url.clone()))));
        let looking = AbortOnDropHandle::new(tokio::spawn(database.clone().look()));
        Ok(Self { database, listener, looking, _following: following, checked: Mutex::default() })
    }
}

impl Database {
    async fn open(
        url: &PostgresUrl,
        settings: ConnectSettings,
        rules: &Rules,
        clock: &Clock,
    ) -> Result<Self, Refusal> {
        let database = Self {
            pool: Arc::new(connect::reach(url, settings).await?),
            rules: rules.clone(),
            time: Time::new(clock.clone()),
            planner: super::planner_id(),
            served: Arc::new(Notify::new()),
            again: Mutex::default(),
            look: Notify::new(),
        };
        // A pooler may lend sessions that are older than somebody's decision.
        let opened = async {
            database.heed_decisions().await?;
            database.adopt_rules().await
        };
        match opened.await {
            Ok(()) => Ok(database),
            Err(StoreError::Unavailable(reason)) => Err(Refusal::Away(reason)),
            Err(error) => Err(Refusal::Final(error.to_string())),
        }
    }

    /// Notes whether somebody has decided that nothing is to be written, and refuses then.
    async fn heed_decisions(&self) -> Result<(), StoreError> {
        let read_only = run(&self.pool, Begin::View, view::IsSetReadOnly).await?;
        self.pool.note_read_only(read_only);
        if read_only { Err(StoreError::Unavailable(SET_READ_ONLY.into())) } else { Ok(()) }
    }

    /// Has these keys looked at once more, after a commit: see [`requests`]. Nobody's answer waits for it.
    fn look_again(&self, keys: BTreeSet<SeedKey>) {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if again.len() + keys.len() <= MAX_AGAIN {
            again.extend(keys);
        }
        drop(again);
        self.look.notify_one();
    }

    /// Looks once more for those who wait, for as long as the store is there.
    async fn look(self: Arc<Self>) {
        loop {
            self.look.notified().await;
            let keys = std::mem::take(&mut *self.again.lock().unwrap_or_else(PoisonError::into_inner));
            match self.serve(&keys).await {
                Ok(false) => {}
                Ok(true) => self.served.notify_one(),
                // The waiters' own planners make up for it, which ask again after a while.
                Err(error) => tracing::warn!(%error, "those who wait were not looked for"),
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Serves those who wait for these keys; gives whether some were of this planner's.
    async fn serve(&self, keys: &BTreeSet<SeedKey>) -> Result<bool, StoreError> {
        let mut woke = false;
        if keys.is_empty() {
            return Ok(woke);
        }
        let keys = run(&self.pool, Begin::Single, requests::WaitedFor { store: self, keys }).await?;
        let serve: Vec<Command> = keys.into_iter().map(|key| Command::Serve { key }).collect();
        for serve in serve.chunks(MAX_BATCH) {
            woke |= run(&self.pool, Begin::Write, batch::Batch::new(self, serve)).await?.woke;
        }
        Ok(woke)
    }

    /// Leases on points that are no longer offered go on until they end.
    async fn adopt_rules(&self) -> Result<(), StoreError> {
        let mut after = 0;
        while let Some(last) = run(&self.pool, Begin::Write, seeds::Adopt { store: self, after }).await? {
            after = last;
        }
        Ok(())
    }

    /// The time, Unix milliseconds. Asked for after locks were waited for: it is then no earlier than anything
    /// that their last holders wrote.
    async fn now(&self, connection: &mut Connection) -> Result<i64, Stopped> {
        self.time.now(connection).await
    }

    /// The same for a transaction that only reads.
    async fn now_to_read(&self, connection: &mut Connection) -> Result<i64, Stopped> {
        Ok(self.time.look(connection).await?.0)
    }
}

/// By what a key is found.
fn key_hash(key: &SeedKey) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The identity that a row spells; rows hold only what was checked when it came in.
fn identity(row: &PgRow) -> Result<SeedIdentity, Stopped> {
    let port = small(row.try_get::<i32, _>("port")?.into())?;
    SeedIdentity::new(row.try_get::<String, _>("host")?, port, small(row.try_get("rank")?)?)
        .map_err(|error| Stopped::Broken(error.to_string()))
}

fn seed_key(bytes: Vec<u8>) -> Result<SeedKey, Stopped> {
    SeedKey::new(bytes).map_err(|error| Stopped::Broken(error.to_string()))
}

fn lease_hash(bytes: Vec<u8>) -> Result<super::LeaseHash, Stopped> {
    bytes.try_into().map_err(|_| Stopped::Broken("a lease hash is not 32 bytes".into()))
}

/// A number that the schema keeps within bounds.
fn small<T: TryFrom<i64>>(number: i64) -> Result<T, Stopped> {
    T::try_from(number).map_err(|_| Stopped::Broken(format!("{number} is out of bounds")))
}

#[async_trait]
impl Store for PostgresStore {
    async fn apply(&self, commands: &Commands) -> Result<Outcomes, StoreError> {
        let commands = listed::list(commands);
        let applied =
            run(&self.database.pool, Begin::Write, batch::Batch::new(&self.database, &commands)).await?;
        if applied.woke {
            self.database.served.notify_one();
        }
        // A batch of acquisitions that were all answered neither frees nor waits.
        let matters = commands.iter().zip(&applied.outcomes).any(|(command, outcome)| {
            !matches!((command, outcome), (Command::Acquire { .. }, Outcome::Acquired(_)))
        });
        if matters && !applied.touched.is_empty() {
            self.database.look_again(applied.touched);
        }
        Ok(listed::by_kind(applied.outcomes))
    }

    fn wakes(&self) -> Arc<Notify> {
        self.database.served.clone()
    }

    async fn collect(&self, told: &[Told]) -> Result<Vec<Woken>, StoreError> {
        let store = self.database.as_ref();
        run(&store.pool, Begin::Write, requests::Collect { store, told }).await
    }

    async fn source_instance(&self, instance: &str) -> Result<Option<String>, StoreError> {
        run(&self.database.pool, Begin::View, instances::Source { store: &self.database, instance }).await
    }

    async fn invalidate(&self, key: &SeedKey, keep: Option<&str>) -> Result<u64, StoreError> {
        let mut drained = 0;
        loop {
            match run(
                &self.database.pool,
                Begin::Write,
                seeds::Invalidate { store: &self.database, key, keep },
            )
            .await?
            {
                0 => return Ok(drained),
                step => drained += step,
            }
        }
    }

    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError> {
        let mut sorted = beats.to_vec();
        sorted.sort_unstable_by_key(|beat| beat.seed_id);
        let mut gone = HashSet::new();
        for beats in sorted.chunks(MAX_FLUSH) {
            gone.extend(
                run(&self.database.pool, Begin::Write, seeds::Flush { store: &self.database, beats }).await?,
            );
        }
        Ok(gone)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        // Also for planners that nobody asks whether they are ready.
        self.database.heed_decisions().await?;
        let mut swept = Swept::default();
        for _ in 0..MAX_SWEEP_STEPS {
            let step = run(&self.database.pool, Begin::Write, sweep::Step(&self.database)).await?;
            swept.leases += step.swept.leases;
            swept.seeds += step.swept.seeds;
            if !step.more {
                break;
            }
        }
        run(&self.database.pool, Begin::Write, instances::Forget(&self.database)).await?;
        for _ in 0..MAX_STEPS {
            let mut step = run(&self.database.pool, Begin::Write, history::Forget(&self.database)).await?;
            step.requests = run(&self.database.pool, Begin::Write, requests::Forget(&self.database)).await?;
            if step == Forgotten::default() {
                break;
            }
            swept.forgotten.leases += step.leases;
            swept.forgotten.events += step.events;
            swept.forgotten.requests += step.requests;
        }
        Ok(swept)
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        run(&self.database.pool, Begin::View, view::View(&self.database)).await
    }

    async fn list_seeds(&self, filter: &SeedFilter, part: &Part) -> Result<Page<SeedEntry>, StoreError> {
        run(&self.database.pool, Begin::View, list::Seeds { store: &self.database, filter, part }).await
    }

    async fn list_leases(&self, filter: &LeaseFilter, part: &Part) -> Result<Page<LeaseEntry>, StoreError> {
        run(&self.database.pool, Begin::View, list::Leases { store: &self.database, filter, part }).await
    }

    async fn list_ended_leases(
        &self,
        filter: &LeaseFilter,
        part: &Part,
    ) -> Result<Page<EndedLease>, StoreError> {
        run(&self.database.pool, Begin::View, history::Leases { store: &self.database, filter, part }).await
    }

    async fn list_events(&self, filter: &EventFilter, part: &Part) -> Result<Page<Event>, StoreError> {
        run(&self.database.pool, Begin::View, history::Events { store: &self.database, filter, part }).await
    }

    async fn list_keys(&self, part: &Part) -> Result<Page<KeyEntry>, StoreError> {
        run(&self.database.pool, Begin::View, list::Keys { store: &self.database, part }).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Counts::from_rows(run(&self.database.pool, Begin::View, view::Count(&self.database)).await?)
    }

    async fn check(&self) -> Result<(), StoreError> {
        let database = self.database.as_ref();
        run(&database.pool, Begin::View, view::HasSchema).await?;
        database.heed_decisions().await?;
        let written = *self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_some_and(|written| written.elapsed() < CHECK_PAUSE) {
            return Ok(());
        }
        run(&database.pool, Begin::Write, view::Written(database)).await?;
        run(&database.pool, Begin::View, view::Room).await?;
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    fn pools(&self) -> Vec<PoolView> {
        vec![pool_view("postgres", self.database.pool.connections())]
    }

    async fn close(&self) {
        self.listener.abort();
        self.looking.abort();
        self.database.pool.connections().close().await;
    }
}
