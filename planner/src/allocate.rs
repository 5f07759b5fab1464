//! The writer: gathers what waits and applies it in one transaction.
//!
//! Every request that changes something is a [`Command`] in one bounded queue. One task owns the store's
//! writes: it takes all that waits, whatever its kind and key, commits it together, and answers each. Under
//! load the batches grow, so the cost of a commit is shared; without load a command is applied at once.
//!
//! What happens on cancel: a client that went away before its command was taken is passed over if it wanted a
//! lease; one that went away later, before its answer was taken, has its lease released at once. On kill -9:
//! nothing was acknowledged that is not committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::heartbeats::Heartbeats;
use crate::store::{Command, Leaving, Left, MAX_BATCH, Outcome, Report, Store, StoreError, in_order, sort};

/// Commands that may wait; beyond them a request is answered 503 at once.
const MAX_WAITING: usize = 16 * MAX_BATCH;

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

struct Waiting {
    command: Command,
    arrived: Instant,
    /// That of its request.
    span: tracing::Span,
    answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// Sends commands to the writer. Cheap to clone; the writer ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Waiting>,
    deadline: Duration,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
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
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let task = AbortOnDropHandle::new(tokio::spawn(write(store, heartbeats, waiting)));
        (Self { queue, deadline }, task)
    }

    /// Applies one command.
    ///
    /// # Errors
    /// [`WriteError`]. After [`WriteError::TimedOut`] the command may still be applied; a lease that it takes
    /// is then released by the writer.
    pub async fn submit(&self, command: Command) -> Result<Outcome, WriteError> {
        let (answer, outcome) = oneshot::channel();
        let mut awaited = Awaited { outcome, command: command.clone(), writer: self };
        self.enqueue(command, answer)?;
        match tokio::time::timeout(self.deadline, &mut awaited.outcome).await {
            Ok(Ok(outcome)) => Ok(outcome?),
            Ok(Err(_)) => Err(WriteError::Stopping),
            Err(_) => Err(WriteError::TimedOut(self.deadline)),
        }
    }

    /// Has a command applied whose outcome nobody waits for. If the queue is full it is lost.
    pub fn tell(&self, command: Command) {
        let _ = self.enqueue(command, oneshot::channel().0);
    }

    fn enqueue(
        &self,
        command: Command,
        answer: oneshot::Sender<Result<Outcome, StoreError>>,
    ) -> Result<(), WriteError> {
        let waiting = Waiting { command, arrived: Instant::now(), span: tracing::Span::current(), answer };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => WriteError::Stopping,
        })
    }
}

/// An outcome that somebody waits for. Dropped before it was taken, it gives a lease in it back.
///
/// Closing comes first: an outcome is then either here, or still with the writer, which sees that nobody waits.
struct Awaited<'a> {
    outcome: oneshot::Receiver<Result<Outcome, StoreError>>,
    command: Command,
    writer: &'a Writer,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.outcome.close();
        // Taken before, there is nothing here any more.
        if let Ok(Ok(outcome)) = self.outcome.try_recv()
            && let Some(release) = orphan(self.command.clone(), outcome)
        {
            // Nobody waits for this. If the queue is full, the lease ends by its time to live.
            self.writer.tell(release);
        }
    }
}

async fn write(store: Arc<dyn Store>, heartbeats: Arc<Heartbeats>, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    // Leases whose client was gone when its answer came: given back with the next batch.
    let mut orphans: Vec<Command> = Vec::new();
    loop {
        if orphans.is_empty() && queue.recv_many(&mut batch, MAX_BATCH).await == 0 {
            return;
        }
        // A client that has gone away gets no lease that nobody would use.
        batch.retain(|waiting| !(is_acquire(&waiting.command) && waiting.answer.is_closed()));
        let given_back = orphans.len();
        let mut commands: Vec<Command> = std::mem::take(&mut orphans);
        commands.extend(batch.iter().map(|waiting| aged(waiting.command.clone(), waiting.arrived)));
        if commands.is_empty() {
            continue;
        }
        // It is in no request's span, for it is done for all of them; a trace has links to each.
        let span = tracing::debug_span!("batch", commands = commands.len());
        for waiting in &batch {
            span.follows_from(&waiting.span);
        }
        let (commands, places) = sort(&commands);
        let applied = tracing::Instrument::instrument(store.apply(&commands), span).await;
        heartbeats.learn(&commands, applied.as_ref().ok());
        match applied.and_then(|outcomes| in_order(&outcomes, &places)) {
            Ok(outcomes) => {
                for (waiting, outcome) in batch.drain(..).zip(outcomes.into_iter().skip(given_back)) {
                    if let Err(Ok(outcome)) = waiting.answer.send(Ok(outcome)) {
                        orphans.extend(orphan(waiting.command, outcome));
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, commands = commands.len(), "a batch was not applied");
                for waiting in batch.drain(..) {
                    // A client that is gone needs no answer.
                    let _ = waiting.answer.send(Err(error.clone()));
                }
                // Leases that could not be given back end by their time to live.
            }
        }
    }
}

fn is_acquire(command: &Command) -> bool {
    matches!(command, Command::Acquire { .. })
}

/// The command, told how long it has waited.
fn aged(mut command: Command, arrived: Instant) -> Command {
    if let Command::Register { age_ms, .. } | Command::Beat { age_ms, .. } = &mut command {
        *age_ms = i64::try_from(arrived.elapsed().as_millis()).unwrap_or(i64::MAX);
    }
    command
}

/// What becomes of a lease, or a place in the queue, whose client is gone.
fn orphan(command: Command, outcome: Outcome) -> Option<Command> {
    match (command, outcome) {
        // Its client may come back for it: until then it lives as long as any that is not renewed.
        (Command::Acquire { queue: Some(queue), .. }, Outcome::Acquired(Ok(_)))
            if queue.idempotency.is_some() =>
        {
            None
        }
        (Command::Acquire { lease, queue: Some(queue), .. }, Outcome::Queued(_)) => {
            Some(Command::Leave { lease, attempt: queue.attempt, why: Leaving::Gone })
        }
        // It was granted in the moment in which its wait ended, and nobody hears of it.
        (
            Command::Leave { lease, why: Leaving::TimedOut, .. },
            Outcome::Left(Left::Granted { grant, kept: false }),
        ) => Some(Command::give_back(grant.identity, lease, Report::Unknown, None)),
        (Command::Acquire { lease, .. }, Outcome::Acquired(Ok(grant))) => {
            Some(Command::give_back(grant.identity, lease, Report::Unknown, None))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use rfork_protocol::{SeedIdentity, SeedKey};

    use super::*;
    use crate::config::{DatabaseUrl, Settings};
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
            .submit(Command::Register { identity, key: key.clone(), profile: Box::default(), age_ms: 0 })
            .await
            .unwrap();

        let leases = async |count: u64| {
            while store.snapshot().await.unwrap().lease_count != count {
                tokio::task::yield_now().await;
            }
        };
        {
            let mut asking = pin!(writer.submit(Command::Acquire {
                key,
                wish: Box::default(),
                lease: [7; 32],
                queue: None
            }));
            let polled = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending), "{polled:?}");
            // Granted; the writer, which runs on this thread too, answers when it is given a turn.
            leases(1).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            // The client leaves before it looks.
        }
        tokio::time::timeout(Duration::from_secs(30), leases(0)).await.expect("the lease is given back");
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
        // The writer runs on this thread, too.
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(links.clone()));
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("p.db");
        let rules = Settings::of(DatabaseUrl::Sqlite(path.clone())).rules();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path, rules, Clock::System).await.unwrap());
        let heartbeats = Arc::new(Heartbeats::new(Duration::from_secs(60)));
        let (writer, _writing) = Writer::start(store, heartbeats, Duration::from_secs(60));
        let command = Command::Remove {
            identity: SeedIdentity::new("h", 1, 0).unwrap(),
            key: SeedKey::new(*b"k").unwrap(),
        };
        let span = tracing::info_span!("request");
        tracing::Instrument::instrument(writer.submit(command), span).await.unwrap();
        assert_eq!(*links.0.lock().unwrap(), [("batch".to_owned(), "request".to_owned())]);
    }
}
