//! The store on Postgres: any number of planner processes over one database, all equal.
//!
//! Decisions are taken by [`crate::decide`]; here is how rows are found, read and written. Transactions are READ COMMITTED:
//! each statement sees what was committed when it began, and a row that it locks as it is after the wait. Rows are read
//! without locks and compared under them before anything is written ([`write`]):
//!
//! 1. Whoever changes a seed, its points or its places has the row lock of the seed, and gives the row its next version.
//!    So when the version is as it was read, nobody has changed the seed since, and nobody does before the commit. If
//!    two planners choose one point, the later one finds another version, and decides anew.
//! 2. Whoever changes a seed of a host whose leases are bounded together has the host's lock, and has looked at all its
//!    seeds after taking it. If two planners choose different seeds of one host, the later one sees what the former did.
//! 3. Locks are waited for in one order: hosts by number, seeds by number, heartbeats by number, new identities by name,
//!    requests by number, planners. Each kind is locked in one statement. What was met in an attempt is held from the start
//!    of the next one; whoever holds seeds so waits for no further ones, but begins again with these, too. A flush takes
//!    heartbeats alone and claims take none, so the two never wait for each other.
//! 4. A refusal needs no lock: it is said by a look, one statement and so one moment, at which no point was free. A
//!    heartbeat or a claim that is under way elsewhere hides no seed.
//!
//! So no two transactions wait for each other. Should Postgres report a deadlock all the same, the transaction
//! is repeated, as it is when its connection broke before the commit. After a commit was asked for nothing is
//! repeated, and nothing is kept of what it was about: whether it took place is seen by whoever reads next.
//!
//! On cancel and kill -9 the connection closes and Postgres undoes what was not committed.

mod batch;
mod clients;
mod connect;
mod history;
mod kept;
mod list;
mod listen;
mod load;
mod places;
mod pool;
mod rows;
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
mod waiters;
mod write;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
pub use connect::{ConnectError, ConnectSettings, Pooler, migrate};
use connect::{Patience, Refusal};
use pool::Pool;
use rfork_protocol::SeedKey;
use session::Connection;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::commands::Serve;
use super::history::{EndedLease, Event, EventFilter, Forgotten, MAX_STEPS};
use super::list::{KeyEntry, LeaseEntry, LeaseFilter, Page, Part, SeedEntry, SeedFilter};
use super::{
    Beat, Clock, Commands, Counts, LeaseSecret, MAX_BATCH, MAX_FLUSH, Outcomes, PoolView, Rules, Snapshot,
    Store, StoreError, Swept, Told, Usage, Woken, pool_view,
};
use crate::decide::{self, Tables, adopt, collect, drain};
use batch::{Apply, Change};
use clients::Clients;
use time::Time;
use transaction::{Begin, SET_READ_ONLY, Stopped, run};
pub use url::PostgresUrl;

/// The most steps of one sweep; what is left then waits for the next.
const MAX_SWEEP_STEPS: usize = 1_000;

/// The most steps of one invalidation; beyond them seeds come as fast as they are taken out.
const MAX_INVALIDATE_STEPS: usize = 1_000;

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
    lease_secret: LeaseSecret,
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
    planner: Arc<str>,
    /// Told when some of those were served.
    served: Arc<Notify>,
    /// How many seeds and requests each client has, about.
    clients: Clients,
    /// How many more there may be.
    left: kept::Left,
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
        let mut patience = Patience::new(url, settings.patience);
        let (database, lease_secret) = loop {
            match Database::open(url, settings, &rules, &clock).await {
                Ok((database, secret)) => break (Arc::new(database), secret),
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
        Ok(Self {
            database,
            lease_secret,
            listener,
            looking,
            _following: following,
            checked: Mutex::default(),
        })
    }
}

impl Database {
    async fn open(
        url: &PostgresUrl,
        settings: ConnectSettings,
        rules: &Rules,
        clock: &Clock,
    ) -> Result<(Self, LeaseSecret), Refusal> {
        let database = Self {
            pool: Arc::new(connect::reach(url, settings).await?),
            rules: rules.clone(),
            time: Time::new(clock.clone()),
            planner: super::planner_id().into(),
            served: Arc::new(Notify::new()),
            clients: Clients::default(),
            left: kept::Left::default(),
            again: Mutex::default(),
            look: Notify::new(),
        };
        // A pooler may lend sessions that are older than somebody's decision.
        let opened = async {
            database.heed_decisions().await?;
            database.adopt_rules().await?;
            LeaseSecret::new(&run(&database.pool, Begin::View, view::Secret("leases")).await?)
        };
        match opened.await {
            Ok(secret) => Ok((database, secret)),
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

    /// Has these keys looked at once more, after a commit: see [`waiters`]. Nobody's answer waits for it.
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
        let keys = run(&self.pool, Begin::Single, waiters::WaitedFor { store: self, keys }).await?;
        for serves in keys.chunks(MAX_BATCH) {
            let serves = serves.iter().map(|key| Serve { key: key.clone() }).collect();
            let commands = Commands { serves, ..Commands::default() };
            let applied = run(&self.pool, Begin::Write, Apply::new(self, &commands)).await?;
            self.clients.note(applied.clients);
            woke |= applied.woke;
        }
        Ok(woke)
    }

    /// Leases on points that are no longer offered go on until they end.
    async fn adopt_rules(&self) -> Result<(), StoreError> {
        let mut after = Some(0);
        while let Some(last) = after {
            let step = Change::new(self, sweep::After(last), |tables: &mut Tables, _| {
                let last = tables.last_seed();
                adopt::adopt(tables, &self.rules);
                last
            });
            after = run(&self.pool, Begin::Write, step).await?;
        }
        Ok(())
    }

    /// The time for a transaction that only reads, Unix milliseconds.
    async fn now_to_read(&self, connection: &mut Connection) -> Result<i64, Stopped> {
        Ok(self.time.look(connection).await?.0)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn apply(&self, commands: &Commands) -> Result<Outcomes, StoreError> {
        let store = self.database.as_ref();
        let applied = run(&store.pool, Begin::Write, Apply::new(store, commands)).await?;
        store.clients.note(applied.clients);
        if applied.woke {
            store.served.notify_one();
        }
        if !applied.touched.is_empty() {
            store.look_again(applied.touched);
        }
        Ok(applied.outcomes)
    }

    fn lease_secret(&self) -> &LeaseSecret {
        &self.lease_secret
    }

    fn wakes(&self) -> Arc<Notify> {
        self.database.served.clone()
    }

    async fn collect(&self, told: &[Told]) -> Result<Vec<Woken>, StoreError> {
        let store = self.database.as_ref();
        let decide = |tables: &mut Tables, now| collect::collect(tables, now, &store.planner, told);
        run(&store.pool, Begin::Write, Change::new(store, sweep::Served, decide)).await
    }

    async fn source_instance(&self, instance: &str) -> Result<Option<String>, StoreError> {
        run(&self.database.pool, Begin::View, view::Source(instance)).await
    }

    async fn invalidate(
        &self,
        key: &SeedKey,
        keep: Option<&str>,
        by: Option<&Arc<str>>,
    ) -> Result<u64, StoreError> {
        let store = self.database.as_ref();
        let mut all = 0;
        for _ in 0..MAX_INVALIDATE_STEPS {
            let decide =
                |tables: &mut Tables, now| drain::invalidate(tables, now, &store.rules, key, keep, by);
            match run(&store.pool, Begin::Write, Change::new(store, sweep::Outdated { key, keep }, decide))
                .await?
            {
                0 => return Ok(all),
                drained => all += drained,
            }
        }
        Err(StoreError::Unavailable(format!(
            "the key has outdated seeds still after {all} were taken out: invalidate it again"
        )))
    }

    async fn flush(&self, beats: &[Beat]) -> Result<HashSet<i64>, StoreError> {
        let mut sorted = beats.to_vec();
        sorted.sort_unstable_by_key(|beat| beat.seed_id);
        let mut gone = HashSet::new();
        for beats in sorted.chunks(MAX_FLUSH) {
            gone.extend(
                run(&self.database.pool, Begin::Write, sweep::Flush { store: &self.database, beats }).await?,
            );
        }
        Ok(gone)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        // Also for planners that nobody asks whether they are ready.
        self.database.heed_decisions().await?;
        let store = self.database.as_ref();
        let mut swept = Swept::default();
        for _ in 0..MAX_SWEEP_STEPS {
            let decide = |tables: &mut Tables, now| decide::sweep::sweep(tables, now, &store.rules);
            let ended = run(&store.pool, Begin::Write, Change::new(store, sweep::Ended, decide)).await?;
            if ended == decide::sweep::Ended::default() {
                break;
            }
            swept.leases += ended.leases;
            swept.seeds += ended.seeds;
        }
        store.clients.are(run(&store.pool, Begin::View, clients::Counted(store)).await?);
        run(&store.pool, Begin::Write, sweep::ForgetUnused(store)).await?;
        for _ in 0..MAX_STEPS {
            let mut step = run(&store.pool, Begin::Write, history::Forget(store)).await?;
            let decide = |tables: &mut Tables, now| decide::sweep::forget(tables, now, &store.rules);
            step.requests =
                run(&store.pool, Begin::Write, Change::new(store, sweep::Forgettable, decide)).await?;
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
        run(&self.database.pool, Begin::View, view::Count(&self.database)).await
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        run(&self.database.pool, Begin::Single, view::Used(&self.database)).await
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
