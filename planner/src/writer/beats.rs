//! Heartbeats that must be written, of requests that may have many. A request takes one place in the queue, which is one of
//! their own, and all together have a part of each transaction. So however many seeds requests name, they keep neither
//! places nor time of who asks for a seed.

use std::sync::Arc;

use super::Waiter;
use crate::domain::seed::Heard;
use crate::shares::Part;
use crate::store::StoreError;
use crate::store::commands::Heartbeat;

/// What a heartbeat met, with the store's number of the seed if that is offered.
pub type Met = (Heard, Option<i64>);

/// The heartbeats of a request.
#[derive(Debug)]
pub struct Beats {
    /// As they were sent, and are answered.
    pub heartbeats: Vec<Heartbeat>,
    /// The room of the request's body, which is held until they are written: what waits is bounded in bytes, and no client
    /// has all of it.
    pub body: Option<Arc<Part>>,
}

/// [`Beats`] that are under way.
pub(super) struct Waiting {
    left: std::vec::IntoIter<Heartbeat>,
    met: Vec<Met>,
    pub(super) waiter: Waiter<Vec<Met>>,
    _body: Option<Arc<Part>>,
}

impl Waiting {
    pub(super) fn new(Beats { heartbeats, body }: Beats, waiter: Waiter<Vec<Met>>) -> Self {
        Self { met: Vec::with_capacity(heartbeats.len()), left: heartbeats.into_iter(), waiter, _body: body }
    }

    /// Takes the next heartbeats, so many at most, and tells how long they have waited.
    fn take(&mut self, most: usize) -> Vec<Heartbeat> {
        let age_ms = self.waiter.age_ms();
        self.left.by_ref().take(most).map(|heartbeat| Heartbeat { age_ms, ..heartbeat }).collect()
    }
}

/// What a transaction has of requests' heartbeats: of each so many, in the order in which they are written.
#[derive(Default)]
pub(super) struct Taken(Vec<(Waiting, usize)>);

impl Taken {
    /// Takes as much of a request as there is room for.
    pub(super) fn take(&mut self, mut waiting: Waiting, most: usize) -> Vec<Heartbeat> {
        let heartbeats = waiting.take(most);
        self.0.push((waiting, heartbeats.len()));
        heartbeats
    }

    /// The spans of the requests.
    pub(super) fn spans(&self) -> impl Iterator<Item = &tracing::Span> {
        self.0.iter().map(|(waiting, _)| &waiting.waiter.span)
    }

    /// Answers requests of which all is written; gives the one that has more.
    pub(super) fn met(self, met: Vec<Met>) -> Option<Waiting> {
        let (mut met, mut more) = (met.into_iter(), None);
        for (mut waiting, count) in self.0 {
            waiting.met.extend(met.by_ref().take(count));
            if waiting.left.len() == 0 {
                waiting.waiter.tell(Ok(waiting.met));
            } else {
                more = Some(waiting);
            }
        }
        more
    }

    /// They were not written, and the rest of them is not.
    pub(super) fn fail(self, error: &StoreError) {
        self.0.into_iter().for_each(|(waiting, _)| waiting.waiter.tell(Err(error.clone())));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use rfork_protocol::{SeedIdentity, SeedKey};
    use tokio::sync::oneshot;

    use super::super::{Batch, MAX_BEATS, Queues, WriteError, Writer};
    use super::*;
    use crate::domain::owner::Owner;
    use crate::store::commands::{Acquire, Outcomes};
    use crate::store::{MAX_BATCH, StoreError};

    fn beats(count: usize) -> Beats {
        let heartbeat = |number: usize| Heartbeat {
            identity: SeedIdentity::new("h", 1, u32::try_from(number).unwrap()).unwrap(),
            key: SeedKey::new(*b"k").unwrap(),
            incarnation: None,
            age_ms: 0,
            owner: Owner::default(),
            progress: None,
        };
        Beats { heartbeats: (0..count).map(heartbeat).collect(), body: None }
    }

    async fn next(queues: &mut Queues) -> Batch {
        queues.next().await.expect("there is something to do")
    }

    /// Each met a seed of its rank.
    fn written(batch: Batch) -> Option<Waiting> {
        let met = |one: &Heartbeat| (Heard::Known, Some(i64::from(one.identity.rank())));
        let heartbeats = batch.commands.heartbeats.iter().map(met).collect();
        batch.answer(Outcomes { heartbeats, ..Outcomes::default() })
    }

    fn poll<T>(asking: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        asking.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn many_heartbeats_of_requests_take_a_place_each_and_leave_most_of_each_batch_to_others() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        let (places, places_of_beats) = (writer.queue.capacity(), writer.beats.capacity());
        let mut large = pin!(writer.beat(beats(1_000)));
        let mut small = pin!(writer.beat(beats(2)));
        assert!(poll(large.as_mut()).is_pending() && poll(small.as_mut()).is_pending());
        assert_eq!((writer.queue.capacity(), writer.beats.capacity()), (places, places_of_beats - 2));
        let mut clients = Vec::new();
        for _ in 0..2 * MAX_BATCH {
            let (answer, client) = oneshot::channel();
            let key = SeedKey::new(*b"k").unwrap();
            assert!(
                writer.enqueue(Acquire { key, wish: Box::default(), lease: [7; 32], queue: None }, answer)
            );
            clients.push(client);
        }
        let mut rounds = 0;
        let of_large = loop {
            let batch = next(&mut queues).await;
            rounds += 1;
            let counts = (batch.commands.heartbeats.len(), batch.commands.acquires.len());
            if rounds < 3 {
                assert_eq!(counts, (MAX_BEATS, MAX_BATCH - MAX_BEATS));
            }
            assert!(counts.0 + counts.1 <= MAX_BATCH);
            queues.begun = written(batch);
            if let Poll::Ready(met) = poll(large.as_mut()) {
                break met.unwrap();
            }
        };
        assert!(rounds < 1_000_usize.div_ceil(MAX_BEATS), "nobody else wants the room by then");
        assert!(of_large.iter().map(|(_, seed)| seed.unwrap()).eq(0..1_000), "in their order");
        // In what the last batch had left.
        let Poll::Ready(of_small) = poll(small.as_mut()) else { panic!("it waits for one that is done") };
        assert_eq!(of_small.unwrap(), [(Heard::Known, Some(0)), (Heard::Known, Some(1))]);
    }

    #[tokio::test]
    async fn a_flood_of_commands_leaves_heartbeats_their_part() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        for _ in 0..MAX_BATCH {
            let key = SeedKey::new(*b"k").unwrap();
            writer.tell(crate::store::commands::Serve { key });
        }
        let mut asking = pin!(writer.beat(beats(MAX_BEATS)));
        assert!(poll(asking.as_mut()).is_pending());
        let batch = next(&mut queues).await;
        assert_eq!(
            (batch.commands.heartbeats.len(), batch.commands.serves.len()),
            (MAX_BEATS, MAX_BATCH - MAX_BEATS)
        );
    }

    #[tokio::test]
    async fn heartbeats_that_could_not_be_written_are_told_once_and_the_rest_is_dropped() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        let mut asking = pin!(writer.beat(beats(MAX_BATCH + 1)));
        assert!(poll(asking.as_mut()).is_pending());
        next(&mut queues).await.fail(&StoreError::Unavailable("gone".into()));
        let Poll::Ready(told) = poll(asking.as_mut()) else { panic!("nobody is told") };
        assert!(matches!(told, Err(WriteError::Store(StoreError::Unavailable(_)))), "{told:?}");
        let mut later = pin!(writer.beat(beats(1)));
        assert!(poll(later.as_mut()).is_pending());
        assert_eq!(next(&mut queues).await.commands.heartbeats.len(), 1);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_takes_no_room() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        {
            let mut gone = pin!(writer.beat(beats(MAX_BATCH)));
            assert!(poll(gone.as_mut()).is_pending());
        }
        let mut asking = pin!(writer.beat(beats(1)));
        assert!(poll(asking.as_mut()).is_pending());
        assert_eq!(next(&mut queues).await.commands.heartbeats.len(), 1);
    }

    #[tokio::test]
    async fn requests_beyond_the_queue_are_refused_and_others_are_not() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        let mut asking = Vec::new();
        while writer.beats.capacity() > 0 {
            let mut one = Box::pin(writer.beat(beats(1)));
            assert!(poll(one.as_mut()).is_pending());
            asking.push(one);
        }
        assert!(matches!(writer.beat(beats(1)).await, Err(WriteError::Overloaded)));
        writer.tell(crate::store::commands::Serve { key: SeedKey::new(*b"k").unwrap() });
        assert_eq!(next(&mut queues).await.commands.serves.len(), 1);
        assert_eq!(writer.beats.capacity(), MAX_BATCH - 1);
    }

    #[tokio::test]
    async fn the_queues_end_with_the_last_writer() {
        let (writer, mut queues) = Writer::new(Duration::from_secs(300));
        writer.tell(crate::store::commands::Serve { key: SeedKey::new(*b"k").unwrap() });
        drop(writer);
        // What waits has a writer until it is answered.
        drop(next(&mut queues).await);
        assert!(queues.next().await.is_none());
    }
}
