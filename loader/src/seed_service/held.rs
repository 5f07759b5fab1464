//! What a worker that is read by address tells its readers while it loads: which chunks it holds, under an epoch that is taken
//! away before a byte of them changes.
//!
//! Those who wait have places of their own, beside which there is room for metadata and health checks; who finds none is
//! answered at once. Readers are counted by their questions, since an engine that is read by address sees none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Extension, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rfork_protocol::manifest::metadata::{Epoch, HeldChunks, HeldQuestion, MAX_TOLD_CHUNKS, MAX_WAIT_MS};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{GRACE, Peer, Shared, is_key, parameter, seed_key_of};
use crate::engine::memory::WeightMemory;
use crate::held::HeldCursor;
use crate::places::Places;

/// Questions that wait for something new at once. With those that wait for metadata they leave a quarter of the connections.
const MAX_WAITING: usize = super::MAX_CONNECTIONS / 4;
/// Readers that are counted.
const MAX_READERS: usize = super::MAX_CONNECTIONS;
/// For how long somebody counts as a reader who asks nothing; readers ask each second.
const HEARD: Duration = Duration::from_secs(3);

/// What is told, and who asks.
#[derive(Debug)]
pub(super) struct Held {
    /// `None` while nobody is told anything.
    offering: watch::Sender<Option<Arc<Offering>>>,
    waiting: Places,
    /// No guard is held across an await.
    readers: Mutex<Readers>,
}

/// A memory that changes nothing that it holds as long as it is offered.
#[derive(Debug)]
struct Offering {
    epoch: Epoch,
    memory: Arc<WeightMemory>,
    begin: HeldCursor,
}

impl Held {
    pub(super) fn new() -> Self {
        let waiting = Places::new(MAX_WAITING, GRACE);
        Self { offering: watch::Sender::new(None), waiting, readers: Mutex::default() }
    }

    /// Tells what `memory` holds from now on, under a new epoch. What is offered already stays as it is.
    pub(super) fn offer(&self, memory: &Arc<WeightMemory>) {
        self.offering.send_if_modified(|offering| {
            let is_new = offering.is_none();
            offering.get_or_insert_with(|| {
                let epoch = Epoch(uuid::Uuid::new_v4().as_u128());
                Arc::new(Offering { epoch, memory: memory.clone(), begin: memory.held_cursor() })
            });
            is_new
        });
    }

    /// Tells nothing any more. Whoever asks from now on learns that what it has read does not count.
    ///
    /// Excluded: a reader holds a byte that was written after this has returned. It asks after it has read, and an answer that
    /// names the epoch was made before this.
    pub(super) fn withdraw(&self) {
        self.offering.send_replace(None);
        self.readers().heard.clear();
    }

    /// How many have asked lately, and lack something.
    pub(super) fn readers_now(&self) -> usize {
        self.readers().count(Instant::now())
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, as soon as there is something new, or when the time is over; `None` when nothing of that name is offered.
    async fn answer(
        &self,
        question: &HeldQuestion,
        address: IpAddr,
        stop: &CancellationToken,
    ) -> Option<HeldChunks> {
        let until = Instant::now() + Duration::from_millis(question.wait_ms.min(MAX_WAIT_MS));
        // Excluded: what changes between the look and the wait is missed. Both subscriptions begin before the look.
        let mut offerings = self.offering.subscribe();
        let mut place = None;
        loop {
            let offering = offerings.borrow_and_update().clone()?;
            let mut commits = offering.memory.commits();
            let told = offering.told(question)?;
            let is_new =
                !told.chunks.is_empty() || told.content.is_some() || Some(told.epoch) != question.epoch;
            let has_all = question.lacks == 0 && (!offering.grows(question) || told.content.is_some());
            self.readers().hear(Instant::now(), question.reader, has_all);
            if is_new || Instant::now() >= until {
                return Some(told);
            }
            if place.is_none() {
                let Some(taken) = self.waiting.enter(address).await else { return Some(told) };
                taken.speaks();
                place = Some(taken);
            }
            tokio::select! {
                // The senders live in what is borrowed here.
                _ = commits.changed() => {}
                _ = offerings.changed() => {}
                () = tokio::time::sleep_until(until.into()) => {}
                () = stop.cancelled() => return None,
            }
        }
    }
}

impl Offering {
    /// What is told now; `None` if the bytes have another name.
    fn told(&self, question: &HeldQuestion) -> Option<HeldChunks> {
        // Excluded: it is said to hold everything, and the last chunk is not among those that are told.
        let is_whole = self.memory.all_held();
        let known = if question.epoch == Some(self.epoch) { question.after as usize } else { 0 };
        let mut cursor = self.begin.behind(known);
        // The look at the name comes last: what was forgotten has none.
        let chunks = self.memory.held_since(&mut cursor, MAX_TOLD_CHUNKS)?;
        if !self.memory.is_named(&question.root) {
            return None;
        }
        let grows = self.grows(question);
        let digests = chunks.iter().filter(|_| grows).map(|chunk| self.memory.digest(*chunk));
        let is_all = known + chunks.len() >= self.memory.plan().count() as usize;
        Some(HeldChunks {
            epoch: self.epoch,
            // They are known from before the chunk is held.
            digests: digests.collect::<Option<_>>()?,
            content: self.memory.content().filter(|_| grows && is_all).map(|content| content.id),
            is_whole,
            sign: self.memory.sign_of_life(),
            chunks,
        })
    }

    /// Whether the reader knows the bytes by a name that they had before they had a content id.
    fn grows(&self, question: &HeldQuestion) -> bool {
        self.memory.growing().is_some_and(|growing| growing.origin.0 == question.root)
    }
}

pub(super) async fn held(
    State(shared): State<Arc<Shared>>,
    Extension(Peer(address)): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let question = HeldQuestion::read(|name| parameter(&query, name));
    let (Some(asked), Some(question)) = (seed_key_of(&query), question) else {
        return (StatusCode::BAD_REQUEST, "a query parameter is missing, or malformed").into_response();
    };
    let told = if is_key(&shared.key, &asked) {
        shared.held.answer(&question, address, &shared.stop).await
    } else {
        None
    };
    match told {
        Some(told) => ([(header::CONTENT_TYPE, "application/json")], told.encode()).into_response(),
        None => (StatusCode::NOT_FOUND, "this worker tells nothing of such bytes").into_response(),
    }
}

/// Who asks, by the numbers that readers give themselves, and when each did last. Pure.
#[derive(Debug, Default)]
struct Readers {
    heard: HashMap<u64, Instant>,
}

impl Readers {
    /// One asks; it reads no more if it has all.
    fn hear(&mut self, now: Instant, reader: u64, has_all: bool) {
        if has_all {
            self.heard.remove(&reader);
            return;
        }
        let is_known = self.heard.contains_key(&reader);
        if !is_known && self.heard.len() >= MAX_READERS {
            let oldest = self.heard.iter().min_by_key(|(_, heard)| **heard).map(|(reader, _)| *reader);
            oldest.map(|oldest| self.heard.remove(&oldest));
        }
        self.heard.insert(reader, now);
    }

    /// How many were heard lately.
    fn count(&self, now: Instant) -> usize {
        self.heard.values().filter(|heard| now.saturating_duration_since(**heard) < HEARD).count()
    }
}

#[cfg(test)]
mod tests;
