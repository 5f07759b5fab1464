//! How much clients may have a planner keep, and what is refused beyond that.
//!
//! What only goes on is never refused: heartbeats, renewals, releases and removals of what is there, repetitions of what
//! was asked, and a seed that comes to hold something else in its own place.

use std::collections::HashMap;
use std::net::IpAddr;

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
        }
    }

    /// The flag that sets it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Seeds | Self::SeedsOfClient => "--max-seeds",
            Self::Requests | Self::RequestsOfClient => "--max-remembered-requests",
            Self::Memory => "--max-memory-mib",
        }
    }
}

/// How many rows are a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfClient {
    /// Seeds.
    pub seeds: usize,
    /// Requests that wait or are remembered.
    pub requests: usize,
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
    /// Whether there is room for one more seed of a client who has `theirs`, of `most` that there may be.
    pub(super) fn for_seed_of(&self, theirs: Option<usize>, most: usize) -> Result<(), NoRoom> {
        self.for_one((Quota::Seeds, Quota::SeedsOfClient), (self.seeds, most), theirs)
    }

    /// Whether there is room for one more request that waits or is remembered, as for a seed.
    pub(super) fn for_request_of(&self, theirs: Option<usize>, most: usize) -> Result<(), NoRoom> {
        self.for_one((Quota::Requests, Quota::RequestsOfClient), (self.requests, most), theirs)
    }

    fn for_one(
        &self,
        (of_all, of_client): (Quota, Quota),
        (left, most): (usize, usize),
        theirs: Option<usize>,
    ) -> Result<(), NoRoom> {
        if left == 0 {
            return Err(NoRoom(of_all));
        }
        if self.bytes == 0 {
            return Err(NoRoom(Quota::Memory));
        }
        match short(most, most.saturating_sub(left), theirs, 1) {
            Some(Short::Share) => Err(NoRoom(of_client)),
            _ => Ok(()),
        }
    }
}

/// Refuses acquisitions under new idempotency keys for which there is no room: before they are granted anything, for what
/// is not remembered could be granted twice.
pub(super) fn admit(tables: &Tables, rules: &Rules, commands: &[Acquire], answers: &mut [Option<Acquired>]) {
    let (mut room, mut admitted) = (tables.room, HashMap::<IpAddr, usize>::new());
    for (Acquire { lease, queue, wish, .. }, answer) in commands.iter().zip(answers) {
        let is_named = queue.as_ref().is_some_and(|queue| queue.idempotency.is_some());
        if !is_named || answer.is_some() || tables.request_for(lease).is_some() {
            continue;
        }
        let more = wish.client.and_then(|client| admitted.get(&client)).copied().unwrap_or_default();
        let theirs =
            wish.client.and_then(|client| tables.of_client(client)).map(|theirs| theirs.requests + more);
        match room.for_request_of(theirs, rules.room.requests) {
            Ok(()) => {
                room.requests -= 1;
                if let Some(client) = wish.client {
                    *admitted.entry(client).or_default() += 1;
                }
            }
            Err(no_room) => *answer = Some(Acquired::Refused(Refusal::NoRoom(no_room))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::rows::RequestRow;
    use super::super::testing::{key, lease, rules, tables};
    use super::*;
    use crate::domain::policy::Policy;
    use crate::store::{Idempotency, Queue};

    #[test]
    fn what_is_short_is_named() {
        let room = Room { seeds: 1, requests: 1, instances: 1, bytes: 1 };
        assert_eq!((room.for_seed_of(None, 1), room.for_request_of(None, 1)), (Ok(()), Ok(())));
        assert_eq!(Room { seeds: 0, ..room }.for_seed_of(None, 1), Err(NoRoom(Quota::Seeds)));
        assert_eq!(Room { requests: 0, ..room }.for_request_of(None, 1), Err(NoRoom(Quota::Requests)));
        let room = Room { bytes: 0, ..room };
        assert_eq!(
            (room.for_seed_of(None, 1), room.for_request_of(None, 1)),
            (Err(NoRoom(Quota::Memory)), Err(NoRoom(Quota::Memory)))
        );
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
