//! Gathers the heartbeats of seeds that are known and unchanged, and writes them together.
//!
//! A first registration, and any change, goes through the writer before it is acknowledged. A repeat is only
//! noted here and written within [`FLUSH_INTERVAL`], with the time that it waited. A crash may lose that
//! last second of heartbeats, never a seed.
//!
//! The notes are no truth: an entry only says that the database held this seed under this key not long ago. A
//! removal drops the entry before the database is asked, and a flush updates rows, never inserts, so nothing
//! that was removed comes back. An entry older than [`TRUST`] is not believed: the heartbeat goes through.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use rfork_protocol::SeedKey;
use tokio_util::sync::CancellationToken;

use crate::store::{Beat, Store};

/// How long a noted heartbeat waits at most.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// The most seeds that are remembered; heartbeats of others go through the writer.
const MAX_KNOWN: usize = 1_000_000;
/// A part of the heartbeat's time to live for which an entry is believed without asking the database.
const TRUST: f64 = 0.9;

#[derive(Debug)]
struct Known {
    seed_id: i64,
    key: SeedKey,
    /// When the database last knew the seed to be so: a registration, or a flush.
    confirmed: Instant,
    /// When a heartbeat arrived that is not written yet.
    waiting: Option<Instant>,
}

/// Heartbeats that wait to be written, by seed identity. Shared by all requests.
#[derive(Debug)]
pub struct Heartbeats {
    known: DashMap<String, Known>,
    trust: Duration,
}

impl Heartbeats {
    /// None noted yet.
    pub fn new(heartbeat_ttl: Duration) -> Self {
        Self { known: DashMap::new(), trust: heartbeat_ttl.mul_f64(TRUST) }
    }

    /// Notes a heartbeat if it only repeats what the database knows. `false`: it must go through the writer.
    pub fn note(&self, identity: &str, key: &SeedKey) -> bool {
        let Some(mut known) = self.known.get_mut(identity) else { return false };
        let believed = known.key == *key && known.confirmed.elapsed() < self.trust;
        if believed {
            known.waiting = Some(Instant::now());
        }
        believed
    }

    /// Remembers what the writer has just registered.
    pub fn remember(&self, identity: String, key: SeedKey, seed_id: i64) {
        if self.known.len() < MAX_KNOWN {
            let known = Known { seed_id, key, confirmed: Instant::now(), waiting: None };
            self.known.insert(identity, known);
        }
    }

    /// Forgets a seed; its next heartbeat goes through the writer.
    pub fn forget(&self, identity: &str) {
        self.known.remove(identity);
    }

    /// Writes what waits; gives the number written. On an error the heartbeats wait on.
    pub async fn flush(&self, store: &dyn Store) -> usize {
        let mut taken = Vec::new();
        // No guard lives across the await below: each is dropped with its turn of the loop.
        for mut entry in self.known.iter_mut() {
            if let Some(arrived) = entry.waiting.take() {
                taken.push((entry.key().clone(), entry.seed_id, arrived));
            }
        }
        self.known.retain(|_, known| known.confirmed.elapsed() < self.trust);
        if taken.is_empty() {
            return 0;
        }
        let beats: Vec<Beat> = taken
            .iter()
            .map(|(_, seed_id, arrived)| Beat {
                seed_id: *seed_id,
                age_ms: i64::try_from(arrived.elapsed().as_millis()).unwrap_or(i64::MAX),
            })
            .collect();
        match store.flush(&beats).await {
            Ok(gone) => {
                for (identity, seed_id, _) in taken {
                    if gone.contains(&seed_id) {
                        self.known.remove_if(&identity, |_, known| known.seed_id == seed_id);
                    } else if let Some(mut known) = self.known.get_mut(&identity) {
                        known.confirmed = Instant::now();
                    }
                }
                beats.len()
            }
            Err(error) => {
                tracing::warn!(%error, heartbeats = beats.len(), "heartbeats wait for the database");
                for (identity, seed_id, arrived) in taken {
                    if let Some(mut known) = self.known.get_mut(&identity)
                        && known.seed_id == seed_id
                    {
                        known.waiting.get_or_insert(arrived);
                    }
                }
                0
            }
        }
    }

    /// Flushes every [`FLUSH_INTERVAL`] until stopped, and once more then.
    pub async fn run(self: Arc<Self>, store: Arc<dyn Store>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.flush(store.as_ref()).await;
        }
        self.flush(store.as_ref()).await;
    }
}
