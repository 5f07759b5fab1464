//! Gathers the heartbeats of seeds that are known and unchanged, and writes them together.
//!
//! A first registration, and any change, goes through the writer before it is acknowledged. A repeat is only
//! noted here and written within [`FLUSH_INTERVAL`], with the time that it waited. A crash may lose that
//! last second of heartbeats, never a seed.
//!
//! The notes are no truth. An entry says that the database held this seed under this key when its last
//! heartbeat was written. Only the writer makes and drops entries, in the order of its commits, so none
//! outlives a removal or a change of key that was acknowledged. A flush updates rows, never inserts, and
//! names them by numbers that are not used again, so nothing that is gone comes back. An entry is believed
//! only while the seed cannot have fallen silent; after that its heartbeat goes through. An entry may outlive what
//! another planner on the same database did, or the invalidation of a key; the next flush finds its seed gone or
//! offered no more and drops it, and the seed's next heartbeat goes through the writer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use rfork_protocol::{SeedIdentity, SeedKey};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::domain::owner::Owner;
use crate::domain::seed::{Heard, Profile, Removal};
use crate::store::commands::{Heartbeat, Register, Unregistered};
use crate::store::{Beat, Commands, Outcomes, Registration, Store};

/// How long a noted heartbeat waits at most.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// The most seeds that are remembered; heartbeats of others go through the writer.
const MAX_KNOWN: usize = 1_000_000;

#[derive(Debug)]
struct Known {
    seed_id: i64,
    /// SHA-256 of the key, whose the seed is, and what it told of itself: all may be long and entries are many. `None` when
    /// the last that was heard of it was no registration.
    told: Option<[u8; 32]>,
    /// The same of the key, the owner and the process, which is all that a heartbeat of v2 tells.
    held: [u8; 32],
    /// When the last heartbeat arrived that the database has.
    written: Instant,
    /// When a heartbeat arrived that it does not have yet.
    waiting: Option<Instant>,
}

/// Heartbeats that wait to be written, by seed identity. Shared by all requests.
///
/// No guard of the map is held across an await.
#[derive(Debug)]
pub struct Heartbeats {
    known: DashMap<String, Known>,
    /// How long after a written heartbeat an entry is believed. It leaves time for the next one to be written
    /// before the seed counts as silent.
    trust: Duration,
}

impl Heartbeats {
    /// None noted yet, for seeds that are silent after `heartbeat_ttl`.
    pub fn new(heartbeat_ttl: Duration) -> Self {
        Self { known: DashMap::new(), trust: heartbeat_ttl.saturating_sub(2 * FLUSH_INTERVAL) }
    }

    /// Notes a heartbeat if it only repeats what the database knows. `false`: it must go through the writer.
    pub fn note(&self, identity: &str, key: &SeedKey, owner: &Owner, profile: &Profile) -> bool {
        self.note_if(identity, |known| known.told == Some(digest(key, owner, profile)))
    }

    /// As [`Heartbeats::note`], for a heartbeat that registers nothing.
    pub fn note_beat(&self, identity: &str, key: &SeedKey, owner: &Owner, incarnation: Option<&str>) -> bool {
        self.note_if(identity, |known| known.held == holding(key, owner, incarnation))
    }

    fn note_if(&self, identity: &str, repeats: impl FnOnce(&Known) -> bool) -> bool {
        let Some(mut known) = self.known.get_mut(identity) else { return false };
        let believed = known.written.elapsed() < self.trust && repeats(&known);
        if believed {
            known.waiting = Some(Instant::now());
        }
        believed
    }

    /// Learns from a batch that the writer has just committed, before anybody is answered. `None` for
    /// outcomes: it is not known whether it was committed. Who spoke of somebody else's seed has changed nothing of it.
    pub fn learn(&self, commands: &Commands, outcomes: Option<&Outcomes>) {
        for (at, Register { identity, key, profile, age_ms, owner, .. }) in
            commands.registers.iter().enumerate()
        {
            let outcome = outcomes.and_then(|outcomes| outcomes.registers.get(at));
            if matches!(outcome, Some(Err(Unregistered::Owned))) {
                continue;
            }
            // One that drains must go on asking whether it may return.
            let registered = outcome.and_then(|outcome| outcome.as_ref().ok());
            let offered = registered.filter(|(registration, _)| *registration != Registration::Draining);
            let seed_id = offered.map(|(_, seed_id)| *seed_id);
            let told =
                || (Some(digest(key, owner, profile)), holding(key, owner, profile.incarnation.as_deref()));
            self.heard(identity, seed_id, *age_ms, told);
        }
        for (at, Heartbeat { identity, key, incarnation, age_ms, owner, progress }) in
            commands.heartbeats.iter().enumerate()
        {
            let outcome = outcomes.and_then(|outcomes| outcomes.heartbeats.get(at));
            if matches!(outcome, Some((Heard::Owned, _))) {
                continue;
            }
            // Who loads falls silent sooner than an entry is believed, and says how far it is with each heartbeat.
            let seed_id = outcome.filter(|_| progress.is_none()).and_then(|(_, seed_id)| *seed_id);
            let told = || (None, holding(key, owner, incarnation.as_deref()));
            self.heard(identity, seed_id, *age_ms, told);
        }
        // Within a batch a store registers before it removes.
        let of_others = |at| outcomes.and_then(|outcomes| outcomes.removals.get(at)) == Some(&Removal::Owned);
        let removed = commands.removals.iter().enumerate().filter(|(at, _)| !of_others(*at));
        let removed = removed.map(|(_, remove)| &remove.identity);
        for identity in removed.chain(commands.drains.iter().map(|drain| &drain.identity)) {
            self.known.remove(&identity.to_string());
        }
    }

    /// A seed was heard of, so many milliseconds ago; without a number it is not offered, or that is not known.
    fn heard(
        &self,
        identity: &SeedIdentity,
        seed_id: Option<i64>,
        age_ms: i64,
        told: impl FnOnce() -> (Option<[u8; 32]>, [u8; 32]),
    ) {
        let Some(seed_id) = seed_id else {
            self.known.remove(&identity.to_string());
            return;
        };
        let age = Duration::from_millis(age_ms.unsigned_abs());
        let written = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let (told, held) = told();
        self.remember(identity.to_string(), Known { seed_id, told, held, written, waiting: None });
    }

    fn remember(&self, identity: String, known: Known) {
        if !self.trust.is_zero() && self.known.len() < MAX_KNOWN {
            self.known.insert(identity, known);
        }
    }

    /// Writes what waits; gives the number written. On an error the heartbeats wait on.
    pub async fn flush(&self, store: &dyn Store) -> usize {
        let mut taken: HashMap<i64, (String, Instant)> = HashMap::new();
        self.known.retain(|identity, known| {
            if let Some(arrived) = known.waiting.take() {
                taken.insert(known.seed_id, (identity.clone(), arrived));
                return true;
            }
            known.written.elapsed() < self.trust
        });
        if taken.is_empty() {
            return 0;
        }
        let beats: Vec<Beat> = taken
            .iter()
            .map(|(seed_id, (_, arrived))| Beat {
                seed_id: *seed_id,
                age_ms: i64::try_from(arrived.elapsed().as_millis()).unwrap_or(i64::MAX),
            })
            .collect();
        match store.flush(&beats).await {
            Ok(gone) => {
                for (seed_id, (identity, arrived)) in taken {
                    if gone.contains(&seed_id) {
                        self.known.remove_if(&identity, |_, known| known.seed_id == seed_id);
                    } else if let Some(mut known) = self.known.get_mut(&identity)
                        && known.seed_id == seed_id
                    {
                        known.written = known.written.max(arrived);
                    }
                }
                beats.len()
            }
            Err(error) => {
                tracing::warn!(%error, heartbeats = beats.len(), "heartbeats wait for the database");
                for (seed_id, (identity, arrived)) in taken {
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

fn digest(key: &SeedKey, owner: &Owner, profile: &Profile) -> [u8; 32] {
    let mut digest = Sha256::new();
    // Its length first: a key may have the text of anything that follows it.
    digest.update(key.as_bytes().len().to_le_bytes());
    digest.update(key.as_bytes());
    // Most tell nothing. `Debug` spells every field with its name and escapes what it holds, so that no two
    // profiles look alike, nor two owners; it is never stored.
    if *owner != Owner::default() {
        digest.update([0]);
        digest.update(format!("{owner:?}"));
    }
    if *profile != Profile::default() {
        digest.update([0]);
        digest.update(format!("{profile:?}"));
    }
    digest.finalize().into()
}

fn holding(key: &SeedKey, owner: &Owner, incarnation: Option<&str>) -> [u8; 32] {
    let incarnation = incarnation.map(str::to_owned);
    digest(key, owner, &Profile { incarnation, ..Profile::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::commands::Remove;
    use crate::store::conformance::{identity, key};

    #[test]
    fn who_speaks_of_another_s_seed_costs_it_no_heartbeat() {
        let heartbeats = Heartbeats::new(Duration::from_hours(1));
        let of = |name: &str| Owner { principal: Some(name.into()), address: None };
        let (identity, key, name) = (identity(1), key("k"), identity(1).to_string());
        let register = |owner| Register {
            identity: identity.clone(),
            key: key.clone(),
            profile: Box::default(),
            age_ms: 0,
            client: None,
            owner,
            by: None,
        };
        let registered = Outcomes { registers: vec![Ok((Registration::New, 1))], ..Outcomes::default() };
        let commands = Commands { registers: vec![register(of("a"))], ..Commands::default() };
        heartbeats.learn(&commands, Some(&registered));
        assert!(!heartbeats.note(&name, &key, &of("b"), &Profile::default()));
        assert!(!heartbeats.note_beat(&name, &key, &of("b"), None));
        let hear = Heartbeat {
            identity: identity.clone(),
            key: key.clone(),
            incarnation: None,
            age_ms: 0,
            owner: of("b"),
            progress: None,
        };
        let remove = Remove { identity: identity.clone(), key: key.clone(), owner: of("b"), by: None };
        let commands = Commands {
            registers: vec![register(of("b"))],
            heartbeats: vec![hear],
            removals: vec![remove],
            ..Commands::default()
        };
        let refused = Outcomes {
            registers: vec![Err(Unregistered::Owned)],
            heartbeats: vec![(Heard::Owned, None)],
            removals: vec![Removal::Owned],
            ..Outcomes::default()
        };
        assert!(heartbeats.note(&name, &key, &of("a"), &Profile::default()));
        heartbeats.learn(&commands, Some(&refused));
        let waits = heartbeats.known.get(&name).is_some_and(|known| known.waiting.is_some());
        assert!(waits, "what was noted is written yet");
        assert!(heartbeats.note_beat(&name, &key, &of("a"), None));
        // Unless it is not known what became of it.
        heartbeats.learn(&commands, None);
        assert!(!heartbeats.note_beat(&name, &key, &of("a"), None));
    }
}
