//! Renewals by which workers that load tell how far they are. There is one a second of each such worker, and nobody is in a
//! hurry: they wait a moment for each other, in a queue of their own, which wakes nobody meanwhile. So what a commit costs
//! does not grow with their number, as it does if each is applied at once. What else comes takes them along.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Queued;
use crate::store::MAX_BATCH;

/// How long the first of them waits for others.
const GATHERED_FOR: Duration = Duration::from_millis(20);
/// As many of them as every transaction has room for.
pub(super) const SHARE: usize = MAX_BATCH / 4;

/// Those that wait for each other.
pub(super) struct Gathering {
    queue: mpsc::Receiver<Queued>,
    /// The first, and until when it waits.
    first: Option<(Queued, Instant)>,
}

impl Gathering {
    pub(super) fn of(queue: mpsc::Receiver<Queued>) -> Self {
        Self { queue, first: None }
    }

    /// Whether a command waits here.
    pub(super) fn takes(queued: &Queued) -> bool {
        matches!(queued, Queued::Renew(renew, _) if renew.progress.is_some())
    }

    /// Ends when the first has waited long enough. Dropped before, it is waited for on. `None` once there is none, and none can
    /// come.
    pub(super) async fn due(&mut self) -> Option<()> {
        let until = if let Some((_, until)) = &self.first {
            *until
        } else {
            let first = self.queue.recv().await?;
            self.first.insert((first, Instant::now() + GATHERED_FOR)).1
        };
        sleep_until(until).await;
        Some(())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.queue.len()
    }

    /// Takes as many as there are, and `most` at most.
    pub(super) fn take(&mut self, most: usize, taken: &mut Vec<Queued>) {
        for _ in 0..most {
            let first = self.first.take().map(|(first, _)| first);
            let Some(queued) = first.or_else(|| self.queue.try_recv().ok()) else { return };
            taken.push(queued);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use rfork_protocol::{SeedIdentity, SeedKey};

    use super::super::{Queues, Writer};
    use super::*;
    use crate::domain::chain::Progress;
    use crate::store::commands::{Renew, Serve};

    fn tell(writer: &Writer, count: usize, is_of_a_loading_seed: bool) {
        let progress = || Progress { incarnation: "one".into(), arrived_bytes: 1, held: None };
        for _ in 0..count {
            writer.tell(Renew {
                identity: SeedIdentity::new("h", 1, 0).unwrap(),
                lease: [7; 32],
                progress: is_of_a_loading_seed.then(|| Box::new(progress())),
            });
        }
    }

    fn serve(writer: &Writer) {
        writer.tell(Serve { key: SeedKey::new(*b"k").unwrap() });
    }

    /// Whether a batch comes without any more time, and how many renewals and others it has.
    fn now(queues: &mut Queues) -> Option<(usize, usize)> {
        match pin!(queues.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(batch) => {
                batch.map(|batch| (batch.commands.renewals.len(), batch.commands.serves.len()))
            }
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn they_wait_for_each_other_until_somebody_else_comes_or_time_is_up() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        tell(&writer, 1, true);
        assert_eq!(now(&mut queues), None);
        tell(&writer, 2, true);
        assert_eq!(now(&mut queues), None, "the first one's wait goes on");
        serve(&writer);
        assert_eq!(now(&mut queues), Some((3, 1)));

        tell(&writer, 3, true);
        assert_eq!(now(&mut queues), None);
        tokio::time::advance(GATHERED_FOR).await;
        assert_eq!(now(&mut queues), Some((3, 0)));

        tell(&writer, 1, false);
        assert_eq!(now(&mut queues), Some((1, 0)), "one that ends soon, maybe, is renewed at once");
        tell(&writer, 1, true);
        drop(writer);
        let last = queues.next().await.map(|batch| batch.commands.renewals.len());
        assert_eq!((last, queues.next().await.is_none()), (Some(1), true));
    }

    #[tokio::test]
    async fn a_flood_of_other_commands_leaves_them_their_part() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        tell(&writer, 2 * SHARE, true);
        (0..2 * MAX_BATCH).for_each(|_| serve(&writer));
        assert_eq!(now(&mut queues), Some((SHARE, MAX_BATCH - SHARE)));
    }
}
