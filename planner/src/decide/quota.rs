//! How much clients may have a planner keep, and what is refused beyond that.
//!
//! What only goes on is never refused: heartbeats, renewals, releases and removals of what is there, repetitions of what
//! was asked, and a seed that comes to hold something else in its own place.

use std::collections::HashMap;
use std::net::IpAddr;

use super::rows::RequestRow;
use super::tables::Tables;
use crate::shares::{Short, short};
use crate::store::commands::{Acquire, Acquired, NoRoom};
use crate::store::{Refusal, Room, Rules};

/// Something of which a planner keeps only so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quota {
    /// Seeds, those among them that are drained, silent or load. So there are no more keys either.
    Seeds,
    /// Of the last quarter of these, what one client may have.
    SeedsOfClient,
    /// Requests that wait for a seed, or are remembered for their repetitions.
    Requests,
    /// Of the last quarter of these, what one client may have.
    RequestsOfClient,
    /// Bytes of memory, where all rows are in memory.
    Memory,
    /// Of the last quarter of these, what one client may have.
    MemoryOfClient,
    /// Bytes of seeds and requests in the database.
    Database,
    /// Of the last quarter of these, what one client may have.
    DatabaseOfClient,
}

impl Quota {
    /// Its name, which is stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seeds => "seeds",
            Self::SeedsOfClient => "seeds-of-client",
            Self::Requests => "requests",
            Self::RequestsOfClient => "requests-of-client",
            Self::Memory => "memory",
            Self::MemoryOfClient => "memory-of-client",
            Self::Database => "database",
            Self::DatabaseOfClient => "database-of-client",
        }
    }

    /// The flag that sets it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Seeds | Self::SeedsOfClient => "--max-seeds",
            Self::Requests | Self::RequestsOfClient => "--max-remembered-requests",
            Self::Memory | Self::MemoryOfClient => "--max-memory-mib",
            Self::Database | Self::DatabaseOfClient => "--max-database-mib",
        }
    }
}

/// How much is a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfClient {
    /// Seeds.
    pub seeds: usize,
    /// Requests that wait or are remembered.
    pub requests: usize,
    /// Bytes of both in the database.
    pub stored: usize,
}

/// How much there is of something of which only so much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Of what.
    pub quota: Quota,
    /// How much there is.
    pub used: usize,
    /// How much there may be.
    pub most: usize,
}

impl Room {
    /// Whether there is room for one more seed of so many bytes, of a client who has `theirs`; `most` is what there may be. Who
    /// is not known has no share.
    pub(super) fn for_seed_of(
        &self,
        theirs: Option<OfClient>,
        bytes: usize,
        most: &Self,
    ) -> Result<(), NoRoom> {
        let seeds = (self.seeds, most.seeds, theirs.map(|theirs| theirs.seeds), 1);
        fits((Quota::Seeds, Quota::SeedsOfClient), seeds)?;
        self.for_bytes_of(theirs, bytes, most)
    }

    /// Whether there is room for one more request that waits or is remembered, as for a seed.
    pub(super) fn for_request_of(
        &self,
        theirs: Option<OfClient>,
        bytes: usize,
        most: &Self,
    ) -> Result<(), NoRoom> {
        let requests = (self.requests, most.requests, theirs.map(|theirs| theirs.requests), 1);
        fits((Quota::Requests, Quota::RequestsOfClient), requests)?;
        self.for_bytes_of(theirs, bytes, most)
    }

    /// Whether there is room for so many bytes more.
    pub(super) fn for_bytes_of(
        &self,
        theirs: Option<OfClient>,
        bytes: usize,
        most: &Self,
    ) -> Result<(), NoRoom> {
        let theirs = theirs.map(|theirs| theirs.stored);
        // What takes memory takes about as much of it as of the database.
        fits((Quota::Memory, Quota::MemoryOfClient), (self.bytes, most.bytes, theirs, 1))?;
        fits((Quota::Database, Quota::DatabaseOfClient), (self.stored, most.stored, theirs, bytes))
    }
}

/// Whether a client who has `theirs` may have so much more, where so much is `left` of `most`.
fn fits(
    (of_all, of_client): (Quota, Quota),
    (left, most, theirs, wanted): (usize, usize, Option<usize>, usize),
) -> Result<(), NoRoom> {
    match short(most.max(left), most.saturating_sub(left), theirs, wanted) {
        Some(Short::Full) => Err(NoRoom(of_all)),
        Some(Short::Share) => Err(NoRoom(of_client)),
        None => Ok(()),
    }
}

/// Refuses acquisitions under new idempotency keys for which there is no room: before they are granted anything, for what
/// is not remembered could be granted twice.
pub(super) fn admit(tables: &Tables, rules: &Rules, commands: &[Acquire], answers: &mut [Option<Acquired>]) {
    let (mut room, mut admitted) = (tables.room, HashMap::<IpAddr, OfClient>::new());
    for (Acquire { key, lease, queue, wish }, answer) in commands.iter().zip(answers) {
        let is_named = queue.as_ref().is_some_and(|queue| queue.idempotency.is_some());
        if !is_named || answer.is_some() || tables.request_for(lease).is_some() {
            continue;
        }
        let theirs = wish.client.and_then(|client| {
            let more = admitted.get(&client).copied().unwrap_or_default();
            let theirs = tables.of_client(client)?;
            let (requests, stored) = (theirs.requests + more.requests, theirs.stored + more.stored);
            Some(OfClient { requests, stored, ..theirs })
        });
        let bytes = RequestRow::stored(key, wish);
        match room.for_request_of(theirs, bytes, &rules.room) {
            Ok(()) => {
                room.requests -= 1;
                room.stored = room.stored.saturating_sub(bytes);
                if let Some(client) = wish.client {
                    let more = admitted.entry(client).or_default();
                    (more.requests, more.stored) = (more.requests + 1, more.stored + bytes);
                }
            }
            Err(no_room) => *answer = Some(Acquired::Refused(Refusal::NoRoom(no_room))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{key, lease, rules, tables};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::store::{Idempotency, Queue};

    #[test]
    fn what_is_short_is_named() {
        let room = Room { seeds: 1, requests: 1, instances: 1, bytes: 1, stored: 9 };
        let seed = |room: Room| room.for_seed_of(None, 9, &Room { seeds: 1, ..room });
        let request = |room: Room| room.for_request_of(None, 9, &Room { requests: 1, ..room });
        assert_eq!((seed(room), request(room)), (Ok(()), Ok(())));
        assert_eq!(seed(Room { seeds: 0, ..room }), Err(NoRoom(Quota::Seeds)));
        assert_eq!(request(Room { requests: 0, ..room }), Err(NoRoom(Quota::Requests)));
        let full = Err(NoRoom(Quota::Memory));
        assert_eq!((seed(Room { bytes: 0, ..room }), request(Room { bytes: 0, ..room })), (full, full));
        let full = Err(NoRoom(Quota::Database));
        assert_eq!((seed(Room { stored: 8, ..room }), request(Room { stored: 8, ..room })), (full, full));
    }

    #[test]
    fn of_the_last_quarter_of_bytes_a_client_has_its_share() {
        let most = Room { bytes: 1_600, stored: 1_600, ..Room::AMPLE };
        let of = |stored| Some(OfClient { stored, ..OfClient::default() });
        let room = Room { stored: 399, ..most };
        assert_eq!(room.for_bytes_of(of(0), 100, &most), Ok(()), "its share");
        assert_eq!(room.for_bytes_of(of(1), 100, &most), Err(NoRoom(Quota::DatabaseOfClient)));
        assert_eq!(room.for_bytes_of(None, 100, &most), Ok(()), "who is not known has none");
        assert_eq!(room.for_bytes_of(of(0), 400, &most), Err(NoRoom(Quota::Database)));
        assert_eq!(Room { stored: 500, ..most }.for_bytes_of(of(1_000), 100, &most), Ok(()), "there is much");
        let room = Room { bytes: 399, ..most };
        assert_eq!(room.for_bytes_of(of(100), 1, &most), Err(NoRoom(Quota::MemoryOfClient)));
        assert_eq!(room.for_bytes_of(of(99), 1, &most), Ok(()));
    }

    #[test]
    fn only_new_requests_that_may_be_repeated_need_room_before_they_are_granted() {
        let asked = |name: u8| Idempotency { key: [name; 32], request: [1; 32] };
        let ask = |number: u32, name: Option<u8>| {
            let queue = Queue { idempotency: name.map(asked), ..Queue::default() };
            Acquire {
                key: key("k"),
                wish: Box::default(),
                lease: lease(number),
                queue: Some(Box::new(queue)),
            }
        };
        let mut tables = tables(&[]);
        tables.put_request(Arc::new(RequestRow {
            id: 1,
            key: Arc::new(key("k")),
            lease: lease(1),
            idempotency: Some(asked(1)),
            attempt: 1,
            wish: Arc::default(),
            planner: None,
            waits_until_ms: None,
            changed_ms: 0,
        }));
        tables.room.requests = 1;
        let commands = [ask(1, Some(1)), ask(2, Some(2)), ask(3, Some(3)), ask(4, None), ask(5, Some(5))];
        let mut answers = vec![None; commands.len()];
        answers[4] = Some(Acquired::Queued(None));
        admit(&tables, &rules(Policy::Balanced), &commands, &mut answers);
        let refused = Some(Acquired::Refused(Refusal::NoRoom(NoRoom(Quota::Requests))));
        assert_eq!(answers, [None, None, refused, None, Some(Acquired::Queued(None))]);
    }
}
