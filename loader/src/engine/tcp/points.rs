//! Who reads on which leased point: a later holder's greeting ends the connections of the one before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rfork_protocol::v2::LeasedPoint;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The holders of points that have connections. Those without are forgotten, so there are no more than connections.
#[derive(Debug, Default)]
pub(super) struct Points(Mutex<HashMap<u32, Holder>>);

#[derive(Debug)]
struct Holder {
    since_ms: u64,
    /// Cancelled by who has the point next.
    ended: CancellationToken,
    connections: TaskTracker,
}

impl Holder {
    fn since(since_ms: u64) -> Self {
        Self { since_ms, ended: CancellationToken::new(), connections: TaskTracker::new() }
    }
}

/// A connection of a point's holder, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    /// Cancelled when another one has the point.
    pub(super) ended: CancellationToken,
    _connection: TaskTrackerToken,
}

impl Points {
    /// A reader greets: its connection counts from here. Whoever had the point before has no connection any more when this
    /// returns, unless that takes longer than `patience`. `None`: somebody has had the point since.
    pub(super) async fn enter(&self, point: LeasedPoint, patience: Duration) -> Option<Held> {
        let (held, before) = self.take(point)?;
        if let Some(before) = before {
            before.ended.cancel();
            before.connections.close();
            // Excluded: the new holder is refused as one reader too many, because of its predecessor's connections.
            let _ = tokio::time::timeout(patience, before.connections.wait()).await;
        }
        Some(held)
    }

    /// The guard is not held across an await.
    fn take(&self, LeasedPoint { number, since_ms }: LeasedPoint) -> Option<(Held, Option<Holder>)> {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|_, holder| !holder.connections.is_empty());
        let known = holders.entry(number).or_insert_with(|| Holder::since(since_ms));
        if since_ms < known.since_ms {
            return None;
        }
        let before = (since_ms > known.since_ms).then(|| std::mem::replace(known, Holder::since(since_ms)));
        Some((Held { ended: known.ended.clone(), _connection: known.connections.token() }, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANGS: Duration = Duration::from_secs(300);

    fn point(number: u32, since_ms: u64) -> LeasedPoint {
        LeasedPoint { number, since_ms }
    }

    #[tokio::test]
    async fn who_has_a_point_later_ends_who_had_it_before() {
        let points = std::sync::Arc::new(Points::default());
        let first = points.enter(point(0, 5), HANGS).await.unwrap();
        let again = points.enter(point(0, 5), HANGS).await.unwrap();
        let beside = points.enter(point(1, 1), HANGS).await.unwrap();
        assert!(!first.ended.is_cancelled(), "one holder may have several connections");
        let entering = tokio::spawn({
            let points = points.clone();
            async move { points.enter(point(0, 6), HANGS).await }
        });
        first.ended.cancelled().await;
        assert!(again.ended.is_cancelled() && !beside.ended.is_cancelled());
        assert!(!entering.is_finished(), "they are waited for");
        drop(first);
        drop(again);
        let next = entering.await.unwrap().unwrap();
        assert!(points.enter(point(0, 5), HANGS).await.is_none(), "it comes back too late");
        assert!(!next.ended.is_cancelled());
        drop(next);
        drop(beside);
        assert!(points.enter(point(7, 0), HANGS).await.is_some());
        assert_eq!(points.0.lock().unwrap().len(), 1, "nobody without a connection is remembered");
    }
}
