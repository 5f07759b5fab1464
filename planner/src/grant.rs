//! Leasing a seed that lives: acquire, and ask a seed that was quiet for long whether it is there before its lease
//! is given away.
//!
//! Nothing of this is within a transaction. A lease on a seed that does not answer is ended, and its seed suspect,
//! before another is acquired. On cancel the lease that is being looked at is given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::allocate::{WriteError, Writer};
use crate::probe::{Prober, Verdict};
use crate::store::{Command, Grant, Outcome, Report};
use crate::waiting::{AcquireError, Ask, WaitingRoom};

/// The most seeds that are found dead for one request, each in 300 ms: the answer must come in time.
const MAX_DEAD: usize = 16;
/// What a heartbeat may be late by, on its way and until it is written, in milliseconds.
const LATE_MS: i64 = 3_000;
/// Why the lease on a seed that does not answer ends.
const NO_ANSWER: &str = "no-answer";

/// How seeds are asked for their health.
#[derive(Debug)]
pub struct Liveness {
    /// Asks.
    pub prober: Prober,
    /// How often seeds send heartbeats.
    pub heartbeat_interval: Duration,
}

/// Leases seeds.
#[derive(Debug, Clone)]
pub struct Granter {
    /// Applies commands.
    pub writer: Writer,
    /// Where requests wait.
    pub room: Arc<WaitingRoom>,
    /// How seeds are asked; without it none is.
    pub liveness: Option<Arc<Liveness>>,
}

/// A lease that is given back when it is dropped.
struct Held<'a> {
    writer: &'a Writer,
    release: Option<Command>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            self.writer.tell(release);
        }
    }
}

impl Granter {
    /// Leases a point of a seed that lives, as far as can be told.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(&self, ask: &Ask) -> Result<Grant, AcquireError> {
        let (begun, mut ask) = (Instant::now(), ask.clone());
        let wait_ms = ask.queue.wait_ms;
        for _ in 0..MAX_DEAD {
            let grant = self.lease(&ask).await?;
            let Some(liveness) = self.liveness.as_ref().filter(|liveness| liveness.doubts(&grant)) else {
                return Ok(grant);
            };
            let (identity, lease) = (grant.identity.clone(), ask.lease);
            let release = |report, reason| Command::give_back(identity.clone(), lease, report, reason);
            // One that may be repeated is kept for its repetition.
            let kept = ask.queue.idempotency.is_some();
            let mut held =
                Held { writer: &self.writer, release: (!kept).then(|| release(Report::Unknown, None)) };
            let verdict = liveness.prober.ask(&grant.identity, &ask.key).await;
            if verdict == Verdict::Silent && grant.answers {
                held.release = None;
                tracing::info!(seed = %grant.identity, "a seed does not answer; it is left out for a while");
                // Before what follows, which asks for another one: from its place in the queue, for the rest of its
                // time.
                self.writer.tell(release(Report::Failed, Some(NO_ANSWER)));
                let waited_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
                ask.queue.again = true;
                ask.queue.wait_ms = wait_ms.saturating_sub(waited_ms).max(0);
                continue;
            }
            if verdict == Verdict::Well {
                self.writer.tell(Command::Answered { identity, lease });
            }
            held.release = None;
            return Ok(grant);
        }
        Err(AcquireError::Write(WriteError::TimedOut(Duration::from_millis(300) * 16)))
    }

    async fn lease(&self, ask: &Ask) -> Result<Grant, AcquireError> {
        if ask.queue.wait_ms > 0 || ask.queue.idempotency.is_some() || ask.queue.again {
            return self.room.acquire(ask).await;
        }
        let Ask { key, wish, lease, .. } = ask.clone();
        match self.writer.submit(Command::Acquire { key, wish, lease, queue: None }).await? {
            Outcome::Acquired(granted) => granted.map_err(AcquireError::Refused),
            _ => Err(AcquireError::Mismatched),
        }
    }
}

impl Liveness {
    /// Whether a seed was quiet for longer than its heartbeats explain.
    fn doubts(&self, grant: &Grant) -> bool {
        let interval = i64::try_from(self.heartbeat_interval.as_millis()).unwrap_or(i64::MAX);
        grant.quiet_ms > interval.saturating_add(LATE_MS)
    }
}
