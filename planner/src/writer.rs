//! The writer: gathers what waits and applies it in one transaction.
//!
//! Every request that changes something submits a command to a bounded queue. One task owns the store's writes: it
//! takes all that waits, whatever its kind and key, sorts it by kind, commits it together, and answers each with what
//! its kind is answered. Under load the batches grow, so the cost of a commit is shared; without load a command is
//! applied at once. Heartbeats of a request are one command, with a queue of their own ([`beats`]): a transaction has
//! some of them, and all of them as soon as it is their turn. So have renewals by which workers that load tell how far they
//! are ([`progress`]): they come each second, and wait a moment for each other.
//!
//! What happens on cancel: an acquisition whose client went away before it was taken is passed over. One that was taken
//! is answered with an owned value ([`crate::grant`]): whoever drops it, a channel that nobody listens to among them,
//! gives the lease or the place in the queue back. On kill -9: nothing was acknowledged that is not committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::domain::seed::{Registration, Removal};
use crate::grant::{Acquisition, EndOfWait};
use crate::heartbeats::Heartbeats;
use crate::store::commands::{
    Acquire, Answered, Claim, Claimed, Drain, Leave, Register, Release, Remove, Renew, Serve, Unregistered,
};
use crate::store::{Commands, MAX_BATCH, Outcomes, Renewed, Store, StoreError};
pub use beats::{Beats, Met};
use beats::{Taken, Waiting};
use progress::Gathering;

mod beats;
mod progress;

/// Commands that may wait; beyond them a request is answered 503 at once.
const MAX_WAITING: usize = 16 * MAX_BATCH;
/// Room in the queue beside them, for what nobody waits for: requests never keep a lease from being given back.
const MAX_TOLD: usize = MAX_WAITING;
/// The most heartbeats of a transaction while other commands wait: a quarter of all.
const MAX_BEATS: usize = MAX_BATCH / 4;

/// Why a command had no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The queue is full.
    #[error("too many requests are waiting for the database")]
    Overloaded,
    /// No outcome within the request's deadline; it may still take effect.
    #[error("the database did not answer within {0:?}")]
    TimedOut(Duration),
    /// The planner is stopping.
    #[error("the planner is stopping")]
    Stopping,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A command that can be submitted: one of the kinds of [`Commands`].
pub trait Submit: Sized + Send + 'static {
    /// What its submitter is told.
    type Answer: Send + 'static;

    /// The command in the queue.
    #[doc(hidden)]
    fn queued(self, waiter: Waiter<Self::Answer>) -> Queued;
}

/// Who waits for the outcome of a command.
pub struct Waiter<A> {
    arrived: Instant,
    /// That of its request.
    span: tracing::Span,
    answer: oneshot::Sender<Result<A, StoreError>>,
    /// The writer goes on while somebody has it: what gives itself back reaches a store to the end.
    writer: Writer,
}

impl<A> Waiter<A> {
    /// How long it has waited, in milliseconds.
    fn age_ms(&self) -> i64 {
        i64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Answers. One that is gone hears nothing, and what it would have owned is dropped.
    fn tell(self, answer: Result<A, StoreError>) {
        let _ = self.answer.send(answer);
    }
}

/// Says of each kind of commands where it stands in [`Commands`], and what its submitter is told.
macro_rules! kinds {
    ($($Kind:ident, $list:ident, $Answer:ty;)*) => {
        /// A command of some kind in the queue.
        #[doc(hidden)]
        pub enum Queued {
            $(#[doc(hidden)] $Kind($Kind, Waiter<$Answer>),)*
        }

        /// Who waits for the commands of a batch: each at the place of its command.
        #[derive(Default)]
        struct Waiters {
            $($list: Vec<Waiter<$Answer>>,)*
        }

        impl Batch {
            fn push(&mut self, queued: Queued) {
                match queued {
                    $(Queued::$Kind(command, waiter) => {
                        self.commands.$list.push(command);
                        self.waiters.$list.push(waiter);
                    })*
                }
            }

            /// A trace has links from the batch to each request.
            fn follow(&self, span: &tracing::Span) {
                $(self.waiters.$list.iter().for_each(|waiter| {
                    span.follows_from(&waiter.span);
                });)*
                self.beats.spans().for_each(|request| {
                    span.follows_from(request);
                });
            }

            fn fail(self, error: &StoreError) {
                $(self.waiters.$list.into_iter().for_each(|waiter| waiter.tell(Err(error.clone())));)*
                self.beats.fail(error);
            }
        }

        $(impl Submit for $Kind {
            type Answer = $Answer;

            fn queued(self, waiter: Waiter<$Answer>) -> Queued {
                Queued::$Kind(self, waiter)
            }
        })*
    };
}

kinds! {
    Register, registers, Result<(Registration, i64), Unregistered>;
    Answered, answers, bool;
    Renew, renewals, Option<Renewed>;
    Release, releases, bool;
    Remove, removals, Removal;
    Drain, drains, Option<u32>;
    Claim, claims, Claimed;
    Leave, leaves, EndOfWait;
    Acquire, acquires, Acquisition;
    Serve, serves, Option<i64>;
}

/// Commands that are applied together.
#[derive(Default)]
struct Batch {
    commands: Commands,
    waiters: Waiters,
    beats: Taken,
}

impl Batch {
    /// Takes as much of a request's heartbeats as there may be in it, so many with those that it has. Whoever has gone away,
    /// or was told that it took too long, sends them again.
    fn take(&mut self, waiting: Waiting, most: usize) {
        let heartbeats = &mut self.commands.heartbeats;
        if !waiting.waiter.answer.is_closed() {
            heartbeats.extend(self.beats.take(waiting, most - heartbeats.len()));
        }
    }

    /// Tells registrations how long they have waited.
    fn age(&mut self) {
        for (command, waiter) in self.commands.registers.iter_mut().zip(&self.waiters.registers) {
            command.age_ms = waiter.age_ms();
        }
    }

    /// Answers all. A store has an outcome for each command, at its place. Gives the request of whose heartbeats some are
    /// still to be written.
    fn answer(self, outcomes: Outcomes) -> Option<Waiting> {
        fn each<O, A>(
            waiters: Vec<Waiter<A>>,
            outcomes: impl IntoIterator<Item = O>,
            answer: impl Fn(O, &Writer) -> A,
        ) {
            for (waiter, outcome) in waiters.into_iter().zip(outcomes) {
                let answer = answer(outcome, &waiter.writer);
                waiter.tell(Ok(answer));
            }
        }
        let Self { commands, waiters, beats } = self;
        each(waiters.registers, outcomes.registers, |registered, _| registered);
        each(waiters.answers, outcomes.answers, |is_there, _| is_there);
        each(waiters.renewals, outcomes.renewals, |renewed, _| renewed);
        each(waiters.releases, outcomes.releases, |lived, _| lived);
        each(waiters.removals, outcomes.removals, |removal, _| removal);
        each(waiters.drains, outcomes.drains, |leases, _| leases);
        each(waiters.claims, outcomes.claims, |claimed, _| claimed);
        let left = commands.leaves.iter().zip(outcomes.leaves);
        each(waiters.leaves, left, |(leave, left), writer| EndOfWait::of(leave, left, writer));
        let acquired = commands.acquires.iter().zip(outcomes.acquires);
        each(waiters.acquires, acquired, |(acquire, acquired), writer| {
            Acquisition::of(acquire, acquired, writer)
        });
        each(waiters.serves, outcomes.serves, |next_end_ms, _| next_end_ms);
        beats.met(outcomes.heartbeats)
    }
}

/// Sends commands to the writer. Cheap to clone; the writer ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Queued>,
    beats: mpsc::Sender<Waiting>,
    progress: mpsc::Sender<Queued>,
    deadline: Duration,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queued")
    }
}

/// What waits for the writer.
struct Queues {
    /// Commands of all kinds but heartbeats, and but renewals that tell how far somebody is.
    commands: mpsc::Receiver<Queued>,
    /// Heartbeats of requests.
    beats: mpsc::Receiver<Waiting>,
    /// Those renewals.
    progress: Gathering,
    /// A request of whose heartbeats some are written.
    begun: Option<Waiting>,
}

impl Queues {
    /// Waits for something to do, and takes what a transaction may have of all that waits. `None` once every [`Writer`] is
    /// dropped and all is done.
    async fn next(&mut self) -> Option<Batch> {
        let (mut batch, mut taken) = (Batch::default(), Vec::new());
        if self.begun.is_none() {
            tokio::select! {
                biased;
                1.. = self.commands.recv_many(&mut taken, MAX_BATCH - MAX_BEATS - progress::SHARE) => {}
                Some(waiting) = self.beats.recv() => self.begun = Some(waiting),
                Some(()) = self.progress.due() => {}
                else => return None,
            }
        }
        // All that is there, if no other commands want the room.
        let others = (taken.len() + self.commands.len() + self.progress.len()).min(MAX_BATCH - MAX_BEATS);
        while batch.commands.heartbeats.len() < MAX_BATCH - others
            && let Some(waiting) = self.begun.take().or_else(|| self.beats.try_recv().ok())
        {
            batch.take(waiting, MAX_BATCH - others);
        }
        let most = MAX_BATCH - batch.commands.heartbeats.len();
        self.progress.take(progress::SHARE.min(most - taken.len()), &mut taken);
        while taken.len() < most
            && let Ok(queued) = self.commands.try_recv()
        {
            taken.push(queued);
        }
        self.progress.take(most - taken.len(), &mut taken);
        // A client that has gone away gets no lease that nobody would use.
        let is_wanted =
            |queued: &Queued| !matches!(queued, Queued::Acquire(_, waiter) if waiter.answer.is_closed());
        taken.into_iter().filter(is_wanted).for_each(|queued| batch.push(queued));
        Some(batch)
    }
}

impl Writer {
    /// Starts the writer. Each command has an outcome, or an error, within `deadline`; `heartbeats` learns
    /// of every registration and removal before it is acknowledged.
    ///
    /// The task ends by itself once every `Writer` is dropped and the queue is empty.
    pub fn start(
        store: Arc<dyn Store>,
        heartbeats: Arc<Heartbeats>,
        deadline: Duration,
    ) -> (Self, AbortOnDropHandle<()>) {
        let (writer, queues) = Self::new(deadline);
        (writer, AbortOnDropHandle::new(tokio::spawn(write(store, heartbeats, queues))))
    }

    fn new(deadline: Duration) -> (Self, Queues) {
        let (queue, commands) = mpsc::channel(MAX_WAITING + MAX_TOLD);
        let (beats, beating) = mpsc::channel(MAX_WAITING);
        let (progress, progressing) = mpsc::channel(MAX_WAITING);
        let queues = Queues { commands, beats: beating, progress: Gathering::of(progressing), begun: None };
        (Self { queue, beats, progress, deadline }, queues)
    }

    /// Applies one command.
    ///
    /// # Errors
    /// [`WriteError`]. After [`WriteError::TimedOut`] the command may still be applied; a lease that it takes
    /// is then given back.
    pub async fn submit<C: Submit>(&self, command: C) -> Result<C::Answer, WriteError> {
        if self.queue.capacity() <= MAX_TOLD {
            return Err(self.refusal());
        }
        let (answer, told) = oneshot::channel();
        if !self.enqueue(command, answer) {
            return Err(self.refusal());
        }
        self.outcome(told).await
    }

    /// Writes heartbeats of a request; gives what each met.
    ///
    /// # Errors
    /// [`WriteError`]; some may have been written, and writing them again does no harm.
    pub async fn beat(&self, beats: Beats) -> Result<Vec<Met>, WriteError> {
        let (answer, told) = oneshot::channel();
        if self.beats.try_send(Waiting::new(beats, self.waiter(answer))).is_err() {
            return Err(self.refusal());
        }
        self.outcome(told).await
    }

    /// What a command is answered, within the deadline.
    async fn outcome<A>(&self, told: oneshot::Receiver<Result<A, StoreError>>) -> Result<A, WriteError> {
        match tokio::time::timeout(self.deadline, told).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(WriteError::Stopping),
            Err(_) => Err(WriteError::TimedOut(self.deadline)),
        }
    }

    /// Has a command applied whose outcome nobody waits for. If the queue is full it is lost.
    pub fn tell<C: Submit>(&self, command: C) {
        self.enqueue(command, oneshot::channel().0);
    }

    /// Gives whether it is in the queue.
    fn enqueue<C: Submit>(&self, command: C, answer: oneshot::Sender<Result<C::Answer, StoreError>>) -> bool {
        let queued = command.queued(self.waiter(answer));
        let queue = if Gathering::takes(&queued) { &self.progress } else { &self.queue };
        queue.try_send(queued).is_ok()
    }

    fn waiter<A>(&self, answer: oneshot::Sender<Result<A, StoreError>>) -> Waiter<A> {
        let (arrived, span) = (Instant::now(), tracing::Span::current());
        Waiter { arrived, span, answer, writer: self.clone() }
    }

    /// Why the queue takes no more.
    fn refusal(&self) -> WriteError {
        if self.queue.is_closed() { WriteError::Stopping } else { WriteError::Overloaded }
    }
}

async fn write(store: Arc<dyn Store>, heartbeats: Arc<Heartbeats>, mut queues: Queues) {
    while let Some(mut batch) = queues.next().await {
        if batch.commands.is_empty() {
            continue;
        }
        // It is in no request's span, for it is done for all of them; a trace has links to each.
        let span = tracing::debug_span!("batch", commands = batch.commands.len());
        batch.follow(&span);
        batch.age();
        let applied = store.apply(&batch.commands).instrument(span).await;
        heartbeats.learn(&batch.commands, applied.as_ref().ok());
        match applied {
            Ok(outcomes) => queues.begun = batch.answer(outcomes),
            Err(error) => {
                // Leases that could not be given back end by their time to live.
                tracing::warn!(%error, commands = batch.commands.len(), "a batch was not applied");
                batch.fail(&error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use rfork_protocol::{SeedIdentity, SeedKey};

    use super::*;
    use crate::config::{DatabaseUrl, Settings};
    use crate::domain::owner::Owner;
    use crate::store::Clock;
    use crate::store::sqlite::SqliteStore;

    #[tokio::test]
    async fn a_lease_whose_client_left_with_the_answer_on_its_way_is_given_back() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("p.db");
        let rules = Settings::of(DatabaseUrl::Sqlite(path.clone())).rules();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path, rules, Clock::System).await.unwrap());
        let heartbeats = Arc::new(Heartbeats::new(Duration::from_secs(60)));
        let (writer, _writing) = Writer::start(store.clone(), heartbeats, Duration::from_secs(60));
        let key = SeedKey::new(*b"k").unwrap();
        let identity = SeedIdentity::new("h", 1, 0).unwrap();
        writer
            .submit(Register {
                by: None,
                identity,
                key: key.clone(),
                profile: Box::default(),
                age_ms: 0,
                client: None,
                owner: Owner::default(),
            })
            .await
            .unwrap()
            .unwrap();

        let leases = async |count: u64| {
            while store.snapshot().await.unwrap().lease_count != count {
                tokio::task::yield_now().await;
            }
        };
        {
            let mut asking =
                pin!(writer.submit(Acquire { key, wish: Box::default(), lease: [7; 32], queue: None }));
            let polled = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending), "{polled:?}");
            // Granted; the writer, which runs on this thread too, answers when it is given a turn.
            leases(1).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            // The client leaves before it looks.
        }
        tokio::time::timeout(Duration::from_secs(300), leases(0)).await.expect("the lease is given back");
    }

    /// Notes which spans follow from which.
    #[derive(Default, Clone)]
    struct Links(Arc<std::sync::Mutex<Vec<(String, String)>>>);

    impl<S> tracing_subscriber::Layer<S> for Links
    where
        S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    {
        fn on_follows_from(
            &self,
            later: &tracing::span::Id,
            earlier: &tracing::span::Id,
            context: tracing_subscriber::layer::Context<'_, S>,
        ) {
            let name = |id| context.span(id).unwrap().name().to_owned();
            self.0.lock().unwrap().push((name(later), name(earlier)));
        }
    }

    #[tokio::test]
    async fn a_batch_is_linked_to_the_requests_that_it_serves() {
        use tracing_subscriber::layer::SubscriberExt;
        let links = Links::default();
        // With one alone, whether a span is wanted is asked of the thread that comes to it first: another test's, which has
        // none. The answer stays.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        // The writer runs on this thread, too.
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(links.clone()));
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("p.db");
        let rules = Settings::of(DatabaseUrl::Sqlite(path.clone())).rules();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path, rules, Clock::System).await.unwrap());
        let heartbeats = Arc::new(Heartbeats::new(Duration::from_secs(60)));
        let (writer, _writing) = Writer::start(store, heartbeats, Duration::from_secs(60));
        let command = Remove {
            by: None,
            owner: Owner::default(),
            identity: SeedIdentity::new("h", 1, 0).unwrap(),
            key: SeedKey::new(*b"k").unwrap(),
        };
        let span = tracing::info_span!("request");
        tracing::Instrument::instrument(writer.submit(command), span).await.unwrap();
        assert_eq!(*links.0.lock().unwrap(), [("batch".to_owned(), "request".to_owned())]);
    }
}
