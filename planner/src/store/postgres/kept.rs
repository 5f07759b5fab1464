//! How much planners of the database keep of what has a quota: triggers count rows and bytes as they come and go.
//!
//! Other planners add rows at the same time: what they add beside a batch is seen by the next. While there is much room a
//! planner looks once in a while, not for each batch.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::{MAX_BATCH, Quota, Room, Usage};
use super::session::Connection;
use super::transaction::Stopped;
use crate::decide::rows::ROW_BYTES;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// For how long it is believed that there is much room.
const BELIEVED: Duration = Duration::from_secs(1);
/// Rows that are much room: far more than all planners add meanwhile.
const MUCH: usize = 128 * MAX_BATCH;
/// Bytes that are: of so many rows with the longest keys.
const MUCH_BYTES: usize = MUCH * (ROW_BYTES + rfork_protocol::ids::MAX_SEED_KEY_BYTES);
/// What an instance takes beside its names, in bytes, about.
const INSTANCE_BYTES: usize = 256;

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    seeds: usize,
    requests: usize,
    instances: usize,
    /// Bytes of their long texts.
    texts: usize,
}

impl Kept {
    /// Asks the database.
    pub(super) async fn look(connection: &mut Connection) -> Result<Self, Stopped> {
        let (seeds, requests, instances, texts): (i64, i64, i64, i64) = sqlx::query_as(
            "/* load kept */
             SELECT coalesce(sum(n) FILTER (WHERE table_name = 'seeds'), 0)::bigint,
                    coalesce(sum(n) FILTER (WHERE table_name = 'requests'), 0)::bigint,
                    coalesce(sum(n) FILTER (WHERE table_name = 'instances'), 0)::bigint,
                    coalesce(sum(bytes), 0)::bigint
             FROM row_counts",
        )
        .fetch_one(connection)
        .await?;
        let [seeds, requests, instances, texts] =
            [seeds, requests, instances, texts].map(|count| usize::try_from(count).unwrap_or_default());
        Ok(Self { seeds, requests, instances, texts })
    }

    /// Bytes of all, about.
    fn stored(&self) -> usize {
        (self.seeds + self.requests) * ROW_BYTES + self.instances * INSTANCE_BYTES + self.texts
    }

    /// What is left of what there may be.
    fn left(&self, most: &Room) -> Room {
        Room {
            seeds: most.seeds.saturating_sub(self.seeds),
            requests: most.requests.saturating_sub(self.requests),
            instances: most.instances.saturating_sub(self.instances),
            // The database has the rows, and no memory of ours.
            bytes: usize::MAX,
            stored: most.stored.saturating_sub(self.stored()),
        }
    }

    /// How much there is of what has a quota.
    pub(super) fn usage(&self, most: &Room) -> Vec<Usage> {
        vec![
            Usage { quota: Quota::Seeds, used: self.seeds, most: most.seeds },
            Usage { quota: Quota::Requests, used: self.requests, most: most.requests },
            Usage { quota: Quota::Database, used: self.stored(), most: most.stored },
        ]
    }
}

/// What was left when a planner last looked. Locked for moments, never across an await.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<Option<(Instant, Room)>>);

impl Left {
    /// What is left: as it was a moment ago where that was much, else as it is.
    pub(super) async fn of(&self, most: &Room, connection: &mut Connection) -> Result<Room, Stopped> {
        let (at, known) = (Instant::now(), *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(room) = believed(known, at) {
            return Ok(room);
        }
        let room = Kept::look(connection).await?.left(most);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, room));
        Ok(room)
    }
}

/// What was left a moment ago, if that is as good as what is left now.
fn believed(known: Option<(Instant, Room)>, now: Instant) -> Option<Room> {
    let (at, room) = known?;
    let is_much = room.seeds.min(room.requests).min(room.instances) > MUCH && room.stored > MUCH_BYTES;
    (is_much && now.saturating_duration_since(at) < BELIEVED).then_some(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_much_room_is_believed_in_and_only_for_a_moment() {
        let (at, much) = (Instant::now(), Room { stored: MUCH_BYTES + 1, ..Room::AMPLE });
        assert_eq!(believed(None, at), None);
        assert_eq!(believed(Some((at, much)), at + BELIEVED / 2), Some(much));
        assert_eq!(believed(Some((at, much)), at + BELIEVED), None);
        for little in [
            Room { seeds: MUCH, ..much },
            Room { requests: MUCH, ..much },
            Room { instances: MUCH, ..much },
            Room { stored: MUCH_BYTES, ..much },
        ] {
            assert_eq!(believed(Some((at, little)), at), None, "{little:?}");
        }
    }
}
